//! The broker's own certificate authority (P-256, in the state directory) and the leaf both faces serve.
//!
//! Refuses nothing at run time. The invariant: the authority's key never leaves the state directory; a leaf is
//! made anew at each start and names loopback, where the faces listen and what they are called by, and nothing else.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::clock::Clock;
use crate::config::StartError;
use crate::state::StateDir;

/// The authority and a TLS configuration under it.
pub struct Authority {
    ca_pem: String,
    tls: Arc<ServerConfig>,
    not_after: i64,
}

const YEAR: i64 = 365 * 24 * 3600;

impl Authority {
    /// Loads the authority, or makes it at the first start, and issues this start's leaf.
    pub fn open(state: &StateDir, names: &[String], clock: &dyn Clock) -> Result<Self, StartError> {
        state.dir("keys")?;
        let key = load_key(state)?;
        let issuer = Issuer::new(ca_params(), &key);
        let ca_pem = state.read_or_create("keys/ca.pem", || {
            let mut params = ca_params();
            validity(&mut params, clock.now(), YEAR.saturating_mul(10));
            let cert = params
                .self_signed(&key)
                .map_err(|error| StartError::crypto("the CA", error))?;
            Ok::<_, StartError>(cert.pem().into_bytes())
        })?;
        let leaf_key = KeyPair::generate().map_err(|error| StartError::crypto("a TLS key", error))?;
        let params = leaf_params(names, clock.now())?;
        let not_after = params.not_after.unix_timestamp();
        let leaf = params
            .signed_by(&leaf_key, &issuer)
            .map_err(|error| StartError::crypto("a TLS certificate", error))?;
        Ok(Authority {
            ca_pem: String::from_utf8(ca_pem).map_err(|error| StartError::crypto("the CA", error))?,
            tls: Arc::new(server_config(leaf.der().clone(), &leaf_key)?),
            not_after,
        })
    }

    /// The authority's certificate, to be pinned by sidecars.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// When the leaf ends, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
    pub fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tls)
    }
}

fn load_key(state: &StateDir) -> Result<KeyPair, StartError> {
    let bytes = state.read_or_create("keys/ca.p8", || {
        let key = KeyPair::generate().map_err(|error| StartError::crypto("the CA key", error))?;
        Ok::<_, StartError>(key.serialize_der())
    })?;
    KeyPair::try_from(bytes.as_slice()).map_err(|error| StartError::crypto("the CA key", error))
}

/// The same names and usages at every start, so that a leaf made now chains to the certificate made then.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Sidegate broker CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(names: &[String], now: i64) -> Result<CertificateParams, StartError> {
    let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let specified = |name: &&String| name.parse::<IpAddr>().map_or(true, |address| !address.is_unspecified());
    all.extend(names.iter().filter(specified).cloned());
    all.sort();
    all.dedup();
    // Addresses among them become addresses in the certificate.
    let mut params = CertificateParams::new(all).map_err(|error| StartError::crypto("a TLS certificate", error))?;
    params.distinguished_name.push(DnType::CommonName, "Sidegate broker");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, YEAR);
    Ok(params)
}

/// From a day ago, as clocks differ.
fn validity(params: &mut CertificateParams, now: i64, seconds: i64) {
    let date = |seconds: i64| {
        let date = jiff::Timestamp::from_second(seconds).map(|time| time.to_zoned(jiff::tz::TimeZone::UTC).date());
        date.map_or_else(
            |_| rcgen::date_time_ymd(2049, 12, 31),
            |date| {
                let month = u8::try_from(date.month()).unwrap_or(1);
                let day = u8::try_from(date.day()).unwrap_or(1);
                rcgen::date_time_ymd(i32::from(date.year()), month, day)
            },
        )
    };
    params.not_before = date(now.saturating_sub(24 * 3600));
    params.not_after = date(now.saturating_add(seconds));
}

fn server_config(leaf: CertificateDer<'static>, key: &KeyPair) -> Result<ServerConfig, StartError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StartError::crypto("TLS", error))?
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)
        .map_err(|error| StartError::crypto("TLS", error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
