//! The kill switch: Lockdowns from files in the state and from the configuration, as one deny set.
//!
//! Refuses nothing itself; it answers what is frozen. The invariant: the revision grows with every change of the
//! set and survives restarts, so a sidecar never goes back to an older set; a removal is a higher revision too.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use sidegate_policies::api::lockdown::{Freeze, LockdownSpec};
use sidegate_policies::api::meta::{Metadata, NamespacedRef, Object};
use sidegate_policies::api::{Lockdown, API_VERSION};
use sidegate_policies::engine::Subject;
use sidegate_policies::wire::{DenyEntry, DenySet};
use sidegate_policies::yaml;
use tokio::sync::watch;

use crate::audit::Unrecorded;
use crate::clock::{parse_rfc3339, Clock};
use crate::state::{read_private, remove, write_private, StateDir, StateError};

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

/// All Lockdowns of this broker.
pub struct Lockdowns {
    folder: PathBuf,
    state: Arc<StateDir>,
    clock: Arc<dyn Clock>,
    configured: Mutex<Vec<Lockdown>>,
    current: watch::Sender<Arc<Denied>>,
    /// Names of those whose time passed while they were in force, until they are asked for.
    ended: Mutex<Vec<String>>,
}

impl Lockdowns {
    /// Reads the folder of Lockdown files; nothing is served before this succeeded.
    pub fn open(state: Arc<StateDir>, clock: Arc<dyn Clock>) -> Result<Self, StateError> {
        let set = DenySet {
            revision: state.counter("deny")?,
            entries: Vec::new(),
        };
        let lockdowns = Lockdowns {
            folder: state.dir("lockdowns")?,
            state,
            clock,
            configured: Mutex::new(Vec::new()),
            current: watch::channel(Arc::new(Denied { set })).0,
            ended: Mutex::default(),
        };
        lockdowns.refresh()?;
        Ok(lockdowns)
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
        *self.configured.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = lockdowns;
        self.refresh().map(|_| ())
    }

    /// Writes a Lockdown and puts it into force before it answers; gives the revision.
    pub fn lock(&self, name: &str, spec: LockdownSpec) -> Result<u64, LockdownError> {
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
        let configured = self.configured.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut lockdowns = self.read_folder()?;
        lockdowns.extend(configured.iter().cloned());
        let now_ms = self.clock.now_ms();
        let entries: Vec<DenyEntry> = lockdowns
            .iter()
            .flat_map(|lockdown| entries(lockdown, now_ms))
            .collect();
        let present = self.now();
        if present.set.entries == entries {
            return Ok(present.set.revision);
        }
        let revision = self.state.count("deny")?;
        self.note_ended(&present.set.entries, &entries, now_ms);
        self.current.send_replace(Arc::new(Denied {
            set: DenySet { revision, entries },
        }));
        Ok(revision)
    }

    fn note_ended(&self, before: &[DenyEntry], after: &[DenyEntry], now_ms: i64) {
        let mut ended = self.ended.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let passed = before
            .iter()
            .filter(|entry| entry.until_ms.is_some_and(|until| until <= now_ms));
        for DenyEntry { lockdown, .. } in passed {
            if after.iter().all(|entry| entry.lockdown != *lockdown) && !ended.contains(lockdown) {
                ended.push(lockdown.clone());
            }
        }
    }

    /// Names of those that their time ended since this was asked last. What passes while no broker runs is not told.
    pub fn take_ended(&self) -> Vec<String> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// A file that cannot be read freezes everything: a kill switch never fails open.
    fn read_folder(&self) -> Result<Vec<Lockdown>, StateError> {
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
                    return Ok(vec![everything(&error.to_string())]);
                }
            }
        }
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        let loaded = yaml::load(&sources);
        if let Some(problem) = loaded.problems.first() {
            tracing::error!(%problem, "a lockdown file cannot be read: everything is frozen");
            return Ok(vec![everything(&problem.to_string())]);
        }
        let lockdowns = loaded.objects.lockdowns.into_iter();
        Ok(lockdowns.map(|located| located.object).collect())
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

/// The entries of one Lockdown that still hold. An `until` that cannot be read holds for ever.
fn entries(lockdown: &Lockdown, now_ms: i64) -> Vec<DenyEntry> {
    let until_ms = lockdown.spec.until.as_deref().and_then(parse_rfc3339);
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
