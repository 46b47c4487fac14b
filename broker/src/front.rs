//! The front face: what sidecars call, over the broker's own TLS.
//!
//! Every call but `/token` carries a session token bound to the caller's key and a fresh proof of that key; see
//! [`caller`]. Who calls too often is turned away before anything is verified; see [`budget`]. Refuses with one opaque
//! body per error; the precise reason goes to the audit. The invariant: no handler here runs before its caller is
//! attested, and none believes what a request says about its sender.

pub mod approvals;
pub mod budget;
pub mod caller;
pub mod error;
pub mod introspect;
pub mod lease_table;
pub mod leases;
pub mod record_keys;
pub mod stream;
pub mod token;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{from_fn_with_state, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::Router;
use http::header::{HeaderValue, CACHE_CONTROL};
use tokio::sync::{watch, Notify};

use crate::approvals::Approvals;
use crate::attest::Attestor;
use crate::audit::Audit;
use crate::authority::Authority;
use crate::clock::Clock;
use crate::credentials::Exchanges;
use crate::dpop::Dpop;
use crate::index::Index;
use crate::issuer::Issuer;
use crate::lockdown::Lockdowns;
use crate::metrics::Metrics;
use crate::revoked::Revoked;
use crate::seal::Sealer;
use crate::secrets::Secrets;
use crate::spans;
use crate::task::Tasks;

pub use error::Refusal;
pub use lease_table::Leases;
pub use stream::Streams;

/// Everything the front face serves from.
pub struct Front {
    /// Signs tokens.
    pub issuer: Arc<Issuer>,
    /// Certifies both faces.
    pub authority: Arc<Authority>,
    /// Attests callers.
    pub attestor: Attestor,
    /// Checks proofs.
    pub dpop: Dpop,
    /// The accepted configuration.
    pub index: watch::Receiver<Arc<Index>>,
    /// The kill switch.
    pub lockdowns: Arc<Lockdowns>,
    /// What is asked and what comes of it, on record.
    pub audit: Arc<Audit>,
    /// Requests waiting for people.
    pub approvals: Arc<Approvals>,
    /// Where secrets are.
    pub secrets: Secrets,
    /// Tokens of other issuers.
    pub exchanges: Arc<Exchanges>,
    /// Leases given out.
    pub leases: Leases,
    /// Tokens of ours revoked before their time.
    pub revoked: Revoked,
    /// What is counted.
    pub metrics: Metrics,
    /// Who may call how often.
    pub budget: budget::Budget,
    /// Streams open now.
    pub streams: Streams,
    /// How long they live, a tenth more or less.
    pub stream_age: Duration,
    /// Seals what they are offered.
    pub sealer: Arc<Sealer>,
    /// Told when a sidecar holds something newer than this replica has read.
    pub catch_up: Notify,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// All tasks.
    pub tasks: Tasks,
}

impl Front {
    /// The configuration now.
    pub fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index.borrow())
    }
}

/// Largest body of an ordinary call.
pub const MAX_BODY: usize = 64 * 1024;
/// Largest body of a request for approval: the text alone may have 64 KiB.
pub const MAX_ASK: usize = 512 * 1024;
/// Within this an ordinary call is answered. Longer than the broker waits for the API server (10 s), so that a call
/// which fails on it is counted and audited before it is given up; shorter than a sidecar waits for an answer (15 s).
const DEADLINE: Duration = Duration::from_secs(12);

/// The routes. `records` is the collector's own router, served behind the same authentication.
pub fn router(front: Arc<Front>, records: Router) -> Router {
    let quick = Router::new()
        .route("/introspect", post(introspect::introspect))
        .route("/revoke", post(introspect::revoke))
        .route("/v1/leases", post(leases::create))
        .route("/v1/leases/{id}", delete(leases::end))
        .route("/v1/record-keys", post(record_keys::certify).get(record_keys::ring))
        .route("/v1/approvals", post(approvals::ask))
        .route("/v1/approvals/{name}/claim", post(approvals::claim))
        .route("/v1/approvals/{name}/outcome", post(approvals::outcome))
        .route("/v1/approvals/{name}/withdraw", post(approvals::withdraw))
        .layer(axum::middleware::from_fn(deadline));
    let long = Router::new()
        .route("/v1/stream", post(stream::open))
        .route("/v1/approvals/{name}", get(approvals::watch));
    let authenticated = quick
        .merge(long)
        .with_state(Arc::clone(&front))
        .merge(records)
        .layer(from_fn_with_state(Arc::clone(&front), caller::authenticate));
    let open = Router::new()
        .route("/token", post(token::exchange))
        .layer(axum::middleware::from_fn(deadline))
        .with_state(Arc::clone(&front));
    open.merge(authenticated)
        .fallback(|| async { Refusal::not_found() })
        .layer(from_fn_with_state(Arc::clone(&front), budget::guard))
        .layer(from_fn_with_state(front, stamp))
        .layer(axum::middleware::from_fn(spans::traced))
}

/// Every answer carries the present nonce and is never cached.
async fn stamp(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(nonce) = HeaderValue::from_str(&front.dpop.nonce()) {
        headers.insert("dpop-nonce", nonce);
    }
    response
}

async fn deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::unavailable().into_response(),
    }
}

/// Reads a whole body of at most `limit` bytes.
pub async fn body(request: Request, limit: usize) -> Result<bytes::Bytes, Refusal> {
    axum::body::to_bytes(request.into_body(), limit)
        .await
        .map_err(|_| Refusal::invalid_request())
}

/// Reads a JSON body of at most `limit` bytes.
pub async fn json<T: serde::de::DeserializeOwned>(request: Request, limit: usize) -> Result<T, Refusal> {
    let bytes = body(request, limit).await?;
    serde_json::from_slice(&bytes).map_err(|_| Refusal::invalid_request())
}
