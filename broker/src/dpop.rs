//! Proofs of possession (RFC 9449): every call shows that its caller holds the key its token is bound to.
//!
//! Refuses proofs for another method, URL or token, without our present nonce, or seen before. The URL compared
//! is the configured one, never the Host header. The nonce key lives in this process only, so a proof fits one
//! replica and one start, and the replay set in memory is complete.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use subtle::ConstantTimeEq as _;

use crate::clock::Clock;
use crate::issuer::random;
use crate::jwt::{accept, sha256_base64url, unverified_proof, KeySet, PublicKey, Refused, SigningFailed, Slot, Trust};

/// Why a proof is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DpopRefused {
    /// No proof, or more than one.
    #[error("no proof, or more than one")]
    Missing,
    /// The proof itself is bad.
    #[error("proof: {0}")]
    Proof(#[from] Refused),
    /// Made for another method.
    #[error("htm is another method")]
    Method,
    /// Made for another URL.
    #[error("htu is another URL")]
    Url,
    /// Without our nonce, or with an old one: the caller may try once more.
    #[error("nonce missing or old")]
    Nonce,
    /// Made for another token.
    #[error("ath is another token")]
    Token,
    /// Seen before.
    #[error("proof replayed")]
    Replay,
    /// Too many proofs in the last minutes.
    #[error("replay set full")]
    Full,
}

/// Checks proofs for one front face.
pub struct Dpop {
    base: String,
    nonce_key: hmac::Key,
    seen: Mutex<Seen>,
    clock: Arc<dyn Clock>,
}

/// One call, as the proof must describe it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Method.
    pub method: &'a str,
    /// Path, without query.
    pub path: &'a str,
    /// The access token beside the proof, if there is one.
    pub token: Option<&'a str>,
}

const MINUTE_MS: i64 = 60_000;
/// Longer than a proof can be valid: 60 s back and 60 s ahead.
const KEEP_MS: i64 = 180_000;
const MAX_SEEN: usize = 200_000;

impl Dpop {
    /// For the front face at this URL (no trailing slash).
    pub fn new(base: String, clock: Arc<dyn Clock>) -> Result<Self, SigningFailed> {
        Ok(Dpop {
            base,
            nonce_key: hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()?),
            seen: Mutex::new(Seen::default()),
            clock,
        })
    }

    /// The nonce of this minute.
    pub fn nonce(&self) -> String {
        self.nonce_of(self.clock.now_ms().div_euclid(MINUTE_MS))
    }

    fn nonce_of(&self, minute: i64) -> String {
        let tag = hmac::sign(&self.nonce_key, &minute.to_be_bytes());
        URL_SAFE_NO_PAD.encode(tag.as_ref().get(..16).unwrap_or_default())
    }

    /// Checks one proof and gives the key it was made with.
    pub fn check(&self, proof: Option<&[u8]>, call: Call<'_>) -> Result<PublicKey, DpopRefused> {
        let proof = proof.ok_or(DpopRefused::Missing)?;
        let none = KeySet::default();
        let trust = Trust {
            issuer: "",
            keys: &none,
            algorithms: &[],
            audience: "",
            denied: &|_| false,
        };
        let accepted = accept(Slot::DpopProof, proof, trust, self.clock.now())?;
        if accepted.text("htm") != call.method {
            return Err(DpopRefused::Method);
        }
        let url = accepted.text("htu");
        if url.strip_prefix(self.base.as_str()) != Some(call.path) {
            return Err(DpopRefused::Url);
        }
        if !self.is_present_nonce(accepted.text("nonce")) {
            return Err(DpopRefused::Nonce);
        }
        match call.token {
            Some(token) if accepted.text("ath") != sha256_base64url(token.as_bytes()) => {
                return Err(DpopRefused::Token)
            }
            _ => {}
        }
        let key = accepted.key().cloned().ok_or(DpopRefused::Missing)?;
        let id = format!("{}.{}", key.thumbprint(), accepted.text("jti"));
        self.seen
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .first_time(id, self.clock.now_ms())?;
        Ok(key)
    }

    /// Thumbprint of the key that a proof with a present nonce claims. Nothing is verified: it decides which budget a
    /// call draws on, and nothing else.
    pub fn claimed_key(&self, proof: &[u8]) -> Option<String> {
        let (nonce, key) = unverified_proof(proof)?;
        self.is_present_nonce(&nonce).then(|| key.thumbprint())
    }

    fn is_present_nonce(&self, nonce: &str) -> bool {
        let minute = self.clock.now_ms().div_euclid(MINUTE_MS);
        let fits = |minute: i64| self.nonce_of(minute).as_bytes().ct_eq(nonce.as_bytes());
        (fits(minute) | fits(minute.saturating_sub(1))).into()
    }
}

/// Proof ids of the last minutes.
#[derive(Default)]
struct Seen {
    ids: HashMap<String, i64>,
    order: VecDeque<(i64, String)>,
}

