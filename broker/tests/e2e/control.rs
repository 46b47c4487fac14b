//! The control socket as the command line uses it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{json, Value};
use sidegate_broker::clock::{rfc3339, Clock};
use sidegate_broker::control::{Locked, Status, Unlocked};
use sidegate_policies::record::audit::read;
use sidegate_policies::record::layout::DirectoryStore;
use sidegate_policies::record::verify::{verify_store, Options};
use tokio::net::UnixStream;

use crate::world::World;

/// One call.
pub async fn control(socket: &Path, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    #[allow(clippy::disallowed_methods)] // the test's own connection task ends with the test's runtime
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "control")
        .body(Full::new(Bytes::from(
            body.map(|body| body.to_string()).unwrap_or_default(),
        )))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn status_tells_targets_with_reasons_and_the_boundary() {
    let world = World::start().await;
    let socket = &world.running.control_socket;
    assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, body) = control(socket, Method::GET, "/status", None).await;
    assert_eq!(code, StatusCode::OK);
    let status: Status = serde_json::from_value(body).unwrap();
    assert_eq!(
        (status.subject.as_str(), status.separation.as_str()),
        ("local/agent", "none")
    );
    let problems: Vec<(&str, &str)> = status
        .targets
        .iter()
        .map(|target| (target.target.as_str(), target.problem.as_deref().unwrap_or_default()))
        .collect();
    assert_eq!(problems[0], ("local/shop", "no sidecar serves it (yet)"));
    assert!(problems[2].1.starts_with("NamespaceNotAllowed"), "{problems:?}");
    assert_eq!(world.running.targets().len(), 2);
}

#[tokio::test]
async fn lock_and_unlock_write_lockdowns_that_survive_a_restart() {
    let world = World::start().await;
    let socket = world.running.control_socket.clone();
    let freeze = json!({"freeze": [{"everything": {}}], "reason": "drill", "action": "Close"});
    let (code, body) = control(&socket, Method::POST, "/lock", Some(freeze)).await;
    assert_eq!(code, StatusCode::OK, "{body}");
    let locked: Locked = serde_json::from_value(body).unwrap();
    assert_eq!((locked.sidecars, locked.acknowledged), (0, 0));
    assert_eq!(locked.unrecorded, None);
    let store = world.path("state/records");
    assert_eq!(
        audited(&store),
        [("lockdown.locked".to_owned(), locked.name.clone())],
        "on the disk when it is answered"
    );
    let world = world.restart().await;
    let status = world.running.status();
    assert_eq!(status.lockdowns, [locked.name.as_str()]);
    assert!(status.deny_revision >= locked.revision);
    let (_, body) = control(&socket, Method::POST, "/unlock", Some(json!({"names": []}))).await;
    let unlocked: Unlocked = serde_json::from_value(body).unwrap();
    assert_eq!(unlocked.names, [locked.name.as_str()]);
    assert!(unlocked.revision > status.deny_revision);
    assert!(world.running.status().lockdowns.is_empty());
    let (code, body) = control(&socket, Method::POST, "/unlock", Some(json!({"names": ["nothing"]}))).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert!(body["error"].as_str().unwrap().contains("nothing"));
    let unlocked = ("lockdown.unlocked".to_owned(), locked.name);
    assert_eq!(audited(&store)[1], unlocked);
    world.running.shutdown().await;
    let report = verify_store(&store, &Options::default()).unwrap();
    assert_eq!((report.exit_code(), report.logs.len()), (0, 2), "{report:?}");
}

#[tokio::test]
async fn a_lockdown_whose_time_passed_while_the_broker_was_down_is_told_at_its_start() {
    let world = World::start().await;
    let until = rfc3339(world.clock.now_ms() + 60_000);
    let freeze = json!({"freeze": [{"everything": {}}], "reason": "drill", "action": "Close", "forSeconds": 60});
    let (code, body) = control(&world.running.control_socket, Method::POST, "/lock", Some(freeze)).await;
    assert_eq!(code, StatusCode::OK, "{body}");
    let store = world.path("state/records");
    let world = world.restart_after(3_600_000).await;
    assert!(world.running.status().lockdowns.is_empty());
    let world = world.restart().await;
    let _folder = world.temp;
    world.running.shutdown().await;
    let events = read(&DirectoryStore::new(&store)).unwrap().into_iter();
    let ended: Vec<String> = events
        .filter(|event| event.says.event == "lockdown.ended")
        .map(|event| event.says.detail.into_owned())
        .collect();
    assert_eq!(ended, [format!("at {until}; noticed only when the broker started")]);
}

/// What people did, from the broker's own log: event and object.
pub fn audited(store: &Path) -> Vec<(String, String)> {
    let events = read(&DirectoryStore::new(store)).unwrap().into_iter();
    let by_people = events.filter(|event| event.says.subject.starts_with("uid:"));
    by_people
        .map(|event| (event.says.event.into_owned(), event.says.object.into_owned()))
        .collect()
}

#[tokio::test]
async fn a_lockdown_without_reason_or_object_is_refused() {
    let world = World::start().await;
    for body in [
        json!({"freeze": [], "reason": "x", "action": "Close"}),
        json!({"freeze": [{"everything": {}}], "reason": " ", "action": "Close"}),
        json!({"freeze": [{"everything": {}}]}),
    ] {
        let (code, _) = control(&world.running.control_socket, Method::POST, "/lock", Some(body)).await;
        assert_eq!(code, StatusCode::BAD_REQUEST);
    }
    assert!(world.running.status().lockdowns.is_empty());
}

#[tokio::test]
async fn shutdown_over_the_socket_asks_the_process_to_stop() {
    let world = World::start().await;
    let (code, _) = control(&world.running.control_socket, Method::POST, "/shutdown", None).await;
    assert_eq!(code, StatusCode::NO_CONTENT);
    world.running.asked_to_stop().await;
}
