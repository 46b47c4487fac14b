//! A stock OpenID provider (npm `oidc-provider`) over real TLS: it verifies our assertion by its own rules, and its own
//! token is what the caller gets.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use http::{Method, StatusCode};
use serde_json::{json, Value};

use crate::client::Client;
use crate::provider::certificates;
use crate::stock::Stock;
use crate::world::{put_secret, World, CONFIG};

const RESOURCE: &str = "https://ledger.example/";

fn config(port: u16, ca: &str, audience: &str) -> String {
    let pem = ca.trim_end().replace('\n', "\n      ");
    let named = CONFIG.replace("{name: warehouse}]", "{name: warehouse}, {name: ledger}]");
    format!(
        "{named}---\napiVersion: sidegate.dev/v1alpha1\nkind: Target\nmetadata: {{name: ledger, namespace: local}}\nspec:\n  \
         protocol: Postgres\n  address: {{host: db.example, port: 5435}}\n  \
         credential: {{token: {{issuer: stock, audience: '{audience}', scopes: [read], username: reader}}}}\n  \
         listen: {{port: 15435}}\n---\napiVersion: sidegate.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {{name: stock}}\nspec:\n  \
         preset: GenericAssertion\n  issuer: https://127.0.0.1:{port}\n  \
         values: {{clientId: sidegate-ledger, tokenEndpoint: 'https://127.0.0.1:{port}/token', resource: '{RESOURCE}'}}\n  \
         allowedNamespaces: {{selector: {{}}}}\n  caBundle:\n    inline: |\n      {pem}\n"
    )
}

/// A port that nobody else takes before the provider does: none of those the kernel gives to connections.
pub fn free() -> u16 {
    crate::ports::free().unwrap()
}

/// The claims of a JWT, unverified.
pub fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

#[tokio::test]
async fn a_stock_provider_takes_our_assertion_and_its_token_is_leased() {
    let (port, (ca, cert, key)) = (free(), certificates());
    let world = World::try_start(&config(port, &ca, RESOURCE))
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    let mut back = Client::new(&world.running.issuer_url, &world.running.ca_pem, world.clock.clone());
    let jwks = back.call(Method::GET, "/jwks", None).await.body;
    let mut stock = Stock::start(
        port,
        &cert,
        &key.serialize_pem(),
        json!({"jwks": jwks, "resource": RESOURCE}),
    )
    .await;
    let mut sidecar = world.sidecar().await;
    let leased = sidecar.post("/v1/leases", json!({"target": "local/ledger"})).await;
    assert_eq!(leased.status, StatusCode::OK, "{}", leased.body);
    stock.says("granted").await;
    let claims = claims(leased.body["material"]["token"].as_str().unwrap());
    assert_eq!(claims["iss"], format!("https://127.0.0.1:{port}"));
    assert_eq!((&claims["aud"], &claims["scope"]), (&json!(RESOURCE), &json!("read")));
    assert_eq!(claims["client_id"], "sidegate-ledger");
    let life = leased.body["expiresIn"].as_i64().unwrap();
    assert!((235..=240).contains(&life), "{life}");
}

#[tokio::test]
async fn a_stock_provider_with_another_key_says_no_and_the_caller_hears_only_that() {
    let (port, (ca, cert, key)) = (free(), certificates());
    let world = World::try_start(&config(port, &ca, RESOURCE))
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    // The keys of another broker.
    let other = World::start().await;
    let mut back = Client::new(&other.running.issuer_url, &other.running.ca_pem, other.clock.clone());
    let jwks = back.call(Method::GET, "/jwks", None).await.body;
    let mut stock = Stock::start(
        port,
        &cert,
        &key.serialize_pem(),
        json!({"jwks": jwks, "resource": RESOURCE}),
    )
    .await;
    let mut sidecar = world.sidecar().await;
    let refused = sidecar.post("/v1/leases", json!({"target": "local/ledger"})).await;
    assert_eq!(
        (refused.status, refused.error()),
        (StatusCode::FORBIDDEN, "credential_refused")
    );
    let said = stock.says("grant.error").await;
    assert!(said.contains("invalid_client"), "{said}");
}

