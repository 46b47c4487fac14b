//! The order of evaluation, promise by promise.

use serde_json::json;

use super::fixtures::*;
use super::operation::{ConnectFacts, Fact, Facts, Operation, Phase, TcpFacts, Verb};
use super::{Completeness, Effect, PolicySet, Standing, TargetId};
use crate::api::access_policy::SqlCommand::{self, *};
use crate::reason::Reason;
use crate::sql::facts::ParamValue;
use crate::sql::SqlFacts;

fn read() -> serde_json::Value {
    json!({"name": "read", "effect": "Allow", "sql": {"commands": ["Select"], "tables": ["app.*"]}})
}

fn ask(sql: serde_json::Value) -> serde_json::Value {
    json!({"name": "ask", "effect": "Ask", "sql": sql, "ask": {"approvers": [{"group": "leads"}]}})
}

fn select(on: &str) -> SqlFacts {
    statement(&[(Select, on)])
}

fn effect(set: &PolicySet, parts: &[(SqlCommand, &str)]) -> Effect {
    judged(set, &statement(parts)).effect
}

#[test]
fn deny_beats_ask_beats_allow() {
    let set = rules(json!([
        {"name": "all", "effect": "Allow"},
        ask(json!({"commands": ["Update"]})),
        {"name": "no", "effect": "Deny", "sql": {"tables": ["app.secret"]}, "message": "Not that one."},
    ]));
    assert_eq!(effect(&set, &[(Select, "app.orders")]), Effect::Allow);
    assert_eq!(effect(&set, &[(Update, "app.orders")]), Effect::Ask);
    let decision = judged(&set, &statement(&[(Update, "app.orders"), (Select, "app.secret")]));
    assert_eq!(decision.effect, Effect::Deny);
    assert_eq!(&*decision.rules[0].rule, "no");
    assert_eq!(decision.message.as_deref(), Some("Not that one."));
    assert_eq!(decision.reason, Some(Reason::Denied));
}

#[test]
fn an_uncovered_part_is_denied_before_anyone_is_asked() {
    let set = rules(json!([
        read(),
        ask(json!({"commands": ["Update"], "tables": ["app.orders"]}))
    ]));
    let decision = judged(&set, &statement(&[(Update, "app.orders"), (Delete, "app.orders")]));
    assert_eq!(decision.effect, Effect::Deny);
    assert_eq!((&*decision.rules[0].policy, &*decision.rules[0].rule), ("", "default"));
    assert_eq!(decision.message.as_deref(), Some("no rule allows Delete on app.orders"));
}

#[test]
fn every_pair_is_covered_by_some_rule() {
    let set = rules(json!([
        read(),
        {"name": "w", "effect": "Allow", "sql": {"commands": ["Insert"], "tables": ["log.events"]}},
    ]));
    assert_eq!(
        effect(&set, &[(Select, "app.orders"), (Insert, "log.events")]),
        Effect::Allow
    );
    assert_eq!(
        effect(&set, &[(Insert, "app.orders"), (Select, "log.events")]),
        Effect::Deny
    );
}

#[test]
fn an_ask_of_an_access_policy_covers_and_that_of_a_cluster_policy_does_not() {
    let floor = floor("f", json!({"rules": [ask(json!({"commands": ["Update"]}))]}));
    let only_floor = set(&[policy("p", json!({"rules": [read()]})), floor.clone()]);
    assert_eq!(effect(&only_floor, &[(Update, "app.orders")]), Effect::Deny);
    let own = rules(json!([ask(json!({"commands": ["Update"], "tables": ["app.orders"]}))]));
    let decision = judged(&own, &statement(&[(Update, "app.orders")]));
    assert_eq!(decision.effect, Effect::Ask);
    assert_eq!(decision.reason, Some(Reason::ApprovalRequired));
    assert_eq!(decision.asks.len(), 1);
    let both = set(&[
        policy(
            "p",
            json!({"rules": [{"name": "a", "effect": "Allow", "sql": {"commands": ["Update"]}}]}),
        ),
        floor,
    ]);
    assert_eq!(effect(&both, &[(Update, "app.orders")]), Effect::Ask);
}

