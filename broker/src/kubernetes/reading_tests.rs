//! Leaving an object out never allows more than reading it could have.

#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::index::Index;
use sidegate_policies::engine::Subject;

fn target(name: &str, port: i32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "data", "labels": {"tier": "one"}, "managedFields": [{"x": 1}]},
        "spec": {
            "protocol": "Postgres", "address": {"host": "db.data.svc", "port": 5432},
            "credential": {"secret": {"name": "shop"}}, "listen": {"port": port},
            "allowedNamespaces": {"selector": {}},
        },
        "status": {"conditions": []},
    })
}

fn policy(name: &str, targets: &[&str], when: Option<&str>) -> Value {
    let references: Vec<Value> = targets.iter().map(|name| json!({"name": name})).collect();
    let mut rule = json!({"name": "rule", "effect": "Deny", "sql": {"commands": ["Delete"]}});
    if let Some(when) = when {
        rule["when"] = json!(when);
    }
    json!({
        "metadata": {"name": name, "namespace": "data"},
        "spec": {
            "targetRefs": references, "subjects": [{"serviceAccount": {"namespace": "agents", "name": "support"}}],
            "rules": [rule],
        },
    })
}

fn key(kind: Kind, name: &str) -> Key {
    Key {
        kind,
        namespace: kind.is_namespaced().then(|| "data".to_owned()),
        name: name.to_owned(),
    }
}

fn stored(objects: &[(Kind, &str, Value)]) -> Stored {
    let entries = objects.iter();
    entries
        .map(|(kind, name, object)| (key(*kind, name), Arc::new(object.clone())))
        .collect()
}

/// Everything that is stored, without ConfigMaps.
fn read_all(stored: &Stored) -> Reading {
    read(stored, &BTreeMap::new())
}

/// Names of the Targets that an agent is offered.
fn offered(reading: Reading) -> Vec<String> {
    let index = Index::new(reading.objects, 1, "test".to_owned(), "A".repeat(43)).withholding(reading.withheld);
    let subject = Subject {
        namespace: "agents".to_owned(),
        service_account: "support".to_owned(),
        pod: "p".to_owned(),
        pod_uid: "u".to_owned(),
        labels: BTreeMap::new(),
    };
    let offer = index.offer(&subject);
    offer
        .bundle
        .targets
        .iter()
        .map(|bundled| bundled.target.metadata.name.clone())
        .collect()
}

/// Two Targets and a policy that gives them to the agent, and whatever else.
fn world(more: &[(Kind, &str, Value)]) -> Stored {
    let mut all = vec![
        (Kind::Target, "orders", target("orders", 15432)),
        (Kind::Target, "people", target("people", 15433)),
        (Kind::AccessPolicy, "base", policy("base", &["orders", "people"], None)),
    ];
    all.extend(more.iter().cloned());
    stored(&all)
}

#[test]
fn what_is_right_is_in_force() {
    let reading = read_all(&world(&[]));
    assert!(
        reading.found.values().all(|found| found.problems.is_empty()),
        "{:?}",
        reading.found
    );
    assert_eq!(offered(reading), ["orders", "people"]);
}

#[test]
fn a_policy_that_cannot_be_read_withholds_its_targets_and_no_others() {
    let broken = policy("broken", &["orders"], Some("sql.nothing == 1"));
    let reading = read_all(&world(&[(Kind::AccessPolicy, "broken", broken)]));
    let found = &reading.found[&key(Kind::AccessPolicy, "broken")];
    assert_eq!(found.problems[0].field, "spec.rules[0].when");
    assert_eq!(offered(reading), ["people"]);
}

#[test]
fn a_policy_whose_references_cannot_be_read_withholds_its_namespace() {
    let mut broken = policy("broken", &["orders"], None);
    broken["spec"]["targetRefs"] = json!([{"name": 7}]);
    assert!(offered(read_all(&world(&[(Kind::AccessPolicy, "broken", broken)]))).is_empty());
}

#[test]
fn a_policy_that_only_observes_withholds_nothing() {
    let mut broken = policy("broken", &["orders"], Some("sql.nothing == 1"));
    broken["spec"]["mode"] = json!("Observe");
    let reading = read_all(&world(&[(Kind::AccessPolicy, "broken", broken)]));
    assert_eq!(offered(reading), ["orders", "people"]);
}

