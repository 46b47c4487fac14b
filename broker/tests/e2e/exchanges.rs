//! Tokens of other issuers: our assertion, their answer, and what the caller gets of it.

use std::collections::HashSet;
use std::sync::Arc;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use http::StatusCode;
use serde_json::{json, Value};
use sidegate_broker::clock::{rfc3339, Clock as _, SystemClock};
use sidegate_broker::credentials::{Failure, Wanted};
use sidegate_broker::front::Front;
use sidegate_broker::issuer::{Assertion, Workload};
use sidegate_broker::jwt::Alg;
use sidegate_broker::rings::RingName;
use sidegate_policies::api::lockdown::{Freeze, LockdownSpec};
use sidegate_policies::api::target::Credential;
use sidegate_policies::presets::find;
use sidegate_policies::record::audit::read;
use sidegate_policies::record::layout::DirectoryStore;
use tokio::sync::Semaphore;

use crate::client::{Answer, Client};
use crate::provider::{good, Provider, Reply, Seen, Verifier};
use crate::world::{World, CONFIG};

/// The configuration of the other suites, with a Target that takes its token from `corp`.
pub fn config(issuer: &str) -> String {
    let target =
        "---\napiVersion: sidegate.dev/v1alpha1\nkind: Target\nmetadata: {name: ledger, namespace: local}\nspec:\n  \
                  protocol: Postgres\n  address: {host: db.example, port: 5435}\n  \
                  credential: {token: {issuer: corp, audience: ledger, scopes: [read], username: reader}}\n  \
                  listen: {port: 15435}\n";
    let named = CONFIG.replace("{name: warehouse}]", "{name: warehouse}, {name: ledger}]");
    assert_ne!(named, CONFIG);
    format!("{named}{target}{issuer}")
}

pub async fn world(provider: &Provider, more: &str) -> World {
    let started = World::try_start(&config(&provider.issuer(more))).await;
    started.unwrap_or_else(|error| panic!("{error:?}"))
}

pub async fn lease(client: &mut Client) -> Answer {
    client.post("/v1/leases", json!({"target": "local/ledger"})).await
}

#[track_caller]
pub fn refused(answer: &Answer, status: StatusCode, error: &str) {
    assert_eq!((answer.status, answer.error()), (status, error), "{}", answer.body);
    // Nothing tells why.
    assert_eq!(answer.body.as_object().unwrap().len(), 2);
}

/// What the audit has of exchanges: event and detail. The broker is stopped for it.
pub async fn told(world: World) -> Vec<(String, String)> {
    let World { temp, running, .. } = world;
    running.shutdown().await;
    let store = DirectoryStore::new(&temp.path().join("state/records"));
    let events = read(&store).unwrap().into_iter();
    let events = events.map(|event| (event.says.event.into_owned(), event.says.detail.into_owned()));
    let told: Vec<_> = events.filter(|(event, _)| event.starts_with("exchange.")).collect();
    let text = format!("{told:?}");
    assert!(!text.contains("canary"), "a provider's words are in the audit: {text}");
    told
}

