//! Follows our kinds at the API server, and hands on what is in force.
//!
//! Refuses to begin before every kind was listed once: what is not known yet could restrict what is. The invariants:
//! a Lockdown is in force without waiting for anything else; a change of the rest is handed on whole, within a
//! quarter of a second; what was consumed at one version is never replaced by something of a lower one.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Kinds of which the store was heard at a lower version than before.
    lower: BTreeSet<Kind>,
}

/// What came of a step.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    /// Nothing that concerns anybody.
    Nothing,
    /// Something we read is another now.
    News,
    /// The store counts lower than this version, which was consumed.
    Lower(u64),
    /// The kind must be listed anew before more of it is taken.
    Unlisted,
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
        let version = step.1;
        let (told, again) = match kind {
            Kind::Lockdown => (&self.lockdowns, &self.elsewhere),
            _ => (&self.rest, &self.again),
        };
        let taken = self.seen().take(kind, step);
        match taken {
            Taken::Nothing => {}
            Taken::News => told.send_modify(|generation| *generation = generation.wrapping_add(1)),
            Taken::Unlisted => {
                again.send_replace(u64::MAX);
            }
            Taken::Lower(held) => tracing::error!(
                kind = kind.as_str(),
                version,
                held,
                "the store counts lower than before, and nothing of it is taken: where it was restored from a backup, \
                 raise store.generation"
            ),
        }
    }
}

impl Seen {
    /// A store that was restored from a copy counts lower. Nothing of it is taken as of the version that was consumed:
    /// sidecars would take it for no older than what they hold. Once it counts higher again, what was missed is known
    /// from a list alone (test `a_restored_store_is_newer_once_its_generation_is_raised`).
    fn take(&mut self, kind: Kind, (change, version): Step<(Key, Arc<Value>)>) -> Taken {
        let known = self.versions.entry(kind).or_default();
        if version < *known {
            return match self.lower.insert(kind) {
                true => Taken::Lower(*known),
                false => Taken::Nothing,
            };
        }
        if self.lower.contains(&kind) && !matches!(change, Some(Change::All(_))) {
            return Taken::Unlisted;
        }
        self.lower.remove(&kind);
        let rose = version > *known;
        *known = version;
        let news = match change {
            None => false,
            Some(Change::All(listed)) => self.replace(kind, listed) || rose,
            Some(Change::Put((key, object))) => {
                let before = self.stored.insert(key, Arc::clone(&object));
                // Our own status, or somebody's annotation, changes nothing that is read.
                !before.is_some_and(|before| same(&before, &object))
            }
            Some(Change::Gone((key, _))) => self.stored.remove(&key).is_some(),
        };
        match news {
            true => Taken::News,
            false => Taken::Nothing,
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

    type Changed = Option<Change<(Key, Arc<Value>)>>;

    fn object(name: &str, port: u16) -> (Key, Arc<Value>) {
        let key = Key {
            kind: Kind::Target,
            namespace: Some("data".to_owned()),
            name: name.to_owned(),
        };
        (
            key,
            Arc::new(json!({"metadata": {"uid": name}, "spec": {"port": port}})),
        )
    }

    fn all(objects: &[(&str, u16)]) -> Changed {
        let objects = objects.iter().map(|(name, port)| object(name, *port));
        Some(Change::All(objects.collect()))
    }

    #[test]
    fn a_list_that_says_nothing_new_tells_nobody() {
        let mut seen = Seen::default();
        let mut tells = |change, version| seen.take(Kind::Target, (change, version)) == Taken::News;
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

    #[test]
    fn a_store_that_counts_lower_replaces_nothing_until_a_list_is_ahead_again() {
        let mut seen = Seen::default();
        let take = |seen: &mut Seen, change, version| seen.take(Kind::Target, (change, version));
        let put = |port| Some(Change::Put(object("one", port)));
        assert_eq!(take(&mut seen, all(&[("one", 1), ("two", 1)]), 9), Taken::News);
        assert_eq!(take(&mut seen, all(&[("one", 2)]), 5), Taken::Lower(9));
        assert_eq!(take(&mut seen, put(3), 6), Taken::Nothing, "it is said once");
        let held = seen.stored.clone();
        assert_eq!(held.get(&object("one", 1).0), Some(&object("one", 1).1), "{held:?}");
        // What was changed between the two versions was not taken, so one change alone says too little.
        assert_eq!(take(&mut seen, put(4), 10), Taken::Unlisted);
        assert_eq!(seen.stored, held);
        assert_eq!(take(&mut seen, all(&[("one", 4)]), 10), Taken::News);
        assert_eq!(seen.stored.len(), 1);
        assert_eq!(take(&mut seen, put(5), 11), Taken::News, "and it goes on");
        // Of another kind nothing was missed.
        assert_eq!(
            seen.take(Kind::Lockdown, (Some(Change::All(Vec::new())), 3)),
            Taken::News
        );
    }
}
