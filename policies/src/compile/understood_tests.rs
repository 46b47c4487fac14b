//! Bundles of a broker that is newer than the reader.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use serde_json::json;

use super::*;

fn target(name: &str) -> Value {
    json!({"target": {
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target",
        "metadata": {"name": name, "namespace": "data", "uid": name},
        "spec": {
            "protocol": "Postgres", "address": {"host": "db.example", "port": 5432}, "tls": {"mode": "Disabled"},
            "credential": {"none": {}}, "listen": {"port": 15432},
        },
    }})
}

fn policy(name: &str, target: &str) -> Value {
    json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": name, "namespace": "data"},
        "spec": {
            "targetRefs": [{"name": target}],
            "subjects": [{"serviceAccount": {"namespace": "agents", "name": "support"}}],
            "rules": [{"name": "read", "effect": "Allow", "sql": {"commands": ["Select"], "tables": ["app.*"]}}],
        },
    })
}

fn floor() -> Value {
    json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "ClusterAccessPolicy", "metadata": {"name": "floor"},
        "spec": {"rules": [{"name": "no-drop", "effect": "Deny", "sql": {"commands": ["Drop"]}}]},
    })
}

fn body() -> Value {
    json!({
        "cluster": "local", "targets": [target("one"), target("two")],
        "policies": [policy("first", "one"), policy("also", "one"), policy("second", "two")],
        "clusterPolicies": [floor()], "digestKey": "A".repeat(43),
    })
}

/// Names of what is served and of what denies everything.
fn of(body: &Value) -> (Vec<String>, Vec<String>) {
    let understood = read(body.to_string().as_bytes()).unwrap();
    for id in understood.withheld.keys() {
        assert!(understood.policies.target(id).is_none(), "the engine knows it");
    }
    let mut served: Vec<String> = understood
        .policies
        .targets()
        .map(|target| target.id.name.to_string())
        .collect();
    served.sort();
    (
        served,
        understood.withheld.keys().map(|id| id.name.to_string()).collect(),
    )
}

fn split(served: &[&str], withheld: &[&str]) -> (Vec<String>, Vec<String>) {
    let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    (texts(served), texts(withheld))
}

#[test]
fn what_is_not_understood_denies_its_target_and_no_other() {
    assert_eq!(of(&body()), split(&["one", "two"], &[]));
    let changed = |pointer: &str, value: Value| {
        let mut body = body();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[field] = value;
        of(&body)
    };
    let only_one = split(&["two"], &["one"]);
    assert_eq!(
        changed("/targets/0/target/spec/quantum", json!(true)),
        only_one,
        "a field of a Target"
    );
    assert_eq!(
        changed("/targets/0/target/spec/protocol", json!("Quic")),
        only_one,
        "a protocol"
    );
    assert_eq!(
        changed("/policies/0/spec/rules/0/http", json!({})),
        only_one,
        "a matcher, of one policy of two"
    );
    assert_eq!(
        changed("/policies/0/spec/rules/0/effect", json!("Maybe")),
        only_one,
        "an effect"
    );
    let fact = changed("/policies/0/spec/rules/0/when", json!("sql.quantum"));
    assert_eq!(fact, only_one, "a fact that does not compile");
    let refs = changed("/policies/0/spec/targetRefs", json!("all"));
    assert_eq!(
        refs,
        split(&[], &["one", "two"]),
        "it may be about any of its namespace"
    );
    assert_eq!(
        changed("/clusterPolicies/0/spec/rules/0/http", json!({})),
        split(&[], &["one", "two"])
    );
    assert_eq!(
        changed("/quarantine", json!([])),
        split(&[], &["one", "two"]),
        "a field of the bundle"
    );
}

#[test]
fn a_cluster_policy_that_names_its_targets_denies_these_and_an_observer_denies_nobody() {
    let mut named = body();
    named["clusterPolicies"][0]["spec"]["targetRefs"] = json!([{"namespace": "data", "name": "two"}]);
    named["clusterPolicies"][0]["spec"]["rules"][0]["http"] = json!({});
    assert_eq!(of(&named), split(&["one"], &["two"]));
    named["clusterPolicies"][0]["spec"]["targetSelector"] = json!({"matchLabels": {"a": "b"}});
    assert_eq!(of(&named), split(&[], &["one", "two"]));
    let mut observing = body();
    observing["policies"][0]["spec"]["mode"] = json!("Observe");
    observing["policies"][0]["spec"]["rules"][0]["http"] = json!({});
    assert_eq!(of(&observing), split(&["one", "two"], &[]));
    let mut fact = body();
    fact["policies"][0]["spec"]["mode"] = json!("Observe");
    fact["policies"][0]["spec"]["rules"][0]["when"] = json!("sql.quantum");
    assert_eq!(of(&fact), split(&["one", "two"], &[]), "nor one that does not compile");
}

#[test]
fn a_withheld_target_says_why_and_where_it_listens_and_nonsense_is_refused() {
    let mut changed = body();
    changed["policies"][0]["spec"]["rules"][0]["http"] = json!({});
    let understood = read(changed.to_string().as_bytes()).unwrap();
    let withheld = &understood.withheld[&TargetId::new("data", "one")];
    assert!(
        withheld.why.starts_with("policy first: unknown field `http`"),
        "{}",
        withheld.why
    );
    assert_eq!(withheld.target.as_ref().unwrap().target.spec.listen.port, 15_432);
    read(b"{}").unwrap_err();
    read(b"nonsense").unwrap_err();
}
