//! A stock OpenID provider (npm `oidc-provider`) over real TLS: it verifies our assertion by its own rules, and its own
//! token is what the caller gets.

use std::path::PathBuf;
use std::process::Stdio;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use http::{Method, StatusCode};
use serde_json::{json, Value};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::client::Client;
use crate::provider::certificates;
use crate::world::{put_secret, World, CONFIG};

const RESOURCE: &str = "https://ledger.example/";

/// The provider's program; it ends with its input.
struct Stock {
    _child: Child,
    _input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Stock {
    async fn start(port: u16, cert: &str, key: &str, jwks: &Value) -> Self {
        Self::start_with(port, cert, key, json!({"jwks": jwks})).await
    }

    /// With more settings, the broker's keys among them.
    async fn start_with(port: u16, cert: &str, key: &str, more: Value) -> Self {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/oidc/provider.mjs");
        let cache = std::env::var_os("SIDEGATE_CACHE").map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/sidegate"));
        let modules = cache.join("clients/oidc/node_modules");
        assert!(
            modules.exists(),
            "oidc-provider is missing: run `bash tests/setup/need.sh oidc`"
        );
        let mut child = Command::new("node")
            .arg(here)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut settings = json!({
            "modules": modules, "issuer": format!("https://127.0.0.1:{port}"), "port": port, "resource": RESOURCE,
            "cert": cert, "key": key,
        });
        settings
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        input.write_all(format!("{settings}\n").as_bytes()).await.unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stock = Stock {
            _child: child,
            _input: input,
            lines,
        };
        stock.says("ready").await;
        stock
    }

    /// Waits for a line that begins so, and gives it.
    async fn says(&mut self, begins: &str) -> String {
        let find = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.starts_with(begins) {
                    return line;
                }
            }
            panic!("the provider ended");
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(30), find).await;
        waited.unwrap_or_else(|_| panic!("the provider never says {begins}"))
    }
}

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

/// A port that was free a moment ago.
pub fn free() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The claims of a JWT, unverified.
fn claims(token: &str) -> Value {
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
    let mut stock = Stock::start(port, &cert, &key.serialize_pem(), &jwks).await;
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
    let mut stock = Stock::start(port, &cert, &key.serialize_pem(), &jwks).await;
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
    let mut stock = Stock::start(port, &cert, &key.serialize_pem(), &jwks).await;
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
    let more = json!({"jwks": jwks, "secret": "a secret: & % +", "broker": world.running.issuer_url});
    let mut stock = Stock::start_with(port, &cert, &key.serialize_pem(), more).await;
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