#[tokio::test]
async fn a_token_of_a_stock_provider_for_another_audience_is_not_leased() {
    let (port, (ca, cert, key)) = (free(), certificates());
    let config = config(port, &ca, "https://another.example/");
    let world = World::try_start(&config)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    let mut back = Client::new(&world.running.issuer_url, &world.running.ca_pem, world.clock.clone());
    let jwks = back.call(Method::GET, "/jwks", None).await.body;
    let mut stock = Stock::start(
        port,
        &cert,
        &key.serialize_pem(),
        json!({"jwks": jwks, "resource": RESOURCE}),
    )
    .await;
    let mut sidecar = world.sidecar().await;
    let refused = sidecar.post("/v1/leases", json!({"target": "local/ledger"})).await;
    stock.says("granted").await;
    assert_eq!(
        (refused.status, refused.error()),
        (StatusCode::FORBIDDEN, "credential_refused")
    );
}

#[tokio::test]
async fn a_stock_provider_takes_a_clients_secret_with_our_assertion_and_no_other_secret() {
    let (port, (ca, cert, key)) = (free(), certificates());
    let preset = format!(
        "preset: Generic\n  clientSecretRef: {{name: stock, key: secret}}\n  issuer: https://127.0.0.1:{port}\n  \
         values: {{clientId: 'sidegate:exchange', tokenEndpoint: 'https://127.0.0.1:{port}/token'}}\n  allowed"
    );
    let config = config(port, &ca, RESOURCE);
    let (head, rest) = config.split_once("preset: GenericAssertion").unwrap();
    let config = format!("{head}{preset}{}", rest.split_once("allowed").unwrap().1);
    let world = World::try_start(&config)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    let mut back = Client::new(&world.running.issuer_url, &world.running.ca_pem, world.clock.clone());
    let jwks = back.call(Method::GET, "/jwks", None).await.body;
    let more =
        json!({"jwks": jwks, "resource": RESOURCE, "secret": "a secret: & % +", "broker": world.running.issuer_url});
    let mut stock = Stock::start(port, &cert, &key.serialize_pem(), more).await;
    let folder = world.path("secrets/sidegate-system/stock");
    std::fs::create_dir_all(&folder).unwrap();
    put_secret(&folder.join("secret"), "another");
    let mut sidecar = world.sidecar().await;
    let refused = sidecar.post("/v1/leases", json!({"target": "local/ledger"})).await;
    assert_eq!(
        (refused.status, refused.error()),
        (StatusCode::FORBIDDEN, "credential_refused")
    );
    let said = stock.says("grant.error").await;
    assert!(said.contains("invalid_client"), "{said}");
    put_secret(&folder.join("secret"), "a secret: & % +");
    world.clock.advance_ms(10_001);
    let leased = sidecar.post("/v1/leases", json!({"target": "local/ledger"})).await;
    assert_eq!(leased.status, StatusCode::OK, "{}", leased.body);
    stock.says("granted").await;
    let claims = claims(leased.body["material"]["token"].as_str().unwrap());
    assert_eq!(
        (&claims["aud"], &claims["client_id"]),
        (&json!(RESOURCE), &json!("sidegate:exchange"))
    );
    // What the provider read in the assertion.
    assert!(claims["agent"].as_str().unwrap().starts_with("sg:local:"), "{claims}");
}

#[tokio::test]
async fn a_stock_provider_ends_a_token_when_its_lease_is_handed_back() {
    let (port, (ca, cert, key)) = (free(), certificates());
    let endpoint = format!("revocationEndpoint: 'https://127.0.0.1:{port}/token/revocation', resource:");
    let config = config(port, &ca, RESOURCE).replace("resource:", &endpoint);
    let world = World::try_start(&config)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    let mut back = Client::new(&world.running.issuer_url, &world.running.ca_pem, world.clock.clone());
    let jwks = back.call(Method::GET, "/jwks", None).await.body;
    // It revokes no token that says everything itself.
    let more = json!({"jwks": jwks, "resource": RESOURCE, "format": "opaque"});
    let mut stock = Stock::start(port, &cert, &key.serialize_pem(), more).await;
    let mut sidecar = world.sidecar().await;
    let leased = sidecar.post("/v1/leases", json!({"target": "local/ledger"})).await;
    assert_eq!(leased.status, StatusCode::OK, "{}", leased.body);
    stock.says("granted").await;
    let path = format!("/v1/leases/{}", leased.body["id"].as_str().unwrap());
    let ended = sidecar.call(Method::DELETE, &path, None).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    let said = stock.says("revoked").await;
    let token = leased.body["material"]["token"].as_str().unwrap();
    assert_eq!(said, format!("revoked {}", &token[..8]));
}