#[tokio::test]
async fn an_assertion_about_the_agent_becomes_the_providers_token() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let world = world(&provider, "").await;
    let mut sidecar = world.sidecar().await;
    let answer = lease(&mut sidecar).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(
        answer.body["material"],
        json!({"kind": "bearer", "user": "reader", "token": "canary-of-the-provider"})
    );
    assert_eq!(answer.body["expiresIn"], 120);
    let [request] = provider.seen().try_into().unwrap();
    assert_eq!(request.path, "/as/token");
    let header = |name: &str| request.headers.get(name).map(String::as_str);
    assert_eq!(header("host"), provider.origin.strip_prefix("https://"));
    assert_eq!(header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(
        (header("accept-encoding"), header("authorization")),
        (Some("identity"), None)
    );
    let form = request.form();
    assert_eq!((form["audience"].as_str(), form["scope"].as_str()), ("ledger", "read"));
    let mut verifier = verifier(&world);
    let claims = verifier
        .verify(&form["subject_token"], &provider.origin, 60)
        .await
        .unwrap();
    assert_eq!(claims["iss"], world.running.issuer_url.as_str());
    assert!(claims["sub"].as_str().unwrap().starts_with("sg:local:"));
    // Signed by the ring whose keys vendors keep for long, and by no other.
    let (front, head) = (world.running.front(), form["subject_token"].split('.').next().unwrap());
    let head: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(head).unwrap()).unwrap();
    let holds = |ring| {
        front
            .issuer
            .ring(ring)
            .holds(head["kid"].as_str().unwrap(), front.clock.now())
    };
    assert!(holds(RingName::Federation) && !holds(RingName::Access));
    // It is good for once, for the provider alone, and for nothing at our own door.
    assert!(verifier
        .verify(&form["subject_token"], &provider.origin, 60)
        .await
        .is_err());
    let mut thief = world.client();
    assert_eq!(
        thief.exchange(&form["subject_token"]).await.status,
        StatusCode::UNAUTHORIZED
    );
    thief.session = Some(form["subject_token"].clone());
    assert_eq!(lease(&mut thief).await.status, StatusCode::UNAUTHORIZED);
    let told = told(world).await;
    assert_eq!(
        told,
        [("exchange.granted".to_owned(), "Generic for `ledger`, 120 s".to_owned())]
    );
}

pub fn verifier(world: &World) -> Verifier {
    Verifier {
        issuer: world.running.issuer_url.clone(),
        ca_pem: world.running.ca_pem.clone(),
        clock: world.clock.clone(),
        used: HashSet::new(),
        alg: "ES256",
    }
}

/// A preset as it is used: values, path of the issuer URL, the first request's path, the field with the assertion and
/// its audience after the issuer's URL or as it stands.
type Used = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
);

const USED: &[Used] = &[
    (
        "Generic",
        "{tokenEndpoint: 'ORIGIN/as'}",
        "",
        "/as",
        "subject_token",
        None,
    ),
    (
        "GenericAssertion",
        "{tokenEndpoint: 'ORIGIN/as', clientId: c1}",
        "/x",
        "/as",
        "client_assertion",
        None,
    ),
    (
        "Keycloak",
        "{}",
        "/realms/corp",
        "/realms/corp/protocol/openid-connect/token",
        "client_assertion",
        None,
    ),
    (
        "Google",
        "{provider: //iam/p}",
        "",
        "/v1/token",
        "subject_token",
        Some("//iam/p"),
    ),
    (
        "GoogleImpersonation",
        "{provider: //iam/p, accessTokenEndpoint: 'ORIGIN/v1/projects/-/serviceAccounts/a@p.example:generateAccessToken'}",
        "",
        "/v1/token",
        "subject_token",
        Some("//iam/p"),
    ),
    (
        "KeycloakExchange",
        "{}",
        "/realms/corp",
        "/realms/corp/protocol/openid-connect/token",
        "client_assertion",
        None,
    ),
    ("Vault", "{mount: jwt, role: r}", "", "/v1/auth/jwt/login", "jwt", None),
    (
        "Okta",
        "{clientId: c1, authorizationServer: as1, resourceClientId: c2, serverIssuer: s}",
        "",
        "/oauth2/v1/token",
        "subject_token",
        None,
    ),
    (
        "Dex",
        "{clientId: c1, connectorId: k}",
        "/dex",
        "/dex/token",
        "subject_token",
        Some("c1"),
    ),
    (
        "Anthropic",
        "{rule: r, organization: o, serviceAccount: s}",
        "",
        "/v1/oauth/token",
        "assertion",
        None,
    ),
    (
        "OpenAI",
        "{provider: p, serviceAccount: s}",
        "",
        "/oauth/token",
        "subject_token",
        None,
    ),
    (
        "Entra",
        "{tenant: t1, clientId: c1}",
        "/t1/v2.0",
        "/t1/oauth2/v2.0/token",
        "client_assertion",
        Some("api://AzureADTokenExchange"),
    ),
];

