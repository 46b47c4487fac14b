//! A real Vault, over real TLS and on a real PostgreSQL 18: it verifies the agent's assertion by our own discovery and keys,
//! makes a user for the lease, and removes it with the lease. `make interop` runs it.

#![allow(clippy::print_stdout)] // what it made

use std::fmt::Debug;
use std::sync::Arc;

use anyhow::Result;
use sidegate_policies::api::lockdown::{Freeze, LockdownSpec};
use sidegate_tests::patience::until;
use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::psql::{psql, psql_async};
use sidegate_tests::real_vault::RealVault;
use sidegate_tests::shop::{self, DATABASE, ROLE};
use sidegate_tests::vault::issuer;
use sidegate_tests::world::Setup;

/// Who makes users.
const MAKER: &str = "CREATE ROLE vault SUPERUSER LOGIN PASSWORD 'maker'";

/// The database engine, with users who live for an hour at most.
fn engine(vault: &RealVault, server: &Postgres) -> std::io::Result<()> {
    let port = server.port;
    vault.run(&["secrets", "enable", "database"])?;
    vault.run(&[
        "write",
        "database/config/shop",
        "plugin_name=postgresql-database-plugin",
        "allowed_roles=support",
        &format!(
            "connection_url=postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{port}/{DATABASE}?sslmode=disable"
        ),
        "username=vault",
        "password=maker",
    ])?;
    let statement = format!("CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD '{{{{password}}}}' IN ROLE {ROLE}");
    vault.run(&[
        "write",
        "database/roles/support",
        "db_name=shop",
        &format!("creation_statements={statement}"),
        "max_ttl=1h",
    ])?;
    Ok(())
}

fn users(server: &Postgres) -> String {
    let sql = "SELECT coalesce(string_agg(rolname, ' '), '') FROM pg_roles WHERE rolname LIKE 'v-%'";
    server.sql("postgres", sql).unwrap()
}

/// How many tokens are good now, the administrator's own included.
fn tokens(vault: &RealVault) -> usize {
    let listed = vault.run(&["list", "-format=yaml", "auth/token/accessors"]).unwrap();
    listed.lines().filter(|line| line.starts_with("- ")).count()
}

/// Waits for something while broker and sidecar, which are in this process, go on.
async fn eventually<T: Debug + Send + 'static>(
    what: &'static str,
    look: impl FnMut() -> Result<T> + Send + 'static,
    holds: impl Fn(&T) -> bool + Send + 'static,
) -> T {
    let waited = tokio::task::spawn_blocking(move || until(what, look, holds));
    waited.await.unwrap().unwrap()
}

/// Waits until the Vault removed its users, and every token but its administrator's is over.
async fn gone(server: &Arc<Postgres>, vault: &Arc<RealVault>) {
    let (server, vault) = (Arc::clone(server), Arc::clone(vault));
    let look = move || Ok((users(&server), tokens(&vault)));
    eventually("users and tokens are gone", look, |(users, good)| {
        users.is_empty() && *good == 1
    })
    .await;
}

/// What it says once it is let in: a refusal is remembered for a while.
async fn reads(port: u16, texts: &'static [&'static str]) -> String {
    let said = eventually("it reads", move || psql(port, DATABASE, texts), |said| said.code == 0);
    said.await.out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_vault_makes_a_user_by_our_assertion_and_removes_it_with_the_lease() {
    let Some(program) = RealVault::program() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Arc::new(shop::server(Major::V18, Options::default()).unwrap());
    server.sql("postgres", MAKER).unwrap();
    let vault = Arc::new(RealVault::start(&program, folder.path(), ports::free().unwrap()).unwrap());
    let port = ports::free().unwrap();
    let config = shop::configuration(server.port, port, "", "").replace(
        "credential: {secret: {name: shop-agent}}",
        "credential: {vault: {issuer: corp-vault, mount: database, role: support}}",
    );
    let issuer = issuer(&vault.origin, &vault.ca_pem);
    let world = Setup::new(format!("{config}{issuer}")).start().await.unwrap();
    engine(&vault, &server).unwrap();
    // Before it trusts our assertions it refuses them, and the agent hears that and nothing else.
    let said = psql_async(port, DATABASE, &["SELECT 1"]).await.unwrap();
    assert!(
        said.code != 0 && said.err.contains(r#""reason":"credential_refused""#),
        "{said:?}"
    );
    vault.trust(&world.broker.issuer_url, &world.broker.ca_pem).unwrap();

    let said = reads(
        port,
        &["SELECT session_user", "SELECT name, ssn FROM app.people WHERE id = 1"],
    );
    let said = said.await;
    let user = users(&server);
    assert!(user.starts_with("v-") && !user.contains(' '), "{user}");
    assert_eq!(said, format!("{user}\nAda|*******8841"));
    // The administrator's, the agent's login and one child of it.
    assert_eq!(tokens(&vault), 3);
    let again = psql_async(port, DATABASE, &["SELECT session_user"]).await.unwrap();
    assert_eq!(again.out, user, "one lease, one user");

    let spec = LockdownSpec {
        reason: "test".to_owned(),
        until: None,
        action: Default::default(),
        freeze: vec![Freeze::Issuer("corp-vault".to_owned())],
    };
    let lockdowns = &world.broker.front().lockdowns;
    lockdowns.lock("incident", spec).unwrap();
    gone(&server, &vault).await;
    lockdowns.unlock("incident").unwrap();
    let next = reads(port, &["SELECT session_user"]).await;
    assert!(next.starts_with("v-") && next != user, "{next}");
    // The sidecar's end hands the lease back.
    world.sidecar.shutdown().await;
    gone(&server, &vault).await;
    world.broker.shutdown().await;
    println!("{user} and {next} were made and removed");
}
