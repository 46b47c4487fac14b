//! The kill switch: Lockdowns from files in the state and from the configuration, as one deny set.
//!
//! Refuses nothing itself; it answers what is frozen. The invariant: the revision grows with every change of the set
//! and survives restarts, so a sidecar never goes back to an older set; a removal is a higher revision too. In a cluster
//! it is the version of the store up to which Lockdowns were consumed, the same number at every replica.

mod concerned;
mod ends;
mod tally;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use sidegate_policies::api::lockdown::{Freeze, LockdownAction, LockdownSpec};
use sidegate_policies::api::meta::{Metadata, NamespacedRef, Object};
use sidegate_policies::api::{Lockdown, API_VERSION};
use sidegate_policies::engine::Subject;
use sidegate_policies::wire::{DenyEntry, DenySet};
use sidegate_policies::yaml;
use tokio::sync::watch;

use crate::audit::Unrecorded;
use crate::clock::{parse_rfc3339, Clock};
use crate::state::{read_private, remove, write_private, StateDir, StateError};
use ends::Ends;
use tally::Tally;

pub use concerned::concerned;
pub use ends::Ended;
pub use tally::{Acknowledged, Outcome};

/// More entries than this deny everything.
pub const MAX_ENTRIES: usize = 10_000;

/// What may be frozen about one grant.
#[derive(Debug, Clone, Copy, Default)]
pub struct About<'a> {
    /// Who.
    pub subject: Option<&'a Subject>,
    /// `namespace/name` of a Target.
    pub target: Option<&'a str>,
    /// `namespace/name` of a Secret.
    pub secret: Option<&'a str>,
    /// Name of a token issuer.
    pub issuer: Option<&'a str>,
}

/// The deny set as of one moment.
#[derive(Debug, Clone, Default)]
pub struct Denied {
    /// As sent to sidecars.
    pub set: DenySet,
}

impl Denied {
    /// The Lockdown that freezes this, if one does.
    pub fn frozen(&self, about: About<'_>, now_ms: i64) -> Option<&str> {
        if self.set.entries.len() > MAX_ENTRIES {
            return Some("more than 10,000 entries");
        }
        self.live(now_ms)
            .find(|entry| hits(&entry.freeze, about))
            .map(|entry| entry.lockdown.as_str())
    }

    /// Whether what this is about is closed, and not only refused from now on.
    pub fn closes(&self, about: About<'_>, now_ms: i64) -> bool {
        let closing = |entry: &DenyEntry| entry.action == LockdownAction::Close && hits(&entry.freeze, about);
        self.set.entries.len() > MAX_ENTRIES || self.live(now_ms).any(closing)
    }

    /// Whether a token id is frozen.
    pub fn token(&self, id: &str, now_ms: i64) -> bool {
        self.live(now_ms)
            .any(|entry| matches!(&entry.freeze, Freeze::TokenId(frozen) if frozen == id))
    }

    fn live(&self, now_ms: i64) -> impl Iterator<Item = &DenyEntry> {
        let entries = self.set.entries.iter();
        entries.filter(move |entry| entry.until_ms.is_none_or(|until| until > now_ms))
    }
}

fn hits(freeze: &Freeze, about: About<'_>) -> bool {
    let is = |reference: &NamespacedRef, name: Option<&str>| name == Some(reference.to_string().as_str());
    match freeze {
        Freeze::Everything(_) => true,
        Freeze::Namespace(namespace) => about.subject.is_some_and(|subject| subject.namespace == *namespace),
        Freeze::ServiceAccount(account) => about
            .subject
            .is_some_and(|subject| subject.namespace == account.namespace && subject.service_account == account.name),
        Freeze::Pod(pod) => about
            .subject
            .is_some_and(|subject| subject.namespace == pod.namespace && subject.pod == pod.name),
        Freeze::Target(target) => is(target, about.target),
        Freeze::Secret(secret) => is(secret, about.secret),
        Freeze::Issuer(issuer) => about.issuer == Some(issuer.as_str()),
        Freeze::TokenId(_) => false,
    }
}

