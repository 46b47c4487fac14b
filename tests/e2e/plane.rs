//! The control plane itself: rights, helm, nodes without a kubelet, and an end that leaves nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use serde_json::json;
use sidegate_tests::cluster::{Cluster, Programs, User};

/// Rights are RBAC's: nothing, until somebody grants it.
pub fn a_user_may_what_was_granted(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace()?;
    let list = ["get", "targets.sidegate.dev", "--namespace", &namespace];
    let refused = cluster.ask(User::Dev, &list, "")?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && said.contains("Forbidden"),
        "dev may list: {said}"
    );
    let inside = ["--namespace", &namespace];
    let role = [
        "create",
        "role",
        "reader",
        "--verb=get,list",
        "--resource=targets.sidegate.dev",
    ];
    cluster.kubectl(&[&role[..], &inside].concat(), "")?;
    let binding = ["create", "rolebinding", "reader", "--role=reader", "--user=dev"];
    cluster.kubectl(&[&binding[..], &inside].concat(), "")?;
    // The authorizer learns of it by watching.
    cluster.until("dev may list", || {
        Ok(cluster.ask(User::Dev, &list, "")?.status.success())
    })?;
    let target = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target", "metadata": {"name": "own", "namespace": namespace},
        "spec": {"protocol": "Tcp", "address": {"host": "127.0.0.1", "port": 1}, "listen": {"port": 1}},
    });
    let written = cluster.ask(User::Dev, &["create", "-f", "-"], &target.to_string())?;
    let said = String::from_utf8_lossy(&written.stderr);
    ensure!(
        !written.status.success() && said.contains("Forbidden"),
        "dev may write: {said}"
    );
    Ok(())
}

/// The helm that charts are installed with.
pub fn helm_speaks_to_it(cluster: &Cluster) -> Result<()> {
    let output = cluster.helm(&["list", "--all-namespaces"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Clients ask for the version before they decide what they may use; without its linker flags a server calls itself v0.0.0.
pub fn says_the_version_it_was_built_of(cluster: &Cluster) -> Result<()> {
    let built = cluster.version()?;
    let said: serde_json::Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", "/version"], "")?)?;
    ensure!(
        said["gitVersion"] == built.as_str(),
        "built of {built}, and says {said}"
    );
    Ok(())
}

/// Twenty pods get their status from kwok.
pub fn pods_run_on_a_node_that_kwok_plays(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace()?;
    let node = format!("node-{namespace}");
    cluster.node(&node)?;
    cluster.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many", "namespace": namespace},
        "spec": {
            "replicas": 20, "selector": {"matchLabels": {"app": "many"}},
            "template": {
                "metadata": {"labels": {"app": "many"}},
                "spec": {
                    "nodeSelector": {"kubernetes.io/hostname": node},
                    "containers": [{"name": "c", "image": "example.invalid/c"}],
                },
            },
        },
    }))?;
    let available = [
        "get",
        "deployment",
        "many",
        "--namespace",
        &namespace,
        "-o",
        "jsonpath={.status.availableReplicas}",
    ];
    cluster.until("20 pods are available", || Ok(cluster.kubectl(&available, "")? == "20"))
}

/// Nothing of a control plane outlives the value that owns it. `SIDEGATE_TEST_STARTS=50` does it so often in a row.
pub fn ends_with_its_owner(programs: &Programs) -> Result<()> {
    let starts = std::env::var("SIDEGATE_TEST_STARTS").unwrap_or_else(|_| "1".to_owned());
    let starts: u32 = starts.parse().context("SIDEGATE_TEST_STARTS is no number")?;
    let mut slowest = Duration::ZERO;
    for _ in 0..starts {
        let begun = Instant::now();
        let cluster = Cluster::start(programs)?;
        slowest = slowest.max(begun.elapsed());
        let pids = cluster.pids();
        ensure!(pids.len() == 4, "{pids:?}");
        let lives = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        ensure!(pids.iter().all(lives), "{pids:?} were started");
        drop(cluster);
        ensure!(!pids.iter().any(lives), "some of {pids:?} are left");
    }
    println!("{starts} start(s), the slowest {:.1} s", slowest.as_secs_f64());
    Ok(())
}
