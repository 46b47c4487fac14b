//! The certificate that is served now; a handshake takes it as it is at that moment.
//!
//! Refuses nothing: whoever swaps has checked that key and certificate match. Without a certificate handshakes fail.
//! Invariant: connections that exist go on when it is swapped.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::ServerConfig;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What is served.
pub struct Served {
    held: ArcSwapOption<CertifiedKey>,
    not_after: AtomicI64,
    swapped: watch::Sender<u64>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Served")
    }
}

impl Default for Served {
    fn default() -> Self {
        Served {
            held: ArcSwapOption::default(),
            not_after: AtomicI64::new(0),
            swapped: watch::channel(0).0,
        }
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.held.load_full()
    }
}

impl Served {
    /// Serves this from the next handshake on.
    pub fn swap(&self, certified: CertifiedKey) {
        let end = certified.cert.first().and_then(|leaf| {
            let read = X509Certificate::from_der(leaf).ok();
            read.map(|(_, leaf)| leaf.validity().not_after.timestamp())
        });
        self.not_after.store(end.unwrap_or(0), Ordering::Relaxed);
        self.held.store(Some(Arc::new(certified)));
        self.swapped.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// What is served now.
    pub fn held(&self) -> Option<Arc<CertifiedKey>> {
        self.held.load_full()
    }

    /// When it ends, seconds since 1970; 0: there is none.
    pub fn not_after(&self) -> i64 {
        self.not_after.load(Ordering::Relaxed)
    }

    /// Told whenever it was swapped.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.swapped.subscribe()
    }
}

/// TLS 1.2 and 1.3 with what is served.
///
/// # Errors
/// The library has neither.
pub fn tls(served: Arc<Served>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(served);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