/// Why a Lockdown could not be written or removed.
#[derive(Debug, thiserror::Error)]
pub enum LockdownError {
    /// No Lockdown of that name in the state.
    #[error("there is no lockdown `{0}` here; one from the configuration is removed there")]
    Unknown(String),
    /// The name is already taken.
    #[error("there is already a lockdown `{0}`")]
    Exists(String),
    /// In a cluster people apply objects, which every replica follows.
    #[error(
        "in a cluster a lockdown is an object: apply a Lockdown with kubectl; it freezes at every replica at once"
    )]
    Cluster,
    /// A name that cannot be a file's.
    #[error("a lockdown's name has 1 to 63 lower-case letters, digits and dashes")]
    Name,
    /// It cannot be recorded, so it is not done.
    #[error("{0}")]
    Unrecorded(#[from] Unrecorded),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Not printable as YAML.
    #[error(transparent)]
    Print(#[from] yaml::PrintError),
}

/// Lockdowns that came with a configuration.
struct Configured {
    lockdowns: Vec<Lockdown>,
    /// Up to which version of the store these are all; absent where there is none, on one machine.
    version: Option<u64>,
}

/// Bits of a revision that are a version of the store; above them stands the store's generation, compared first.
const VERSION_BITS: u32 = 48;
/// The highest generation of a store: revisions stay positive where they are signed numbers.
pub const MAX_GENERATION: u64 = (1 << 15) - 1;

/// All Lockdowns of this broker.
pub struct Lockdowns {
    generation: u64,
    folder: PathBuf,
    state: Arc<StateDir>,
    clock: Arc<dyn Clock>,
    /// Those of the configuration, once there is one.
    configured: Mutex<Option<Configured>>,
    /// A version that a sidecar has seen.
    elsewhere: watch::Sender<u64>,
    current: watch::Sender<Arc<Denied>>,
    ends: Mutex<Ends>,
    tally: Mutex<Tally>,
}

impl Lockdowns {
    /// Reads the folder of Lockdown files; nothing is served before this succeeded.
    pub fn open(state: Arc<StateDir>, clock: Arc<dyn Clock>) -> Result<Self, StateError> {
        let set = DenySet {
            revision: state.counter("deny")?,
            entries: Vec::new(),
        };
        let lockdowns = Lockdowns {
            generation: 0,
            folder: state.dir("lockdowns")?,
            ends: Mutex::new(Ends::open(&state, clock.now_ms())),
            tally: Mutex::default(),
            state,
            clock,
            configured: Mutex::default(),
            elsewhere: watch::channel(0).0,
            current: watch::channel(Arc::new(Denied { set })).0,
        };
        lockdowns.refresh()?;
        Ok(lockdowns)
    }

    /// The same over a store that was restored from a copy so often: its versions begin lower each time, and are newer
    /// all the same (test `a_restored_store_counts_as_newer_once_its_generation_is_raised`).
    #[must_use]
    pub fn of_generation(mut self, generation: u64) -> Self {
        self.generation = generation.min(MAX_GENERATION);
        self
    }

    /// A version of the store as a revision.
    fn revision_of(&self, version: u64) -> u64 {
        let highest = (1u64 << VERSION_BITS).saturating_sub(1);
        (self.generation << VERSION_BITS) | version.min(highest)
    }

    /// The deny set now.
    pub fn now(&self) -> Arc<Denied> {
        Arc::clone(&self.current.borrow())
    }

    /// Told of every change.
    pub fn watch(&self) -> watch::Receiver<Arc<Denied>> {
        self.current.subscribe()
    }

    /// Takes the Lockdowns of a newly accepted configuration.
    pub fn configure(&self, lockdowns: Vec<Lockdown>) -> Result<(), StateError> {
        self.configure_as_of(lockdowns, None)
    }

    /// Takes the Lockdowns of a cluster, as of a version of its store.
    pub fn configure_at(&self, lockdowns: Vec<Lockdown>, version: u64) -> Result<(), StateError> {
        self.configure_as_of(lockdowns, Some(version))
    }

    /// Either of them.
    pub fn configure_as_of(&self, lockdowns: Vec<Lockdown>, version: Option<u64>) -> Result<(), StateError> {
        let version = version.map(|version| self.revision_of(version));
        *self.configured() = Some(Configured { lockdowns, version });
        self.refresh().map(|_| ())
    }

    fn configured(&self) -> MutexGuard<'_, Option<Configured>> {
        self.configured.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A sidecar holds the set of this revision: whoever is behind it must catch up.
    pub fn held_elsewhere(&self, revision: u64) {
        // What was held before the store was restored is nothing to catch up with, and of a store that another replica
        // already knows as restored this one can read no version.
        if revision > self.now().set.revision && revision >> VERSION_BITS == self.generation {
            let version = revision.saturating_sub(self.generation << VERSION_BITS);
            self.elsewhere.send_replace(version);
        }
    }

    /// Told of revisions that sidecars hold and this broker does not.
    pub fn elsewhere(&self) -> watch::Receiver<u64> {
        self.elsewhere.subscribe()
    }

    /// Writes a Lockdown and puts it into force before it answers; gives the revision.
    pub fn lock(&self, name: &str, spec: LockdownSpec) -> Result<u64, LockdownError> {
        // It would freeze at this replica alone (test `a_cluster_is_locked_by_objects_alone`).
        if self.configured().as_ref().is_some_and(|all| all.version.is_some()) {
            return Err(LockdownError::Cluster);
        }
        let path = self.file(name)?;
        if read_private(&path, MAX_FILE)?.is_some() {
            return Err(LockdownError::Exists(name.to_owned()));
        }
        let lockdown = Lockdown {
            api_version: API_VERSION.to_owned(),
            kind: "Lockdown".to_owned(),
            metadata: Metadata {
                name: name.to_owned(),
                ..Metadata::default()
            },
            spec,
            status: None,
        };
        write_private(&path, yaml::print(&lockdown)?.as_bytes())?;
        Ok(self.refresh()?)
    }

    /// Names of the Lockdowns that `lock` wrote here.
    pub fn written(&self) -> Vec<String> {
        let listed = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = listed
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".yaml").map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    /// Removes a Lockdown of the state; gives the revision.
    pub fn unlock(&self, name: &str) -> Result<u64, LockdownError> {
        let path = self.file(name)?;
        if read_private(&path, MAX_FILE)?.is_none() {
            return Err(LockdownError::Unknown(name.to_owned()));
        }
        remove(&path)?;
        Ok(self.refresh()?)
    }

    /// Reads the files again, drops what has passed, and publishes the set if it changed. Gives the revision.
    pub fn refresh(&self) -> Result<u64, StateError> {
        let configured = self.configured();
        let folder = self.read_folder()?;
        let now_ms = self.clock.now_ms();
        let told = configured.is_some() && folder.is_ok();
        let mut lockdowns = folder.unwrap_or_else(|everything| vec![everything]);
        lockdowns.extend(configured.iter().flat_map(|all| all.lockdowns.iter().cloned()));
        let version = configured.as_ref().and_then(|all| all.version);
        let entries = lockdowns.iter().flat_map(|lockdown| entries(lockdown, now_ms));
        let revision = self.publish(entries.collect(), version)?;
        // What is not all there yet, or cannot be read, has not ended.
        if told {
            self.ends().update(&ends_of(&lockdowns), now_ms);
        }
        Ok(revision)
    }

    fn publish(&self, entries: Vec<DenyEntry>, version: Option<u64>) -> Result<u64, StateError> {
        let present = self.now();
        let known = version.is_none_or(|version| version <= present.set.revision);
        if present.set.entries == entries && known {
            return Ok(present.set.revision);
        }
        let revision = match version {
            // What its time ended is gone at the same version: sidecars end it by their own clocks.
            Some(version) => version.max(present.set.revision),
            None => self.state.count("deny")?,
        };
        let set = DenySet { revision, entries };
        self.tally().publish(&set, Instant::now());
        self.current.send_replace(Arc::new(Denied { set }));
        Ok(revision)
    }

    /// Takes what a sidecar acknowledged, for each Lockdown that is new to it and that concerns it. Answers how long it
    /// took, if there is one.
    pub fn acknowledged(&self, told: Acknowledged, concerned: impl FnMut(&[DenyEntry]) -> bool) -> Option<Duration> {
        self.tally().acknowledged(told, concerned)
    }

    /// What came of a Lockdown so far, and what it freezes.
    pub fn outcome(&self, name: &str) -> Option<(Outcome, Vec<DenyEntry>)> {
        self.tally().of(name)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Those that their time ended since this was asked last: while this broker ran, or before it started.
    pub fn take_ended(&self) -> Vec<Ended> {
        self.ends().take()
    }

    /// Whether an end that was taken may not be on record yet.
    pub fn end_waits(&self) -> bool {
        self.ends().waits()
    }

    /// Every end that was taken is on record, and needs no more telling.
    pub fn ends_recorded(&self) {
        self.ends().recorded();
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A file that cannot be read freezes everything: a kill switch never fails open.
    fn read_folder(&self) -> Result<Result<Vec<Lockdown>, Lockdown>, StateError> {
        let mut sources = Vec::new();
        let listed = std::fs::read_dir(&self.folder).map_err(|source| StateError::Io {
            path: self.folder.display().to_string(),
            source,
        })?;
        for entry in listed.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            match read_private(&path, MAX_FILE) {
                Ok(Some(bytes)) => sources.push(yaml::Source {
                    name: path.display().to_string(),
                    text: String::from_utf8_lossy(&bytes).into_owned(),
                }),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "a lockdown file cannot be read: everything is frozen");
                    return Ok(Err(everything(&error.to_string())));
                }
            }
        }
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        let loaded = yaml::load(&sources);
        if let Some(problem) = loaded.problems.first() {
            tracing::error!(%problem, "a lockdown file cannot be read: everything is frozen");
            return Ok(Err(everything(&problem.to_string())));
        }
        let lockdowns = loaded.objects.lockdowns.into_iter();
        Ok(Ok(lockdowns.map(|located| located.object).collect()))
    }

    fn file(&self, name: &str) -> Result<PathBuf, LockdownError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
            return Err(LockdownError::Name);
        }
        Ok(self.folder.join(format!("{name}.yaml")))
    }
}

