//! Explanations of statements on a shop, from the schema as people write it to what they would have to change.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use serde_json::json;

use super::*;
use crate::engine::fixtures::{agent, floor, noon, policy, set, shop};
use crate::sql::postgres::catalog::{builtin, read_sql};

const SCHEMA: &str = "
CREATE SCHEMA app;
CREATE TABLE app.users (id int PRIMARY KEY, name text, email text, ssn text NOT NULL);
CREATE TABLE app.orders (id int PRIMARY KEY, status text);
CREATE TABLE app.other (id int);
CREATE VIEW app.people AS SELECT name, ssn AS number FROM app.users;
CREATE FUNCTION app.search(text) RETURNS text LANGUAGE sql AS 'SELECT 1';
";

fn setting() -> Setting {
    let (catalog, notes) = read_sql(SCHEMA, builtin(15).unwrap());
    assert_eq!(notes, []);
    Setting {
        catalog: Arc::new(catalog),
        has_schema: true,
        ..Setting::bare(15)
    }
}

fn policies() -> PolicySet {
    set(&[
        policy(
            "support",
            json!({
                "rules": [
                    {"name": "read", "effect": "Allow",
                     "sql": {"commands": ["Select"], "tables": ["app.users", "app.orders", "app.people"]}},
                    {"name": "few", "effect": "Allow", "sql": {"commands": ["Insert"], "tables": ["app.orders"],
                     "columns": ["app.orders.id"]}},
                    {"name": "tidy", "effect": "Allow", "sql": {"commands": ["Delete"], "tables": ["app.orders"]},
                     "when": "sql.returning"},
                    {"name": "refund", "effect": "Ask", "sql": {"commands": ["Update"], "tables": ["app.orders"]},
                     "ask": {"approvers": [{"group": "leads"}, {"user": "ann"}], "count": 2}},
                    {"name": "filtered", "effect": "Deny", "sql": {"commands": ["Update", "Delete"]},
                     "when": "!sql.filtered", "message": "Add a WHERE clause."}],
                "masks": [{"columns": ["app.users.ssn"], "as": {"keepLast": {"count": 4}}},
                          {"detect": ["Email"], "as": {"redact": {}}}]}),
        ),
        floor(
            "no-ddl",
            json!({"rules": [{"name": "no-ddl", "effect": "Deny", "sql": {"commands": ["Drop"]}}]}),
        ),
    ])
}

fn told(sql: &str) -> Explanation {
    explain(&policies(), &agent(), &shop(), Some(sql), &setting(), noon())
}

#[test]
fn an_allowed_statement_shows_what_becomes_of_each_column() {
    let told = told("SELECT p.number, upper(u.name) AS big, 1 FROM app.people p, app.users u");
    assert_eq!(
        (told.outcome, told.answer.rules[0].as_str()),
        (Outcome::Allowed, "data/support/read")
    );
    let columns: Vec<(&str, &str, Option<String>)> = told
        .columns
        .iter()
        .map(|line| {
            (
                line.name.as_str(),
                line.source.as_str(),
                line.how.as_ref().map(mask_words),
            )
        })
        .collect();
    assert_eq!(
        columns,
        [
            (
                "number",
                "app.people.number",
                Some("only its last 4 characters".to_owned())
            ),
            ("big", "computed from app.users.name", None),
            ("?column?", "no column", None),
        ]
    );
    assert_eq!(told.columns[0].column.as_deref(), Some("app.users.ssn"));
    assert_eq!(told.detectors.len(), 1);
    assert_eq!(told.facts["sql.tables"], json!(["app.people", "app.users"]));
    assert!(told.change.is_empty());
}

#[test]
fn a_mask_in_the_way_refuses_as_the_sidecar_does() {
    let told = told("SELECT id FROM app.users WHERE ssn = '1'");
    assert_eq!(told.outcome, Outcome::Denied);
    assert_eq!(told.answer.rules, ["data/support/masks"]);
    assert_eq!(
        told.change,
        [
            "Use app.users.ssn only in the list of selected columns, as it is; it is shown masked there",
            "Or data/support stops masking that column for this subject",
        ]
    );
    assert!(told.columns.is_empty() && told.detectors.is_empty());
}

