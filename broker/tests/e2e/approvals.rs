//! Approvals over the front face, decided over the control socket.

use http::{Method, StatusCode};
use serde_json::{json, Value};

use crate::control::control;
use crate::world::World;

fn ask(digest: char) -> Value {
    json!({
        "target": "local/shop", "session": "s-1",
        "operation": {"protocol": "Postgres", "action": "UPDATE", "text": "UPDATE app.orders SET status = 'x' WHERE id = 1"},
        "digest": digest.to_string().repeat(64),
        "approverSets": [{"rule": "local/agents/refund", "approvers": [{"user": "unix:mallory"}], "count": 1}],
        "validForSeconds": 900, "bundle": "b",
    })
}

fn claim(digest: char, nonce: &str) -> Value {
    json!({"session": "s-1", "operation": 1, "digest": digest.to_string().repeat(64), "nonce": nonce})
}

#[tokio::test]
async fn a_held_operation_is_approved_claimed_once_and_settled() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let asked = sidecar.post("/v1/approvals", ask('a')).await;
    assert_eq!(asked.body["state"], "Pending", "{}", asked.body);
    let name = asked.body["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("ar-") && name.len() == 11);
    let path = format!("/v1/approvals/{name}");
    let early = sidecar.post(&format!("{path}/claim"), claim('a', "n1")).await;
    assert_eq!(
        (early.body["won"].as_bool(), early.body["state"].as_str()),
        (Some(false), Some("Pending"))
    );

    let socket = world.running.control_socket.clone();
    let watch = format!("{path}?wait=30&state=Pending");
    let decision = json!({"verdict": "Approve", "reason": "ok"});
    let route = format!("/requests/{name}/decide");
    let (granted, decided) = tokio::join!(
        sidecar.call(Method::GET, &watch, None),
        control(&socket, Method::POST, &route, Some(decision)),
    );
    assert_eq!(decided.0, StatusCode::OK, "{}", decided.1);
    assert_eq!(decided.1["status"]["state"], "Granted");
    assert_eq!(decided.1["metadata"]["annotations"]["sidegate.dev/separation"], "none");
    let by = decided.1["status"]["decisions"][0]["by"].as_str().unwrap();
    assert!(by.starts_with("unix:"), "{by}");
    assert_eq!(granted.body["state"], "Granted");
    assert_eq!(granted.body["decidedBy"], json!([by]));

    let other = sidecar.post(&format!("{path}/claim"), claim('b', "n1")).await;
    assert_eq!(other.error(), "not_allowed", "another digest is another operation");
    let won = sidecar.post(&format!("{path}/claim"), claim('a', "n1")).await;
    assert_eq!(
        (won.body["won"].as_bool(), won.body["state"].as_str()),
        (Some(true), Some("Claimed"))
    );
    let repeated = sidecar.post(&format!("{path}/claim"), claim('a', "n1")).await;
    assert_eq!(repeated.body["won"], true, "a lost reply is asked for again");
    let second = sidecar.post(&format!("{path}/claim"), claim('a', "n2")).await;
    assert_eq!(second.body["won"], false, "one grant runs once");
    let done = sidecar
        .post(&format!("{path}/outcome"), json!({"state": "Done", "nonce": "n1"}))
        .await;
    assert_eq!(done.body["state"], "Done");
    let again = sidecar.post("/v1/approvals", ask('a')).await;
    assert_ne!(
        again.body["name"].as_str(),
        Some(name.as_str()),
        "a used grant is not asked again"
    );
}

#[tokio::test]
async fn what_no_rule_asks_for_is_not_asked() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    for (field, value) in [
        ("target", json!("other/elsewhere")),
        (
            "approverSets",
            json!([{"rule": "local/agents/read", "approvers": [], "count": 1}]),
        ),
        (
            "approverSets",
            json!([{"rule": "local/agents/none", "approvers": [], "count": 1}]),
        ),
        ("approverSets", json!([])),
    ] {
        let mut body = ask('a');
        body[field] = value;
        assert_eq!(
            sidecar.post("/v1/approvals", body).await.error(),
            "not_allowed",
            "{field}"
        );
    }
    let mut long = ask('a');
    long["operation"]["text"] = json!("x".repeat(65 * 1024));
    assert_eq!(sidecar.post("/v1/approvals", long).await.error(), "too_large");
}

#[tokio::test]
async fn requests_and_grants_survive_a_restart_of_the_broker() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let asked = sidecar.post("/v1/approvals", ask('a')).await;
    let name = asked.body["name"].as_str().unwrap().to_owned();
    let world = world.restart().await;
    let route = format!("/requests/{name}/decide");
    let decided = control(
        &world.running.control_socket,
        Method::POST,
        &route,
        Some(json!({"verdict": "Approve"})),
    )
    .await;
    assert_eq!(decided.0, StatusCode::OK, "{}", decided.1);
    let world = world.restart().await;
    let mut sidecar = world.sidecar().await;
    let won = sidecar
        .post(&format!("/v1/approvals/{name}/claim"), claim('a', "n"))
        .await;
    assert_eq!(won.body["won"], true, "{}", won.body);
}
