//! Puts accepted objects into force, for whoever read them: folders or a cluster.
//!
//! Refuses to put anything into force that cannot be recorded. The invariant: what becomes visible becomes visible
//! whole, with a revision never used before.

use std::sync::Arc;

use sidegate_policies::objects::Objects;
use sidegate_policies::record::Kind;
use tokio::sync::watch;

use crate::audit::{Audit, Event, Unrecorded};
use crate::front::Front;
use crate::index::{Index, Withheld};
use crate::state::{StateDir, StateError};

/// Why good objects were not put into force. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum NotAccepted {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The audit.
    #[error("the configuration is not in force: {0}")]
    Unrecorded(#[from] Unrecorded),
}

/// Where objects go that are accepted.
pub struct InForce {
    /// Everybody who grants or offers anything looks here.
    pub index: watch::Sender<Arc<Index>>,
    /// Counts revisions.
    pub state: Arc<StateDir>,
    /// The cluster's name.
    pub cluster: String,
    /// Key of approval digests, base64url.
    pub digest_key: String,
}

impl InForce {
    /// The first index, and where later ones go.
    pub fn first(
        state: Arc<StateDir>,
        cluster: String,
        digest_key: String,
        objects: Objects,
        withheld: Withheld,
    ) -> Result<(Self, watch::Receiver<Arc<Index>>), StateError> {
        let revision = state.count("bundle")?;
        let index = Index::new(objects, revision, cluster.clone(), digest_key.clone()).withholding(withheld);
        let (index, watcher) = watch::channel(Arc::new(index));
        let in_force = InForce {
            index,
            state,
            cluster,
            digest_key,
        };
        Ok((in_force, watcher))
    }

    /// Puts objects into force, on record first; gives their revision.
    pub fn put(&self, front: &Front, objects: Objects, withheld: Withheld) -> Result<u64, NotAccepted> {
        let revision = self.state.count("bundle")?;
        let index = Index::new(objects, revision, self.cluster.clone(), self.digest_key.clone());
        accepted(&front.audit, revision)?;
        self.index.send_replace(Arc::new(index.withholding(withheld)));
        Ok(revision)
    }
}

/// The audit event of a configuration put into force. It is on record first.
pub fn accepted(audit: &Audit, revision: u64) -> Result<(), Unrecorded> {
    audit.record(Event {
        object: &revision.to_string(),
        ..Event::new(Kind::Config, "configuration.accepted")
    })
}