/// What is in force where a Lockdown cannot be read.
pub(crate) fn everything(why: &str) -> Lockdown {
    Object {
        api_version: API_VERSION.to_owned(),
        kind: "Lockdown".to_owned(),
        metadata: Metadata {
            name: "unreadable".to_owned(),
            ..Metadata::default()
        },
        spec: LockdownSpec {
            reason: why.to_owned(),
            until: None,
            action: Default::default(),
            freeze: vec![Freeze::Everything(Default::default())],
        },
        status: None,
    }
}

/// When a Lockdown ends. An `until` that cannot be read holds for ever.
fn until_ms(lockdown: &Lockdown) -> Option<i64> {
    lockdown.spec.until.as_deref().and_then(parse_rfc3339)
}

/// When the Lockdowns of each name have all ended.
fn ends_of(lockdowns: &[Lockdown]) -> BTreeMap<String, Option<i64>> {
    let mut ends: BTreeMap<String, Option<i64>> = BTreeMap::new();
    for lockdown in lockdowns {
        let until = until_ms(lockdown);
        let latest = ends.entry(lockdown.metadata.name.clone()).or_insert(until);
        *latest = latest.zip(until).map(|(one, other)| one.max(other));
    }
    ends
}

/// The entries of one Lockdown that still hold.
fn entries(lockdown: &Lockdown, now_ms: i64) -> Vec<DenyEntry> {
    let until_ms = until_ms(lockdown);
    if until_ms.is_some_and(|until| until <= now_ms) {
        return Vec::new();
    }
    let freeze = lockdown.spec.freeze.iter();
    freeze
        .map(|freeze| DenyEntry {
            lockdown: lockdown.metadata.name.clone(),
            freeze: freeze.clone(),
            action: lockdown.spec.action,
            until_ms,
        })
        .collect()
}

const MAX_FILE: u64 = 1 << 20;

#[cfg(test)]
#[path = "lockdown_tests.rs"]
pub(crate) mod tests;