/// What the provider of a preset says to a request, in form.
fn answer_of(preset: &str, request: &Seen) -> Value {
    let mut body = good();
    let impersonates = preset == "GoogleImpersonation";
    // Keycloak's first step is what its other preset ends with.
    let first = preset == "KeycloakExchange" && request.body.contains("grant_type=client_credentials");
    if first || (impersonates && request.path == "/v1/token") {
        body["access_token"] = "first-step".into();
    } else if impersonates {
        let until = rfc3339(SystemClock.now_ms() + 120_900);
        body = json!({"accessToken": "canary-of-the-provider", "expireTime": until});
    } else if request.path.starts_with("/v1/auth/") {
        body = json!({"auth": {"client_token": "canary-of-the-provider", "lease_duration": 120}});
    } else if request.path == "/oauth2/v1/token" {
        body["token_type"] = "N_A".into();
        body["issued_token_type"] = "urn:ietf:params:oauth:token-type:id-jag".into();
        body["access_token"] = "first-step".into();
    }
    body
}

#[tokio::test]
async fn every_preset_brings_a_lease_by_an_assertion_for_its_provider_alone() {
    for (preset, values, path, first, field, audience) in USED {
        let impersonates = *preset == "GoogleImpersonation";
        let began = std::time::Instant::now();
        let provider = Provider::start(move |request, _| Reply::Json(200, answer_of(preset, request))).await;
        let issuer = provider.issuer_by(preset, path, &values.replace("ORIGIN", &provider.origin), "");
        let world = World::try_start(&config(&issuer))
            .await
            .unwrap_or_else(|error| panic!("{preset}: {error:?}"));
        let mut sidecar = world.sidecar().await;
        let answer = lease(&mut sidecar).await;
        assert_eq!(
            answer.body["material"]["token"], "canary-of-the-provider",
            "{preset}: {}",
            answer.body
        );
        // Of a moment, and not of so many seconds: the machine's clock and the broker's round it each, and the broker's of this
        // test stands still meanwhile.
        let life = answer.body["expiresIn"].as_u64().unwrap();
        assert!(
            life == 120 || impersonates && (119..=began.elapsed().as_secs() + 121).contains(&life),
            "{preset}: {life}"
        );
        let seen = provider.seen();
        assert_eq!(seen[0].path, *first, "{preset}");
        let issuer = format!("{}{path}", provider.origin);
        let form = seen[0].form();
        let mut verifier = verifier(&world);
        let life = if *preset == "Entra" {
            // It promises to take nothing else.
            verifier.alg = "RS256";
            300
        } else {
            60
        };
        let claims = verifier.verify(&form[*field], audience.unwrap_or(&issuer), life).await;
        let claims = claims.unwrap_or_else(|why| panic!("{preset}: {why}"));
        if *preset == "GenericAssertion" {
            assert_eq!((&claims["iss"], &claims["sub"]), (&json!("c1"), &json!("c1")));
        } else {
            assert_eq!(claims["iss"], world.running.issuer_url.as_str(), "{preset}");
        }
        let steps = find(preset).unwrap().steps.len();
        assert_eq!(seen.len(), steps, "{preset}");
        match (*preset, seen.get(1)) {
            (_, None) => {}
            ("Okta", Some(second)) => {
                assert_eq!(second.path, "/oauth2/as1/v1/token");
                assert_eq!(second.form()["assertion"], "first-step");
            }
            ("KeycloakExchange", Some(second)) => {
                let form = second.form();
                assert_eq!(
                    (form["subject_token"].as_str(), form["audience"].as_str()),
                    ("first-step", "ledger")
                );
                assert!(verifier.verify(&form["client_assertion"], &issuer, life).await.is_ok());
            }
            (_, Some(second)) => {
                assert!(second.path.ends_with(":generateAccessToken"), "{}", second.path);
                assert_eq!(second.headers["authorization"], "Bearer first-step");
                assert_eq!(second.body, r#"{"lifetime":"900s","scope":["read"]}"#);
            }
        }
    }
}

#[tokio::test]
async fn the_agent_may_be_called_by_its_name() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let world = world(&provider, "subject: {named: {}}").await;
    let mut sidecar = world.sidecar().await;
    assert_eq!(lease(&mut sidecar).await.status, StatusCode::OK);
    let assertion = provider.seen()[0].form()["subject_token"].clone();
    let claims = verifier(&world).verify(&assertion, &provider.origin, 60).await.unwrap();
    assert_eq!(claims["sub"], "system:serviceaccount:local:agent");
}

