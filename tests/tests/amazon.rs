//! Logins by AWS IAM: the keys of a role that the agent may assume sign the password, for minutes, and only verified TLS
//! carries it. The agent is stock `psql` without a password.

use sidegate_tests::amazon::{Amazon, REGION, ROLE_ARN};
use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::psql::psql_async;
use sidegate_tests::shop::{self, DATABASE, ROLE};
use sidegate_tests::told::{events, values};
use sidegate_tests::world::{Setup, World};

struct Site {
    _server: Postgres,
    amazon: Amazon,
    world: World,
    port: u16,
}

fn configuration(amazon: &Amazon, local: u16, arn: &str) -> String {
    let credential = format!(
        "credential: {{awsIam: {{issuer: aws, roleArn: '{arn}', region: {REGION}, service: Rds, username: {ROLE}}}}}"
    );
    let config = shop::configuration(amazon.database.port(), local, "", "")
        .replace("tls: {mode: Disabled}", &shop::tls_by(amazon.authority.pem()))
        .replace("credential: {secret: {name: shop-agent}}", &credential);
    format!("{config}{}", amazon.issuer())
}

async fn site(arn: &str) -> Site {
    let options = Options {
        // What stands before it has looked at the password.
        hba: vec![format!("host all {ROLE} 127.0.0.1/32 trust")],
        ..Options::default()
    };
    let server = shop::server(Major::V18, options).unwrap();
    let amazon = Amazon::start(server.port).await.unwrap();
    let port = ports::free().unwrap();
    let world = Setup::new(configuration(&amazon, port, arn)).start().await.unwrap();
    amazon.trust(&world.broker.issuer_url, &world.broker.ca_pem);
    Site {
        _server: server,
        amazon,
        world,
        port,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_the_agent_may_assume_signs_its_login_and_neither_key_nor_password_is_seen() {
    let Site {
        _server,
        amazon,
        world,
        port,
    } = site(ROLE_ARN).await;
    let texts = ["SELECT current_user", "SELECT name, ssn FROM app.people WHERE id = 1"];
    for _ in 0..2 {
        let said = psql_async(port, DATABASE, &texts).await.unwrap();
        assert_eq!(
            said.out,
            format!("{ROLE}\nAda|*******8841"),
            "{said:?}\n{:?}",
            amazon.refused()
        );
    }
    let (given, logins) = amazon.counts();
    assert!(given == 1 && logins >= 2, "{given} {logins}");
    let folder = world.stop().await;
    let told = events(&folder.path().join("state")).unwrap();
    let mechanisms = values(&told, "mechanism");
    assert!(!mechanisms.is_empty() && mechanisms.iter().all(|mechanism| mechanism == "token-as-password"));
    let everything = serde_json::to_string(&told).unwrap();
    assert!(
        !everything.contains("canary-s") && !everything.contains("X-Amz"),
        "{everything}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_be_assumed_is_final_and_an_sts_that_is_down_is_not() {
    let Site {
        _server,
        amazon,
        world,
        port,
    } = site("arn:aws:iam::123456789012:role/admin").await;
    let refused = psql_async(port, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(refused.err.contains(r#""reason":"credential_refused""#), "{refused:?}");
    assert!(!refused.err.contains("canary"), "{refused:?}");
    assert!(
        amazon.refused().iter().any(|why| why.contains("role/admin")),
        "{:?}",
        amazon.refused()
    );
    assert_eq!(amazon.counts(), (0, 0));
    world.stop().await;

    let Site {
        _server,
        amazon,
        world,
        port,
    } = site(ROLE_ARN).await;
    amazon.fail(Some((503, "ServiceUnavailable")));
    let later = psql_async(port, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(later.err.contains(r#""reason":"unavailable""#), "{later:?}");
    amazon.fail(Some((400, "InvalidIdentityToken")));
    let spreading = psql_async(port, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(
        spreading.err.contains(r#""reason":"unavailable""#),
        "trust may still spread: {spreading:?}"
    );
    world.stop().await;
}
