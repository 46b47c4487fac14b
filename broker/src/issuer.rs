//! The issuer: three key rings, and the tokens signed with them: by ES256, and assertions by RS256 where a provider takes
//! nothing else.
//!
//! Refuses to sign anything that outlives the caller's own service-account token, or carries a claim it did not
//! make itself. The invariant: every token has exactly one audience, and `sub` is opaque and never reused.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use serde_json::{json, Value};
use sidegate_policies::engine::Subject;

use crate::config::StartError;
use crate::jwt::{Alg, KeySet, PublicKey, SigningFailed, SigningKey, Trust};
use crate::rings::{Ring, RingName};
use crate::state::StateDir;

/// Algorithms our own tokens are signed with.
pub const ALGORITHMS: &[Alg] = &[Alg::Es256];
/// Life of session and target tokens, seconds.
pub const TOKEN_LIFE: i64 = 300;
/// Life of a record key certificate, seconds.
pub const CERTIFICATE_LIFE: i64 = 24 * 3600;
/// Scope of session tokens.
pub const SESSION_SCOPE: &str = "sidegate";
/// Audience of record key certificates.
pub const RECORDS_AUDIENCE: &str = "sidegate-records";

/// Who a token is about, as attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The pod and its labels.
    pub subject: Subject,
    /// UID of the service account: a recreated account is somebody else.
    pub account_uid: String,
    /// The pod's node.
    pub node: String,
    /// Container instance.
    pub instance: u64,
    /// When its service-account token ends, seconds since 1970; nothing given out outlives it.
    pub ends: i64,
}

impl Workload {
    /// `system:serviceaccount:ns:name`.
    pub fn client_id(&self) -> String {
        client_id(&self.subject)
    }
}

/// `system:serviceaccount:ns:name` of a subject.
pub fn client_id(subject: &Subject) -> String {
    format!(
        "system:serviceaccount:{}:{}",
        subject.namespace, subject.service_account
    )
}

/// A token just made. No Debug: it is a secret.
pub struct Issued {
    /// The compact token.
    pub token: String,
    /// Seconds from now.
    pub expires_in: u64,
    /// Its id, for the audit.
    pub id: String,
}

/// What an assertion to an identity provider says; nothing besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    /// `iss`, where it is not our own URL.
    pub issuer: Option<String>,
    /// `sub`.
    pub subject: String,
    /// `aud`, its sole one.
    pub audience: String,
    /// Seconds it lives.
    pub life: i64,
    /// What it is signed with.
    pub alg: Alg,
}

/// The longest life of an assertion, seconds.
pub const MAX_ASSERTION_LIFE: i64 = 300;

/// The issuer of one cluster.
pub struct Issuer {
    url: String,
    cluster: String,
    access: Ring,
    federation: Ring,
    record: Ring,
}

impl Issuer {
    /// Loads the rings from the state directory, or makes them at the first start. `now` in seconds.
    pub fn open(state: &StateDir, url: String, cluster: String, now: i64) -> Result<Self, StartError> {
        let [access, federation, record] = RingName::ALL.map(|name| Ring::open(state, name, now));
        Ok(Issuer::over(url, cluster, [access?, federation?, record?]))
    }

    /// Over rings that lie elsewhere, in the order of [`RingName::ALL`].
    pub fn over(url: String, cluster: String, [access, federation, record]: [Ring; 3]) -> Self {
        Issuer {
            url,
            cluster,
            access,
            federation,
            record,
        }
    }

    /// The issuer's URL, byte for byte as in every token.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// A ring.
    pub fn ring(&self, name: RingName) -> &Ring {
        match name {
            RingName::Access => &self.access,
            RingName::Federation => &self.federation,
            RingName::Record => &self.record,
        }
    }

    /// The keys session tokens are verified with at `now`: the access ring alone, whatever else is published.
    pub fn session_keys(&self, now: i64) -> KeySet {
        self.access.verifying(now)
    }