#[test]
fn every_asking_rule_is_part_of_the_terms() {
    let second = json!({"name": "b", "effect": "Ask", "sql": {"tables": ["app.orders"]},
                        "ask": {"approvers": [{"user": "ann"}], "count": 2, "validFor": "5m"}});
    let set = rules(json!([
        read(),
        ask(json!({"commands": ["Update"], "tables": ["app.*"]})),
        second
    ]));
    let decision = judged(&set, &statement(&[(Update, "app.orders")]));
    assert_eq!(decision.asks.len(), 2);
    assert_eq!(decision.asks[1].count, 2);
    assert_eq!(decision.asks[1].valid_for.as_secs(), 300);
}

#[test]
fn an_allow_names_every_column_and_a_deny_needs_one_hit() {
    let set = rules(json!([
        {"name": "some", "effect": "Allow",
         "sql": {"commands": ["Select"], "tables": ["app.users"], "columns": ["app.users.id", "app.users.name"]}},
        {"name": "orders", "effect": "Allow", "sql": {"commands": ["Select"], "tables": ["app.orders"]}},
        {"name": "no", "effect": "Deny", "sql": {"columns": ["app.orders.card"]}},
    ]));
    let with = |parts: &[(SqlCommand, &str)], columns: &[&str]| SqlFacts {
        columns: Fact::Known(columns.iter().map(|name| column(name)).collect()),
        ..statement(parts)
    };
    let users = [(Select, "app.users")];
    assert_eq!(judged(&set, &with(&users, &["app.users.id"])).effect, Effect::Allow);
    let decision = judged(&set, &with(&users, &["app.users.id", "app.users.ssn"]));
    assert_eq!(decision.effect, Effect::Deny);
    assert_eq!(
        decision.message.as_deref(),
        Some("no rule allows Select with column app.users.ssn")
    );
    let join = [(Select, "app.users"), (Select, "app.orders")];
    assert_eq!(
        judged(&set, &with(&join, &["app.users.id", "app.orders.id"])).effect,
        Effect::Allow
    );
    assert_eq!(
        judged(&set, &with(&join, &["app.users.id", "app.orders.card"])).effect,
        Effect::Deny
    );
    // A column of a relation that is no part must be named too.
    assert_eq!(
        judged(&set, &with(&users, &["app.users.id", "app.other.x"])).effect,
        Effect::Deny
    );
    let unknown = SqlFacts {
        columns: Fact::Unknown,
        ..statement(&users)
    };
    assert_eq!(judged(&set, &unknown).effect, Effect::Deny);
}

#[test]
fn functions_settings_and_channels_beyond_the_harmless_must_be_named_by_covering_rules() {
    let set = rules(json!([
        read(),
        {"name": "f", "effect": "Allow", "sql": {"commands": ["Select"], "tables": ["app.orders"], "functions": ["app.total"]}},
        {"name": "s", "effect": "Allow", "sql": {"commands": ["Set"], "settings": ["work_mem", "app.*"]}},
        {"name": "c", "effect": "Allow", "sql": {"commands": ["Notify"], "channels": ["jobs"]}},
    ]));
    let calling = |on: &str, function: &str| SqlFacts {
        functions: Fact::Known(names(&[function])),
        unlisted_functions: Fact::Known(names(&[function])),
        ..select(on)
    };
    assert_eq!(judged(&set, &calling("app.orders", "app.total")).effect, Effect::Allow);
    let named = judged(&set, &calling("app.orders", "app.total"));
    assert!(named.rules.iter().any(|rule| &*rule.rule == "f"), "{:?}", named.rules);
    assert_eq!(judged(&set, &calling("app.users", "app.total")).effect, Effect::Deny);
    let decision = judged(&set, &calling("app.orders", "pg_catalog.pg_read_file"));
    assert_eq!(
        decision.message.as_deref(),
        Some("no rule allows the function pg_catalog.pg_read_file")
    );
    let setting = |name: &str| SqlFacts {
        settings: names(&[name]),
        unlisted_settings: names(&[name]),
        ..statement(&[(Set, "")])
    };
    assert_eq!(judged(&set, &setting("work_mem")).effect, Effect::Allow);
    assert_eq!(judged(&set, &setting("app.tenant")).effect, Effect::Allow);
    assert_eq!(judged(&set, &setting("role")).effect, Effect::Deny);
    let channel = |name: &str| SqlFacts {
        channels: names(&[name]),
        ..statement(&[(Notify, "")])
    };
    assert_eq!(judged(&set, &channel("jobs")).effect, Effect::Allow);
    assert_eq!(judged(&set, &channel("other")).effect, Effect::Deny);
    let blind = SqlFacts {
        unlisted_functions: Fact::Unknown,
        ..select("app.orders")
    };
    assert_eq!(judged(&set, &blind).reason, Some(Reason::Unresolved));
}

