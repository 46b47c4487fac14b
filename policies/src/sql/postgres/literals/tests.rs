//! What is hidden of a text, and what is not.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use super::super::plan::ResultPlan;
use super::super::shape::Shape;
use super::super::shop::{self, Shopper};
use super::super::{analyse, Options};
use super::*;
use crate::api::access_policy::{Keep, MaskAs};
use crate::engine::decision::MaskRule;
use crate::sql::ColumnPattern;

fn hidden(text: &str, patterns: &[&str]) -> Hidden {
    let catalog = shop::catalog();
    let rule = |pattern: &&str| MaskRule {
        pattern: ColumnPattern::parse(pattern).unwrap(),
        how: MaskAs::KeepLast(Keep { count: 4 }),
        policy: "agents/masks".into(),
    };
    let masks = Arc::new(MaskSet {
        columns: patterns.iter().map(rule).collect(),
        detectors: Vec::new(),
    });
    let analysis = analyse(text, &Options::default(), &catalog, &Shopper::default());
    let refused = ResultPlan::of_text(&masks, &analysis, &catalog).is_err();
    Hidden::of(text, &analysis, &masks, &catalog, refused)
}

#[track_caller]
fn is_shown(text: &str, expected: &str) {
    assert_eq!(hidden(text, &[]).shown(text, None).0, expected);
}

#[track_caller]
fn masked(text: &str, expected: &str) {
    assert_eq!(hidden(text, &["app.users.ssn"]).shown(text, None).0, expected);
}

#[test]
fn passwords_of_ddl_are_hidden_and_what_is_done_is_shown() {
    is_shown(
        "CREATE ROLE joe LOGIN PASSWORD 'hunter2' VALID UNTIL '2030-01-01'",
        "CREATE ROLE joe LOGIN PASSWORD '***' VALID UNTIL '2030-01-01'",
    );
    is_shown(
        "ALTER USER joe ENCRYPTED PASSWORD E'hun\\'ter2'",
        "ALTER USER joe ENCRYPTED PASSWORD '***'",
    );
    is_shown(
        "ALTER ROLE joe PASSWORD NULL VALID UNTIL 'infinity'",
        "ALTER ROLE joe PASSWORD NULL VALID UNTIL 'infinity'",
    );
    is_shown(
        "SELECT 'before'; CREATE USER MAPPING FOR joe SERVER s OPTIONS (user 'joe', password $x$hunter2$x$)",
        "SELECT 'before'; CREATE USER MAPPING FOR joe SERVER s OPTIONS (user 'joe', password '***')",
    );
    is_shown(
        "ALTER USER MAPPING FOR joe SERVER s OPTIONS (SET password 'hunter2', ADD sslcert 'x')",
        "ALTER USER MAPPING FOR joe SERVER s OPTIONS (SET password '***', ADD sslcert '***')",
    );
    is_shown(
        "CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (host 'db', port '5432', api_thing 'k')",
        "CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (host 'db', port '5432', api_thing '***')",
    );
    is_shown(
        "SELECT 'before'; CREATE SUBSCRIPTION s CONNECTION 'host=db password=hunter2' PUBLICATION p WITH (slot_name = 'x')",
        "SELECT 'before'; CREATE SUBSCRIPTION s CONNECTION '***' PUBLICATION p WITH (slot_name = 'x')",
    );
    is_shown(
        "SELECT 'before'; ALTER SUBSCRIPTION s CONNECTION 'host=db password=hunter2'",
        "SELECT 'before'; ALTER SUBSCRIPTION s CONNECTION '***'",
    );
}

#[test]
fn settings_and_calls_that_take_secrets_lose_them() {
    is_shown("SET app.api_key = 'hunter2'", "SET app.api_key = '***'");
    is_shown("SET app.api_key TO hunter2", "SET app.api_key TO '***'");
    is_shown("SET app.api_key TO -123", "SET app.api_key TO -'***'");
    is_shown("SET app.api_key TO DEFAULT", "SET app.api_key TO DEFAULT");
    is_shown("SET search_path = 'app', 'pub'", "SET search_path = 'app', 'pub'");
    is_shown(
        "ALTER ROLE joe SET app.secret TO 'hunter2'",
        "ALTER ROLE joe SET app.secret TO '***'",
    );
    is_shown(
        "ALTER SYSTEM SET primary_conninfo = 'host=db password=hunter2'",
        "ALTER SYSTEM SET primary_conninfo = '***'",
    );
    is_shown(
        "SELECT set_config('app.password', 'hunter2', false)",
        "SELECT set_config('app.password', '***', false)",
    );
    is_shown(
        "SELECT set_config('jit', 'off', false)",
        "SELECT set_config('jit', 'off', false)",
    );
    is_shown(
        "SELECT set_config('app.' || 'password', 'hunter2', false)",
        "SELECT set_config('app.' || 'password', '***', false)",
    );
    is_shown(
        "SELECT id, pub.pgp_sym_decrypt(body::bytea, ('hun' || 'ter2')::text) FROM app.docs WHERE id = 7",
        "SELECT id, pub.pgp_sym_decrypt(body::bytea, ('***' || '***')::text) FROM app.docs WHERE id = 7",
    );
    is_shown(
        "SELECT * FROM dblink('host=db password=hunter2', 'select 1') AS t(a int)",
        "SELECT * FROM dblink('***', 'select 1') AS t(a int)",
    );
    is_shown(
        "SELECT dblink_exec('named', 'select a = 1')",
        "SELECT dblink_exec('named', 'select a = 1')",
    );
    is_shown(
        "SELECT pgp_pub_decrypt(a, psw => 'hunter2') FROM t",
        "SELECT pgp_pub_decrypt(a, psw => '***') FROM t",
    );
    assert!(hidden("SELECT pgp_sym_decrypt(body, $1) FROM app.docs", &[]).hides_values());
    assert!(!hidden("SELECT body FROM app.docs WHERE id = $1", &[]).hides_values());
}

