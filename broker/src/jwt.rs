//! Accepting and signing JWTs: the one strict wrapper, and the only file that names `jsonwebtoken`.
//!
//! The library verifies signatures and nothing else: it would accept missing issuers, future times, fractional
//! expiries and unknown `crit`. Here the *slot* a token is handed in fixes issuer, algorithms, type, audience and
//! ages, and the steps run cheapest first. A refusal carries the precise reason for the audit; what goes outward
//! is one opaque error. The invariant: an accepted token passed every step for exactly its slot.

mod form;
mod keys;
mod rsa;
#[cfg(test)]
mod tests;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use serde_json::{Map, Value};

pub use form::MAX_TOKEN;
pub use keys::{sha256_base64url, Alg, KeySet, KeyVoid, Numbers, PublicKey};
use rsa::RsaKey;

/// Where a token is handed in; it fixes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// A pod-bound service-account token as `subject_token`.
    ServiceAccount,
    /// The same kind of token as `client_assertion`.
    ClientAssertion,
    /// A session token of our own.
    Session,
    /// An access token of our own for a target: its audience is anybody but us. It opens nothing here; only
    /// introspection and revocation read it.
    TargetAccess,
    /// A DPoP proof (RFC 9449): brings its own key and has no issuer.
    DpopProof,
}

/// Whom to believe, and what is denied, for one acceptance.
#[derive(Clone, Copy)]
pub struct Trust<'a> {
    /// The issuer, byte for byte.
    pub issuer: &'a str,
    /// Its keys.
    pub keys: &'a KeySet,
    /// The algorithms pinned for it.
    pub algorithms: &'a [Alg],
    /// Our audience.
    pub audience: &'a str,
    /// Token ids frozen by a Lockdown.
    pub denied: &'a (dyn Fn(&str) -> bool + Sync),
}

/// Why a token is refused. Never shown outward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum Refused {
    #[error("longer than 16 KiB")]
    TooLong,
    #[error("not three segments")]
    NotThreeSegments,
    #[error("not strict base64url")]
    NotBase64Url,
    #[error("header or claims are not an object")]
    NotAnObject,
    #[error("repeated member, nesting over 8, or not JSON")]
    NotStrictJson,
    #[error("algorithm not pinned for this issuer")]
    Algorithm,
    #[error("typ is not that of this slot")]
    Type,
    #[error("header member that is never accepted")]
    HeaderMember,
    #[error("jwk outside a DPoP proof, or not a plain public key")]
    HeaderKey,
    #[error("iss missing, not a string, or another issuer")]
    Issuer,
    #[error("no such key")]
    UnknownKey,
    #[error("key is pinned to another algorithm")]
    KeyAlgorithm,
    #[error("bad signature")]
    Signature,
    #[error("audience missing or not ours")]
    Audience,
    #[error("a time is missing or not an integer")]
    TimeForm,
    #[error("expired")]
    Expired,
    #[error("not valid yet")]
    NotYet,
    #[error("issued in the future")]
    IssuedAhead,
    #[error("too old, or valid for too long")]
    Life,
    #[error("sub is not of this slot's grammar")]
    Subject,
    #[error("jti missing, malformed or frozen")]
    TokenId,
    #[error("act, may_act, azp, cnf or client_id is not as this slot wants it")]
    Delegation,
    #[error("pod claims missing: not bound to a pod")]
    NotPodBound,
}

/// A token that passed every step.
#[derive(Debug, Clone)]
pub struct Accepted {
    claims: Map<String, Value>,
    key: Option<PublicKey>,
    kid: Option<String>,
}

impl Accepted {
    /// A claim.
    pub fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.get(name)
    }

    /// A claim that is a string; empty if it is not there.
    pub fn text(&self, name: &str) -> &str {
        self.claims.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// A string deeper in the claims, by JSON pointer.
    pub fn pointer(&self, pointer: &str) -> Option<&str> {
        let (first, rest) = pointer.trim_start_matches('/').split_once('/').unwrap_or((pointer, ""));
        let value = self.claims.get(first)?;
        let value = if rest.is_empty() {
            Some(value)
        } else {
            value.pointer(&format!("/{rest}"))
        };
        value.and_then(Value::as_str)
    }

    /// An integer claim.
    pub fn integer(&self, name: &str) -> Option<i64> {
        self.claims.get(name).and_then(Value::as_i64)
    }

    /// Id of the key that verified it.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The key a DPoP proof brought.
    pub fn key(&self) -> Option<&PublicKey> {
        self.key.as_ref()
    }
}

