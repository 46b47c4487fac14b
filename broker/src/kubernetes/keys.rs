//! The key rings in a Secret that all replicas share. The leader creates and retires; every replica serves the whole set.
//!
//! Refuses to make keys where some were, to write over another replica's change, and to sign with what the API server
//! has not confirmed for a minute. The invariant: a key is in the Secret before it is in anybody's memory, so that no
//! replica signs with a key that another one could never learn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use kube::Client;
use zeroize::Zeroizing;

use super::named::{Entries, Named, NotPut};
use super::Leader;
use crate::config::{ClusterOptions, StartError};
use crate::issuer::random;
use crate::rings::{Home, Keys, Ring, RingError, RingName};
use crate::state::{remove, StateDir};
use crate::task::Tasks;

/// The entry of the key of approval digests.
const DIGEST: &str = "digest";
/// A leader that died is followed by another one, which fills the Secret, within this.
const FILLED: Duration = Duration::from_secs(45);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

type Memory = BTreeMap<RingName, Arc<ArcSwap<Keys>>>;

/// The rings of a cluster.
pub struct KeySecret {
    named: Arc<Named>,
    leader: Arc<Leader>,
    memory: Memory,
}

impl KeySecret {
    /// Reads the rings, follows them, and fills the Secret at the first start if this replica leads: with what an
    /// older release left in the state directory, or with new keys. `now` in seconds.
    pub async fn open(
        client: Client,
        options: &ClusterOptions,
        leader: Arc<Leader>,
        state: &StateDir,
        now: i64,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, StartError> {
        let cell = |name| (name, Arc::new(ArcSwap::from_pointee(Keys::none())));
        let memory: Memory = RingName::ALL.into_iter().map(cell).collect();
        let cells = memory.clone();
        let name = format!("{}-keys", options.name);
        let reader = Box::new(move |entries: &Entries| read(entries, &cells));
        let named = Named::open(client, &options.namespace, name, reader)
            .await
            .map_err(StartError::cluster)?;
        tasks.spawn("keys", Arc::clone(&named).run(tasks.stopping()));
        let keys = Arc::new(KeySecret { named, leader, memory });
        match tokio::time::timeout(FILLED, keys.fill(state, now)).await {
            Ok(filled) => filled?,
            Err(_) => {
                return Err(StartError::cluster(format!(
                    "Secret {}-keys is not filled within {} s: no replica leads",
                    options.name,
                    FILLED.as_secs()
                )))
            }
        }
        Ok(keys)
    }

    /// One ring.
    pub fn ring(self: &Arc<Self>, name: RingName) -> Ring {
        let memory = self.memory.get(&name).cloned();
        let memory = memory.unwrap_or_else(|| Arc::new(ArcSwap::from_pointee(Keys::none())));
        Ring::at(name, memory, Arc::clone(self) as Arc<dyn Home>)
    }

    /// The key of approval digests, base64url: the same for all replicas.
    pub fn digest_key(&self) -> String {
        let key = self.named.entry(DIGEST).unwrap_or_default();
        URL_SAFE_NO_PAD.encode(&*key)
    }

    async fn fill(&self, state: &StateDir, now: i64) -> Result<(), StartError> {
        let entries = RingName::ALL.map(entry).into_iter().chain([DIGEST.to_owned()]);
        for entry in entries {
            while self.named.entry(&entry).is_none() {
                if !self.leader.leads() {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                let file = file(&entry);
                let first = first(&entry, state, &file, now)?;
                match self.named.put(&entry, None, &first).await {
                    Ok(()) | Err(NotPut::Changed) => {}
                    Err(error) => return Err(StartError::cluster(format!("the Secret with the keys: {error}"))),
                }
            }
            // It is in the Secret: a copy on the volume must not outlive it.
            remove(&state.path(&file(&entry)))?;
        }
        Ok(())
    }
}

impl Home for KeySecret {
    fn put(&self, name: RingName, memory: &ArcSwap<Keys>, before: &Arc<Keys>, next: Keys) -> Result<(), RingError> {
        let shared = |error: &dyn std::fmt::Display| RingError::Shared(error.to_string());
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| shared(&error))?;
        let entry = self::entry(name);
        let planned_on = || Arc::ptr_eq(&memory.load_full(), before);
        let held = self.named.entry_if(&entry, planned_on).ok_or(RingError::Changed)?;
        let text = next.print(name)?;
        // What is taken from the Secret goes into memory: see `read`.
        let put = self.named.put(&entry, held.as_deref().map(Vec::as_slice), &text);
        runtime.block_on(put).map_err(|error| match error {
            NotPut::Changed => RingError::Changed,
            NotPut::Failed(error) => shared(&error),
        })
    }

    fn is_current(&self) -> bool {
        self.named.is_current()
    }

    fn rotates(&self) -> bool {
        self.leader.leads()
    }
}

fn entry(name: RingName) -> String {
    format!("{}.ring", name.as_str())
}

/// Where a broker on files has it.
fn file(entry: &str) -> String {
    format!("keys/{entry}")
}

/// Puts into memory what the Secret holds; all of it or nothing. A ring that is gone from it is not forgotten.
fn read(entries: &Entries, memory: &Memory) -> Result<(), String> {
    let mut parsed = Vec::new();
    for (name, cell) in memory {
        match entries.get(&entry(*name)) {
            Some(text) => {
                let keys = Keys::parse(*name, text).map_err(|why| format!("ring {}: {why}", name.as_str()))?;
                parsed.push((cell, keys));
            }
            None if cell.load().public().next().is_some() => {
                return Err(format!("ring {} is gone; put it back from a copy", name.as_str()));
            }
            None => {}
        }
    }
    for (cell, keys) in parsed {
        cell.store(Arc::new(keys));
    }
    Ok(())
}

/// What an entry begins with.
fn first(entry: &str, state: &StateDir, file: &str, now: i64) -> Result<Zeroizing<Vec<u8>>, StartError> {
    if let Some(bytes) = state.read(file)?.map(Zeroizing::new) {
        let whole = match RingName::ALL.into_iter().find(|name| self::entry(*name) == entry) {
            Some(name) => Keys::parse(name, &bytes).is_ok(),
            None => bytes.len() == 32,
        };
        if !whole {
            return Err(StartError::crypto(
                "a key of an older release",
                format!("{file} is damaged"),
            ));
        }
        return Ok(bytes);
    }
    match RingName::ALL.into_iter().find(|name| self::entry(*name) == entry) {
        Some(name) => {
            let keys = Keys::first(name, now).map_err(|error| StartError::crypto("a key ring", error))?;
            keys.print(name)
                .map_err(|error| StartError::crypto("a key ring", error))
        }
        None => {
            let key = random::<32>().map_err(|error| StartError::crypto("the digest key", error))?;
            Ok(Zeroizing::new(key.to_vec()))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        let cell = |name| (name, Arc::new(ArcSwap::from_pointee(Keys::none())));
        RingName::ALL.into_iter().map(cell).collect()
    }

    fn kids(memory: &Memory, name: RingName) -> Vec<String> {
        let keys = memory.get(&name).unwrap().load_full();
        keys.public().map(|key| key.thumbprint()).collect()
    }

    #[test]
    fn a_secret_is_taken_whole_or_not_at_all_and_a_lost_ring_is_not_forgotten() {
        let memory = memory();
        let mut entries = Entries::new();
        assert!(read(&entries, &memory).is_ok(), "empty at first");
        for name in RingName::ALL {
            let text = Keys::first(name, 1000).unwrap().print(name).unwrap();
            entries.insert(entry(name), text);
        }
        read(&entries, &memory).unwrap();
        let before = RingName::ALL.map(|name| kids(&memory, name));
        assert!(before.iter().all(|kids| !kids.is_empty()));
        let mut torn = entries.clone();
        let other = Keys::first(RingName::Access, 2000)
            .unwrap()
            .print(RingName::Access)
            .unwrap();
        torn.insert(entry(RingName::Access), other);
        torn.get_mut(&entry(RingName::Record)).unwrap().pop();
        assert!(read(&torn, &memory).unwrap_err().contains("record"));
        assert_eq!(RingName::ALL.map(|name| kids(&memory, name)), before);
        entries.remove(&entry(RingName::Federation));
        assert!(read(&entries, &memory).unwrap_err().contains("gone"));
        assert_eq!(RingName::ALL.map(|name| kids(&memory, name)), before);
    }

    #[test]
    fn what_an_older_release_left_is_taken_over_and_what_is_damaged_is_not_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        state.dir("keys").unwrap();
        let access = entry(RingName::Access);
        let old = Keys::first(RingName::Access, 1000)
            .unwrap()
            .print(RingName::Access)
            .unwrap();
        state.write(&file(&access), &old).unwrap();
        assert_eq!(first(&access, &state, &file(&access), 2000).unwrap(), old);
        state.write(&file(&access), &old[1..]).unwrap();
        assert!(first(&access, &state, &file(&access), 2000).is_err());
        state.write(&file(DIGEST), &[7; 32]).unwrap();
        assert_eq!(*first(DIGEST, &state, &file(DIGEST), 2000).unwrap(), [7; 32]);
        let record = entry(RingName::Record);
        let made = first(&record, &state, &file(&record), 2000).unwrap();
        assert!(Keys::parse(RingName::Record, &made).is_ok(), "none was left");
    }
}
