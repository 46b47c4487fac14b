//! Follows our kinds at the API server, and hands on what is in force.
//!
//! Refuses to begin before every kind was listed once: what is not known yet could restrict what is. The invariants:
//! a Lockdown is in force without waiting for anything else; a change of the rest is handed on whole, within a
//! quarter of a second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::Value;
use sidegate_policies::api::{GROUP, VERSION};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::reading::{Key, Kind, Stored};
use super::watch::{follow, Change};
use crate::config::StartError;
use crate::task::Tasks;

/// A change waits so long for another one, and no longer than the second figure.
const QUIET: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_millis(250);
/// Every kind is listed within this, or the broker does not start.
const LISTED: Duration = Duration::from_secs(30);

/// Everything people applied, as last heard of.
pub struct Kinds {
    client: Client,
    seen: Mutex<Seen>,
    rest: watch::Sender<u64>,
    lockdowns: watch::Sender<u64>,
    troubles: watch::Sender<BTreeMap<Kind, String>>,
}

#[derive(Default)]
struct Seen {
    stored: Stored,
    listed: Vec<Kind>,
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
        follow(api, stop, |object| stored(kind, object), told).await;
    }

    fn take(&self, kind: Kind, change: Change<(Key, Arc<Value>)>) {
        {
            let mut seen = self.seen();
            match change {
                Change::All(listed) => {
                    seen.stored.retain(|key, _| key.kind != kind);
                    seen.stored.extend(listed);
                    if !seen.listed.contains(&kind) {
                        seen.listed.push(kind);
                    }
                }
                Change::Put((key, object)) => {
                    let before = seen.stored.insert(key, Arc::clone(&object));
                    // Our own status, or somebody's annotation, changes nothing that is read.
                    if before.is_some_and(|before| same(&before, &object)) {
                        return;
                    }
                }
                Change::Gone((key, _)) => {
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
