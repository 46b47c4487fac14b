//! TLS towards the agent: an authority made at start, in memory, for loopback names only.
//!
//! It lets clients that insist on TLS connect; it proves nothing to anybody else, and its key never leaves the
//! process. Nothing depends on the agent verifying it.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::{provider, TlsError};

/// The agent's side of TLS.
pub struct AgentTls {
    plain: Arc<ServerConfig>,
    ca_pem: String,
}

impl AgentTls {
    /// Makes the authority and its one certificate.
    pub fn new() -> Result<Self, TlsError> {
        let failed = |error: rcgen::Error| TlsError::Authority(error.to_string());
        let ca_key = KeyPair::generate().map_err(failed)?;
        let mut ca = CertificateParams::new(Vec::new()).map_err(failed)?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.distinguished_name.push(DnType::CommonName, "Sidegate sidecar");
        let ca_certificate = ca.self_signed(&ca_key).map_err(failed)?;
        let issuer = Issuer::new(ca, ca_key);

        let key = KeyPair::generate().map_err(failed)?;
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let leaf = CertificateParams::new(names).map_err(failed)?;
        let leaf = leaf.signed_by(&key, &issuer).map_err(failed)?;

        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let refused = |error: rustls::Error| TlsError::Authority(error.to_string());
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .map_err(refused)?;
        Ok(AgentTls {
            plain: Arc::new(config),
            ca_pem: ca_certificate.pem(),
        })
    }

    /// An acceptor. With `alpn`, a client that offers protocols must offer this one.
    pub fn acceptor(&self, alpn: Option<&'static [u8]>) -> TlsAcceptor {
        let Some(protocol) = alpn else {
            return TlsAcceptor::from(self.plain.clone());
        };
        let mut config = (*self.plain).clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }
}
