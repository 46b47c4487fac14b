//! Record keys: certifies the Ed25519 key of one sidecar start, and publishes the ring that certifies.
//!
//! Refuses anything that is not 32 bytes of base64url. The invariant: a certificate names the attested pod and
//! instance, never what the request says.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use sidegate_policies::record::Kind;
use sidegate_policies::wire::{RecordKeyRequest, RecordKeyResponse, RecordKeyRing};

use super::caller::Caller;
use super::{json, Front, Refusal, MAX_BODY};
use crate::audit::{Event, More};

/// `POST /v1/record-keys`.
pub async fn certify(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<RecordKeyResponse>, Refusal> {
    let asked: RecordKeyRequest = json(request, MAX_BODY).await?;
    let key = URL_SAFE_NO_PAD
        .decode(&asked.public_key)
        .map_err(|_| Refusal::invalid_request())?;
    if key.len() != 32 {
        return Err(Refusal::invalid_request());
    }
    let who = &caller.workload;
    let certificate = front
        .issuer
        .record_certificate(who, &asked.public_key, front.clock.now())
        .map_err(|_| Refusal::unavailable())?;
    front.audit.note(Event {
        subject: &who.client_id(),
        pod_uid: &who.subject.pod_uid,
        object: &asked.public_key,
        more: More::of(who),
        ..Event::new(Kind::Issued, "record-key.certified")
    });
    Ok(Json(RecordKeyResponse { certificate }))
}

/// `GET /v1/record-keys`.
pub async fn ring(State(front): State<Arc<Front>>) -> Json<RecordKeyRing> {
    Json(RecordKeyRing {
        keys: front.issuer.record_ring(),
    })
}
