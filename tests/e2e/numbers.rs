//! What is counted on a cluster, with real sidecars: whom a Lockdown reached, what it ended and how fast.

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_tests::cluster::Cluster;
use sidegate_tests::http::get;
use sidegate_tests::shop::DATABASE;
use sidegate_tests::wire;

use crate::applied::{Shop, NAME};
use crate::site::{until, Agent};

/// A Lockdown says how many sidecars it concerns, how many enforce it, what it ended and how fast; one that concerns
/// nobody says that.
pub fn a_lockdown_says_whom_it_reached_and_what_it_ended(cluster: &Cluster) -> Result<()> {
    let shop = Shop::of(Agent::new(cluster)?)?;
    let agent = &shop.agent;
    shop.open()?;
    let sidecar = agent.sidecar()?;
    // A bystander: connected, and of another namespace.
    let bystander = Agent::new(cluster)?;
    let other = bystander.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    let mut open = wire::Wire::login(shop.local, DATABASE)?;
    ensure!(open.alive()?, "the session does not live");
    let namespace = &agent.namespace;
    let (cut, idle) = (format!("cut-{namespace}"), format!("idle-{namespace}"));
    let freeze = |name: &str, freeze: Value| {
        let lockdown = json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "Lockdown", "metadata": {"name": name},
            "spec": {"reason": "drill", "freeze": [freeze]},
        });
        agent.apply(&lockdown.to_string())
    };
    freeze(&cut, json!({"target": {"namespace": namespace, "name": "shop"}}))?;
    freeze(&idle, json!({"namespace": "nobody-is-there"}))?;
    let status = |name: &str| {
        let object: Value = serde_json::from_str(&agent.kubectl(&["get", "lockdown", name, "-o", "json"])?)?;
        Ok(object["status"].clone())
    };
    let said = until("its numbers", || status(&cut), |status| status["acked"] == 1)?;
    ensure!(said["matched"] == 1 && said["sessionsClosed"] == 1, "{said}");
    let p99 = said["p99Millis"].as_u64().with_context(|| format!("no time: {said}"))?;
    println!("in force at the broker to enforced and the session gone: {p99} ms");
    ensure!(said["revision"].as_u64().is_some_and(|revision| revision > 0), "{said}");
    let nobody = until("the other's", || status(&idle), |status| status["matched"] == 0)?;
    ensure!(
        nobody["sessionsClosed"] == 0 && nobody["acked"] == 0 && nobody["p99Millis"].is_null(),
        "{nobody}"
    );
    let table = agent.kubectl(&["get", "lockdown", &cut])?;
    let row: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    ensure!(row.windows(3).any(|three| three == ["1", "1", "1"]), "{table}");
    let described = agent.kubectl(&["describe", "lockdown", &cut])?;
    ensure!(described.contains("Sessions Closed:"), "{described}");
    // What it ended stays said when the sidecar is gone.
    agent.end(sidecar);
    let after = until("it left", || status(&cut), |status| status["matched"] == 0)?;
    ensure!(after["sessionsClosed"] == 1 && after["p99Millis"] == p99, "{after}");
    let health = agent.site.broker.health_addr.context("no health port")?;
    let (_, page) = agent.site.runtime.block_on(get(health, "GET /metrics"))?;
    let counted = page
        .lines()
        .find(|line| line.starts_with("sidegate_broker_lockdown_seconds_count "));
    ensure!(counted.is_some_and(|line| !line.ends_with(" 0")), "{page}");
    for name in [&cut, &idle] {
        agent.kubectl(&["delete", "lockdown", name])?;
    }
    bystander.end(other);
    Ok(())
}
