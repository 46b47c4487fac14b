//! What the injector knows of the cluster: labels of namespaces, profiles, Targets and policies, followed by watches.
//!
//! The only module that speaks to the API server. Refuses to begin before every kind was listed once. Invariants: it
//! reads no Secret but that with the webhook's own certificates; a profile that is not understood is known as such, never
//! passed over.

mod broker;
mod configurations;
mod evictions;
mod keeper;
mod profiles;
mod watchdog;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::Value;
use sidegate_cluster::watch::{follow_versions, Change, Step};
pub use sidegate_cluster::{connect, connect_for_one_try, leader::Leader, Unusable};
use sidegate_cluster::{within, Failed};
use sidegate_policies::api::{AccessPolicy, Target, TokenIssuer, GROUP, VERSION};
use sidegate_policies::check::usable_profile;
use sidegate_policies::objects::{Located, Namespace, Objects};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use broker::follow_authority;
pub use configurations::Configurations;
pub use evictions::{Evictions, EVERY as EVICT_EVERY};
pub use keeper::{Keeper, Wanted};
pub use profiles::Profiles;
pub use watchdog::{Counted, Watchdog, EVERY as WATCH_EVERY};

use crate::admit::World;
use crate::install::Install;
use crate::task::Tasks;

/// Within this every kind is listed, or the injector does not start.
const LISTED: Duration = Duration::from_secs(30);
/// A review is answered within a second: what was not found out by then is refused, in words.
const LOOK_UP: Duration = Duration::from_millis(400);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Namespace,
    Profile,
    Target,
    Policy,
    Issuer,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Namespace, Kind::Profile, Kind::Target, Kind::Policy, Kind::Issuer];

    fn resource(self) -> ApiResource {
        let (group, version, kind) = self.names();
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), self.plural())
    }

    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Kind::Namespace => ("", "v1", "Namespace"),
            Kind::Profile => (GROUP, VERSION, "InjectionProfile"),
            Kind::Target => (GROUP, VERSION, "Target"),
            Kind::Policy => (GROUP, VERSION, "AccessPolicy"),
            Kind::Issuer => (GROUP, VERSION, "TokenIssuer"),
        }
    }

    /// As in URLs, and in numbers.
    fn plural(self) -> &'static str {
        match self {
            Kind::Namespace => "namespaces",
            Kind::Profile => "injectionprofiles",
            Kind::Target => "targets",
            Kind::Policy => "accesspolicies",
            Kind::Issuer => "tokenissuers",
        }
    }
}

/// Why the cluster cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the API server: {0}")]
pub struct Absent(String);

impl Absent {
    fn new(error: impl std::fmt::Display) -> Self {
        Absent(error.to_string())
    }
}

impl From<Unusable> for Absent {
    fn from(error: Unusable) -> Self {
        Absent(error.0)
    }
}

/// Objects by namespace and name.
type Found = BTreeMap<(String, String), Arc<Value>>;

/// Everything that is known at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Namespaces, profiles, Targets and policies.
    pub objects: Objects,
    /// Generations of profiles.
    pub generations: BTreeMap<String, i64>,
    /// Profiles that are not usable, and why.
    pub unusable: BTreeMap<String, String>,
}

/// Follows the cluster.
pub struct Cluster {
    client: Client,
    found: Mutex<BTreeMap<Kind, Found>>,
    lost: Mutex<BTreeMap<Kind, Instant>>,
    now: watch::Sender<Arc<Snapshot>>,
    listed: watch::Sender<Vec<Kind>>,
}

impl Cluster {
    /// Follows every kind.
    ///
    /// # Errors
    /// The API server is not reached, or does not list our kinds within 30 s.
    pub async fn follow(client: Client, tasks: &Tasks) -> Result<Arc<Self>, Absent> {
        let cluster = Arc::new(Cluster {
            client,
            found: Mutex::default(),
            lost: Mutex::default(),
            now: watch::channel(Arc::default()).0,
            listed: watch::channel(Vec::new()).0,
        });
        for kind in Kind::ALL {
            let (cluster, stop) = (Arc::clone(&cluster), tasks.stopping());
            tasks.spawn(async move { cluster.one(kind, stop).await });
        }
        let mut listed = cluster.listed.subscribe();
        let all = listed.wait_for(|listed| listed.len() == Kind::ALL.len());
        let whole = matches!(tokio::time::timeout(LISTED, all).await, Ok(Ok(_)));
        match whole {
            true => Ok(cluster),
            false => Err(Absent::new(format!(
                "not every kind was listed within {} s; are the CustomResourceDefinitions applied, and may the injector \
                 list and watch namespaces, injectionprofiles, targets, accesspolicies and tokenissuers?",
                LISTED.as_secs()
            ))),
        }
    }

