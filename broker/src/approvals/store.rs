//! Where requests are kept: what every store does, and the one of a machine, a private file per request.
//!
//! Refuses a swap of a request that changed or is gone. The invariant: what a reader finds is one complete state,
//! durable before anybody is told of it. Deleting a request revokes it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use sidegate_policies::api::access_request::{
    AccessRequestSpec, AccessRequestStatus, RequestClaim, RequestState, RequestSubject,
};
use sidegate_policies::api::AccessRequest;
use sidegate_policies::approval::Place;
use sidegate_policies::engine::Subject;
use sidegate_policies::wire::ApprovalState;
use tokio::sync::watch;

use crate::state::{read_private, remove, write_private, StateDir, StateError};

/// A request with what the broker keeps beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// Grows with every swap.
    pub resource_version: u64,
    /// When it was asked, milliseconds since 1970.
    pub created_ms: i64,
    /// When it last moved.
    pub moved_ms: i64,
    /// Until when it may be decided; after a decision, until when the decision holds.
    pub until_ms: i64,
    /// How long a decision holds.
    pub valid_for_ms: i64,
    /// Digest of the Target and the asking rules.
    pub basis: String,
    /// The session that asked first.
    pub session: String,
    /// The bundle that asked.
    pub bundle: String,
    /// The workload, with its labels, as attested.
    pub asked_by: Subject,
    /// The Target's UID, where its store gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_uid: Option<String>,
    /// The object people see.
    pub request: AccessRequest,
}

static NO_STATUS: AccessRequestStatus = AccessRequestStatus {
    state: RequestState::Pending,
    decisions: Vec::new(),
    usable_for: None,
    valid_until: None,
    recorded: None,
    moved_at: None,
    claim: None,
};

impl Stored {
    /// Its name: the ticket.
    pub fn name(&self) -> &str {
        &self.request.metadata.name
    }

    /// `namespace/name`: what tells it from every other.
    pub fn key(&self) -> String {
        self.request.full_name()
    }

    /// What was asked.
    pub fn spec(&self) -> &AccessRequestSpec {
        &self.request.spec
    }

    /// What happened to it.
    pub fn status(&self) -> &AccessRequestStatus {
        self.request.status.as_ref().unwrap_or(&NO_STATUS)
    }

    pub(crate) fn status_mut(&mut self) -> &mut AccessRequestStatus {
        self.request.status.get_or_insert_with(AccessRequestStatus::default)
    }

    /// Where it stands.
    pub fn state(&self) -> RequestState {
        self.status().state
    }

    /// `namespace/name` of the Target.
    pub fn target(&self) -> String {
        self.request.spec.target.to_string()
    }

    /// Who used its grant, if somebody did.
    pub fn claim(&self) -> Option<&RequestClaim> {
        self.status().claim.as_ref()
    }

    /// Whether nothing can happen to it any more.
    pub fn is_over(&self) -> bool {
        !matches!(
            self.state(),
            RequestState::Pending | RequestState::Granted | RequestState::Claimed
        )
    }

    /// Decisions that are not in the audit log yet.
    pub fn unrecorded(&self) -> usize {
        let recorded = self.status().recorded.and_then(|count| usize::try_from(count).ok());
        self.status().decisions.len().saturating_sub(recorded.unwrap_or(0))
    }

    /// As told to the sidecar.
    pub fn answer(&self, won: bool) -> ApprovalState {
        let decisions = self.status().decisions.iter();
        ApprovalState {
            name: self.name().to_owned(),
            state: self.state(),
            decided_by: decisions.map(|decision| decision.by.clone()).collect(),
            until_ms: self.until_ms,
            won,
        }
    }
}

/// Why a store does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] StateError),
    /// The API server refuses, or does not answer.
    #[error("the API server: {0}")]
    Cluster(String),
    /// It refuses the object itself: it has no room for what was asked.
    #[error("the request cannot be stored: {0}")]
    Unfit(String),
}

/// Why a swap did not happen.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// The request was deleted.
    #[error("deleted")]
    Gone,
    /// Somebody else was first.
    #[error("changed meanwhile")]
    Changed(Arc<Stored>),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of a new request.
#[derive(Debug)]
pub enum Made {
    /// It is stored.
    New(Arc<Stored>),
    /// There is one of this name.
    Taken(Arc<Stored>),
}

/// A store of requests. Its calls may wait for a disk or a network: none of them runs on a thread of the runtime,
/// except [`Store::all`] and [`Store::changed`], which answer from memory.
pub trait Store: Send + Sync {
    /// Every request, as last heard of; one that was deleted stays for a while, as `Void`.
    fn all(&self) -> Vec<Arc<Stored>>;

    /// Told whenever any of them moved.
    fn changed(&self) -> watch::Receiver<u64>;

    /// A request by its ticket, of this subject where one is named: as it is now, not as it was last heard of.
    fn find(&self, name: &str, of: Option<&RequestSubject>) -> Result<Option<Arc<Stored>>, StoreError>;

    /// A new request, unless there is one of its name.
    fn create(&self, stored: Stored) -> Result<Made, StoreError>;

    /// Replaces a request that still has this version.
    fn swap(&self, next: Stored) -> Result<Arc<Stored>, SwapError>;

