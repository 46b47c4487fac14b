//! Users that a Vault makes for a lease, on a real PostgreSQL 18: the agent, stock `psql` without a password, is such a
//! user, and when its lease ends there is no such user any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sidegate_policies::api::lockdown::{Freeze, LockdownSpec};
use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::psql::psql_async;
use sidegate_tests::shop::{self, DATABASE};
use sidegate_tests::told::{events, values};
use sidegate_tests::vault::{self, Vault};
use sidegate_tests::wire::{query, state, Wire};
use sidegate_tests::world::{Setup, World};

struct Site {
    server: Arc<Postgres>,
    vault: Vault,
    world: World,
    port: u16,
}

async fn site(user_life: Duration) -> Site {
    let server = Arc::new(shop::server(Major::V18, Options::default()).unwrap());
    let vault = Vault::start(&server, user_life).unwrap();
    let port = ports::free().unwrap();
    let config = shop::configuration(server.port, port, "", "").replace(
        "credential: {secret: {name: shop-agent}}",
        "credential: {vault: {issuer: corp-vault, mount: database, role: support}}",
    );
    let world = Setup::new(format!("{config}{}", vault.issuer())).start().await.unwrap();
    vault.trust(&world.broker.issuer_url, &world.broker.ca_pem);
    Site {
        server,
        vault,
        world,
        port,
    }
}

fn users(server: &Postgres) -> String {
    vault::users(server).unwrap()
}

async fn gone(server: &Arc<Postgres>) {
    let server = Arc::clone(server);
    let waited = tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !users(&server).is_empty() {
            assert!(Instant::now() < deadline, "still there: {}", users(&server));
        }
    });
    waited.await.unwrap();
}

/// Tokens are given back behind their users, so they may go a moment later.
async fn left(vault: &Vault, tokens: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while vault.tokens() != tokens {
        assert!(Instant::now() < deadline, "{} tokens are still good", vault.tokens());
        tokio::task::yield_now().await;
    }
}

/// Opens a session, says so, and gives the state it is ended with.
fn session(port: u16, opened: std::sync::mpsc::Sender<()>) -> Option<String> {
    let mut wire = Wire::login(port, DATABASE).unwrap();
    wire.ask(&[query("SELECT 1")]).unwrap();
    opened.send(()).unwrap();
    let mut told = Vec::new();
    while let Ok(Some(frame)) = wire.receive() {
        told.push(frame);
    }
    state(&told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_a_user_made_for_it_who_is_gone_once_the_lease_is_handed_back() {
    let Site {
        server,
        vault,
        world,
        port,
    } = site(Duration::from_secs(3600)).await;
    let texts = ["SELECT session_user", "SELECT name, ssn FROM app.people WHERE id = 1"];
    let said = psql_async(port, DATABASE, &texts).await.unwrap();
    let user = users(&server);
    assert!(
        user.starts_with("v-support-") && !user.contains(' '),
        "{user}: {:?}",
        vault.refused()
    );
    assert_eq!(
        said.out,
        format!("{user}\nAda|*******8841"),
        "{said:?}\n{}",
        server.log()
    );
    // The next session is the same user: one lease, one child token, one login.
    let again = psql_async(port, DATABASE, &["SELECT session_user"]).await.unwrap();
    assert_eq!(again.out, user);
    assert_eq!((vault.tokens(), vault.refused()), (2, Vec::new()));
    // The sidecar's end hands the lease back.
    let state = world.state();
    world.sidecar.shutdown().await;
    gone(&server).await;
    left(&vault, 0).await;
    world.broker.shutdown().await;
    let told = events(&state).unwrap();
    let mechanisms = values(&told, "mechanism");
    assert!(!mechanisms.is_empty() && mechanisms.iter().all(|mechanism| mechanism == "SCRAM-SHA-256"));
    let everything = serde_json::to_string(&told).unwrap();
    assert!(
        everything.contains(&user) && !everything.contains("canary"),
        "{everything}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lockdown_closes_the_session_and_removes_the_user() {
    let Site {
        server,
        vault,
        world,
        port,
    } = site(Duration::from_secs(3600)).await;
    let (opened, open) = std::sync::mpsc::channel();
    let session = tokio::task::spawn_blocking(move || session(port, opened));
    let opened = tokio::task::spawn_blocking(move || open.recv_timeout(Duration::from_secs(20)));
    opened.await.unwrap().unwrap();
    assert!(!users(&server).is_empty(), "{:?}", vault.refused());
    let spec = LockdownSpec {
        reason: "test".to_owned(),
        until: None,
        action: Default::default(),
        freeze: vec![Freeze::Issuer("corp-vault".to_owned())],
    };
    world.broker.front().lockdowns.lock("incident", spec).unwrap();
    assert_eq!(session.await.unwrap().as_deref(), Some("57P01"));
    gone(&server).await;
    // The agent's login goes as well: nothing that our assertion opened is good any more.
    left(&vault, 0).await;
    let said = psql_async(port, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(said.code != 0 && users(&server).is_empty(), "{said:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_never_outlives_the_vaults_own_end_of_the_lease_and_the_next_one_is_another_user() {
    // Of which the last five are never used.
    let Site {
        server,
        vault,
        world,
        port,
    } = site(Duration::from_secs(10)).await;
    let (opened, open) = std::sync::mpsc::channel();
    let began = Instant::now();
    let session = tokio::task::spawn_blocking(move || session(port, opened));
    let opened = tokio::task::spawn_blocking(move || open.recv_timeout(Duration::from_secs(20)));
    opened.await.unwrap().unwrap();
    let first = users(&server);
    assert_eq!(
        session.await.unwrap().as_deref(),
        Some("57P01"),
        "{:?}",
        vault.refused()
    );
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    gone(&server).await;
    let said = psql_async(port, DATABASE, &["SELECT session_user"]).await.unwrap();
    assert!(said.out.starts_with("v-support-") && said.out != first, "{said:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_that_is_down_costs_nothing_while_the_lease_is_good_and_one_that_says_no_is_final() {
    let Site {
        server,
        vault,
        world,
        port,
    } = site(Duration::from_secs(3600)).await;
    vault.fail(Some(503));
    let said = psql_async(port, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(
        said.code != 0 && said.err.contains(r#""reason":"unavailable""#),
        "{said:?}"
    );
    assert!(!said.err.contains("canary"), "{said:?}");
    vault.fail(None);
    // It is asked again as soon as the broker lets it; nothing needs a restart.
    let deadline = Instant::now() + Duration::from_secs(40);
    let user = loop {
        let said = psql_async(port, DATABASE, &["SELECT session_user"]).await.unwrap();
        if said.code == 0 {
            break said.out;
        }
        assert!(Instant::now() < deadline, "{said:?}\n{:?}", vault.refused());
    };
    vault.fail(Some(503));
    let said = psql_async(port, DATABASE, &["SELECT session_user"]).await.unwrap();
    assert_eq!(said.out, user, "{said:?}");
    vault.fail(None);
    world.sidecar.shutdown().await;
    gone(&server).await;
    world.broker.shutdown().await;

    let Site { vault, world, port, .. } = site(Duration::from_secs(3600)).await;
    vault.fail(Some(403));
    let said = psql_async(port, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(
        said.code != 0 && said.err.contains(r#""reason":"credential_refused""#),
        "{said:?}"
    );
    assert!(!said.err.contains("canary"), "{said:?}");
    world.stop().await;
}
