//! From files to [`Objects`]: every document of every file, all problems at once.
//!
//! Owns which kinds may stand in a file, where they live (namespaced or not) and their identity. Refuses secrets,
//! kinds that are not built yet or not known, objects the broker writes itself, and two objects of one name.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::de::DeserializeOwned;
use serde::Deserialize;

use super::tree::{duplicates, Node};
use super::typed::{typed, Mistake};
use crate::api::meta::{Metadata, Object};
use crate::api::{not_built, API_VERSION, GROUP};
use crate::compile::Problem;
use crate::objects::{ConfigMap, Located, Namespace, Objects, Origin};

/// How names of files end that hold cases for `policy test`, beside the policies they are about.
pub const CASES: &str = ".cases.yaml";

/// One text to read.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file's name, as problems quote it.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What was read.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Every object that parsed whole.
    pub objects: Objects,
    /// Everything that is wrong. With one problem or more, nothing of this may be used as a configuration.
    pub problems: Vec<Problem>,
}

/// Reads every document of every source.
pub fn load(sources: &[Source]) -> Loaded {
    let mut loader = Loader::default();
    for source in sources {
        match super::documents(&source.text) {
            Ok(documents) => {
                for tree in documents {
                    if source.name.ends_with(CASES) {
                        loader.no_object(&source.name, tree);
                    } else {
                        loader.document(&source.name, tree);
                    }
                }
            }
            Err(error) => loader.loaded.problems.push(Problem {
                file: Some(source.name.clone()),
                line: error.at.map(|at| at.line).filter(|line| *line > 0),
                column: error.at.map(|at| at.column).filter(|column| *column > 0),
                object: None,
                field: String::new(),
                message: error.message,
            }),
        }
    }
    loader.loaded
}

#[derive(Default)]
struct Loader {
    loaded: Loaded,
    /// Where each object was first seen.
    seen: HashMap<(String, String), String>,
}

/// The parts of `v1 ConfigMap` that are read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigMapDocument {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default, rename = "binaryData")]
    _binary_data: Option<serde_json::Value>,
    #[serde(default, rename = "immutable")]
    _immutable: Option<bool>,
}

/// The parts of `v1 Namespace` that are read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamespaceDocument {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    #[serde(default, rename = "spec")]
    _spec: Option<serde_json::Value>,
    #[serde(default, rename = "status")]
    _status: Option<serde_json::Value>,
}

/// A document on its way to an object.
struct Document {
    origin: Origin,
    tree: Node,
    kind: &'static str,
    /// `Kind namespace/name`.
    label: String,
}

impl Loader {
    /// A document of a file of cases. An object in there would be passed over, so it is a mistake.
    fn no_object(&mut self, file: &str, tree: Node) {
        if tree.get("kind").is_none() && tree.get("apiVersion").is_none() {
            return;
        }
        let message = format!("a file whose name ends in `{CASES}` holds cases, and its objects are not read: move it");
        let label = label(&tree, "object");
        self.problem(&Origin::new(file, tree), &label, "kind", &message);
    }

    fn document(&mut self, file: &str, tree: Node) {
        let origin = Origin::new(file, tree.clone());
        let text = |key: &str| tree.get(key).and_then(Node::text).map(str::to_owned);
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let label = label(&tree, kind.as_deref().unwrap_or("object"));
        let (Some(api_version), Some(kind)) = (api_version, kind) else {
            let field = if tree.get("apiVersion").and_then(Node::text).is_none() {
                "apiVersion"
            } else {
                "kind"
            };
            self.problem(&origin, &label, field, "is required, as text");
            return;
        };
        let known = |kind| Document {
            origin: origin.clone(),
            tree: tree.clone(),
            kind,
            label: label.clone(),
        };
        match (api_version.as_str(), kind.as_str()) {
            (API_VERSION, "Target") => {
                if let Some(found) = self.object(&known("Target"), true) {
                    self.loaded.objects.targets.push(found);
                }
            }
            (API_VERSION, "AccessPolicy") => {
                if let Some(found) = self.object(&known("AccessPolicy"), true) {
                    self.loaded.objects.policies.push(found);
                }
            }
            (API_VERSION, "ClusterAccessPolicy") => {
                if let Some(found) = self.object(&known("ClusterAccessPolicy"), false) {
                    self.loaded.objects.cluster_policies.push(found);
                }
            }
            (API_VERSION, "Lockdown") => {
                if let Some(found) = self.object(&known("Lockdown"), false) {
                    self.loaded.objects.lockdowns.push(found);
                }
            }
            (API_VERSION, "TokenIssuer") => {
                if let Some(found) = self.object(&known("TokenIssuer"), false) {
                    self.loaded.objects.token_issuers.push(found);
                }
            }
            (API_VERSION, "InjectionProfile") => {
                if let Some(found) = self.object(&known("InjectionProfile"), false) {
                    self.loaded.objects.injection_profiles.push(found);
                }
            }
            ("v1", "ConfigMap") => self.config_map(&known("ConfigMap")),
            ("v1", "Namespace") => self.namespace(&known("Namespace")),
            (api_version, kind) => {
                let (field, message) = foreign(api_version, kind);
                self.problem(&origin, &label, field, message);
            }
        }
    }