struct Rules {
    /// Allowed `typ` values; an absent one is allowed where `None` is listed.
    types: &'static [Option<&'static str>],
    max_life: i64,
    max_age: i64,
    lone_audience: bool,
}

impl Slot {
    fn rules(self) -> Rules {
        match self {
            // The API server writes no typ; external signers write JWT.
            Slot::ServiceAccount | Slot::ClientAssertion => Rules {
                types: &[None, Some("JWT")],
                max_life: 24 * 3600,
                max_age: 24 * 3600,
                lone_audience: true,
            },
            Slot::Session | Slot::TargetAccess => Rules {
                types: &[Some("at+jwt")],
                max_life: 15 * 60,
                max_age: 15 * 60,
                lone_audience: true,
            },
            Slot::DpopProof => Rules {
                types: &[Some("dpop+jwt")],
                max_life: 60,
                max_age: 60,
                lone_audience: false,
            },
        }
    }
}

/// Leeway on `exp`, seconds.
const EXPIRY_LEEWAY: i64 = 5;
/// Leeway on `nbf` and `iat`: node clocks differ.
const START_LEEWAY: i64 = 60;
const MAX_TOKEN_ID: usize = 256;

/// Accepts a token in a slot, or says precisely why not. `now` is in seconds.
pub fn accept(slot: Slot, token: &[u8], trust: Trust<'_>, now: i64) -> Result<Accepted, Refused> {
    let parts = form::split(token)?;
    check_header(slot, &parts.header, trust.algorithms)?;
    let key = choose_key(slot, &parts, trust)?;
    verify(&key, &parts)?;
    if slot != Slot::DpopProof {
        check_audience(slot, &parts.claims, trust.audience)?;
    }
    check_times(slot, &parts.claims, now)?;
    check_claims(slot, &parts.claims, trust.denied)?;
    Ok(Accepted {
        claims: parts.claims,
        kid: key.kid.clone(),
        key: (slot == Slot::DpopProof).then_some(key),
    })
}

/// A token of whose signature nothing is known, because it names a key that is not held.
pub struct Unsigned(Accepted);

impl Unsigned {
    /// What it says, unproved.
    pub fn says(&self) -> &Accepted {
        &self.0
    }

    /// Somebody who verified the very same bytes vouches for it.
    pub fn vouched_for(self) -> Accepted {
        self.0
    }
}

/// Every step but the key and the signature, for a token that names a key which is not held: an external signer may keep
/// keys out of discovery. Whatever is wrong without the key is refused here; a key that is held is never passed over.
///
/// # Errors
/// As [`accept`]; also for a token that names no key.
pub fn accept_unsigned(slot: Slot, token: &[u8], trust: Trust<'_>, now: i64) -> Result<Unsigned, Refused> {
    let parts = form::split(token)?;
    check_header(slot, &parts.header, trust.algorithms)?;
    if slot == Slot::DpopProof || parts.claims.get("iss").and_then(Value::as_str) != Some(trust.issuer) {
        return Err(Refused::Issuer);
    }
    let kid = parts
        .header
        .get("kid")
        .and_then(Value::as_str)
        .ok_or(Refused::UnknownKey)?;
    if trust.keys.find(Some(kid)).is_some() {
        return Err(Refused::Signature);
    }
    check_audience(slot, &parts.claims, trust.audience)?;
    check_times(slot, &parts.claims, now)?;
    check_claims(slot, &parts.claims, trust.denied)?;
    Ok(Unsigned(Accepted {
        kid: Some(kid.to_owned()),
        claims: parts.claims,
        key: None,
    }))
}

/// The id of the key that a token of ours names, for the audit.
pub fn kid_of(token: &str) -> Option<String> {
    let parts = form::split(token.as_bytes()).ok()?;
    parts.header.get("kid")?.as_str().map(str::to_owned)
}

/// Nonce and key that a DPoP proof claims. NOTHING is verified: for choosing a caller's budget only, before a
/// signature is worth checking. `None` for anything that step 1 would refuse.
pub fn unverified_proof(proof: &[u8]) -> Option<(String, PublicKey)> {
    let parts = form::split(proof).ok()?;
    let nonce = parts.claims.get("nonce")?.as_str()?.to_owned();
    let key = PublicKey::from_jwk(parts.header.get("jwk")?).ok()?;
    Some((nonce, key))
}

