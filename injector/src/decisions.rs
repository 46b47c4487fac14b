//! `decisions.sidegate.dev`: stamps who decided about an AccessRequest, and computes what the decisions come to.
//!
//! Refuses whoever no asking rule names, the agent's own side, everybody excluded, a second word of the same person, a
//! word that comes too late, and any change of what others said. Invariant: of a status that somebody writes nothing is
//! taken but the verdict, its reason and how long it may be used; everything else is what was there, or computed. The
//! broker computes it once more before it counts, and an admission policy holds the rest where this is not asked.

use jiff::Timestamp;
use serde_json::{json, Value};
use sidegate_policies::api::access_request::{PersonDecision, RequestState, Verdict};
use sidegate_policies::api::AccessRequest;
use sidegate_policies::approval::{counting, may_decide, outcome, Place, Who, MAX_DECISIONS};
use sidegate_policies::quantity::Span;

use crate::refusal::Refusal;
use crate::review::{Asked, Outcome};

/// Characters of a reason.
const MAX_REASON: usize = 1_000;
const HOW: &str =
    "add one entry {verdict: Approve | Deny, reason: TEXT} at the end of status.decisions, or type `sidegate \
                   approve` or `sidegate deny`";

/// Answers a review.
pub(crate) fn reviewed(asked: &Asked, now: Timestamp) -> (Value, Outcome) {
    match judged(asked, now) {
        Ok(Some((status, verdict))) => {
            let word = match verdict {
                Verdict::Approve => "approve",
                Verdict::Deny => "deny",
            };
            let patch = json!({"op": "add", "path": "/status", "value": status});
            asked.changed("decided", word, vec![patch])
        }
        Ok(None) => asked.allowed(&[]),
        Err(refusal) => asked.refused(refusal),
    }
}

/// The status as it is to be stored, and the verdict that was added; nothing where nothing was.
fn judged(asked: &Asked, now: Timestamp) -> Result<Option<(Value, Verdict)>, Refusal> {
    let [group, _, plural, part] = &asked.resource;
    let named = [group.as_str(), plural, part, &asked.operation];
    if named != ["sidegate.dev", "accessrequests", "status", "UPDATE"] {
        let rules = "{apiGroups: [sidegate.dev], apiVersions: [v1alpha1], operations: [UPDATE], resources: \
                     [accessrequests/status]}";
        return Err(asked.misplaced(rules));
    }
    let status = |object: &Value| object.get("status").cloned().unwrap_or_else(|| json!({}));
    let (old, new) = (status(&asked.before), status(&asked.object));
    if old == new {
        return Ok(None);
    }
    let request: AccessRequest = serde_json::from_value(asked.before.clone())
        .map_err(|error| Refusal::invalid("request", format!("it is of another release: {error}")))?;
    let who = Who {
        name: &asked.user,
        groups: &asked.groups,
    };
    let word = added(&old, &new)?;
    let (verdict, reason) = (verdict(word)?, reason(word)?);
    open(&request, who, now)?;
    let mut stamped = request.status.clone().unwrap_or_default();
    stamped.decisions.push(PersonDecision {
        by: who.name.to_owned(),
        groups: counting(&request.spec, who.groups),
        verdict,
        reason,
        at: format!("{now:.3}"),
    });
    if let Some(wished) = new.get("for").filter(|wished| !wished.is_null()) {
        let span = wished.as_str().and_then(|text| text.parse::<Span>().ok());
        let message = "status.for is how long the grant may be used; write it like 30s, 5m or 1h";
        stamped.usable_for = Some(span.ok_or_else(|| Refusal::invalid("for", message))?);
    }
    stamped.state = outcome(&request.spec, &stamped.decisions, Place::Cluster).0;
    let stamped = serde_json::to_value(stamped).map_err(|error| Refusal::invalid("request", error.to_string()))?;
    Ok(Some((stamped, verdict)))
}

/// The one entry that is new.
fn added<'a>(old: &Value, new: &'a Value) -> Result<&'a Value, Refusal> {
    let said = |status: &Value| -> Vec<Value> {
        let all = status.get("decisions").and_then(Value::as_array);
        all.cloned().unwrap_or_default()
    };
    let (before, after) = (said(old), new.get("decisions").and_then(Value::as_array));
    let after = after.map(Vec::as_slice).unwrap_or_default();
    let Some((word, kept)) = after.split_last() else {
        return Err(Refusal::forbidden("decisions", format!("nothing is decided; {HOW}")));
    };
    if kept != before.as_slice() {
        let message = format!("what others said stays as it is, and one word is added at a time; {HOW}");
        return Err(Refusal::forbidden("decisions", message));
    }
    Ok(word)
}

fn verdict(word: &Value) -> Result<Verdict, Refusal> {
    let given = word.get("verdict").cloned().unwrap_or_default();
    serde_json::from_value(given).map_err(|_| Refusal::invalid("verdict", "write verdict: Approve or verdict: Deny"))
}

fn reason(word: &Value) -> Result<Option<String>, Refusal> {
    match word.get("reason") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.chars().count() <= MAX_REASON => Ok(Some(text.clone())),
        Some(_) => {
            let message = format!("a reason is a text of at most {MAX_REASON} characters; shorten it");
            Err(Refusal::invalid("reason", message))
        }
    }
}

/// Whether this person may still say something.
fn open(request: &AccessRequest, who: Who<'_>, now: Timestamp) -> Result<(), Refusal> {
    let refused = |rule: &'static str, message: String| Err(Refusal::forbidden(rule, message));
    let status = request.status.clone().unwrap_or_default();
    if status.state != RequestState::Pending {
        let message = format!(
            "it is {:?}, and nobody decides about it any more; let the agent ask anew",
            status.state
        );
        return refused("state", message);
    }
    let expires: Result<Timestamp, _> = request.spec.expires_at.parse();
    if expires.map_or(true, |expires| expires <= now) {
        let message = format!("it expired at {}; let the agent ask anew", request.spec.expires_at);
        return refused("expired", message);
    }
    if status.decisions.iter().any(|decision| decision.by == who.name) {
        let message = format!("{} has decided already; somebody else must", who.name);
        return refused("twice", message);
    }
    if status.decisions.len() >= MAX_DECISIONS {
        return refused(
            "full",
            "too many people have decided; let the agent ask anew".to_owned(),
        );
    }
    if let Err(barred) = may_decide(&request.spec, who, Place::Cluster) {
        let message = format!(
            "{} may not decide: {barred}; ask one of its approvers, see spec.approverSets",
            who.name
        );
        return refused("approver", message);
    }
    Ok(())
}

#[cfg(test)]
#[path = "decisions_tests.rs"]
mod tests;
