//! The record store: collects frames from sidecars, keeps them, and signs checkpoints over what it keeps.
//!
//! Owns everything below `<state>/records`: the store proper (`v1/…`, public, may be copied away) and `private/`
//! (key-encryption key, wrapped session keys, checkpoint key). It decides nothing and opens no sealed payload.
//! Refuses gaps, forks and hashes that do not chain, with an alarm.
//! Invariant: an object is created once, synced, and never overwritten; an acknowledgement follows the sync.

mod checkpoint;
mod collector;
mod keys;
mod objects;
mod own;
mod read_back;
mod replicas;
mod upload;

use crate::task::blocking;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sidegate_policies::record::certificate::Ring;
use sidegate_policies::record::layout::{is_replica, LogPath};
use sidegate_policies::record::summary::SessionSummary;
use tokio_util::sync::CancellationToken;

use checkpoint::TileLog;
use collector::LogState;
use keys::Keys;
use objects::Objects;
use replicas::Watched;

pub use keys::SessionKeys;
pub(crate) use own::OwnLog;
pub use own::{Certify, Random, Sources};

/// Alarms kept for status.
const ALARMS: usize = 100;
/// Session summaries kept in memory for lists.
const LISTED: usize = 10_000;

/// What a record store needs.
#[derive(Debug, Clone)]
pub struct RecordsOptions {
    /// `<state>/records`.
    pub root: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// How often a checkpoint is signed, if something moved.
    pub checkpoint_every: Duration,
    /// Silence after which a log's open sessions are sealed as orphans.
    pub orphan_after: Duration,
    /// Which of several brokers that keep the store together this is, always under the same name; empty: there is one.
    pub replica: String,
    /// Whether this broker leads.
    pub leads: Leads,
}

/// Says whether this broker leads now. Nothing breaks where two do.
#[derive(Clone)]
pub struct Leads(pub Arc<dyn Fn() -> bool + Send + Sync>);

impl fmt::Debug for Leads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leads")
    }
}

impl RecordsOptions {
    /// The defaults for a store at `root`.
    pub fn new(root: PathBuf, cluster: &str) -> RecordsOptions {
        RecordsOptions {
            root,
            cluster: cluster.to_owned(),
            checkpoint_every: Duration::from_secs(10),
            orphan_after: Duration::from_secs(60),
            replica: String::new(),
            leads: Leads(Arc::new(|| true)),
        }
    }
}

/// Who uploads, as attested. The broker's authentication puts it into the request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Pod UID.
    pub pod_uid: String,
    /// Container instance now; logs of earlier ones may be uploaded too.
    pub instance: u64,
}

/// Something that must not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// RFC 3339.
    pub at: String,
    /// The log.
    pub log: String,
    /// What.
    pub message: String,
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The directory failed.
    #[error("the record store at {path} failed: {error}")]
    Io {
        /// Where.
        path: String,
        /// What.
        error: std::io::Error,
    },
    /// An object exists with other bytes.
    #[error("{0} exists with other content; a record object is never overwritten")]
    Differs(String),
    /// Another replica went on with a log.
    #[error("another replica went on with log {0}")]
    Behind(String),
    /// A key is unusable or could not be made.
    #[error("a key of the record store is not usable: {0}")]
    Key(&'static str),
    /// What is stored cannot be read back.
    #[error("what is stored of log {log} does not read back: {why}")]
    Damaged {
        /// The log.
        log: String,
        /// Why.
        why: String,
    },
}

/// The record store.
pub struct Records {
    options: RecordsOptions,
    objects: Objects,
    keys: Keys,
    ring: Mutex<Ring>,
    logs: Mutex<HashMap<LogPath, Arc<Mutex<LogState>>>>,
    tiles: Mutex<TileLog>,
    finished: Mutex<VecDeque<SessionSummary>>,
    /// Names of summaries that were read.
    listed: Mutex<HashSet<String>>,
    alarms: Mutex<VecDeque<Alarm>>,
    watched: Mutex<Watched>,
}

impl Records {
    /// Opens, or makes, the store.
    pub fn open(options: RecordsOptions) -> Result<Arc<Records>, RecordsError> {
        if !options.replica.is_empty() && !is_replica(&options.replica) {
            return Err(RecordsError::Key("a replica's name has a-z, 0-9 and dashes"));
        }
        let objects = Objects::open(&options.root, &options.cluster)?;
        let keys = Keys::open(&objects, &options.cluster)?;
        let tiles = TileLog::open(&objects, &options.replica)?;
        let mut listed = HashSet::new();
        let records = Records {
            ring: Mutex::default(),
            logs: Mutex::default(),
            tiles: Mutex::new(tiles),
            finished: Mutex::new(objects.summaries(&mut listed, LISTED)?.into()),
            listed: Mutex::new(listed),
            alarms: Mutex::default(),
            watched: Mutex::default(),
            objects,
            keys,
            options,
        };
        records.load_landings()?;
        Ok(Arc::new(records))
    }