/// Step 2.
fn check_header(slot: Slot, header: &Map<String, Value>, algorithms: &[Alg]) -> Result<(), Refused> {
    let alg = header.get("alg").and_then(Value::as_str).ok_or(Refused::Algorithm)?;
    let pinned = match slot {
        Slot::DpopProof => alg == Alg::Es256.as_str(),
        _ => algorithms.iter().any(|pinned| pinned.as_str() == alg),
    };
    if !pinned {
        return Err(Refused::Algorithm);
    }
    let typ = match header.get("typ") {
        None => None,
        Some(Value::String(typ)) => Some(typ.as_str()),
        Some(_) => return Err(Refused::Type),
    };
    if !slot.rules().types.contains(&typ) {
        return Err(Refused::Type);
    }
    let never = [
        "crit", "b64", "zip", "jku", "x5u", "x5c", "x5t", "x5t#S256", "enc", "cty",
    ];
    if never.iter().any(|member| header.contains_key(*member)) {
        return Err(Refused::HeaderMember);
    }
    if header.contains_key("jwk") != (slot == Slot::DpopProof) {
        return Err(Refused::HeaderKey);
    }
    Ok(())
}

/// Steps 3 and 4: the issuer is chosen by slot and configuration before `iss` is even read.
fn choose_key(slot: Slot, parts: &form::Parts<'_>, trust: Trust<'_>) -> Result<PublicKey, Refused> {
    let alg = parts.header.get("alg").and_then(Value::as_str).unwrap_or_default();
    let key = if slot == Slot::DpopProof {
        let jwk = parts.header.get("jwk").ok_or(Refused::HeaderKey)?;
        PublicKey::from_jwk(jwk).map_err(|_| Refused::HeaderKey)?
    } else {
        if parts.claims.get("iss").and_then(Value::as_str) != Some(trust.issuer) {
            return Err(Refused::Issuer);
        }
        let kid = match parts.header.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.as_str()),
            Some(_) => return Err(Refused::UnknownKey),
        };
        trust.keys.find(kid).ok_or(Refused::UnknownKey)?.clone()
    };
    if key.alg.as_str() != alg {
        return Err(Refused::KeyAlgorithm);
    }
    Ok(key)
}

/// The signature: all that the library is asked for.
fn verify(key: &PublicKey, parts: &form::Parts<'_>) -> Result<(), Refused> {
    let (decoding, algorithm) = match &key.numbers {
        Numbers::P256 { x, y } => (DecodingKey::from_ec_components(x, y), Algorithm::ES256),
        Numbers::Rsa { n, e } => (DecodingKey::from_rsa_components(n, e), Algorithm::RS256),
    };
    let decoding = decoding.map_err(|_| Refused::Signature)?;
    match jsonwebtoken::crypto::verify(parts.signature, parts.message.as_bytes(), &decoding, algorithm) {
        Ok(true) => Ok(()),
        _ => Err(Refused::Signature),
    }
}

/// Step 5.
fn check_audience(slot: Slot, claims: &Map<String, Value>, ours: &str) -> Result<(), Refused> {
    let listed: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many
            .iter()
            .map(|entry| entry.as_str().ok_or(Refused::Audience))
            .collect::<Result<_, _>>()?,
        _ => return Err(Refused::Audience),
    };
    if slot == Slot::TargetAccess {
        let foreign = matches!(listed.as_slice(), [one] if *one != ours && !one.is_empty());
        return if foreign { Ok(()) } else { Err(Refused::Audience) };
    }
    let lone = !slot.rules().lone_audience || listed.len() == 1;
    if lone && listed.contains(&ours) {
        return Ok(());
    }
    Err(Refused::Audience)
}

/// A time is an integer or absent, never a fraction, a string or null.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<i64>, Refused> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_i64().map(Some).ok_or(Refused::TimeForm),
    }
}

