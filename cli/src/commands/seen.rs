//! What a person sees of a cluster, by their own rights: our objects, namespaces and pods, as the API server holds them.
//!
//! Nothing here asks a broker. Refuses nothing; what may not be read is an error in the API server's words. Invariant:
//! objects are read by the same code as the broker's, so that what is told here is what is in force there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{bail, ensure, Result};
use serde_json::Value;
use sidegate_broker::kubernetes::reading::{self, Key, Kind as Read, Stored};
use sidegate_injector::standing::{is_labelled, Belief};
use sidegate_injector::Snapshot;
use sidegate_policies::api::injection_profile::Tier;
use sidegate_policies::api::Lockdown;
use sidegate_policies::objects::Namespace;
use sidegate_policies::wire::Enforced;

use super::offline::Offline;
use crate::cluster::{Cluster, Kind, Where, LOCKDOWNS};

/// Where Sidegate itself is installed.
pub const HOME: &str = "sidegate-system";

/// `Namespace`.
pub const NAMESPACES: Kind = core("Namespace", "namespaces");
/// `Pod`.
pub const PODS: Kind = core("Pod", "pods");
/// `ConfigMap`.
pub const CONFIG_MAPS: Kind = core("ConfigMap", "configmaps");
/// `ResourceQuota`.
pub const QUOTAS: Kind = core("ResourceQuota", "resourcequotas");
/// `InjectionProfile`.
pub const PROFILES: Kind = Kind::ours("InjectionProfile", "injectionprofiles");
/// `Target`.
pub const TARGETS: Kind = Kind::ours("Target", "targets");
/// `AccessPolicy`.
pub const POLICIES: Kind = Kind::ours("AccessPolicy", "accesspolicies");
/// `ClusterAccessPolicy`.
pub const FLOORS: Kind = Kind::ours("ClusterAccessPolicy", "clusteraccesspolicies");
/// `TokenIssuer`.
pub const ISSUERS: Kind = Kind::ours("TokenIssuer", "tokenissuers");
/// `Lease`.
pub const LEASES: Kind = Kind {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
};
/// `MutatingWebhookConfiguration`.
pub const WEBHOOKS: Kind = admission("MutatingWebhookConfiguration", "mutatingwebhookconfigurations");
/// `ValidatingAdmissionPolicy`.
pub const ADMISSION: Kind = admission("ValidatingAdmissionPolicy", "validatingadmissionpolicies");

const fn core(kind: &'static str, plural: &'static str) -> Kind {
    Kind {
        group: "",
        version: "v1",
        kind,
        plural,
    }
}

const fn admission(kind: &'static str, plural: &'static str) -> Kind {
    Kind {
        group: "admissionregistration.k8s.io",
        version: "v1",
        kind,
        plural,
    }
}

/// A text of an object by JSON pointer, or nothing.
pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Items of a list by JSON pointer, if it is there.
pub fn list<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

/// An object's condition of a kind, if it has one.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(object, "/status/conditions").find(|condition| text(condition, "/type") == kind)
}

/// The tier that an InjectionProfile says.
pub fn tier(profile: &Value) -> &str {
    match text(profile, "/spec/tier") {
        "" => Tier::default().as_str(),
        tier => tier,
    }
}

/// Whether the fences of a profile's pods stand, in the broker's own word, and why: nobody's word is Unknown.
pub fn egress(profile: &Value) -> (&str, &str) {
    condition(profile, "EgressEnforced").map_or((Enforced::Unknown.as_str(), "no broker has said so yet"), |found| {
        (text(found, "/status"), text(found, "/message"))
    })
}

/// Whether a pod is ready.
pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|ready| text(ready, "/status") == "True")
}

/// Kinds that are judged by as the broker holds them.
const FOLLOWED: [(Read, Kind); 5] = [
    (Read::Target, TARGETS),
    (Read::AccessPolicy, POLICIES),
    (Read::ClusterAccessPolicy, FLOORS),
    (Read::TokenIssuer, ISSUERS),
    (Read::Lockdown, LOCKDOWNS),
];

/// Our objects.
pub struct Seen {
    /// Everything that broker and injector decide by.
    pub stored: Stored,
    /// InjectionProfiles.
    pub profiles: Vec<Value>,
    /// Namespaces as they were stored.
    pub namespaces: Vec<Value>,
}