    /// The public keys (JWKs) that certify record keys. They are kept in the store for ever.
    pub fn set_ring(&self, jwks: &[serde_json::Value]) -> Result<(), RecordsError> {
        let mut ring = Ring::default();
        for jwk in jwks {
            if !ring.add_jwk(jwk) {
                return Err(RecordsError::Key("a record ring key is no P-256 JWK"));
            }
            self.keys.publish(&self.objects, jwk)?;
        }
        *lock(&self.ring) = ring;
        Ok(())
    }

    /// Checkpoints and orphans until `cancel`; then one last checkpoint.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(self.options.checkpoint_every);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                _ = tick.tick() => {}
            }
            self.clone().keep().await;
        }
        self.clone().keep().await;
        let _ = blocking(move || self.leave()).await;
    }

    async fn keep(self: Arc<Self>) {
        let work = blocking(move || {
            if let Err(error) = self.look_after() {
                self.alarm("checkpoint", &error.to_string());
            }
        });
        if work.await.is_none() {
            tracing::error!("the record store's keeper panicked");
        }
    }

    /// Everything that is due: what [`Records::run`] does again and again.
    pub fn look_after(&self) -> Result<(), RecordsError> {
        let others = self.stand()?;
        self.seal_orphans(&others);
        if self.leads() {
            self.adopt(&others)?;
            self.checkpoint(&others)?;
        } else {
            self.follow()?;
        }
        self.forget_done();
        Ok(())
    }

    /// How many logs this broker has in memory.
    pub fn logs_here(&self) -> usize {
        lock(&self.logs).len()
    }

    /// Whether other brokers keep the same store.
    fn is_shared(&self) -> bool {
        !self.options.replica.is_empty()
    }

    /// This broker's landing journal of a log.
    fn landing(&self, path: &LogPath) -> String {
        path.landing_of(&self.options.replica)
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        &self.options.root
    }

    /// Sessions, oldest first: finished ones and those that are open now, here or at another replica.
    pub fn sessions(&self) -> Vec<SessionSummary> {
        if let Err(error) = self.list_anew() {
            self.alarm("session", &error.to_string());
        }
        let mut sessions: Vec<SessionSummary> = lock(&self.finished).iter().cloned().collect();
        let known: HashSet<String> = sessions.iter().map(|session| session.id.clone()).collect();
        let mut open: HashMap<String, SessionSummary> = HashMap::new();
        let here = self.all_logs().into_iter().flat_map(|log| lock(&log).open_sessions());
        for session in here.chain(self.open_elsewhere()) {
            match open.get(&session.id) {
                Some(further) if further.last >= session.last => {}
                _ => drop(open.insert(session.id.clone(), session)),
            }
        }
        sessions.extend(
            open.into_values()
                .filter(|session| !self.is_shared() || !known.contains(&session.id)),
        );
        sessions.sort_by(|a, b| (a.started_us, &a.id).cmp(&(b.started_us, &b.id)));
        sessions
    }

    /// What must not happen and did, oldest first.
    pub fn alarms(&self) -> Vec<Alarm> {
        lock(&self.alarms).iter().cloned().collect()
    }

    pub(crate) fn alarm(&self, log: &str, message: &str) {
        tracing::error!(target: "alarm", log, message, "record alarm");
        let mut alarms = lock(&self.alarms);
        if alarms.len() >= ALARMS {
            alarms.pop_front();
        }
        alarms.push_back(Alarm {
            at: sidegate_policies::record::summary::rfc3339(wall_us()),
            log: log.to_owned(),
            message: message.to_owned(),
        });
    }

    /// Takes the summaries that other replicas wrote.
    fn list_anew(&self) -> Result<(), RecordsError> {
        if !self.is_shared() {
            return Ok(());
        }
        let mut listed = lock(&self.listed);
        let fresh = self.objects.summaries(&mut listed, LISTED)?;
        fresh.into_iter().for_each(|summary| self.finish(summary));
        Ok(())
    }

    fn all_logs(&self) -> Vec<Arc<Mutex<LogState>>> {
        lock(&self.logs).values().cloned().collect()
    }

    fn finish(&self, summary: SessionSummary) {
        let mut finished = lock(&self.finished);
        finished.retain(|other| other.id != summary.id);
        if finished.len() >= LISTED {
            finished.pop_front();
        }
        finished.push_back(summary);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn wall_us() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