#[test]
fn code_in_strings_is_shown_without_its_secrets() {
    is_shown(
        "DO $do$ BEGIN PERFORM 'fine'; ALTER ROLE joe PASSWORD 'hunter2'; EXECUTE 'ALTER ROLE x PASSWORD ''y'''; END $do$",
        "DO $do$ BEGIN PERFORM 'fine'; ALTER ROLE joe PASSWORD '***'; EXECUTE '***'; END $do$",
    );
    is_shown(
        "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT pgp_sym_decrypt(x, 'hunter2') FROM t WHERE a = 'b' $$",
        "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT pgp_sym_decrypt(x, '***') FROM t WHERE a = 'b' $$",
    );
    is_shown("DO 'begin alter role joe password ''hunter2''; end'", "DO '***'");
    is_shown("DO 'begin perform 1; end'", "DO 'begin perform 1; end'");
}

#[test]
fn what_a_masked_column_is_set_from_is_hidden_and_nothing_else() {
    masked(
        "INSERT INTO users (id, name, ssn) VALUES (1234567, 'Ada', '531-22-8841'), (8, 'Bob', 212099923::text)",
        "INSERT INTO users (id, name, ssn) VALUES (1234567, 'Ada', '***'), (8, 'Bob', '***'::text)",
    );
    masked(
        "INSERT INTO users SELECT 1, 'Ada', 'a@b', '531'",
        "INSERT INTO users SELECT 1, 'Ada', 'a@b', '***'",
    );
    masked(
        "UPDATE users SET ssn = '531-22-8841', name = 'Ada' WHERE id = 1234567",
        "UPDATE users SET ssn = '***', name = 'Ada' WHERE id = 1234567",
    );
    masked(
        "UPDATE users SET (name, ssn) = ('Ada', '531') WHERE id = 1",
        "UPDATE users SET (name, ssn) = ('Ada', '***') WHERE id = 1",
    );
    masked(
        "UPDATE v_users SET ssn = '531' WHERE id = 1",
        "UPDATE v_users SET ssn = '***' WHERE id = 1",
    );
    masked(
        "UPDATE users SET ssn = NULL, name = 'Ada' WHERE id = 1",
        "UPDATE users SET ssn = NULL, name = 'Ada' WHERE id = 1",
    );
    masked(
        "INSERT INTO users (id, ssn, name) VALUES (1, '531', 'Ada') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn, name = 'B'",
        "INSERT INTO users (id, ssn, name) VALUES (1, '***', 'Ada') ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn, name = 'B'",
    );
    masked(
        "PREPARE p AS UPDATE users SET ssn = '531' WHERE id = 1",
        "PREPARE p AS UPDATE users SET ssn = '***' WHERE id = 1",
    );
    masked(
        "SELECT ssn FROM users WHERE name = 'Ada' AND id = 1234567",
        "SELECT ssn FROM users WHERE name = 'Ada' AND id = 1234567",
    );
    masked(
        "UPDATE orders SET note = '531' WHERE id = 1",
        "UPDATE orders SET note = '531' WHERE id = 1",
    );
}

