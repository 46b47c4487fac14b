//! `/introspect` (RFC 7662) and `/revoke` (RFC 7009): what became of a token of ours, and its end before its time.
//!
//! Both are for authenticated callers and for tokens of the caller's own pod and instance. Refuses to tell anything
//! else apart: whatever is wrong is `{"active":false}`, or 200 from `/revoke`; the precise reason is in the audit.
//! The invariant: a token revoked here is accepted nowhere in this broker, from the answer on.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use serde_json::{json, Map, Value};
use sidegate_policies::record::Kind;

use super::caller::{ours, Caller};
use super::token::form;
use super::{Front, Refusal};
use crate::audit::Event;
use crate::jwt::{Accepted, Refused, Slot};

/// Claims of ours that `/introspect` repeats, where the token has them. RFC 7662 section 2.2, with `act` (RFC 8693)
/// and `cnf` (RFC 9449 section 6.2).
const SHOWN: [&str; 11] = [
    "iss",
    "sub",
    "aud",
    "iat",
    "nbf",
    "exp",
    "jti",
    "client_id",
    "scope",
    "act",
    "cnf",
];

/// `POST /introspect`.
pub async fn introspect(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Refusal> {
    let asked = asked(&front, &caller, request, "introspection.refused").await?;
    let answer = asked.map_or_else(|| json!({"active": false}), |accepted| described(&accepted));
    Ok(Json(answer).into_response())
}

/// `POST /revoke`.
pub async fn revoke(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let Some(accepted) = asked(&front, &caller, request, "revocation.refused").await? else {
        return Ok(StatusCode::OK);
    };
    let (id, expires) = (accepted.text("jti").to_owned(), accepted.integer("exp").unwrap_or(0));
    let tasks = front.tasks.clone();
    let done = tasks.blocking(move || {
        let added = front.revoked.add(id.clone(), expires, front.clock.now());
        front.audit.note(Event {
            subject: &caller.workload.client_id(),
            pod_uid: &caller.subject().pod_uid,
            object: &id,
            detail: &added.as_ref().err().map(ToString::to_string).unwrap_or_default(),
            ..Event::new(Kind::Issued, "token.revoked")
        });
        added
    });
    match done.await {
        Some(Ok(())) => Ok(StatusCode::OK),
        // RFC 7009 section 2.2.1: the caller must assume that the token still exists, and come again.
        _ => Err(Refusal::unavailable()),
    }
}

/// The token that a call is about, where it is the caller's own; the precise reason against it goes to the audit as
/// `event`.
async fn asked(
    front: &Front,
    caller: &Caller,
    request: Request,
    event: &'static str,
) -> Result<Option<Accepted>, Refusal> {
    let form = form(request).await?;
    let token = form.get("token").ok_or_else(Refusal::invalid_request)?;
    let own = own(front, caller, token).inspect_err(|why| {
        front.audit.note(Event {
            subject: &caller.workload.client_id(),
            pod_uid: &caller.subject().pod_uid,
            detail: why,
            ..Event::new(Kind::Refused, event)
        });
    });
    Ok(own.ok())
}

/// A live token of ours that belongs to this caller, or the precise reason why it is none.
fn own(front: &Front, caller: &Caller, token: &str) -> Result<Accepted, String> {
    let accepted = match ours(front, Slot::Session, token) {
        // Ours and not for us: then by the rules of tokens for targets, whole.
        Err(Refused::Audience) => ours(front, Slot::TargetAccess, token),
        other => other,
    };
    let accepted = accepted.map_err(|error| error.to_string())?;
    let instance = accepted.claim("sidegate").and_then(|claim| claim.get("instance"));
    let same = accepted.pointer("/sidegate/podUid") == Some(caller.subject().pod_uid.as_str())
        && instance.and_then(Value::as_u64) == Some(caller.workload.instance);
    if !same {
        return Err("a token of another pod or instance".to_owned());
    }
    Ok(accepted)
}

fn described(accepted: &Accepted) -> Value {
    let bound = accepted.claim("cnf").is_some();
    let mut members = Map::new();
    members.insert("active".to_owned(), true.into());
    members.insert("token_type".to_owned(), if bound { "DPoP" } else { "Bearer" }.into());
    for name in SHOWN {
        if let Some(value) = accepted.claim(name) {
            members.insert(name.to_owned(), value.clone());
        }
    }
    Value::Object(members)
}