    /// What session tokens are checked against. `keys` is [`Issuer::session_keys`].
    pub fn trust<'a>(&'a self, keys: &'a KeySet, denied: &'a (dyn Fn(&str) -> bool + Sync)) -> Trust<'a> {
        Trust {
            issuer: &self.url,
            keys,
            algorithms: ALGORITHMS,
            audience: &self.url,
            denied,
        }
    }

    /// The published key set: every key of the access and federation rings that verifies at `now` or will.
    pub fn jwks(&self, now: i64) -> Value {
        let mut keys = self.access.published(now);
        keys.extend(self.federation.published(now));
        json!({"keys": keys.iter().map(PublicKey::jwk).collect::<Vec<_>>()})
    }

    /// Every key that ever certified record keys, oldest first; kept for ever.
    pub fn record_ring(&self) -> Vec<Value> {
        self.record.keys().public().map(PublicKey::jwk).collect()
    }

    /// A session token bound to the caller's key.
    pub fn session(&self, who: &Workload, thumbprint: &str, now: i64) -> Result<Issued, SigningFailed> {
        let extra = json!({"client_id": who.client_id(), "scope": SESSION_SCOPE, "cnf": {"jkt": thumbprint}});
        self.access_token(who, &self.url, extra, now)
    }

    /// An RFC 9068 access token for a target.
    pub fn target(&self, who: &Workload, audience: &str, scope: &str, now: i64) -> Result<Issued, SigningFailed> {
        let act = json!({"sub": self.subject_of(who)});
        let mut extra = json!({"client_id": who.client_id(), "act": act, "txn": random_id()?});
        if let (Value::Object(members), false) = (&mut extra, scope.is_empty()) {
            members.insert("scope".to_owned(), scope.into());
        }
        self.access_token(who, audience, extra, now)
    }

    /// Certifies a record key (Ed25519) for one pod and instance.
    pub fn record_certificate(&self, who: &Workload, public_key: &str, now: i64) -> Result<String, SigningFailed> {
        let claims = json!({
            "iss": self.url, "sub": self.subject_of(who), "aud": RECORDS_AUDIENCE,
            "iat": now, "nbf": now, "exp": now.saturating_add(CERTIFICATE_LIFE), "jti": random_id()?,
            "cnf": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": public_key}},
            "sidegate": self.workload_claim(who),
        });
        self.record.sign("sidegate-record-key+jwt", &claims, now)
    }

    /// An assertion to an identity provider, for one use. `ends` is when the caller's own token does.
    pub fn assertion(&self, asked: &Assertion, ends: i64, now: i64) -> Result<String, SigningFailed> {
        let life = asked.life.clamp(1, MAX_ASSERTION_LIFE);
        let expires = now.saturating_add(life).min(ends);
        // Ours opens every door of ours: it is never for ourselves.
        if asked.audience == self.url || expires <= now {
            return Err(SigningFailed);
        }
        let claims = json!({
            "iss": asked.issuer.as_deref().unwrap_or(&self.url), "sub": asked.subject, "aud": asked.audience,
            "iat": now, "exp": expires, "jti": random_id()?,
        });
        self.federation.sign_by(asked.alg, "JWT", &claims, now)
    }

    /// `sg:<cluster>:<service account UID>`.
    pub fn subject_of(&self, who: &Workload) -> String {
        format!("sg:{}:{}", self.cluster, who.account_uid)
    }

    fn access_token(&self, who: &Workload, audience: &str, extra: Value, now: i64) -> Result<Issued, SigningFailed> {
        let expires = now.saturating_add(TOKEN_LIFE).min(who.ends);
        let id = random_id()?;
        let mut claims = json!({
            "iss": self.url, "sub": self.subject_of(who), "aud": audience,
            "iat": now, "nbf": now, "exp": expires, "jti": id,
            "sidegate": self.workload_claim(who),
        });
        if let (Value::Object(claims), Value::Object(extra)) = (&mut claims, extra) {
            claims.extend(extra);
        }
        Ok(Issued {
            token: self.access.sign("at+jwt", &claims, now)?,
            expires_in: u64::try_from(expires.saturating_sub(now)).unwrap_or(0),
            id,
        })
    }

    fn workload_claim(&self, who: &Workload) -> Value {
        json!({
            "cluster": self.cluster,
            "namespace": who.subject.namespace,
            "serviceAccount": who.subject.service_account,
            "serviceAccountUid": who.account_uid,
            "pod": who.subject.pod,
            "podUid": who.subject.pod_uid,
            "node": who.node,
            "instance": who.instance,
            "ends": who.ends,
        })
    }
}

fn load_key(state: &StateDir, name: &str) -> Result<SigningKey, StartError> {
    let bytes = state.read_or_create(name, || {
        let key = SigningKey::generate().map_err(|error| StartError::crypto("a signing key", error))?;
        Ok::<_, StartError>(key.to_vec())
    })?;
    let bytes = zeroize::Zeroizing::new(bytes);
    SigningKey::from_pkcs8(&bytes).map_err(|error| StartError::crypto("a signing key", error))
}

/// Loads or makes the key of the local cluster double.
pub(crate) fn load_cluster_key(state: &StateDir) -> Result<SigningKey, StartError> {
    state.dir("keys")?;
    load_key(state, "keys/cluster.p8")
}

/// 128 random bits, base64url.
pub fn random_id() -> Result<String, SigningFailed> {
    Ok(URL_SAFE_NO_PAD.encode(random::<16>()?))
}

/// Random bytes.
pub fn random<const N: usize>() -> Result<[u8; N], SigningFailed> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SigningFailed)?;
    Ok(bytes)
}
