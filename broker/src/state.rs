//! The state directory: one instance per directory, everything in it private to its owner.
//!
//! Refuses a directory that others may enter, a second instance, and files that others may read; what a kubelet gave to the group
//! of its volume is taken back first, where asked ([`reclaim`]). The invariant: a file is either its old or its new content,
//! never half of it (write, sync, rename, sync the directory).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::FlockOperation;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// Which path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Others may enter or read.
    #[error("{path}: others may read it (mode {mode:04o}); run `chmod {want:04o} {path}`")]
    Open {
        /// Which path.
        path: String,
        /// Its mode.
        mode: u32,
        /// What it should be.
        want: u32,
    },
    /// It belongs to somebody else.
    #[error("{path}: belongs to uid {owner}, not to this process's user")]
    Foreign {
        /// Which path.
        path: String,
        /// Its owner.
        owner: u32,
    },
    /// Another instance holds the lock.
    #[error("{path}: another instance uses this state directory")]
    Locked {
        /// Which path.
        path: String,
    },
    /// A file holds something unexpected.
    #[error("{path}: {what}")]
    Broken {
        /// Which path.
        path: String,
        /// What is wrong.
        what: String,
    },
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, StateError> {
    result.map_err(|source| StateError::Io {
        path: path.display().to_string(),
        source,
    })
}

/// The directory, locked for this process.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    counters: Mutex<()>,
    _lock: File,
}

impl StateDir {
    /// Opens or creates the directory and takes its lock.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        if !root.exists() {
            at(root, DirBuilder::new().recursive(true).mode(0o700).create(root))?;
        }
        let root = at(root, root.canonicalize())?;
        check_private_dir(&root)?;
        let path = root.join("lock");
        let lock = at(
            &path,
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path),
        )?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(StateError::Locked {
                path: root.display().to_string(),
            });
        }
        Ok(StateDir {
            root,
            counters: Mutex::new(()),
            _lock: lock,
        })
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A private directory inside, created if missing.
    pub fn dir(&self, name: &str) -> Result<PathBuf, StateError> {
        let path = self.root.join(name);
        if !path.exists() {
            at(&path, DirBuilder::new().recursive(true).mode(0o700).create(&path))?;
        }
        check_private_dir(&path)?;
        Ok(path)
    }

    /// Reads a private file; `None` if it does not exist.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        read_private(&self.root.join(name), MAX_FILE)
    }

    /// Replaces a private file in one step.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        write_private(&self.root.join(name), bytes)
    }

    /// Reads a file, or creates it with what `make` gives.
    pub fn read_or_create<E, F>(&self, name: &str, make: F) -> Result<Vec<u8>, E>
    where
        E: From<StateError>,
        F: FnOnce() -> Result<Vec<u8>, E>,
    {
        if let Some(bytes) = self.read(name)? {
            return Ok(bytes);
        }
        let bytes = make()?;
        self.write(name, &bytes)?;
        Ok(bytes)
    }

    /// The present value of a counter that survives restarts; 0 before the first use.
    pub fn counter(&self, name: &str) -> Result<u64, StateError> {
        let file = format!("{name}.counter");
        let Some(bytes) = self.read(&file)? else { return Ok(0) };
        let text = String::from_utf8_lossy(&bytes);
        text.trim().parse().map_err(|_| StateError::Broken {
            path: self.root.join(&file).display().to_string(),
            what: "holds no number".to_owned(),
        })
    }

    /// Counts up and stores before it answers, so that a value is never given twice.
    pub fn count(&self, name: &str) -> Result<u64, StateError> {
        let _guard = self.counters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let next = self.counter(name)?.saturating_add(1);
        self.write(&format!("{name}.counter"), format!("{next}\n").as_bytes())?;
        Ok(next)
    }
}

/// Takes back what a kubelet gave to a volume's group: at every mount it lets the group of `fsGroup` into all of it, and a state
/// directory that anybody else may enter is refused. Only what is ours is touched, and nothing into which everybody was let.
/// Answers how many files and directories it was; a directory that is as it should be is not looked into.
///
/// # Errors
/// Something in it cannot be read or changed.
pub fn reclaim(root: &Path) -> Result<usize, StateError> {
    match fs::symlink_metadata(root) {
        Ok(meta) if given_to_a_group(&meta) => take_back(root, &meta),
        Err(error) if error.kind() != io::ErrorKind::NotFound => at(root, Err(error)),
        _ => Ok(0),
    }
}

fn given_to_a_group(meta: &fs::Metadata) -> bool {
    let ours = meta.uid() == nix::unistd::geteuid().as_raw();
    ours && !meta.is_symlink() && meta.mode() & 0o070 != 0 && meta.mode() & 0o007 == 0
}

/// A directory last of all in it: whoever is interrupted begins again.
fn take_back(path: &Path, meta: &fs::Metadata) -> Result<usize, StateError> {
    let mut taken = 1_usize;
    if meta.is_dir() {
        for entry in at(path, fs::read_dir(path))? {
            let entry = at(path, entry)?.path();
            let meta = at(&entry, fs::symlink_metadata(&entry))?;
            if given_to_a_group(&meta) {
                taken = taken.saturating_add(take_back(&entry, &meta)?);
            }
        }
    }
    at(
        path,
        fs::set_permissions(path, Permissions::from_mode(meta.mode() & 0o700)),
    )?;
    Ok(taken)
}

