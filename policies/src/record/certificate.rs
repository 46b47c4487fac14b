//! Who vouches for a record key: the broker's certificate over it, and the ring of public keys to check it with.
//!
//! A certificate is a compact JWS, ES256, `typ: sidegate-record-key+jwt`; nothing else is accepted. The ring
//! holds the broker's P-256 keys for certificates and the Ed25519 keys that sign checkpoints: public keys only.
//! Invariant: a certificate verifies only under a key of the ring that was given.

use aws_lc_rs::signature::{UnparsedPublicKey, ECDSA_P256_SHA256_FIXED};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use serde::{Deserialize, Serialize};

use crate::record::footer::decode_key;
use crate::record::tlog::VerifierKey;

/// Public keys that records are verified with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring {
    certificates: Vec<(Option<String>, [u8; 65])>,
    /// Keys that sign checkpoints.
    pub checkpoints: Vec<VerifierKey>,
}

/// A key file: `--keys FILE`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KeyFile {
    /// JWKs of the record ring.
    #[serde(default)]
    pub keys: Vec<serde_json::Value>,
    /// Verifier keys of checkpoints (`name+hash+key`).
    #[serde(default)]
    pub checkpoints: Vec<String>,
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCertificate {
    /// The Ed25519 key.
    pub key: [u8; 32],
    /// Pod it was certified for.
    pub pod_uid: String,
    /// Container instance.
    pub instance: u64,
    /// Seconds since 1970.
    pub not_before: u64,
    /// Seconds since 1970.
    pub expires: u64,
}

/// Why a certificate is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not a certificate of the one form there is.
    #[error("the key certificate has a wrong form")]
    Form,
    /// No key of the ring signed it.
    #[error("the key certificate is not signed by a known key")]
    Signature,
}

#[derive(Deserialize)]
struct JoseHeader {
    typ: String,
    alg: String,
    #[serde(default)]
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    aud: Audience,
    #[serde(default)]
    nbf: Option<u64>,
    iat: u64,
    exp: u64,
    cnf: Confirmation,
    sidegate: Workload,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Confirmation {
    jwk: OkpKey,
}

#[derive(Deserialize)]
struct OkpKey {
    kty: String,
    crv: String,
    x: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Workload {
    pod_uid: String,
    instance: u64,
}

#[derive(Deserialize)]
struct EcKey {
    kty: String,
    crv: String,
    x: String,
    y: String,
    #[serde(default)]
    kid: Option<String>,
}

impl Ring {
    /// Adds a P-256 JWK; false if it is none.
    pub fn add_jwk(&mut self, jwk: &serde_json::Value) -> bool {
        let Ok(key) = EcKey::deserialize(jwk) else {
            return false;
        };
        let (Some(x), Some(y)) = (decode_key(&key.x), decode_key(&key.y)) else {
            return false;
        };
        if key.kty != "EC" || key.crv != "P-256" {
            return false;
        }
        let mut point = [4u8; 65];
        let (_, coordinates) = point.split_at_mut(1);
        let (left, right) = coordinates.split_at_mut(32);
        left.copy_from_slice(&x);
        right.copy_from_slice(&y);
        self.certificates.push((key.kid, point));
        true
    }

    /// Adds everything a key file holds; false if something in it is no key.
    pub fn add_file(&mut self, file: &KeyFile) -> bool {
        let mut good = true;
        for jwk in &file.keys {
            good &= self.add_jwk(jwk);
        }
        for key in &file.checkpoints {
            match VerifierKey::parse(key) {
                Some(key) => self.checkpoints.push(key),
                None => good = false,
            }
        }
        good
    }

    /// Whether there is nothing to verify a certificate with.
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    /// Reads and verifies a certificate. Its times are for the caller to judge.
    pub fn certificate(&self, jws: &str) -> Result<KeyCertificate, CertificateError> {
        let (signed, signature) = jws.rsplit_once('.').ok_or(CertificateError::Form)?;
        let (header, claims) = signed.split_once('.').ok_or(CertificateError::Form)?;
        let header: JoseHeader = part(header)?;
        let claims: Claims = part(claims)?;
        let audience = match &claims.aud {
            Audience::One(one) => one.as_str(),
            Audience::Many(many) => many.first().filter(|_| many.len() == 1).map_or("", String::as_str),
        };
        let key = &claims.cnf.jwk;
        let right = header.typ == "sidegate-record-key+jwt"
            && header.alg == "ES256"
            && audience == "sidegate-records"
            && (key.kty.as_str(), key.crv.as_str()) == ("OKP", "Ed25519");
        if !right {
            return Err(CertificateError::Form);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| CertificateError::Form)?;
        self.signed_by(&header, signed.as_bytes(), &signature)?;
        Ok(KeyCertificate {
            key: decode_key(&key.x).ok_or(CertificateError::Form)?,
            pod_uid: claims.sidegate.pod_uid,
            instance: claims.sidegate.instance,
            not_before: claims.nbf.unwrap_or(claims.iat),
            expires: claims.exp,
        })
    }

    fn signed_by(&self, header: &JoseHeader, signed: &[u8], signature: &[u8]) -> Result<(), CertificateError> {
        self.certificates
            .iter()
            .filter(|(kid, _)| kid.is_none() || header.kid.is_none() || *kid == header.kid)
            .any(|(_, point)| {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                    .verify(signed, signature)
                    .is_ok()
            })
            .then_some(())
            .ok_or(CertificateError::Signature)
    }
}

fn part<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, CertificateError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CertificateError::Form)?;
    serde_json::from_slice(&bytes).map_err(|_| CertificateError::Form)
}
