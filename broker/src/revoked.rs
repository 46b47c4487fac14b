//! Ids of our own tokens that were revoked before their time, kept until they would have ended anyway.
//!
//! On one machine they are a file; replicas share them. Refuses to start over a damaged list: what was revoked would be
//! good again. The invariants: an id is refused here from the moment it is added, and durable when [`Revoked::add`]
//! answers well; the list is bounded.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::config::StartError;
use crate::state::{StateDir, StateError};

const FILE: &str = "revoked.json";
/// Tokens live 15 minutes at most and a pod gets five a second: more than this is no honest use.
pub(crate) const MAX_IDS: usize = 20_000;
/// A token is accepted for a few seconds after its end, and clocks differ: its id is kept a minute longer.
pub(crate) const KEEP: i64 = 60;

/// Ids that the replicas of a cluster share.
pub trait Replicas: Send + Sync {
    /// Whether one is known to be revoked.
    fn holds(&self, id: &str) -> bool;

    /// Revokes one whose token ends at `expires`, seconds since 1970: here at once, for all before it answers well.
    /// Blocks.
    fn add(&self, id: &str, expires: i64) -> Result<(), NotRevoked>;
}

/// The revoked ids of one broker.
pub struct Revoked(Home);

enum Home {
    File(File),
    Shared(Arc<dyn Replicas>),
}

struct File {
    state: Arc<StateDir>,
    /// Id to the end of its token, seconds since 1970.
    ids: Mutex<BTreeMap<String, i64>>,
}

impl fmt::Debug for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Revoked")
    }
}

/// Why a revocation did not take.
#[derive(Debug, thiserror::Error)]
pub enum NotRevoked {
    /// The list is full.
    #[error("too many tokens are revoked")]
    Full,
    /// It is in force in this process, but not on the disk.
    #[error("the revocation is in force until a restart only: {0}")]
    State(#[from] StateError),
    /// It is in force in this process, but not at the other replicas.
    #[error("the revocation is in force at this replica only: {0}")]
    Shared(String),
    /// It cannot be written as JSON.
    #[error("the list of revoked tokens cannot be written: {0}")]
    Print(#[from] serde_json::Error),
}

impl Revoked {
    /// Reads the list from the state directory.
    pub fn open(state: Arc<StateDir>) -> Result<Self, StartError> {
        let ids = match state.read(FILE)? {
            None => BTreeMap::new(),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|_| StateError::Broken {
                path: state.path(FILE).display().to_string(),
                what: "is no whole list of revoked tokens; tokens live 15 minutes: it may be removed after that"
                    .to_owned(),
            })?,
        };
        let ids = Mutex::new(ids);
        Ok(Revoked(Home::File(File { state, ids })))
    }

    /// Over what replicas share.
    pub fn over(replicas: Arc<dyn Replicas>) -> Self {
        Revoked(Home::Shared(replicas))
    }

    /// Whether this token id was revoked.
    pub fn holds(&self, id: &str) -> bool {
        match &self.0 {
            Home::File(file) => file.ids().contains_key(id),
            Home::Shared(replicas) => replicas.holds(id),
        }
    }

    /// Revokes an id whose token ends at `expires`. Blocks on the disk or the API server. Both times in seconds.
    pub fn add(&self, id: String, expires: i64, now: i64) -> Result<(), NotRevoked> {
        match &self.0 {
            Home::File(file) => file.add(id, expires, now),
            Home::Shared(replicas) => replicas.add(&id, expires),
        }
    }
}

impl File {
    fn ids(&self) -> MutexGuard<'_, BTreeMap<String, i64>> {
        self.ids.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn add(&self, id: String, expires: i64, now: i64) -> Result<(), NotRevoked> {
        let mut ids = self.ids();
        ids.retain(|_, until| until.saturating_add(KEEP) > now);
        if ids.len() >= MAX_IDS && !ids.contains_key(&id) {
            return Err(NotRevoked::Full);
        }
        ids.insert(id, expires);
        // Under the lock: of two writers, the later one's list holds both.
        let bytes = serde_json::to_vec(&*ids)?;
        Ok(self.state.write(FILE, &bytes)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, Arc<StateDir>) {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        (temp, Arc::new(state))
    }

    #[test]
    fn a_revoked_id_survives_a_restart_and_is_forgotten_after_its_end() {
        let (_temp, state) = state();
        let revoked = Revoked::open(Arc::clone(&state)).unwrap();
        revoked.add("a".to_owned(), 1000, 900).unwrap();
        drop(revoked);
        let revoked = Revoked::open(Arc::clone(&state)).unwrap();
        assert!(revoked.holds("a") && !revoked.holds("b"));
        revoked.add("b".to_owned(), 1300, 1059).unwrap();
        assert!(revoked.holds("a"), "a minute longer than it lives");
        revoked.add("c".to_owned(), 1300, 1060).unwrap();
        assert!(!revoked.holds("a"));
    }

    #[test]
    fn a_damaged_list_starts_nothing() {
        let (_temp, state) = state();
        state.write(FILE, b"{\"a\":10").unwrap();
        let refused = Revoked::open(state).unwrap_err().to_string();
        assert!(refused.contains("revoked.json"), "{refused}");
    }

    #[test]
    fn what_the_disk_does_not_take_is_refused_all_the_same() {
        let (_temp, state) = state();
        std::fs::create_dir(state.path(".revoked.json.new")).unwrap();
        let revoked = Revoked::open(state).unwrap();
        let outcome = revoked.add("a".to_owned(), 1000, 900);
        assert!(matches!(outcome, Err(NotRevoked::State(_))));
        assert!(revoked.holds("a"));
    }

    #[test]
    fn the_list_is_bounded_and_its_end_fails_closed() {
        let (_temp, state) = state();
        let revoked = Revoked::open(state).unwrap();
        let many = (0..MAX_IDS).map(|number| (number.to_string(), 1000));
        let Revoked(Home::File(file)) = &revoked else {
            panic!("a file");
        };
        file.ids().extend(many);
        assert!(matches!(revoked.add("a".to_owned(), 1000, 900), Err(NotRevoked::Full)));
        revoked.add("7".to_owned(), 1000, 900).unwrap();
    }
}
