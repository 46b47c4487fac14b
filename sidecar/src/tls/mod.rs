//! TLS on both sides: verified towards targets and broker, our own throw-away authority towards the agent.
//!
//! One provider (aws-lc-rs), TLS 1.2 up. Towards a target chain and name are always verified; there is no switch
//! that turns it off, only Targets that say they have no TLS at all.

pub mod agent;
pub mod binding;
pub mod client;

use std::sync::Arc;

/// Why TLS cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// The authorities could not be read.
    #[error("the trusted authorities cannot be read: {0}")]
    Roots(String),
    /// The name cannot stand in a certificate.
    #[error("`{0}` is no name a certificate could carry")]
    Name(String),
    /// The handshake failed.
    #[error("{0}")]
    Handshake(String),
    /// Our own authority could not be made.
    #[error("the local authority could not be made: {0}")]
    Authority(String),
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
