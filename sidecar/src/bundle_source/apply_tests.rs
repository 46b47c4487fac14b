//! Which bundles are taken, and that none goes back.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use serde_json::json;
use sidegate_policies::bundle::version;
use sidegate_policies::seal::Revisions;

use super::super::signing::statement;
use super::*;
use crate::testing::{policy, target, Bench};

fn body(limit: u64) -> String {
    let rules = json!([{"name": "all", "effect": "Allow"}]);
    json!({
        "cluster": "local", "targets": [target("Postgres", 1, 1)], "policies": [policy(rules, json!({"rows": limit}))],
        "clusterPolicies": [], "digestKey": crate::secret::base64url(&[7; 32]),
    })
    .to_string()
}

fn sealed(body: &str, revisions: &[(&str, u64)]) -> Statement {
    Statement {
        revisions: Revisions {
            generation: 0,
            kinds: revisions.iter().map(|(kind, at)| ((*kind).to_owned(), *at)).collect(),
        },
        ..statement(&version(body.as_bytes()))
    }
}

fn take(bench: &Bench, body: &str, sealed: &Statement) -> Result<(), BundleRefused> {
    let bundle = bench.enforcer.compile(&version(body.as_bytes()), body, sealed)?;
    drop(bench.enforcer.enforce(bundle));
    Ok(())
}

#[tokio::test]
async fn a_bundle_that_is_lower_in_one_kind_than_any_taken_before_is_refused() {
    let bench = Bench::new();
    let (first, second) = (body(1), body(2));
    take(&bench, &first, &sealed(&first, &[("Target", 10), ("AccessPolicy", 99)])).unwrap();
    let lower = sealed(&second, &[("Target", 500), ("AccessPolicy", 9)]);
    let refused = take(&bench, &second, &lower).unwrap_err().to_string();
    assert_eq!(refused, "AccessPolicy 9 is older than 99, which is in force");
    assert_eq!(
        *bench.authority.in_force().unwrap().version,
        version(first.as_bytes()),
        "the previous one stays"
    );
    // What is refused does not count; the very one in force does, whoever offers it.
    take(&bench, &first, &sealed(&first, &[("Target", 9), ("AccessPolicy", 99)])).unwrap();
    // A bundle that became void is forgotten; how far the store was read is not.
    let held = bench.authority.in_force().unwrap();
    bench.authority.void(&held);
    take(&bench, &second, &lower).unwrap_err();
    take(
        &bench,
        &second,
        &sealed(&second, &[("Target", 10), ("AccessPolicy", 100)]),
    )
    .unwrap();
}

#[tokio::test]
async fn a_body_that_is_not_what_its_version_and_seal_say_is_refused() {
    let bench = Bench::new();
    let (one, other) = (body(1), body(2));
    let seal = sealed(&one, &[("Target", 10)]);
    let refused = |version: &str, body: &str, seal: &Statement| {
        let refused = bench.enforcer.compile(version, body, seal).map(drop);
        refused.unwrap_err().to_string()
    };
    let named = version(one.as_bytes());
    assert_eq!(refused(&named, &other, &seal), "the body's SHA-256 is not its version");
    let offered = version(other.as_bytes());
    assert_eq!(refused(&offered, &other, &seal), "the seal is about another body");
    let elsewhere = Statement {
        cluster: "elsewhere".to_owned(),
        ..seal
    };
    assert_eq!(refused(&named, &one, &elsewhere), "the seal is about another cluster");
    assert!(bench.authority.in_force().is_none());
}

#[tokio::test]
async fn an_older_deny_set_is_refused_and_the_newer_one_stays() {
    let bench = Bench::new();
    let first = body(1);
    take(&bench, &first, &sealed(&first, &[])).unwrap();
    let set = |revision| DenySet {
        revision,
        entries: Vec::new(),
    };
    assert!(bench.enforcer.deny(set(5)).is_some());
    assert!(bench.enforcer.deny(set(4)).is_none());
    assert_eq!(bench.authority.deny.revision(), 5);
}

#[tokio::test]
async fn a_target_that_cannot_be_read_itself_is_reported_too() {
    let bench = Bench::new();
    let mut newer: serde_json::Value = serde_json::from_str(&body(1)).unwrap();
    newer["targets"][0]["target"]["spec"]["quantum"] = json!(true);
    let newer = newer.to_string();
    take(&bench, &newer, &sealed(&newer, &[])).unwrap();
    let told = crate::app::status(&bench.authority, &bench.enforcer.listeners).targets;
    let why = told[0].not_understood.as_deref().unwrap();
    assert!(why.contains("unknown field `quantum`"), "{why}");
    assert_eq!((told.len(), told[0].listen.len()), (1, 0));
}
