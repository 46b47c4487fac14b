//! What a sidecar costs a pod at its start. Printed, not judged: bars are for a machine that does nothing else.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::Value;
use sidegate_tests::cluster::node::site::{Agents, Site, MASKED, READ, SHOP};

/// Pods of each kind, unless SIDEGATE_NODE_ROUNDS says more: in CI the figures are a look, not a measurement.
const ROUNDS: usize = 5;

/// From the label on a namespace to the first masked row in a new pod, with everything an operator types in between.
pub fn from_label_to_first_masked_row(site: &Site) -> Result<()> {
    let began = Instant::now();
    let agents = site.agents()?;
    agents.psql_pod("agent")?;
    let said = agents.ask("agent", SHOP, READ)?;
    anyhow::ensure!(said == MASKED, "{said}");
    println!(
        "label, Targets, policy, pod, first masked row: {} ms",
        began.elapsed().as_millis()
    );
    Ok(())
}

/// How long a sidecar's start took, milliseconds.
#[derive(Default)]
struct Inside {
    /// From the start of its process. The kernel counts from runc's clone: what containerd does between a container's
    /// creation and its start is in it, and only then comes the exec.
    cloned: Vec<i128>,
    /// From its own first line, the first thing it does after the exec.
    spoke: Vec<i128>,
}

impl Inside {
    /// To the moment its probe passes, as its log says.
    fn add(&mut self, agents: &Agents<'_>, name: &str) -> Result<()> {
        let pod = agents.stored("pod", name)?;
        let pid = crate::lifecycle::sidecar_of(pod["metadata"]["uid"].as_str().context("no UID")?)?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after_name = stat.rsplit(") ").next().context("no fields")?;
        // The 22nd field, hundredths of a second since the machine's start; two stand before the rest.
        let began: f64 = after_name.split(' ').nth(19).context("no start")?.parse()?;
        let up = std::fs::read_to_string("/proc/uptime")?;
        let up: f64 = up.split(' ').next().context("no uptime")?.parse()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let log = agents.kubectl(&["logs", name, "-c", "sidegate"])?;
        let (first, serving) = (said_at(&log, "starting")?, said_at(&log, "serving")?);
        let since = |then: f64| ((serving - then) * 1000.0) as i128;
        self.cloned.push(since(now - up + began / 100.0));
        self.spoke.push(since(first));
        Ok(())
    }
}

/// When a log says this, in seconds since 1970.
fn said_at(log: &str, message: &str) -> Result<f64> {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.find(|line| line["fields"]["message"] == message);
    let line = line.with_context(|| format!("it never says {message}: {log}"))?;
    let at = line["timestamp"].as_str().context("no time")?;
    let at = time::OffsetDateTime::parse(at, &time::format_description::well_known::Rfc3339)?;
    Ok(at.unix_timestamp_nanos() as f64 / 1e9)
}

/// Milliseconds from a pod's creation to Ready, by this process's own clock, and the stored pod.
fn started(agents: &Agents<'_>, name: &str, inside: Option<&mut Inside>) -> Result<i128> {
    let pod = agents.pod(name, &agents.site.psql, &["/bin/sleep", "3600"]);
    let began = Instant::now();
    agents.create(&pod)?;
    agents.ready(name)?;
    let took = began.elapsed().as_millis();
    if let Some(inside) = inside {
        inside.add(agents, name)?;
    }
    agents.kubectl(&["delete", "pod", name, "--grace-period=1", "--wait=false"])?;
    Ok(i128::try_from(took)?)
}

/// Median and largest.
fn said(name: &str, mut all: Vec<i128>) {
    all.sort_unstable();
    let (median, most) = (all[all.len() / 2], all[all.len() - 1]);
    println!("{name}: median {median} ms, largest of {} {most} ms", all.len());
}

/// How much later a pod is ready with its sidecar than without: in turn, so that both see the same machine.
pub fn how_much_later_a_pod_is_ready(site: &Site) -> Result<()> {
    let with = site.agents()?;
    let without = Agents {
        site,
        namespace: site.node.cluster.namespace()?,
    };
    let (mut slow, mut fast, mut inside) = (Vec::new(), Vec::new(), Inside::default());
    let rounds = std::env::var("SIDEGATE_NODE_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    for round in 0..rounds.unwrap_or(ROUNDS) {
        let name = format!("pod-{round}");
        fast.push(started(&without, &name, None)?);
        slow.push(started(&with, &name, Some(&mut inside))?);
    }
    let later = slow.iter().zip(&fast).map(|(slow, fast)| slow - fast).collect();
    said("ready with a sidecar", slow);
    said("ready without", fast);
    said(
        "from the sidecar's first line to started (bar: 150 from exec)",
        inside.spoke,
    );
    said(
        "the same from runc's clone, containerd's work in between",
        inside.cloned,
    );
    said("later with a sidecar (bars: 1500 median, 3000 p99)", later);
    Ok(())
}
