//! Public keys by which tokens are verified, read from a JWK set or made beside a signing key.
//!
//! Refuses, key by key: symmetric and private members, short RSA, other curves, a `use`, `key_ops` or `alg` that
//! says anything but verifying with one pinned algorithm. A refused key voids itself, never the set.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use serde_json::{json, Map, Value};

/// Algorithms a key can be pinned to. Nothing symmetric exists here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alg {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, keys of 2048 bits and more.
    Rs256,
}

impl Alg {
    /// As written in a header.
    pub fn as_str(self) -> &'static str {
        match self {
            Alg::Es256 => "ES256",
            Alg::Rs256 => "RS256",
        }
    }
}

/// The numbers of a public key, base64url as in a JWK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Numbers {
    /// A point on P-256.
    P256 {
        /// X.
        x: String,
        /// Y.
        y: String,
    },
    /// An RSA modulus and exponent.
    Rsa {
        /// Modulus.
        n: String,
        /// Exponent.
        e: String,
    },
}

/// A public key pinned to one algorithm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Its id, if it has one.
    pub kid: Option<String>,
    /// Its one algorithm.
    pub alg: Alg,
    /// Its numbers.
    pub numbers: Numbers,
}

/// Why a JWK is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyVoid {
    /// Not an object, or members of wrong types.
    #[error("not a JWK")]
    Shape,
    /// Symmetric, or carries private members.
    #[error("symmetric or private key material")]
    Private,
    /// Another key type or curve.
    #[error("key type or curve not accepted")]
    Kind,
    /// `use`, `key_ops` or `alg` disagree.
    #[error("not for verifying with its algorithm")]
    Purpose,
    /// RSA under 2048 bits.
    #[error("RSA key under 2048 bits")]
    Short,
}

const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

impl PublicKey {
    /// Reads one JWK.
    pub fn from_jwk(jwk: &Value) -> Result<Self, KeyVoid> {
        let jwk = jwk.as_object().ok_or(KeyVoid::Shape)?;
        if PRIVATE.iter().any(|member| jwk.contains_key(*member)) {
            return Err(KeyVoid::Private);
        }
        let (alg, numbers) = match text(jwk, "kty")?.ok_or(KeyVoid::Shape)? {
            "EC" => (Alg::Es256, p256(jwk)?),
            "RSA" => (Alg::Rs256, rsa(jwk)?),
            "oct" => return Err(KeyVoid::Private),
            _ => return Err(KeyVoid::Kind),
        };
        if text(jwk, "alg")?.is_some_and(|named| named != alg.as_str())
            || text(jwk, "use")?.is_some_and(|named| named != "sig")
            || !ops_allow_verify(jwk)?
        {
            return Err(KeyVoid::Purpose);
        }
        let kid = text(jwk, "kid")?.map(str::to_owned);
        Ok(PublicKey { kid, alg, numbers })
    }

    /// The JWK, public members only, with `kid`, `alg` and `use`.
    pub fn jwk(&self) -> Value {
        let mut jwk = self.required_members();
        if let Value::Object(members) = &mut jwk {
            members.insert("alg".to_owned(), self.alg.as_str().into());
            members.insert("use".to_owned(), "sig".into());
            if let Some(kid) = &self.kid {
                members.insert("kid".to_owned(), kid.as_str().into());
            }
        }
        jwk
    }

    /// RFC 7638: the required members alone.
    pub fn required_members(&self) -> Value {
        match &self.numbers {
            Numbers::P256 { x, y } => json!({"crv": "P-256", "kty": "EC", "x": x, "y": y}),
            Numbers::Rsa { n, e } => json!({"e": e, "kty": "RSA", "n": n}),
        }
    }

    /// RFC 7638 thumbprint with SHA-256, base64url.
    pub fn thumbprint(&self) -> String {
        // base64url text needs no JSON escapes, and the members are written in lexicographic order here, so
        // the result does not depend on how a JSON library orders maps.
        let text = match &self.numbers {
            Numbers::P256 { x, y } => format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#),
            Numbers::Rsa { n, e } => format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#),
        };
        sha256_base64url(text.as_bytes())
    }
}

/// SHA-256, base64url without padding.
pub fn sha256_base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

fn text<'a>(jwk: &'a Map<String, Value>, member: &str) -> Result<Option<&'a str>, KeyVoid> {
    match jwk.get(member) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(KeyVoid::Shape),
    }
}

fn ops_allow_verify(jwk: &Map<String, Value>) -> Result<bool, KeyVoid> {
    match jwk.get("key_ops") {
        None => Ok(true),
        Some(Value::Array(ops)) => Ok(ops.iter().all(|op| op == "verify") && !ops.is_empty()),
        Some(_) => Err(KeyVoid::Shape),
    }
}

fn number(jwk: &Map<String, Value>, member: &str) -> Result<(String, Vec<u8>), KeyVoid> {
    let text = text(jwk, member)?.ok_or(KeyVoid::Shape)?;
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyVoid::Shape)?;
    Ok((text.to_owned(), bytes))
}

fn p256(jwk: &Map<String, Value>) -> Result<Numbers, KeyVoid> {
    if text(jwk, "crv")? != Some("P-256") {
        return Err(KeyVoid::Kind);
    }
    let (x, x_bytes) = number(jwk, "x")?;
    let (y, y_bytes) = number(jwk, "y")?;
    if x_bytes.len() != 32 || y_bytes.len() != 32 {
        return Err(KeyVoid::Shape);
    }
    Ok(Numbers::P256 { x, y })
}

fn rsa(jwk: &Map<String, Value>) -> Result<Numbers, KeyVoid> {
    let (n, n_bytes) = number(jwk, "n")?;
    let (e, _) = number(jwk, "e")?;
    let bits = n_bytes.iter().skip_while(|byte| **byte == 0).count().saturating_mul(8);
    if bits < 2048 {
        return Err(KeyVoid::Short);
    }
    if bits > 8192 {
        return Err(KeyVoid::Kind);
    }
    Ok(Numbers::Rsa { n, e })
}

/// The keys of one issuer.
#[derive(Debug, Clone, Default)]
pub struct KeySet(Vec<PublicKey>);

impl KeySet {
    /// A set of keys made here.
    pub fn new(keys: Vec<PublicKey>) -> Self {
        KeySet(keys)
    }

    /// Reads a JWK set; keys that are void are left out and reported.
    pub fn from_jwks(set: &Value) -> (Self, Vec<KeyVoid>) {
        let mut keys = Vec::new();
        let mut void = Vec::new();
        for jwk in set
            .get("keys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .take(100)
        {
            match PublicKey::from_jwk(jwk) {
                Ok(key) => keys.push(key),
                Err(why) => void.push(why),
            }
        }
        (KeySet(keys), void)
    }

    /// The key with this id; without an id, the key of a set of one.
    pub fn find(&self, kid: Option<&str>) -> Option<&PublicKey> {
        match kid {
            Some(kid) => self.0.iter().find(|key| key.kid.as_deref() == Some(kid)),
            None => match self.0.as_slice() {
                [only] => Some(only),
                _ => None,
            },
        }
    }

    /// All keys.
    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.iter()
    }
}
