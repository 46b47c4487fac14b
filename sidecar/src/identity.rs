//! Who this process is: a P-256 key made at start, proofs made with it, and the projected service-account token.
//!
//! The key never leaves memory and is never written. The token file is opened anew for every exchange, because the
//! kubelet swaps it behind a symlink. Proofs (RFC 9449) are built by hand: there is no JWT crate in the sidecar.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{digest, SHA256};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair, ECDSA_P256_SHA256_FIXED_SIGNING};
use serde_json::json;

use crate::secret::{base64url, from_base64url, Secret};

/// A service-account token is never longer.
const TOKEN_LIMIT: u64 = 16 * 1024;

/// Why this process cannot say who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No key, or no signature.
    #[error("the process key cannot be made or used")]
    Key,
    /// The token file.
    #[error("the service-account token at {path} cannot be read: {error}")]
    Token {
        /// Where.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file holds no token (it may be half written).
    #[error("the file at {0} holds no token")]
    NoToken(String),
}

/// The process's key and its token file.
pub struct Identity {
    key: EcdsaKeyPair,
    /// The public key as JSON, as every proof carries it.
    jwk: serde_json::Value,
    token_file: PathBuf,
    /// When the token that was read last was issued, seconds since 1970; 0: none was read.
    issued: AtomicI64,
}

impl Identity {
    /// Makes a key.
    pub fn new(token_file: &Path) -> Result<Self, IdentityError> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| IdentityError::Key)?;
        let point = key.public_key().as_ref();
        let (x, y) = (point.get(1..33), point.get(33..65));
        let (Some(x), Some(y)) = (x, y) else {
            return Err(IdentityError::Key);
        };
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)});
        Ok(Identity {
            key,
            jwk,
            token_file: token_file.to_owned(),
            issued: AtomicI64::new(0),
        })
    }

    /// The service-account token as it is now.
    pub fn service_account_token(&self) -> Result<Secret, IdentityError> {
        use std::io::Read;
        let path = || self.token_file.display().to_string();
        let failed = |error| IdentityError::Token { path: path(), error };
        let file = std::fs::File::open(&self.token_file).map_err(failed)?;
        let mut text = String::new();
        file.take(TOKEN_LIMIT).read_to_string(&mut text).map_err(failed)?;
        let token = text.trim_end().to_owned();
        zeroize::Zeroize::zeroize(&mut text);
        if token.split('.').count() != 3 {
            return Err(IdentityError::NoToken(path()));
        }
        self.issued.store(issued(&token).unwrap_or(0), Ordering::Relaxed);
        Ok(Secret::new(token))
    }

    /// Age of the service-account token that was read last, as it says itself: for metrics alone.
    pub fn token_age(&self) -> Option<Duration> {
        let issued = self.issued.load(Ordering::Relaxed);
        let age = jiff::Timestamp::now().as_second().saturating_sub(issued);
        (issued > 0).then(|| Duration::from_secs(u64::try_from(age).unwrap_or(0)))
    }

    /// A proof for one call. `url` is without query; `token` is the access token that goes with it.
    pub fn proof(
        &self,
        method: &str,
        url: &str,
        token: Option<&str>,
        nonce: Option<&str>,
    ) -> Result<String, IdentityError> {
        let mut id = [0u8; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| IdentityError::Key)?;
        let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk});
        let mut claims = json!({
            "htm": method,
            "htu": url,
            "iat": jiff::Timestamp::now().as_second(),
            "jti": base64url(&id),
        });
        if let Some(claims) = claims.as_object_mut() {
            if let Some(token) = token {
                let hash = digest(&SHA256, token.as_bytes());
                claims.insert("ath".to_owned(), base64url(hash.as_ref()).into());
            }
            if let Some(nonce) = nonce {
                claims.insert("nonce".to_owned(), nonce.into());
            }
        }
        let signed = format!(
            "{}.{}",
            base64url(header.to_string().as_bytes()),
            base64url(claims.to_string().as_bytes())
        );
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| IdentityError::Key)?;
        Ok(format!("{signed}.{}", base64url(signature.as_ref())))
    }
}

/// `iat` of a JWT that nobody here verifies.
fn issued(token: &str) -> Option<i64> {
    let claims = from_base64url(token.split('.').nth(1)?)?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims.get("iat")?.as_i64()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::secret::from_base64url;
    use aws_lc_rs::signature::{UnparsedPublicKey, ECDSA_P256_SHA256_FIXED};

    #[test]
    fn a_proof_verifies_and_says_what_it_is_for() {
        let identity = Identity::new(Path::new("/nonexistent")).unwrap();
        let proof = identity
            .proof("POST", "https://b/token", Some("abc"), Some("n"))
            .unwrap();
        let parts: Vec<&str> = proof.split('.').collect();
        let signed = format!("{}.{}", parts[0], parts[1]);
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, identity.key.public_key().as_ref());
        key.verify(signed.as_bytes(), &from_base64url(parts[2]).unwrap())
            .unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&from_base64url(parts[1]).unwrap()).unwrap();
        assert_eq!(claims["htm"], "POST");
        assert_eq!(claims["nonce"], "n");
        assert_eq!(claims["ath"], "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0");
    }

    /// A row of the failure matrix: the token is missing or half-written. Metric: `sidegate_sat_age_seconds`, which shows
    /// this age.
    #[test]
    fn the_token_file_is_opened_each_time_and_a_partial_one_is_never_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let identity = Identity::new(&path).unwrap();
        assert!(identity.service_account_token().is_err());
        std::fs::write(&path, "aaa.bb").unwrap();
        assert!(identity.service_account_token().is_err());
        std::fs::write(&path, "aaa.bbb.ccc\n").unwrap();
        assert_eq!(identity.service_account_token().unwrap().expose(), "aaa.bbb.ccc");
        assert_eq!(identity.token_age(), None, "it says no time");
        let issued = jiff::Timestamp::now().as_second() - 60;
        let claims = base64url(json!({"iat": issued}).to_string().as_bytes());
        std::fs::write(&path, format!("aaa.{claims}.ccc")).unwrap();
        identity.service_account_token().unwrap();
        assert!(identity
            .token_age()
            .is_some_and(|age| (60..90).contains(&age.as_secs())));
    }
}