    fn object<Spec: DeserializeOwned>(
        &mut self,
        document: &Document,
        namespaced: bool,
    ) -> Option<Located<Object<Spec>>> {
        let mut object: Object<Spec> = self.typed(document)?;
        self.identity(document, &mut object.metadata, namespaced)?;
        Some(Located {
            object,
            origin: document.origin.clone(),
        })
    }

    fn config_map(&mut self, document: &Document) {
        let Some(mut read) = self.typed::<ConfigMapDocument>(document) else {
            return;
        };
        if self.identity(document, &mut read.metadata, true).is_some() {
            self.loaded.objects.config_maps.push(Located {
                object: ConfigMap {
                    namespace: read.metadata.namespace.unwrap_or_default(),
                    name: read.metadata.name,
                    data: read.data,
                },
                origin: document.origin.clone(),
            });
        }
    }

    fn namespace(&mut self, document: &Document) {
        let Some(mut read) = self.typed::<NamespaceDocument>(document) else {
            return;
        };
        if self.identity(document, &mut read.metadata, false).is_some() {
            self.loaded.objects.namespaces.push(Located {
                object: Namespace {
                    name: read.metadata.name,
                    labels: read.metadata.labels,
                },
                origin: document.origin.clone(),
            });
        }
    }

    /// Both passes over one document. Problems are reported; a value comes back only where there are none.
    fn typed<T: DeserializeOwned>(&mut self, document: &Document) -> Option<T> {
        let mut mistakes = duplicates(&document.tree);
        let twice = !mistakes.is_empty();
        let mut answered = HashSet::new();
        for (field, message) in not_built::find(document.kind, &document.tree) {
            mistakes.push(Mistake {
                at: document.tree.locate(&field),
                field: field.clone(),
                message,
            });
            answered.insert(field);
        }
        let value = typed::<T>(&document.tree, &mut mistakes, &answered);
        mistakes.sort_by_key(|mistake| mistake.at);
        for mistake in mistakes {
            self.loaded.problems.push(Problem {
                file: document.origin.file().map(str::to_owned),
                line: Some(mistake.at.line),
                column: Some(mistake.at.column),
                object: Some(document.label.clone()),
                field: mistake.field,
                message: mistake.message,
            });
        }
        value.filter(|_| !twice)
    }

    /// Scope, uid, and that the name is new.
    fn identity(&mut self, document: &Document, metadata: &mut Metadata, namespaced: bool) -> Option<()> {
        let (kind, origin, label) = (document.kind, &document.origin, &document.label);
        match (namespaced, &metadata.namespace) {
            (true, None) => {
                let message = format!("is required: a {kind} lives in a namespace, and none is assumed");
                self.problem(origin, label, "metadata.namespace", message);
                return None;
            }
            (false, Some(_)) => {
                let message = format!("a {kind} holds for the whole cluster; remove the namespace");
                self.problem(origin, label, "metadata.namespace", message);
                return None;
            }
            _ => {}
        }
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let full = format!("{namespace}/{}", metadata.name);
        let here = match (origin.file(), origin.locate("metadata.name")) {
            (Some(file), Some((line, _))) => format!("{file}:{line}"),
            _ => "another source".to_owned(),
        };
        if let Some(first) = self.seen.insert((kind.to_owned(), full), here) {
            let message = format!("this {kind} is already written at {first}");
            self.problem(origin, label, "metadata.name", message);
            return None;
        }
        if metadata.uid.is_none() {
            metadata.uid = Some(uid(kind, &namespace, &metadata.name));
        }
        Some(())
    }

    fn problem(&mut self, origin: &Origin, label: &str, field: &str, message: impl Into<String>) {
        self.loaded.problems.push(origin.problem(label, field, message));
    }
}

fn label(tree: &Node, kind: &str) -> String {
    let metadata = |key: &str| tree.get("metadata").and_then(|node| node.get(key)).and_then(Node::text);
    match (metadata("namespace"), metadata("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        _ => kind.to_owned(),
    }
}

/// What to say of a kind that does not belong in a file.
fn foreign(api_version: &str, kind: &str) -> (&'static str, String) {
    let group = api_version.split('/').next().unwrap_or_default();
    let message = match (api_version, kind) {
        ("v1", "Secret") => "secrets do not belong in configuration: put each key into a file \
            <namespace>/<name>/<key> of the secrets folder (--secrets DIR), mode 0600"
            .to_owned(),
        ("v1", "List") => "lists are not read; separate the objects by `---`".to_owned(),
        (API_VERSION, "AccessRequest") => {
            "AccessRequests are written by the broker when an agent asks; they are not configuration".to_owned()
        }
        (API_VERSION, kind) => match not_built::kind(kind) {
            Some(message) => message,
            None => "no such kind; known are Target, AccessPolicy, ClusterAccessPolicy, Lockdown, TokenIssuer, \
                InjectionProfile, and of v1 ConfigMap and Namespace"
                .to_owned(),
        },
        _ if group == GROUP => return ("apiVersion", format!("this release reads {API_VERSION} only")),
        _ => format!("{api_version} {kind} is not read here; only {API_VERSION}, v1 ConfigMap and v1 Namespace are"),
    };
    ("kind", message)
}

/// A stable identity for an object no API server gave one.
pub(crate) fn uid(kind: &str, namespace: &str, name: &str) -> String {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in [kind, namespace, name] {
        hash.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let digest = hash.finish();
    let mut bytes = [0u8; 16];
    for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}
