//! Keys that change while sidecars call: planned by the broker's clock, and at once by a person's word.

use http::{Method, StatusCode};
use serde_json::{json, Value};
use sidegate_broker::control::RotatedNow;

use crate::client::{full, Client};
use crate::control::{audited, control};
use crate::world::World;

const HOUR_MS: i64 = 3_600_000;

async fn jwks(world: &World) -> Vec<String> {
    let mut back = Client::new(&world.running.issuer_url, &world.running.ca_pem, world.clock.clone());
    let request = back
        .request(Method::GET, "/jwks", None)
        .body(full(String::new()))
        .unwrap();
    let answer = back.send(request).await;
    let keys = answer.body["keys"].as_array().unwrap().iter();
    keys.map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

fn kid_of(token: &str) -> String {
    use base64::Engine as _;
    let header = token.split('.').next().unwrap();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_next_key_is_published_while_the_old_one_signs_and_takes_over_in_its_time() {
    let world = World::start().await;
    let first = jwks(&world).await;
    assert_eq!(first.len(), 3, "one of the access ring, two of the federation ring");
    world.clock.advance_ms(24 * HOUR_MS - 60_000);
    let world = world.restart().await;
    let next = jwks(&world).await;
    assert_eq!(next.len(), 4);
    assert!(first.iter().all(|kid| next.contains(kid)), "nothing was dropped");
    let sidecar = world.sidecar().await;
    assert_eq!(kid_of(sidecar.session.as_ref().unwrap()), first[0]);
    world.clock.advance_ms(2 * HOUR_MS);
    let world = world.restart().await;
    let sidecar = world.sidecar().await;
    assert_eq!(kid_of(sidecar.session.as_ref().unwrap()), next[1]);
    assert!(jwks(&world).await.contains(&first[0]), "its tokens live on");
    world.clock.advance_ms(16 * 60_000);
    assert!(!jwks(&world).await.contains(&first[0]), "retired");
}

#[tokio::test]
async fn an_emergency_rotation_ends_sessions_and_streams_and_is_on_record() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let mut stream = sidecar.stream().await;
    let old = jwks(&world).await;
    let socket = &world.running.control_socket;
    let (code, body) = control(socket, Method::POST, "/rotate", Some(json!({"rings": []}))).await;
    assert_eq!(code, StatusCode::OK, "{body}");
    let done: RotatedNow = serde_json::from_value(body).unwrap();
    assert_eq!((done.rotated.len(), done.failed.len()), (3, 0));
    assert!(done.notice.contains("until their cache ends"), "{}", done.notice);
    let said = audited(&world.path("state/records"));
    assert_eq!(
        said.iter().filter(|(event, _)| event == "keys.rotated-now").count(),
        3,
        "{said:?}"
    );
    let refused = sidecar.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(
        (refused.status, refused.error()),
        (StatusCode::UNAUTHORIZED, "invalid_client")
    );
    while stream.next().await.is_some() {}
    let new = jwks(&world).await;
    assert!(new.len() == 3 && new.iter().all(|kid| !old.contains(kid)));
    sidecar.session = None;
    sidecar.login(&world.token()).await;
    let ring = sidecar.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(
        ring.body["keys"].as_array().unwrap().len(),
        2,
        "record keys stay in the list"
    );
}

#[tokio::test]
async fn one_ring_alone_is_rotated_where_it_is_named() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let socket = &world.running.control_socket;
    let (_, body) = control(socket, Method::POST, "/rotate", Some(json!({"rings": ["federation"]}))).await;
    let done: RotatedNow = serde_json::from_value(body).unwrap();
    assert_eq!((done.rotated.len(), done.rotated[0].removed.len()), (1, 2));
    let still = sidecar.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(still.status, StatusCode::OK, "sessions are not of that ring");
    let (code, _) = control(socket, Method::POST, "/rotate", Some(json!({"rings": ["seal"]}))).await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
}
