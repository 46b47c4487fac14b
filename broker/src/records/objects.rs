//! The store's objects on a directory: created once, synced with their folder, never overwritten.
//!
//! An object is written under a temporary name, synced, and linked to its own name, which fails if the name is
//! taken: equal bytes are success after a lost reply, other bytes are an error for an alarm. Refused: a root
//! that others may enter.
//! Invariant: a name that exists holds a whole object.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sidegate_policies::record::layout::{DirectoryStore, LogPath, Store};
use sidegate_policies::record::summary::SessionSummary;

use super::RecordsError;

/// Whether an object was made, or was there already with the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Created {
    New,
    Same,
}

/// The directory.
pub(super) struct Objects {
    root: PathBuf,
    cluster: String,
    store: DirectoryStore,
    /// Begins the names of this broker's temporary files: where several keep one store, all of them may be process 1.
    own: String,
    temporary: AtomicU64,
}

impl Objects {
    pub fn open(root: &Path, cluster: &str) -> Result<Objects, RecordsError> {
        let made = make_folder(root).and_then(|()| std::fs::symlink_metadata(root));
        let mode = made.map_err(|error| failed(root, error))?.permissions().mode();
        if mode & 0o077 != 0 {
            let error = io::Error::new(io::ErrorKind::PermissionDenied, "it must be for its owner only (0700)");
            return Err(failed(root, error));
        }
        Ok(Objects {
            root: root.to_owned(),
            cluster: cluster.to_owned(),
            store: DirectoryStore::new(root),
            own: uuid::Uuid::now_v7().simple().to_string(),
            temporary: AtomicU64::new(0),
        })
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, RecordsError> {
        match self.store.read(name) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&self.path(name), error)),
        }
    }

    pub fn list(&self, prefix: &str) -> Result<Vec<String>, RecordsError> {
        self.store
            .list(prefix)
            .map_err(|error| failed(&self.path(prefix), error))
    }

    /// Creates an object.
    pub fn create(&self, name: &str, bytes: &[u8]) -> Result<Created, RecordsError> {
        let path = self.path(name);
        match self.link_new(&path, bytes) {
            Ok(()) => Ok(Created::New),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match self.read(name)? {
                Some(there) if there == bytes => Ok(Created::Same),
                _ => Err(RecordsError::Differs(name.to_owned())),
            },
            Err(error) => Err(failed(&path, error)),
        }
    }

    /// Replaces a file outside the store proper.
    pub fn replace_private(&self, name: &str, bytes: &[u8]) -> Result<(), RecordsError> {
        let path = self.path(name);
        self.write_temporary(&path, bytes)
            .and_then(|temporary| std::fs::rename(&temporary, &path))
            .and_then(|()| sync_folder(&path))
            .map_err(|error| failed(&path, error))
    }

    /// Opens a journal for appending, cut to `keep` bytes. One of which something is to be kept must be there.
    pub fn journal(&self, name: &str, keep: u64) -> Result<File, RecordsError> {
        let path = self.path(name);
        let open = || {
            make_folder(path.parent().unwrap_or(&self.root))?;
            let file = OpenOptions::new()
                .append(true)
                .create(keep == 0)
                .mode(0o600)
                .open(&path)?;
            if file.metadata()?.len() < keep {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.set_len(keep)?;
            sync_folder(&path)?;
            Ok(file)
        };
        open().map_err(|error| failed(&path, error))
    }

    /// Gives a journal that can no longer be trusted another name.
    pub fn set_aside(&self, name: &str) -> Result<(), RecordsError> {
        let path = self.path(name);
        let aside = path.with_file_name(format!(".tmp-aside-{}-{}", self.own, self.next_temporary()));
        std::fs::rename(&path, aside).map_err(|error| failed(&path, error))
    }

    /// Length of a file; nothing where there is none.
    pub fn length(&self, name: &str) -> Result<Option<u64>, RecordsError> {
        let path = self.path(name);
        match std::fs::metadata(&path) {
            Ok(there) => Ok(Some(there.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&path, error)),
        }
    }

    pub fn remove(&self, name: &str) -> Result<(), RecordsError> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path, error)),
            _ => Ok(()),
        }
    }

    /// The objects of a log by first log number.
    pub fn of_log(&self, path: &LogPath) -> Result<Vec<String>, RecordsError> {
        self.list(&path.folder())
    }

    /// Summaries that are not among the known ones, which they join, oldest first; the newest `most` are looked at. Where a
    /// session has both, `close` wins over an orphan's.
    pub fn summaries(&self, known: &mut HashSet<String>, most: usize) -> Result<Vec<SessionSummary>, RecordsError> {
        let names = self.list(&format!("v1/{}/session", self.cluster))?;
        let names: HashSet<String> = names.into_iter().rev().take(most).collect();
        let mut found: Vec<SessionSummary> = Vec::new();
        for name in names.iter().filter(|name| !known.contains(*name)) {
            if name.ends_with(".orphan.json") && names.contains(&name.replace(".orphan.json", ".json")) {
                continue;
            }
            let bytes = self.read(name)?;
            match bytes.and_then(|bytes| serde_json::from_slice::<SessionSummary>(&bytes).ok()) {
                Some(summary) => found.push(summary),
                None => tracing::warn!(name, "a session summary cannot be read"),
            }
        }
        *known = names;
        found.sort_by_key(|summary| summary.started_us);
        Ok(found)
    }

    fn link_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.write_temporary(path, bytes)?;
        let linked = std::fs::hard_link(&temporary, path);
        std::fs::remove_file(&temporary)?;
        linked?;
        sync_folder(path)
    }

    fn write_temporary(&self, path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
        let folder = path.parent().unwrap_or(&self.root);
        make_folder(folder)?;
        let temporary = folder.join(format!(".tmp-{}-{}", self.own, self.next_temporary()));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        Ok(temporary)
    }

    fn next_temporary(&self) -> u64 {
        self.temporary.fetch_add(1, Ordering::Relaxed)
    }
}

pub(super) fn failed(path: &Path, error: io::Error) -> RecordsError {
    RecordsError::Io {
        path: path.display().to_string(),
        error,
    }
}

/// Makes a folder and syncs the folders that got a new entry, so that a crash loses none of them.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folder(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(folder),
    }
}

fn sync_folder(entry: &Path) -> io::Result<()> {
    match entry.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Ok(()),
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