#[tokio::test]
async fn a_token_is_asked_for_again_at_half_of_its_life_or_when_it_was_refused() {
    let provider = Provider::start(|_, number| {
        let mut body = good();
        body["access_token"] = format!("canary-{number}").into();
        Reply::Json(200, body)
    })
    .await;
    let world = world(&provider, "").await;
    let mut sidecar = world.sidecar().await;
    let token = |answer: &Answer| answer.body["material"]["token"].as_str().unwrap_or_default().to_owned();
    let first = lease(&mut sidecar).await;
    world.clock.advance_ms(59_000);
    let again = lease(&mut sidecar).await;
    assert_eq!((token(&first), token(&again)), ("canary-1".into(), "canary-1".into()));
    assert_eq!(again.body["expiresIn"], 61, "what is left of it");
    world.clock.advance_ms(1_000);
    assert_eq!(token(&lease(&mut sidecar).await), "canary-2");
    let body = json!({"target": "local/ledger", "refused": first.body["id"]});
    let anew = sidecar.post("/v1/leases", body).await;
    assert_eq!(token(&anew), "canary-3");
    assert_eq!(provider.seen().len(), 3);
}

#[tokio::test]
async fn without_a_word_on_its_life_a_token_lives_five_minutes_and_never_beyond_the_caller() {
    let provider = Provider::start(|_, number| {
        let mut body = good();
        body["expires_in"] = json!(86_400);
        if number == 1 {
            body.as_object_mut().unwrap().remove("expires_in");
        }
        Reply::Json(200, body)
    })
    .await;
    let world = world(&provider, "").await;
    let mut sidecar = world.sidecar().await;
    assert_eq!(lease(&mut sidecar).await.body["expiresIn"], 300);
    world.clock.advance_ms(150_000);
    let long = lease(&mut sidecar).await.body["expiresIn"].as_i64().unwrap();
    assert!(
        (3_000..=3_600).contains(&long),
        "a day was given, an hour is the caller's: {long}"
    );
}

fn http(status: &str, headers: &str, body: &[u8]) -> Reply {
    let mut bytes = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    Reply::Raw(bytes)
}

