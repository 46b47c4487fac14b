//! Agents that nobody changed: their clients name the hosts and ports they always did, and arrive at the sidecar.

use anyhow::{ensure, Context, Result};
use serde_json::json;
use sidegate_tests::cluster::node::site::{Agents, Site, MASKED, READ};
use sidegate_tests::shop::DATABASE;

/// A namespace whose pods find their Targets by name too.
fn by_hostnames(site: &Site) -> Result<Agents<'_>> {
    site.profile("names", |spec| spec["reach"] = json!("Hostnames"))?;
    site.agents_by("names")
}

/// A Target on a port that only root may take by default.
fn low_port(agents: &Agents<'_>) -> Result<()> {
    let namespace = &agents.namespace;
    agents.create(&json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target", "metadata": {"name": "web", "namespace": namespace},
        "spec": {
            "protocol": "TCP", "address": {"host": "shop.internal", "port": 80}, "credential": {"none": {}},
            "listen": {"port": 15480, "hostnames": ["web.internal"]},
        },
    }))?;
    agents.create(&json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "web", "namespace": namespace},
        "spec": {
            "targetRefs": [{"name": "web"}], "subjects": [{"podSelector": {}}], "rules": [{"name": "all", "effect": "Allow"}],
        },
    }))?;
    let probe = agents.pod("probe", &agents.site.psql, &["/bin/true"]);
    agents.until_made_with("web.internal", &probe)
}

/// The stock `psql` names the usual hosts and their real ports, and reads masked rows of both databases: the sidecar, whose
/// own pod's hosts file says otherwise, finds them and its broker by DNS alone.
pub fn a_client_that_nobody_changed_reads_masked_rows(site: &Site) -> Result<()> {
    let agents = by_hostnames(site)?;
    low_port(&agents)?;
    let mut pod = agents.pod("agent", &site.psql, &["/bin/sleep", "3600"]);
    let nowhere = json!({"ip": "192.0.2.1", "hostnames": ["sidegate-broker.sidegate-system.svc"]});
    pod["spec"]["hostAliases"] = json!([nowhere]);
    agents.create(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca", "namespace": agents.namespace},
        "data": {"ca.crt": site.shop.authority.pem()},
    }))?;
    pod["spec"]["volumes"] = json!([{"name": "ca", "configMap": {"name": "ca"}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "ca", "mountPath": "/ca"}]);
    agents.create(&pod)?;
    agents.ready("agent")?;
    let psql = |host: &str, port: u16, more: &str| {
        let url = format!("postgresql://agent@{host}:{port}/{DATABASE}{more}");
        agents.exec("agent", &["psql", "-X", "-A", "-t", &url, "-c", READ])
    };
    for (host, port) in [("shop.internal", site.shop.port), ("ledger.internal", site.ledger.port)] {
        let said = psql(host, port, "")?;
        ensure!(said == MASKED, "{host}: {said}");
    }
    // Its line to the sidecar may be encrypted, and proves nothing: no client can have the authority.
    let said = psql("shop.internal", site.shop.port, "?sslmode=require")?;
    ensure!(said == MASKED, "{said}");
    let verified = psql(
        "shop.internal",
        site.shop.port,
        "?sslmode=verify-full&sslrootcert=/ca/ca.crt",
    );
    let verified = format!("{:#}", verified.err().context("it believes anybody")?);
    ensure!(verified.contains("certificate verify failed"), "{verified}");
    let hosts = agents.exec("agent", &["cat", "/etc/hosts"])?;
    for name in ["192.0.2.1", "shop.internal", "ledger.internal", "web.internal"] {
        ensure!(hosts.contains(name), "{name} is not in {hosts}");
    }
    // Port 80 is held.
    let held = agents.exec("agent", &["cat", "/proc/net/tcp"])?;
    ensure!(held.contains(":0050 "), "{held}");
    Ok(())
}
