//! What is said of objects as they are applied, beside others that are there.

#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn target(namespace: &str, more: Value) -> Value {
    let mut spec = json!({
        "protocol": "Postgres", "address": {"host": "db.data", "port": 5432},
        "credential": {"secret": {"name": "orders"}}, "listen": {"port": 15432},
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    json!({"metadata": {"name": "orders", "namespace": namespace}, "spec": spec})
}

fn policy(subject: &str, rule: Value) -> Value {
    json!({
        "metadata": {"name": "read", "namespace": "data", "managedFields": [{"manager": "kubectl"}]},
        "spec": {
            "targetRefs": [{"name": "orders"}],
            "subjects": [{"serviceAccount": {"namespace": subject, "name": "triage"}}],
            "rules": [rule],
        },
    })
}

fn known(sources: &[(&str, Value)]) -> Objects {
    let sources: Vec<_> = sources
        .iter()
        .map(|(kind, object)| stored("known", kind, object))
        .collect();
    let loaded = load(&sources);
    assert_eq!(loaded.problems, []);
    loaded.objects
}

fn refused(judged: Judged) -> String {
    judged.verdict().unwrap_err().to_string()
}

#[test]
fn an_object_that_would_not_compile_is_refused_with_field_and_reason() {
    let wrong = policy("data", json!({"name": "big", "effect": "Allow", "when": "rows >"}));
    let said = refused(judge("AccessPolicy", &wrong, &Objects::default()));
    assert!(said.starts_with("sidegate: object: spec.rules[0].when: "), "{said}");
    let right = policy("data", json!({"name": "all", "effect": "Allow"}));
    let judged = judge("AccessPolicy", &right, &Objects::default());
    assert_eq!(judged.clone().verdict().unwrap(), judged.warnings);
    assert!(
        judged.warnings[0].contains("there is no Target data/orders (yet)"),
        "{:?}",
        judged.warnings
    );
    let insecure = target(
        "data",
        json!({"tls": {"mode": "Disable"}, "credential": {"token": {"audience": "a"}}}),
    );
    assert!(judge("Target", &insecure, &Objects::default()).verdict().is_err());
    let profile = json!({"metadata": {"name": "p"}, "spec": {"image": {"repository": "r.example/s:1", "digest": "x"}}});
    let said = refused(judge("InjectionProfile", &profile, &Objects::default()));
    assert!(said.contains("spec.image.repository"), "{said}");
}

#[test]
fn a_policy_is_judged_against_the_target_it_names_and_no_other() {
    let raw = target("data", json!({"protocol": "TCP", "credential": {"none": {}}}));
    let sql = policy(
        "data",
        json!({"name": "r", "effect": "Allow", "sql": {"commands": ["Select"]}}),
    );
    let said = refused(judge("AccessPolicy", &sql, &known(&[("Target", raw)])));
    assert!(
        said.contains("spec.rules[0].sql: Target data/orders is a raw TCP stream"),
        "{said}"
    );
    let elsewhere = target("other", json!({"protocol": "TCP", "credential": {"none": {}}}));
    assert!(judge("AccessPolicy", &sql, &known(&[("Target", elsewhere)]))
        .verdict()
        .is_ok());
}

#[test]
fn what_the_other_side_does_not_allow_is_refused() {
    let rule = json!({"name": "all", "effect": "Allow"});
    let closed = known(&[("Target", target("data", json!({})))]);
    let said = refused(judge("AccessPolicy", &policy("agents", rule.clone()), &closed));
    assert!(
        said.starts_with(
            "sidegate: grant: spec.subjects[0].serviceAccount.namespace: Target data/orders does not admit"
        ),
        "{said}"
    );
    // A name that only begins like one that is admitted is another name.
    let one = json!({"allowedNamespaces": {"selector": {"matchLabels": {"kubernetes.io/metadata.name": "agents"}}}});
    let open = known(&[("Target", target("data", one))]);
    assert!(judge("AccessPolicy", &policy("agents", rule.clone()), &open)
        .verdict()
        .is_ok());
    assert!(judge("AccessPolicy", &policy("agents-2", rule), &open)
        .verdict()
        .is_err());
}

#[test]
fn problems_of_others_refuse_nothing() {
    let mut others = known(&[("Target", target("data", json!({})))]);
    others.targets[0].object.spec.address.host = "not a host".to_owned();
    let right = policy("data", json!({"name": "all", "effect": "Allow"}));
    assert!(judge("AccessPolicy", &right, &others).verdict().is_ok());
}
