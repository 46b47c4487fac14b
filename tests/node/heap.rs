//! What is left of a credential in the memory of a sidecar that runs by itself, in its pod, from our own image.

use anyhow::{ensure, Context, Result};
use serde_json::json;
use sidegate_tests::cluster::node::site::{Site, SHOP};
use sidegate_tests::heap::{Needles, NEW, OLD};
use sidegate_tests::shop::{DATABASE, ROLE as GROUP};

use crate::lifecycle::sidecar_of;

/// A role of this test's own: others log in by the shop's meanwhile.
const ROLE: &str = "heap_agent";
const NAME: &str = "SELECT name FROM app.people WHERE id = 1";

/// A lease is refused by the server and dropped for a fresh one: of its password, and of what was derived from it, nothing
/// is in the sidecar any more, while all of the new one is found.
pub fn nothing_of_a_password_is_left_in_a_sidecar_once_its_lease_is_gone(site: &Site) -> Result<()> {
    let (agents, server) = (site.agents()?, &site.shop);
    let secret = |password: &str| {
        let patch = json!({"stringData": {"username": ROLE, "password": password}}).to_string();
        agents.kubectl(&["patch", "secret", "shop-agent", "-p", &patch])
    };
    server.sql(
        DATABASE,
        &format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{OLD}' IN ROLE {GROUP}"),
    )?;
    let old = Needles::password(server, ROLE, OLD)?;
    secret(OLD)?;
    agents.psql_pod("agent")?;
    ensure!(agents.ask("agent", SHOP, NAME)? == "Ada", "it does not read");
    let pod = agents.stored("pod", "agent")?;
    let pid = sidecar_of(pod["metadata"]["uid"].as_str().context("no UID")?)?;
    let held = old.held_by(pid)?;
    for name in ["the password, ", "the salted password, "] {
        let seen = held.iter().any(|found| found.starts_with(name));
        ensure!(seen, "the search does not find {name}which a lease carries: {held:#?}");
    }

    server.sql(DATABASE, &format!("ALTER ROLE {ROLE} PASSWORD '{NEW}'"))?;
    secret(NEW)?;
    ensure!(
        agents.ask("agent", SHOP, NAME)? == "Ada",
        "it does not read with the new one"
    );
    let new = Needles::default().secret("the new password", NEW.as_bytes());
    ensure!(!new.held_by(pid)?.is_empty(), "the lease that is held is not found");
    let mut left = Vec::new();
    let gone = agents.until("nothing is left", || {
        left = old.held_by(pid)?;
        Ok(left.is_empty())
    });
    gone.with_context(|| format!("{left:#?}"))
}
