//! What the installed injector's leader writes into the status of InjectionProfiles.

use anyhow::{ensure, Result};
use serde_json::{json, Value};
use sidegate_tests::cluster::{Cluster, User};

use super::{Installed, DIGEST};
use crate::inject::{is_asked, pod};
use crate::looked;
use crate::site::{until, NAMESPACE};

/// A profile of the test's own, and the namespace that names it.
struct Told<'a> {
    installed: &'a Installed,
    namespace: String,
}

impl Told<'_> {
    fn profile(&self, more: &Value) -> Result<()> {
        let mut object = json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "InjectionProfile", "metadata": {"name": self.namespace},
            "spec": {"image": {"repository": "example.invalid/sidecar", "digest": DIGEST}},
        });
        if let (Some(spec), Some(more)) = (object["spec"].as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        let apply = ["apply", "-f", "-"];
        self.installed.cluster.kubectl(&apply, &object.to_string()).map(|_| ())
    }

    /// Has pods of the namespace made by the profile.
    fn label(&self) -> Result<()> {
        let labels = [
            "sidegate.dev/inject=enabled",
            &format!("sidegate.dev/profile={}", self.namespace),
        ];
        let label = ["label", "namespace", &self.namespace];
        self.installed
            .cluster
            .kubectl(&[&label[..], &labels].concat(), "")
            .map(drop)
    }

    /// Of what the chart made nothing is left when it goes, and this is counted with it.
    fn end(&self) -> Result<()> {
        let delete = ["delete", "injectionprofile", &self.namespace];
        self.installed.cluster.kubectl(&delete, "").map(|_| ())
    }

    fn status(&self) -> Result<Value> {
        let get = ["get", "injectionprofile", &self.namespace, "-o", "json"];
        let found: Value = serde_json::from_str(&self.installed.cluster.kubectl(&get, "")?)?;
        Ok(found["status"].clone())
    }

    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        until(what, || self.status(), holds)
    }
}

fn told(installed: &Installed) -> Result<Told<'_>> {
    let namespace = installed.cluster.namespace()?;
    Ok(Told { installed, namespace })
}

/// A pod without a sidecar is counted at the profile that its namespace names, by reason, until it is gone; once nobody can
/// look at all, nothing is said, and it is said again when somebody can. `kubectl get` shows the number.
pub fn its_leader_counts_them_in_the_status_of_their_profile(installed: &mut Installed) -> Result<()> {
    let told = told(installed)?;
    let (cluster, namespace) = (&installed.cluster, &told.namespace);
    told.profile(&json!({}))?;
    let none = |status: &Value| status["unprotected"]["pods"] == 0;
    told.until("none is counted", none)?;
    cluster.create(&pod(namespace, json!({})))?;
    told.label()?;
    let one = |status: &Value| status["unprotected"]["pods"] == 1;
    let status = told.until("the pod is counted", one)?;
    let reasons = json!([{"reason": "older-than-label", "pods": 1}]);
    ensure!(status["unprotected"]["reasons"] == reasons, "{status}");
    ensure!(status.get("networkPolicy").is_none(), "nobody asked: {status}");
    let table = cluster.kubectl(&["get", "injectionprofile", namespace], "")?;
    let shown = |line: Option<&str>| line.map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let (head, row) = (shown(table.lines().next()), shown(table.lines().nth(1)));
    ensure!(
        head.is_some_and(|head| head.iter().any(|word| word == "UNPROTECTED")),
        "{table}"
    );
    // The condition is the broker's, and no broker runs here.
    ensure!(
        row.is_some_and(|row| row.get(2).is_some_and(|cell| cell == "1")),
        "{table}"
    );

    // What a sidecar must show is said no more: whatever were counted now would be a guess.
    installed.publish(false)?;
    told.until("nothing is said", |status| status.get("unprotected").is_none())?;
    installed.publish(true)?;
    told.until("it is said again", one)?;
    let delete = ["delete", "pod", "agent", "--namespace", namespace];
    cluster.kubectl(&[&delete[..], &["--grace-period=0", "--force"]].concat(), "")?;
    let status = told.until("none is left", none)?;
    ensure!(status["unprotected"]["reasons"] == json!([]), "{status}");
    told.end()
}

