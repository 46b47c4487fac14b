//! Last known good: the bundle in force, its seal and the deny set beside it, in one file of the run directory, so that
//! a sidecar which starts while its broker is away has its listeners and its refusals at once.
//!
//! Refuses a file that is torn, altered, another pod's, from the future or older than 24 hours, and says so. It holds no
//! credential. Invariant: what is read back was vouched for by the broker, for this pod, as one: body, deny set, time.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sidegate_policies::bundle;
use sidegate_policies::seal::{deny_digest, Seal, Statement};
use sidegate_policies::wire::DenySet;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::seal::{SealRefused, Seals};
use crate::task::Tasks;

const NAME: &str = "last-known-good.zst";
const FORMAT: u32 = 1;
/// Older ones are as good as none.
const OLDEST: Duration = Duration::from_secs(24 * 3600);
/// Clocks of broker and node may differ so much.
const AHEAD_MS: i64 = 60_000;
/// Largest file, and largest of it unpacked: a body of 8 MiB and 10,000 frozen things, as JSON in JSON.
const FILE_LIMIT: u64 = 16 << 20;
const PLAIN_LIMIT: usize = 32 << 20;

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Torn, or not ours.
    #[error("it cannot be read: {0}")]
    Torn(&'static str),
    /// The broker did not vouch for it.
    #[error("{0}")]
    Seal(#[from] SealRefused),
    /// Body or deny set are not what was sealed.
    #[error("its {0} is not the one that was sealed")]
    Altered(&'static str),
    /// Too old.
    #[error("it is {0} s old, and none older than 24 h is taken")]
    Old(u64),
    /// The clock went back, or somebody turned it.
    #[error("it was sealed {0} s from now")]
    Future(u64),
}

/// The boot it was written in, and how long after: a clock that is set back does not make a file younger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Boot {
    id: String,
    after_ms: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    format: u32,
    boot: Option<Boot>,
    body: String,
    deny: DenySet,
    seal: Seal,
}

/// What was kept, checked.
#[derive(Debug)]
pub struct Kept {
    /// The bundle's body.
    pub body: String,
    /// What was frozen.
    pub deny: DenySet,
    /// What the seal says.
    pub statement: Statement,
}

/// This boot, as the kernel tells: time that includes sleep.
fn boot() -> Option<Boot> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let after = Duration::try_from_secs_f64(seconds).ok()?;
    Some(Boot {
        id: id.trim().to_owned(),
        after_ms: i64::try_from(after.as_millis()).ok()?,
    })
}

/// Reads and checks what was kept; `None` if there is nothing. `now_ms` is milliseconds since 1970.
pub fn read(folder: &Path, seals: &Seals, pod_uid: &str, now_ms: i64) -> Result<Option<Kept>, NotTaken> {
    let Some(contents) = load(folder)? else {
        return Ok(None);
    };
    let statement = seals.check(&contents.seal, pod_uid, now_ms)?;
    if bundle::version(contents.body.as_bytes()) != statement.version {
        return Err(NotTaken::Altered("body"));
    }
    if deny_digest(&contents.deny) != statement.deny_digest || contents.deny.revision != statement.deny_revision {
        return Err(NotTaken::Altered("deny set"));
    }
    let seconds = |ms: i64| u64::try_from(ms.div_euclid(1_000)).unwrap_or(0);
    let by_wall = now_ms.saturating_sub(statement.sealed_ms);
    if by_wall < AHEAD_MS.saturating_neg() {
        return Err(NotTaken::Future(seconds(by_wall.saturating_neg())));
    }
    let by_boot = match (boot(), &contents.boot) {
        (Some(now), Some(then)) if now.id == then.id => now.after_ms.saturating_sub(then.after_ms),
        _ => 0,
    };
    let age = by_wall.max(by_boot);
    if age >= i64::try_from(OLDEST.as_millis()).unwrap_or(i64::MAX) {
        return Err(NotTaken::Old(seconds(age)));
    }
    Ok(Some(Kept {
        body: contents.body,
        deny: contents.deny,
        statement,
    }))
}

