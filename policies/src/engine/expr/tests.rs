//! `when`: what compiles, what does not and why, and what it comes to.

use super::facts::Family;
use super::{ExprError, Outcome, Scene, When, MAX_LENGTH};
use crate::api::access_policy::SqlCommand::*;
use crate::engine::expr::grammar::oracle;
use crate::engine::fixtures::*;
use crate::engine::{Fact, Phase};
use crate::sql::facts::{Effects, ParamValue};
use crate::sql::SqlFacts;

fn facts() -> SqlFacts {
    let mut effects = Effects::READ;
    effects.insert(Effects::WRITE);
    SqlFacts {
        effects,
        limit: Fact::Known(Some(50)),
        columns: Fact::Known(vec![column("app.orders.id")]),
        functions: Fact::Known(names(&["app.total"])),
        params: Fact::Known(vec![
            ParamValue::Int(7),
            ParamValue::Text("ann".into()),
            ParamValue::Null,
        ]),
        ..statement(&[(Update, "app.orders"), (Select, "app.Users")])
    }
}

fn comes_to(text: &str, facts: &SqlFacts, phase: Phase) -> Outcome {
    let set = rules(serde_json::json!([]));
    let (subject, op) = (agent(), sql(facts));
    let scene = Scene {
        subject: &subject,
        target: set.target(&shop()).unwrap(),
        op: &op,
        phase,
        now: noon(),
    };
    let outcome = When::compile(text)
        .unwrap_or_else(|error| panic!("{text}: {error}"))
        .outcome(&scene);
    if matches!(outcome, Outcome::True | Outcome::False) {
        assert_eq!(
            oracle::interpret(text, &scene),
            Some(outcome == Outcome::True),
            "{text}"
        );
    }
    outcome
}

fn refused(text: &str) -> ExprError {
    When::compile(text).expect_err(text)
}

#[test]
fn expressions_come_to_what_cel_says() {
    for text in [
        "sql.tables.size() == 2",
        "size(sql.tables) > 1 && !sql.returning",
        "'app.orders' in sql.tables",
        "'app.\"Users\"' in sql.reads",
        "!('app.other' in sql.tables)",
        "sql.tables.exists(t, t.endsWith('orders'))",
        "sql.tables.all(t, t.startsWith('app.'))",
        "sql.tables == ['app.orders', 'app.\"Users\"']",
        "'Update' in sql.commands && 'write' in sql.effects",
        "sql.limit <= 100 && sql.limit != null",
        "sql.limit + 1 == 51 && sql.limit * 2 - 10 == 90 && sql.limit / 7 == 7 && sql.limit % 7 == 1",
        "sql.params[0] == 7 && sql.params[1] == 'ann' && sql.params[2] == null",
        "sql.params[1].startsWith('a')",
        "sql.params.exists(p, p == 'ann')",
        "sql.functions.exists(f, f.matches('^app[.]t'))",
        "sql.copy in ['none', 'in']",
        "sql.database == 'shop' ? sql.statements == 1 : false",
        "subject.labels.agent == 'triage' && subject.labels['agent'] != 'x'",
        "has(subject.labels.agent) && !has(subject.labels.none) && 'agent' in subject.labels",
        "subject.namespace + '/' + subject.serviceAccount == 'agents/support'",
        "target.labels.tier.contains('ol') && target.name < 'z'",
        "now > timestamp('2026-01-01T00:00:00Z') && now.getHours() == 12 && now.getDayOfWeek() == 1",
        "now.getMonth() == 10 && now.getDate() == 23 && now.getDayOfMonth() == 22 && now.getFullYear() == 2026",
        "now - timestamp('2026-11-23T11:00:00Z') == duration('1h')",
        "-sql.statements == -1 && 2.5 > 1.5",
        "false || true && !false",
        // A failure that does not matter is absorbed, whichever side it is on.
        "subject.labels.none == 'x' || true",
        "true || subject.labels.none == 'x'",
        "!(false && subject.labels.none == 'x')",
    ] {
        assert_eq!(comes_to(text, &facts(), Phase::Final), Outcome::True, "{text}");
    }
    assert_eq!(
        comes_to("sql.tables.size() == 1", &facts(), Phase::Final),
        Outcome::False
    );
}

#[test]
fn a_failure_is_unknown() {
    for text in [
        "subject.labels.none == 'x'",
        "sql.params[9] == 1",
        "sql.params[1] > 5",
        "sql.statements / 0 == 1",
        "9223372036854775807 + sql.statements == 0",
        "sql.params[0].startsWith('x')",
    ] {
        assert_eq!(comes_to(text, &facts(), Phase::Final), Outcome::Unknown, "{text}");
    }
}

#[test]
fn later_and_unknown_facts_decide_before_anything_runs() {
    let later = SqlFacts {
        params: Fact::Later,
        columns: Fact::Unknown,
        ..facts()
    };
    assert_eq!(
        comes_to("true || sql.params.size() == 0", &later, Phase::Structure),
        Outcome::Later
    );
    assert_eq!(
        comes_to("true || sql.params.size() == 0", &later, Phase::Final),
        Outcome::Unknown
    );
    assert_eq!(
        comes_to("true || sql.columns.size() == 0", &later, Phase::Structure),
        Outcome::Unknown
    );
    assert_eq!(
        comes_to("sql.tables.size() == 2", &later, Phase::Structure),
        Outcome::True
    );
}

