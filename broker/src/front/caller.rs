//! The caller of every call but `/token`: a session token, bound to a key, and a fresh proof of that key.
//!
//! Refuses bearer use, a token of another key, a pod that is gone and an instance that was replaced. The
//! invariant: a handler finds a [`Caller`] in the request only after all of that held.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{HeaderMap, AUTHORIZATION};
use http::request::Parts;
use sidegate_policies::engine::Subject;
use sidegate_policies::record::Kind;

use super::budget::over;
use super::{Front, Refusal};
use crate::attest::NotAttested;
use crate::audit::{Event, More};
use crate::dpop::{Call, DpopRefused};
use crate::issuer::Workload;
use crate::jwt::{accept, Accepted, Refused, Slot};
use crate::spans;

/// Who calls, as attested. In the extensions of every authenticated request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The workload.
    pub workload: Workload,
    /// Thumbprint of its key.
    pub thumbprint: String,
    /// When its session token ends, seconds since 1970.
    pub expires: i64,
    /// Id of its session token.
    pub token_id: String,
    /// Id of the key that signed it.
    pub kid: String,
}

impl Caller {
    /// The pod.
    pub fn subject(&self) -> &Subject {
        &self.workload.subject
    }
}

/// Authenticates, then runs the handler.
pub async fn authenticate(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match identify(&front, &parts).await {
        Ok(caller) => {
            spans::of_pod(&caller.subject().pod_uid);
            let mut request = Request::from_parts(parts, body);
            request.extensions_mut().insert(crate::records::Caller {
                namespace: caller.subject().namespace.clone(),
                service_account: caller.subject().service_account.clone(),
                pod_uid: caller.subject().pod_uid.clone(),
                instance: caller.workload.instance,
            });
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn identify(front: &Front, request: &Parts) -> Result<Caller, Refusal> {
    let token = dpop_token(&request.headers)?;
    let call = Call {
        method: request.method.as_str(),
        path: request.uri.path(),
        token: Some(token),
    };
    let proof = single(&request.headers, "dpop")?;
    let key = front
        .dpop
        .check(proof, call)
        .map_err(|error| proof_refused(front, error, false))?;
    let caller = session(front, token).await?;
    if caller.thumbprint != key.thumbprint() {
        refused_to(
            front,
            "session.refused",
            &caller.workload,
            "the proof is by another key",
        );
        return Err(Refusal::invalid_client());
    }
    front.budget.know(&caller.thumbprint);
    let pod = front.budget.pod(&caller.subject().pod_uid);
    pod.map_err(|_| over(front))?;
    Ok(caller)
}

/// Accepts a session token and looks at the pod again. Also for tokens that come within a stream.
pub async fn session(front: &Front, token: &str) -> Result<Caller, Refusal> {
    let accepted = ours(front, Slot::Session, token).map_err(|error| {
        refused(front, "session.refused", "", &error.to_string());
        Refusal::invalid_client()
    })?;
    let mut caller = read(&accepted).ok_or_else(Refusal::invalid_client)?;
    match front.attestor.still(&caller.workload).await {
        Ok(pod) => caller.workload.subject.labels = pod.labels,
        Err(error) => {
            refused_to(front, "session.refused", &caller.workload, &error.to_string());
            return Err(attestation_refused(&error));
        }
    }
    Ok(caller)
}

/// Accepts a token that we issued, unless it is frozen or revoked.
pub(super) fn ours(front: &Front, slot: Slot, token: &str) -> Result<Accepted, Refused> {
    let denied = front.lockdowns.now();
    let (now, now_ms) = (front.clock.now(), front.clock.now_ms());
    let frozen = |id: &str| denied.token(id, now_ms) || front.revoked.holds(id);
    let keys = front.issuer.session_keys(now);
    accept(slot, token.as_bytes(), front.issuer.trust(&keys, &frozen), now)
}

/// Our own claims, as we wrote them.
fn read(accepted: &Accepted) -> Option<Caller> {
    let text = |name: &str| accepted.pointer(&format!("/sidegate/{name}")).map(str::to_owned);
    let number = |name: &str| accepted.claim("sidegate").and_then(|claim| claim.get(name));
    Some(Caller {
        thumbprint: accepted.pointer("/cnf/jkt")?.to_owned(),
        expires: accepted.integer("exp")?,
        token_id: accepted.text("jti").to_owned(),
        kid: accepted.kid()?.to_owned(),
        workload: Workload {
            account_uid: text("serviceAccountUid")?,
            node: text("node")?,
            instance: number("instance")?.as_u64()?,
            ends: number("ends")?.as_i64()?,
            subject: Subject {
                namespace: text("namespace")?,
                service_account: text("serviceAccount")?,
                pod: text("pod")?,
                pod_uid: text("podUid")?,
                labels: Default::default(),
            },
        },
    })
}

/// `Authorization: DPoP …`, once. The same token as Bearer is refused.
fn dpop_token(headers: &HeaderMap) -> Result<&str, Refusal> {
    let value = single(headers, AUTHORIZATION.as_str())?.ok_or_else(Refusal::invalid_client)?;
    let text = std::str::from_utf8(value).map_err(|_| Refusal::invalid_client())?;
    text.strip_prefix("DPoP ").ok_or_else(Refusal::invalid_client)
}

/// A header that comes at most once.
pub fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a [u8]>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Refusal::invalid_request()),
        (value, None) => Ok(value.map(|value| value.as_bytes())),
    }
}

/// A refused proof outward; RFC 9449 wants 400 at the token endpoint and 401 elsewhere.
pub fn proof_refused(front: &Front, error: DpopRefused, token_endpoint: bool) -> Refusal {
    match error {
        DpopRefused::Nonce if token_endpoint => Refusal::use_nonce(),
        DpopRefused::Nonce => Refusal::use_nonce_here(),
        DpopRefused::Full => Refusal::unavailable(),
        _ => {
            refused(front, "proof.refused", "", &error.to_string());
            Refusal::invalid_proof()
        }
    }
}

/// A failed attestation outward.
pub fn attestation_refused(error: &NotAttested) -> Refusal {
    match error {
        NotAttested::RestartNotSeen => Refusal::restart_not_seen(),
        NotAttested::Unavailable(_) => Refusal::unavailable(),
        NotAttested::TooMany => Refusal::too_many(),
        _ => Refusal::invalid_client(),
    }
}

/// Audits a refusal of a workload that is known.
pub fn refused_to(front: &Front, event: &'static str, who: &Workload, detail: &str) {
    front.audit.note(Event {
        subject: &who.client_id(),
        pod_uid: &who.subject.pod_uid,
        detail,
        more: More::of(who),
        ..Event::new(Kind::Refused, event)
    });
}

/// Audits a refusal.
pub fn refused(front: &Front, event: &'static str, subject: &str, detail: &str) {
    front.audit.note(Event {
        subject,
        detail,
        ..Event::new(Kind::Refused, event)
    });
}
