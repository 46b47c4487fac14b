//! A real Keycloak over real TLS: it fetches our keys itself, finds its client by who the assertion is from and about
//! (federated client authentication), and its own token is what the caller gets; another client of it has a secret. Both
//! tokens are ended there. `make interop` runs it.

#![allow(clippy::print_stdout)] // what a real server said, and why it was not asked

use std::path::{Path, PathBuf};
use std::process::Stdio;

use http::StatusCode;
use serde_json::{json, Value};
use sidegate_broker::clock::{Clock, SystemClock};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::client::Client;
use crate::exchanges::config;
use crate::issuers::{hand_back, noted, put_client_secret};
use crate::oidc::claims;
use crate::provider::{certificates, issuer_at};
use crate::world::World;

/// The realm: our broker as an identity provider whose assertions count, one client per agent, and one with a secret.
fn realm(issuer: &str, subject: &str) -> Value {
    let mapper = |name: &str, what: &str, audience: &str| {
        json!({
            "name": name, "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper",
            "config": {what: audience, "access.token.claim": "true"},
        })
    };
    let ledger = mapper("ledger", "included.custom.audience", "ledger");
    // Who exchanges a token must be among those it is for, and may have it for whom it is for as well.
    let others = ["ledger-agent", "books"].map(|client| mapper(client, "included.client.audience", client));
    json!({
        "realm": "corp", "enabled": true,
        "identityProviders": [{
            "alias": "sidegate", "providerId": "oidc", "enabled": true,
            "config": {
                "issuer": issuer, "useJwksUrl": "true", "jwksUrl": format!("{issuer}/jwks"), "validateSignature": "true",
                "supportsClientAssertions": "true", "clientId": "unused", "clientSecret": "unused",
                "authorizationUrl": format!("{issuer}/none"), "tokenUrl": format!("{issuer}/none"),
            },
        }],
        "clients": [{
            "clientId": "ledger-agent", "enabled": true, "publicClient": false, "serviceAccountsEnabled": true,
            "standardFlowEnabled": false, "clientAuthenticatorType": "federated-jwt",
            "attributes": {
                "jwt.credential.issuer": "sidegate", "jwt.credential.sub": subject,
                "standard.token.exchange.enabled": "true",
            },
            "protocolMappers": [ledger, others[0], others[1]],
        }, {
            "clientId": "books", "enabled": true, "publicClient": false, "standardFlowEnabled": false, "secret": "unused",
        }, {
            "clientId": "ledger-secret", "enabled": true, "publicClient": false, "serviceAccountsEnabled": true,
            "standardFlowEnabled": false, "clientAuthenticatorType": "client-secret", "secret": "kc & secret",
            "protocolMappers": [ledger],
        }],
    })
}

/// A Keycloak that runs: its script and the program the script starts, which end together.
struct Keycloak(Child);

impl Drop for Keycloak {
    fn drop(&mut self) {
        if let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Starts it, and returns once it listens.
async fn start(home: &Path, folder: &Path, port: u16, realm: &Value) -> Keycloak {
    let import = home.join("data/import");
    std::fs::create_dir_all(&import).unwrap();
    std::fs::write(import.join("corp.json"), realm.to_string()).unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    let mut child = Command::new(home.join("bin/kc.sh"))
        .args(["start", "--optimized", "--import-realm", "--http-host=127.0.0.1"])
        .arg(format!("--https-port={port}"))
        .arg(format!("--hostname=https://127.0.0.1:{port}"))
        .arg(format!("--https-certificate-file={}", file("kc.pem")))
        .arg(format!("--https-certificate-key-file={}", file("kc.key")))
        .arg(format!("--truststore-paths={}", file("broker.pem")))
        .env("JAVA_OPTS_KC_HEAP", "-Xmx512m")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .map(Keycloak)
        .unwrap();
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let listens = async {
        let mut said = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("Listening on:") {
                return lines;
            }
            said.push(line);
        }
        panic!("Keycloak ended: {}", said.join("\n"));
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(300), listens).await;
    let mut lines = waited.expect("Keycloak does not come up");
    // What it says later is shown with a failure, and never fills its pipe.
    #[allow(clippy::disallowed_methods)] // ends with the test's runtime
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            println!("{line}");
        }
    });
    child
}

/// What a token says that is leased under another configuration.
async fn token_by(world: &World, sidecar: &mut Client, config: &str) -> Value {
    world.configured_by(config).await;
    let leased = sidecar.post("/v1/leases", json!({"target": "local/ledger"})).await;
    assert_eq!(leased.status, StatusCode::OK, "{}", leased.body);
    let claims = claims(leased.body["material"]["token"].as_str().unwrap());
    hand_back(sidecar, &leased).await;
    claims
}

#[tokio::test]
async fn keycloak_takes_our_assertion_and_its_token_is_leased() {
    let Some(home) = std::env::var_os("SIDEGATE_KEYCLOAK").map(PathBuf::from) else {
        println!("SKIPPED: SIDEGATE_KEYCLOAK names no Keycloak; `make interop` fetches one");
        return;
    };
    let (port, (ca, cert, key)) = (crate::oidc::free(), certificates());
    let realm_url = format!("https://127.0.0.1:{port}/realms/corp");
    let issuer = issuer_at(&realm_url, &ca, "Keycloak", "{}", "subject: {named: {}}");
    // Keycloak knows of no scope `read`.
    let config = config(&issuer).replace("audience: ledger, scopes: [read]", "audience: ledger");
    let world = World::try_start(&config)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    let folder = world.path("keycloak");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, text) in [
        ("kc.pem", cert),
        ("kc.key", key.serialize_pem()),
        ("broker.pem", world.running.ca_pem.clone()),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    let realm = realm(&world.running.issuer_url, "system:serviceaccount:local:agent");
    let _keycloak = start(&home, &folder, port, &realm).await;
    // The broker's clock stood still meanwhile.
    world.clock.advance_ms(SystemClock.now_ms() - world.clock.now_ms());
    let mut sidecar = world.sidecar().await;
    let leased = sidecar.post("/v1/leases", json!({"target": "local/ledger"})).await;
    assert_eq!(leased.status, StatusCode::OK, "{}", leased.body);
    let claims = claims(leased.body["material"]["token"].as_str().unwrap());
    assert_eq!(claims["iss"], realm_url.as_str());
    assert_eq!(claims["azp"], "ledger-agent");
    assert!(
        claims["aud"] == "ledger" || claims["aud"].as_array().unwrap().contains(&json!("ledger")),
        "{claims}"
    );
    println!("Keycloak's token: {claims}, leased for {} s", leased.body["expiresIn"]);
    hand_back(&mut sidecar, &leased).await;
    noted(&world, "exchange.revoked", 1).await;

    // By a second step the token is for one of those alone.
    let narrowed = config
        .replace("preset: Keycloak", "preset: KeycloakExchange")
        .replace("audience: ledger", "audience: books");
    let claims = token_by(&world, &mut sidecar, &narrowed).await;
    assert_eq!(
        (&claims["aud"], &claims["azp"]),
        (&json!("books"), &json!("ledger-agent"))
    );
    println!("Keycloak's token by exchange: {claims}");

    put_client_secret(&world, "kc & secret");
    let with_secret = "values: {clientId: ledger-secret}\n  clientSecretRef: {name: corp-client, key: secret}";
    let config = config.replace("values: {}", with_secret);
    let claims = token_by(&world, &mut sidecar, &config).await;
    assert_eq!(claims["azp"], "ledger-secret");
    noted(&world, "exchange.revoked", 3).await;
}
