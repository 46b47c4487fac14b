//! Requests on disk: one private file per request, swapped whole by its resource version.
//!
//! Refuses a swap of an object that changed or is gone. The invariant: what a reader finds is one complete state,
//! synced before anybody is told of it. Deleting a file revokes its request.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sidegate_policies::api::access_request::{AccessRequestSpec, AccessRequestStatus, RequestState};
use sidegate_policies::api::AccessRequest;
use sidegate_policies::engine::Subject;
use sidegate_policies::wire::ApprovalState;

use crate::state::{read_private, remove, write_private, StateDir, StateError};

/// A request with what the broker keeps beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// Grows by one with every swap.
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
    /// The claim, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// The object people see.
    pub request: AccessRequest,
}

/// Who may send the operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Random; repeats of one claim carry the same.
    pub nonce: String,
    /// Session.
    pub session: String,
    /// Operation number.
    pub operation: u64,
    /// When.
    pub at_ms: i64,
}

static NO_STATUS: AccessRequestStatus = AccessRequestStatus {
    state: RequestState::Pending,
    decisions: Vec::new(),
    valid_until: None,
};

impl Stored {
    /// Its name: the ticket.
    pub fn name(&self) -> &str {
        &self.request.metadata.name
    }

    /// What was asked.
    pub fn spec(&self) -> &AccessRequestSpec {
        &self.request.spec
    }

    /// What happened to it.
    pub fn status(&self) -> &AccessRequestStatus {
        self.request.status.as_ref().unwrap_or(&NO_STATUS)
    }

    pub(super) fn status_mut(&mut self) -> &mut AccessRequestStatus {
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

    /// Whether nothing can happen to it any more.
    pub fn is_over(&self) -> bool {
        !matches!(
            self.state(),
            RequestState::Pending | RequestState::Granted | RequestState::Claimed
        )
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

/// Why a swap did not happen.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// The object was deleted.
    #[error("deleted")]
    Gone,
    /// Somebody else was first.
    #[error("changed meanwhile")]
    Changed(Box<Stored>),
    /// The disk.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The folder of requests.
#[derive(Debug)]
pub struct RequestFolder(PathBuf);

const MAX_REQUEST: u64 = 1 << 20;

impl RequestFolder {
    /// Under the state directory.
    pub fn open(state: &StateDir) -> Result<Self, StateError> {
        Ok(RequestFolder(state.dir("approvals")?))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    /// Every request. A file that cannot be read stops the start: a lost claim could run twice.
    pub fn load(&self) -> Result<Vec<Stored>, StateError> {
        let listed = std::fs::read_dir(&self.0).map_err(|source| StateError::Io {
            path: self.0.display().to_string(),
            source,
        })?;
        let mut all = Vec::new();
        for entry in listed.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                if let Some(bytes) = read_private(&path, MAX_REQUEST)? {
                    all.push(decode(&path, &bytes)?);
                }
            }
        }
        Ok(all)
    }

    /// Whether the object still exists.
    pub fn holds(&self, name: &str) -> bool {
        self.file(name).exists()
    }

    /// A new object; its name must be free.
    pub fn create(&self, stored: &Stored) -> Result<(), StateError> {
        let path = self.file(stored.name());
        if path.exists() {
            return Err(StateError::Broken {
                path: path.display().to_string(),
                what: "exists already".to_owned(),
            });
        }
        write_private(&path, &encode(stored))
    }

    /// Replaces the object if it still has `next`'s version; `next` gets the version after it.
    pub fn swap(&self, next: &mut Stored) -> Result<(), SwapError> {
        let path = self.file(next.name());
        let bytes = read_private(&path, MAX_REQUEST)?.ok_or(SwapError::Gone)?;
        let present = decode(&path, &bytes)?;
        if present.resource_version != next.resource_version {
            return Err(SwapError::Changed(Box::new(present)));
        }
        next.resource_version = next.resource_version.saturating_add(1);
        Ok(write_private(&path, &encode(next))?)
    }

    /// Forgets a finished request.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        remove(&self.file(name))
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
