//! Puts accepted objects into force, for whoever read them: folders or a cluster.
//!
//! Refuses to put anything into force that cannot be recorded. The invariant: what becomes visible becomes visible
//! whole. Its revision is one never used before on one machine; in a cluster it is the version of the store that was
//! consumed, so that replicas agree on what is older.

use std::sync::Arc;

use sidegate_policies::objects::Objects;
use sidegate_policies::record::Kind;
use sidegate_policies::seal::Revisions;
use tokio::sync::watch;

use crate::audit::{Audit, Event, Unrecorded};
use crate::config::BrokerConfig;
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
    /// The store's generation, as its operator says.
    pub generation: u64,
}

impl InForce {
    /// Nothing is in force yet.
    pub fn new(state: &Arc<StateDir>, config: &BrokerConfig, digest_key: String) -> Self {
        InForce {
            index: watch::Sender::new(Arc::default()),
            state: Arc::clone(state),
            cluster: config.cluster.clone(),
            digest_key,
            generation: config.store_generation,
        }
    }

    /// Puts the first objects into force, and answers where they are seen. `revisions` say how far objects were read
    /// from a store that counts by itself; of files we count the readings.
    pub fn first(
        self,
        objects: Objects,
        withheld: Withheld,
        revisions: Option<Revisions>,
    ) -> Result<(Self, watch::Receiver<Arc<Index>>), StateError> {
        let revision = self.state.count("bundle")?;
        let index = self.index_of(objects, revision, withheld, revisions);
        self.index.send_replace(Arc::new(index));
        let watcher = self.index.subscribe();
        Ok((self, watcher))
    }

    /// Puts objects into force, on record first; gives their revision.
    pub fn put(
        &self,
        front: &Front,
        objects: Objects,
        withheld: Withheld,
        revisions: Option<Revisions>,
    ) -> Result<u64, NotAccepted> {
        let revision = self.state.count("bundle")?;
        accepted(&front.audit, revision)?;
        let index = self.index_of(objects, revision, withheld, revisions);
        self.index.send_replace(Arc::new(index));
        Ok(revision)
    }

    fn index_of(&self, objects: Objects, revision: u64, withheld: Withheld, revisions: Option<Revisions>) -> Index {
        let (cluster, digest_key) = (self.cluster.clone(), self.digest_key.clone());
        let revisions = revisions.map(|revisions| Revisions {
            generation: self.generation,
            ..revisions
        });
        Index::new(objects, revision, cluster, digest_key)
            .withholding(withheld)
            .consuming(revisions)
    }
}

/// The audit event of a configuration put into force. It is on record first.
pub fn accepted(audit: &Audit, revision: u64) -> Result<(), Unrecorded> {
    audit.record(Event {
        object: &revision.to_string(),
        ..Event::new(Kind::Config, "configuration.accepted")
    })
}