    /// Forgets a request.
    fn remove(&self, stored: &Stored) -> Result<(), StoreError>;

    /// What the names of people are names of.
    fn place(&self) -> Place;

    /// Whether housekeeping is this broker's: of replicas, the leader's.
    fn keeps_house(&self) -> bool {
        true
    }

    /// Whether the request itself, or the pod that asked, is gone.
    fn is_gone(&self, stored: &Stored) -> bool;
}

/// The folder of requests.
#[derive(Debug)]
pub struct RequestFolder {
    path: PathBuf,
    /// Held while a file is read and written; taken before `known`, which nobody holds while the disk works.
    moving: Mutex<()>,
    known: Mutex<HashMap<String, Arc<Stored>>>,
    changed: watch::Sender<u64>,
}

const MAX_REQUEST: u64 = 1 << 20;

impl RequestFolder {
    /// Under the state directory. A file that cannot be read stops the start: a lost claim could run twice.
    pub fn open(state: &StateDir) -> Result<Self, StateError> {
        let folder = RequestFolder {
            path: state.dir("approvals")?,
            moving: Mutex::default(),
            known: Mutex::default(),
            changed: watch::channel(0).0,
        };
        *folder.known() = folder.load()?;
        Ok(folder)
    }

    fn load(&self) -> Result<HashMap<String, Arc<Stored>>, StateError> {
        let listed = std::fs::read_dir(&self.path).map_err(|source| StateError::Io {
            path: self.path.display().to_string(),
            source,
        })?;
        let mut all = HashMap::new();
        for entry in listed.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                if let Some(bytes) = read_private(&path, MAX_REQUEST)? {
                    let stored = decode(&path, &bytes)?;
                    all.insert(stored.name().to_owned(), Arc::new(stored));
                }
            }
        }
        Ok(all)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.json"))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Stored>>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn moving(&self) -> MutexGuard<'_, ()> {
        self.moving.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Remembers a request, and tells whoever waits.
    fn keep(&self, stored: Stored) -> Arc<Stored> {
        let stored = Arc::new(stored);
        self.known().insert(stored.name().to_owned(), Arc::clone(&stored));
        self.moved();
        stored
    }

    fn moved(&self) {
        self.changed
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }
}

impl Store for RequestFolder {
    fn all(&self) -> Vec<Arc<Stored>> {
        self.known().values().cloned().collect()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn find(&self, name: &str, of: Option<&RequestSubject>) -> Result<Option<Arc<Stored>>, StoreError> {
        let found = self.known().get(name).cloned();
        Ok(found.filter(|stored| of.is_none_or(|subject| stored.spec().subject == *subject)))
    }

    fn create(&self, stored: Stored) -> Result<Made, StoreError> {
        let _moving = self.moving();
        if let Some(taken) = self.known().get(stored.name()) {
            return Ok(Made::Taken(Arc::clone(taken)));
        }
        write_private(&self.file(stored.name()), &encode(&stored))?;
        Ok(Made::New(self.keep(stored)))
    }

    fn swap(&self, mut next: Stored) -> Result<Arc<Stored>, SwapError> {
        let path = self.file(next.name());
        let _moving = self.moving();
        let Some(bytes) = read_private(&path, MAX_REQUEST).map_err(StoreError::from)? else {
            // Deleting is how people revoke.
            next.status_mut().state = RequestState::Void;
            self.keep(next);
            return Err(SwapError::Gone);
        };
        let present = decode(&path, &bytes).map_err(StoreError::from)?;
        if present.resource_version != next.resource_version {
            return Err(SwapError::Changed(self.keep(present)));
        }
        next.resource_version = next.resource_version.saturating_add(1);
        write_private(&path, &encode(&next)).map_err(StoreError::from)?;
        Ok(self.keep(next))
    }

    fn remove(&self, stored: &Stored) -> Result<(), StoreError> {
        let _moving = self.moving();
        remove(&self.file(stored.name()))?;
        self.known().remove(stored.name());
        Ok(())
    }

    fn place(&self) -> Place {
        Place::Machine
    }

    fn is_gone(&self, stored: &Stored) -> bool {
        !self.file(stored.name()).exists()
    }
}

fn encode(stored: &Stored) -> Vec<u8> {
    // Maps with text keys and plain values always serialise.
    serde_json::to_vec(stored).unwrap_or_default()
}

fn decode(path: &std::path::Path, bytes: &[u8]) -> Result<Stored, StateError> {
    serde_json::from_slice(bytes).map_err(|error| StateError::Broken {
        path: path.display().to_string(),
        what: error.to_string(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn whoever_looks_does_not_wait_for_the_disk() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        let folder = Arc::new(RequestFolder::open(&state).unwrap());
        // A disk that does not answer: whoever writes waits in there.
        let moving = folder.moving();
        let (told, looked) = std::sync::mpsc::channel();
        let inside = Arc::clone(&folder);
        let looking = std::thread::spawn(move || told.send((inside.all().len(), inside.find("ar-x", None).is_ok())));
        let seen = looked.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(seen, Ok((0, true)), "it waits for whoever writes");
        drop(moving);
        looking.join().unwrap().unwrap();
    }
}
