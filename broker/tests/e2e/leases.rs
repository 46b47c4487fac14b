//! Leases: from a folder shaped like mounted Secrets, and minted by our own issuer.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use http::{Method, StatusCode};
use serde_json::{json, Value};
use sidegate_policies::api::lockdown::{Freeze, LockdownSpec};

use crate::client::{exchange, Client};
use crate::streams::bundle;
use crate::world::{put_secret, World, CONFIG};

async fn lease(client: &mut Client, target: &str) -> crate::client::Answer {
    client.post("/v1/leases", json!({"target": target})).await
}

#[tokio::test]
async fn a_secret_is_leased_for_a_target_of_the_bundle_and_read_anew_each_time() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let first = lease(&mut sidecar, "local/shop").await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.body);
    assert_eq!(
        first.body["material"],
        json!({"kind": "password", "user": "agent_ro", "password": "canary-4711"})
    );
    put_secret(&world.path("secrets/local/shop-agent/password"), "rotated\n");
    let second = lease(&mut sidecar, "local/shop").await;
    assert_eq!(second.body["material"]["password"], "rotated");
    assert_ne!(first.body["id"], second.body["id"]);
}

#[tokio::test]
async fn a_target_outside_the_bundle_gets_no_credential() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    for target in ["other/elsewhere", "local/unknown", "shop", ""] {
        let refused = lease(&mut sidecar, target).await;
        assert_eq!(
            (refused.status, refused.error()),
            (StatusCode::BAD_REQUEST, "invalid_target"),
            "{target}"
        );
    }
}

/// A sidecar whose bundle is not this broker's, older or newer, gets nothing for the place it does not know.
#[tokio::test]
async fn a_lease_is_for_the_place_that_the_caller_knows() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let mut stream = sidecar.stream().await;
    let mut places = Vec::new();
    for config in [CONFIG.to_owned(), CONFIG.replace("port: 5432}", "port: 6432}")] {
        if !places.is_empty() {
            world.configured_by(&config).await;
        }
        let (_, bundle, _) = bundle(&mut stream).await;
        // As the sidecar names it: by what came over the wire.
        let shop = &bundle.targets[0].target;
        places.push(
            shop.spec
                .place(shop.metadata.uid.as_deref().unwrap_or_default())
                .digest()
                .unwrap(),
        );
    }
    for (place, known) in [(&places[0], false), (&places[1], true), (&String::new(), false)] {
        let asked = json!({"target": "local/shop", "place": place});
        let answer = sidecar.post("/v1/leases", asked).await;
        match known {
            true => assert_eq!(answer.status, StatusCode::OK, "{}", answer.body),
            false => assert_eq!(
                (answer.status, answer.error()),
                (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable")
            ),
        }
    }
}

/// A row of the failure matrix: a Secret that is gone. Metric: `sidegate_broker_leases_total` of those refused.
#[tokio::test]
async fn a_secret_others_may_read_or_that_is_missing_is_refused_without_detail() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let password = world.path("secrets/local/shop-agent/password");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    let open = lease(&mut sidecar, "local/shop").await;
    assert_eq!(
        (open.status, open.error()),
        (StatusCode::FORBIDDEN, "credential_refused")
    );
    fs::remove_file(&password).unwrap();
    let missing = lease(&mut sidecar, "local/shop").await;
    assert_eq!(missing.body, open.body);
    world.shows(r#"sidegate_broker_leases_total{result="refused"} 2"#);
    assert!(!open.body.to_string().contains("shop-agent"));
}

#[tokio::test]
async fn a_token_lease_is_minted_by_our_issuer_for_one_audience() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let answer = lease(&mut sidecar, "local/warehouse").await;
    assert_eq!(answer.body["material"]["kind"], "bearer");
    assert_eq!(answer.body["material"]["user"], "reader");
    assert_eq!(answer.body["expiresIn"], 300);
    let claims = claims(answer.body["material"]["token"].as_str().unwrap());
    assert_eq!(claims["iss"], world.running.issuer_url.as_str());
    assert_eq!(claims["aud"], "warehouse");
    assert_eq!(claims["scope"], "read write");
    assert_eq!(claims.get("cnf"), None);
    assert!(claims["sub"].as_str().unwrap().starts_with("sg:local:"));
}

#[tokio::test]
async fn token_and_leases_share_one_grant_check() {
    let world = World::start().await;
    let mut client = world.client();
    let token = world.token();
    let ask = |more: &[(&'static str, &'static str)]| -> Vec<(&'static str, String)> {
        let base = exchange(&token)
            .into_iter()
            .map(|(name, value)| (name, value.to_owned()));
        base.chain(more.iter().map(|(name, value)| (*name, (*value).to_owned())))
            .collect()
    };
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("audience", "unknown")], "invalid_target"),
        (
            &[("audience", "warehouse"), ("resource", "warehouse")],
            "invalid_target",
        ),
        (&[("audience", "warehouse"), ("scope", "admin")], "invalid_scope"),
        (&[("audience", "warehouse"), ("actor_token", "x")], "invalid_request"),
    ];
    for (more, error) in cases {
        let pairs = ask(more);
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(client.form(&pairs).await.error(), error, "{more:?}");
    }
    let pairs = ask(&[("audience", "warehouse"), ("scope", "read admin")]);
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let narrowed = client.form(&pairs).await;
    assert_eq!(narrowed.body["scope"], "read", "narrowed scopes are echoed");
    assert_eq!(narrowed.body["token_type"], "Bearer");
}

#[tokio::test]
async fn nothing_given_out_outlives_the_service_account_token() {
    let world = World::start().await;
    let mut client = world.client();
    let token = world.token();
    world.clock.advance_ms(3_500_000);
    let answer = client.exchange(&token).await;
    assert_eq!(answer.body["expires_in"], 100, "{}", answer.body);
}

#[tokio::test]
async fn a_lease_is_handed_back_once_and_only_by_its_pod() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let answer = lease(&mut sidecar, "local/shop").await;
    let path = format!("/v1/leases/{}", answer.body["id"].as_str().unwrap());
    assert_eq!(world.running.status().leases, 1);
    assert_eq!(
        sidecar.call(Method::DELETE, &path, None).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(world.running.status().leases, 0);
    assert_eq!(
        sidecar.call(Method::DELETE, &path, None).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_lockdown_stops_leases_and_target_tokens_but_not_the_stream_that_carries_it() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let spec = LockdownSpec {
        reason: "test".to_owned(),
        until: None,
        action: Default::default(),
        freeze: vec![Freeze::Namespace("local".to_owned())],
    };
    world.running.front().lockdowns.lock("incident", spec).unwrap();
    for target in ["local/shop", "local/warehouse"] {
        let refused = lease(&mut sidecar, target).await;
        assert_eq!(
            (refused.status, refused.error()),
            (StatusCode::FORBIDDEN, "locked"),
            "{target}"
        );
    }
    let mut pairs = exchange("").to_vec();
    let token = world.token();
    pairs[1].1 = &token;
    pairs.push(("audience", "warehouse"));
    let refused = sidecar.form(&pairs).await;
    assert_eq!(refused.error(), "locked");
    assert_eq!(
        sidecar.exchange(&token).await.status,
        StatusCode::OK,
        "a session for the stream"
    );
    world.running.front().lockdowns.unlock("incident").unwrap();
    assert_eq!(lease(&mut sidecar, "local/shop").await.status, StatusCode::OK);
}

fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let segment = token.split('.').nth(1).unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(segment)
        .unwrap();
    serde_json::from_slice(&bytes).unwrap()
}
