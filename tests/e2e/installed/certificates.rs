//! The certificates of the installed injector: repaired, outliving their leader, rotated under load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{ensure, Context, Result};
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use serde_json::json;
use sidegate_injector::app::Lives;
use sidegate_tests::authority::Authority;
use sidegate_tests::cluster::User;

use super::{Installed, Replica, NAME};
use crate::inject::pod;
use crate::site::until;

/// What somebody else writes there is written over. With the configuration gone the replicas say that they are not ready,
/// and pods are refused by the admission policies.
pub fn what_is_written_over_the_ca_bundle_is_repaired(installed: &mut Installed) -> Result<()> {
    let namespace = installed.labelled()?;
    let before = installed.bundles()?;
    let foreign = STANDARD.encode(Authority::new()?.pem());
    let patch = json!([{"op": "replace", "path": "/webhooks/1/clientConfig/caBundle", "value": foreign}]);
    let patch = patch.to_string();
    installed.kubectl(&[
        "patch",
        "mutatingwebhookconfiguration",
        NAME,
        "--type=json",
        "-p",
        &patch,
    ])?;
    until("it is repaired", || installed.bundles(), |now| *now == before)?;
    installed.are_ready()?;
    // With the configuration gone nobody calls: that is no readiness.
    installed.kubectl(&["delete", "mutatingwebhookconfiguration", NAME])?;
    let look = || Ok(installed.replicas.iter().map(Replica::ready).collect::<Vec<_>>());
    let seen = until("it is noticed", look, |ready| ready.iter().all(Result::is_err))?;
    ensure!(
        format!("{seen:?}").contains("there is no MutatingWebhookConfiguration"),
        "{seen:?}"
    );
    // Where nobody is asked the policies judge alone: a pod that nothing was put into is refused, and told why.
    let bare = pod(&namespace, json!({})).to_string();
    let create = ["create", "--dry-run=server", "-f", "-"];
    let tried = || {
        let said = installed.cluster.ask(User::Admin, &create, &bare)?;
        Ok(String::from_utf8_lossy(&said.stderr).into_owned())
    };
    until("the policies refuse it", tried, |said| {
        said.contains("denied request: sidegate: sidecar: ")
    })?;
    installed.helm("upgrade", &["--force-conflicts"])?;
    until("it is written anew", || installed.bundles(), |now| *now == before)?;
    installed.are_ready()
}

/// The leader's node is gone. Pods are made as before, the other replica leads within half a minute, and the
/// certificates stay as they are.
pub fn a_killed_leader_is_followed_and_nothing_changes(installed: &mut Installed) -> Result<()> {
    let namespace = installed.labelled()?;
    let before = (installed.set()?, installed.bundles()?);
    let holder = || installed.kubectl(&["get", "lease", NAME, "-o", "jsonpath={.spec.holderIdentity}"]);
    let leader = until("one leads", holder, |holder| !holder.is_empty())?;
    let at = installed.replicas.iter().position(|replica| replica.name == leader);
    let at = at.with_context(|| format!("{leader} is none of ours"))?;
    let dead = installed.replicas.remove(at);
    installed.behind();
    dead.kill();
    ensure!(installed.injects(&namespace)?, "the other one does not serve");
    let other = installed.replicas[0].name.clone();
    let holder = || installed.kubectl(&["get", "lease", NAME, "-o", "jsonpath={.spec.holderIdentity}"]);
    until("the other one leads", holder, |holder| *holder == other)?;
    ensure!((installed.set()?, installed.bundles()?) == before, "something changed");
    ensure!(installed.injects(&namespace)?);
    // It does what a leader does.
    let nothing = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#;
    installed.kubectl(&[
        "patch",
        "mutatingwebhookconfiguration",
        NAME,
        "--type=json",
        "-p",
        nothing,
    ])?;
    until("it is repaired", || installed.bundles(), |now| *now == before.1).map(|_| ())
}

/// Leaves and authorities that last seconds are replaced again and again while pods are made: none fails, and no replica
/// is unready for a moment.
pub fn certificates_rotate_under_load_without_a_failed_admission(installed: &mut Installed) -> Result<()> {
    installed.end();
    installed.forget()?;
    let rotated = rotated(installed);
    // What comes next stands on certificates that last.
    installed.end();
    installed.forget()?;
    rotated
}

fn rotated(installed: &mut Installed) -> Result<()> {
    let lives = Lives {
        authority: 15,
        leaf: 6,
        announced: 2,
        withdrawn: 2,
    };
    installed.with(2, lives, &[])?;
    let namespace = installed.labelled()?;
    let first = installed.set()?;
    let (made, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let installed = &*installed;
    let (load, seen) = std::thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<()> {
            let many = json!({"apiVersion": "v1", "kind": "List", "items": vec![pod(&namespace, json!({})); 20]});
            let many = many.to_string();
            while !stop.load(Ordering::SeqCst) {
                let first = "jsonpath={.spec.initContainers[0].name} ";
                let create = ["create", "--dry-run=server", "-f", "-", "-o", first];
                let said = installed.cluster.kubectl(&create, &many)?;
                let names: Vec<&str> = said.split_whitespace().collect();
                ensure!(names == ["sidegate"; 20], "without a sidecar: {names:?}");
                made.fetch_add(20, Ordering::SeqCst);
            }
            Ok(())
        });
        let mut stages = Vec::new();
        let seen = until(
            "two authorities were replaced",
            || {
                for replica in &installed.replicas {
                    replica
                        .ready()
                        .map_err(|why| anyhow::anyhow!("{}: {why}", replica.name))?;
                }
                ensure!(!load.is_finished(), "the load ended");
                let authority = installed.set()?["authority"]["name"].clone();
                if stages.last() != Some(&authority) {
                    stages.push(authority);
                }
                Ok(stages.len())
            },
            |stages| *stages > 2,
        );
        stop.store(true, Ordering::SeqCst);
        (load.join(), seen)
    });
    load.unwrap_or_else(|_| anyhow::bail!("the load panicked"))?;
    seen?;
    let last = installed.set()?;
    let changes = last["generation"].as_u64().unwrap_or(0) - first["generation"].as_u64().unwrap_or(0);
    let made = made.into_inner();
    ensure!(changes > 6 && made > 100, "{changes} changes, {made} pods");
    println!("installed: certificates changed {changes} times while {made} pods were admitted, none failed");
    Ok(())
}
