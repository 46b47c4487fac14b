//! Objects as one configuration holds them, each with the place it was written.
//!
//! Owns the way from a field path such as `spec.rules[2].when` back to file, line and column, so that every
//! later check reports where to look. Refuses nothing itself: the loader and [`crate::check`] do. Invariant: an
//! object in here parsed whole; whether it makes sense is the checker's question.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::api::access_policy::SubjectMatch;
use crate::api::target::Credential;
use crate::api::token_issuer::{Authorities, HomeRef};
use crate::api::{AccessPolicy, ClusterAccessPolicy, InjectionProfile, Lockdown, Target, TokenIssuer};
use crate::check::{holds_certificate, OWN};
use crate::compile::Problem;
use crate::engine::Subject;
use crate::presets::{self, Gives, Scopes};
use crate::yaml::Node;

/// Everything one configuration says.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// Targets.
    pub targets: Vec<Located<Target>>,
    /// AccessPolicies.
    pub policies: Vec<Located<AccessPolicy>>,
    /// ClusterAccessPolicies.
    pub cluster_policies: Vec<Located<ClusterAccessPolicy>>,
    /// Lockdowns.
    pub lockdowns: Vec<Located<Lockdown>>,
    /// TokenIssuers.
    pub token_issuers: Vec<Located<TokenIssuer>>,
    /// InjectionProfiles.
    pub injection_profiles: Vec<Located<InjectionProfile>>,
    /// ConfigMaps, for `tls.caBundle`.
    pub config_maps: Vec<Located<ConfigMap>>,
    /// Namespaces, for `allowedNamespaces`.
    pub namespaces: Vec<Located<Namespace>>,
}

impl Objects {
    /// The Lockdowns alone.
    pub fn lockdowns(&self) -> Vec<Lockdown> {
        self.lockdowns.iter().map(|located| located.object.clone()).collect()
    }

    /// The Target of this name, if there is one.
    pub fn target(&self, namespace: &str, name: &str) -> Option<&Located<Target>> {
        self.targets.iter().find(|located| {
            let metadata = &located.object.metadata;
            metadata.name == name && metadata.namespace.as_deref() == Some(namespace)
        })
    }

