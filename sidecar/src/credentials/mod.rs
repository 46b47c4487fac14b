//! Leases: short-lived credentials, one per target, in memory only.
//!
//! One task per target owns the lease and publishes it by a watch, so that any number of sessions make one call. It
//! is renewed at 60 to 75 % of its life while sessions are open and never used past its hard stop, by whichever clock
//! says so first. A target that refuses a credential gets a fresh one once. Nothing here is printable.

mod keeper;
mod lease;
mod meter;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sidegate_policies::engine::TargetId;
use sidegate_policies::reason::Reason;
use sidegate_policies::wire::{Lease, LeaseRequest};
use tokio_util::sync::CancellationToken;

use crate::session::Sessions;
use crate::staleness::Leased;
use crate::target::TargetState;
use crate::task::Tasks;
pub(crate) use keeper::random_unit;
use keeper::Keeper;
pub use lease::{Derived, LeaseHandle, LeaseMaterial};
pub use meter::Meter;

/// A caller waits this long at most; the fetch itself goes on.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Broker or provider unreachable: later.
    #[error("no credential can be had now")]
    Unavailable,
    /// The broker refuses to lease one, for good.
    #[error("the credential was refused")]
    Refused,
    /// The broker says the subject or target is frozen.
    #[error("access is frozen")]
    Locked,
}

impl CredentialError {
    /// The reason an agent is told.
    pub fn reason(&self) -> Reason {
        match self {
            CredentialError::Unavailable => Reason::Unavailable,
            CredentialError::Refused => Reason::CredentialRefused,
            CredentialError::Locked => Reason::Locked,
        }
    }
}

/// Where leases come from: the broker client, or a script in tests.
pub trait LeaseSource: Send + Sync {
    /// Asks for a credential.
    fn lease(&self, request: LeaseRequest) -> BoxFuture<'static, Result<Lease, CredentialError>>;
    /// Hands one back.
    fn give_back(&self, id: String) -> BoxFuture<'static, ()>;
}

/// Every target's lease.
pub struct Credentials {
    source: Arc<dyn LeaseSource>,
    sessions: Arc<Sessions>,
    tasks: Tasks,
    stop: CancellationToken,
    keepers: Mutex<HashMap<TargetId, Arc<Keeper>>>,
    meter: Arc<Meter>,
}

impl Credentials {
    /// No lease yet. `stop` hands every lease back.
    pub fn new(source: Arc<dyn LeaseSource>, sessions: Arc<Sessions>, tasks: Tasks, stop: CancellationToken) -> Self {
        Credentials {
            source,
            sessions,
            tasks,
            stop,
            keepers: Mutex::default(),
            meter: Arc::default(),
        }
    }

    /// A usable lease for a target. Ask only after the gate has admitted the connection.
    pub async fn lease(&self, target: &Arc<TargetState>) -> Result<Arc<LeaseHandle>, CredentialError> {
        let keeper = self.keeper(target);
        let lease = tokio::time::timeout(PATIENCE, keeper.lease());
        lease.await.unwrap_or(Err(CredentialError::Unavailable))
    }

    /// The target refused this lease: a fresh one, once. The caller retries its login once if nothing was sent.
    pub async fn refused(
        &self,
        target: &Arc<TargetState>,
        lease: &LeaseHandle,
    ) -> Result<Arc<LeaseHandle>, CredentialError> {
        let keeper = self.keeper(target);
        keeper.refused(lease.id());
        let lease = tokio::time::timeout(PATIENCE, keeper.lease());
        lease.await.unwrap_or(Err(CredentialError::Unavailable))
    }

    /// What leases cost so far.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Leases held now, and how long until each expires.
    pub fn left(&self) -> Vec<(TargetId, Duration)> {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        let left = keepers
            .iter()
            .filter_map(|(target, keeper)| Some((target.clone(), keeper.left()?)));
        let mut left: Vec<_> = left.collect();
        left.sort_by_key(|(target, _)| target.to_string());
        left
    }

    /// Hands back what was leased for targets that are gone, or lead elsewhere by now.
    pub fn keep(&self, targets: &BTreeMap<TargetId, Arc<TargetState>>) {
        let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.retain(|id, keeper| {
            let same = targets.get(id).is_some_and(|target| keeper.is_for(target));
            if !same {
                keeper.end();
            }
            same
        });
    }

    /// Who keeps the lease of this target. What was leased for another place or credential of the same name is never sent to
    /// this one (`a_target_that_leads_elsewhere_gets_a_lease_of_its_own`).
    fn keeper(&self, target: &Arc<TargetState>) -> Arc<Keeper> {
        let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeper) = keepers.get(&target.id) {
            if keeper.is_for(target) {
                return keeper.clone();
            }
            keeper.end();
        }
        let stop = self.stop.child_token();
        let keeper = Arc::new(Keeper::new(target.clone(), self.meter.clone(), stop));
        keepers.insert(target.id.clone(), keeper.clone());
        let work = keeper.clone().run(self.source.clone(), self.sessions.clone());
        self.tasks.spawn("lease", work);
        keeper
    }
}

impl Leased for Credentials {
    fn holds(&self, target: &TargetId) -> bool {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.get(target).is_some_and(|keeper| keeper.usable().is_some())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
