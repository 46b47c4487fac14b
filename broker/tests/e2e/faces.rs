//! Tokens, proofs, discovery: who gets in, and what the answers give away.

use http::{Method, StatusCode};
use serde_json::{json, Value};
use sidegate_broker::StartError;
use sidegate_policies::wire::{RecordKeyResponse, RecordKeyRing};

use crate::client::{exchange, full, Client};
use crate::world::{World, CONFIG};

#[tokio::test]
async fn a_service_account_token_and_a_proof_become_a_session_bound_to_the_key() {
    let world = World::start().await;
    let mut client = world.client();
    let answer = client.exchange(&world.token()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(answer.body["token_type"], "DPoP");
    assert_eq!(answer.body["expires_in"], 300);
    assert_eq!(answer.headers["cache-control"], "no-store");
    client.session = answer.body["access_token"].as_str().map(str::to_owned);
    let ring = client.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(ring.status, StatusCode::OK);
}

/// The same token as a client assertion (RFC 7523 section 2.2), with more parameters.
fn assertion<'a>(token: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let own = [
        ("grant_type", "client_credentials"),
        ("client_assertion", token),
        (
            "client_assertion_type",
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        ),
    ];
    [&own[..], more].concat()
}

#[tokio::test]
async fn the_same_token_as_client_assertion_runs_the_same_path() {
    let world = World::start().await;
    let token = world.token();
    let mut client = world.client();
    let answer = client.form(&assertion(&token, &[])).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(answer.body["token_type"], "DPoP");
    client.session = answer.body["access_token"].as_str().map(str::to_owned);
    let ring = client.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(ring.status, StatusCode::OK);
    let target = client
        .form(&assertion(&token, &[("audience", "warehouse"), ("scope", "read x")]))
        .await;
    assert_eq!(
        (&target.body["token_type"], &target.body["scope"]),
        (&json!("Bearer"), &json!("read"))
    );
    let other = World::start().await.token();
    let mut thief = client.twin();
    for (form, token) in [
        (assertion(&other, &[]), &other),
        (assertion("a.b.c", &[]), &"a.b.c".to_owned()),
    ] {
        let (asserted, exchanged) = (client.form(&form).await, client.exchange(token).await);
        assert_eq!(asserted.status, StatusCode::UNAUTHORIZED);
        assert_eq!((asserted.status, asserted.body), (exchanged.status, exchanged.body));
    }
    let cloned = thief.form(&assertion(&token, &[])).await;
    assert_eq!(cloned.error(), "restart_not_seen", "pinned like an exchange");
}

#[tokio::test]
async fn a_client_id_or_scope_that_does_not_fit_is_refused() {
    let world = World::start().await;
    let token = world.token();
    let mut client = world.client();
    let own = "system:serviceaccount:local:agent";
    for (name, value, error) in [
        ("client_id", own, ""),
        ("client_id", "system:serviceaccount:local:other", "invalid_client"),
        ("client_id", "", "invalid_client"),
        ("scope", "sidegate", ""),
        ("scope", "admin", "invalid_scope"),
    ] {
        let answer = client.form(&assertion(&token, &[(name, value)])).await;
        assert_eq!(answer.error(), error, "{name}={value}");
    }
    let narrowed = client.form(&assertion(&token, &[("scope", "admin sidegate")])).await;
    assert_eq!(narrowed.body["scope"], "sidegate");
}

#[tokio::test]
async fn one_nonce_retry_is_asked_for_and_a_proof_without_nonce_gets_nothing() {
    let world = World::start().await;
    let mut client = world.client();
    let proof = client.proof("POST", "/token", json!({}));
    let first = client.form_with(&exchange(&world.token()), Some(proof)).await;
    assert_eq!(
        (first.status, first.error()),
        (StatusCode::BAD_REQUEST, "use_dpop_nonce")
    );
    assert!(first.headers.contains_key("dpop-nonce"));
    let again = client.exchange(&world.token()).await;
    assert_eq!(again.status, StatusCode::OK);
    let none = client.form_with(&exchange(&world.token()), None).await;
    assert_eq!(none.error(), "invalid_dpop_proof");
}

#[tokio::test]
async fn refused_tokens_look_alike_outward() {
    let world = World::start().await;
    let mut client = world.client();
    let good = world.token();
    let mut forged = good.clone();
    forged.truncate(good.len() - 4);
    let other = World::start().await;
    let answers = [forged, other.token(), "x".to_owned(), "a.b.c".to_owned()];
    let mut seen: Vec<(StatusCode, Value)> = Vec::new();
    for token in answers {
        let answer = client.exchange(&token).await;
        seen.push((answer.status, answer.body));
    }
    world.clock.advance_ms(2 * 3_600_000);
    let late = client.exchange(&good).await;
    seen.push((late.status, late.body));
    assert_eq!(seen[0].0, StatusCode::UNAUTHORIZED);
    assert!(seen.iter().all(|answer| *answer == seen[0]), "{seen:?}");
}

