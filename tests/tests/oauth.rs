//! OAUTHBEARER on PostgreSQL 18: a token the broker mints for the Target is the agent's only way in, and the agent,
//! stock `psql` without a password, never sees it.

use std::path::PathBuf;

use serde_json::json;
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::psql::psql_async;
use sidegate_tests::shop::{self, DATABASE, ROLE};
use sidegate_tests::told::{events, values};
use sidegate_tests::world::World;
use sidegate_tests::{ports, wire};

const AUDIENCE: &str = "postgres://shop.data.svc";

/// The validator as it was built with the tests: beside them.
fn validator() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let found = folder.join("libsidegate_validator.so");
    assert!(found.exists(), "{} was not built with the tests", found.display());
    found
}

/// A server that lets only bearers of good tokens in, whoever the tokens' subjects are mapped to.
fn server() -> Postgres {
    let options = Options {
        settings: vec!["log_connections = on".into()],
        tls: Some("db.internal".into()),
        ..Options::default()
    };
    let server = shop::server(Major::V18, options).unwrap();
    let module = server
        .write("validator.so", &std::fs::read(validator()).unwrap())
        .unwrap();
    server
        .write("pg_ident.conf", format!("agents /^sg:.*$ {ROLE}\n").as_bytes())
        .unwrap();
    let hba = "host all postgres 127.0.0.1/32 scram-sha-256\n\
               hostssl all all 127.0.0.1/32 oauth issuer=\"https://issuer.invalid\" scope=\"db\" map=agents\n";
    server.write("pg_hba.conf", hba.as_bytes()).unwrap();
    server
        .reconfigure(&[("oauth_validator_libraries", module.to_str().unwrap())])
        .unwrap();
    server
}

fn configuration(server: &Postgres, local: u16, audience: &str, role: &str) -> String {
    let tls = format!(
        "tls: {{caBundle: {{inline: {}}}}}",
        serde_json::to_string(server.authority.pem()).unwrap()
    );
    let credential = format!("credential: {{token: {{audience: {audience:?}, scopes: [db], username: {role}}}}}");
    shop::configuration(server.port, local, "", "")
        .replace("tls: {mode: Disabled}", &tls)
        .replace("credential: {secret: {name: shop-agent}}", &credential)
}

/// What the server trusts: this broker's keys, for this audience.
fn trust(server: &Postgres, world: &World) {
    let now = world.broker.front().clock.now();
    let trust = json!({
        "issuer": world.broker.issuer_url, "audience": AUDIENCE, "jwks": world.broker.front().issuer.jwks(now),
    });
    server
        .write("sidegate_validator.json", trust.to_string().as_bytes())
        .unwrap();
}

async fn world(server: &Postgres, local: u16, audience: &str, role: &str) -> World {
    let world = shop::setup(configuration(server, local, audience, role))
        .start()
        .await
        .unwrap();
    trust(server, &world);
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_for_this_target_is_a_login_and_no_other_is() {
    let (server, local) = (server(), ports::free().unwrap());
    let good = world(&server, local, AUDIENCE, ROLE).await;
    let said = psql_async(
        local,
        DATABASE,
        &["SELECT current_user, name, ssn FROM app.people WHERE id = 1"],
    )
    .await
    .unwrap();
    assert_eq!(
        said.out,
        format!("{ROLE}|Ada|*******8841"),
        "{said:?}\n{}",
        server.log()
    );
    let log = server.log();
    assert!(log.contains("method=oauth") && log.contains("identity=\"sg:"), "{log}");
    let bytes = tokio::task::spawn_blocking(move || {
        let mut wire = wire::Wire::login(local, DATABASE).unwrap();
        assert!(wire.alive().unwrap());
        let told = wire.ask(&[wire::query("SELECT system_user")]).unwrap();
        (wire.received, wire::shape(&told))
    });
    let (received, told) = bytes.await.unwrap();
    assert!(
        !String::from_utf8_lossy(&received).contains("eyJ"),
        "a token reached the agent"
    );
    assert_eq!(told, ["T", "D", "C SELECT 1", "Z I"]);
    assert!(String::from_utf8_lossy(&received).contains("oauth:sg:"));
    let folder = good.stop().await;
    let told = events(&folder.path().join("state")).unwrap();
    assert!(values(&told, "mechanism")
        .iter()
        .all(|mechanism| mechanism == "OAUTHBEARER"));
    assert!(!values(&told, "mechanism").is_empty());

    // Another audience, and a role the subject is not mapped to.
    let local = ports::free().unwrap();
    let wrong = world(&server, local, "postgres://elsewhere", ROLE).await;
    let said = psql_async(local, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(
        said.code != 0 && said.err.contains("the target refused the login (28000)"),
        "{said:?}"
    );
    assert!(server.log().contains("sidegate validator: aud is"), "{}", server.log());
    wrong.stop().await;
    let local = ports::free().unwrap();
    let other = world(&server, local, AUDIENCE, "somebody").await;
    let said = psql_async(local, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(
        said.code != 0 && said.err.contains("the target refused the login"),
        "{said:?}"
    );
    other.stop().await;

    // Keys of another broker: the signature is not theirs.
    let local = ports::free().unwrap();
    let stranger = world(&server, local, AUDIENCE, ROLE).await;
    let second = shop::setup(configuration(&server, ports::free().unwrap(), AUDIENCE, ROLE))
        .start()
        .await
        .unwrap();
    trust(&server, &second);
    let said = psql_async(local, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(
        said.code != 0 && said.err.contains("the target refused the login (28000)"),
        "{said:?}"
    );
    stranger.stop().await;
    second.stop().await;
}
