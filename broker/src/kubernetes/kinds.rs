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
use kube::{Api, Client};
use serde_json::Value;
use sidegate_policies::api::{GROUP, VERSION};
use sidegate_policies::seal::Revisions;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::reading::{Key, Kind, Stored};
use super::watch::{follow_versions, Change, Step};
use super::Failed;
use crate::config::StartError;
use crate::task::Tasks;

/// A change waits so long for another one, and no longer than the second figure.
const QUIET: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_millis(250);
/// Every kind is listed within this, or the broker does not start.
const LISTED: Duration = Duration::from_secs(30);
/// Who is behind a sidecar lists anew, and no more often than this.
const AGAIN: Duration = Duration::from_secs(5);

/// Versions of the store (resourceVersions) that were consumed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct At {
    /// Of Lockdowns.
    pub lockdowns: u64,
    /// Of everything else, kind by kind.
    pub rest: Revisions,
}

/// Everything people applied, as last heard of.
pub struct Kinds {
    client: Client,
    seen: Mutex<Seen>,
    rest: watch::Sender<u64>,
    lockdowns: watch::Sender<u64>,
    troubles: watch::Sender<BTreeMap<Kind, String>>,
    /// Version of Lockdowns that somebody has seen.
    elsewhere: watch::Sender<u64>,
    /// That somebody has seen more of anything else.
    again: watch::Sender<u64>,
    /// When that was said last.
    said: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Seen {
    stored: Stored,
    /// Up to which version everything of a kind is in `stored`.
    versions: BTreeMap<Kind, u64>,
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
            elsewhere: watch::channel(0).0,
            again: watch::channel(0).0,
            said: Mutex::default(),
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

    /// The same, with the version of the store that was consumed of each kind.
    pub fn read(&self) -> (Stored, At) {
        let seen = self.seen();
        // No bundle is made of profiles, so none waits for them.
        let bundled = |kind: &Kind| !matches!(kind, Kind::Lockdown | Kind::InjectionProfile);
        let rest = seen.versions.iter().filter(|(kind, _)| bundled(kind));
        let rest = rest.map(|(kind, version)| (kind.as_str().to_owned(), *version));
        let at = At {
            lockdowns: seen.versions.get(&Kind::Lockdown).copied().unwrap_or(0),
            rest: Revisions {
                generation: 0,
                kinds: rest.collect(),
            },
        };
        (seen.stored.clone(), at)
    }

    /// One object as last heard of.
    pub fn one_of(&self, key: &Key) -> Option<Arc<Value>> {
        self.seen().stored.get(key).cloned()
    }

    /// Somebody has seen Lockdowns up to this version: if that is more than was seen here, they are listed anew.
    pub fn seen_elsewhere(&self, version: u64) {
        self.elsewhere.send_replace(version);
    }

    /// Somebody holds more of anything else than was seen here: it is listed anew.
    pub fn list_again(&self) {
        let mut said = self.said.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if said.is_none_or(|at| at.elapsed() >= AGAIN) {
            *said = Some(Instant::now());
            self.again.send_replace(u64::MAX);
        }
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
        let told = |step: Result<_, Failed>| match step {
            Ok(step) => self.take(kind, step),
            Err(error) => {
                tracing::warn!(kind = kind.as_str(), %error, "cannot be followed now");
                self.troubles.send_modify(|troubles| {
                    troubles.insert(kind, error.to_string());
                });
            }
        };
        let wanted = match kind {
            Kind::Lockdown => self.elsewhere.subscribe(),
            _ => self.again.subscribe(),
        };
        follow_versions(api, stop, wanted, |object| stored(kind, object), told).await;
    }

    fn take(&self, kind: Kind, step: Step<(Key, Arc<Value>)>) {
        if !self.seen().take(kind, step) {
            return;
        }
        let told = match kind {
            Kind::Lockdown => &self.lockdowns,
            _ => &self.rest,
        };
        told.send_modify(|generation| *generation = generation.wrapping_add(1));
    }
}

impl Seen {
    /// Whether anything we read is another now, or more of the store was read than before.
    fn take(&mut self, kind: Kind, (change, version): Step<(Key, Arc<Value>)>) -> bool {
        // A store that was restored from a copy counts lower; what was consumed stays consumed.
        let known = self.versions.entry(kind).or_default();
        let rose = version > *known;
        *known = version.max(*known);
        match change {
            None => false,
            Some(Change::All(listed)) => self.replace(kind, listed) || rose,
            Some(Change::Put((key, object))) => {
                let before = self.stored.insert(key, Arc::clone(&object));
                // Our own status, or somebody's annotation, changes nothing that is read.
                !before.is_some_and(|before| same(&before, &object))
            }
            Some(Change::Gone((key, _))) => self.stored.remove(&key).is_some(),
        }
    }

    /// Whether a list says something else than was known. One that does not is no news: who asks for it again and
    /// again, because it waits for more than there is, makes nobody work.
    fn replace(&mut self, kind: Kind, listed: Vec<(Key, Arc<Value>)>) -> bool {
        let first = !self.listed.contains(&kind);
        if first {
            self.listed.push(kind);
        }
        let before = self.stored.keys().filter(|key| key.kind == kind).count();
        let known = |(key, object): &(Key, Arc<Value>)| self.stored.get(key).is_some_and(|known| same(known, object));
        let news = first || before != listed.len() || !listed.iter().all(known);
        self.stored.retain(|key, _| key.kind != kind);
        self.stored.extend(listed);
        news
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_that_says_nothing_new_tells_nobody() {
        let object = |name: &str, port: u16| {
            let key = Key {
                kind: Kind::Target,
                namespace: Some("data".to_owned()),
                name: name.to_owned(),
            };
            (
                key,
                Arc::new(json!({"metadata": {"uid": name}, "spec": {"port": port}})),
            )
        };
        let all = |objects: &[(&str, u16)]| {
            let objects = objects.iter().map(|(name, port)| object(name, *port));
            Some(Change::All(objects.collect()))
        };
        let mut seen = Seen::default();
        let mut tells = |change, version| seen.take(Kind::Target, (change, version));
        assert!(tells(all(&[]), 4), "the first one, though empty");
        assert!(tells(all(&[("one", 1)]), 5));
        assert!(!tells(all(&[("one", 1)]), 5), "nothing is another");
        assert!(tells(all(&[("one", 1)]), 6), "more was read");
        assert!(!tells(None, 7), "a bookmark");
        assert!(tells(all(&[("one", 2)]), 7), "another object");
        assert!(tells(all(&[("two", 2)]), 7), "another name");
        assert!(tells(all(&[]), 7), "gone");
        assert!(!tells(Some(Change::Gone(object("two", 2))), 7), "gone before");
    }
}
