//! Introspection and revocation: what a caller may learn about tokens of its own, and how it ends them.

use http::{Method, StatusCode};
use serde_json::{json, Value};
use sidegate_policies::record::audit::read;
use sidegate_policies::record::layout::DirectoryStore;

use crate::client::{exchange, full, Answer, Client};
use crate::world::World;

async fn about(client: &mut Client, path: &str, body: String) -> Answer {
    client.call(Method::GET, "/v1/record-keys", None).await;
    let proof = client.proof("POST", path, json!({}));
    let request = client
        .request(Method::POST, path, Some(proof))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(full(body))
        .unwrap();
    client.send(request).await
}

async fn introspect(client: &mut Client, token: &str) -> Value {
    let answer = about(client, "/introspect", format!("token={token}&token_type_hint=x")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.body
}

async fn revoke(client: &mut Client, token: &str) {
    let answer = about(client, "/revoke", format!("token={token}")).await;
    assert_eq!((answer.status, answer.body), (StatusCode::OK, Value::Null));
}

async fn target_token(client: &mut Client, world: &World) -> String {
    let token = world.token();
    let pairs = [&exchange(&token)[..], &[("audience", "warehouse")]].concat();
    let answer = client.form(&pairs).await;
    answer.body["access_token"].as_str().unwrap().to_owned()
}

/// What is given out, and what is refused, is on record with who asked, for what, by which policy, token and key.
#[tokio::test]
async fn what_is_given_out_is_on_record_with_who_what_and_why() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    target_token(&mut sidecar, &world).await;
    let leased = sidecar.post("/v1/leases", json!({"target": "local/shop"})).await;
    assert_eq!(leased.status, StatusCode::OK);
    sidecar.post("/v1/leases", json!({"target": "other/elsewhere"})).await;
    // A second key for the running instance: it is known whose token that is.
    let stolen = sidecar.twin().exchange(&world.token()).await;
    assert_eq!(stolen.error(), "restart_not_seen");
    let uid = world.running.local().unwrap().pod_uid().to_owned();
    let front = world.running.front().clone();
    tokio::task::spawn_blocking(move || front.audit.flush())
        .await
        .unwrap()
        .unwrap();
    let events = read(&DirectoryStore::new(&world.path("state/records"))).unwrap();
    let find = |event: &str, object: &str| {
        let mut all = events.iter().map(|found| &found.says);
        let found = all.find(|says| says.event == event && says.object == object);
        found.unwrap_or_else(|| panic!("no {event} {object} in {events:#?}"))
    };
    for (event, object, policy, granted) in [
        ("token.granted", "session", "", "sidegate"),
        (
            "token.granted",
            "local/warehouse",
            "local/agents",
            "audience warehouse, scope read write, 300 s",
        ),
        ("lease.granted", "local/shop", "local/agents", "900 s"),
        ("lease.refused", "other/elsewhere", "", ""),
    ] {
        let says = find(event, object);
        assert_eq!((&*says.policy, &*says.granted), (policy, granted), "{says:?}");
        assert!(
            says.pod_uid == uid.as_str() && !says.pod.is_empty() && !says.node.is_empty(),
            "{says:?}"
        );
        assert_eq!(says.instance, Some(1), "{says:?}");
        assert!(
            says.jti.len() > 8 && says.kid.len() > 8 && says.latency_us.is_some(),
            "{says:?}"
        );
    }
    for object in ["session", "local/warehouse"] {
        assert!(find("token.granted", object).credential_id.starts_with("JTI="));
    }
    let refused = find("token.refused", "");
    assert_eq!(refused.subject, "system:serviceaccount:local:agent");
    assert!(
        refused.pod_uid == uid.as_str() && refused.credential_id.starts_with("JTI="),
        "{refused:?}"
    );
    assert!(
        refused.detail.contains("RestartNotSeen") && refused.latency_us.is_some(),
        "{refused:?}"
    );
}

