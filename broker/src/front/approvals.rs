//! Approvals as sidecars see them: ask, wait, claim, settle, withdraw. Deciding is not here: people do it elsewhere.
//!
//! Refuses requests of other pods as if they did not exist. The invariant: what waits for a store runs off the runtime's
//! threads, and a waiter holds nothing but its place in line.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, RawQuery, Request, State};
use axum::{Extension, Json};
use sidegate_policies::record::Kind;
use sidegate_policies::wire::{ApprovalAsk, ApprovalClaim, ApprovalOutcome, ApprovalState};

use super::caller::{refused, Caller};
use super::{json, Front, Refusal, MAX_ASK, MAX_BODY};
use crate::approvals::{pause, ApprovalError};
use crate::audit::{Event, More};

type Answer = Result<Json<ApprovalState>, Refusal>;

/// Longest wait of one call.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// `POST /v1/approvals`.
pub async fn ask(State(front): State<Arc<Front>>, Extension(caller): Extension<Caller>, request: Request) -> Answer {
    let ask: ApprovalAsk = json(request, MAX_ASK).await?;
    let (target, digest) = (ask.target.clone(), ask.digest.clone());
    let who = caller.clone();
    let audit = Arc::clone(&front.audit);
    let answer = run(front, move |front| {
        front
            .approvals
            .ask(who.subject(), ask, &front.index(), &front.lockdowns.now())
    })
    .await?;
    audit.note(Event {
        subject: &caller.workload.client_id(),
        pod_uid: &caller.subject().pod_uid,
        object: &answer.0.name,
        digest: &digest,
        detail: &format!("for {target}"),
        more: More::of(&caller.workload),
        ..Event::new(Kind::Request, "approval.asked")
    });
    Ok(answer)
}

/// `GET /v1/approvals/{name}?wait=SECONDS&state=STATE`: answers once the state differs, or the time is over.
pub async fn watch(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let (wait, known) = wish(query.as_deref().unwrap_or_default()).ok_or_else(Refusal::invalid_request)?;
    let mut moved = front.approvals.watch();
    let stop = front.tasks.stopping();
    let until = tokio::time::Instant::now().checked_add(wait.min(MAX_WAIT));
    let until = until.unwrap_or_else(tokio::time::Instant::now);
    loop {
        let now = match front.approvals.get(caller.subject(), &name) {
            Ok(now) => now,
            // Another replica may have been asked, a moment ago.
            Err(_) => {
                let (who, name) = (caller.clone(), name.clone());
                let look = move |front: &Front| front.approvals.look(who.subject(), &name);
                run(Arc::clone(&front), look).await?.0
            }
        };
        if known.as_ref() != Some(&serde_json::to_value(now.state).unwrap_or_default()) {
            return Ok(Json(now));
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(Json(now)),
            () = tokio::time::sleep_until(until) => return Ok(Json(now)),
            changed = moved.changed() => {
                if changed.is_err() {
                    return Ok(Json(now));
                }
            }
        }
    }
}

/// `POST /v1/approvals/{name}/claim`.
pub async fn claim(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    request: Request,
) -> Answer {
    let claim: ApprovalClaim = json(request, MAX_BODY).await?;
    run(front, move |front| {
        let (index, denied) = (front.index(), front.lockdowns.now());
        front.approvals.claim(caller.subject(), &name, &claim, &index, &denied)
    })
    .await
}

/// `POST /v1/approvals/{name}/outcome`.
pub async fn outcome(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    request: Request,
) -> Answer {
    let outcome: ApprovalOutcome = json(request, MAX_BODY).await?;
    run(front, move |front| {
        front.approvals.outcome(caller.subject(), &name, &outcome)
    })
    .await
}

/// `POST /v1/approvals/{name}/withdraw`.
pub async fn withdraw(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer {
    run(front, move |front| front.approvals.withdraw(caller.subject(), &name)).await
}

async fn run<F>(front: Arc<Front>, work: F) -> Answer
where
    F: FnOnce(&Front) -> Result<ApprovalState, ApprovalError> + Send + 'static,
{
    let tasks = front.tasks.clone();
    let outcome = tasks
        .blocking(move || work(&front).map_err(|error| outward(&front, &error)))
        .await
        .ok_or_else(Refusal::unavailable)?;
    outcome.map(Json)
}

fn outward(front: &Front, error: &ApprovalError) -> Refusal {
    refused(front, "approval.refused", "", &error.to_string());
    match error {
        ApprovalError::NotFound => Refusal::not_found(),
        ApprovalError::TooLong => Refusal::too_large(),
        ApprovalError::Flood(_) => Refusal::limit(),
        ApprovalError::Locked(_) => Refusal::locked(),
        ApprovalError::Store(_) | ApprovalError::Contended | ApprovalError::Unrecorded(_) => Refusal::unavailable(),
        ApprovalError::NotAsked
        | ApprovalError::NotPending(_)
        | ApprovalError::NotAllowed(_)
        | ApprovalError::Digest => Refusal::not_allowed(),
    }
}

/// `wait=SECONDS&state=STATE`, both optional.
fn wish(query: &str) -> Option<(Duration, Option<serde_json::Value>)> {
    let mut wait = Duration::ZERO;
    let mut state = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=')? {
            ("wait", seconds) => wait = Duration::from_secs(seconds.parse().ok()?),
            ("state", name) => state = Some(serde_json::Value::from(name)),
            _ => return None,
        }
    }
    Some((wait, state))
}

/// Housekeeping until the broker stops: whenever a request moved, and twice a second. A store that does not answer holds
/// up nothing else.
pub async fn keep(front: Arc<Front>) {
    let stop = front.tasks.stopping();
    let mut moved = front.approvals.watch();
    let mut failures = 0_u32;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // What moves while nothing can be swept is no reason to come sooner.
            _ = moved.changed(), if failures == 0 => {}
            () = tokio::time::sleep(pause(failures)) => {}
        }
        let (tasks, kept) = (front.tasks.clone(), Arc::clone(&front));
        let swept = tasks
            .blocking(move || kept.approvals.sweep(&kept.index(), &kept.lockdowns.now()))
            .await;
        match swept {
            Some(Ok(())) => failures = 0,
            Some(Err(error)) => {
                // Said once, until it works again.
                if failures == 0 {
                    tracing::error!(%error, "requests cannot be swept now");
                }
                failures = failures.saturating_add(1);
            }
            None => failures = failures.saturating_add(1),
        }
    }
}
