//! The cluster's own token issuer: its name and keys, as the API server itself publishes them.
//!
//! Refuses keys of kinds we do not verify with. The invariant: only the API server we speak to is asked, at its own
//! paths; no URL that its discovery document or a token names is followed.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use kube::Client;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{answered, Failed};
use crate::attest::{ClusterTrust, Issuers};
use crate::clock::Clock;
use crate::config::StartError;
use crate::jwt::{Alg, KeySet};

/// Keys are read again so often.
const REFRESH: Duration = Duration::from_secs(300);
/// A token of an unknown key makes us look at most so often, milliseconds.
const UNKNOWN_KEY_MS: i64 = 10_000;

/// Issuer and keys of the cluster's service-account tokens.
pub struct ClusterIssuers {
    client: Client,
    clock: Arc<dyn Clock>,
    trust: ArcSwap<ClusterTrust>,
    /// When it was read, seconds since 1970.
    read_at: AtomicI64,
    /// When a token last made us look.
    looked_ms: Mutex<Option<i64>>,
}

impl ClusterIssuers {
    /// Asks the API server; nobody is believed before it answered.
    pub async fn open(client: Client, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let trust = fetch(&client).await.map_err(StartError::cluster)?;
        Ok(ClusterIssuers {
            client,
            read_at: AtomicI64::new(clock.now()),
            clock,
            trust: ArcSwap::from_pointee(trust),
            looked_ms: Mutex::new(None),
        })
    }

    /// Keeps the keys fresh until told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(REFRESH) => {}
            }
            self.look().await;
        }
    }

    /// What was known stays known where the API server does not answer.
    async fn look(&self) {
        match fetch(&self.client).await {
            Ok(trust) => {
                self.trust.store(Arc::new(trust));
                self.read_at.store(self.clock.now(), Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(%error, "the cluster's keys cannot be read"),
        }
    }

    /// Whether a token may make us look now; takes the turn.
    fn may_look(&self) -> bool {
        let now = self.clock.now_ms();
        let mut looked = self.looked_ms.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let may = looked.is_none_or(|last| now.saturating_sub(last) >= UNKNOWN_KEY_MS);
        if may {
            *looked = Some(now);
        }
        may
    }
}

impl Issuers for ClusterIssuers {
    fn trust(&self) -> Arc<ClusterTrust> {
        self.trust.load_full()
    }

    fn read_at(&self) -> Option<i64> {
        Some(self.read_at.load(Ordering::Relaxed))
    }

    fn renew(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let may = self.may_look();
            if may {
                self.look().await;
            }
            may
        })
    }
}

async fn fetch(client: &Client) -> Result<ClusterTrust, Failed> {
    let discovery = get(client, "/.well-known/openid-configuration").await?;
    let keys = get(client, "/openid/v1/jwks").await?;
    read(&discovery, &keys).map_err(|what| Failed::Absent(what.to_owned()))
}

async fn get(client: &Client, path: &str) -> Result<Value, Failed> {
    let request = http::Request::get(path).body(Vec::new());
    let request = request.map_err(|error| Failed::Absent(error.to_string()))?;
    answered(client.request(request)).await
}

/// Discovery (OpenID Connect Discovery 1.0, section 3) and key set (RFC 7517) of an API server.
fn read(discovery: &Value, keys: &Value) -> Result<ClusterTrust, &'static str> {
    let issuer = discovery.get("issuer").and_then(Value::as_str);
    let issuer = issuer
        .filter(|issuer| !issuer.is_empty())
        .ok_or("its discovery names no issuer")?;
    let (keys, void) = KeySet::from_jwks(keys);
    if !void.is_empty() {
        tracing::warn!(
            void = void.len(),
            "keys of the cluster that we do not verify with are left out"
        );
    }
    if keys.iter().next().is_none() {
        return Err("it publishes no key that we verify with (P-256, or RSA of 2048 bits and more)");
    }
    Ok(ClusterTrust {
        issuer: issuer.to_owned(),
        keys,
        algorithms: vec![Alg::Rs256, Alg::Es256],
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::jwt::SigningKey;
    use serde_json::json;

    #[test]
    fn an_issuer_without_a_name_or_a_usable_key_is_nobody() {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let keys = json!({"keys": [key.public().jwk(), {"kty": "oct", "k": "AA"}]});
        let named = json!({"issuer": "https://kubernetes.default.svc", "jwks_uri": "https://elsewhere.example/keys"});
        let trust = read(&named, &keys).unwrap();
        assert_eq!(trust.issuer, "https://kubernetes.default.svc");
        assert_eq!(trust.keys.iter().count(), 1);
        assert!(read(&json!({}), &keys).is_err());
        assert!(read(&json!({"issuer": ""}), &keys).is_err());
        assert!(read(&named, &json!({"keys": [{"kty": "oct", "k": "AA"}]})).is_err());
    }
}
