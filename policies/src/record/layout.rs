//! Where things lie in a record store, and how a store is read.
//!
//! Names follow from content position, so an object is created once and never overwritten. Everything below
//! `v1/<cluster>/` is the store and may be copied away; wrapped session keys lie outside, or nothing could ever
//! be shredded. Refused: name parts that are no plain names.
//! Invariant: a path made here parses back to the same parts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Largest object anyone reads into memory.
pub const MAX_OBJECT: u64 = 64 << 20;
/// The namespace of the broker's own logs. No cluster can have it: Kubernetes allows no `_` in names.
pub const BROKER: &str = "_broker";

/// Which log, as its folder names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPath {
    /// Cluster.
    pub cluster: String,
    /// Namespace.
    pub namespace: String,
    /// Pod UID.
    pub pod_uid: String,
    /// Container instance.
    pub instance: u64,
}

impl LogPath {
    /// Refuses parts that are no plain names: letters, digits, `-`, `_`, `.`; no leading dot; at most 253.
    pub fn new(cluster: &str, namespace: &str, pod_uid: &str, instance: u64) -> Option<LogPath> {
        [cluster, namespace, pod_uid].into_iter().all(is_name).then(|| LogPath {
            cluster: cluster.to_owned(),
            namespace: namespace.to_owned(),
            pod_uid: pod_uid.to_owned(),
            instance,
        })
    }

    /// `v1/<cluster>/log/<namespace>/<pod-uid>/<instance>`.
    pub fn folder(&self) -> String {
        format!("v1/{}/log/{self}", self.cluster)
    }

    /// The object that begins with log number `first`.
    pub fn object(&self, first: u64) -> String {
        format!("{}/{first:020}.sgr", self.folder())
    }

    /// The landing journal of the log: what is not in an object yet.
    pub fn landing(&self) -> String {
        self.landing_of("")
    }

    /// The same where several brokers keep one store: each writes journals of its own, under its name.
    pub fn landing_of(&self, replica: &str) -> String {
        let dot = if replica.is_empty() { "" } else { "." };
        format!("v1/{}/landing/{self}{dot}{replica}.sgr", self.cluster)
    }

    /// Parses what stands behind `v1/<cluster>/landing/`: the log, and whose journal it is.
    pub fn parse_landing<'a>(cluster: &str, text: &'a str) -> Option<(LogPath, &'a str)> {
        let text = text.strip_suffix(".sgr")?;
        let instance = text.rfind('/')?.checked_add(1)?;
        let dot = text.get(instance..)?.find('.').map(|dot| instance.saturating_add(dot));
        let (log, replica) = match dot {
            Some(dot) => (
                text.get(..dot)?,
                text.get(dot.saturating_add(1)..).filter(|name| is_replica(name))?,
            ),
            None => (text, ""),
        };
        Some((LogPath::parse(cluster, log)?, replica))
    }

    /// Parses `<namespace>/<pod-uid>/<instance>`.
    pub fn parse(cluster: &str, text: &str) -> Option<LogPath> {
        let mut parts = text.split('/');
        let (namespace, pod_uid, instance) = (parts.next()?, parts.next()?, parts.next()?);
        let path = LogPath::new(cluster, namespace, pod_uid, instance.parse().ok()?)?;
        (parts.next().is_none() && path.to_string() == text).then_some(path)
    }
}

impl fmt::Display for LogPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.pod_uid, self.instance)
    }
}

/// A session's summary.
pub fn summary(cluster: &str, date: &str, session: &str, orphan: bool) -> String {
    let orphan = if orphan { ".orphan" } else { "" };
    format!("v1/{cluster}/session/{date}/{session}{orphan}.json")
}

/// Log number an object's name begins with.
pub fn object_first(name: &str) -> Option<u64> {
    let digits = name.rsplit('/').next()?.strip_suffix(".sgr")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// Whether a text may be a part of a path.
pub fn is_name(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !part.is_empty() && part.len() <= 253 && !part.starts_with('.') && part.bytes().all(plain)
}

/// Whether a text may name one of several brokers, as a pod's host name does: a-z, 0-9 and dashes, 63 at most.
pub fn is_replica(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= 63 && name.bytes().all(plain)
}

/// Reads a store. Behind a trait because a store may be a bucket one day.
pub trait Store {
    /// Paths of everything below `prefix`, sorted; none if there is nothing.
    fn list(&self, prefix: &str) -> io::Result<Vec<String>>;
    /// The whole object; an error of kind `NotFound` if there is none.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;
}

/// A store on a directory.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    root: PathBuf,
}

impl DirectoryStore {
    /// The store at `root`, the folder that holds `v1`.
    pub fn new(root: &Path) -> DirectoryStore {
        DirectoryStore { root: root.to_owned() }
    }

    fn walk(&self, folder: &str, out: &mut Vec<String>) -> io::Result<()> {
        let entries = match std::fs::read_dir(self.root.join(folder)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                out.push(format!("{folder}/?"));
                continue;
            };
            let path = format!("{folder}/{name}");
            if entry.file_type()?.is_dir() {
                self.walk(&path, out)?;
            } else if !name.starts_with(".tmp-") {
                out.push(path);
            }
        }
        Ok(())
    }
}

impl Store for DirectoryStore {
    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        let mut out = Vec::new();
        self.walk(prefix.trim_end_matches('/'), &mut out)?;
        out.sort_unstable();
        Ok(out)
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let path = self.root.join(path);
        if std::fs::metadata(&path)?.len() > MAX_OBJECT {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the object is too large"));
        }
        std::fs::read(path)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_parse_back_and_refuse_what_would_climb() {
        let path = LogPath::new("local", "agents", "0b7c-uid", 3).unwrap();
        assert_eq!(
            path.object(12),
            "v1/local/log/agents/0b7c-uid/3/00000000000000000012.sgr"
        );
        assert_eq!(LogPath::parse("local", &path.to_string()), Some(path.clone()));
        assert_eq!(object_first(&path.object(12)), Some(12));
        for bad in ["", "..", ".hidden", "a/b", "a b", "a\n"] {
            assert_eq!(LogPath::new("local", bad, "uid", 1), None);
        }
        assert_eq!(LogPath::parse("local", "a/b/01"), None);
    }

    #[test]
    fn journals_parse_back_with_whose_they_are() {
        let path = LogPath::new("local", "agents", "0b7c.uid", 3).unwrap();
        for replica in ["", "broker-2"] {
            let name = path.landing_of(replica);
            let inside = name.strip_prefix("v1/local/landing/").unwrap();
            assert_eq!(LogPath::parse_landing("local", inside), Some((path.clone(), replica)));
        }
        for bad in [
            "agents/uid/3",
            "agents/uid/3..sgr",
            "agents/uid/3.A.sgr",
            "agents/uid/3.a.b.sgr",
            "3.sgr",
        ] {
            assert_eq!(LogPath::parse_landing("local", bad), None, "{bad}");
        }
    }
}