impl Seen {
    /// Reads them.
    ///
    /// # Errors
    /// The API server refuses or does not answer.
    pub fn read(cluster: &Cluster) -> Result<Seen> {
        let mut stored = Stored::new();
        let namespaces = cluster.whole(NAMESPACES, Where::Everywhere)?;
        for (read, kind) in FOLLOWED {
            let objects: Vec<Value> = cluster.list(kind, Where::Everywhere)?;
            stored.extend(objects.into_iter().map(|object| keyed(read, object)));
        }
        stored.extend(namespaces.iter().cloned().map(|object| keyed(Read::Namespace, object)));
        Ok(Seen {
            stored,
            profiles: cluster.list(PROFILES, Where::Everywhere)?,
            namespaces,
        })
    }

    /// Everything that [`Seen::read`] lists.
    pub fn kinds() -> impl Iterator<Item = Kind> {
        FOLLOWED.into_iter().map(|(_, kind)| kind).chain([NAMESPACES, PROFILES])
    }

    /// What is in force of them, for verbs that judge; and the Lockdowns.
    pub fn offline(&self) -> (Offline, Vec<Lockdown>) {
        let readable = self
            .stored
            .iter()
            .map(|(key, object)| (key.clone(), without_maps(object)));
        let reading = reading::read(&readable.collect(), &BTreeMap::new());
        let (lockdowns, _) = reading::lockdowns(&self.stored);
        (Offline::of(reading.objects, reading.withheld), lockdowns)
    }

    /// The same as the injector knows it.
    pub fn injecting(&self) -> Snapshot {
        let of = |kind: Read| {
            self.stored
                .iter()
                .filter(move |(key, _)| key.kind == kind)
                .map(|(_, object)| object)
        };
        let profiles: Vec<Arc<Value>> = self.profiles.iter().cloned().map(Arc::new).collect();
        Snapshot::of(
            of(Read::Namespace),
            profiles.iter(),
            of(Read::Target),
            of(Read::AccessPolicy),
        )
    }

    /// A namespace's labels.
    pub fn namespace(&self, name: &str) -> Option<(Namespace, &Value)> {
        let stored = self
            .namespaces
            .iter()
            .find(|stored| text(stored, "/metadata/name") == name)?;
        Some((Namespace::of(stored), stored))
    }
}

/// What a sidecar must show, as the broker wrote it; nothing where it has not.
///
/// # Errors
/// The ConfigMap may not be read.
pub fn belief(cluster: &Cluster, home: &str) -> Result<Option<Belief>> {
    let map: Option<Value> = cluster.get(CONFIG_MAPS, Where::Namespace(home), Belief::MAP)?;
    Ok(map.as_ref().and_then(Belief::of))
}

/// Pods of one namespace or of all labelled ones.
///
/// # Errors
/// They may not be read; the one namespace is not there, or not labelled: nothing is protected in it.
pub fn pods(cluster: &Cluster, seen: &Seen, only: Option<&str>) -> Result<Vec<Value>> {
    if let Some(namespace) = only {
        let Some((labels, _)) = seen.namespace(namespace) else {
            bail!("there is no namespace {namespace}");
        };
        ensure!(
            is_labelled(&labels),
            "namespace {namespace} is not labelled sidegate.dev/inject=enabled: its pods get no sidecar"
        );
        return cluster.list(PODS, Where::Namespace(namespace));
    }
    let labelled: BTreeSet<&str> = seen
        .namespaces
        .iter()
        .filter(|stored| is_labelled(&Namespace::of(stored)))
        .map(|stored| text(stored, "/metadata/name"))
        .collect();
    let mut all = Vec::new();
    for namespace in labelled {
        all.extend(cluster.list::<Value>(PODS, Where::Namespace(namespace))?);
    }
    Ok(all)
}

fn keyed(kind: Read, object: Value) -> (Key, Arc<Value>) {
    let namespace = text(&object, "/metadata/namespace");
    let key = Key {
        kind,
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        name: text(&object, "/metadata/name").to_owned(),
    };
    (key, Arc::new(object))
}

/// An object without its reference to a ConfigMap of authorities: whether that can be read is the broker's to say, in the
/// condition ResolvedRefs, and nothing that is judged here depends on it.
fn without_maps(object: &Arc<Value>) -> Arc<Value> {
    let holds = |path: &str| object.pointer(&format!("{path}/caBundle/configMap")).is_some();
    let Some(path) = ["/spec/tls", "/spec"].into_iter().find(|path| holds(path)) else {
        return Arc::clone(object);
    };
    let mut changed = Value::clone(object);
    if let Some(holder) = changed.pointer_mut(path).and_then(Value::as_object_mut) {
        holder.remove("caBundle");
    }
    Arc::new(changed)
}
