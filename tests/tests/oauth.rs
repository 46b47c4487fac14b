//! OAUTHBEARER on PostgreSQL 18: a token the broker mints for the Target is the agent's only way in, and the agent,
//! stock `psql` without a password, never sees it.

use sidegate_tests::bearer::{server, trust};
use sidegate_tests::postgres::Postgres;
use sidegate_tests::psql::psql_async;
use sidegate_tests::shop::{self, DATABASE, ROLE};
use sidegate_tests::told::{events, values};
use sidegate_tests::world::World;
use sidegate_tests::{ports, wire};

const AUDIENCE: &str = "postgres://shop.data.svc";

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
