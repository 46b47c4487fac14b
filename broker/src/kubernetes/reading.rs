//! From the objects of a cluster to what is in force: each object by itself, none in the way of the others.
//!
//! In a folder one problem stops the whole configuration; in a cluster many teams apply objects, in any order. An
//! object with a problem is left out, and so is everything it might have restricted: a policy that cannot be read
//! withholds its Targets, for its Deny could be among what was not understood. A Lockdown that cannot be read freezes
//! everything. The invariant: leaving an object out never allows more than reading it could have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use sidegate_cluster::stored::document;
use sidegate_policies::api::Lockdown;
use sidegate_policies::check;
use sidegate_policies::compile::understood::observes;
use sidegate_policies::compile::Problem;
use sidegate_policies::objects::Objects;
use sidegate_policies::yaml::{self, Source};

use super::maps::MapRead;
use crate::index::Withheld;
use crate::lockdown::everything;

/// Rounds of leaving objects out: what is left out may leave others dangling.
const ROUNDS: usize = 8;

/// A kind that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1 Namespace`, for its labels.
    Namespace,
    /// `v1 ConfigMap`, for certificate authorities: read by name, never followed.
    ConfigMap,
    /// `Target`.
    Target,
    /// `AccessPolicy`.
    AccessPolicy,
    /// `ClusterAccessPolicy`.
    ClusterAccessPolicy,
    /// `Lockdown`.
    Lockdown,
    /// `TokenIssuer`.
    TokenIssuer,
    /// `InjectionProfile`, for its tier: no bundle is made of it.
    InjectionProfile,
}

impl Kind {
    /// Every kind that is followed.
    pub const ALL: [Kind; 7] = [
        Kind::Namespace,
        Kind::Target,
        Kind::AccessPolicy,
        Kind::ClusterAccessPolicy,
        Kind::Lockdown,
        Kind::TokenIssuer,
        Kind::InjectionProfile,
    ];

    /// As in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::ConfigMap => "ConfigMap",
            Kind::Target => "Target",
            Kind::AccessPolicy => "AccessPolicy",
            Kind::ClusterAccessPolicy => "ClusterAccessPolicy",
            Kind::Lockdown => "Lockdown",
            Kind::TokenIssuer => "TokenIssuer",
            Kind::InjectionProfile => "InjectionProfile",
        }
    }

    /// As in a URL.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Namespace => "namespaces",
            Kind::ConfigMap => "configmaps",
            Kind::Target => "targets",
            Kind::AccessPolicy => "accesspolicies",
            Kind::ClusterAccessPolicy => "clusteraccesspolicies",
            Kind::Lockdown => "lockdowns",
            Kind::TokenIssuer => "tokenissuers",
            Kind::InjectionProfile => "injectionprofiles",
        }
    }

    /// Whether objects of it live in a namespace.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Kind::Target | Kind::AccessPolicy | Kind::ConfigMap)
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.as_str(), self.name),
            None => write!(f, "{} {}", self.kind.as_str(), self.name),
        }
    }
}

/// Objects as the API server holds them.
pub type Stored = BTreeMap<Key, Arc<Value>>;

/// What was found about objects.
pub type About = BTreeMap<Key, Found>;

/// What was found about one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Why it is not in force; nothing: it is.
    pub problems: Vec<Problem>,
    /// What to look at that stops nothing.
    pub warnings: Vec<Problem>,
}

/// What is in force.
#[derive(Debug, Default)]
pub struct Reading {
    /// Objects without a problem, Lockdowns left out.
    pub objects: Objects,
    /// Targets that must not be offered.
    pub withheld: Withheld,
    /// Something about every object that was read.
    pub found: About,
}

/// Reads everything but Lockdowns, which do not wait for it; with the ConfigMaps that could be read.
pub fn read(stored: &Stored, maps: &BTreeMap<Key, MapRead>) -> Reading {
    let mut reading = Reading::default();
    let maps = maps.iter().filter_map(|(key, read)| match read {
        MapRead::Found(object) => Some((key, object)),
        _ => None,
    });
    let mut left: BTreeMap<String, (&Key, &Value)> = BTreeMap::new();
    for (key, object) in stored.iter().chain(maps) {
        if key.kind == Kind::Lockdown {
            continue;
        }
        reading.found.insert(key.clone(), Found::default());
        left.insert(file(key), (key, object));
    }
    for _ in 0..ROUNDS {
        let sources: Vec<Source> = left
            .iter()
            .map(|(file, (key, object))| source(file, key, object))
            .collect();
        let loaded = yaml::load(&sources);
        let checked = check::check_apart(&loaded.objects);
        let problems: Vec<Problem> = loaded.problems.into_iter().chain(checked.problems).collect();
        if problems.is_empty() {
            for warning in checked.warnings {
                let file = warning.file.clone().unwrap_or_default();
                if let Some(found) = left.get(&file).and_then(|(key, _)| reading.found.get_mut(*key)) {
                    found.warnings.push(warning);
                }
            }
            reading.objects = loaded.objects;
            return reading;
        }
        let mut unplaced = Vec::new();
        let mut out = BTreeSet::new();
        for problem in problems {
            let file = problem.file.clone().unwrap_or_default();
            match left.get(&file).and_then(|(key, _)| reading.found.get_mut(*key)) {
                Some(found) => {
                    found.problems.push(problem);
                    out.insert(file);
                }
                None => unplaced.push(problem),
            }
        }
        if let Some(problem) = unplaced.first() {
            return nothing(reading, problem);
        }
        for file in out {
            if let Some((key, object)) = left.remove(&file) {
                let why = reading.found.get(key).and_then(|found| found.problems.first());
                let why = why
                    .map(|problem| format!("{}: {}", problem.field, problem.message))
                    .unwrap_or_default();
                withhold(
                    &mut reading.withheld,
                    key,
                    object,
                    &format!("PolicyNotAccepted: {key}: {why}"),
                );
            }
        }
    }
    let endless = Problem {
        file: None,
        line: None,
        column: None,
        object: None,
        field: String::new(),
        message: format!("still problems after leaving objects out {ROUNDS} times"),
    };
    nothing(reading, &endless)
}

