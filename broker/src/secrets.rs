//! Secrets, read anew for every lease: from a directory shaped like mounted Secrets, `<namespace>/<name>/<key>`, or from a
//! cluster, each by its name.
//!
//! Refuses files that their group or others may read, links that lead out of the Secret's own folder, and names
//! that are not Kubernetes names. The invariant: no path is ever built from anything but checked names.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tracing::Instrument as _;
use zeroize::Zeroizing;

use crate::spans;
use crate::task::blocking;

/// Why a Secret cannot be used. Names paths, never contents.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No folder was given.
    #[error("no --secrets folder was given")]
    NoFolder,
    /// Not there.
    #[error("there is no {0}")]
    Missing(String),
    /// Others may read it.
    #[error("{path}: others may read it (mode {mode:04o}); run `chmod 0600 {path}`")]
    Open {
        /// Which path.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// A link that leads elsewhere.
    #[error("{0}: leads out of the Secret's own folder")]
    Outside(String),
    /// A name that is no Kubernetes name.
    #[error("`{0}` is not a name")]
    Name(String),
    /// Too long, or not text.
    #[error("{0}: is longer than 64 KiB or not UTF-8")]
    Content(String),
    /// Its owner did not grant it to the broker.
    #[error("{path} is not granted to the broker; its owner runs: {grant}")]
    NotGranted {
        /// Which.
        path: String,
        /// The commands that grant it.
        grant: String,
    },
    /// The API server does not say.
    #[error("{path}: {why}")]
    Cluster {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// Which path.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl SecretError {
    /// Whether it may be otherwise in a moment, with nobody doing anything about it.
    pub fn is_passing(&self) -> bool {
        matches!(self, SecretError::Io { .. } | SecretError::Cluster { .. })
    }
}

const MAX_SECRET: u64 = 64 * 1024;

/// Where the Secrets of Targets are.
#[derive(Clone)]
pub enum Secrets {
    /// In a folder.
    Folder(SecretFolder),
    /// In the cluster.
    Cluster(Arc<dyn NamedSecrets>),
}

/// Secrets that are asked for by name.
pub trait NamedSecrets: Send + Sync {
    /// These keys of one Secret, in their order, as they are now.
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Vec<Zeroizing<String>>, SecretError>>;
}

impl Secrets {
    /// These keys of one Secret, in their order, as they are now.
    pub async fn read(
        &self,
        namespace: &str,
        name: &str,
        keys: &[&str],
    ) -> Result<Vec<Zeroizing<String>>, SecretError> {
        match self {
            Secrets::Folder(folder) => {
                let (folder, namespace, name) = (folder.clone(), namespace.to_owned(), name.to_owned());
                let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
                let path = format!("{namespace}/{name}");
                let read = move || keys.iter().map(|key| folder.read(&namespace, &name, key)).collect();
                let lost = || SecretError::Io {
                    path,
                    source: io::Error::other("the reader was lost"),
                };
                let read = blocking(read).instrument(spans::secret());
                read.await.unwrap_or_else(|| Err(lost()))
            }
            Secrets::Cluster(cluster) => {
                let read = cluster.read(namespace, name, keys);
                read.instrument(spans::secret()).await
            }
        }
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub struct SecretFolder(Option<PathBuf>);

impl SecretFolder {
    /// This folder, or none.
    pub fn new(folder: Option<PathBuf>) -> Self {
        SecretFolder(folder)
    }

    /// Reads one key. A single newline at the end, as editors leave it, does not belong to the value.
    pub fn read(&self, namespace: &str, name: &str, key: &str) -> Result<Zeroizing<String>, SecretError> {
        let root = self.0.as_deref().ok_or(SecretError::NoFolder)?;
        for part in [namespace, name, key] {
            check_name(part)?;
        }
        let folder = root.join(namespace).join(name);
        let path = folder.join(key);
        // Mounted Secrets are links (`key -> ..data/key`, `..data -> ..2026_…`): follow them, but only inside.
        let home = folder.canonicalize().map_err(|error| io_error(&path, error))?;
        let real = path.canonicalize().map_err(|error| io_error(&path, error))?;
        if !real.starts_with(&home) || !home.starts_with(root.canonicalize().map_err(|error| io_error(root, error))?) {
            return Err(SecretError::Outside(path.display().to_string()));
        }
        read_secret(&path, &real)
    }
}

fn read_secret(path: &Path, real: &Path) -> Result<Zeroizing<String>, SecretError> {
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(nofollow).unwrap_or(0))
        .open(real)
        .map_err(|error| io_error(path, error))?;
    let meta = file.metadata().map_err(|error| io_error(path, error))?;
    if meta.mode() & 0o077 != 0 {
        return Err(SecretError::Open {
            path: path.display().to_string(),
            mode: meta.mode() & 0o7777,
        });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    file.take(MAX_SECRET.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| io_error(path, error))?;
    let content = || SecretError::Content(path.display().to_string());
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_SECRET {
        return Err(content());
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| content())?;
    Ok(Zeroizing::new(text.strip_suffix('\n').unwrap_or(text).to_owned()))
}

fn check_name(name: &str) -> Result<(), SecretError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 253 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(SecretError::Name(name.to_owned()));
    }
    Ok(())
}

fn io_error(path: &Path, source: io::Error) -> SecretError {
    let path_text = path.display().to_string();
    if source.kind() == io::ErrorKind::NotFound {
        return SecretError::Missing(format!("file {path_text}"));
    }
    SecretError::Io {
        path: path_text,
        source,
    }
}

/// Problems of a secrets folder that are worth saying at start: the folder is missing or no folder.
pub fn check_folder(folder: &Path) -> Result<(), SecretError> {
    let meta = fs::metadata(folder).map_err(|error| io_error(folder, error))?;
    if meta.is_dir() {
        return Ok(());
    }
    Err(SecretError::Missing(format!(
        "file {} (it is not a folder)",
        folder.display()
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{symlink, PermissionsExt};

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let secret = temp.path().join("data/shop");
        fs::create_dir_all(&secret).unwrap();
        (temp, secret)
    }

    fn put(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_secret_is_read_anew_each_time_without_the_editors_newline() {
        let (temp, secret) = folder();
        let secrets = SecretFolder::new(Some(temp.path().to_owned()));
        put(&secret.join("password"), "one\n", 0o600);
        assert_eq!(*secrets.read("data", "shop", "password").unwrap(), "one");
        put(&secret.join("password"), "two", 0o400);
        assert!(fs::set_permissions(secret.join("password"), Permissions::from_mode(0o600)).is_ok());
        assert_eq!(*secrets.read("data", "shop", "password").unwrap(), "two");
    }

    #[test]
    fn a_secret_others_may_read_is_refused() {
        let (temp, secret) = folder();
        let secrets = SecretFolder::new(Some(temp.path().to_owned()));
        for mode in [0o640, 0o604, 0o644, 0o666] {
            put(&secret.join("password"), "x", mode);
            let refused = secrets.read("data", "shop", "password");
            assert!(matches!(refused, Err(SecretError::Open { .. })), "{mode:o}");
        }
    }

    #[test]
    fn links_are_followed_inside_the_secret_and_refused_outside() {
        let (temp, secret) = folder();
        let secrets = SecretFolder::new(Some(temp.path().to_owned()));
        fs::create_dir(secret.join("..2026")).unwrap();
        put(&secret.join("..2026/password"), "mounted", 0o600);
        symlink("..2026", secret.join("..data")).unwrap();
        symlink("..data/password", secret.join("password")).unwrap();
        assert_eq!(*secrets.read("data", "shop", "password").unwrap(), "mounted");
        put(&temp.path().join("elsewhere"), "x", 0o600);
        symlink("../../elsewhere", secret.join("username")).unwrap();
        assert!(matches!(
            secrets.read("data", "shop", "username"),
            Err(SecretError::Outside(_))
        ));
    }

    #[test]
    fn names_never_become_other_paths() {
        let (temp, _) = folder();
        let secrets = SecretFolder::new(Some(temp.path().to_owned()));
        for bad in ["..", "../x", "a/b", "", ".hidden", "a\0b"] {
            assert!(
                matches!(secrets.read("data", bad, "password"), Err(SecretError::Name(_))),
                "{bad:?}"
            );
        }
        assert!(matches!(
            secrets.read("data", "other", "password"),
            Err(SecretError::Missing(_))
        ));
        assert!(matches!(
            SecretFolder::new(None).read("a", "b", "c"),
            Err(SecretError::NoFolder)
        ));
    }
}
