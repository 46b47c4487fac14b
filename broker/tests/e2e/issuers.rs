//! What a TokenIssuer says besides its preset: algorithm, a client's secret, authorities, and where our keys are kept.

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use http::{Method, StatusCode};
use serde_json::{json, Value};
use sidegate_policies::api::lockdown::Freeze;
use sidegate_policies::api::meta::NamespacedRef;
use sidegate_policies::record::audit::read;
use sidegate_policies::record::layout::DirectoryStore;

use crate::client::{Answer, Client};
use crate::control::control;
use crate::exchanges::{config, freeze, lease, refused, told, verifier, world};
use crate::provider::{good, Provider, Reply, Seen};
use crate::world::{put_secret, World};

#[tokio::test]
async fn an_issuer_that_says_rs256_gets_it_from_the_ring_of_assertions_and_after_a_rotation_too() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let world = world(&provider, "alg: RS256").await;
    let mut verifier = verifier(&world);
    verifier.alg = "RS256";
    let mut sidecar = world.sidecar().await;
    assert_eq!(lease(&mut sidecar).await.status, StatusCode::OK);
    let first = provider.seen()[0].form()["subject_token"].clone();
    verifier.verify(&first, &provider.origin, 60).await.unwrap();
    rotate(&world).await;
    assert!(
        verifier.verify(&first, &provider.origin, 60).await.is_err(),
        "of a key that is gone"
    );
    world.clock.advance_ms(60_000);
    assert_eq!(lease(&mut sidecar).await.status, StatusCode::OK);
    let second = provider.seen()[1].form()["subject_token"].clone();
    verifier.verify(&second, &provider.origin, 60).await.unwrap();
}

/// The client's secret at the provider, as `clientSecretRef: {name: corp-client, key: secret}` finds it.
pub fn put_client_secret(world: &World, text: &str) {
    let folder = world.path("secrets/sidegate-system/corp-client");
    std::fs::create_dir_all(&folder).unwrap();
    put_secret(&folder.join("secret"), text);
}

const SECRET: &str = "clientSecretRef: {name: corp-client, key: secret}";

#[tokio::test]
async fn a_clients_secret_is_read_for_each_exchange_and_nothing_is_sent_without_it() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let values = format!("{{tokenEndpoint: '{}/as', clientId: 'c:1'}}", provider.origin);
    let world = World::try_start(&config(&provider.issuer_by("Generic", "", &values, SECRET))).await;
    let world = world.unwrap_or_else(|error| panic!("{error:?}"));
    let mut sidecar = world.sidecar().await;
    refused(&lease(&mut sidecar).await, StatusCode::FORBIDDEN, "credential_refused");
    put_client_secret(&world, "");
    world.clock.advance_ms(10_001);
    refused(&lease(&mut sidecar).await, StatusCode::FORBIDDEN, "credential_refused");
    assert_eq!(provider.seen().len(), 0, "never without the login");
    put_client_secret(&world, "canary & one\n");
    world.clock.advance_ms(10_001);
    assert_eq!(lease(&mut sidecar).await.status, StatusCode::OK);
    put_client_secret(&world, "canary-two");
    world.clock.advance_ms(60_000);
    assert_eq!(lease(&mut sidecar).await.status, StatusCode::OK);
    let logins: Vec<String> = provider.seen().iter().map(basic).collect();
    assert_eq!(logins, ["c%3A1:canary%20%26%20one", "c%3A1:canary-two"]);
    let form = provider.seen()[1].form();
    assert!(
        !form.contains_key("client_id") && !form.contains_key("client_secret"),
        "{form:?}"
    );
    // It says who the client is, and the assertion says who the agent is.
    let claims = verifier(&world)
        .verify(&form["subject_token"], &provider.origin, 60)
        .await
        .unwrap();
    assert!(claims["sub"].as_str().unwrap().starts_with("sg:local:"));
    let secret = NamespacedRef {
        namespace: "sidegate-system".to_owned(),
        name: "corp-client".to_owned(),
    };
    let lockdowns = &world.running.front().lockdowns;
    lockdowns.lock("leak", freeze(Freeze::Secret(secret))).unwrap();
    refused(
        &lease(&mut sidecar).await,
        StatusCode::SERVICE_UNAVAILABLE,
        "temporarily_unavailable",
    );
    assert_eq!(provider.seen().len(), 2, "a frozen secret is not shown");
    let told = told(world).await;
    let told: Vec<&str> = told.iter().map(|(_, detail)| detail.as_str()).collect();
    assert!(
        told[0].starts_with("Final: its client's secret: there is no file "),
        "{told:?}"
    );
    assert!(
        told[1].ends_with("Secret sidegate-system/corp-client, key secret, is empty"),
        "{told:?}"
    );
    assert_eq!(told[4], "Retry: its client's secret is frozen by lockdown `leak`");
}

