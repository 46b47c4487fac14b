//! Words on requests: who may say them, and what is made of them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;

use super::*;

const NOW: &str = "2026-11-29T10:05:00Z";

fn request(count: i32, decisions: Value) -> Value {
    json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "AccessRequest",
        "metadata": {"name": "ar-x", "namespace": "data", "resourceVersion": "7"},
        "spec": {
            "subject": {"serviceAccount": {"namespace": "agents", "name": "support"}, "pod": "p", "podUid": "u"},
            "target": {"namespace": "data", "name": "shop"},
            "operation": {"protocol": "Postgres", "action": "UPDATE", "text": "UPDATE x"},
            "digest": "d", "rules": ["data/p/r"], "exclude": [{"user": "owner"}],
            "approverSets": [{"rule": "data/p/r", "approvers": [{"group": "leads"}, {"user": "owner"}], "count": count}],
            "expiresAt": "2026-11-29T10:15:00Z",
        },
        "status": {"state": "Pending", "decisions": decisions},
    })
}

fn said(by: &str) -> Value {
    json!({"by": by, "groups": ["leads"], "verdict": "Approve", "at": "2026-11-29T10:01:00Z"})
}

fn review(user: &str, groups: &[&str], old: &Value, new: &Value) -> Value {
    let body = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "1", "operation": "UPDATE", "subResource": "status",
            "resource": {"group": "sidegate.dev", "version": "v1alpha1", "resource": "accessrequests"},
            "userInfo": {"username": user, "groups": groups}, "object": new, "oldObject": old,
        },
    });
    let asked = Asked::read(body.to_string().as_bytes()).unwrap().unwrap();
    let (answer, _) = reviewed(&asked, NOW.parse().unwrap());
    answer["response"].clone()
}

fn word(old: &Value, entry: Value) -> Value {
    let mut new = old.clone();
    new["status"]["decisions"].as_array_mut().unwrap().push(entry);
    new
}

fn yes() -> Value {
    json!({"verdict": "Approve", "reason": "checked"})
}

/// The status that the answer stores.
fn stamped(response: &Value) -> Value {
    assert_eq!(response["allowed"], true, "{response}");
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: Value = serde_json::from_slice(&patch).unwrap();
    assert_eq!(
        (&patch[0]["path"], patch.as_array().unwrap().len()),
        (&json!("/status"), 1)
    );
    patch[0]["value"].clone()
}

fn refused(response: &Value) -> String {
    assert_eq!(response["allowed"], false, "{response}");
    response["status"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn who_decided_comes_from_the_api_server_whatever_the_entry_says() {
    let old = request(1, json!([]));
    let forged = json!({
        "verdict": "Approve", "reason": "checked", "by": "somebody", "groups": ["cluster-admins"],
        "at": "2000-01-01T00:00:00Z",
    });
    for entry in [yes(), forged] {
        let status = stamped(&review("ann", &["leads", "staff"], &old, &word(&old, entry)));
        let wanted = json!({
            "state": "Granted",
            "decisions": [{
                "by": "ann", "groups": ["leads"], "verdict": "Approve", "reason": "checked",
                "at": "2026-11-29T10:05:00.000Z",
            }],
        });
        assert_eq!(status, wanted);
    }
}

#[test]
fn the_state_is_computed_and_everything_else_stays() {
    let old = request(2, json!([]));
    let mut new = word(&old, yes());
    new["status"]["state"] = json!("Granted");
    new["status"]["validUntil"] = json!("2030-01-01T00:00:00Z");
    new["status"]["claim"] = json!({"nonce": "n", "session": "s", "operation": 1, "at": NOW});
    new["status"]["for"] = json!("5m");
    let status = stamped(&review("ann", &["leads"], &old, &new));
    assert_eq!(status["state"], "Pending", "two must agree");
    assert_eq!(status["for"], "5m");
    assert!(
        status.get("validUntil").is_none() && status.get("claim").is_none(),
        "{status}"
    );
    let one = request(2, json!([said("ann")]));
    let status = stamped(&review("bob", &["leads"], &one, &word(&one, yes())));
    assert_eq!(status["state"], "Granted");
    assert_eq!(status["decisions"][0], said("ann"));
    let no = json!({"verdict": "Deny"});
    assert_eq!(
        stamped(&review("bob", &["leads"], &one, &word(&one, no)))["state"],
        "Denied"
    );
}

#[test]
fn who_may_not_decide_is_told_why() {
    let old = request(1, json!([]));
    let new = word(&old, yes());
    let account = "system:serviceaccount:agents:support";
    let cases: [(&str, &[&str], &str); 4] = [
        (account, &["leads", "system:serviceaccounts:agents"], "own side"),
        ("system:serviceaccount:agents:other", &["leads"], "own side"),
        ("owner", &["leads"], "excludes them"),
        ("eve", &["others"], "no asking rule names them"),
    ];
    for (user, groups, why) in cases {
        let message = refused(&review(user, groups, &old, &new));
        assert!(
            message.starts_with("sidegate: approver: ") && message.contains(why),
            "{user}: {message}"
        );
    }
    let again = request(2, json!([said("ann")]));
    assert!(refused(&review("ann", &["leads"], &again, &word(&again, yes()))).contains("decided already"));
}

#[test]
fn what_others_said_stays_and_one_word_is_added_at_a_time() {
    let old = request(3, json!([said("ann"), said("bob")]));
    let mut removed = old.clone();
    removed["status"]["decisions"] = json!([said("bob"), yes()]);
    let mut changed = word(&old, yes());
    changed["status"]["decisions"][0]["verdict"] = json!("Deny");
    let mut emptied = old.clone();
    emptied["status"]["decisions"] = json!([]);
    let mut first = old.clone();
    first["status"]["decisions"] = json!([yes(), said("ann"), said("bob")]);
    let two = word(&word(&old, yes()), yes());
    let mut state = old.clone();
    state["status"]["state"] = json!("Granted");
    for new in [removed, changed, emptied, first, two, state] {
        let message = refused(&review("eve", &["leads"], &old, &new));
        assert!(message.starts_with("sidegate: decisions: "), "{message}");
    }
    let same = review("eve", &["others"], &old, &old);
    assert!(same["allowed"] == true && same.get("patch").is_none(), "{same}");
}

#[test]
fn a_word_that_comes_too_late_or_is_none_is_refused() {
    let mut granted = request(1, json!([said("ann")]));
    granted["status"]["state"] = json!("Granted");
    assert!(refused(&review("bob", &["leads"], &granted, &word(&granted, yes()))).contains("it is Granted"));
    let mut expired = request(1, json!([]));
    expired["spec"]["expiresAt"] = json!(NOW);
    assert!(refused(&review("bob", &["leads"], &expired, &word(&expired, yes()))).contains("expired at"));
    let old = request(1, json!([]));
    for (entry, rule) in [
        (json!({"verdict": "approve"}), "verdict"),
        (json!({}), "verdict"),
        (json!("Approve"), "verdict"),
        (json!({"verdict": "Approve", "reason": 7}), "reason"),
        (json!({"verdict": "Approve", "reason": "x".repeat(1_001)}), "reason"),
    ] {
        let message = refused(&review("ann", &["leads"], &old, &word(&old, entry)));
        assert!(message.starts_with(&format!("sidegate: {rule}: ")), "{message}");
    }
    let mut new = word(&old, yes());
    new["status"]["for"] = json!("soon");
    assert!(refused(&review("ann", &["leads"], &old, &new)).starts_with("sidegate: for: "));
}