/// What a provider may get wrong: what, how, what the caller hears of it, and its class.
fn wrong(location: &str) -> Vec<(&'static str, Reply, StatusCode, &'static str)> {
    let changed = |member: &str, value: Value| {
        let mut body = good();
        body[member] = value;
        Reply::Json(200, body)
    };
    let locked = StatusCode::FORBIDDEN;
    vec![
        ("a redirect", http("307 X", location, b""), locked, "Broken"),
        ("a redirect", http("302 X", location, b"canary"), locked, "Broken"),
        ("prose", http("200 X", "", b"<html>canary</html>"), locked, "Broken"),
        (
            "no HTTP",
            Reply::Raw(b"canary canary\r\n\r\n".to_vec()),
            locked,
            "Broken",
        ),
        ("no token", changed("access_token", json!("")), locked, "Broken"),
        ("another type", changed("token_type", json!("N_A")), locked, "Broken"),
        (
            "another type",
            changed("issued_token_type", json!("canary")),
            locked,
            "Broken",
        ),
        ("no life", changed("expires_in", json!(0)), locked, "Broken"),
        (
            "no",
            Reply::Json(401, json!({"error": "invalid_client", "error_description": "canary"})),
            locked,
            "Final",
        ),
        (
            "no",
            Reply::Json(400, json!({"error": "invalid_grant"})),
            locked,
            "Final",
        ),
        (
            "half",
            Reply::Raw(b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\n{".to_vec()),
            StatusCode::SERVICE_UNAVAILABLE,
            "Retry",
        ),
        (
            "ill",
            Reply::Json(503, json!({"error": "canary"})),
            StatusCode::SERVICE_UNAVAILABLE,
            "Retry",
        ),
    ]
}

/// A row of the failure matrix, among others: a provider says no. Metrics: `sidegate_broker_provider_requests_total` of
/// class Final, `sidegate_broker_leases_total` of those refused.
#[tokio::test]
async fn a_wrong_answer_gives_no_credential_and_its_words_go_nowhere() {
    let elsewhere = Provider::start(|_, _| Reply::Json(200, good())).await;
    let location = format!("location: {}/as/token\r\n", elsewhere.origin);
    for (what, reply, status, class) in wrong(&location) {
        let provider = Provider::start(move |_, _| reply.clone()).await;
        let world = world(&provider, "").await;
        let mut sidecar = world.sidecar().await;
        let answer = lease(&mut sidecar).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.body);
        assert!(!answer.body.to_string().contains("canary"), "{what}");
        let calls = provider.seen().len();
        assert_eq!(calls, if class == "Retry" { 3 } else { 1 }, "{what}");
        // A no is remembered for a while.
        let again = lease(&mut sidecar).await;
        assert_eq!(again.body, answer.body, "{what}");
        if class != "Retry" {
            assert_eq!(provider.seen().len(), 1, "{what}");
            let counted = format!(r#"sidegate_broker_provider_requests_total{{class="{class}",issuer="corp"}} 1"#);
            world.shows(&counted);
            world.shows(r#"sidegate_broker_leases_total{result="refused"} 2"#);
            world.clock.advance_ms(10_001);
            lease(&mut sidecar).await;
            assert_eq!(provider.seen().len(), 2, "{what}: forgotten in time");
        }
        let told = told(world).await;
        assert!(
            told.iter()
                .all(|(event, detail)| event == "exchange.refused" && detail.starts_with(class)),
            "{what}: {told:?}"
        );
    }
    assert_eq!(elsewhere.seen().len(), 0, "no redirect is followed");
}

#[tokio::test]
async fn a_large_or_compressed_answer_is_not_read_however_good_it_is() {
    let mut large = good();
    large["pad"] = "x".repeat(64 * 1024).into();
    let packed = http("200 X", "content-encoding: gzip\r\n", good().to_string().as_bytes());
    for (reply, why) in [
        (Reply::Json(200, large), "Broken: an answer of more than 64 KiB"),
        (packed, "Broken: a compressed answer"),
    ] {
        let provider = Provider::start(move |_, _| reply.clone()).await;
        let world = world(&provider, "").await;
        let mut sidecar = world.sidecar().await;
        let answer = lease(&mut sidecar).await;
        let told = told(world).await;
        assert_eq!(told[0].1, why);
        refused(&answer, StatusCode::FORBIDDEN, "credential_refused");
    }
}

#[tokio::test]
async fn each_try_carries_an_assertion_of_its_own() {
    let provider = Provider::start(|_, number| match number {
        1 => Reply::Json(503, json!({})),
        _ => Reply::Json(200, good()),
    })
    .await;
    let world = world(&provider, "").await;
    let mut sidecar = world.sidecar().await;
    assert_eq!(
        lease(&mut sidecar).await.status,
        StatusCode::OK,
        "a failure in passing is not seen"
    );
    let mut verifier = verifier(&world);
    for request in provider.seen() {
        let assertion = request.form()["subject_token"].clone();
        verifier.verify(&assertion, &provider.origin, 60).await.unwrap();
    }
    assert_eq!(verifier.used.len(), 2);
}

#[tokio::test]
async fn a_provider_that_never_answers_is_given_up() {
    let provider = Provider::start(|_, _| Reply::Never).await;
    let world = world(&provider, "").await;
    let began = std::time::Instant::now();
    let failure = ask(Arc::clone(world.running.front()), workload(&world))
        .await
        .unwrap_err();
    assert_eq!(failure.to_string(), "Retry: no whole answer within 10 s");
    assert!(began.elapsed().as_secs() < 12);
    assert_eq!(provider.seen().len(), 1, "nobody waits for a second one");
}

#[tokio::test]
async fn a_failing_provider_is_left_alone_but_for_one_probe() {
    let provider = Provider::start(|_, _| Reply::Json(500, json!({}))).await;
    let world = world(&provider, "").await;
    let mut sidecar = world.sidecar().await;
    for _ in 0..4 {
        refused(
            &lease(&mut sidecar).await,
            StatusCode::SERVICE_UNAVAILABLE,
            "temporarily_unavailable",
        );
    }
    assert_eq!(provider.seen().len(), 5, "five failures, and no sixth");
    world.clock.advance_ms(5_000);
    lease(&mut sidecar).await;
    assert_eq!(provider.seen().len(), 6, "one probe");
    provider.answer(|_, _| Reply::Json(200, good()));
    refused(
        &lease(&mut sidecar).await,
        StatusCode::SERVICE_UNAVAILABLE,
        "temporarily_unavailable",
    );
    world.clock.advance_ms(5_000);
    assert_eq!(
        lease(&mut sidecar).await.status,
        StatusCode::OK,
        "back without a restart"
    );
}

/// What the sidecar's key and pod get from an exchange, without the front face and its own deadline.
async fn ask(front: Arc<Front>, who: Workload) -> Result<String, Failure> {
    let index = front.index();
    let offer = index.offer(&who.subject);
    let target = &offer.target("local/ledger").unwrap().target;
    let Credential::Token(token) = &target.spec.credential else {
        panic!("no token");
    };
    let wanted = Wanted {
        who: &who,
        thumbprint: "key",
        bundle: &offer.version,
        token,
        issuer: index.objects().issuer_of(target).unwrap().unwrap(),
        anew: false,
    };
    front.exchanges.token(wanted).await.map(|held| held.expose().to_owned())
}

fn workload(world: &World) -> Workload {
    Workload {
        subject: world.running.subject().unwrap().clone(),
        account_uid: "uid".to_owned(),
        node: String::new(),
        instance: 1,
        ends: world.clock.now() + 3_600,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_misses_make_one_call() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let provider = Provider::start(move |_, _| Reply::Held(Arc::clone(&held), good())).await;
    let world = world(&provider, "").await;
    let mut waiting = Vec::new();
    for _ in 0..1_000 {
        #[allow(clippy::disallowed_methods)] // waited for below
        waiting.push(tokio::spawn(ask(Arc::clone(world.running.front()), workload(&world))));
    }
    provider.asked(1).await;
    gate.add_permits(1_000);
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().unwrap(), "canary-of-the-provider");
    }
    assert_eq!(provider.seen().len(), 1);
}

#[tokio::test]
async fn an_assertion_is_for_somebody_else_and_ends_with_its_caller() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let world = world(&provider, "").await;
    let (front, now) = (world.running.front(), world.clock.now());
    let sign = |audience: &str, life: i64, ends: i64| {
        let asked = Assertion {
            issuer: None,
            subject: "sg:local:uid".to_owned(),
            audience: audience.to_owned(),
            life,
            alg: Alg::Es256,
        };
        let signed = front.issuer.assertion(&asked, ends, now).ok()?;
        let claims = signed.split('.').nth(1).unwrap();
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        Some(claims["exp"].as_i64().unwrap() - now)
    };
    assert_eq!(sign("https://idp.example", 60, now + 3_600), Some(60));
    assert_eq!(
        sign("https://idp.example", 86_400, now + 3_600),
        Some(300),
        "five minutes at most"
    );
    assert_eq!(sign("https://idp.example", 60, now + 10), Some(10));
    assert_eq!(
        sign("https://idp.example", 60, now),
        None,
        "the caller's own token is over"
    );
    assert_eq!(sign(front.issuer.url(), 60, now + 3_600), None, "never for ourselves");
}

pub fn freeze(what: Freeze) -> LockdownSpec {
    LockdownSpec {
        reason: "drill".to_owned(),
        until: None,
        action: Default::default(),
        freeze: vec![what],
    }
}

#[tokio::test]
async fn a_lockdown_of_the_issuer_refuses_and_what_was_under_way_is_thrown_away() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let provider = Provider::start(move |_, _| Reply::Held(Arc::clone(&held), good())).await;
    let world = world(&provider, "").await;
    let mut sidecar = world.sidecar().await;
    let lockdowns = Arc::clone(&world.running.front().lockdowns);
    let meanwhile = async {
        provider.asked(1).await;
        lockdowns
            .lock("unrelated", freeze(Freeze::Namespace("elsewhere".to_owned())))
            .unwrap();
        gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(lease(&mut sidecar), meanwhile);
    refused(&answer, StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable");
    gate.add_permits(100);
    assert_eq!(lease(&mut sidecar).await.status, StatusCode::OK);
    assert_eq!(provider.seen().len(), 2, "nothing of the first answer was kept");
    lockdowns
        .lock("corp", freeze(Freeze::Issuer("corp".to_owned())))
        .unwrap();
    refused(&lease(&mut sidecar).await, StatusCode::FORBIDDEN, "locked");
    assert_eq!(provider.seen().len(), 2, "a frozen issuer is not asked");
    lockdowns.unlock("corp").unwrap();
    assert_eq!(lease(&mut sidecar).await.status, StatusCode::OK);
    assert_eq!(provider.seen().len(), 3, "and nothing from before is given again");
    let told = told(world).await;
    assert_eq!(told[0].1, "Retry: thrown away: a Lockdown changed meanwhile");
}

#[tokio::test]
async fn what_was_asked_for_under_another_configuration_is_not_leased() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let provider = Provider::start(move |_, _| Reply::Held(Arc::clone(&held), good())).await;
    let world = world(&provider, "").await;
    let mut sidecar = world.sidecar().await;
    let named = config(&provider.issuer("subject: {named: {}}"));
    let meanwhile = async {
        provider.asked(1).await;
        world.configured_by(&named).await;
        gate.add_permits(100);
    };
    let (answer, ()) = tokio::join!(lease(&mut sidecar), meanwhile);
    refused(&answer, StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable");
    // The bundle is the same; the issuer is not, so nothing from before is given again.
    assert_eq!(lease(&mut sidecar).await.status, StatusCode::OK);
    assert_eq!(provider.seen().len(), 2);
}

#[tokio::test]
async fn a_broker_that_may_not_loop_reaches_no_provider_on_its_machine() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let issuer = provider.issuer("");
    let started = World::start_with(&config(&issuer), |config| config.loopback_providers = false).await;
    let world = started.unwrap_or_else(|error| panic!("{error:?}"));
    let mut sidecar = world.sidecar().await;
    refused(&lease(&mut sidecar).await, StatusCode::FORBIDDEN, "credential_refused");
    assert_eq!(provider.seen().len(), 0);
    let told = told(world).await;
    assert_eq!(told[0].1, "Broken: its address is one of this machine or its link");
}

#[tokio::test]
async fn a_provider_of_another_authority_is_told_nothing() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let other = Provider::start(|_, _| Reply::Json(200, good())).await;
    let wrong = other.issuer("").replace(&other.origin, &provider.origin);
    let world = World::try_start(&config(&wrong))
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    let mut sidecar = world.sidecar().await;
    refused(
        &lease(&mut sidecar).await,
        StatusCode::SERVICE_UNAVAILABLE,
        "temporarily_unavailable",
    );
    assert_eq!((provider.seen().len(), other.seen().len()), (0, 0));
}

