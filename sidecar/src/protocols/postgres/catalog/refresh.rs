//! Which snapshot is in force, and when a newer one is fetched.
//!
//! One fetch at a time per target and database. After DDL was seen the next statement waits for a fresh one; a miss
//! waits too, but at most one fetch per second is made for misses.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use sidegate_policies::sql::postgres::catalog::Catalog;
use tokio::time::Instant;

use super::load::{self, Digest, LoadError};
use crate::protocols::RoomContext;
use crate::target::TargetState;

/// A snapshot older than this is fetched again in the background.
const OLD: Duration = Duration::from_secs(30);
/// Misses cause at most one fetch in this time.
const MISS: Duration = Duration::from_secs(1);
/// Snapshots kept.
const MAX_SNAPSHOTS: usize = 256;

#[derive(Default)]
struct Fetched {
    at: Option<Instant>,
    digest: Option<Digest>,
}

/// The snapshot of one database of one target.
#[derive(Default)]
pub struct Snapshot {
    current: ArcSwapOption<Catalog>,
    stale: AtomicBool,
    epoch: AtomicU64,
    fetching: tokio::sync::Mutex<Fetched>,
    last: Mutex<Option<Instant>>,
}

impl Snapshot {
    /// A snapshot that was fetched just now, for sessions without a server.
    #[cfg(any(test, fuzzing))]
    pub fn holding(catalog: Arc<Catalog>) -> Self {
        Snapshot {
            current: ArcSwapOption::new(Some(catalog)),
            last: Mutex::new(Some(Instant::now())),
            ..Snapshot::default()
        }
    }

    /// The catalog in force.
    pub fn catalog(&self) -> Option<Arc<Catalog>> {
        self.current.load_full()
    }

    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// DDL was seen.
    pub fn mark_stale(&self) {
        self.stale.store(true, Ordering::Release);
    }

    /// Whether the next statement must wait for a fetch.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire) || self.current.load().is_none()
    }

    /// Whether it is old enough for a fetch in the background.
    pub fn is_old(&self) -> bool {
        self.age().is_none_or(|age| age > OLD)
    }

    /// Whether a miss may cause a fetch now.
    pub fn may_refetch(&self) -> bool {
        self.age().is_none_or(|age| age > MISS)
    }

    fn age(&self) -> Option<Duration> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .map(|at| at.elapsed())
    }

    /// Fetches, unless somebody fetched since this call began.
    pub async fn fetch(&self, target: &Arc<TargetState>, ctx: &RoomContext, database: &str) -> Result<(), LoadError> {
        let called = Instant::now();
        let mut fetched = self.fetching.lock().await;
        if fetched.at.is_some_and(|at| at >= called) {
            return Ok(());
        }
        let began = Instant::now();
        self.stale.store(false, Ordering::Release);
        let next = self.epoch().saturating_add(1);
        match load::load(target, ctx, database, next, fetched.digest).await {
            Ok(changed) => {
                if let Some((catalog, digest)) = changed {
                    fetched.digest = Some(digest);
                    self.current.store(Some(Arc::new(catalog)));
                    self.epoch.store(next, Ordering::Release);
                }
                fetched.at = Some(began);
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(began);
                Ok(())
            }
            Err(error) => {
                self.stale.store(true, Ordering::Release);
                Err(error)
            }
        }
    }
}

/// All snapshots of one running sidecar.
#[derive(Default)]
pub struct Snapshots {
    known: Mutex<HashMap<(String, String), Arc<Snapshot>>>,
}

impl Snapshots {
    /// The snapshot of a database of a target.
    pub fn of(&self, target: &TargetState, database: &str) -> Arc<Snapshot> {
        let key = (format!("{} {}", target.uid, target.address()), database.to_owned());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_SNAPSHOTS && !known.contains_key(&key) {
            // Sessions keep the ones they use; the others are fetched again when needed.
            known.retain(|_, snapshot| Arc::strong_count(snapshot) > 1);
        }
        known.entry(key).or_default().clone()
    }
}
