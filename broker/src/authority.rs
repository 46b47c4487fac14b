//! The broker's own certificate authority (P-256) and the leaf both faces serve.
//!
//! On one machine the authority lies in the state directory and the leaf in memory; the replicas of a cluster share
//! both, swap them while they run, and may replace the authority: the new one is signed by the old one too, so that
//! whoever pinned the old one goes on. Refuses what does not fit together. The invariants: a leaf names loopback, where
//! the faces listen and what they are called by, and nothing else; it is renewed when two thirds of its life are over.

pub mod material;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoClientAuth, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::ServerConfig;

use crate::clock::Clock;
use crate::config::StartError;
use crate::seal::Sealer;
use crate::state::StateDir;
use material::{Material, MaterialError};

/// What is served now; a handshake takes it as it is at that moment, and so does a seal.
#[derive(Default)]
pub struct Served {
    held: ArcSwapOption<Held>,
    sealer: Arc<Sealer>,
}

/// A checked set.
pub struct Held {
    material: Material,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Served")
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.held.load().as_ref().map(|held| Arc::clone(&held.certified))
    }
}

impl Served {
    /// Serves this set from the next handshake on, if it fits together.
    pub fn swap(&self, material: Material) -> Result<(), MaterialError> {
        let certified = Arc::new(material.certified()?);
        self.sealer.renew(&material)?;
        self.held.store(Some(Arc::new(Held { material, certified })));
        Ok(())
    }

    /// The set served now.
    pub fn held(&self) -> Option<Arc<Held>> {
        self.held.load_full()
    }
}

impl Held {
    /// What it is made of.
    pub fn material(&self) -> &Material {
        &self.material
    }
}

/// Where the replicas of a cluster keep what they share.
pub trait Home: Send + Sync {
    /// Puts a set there in place of `before`, and serves it; or changes nothing. Blocks.
    fn put(&self, before: &Arc<Held>, next: Material) -> Result<(), AuthorityError>;

    /// Whether this process renews and replaces by itself.
    fn renews(&self) -> bool;
}

/// Why an authority was not changed. What was served is served on.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// It could not be made.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// Another replica was first; what it wrote is served.
    #[error("another replica changed it meanwhile")]
    Changed,
    /// The home that replicas share.
    #[error("it cannot be stored: {0}")]
    Shared(String),
    /// An authority in files cannot be replaced while it is pinned.
    #[error(
        "the authority of one machine lies in its state directory and is not replaced while it runs: stop the broker, \
         remove keys/ca.pem and keys/ca.p8, start it, and give every sidecar the new certificate"
    )]
    Files,
}

/// What became of a replaced authority.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rolled {
    /// Name of the new authority.
    pub authority: String,
    /// Until when it counts, seconds since 1970.
    pub until: i64,
}

/// The authority and a TLS configuration under it.
pub struct Authority {
    names: Vec<String>,
    served: Arc<Served>,
    tls: Arc<ServerConfig>,
    home: Option<Arc<dyn Home>>,
    /// The authority's certificate as of the start.
    ca_pem: String,
}

impl Authority {
    /// Loads the authority from the state directory, or makes it at the first start, and issues a leaf.
    pub fn open(state: &StateDir, names: &[String], clock: &dyn Clock) -> Result<Self, StartError> {
        let crypto = |error: MaterialError| StartError::crypto("the CA", error);
        state.dir("keys")?;
        let now = clock.now();
        let key = state.read_or_create("keys/ca.p8", || {
            material::new_key().map(|key| key.to_vec()).map_err(crypto)
        })?;
        let key = zeroize::Zeroizing::new(key);
        let certificate = state.read_or_create("keys/ca.pem", || {
            material::file_authority(&key, now)
                .map(String::into_bytes)
                .map_err(crypto)
        })?;
        let certificate = String::from_utf8(certificate).map_err(|error| StartError::crypto("the CA", error))?;
        let served = Arc::new(Served::default());
        let material = Material::under(key, certificate, names, now).map_err(crypto)?;
        served.swap(material).map_err(crypto)?;
        Authority::over(names.to_vec(), served, None)
    }

    /// Over a set that a home keeps up to date. It must hold one.
    pub fn over(names: Vec<String>, served: Arc<Served>, home: Option<Arc<dyn Home>>) -> Result<Self, StartError> {
        let tls = server_config(Arc::clone(&served), None)?;
        let pem = served.held().map(|held| held.material.authority_pem().to_owned());
        Ok(Authority {
            names,
            served,
            tls: Arc::new(tls),
            home,
            ca_pem: pem.unwrap_or_default(),
        })
    }

    /// The authority's certificate as of the start, to be pinned by sidecars.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
    pub fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tls)
    }

    /// The same, with a verifier of clients' certificates.
    ///
    /// # Errors
    /// The versions of TLS do not fit the provider.
    pub fn tls_with(&self, clients: Option<Arc<dyn ClientCertVerifier>>) -> Result<ServerConfig, StartError> {
        server_config(Arc::clone(&self.served), clients)
    }

    /// When the leaf ends, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.served.held().map_or(0, |held| held.material.leaf_until())
    }

    /// The set served now.
    pub fn held(&self) -> Option<Arc<Held>> {
        self.served.held()
    }

    /// Seals bundles, with a key of this process under the authority.
    pub fn sealer(&self) -> Arc<Sealer> {
        Arc::clone(&self.served.sealer)
    }

    /// Renews what is due. Called again and again; blocks. `now` in seconds. Answers whether something changed.
    pub fn keep(&self, now: i64) -> Result<bool, AuthorityError> {
        let Some(held) = self.served.held() else {
            return Ok(false);
        };
        let may_roll = match &self.home {
            Some(home) if !home.renews() => return Ok(false),
            Some(_) => true,
            None => false,
        };
        let Some(next) = held.material.due(&self.names, may_roll, now)? else {
            return Ok(false);
        };
        self.put(&held, next)?;
        Ok(true)
    }

    /// Replaces the authority at once: new key, signed by itself and by the old one. Blocks. `now` in seconds.
    pub fn roll(&self, now: i64) -> Result<Rolled, AuthorityError> {
        if self.home.is_none() {
            return Err(AuthorityError::Files);
        }
        let held = self.served.held().ok_or(AuthorityError::Changed)?;
        let next = held.material.rolled(&self.names, now)?;
        let (authority, until) = next.authority();
        self.put(&held, next)?;
        Ok(Rolled { authority, until })
    }

    fn put(&self, before: &Arc<Held>, next: Material) -> Result<(), AuthorityError> {
        match &self.home {
            Some(home) => home.put(before, next),
            None => Ok(self.served.swap(next)?),
        }
    }
}

fn server_config(
    served: Arc<Served>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, StartError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StartError::crypto("TLS", error))?
        .with_client_cert_verifier(clients.unwrap_or_else(|| Arc::new(NoClientAuth)))
        .with_cert_resolver(served);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