#[test]
fn a_matcherless_allow_needs_no_facts() {
    let set = rules(json!([{"name": "all", "effect": "Allow"}]));
    let facts = SqlFacts {
        tables: Fact::Unknown,
        columns: Fact::Unknown,
        unlisted_functions: Fact::Unknown,
        unlisted_settings: names(&["role"]),
        ..statement(&[(Select, "?")])
    };
    assert_eq!(judged(&set, &facts).effect, Effect::Allow);
    assert_eq!(decide(&set, &opaque(&facts)).effect, Effect::Allow);
}

#[test]
fn opaque_is_denied_wherever_a_fact_matters() {
    let facts = select("app.orders");
    let decision = decide(&rules(json!([read()])), &opaque(&facts));
    assert_eq!(
        (decision.effect, decision.reason),
        (Effect::Deny, Some(Reason::NotUnderstood))
    );
    let narrowed = rules(json!([
        {"name": "all", "effect": "Allow"},
        {"name": "no", "effect": "Deny", "sql": {"commands": ["Drop"]}},
    ]));
    let decision = decide(&narrowed, &opaque(&facts));
    assert_eq!((decision.effect, &*decision.rules[0].rule), (Effect::Deny, "no"));
    assert_eq!(decision.reason, Some(Reason::NotUnderstood));
    let asked = rules(json!([{"name": "all", "effect": "Allow"}, ask(json!({"commands": ["Update"]}))]));
    assert_eq!(decide(&asked, &opaque(&facts)).effect, Effect::Ask);
    let conditional = rules(json!([{"name": "all", "effect": "Allow", "when": "sql.filtered"}]));
    assert_eq!(decide(&conditional, &opaque(&facts)).effect, Effect::Deny);
}

#[test]
fn unknown_matches_a_deny_or_ask_and_never_an_allow() {
    let unresolved = statement(&[(Update, "?")]);
    let set = rules(json!([
        {"name": "all", "effect": "Allow", "sql": {"commands": ["Update"]}},
        {"name": "no", "effect": "Deny", "sql": {"tables": ["app.secret"]}},
    ]));
    let decision = judged(&set, &unresolved);
    assert_eq!(
        (decision.effect, decision.reason),
        (Effect::Deny, Some(Reason::Unresolved))
    );
    let asked = rules(json!([
        {"name": "all", "effect": "Allow", "sql": {"commands": ["Update"]}},
        ask(json!({"tables": ["app.orders"]})),
    ]));
    assert_eq!(judged(&asked, &unresolved).effect, Effect::Ask);
    let allow = rules(json!([{"name": "a", "effect": "Allow", "sql": {"tables": ["app.*"]}}]));
    assert_eq!(judged(&allow, &unresolved).reason, Some(Reason::Unresolved));
    // Unknown on an Ask asks, but what nobody could establish is not covered by it.
    let only_ask = rules(json!([ask(json!({"tables": ["app.orders"]}))]));
    assert_eq!(judged(&only_ask, &unresolved).effect, Effect::Deny);
}

#[test]
fn a_later_fact_leaves_its_rule_open_until_it_is_known() {
    let set = rules(json!([
        {"name": "small", "effect": "Allow", "sql": {"commands": ["Update"]}, "when": "sql.params[0] < 100"},
        {"name": "big", "effect": "Deny", "sql": {"commands": ["Update"]}, "when": "sql.params[0] > 1000"},
    ]));
    let with = |params: Fact<Vec<ParamValue>>| SqlFacts {
        params,
        ..statement(&[(Update, "app.orders")])
    };
    let later = with(Fact::Later);
    let early = set.decide(&agent(), &shop(), &sql(&later), Phase::Structure, noon());
    assert_eq!(
        (early.effect, early.open, early.cacheable),
        (Effect::Allow, true, false)
    );
    let known = |value| judged(&set, &with(Fact::Known(vec![value]))).effect;
    assert_eq!(known(ParamValue::Int(5)), Effect::Allow);
    assert_eq!(known(ParamValue::Int(500)), Effect::Deny);
    assert_eq!(known(ParamValue::Int(5000)), Effect::Deny);
    // A value nobody can read is unknown: the Deny matches, the Allow does not.
    let unread = judged(&set, &with(Fact::Known(vec![ParamValue::Opaque])));
    assert_eq!((unread.effect, &*unread.rules[0].rule), (Effect::Deny, "big"));
    // Late for ever is unknown.
    assert_eq!(judged(&set, &later).effect, Effect::Deny);
}

