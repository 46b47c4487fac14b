//! What leases cost, for metrics: how long fetching took by what came of it, and how many callers wait.
//!
//! Refuses nothing and decides nothing. Invariant: its labels are words of this file.

use std::sync::Arc;
use std::time::Duration;

use super::CredentialError;
use crate::metrics::{Counter, Seconds};

/// Counts of all leases.
#[derive(Debug, Default)]
pub struct Meter {
    /// Callers that wait for a lease now.
    pub waiters: Counter,
    granted: Seconds,
    unavailable: Seconds,
    refused: Seconds,
    locked: Seconds,
}

impl Meter {
    /// A fetch took so long.
    pub(super) fn fetched(&self, took: Duration, outcome: Result<(), &CredentialError>) {
        let seconds = match outcome {
            Ok(()) => &self.granted,
            Err(CredentialError::Unavailable) => &self.unavailable,
            Err(CredentialError::Refused) => &self.refused,
            Err(CredentialError::Locked) => &self.locked,
        };
        seconds.observe(took);
    }

    /// Fetches by what came of them.
    pub fn fetches(&self) -> [(&'static str, &Seconds); 4] {
        [
            ("granted", &self.granted),
            ("unavailable", &self.unavailable),
            ("refused", &self.refused),
            ("locked", &self.locked),
        ]
    }

    /// Counts a caller for as long as it waits, however it ends.
    pub(super) fn waiting(self: &Arc<Self>) -> Waiting {
        self.waiters.up();
        Waiting(self.clone())
    }
}

/// A caller that waits.
pub(super) struct Waiting(Arc<Meter>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiters.down();
    }
}