#[tokio::test]
async fn a_target_whose_issuer_is_missing_or_closed_to_it_is_offered_to_nobody() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let closed = provider
        .issuer("")
        .replace("selector: {}", "selector: {matchLabels: {team: other}}");
    for (issuer, reason) in [(String::new(), "IssuerNotFound"), (closed, "IssuerNotAllowed")] {
        let world = World::try_start(&config(&issuer))
            .await
            .unwrap_or_else(|error| panic!("{error:?}"));
        let mut sidecar = world.sidecar().await;
        refused(&lease(&mut sidecar).await, StatusCode::BAD_REQUEST, "invalid_target");
        let status = world.running.status();
        let target = status
            .targets
            .iter()
            .find(|target| target.target == "local/ledger")
            .unwrap();
        let problem = serde_json::to_string(target).unwrap();
        assert!(problem.contains(reason), "{problem}");
        // The others are there.
        assert_eq!(
            sidecar.post("/v1/leases", json!({"target": "local/shop"})).await.status,
            StatusCode::OK
        );
    }
    assert_eq!(provider.seen().len(), 0);
}

#[tokio::test]
async fn the_token_endpoint_hands_on_no_other_issuers_token() {
    let provider = Provider::start(|_, _| Reply::Json(200, good())).await;
    let world = world(&provider, "").await;
    let mut client = world.client();
    let token = world.token();
    let mut form = crate::client::exchange(&token).to_vec();
    form.push(("audience", "ledger"));
    assert_eq!(client.form(&form).await.error(), "invalid_target");
    assert_eq!(provider.seen().len(), 0);
}