#[test]
fn what_comes_later_makes_nothing_good_that_is_unknown() {
    let unresolved = SqlFacts {
        tables: Fact::Unknown,
        columns: Fact::Later,
        ..statement(&[(Select, "?")])
    };
    for rule in [
        json!({"name": "a", "effect": "Allow", "sql": {"columns": ["app.*.*"]}, "when": "sql.tables.size() == 1"}),
        json!({"name": "a", "effect": "Allow", "sql": {"columns": ["app.*.*"], "tables": ["app.*"]}}),
    ] {
        let set = rules(json!([rule]));
        let early = set.decide(&agent(), &shop(), &sql(&unresolved), Phase::Structure, noon());
        assert_eq!((early.effect, early.open), (Effect::Deny, false));
    }
}

#[test]
fn what_must_fall_falls_at_structure() {
    let set = rules(json!([
        read(),
        {"name": "no", "effect": "Deny", "sql": {"commands": ["Drop"]}},
    ]));
    let facts = SqlFacts {
        params: Fact::Later,
        ..statement(&[(Drop, "app.orders")])
    };
    let decision = set.decide(&agent(), &shop(), &sql(&facts), Phase::Structure, noon());
    assert_eq!((decision.effect, decision.open), (Effect::Deny, false));
}

#[test]
fn harmless_parts_ride_along_with_any_allow() {
    let riding = |command, on: &str| {
        let mut facts = statement(&[(command, on)]);
        facts.parts[0].rides_along = true;
        facts
    };
    let writer = rules(json!([
        {"name": "w", "effect": "Allow", "sql": {"commands": ["Insert"], "tables": ["app.log"]}, "when": "sql.statements == 7"},
    ]));
    assert_eq!(judged(&writer, &riding(Transaction, "")).effect, Effect::Allow);
    assert_eq!(
        judged(&writer, &riding(Select, "pg_catalog.pg_class")).effect,
        Effect::Deny
    );
    assert_eq!(
        judged(&rules(json!([read()])), &riding(Select, "pg_catalog.pg_class")).effect,
        Effect::Allow
    );
    let denied = rules(json!([read(), {"name": "no", "effect": "Deny", "sql": {"commands": ["Transaction"]}}]));
    assert_eq!(judged(&denied, &riding(Transaction, "")).effect, Effect::Deny);
    assert_eq!(judged(&set(&[]), &riding(Transaction, "")).effect, Effect::Deny);
    let over = rules(json!([{"name": "w", "effect": "Allow", "when": "now < timestamp('2020-01-01T00:00:00Z')"}]));
    assert_eq!(judged(&over, &riding(Transaction, "")).effect, Effect::Deny);
}

#[test]
fn a_statement_without_relations_is_covered_by_a_rule_for_its_command() {
    let set = rules(json!([
        read(),
        {"name": "ddl", "effect": "Allow", "sql": {"commands": ["Create"], "tables": ["app.*"]}},
    ]));
    assert_eq!(effect(&set, &[(Select, "")]), Effect::Allow);
    // A rule limited to tables does not cover a CREATE ROLE.
    assert_eq!(effect(&set, &[(Create, "")]), Effect::Deny);
    assert_eq!(effect(&set, &[(Create, "app.new")]), Effect::Allow);
    let denies = rules(json!([read(), {"name": "no", "effect": "Deny", "sql": {"tables": ["app.secret"]}}]));
    assert_eq!(effect(&denies, &[(Select, "")]), Effect::Allow);
}

#[test]
fn an_empty_string_needs_some_allow() {
    let nothing = SqlFacts::default();
    assert_eq!(judged(&rules(json!([read()])), &nothing).effect, Effect::Allow);
    assert_eq!(judged(&set(&[]), &nothing).effect, Effect::Deny);
}