/// The pair in the header of a login by Basic.
fn basic(request: &Seen) -> String {
    let pair = request.headers["authorization"].strip_prefix("Basic ").unwrap();
    String::from_utf8(STANDARD.decode(pair).unwrap()).unwrap()
}

#[tokio::test]
async fn a_client_that_logs_in_by_fields_sends_them_instead_of_an_assertion_where_the_preset_says_so() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let issuer = provider.issuer_by("Keycloak", "/realms/corp", "{clientId: c1}", SECRET);
    let world = World::try_start(&config(&issuer)).await;
    let world = world.unwrap_or_else(|error| panic!("{error:?}"));
    put_client_secret(&world, "canary");
    assert_eq!(lease(&mut world.sidecar().await).await.status, StatusCode::OK);
    let form = provider.seen()[0].form();
    let names: Vec<&str> = form.keys().map(String::as_str).collect();
    assert_eq!(names, ["client_id", "client_secret", "grant_type", "scope"]);
    assert_eq!(
        (form["client_id"].as_str(), form["client_secret"].as_str()),
        ("c1", "canary")
    );
    assert!(!provider.seen()[0].headers.contains_key("authorization"));
}

#[tokio::test]
async fn authorities_may_lie_in_a_config_map_of_the_brokers_own_namespace_and_in_no_other() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let inline = provider.issuer("");
    let (head, tail) = inline.split_once("  caBundle:\n    inline: |\n").unwrap();
    let pem: String = tail
        .lines()
        .take_while(|line| line.starts_with("      "))
        .map(|line| format!("{line}\n"))
        .collect();
    let map = |namespace: &str| {
        format!(
            "{head}  caBundle: {{configMap: {{name: corp-ca, key: ca.crt}}}}\n---\napiVersion: v1\nkind: ConfigMap\n\
             metadata: {{name: corp-ca, namespace: {namespace}}}\ndata:\n  ca.crt: |\n{pem}"
        )
    };
    for (namespace, status) in [("local", StatusCode::BAD_REQUEST), ("sidegate-system", StatusCode::OK)] {
        let world = World::try_start(&config(&map(namespace))).await;
        let world = world.unwrap_or_else(|error| panic!("{error:?}"));
        let answer = lease(&mut world.sidecar().await).await;
        assert_eq!(answer.status, status, "{namespace}: {}", answer.body);
        let told = serde_json::to_string(&world.running.status().targets).unwrap();
        assert_eq!(told.contains("CaBundleNotFound"), namespace == "local", "{told}");
    }
    assert_eq!(provider.seen().len(), 1);
}

/// Rotates the keys of assertions at once.
async fn rotate(world: &World) {
    let socket = &world.running.control_socket;
    let (code, body) = control(socket, Method::POST, "/rotate", Some(json!({"rings": ["federation"]}))).await;
    assert_eq!(code, StatusCode::OK, "{body}");
}