#[test]
fn names_are_checked_at_load() {
    for (text, name) in [
        ("sql.filtred", "sql.filtred"),
        ("sq.filtered", "sq.filtered"),
        ("subject.user == 'x'", "subject.user"),
        ("other", "other"),
        ("sql.tables.exists(t, u == t)", "u"),
    ] {
        assert!(
            matches!(refused(text), ExprError::UnknownName { name: found, .. } if found == name),
            "{text}"
        );
    }
    assert!(refused("sql.filtred").to_string().contains("sql.filtered"));
}

#[test]
fn types_are_checked_at_load() {
    for text in [
        "sql.tables",
        "sql.statements",
        "sql.filtered == 'x'",
        "sql.filtered && sql.statements",
        "sql.tables.size() == '1'",
        "sql.database > 5",
        "5 in sql.tables",
        "sql.tables[0] == 1",
        "sql.limit == 'x'",
        "sql.statements == 1.0",
        "now > '2026-01-01'",
        "now.getHours() == '12'",
        "timestamp('yesterday') < now",
        "duration('soon') == duration('1s')",
        "sql.tables.exists(t, t)",
        "sql.tables.exists(sql, true)",
        "sql.filtered ? 1 : 2",
        "sql.filtered ? true : 2",
        "['a', 1] == ['a', 1]",
        "sql.database.matches(sql.role)",
        "subject.labels == target.labels",
        "sql.filtered && connect.database == 'x'",
    ] {
        assert!(matches!(refused(text), ExprError::Type(_)), "{text}: {}", refused(text));
    }
}

#[test]
fn literals_that_never_match_are_refused() {
    for text in [
        "'DELETE' in sql.commands",
        "'writes' in sql.effects",
        "sql.copy == 'OUT'",
        "target.protocol in ['Postgres', 'MySQL']",
    ] {
        assert!(matches!(refused(text), ExprError::NeverMatches { .. }), "{text}");
    }
}

#[test]
fn what_policies_may_not_use_is_refused() {
    for text in [
        "sql.tables.map(t, t) == []",
        "sql.tables.filter(t, true).size() == 1",
        "{'a': 1} == {'a': 1}",
        "string(1) == '1'",
        "1u == 1u",
        "b'x' == b'x'",
        "sql.database.lowerAscii() == 'x'",
    ] {
        assert!(
            matches!(refused(text), ExprError::Unsupported(_)),
            "{text}: {}",
            refused(text)
        );
    }
    assert!(matches!(
        refused("sql.database.matches('(')"),
        ExprError::Pattern { .. }
    ));
    assert!(matches!(
        refused("sql.database.matches('(a{1000}){1000}')"),
        ExprError::Pattern { .. }
    ));
    assert!(matches!(refused("sql.filtered &&"), ExprError::Syntax(_)));
    assert!(matches!(refused(""), ExprError::Syntax(_)));
}

#[test]
fn length_and_depth_are_bounded() {
    let long = format!("sql.database == '{}'", "x".repeat(MAX_LENGTH));
    assert!(matches!(refused(&long), ExprError::TooLong(_)));
    let nested = format!("{}sql.statements{} == 1", "(1 + ".repeat(40), ")".repeat(40));
    assert!(matches!(refused(&nested), ExprError::TooDeep | ExprError::Syntax(_)));
    let hostile = [
        "(".repeat(4096),
        "[".repeat(4096),
        "!".repeat(4096),
        "-".repeat(4096),
        "1+".repeat(2047),
        "a.".repeat(2047),
        "a?b:".repeat(1000),
    ];
    for text in hostile {
        assert!(When::compile(&text).is_err());
    }
    // A long chain of && is one level.
    let chain = vec!["sql.filtered"; 200].join(" && ");
    assert!(When::compile(&chain).is_ok());
}

#[test]
fn work_is_bounded() {
    let many = SqlFacts {
        tables: Fact::Known((0..2000).map(|n| relation(&format!("app.t{n}"))).collect()),
        ..facts()
    };
    let text = "sql.tables.all(a, sql.tables.all(b, a != 'x' || b != 'y'))";
    let set = rules(serde_json::json!([]));
    let (subject, op) = (agent(), sql(&many));
    let scene = Scene {
        subject: &subject,
        target: set.target(&shop()).unwrap(),
        op: &op,
        phase: Phase::Final,
        now: noon(),
    };
    assert_eq!(When::compile(text).unwrap().outcome(&scene), Outcome::Unknown);
}

#[test]
fn an_expression_knows_what_it_is_about() {
    let family = |text: &str| When::compile(text).unwrap().family();
    assert_eq!(family("sql.filtered"), Family::Sql);
    assert_eq!(family("tcp.bytesIn > 5"), Family::Tcp);
    assert_eq!(family("connect.database == null"), Family::Connect);
    assert_eq!(family("now.getHours() > 8"), Family::Any);
}
