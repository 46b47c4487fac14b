//! Whether a certificate is taken by whoever holds a caBundle: as the API server checks it, before it must.
//!
//! Refuses an empty bundle. Invariant: nothing counts as verified that was not, against the very bundle that is in force.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier as _;
use rustls::client::WebPkiServerVerifier;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Within this we answer ourselves.
const DIAL: Duration = Duration::from_secs(2);

/// Why a caBundle does not take what is served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// The bundle is not usable.
    #[error("the caBundle holds no certificate")]
    Bundle,
    /// The name is none.
    #[error("`{0}` is not a server's name")]
    Name(String),
    /// It does not verify.
    #[error("the caBundle does not take the certificate: {0}")]
    Certificate(String),
    /// Nobody answers.
    #[error("{0} does not answer: {1}")]
    Silent(SocketAddr, String),
}

fn roots(bundle: &str) -> Result<Arc<RootCertStore>, Distrust> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        let certificate = certificate.map_err(|_| Distrust::Bundle)?;
        roots.add(certificate).map_err(|_| Distrust::Bundle)?;
    }
    match roots.is_empty() {
        true => Err(Distrust::Bundle),
        false => Ok(Arc::new(roots)),
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, Distrust> {
    ServerName::try_from(name.to_owned()).map_err(|_| Distrust::Name(name.to_owned()))
}

/// Whether a chain is taken for a server of this name at `now`, seconds since 1970.
///
/// # Errors
/// Why not.
pub fn verifies(chain: &[CertificateDer<'_>], bundle: &str, name: &str, now: i64) -> Result<(), Distrust> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(bundle)?, provider).build();
    let verifier = verifier.map_err(|_| Distrust::Bundle)?;
    let Some((leaf, rest)) = chain.split_first() else {
        return Err(Distrust::Certificate("there is none".to_owned()));
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    let verified = verifier.verify_server_cert(leaf, rest, &server_name(name)?, &[], now);
    verified
        .map(|_| ())
        .map_err(|error| Distrust::Certificate(error.to_string()))
}

/// Calls an address as the API server would, and hangs up once it is who it should be.
///
/// # Errors
/// It does not answer, or is not taken.
pub async fn dial(address: SocketAddr, bundle: &str, name: &str) -> Result<(), Distrust> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| Distrust::Bundle)?
        .with_root_certificates(roots(bundle)?)
        .with_no_client_auth();
    let name = server_name(name)?;
    let shaken = async {
        let silent = |error: std::io::Error| Distrust::Silent(address, error.to_string());
        let stream = TcpStream::connect(address).await.map_err(silent)?;
        let connector = TlsConnector::from(Arc::new(config));
        let shaken = connector.connect(name, stream).await;
        shaken
            .map(drop)
            .map_err(|error| Distrust::Certificate(error.to_string()))
    };
    match tokio::time::timeout(DIAL, shaken).await {
        Ok(shaken) => shaken,
        Err(_) => Err(Distrust::Silent(address, format!("not within {} s", DIAL.as_secs()))),
    }
}