/// Step 6.
fn check_times(slot: Slot, claims: &Map<String, Value>, now: i64) -> Result<(), Refused> {
    let rules = slot.rules();
    let issued = time(claims, "iat")?.ok_or(Refused::TimeForm)?;
    let expires = time(claims, "exp")?;
    let not_before = time(claims, "nbf")?;
    if expires.is_none() && slot != Slot::DpopProof {
        return Err(Refused::TimeForm);
    }
    if expires.is_some_and(|expires| now >= expires.saturating_add(EXPIRY_LEEWAY)) {
        return Err(Refused::Expired);
    }
    if not_before.is_some_and(|start| start > now.saturating_add(START_LEEWAY)) {
        return Err(Refused::NotYet);
    }
    if issued > now.saturating_add(START_LEEWAY) {
        return Err(Refused::IssuedAhead);
    }
    let age = now.saturating_sub(issued);
    let life = expires.map_or(0, |expires| expires.saturating_sub(issued));
    if age > rules.max_age || life > rules.max_life || life < 0 {
        return Err(Refused::Life);
    }
    Ok(())
}

/// Step 7.
fn check_claims(slot: Slot, claims: &Map<String, Value>, denied: &dyn Fn(&str) -> bool) -> Result<(), Refused> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    match claims.get("jti") {
        Some(Value::String(id)) if !id.is_empty() && id.len() <= MAX_TOKEN_ID && !denied(id) => {}
        // Clusters before 1.30 write no jti.
        None if matches!(slot, Slot::ServiceAccount | Slot::ClientAssertion) => {}
        _ => return Err(Refused::TokenId),
    }
    // A token that carries a delegation is never handled as a plain one, whatever the request left out.
    let delegation = ["act", "may_act", "azp"].iter();
    let mut unwanted = delegation.filter(|name| slot != Slot::TargetAccess || **name != "act");
    if unwanted.any(|name| claims.contains_key(*name)) {
        return Err(Refused::Delegation);
    }
    match slot {
        Slot::ServiceAccount | Slot::ClientAssertion => check_service_account(claims),
        Slot::Session => {
            if !is_bound(claims) || text("client_id").is_none() {
                return Err(Refused::Delegation);
            }
            check_own_subject(claims)
        }
        Slot::TargetAccess => {
            let actor = claims.get("act").and_then(Value::as_object);
            let named = actor.is_some_and(|act| act.len() == 1 && act.get("sub").is_some_and(Value::is_string));
            let bound = !claims.contains_key("cnf") || is_bound(claims);
            if !named || !bound || text("client_id").is_none() {
                return Err(Refused::Delegation);
            }
            check_own_subject(claims)
        }
        Slot::DpopProof => {
            let plain = text("htm").is_some() && text("htu").is_some();
            if plain && !claims.contains_key("cnf") {
                return Ok(());
            }
            Err(Refused::Delegation)
        }
    }
}

/// Bound to exactly one key, by its thumbprint (RFC 9449 section 6).
fn is_bound(claims: &Map<String, Value>) -> bool {
    let cnf = claims.get("cnf").and_then(Value::as_object);
    let cnf = cnf.filter(|cnf| cnf.len() == 1);
    cnf.and_then(|cnf| cnf.get("jkt")).is_some_and(Value::is_string)
}

/// `sg:<cluster>:<service account UID>`.
fn check_own_subject(claims: &Map<String, Value>) -> Result<(), Refused> {
    let sub = claims.get("sub").and_then(Value::as_str).ok_or(Refused::Subject)?;
    if sub.split(':').count() != 3 || !sub.starts_with("sg:") {
        return Err(Refused::Subject);
    }
    Ok(())
}

