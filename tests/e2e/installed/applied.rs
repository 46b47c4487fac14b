//! What the installed injector says of objects as they are applied, and what it counts.

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_tests::cluster::User;

use super::{get, Installed};
use crate::inject::{is_asked, pod};
use crate::site::until;

fn object(kind: &str, namespace: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {"name": "orders", "namespace": namespace},
    })
}

fn target(namespace: &str) -> Value {
    let spec = json!({
        "protocol": "Postgres", "address": {"host": "db.data", "port": 5432}, "listen": {"port": 15432},
        "credential": {"secret": {"name": "db"}},
    });
    object("Target", namespace, spec)
}

fn policy(namespace: &str, subject: &str, condition: &str) -> Value {
    let spec = json!({
        "targetRefs": [{"name": "orders"}],
        "subjects": [{"serviceAccount": {"namespace": subject, "name": "triage"}}],
        "rules": [{"name": "small", "effect": "Allow", "when": condition}],
    });
    object("AccessPolicy", namespace, spec)
}

/// A policy that the schema takes and the compiler does not is refused with its field, and so is a grant that the Target
/// does not give; what does not exist yet is a warning. With nobody there, a new spec is refused, a label is not, and
/// neither is the kill switch.
pub fn what_would_not_compile_is_refused_as_it_is_applied(installed: &mut Installed) -> Result<()> {
    let namespace = installed.cluster.namespace()?;
    let apply = |object: &Value| {
        let output = installed
            .cluster
            .ask(User::Admin, &["apply", "-f", "-"], &object.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::Ok((output.status.success(), said))
    };
    let (taken, said) = apply(&policy(&namespace, &namespace, "operation.rows <"))?;
    ensure!(
        !taken && said.contains("policies.sidegate.dev") && said.contains("sidegate: object: spec.rules[0].when: "),
        "{said}"
    );
    let (taken, said) = apply(&policy(&namespace, &namespace, "sql.filtered"))?;
    ensure!(
        taken && said.contains("there is no Target") && said.contains("(yet)"),
        "{said}"
    );
    let (taken, said) = apply(&target(&namespace))?;
    ensure!(taken, "{said}");
    let look = || apply(&policy(&namespace, "elsewhere", "sql.filtered"));
    let (_, said) = until("the Target is known", look, |(taken, _)| !taken)?;
    ensure!(
        said.contains("sidegate: grant: ") && said.contains("does not admit namespace elsewhere"),
        "{said}"
    );

    installed.end();
    let change = [
        "annotate",
        "accesspolicy",
        "orders",
        "--namespace",
        &namespace,
        "note=kept",
    ];
    installed.cluster.kubectl(&change, "")?;
    let apply = |object: &Value| {
        installed
            .cluster
            .ask(User::Admin, &["apply", "-f", "-"], &object.to_string())
    };
    let refused = apply(&policy(&namespace, &namespace, "!sql.filtered"))?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && said.contains("policies.sidegate.dev"),
        "{said}"
    );
    installed
        .cluster
        .kubectl(&["delete", "accesspolicy", "orders", "--namespace", &namespace], "")
        .map(|_| ())
}

