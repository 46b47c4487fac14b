//! Starting, ending and restarting under a kubelet: the sidecar is there before and after everything of the agent's.

use std::process::Command;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};
use sidegate_tests::cluster::node::site::{Agents, Site, MASKED, PSQL, READ, SHOP};
use sidegate_tests::cluster::User;

/// `psql` as one word of a shell.
fn line(port: u16, sql: &str) -> String {
    let port = port.to_string();
    let words = PSQL.map(|word| if word == "PORT" { port.as_str() } else { word });
    format!("{} \"{sql}\"", words.join(" "))
}

/// An init container has its database already, and a Job ends although its sidecar would run for ever; the sidecar ends
/// well, so that nobody takes it for a failed step.
pub fn an_init_container_reads_and_a_job_finishes(site: &Site) -> Result<()> {
    let agents = site.agents()?;
    let read = line(SHOP, READ);
    let mut template = agents.pod("job", &site.psql, &["/bin/sh", "-c", &read]);
    template["spec"]["restartPolicy"] = json!("Never");
    let mut first = template["spec"]["containers"][0].clone();
    first["name"] = json!("first");
    template["spec"]["initContainers"] = json!([first]);
    agents.create(&json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job", "namespace": agents.namespace},
        "spec": {"backoffLimit": 0, "template": {"spec": template["spec"]}},
    }))?;
    agents.wait("job/job", "condition=Complete")?;
    for container in ["first", "agent"] {
        let said = agents.kubectl(&["logs", "job/job", "-c", container])?;
        ensure!(said.trim_end() == MASKED, "{container}: {said}");
    }
    let pods: Value = serde_json::from_str(&agents.kubectl(&["get", "pods", "-o", "json"])?)?;
    let sidecar = &pods["items"][0]["status"]["initContainerStatuses"][0];
    ensure!(sidecar["name"] == "sidegate", "{sidecar}");
    ensure!(sidecar["state"]["terminated"]["exitCode"] == 0, "{sidecar}");
    Ok(())
}

/// The sidecar's process of a pod, by what its environment says; within these namespaces all processes are ours.
pub fn sidecar_of(uid: &str) -> Result<u32> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let pid = entry.file_name().to_string_lossy().parse::<u32>();
        // Not a probe, which has an argument.
        if read("cmdline") == b"/sidegate-sidecar\0" {
            let environment = String::from_utf8_lossy(&read("environ")).into_owned();
            if environment.contains(&format!("SIDEGATE_POD_UID={uid}")) {
                return Ok(pid?);
            }
        }
    }
    anyhow::bail!("no sidecar of pod {uid}")
}

/// A sidecar that dies is started again by its kubelet, on the same ports, while the agent's container runs on; the broker
/// takes its new key because a restart was reported.
pub fn a_restarted_sidecar_keeps_its_ports(site: &Site) -> Result<()> {
    let agents = site.agents()?;
    agents.psql_pod("agent")?;
    ensure!(agents.ask("agent", SHOP, READ)? == MASKED, "it does not read");
    let pod = agents.stored("pod", "agent")?;
    let uid = pod["metadata"]["uid"].as_str().context("no UID")?;
    let announced = |pod: &Value| pod["spec"]["initContainers"][0]["env"].clone();
    kill(Pid::from_raw(sidecar_of(uid)?.cast_signed()), Signal::SIGKILL)?;
    agents.until("the sidecar was started again", || {
        let status = agents.stored("pod", "agent")?["status"]["initContainerStatuses"][0].clone();
        Ok(status["restartCount"] == 1 && status["ready"] == true)
    })?;
    agents.until("the agent reads again", || {
        Ok(agents.ask("agent", SHOP, READ).is_ok_and(|said| said == MASKED))
    })?;
    let now = agents.stored("pod", "agent")?;
    ensure!(announced(&now) == announced(&pod), "other ports");
    let agent = &now["status"]["containerStatuses"][0];
    ensure!(agent["restartCount"] == 0, "the agent was restarted: {agent}");
    Ok(())
}

/// What the agent does when it is told to end: it works on for three seconds.
fn stubborn() -> String {
    let read = line(SHOP, READ);
    format!(
        "trap 'for i in 1 2 3 4 5 6; do echo ending $({read} 2>&1); sleep 0.5; done; echo last; exit 0' TERM; echo up; \
         while true; do sleep 0.1; done"
    )
}

/// A pod is deleted: the agent is told first, and has its database until it ends; only then the sidecar is.
pub fn an_agent_keeps_its_database_while_it_stops(site: &Site) -> Result<()> {
    let agents = site.agents()?;
    agents.create(&agents.pod("agent", &site.psql, &["/bin/sh", "-c", &stubborn()]))?;
    agents.ready("agent")?;
    ensure!(agents.ask("agent", SHOP, READ)? == MASKED, "it does not read");
    let follow = |container: &'static str| Follow::start(&agents, container);
    let (agent, sidecar) = (follow("agent")?, follow("sidegate")?);
    agents.kubectl(&["delete", "pod", "agent"])?;
    let (agent, sidecar) = (agent.rest()?, sidecar.rest()?);
    let lines: Vec<&str> = agent.lines().collect();
    let reads = lines.iter().filter(|line| line.ends_with(&format!("ending {MASKED}")));
    ensure!(
        reads.count() == 6 && lines.last().is_some_and(|line| line.ends_with("last")),
        "{agent}\n{sidecar}"
    );
    let at = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let ended = sidecar
        .lines()
        .find(|line| line.contains("\"ended\""))
        .with_context(|| sidecar.clone())?;
    let last = lines.last().context("no line")?;
    ensure!(
        at(ended) > at(last),
        "the sidecar ended before its agent: {ended}\n{agent}"
    );
    Ok(())
}

/// A container's log to its end, with times.
struct Follow(std::process::Child);

impl Follow {
    fn start(agents: &Agents<'_>, container: &str) -> Result<Follow> {
        let mut command: Command = agents.site.node.cluster.client(User::Admin);
        command.args([
            "logs",
            "--namespace",
            &agents.namespace,
            "agent",
            "-c",
            container,
            "-f",
            "--timestamps",
        ]);
        let child = command.stdout(std::process::Stdio::piped()).spawn()?;
        Ok(Follow(child))
    }

    /// Everything, once the container has ended.
    fn rest(self) -> Result<String> {
        let output = self.0.wait_with_output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