#[tokio::test]
async fn a_second_key_for_the_running_instance_is_refused_and_a_restarted_sidecar_accepted() {
    let world = World::start().await;
    let sidecar = world.sidecar().await;
    let mut thief = sidecar.twin();
    let refused = thief.exchange(&world.token()).await;
    assert_eq!(
        (refused.status, refused.error()),
        (StatusCode::SERVICE_UNAVAILABLE, "restart_not_seen")
    );
    world.running.local().unwrap().restarted().unwrap();
    assert_eq!(thief.exchange(&world.token()).await.status, StatusCode::OK);
    let mut old = sidecar;
    let gone = old.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(
        gone.status,
        StatusCode::UNAUTHORIZED,
        "the replaced instance's session ends"
    );
}

#[tokio::test]
async fn a_pin_survives_a_restart_of_the_broker_and_a_new_start_is_a_new_instance() {
    let world = World::start().await;
    let first = world.running.status().instance;
    drop(world.sidecar().await);
    let world = world.restart().await;
    assert_eq!(world.running.status().instance, first + 1);
    world.sidecar().await;
}

#[tokio::test]
async fn a_session_token_is_useless_without_its_key_or_as_bearer() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let mut thief = sidecar.twin();
    thief.session = sidecar.session.clone();
    let stolen = thief.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(
        (stolen.status, stolen.error()),
        (StatusCode::UNAUTHORIZED, "invalid_client")
    );
    let session = sidecar.session.take().unwrap();
    let proof = sidecar.proof("GET", "/v1/record-keys", json!({}));
    let request = sidecar
        .request(Method::GET, "/v1/record-keys", Some(proof))
        .header("authorization", format!("Bearer {session}"))
        .body(full(String::new()))
        .unwrap();
    let bearer = sidecar.send(request).await;
    assert_eq!(bearer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_proof_for_another_host_is_refused_whatever_the_host_header_says() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let change = json!({"htu": "https://broker.example/v1/record-keys"});
    let proof = sidecar.proof("GET", "/v1/record-keys", change);
    let request = sidecar
        .request(Method::GET, "/v1/record-keys", Some(proof))
        .header("host", "broker.example")
        .body(full(String::new()))
        .unwrap();
    assert_eq!(sidecar.send(request).await.error(), "invalid_dpop_proof");
}

#[tokio::test]
async fn a_session_ends_with_its_time() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    world.clock.advance_ms(306_000);
    let late = sidecar.call(Method::GET, "/v1/record-keys", None).await;
    assert_eq!(late.status, StatusCode::UNAUTHORIZED);
    sidecar.session = None;
    sidecar.login(&world.token()).await;
}

#[tokio::test]
async fn discovery_names_the_issuer_byte_for_byte_and_only_what_works() {
    let world = World::start().await;
    let mut back = Client::new(&world.running.issuer_url, &world.running.ca_pem, world.clock.clone());
    let mut documents = Vec::new();
    for path in [
        "/.well-known/openid-configuration",
        "/.well-known/oauth-authorization-server",
        "/jwks",
    ] {
        let request = back.request(Method::GET, path, None).body(full(String::new())).unwrap();
        let answer = back.send(request).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        documents.push(answer.body);
    }
    assert_eq!(documents[0], documents[1]);
    assert_eq!(documents[0]["issuer"], world.running.issuer_url.as_str());
    let mut sidecar = world.sidecar().await;
    let endpoints = documents[0].as_object().unwrap().iter();
    let listed: Vec<&str> = endpoints
        .filter(|(name, _)| name.ends_with("_endpoint"))
        .map(|(_, url)| url.as_str().unwrap().strip_prefix(&world.running.front_url).unwrap())
        .collect();
    assert_eq!(listed, ["/introspect", "/revoke", "/token"]);
    for path in listed {
        let answer = sidecar.call(Method::POST, path, None).await;
        assert_eq!(answer.error(), "invalid_request", "{path} is served, to forms");
    }
    assert_eq!(documents[2]["keys"][0]["kty"], "EC");
    assert_eq!(documents[2]["keys"][0].get("d"), None);
    let request = back
        .request(Method::POST, "/token", None)
        .body(full(String::new()))
        .unwrap();
    assert_eq!(
        back.send(request).await.status,
        StatusCode::NOT_FOUND,
        "the back face mints nothing"
    );
}