#[test]
fn a_cluster_policy_that_cannot_be_read_withholds_what_it_may_be_about() {
    let floor = |more: Value| {
        let mut spec = json!({"rules": [{"name": "r", "effect": "Deny", "when": "sql.nothing == 1"}]});
        more.as_object()
            .unwrap()
            .iter()
            .for_each(|(field, value)| spec[field] = value.clone());
        let floor = json!({"metadata": {"name": "floor"}, "spec": spec});
        offered(read_all(&world(&[(Kind::ClusterAccessPolicy, "floor", floor)])))
    };
    assert!(floor(json!({})).is_empty());
    assert!(floor(json!({"targetSelector": {"matchLabels": {"tier": "two"}}})).is_empty());
    let both = json!({
        "targetRefs": [{"namespace": "data", "name": "people"}], "targetSelector": {"matchLabels": {"tier": "one"}},
    });
    assert!(floor(both).is_empty());
    assert_eq!(
        floor(json!({"targetRefs": [{"namespace": "data", "name": "people"}]})),
        ["orders"]
    );
}

#[test]
fn a_target_that_is_wrong_is_left_out_alone_and_what_names_it_dangles() {
    let mut wrong = target("wrong", 15434);
    wrong["spec"]["listen"]["port"] = json!(99_999);
    let more = [
        (Kind::Target, "wrong", wrong),
        (Kind::AccessPolicy, "more", policy("more", &["wrong"], None)),
    ];
    let reading = read_all(&world(&more));
    assert!(!reading.found[&key(Kind::Target, "wrong")].problems.is_empty());
    let dangling = &reading.found[&key(Kind::AccessPolicy, "more")];
    assert!(dangling.problems.is_empty());
    assert!(dangling
        .warnings
        .iter()
        .any(|warning| warning.field == "spec.targetRefs[0].name"));
    assert_eq!(offered(reading), ["orders", "people"]);
}

#[test]
fn of_two_targets_on_one_port_a_pod_gets_one() {
    let reading = read_all(&world(&[(Kind::Target, "people", target("people", 15432))]));
    assert!(reading.found.values().all(|found| found.problems.is_empty()));
    assert_eq!(offered(reading), ["orders"]);
}

#[test]
fn a_name_that_looks_like_a_file_of_cases_is_still_an_object() {
    let odd = policy("odd.cases.yaml", &["orders"], Some("sql.nothing == 1"));
    let reading = read_all(&world(&[(Kind::AccessPolicy, "odd.cases.yaml", odd)]));
    assert_eq!(offered(reading), ["people"]);
}

#[test]
fn a_lockdown_that_cannot_be_read_freezes_everything() {
    let lockdown = |spec: Value| json!({"metadata": {"name": "now"}, "spec": spec});
    let good = lockdown(json!({"reason": "drill", "freeze": [{"namespace": "agents"}]}));
    let (lockdowns, found) = super::lockdowns(&stored(&[(Kind::Lockdown, "now", good)]));
    assert_eq!(lockdowns[0].spec.freeze.len(), 1);
    assert!(found[&key(Kind::Lockdown, "now")].problems.is_empty());
    let bad = lockdown(json!({"reason": "drill", "freeze": [{"planet": "earth"}]}));
    let (lockdowns, found) = super::lockdowns(&stored(&[(Kind::Lockdown, "now", bad)]));
    let frozen = serde_json::to_value(&lockdowns[0].spec.freeze).unwrap();
    assert_eq!(
        (frozen, lockdowns[0].metadata.name.as_str()),
        (json!([{"everything": {}}]), "now")
    );
    assert!(!found[&key(Kind::Lockdown, "now")].problems.is_empty());
}

#[test]
fn a_target_waits_for_the_authority_it_names() {
    let mut with = target("orders", 15432);
    with["spec"]["tls"] = json!({"caBundle": {"configMap": {"name": "corp-ca", "key": "ca.crt"}}});
    let stored = world(&[(Kind::Target, "orders", with)]);
    assert_eq!(offered(read_all(&stored)), ["people"]);
    let map = key(Kind::ConfigMap, "corp-ca");
    let found = |data: Value| {
        let object = json!({"metadata": {"name": "corp-ca", "namespace": "data"}, "data": data});
        BTreeMap::from([(map.clone(), MapRead::Found(Arc::new(object)))])
    };
    assert_eq!(offered(read(&stored, &found(json!({"other": "pem"})))), ["people"]);
    assert_eq!(
        offered(read(&stored, &found(json!({"ca.crt": "-----BEGIN CERTIFICATE-----"})))),
        ["orders", "people"]
    );
    for unread in [
        MapRead::Missing,
        MapRead::NotGranted(String::new()),
        MapRead::Unknown(String::new()),
    ] {
        assert_eq!(
            offered(read(&stored, &BTreeMap::from([(map.clone(), unread)]))),
            ["people"]
        );
    }
}
