//! Keys and their certificates (P-256), as an authority's or a server's.
//!
//! Pure: it keeps nothing and asks nobody. Refuses a key that is not the certificate's. Invariants: an authority has a
//! name of its own, so that its certificates are not taken for another one's; a server's certificate is for serving and
//! nothing else, and ends before its authority.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

/// Seconds of a day.
pub const DAY: i64 = 24 * 3600;

/// Why a certificate cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It could not be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// No random bytes.
    #[error("no random bytes")]
    Random,
    /// It is not what it should be.
    #[error("the authority is damaged: {0}")]
    Damaged(&'static str),
}

/// A key and its certificate. No Debug: it holds a private key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pair {
    /// Common name of the subject.
    pub name: String,
    /// PKCS #8, base64url.
    key: String,
    /// PEM.
    pub certificate: String,
    /// When it was made, seconds since 1970.
    pub made: i64,
    /// Its end, seconds since 1970.
    pub until: i64,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Pair {
    /// Of a key (PKCS #8) and a certificate (PEM) that exist.
    pub fn given(name: &str, key: &[u8], certificate: String, made: i64, until: i64) -> Self {
        Pair {
            name: name.to_owned(),
            key: URL_SAFE_NO_PAD.encode(key),
            certificate,
            made,
            until,
        }
    }

    /// A new authority whose name begins like this, with so many more below it. Times in seconds.
    ///
    /// # Errors
    /// There are no random bytes, or the library does not make it.
    pub fn authority(family: &str, below: u8, now: i64, life: i64) -> Result<Self, CertificateError> {
        let mut id = [0; 4];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| CertificateError::Random)?;
        let name = format!("{family} {:08x}", u32::from_be_bytes(id));
        let until = now.saturating_add(life);
        let mut params = authority_params(&name, below);
        validity(&mut params, now, until);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Pair::of(&name, &key, certificate, now, until))
    }

    /// A server's certificate under this authority; addresses among the names become addresses in it. Times in seconds.
    ///
    /// # Errors
    /// A name is none, or the library does not make it.
    pub fn leaf(&self, name: &str, names: Vec<String>, now: i64, life: i64) -> Result<Self, CertificateError> {
        let mut params = CertificateParams::new(names)?;
        let until = now.saturating_add(life).min(self.until);
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, now, until);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer()?)?.pem();
        Ok(Pair::of(name, &key, certificate, now, until))
    }

    fn of(name: &str, key: &KeyPair, certificate: String, made: i64, until: i64) -> Self {
        let bytes = Zeroizing::new(key.serialize_der());
        Pair::given(name, &bytes, certificate, made, until)
    }

    /// Its key as the library wants it.
    ///
    /// # Errors
    /// It is none.
    pub fn key_pair(&self) -> Result<KeyPair, CertificateError> {
        Ok(KeyPair::try_from(self.pkcs8()?.as_slice())?)
    }

    /// It, as whoever signs.
    ///
    /// # Errors
    /// Its key is none.
    pub fn issuer(&self) -> Result<Issuer<'static, KeyPair>, CertificateError> {
        Ok(Issuer::new(authority_params(&self.name, 0), self.key_pair()?))
    }

    /// What a handshake needs: its certificate, and those above it.
    ///
    /// # Errors
    /// The key is not the certificate's.
    pub fn certified(&self, above: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, CertificateError> {
        let mut chain = vec![der(&self.certificate)?];
        chain.extend(above);
        let key = self.pkcs8()?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
        // It compares the key with the certificate.
        CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|_| CertificateError::Damaged("the leaf's key is not that of its certificate"))
    }

    /// Whether two thirds of its life are over.
    pub fn is_due(&self, now: i64) -> bool {
        let life = self.until.saturating_sub(self.made);
        now >= self.made.saturating_add(life.div_euclid(3).saturating_mul(2))
    }

    fn pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, CertificateError> {
        let key = URL_SAFE_NO_PAD.decode(&self.key);
        key.map(Zeroizing::new)
            .map_err(|_| CertificateError::Damaged("a key is not base64url"))
    }
}

/// A certificate from its PEM.
///
/// # Errors
/// It is none.
pub fn der(pem: &str) -> Result<CertificateDer<'static>, CertificateError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CertificateError::Damaged("a certificate is not PEM"))
}

/// What an authority of this name has in its certificate, with so many more authorities below it.
pub fn authority_params(name: &str, below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// From a day ago, as clocks differ.
pub fn validity(params: &mut CertificateParams, now: i64, until: i64) {
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
    params.not_before = date(now.saturating_sub(DAY));
    // A day longer than it is used: the end of a certificate is a date here.
    params.not_after = date(until.saturating_add(DAY));
}