/// Waits until a file has other contents, and gives them.
async fn another(path: &std::path::Path, before: &str) -> String {
    let changed = async {
        loop {
            match tokio::fs::read_to_string(path).await {
                Ok(text) if text != before => return text,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), changed).await;
    waited.unwrap_or_else(|_| panic!("{} stays as it is", path.display()))
}

#[tokio::test]
async fn a_key_signs_for_a_provider_once_it_is_published() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("site");
    let world = world(&provider, &format!("publish: {{directory: '{}'}}", folder.display())).await;
    let mut sidecar = world.sidecar().await;
    // The folder is not there: it is not made, and nothing is signed.
    refused(
        &lease(&mut sidecar).await,
        StatusCode::SERVICE_UNAVAILABLE,
        "temporarily_unavailable",
    );
    assert_eq!(provider.seen().len(), 0);
    std::fs::create_dir(&folder).unwrap();
    world.clock.advance_ms(5_000);
    let (jwks, discovery) = (folder.join("jwks"), folder.join(".well-known/openid-configuration"));
    let told_us = another(&discovery, "").await;
    let first = std::fs::read_to_string(&jwks).unwrap();
    let mut back = Client::new(&world.running.issuer_url, &world.running.ca_pem, world.clock.clone());
    let shown = back.call(Method::GET, "/jwks", None).await.body;
    assert_eq!(
        serde_json::from_str::<Value>(&first).unwrap(),
        shown,
        "as the public face shows it"
    );
    let shown = back
        .call(Method::GET, "/.well-known/openid-configuration", None)
        .await
        .body;
    assert_eq!(serde_json::from_str::<Value>(&told_us).unwrap(), shown);
    let granted = loop {
        let answer = lease(&mut sidecar).await;
        if answer.status != StatusCode::SERVICE_UNAVAILABLE {
            break answer;
        }
    };
    assert_eq!(granted.status, StatusCode::OK, "{}", granted.body);
    // A new key that cannot be published does not sign, whatever the ring says of it.
    std::fs::rename(&folder, place.path().join("away")).unwrap();
    rotate(&world).await;
    world.clock.advance_ms(60_000);
    let seen = provider.seen().len();
    refused(
        &lease(&mut sidecar).await,
        StatusCode::SERVICE_UNAVAILABLE,
        "temporarily_unavailable",
    );
    assert_eq!(provider.seen().len(), seen);
    std::fs::rename(place.path().join("away"), &folder).unwrap();
    world.clock.advance_ms(5_000);
    let second = another(&jwks, &first).await;
    assert_ne!(second, first);
    // What somebody else writes there is put right.
    std::fs::write(&jwks, "{}").unwrap();
    world.clock.advance_ms(60_000);
    assert_eq!(another(&jwks, "{}").await, second);
    let told = told(world).await;
    let why = told
        .iter()
        .filter(|(event, _)| event == "exchange.refused")
        .map(|(_, detail)| detail);
    assert!(
        why.into_iter()
            .all(|why| why.starts_with("Retry: our keys are not published: ")),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_machine_publishes_into_no_config_map() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let world = world(&provider, "publish: {configMap: {name: keys}}").await;
    let mut sidecar = world.sidecar().await;
    refused(
        &lease(&mut sidecar).await,
        StatusCode::SERVICE_UNAVAILABLE,
        "temporarily_unavailable",
    );
    assert_eq!(provider.seen().len(), 0);
}

#[tokio::test]
async fn keys_for_an_upload_are_those_of_the_public_face() {
    let world = World::start().await;
    let mut back = Client::new(&world.running.issuer_url, &world.running.ca_pem, world.clock.clone());
    let shown = back.call(Method::GET, "/jwks", None).await.body;
    let (code, printed) = control(&world.running.control_socket, Method::GET, "/jwks", None).await;
    assert_eq!((code, printed), (StatusCode::OK, shown));
}

/// A provider that gives a token after the other and is told when they are over.
async fn revoking() -> (Provider, World) {
    let provider = Provider::start(|request, number| {
        if request.path == "/as/revoke" {
            return Reply::Json(200, json!({}));
        }
        let mut body = good();
        body["access_token"] = format!("canary-{number}").into();
        Reply::Json(200, body)
    })
    .await;
    let origin = &provider.origin;
    let values = format!("{{tokenEndpoint: '{origin}/as', clientId: c1, revocationEndpoint: '{origin}/as/revoke'}}");
    let world = World::try_start(&config(&provider.issuer_by("Generic", "", &values, ""))).await;
    let world = world.unwrap_or_else(|error| panic!("{error:?}"));
    (provider, world)
}

/// Waits until the audit has an event so many times.
pub async fn noted(world: &World, event: &str, times: usize) {
    let store = DirectoryStore::new(&world.path("state/records"));
    let there = async {
        loop {
            let events = read(&store).unwrap();
            if events.iter().filter(|told| told.says.event == event).count() >= times {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), there).await;
    waited.unwrap_or_else(|_| panic!("the audit has not {times} times {event}"));
}

/// The tokens that were ended, in their order.
fn ended(provider: &Provider) -> Vec<String> {
    let seen = provider
        .seen()
        .into_iter()
        .filter(|request| request.path == "/as/revoke");
    seen.map(|request| request.form()["token"].clone()).collect()
}

pub async fn hand_back(sidecar: &mut Client, lease: &Answer) {
    let path = format!("/v1/leases/{}", lease.body["id"].as_str().unwrap());
    assert_eq!(
        sidecar.call(Method::DELETE, &path, None).await.status,
        StatusCode::NO_CONTENT
    );
}

#[tokio::test]
async fn a_token_is_ended_at_its_provider_with_the_last_lease_that_has_it() {
    let (provider, world) = revoking().await;
    let mut sidecar = world.sidecar().await;
    let (first, second) = (lease(&mut sidecar).await, lease(&mut sidecar).await);
    let token = |answer: &Answer| answer.body["material"]["token"].clone();
    assert_eq!((token(&first), token(&second)), (json!("canary-1"), json!("canary-1")));
    hand_back(&mut sidecar, &first).await;
    hand_back(&mut sidecar, &second).await;
    provider.asked(2).await;
    assert_eq!(ended(&provider), ["canary-1"], "once, and not while somebody has it");
    let form = provider.seen()[1].form();
    assert_eq!(
        (form["client_id"].as_str(), form["token_type_hint"].as_str()),
        ("c1", "access_token")
    );
    // What is over is not given again. A Lockdown ends it too, and so does another sidecar in the pod's place.
    let third = lease(&mut sidecar).await;
    assert_eq!(token(&third), "canary-3");
    let target = NamespacedRef {
        namespace: "local".to_owned(),
        name: "ledger".to_owned(),
    };
    let lockdowns = &world.running.front().lockdowns;
    lockdowns.lock("drill", freeze(Freeze::Target(target))).unwrap();
    provider.asked(4).await;
    assert_eq!(ended(&provider), ["canary-1", "canary-3"]);
    lockdowns.unlock("drill").unwrap();
    assert_eq!(token(&lease(&mut sidecar).await), "canary-5");
    let (code, _) = control(&world.running.control_socket, Method::POST, "/sidecar-restarted", None).await;
    assert_eq!(code, StatusCode::OK);
    provider.asked(6).await;
    assert_eq!(ended(&provider), ["canary-1", "canary-3", "canary-5"]);
    noted(&world, "exchange.revoked", 3).await;
    let told = told(world).await;
    let revoked = told.iter().filter(|(event, _)| event == "exchange.revoked");
    assert_eq!(revoked.count(), 3, "{told:?}");
}

#[tokio::test]
async fn a_token_that_ends_by_itself_or_with_the_broker_is_left_to_its_end() {
    let (provider, world) = revoking().await;
    let mut sidecar = world.sidecar().await;
    let first = lease(&mut sidecar).await;
    world.clock.advance_ms(120_000);
    let second = lease(&mut sidecar).await;
    assert_eq!((first.status, second.status), (StatusCode::OK, StatusCode::OK));
    told(world).await;
    assert_eq!(ended(&provider), [""; 0]);
}

#[tokio::test]
async fn a_provider_that_fails_in_passing_is_told_again_and_one_that_says_no_is_not() {
    for (status, times, event) in [(503, 3, "exchange.revoked"), (400, 2, "exchange.unrevoked")] {
        let (provider, world) = revoking().await;
        provider.answer(move |request, number| match (request.path.as_str(), number) {
            ("/as/revoke", 2) => Reply::Json(status, json!({"error": "canary"})),
            _ => Reply::Json(200, good()),
        });
        let mut sidecar = world.sidecar().await;
        let leased = lease(&mut sidecar).await;
        hand_back(&mut sidecar, &leased).await;
        provider.asked(times).await;
        noted(&world, event, 1).await;
        assert_eq!(provider.seen().len(), times, "{status}");
    }
}

#[tokio::test]
async fn a_provider_is_counted_by_what_comes_of_it_and_shown_while_it_is_left_alone() {
    let provider = Provider::start(|_, number| match number {
        1 => Reply::Json(200, good()),
        _ => Reply::Json(500, json!({})),
    })
    .await;
    let world = world(&provider, "").await;
    let mut sidecar = world.sidecar().await;
    assert_eq!(lease(&mut sidecar).await.status, StatusCode::OK);
    let shows = |line: &str| world.shows(line);
    shows(r#"sidegate_broker_provider_requests_total{class="Ok",issuer="corp"} 1"#);
    shows(r#"sidegate_broker_provider_circuit_open{issuer="corp"} 0"#);
    world.clock.advance_ms(60_000);
    for _ in 0..2 {
        lease(&mut sidecar).await;
    }
    shows(r#"sidegate_broker_provider_requests_total{class="Retry",issuer="corp"} 5"#);
    shows(r#"sidegate_broker_provider_circuit_open{issuer="corp"} 1"#);
    world.clock.advance_ms(5_000);
    shows(r#"sidegate_broker_provider_circuit_open{issuer="corp"} 0"#);
}

#[tokio::test]
async fn a_lockdown_of_everything_ends_what_a_clients_secret_opened_and_shows_it_for_nothing_else() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let origin = &provider.origin;
    let values = format!("{{tokenEndpoint: '{origin}/as', clientId: c1, revocationEndpoint: '{origin}/as/revoke'}}");
    let world = World::try_start(&config(&provider.issuer_by("Generic", "", &values, SECRET))).await;
    let world = world.unwrap_or_else(|error| panic!("{error:?}"));
    put_client_secret(&world, "canary");
    let mut sidecar = world.sidecar().await;
    assert_eq!(lease(&mut sidecar).await.status, StatusCode::OK);
    let lockdowns = &world.running.front().lockdowns;
    lockdowns
        .lock("drill", freeze(Freeze::Everything(Default::default())))
        .unwrap();
    provider.asked(2).await;
    assert_eq!(ended(&provider), ["canary-of-the-provider"]);
    assert_eq!(basic(&provider.seen()[1]), "c1:canary");
    refused(&lease(&mut sidecar).await, StatusCode::FORBIDDEN, "locked");
    assert_eq!(provider.seen().len(), 2);
}