impl Seen {
    fn first_time(&mut self, id: String, now_ms: i64) -> Result<(), DpopRefused> {
        while self.order.front().is_some_and(|(until, _)| *until <= now_ms) {
            if let Some((_, old)) = self.order.pop_front() {
                self.ids.remove(&old);
            }
        }
        if self.ids.contains_key(&id) {
            return Err(DpopRefused::Replay);
        }
        if self.ids.len() >= MAX_SEEN {
            return Err(DpopRefused::Full);
        }
        let until = now_ms.saturating_add(KEEP_MS);
        self.ids.insert(id.clone(), until);
        self.order.push_back((until, id));
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::jwt::SigningKey;
    use serde_json::{json, Value};

    struct Bench {
        dpop: Dpop,
        key: SigningKey,
        clock: Arc<ManualClock>,
    }

    const BASE: &str = "https://127.0.0.1:7443";

    impl Bench {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::starting_now());
            Bench {
                dpop: Dpop::new(BASE.to_owned(), clock.clone()).unwrap(),
                key: SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap(),
                clock,
            }
        }

        fn proof(&self, change: Value) -> String {
            let mut claims = json!({
                "htm": "POST", "htu": format!("{BASE}/v1/leases"), "iat": self.clock.now(), "jti": "a",
                "nonce": self.dpop.nonce(), "ath": sha256_base64url(b"token"),
            });
            claims
                .as_object_mut()
                .unwrap()
                .extend(change.as_object().unwrap().clone());
            let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": self.key.public().required_members()});
            self.key.sign_parts(&header, &claims).unwrap()
        }

        fn check(&self, proof: &str) -> Result<PublicKey, DpopRefused> {
            let call = Call {
                method: "POST",
                path: "/v1/leases",
                token: Some("token"),
            };
            self.dpop.check(Some(proof.as_bytes()), call)
        }
    }

    #[test]
    fn a_proof_is_good_for_its_call_alone() {
        let bench = Bench::new();
        assert_eq!(
            bench.check(&bench.proof(json!({}))).unwrap().thumbprint(),
            bench.key.public().thumbprint()
        );
        for (change, refusal) in [
            (json!({"jti": "b", "htm": "GET"}), DpopRefused::Method),
            (
                json!({"jti": "b", "htu": "https://evil.example/v1/leases"}),
                DpopRefused::Url,
            ),
            (
                json!({"jti": "b", "htu": format!("{BASE}/v1/leases?x=1")}),
                DpopRefused::Url,
            ),
            (json!({"jti": "b", "htu": format!("{BASE}/token")}), DpopRefused::Url),
            (
                json!({"jti": "b", "ath": sha256_base64url(b"other")}),
                DpopRefused::Token,
            ),
            (json!({"jti": "b", "nonce": "guess"}), DpopRefused::Nonce),
        ] {
            assert_eq!(
                bench.check(&bench.proof(change.clone())).unwrap_err(),
                refusal,
                "{change}"
            );
        }
        assert_eq!(
            bench
                .dpop
                .check(
                    None,
                    Call {
                        method: "POST",
                        path: "/",
                        token: None
                    }
                )
                .unwrap_err(),
            DpopRefused::Missing
        );
    }

    #[test]
    fn a_proof_is_good_once() {
        let bench = Bench::new();
        let proof = bench.proof(json!({}));
        bench.check(&proof).unwrap();
        assert_eq!(bench.check(&proof).unwrap_err(), DpopRefused::Replay);
    }

    #[test]
    fn the_previous_minutes_nonce_still_counts_and_older_ones_do_not() {
        let bench = Bench::new();
        let nonce = bench.dpop.nonce();
        bench.clock.advance_ms(60_000);
        bench.check(&bench.proof(json!({"nonce": nonce}))).unwrap();
        bench.clock.advance_ms(60_000);
        let late = bench.proof(json!({"nonce": nonce, "jti": "b"}));
        assert_eq!(bench.check(&late).unwrap_err(), DpopRefused::Nonce);
    }

    #[test]
    fn a_claimed_key_counts_only_with_a_present_nonce() {
        let bench = Bench::new();
        let good = bench.proof(json!({}));
        let claimed = bench.dpop.claimed_key(good.as_bytes());
        assert_eq!(claimed, Some(bench.key.public().thumbprint()));
        for bad in [
            bench.proof(json!({"nonce": "guess"})),
            "x".to_owned(),
            "a.b.c".to_owned(),
        ] {
            assert_eq!(bench.dpop.claimed_key(bad.as_bytes()), None);
        }
        bench.check(&good).unwrap();
    }

    #[test]
    fn an_old_proof_is_refused_before_it_leaves_the_replay_set() {
        let bench = Bench::new();
        let proof = bench.proof(json!({"iat": bench.clock.now() + 60}));
        bench.check(&proof).unwrap();
        bench.clock.advance_ms(119_000);
        assert!(bench.check(&proof).is_err());
        bench.clock.advance_ms(62_000);
        assert_eq!(bench.check(&proof).unwrap_err(), DpopRefused::Proof(Refused::Life));
    }
}
