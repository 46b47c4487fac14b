//! A masked column stays masked on every way out, and is refused where it could answer a question.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;

use super::super::analysis::{Statement, StatementKind};
use super::super::shop::{bound, catalog, Shopper};
use super::super::{analyse, Options};
use super::*;
use crate::api::access_policy::{Keep, MaskAs};
use crate::engine::decision::MaskRule;
use crate::engine::operation::{Completeness, Fact};
use crate::sql::facts::PartRelation;
use crate::sql::ColumnPattern;

fn statement(text: &str) -> Statement {
    let bound = bound(text);
    let mut tables: Vec<RelationName> = Vec::new();
    for (_, relation) in &bound.parts {
        if let PartRelation::Known(name) = relation {
            tables.push(name.clone());
        }
    }
    Statement {
        range: 0..text.len(),
        kind: StatementKind::Plain,
        action: "TEST".into(),
        facts: SqlFacts {
            tables: Fact::Known(tables),
            ..SqlFacts::default()
        },
        completeness: Completeness::Exact,
        output: bound.output,
        uses: bound.uses,
        parameters: 0,
        literals: Default::default(),
    }
}

fn masks(patterns: &[&str]) -> Arc<MaskSet> {
    let rule = |pattern: &&str| MaskRule {
        pattern: ColumnPattern::parse(pattern).unwrap(),
        how: MaskAs::KeepLast(Keep { count: 4 }),
        policy: "agents/masks".into(),
    };
    Arc::new(MaskSet {
        columns: patterns.iter().map(rule).collect(),
        detectors: Vec::new(),
    })
}

fn plan(text: &str) -> Result<ResultPlan, PlanRefusal> {
    plan_with(text, &["app.users.ssn"])
}

fn plan_with(text: &str, patterns: &[&str]) -> Result<ResultPlan, PlanRefusal> {
    ResultPlan::build(&masks(patterns), &statement(text), &catalog())
}

/// `.` for a column that passes, `k` for a kept tail, `R` for masked whole.
fn picture(plan: &ResultPlan) -> String {
    let letter = |column: &ColumnPlan| match column {
        ColumnPlan::Pass => '.',
        ColumnPlan::Mask(mask) if mask.how == MaskAs::Redact(NoOptions {}) => 'R',
        ColumnPlan::Mask(_) => 'k',
    };
    plan.columns().unwrap().iter().map(letter).collect()
}

#[track_caller]
fn drawn(text: &str, expected: &str) {
    assert_eq!(picture(&plan(text).unwrap()), expected, "{text}");
}

#[test]
fn a_masked_column_stays_masked_through_aliases_subqueries_views_copy_and_returning() {
    drawn("SELECT id, ssn AS x FROM users", ".k");
    drawn("SELECT * FROM users", "...k.");
    drawn("SELECT q.* FROM (SELECT ssn, id FROM users) q(a, b)", "k.");
    drawn("WITH c AS (SELECT ssn FROM users) SELECT * FROM c", "k");
    drawn("SELECT ssn FROM v_users", "k");
    drawn("SELECT * FROM v_users", "..k");
    drawn("SELECT ssn FROM m_users", "k");
    drawn("COPY users TO STDOUT", "...k.");
    drawn("COPY users (ssn) TO STDOUT", "k");
    drawn("UPDATE users SET name = 'x' WHERE id = 1 RETURNING ssn, id", "k.");
    drawn("DELETE FROM users WHERE id = 1 RETURNING *", "...k.");
    drawn("UPDATE users SET name = 'x' RETURNING old.ssn, new.ssn", "kk");
    drawn("SELECT ssn FROM users UNION ALL SELECT body FROM docs", "R");
    drawn("SELECT (SELECT ssn FROM users LIMIT 1)", "k");
}

