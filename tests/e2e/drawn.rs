//! A user that a Vault makes for one pod of the cluster goes with that pod.

use std::time::Duration;

use anyhow::{ensure, Result};
use sidegate_tests::cluster::Cluster;
use sidegate_tests::shop::DATABASE;
use sidegate_tests::vault::{users, Vault};
use sidegate_tests::wire;

use crate::applied::Shop;
use crate::site::{until, Agent};

/// A pod of the cluster logs in as a user that a Vault made for it. The pod is deleted while its session is open: the
/// session ends, and the broker has the Vault take the user back, though it lived for another hour and nobody handed the
/// lease back.
pub fn a_deleted_pods_user_is_taken_back(cluster: &Cluster) -> Result<()> {
    let shop = Shop::of(Agent::new(cluster)?)?;
    let Shop { agent, server, local } = &shop;
    let vault = Vault::start(server, Duration::from_secs(3600))?;
    vault.trust(&agent.site.broker.issuer_url, &agent.site.broker.ca_pem);
    let target = shop.target_by("vault: {issuer: corp-vault, mount: database, role: support}");
    let policy = shop.policy("support", "{name: read, effect: Allow, sql: {commands: [Select]}}");
    agent.apply(&format!("{target}---\n{policy}{}", vault.issuer()))?;
    let sidecar = agent.sidecar()?;
    let ask = || shop.ask("SELECT session_user");
    let said = until("the Vault made a user", ask, |said| said.code == 0)?;
    let made = users(server)?;
    ensure!(
        said.out == made && !made.contains(' '),
        "{said:?}, {made}: {:?}",
        vault.refused()
    );
    let mut open = wire::Wire::login(*local, DATABASE)?;
    ensure!(open.alive()?, "the session does not live");
    agent.delete_pod()?;
    until(
        "the open session ends",
        || Ok(open.alive().unwrap_or(false)),
        |alive| !alive,
    )?;
    // The sidecar runs on: it is the broker that takes the user back.
    until("the user is gone", || users(server), |users| users.is_empty())?;
    until("its tokens are, too", || Ok(vault.tokens()), |tokens| *tokens == 0)?;
    ensure!(vault.refused().is_empty(), "{:?}", vault.refused());
    agent.end(sidecar);
    agent.kubectl(&["delete", "tokenissuer", "corp-vault"]).map(|_| ())
}
