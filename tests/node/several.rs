//! Several brokers under a kubelet: the chart's StatefulSet on one volume, and what its agents notice of it.

use anyhow::{ensure, Context, Result};
use serde_json::Value;
use sidegate_policies::record::verify::{verify_store, Options, Verdict};
use sidegate_tests::cluster::node::site::{Agents, Site, MASKED, PATIENCE, READ, SHOP, SYSTEM};

use crate::live::{allow, forbid, now, seen, watching};

/// A release with one broker gets two, and then loses the one that leads: the agent's session is never ended, a policy that is
/// edited afterwards holds for it, a pod that is made then reads, and nothing is missing of what was recorded on the way.
pub fn a_release_grows_to_two_brokers_and_outlives_the_one_that_leads(site: &Site) -> Result<()> {
    let agents = watching(site)?;
    site.brokers(2)?;
    let (first, uid) = leads(&agents, None)?;
    site.node
        .cluster
        .kubectl(&["delete", "pod", &first, "--namespace", SYSTEM, "--wait=false"], "")?;
    let (second, _) = leads(&agents, Some(&uid))?;
    site.node.rolled_out(SYSTEM, "statefulset/sidegate-broker")?;
    println!("{first} led and was deleted; {second} led next, and both run again");
    let began = now()?;
    forbid(&agents)?;
    seen(&agents, "refused", began)?;
    let again = now()?;
    allow(&agents)?;
    seen(&agents, "*******8841", again)?;
    agents.psql_pod("late")?;
    let said = agents.ask("late", SHOP, READ)?;
    ensure!(said == MASKED, "{said}");
    let log = agents.kubectl(&["logs", "agent", "-c", "agent"])?;
    ensure!(log.matches("opened").count() == 1, "the session was ended: {log}");

    let wait = format!("--timeout={}s", PATIENCE.as_secs());
    agents.kubectl(&["delete", "pod", "agent", "late", &wait])?;
    let report = verify_store(&site.records(), &Options::default())?;
    // Other tests kill sidecars, which leaves unsigned ends; nothing may be missing or changed.
    ensure!(
        report.exit_code() < Verdict::Truncated { after: None }.code(),
        "{report:#?}"
    );
    ensure!(!report.sessions.is_empty() && report.checkpoints > 0, "{report:#?}");
    Ok(())
}

/// The pod that leads with its UID, once one of the StatefulSet does that has not this UID.
fn leads(agents: &Agents<'_>, not: Option<&str>) -> Result<(String, String)> {
    let cluster = &agents.site.node.cluster;
    let lease = [
        "get",
        "lease",
        "sidegate-broker-leader",
        "--namespace",
        SYSTEM,
        "-o",
        "json",
    ];
    let mut found = None;
    agents.until("a broker of the StatefulSet leads", || {
        let lease: Value = serde_json::from_str(&cluster.kubectl(&lease, "")?)?;
        let holder = lease.pointer("/spec/holderIdentity").and_then(Value::as_str);
        let named = (0..2).map(|at| format!("sidegate-broker-{at}"));
        let named = named
            .into_iter()
            .find(|name| holder.is_some_and(|holder| holder.contains(name.as_str())));
        let Some(pod) = named else { return Ok(false) };
        // A pod that is made again has the name of the one before; between the two there is none.
        let uid = [
            "get",
            "pod",
            &pod,
            "--namespace",
            SYSTEM,
            "--ignore-not-found",
            "-o",
            "jsonpath={.metadata.uid}",
        ];
        let uid = cluster.kubectl(&uid, "")?;
        if !uid.is_empty() && not != Some(uid.as_str()) {
            found = Some((pod, uid));
        }
        Ok(found.is_some())
    })?;
    found.context("nobody leads")
}
