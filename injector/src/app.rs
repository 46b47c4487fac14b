//! The composition root: the one place where an injector is put together, for `main` and tests alike.
//!
//! Refuses to start without a certificate whose key is its own, and without having heard of every kind once: it never
//! answers from half of what is known. Invariant: it holds no secret but the key of its certificate.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;

use crate::install::Install;
use crate::kubernetes::{Absent, Cluster};
use crate::server::{serve, Webhook};
use crate::task::Tasks;

/// Tasks have so long to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an injector is started with.
#[derive(Debug, Clone)]
pub struct InjectorConfig {
    /// Where it listens. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// PEM: its certificate, and those that lead to its authority.
    pub certificate: PathBuf,
    /// PEM: the key of the certificate.
    pub key: PathBuf,
    /// What sidecars are told.
    pub install: Install,
    /// A kubeconfig; absent: the service account of this pod.
    pub kubeconfig: Option<PathBuf>,
    /// The injector's own namespace, whose pods are left alone.
    pub namespace: String,
}

/// Why an injector did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file with the certificate or the key.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// The certificate cannot be used.
    #[error("the certificate: {0}")]
    Certificate(rustls::Error),
    /// The address cannot be bound.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] Absent),
}

/// An injector that runs.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    tasks: Tasks,
}

impl Running {
    /// Ends it; reviews under way are answered.
    pub async fn shutdown(self) {
        self.tasks.shutdown(PATIENCE).await;
    }
}

/// Starts an injector; it serves when this returns.
///
/// # Errors
/// The certificate, the address or the API server cannot be used.
pub async fn start(config: InjectorConfig) -> Result<Running, StartError> {
    let tls = Arc::new(tls(&config.certificate, &config.key)?);
    let listen = |error| StartError::Listen(config.listen, error);
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let tasks = Tasks::default();
    let cluster = match Cluster::follow(config.kubeconfig.as_deref(), &tasks).await {
        Ok(cluster) => cluster,
        Err(error) => {
            tasks.shutdown(PATIENCE).await;
            return Err(error.into());
        }
    };
    let webhook = Arc::new(Webhook::new(config.install, config.namespace, cluster));
    tasks.spawn(serve(listener, tls, webhook, tasks.clone()));
    Ok(Running { address, tasks })
}

/// TLS 1.2 and 1.3 with this certificate; rustls checks that the key is the certificate's.
fn tls(certificate: &Path, key: &Path) -> Result<ServerConfig, StartError> {
    let file = |path: &Path, why: String| StartError::File {
        path: path.display().to_string(),
        why,
    };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| file(certificate, error.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(StartError::Certificate)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