/// `networkPolicy: Audit` tells what would be let out and what would be cut off, labels new pods, and makes nothing; with
/// `Off` it is told no more, and `Apply` is not taken.
pub fn audited_network_policies_are_told_and_never_made(installed: &mut Installed) -> Result<()> {
    let told = told(installed)?;
    let (cluster, namespace) = (&installed.cluster, &told.namespace);
    told.profile(&json!({"networkPolicy": "Audit"}))?;
    told.label()?;
    is_asked(cluster, namespace)?;
    targets(cluster, namespace)?;
    let all = json!([{
        "name": namespace,
        "egress": [format!("TCP 5432 to 192.0.2.7/32: Target {namespace}/literal")],
        "cutOff": [format!(
            "Target {namespace}/named (db.example:5432): a NetworkPolicy knows addresses and pods, no host names"
        )],
    }]);
    let status = told.until("the Targets are told", |status| {
        status["networkPolicy"]["namespaces"] == all
    })?;
    let network = &status["networkPolicy"];
    let selects = format!("sidegate.dev/injected-by={namespace}");
    ensure!(network["mode"] == "Audit" && network["selects"] == selects, "{status}");
    ensure!(
        network["common"]["egress"]
            == json!([
                "UDP and TCP 53 to 10.96.0.10/32: name server",
                "UDP and TCP 53 to pods k8s-app=kube-dns of namespace kube-system: name server, where it is the cluster's own",
                "TCP 8443 to pods of namespace sidegate-system: broker",
            ]),
        "{status}"
    );
    let made = cluster.create(&pod(namespace, json!({})))?;
    ensure!(
        made["metadata"]["labels"]["sidegate.dev/injected-by"] == **namespace,
        "{made}"
    );
    listed(cluster, namespace)?;
    let policies = ["get", "networkpolicies", "--namespace", namespace, "-o", "name"];
    ensure!(cluster.kubectl(&policies, "")?.is_empty(), "a policy was made");

    let refused = told.profile(&json!({"networkPolicy": "Apply"}));
    let why = refused.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(why.contains("spec.networkPolicy"), "{why}");
    told.profile(&json!({"networkPolicy": "Off"}))?;
    told.until("it is told no more", |status| status.get("networkPolicy").is_none())?;
    told.end()
}

/// A Target by an address and one by a name, and a policy that grants both.
fn targets(cluster: &Cluster, namespace: &str) -> Result<()> {
    for (name, host, port) in [("literal", "192.0.2.7", 15_432), ("named", "db.example", 15_433)] {
        cluster.create(&json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target", "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "protocol": "Postgres", "address": {"host": host, "port": 5432}, "listen": {"port": port},
                "credential": {"secret": {"name": "db"}},
            },
        }))?;
    }
    cluster
        .create(&json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "AccessPolicy",
            "metadata": {"name": "triage", "namespace": namespace},
            "spec": {
                "targetRefs": [{"name": "literal"}, {"name": "named"}],
                "subjects": [{"serviceAccount": {"namespace": namespace, "name": "triage"}}],
                "rules": [{"name": "read", "effect": "Allow", "sql": {"commands": ["Select"]}}],
            },
        }))
        .map(|_| ())
}

/// The command line lists what stands in the status, with what would be cut off as a warning.
fn listed(cluster: &Cluster, namespace: &str) -> Result<()> {
    let check = [
        "check",
        "--sidegate-namespace",
        NAMESPACE,
        "-n",
        namespace,
        "-o",
        "json",
    ];
    let (_, out, err) = looked::run(cluster, User::Admin, &check)?;
    let found: Value = serde_json::from_str(&out).map_err(|error| anyhow::anyhow!("{error}: {out} {err}"))?;
    let what = format!("network policies of profile {namespace} in namespace {namespace}");
    let finding = found
        .as_array()
        .into_iter()
        .flatten()
        .find(|finding| finding["what"] == what);
    let said = finding.map(|finding| (finding["verdict"].clone(), finding["said"].to_string()));
    ensure!(
        said.is_some_and(|(verdict, said)| verdict == "warn"
            && said.contains("db.example")
            && said.contains("none is made")),
        "{out}"
    );
    Ok(())
}
