//! Tier Enforced under a kubelet: the fence holds the agent and not its sidecar, and whether it stands is measured.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::sched::{setns, CloneFlags};
use serde_json::{json, Value};
use sidegate_tests::cluster::node::site::{Agents, Site, MASKED, READ, SHOP};
use sidegate_tests::cluster::node::ADDRESS;

use crate::lifecycle::sidecar_of;

/// So long after a fence is gone its profile may still say that it stands.
const PROMISED: Duration = Duration::from_secs(30);

/// Gives the namespace a profile of tier Enforced with the image of the default one; answers its name.
fn enforce(agents: &Agents<'_>) -> Result<String> {
    let name = format!("enforced-{}", agents.namespace);
    agents.site.profile(&name, |spec| spec["tier"] = json!("Enforced"))?;
    let label = format!("sidegate.dev/profile={name}");
    agents.kubectl(&["label", "namespace", &agents.namespace, &label])?;
    agents.until_made_with("sidegate-fence", &pod(agents))?;
    Ok(name)
}

/// A pod as its owner writes it for a namespace of tier Enforced: it says who it is.
fn pod(agents: &Agents<'_>) -> Value {
    let mut pod = agents.pod("agent", &agents.site.psql, &["/bin/sleep", "3600"]);
    pod["spec"]["securityContext"] = json!({"runAsUser": 1000});
    pod
}

/// The condition of a profile.
fn egress(agents: &Agents<'_>, profile: &str) -> Result<Value> {
    let stored = agents.stored("injectionprofile", profile)?;
    let mut conditions = stored["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] == "EgressEnforced");
    Ok(conditions.pop().unwrap_or_default())
}

/// What the agent's own `psql` is told on its way past the sidecar.
fn direct(agents: &Agents<'_>, host: &str) -> Result<String> {
    let url = format!(
        "postgresql://agent@{host}:{}/shop?connect_timeout=5",
        agents.site.shop.port
    );
    let said = agents.exec("agent", &["psql", "-X", &url, "-c", "SELECT 1"]);
    Ok(format!("{:#}", said.err().context("it needs no gate")?))
}

/// Takes the fence down as root of the node could.
fn take_down(agents: &Agents<'_>) -> Result<()> {
    let pod = agents.stored("pod", "agent")?;
    let sidecar = sidecar_of(pod["metadata"]["uid"].as_str().context("no UID")?)?;
    let network = File::open(format!("/proc/{sidecar}/ns/net"))?;
    let parts = agents.site.node.parts().clone();
    // A thread has a network of its own, and what it starts is in there.
    let taken = std::thread::spawn(move || -> Result<()> {
        setns(network, CloneFlags::CLONE_NEWNET)?;
        parts.run("nft", &["delete", "table", "inet", "sidegate"]).map(|_| ())
    });
    taken.join().ok().context("the thread ended early")?
}

/// An agent of a fenced pod reads its database through its sidecar, and reaches neither that database nor a name server by
/// itself. Its profile says so once it was measured; when the fence is taken down it says that within half a minute. A
/// Cooperative profile never reads as enforced.
pub fn an_agent_gets_out_by_its_sidecar_alone_and_a_fence_that_is_gone_is_told(site: &Site) -> Result<()> {
    let agents = site.agents()?;
    let profile = enforce(&agents)?;
    agents.create(&pod(&agents))?;
    agents.ready("agent")?;
    let stored = agents.stored("pod", "agent")?;
    ensure!(
        stored["spec"]["initContainers"][0]["name"] == "sidegate-fence",
        "{stored}"
    );
    ensure!(agents.ask("agent", SHOP, READ)? == MASKED, "it does not read");
    let address = ADDRESS.to_string();
    let refused = direct(&agents, &address)?;
    ensure!(refused.contains("Connection refused"), "{refused}");
    let nameless = direct(&agents, "shop.internal")?;
    ensure!(nameless.contains("could not translate host name"), "{nameless}");
    agents.until("the profile is enforced", || {
        Ok(egress(&agents, &profile)?["status"] == "True")
    })?;

    take_down(&agents)?;
    let gone = Instant::now();
    agents.until("the profile says that the fence is gone", || {
        Ok(egress(&agents, &profile)?["status"] == "False")
    })?;
    let late = gone.elapsed();
    println!(
        "a fence that is gone: told after {:.1} s (promised: 30)",
        late.as_secs_f64()
    );
    ensure!(late < PROMISED, "{late:?}");
    let said = egress(&agents, &profile)?;
    ensure!(said["reason"] == "FenceMissing", "{said}");
    let open = direct(&agents, &address)?;
    ensure!(open.contains("password"), "there was another reason: {open}");

    let cooperative = egress(&agents, "default")?;
    ensure!(
        cooperative["status"] == "False" && cooperative["reason"] == "NotEnforced",
        "{cooperative}"
    );
    let message = cooperative["message"].as_str().unwrap_or_default().to_lowercase();
    ensure!(!message.contains("enforced"), "{message}");
    Ok(())
}
