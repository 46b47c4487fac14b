//! A schema file means what the server means: facts of statements are the same against a dump, against the answer of
//! `policy schema-query`, and against each other, for the same database.

use std::process::Command;
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use sidegate_policies::explanation::Setting;
use sidegate_policies::sql::postgres::catalog::{builtin, read_snapshot, read_sql, snapshot_query, Catalog};
use sidegate_tests::postgres::{Major, Postgres, SUPERUSER, SUPERUSER_PASSWORD};

const SCHEMA: &str = "
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE DOMAIN app.short AS text CHECK (length(VALUE) < 20);
CREATE TYPE app.pair AS (k text, v app.mood);
CREATE TABLE app.users (id bigserial PRIMARY KEY, name app.short NOT NULL, ssn text, moods app.mood[],
    twice int GENERATED ALWAYS AS (1 + 1) STORED);
CREATE TABLE app.orders (id int PRIMARY KEY, user_id bigint REFERENCES app.users, at date NOT NULL);
CREATE TABLE app.events (id int, at date, who text) PARTITION BY RANGE (at);
CREATE TABLE app.events_1 PARTITION OF app.events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE app.base (a int); CREATE TABLE app.derived (b int) INHERITS (app.base);
CREATE VIEW app.people AS SELECT u.name AS who, \"right\"(u.ssn, 4) AS tail, o.at
    FROM app.users u LEFT JOIN app.orders o ON o.user_id = u.id WHERE u.ssn IS NOT NULL;
CREATE VIEW app.nested AS SELECT * FROM app.people;
CREATE MATERIALIZED VIEW app.counted AS SELECT who, count(*) AS n FROM app.nested GROUP BY who;
CREATE FUNCTION app.lookup(x int, y text DEFAULT 'a;b') RETURNS SETOF app.pair LANGUAGE sql STABLE
    AS $$ SELECT 'k', 'ok'::app.mood; $$;
CREATE FUNCTION app.cols(OUT a int, OUT b text) LANGUAGE sql BEGIN ATOMIC SELECT 1, 'x'; END;
CREATE FUNCTION app.tabular(int) RETURNS TABLE (p int, q text) LANGUAGE sql AS 'SELECT 1, ''x''';
CREATE FUNCTION app.same(int, int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE OPERATOR app.=== (FUNCTION = app.same, LEFTARG = int, RIGHTARG = int);
CREATE AGGREGATE app.total (int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE SEQUENCE app.counter;
CREATE INDEX ON app.orders (at);
COMMENT ON TABLE app.users IS 'It''s; the people';
INSERT INTO app.users (name, ssn) VALUES ('a;b', E'\\\\''');
";

const STATEMENTS: &[&str] = &[
    "SELECT * FROM app.users",
    "SELECT who, tail FROM app.people ORDER BY who",
    "SELECT * FROM app.nested n JOIN app.orders o USING (at)",
    "SELECT who FROM app.counted",
    "SELECT * FROM app.events WHERE at > '2026-01-01'",
    "SELECT who FROM app.events_1",
    "SELECT * FROM app.derived, app.base",
    "SELECT l.k, c.b, t.q FROM app.lookup(1) l, app.cols() c, app.tabular(1) t",
    "SELECT (app.lookup(1)).v",
    "SELECT id OPERATOR(app.===) 1 FROM app.orders",
    "SELECT app.total(id) FROM app.orders",
    "SELECT last_value FROM app.counter",
    "SELECT u FROM app.users u",
    "INSERT INTO app.orders SELECT id, 1, now() FROM app.users RETURNING *",
    "UPDATE app.users SET name = lower(ssn)::app.short WHERE id = 1 RETURNING ssn",
    "DELETE FROM app.events USING app.people WHERE events.who = people.who",
    "SELECT relname, column_name FROM pg_class, information_schema.columns LIMIT 5",
    "SELECT * FROM pg_get_keywords()",
    "COPY app.users TO STDOUT",
    "SELECT nothing FROM app.nowhere",
];

fn dump(server: &Postgres) -> Result<String> {
    let output = Command::new("/usr/lib/postgresql/15/bin/pg_dump")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("PGPASSWORD", SUPERUSER_PASSWORD)
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &server.port.to_string(),
            "-U",
            SUPERUSER,
            "postgres",
        ])
        .output()
        .context("pg_dump")?;
    ensure!(
        output.status.success(),
        "pg_dump: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn setting(catalog: Catalog) -> Setting {
    Setting {
        catalog: Arc::new(catalog),
        has_schema: true,
        ..Setting::bare(15)
    }
}

#[test]
fn a_dump_and_the_schema_query_tell_the_same_as_the_script() -> Result<()> {
    let server = Postgres::start(Major::V15)?;
    server.sql("postgres", SCHEMA)?;
    let (script, script_notes) = read_sql(SCHEMA, builtin(15)?);
    let (dumped, dump_notes) = read_sql(&dump(&server)?, builtin(15)?);
    assert_eq!((script_notes, dump_notes), (vec![], vec![]));
    let live = setting(read_snapshot(&server.sql("postgres", &snapshot_query())?)?);
    for (name, catalog) in [("script", script), ("dump", dumped)] {
        let offline = setting(catalog);
        for text in STATEMENTS {
            let (ours, theirs) = (offline.analyse(text), live.analyse(text));
            assert_eq!(ours.facts, theirs.facts, "{name}: {text}");
            assert_eq!(ours.completeness, theirs.completeness, "{name}: {text}");
            for (ours, theirs) in ours.statements.iter().zip(&theirs.statements) {
                assert_eq!(ours.output, theirs.output, "{name}: {text}");
                assert_eq!(ours.uses, theirs.uses, "{name}: {text}");
            }
        }
    }
    Ok(())
}
