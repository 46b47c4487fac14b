//! `sidegate explain`, `policy test` and `policy schema-query` as people run them, on the quick start's files.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart")
}

fn sidegate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidegate"));
    command.args(arguments).env_remove("SIDEGATE_STATE").output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Explains a statement of the support agent on the quick start.
fn explain(more: &[&str]) -> Output {
    let config = quickstart();
    let schema = config.join("schema.sql");
    let mut arguments = vec![
        "explain",
        "--config",
        config.to_str().unwrap(),
        "--as",
        "agents/support",
    ];
    arguments.extend(["--schema", schema.to_str().unwrap()]);
    arguments.extend(more);
    sidegate(&arguments)
}

#[test]
fn the_exit_code_tells_the_decision() {
    for (statement, code, word) in [
        ("SELECT name, ssn FROM app.customers", 0, "ALLOWED"),
        ("DROP TABLE app.orders", 3, "DENIED"),
        ("SELECT name FROM app.customers WHERE ssn = '1'", 3, "DENIED"),
        (
            "UPDATE app.orders SET status = 'refunded' WHERE id = 1",
            4,
            "NEEDS APPROVAL",
        ),
        ("SELEC 1", 5, "INVALID"),
    ] {
        let output = explain(&[statement]);
        assert_eq!(output.status.code(), Some(code), "{statement}: {}", errors(&output));
        assert!(text(&output).starts_with(word), "{statement}: {}", text(&output));
    }
    assert_eq!(explain(&["--target", "data/other", "SELECT 1"]).status.code(), Some(2));
    assert_eq!(explain(&["--as", "nobody", "SELECT 1"]).status.code(), Some(2));
}

#[test]
fn a_statement_is_explained_in_full() {
    let output = text(&explain(&["SELECT name, ssn FROM app.customers"]));
    for part in [
        "Decided by data/support-agents/read",
        "app.customers.ssn",
        "only its last 4 characters  (data/support-agents)",
        "sql.columns",
        "CreditCard, Email, PrivateKey, UsSsn",
        "no match",
        "10000 rows, 64Mi, 600 operations a minute, sessions of 8h",
    ] {
        assert!(output.contains(part), "{part}\n{output}");
    }
    let denied = text(&explain(&["DELETE FROM app.cart_items"]));
    assert!(
        denied.contains("Add a WHERE clause.") && denied.contains("What would have to change"),
        "{denied}"
    );
    assert!(
        denied.contains("> matches") && denied.contains("[when !sql.filtered]"),
        "{denied}"
    );
}

