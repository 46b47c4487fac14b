//! ConfigMaps with certificate authorities, read by name where a Target refers to one.
//!
//! Refuses a map whose owner did not grant it, and says how. The invariant: nothing but maps that Targets name is read,
//! and only in the Target's own namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use serde_json::{json, Value};

use super::reading::{Key, Kind, Stored};
use super::secrets::grant;
use super::{answered, Failed};
use crate::clock::Clock;

/// A map is read again after so long, milliseconds.
const AGAIN_MS: i64 = 15 * 60_000;
/// One that could not be read is tried again after so long, milliseconds.
const RETRY_MS: i64 = 5_000;

/// What was found of one map.
#[derive(Debug, Clone)]
pub enum MapRead {
    /// Its text entries, as an object.
    Found(Arc<Value>),
    /// It is not there.
    Missing,
    /// Its owner did not grant it; the commands that do.
    NotGranted(String),
    /// The API server does not say.
    Unknown(String),
}

/// ConfigMaps of the cluster, as last read.
pub struct ClusterMaps {
    client: Client,
    own_name: String,
    clock: Arc<dyn Clock>,
    read: Mutex<BTreeMap<Key, (i64, MapRead)>>,
}

impl ClusterMaps {
    /// Over this client, as this user of the API server.
    pub fn new(client: Client, own_name: String, clock: Arc<dyn Clock>) -> Self {
        ClusterMaps {
            client,
            own_name,
            clock,
            read: Mutex::default(),
        }
    }

    /// Reads what Targets refer to and what is due. Answers whether anything is another than before.
    pub async fn refresh(&self, stored: &Stored) -> bool {
        let wanted = wanted(stored);
        let now = self.clock.now_ms();
        let due: Vec<Key> = {
            let mut read = self.lock();
            read.retain(|key, _| wanted.contains(key));
            let due = |key: &&Key| read.get(*key).is_none_or(|(due, _)| *due <= now);
            wanted.iter().filter(due).cloned().collect()
        };
        let mut changed = false;
        for key in due {
            let found = self.get(&key).await;
            let again = match &found {
                MapRead::Found(_) => AGAIN_MS,
                _ => RETRY_MS,
            };
            let before = self.lock().insert(key, (now.saturating_add(again), found.clone()));
            changed |= !before.is_some_and(|(_, before)| same(&before, &found));
        }
        changed
    }

    /// What is known of each map.
    pub fn known(&self) -> BTreeMap<Key, MapRead> {
        let read = self.lock();
        read.iter()
            .map(|(key, (_, found))| (key.clone(), found.clone()))
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, (i64, MapRead)>> {
        self.read.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn get(&self, key: &Key) -> MapRead {
        let namespace = key.namespace.as_deref().unwrap_or_default();
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        match answered(api.get(&key.name)).await {
            Ok(map) => MapRead::Found(Arc::new(json!({
                "metadata": {"name": key.name, "namespace": namespace}, "data": map.data.unwrap_or_default(),
            }))),
            Err(Failed::Refused { code: 404, .. }) => MapRead::Missing,
            Err(Failed::Refused { code: 403, .. }) => {
                MapRead::NotGranted(grant(&self.own_name, namespace, "configmaps", &key.name))
            }
            Err(other) => MapRead::Unknown(other.to_string()),
        }
    }
}

fn same(before: &MapRead, after: &MapRead) -> bool {
    match (before, after) {
        (MapRead::Found(before), MapRead::Found(after)) => before == after,
        (before, after) => std::mem::discriminant(before) == std::mem::discriminant(after),
    }
}

/// The map that a Target refers to.
pub fn of_target(target: &Key, object: &Value) -> Option<Key> {
    let name = object.pointer("/spec/tls/caBundle/configMap/name")?.as_str()?;
    Some(Key {
        kind: Kind::ConfigMap,
        namespace: target.namespace.clone(),
        name: name.to_owned(),
    })
}

fn wanted(stored: &Stored) -> BTreeSet<Key> {
    let targets = stored.iter().filter(|(key, _)| key.kind == Kind::Target);
    targets.filter_map(|(key, object)| of_target(key, object)).collect()
}
