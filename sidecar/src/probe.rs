//! Whether this sidecar serves, asked by its own program over a Unix socket: what the kubelet's probes run.
//!
//! A probe over TCP would go to the pod's address, where an agent could answer for a dead sidecar. The socket lies in a
//! folder only this user enters. Refuses nothing. Invariants: it is answered from the main thread, so that a deadlock
//! there shows; it says that listeners are bound, never what is allowed.

use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;

const SOCKET: &str = "probe";
const WORD: &[u8] = b"serving\n";
/// Longest wait of either side.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers probes.
pub struct Probed {
    listener: UnixListener,
}

impl Probed {
    /// Opens the socket in this folder, in place of one that an earlier process left.
    ///
    /// # Errors
    /// The folder cannot be made or written to.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = socket(folder);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Probed { listener })
    }

    /// Answers one probe after the other, for ever.
    pub async fn answer(&self) {
        loop {
            match self.listener.accept().await {
                // Whoever asked and went away again is nobody's fault.
                Ok((mut stream, _)) => drop(tokio::time::timeout(PATIENCE, stream.write_all(WORD)).await),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// Asks the sidecar that runs on this folder whether it serves.
///
/// # Errors
/// Nothing listens there, or it does not answer within a second.
pub fn ask(folder: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket(folder))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = [0; WORD.len()];
    stream.read_exact(&mut said)?;
    match said == *WORD {
        true => Ok(()),
        false => Err(io::Error::other("something else answers")),
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join(SOCKET)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sidecar_says_that_it_serves_and_a_dead_one_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own");
        assert!(ask(&own).is_err(), "nothing runs yet");
        let probed = Probed::open(&own).unwrap();
        let mode = std::fs::metadata(&own).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let asked = own.clone();
        let asking = std::thread::spawn(move || ask(&asked));
        tokio::select! {
            () = probed.answer() => {}
            () = async { while !asking.is_finished() { tokio::task::yield_now().await } } => {}
        }
        asking.join().unwrap().unwrap();
        drop(probed);
        assert!(ask(&own).is_err(), "its socket is left, and nobody listens");
        // A restarted container finds the socket of the one before.
        assert!(Probed::open(&own).is_ok());
    }

    #[test]
    fn a_sidecar_that_hangs_is_not_serving() {
        let folder = tempfile::tempdir().unwrap();
        let held = std::os::unix::net::UnixListener::bind(socket(folder.path())).unwrap();
        assert!(ask(folder.path()).is_err());
        drop(held);
    }
}