fn opened(set: &PolicySet, target: &str) -> Effect {
    let facts = ConnectFacts {
        database: Some("shop".into()),
    };
    let target = TargetId::new("data", target);
    set.decide(&agent(), &target, &connect(&facts), Phase::Final, noon())
        .effect
}

#[test]
fn connect_is_admitted_if_something_could_apply() {
    assert_eq!(opened(&rules(json!([read()])), "shop"), Effect::Allow);
    assert_eq!(opened(&set(&[]), "shop"), Effect::Deny);
    assert_eq!(
        opened(&rules(json!([{"name": "no", "effect": "Deny", "sql": {}}])), "shop"),
        Effect::Deny
    );
    assert_eq!(opened(&rules(json!([ask(json!({}))])), "shop"), Effect::Allow);
    let conditional = |when: &str| rules(json!([{"name": "a", "effect": "Allow", "when": when}]));
    assert_eq!(opened(&conditional("!sql.filtered"), "shop"), Effect::Allow);
    assert_eq!(
        opened(&conditional("connect.database == 'shop'"), "shop"),
        Effect::Allow
    );
    assert_eq!(
        opened(&conditional("connect.database == 'other'"), "shop"),
        Effect::Deny
    );
    assert_eq!(
        opened(&conditional("subject.labels.agent == 'other'"), "shop"),
        Effect::Deny
    );
    // A rule about statements lets nothing through on a raw stream.
    assert_eq!(opened(&rules(json!([read()])), "stream"), Effect::Deny);
}

#[test]
fn a_matcherless_deny_refuses_connect_and_a_matcherless_ask_holds_tcp_only() {
    let matcherless = json!({"name": "q", "effect": "Ask", "ask": {"approvers": [{"user": "ann"}]}});
    let asked = rules(json!([matcherless]));
    assert_eq!(opened(&asked, "shop"), Effect::Allow);
    assert_eq!(opened(&asked, "stream"), Effect::Ask);
    let allow = json!({"name": "all", "effect": "Allow"});
    let with = |deny: serde_json::Value| rules(json!([allow, deny]));
    assert_eq!(
        opened(&with(json!({"name": "no", "effect": "Deny"})), "shop"),
        Effect::Deny
    );
    let by_statement = json!({"name": "no", "effect": "Deny", "when": "!sql.filtered"});
    assert_eq!(opened(&with(by_statement), "shop"), Effect::Allow);
    let by_database = json!({"name": "no", "effect": "Deny", "when": "connect.database == 'shop'"});
    assert_eq!(opened(&with(by_database), "shop"), Effect::Deny);
}

#[test]
fn a_sql_floor_does_not_touch_a_raw_stream() {
    let set = set(&[
        policy("p", json!({"rules": [{"name": "all", "effect": "Allow"}]})),
        floor(
            "no-ddl",
            json!({"rules": [{"name": "no-ddl", "effect": "Deny", "sql": {"commands": ["Drop"]}}]}),
        ),
    ]);
    assert_eq!(opened(&set, "stream"), Effect::Allow);
    let bytes = TcpFacts::default();
    let op = Operation {
        verb: Verb::Statement,
        action: "stream",
        completeness: Completeness::Exact,
        facts: Facts::Tcp(&bytes),
    };
    let stream = TargetId::new("data", "stream");
    assert_eq!(
        set.decide(&agent(), &stream, &op, Phase::Final, noon()).effect,
        Effect::Allow
    );
}

#[test]
fn observe_only_subjects_pass_and_the_decision_says_so() {
    let observe = policy("p", json!({"mode": "Observe", "rules": [read()]}));
    let set_ = set(std::slice::from_ref(&observe));
    let decision = judged(&set_, &statement(&[(Drop, "app.orders")]));
    assert_eq!(decision.effect, Effect::Allow);
    let observed = decision.observed.unwrap();
    assert!(observed.only && observed.effect == Effect::Deny);
    assert_eq!(set_.bind(&agent(), &shop()).standing(), Standing::ObserveOnly);
    // A floor still holds.
    let drop = json!({"rules": [{"name": "no-ddl", "effect": "Deny", "sql": {"commands": ["Drop"]}}]});
    let floored = set(&[observe, floor("f", drop)]);
    assert_eq!(effect(&floored, &[(Drop, "app.orders")]), Effect::Deny);
    assert_eq!(effect(&floored, &[(Delete, "app.orders")]), Effect::Allow);
}