/// Lockdowns alone. One that cannot be read freezes everything.
pub fn lockdowns(stored: &Stored) -> (Vec<Lockdown>, About) {
    let mut lockdowns = Vec::new();
    let mut found = About::new();
    for (key, object) in stored.iter().filter(|(key, _)| key.kind == Kind::Lockdown) {
        let loaded = yaml::load(&[source(&file(key), key, object)]);
        let checked = check::check_apart(&loaded.objects);
        let problems: Vec<Problem> = loaded.problems.into_iter().chain(checked.problems).collect();
        match problems.first() {
            None => lockdowns.extend(loaded.objects.lockdowns.into_iter().map(|located| located.object)),
            Some(problem) => {
                tracing::error!(%problem, lockdown = key.name, "a Lockdown cannot be read: everything is frozen");
                let mut all = everything(&problem.to_string());
                all.metadata.name.clone_from(&key.name);
                lockdowns.push(all);
            }
        }
        found.insert(
            key.clone(),
            Found {
                problems,
                warnings: checked.warnings,
            },
        );
    }
    (lockdowns, found)
}

/// What is not understood as a whole denies everything.
fn nothing(mut reading: Reading, why: &Problem) -> Reading {
    tracing::error!(problem = %why, "the objects of the cluster cannot be read: deny all");
    reading.objects = Objects::default();
    reading.withheld.everything(format!("NotAccepted: {why}"));
    reading
}

/// Targets that an object which is left out might have restricted.
fn withhold(withheld: &mut Withheld, key: &Key, object: &Value, why: &str) {
    match (key.kind, references(object)) {
        // A Target that is left out is offered to nobody, one whose TokenIssuer is left out too, and what only observes
        // restricts nothing. A profile that is left out attests nobody (see [`super::egress`]).
        (Kind::Target | Kind::Namespace | Kind::ConfigMap | Kind::Lockdown | Kind::TokenIssuer, _) => {}
        (Kind::InjectionProfile, _) => {}
        _ if observes(object) => {}
        (Kind::AccessPolicy, references) => {
            let namespace = key.namespace.as_deref().unwrap_or_default();
            match references {
                Some(references) => {
                    for (_, name) in references {
                        withheld.target(format!("{namespace}/{name}"), why.to_owned());
                    }
                }
                None => withheld.namespace(namespace.to_owned(), why.to_owned()),
            }
        }
        (Kind::ClusterAccessPolicy, Some(references)) if object.pointer("/spec/targetSelector").is_none() => {
            for (namespace, name) in references {
                withheld.target(format!("{namespace}/{name}"), why.to_owned());
            }
        }
        (Kind::ClusterAccessPolicy, _) => withheld.everything(why.to_owned()),
    }
}

/// Namespace and name of each `targetRefs`, if all of them can be read and there is one.
fn references(object: &Value) -> Option<Vec<(String, String)>> {
    let references = object.pointer("/spec/targetRefs")?.as_array()?;
    let read = references.iter().map(|reference| {
        let text = |field: &str| reference.get(field).and_then(Value::as_str).map(str::to_owned);
        Some((text("namespace").unwrap_or_default(), text("name")?))
    });
    let read: Option<Vec<_>> = read.collect();
    read.filter(|references| !references.is_empty())
}

/// As problems name it; the end keeps any name from being taken for that of a file of cases.
fn file(key: &Key) -> String {
    format!("{key} (in the cluster)")
}

/// Objects of a cluster go through the same two passes as files.
fn source(file: &str, key: &Key, object: &Value) -> Source {
    let api_version = match key.kind {
        Kind::Namespace | Kind::ConfigMap => "v1",
        _ => sidegate_policies::api::API_VERSION,
    };
    Source {
        name: file.to_owned(),
        text: document(api_version, key.kind.as_str(), object),
    }
}

#[cfg(test)]
#[path = "reading_tests.rs"]
mod tests;