#[test]
fn a_view_column_derived_from_a_masked_one_is_masked_whole() {
    drawn("SELECT id, tail FROM v_tail", ".R");
    drawn("SELECT * FROM v_nested", ".R");
    // A view that could not be read is taken as derived from all the server says it depends on.
    drawn("SELECT * FROM v_broken", "RR");
}

#[test]
fn a_mask_on_a_view_column_holds_for_the_view_only() {
    let view = ["app.v_users.login"];
    assert_eq!(picture(&plan_with("SELECT login FROM v_users", &view).unwrap()), "k");
    assert_eq!(picture(&plan_with("SELECT name FROM users", &view).unwrap()), ".");
}

#[test]
fn partitions_carry_their_parents_masks_and_parents_their_childrens() {
    let parent = ["app.events.secret"];
    assert_eq!(
        picture(&plan_with("SELECT * FROM events_2026", &parent).unwrap()),
        "..k"
    );
    assert_eq!(picture(&plan_with("SELECT * FROM events", &parent).unwrap()), "..k");
    let child = ["app.events_2026.secret"];
    assert_eq!(picture(&plan_with("SELECT * FROM events", &child).unwrap()), "..k");
    let refused = plan_with("SELECT id FROM events_2026 WHERE secret = 'x'", &parent);
    assert!(matches!(refused, Err(PlanRefusal::Used { .. })));
}