#[test]
fn an_observed_cluster_policy_opens_nothing() {
    let spec = json!({"mode": "Observe", "rules": [{"name": "x", "effect": "Deny"}]});
    assert_eq!(
        effect(&set(&[floor("f", spec)]), &[(Select, "app.orders")]),
        Effect::Deny
    );
}

#[test]
fn observe_rules_are_seen_beside_the_live_ones_and_never_applied() {
    let set = set(&[
        policy("live", json!({"rules": [read()]})),
        policy(
            "trial",
            json!({"mode": "Observe", "rules": [
            {"name": "no", "effect": "Deny", "sql": {"tables": ["app.secret"]}}],
            "masks": [{"columns": ["app.users.ssn"], "as": {"null": {}}}], "limits": {"rows": 1}}),
        ),
    ]);
    let decision = judged(&set, &select("app.secret"));
    assert_eq!(decision.effect, Effect::Allow);
    let observed = decision.observed.clone().unwrap();
    assert_eq!(
        (observed.effect, &*observed.rules[0].rule, observed.only),
        (Effect::Deny, "no", false)
    );
    assert!(decision.masks.is_empty() && decision.limits.is_empty());
    let fine = judged(&set, &select("app.orders")).observed.unwrap();
    assert_eq!(fine.effect, Effect::Allow);
}

#[test]
fn only_the_named_subject_on_the_named_target_is_allowed() {
    let set = set(&[policy(
        "p",
        json!({"rules": [read()], "subjects": [{
            "serviceAccount": {"namespace": "agents", "name": "support"},
            "podSelector": {"matchLabels": {"agent": "triage"}}}]}),
    )]);
    let facts = select("app.orders");
    assert_eq!(judged(&set, &facts).effect, Effect::Allow);
    for change in [
        |subject: &mut super::Subject| subject.namespace = "other".into(),
        |subject: &mut super::Subject| subject.service_account = "other".into(),
        |subject: &mut super::Subject| subject.labels.clear(),
    ] {
        let mut other = agent();
        change(&mut other);
        let decision = set.decide(&other, &shop(), &sql(&facts), Phase::Final, noon());
        assert_eq!(
            decision.message.as_deref(),
            Some("no policy names this agent on data/shop")
        );
    }
    let elsewhere = TargetId::new("data", "other");
    assert_eq!(
        set.decide(&agent(), &elsewhere, &sql(&facts), Phase::Final, noon())
            .effect,
        Effect::Deny
    );
}

#[test]
fn an_agent_that_is_only_denied_something_is_not_told_that_no_policy_names_it() {
    let denies = policy(
        "p",
        json!({"rules": [{"name": "no", "effect": "Deny", "sql": {"tables": ["app.secret"]}}]}),
    );
    let decision = judged(&set(&[denies]), &select("app.orders"));
    assert_eq!(decision.effect, Effect::Deny);
    assert_eq!(
        decision.message.as_deref(),
        Some("no rule allows this agent anything on data/shop")
    );
}

#[test]
fn masks_are_strongest_first_and_limits_strictest() {
    let set = set(&[
        policy(
            "b",
            json!({"masks": [
            {"columns": ["app.users.ssn"], "as": {"keepLast": {"count": 4}}},
            {"columns": ["app.users.*"], "as": {"hash": {}}},
            {"columns": ["app.users.born"], "as": {"dateTrunc": {"unit": "Month"}}},
            {"detect": ["Email", "Iban"], "as": {"redact": {}}}],
            "limits": {"rows": 100, "bytes": "64Mi"}}),
        ),
        policy(
            "a",
            json!({"masks": [
            {"columns": ["app.users.ssn"], "as": {"keepFirst": {"count": 2}}},
            {"columns": ["app.users.born"], "as": {"dateTrunc": {"unit": "Year"}}},
            {"detect": ["Email"], "as": {"null": {}}}],
            "limits": {"rows": 1000, "bytes": "1Mi", "maxSession": "8h"}}),
        ),
    ]);
    let bound = set.bind(&agent(), &shop());
    let how = |name: &str| {
        let mask = bound.masks().column("app", "users", name).unwrap();
        serde_json::to_value(mask.how).unwrap()
    };
    assert_eq!(how("ssn"), json!({"hash": {}}));
    let kept: Vec<_> = bound
        .masks()
        .columns
        .iter()
        .map(|mask| serde_json::to_value(mask.how).unwrap())
        .collect();
    assert_eq!(
        kept,
        [
            json!({"hash": {}}),
            json!({"dateTrunc": {"unit": "Year"}}),
            json!({"keepFirst": {"count": 2}}),
        ]
    );
    assert_eq!(
        serde_json::to_value(&bound.masks().detectors).unwrap(),
        json!([["Email", {"null": {}}], ["Iban", {"redact": {}}]])
    );
    let limits = serde_json::to_value(bound.limits()).unwrap();
    assert_eq!(limits, json!({"rows": 100, "bytes": "1Mi", "maxSession": "8h"}));
}

