//! What goes on and what stops while a part is away: rows of the failure matrix, on a control plane of its own.

use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use sidegate_broker::jwt::{SigningKey, Slot};
use sidegate_tests::cluster::{Cluster, Programs};
use sidegate_tests::shop::DATABASE;
use sidegate_tests::wire;

use crate::applied::{Shop, NAME};
use crate::charts;
use crate::site::{until, Agent, Site};

/// An API server that hangs stops new identities, and nothing else; a broker that was restarted finds its sidecars, with
/// their sessions open and their keys pinned.
pub fn sessions_outlive_an_absent_api_server_and_a_restarted_broker(programs: &Programs) -> Result<()> {
    let cluster = Cluster::start(programs)?;
    charts::install_kinds(&cluster)?;
    let site = Arc::new(Site::start(&cluster)?);
    let shop = Shop::of(Agent::of(&cluster, site, |_| {})?)?;
    shop.open()?;
    let sidecar = shop.agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    let mut open = wire::Wire::login(shop.local, DATABASE)?;
    let token = shop.agent.token()?;
    absent(&cluster, &shop, &mut open, &token)?;

    let Shop { agent, server, local } = shop;
    let Agent { site, uid, .. } = agent;
    let site = Arc::into_inner(site)
        .context("the broker is held elsewhere")?
        .restarted()?;
    until(
        "the sidecar is back",
        || Ok(site.broker.status().sidecars),
        |sidecars| *sidecars == 1,
    )?;
    ensure!(open.alive()?, "the session did not outlive the broker's restart");
    let lease = cluster.kubectl(
        &["get", "lease", &uid, "--namespace", "sidegate-system", "-o", "name"],
        "",
    )?;
    ensure!(lease.contains(&uid), "{lease}");
    let after = sidegate_tests::psql::psql(local, DATABASE, &[NAME])?;
    ensure!(after.out == "Ada", "{after:?}");
    site.runtime.block_on(sidecar.shutdown());
    drop(site.end());
    drop(server);
    Ok(())
}

fn absent(cluster: &Cluster, shop: &Shop<'_>, open: &mut wire::Wire, token: &str) -> Result<()> {
    let site = &shop.agent.site;
    let attest = || {
        let key = SigningKey::from_pkcs8(&SigningKey::generate()?)?.public().clone();
        let attestor = &site.broker.front().attestor;
        let attested = attestor.attest(Slot::ServiceAccount, token, &key, &|_| false, &|_| true);
        anyhow::Ok(
            site.runtime
                .block_on(attested)
                .map(|_| ())
                .map_err(|refused| refused.to_string()),
        )
    };
    let frozen = cluster.freeze("kube-apiserver")?;
    ensure!(open.alive()?, "an open session");
    let new = shop.ask(NAME)?;
    ensure!(new.out == "Ada", "a new session under a valid lease: {new:?}");
    let refused = attest()?.err().context("attested by nobody")?;
    ensure!(refused == "unavailable: the cluster cannot be asked", "{refused}");
    ensure!(site.broker.status().sidecars == 1, "the stream ended");
    drop(frozen);
    // Nothing was remembered as refused: what stands in the way now is the pinned key, and that is another answer.
    let pinned = |answer: &Result<(), String>| answer.as_ref().is_err_and(|why| why.contains("RestartNotSeen"));
    until("the API server answers", attest, pinned).map(|_| ())
}
