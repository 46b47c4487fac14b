//! A certificate in files that somebody else renews, such as cert-manager by a volume of its Secret.
//!
//! Refuses a key that is not the certificate's: what was served before is served on, for the two files may be read while
//! they are replaced. They are looked at every few seconds; a watch of a file does not see a symlink that is swapped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use crate::served::Served;

/// Looked at so often.
const EVERY: Duration = Duration::from_secs(5);

/// Why files cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// One of them.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// The certificate cannot be used with the key.
    #[error("the certificate: {0}")]
    Certificate(rustls::Error),
}

/// PEM of a certificate, with those that lead to its authority, and of its key.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Files {
    /// Reads both.
    ///
    /// # Errors
    /// One is not there, or they do not match.
    pub fn read(&self) -> Result<CertifiedKey, FileError> {
        let file = |path: &Path, why: String| FileError::File {
            path: path.display().to_string(),
            why,
        };
        let chain = CertificateDer::pem_file_iter(&self.certificate);
        let chain = chain.and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| file(&self.certificate, error.to_string()))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| file(&self.key, error.to_string()))?;
        // It compares the key with the certificate.
        CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider())
            .map_err(FileError::Certificate)
    }

    /// Serves what they hold, again whenever that is another certificate.
    pub async fn follow(self, served: Arc<Served>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            match self.read() {
                Ok(found) if served.held().is_none_or(|held| held.cert != found.cert) => {
                    tracing::info!("another certificate is served");
                    served.swap(found);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the certificate cannot be read now"),
            }
        }
    }
}