#[tokio::test]
async fn introspection_shows_a_session_with_its_key_and_a_target_token_with_its_actor() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let session = sidecar.session.clone().unwrap();
    let shown = introspect(&mut sidecar, &session).await;
    assert_eq!(shown["active"], true);
    assert_eq!(shown["token_type"], "DPoP");
    assert_eq!(shown["cnf"], json!({"jkt": sidecar.key.public().thumbprint()}));
    assert_eq!(shown["aud"], world.running.issuer_url.as_str());
    assert_eq!(shown["client_id"], "system:serviceaccount:local:agent");
    assert_eq!(shown.get("sidegate"), None);
    let token = target_token(&mut sidecar, &world).await;
    let shown = introspect(&mut sidecar, &token).await;
    assert_eq!(
        (&shown["active"], &shown["token_type"]),
        (&json!(true), &json!("Bearer"))
    );
    assert_eq!(shown["act"], json!({"sub": shown["sub"]}));
    assert_eq!(
        (&shown["aud"], &shown["scope"]),
        (&json!("warehouse"), &json!("read write"))
    );
}

#[tokio::test]
async fn whatever_is_wrong_is_inactive_and_nothing_more_and_the_reason_is_on_record() {
    let world = World::start().await;
    let other = World::start().await;
    let mut sidecar = world.sidecar().await;
    let token = target_token(&mut sidecar, &world).await;
    let foreign = other.sidecar().await.session.unwrap();
    let unbound = world.token();
    let forged = format!("{}.{}", token.rsplit_once('.').unwrap().0, "A".repeat(86));
    let inactive = json!({"active": false});
    for wrong in ["nonsense", &forged, &foreign, &unbound] {
        assert_eq!(introspect(&mut sidecar, wrong).await, inactive);
        revoke(&mut sidecar, wrong).await;
    }
    world.clock.advance_ms(306_000);
    sidecar.login(&world.token()).await;
    assert_eq!(introspect(&mut sidecar, &token).await, inactive);
    // The old instance's tokens are not the new one's.
    let live = target_token(&mut sidecar, &world).await;
    assert_eq!(introspect(&mut sidecar, &live).await["active"], true);
    world.running.local().unwrap().restarted().unwrap();
    let mut newer = world.sidecar().await;
    assert_eq!(introspect(&mut newer, &live).await, inactive);
    let missing = about(&mut newer, "/introspect", "hint=x".to_owned()).await;
    assert_eq!(missing.error(), "invalid_request");
    let store = world.path("state/records");
    world.running.shutdown().await;
    let events = read(&DirectoryStore::new(&store)).unwrap();
    let refused = events
        .iter()
        .filter(|event| event.says.event == "introspection.refused");
    let reasons: Vec<&str> = refused.map(|event| &*event.says.detail).collect();
    for reason in [
        "not three segments",
        "bad signature",
        "iss missing, not a string, or another issuer",
        "expired",
        "a token of another pod or instance",
    ] {
        assert!(reasons.contains(&reason), "{reason}: {reasons:?}");
    }
}

#[tokio::test]
async fn introspection_and_revocation_are_for_attested_callers_only() {
    let world = World::start().await;
    let sidecar = world.sidecar().await;
    let session = sidecar.session.clone().unwrap();
    let mut stranger = sidecar.twin();
    stranger.exchange("x").await;
    for path in ["/introspect", "/revoke"] {
        for held in [None, Some(session.clone())] {
            stranger.session = held;
            let answer = about(&mut stranger, path, format!("token={session}")).await;
            assert_eq!(
                (answer.status, answer.error()),
                (StatusCode::UNAUTHORIZED, "invalid_client")
            );
        }
    }
    let mut sidecar = sidecar;
    assert_eq!(introspect(&mut sidecar, &session).await["active"], true);
}

#[tokio::test]
async fn a_revoked_token_is_refused_everywhere_its_stream_ends_and_a_restart_forgets_nothing() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let old = sidecar.session.clone().unwrap();
    let mut stream = sidecar.stream().await;
    let target = target_token(&mut sidecar, &world).await;
    sidecar.session = None;
    sidecar.login(&world.token()).await;
    let ids = [id_of(&old), id_of(&target)];
    for token in [&old, &target] {
        revoke(&mut sidecar, token).await;
        assert_eq!(introspect(&mut sidecar, token).await, json!({"active": false}));
    }
    while stream.next().await.is_some() {}
    let fresh = sidecar.session.replace(old);
    let refused = sidecar.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(
        (refused.status, refused.error()),
        (StatusCode::UNAUTHORIZED, "invalid_client")
    );
    sidecar.session = fresh;
    let fine = sidecar.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(fine.status, StatusCode::OK, "the other session lives on");
    let world = world.restart().await;
    for id in ids {
        assert!(world.running.front().revoked.holds(&id));
    }
}

fn id_of(token: &str) -> String {
    use base64::Engine as _;
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["jti"].as_str().unwrap().to_owned()
}
