//! The journal volume: one directory per log, one file per segment, appended to and never rewritten.
//!
//! Files are 0600, opened without following links, and allocated in full beforehand with room for their footer,
//! so that a full disk can still be closed properly. Refused: a directory others may enter.
//! Invariant: a failed append leaves the file as long as it was, or the file is never appended to again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags};

/// Most bytes that room is made for before they are read.
const READ_AT_ONCE: usize = 1 << 20;

/// Where segment files live. Behind a trait so that tests can fill disks and tear writes.
pub trait Volume: Send + Sync + 'static {
    /// Makes a log's directory.
    fn create_log(&self, log: &str) -> io::Result<()>;
    /// Makes a segment file with `reserve` bytes allocated.
    fn create(&self, log: &str, file: &str, reserve: u64) -> io::Result<Box<dyn SegmentFile>>;
    /// Reads up to `len` bytes at `offset`.
    fn read(&self, log: &str, file: &str, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Names of the logs.
    fn logs(&self) -> io::Result<Vec<String>>;
    /// Names of a log's files with their lengths, by name.
    fn files(&self, log: &str) -> io::Result<Vec<(String, u64)>>;
    /// Removes a file.
    fn remove(&self, log: &str, file: &str) -> io::Result<()>;
    /// Removes an empty log.
    fn remove_log(&self, log: &str) -> io::Result<()>;
}

/// An open segment file.
pub trait SegmentFile: Send {
    /// Appends all of `bytes`, or fails; after a failure [`SegmentFile::cut`] must succeed before the next append.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the file to `len` bytes, on which the next append goes on.
    fn cut(&mut self, len: u64) -> io::Result<()>;
}

/// The volume on a directory.
#[derive(Debug, Clone)]
pub struct DirectoryVolume {
    root: PathBuf,
}

impl DirectoryVolume {
    /// Opens, or makes, the directory; refuses one that others may enter.
    pub fn open(root: &Path) -> io::Result<DirectoryVolume> {
        make_private(root)?;
        let mode = std::fs::symlink_metadata(root)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{} must be for its owner only (0700)", root.display()),
            ));
        }
        Ok(DirectoryVolume { root: root.to_owned() })
    }

    fn path(&self, log: &str, file: &str) -> PathBuf {
        self.root.join(log).join(file)
    }
}

impl Volume for DirectoryVolume {
    fn create_log(&self, log: &str) -> io::Result<()> {
        make_private(&self.root.join(log))
    }

    fn create(&self, log: &str, file: &str, reserve: u64) -> io::Result<Box<dyn SegmentFile>> {
        let path = self.path(log, file);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(nofollow())
            .open(&path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, reserve) {
            // A file system that cannot reserve still records; it only loses the promise about full disks.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(Box::new(file)),
            Err(error) => {
                // What was allocated so far goes back to the disk that is too full for it.
                let _ = std::fs::remove_file(&path);
                Err(error.into())
            }
        }
    }

    fn read(&self, log: &str, file: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(nofollow())
            .open(self.path(log, file))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut out = Vec::with_capacity(len.min(READ_AT_ONCE));
        file.take(u64::try_from(len).unwrap_or(u64::MAX))
            .read_to_end(&mut out)?;
        Ok(out)
    }

    fn logs(&self) -> io::Result<Vec<String>> {
        names(&self.root)
    }

    fn files(&self, log: &str) -> io::Result<Vec<(String, u64)>> {
        names(&self.root.join(log))?
            .into_iter()
            .map(|name| Ok((name.clone(), std::fs::symlink_metadata(self.path(log, &name))?.len())))
            .collect()
    }

    fn remove(&self, log: &str, file: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(log, file))
    }

    fn remove_log(&self, log: &str) -> io::Result<()> {
        std::fs::remove_dir(self.root.join(log))
    }
}

impl SegmentFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)?;
        self.seek(SeekFrom::Start(len)).map(drop)
    }
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn make_private(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn nofollow() -> i32 {
    i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0)
}