#[test]
fn the_rule_digest_changes_with_what_took_part_and_with_nothing_else() {
    let asking = ask(json!({"commands": ["Update"], "tables": ["app.orders"]}));
    let base = json!({"rules": [read(), asking], "masks": [{"columns": ["app.users.ssn"], "as": {"redact": {}}}]});
    let digest = |spec: &serde_json::Value, touched: &str| {
        let facts = SqlFacts {
            columns: Fact::Known(vec![column(touched)]),
            ..statement(&[(Update, "app.orders")])
        };
        judged(&set(&[policy("p", spec.clone())]), &facts).rule_digest
    };
    let before = digest(&base, "app.orders.id");
    let mut unrelated = base.clone();
    unrelated["rules"][0]["message"] = json!("other");
    unrelated["masks"][0]["as"] = json!({"null": {}});
    unrelated["rules"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "z", "effect": "Deny", "sql": {"commands": ["Drop"]}}));
    assert_eq!(digest(&unrelated, "app.orders.id"), before);
    let mut rule = base.clone();
    rule["rules"][1]["ask"]["count"] = json!(2);
    let mut mask = base.clone();
    mask["masks"][0]["as"] = json!({"null": {}});
    let mut limits = base.clone();
    limits["limits"] = json!({"rows": 5});
    assert_ne!(digest(&rule, "app.orders.id"), before);
    assert_ne!(digest(&limits, "app.orders.id"), before);
    assert_ne!(digest(&mask, "app.users.ssn"), digest(&base, "app.users.ssn"));
}

#[test]
fn a_decision_that_looked_at_time_or_values_is_not_cached() {
    let cacheable = |when: Option<&str>| {
        let mut rule = read();
        if let Some(when) = when {
            rule["when"] = json!(when);
        }
        judged(&rules(json!([rule])), &select("app.orders")).cacheable
    };
    assert!(cacheable(None));
    assert!(cacheable(Some("sql.filtered")));
    assert!(!cacheable(Some("now.getHours() == 12")));
    assert!(!cacheable(Some("sql.params.size() == 0")));
}

#[test]
fn every_problem_is_reported_with_its_field() {
    let found = problems(json!([
        {"name": "a", "effect": "Allow", "sql": {"tables": ["orders", "app.*"], "columns": ["x"]}},
        {"name": "a", "effect": "Ask"},
        {"name": "b", "effect": "Deny", "when": "sql.filtred", "ask": {"approvers": []}},
        {"name": "c", "effect": "Deny", "sql": {}, "when": "connect.database == 'x'"},
    ]));
    let fields: Vec<&str> = found.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.rules[0].sql.columns[0]",
            "spec.rules[0].sql.tables[0]",
            "spec.rules[1].ask",
            "spec.rules[1].name",
            "spec.rules[2].ask",
            "spec.rules[2].when",
            "spec.rules[3].when",
        ]
    );
    assert!(found
        .iter()
        .all(|problem| problem.object.as_deref() == Some("AccessPolicy data/p")));
}

#[test]
fn a_cluster_policy_never_allows() {
    let allow = floor("f", json!({"rules": [{"name": "x", "effect": "Allow"}]}));
    let found = crate::compile::compile(&bundle(&[allow])).unwrap_err();
    assert_eq!(found[0].field, "spec.rules[0].effect");
}