    /// The namespace of this name, if it is described.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        let all = self.namespaces.iter().map(|located| &located.object);
        all.into_iter().find(|namespace| namespace.name == name)
    }

    /// The ConfigMap of this name, if there is one.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&ConfigMap> {
        let all = self.config_maps.iter().map(|located| &located.object);
        all.into_iter()
            .find(|map| map.namespace == namespace && map.name == name)
    }

    /// The InjectionProfile of this name.
    pub fn injection_profile(&self, name: &str) -> Option<&InjectionProfile> {
        let profiles = self.injection_profiles.iter().map(|located| &located.object);
        profiles.into_iter().find(|profile| profile.metadata.name == name)
    }

    /// The Targets this subject is granted: each admits its namespace, and an AccessPolicy that names the subject
    /// refers to it. In order of their names, as the broker offers them.
    pub fn granted(&self, subject: &Subject) -> Vec<&Target> {
        self.granted_where(&subject.namespace, |wanted| wanted.matches(subject))
    }

    /// The Targets that a pod of this namespace could be granted, whatever its account and labels are. In order of their
    /// names.
    pub fn granted_within(&self, namespace: &str) -> Vec<&Target> {
        self.granted_where(namespace, |wanted| {
            let account = wanted.service_account.as_ref();
            account.is_none_or(|account| account.namespace == namespace)
        })
    }

    fn granted_where(&self, namespace: &str, meant: impl Fn(&SubjectMatch) -> bool) -> Vec<&Target> {
        let policies = self.policies.iter().map(|located| &located.object);
        let policies: Vec<&AccessPolicy> = policies
            .filter(|policy| policy.spec.subjects.iter().any(&meant))
            .collect();
        let granted =
            |target: &&Target| policies.iter().any(|policy| policy.refers_to(target)) && self.admits(target, namespace);
        let targets = self.targets.iter().map(|located| &located.object);
        let mut found: Vec<&Target> = targets.filter(granted).collect();
        found.sort_by_cached_key(|target| target.full_name());
        found
    }

    /// Whether a Target may be used from this namespace, as far as the Target says.
    pub fn admits(&self, target: &Target, namespace: &str) -> bool {
        match &target.spec.allowed_namespaces {
            None => target.metadata.namespace.as_deref().unwrap_or_default() == namespace,
            Some(allowed) => allowed.selector.matches(&self.namespace_labels(namespace)),
        }
    }

    /// The TokenIssuer of this name, if there is one.
    pub fn token_issuer(&self, name: &str) -> Option<&TokenIssuer> {
        let all = self.token_issuers.iter().map(|located| &located.object);
        all.into_iter().find(|issuer| issuer.metadata.name == name)
    }

    /// The TokenIssuer that has a part in how a Target is logged in to. Nothing: none has, or Sidegate's own issuer.
    ///
    /// # Errors
    /// Where the Target cannot have them: it is offered to nobody.
    pub fn issuer_of(&self, target: &Target) -> Result<Option<&TokenIssuer>, Unresolved> {
        let credential = &target.spec.credential;
        let Some(name) = credential.issuer() else {
            return Ok(None);
        };
        if name == OWN {
            return match credential {
                Credential::Token(_) => Ok(None),
                other => Err(Unresolved {
                    reason: "IssuerNotUsable",
                    message: format!("Sidegate's own issuer has no part in credential.{}", other.as_str()),
                }),
            };
        }
        let issuer = self.token_issuer(name).ok_or_else(|| Unresolved {
            reason: "IssuerNotFound",
            message: format!("there is no TokenIssuer {name} (yet)"),
        })?;
        let home = target.metadata.namespace.as_deref().unwrap_or_default();
        let allowed = &issuer.spec.allowed_namespaces.selector;
        if !allowed.matches(&self.namespace_labels(home)) {
            return Err(Unresolved {
                reason: "IssuerNotAllowed",
                message: format!("TokenIssuer {name} does not admit Targets of namespace {home}"),
            });
        }
        let unfit = |message| Unresolved {
            reason: "IssuerNotUsable",
            message,
        };
        let preset = presets::find(&issuer.spec.preset);
        let preset = preset.ok_or_else(|| unfit(format!("TokenIssuer {name} has no preset that is known")))?;
        let fits = match credential {
            Credential::Vault(_) | Credential::SshCertificate(_) => preset.gives == Gives::VaultToken,
            Credential::AwsIam(_) => preset.gives == Gives::Keys,
            _ => preset.gives != Gives::Keys,
        };
        if !fits {
            return Err(unfit(format!(
                "TokenIssuer {name} ({}) gives {}, and credential.{} wants {}",
                preset.name,
                preset.gives.words(),
                credential.as_str(),
                wanted(credential).words(),
            )));
        }
        let scopes = match credential {
            Credential::Token(token) => token.scopes.as_slice(),
            _ => &[],
        };
        if preset.scopes == Scopes::Required && scopes.is_empty() {
            let message = format!(
                "TokenIssuer {name} ({}) wants scopes; name them in token.scopes",
                preset.name
            );
            return Err(unfit(message));
        }
        Ok(Some(issuer))
    }

    /// The same, with authorities that are at hand.
    ///
    /// # Errors
    /// As [`Objects::issuer_of`]; also where the issuer's ConfigMap is not there: nothing else is trusted instead.
    pub fn trusted_issuer_of(&self, target: &Target) -> Result<Option<&TokenIssuer>, Unresolved> {
        let issuer = self.issuer_of(target)?;
        match issuer.and_then(|issuer| issuer.spec.ca_bundle.as_ref().map(|bundle| (issuer, bundle))) {
            Some((issuer, Authorities::ConfigMap(reference))) => Err(Unresolved {
                reason: "CaBundleNotFound",
                message: format!("TokenIssuer {}: {}", issuer.metadata.name, absent(reference)),
            }),
            _ => Ok(issuer),
        }
    }

    /// Puts the certificates of ConfigMaps that TokenIssuers name in their place. `home` is the broker's own namespace.
    /// A reference that leads nowhere, or to no certificate, stays.
    pub fn settle_authorities(&mut self, home: &str) {
        for located in &mut self.token_issuers {
            let Some(Authorities::ConfigMap(reference)) = &located.object.spec.ca_bundle else {
                continue;
            };
            let maps = self.config_maps.iter().map(|located| &located.object);
            let map = maps
                .into_iter()
                .find(|map| map.namespace == home && map.name == reference.name);
            let pem = map.and_then(|map| map.data.get(&reference.key));
            if let Some(pem) = pem.filter(|pem| holds_certificate(pem)) {
                located.object.spec.ca_bundle = Some(Authorities::Inline(pem.clone()));
            }
        }
    }

    /// Labels of a namespace; none for one that is not described. Kubernetes' own label with the name is always there.
    pub fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let found = self.namespace(namespace);
        let mut labels = found.map(|found| found.labels.clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
        labels
    }
}

/// What is missing where a TokenIssuer's authorities are not in place.
pub fn absent(reference: &HomeRef) -> String {
    let HomeRef { name, key } = reference;
    format!("there is no ConfigMap {name} with PEM certificates under `{key}` in the broker's namespace (yet)")
}

/// What a credential is made of.
fn wanted(credential: &Credential) -> Gives {
    match credential {
        Credential::Vault(_) | Credential::SshCertificate(_) => Gives::VaultToken,
        Credential::AwsIam(_) => Gives::Keys,
        Credential::Secret(_) | Credential::Token(_) | Credential::None(_) => Gives::Bearer,
    }
}