#[test]
fn json_holds_everything_for_programs() {
    let output = explain(&["-o", "json", "SELECT ssn FROM app.customers"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["outcome"], "allowed");
    assert_eq!(told["target"], "data/shop");
    assert_eq!(told["columns"][0]["column"], "app.customers.ssn");
    assert_eq!(told["columns"][0]["as"]["keepLast"]["count"], 4);
    assert_eq!(told["facts"]["sql.tables"][0], "app.customers");
    assert_eq!(told["schemaNotes"], Value::Array(Vec::new()));
    assert!(told["rules"].as_array().unwrap().len() >= 5);
}

#[test]
fn without_a_statement_everything_an_agent_may_do_is_said() {
    let output = explain(&[]);
    assert_eq!(output.status.code(), Some(0));
    let told = text(&output);
    assert!(told.starts_with("MAY CONNECT  agents/support on data/shop"), "{told}");
    for part in [
        "Select on app.*  (data/support-agents/read)",
        "asks anyone",
        "when !sql.filtered",
        "app.customers.ssn: only its last 4 characters",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    let stranger = sidegate(&[
        "explain",
        "--config",
        quickstart().to_str().unwrap(),
        "--as",
        "agents/other",
    ]);
    assert_eq!(stranger.status.code(), Some(3));
    assert!(text(&stranger).starts_with("NOT SERVED"), "{}", text(&stranger));
}

#[test]
fn what_a_schema_does_not_say_is_said_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let schema = folder.path().join("schema.sql");
    std::fs::write(
        &schema,
        "CREATE SCHEMA app;\nCREATE EXTENSION citext;\nCREATE TABLE app.customers (a citext);\n",
    )
    .unwrap();
    let config = quickstart();
    let output = sidegate(&[
        "explain",
        "--config",
        config.to_str().unwrap(),
        "--as",
        "agents/support",
        "--schema",
        schema.to_str().unwrap(),
        "SELECT a FROM app.customers",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let said = errors(&output);
    assert!(said.contains("schema.sql:2: CREATE EXTENSION citext"), "{said}");
    assert!(said.contains("schema.sql:3: the type citext"), "{said}");
}

#[test]
fn the_quick_start_s_cases_hold() {
    let output = sidegate(&["policy", "test", "--config", quickstart().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output), errors(&output));
    assert!(text(&output).contains("all 14 case(s) hold"), "{}", text(&output));
    let check = sidegate(&["policy", "check", quickstart().to_str().unwrap()]);
    assert_eq!(check.status.code(), Some(0), "{}", errors(&check));
}

#[test]
fn a_case_that_does_not_hold_fails_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let cases = folder.path().join("wrong.cases.yaml");
    let case = "- name: wrong\n  as: agents/support\n  target: data/shop\n  sql: DROP TABLE app.orders\n  expect: Allow\n  rule: read\n";
    std::fs::write(&cases, format!("{case}{}", case.replace("data/shop", "data/none"))).unwrap();
    let config = quickstart();
    let arguments = [
        "policy",
        "test",
        "--config",
        config.to_str().unwrap(),
        cases.to_str().unwrap(),
    ];
    let output = sidegate(&arguments);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let said = text(&output);
    for part in [
        "wrong.cases.yaml:1)",
        "wrong.cases.yaml:7)",
        "expected allow, got deny (no-ddl/no-ddl): Agents do not change schemas or rights here.",
        "expected rule read, got no-ddl/no-ddl",
        "there is no Target data/none",
        "2 case(s) do not hold, 0 do",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let output = sidegate(&[&arguments[..], &["-o", "json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["failed"], &report["files"][0]["cases"][1]["line"]),
        (&2.into(), &7.into())
    );
}

#[test]
fn a_wrong_file_of_cases_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cases = folder.path().join("wrong.cases.yaml");
    let run = |text: &str| {
        std::fs::write(&cases, text).unwrap();
        let config = quickstart();
        sidegate(&[
            "policy",
            "test",
            "--config",
            config.to_str().unwrap(),
            cases.to_str().unwrap(),
        ])
    };
    let typo = run("cases:\n  - name: a\n    as: a/b\n    target: c/d\n    expct: Deny\n");
    assert_eq!(typo.status.code(), Some(2));
    assert!(errors(&typo).contains("wrong.cases.yaml:5:"), "{}", errors(&typo));
    let empty = run("cases: []\n");
    assert_eq!(
        (empty.status.code(), errors(&empty).contains("no case")),
        (Some(2), true)
    );
    let nowhere = run("schema: nowhere.sql\ncases: []\n");
    assert!(errors(&nowhere).contains("nowhere.sql"), "{}", errors(&nowhere));
}

#[test]
fn an_object_in_a_file_of_cases_is_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let policy = std::fs::read_to_string(quickstart().join("no-ddl.yaml")).unwrap();
    std::fs::write(folder.path().join("hidden.cases.yaml"), policy).unwrap();
    let check = sidegate(&["policy", "check", folder.path().to_str().unwrap()]);
    assert_eq!(check.status.code(), Some(2));
    assert!(
        errors(&check).contains("its objects are not read: move it"),
        "{}",
        errors(&check)
    );
}

#[test]
fn asciicast_is_for_replay_only() {
    let output = explain(&["-o", "asciicast", "SELECT 1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("only `replay`"), "{}", errors(&output));
}

#[test]
fn the_schema_query_is_sql_for_psql() {
    let output = sidegate(&["policy", "schema-query"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output).starts_with("SET search_path = '';\nSELECT pg_catalog.json_build_object"));
}