/// Refuses a directory that is not ours alone.
fn check_private_dir(path: &Path) -> Result<(), StateError> {
    let meta = at(path, fs::metadata(path))?;
    if !meta.is_dir() {
        return Err(StateError::Broken {
            path: path.display().to_string(),
            what: "is not a directory".to_owned(),
        });
    }
    check_owner(path, meta.uid())?;
    refuse_open_mode(path, meta.mode(), 0o700)
}

fn check_owner(path: &Path, owner: u32) -> Result<(), StateError> {
    if owner == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(StateError::Foreign {
        path: path.display().to_string(),
        owner,
    })
}

fn refuse_open_mode(path: &Path, mode: u32, want: u32) -> Result<(), StateError> {
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(StateError::Open {
        path: path.display().to_string(),
        mode: mode & 0o7777,
        want,
    })
}

/// Reads a file that only its owner may read; `None` if it does not exist.
pub fn read_private(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return at(path, Err(error)),
    };
    let meta = at(path, file.metadata())?;
    refuse_open_mode(path, meta.mode(), 0o600)?;
    let mut bytes = Vec::new();
    at(path, file.take(limit.saturating_add(1)).read_to_end(&mut bytes))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(StateError::Broken {
            path: path.display().to_string(),
            what: format!("is longer than {limit} bytes"),
        });
    }
    Ok(Some(bytes))
}

/// Writes a 0600 file in one step: old content or new content, also after a crash.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let temp = path.with_file_name(format!(".{name}.new"));
    let mut file = at(
        &temp,
        OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temp),
    )?;
    at(&temp, file.set_permissions(Permissions::from_mode(0o600)))?;
    at(&temp, file.write_all(bytes))?;
    at(&temp, file.sync_all())?;
    at(path, fs::rename(&temp, path))?;
    sync_parent(path)
}

/// Removes a file durably; a missing one is fine.
pub fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => at(path, Err(error)),
    }
}

fn sync_parent(path: &Path) -> Result<(), StateError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    at(parent, File::open(parent).and_then(|dir| dir.sync_all()))
}

const MAX_FILE: u64 = 4 << 20;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_instance_per_state_directory() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("state");
        let held = StateDir::open(&root).unwrap();
        assert!(matches!(StateDir::open(&root), Err(StateError::Locked { .. })));
        drop(held);
        StateDir::open(&root).unwrap();
    }

    #[test]
    fn a_state_directory_others_may_enter_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("state");
        drop(StateDir::open(&root).unwrap());
        for mode in [0o750, 0o705, 0o701] {
            fs::set_permissions(&root, Permissions::from_mode(mode)).unwrap();
            assert!(
                matches!(StateDir::open(&root), Err(StateError::Open { .. })),
                "{mode:o}"
            );
        }
    }

    #[test]
    fn what_a_kubelet_gave_to_a_group_is_taken_back_and_what_everybody_may_read_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("state");
        assert_eq!(reclaim(&root).unwrap(), 0, "there is none yet");
        let state = StateDir::open(&root).unwrap();
        state.dir("records/day").unwrap();
        state.write("records/day/one", b"one").unwrap();
        state.write("key", b"secret").unwrap();
        drop(state);
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().mode() & 0o7777;
        let set = |path: &str, mode| fs::set_permissions(root.join(path), Permissions::from_mode(mode)).unwrap();
        assert_eq!(reclaim(&root).unwrap(), 0, "nothing is wrong");
        // As for `fsGroup`: the group may do what the owner may, and what is made in a directory is the group's.
        let spoil = || {
            for folder in ["", "records", "records/day"] {
                set(folder, 0o2770);
            }
            for file in ["key", "lock", "records/day/one"] {
                set(file, 0o660);
            }
        };
        spoil();
        assert!(matches!(StateDir::open(&root), Err(StateError::Open { .. })));
        assert_eq!(reclaim(&root).unwrap(), 6);
        let state = StateDir::open(&root).unwrap();
        assert_eq!(state.read("key").unwrap().as_deref(), Some(&b"secret"[..]));
        assert_eq!((mode("records/day"), mode("records/day/one")), (0o700, 0o600));
        drop(state);
        // One file that everybody may read, and one that is somewhere else.
        let elsewhere = temp.path().join("elsewhere");
        fs::write(&elsewhere, b"").unwrap();
        fs::set_permissions(&elsewhere, Permissions::from_mode(0o660)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, root.join("link")).unwrap();
        spoil();
        set("key", 0o664);
        assert_eq!(reclaim(&root).unwrap(), 5);
        assert_eq!((mode("key"), mode("../elsewhere")), (0o664, 0o660));
        assert!(matches!(
            StateDir::open(&root).unwrap().read("key"),
            Err(StateError::Open { .. })
        ));
        set("", 0o755);
        assert_eq!(reclaim(&root).unwrap(), 0);
        assert!(matches!(StateDir::open(&root), Err(StateError::Open { .. })));
    }

    #[test]
    fn a_state_file_others_may_read_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        state.write("key", b"secret").unwrap();
        assert_eq!(fs::metadata(state.path("key")).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(state.path("key"), Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(state.read("key"), Err(StateError::Open { .. })));
    }

    #[test]
    fn counters_survive_restarts_and_never_repeat() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("state");
        let state = StateDir::open(&root).unwrap();
        assert_eq!(state.counter("deny").unwrap(), 0);
        assert_eq!(state.count("deny").unwrap(), 1);
        assert_eq!(state.count("deny").unwrap(), 2);
        drop(state);
        assert_eq!(StateDir::open(&root).unwrap().count("deny").unwrap(), 3);
    }
}