/// Why a reference leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Unresolved {
    /// In one word, as in conditions.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// A `v1 ConfigMap`: named text, read for certificate bundles only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigMap {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its text entries.
    pub data: BTreeMap<String, String>,
}

/// Whether pods get a sidecar: label of namespaces and pods.
pub const INJECT: &str = "sidegate.dev/inject";
/// By which InjectionProfile: label of namespaces.
pub const PROFILE: &str = "sidegate.dev/profile";
/// By which InjectionProfile a pod was made: label of pods whose profile says `networkPolicy: Audit`, written by the injector.
pub const INJECTED_BY: &str = "sidegate.dev/injected-by";
/// The InjectionProfile of a namespace that names none.
pub const DEFAULT_PROFILE: &str = "default";

/// A `v1 Namespace`: read for its labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// The labels of a stored object; what is no text is none.
pub fn labels(stored: &Value) -> BTreeMap<String, String> {
    let labels = stored.pointer("/metadata/labels").and_then(Value::as_object);
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    labels.into_iter().flatten().filter_map(text).collect()
}

impl Namespace {
    /// As the API server stored it.
    pub fn of(stored: &Value) -> Namespace {
        let name = stored.pointer("/metadata/name").and_then(Value::as_str);
        Namespace {
            name: name.unwrap_or_default().to_owned(),
            labels: labels(stored),
        }
    }

    /// The name of the InjectionProfile that its pods are made by.
    pub fn profile(&self) -> &str {
        self.labels.get(PROFILE).map_or(DEFAULT_PROFILE, String::as_str)
    }
}

/// An object and where it came from.
#[derive(Debug, Clone)]
pub struct Located<T> {
    /// The object.
    pub object: T,
    /// Where it was written.
    pub origin: Origin,
}

impl<T> Located<T> {
    /// An object that came from no file.
    pub fn unplaced(object: T) -> Self {
        Located {
            object,
            origin: Origin::default(),
        }
    }
}

/// Where an object was written: a document of a file, or nowhere.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    document: Option<Arc<Document>>,
}

#[derive(Debug)]
struct Document {
    file: String,
    tree: Node,
}

impl Origin {
    /// The origin of one document of a file.
    pub(crate) fn new(file: &str, tree: Node) -> Self {
        Origin {
            document: Some(Arc::new(Document {
                file: file.to_owned(),
                tree,
            })),
        }
    }

    /// The file's name, if the object came from one.
    pub fn file(&self) -> Option<&str> {
        self.document.as_deref().map(|document| document.file.as_str())
    }

    /// Line and column of a field, or of the closest thing around it that was written.
    pub fn locate(&self, field: &str) -> Option<(u64, u64)> {
        let document = self.document.as_deref()?;
        let at = document.tree.locate(field);
        Some((at.line, at.column))
    }

    /// A problem with a field of this object, with its place.
    pub fn problem(&self, object: &str, field: &str, message: impl Into<String>) -> Problem {
        let place = self.locate(field);
        Problem {
            file: self.file().map(str::to_owned),
            line: place.map(|(line, _)| line),
            column: place.map(|(_, column)| column),
            object: (!object.is_empty()).then(|| object.to_owned()),
            field: field.to_owned(),
            message: message.into(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::yaml::{load, Source};

    #[test]
    fn granted_targets_come_in_the_order_of_their_full_names() {
        let target = |home: &str| {
            format!(
                "---\napiVersion: sidegate.dev/v1alpha1\nkind: Target\nmetadata: {{name: shop, namespace: {home}}}\nspec: \
                 {{protocol: Postgres, address: {{host: db.example, port: 5432}}, credential: {{none: {{}}}}, listen: \
                 {{port: 15432}}, allowedNamespaces: {{selector: {{}}}}}}\n---\napiVersion: sidegate.dev/v1alpha1\nkind: \
                 AccessPolicy\nmetadata: {{name: all, namespace: {home}}}\nspec: {{targetRefs: [{{name: shop}}], subjects: \
                 [{{serviceAccount: {{namespace: agents, name: support}}}}], rules: [{{name: r, effect: Allow, sql: \
                 {{commands: [Select]}}}}]}}\n"
            )
        };
        let text = format!("{}{}", target("data"), target("data-eu"));
        let name = "all.yaml".to_owned();
        let loaded = load(&[Source { name, text }]);
        assert_eq!(loaded.problems, []);
        let subject = Subject {
            namespace: "agents".into(),
            service_account: "support".into(),
            pod: "support-1".into(),
            pod_uid: "uid-1".into(),
            labels: Default::default(),
        };
        let names: Vec<String> = loaded
            .objects
            .granted(&subject)
            .into_iter()
            .map(Target::full_name)
            .collect();
        // Of two on one port a pod is told of the first, and the broker, which orders whole names, offers it.
        assert_eq!(names, ["data-eu/shop", "data/shop"]);
    }
}
