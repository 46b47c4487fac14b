//! OAUTHBEARER on PostgreSQL 18: a token that the broker mints for the Target, or gets from a provider by its assertion, is
//! the agent's only way in, and the agent, stock `psql` without a password, never sees it.

use sidegate_tests::authority::Authority;
use sidegate_tests::bearer::{configuration, server, server_for, trust, trust_issuer, AUDIENCE};
use sidegate_tests::postgres::Postgres;
use sidegate_tests::psql::psql_async;
use sidegate_tests::shop::{self, DATABASE, ROLE};
use sidegate_tests::stock::Stock;
use sidegate_tests::told::{events, values};
use sidegate_tests::world::World;
use sidegate_tests::{ports, wire};

async fn world(server: &Postgres, local: u16, audience: &str, role: &str) -> World {
    let world = shop::setup(configuration(server, local, audience, role))
        .start()
        .await
        .unwrap();
    trust(server, &world.broker, AUDIENCE).unwrap();
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_for_this_target_is_a_login_and_no_other_is() {
    let (server, local) = (server().unwrap(), ports::free().unwrap());
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
    trust(&server, &second.broker, AUDIENCE).unwrap();
    let said = psql_async(local, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(
        said.code != 0 && said.err.contains("the target refused the login (28000)"),
        "{said:?}"
    );
    stranger.stop().await;
    second.stop().await;
}

/// Where the provider's tokens are taken; not what it calls the database.
const RESOURCE: &str = "https://shop.example/";

/// The shop behind tokens of a stock provider, which knows one client: us.
fn provided(server: &Postgres, local: u16, provider: u16, authority: &Authority) -> String {
    let issuer = serde_json::json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "TokenIssuer", "metadata": {"name": "stock"},
        "spec": {
            "preset": "GenericAssertion", "issuer": format!("https://127.0.0.1:{provider}"),
            "values": {
                "clientId": "sidegate-ledger", "tokenEndpoint": format!("https://127.0.0.1:{provider}/token"),
                "resource": RESOURCE,
            },
            "caBundle": {"inline": authority.pem()}, "allowedNamespaces": {"selector": {}},
        },
    });
    let from = format!("token: {{audience: {RESOURCE:?}, scopes: [db]");
    let to = format!("token: {{issuer: stock, audience: {RESOURCE:?}, scopes: [read]");
    let shop = configuration(server, local, RESOURCE, ROLE);
    assert!(shop.contains(&from), "{shop}");
    format!("{}\n---\n{issuer}\n", shop.replace(&from, &to))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_providers_token_by_our_assertion_is_a_login_and_one_it_does_not_give_is_none() {
    let (server, local) = (server_for("sidegate-ledger").unwrap(), ports::free().unwrap());
    let (port, authority) = (ports::free().unwrap(), Authority::new().unwrap());
    let leaf = authority.leaf(&["127.0.0.1"]).unwrap();
    let world = shop::setup(provided(&server, local, port, &authority))
        .start()
        .await
        .unwrap();
    let front = world.broker.front();
    let jwks = front.issuer.jwks(front.clock.now());
    let more = serde_json::json!({"jwks": jwks, "resource": RESOURCE, "alg": "ES256"});
    let mut stock = Stock::start(port, &leaf.certificate, &leaf.key, more).await;
    trust_issuer(&server, &format!("https://127.0.0.1:{port}"), &stock.keys, RESOURCE).unwrap();
    let query = "SELECT system_user, name, ssn FROM app.people WHERE id = 1";
    let said = psql_async(local, DATABASE, &[query]).await.unwrap();
    let expected = "oauth:sidegate-ledger|Ada|*******8841";
    assert_eq!(said.out, expected, "{said:?}\n{}", server.log());
    stock.says("granted").await;
    assert!(server.log().contains("method=oauth"), "{}", server.log());
    let folder = world.stop().await;
    let told = events(&folder.path().join("state")).unwrap();
    assert!(values(&told, "mechanism")
        .iter()
        .all(|mechanism| mechanism == "OAUTHBEARER"));

    // A broker whose keys the provider does not know gets no token, and its agent no login.
    let local = ports::free().unwrap();
    let stranger = shop::setup(provided(&server, local, port, &authority))
        .start()
        .await
        .unwrap();
    let said = psql_async(local, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(said.code != 0 && said.err.contains("credential_refused"), "{said:?}");
    let why = stock.says("grant.error").await;
    assert!(why.contains("invalid_client"), "{why}");
    stranger.stop().await;
}