/// Service-account tokens: `sub` in exactly four parts that agree with the pod claims.
fn check_service_account(claims: &Map<String, Value>) -> Result<(), Refused> {
    if claims.contains_key("cnf") || claims.contains_key("client_id") {
        return Err(Refused::Delegation);
    }
    let sub = claims.get("sub").and_then(Value::as_str).ok_or(Refused::Subject)?;
    let parts: Vec<&str> = sub.split(':').collect();
    let ["system", "serviceaccount", namespace, name] = parts.as_slice() else {
        return Err(Refused::Subject);
    };
    let bound = claims.get("kubernetes.io").ok_or(Refused::NotPodBound)?;
    let says = |pointer: &str| {
        bound
            .pointer(pointer)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    if says("/namespace") != Some(namespace) || says("/serviceaccount/name") != Some(name) {
        return Err(Refused::Subject);
    }
    if says("/pod/name").is_none() || says("/pod/uid").is_none() || says("/serviceaccount/uid").is_none() {
        return Err(Refused::NotPodBound);
    }
    Ok(())
}

/// A key that signs tokens with its one algorithm. No Debug: it is a secret.
#[derive(Clone)]
pub struct SigningKey {
    private: Private,
    public: PublicKey,
}

#[derive(Clone)]
enum Private {
    P256(EncodingKey),
    Rsa(RsaKey),
}

/// A key or a signature could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signing failed")]
pub struct SigningFailed;

impl SigningKey {
    /// Makes a new key for this algorithm and gives its PKCS#8 form for keeping.
    pub fn generate_for(alg: Alg) -> Result<zeroize::Zeroizing<Vec<u8>>, SigningFailed> {
        match alg {
            Alg::Es256 => Self::generate(),
            Alg::Rs256 => RsaKey::generate(),
        }
    }

    /// The same for ES256.
    pub fn generate() -> Result<zeroize::Zeroizing<Vec<u8>>, SigningFailed> {
        let rng = aws_lc_rs::rand::SystemRandom::new();
        let algorithm = &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = aws_lc_rs::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &rng).map_err(|_| SigningFailed)?;
        Ok(zeroize::Zeroizing::new(pkcs8.as_ref().to_vec()))
    }

    /// Reads a key from its PKCS#8 form. Its id is its RFC 7638 thumbprint.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, SigningFailed> {
        use aws_lc_rs::signature::KeyPair as _;
        let algorithm = &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let Ok(pair) = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(algorithm, pkcs8) else {
            let (key, numbers) = RsaKey::from_pkcs8(pkcs8)?;
            return Ok(Self::of(Private::Rsa(key), Alg::Rs256, numbers));
        };
        let point = pair.public_key().as_ref();
        let (x, y) = point
            .get(1..)
            .and_then(|xy| xy.split_at_checked(32))
            .ok_or(SigningFailed)?;
        let numbers = Numbers::P256 {
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
        };
        Ok(Self::of(
            Private::P256(EncodingKey::from_ec_der(pkcs8)),
            Alg::Es256,
            numbers,
        ))
    }

    fn of(private: Private, alg: Alg, numbers: Numbers) -> Self {
        let mut public = PublicKey {
            kid: None,
            alg,
            numbers,
        };
        public.kid = Some(public.thumbprint());
        SigningKey { private, public }
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs claims under `typ` (none: as the API server writes service-account tokens).
    pub fn sign(&self, typ: Option<&str>, claims: &Value) -> Result<String, SigningFailed> {
        let mut header = Map::new();
        header.insert("alg".to_owned(), self.public.alg.as_str().into());
        if let Some(kid) = &self.public.kid {
            header.insert("kid".to_owned(), kid.as_str().into());
        }
        if let Some(typ) = typ {
            header.insert("typ".to_owned(), typ.into());
        }
        self.sign_parts(&Value::Object(header), claims)
    }

    /// Signs a header and claims exactly as given.
    pub fn sign_parts(&self, header: &Value, claims: &Value) -> Result<String, SigningFailed> {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = match &self.private {
            Private::P256(key) => {
                jsonwebtoken::crypto::sign(message.as_bytes(), key, Algorithm::ES256).map_err(|_| SigningFailed)?
            }
            Private::Rsa(key) => key.sign(message.as_bytes())?,
        };
        Ok(format!("{message}.{signature}"))
    }
}

/// Entry for the fuzzer: no bytes make the wrapper panic, in any slot.
pub fn fuzz_jwt(bytes: &[u8]) {
    let keys = KeySet::default();
    let trust = Trust {
        issuer: "https://issuer.example",
        keys: &keys,
        algorithms: &[Alg::Es256, Alg::Rs256],
        audience: "sidegate",
        denied: &|_| false,
    };
    for slot in [
        Slot::ServiceAccount,
        Slot::ClientAssertion,
        Slot::Session,
        Slot::TargetAccess,
        Slot::DpopProof,
    ] {
        let _ = accept(slot, bytes, trust, 1_700_000_000);
    }
    // Past the signature too: the later steps must be as robust as the first.
    if let Ok(parts) = form::split(bytes) {
        for slot in [Slot::ServiceAccount, Slot::Session, Slot::TargetAccess, Slot::DpopProof] {
            let _ = check_header(slot, &parts.header, &[Alg::Es256]);
            let _ = check_audience(slot, &parts.claims, "sidegate");
            let _ = check_times(slot, &parts.claims, 1_700_000_000);
            let _ = check_claims(slot, &parts.claims, &|_| false);
        }
    }
}
