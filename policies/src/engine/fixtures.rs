//! Policies, subjects and statements for tests of the engine, written as people write them.

use std::sync::Arc;

use serde_json::{json, Value};

use super::operation::{Completeness, ConnectFacts, Fact, Facts, Operation, Phase, Verb};
use super::{Decision, PolicySet, Subject, TargetId};
use crate::api::access_policy::SqlCommand;
use crate::bundle::{Bundle, BundledTarget};
use crate::compile::{compile, Problem};
use crate::sql::facts::{Part, PartRelation};
use crate::sql::{ColumnName, RelationName, SqlFacts};

/// The target of most tests.
pub fn shop() -> TargetId {
    TargetId::new("data", "shop")
}

/// The agent of most tests.
pub fn agent() -> Subject {
    Subject {
        namespace: "agents".into(),
        service_account: "support".into(),
        pod: "support-0".into(),
        pod_uid: "u-1".into(),
        labels: [("agent".to_owned(), "triage".to_owned())].into(),
    }
}

/// A Target.
pub fn target(name: &str, protocol: &str) -> BundledTarget {
    let credential = if protocol == "TCP" {
        json!({"none": {}})
    } else {
        json!({"secret": {"name": "shop-agent"}})
    };
    let object = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target",
        "metadata": {"name": name, "namespace": "data", "uid": "t-1", "labels": {"tier": "gold"}},
        "spec": {"protocol": protocol, "address": {"host": "db.example", "port": 5432},
                 "credential": credential, "listen": {"port": 15432}},
    });
    BundledTarget {
        target: serde_json::from_value(object).unwrap(),
        ca_pem: None,
        loopback: false,
    }
}

/// An AccessPolicy on `data/shop` and `data/stream` for the agent; `spec` adds or replaces fields.
pub fn policy(name: &str, spec: Value) -> Value {
    let mut whole = json!({
        "targetRefs": [{"name": "shop"}, {"name": "stream"}],
        "subjects": [{"serviceAccount": {"namespace": "agents", "name": "support"}}],
    });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    json!({"apiVersion": "sidegate.dev/v1alpha1", "kind": "AccessPolicy",
           "metadata": {"name": name, "namespace": "data"}, "spec": whole})
}

/// A ClusterAccessPolicy for everything and everyone.
pub fn floor(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "sidegate.dev/v1alpha1", "kind": "ClusterAccessPolicy",
           "metadata": {"name": name}, "spec": spec})
}

/// A bundle of both targets and these policies.
pub fn bundle(policies: &[Value]) -> Bundle {
    let of = |kind: &'static str| policies.iter().filter(move |policy| policy["kind"] == kind).cloned();
    Bundle {
        cluster: "local".into(),
        targets: vec![target("shop", "Postgres"), target("stream", "TCP")],
        policies: of("AccessPolicy")
            .map(|policy| serde_json::from_value(policy).unwrap())
            .collect(),
        cluster_policies: of("ClusterAccessPolicy")
            .map(|policy| serde_json::from_value(policy).unwrap())
            .collect(),
        digest_key: String::new(),
    }
}

/// Compiles policies that must compile.
pub fn set(policies: &[Value]) -> PolicySet {
    compile(&bundle(policies)).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// One AccessPolicy with these rules.
pub fn rules(rules: Value) -> PolicySet {
    set(&[policy("p", json!({ "rules": rules }))])
}

/// Compiles rules that must not compile.
pub fn problems(rules: Value) -> Vec<Problem> {
    compile(&bundle(&[policy("p", json!({ "rules": rules }))])).unwrap_err()
}

/// `app.orders`.
pub fn relation(name: &str) -> RelationName {
    let (schema, name) = name.split_once('.').unwrap();
    RelationName::new(schema, name)
}

/// `app.orders.id`.
pub fn column(name: &str) -> ColumnName {
    let (of, column) = name.rsplit_once('.').unwrap();
    ColumnName {
        relation: relation(of),
        column: column.into(),
    }
}

/// A part; `""` is no relation, `?` one that did not resolve.
pub fn part(command: SqlCommand, on: &str) -> Part {
    let relation = match on {
        "" => PartRelation::None,
        "?" => PartRelation::Unknown,
        name => PartRelation::Known(self::relation(name)),
    };
    Part {
        command,
        relation,
        rides_along: false,
    }
}

/// Facts of a statement with these parts.
pub fn statement(parts: &[(SqlCommand, &str)]) -> SqlFacts {
    let parts: Vec<Part> = parts.iter().map(|(command, on)| part(*command, on)).collect();
    let tables: Vec<RelationName> = parts
        .iter()
        .filter_map(|part| match &part.relation {
            PartRelation::Known(relation) => Some(relation.clone()),
            _ => None,
        })
        .collect();
    let unresolved = parts.iter().any(|part| part.relation == PartRelation::Unknown);
    let known = |names: Vec<RelationName>| if unresolved { Fact::Unknown } else { Fact::Known(names) };
    SqlFacts {
        statements: 1,
        commands: parts.iter().map(|part| part.command).collect(),
        tables: known(tables.clone()),
        reads: known(tables.clone()),
        writes: known(tables),
        parts,
        database: "shop".into(),
        role: "shop_agent".into(),
        ..SqlFacts::default()
    }
}

/// Names as facts hold them.
pub fn names(list: &[&str]) -> Vec<Arc<str>> {
    list.iter().map(|name| Arc::from(*name)).collect()
}

/// A statement as an operation.
pub fn sql(facts: &SqlFacts) -> Operation<'_> {
    Operation {
        verb: Verb::Statement,
        action: "SQL",
        completeness: Completeness::Exact,
        facts: Facts::Sql(facts),
    }
}

/// A statement that was not understood.
pub fn opaque(facts: &SqlFacts) -> Operation<'_> {
    Operation {
        completeness: Completeness::Opaque,
        ..sql(facts)
    }
}

/// A session that opens.
pub fn connect(facts: &ConnectFacts) -> Operation<'_> {
    Operation {
        verb: Verb::Connect,
        action: "connect",
        completeness: Completeness::Exact,
        facts: Facts::Connect(facts),
    }
}

/// A fixed time: a Monday.
pub fn noon() -> jiff::Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

/// Decides for the agent on the shop, finally.
pub fn decide(set: &PolicySet, op: &Operation<'_>) -> Decision {
    set.decide(&agent(), &shop(), op, Phase::Final, noon())
}

/// Decides one statement.
pub fn judged(set: &PolicySet, facts: &SqlFacts) -> Decision {
    decide(set, &sql(facts))
}
