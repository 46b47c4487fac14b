//! What goes on and what stops while a part is away: rows of the failure matrix, on a control plane of its own.

use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use serde_json::json;
use sidegate_broker::clock::{Clock, SystemClock};
use sidegate_policies::seal::Revisions;
use sidegate_tests::cluster::{Cluster, Programs};
use sidegate_tests::http::get;
use sidegate_tests::shop::DATABASE;
use sidegate_tests::wire;

use crate::applied::{Shop, NAME};
use crate::charts;
use crate::rolled::Caller;
use crate::site::{key, until, Agent, Site};

/// An API server that hangs stops new identities, and nothing else; a broker that was restarted finds its sidecars, with
/// their sessions open and their keys pinned, and has read the store as far as before, what was deleted last included.
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
    let before = deleted_last(&cluster, &shop.agent.site)?;

    let Shop { agent, server, local } = shop;
    let Agent { site, uid, .. } = agent;
    let site = Arc::into_inner(site)
        .context("the broker is held elsewhere")?
        .restarted()?;
    let after = site.broker.front().index().revisions().clone();
    ensure!(after.behind(&before).is_none(), "{after:?} after {before:?}");
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
    caught_up(&cluster, &site)?;
    let after = sidegate_tests::psql::psql(local, DATABASE, &[NAME])?;
    ensure!(after.out == "Ada", "{after:?}");
    site.runtime.block_on(sidecar.shutdown());
    drop(site.end());
    drop(server);
    Ok(())
}

fn read_so_far(site: &Site, kind: &str) -> Result<u64> {
    let revisions = site.broker.front().index().revisions().clone();
    revisions.kinds.get(kind).copied().context("a kind that was not read")
}

/// Deletes what was written last: nothing that is left in the store says how far it was read.
fn deleted_last(cluster: &Cluster, site: &Site) -> Result<Revisions> {
    let issuer = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "TokenIssuer", "metadata": {"name": "short-lived"},
        "spec": {
            "preset": "Keycloak", "issuer": "https://sso.example/realms/corp",
            "allowedNamespaces": {"selector": {"matchLabels": {"team": "support"}}},
        },
    });
    let before = read_so_far(site, "TokenIssuer")?;
    let created = cluster.create(&issuer)?;
    let number = created["metadata"]["resourceVersion"]
        .as_str()
        .context("no resourceVersion")?;
    let number: u64 = number.parse()?;
    ensure!(number > before, "{number} after {before}");
    cluster.kubectl(&["delete", "tokenissuer", "short-lived"], "")?;
    let read = || read_so_far(site, "TokenIssuer");
    until("the deletion was read", read, |read| *read > number)?;
    Ok(site.broker.front().index().revisions().clone())
}

/// A replica that is told it is behind lists anew, and then knows how far the store is, although nothing it follows
/// changed.
fn caught_up(cluster: &Cluster, site: &Site) -> Result<()> {
    let before = read_so_far(site, "TokenIssuer")?;
    let elsewhere =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later", "namespace": "default"}});
    cluster.create(&elsewhere)?;
    let told = || {
        site.broker.front().catch_up.notify_one();
        read_so_far(site, "TokenIssuer")
    };
    until("the replica caught up", told, |read| *read > before).map(|_| ())
}

/// A number of the broker's page of metrics, summed over what begins so, if anything does.
pub fn number(site: &Site, begins: &str) -> Result<Option<u64>> {
    let health = site.broker.health_addr.context("no health port")?;
    let (_, page) = site.runtime.block_on(get(health, "GET /metrics"))?;
    let lines = page.lines().filter(|line| line.starts_with(begins));
    let numbers: Vec<f64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    Ok((!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() as u64))
}

/// Exchanges that were told to come later; none is counted before the first.
fn later(site: &Site) -> Result<u64> {
    let name = "sidegate_broker_exchanges_total{reason=\"unavailable\",result=\"later\"}";
    Ok(number(site, name)?.unwrap_or(0))
}

/// Seconds since the cluster's keys were read.
fn keys_age(site: &Site) -> Result<u64> {
    let name = "sidegate_broker_jwks_age_seconds{issuer=\"cluster\"}";
    number(site, name)?.with_context(|| format!("no {name} on the page"))
}

fn absent(cluster: &Cluster, shop: &Shop<'_>, open: &mut wire::Wire, token: &str) -> Result<()> {
    let site = &shop.agent.site;
    let attest = || {
        let attested = site.attest(token, &key()?);
        anyhow::Ok(attested.map(|_| ()).map_err(|refused| refused.to_string()))
    };
    let (before, age) = (later(site)?, keys_age(site)?);
    let frozen = cluster.freeze("kube-apiserver")?;
    ensure!(open.alive()?, "an open session");
    let new = shop.ask(NAME)?;
    ensure!(new.out == "Ada", "a new session under a valid lease: {new:?}");
    let refused = attest()?.err().context("attested by nobody")?;
    ensure!(refused == "unavailable: the cluster cannot be asked", "{refused}");
    let clock = Arc::new(SystemClock) as Arc<dyn Clock>;
    let mut caller = Caller::of(site, site.port(), clock, token.to_owned())?;
    let (status, said) = site.runtime.block_on(caller.exchange())?;
    ensure!(status == 503, "{status} {said}");
    ensure!(later(site)? == before + 1, "{before}, then {}", later(site)?);
    // Nothing was read since: the keys that tokens are checked with grow old, and the page says how old.
    until("the keys are older", || keys_age(site), |now| *now > age)?;
    ensure!(site.broker.status().sidecars == 1, "the stream ended");
    drop(frozen);
    // Nothing was remembered as refused: what stands in the way now is the pinned key, and that is another answer.
    let pinned = |answer: &Result<(), String>| answer.as_ref().is_err_and(|why| why.contains("RestartNotSeen"));
    until("the API server answers", attest, pinned).map(|_| ())
}
