//! Follows our kinds at the API server, and hands on what is in force.
//!
//! Refuses to begin before every kind was listed once: what is not known yet could restrict what is. The invariants:
//! a Lockdown is in force without waiting for anything else; a change of the rest is handed on whole, within a
//! quarter of a second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::Value;
use sidegate_policies::api::{GROUP, VERSION};
use sidegate_policies::seal::Revisions;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answered;
use super::reading::{Key, Kind, Stored};
use super::watch::{follow, Change};
use crate::config::StartError;
use crate::task::Tasks;

/// A change waits so long for another one, and no longer than the second figure.
const QUIET: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_millis(250);
/// Every kind is listed within this, or the broker does not start.
const LISTED: Duration = Duration::from_secs(30);
/// Who is behind a sidecar lists anew, and no more often than this.
const AGAIN: Duration = Duration::from_secs(5);

/// Everything people applied, as last heard of.
pub struct Kinds {
    client: Client,
    seen: Mutex<Seen>,
    rest: watch::Sender<u64>,
    lockdowns: watch::Sender<u64>,
    troubles: watch::Sender<BTreeMap<Kind, String>>,
    /// When everything is to be listed again.
    again: watch::Sender<Instant>,
}

#[derive(Default)]
struct Seen {
    stored: Stored,
    listed: Vec<Kind>,
    /// Per kind, the highest revision that is in `stored`.
    revisions: BTreeMap<Kind, u64>,
    /// Per kind, a revision that was there before its present list was asked for.
    asked: BTreeMap<Kind, u64>,
}

impl Kinds {
    /// Follows every kind with these tasks, and returns when all of them were listed.
    pub async fn follow(client: Client, tasks: &Tasks) -> Result<Arc<Self>, StartError> {
        let kinds = Arc::new(Kinds {
            client,
            seen: Mutex::default(),
            rest: watch::channel(0).0,
            lockdowns: watch::channel(0).0,
            troubles: watch::channel(BTreeMap::new()).0,
            again: watch::channel(Instant::now()).0,
        });
        for kind in Kind::ALL {
            let (kinds, stop) = (Arc::clone(&kinds), tasks.stopping());
            tasks.spawn("kind", async move { kinds.one(kind, stop).await });
        }
        let mut changed = kinds.rest.subscribe();
        let mut urgent = kinds.lockdowns.subscribe();
        let all = async {
            while kinds.seen().listed.len() < Kind::ALL.len() {
                let told = tokio::select! {
                    told = changed.changed() => told,
                    told = urgent.changed() => told,
                };
                if told.is_err() {
                    return;
                }
            }
        };
        match tokio::time::timeout(LISTED, all).await {
            Ok(()) => Ok(kinds),
            Err(_) => Err(kinds.unlisted()),
        }
    }

    fn unlisted(&self) -> StartError {
        let listed = self.seen().listed.clone();
        let missing = Kind::ALL.iter().filter(|kind| !listed.contains(kind));
        let missing: Vec<&str> = missing.map(|kind| kind.plural()).collect();
        let why: Vec<String> = self.troubles.borrow().values().cloned().collect();
        StartError::cluster(format!(
            "not listed within {} s: {} ({}). Are the CustomResourceDefinitions of policies/crds applied, and may the \
             broker list and watch them?",
            LISTED.as_secs(),
            missing.join(", "),
            why.join("; ")
        ))
    }

    /// Everything as last heard of.
    pub fn stored(&self) -> Stored {
        self.seen().stored.clone()
    }

    /// The same, with how far it was read, Lockdowns left out: their set is counted by itself.
    pub fn read(&self) -> (Stored, Revisions) {
        let seen = self.seen();
        let kinds = seen.revisions.iter().filter(|(kind, _)| **kind != Kind::Lockdown);
        let kinds = kinds.map(|(kind, revision)| (kind.as_str().to_owned(), *revision));
        let revisions = Revisions {
            generation: 0,
            kinds: kinds.collect(),
        };
        (seen.stored.clone(), revisions)
    }

    /// Told of every change of Lockdowns.
    pub fn lockdowns(&self) -> watch::Receiver<u64> {
        self.lockdowns.subscribe()
    }

    /// Told of every change of anything else.
    pub fn rest(&self) -> watch::Receiver<u64> {
        self.rest.subscribe()
    }