#[tokio::test]
async fn a_record_key_certificate_names_the_attested_pod_and_verifies_with_the_ring() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let answer = sidecar.post("/v1/record-keys", json!({"publicKey": key})).await;
    let made: RecordKeyResponse = serde_json::from_value(answer.body).unwrap();
    let claims = decode(made.certificate.split('.').nth(1).unwrap());
    assert_eq!(claims["aud"], "sidegate-records");
    assert_eq!(claims["sidegate"]["podUid"], world.running.local().unwrap().pod_uid());
    assert_eq!(claims["cnf"]["jwk"], json!({"kty": "OKP", "crv": "Ed25519", "x": key}));
    let header = decode(made.certificate.split('.').next().unwrap());
    assert_eq!(header["typ"], "sidegate-record-key+jwt");
    let ring = sidecar.call(Method::GET, "/v1/record-keys", None).await;
    let ring: RecordKeyRing = serde_json::from_value(ring.body).unwrap();
    assert_eq!(ring.keys[0]["kid"], header["kid"]);
    let bad = sidecar.post("/v1/record-keys", json!({"publicKey": "AAAA"})).await;
    assert_eq!(bad.error(), "invalid_request");
}

fn decode(segment: &str) -> Value {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(segment)
        .unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn a_broken_configuration_starts_nothing_and_lists_every_problem() {
    let broken = CONFIG.replace("protocol: Postgres", "protocol: Nonsense");
    let Err(StartError::Config(problems)) = World::try_start(&broken).await else {
        panic!("it started");
    };
    assert!(problems.len() >= 3, "{problems:?}");
    assert!(problems
        .iter()
        .all(|problem| problem.line.is_some() && problem.file.is_some()));
}

#[tokio::test]
async fn records_are_taken_from_attested_callers_only_and_the_store_is_verifiable_by_its_ring() {
    let world = World::start().await;
    let mut stranger = world.client();
    stranger.exchange("x").await;
    let refused = stranger.call(Method::POST, "/v1/records", None).await;
    assert_eq!(
        (refused.status, refused.error()),
        (StatusCode::UNAUTHORIZED, "invalid_client")
    );
    let mut sidecar = world.sidecar().await;
    assert_eq!(
        sidecar.call(Method::POST, "/v1/records", None).await.status,
        StatusCode::OK
    );
    assert!(world.path("state/records").is_dir());
}

/// What the health port answers to a bare request: status line and body.
async fn health(world: &World, request: &str) -> (String, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = world.running.health_addr.unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// Whatever a caller says, in every place where it can say something: none of it becomes a label.
#[tokio::test]
async fn metrics_have_labels_of_ours_alone() {
    const MARK: &str = "zqx-said-by-a-caller";
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let mut stranger = world.client();
    stranger.exchange(&format!("{MARK}.b.c")).await;
    for body in [
        json!({"target": format!("local/{MARK}")}),
        json!({"target": "local/shop", "refused": MARK}),
    ] {
        sidecar.post("/v1/leases", body).await;
    }
    sidecar.post(&format!("/{MARK}"), json!({})).await;
    let mut stream = sidecar.stream().await;
    let version = stream.offered().await;
    let nack =
        |version: &str, class: &str| json!({"type": "nack", "version": version, "class": class, "message": MARK});
    stream
        .say_json(&json!({"type": "hello", "protocol": 1, "release": MARK}))
        .await;
    stream.say_json(&nack(&version, "hash")).await;
    stream.offered().await;
    stream.say_json(&nack(&version, MARK)).await;
    stream.offered().await;
    let (_, text) = health(&world, "GET /metrics").await;
    for line in [
        r#"sidegate_broker_nacks_total{class="hash"} 1"#,
        r#"sidegate_broker_nacks_total{class="other"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains(MARK), "{text}");
}

#[tokio::test]
async fn health_and_metrics_say_what_is_and_no_names() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let stranger = world.client().exchange("a.b.c").await;
    assert_eq!(stranger.error(), "invalid_client");
    let leased = sidecar.post("/v1/leases", json!({"target": "local/shop"})).await;
    assert_eq!(leased.status, StatusCode::OK, "{}", leased.body);
    let _stream = sidecar.stream().await;
    assert_eq!(health(&world, "GET /readyz").await.0, "HTTP/1.1 200 OK");
    assert_eq!(health(&world, "GET /livez").await.0, "HTTP/1.1 200 OK");
    let (status, text) = health(&world, "GET /metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    for line in [
        r#"sidegate_broker_exchanges_total{reason="none",result="granted"} 1"#,
        r#"sidegate_broker_exchanges_total{reason="token",result="refused"} 1"#,
        r#"sidegate_broker_leases_total{result="granted"} 1"#,
        r#"sidegate_broker_leases_active{kind="secret"} 1"#,
        r#"sidegate_broker_leases_active{kind="token"} 0"#,
        r#"sidegate_broker_attest_seconds_count{step="token"} 2"#,
        r#"sidegate_broker_attest_seconds_count{step="key"} 1"#,
        "sidegate_broker_streams 1",
        r#"sidegate_broker_revision{of="bundle"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let uid = world.running.local().unwrap().pod_uid();
    for name in ["agent", "shop", "local/", uid] {
        assert!(!text.contains(name), "{name} in\n{text}");
    }
    for other in ["POST /metrics", "GET /token", "POST /token", "GET /v1/leases", "GET /"] {
        let (status, _) = health(&world, other).await;
        assert!(status.contains("404") || status.contains("405"), "{other}: {status}");
    }
}
