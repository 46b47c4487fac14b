//! Client configurations: the authorities of one Target or the system's, chain and name verified.
//!
//! Refuses an empty set of authorities. Session tickets are kept per configuration only, so nothing of one Target's
//! TLS is reused for another.

use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::CertificateDer;

use super::{provider, TlsError};

/// A configuration, or why there is none.
pub type ClientTls = Result<Arc<ClientConfig>, TlsError>;

/// The system's authorities, read at first use.
#[derive(Default)]
pub struct Roots(OnceLock<Result<Arc<RootCertStore>, TlsError>>);

impl Roots {
    /// A configuration that trusts these PEM authorities, or the system's.
    pub fn client(&self, ca_pem: Option<&str>) -> ClientTls {
        let roots = match ca_pem {
            Some(pem) => Arc::new(store(pem)?),
            None => self.0.get_or_init(system).clone()?,
        };
        config(roots)
    }
}

/// A configuration that trusts exactly these authorities.
pub fn pinned(ca_pem: &str) -> ClientTls {
    config(Arc::new(store(ca_pem)?))
}

fn config(roots: Arc<RootCertStore>) -> ClientTls {
    let versions = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| TlsError::Roots(error.to_string()))?;
    Ok(Arc::new(versions.with_root_certificates(roots).with_no_client_auth()))
}

/// The authorities of a PEM text, of which there must be one at least.
pub(crate) fn store(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| TlsError::Roots(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| TlsError::Roots(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Roots("no certificate in it".to_owned()));
    }
    Ok(roots)
}

fn system() -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // One unreadable certificate among many is not ours to judge; none at all is.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(TlsError::Roots("the system has none".to_owned()));
    }
    Ok(Arc::new(roots))
}
