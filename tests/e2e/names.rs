//! Targets by their own names on the real API server: what the webhook stores, and what the command line says of it.

use anyhow::{ensure, Result};
use serde_json::{json, Value};
use sidegate_tests::cluster::{Cluster, User};

use crate::inject::{dry_run, is_asked, labelled, pod, site};
use crate::looked::{installed, run};

/// A Target that answers for these names, and a policy that grants it.
fn target(namespace: &str, names: &str) -> String {
    format!(
        "{{apiVersion: sidegate.dev/v1alpha1, kind: Target, metadata: {{name: web, namespace: {namespace}}}, spec: {{protocol: \
         TCP, address: {{host: web.example, port: 80}}, credential: {{none: {{}}}}, listen: {{port: 15480, hostnames: \
         [{names}]}}}}}}\n---\n{{apiVersion: sidegate.dev/v1alpha1, kind: AccessPolicy, metadata: {{name: web, namespace: \
         {namespace}}}, spec: {{targetRefs: [{{name: web}}], subjects: [{{podSelector: {{}}}}], rules: [{{name: all, effect: \
         Allow}}]}}}}\n"
    )
}

/// A namespace whose profile says `reach: Hostnames`, with a Target that its pods get.
fn by_hostnames(cluster: &Cluster) -> Result<String> {
    let profile = format!("names-{}", cluster.namespace()?);
    let image = json!({"repository": "example.invalid/sidecar", "digest": format!("sha256:{}", "b".repeat(64))});
    cluster.create(&json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "InjectionProfile", "metadata": {"name": profile},
        "spec": {"image": image, "reach": "Hostnames"},
    }))?;
    let baseline = "pod-security.kubernetes.io/enforce=baseline";
    let namespace = labelled(cluster, &[&format!("sidegate.dev/profile={profile}"), baseline])?;
    is_asked(cluster, &namespace)?;
    cluster.kubectl(&["apply", "-f", "-"], &target(&namespace, "web.example, web"))?;
    cluster.until("pods get the Target's names", || {
        let made = dry_run(cluster, &pod(&namespace, json!({})));
        Ok(made.is_ok_and(|made| made["spec"].get("hostAliases").is_some()))
    })?;
    Ok(namespace)
}

/// The stored pod leads its Targets' names to an address of its sidecar's, and may listen on their low ports; `explain` says
/// so, `outdated` when they are others, and a pod that leads such a name elsewhere itself is refused.
pub fn names_lead_to_the_sidecar_in_what_the_server_stores(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let (home, namespace) = (installed(cluster)?, by_hostnames(cluster)?);
    let printer = json!({"ip": "10.1.2.3", "hostnames": ["printer"]});
    let made = cluster.create(&pod(&namespace, json!({"hostAliases": [printer]})))?;
    let aliases = &made["spec"]["hostAliases"];
    let ip = aliases[1]["ip"].as_str().unwrap_or_default();
    ensure!(aliases[0] == printer && ip.starts_with("127.71."), "{aliases}");
    ensure!(aliases[1]["hostnames"] == json!(["web.example", "web"]), "{aliases}");
    let sysctls = &made["spec"]["securityContext"]["sysctls"];
    ensure!(
        *sysctls == json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]),
        "{sysctls}"
    );
    let explain = ["explain", "pod/agent", "--sidegate-namespace", &home, "-n", &namespace];
    let (code, out, err) = run(cluster, User::Admin, &explain)?;
    let words = format!("also as web.example, web on port 80 ({ip})");
    ensure!(
        code == Some(0) && out.contains(&words),
        "`{words}` is not in:\n{out}\n{err}"
    );
    let (_, out, _) = run(cluster, User::Admin, &[&explain[..], &["-o", "json"]].concat())?;
    let told: Value = serde_json::from_str(&out)?;
    let named = &told["pod"]["listeners"][0]["named"];
    ensure!(
        named["at"] == format!("{ip}:80") && named["names"] == json!(["web.example", "web"]),
        "{out}"
    );

    cluster.kubectl(&["apply", "-f", "-"], &target(&namespace, "web.example"))?;
    let (code, out, _) = run(cluster, User::Admin, &["outdated", "-n", &namespace])?;
    let words = format!("Target {namespace}/web is found by other names now");
    ensure!(code == Some(1) && out.contains(&words), "`{words}` is not in:\n{out}");

    let mut elsewhere = pod(
        &namespace,
        json!({"hostAliases": [{"ip": "10.1.2.3", "hostnames": ["web.example"]}]}),
    );
    elsewhere["metadata"]["name"] = json!("elsewhere");
    let refused = cluster.ask(User::Admin, &["create", "-f", "-"], &elsewhere.to_string())?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        said.contains("sidegate: hostname: hostAliases of the pod lead web.example to 10.1.2.3"),
        "{said}"
    );
    Ok(())
}