#[test]
fn where_the_constant_cannot_be_told_all_are_hidden() {
    masked(
        "INSERT INTO users (id, ssn, name) VALUES (1, '531', '402') ON CONFLICT (id) DO UPDATE SET ssn = excluded.name",
        "INSERT INTO users (id, ssn, name) VALUES (1, '***', '***') ON CONFLICT (id) DO UPDATE SET ssn = excluded.name",
    );
    masked(
        "UPDATE users SET ssn = excluded.ssn FROM (VALUES ('531')) excluded(ssn) WHERE id = 1",
        "UPDATE users SET ssn = excluded.ssn FROM (VALUES ('***')) excluded(ssn) WHERE id = 1",
    );
    masked(
        "SELECT id FROM users WHERE ssn = '531' AND id = 1234567 AND id = 7",
        "SELECT id FROM users WHERE ssn = '***' AND id = '***' AND id = 7",
    );
    masked(
        "SELECT id FROM users WHERE ssn = \"531-22-8841\" AND \"name\" = 'x'",
        "SELECT id FROM users WHERE ssn = \"***\" AND \"name\" = '***'",
    );
    masked(
        "ALTER TABLE users ALTER ssn SET DEFAULT '531'",
        "ALTER TABLE users ALTER ssn SET DEFAULT '***'",
    );
    masked(
        "WITH v AS (SELECT '531' AS s) SELECT 1 FROM users, v WHERE ssn = s",
        "WITH v AS (SELECT '***' AS s) SELECT 1 FROM users, v WHERE ssn = s",
    );
}

#[test]
fn nothing_is_known_of_what_does_not_parse() {
    is_shown(
        "SELEC 'hunter2', $$x$$, 1234567, 12 FROM t",
        "SELEC '***', '***', '***', 12 FROM t",
    );
    is_shown(
        "SELECT x, 123456 FROM t WHERE a = 'hunter2",
        "SELECT x, '***' FROM t WHERE a = '***'",
    );
    is_shown("SELECT $x$ hunter2", "SELECT '***'");
    is_shown("", "");
    assert_eq!(unknown("selec 'a'"), "selec '***'");
    assert!(hidden("selec 'a'", &[]).holds_secrets() && !hidden("select 'a'", &[]).holds_secrets());
}

#[test]
fn the_grammars_message_quotes_no_constant() {
    for (text, expected) in [
        ("SELECT 1 'hunter2'", "syntax error at or near '***'"),
        ("SELECT 'hunter2", "unterminated quoted string at or near '***'"),
        ("SELECT 1 FROM t WHER a = 1", "syntax error at or near \"a\""),
        ("selec 1", "syntax error at or near \"selec\""),
    ] {
        let analysis = analyse(text, &Options::default(), &shop::catalog(), &Shopper::default());
        assert_eq!(analysis.problem.as_deref(), Some(expected), "{text}");
    }
}

#[test]
fn one_analysis_hides_in_every_text_of_its_shape() {
    let (one, other) = (
        "INSERT INTO users (id, ssn, name) VALUES (1, '5', 'Ada')",
        "INSERT INTO users (id, ssn, name) VALUES (22222, '531-22-8841', 'Ada Lovelace')",
    );
    assert_eq!(Shape::of(one).unwrap().key(), Shape::of(other).unwrap().key());
    let (shown, count) = hidden(one, &["app.users.ssn"]).shown(other, None);
    assert_eq!(
        shown,
        "INSERT INTO users (id, ssn, name) VALUES (22222, '***', 'Ada Lovelace')"
    );
    assert_eq!(count, 1);
}

#[test]
fn most_texts_hide_nothing() {
    for text in [
        "SELECT id FROM users WHERE id = 7",
        "BEGIN",
        "INSERT INTO orders (id, note) VALUES (7, 'x')",
    ] {
        assert!(hidden(text, &["app.users.ssn"]).is_empty(), "{text}");
    }
}

#[test]
fn detectors_look_through_constants_names_and_comments_and_leave_sql_as_it_is_written() {
    use crate::api::access_policy::Detector;
    let wanted = [Detector::Email, Detector::CreditCard, Detector::IpAddress];
    let wanted = wanted.map(|detector| (detector, MaskAs::KeepLast(Keep { count: 4 })));
    let detectors = crate::mask::Detectors::redacting(&wanted);
    let shown = |text: &str| {
        let (shown, count) = hidden(text, &["app.users.ssn"]).shown(text, Some(&detectors));
        (shown.into_owned(), count)
    };
    for (text, expected, count) in [
        (
            "SELECT id FROM app.users WHERE name = 'for ann@example.org' OR id = 4111111111111111 -- ask ben@example.org",
            "SELECT id FROM app.users WHERE name = 'for ***' OR id = *** -- ask ***",
            3,
        ),
        (
            "UPDATE app.users SET ssn = '1', name = '10.1.2.3' WHERE id = 7",
            "UPDATE app.users SET ssn = '***', name = '***' WHERE id = 7",
            2,
        ),
        ("SELECT 1 AS \"ann@example.org\"", "SELECT 1 AS \"***\"", 1),
        // Casts look like addresses.
        ("SELECT 1::\"char\", 'a' :: text, 2::int", "SELECT 1::\"char\", 'a' :: text, 2::int", 0),
    ] {
        assert_eq!(shown(text), (expected.to_owned(), count));
    }
}
