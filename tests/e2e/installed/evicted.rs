//! What the installed injector's leader evicts, where the chart lets it.

use anyhow::{ensure, Context as _, Result};
use serde_json::{json, Value};

use super::applied::numbers;
use super::Installed;
use crate::inject::is_asked;
use crate::site::until;

/// A namespace with pods that are older than its label.
struct Fleet<'a> {
    installed: &'a Installed,
    namespace: String,
}

impl<'a> Fleet<'a> {
    fn of(installed: &'a Installed, namespace: &str) -> Fleet<'a> {
        Fleet {
            installed,
            namespace: namespace.to_owned(),
        }
    }

    /// Two Deployments, of which a disruption budget keeps one, a Job and a pod without a controller.
    fn make(&self) -> Result<()> {
        self.create("apps/v1", "Deployment", "fleet", &deployed("fleet"))?;
        self.create("apps/v1", "Deployment", "kept", &deployed("kept"))?;
        let budget = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}});
        self.create("policy/v1", "PodDisruptionBudget", "kept", &budget)?;
        self.create(
            "batch/v1",
            "Job",
            "work",
            &json!({"template": template("work", "Never")}),
        )?;
        let mut alone = template("alone", "Always");
        alone["metadata"]["name"] = json!("alone");
        alone["metadata"]["namespace"] = json!(self.namespace);
        alone["apiVersion"] = json!("v1");
        alone["kind"] = json!("Pod");
        self.installed.cluster.create(&alone)?;
        self.runs("kept")
    }

    fn uid(&self, app: &str) -> Result<Value> {
        Ok(self.pod(app)?["metadata"]["uid"].clone())
    }

    /// UIDs of the pods of which an Event says that they were evicted.
    fn told(&self) -> Result<Vec<Value>> {
        let events: Value = serde_json::from_str(&self.kubectl(&["get", "events", "-o", "json"], "")?)?;
        let all = events["items"].as_array().into_iter().flatten();
        let told = all.filter(|event| event["reason"] == "Evicted");
        Ok(told.map(|event| event["involvedObject"]["uid"].clone()).collect())
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let own = ["--namespace", &self.namespace];
        self.installed.cluster.kubectl(&[arguments, &own].concat(), input)
    }

    fn create(&self, version: &str, kind: &str, name: &str, spec: &Value) -> Result<()> {
        let object = json!({
            "apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": self.namespace}, "spec": spec,
        });
        self.installed.cluster.create(&object).map(drop)
    }

    /// The pods of this label that do not end.
    fn pods(&self, app: &str) -> Result<Vec<Value>> {
        let said = self.kubectl(&["get", "pods", "-l", &format!("app={app}"), "-o", "json"], "")?;
        let mut all: Value = serde_json::from_str(&said)?;
        let mut pods: Vec<Value> = all["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        pods.retain(|pod| pod["metadata"].get("deletionTimestamp").is_none());
        Ok(pods)
    }

    fn pod(&self, app: &str) -> Result<Value> {
        let pods = until("there is one pod", || self.pods(app), |pods| pods.len() == 1)?;
        pods.into_iter().next().context("no pod")
    }

    /// Has a pod be one that runs and is ready, as no kubelet does here: a budget keeps no other.
    fn runs(&self, app: &str) -> Result<()> {
        let pod = self.pod(app)?;
        let name = pod["metadata"]["name"].as_str().context("no name")?;
        let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let patch = [
            "patch",
            "pod",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &ready.to_string(),
        ];
        self.kubectl(&patch, "").map(drop)
    }
}

fn template(app: &str, policy: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"restartPolicy": policy, "containers": [{"name": "agent", "image": "example.invalid/agent:1"}]},
    })
}

fn deployed(app: &str) -> Value {
    json!({"replicas": 1, "selector": {"matchLabels": {"app": app}}, "template": template(app, "Always")})
}

fn counted(installed: &Installed, outcome: &str) -> Result<u64> {
    let line = format!(r#"sidegate_injector_evictions_total{{outcome="{outcome}"}} "#);
    let all = numbers(installed)?;
    let counts = all
        .lines()
        .filter_map(|found| found.strip_prefix(&line)?.parse::<u64>().ok());
    Ok(counts.sum())
}

fn at_least_one(installed: &Installed, outcome: &str) -> Result<()> {
    until(outcome, || counted(installed, outcome), |count| *count > 0).map(drop)
}

/// Of pods that are older than their namespace's label the one of a Deployment is evicted and comes back with its sidecar; a
/// disruption budget keeps one, and a pod without a controller and that of a Job are left alone. Without the right, nothing is.
pub fn its_leader_evicts_who_would_come_back_better_and_nobody_else(installed: &mut Installed) -> Result<()> {
    let namespace = installed.cluster.namespace()?;
    let fleet = Fleet::of(installed, &namespace);
    fleet.make()?;
    let old = fleet.uid("fleet")?;
    let others = ["kept", "work", "alone"].map(|app| (app, fleet.uid(app)));
    let label = ["label", "namespace", &namespace, "sidegate.dev/inject=enabled"];
    installed.cluster.kubectl(&label, "")?;
    is_asked(&installed.cluster, &namespace)?;

    // A leader that would, and may not.
    installed.end();
    installed.evicts = true;
    installed.complete()?;
    at_least_one(installed, "failed")?;
    let fleet = Fleet::of(installed, &namespace);
    ensure!(fleet.uid("fleet")? == old, "it was evicted by nobody's leave");
    ensure!(counted(installed, "evicted")? == 0, "{}", numbers(installed)?);

    installed.helm("upgrade", &["--set", "injector.evictUnprotected=true"])?;
    let fleet = Fleet::of(installed, &namespace);
    let protected = |pods: &Vec<Value>| {
        let sidecar = |pod: &Value| pod["spec"]["initContainers"][0]["name"] == "sidegate";
        pods.iter().all(sidecar) && pods.len() == 1
    };
    until("it comes back with its sidecar", || fleet.pods("fleet"), protected)?;
    at_least_one(installed, "kept")?;
    for (app, before) in others {
        ensure!(fleet.uid(app)? == before?, "{app} was evicted");
    }
    ensure!(counted(installed, "evicted")? == 1, "{}", numbers(installed)?);
    until("it is told", || fleet.told(), |told| *told == [old.clone()])?;

    // Until they are gone: who counts next would count them.
    installed.cluster.kubectl(&["delete", "namespace", &namespace], "")?;
    installed.end();
    installed.evicts = false;
    installed.helm("upgrade", &[]).map(drop)
}
