//! Pods that start while the broker is away: most run and are refused everything, and those whose profile says so wait for it.

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_tests::cluster::node::site::{Agents, Site, MASKED, READ, SHOP, SYSTEM};

const BROKER: &str = "deployment/sidegate-broker";

/// A namespace whose pods begin nothing before their sidecar has a bundle.
fn by_waiting(site: &Site) -> Result<Agents<'_>> {
    site.profile("waiting", |spec| spec["onBrokerUnavailable"] = json!("BlockPod"))?;
    site.agents_by("waiting")
}

/// With the broker away a pod starts and reads nothing; one whose profile blocks it begins nothing. Once the broker is back
/// both read, and neither was made anew.
pub fn a_pod_waits_for_the_broker_where_its_profile_says_so(site: &Site) -> Result<()> {
    let (waiting, others) = (by_waiting(site)?, site.agents()?);
    let scale = |count: &str| {
        let replicas = format!("--replicas={count}");
        let words = ["scale", BROKER, "--namespace", SYSTEM, &replicas];
        site.node.cluster.kubectl(&words, "").map(|_| ())
    };
    scale("0")?;
    let pods = [
        "get",
        "pods",
        "--namespace",
        SYSTEM,
        "--selector=app.kubernetes.io/component=broker",
        "-o",
        "name",
    ];
    waiting.until("the broker is gone", || {
        Ok(site.node.cluster.kubectl(&pods, "")?.trim().is_empty())
    })?;

    waiting.create(&waiting.pod("patient", &site.psql, &["/bin/sleep", "3600"]))?;
    others.psql_pod("hasty")?;
    ensure!(others.ask("hasty", SHOP, READ).is_err(), "it reads without a broker");
    waiting.until("the sidecar says that it waits", || {
        let said = waiting.kubectl(&["logs", "patient", "-c", "sidegate"]);
        Ok(said.is_ok_and(|said| said.contains("waiting for a bundle")))
    })?;
    // The other one, made later, is ready: this one could have begun.
    let begun = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].is_null();
    let pod = waiting.stored("pod", "patient")?;
    let sidecar = &pod["status"]["initContainerStatuses"][0];
    ensure!(sidecar["started"] == false, "{sidecar}");
    ensure!(!begun(&pod), "{}", pod["status"]["containerStatuses"]);

    scale("1")?;
    site.node.rolled_out(SYSTEM, BROKER)?;
    waiting.ready("patient")?;
    let said = waiting.ask("patient", SHOP, READ)?;
    ensure!(said == MASKED, "{said}");
    others.until("the one that ran reads", || {
        Ok(others.ask("hasty", SHOP, READ).is_ok_and(|said| said == MASKED))
    })?;
    let now = waiting.stored("pod", "patient")?;
    let restarts = now["status"]["initContainerStatuses"][0]["restartCount"].as_i64();
    ensure!(restarts.context("no count")? == 0, "its sidecar was restarted");
    Ok(())
}
