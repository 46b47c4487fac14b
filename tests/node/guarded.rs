//! The chart's admission policies beside a kubelet: what they protect is refused on a pod that runs, and what people do to
//! running pods goes on.

use anyhow::{ensure, Context, Result};
use serde_json::json;
use sidegate_tests::cluster::node::site::{Agents, Site, MASKED, READ, SHOP};

/// Has something refused by a rule of ours.
fn refused(agents: &Agents<'_>, rule: &str, arguments: &[&str]) -> Result<()> {
    let said = agents.kubectl(arguments).err();
    let said = format!("{:#}", said.with_context(|| format!("not refused: {arguments:?}"))?);
    ensure!(said.contains(&format!("denied request: sidegate: {rule}: ")), "{said}");
    Ok(())
}

/// Nobody runs a program in the sidecar, changes its image, speaks through the API server to the agent's ports, or puts a
/// debugger beside it that could read it.
pub fn a_running_sidecar_is_left_alone(site: &Site) -> Result<()> {
    let agents = site.agents()?;
    agents.psql_pod("agent")?;
    let probe = ["exec", "agent", "-c", "sidegate", "--", "/sidegate-sidecar", "probe"];
    refused(&agents, "exec", &probe)?;
    let image = json!([{"op": "replace", "path": "/spec/initContainers/0/image", "value": site.psql.pinned()}]);
    let image = image.to_string();
    refused(
        &agents,
        "image",
        &["patch", "pod", "agent", "--type=json", "-p", &image],
    )?;
    let port = format!("/api/v1/namespaces/{}/pods/agent:{SHOP}/proxy/", agents.namespace);
    refused(&agents, "portForward", &["get", "--raw", &port])?;
    let debug = ["debug", "agent", "--image", &site.psql.pinned(), "-c", "looker"];
    let into = |target: &str, profile: &str| [format!("--target={target}"), format!("--profile={profile}")];
    for (rule, [target, profile]) in [
        ("reserved", into("sidegate", "restricted")),
        ("capability", into("agent", "general")),
        ("netRaw", into("agent", "baseline")),
    ] {
        let more = [target.as_str(), profile.as_str(), "--", "/bin/sleep", "3600"];
        refused(&agents, rule, &[&debug[..], &more].concat())?;
    }
    ensure!(agents.ask("agent", SHOP, READ)? == MASKED, "it reads no more");
    Ok(())
}

/// A debugger of the restricted profile runs beside the agent, and is no more than the agent: it reads masked rows too. The
/// agent's own image may be changed, and the kubelet starts the other one behind the same sidecar.
pub fn a_running_agent_is_debugged_and_updated(site: &Site) -> Result<()> {
    let agents = site.agents()?;
    agents.psql_pod("agent")?;
    let image = site.psql.pinned();
    let debug = [
        "debug",
        "agent",
        "--image",
        &image,
        "--image-pull-policy=Never",
        "-c",
        "looker",
    ];
    let how = ["--target=agent", "--profile=restricted", "--", "/bin/sleep", "3600"];
    agents.kubectl(&[&debug[..], &how].concat())?;
    agents.until("the debugger runs", || {
        let status = agents.stored("pod", "agent")?["status"]["ephemeralContainerStatuses"][0].clone();
        Ok(status["state"]["running"].is_object())
    })?;
    let said = agents.ask_as("agent", "looker", SHOP, READ)?;
    ensure!(said == MASKED, "{said}");
    let other = json!([{"op": "replace", "path": "/spec/containers/0/image", "value": site.python.pinned()}]);
    agents.kubectl(&["patch", "pod", "agent", "--type=json", "-p", &other.to_string()])?;
    agents.until("the agent runs from its other image", || {
        let status = agents.stored("pod", "agent")?["status"]["containerStatuses"][0].clone();
        Ok(status["restartCount"] == 1 && status["ready"] == true)
    })?;
    let python = agents.exec("agent", &["python3", "--version"])?;
    ensure!(python.starts_with("Python 3"), "{python}");
    let sidecar = agents.stored("pod", "agent")?["status"]["initContainerStatuses"][0].clone();
    ensure!(sidecar["restartCount"] == 0, "{sidecar}");
    Ok(())
}
