//! What a workload gets, and why not.

#![allow(clippy::unwrap_used)]

use super::*;
use sidegate_policies::yaml::{load, Source};

const TARGETS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: agents, labels: {team: support}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: corp-ca, namespace: data}
data: {ca.crt: "PEM"}
---
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {name: shop, namespace: data}
spec:
  protocol: Postgres
  address: {host: 127.0.0.1, port: 5432}
  tls: {mode: VerifyFull, caBundle: {configMap: {name: corp-ca, key: ca.crt}}}
  credential: {secret: {name: shop-agent}}
  listen: {port: 15432}
  allowedNamespaces: {selector: {matchLabels: {team: support}}}
---
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {name: private, namespace: data}
spec:
  protocol: Postgres
  address: {host: db.example, port: 5432}
  credential: {none: {}}
  listen: {port: 15433}
---
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {name: unnamed, namespace: data}
spec:
  protocol: Postgres
  address: {host: db.example, port: 5432}
  credential: {none: {}}
  listen: {port: 15434}
  allowedNamespaces: {selector: {}}
---
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {name: no-ca, namespace: data}
spec:
  protocol: Postgres
  address: {host: db.example, port: 5432}
  tls: {caBundle: {configMap: {name: corp-ca, key: other}}}
  credential: {none: {}}
  listen: {port: 15435}
  allowedNamespaces: {selector: {}}
---
apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {name: support, namespace: data}
spec:
  targetRefs: [{name: shop}, {name: private}, {name: no-ca}]
  subjects: [{serviceAccount: {namespace: agents, name: support}, podSelector: {matchLabels: {tier: one}}}]
  rules:
  - {name: read, effect: Allow, sql: {commands: [Select]}}
  - {name: write, effect: Ask, sql: {commands: [Update]}, ask: {approvers: [{group: leads}], validFor: 5m}}
"#;

fn index(text: &str) -> Index {
    let loaded = load(&[Source {
        name: "test.yaml".to_owned(),
        text: text.to_owned(),
    }]);
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    Index::new(loaded.objects, 7, "local".to_owned(), "key".to_owned())
}

fn subject(namespace: &str, account: &str, tier: &str) -> Subject {
    Subject {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        pod: "p".to_owned(),
        pod_uid: "u".to_owned(),
        labels: [("tier".to_owned(), tier.to_owned())].into(),
    }
}

#[test]
fn a_bundle_holds_what_policies_naming_the_subject_refer_to_and_the_rest_has_a_reason() {
    let index = index(TARGETS);
    let standing = index.standing(&subject("agents", "support", "one"));
    let reasons: Vec<String> = standing
        .iter()
        .map(|(target, standing)| match standing {
            Ok(_) => format!("{}: listens", target.metadata.name),
            Err(why) => format!("{}: {}", target.metadata.name, why.split(':').next().unwrap()),
        })
        .collect();
    assert_eq!(
        reasons,
        [
            "shop: listens",
            "private: NamespaceNotAllowed",
            "unnamed: NoPolicy",
            "no-ca: CaBundleNotFound"
        ]
    );
}

#[test]
fn ca_bundles_are_resolved_and_other_targets_stay_unknown_to_the_sidecar() {
    let offer = index(TARGETS).offer(&subject("agents", "support", "one"));
    let shop = offer.target("data/shop").unwrap();
    assert_eq!(shop.ca_pem.as_deref(), Some("PEM"));
    assert!(shop.loopback);
    assert_eq!(offer.bundle.policies[0].spec.target_refs.len(), 1);
    assert!(!offer.body.contains("private"));
    assert_eq!(offer.version, version(offer.body.as_bytes()));
}

#[test]
fn a_subject_no_policy_names_gets_an_empty_bundle() {
    let index = index(TARGETS);
    for who in [
        subject("agents", "other", "one"),
        subject("agents", "support", "two"),
        subject("x", "support", "one"),
    ] {
        let offer = index.offer(&who);
        assert!(offer.bundle.targets.is_empty() && offer.bundle.policies.is_empty());
    }
}

#[test]
fn the_broker_reads_the_asking_rules_itself() {
    let who = subject("agents", "support", "one");
    let before = index(TARGETS);
    let ask = |index: &Index, rule: &str| index.ask_basis(&who, "data/shop", &[rule.to_owned()]);
    let basis = ask(&before, "data/support/write").unwrap();
    assert_eq!(basis.valid_for, Duration::from_secs(300));
    assert_eq!(basis.sets[0].count, 1);
    assert!(ask(&before, "data/support/read").is_none(), "an Allow does not ask");
    assert!(ask(&before, "data/support/other").is_none());
    let unrelated = index(&TARGETS.replace("commands: [Select]", "commands: [Insert]"));
    assert_eq!(ask(&unrelated, "data/support/write"), Some(basis.clone()));
    let changed = index(&TARGETS.replace("group: leads", "group: others"));
    assert_ne!(ask(&changed, "data/support/write").unwrap().digest, basis.digest);
}

#[test]
fn a_bundle_over_eight_mebibytes_is_offered_as_deny_all() {
    let mut index = index(TARGETS);
    index.objects.targets[0].object.metadata.labels = [("big".to_owned(), "x".repeat(MAX_BODY))].into();
    let offer = index.offer(&subject("agents", "support", "one"));
    assert!(offer.bundle.targets.is_empty() && offer.bundle.policies.is_empty());
    assert!(offer.body.len() < 1024);
}