#[test]
fn a_masked_column_is_refused_where_it_could_answer_a_question() {
    for text in [
        "SELECT id FROM users WHERE ssn LIKE '1%'",
        "SELECT id FROM users ORDER BY ssn",
        "SELECT count(*) FROM users GROUP BY ssn",
        "SELECT upper(ssn) FROM users",
        "SELECT DISTINCT ssn FROM users",
        "SELECT ssn FROM users UNION SELECT ''",
        "SELECT id FROM v_users WHERE ssn = '1'",
        "SELECT id FROM v_tail WHERE tail = '6789'",
        "SELECT id FROM v_nested ORDER BY hidden",
        "SELECT to_json(u) FROM users u",
        "SELECT u::text FROM users u",
        "INSERT INTO docs (body) SELECT ssn FROM users",
        "UPDATE users SET name = ssn",
        "DELETE FROM users WHERE ssn = '1'",
        "SELECT ssn INTO copy FROM users",
        "SELECT x.body FROM docs x JOIN m_users m ON m.ssn = x.body",
    ] {
        match plan(text) {
            Err(refusal @ PlanRefusal::Used { .. }) => {
                assert!(
                    refusal
                        .to_string()
                        .contains("is masked and can only be selected as it is"),
                    "{refusal}"
                );
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn unmasked_columns_of_the_same_relation_stay_free() {
    drawn("SELECT upper(name) FROM users WHERE id > 3 ORDER BY name", ".");
    drawn("SELECT count(*) FROM users", ".");
    drawn("SELECT n FROM v_count", ".");
    drawn("SELECT d FROM docs d", ".");
    drawn("SELECT json_agg(d) FROM docs d", ".");
}

#[test]
fn a_whole_row_with_a_masked_column_is_refused() {
    let refusal = plan("SELECT u FROM users u").unwrap_err();
    assert!(matches!(refusal, PlanRefusal::Row { .. }));
    assert!(refusal.to_string().contains("app.users"));
}

#[test]
fn a_masked_column_is_only_assigned_from_parameters_and_constants() {
    assert!(plan("UPDATE users SET ssn = $1 WHERE id = 1").is_ok());
    assert!(plan("INSERT INTO users (id, ssn) VALUES (1, 'x')").is_ok());
    let refused = plan("UPDATE users SET ssn = name WHERE id = 1");
    assert!(matches!(refused, Err(PlanRefusal::Assigned { .. })));
}

#[test]
fn unknown_lineage_is_refused_while_any_column_is_masked() {
    for text in [
        "SELECT * FROM nowhere",
        "SELECT lookup(1)",
        "SELECT x FROM json_to_record('{}') x",
        "SELECT query_to_xml('x', true, true, '')",
    ] {
        assert!(plan(text).is_err(), "{text}");
        assert!(plan_with(text, &[]).is_ok(), "{text}");
    }
}

fn field(table_oid: u32, attnum: i16) -> FieldOrigin {
    FieldOrigin {
        table_oid,
        attnum,
        type_oid: 25,
        typmod: -1,
    }
}

#[test]
fn a_masked_origin_under_a_clean_plan_is_a_mismatch() {
    let catalog = catalog();
    let planned = plan("SELECT name FROM users").unwrap();
    assert!(planned.check_origin(&[field(20_000, 2)], &catalog).unwrap().is_empty());
    for (table, attnum) in [(20_000, 4), (20_002, 3), (20_003, 2), (20_000, 0)] {
        let wrong = planned.check_origin(&[field(table, attnum)], &catalog);
        assert!(
            matches!(wrong, Err(Mismatch::Origin { index: 0, .. })),
            "{table} {attnum}: {wrong:?}"
        );
    }
    assert!(planned.check_origin(&[field(0, 0)], &catalog).is_ok());
    assert!(planned.check_origin(&[field(20_000, -1)], &catalog).is_ok());
}

#[test]
fn another_number_of_columns_or_an_unknown_relation_is_a_mismatch() {
    let catalog = catalog();
    let planned = plan("SELECT name FROM users").unwrap();
    let two = planned.check_origin(&[field(20_000, 2), field(20_000, 1)], &catalog);
    assert_eq!(two, Err(Mismatch::Count { planned: 1, found: 2 }));
    assert_eq!(
        planned.check_origin(&[field(99_999, 1)], &catalog),
        Err(Mismatch::Stale { index: 0 })
    );
}

#[test]
fn a_planned_mask_holds_whatever_the_origin_says() {
    let masked = plan("SELECT id, ssn FROM users").unwrap();
    for origin in [field(20_000, 4), field(0, 0), field(20_012, 2)] {
        let masks = masked.check_origin(&[field(20_000, 1), origin], &catalog()).unwrap();
        assert_eq!(masks.columns.len(), 1);
        assert_eq!(masks.columns[0].index, 1);
        assert_eq!(masks.columns[0].mask.column.to_string(), "app.users.ssn");
    }
}

#[test]
fn statements_that_touch_masked_relations_have_their_errors_replaced() {
    assert!(plan("SELECT id FROM users").unwrap().scrubs_errors());
    assert!(plan("SELECT id FROM v_tail").unwrap().scrubs_errors());
    assert!(plan("INSERT INTO users (id) VALUES (1)").unwrap().scrubs_errors());
    assert!(!plan("SELECT id FROM docs").unwrap().scrubs_errors());
}

#[test]
fn a_prepared_or_declared_query_is_refused_before_it_has_a_name() {
    let inner = Arc::new(statement("SELECT id FROM users WHERE ssn = '1'"));
    for kind in [
        StatementKind::Prepare {
            name: "p".into(),
            inner: Arc::clone(&inner),
        },
        StatementKind::Declare {
            name: "c".into(),
            hold: false,
            inner: Arc::clone(&inner),
        },
        StatementKind::Explain {
            analyze: false,
            format: "text".into(),
            inner: Arc::clone(&inner),
        },
    ] {
        let outer = Statement {
            kind,
            output: Output::None,
            uses: Default::default(),
            ..(*inner).clone()
        };
        let refused = ResultPlan::build(&masks(&["app.users.ssn"]), &outer, &catalog());
        assert!(matches!(refused, Err(PlanRefusal::Used { .. })));
    }
}

#[test]
fn on_conflict_asks_no_masked_column() {
    let refused = |text: &str| plan(text).unwrap_err();
    let insert = "INSERT INTO users (id, ssn) VALUES (1, '1')";
    assert!(matches!(
        refused(&format!("{insert} ON CONFLICT DO NOTHING")),
        PlanRefusal::Conflict { .. }
    ));
    assert!(matches!(
        refused(&format!(
            "{insert} ON CONFLICT ON CONSTRAINT users_key DO UPDATE SET name = 'x'"
        )),
        PlanRefusal::Conflict { .. }
    ));
    assert!(matches!(
        refused(&format!(
            "WITH w AS ({insert} ON CONFLICT DO NOTHING RETURNING id) SELECT id FROM w"
        )),
        PlanRefusal::Conflict { .. }
    ));
    for used in ["(ssn)", "(id, lower(ssn))", "(id) WHERE ssn > '5'"] {
        assert!(matches!(
            refused(&format!("{insert} ON CONFLICT {used} DO NOTHING")),
            PlanRefusal::Used { .. }
        ));
    }
    plan(&format!("{insert} ON CONFLICT (id) DO NOTHING")).unwrap();
    plan("INSERT INTO docs (id) VALUES (1) ON CONFLICT DO NOTHING").unwrap();
    assert!(plan("INSERT INTO nowhere (id) VALUES (1) ON CONFLICT DO NOTHING").is_err());
}

#[test]
fn a_plan_over_masked_relations_passes_in_a_form_that_is_read() {
    let explain = |text: &str, format: &str| {
        let inner = Arc::new(statement(text));
        let outer = Statement {
            kind: StatementKind::Explain {
                analyze: false,
                format: format.into(),
                inner: Arc::clone(&inner),
            },
            ..(*inner).clone()
        };
        ResultPlan::build(&masks(&["app.users.ssn"]), &outer, &catalog())
    };
    let field = FieldOrigin {
        table_oid: 0,
        attnum: 0,
        type_oid: 25,
        typmod: -1,
    };
    for (format, form) in [("text", PlanForm::Lines), ("json", PlanForm::Json)] {
        let plan = explain("SELECT ssn FROM v_users", format).unwrap();
        assert!(!plan.is_pass() && plan.scrubs_errors());
        let masks = plan.check_origin(&[field], &catalog()).unwrap();
        assert_eq!(masks.explained, Some(form));
        assert!(!masks.is_empty());
        assert!(plan.check_origin(&[field, field], &catalog()).is_err());
    }
    for format in ["xml", "yaml", "unknown"] {
        assert_eq!(
            explain("SELECT id FROM users", format).unwrap_err(),
            PlanRefusal::PlanFormat
        );
    }
    assert!(explain("SELECT id FROM docs", "xml").unwrap().is_pass());
    assert!(matches!(
        explain("SELECT id FROM users WHERE ssn < '5'", "text"),
        Err(PlanRefusal::Used { .. })
    ));
}

#[test]
fn code_of_the_agents_own_is_refused_under_masks() {
    let options = Options {
        server_major: 18,
        standard_conforming_strings: true,
    };
    let of = |text: &str, patterns: &[&str]| {
        let analysis = analyse(text, &options, &catalog(), &Shopper::default());
        ResultPlan::of_text(&masks(patterns), &analysis, &catalog()).map(drop)
    };
    for text in [
        "DO $$ BEGIN PERFORM set_config('a.b', (SELECT ssn FROM app.users LIMIT 1), false); END $$",
        "SELECT 1; DO 'x'",
        "CREATE FUNCTION app.f() RETURNS text LANGUAGE sql AS 'SELECT ssn FROM app.users'",
        "CREATE OR REPLACE PROCEDURE app.p() LANGUAGE plpgsql AS 'BEGIN END'",
        "CREATE FUNCTION app.f() RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT 'x'; END",
    ] {
        assert_eq!(of(text, &["app.users.ssn"]), Err(PlanRefusal::Code), "{text}");
        assert_eq!(of(text, &[]), Ok(()), "{text}");
    }
    assert_eq!(of("DROP FUNCTION app.f()", &["app.users.ssn"]), Ok(()));
}