fn load(folder: &Path) -> Result<Option<Contents>, NotTaken> {
    let file = match File::open(folder.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut packed = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut packed)?;
    // A claim about the size, checked before anything is allocated for it.
    let size = zstd::zstd_safe::get_frame_content_size(&packed).ok().flatten();
    let size = size.and_then(|size| usize::try_from(size).ok());
    let size = size
        .filter(|size| *size <= PLAIN_LIMIT)
        .ok_or(NotTaken::Torn("no size"))?;
    let plain = zstd::bulk::decompress(&packed, size).map_err(|_| NotTaken::Torn("it does not unpack"))?;
    let contents: Contents = serde_json::from_slice(&plain).map_err(|_| NotTaken::Torn("it is not what we write"))?;
    match contents.format {
        FORMAT => Ok(Some(contents)),
        _ => Err(NotTaken::Torn("another release wrote it")),
    }
}

/// Writes it in one step: after a crash there is the old one or the new one, and nobody else may read it.
fn store(folder: &Path, contents: &Contents) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let packed = zstd::bulk::compress(&serde_json::to_vec(contents)?, 1)?;
    let temp = folder.join(format!(".{NAME}.new"));
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temp)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(&packed)?;
    file.sync_all()?;
    fs::rename(&temp, folder.join(NAME))
}

/// Something to keep.
enum Keep {
    /// A bundle's version and body, with its seal and the deny set it was sealed beside.
    Bundle(String, String, Seal, DenySet),
    /// A newer seal of the bundle that is kept.
    Resealed(Statement, Seal, DenySet),
}

/// Keeps what is in force; the latest wins.
pub struct Keeper {
    folder: PathBuf,
    waiting: Mutex<Option<Keep>>,
    /// Version and body of the bundle in force while its seal is beside another deny set.
    unsealed: Mutex<Option<(String, String)>>,
    told: Notify,
}

impl Keeper {
    /// In this folder.
    pub fn new(folder: PathBuf) -> Self {
        Keeper {
            folder,
            waiting: Mutex::default(),
            unsealed: Mutex::default(),
            told: Notify::new(),
        }
    }

    /// Keeps a bundle that is in force now. One whose seal is not about the deny set in force is kept under its next
    /// seal, which the broker makes in a moment.
    pub fn bundle(&self, body: String, sealed: (&Statement, Seal), deny: &DenySet) {
        let (Statement { version, .. }, seal) = sealed;
        if deny_digest(deny) == sealed.0.deny_digest {
            *self.unsealed() = None;
            self.put(Keep::Bundle(version.clone(), body, seal, deny.clone()));
        } else {
            *self.unsealed() = Some((version.clone(), body));
        }
    }

    fn unsealed(&self) -> MutexGuard<'_, Option<(String, String)>> {
        self.unsealed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a newer seal of it.
    pub fn resealed(&self, statement: Statement, seal: Seal, deny: &DenySet) {
        if deny_digest(deny) != statement.deny_digest {
            return;
        }
        let unsealed = self.unsealed().take_if(|(version, _)| *version == statement.version);
        self.put(match unsealed {
            Some((version, body)) => Keep::Bundle(version, body, seal, deny.clone()),
            None => Keep::Resealed(statement, seal, deny.clone()),
        });
    }

    fn put(&self, keep: Keep) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting = Some(match (waiting.take(), keep) {
            (Some(Keep::Bundle(version, body, ..)), Keep::Resealed(statement, seal, deny))
                if version == statement.version =>
            {
                Keep::Bundle(version, body, seal, deny)
            }
            (_, keep) => keep,
        });
        drop(waiting);
        self.told.notify_one();
    }

    /// Writes until told to stop.
    pub async fn run(self: Arc<Self>, tasks: Tasks, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.told.notified() => {}
            }
            let keep = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(keep) = keep else { continue };
            let folder = self.folder.clone();
            match tasks.blocking(move || write(&folder, keep)).await {
                Ok(Ok(())) => tracing::debug!("the bundle in force is kept"),
                Ok(Err(error)) => tracing::warn!(%error, "the bundle in force cannot be kept"),
                Err(_) => {}
            }
        }
    }
}

fn write(folder: &Path, keep: Keep) -> Result<(), NotTaken> {
    let (body, seal, deny) = match keep {
        Keep::Bundle(_, body, seal, deny) => (body, seal, deny),
        Keep::Resealed(statement, seal, deny) => match load(folder)? {
            Some(kept) if bundle::version(kept.body.as_bytes()) == statement.version => (kept.body, seal, deny),
            _ => return Err(NotTaken::Altered("body")),
        },
    };
    let contents = Contents {
        format: FORMAT,
        boot: boot(),
        body,
        deny,
        seal,
    };
    Ok(store(folder, &contents)?)
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
