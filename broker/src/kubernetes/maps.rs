//! ConfigMaps with certificate authorities, read by name where a Target or TokenIssuer refers to one.
//!
//! Refuses a map whose owner did not grant it, and says how. The invariant: nothing but maps that they name is read, and
//! only in the Target's own namespace, or in the broker's.

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
    home: String,
    clock: Arc<dyn Clock>,
    read: Mutex<BTreeMap<Key, (i64, MapRead)>>,
}

impl ClusterMaps {
    /// Over this client, as this user of the API server; `home` is the broker's own namespace.
    pub fn new(client: Client, own_name: String, home: &str, clock: Arc<dyn Clock>) -> Self {
        ClusterMaps {
            client,
            own_name,
            home: home.to_owned(),
            clock,
            read: Mutex::default(),
        }
    }

    /// The client.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Who we are to the API server.
    pub(super) fn own_name(&self) -> &str {
        &self.own_name
    }

    /// The broker's own namespace, where TokenIssuers have theirs.
    pub fn home(&self) -> &str {
        &self.home
    }

    /// Reads what Targets and TokenIssuers refer to and what is due. Answers whether anything is another than before.
    pub async fn refresh(&self, stored: &Stored) -> bool {
        let wanted = wanted(stored, &self.home);
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

/// The map that an object refers to for its authorities.
pub fn named_by(key: &Key, object: &Value, home: &str) -> Option<Key> {
    let (path, namespace) = match key.kind {
        Kind::Target => ("/spec/tls/caBundle/configMap/name", key.namespace.clone()),
        Kind::TokenIssuer => ("/spec/caBundle/configMap/name", Some(home.to_owned())),
        _ => return None,
    };
    Some(Key {
        kind: Kind::ConfigMap,
        namespace,
        name: object.pointer(path)?.as_str()?.to_owned(),
    })
}

fn wanted(stored: &Stored, home: &str) -> BTreeSet<Key> {
    let named = stored.iter().filter_map(|(key, object)| named_by(key, object, home));
    named.collect()
}