/// What the health port tells a scraper.
pub fn its_numbers_count_what_it_did(installed: &mut Installed) -> Result<()> {
    let namespace = installed.labelled()?;
    installed.cluster.create(&pod(&namespace, json!({})))?;
    let mut bad = pod(&namespace, json!({"hostNetwork": true}));
    bad["metadata"]["name"] = json!("bad");
    installed
        .cluster
        .ask(User::Admin, &["create", "-f", "-"], &bad.to_string())?;
    let all = numbers(installed)?;
    let count = |line: &str| {
        let values = all
            .lines()
            .filter_map(|found| found.strip_prefix(line)?.trim().parse::<f64>().ok());
        values.sum::<f64>()
    };
    let injected = r#"sidegate_injector_admissions_total{outcome="injected",reason="profile",webhook="pods"}"#;
    let refused = r#"sidegate_injector_admissions_total{outcome="refused",reason="hostNetwork",webhook="pods"}"#;
    ensure!(count(injected) >= 1.0 && count(refused) >= 1.0, "{all}");
    ensure!(count("sidegate_injector_admission_seconds_count") >= 2.0, "{all}");
    ensure!(count("sidegate_injector_patch_bytes_count") >= 1.0, "{all}");
    ensure!(count("sidegate_injector_ca_bundle_mismatch") == 0.0, "{all}");
    ensure!(count("sidegate_injector_leader") == 1.0, "{all}");
    // Both serve one leaf of sixty days, and a day more for clocks that differ.
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs_f64();
    let days = (count("sidegate_injector_certificate_not_after_seconds") / 2.0 - now) / 86_400.0;
    ensure!((59.0..62.0).contains(&days), "{days}");
    let probed = now - count("sidegate_injector_self_probe_seconds") / 2.0;
    ensure!(probed.abs() < 30.0, "{probed}");
    ensure!(
        all.contains(r#"sidegate_injector_cache_age_seconds{kind="targets"} 0"#),
        "{all}"
    );
    Ok(())
}

/// The pages of all replicas, one behind the other.
pub fn numbers(installed: &Installed) -> Result<String> {
    let mut all = String::new();
    for replica in &installed.replicas {
        let health = replica.running.as_ref().and_then(|running| running.health);
        all.push_str(&get(health.context("no health port")?, "/metrics")?);
    }
    Ok(all)
}

/// A pod that is older than its namespace's label is counted until it is gone, by the leader alone, and told once; a pod
/// with its sidecar is neither.
pub fn its_leader_counts_pods_without_a_sidecar_and_tells_each_once(installed: &mut Installed) -> Result<()> {
    let older = r#"sidegate_injector_unprotected_pods{reason="older-than-label"} "#;
    let counted = |installed: &Installed| -> Result<Vec<u64>> {
        let all = numbers(installed)?;
        let told = all.lines().filter_map(|line| line.strip_prefix(older));
        Ok(told.filter_map(|count| count.parse().ok()).collect())
    };
    let is = |installed: &Installed, wanted: u64| {
        installed
            .cluster
            .until("the count", || Ok(counted(installed)? == [wanted]))
    };
    installed
        .cluster
        .until("a count", || Ok(counted(installed)?.len() == 1))?;
    let before = counted(installed)?.into_iter().next().context("no count")?;
    let namespace = installed.cluster.namespace()?;
    let mut bare = pod(&namespace, json!({}));
    bare["metadata"]["name"] = json!("before");
    let bare = installed.cluster.create(&bare)?;
    installed
        .cluster
        .kubectl(&["label", "namespace", &namespace, "sidegate.dev/inject=enabled"], "")?;
    is(installed, before + 1)?;
    is_asked(&installed.cluster, &namespace)?;
    installed.cluster.create(&pod(&namespace, json!({})))?;
    let events = ["get", "events", "--namespace", &namespace, "-o", "json"];
    let told = |installed: &Installed| -> Result<Vec<Value>> {
        let all: Value = serde_json::from_str(&installed.cluster.kubectl(&events, "")?)?;
        let ours = |event: &&Value| event["reason"] == "Unprotected";
        Ok(all["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(ours)
            .cloned()
            .collect())
    };
    installed
        .cluster
        .until("the pod is told of", || Ok(!told(installed)?.is_empty()))?;
    let delete = ["delete", "pod", "before", "--namespace", &namespace];
    installed
        .cluster
        .kubectl(&[&delete[..], &["--grace-period=0", "--force"]].concat(), "")?;
    is(installed, before)?;
    let told = told(installed)?;
    ensure!(told.len() == 1, "{told:?}");
    let event = told.first().context("no Event")?;
    ensure!(event["involvedObject"]["uid"] == bare["metadata"]["uid"], "{event}");
    let message = event["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("older-than-label") && message.contains("rollout restart"),
        "{message}"
    );
    Ok(())
}