    /// A client of the API server.
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn one(&self, kind: Kind, stop: CancellationToken) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource(kind));
        let told = |change: Result<_, watcher::Error>| match change {
            Ok(change) => self.take(kind, change),
            Err(error) => {
                tracing::warn!(kind = kind.as_str(), %error, "cannot be followed now");
                self.troubles.send_modify(|troubles| {
                    troubles.insert(kind, error.to_string());
                });
            }
        };
        let listing = || self.asked(kind, &api);
        let mut again = self.again.subscribe();
        while !stop.is_cancelled() {
            again.borrow_and_update();
            tokio::select! {
                () = follow(api.clone(), stop.clone(), listing, |object| stored(kind, object), &told) => {}
                told = again.changed() => if told.is_err() { return },
            }
        }
    }

    /// Lists every kind anew, for somebody holds what this replica has not read.
    pub fn list_again(&self) {
        self.again.send_if_modified(|at| {
            let due = at.elapsed() >= AGAIN;
            if due {
                *at = Instant::now();
            }
            due
        });
    }

    /// Where the store stands before a list is asked for: whatever the list holds is at least as new. A list of objects
    /// alone would not say so, for what was deleted last counts too (test
    /// `sessions_outlive_an_absent_api_server_and_a_restarted_broker`).
    async fn asked(&self, kind: Kind, api: &Api<DynamicObject>) {
        let stands = answered(api.list_metadata(&ListParams::default().limit(1))).await;
        match stands.map(|list| number(list.metadata.resource_version.as_deref())) {
            Ok(revision) => {
                self.seen().asked.insert(kind, revision);
            }
            Err(error) => tracing::warn!(kind = kind.as_str(), %error, "the store does not say where it stands"),
        }
    }

    fn take(&self, kind: Kind, change: Change<(Key, Arc<Value>)>) {
        {
            let mut seen = self.seen();
            let asked = seen.asked.get(&kind).copied().unwrap_or_default();
            match change {
                Change::All(listed) => {
                    let newest = listed.iter().map(|(_, object)| revision_of(object)).max();
                    seen.consumed(kind, newest.unwrap_or_default().max(asked));
                    seen.stored.retain(|key, _| key.kind != kind);
                    seen.stored.extend(listed);
                    if !seen.listed.contains(&kind) {
                        seen.listed.push(kind);
                    }
                }
                Change::Put((key, object)) => {
                    seen.consumed(kind, revision_of(&object));
                    let before = seen.stored.insert(key, Arc::clone(&object));
                    // Our own status, or somebody's annotation, changes nothing that is read.
                    if before.is_some_and(|before| same(&before, &object)) {
                        return;
                    }
                }
                Change::Gone((key, object)) => {
                    seen.consumed(kind, revision_of(&object));
                    seen.stored.remove(&key);
                }
            }
        }
        let told = match kind {
            Kind::Lockdown => &self.lockdowns,
            _ => &self.rest,
        };
        told.send_modify(|generation| *generation = generation.wrapping_add(1));
    }
}

impl Seen {
    fn consumed(&mut self, kind: Kind, revision: u64) {
        let highest = self.revisions.entry(kind).or_default();
        *highest = (*highest).max(revision);
    }
}

/// A resourceVersion as a number, which it is in every store behind an API server.
fn number(revision: Option<&str>) -> u64 {
    revision.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The revision of an object; of a deleted one, that of its deletion.
fn revision_of(object: &Value) -> u64 {
    number(object.pointer("/metadata/resourceVersion").and_then(Value::as_str))
}

/// Whether two versions of an object say the same to us.
fn same(before: &Value, after: &Value) -> bool {
    let read = ["/spec", "/metadata/labels", "/metadata/uid"];
    read.iter().all(|part| before.pointer(part) == after.pointer(part))
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version) = match kind {
        Kind::Namespace | Kind::ConfigMap => ("", "v1"),
        _ => (GROUP, VERSION),
    };
    let kind_of = GroupVersionKind::gvk(group, version, kind.as_str());
    ApiResource::from_gvk_with_plural(&kind_of, kind.plural())
}

fn stored(kind: Kind, mut object: DynamicObject) -> (Key, Arc<Value>) {
    // The largest part of an object, and nothing we read.
    object.metadata.managed_fields = None;
    object.metadata.annotations = None;
    let key = Key {
        kind,
        namespace: object.metadata.namespace.clone().filter(|_| kind.is_namespaced()),
        name: object.metadata.name.clone().unwrap_or_default(),
    };
    (key, Arc::new(serde_json::to_value(object).unwrap_or_default()))
}

/// An API for the status of one object.
pub(super) fn api_of(client: &Client, key: &Key) -> Api<DynamicObject> {
    let resource = resource(key.kind);
    match &key.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Waits until a change has no other one behind it, or for as long as a change may wait.
pub async fn settled(changed: &mut watch::Receiver<u64>) {
    let _ = tokio::time::timeout(LONGEST, async {
        while tokio::time::timeout(QUIET, changed.changed())
            .await
            .is_ok_and(|told| told.is_ok())
        {}
    })
    .await;
}
