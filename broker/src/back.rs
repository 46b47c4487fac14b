//! The back face: what the world may know of the issuer. Discovery and keys, read-only, without authentication, and kept
//! where a TokenIssuer has them published.
//!
//! Refuses everything else. The invariant: the metadata lists exactly what works, and no answer depends on who
//! asks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use http::header::{HeaderName, CACHE_CONTROL};
use serde_json::{json, Value};
use sidegate_policies::api::token_issuer::Publish;

use crate::credentials::publish::Documents;
use crate::front::{Front, Refusal};

/// The back face of one issuer.
#[derive(Clone)]
struct Back {
    front: Arc<Front>,
    front_url: Arc<str>,
}

/// The keys are looked at so often: a new one is published within that time.
const EVERY: Duration = Duration::from_millis(500);
/// Keys may be cached this long: a key is published well before its first use.
const CACHE: [(HeaderName, &str); 1] = [(CACHE_CONTROL, "public, max-age=300")];

/// The routes. The well-known segment stands before the path in RFC 8414 and after it in OIDC; our issuer has
/// no path, so both are here once.
pub fn router(front: Arc<Front>, front_url: &str) -> Router {
    let back = Back {
        front,
        front_url: front_url.into(),
    };
    Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/.well-known/oauth-authorization-server", get(discovery))
        .route("/jwks", get(jwks))
        .fallback(|| async { Refusal::not_found() })
        .with_state(back)
}

async fn discovery(State(back): State<Back>) -> ([(HeaderName, &'static str); 1], Json<Value>) {
    (CACHE, Json(metadata(&back.front, &back.front_url)))
}

/// What the issuer says of itself; `front` is what sidecars call the broker by.
pub fn metadata(served: &Front, front: &str) -> Value {
    let issuer = served.issuer.url();
    let trusted = served.attestor.issuers.trust();
    let assertions: Vec<&str> = trusted.algorithms.iter().map(|alg| alg.as_str()).collect();
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/jwks"),
        "token_endpoint": format!("{front}/token"),
        "introspection_endpoint": format!("{front}/introspect"),
        "introspection_endpoint_auth_methods_supported": ["DPoP"],
        "revocation_endpoint": format!("{front}/revoke"),
        "revocation_endpoint_auth_methods_supported": ["DPoP"],
        "grant_types_supported": [crate::front::token::EXCHANGE, "client_credentials"],
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": assertions,
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256", "RS256"],
        "dpop_signing_alg_values_supported": ["ES256"],
    })
}

async fn jwks(State(back): State<Back>) -> ([(HeaderName, &'static str); 1], Json<Value>) {
    (CACHE, Json(back.front.issuer.jwks(back.front.clock.now())))
}

/// Keeps what is published elsewhere as it should be, until told to stop. `front_url` is what sidecars call us by.
pub async fn publish(front: Arc<Front>, front_url: String) {
    let stop = front.tasks.stopping();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let index = front.index();
        let issuers = index.objects().token_issuers.iter();
        let wanted: BTreeSet<Publish> = issuers
            .filter_map(|located| located.object.spec.publish.clone())
            .collect();
        let documents = || Documents {
            discovery: metadata(&front, &front_url).to_string(),
            jwks: front.issuer.jwks(front.clock.now()).to_string(),
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = front.exchanges.published().look(wanted, documents, front.clock.as_ref()) => {}
        }
    }
}