    /// What is known now.
    pub fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.now.borrow())
    }

    /// What is known, and every change of it.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.now.subscribe()
    }

    /// A namespace as the server has it at this moment: what was heard of may lag behind a label just set.
    ///
    /// # Errors
    /// There is no answer in time.
    pub async fn namespace(&self, name: &str) -> Result<Option<Namespace>, Absent> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &Kind::Namespace.resource());
        let found = within(LOOK_UP, api.get_opt(name)).await.map_err(Absent::new)?;
        Ok(found.map(|object| Namespace::of(&object_value(object))))
    }

    /// A Target as the server has it at this moment.
    ///
    /// # Errors
    /// There is no answer in time.
    pub async fn target(&self, namespace: &str, name: &str) -> Result<Option<Target>, Absent> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &Kind::Target.resource());
        let found = within(LOOK_UP, api.get_opt(name)).await.map_err(Absent::new)?;
        Ok(found.and_then(|object| serde_json::from_value(object_value(object)).ok()))
    }

    /// Since how many seconds each kind is out of sight; 0: it is followed.
    pub fn ages(&self) -> Vec<(&'static str, i64)> {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |kind: Kind| {
            let since = lost.get(&kind).map_or(0, |since| since.elapsed().as_secs());
            (kind.plural(), i64::try_from(since).unwrap_or(i64::MAX))
        };
        Kind::ALL.into_iter().map(age).collect()
    }

    /// Remembers when a kind was lost sight of, and forgets it once it is seen again.
    fn seen(&self, kind: Kind, seen: bool) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        match seen {
            true => drop(lost.remove(&kind)),
            false => drop(lost.entry(kind).or_insert_with(Instant::now)),
        }
    }

    async fn one(&self, kind: Kind, stop: CancellationToken) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind.resource());
        let told = |step: Result<Step<_>, Failed>| {
            self.seen(kind, step.is_ok());
            match step {
                Ok((Some(change), _)) => self.take(kind, change),
                Ok((None, _)) => {}
                Err(error) => tracing::warn!(?kind, %error, "cannot be followed now"),
            }
        };
        // Nobody tells how much others have seen.
        let elsewhere = watch::channel(0).1;
        follow_versions(api, stop, elsewhere, keyed, told).await;
    }

    fn take(&self, kind: Kind, change: Change<((String, String), Arc<Value>)>) {
        match change {
            Change::All(listed) => {
                let listed: Found = listed.into_iter().collect();
                self.change(kind, |found| {
                    let news = *found != listed;
                    *found = listed;
                    news
                });
                self.listed.send_if_modified(|kinds| {
                    let first = !kinds.contains(&kind);
                    if first {
                        kinds.push(kind);
                    }
                    first
                });
            }
            Change::Put((key, value)) => {
                self.change(kind, |found| found.insert(key, Arc::clone(&value)) != Some(value))
            }
            Change::Gone((key, _)) => self.change(kind, |found| found.remove(&key).is_some()),
        }
    }

    /// What does not change anything that is read makes no review wait for a new snapshot.
    fn change(&self, kind: Kind, change: impl FnOnce(&mut Found) -> bool) {
        let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.entry(kind).or_default();
        if change(found) {
            self.now
                .send_modify(|snapshot| Arc::make_mut(snapshot).replace(kind, found));
        }
    }
}

impl Snapshot {
    /// What a pod is judged by.
    pub fn world<'a>(&'a self, install: &'a Install) -> World<'a> {
        World {
            install,
            objects: &self.objects,
            generations: &self.generations,
            unusable: &self.unusable,
        }
    }

    /// Of objects that somebody else read, as the server holds them.
    pub fn of<'a>(
        namespaces: impl Iterator<Item = &'a Arc<Value>>,
        profiles: impl Iterator<Item = &'a Arc<Value>>,
        targets: impl Iterator<Item = &'a Arc<Value>>,
        policies: impl Iterator<Item = &'a Arc<Value>>,
    ) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.replace(Kind::Namespace, &by_name(namespaces));
        snapshot.replace(Kind::Profile, &by_name(profiles));
        snapshot.replace(Kind::Target, &by_name(targets));
        snapshot.replace(Kind::Policy, &by_name(policies));
        snapshot
    }

    fn replace(&mut self, kind: Kind, found: &Found) {
        match kind {
            Kind::Namespace => {
                let all = found.values().map(|value| Located::unplaced(Namespace::of(value)));
                self.objects.namespaces = all.collect();
            }
            Kind::Target => self.objects.targets = typed::<Target>(found, "Target"),
            Kind::Policy => self.objects.policies = typed::<AccessPolicy>(found, "AccessPolicy"),
            Kind::Issuer => self.objects.token_issuers = typed::<TokenIssuer>(found, "TokenIssuer"),
            Kind::Profile => self.profiles(found),
        }
    }

    fn profiles(&mut self, found: &Found) {
        self.objects.injection_profiles.clear();
        self.generations.clear();
        self.unusable.clear();
        for ((_, name), value) in found {
            if let Some(generation) = value.pointer("/metadata/generation").and_then(Value::as_i64) {
                self.generations.insert(name.clone(), generation);
            }
            match usable_profile(value) {
                Ok(profile) => self.objects.injection_profiles.push(Located::unplaced(profile)),
                Err(why) => drop(self.unusable.insert(name.clone(), why)),
            }
        }
    }
}

/// What is not understood is left out: the broker offers it to nobody either, and says why on the object.
fn typed<T: serde::de::DeserializeOwned>(found: &Found, kind: &str) -> Vec<Located<T>> {
    let read = |((namespace, name), value): (&(String, String), &Arc<Value>)| {
        let read = T::deserialize(value.as_ref());
        read.map_err(|error| tracing::warn!(kind, namespace, name, %error, "left out"))
            .ok()
    };
    found.iter().filter_map(read).map(Located::unplaced).collect()
}

fn by_name<'a>(objects: impl Iterator<Item = &'a Arc<Value>>) -> Found {
    let text = |object: &Value, path: &str| {
        object
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let named = |object: &'a Arc<Value>| {
        let key = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        (key, Arc::clone(object))
    };
    objects.map(named).collect()
}

fn keyed(object: DynamicObject) -> ((String, String), Arc<Value>) {
    let metadata = &object.metadata;
    let key = (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    );
    (key, Arc::new(object_value(object)))
}

fn object_value(mut object: DynamicObject) -> Value {
    // The largest parts of an object, and those that change most: nothing that is read.
    object.metadata.managed_fields = None;
    object.metadata.annotations = None;
    object.metadata.resource_version = None;
    if let Some(data) = object.data.as_object_mut() {
        data.remove("status");
    }
    serde_json::to_value(object).unwrap_or_default()
}