#[test]
fn an_approval_says_whose() {
    let told = told("UPDATE app.orders SET status = 'refunded' WHERE id = 1");
    assert_eq!(told.outcome, Outcome::NeedsApproval);
    assert_eq!(told.approvals[0].approvers, ["group leads", "user ann"]);
    assert_eq!(
        told.change,
        ["2 of these have to approve it: group leads, user ann (data/support/refund)"]
    );
}

#[test]
fn a_denial_says_what_would_have_to_change() {
    let of = |sql: &str| told(sql).change;
    assert_eq!(
        of("UPDATE app.orders SET status = 'x'"),
        ["data/support/filtered lets go when `!sql.filtered` no longer holds: Add a WHERE clause."]
    );
    assert_eq!(
        of("DROP TABLE app.orders"),
        [
            "no-ddl/no-ddl denies this whatever the statement says: only a change of that policy helps",
            "A rule has to allow Drop on app.orders: \
             {name: …, effect: Allow, sql: {commands: [Drop], tables: [app.orders]}}",
        ]
    );
    assert_eq!(
        of("SELECT o.* FROM app.other o, app.users"),
        ["A rule has to allow Select on app.other: \
          {name: …, effect: Allow, sql: {commands: [Select], tables: [app.other]}}"]
    );
    let tidy = of("DELETE FROM app.orders WHERE id = 1");
    assert!(
        tidy.iter()
            .any(|line| line == "data/support/tidy allows it when `sql.returning` holds"),
        "{tidy:?}"
    );
    let few = of("INSERT INTO app.orders (id, status) VALUES (1, 'x')");
    assert_eq!(
        few[0],
        "Leave out app.orders.status, or list it under sql.columns of data/support/few"
    );
    assert_eq!(
        of("SELECT app.search(name) FROM app.users"),
        ["A rule that allows this has to list `app.search` under sql.functions, or have no sql matcher"]
    );
    assert_eq!(
        of("SELECT 1 FROM app.nothing"),
        ["Check its names: the schema does not hold enough to tell which relation Select is about"]
    );
}

#[test]
fn without_a_schema_the_server_s_own_names_are_known_and_no_others() {
    let bare = |sql: &str| explain(&policies(), &agent(), &shop(), Some(sql), &Setting::bare(15), noon());
    let told = bare("SELECT relname FROM pg_catalog.pg_class");
    assert_eq!(told.outcome, Outcome::Allowed, "{:?}", told.answer);
    let told = bare("SELECT name FROM app.users");
    assert_eq!(told.outcome, Outcome::Denied);
    assert!(
        told.change.iter().all(|line| line.contains("--schema FILE")),
        "{:?}",
        told.change
    );
}

#[test]
fn what_is_no_statement_is_invalid_and_bind_values_are_later() {
    let syntax = told("SELEC 1");
    assert_eq!(syntax.outcome, Outcome::Invalid);
    assert!(syntax.answer.message.unwrap().contains("SELEC"));
    assert!(syntax.facts.is_empty());
    assert_eq!(
        syntax.change,
        ["Write the statement so that it can be understood: syntax error at or near \"SELEC\""]
    );
    let later = told("SELECT name FROM app.users WHERE id = $1");
    assert_eq!(
        (later.outcome, &later.facts["sql.params"]),
        (Outcome::Allowed, &json!("later"))
    );
}

#[test]
fn a_stranger_is_told_which_policy_is_missing() {
    let mut stranger = agent();
    stranger.service_account = "other".into();
    let told = explain(&policies(), &stranger, &shop(), Some("SELECT 1"), &setting(), noon());
    assert_eq!(told.outcome, Outcome::Denied);
    assert_eq!(
        told.change,
        [
            "An AccessPolicy in namespace data has to name both: targetRefs: [{name: shop}], \
          subjects: [{serviceAccount: {namespace: agents, name: other}}]"
        ]
    );
    let opened = explain(&policies(), &agent(), &shop(), None, &setting(), noon());
    assert_eq!(opened.outcome, Outcome::Allowed);
}
