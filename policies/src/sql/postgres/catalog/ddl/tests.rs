//! Schema files as people write them and as pg_dump prints them, and what becomes of what is not understood.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::super::builtin;
use super::*;
use crate::sql::names::ColumnName;
use crate::sql::postgres::{analyse, Options, Source};

fn read(text: &str) -> (Catalog, Vec<Note>) {
    read_sql(text, builtin(15).unwrap())
}

fn columns(catalog: &Catalog, schema: &str, name: &str) -> Vec<String> {
    let Some(relation) = catalog.relation_named(schema, name) else {
        return vec!["(unknown)".to_owned()];
    };
    let told = |column: &super::super::Column| {
        let null = if column.not_null { "!" } else { "" };
        format!("{}{null} {}", column.name, column.type_oid)
    };
    relation.columns.iter().map(told).collect()
}

fn messages(notes: &[Note]) -> Vec<String> {
    notes
        .iter()
        .map(|note| format!("{}: {}", note.line, note.message))
        .collect()
}

const SHOP: &str = "
CREATE SCHEMA app;
CREATE TABLE app.users (
    id integer PRIMARY KEY,
    email text NOT NULL,
    ssn varchar(11),
    tags text[],
    born date GENERATED ALWAYS AS (now()) STORED
);
CREATE TABLE app.orders (id bigserial, user_id int REFERENCES app.users, note text);
";

#[test]
fn tables_have_their_columns_types_and_nullability() {
    let (catalog, notes) = read(SHOP);
    assert_eq!(notes, []);
    let users = columns(&catalog, "app", "users");
    assert_eq!(users, ["id! 23", "email! 25", "ssn 1043", "tags 1009", "born 1082"]);
    assert!(catalog.relation_named("app", "users").unwrap().columns[4].generated);
    assert_eq!(columns(&catalog, "app", "orders"), ["id! 20", "user_id 23", "note 25"]);
    assert_eq!(columns(&catalog, "app", "orders_id_seq").len(), 3);
    assert!(catalog.searches("app") && !catalog.has_schema("other"));
}

#[test]
fn a_statement_resolves_against_it() {
    let (catalog, _) = read(SHOP);
    let view = Owner::new(default_path());
    let options = Options::default();
    let facts = analyse("SELECT u.*, lower(email) FROM app.users u", &options, &catalog, &view).facts;
    let columns: Vec<String> = facts.columns.known().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(columns.len(), 5, "{columns:?}");
    let facts = analyse("SELECT x FROM app.nothing", &options, &catalog, &view).facts;
    assert!(facts.tables.known().is_none());
}

#[test]
fn views_know_what_stands_behind_their_columns() {
    let (catalog, notes) = read(&format!(
        "{SHOP}
        SET search_path = app, public;
        CREATE VIEW people (who, hidden) AS SELECT email, right(ssn, 4) FROM users;
        CREATE MATERIALIZED VIEW copies AS SELECT * FROM app.people;
        CREATE TABLE frozen AS SELECT id FROM users;
        CREATE VIEW broken AS SELECT nothing FROM nowhere;"
    ));
    assert_eq!(
        messages(&notes),
        ["16: app.broken stays unknown: relation \"nowhere\" is not known"]
    );
    assert_eq!(columns(&catalog, "app", "copies"), ["who 25", "hidden 0"]);
    assert_eq!(columns(&catalog, "app", "frozen"), ["id 23"]);
    assert!(catalog.relation_named("app", "broken").is_none());
    let oid = catalog.relation_named("app", "people").unwrap().oid;
    let body = catalog.view_body(oid).unwrap();
    let ssn = ColumnName {
        relation: crate::sql::names::RelationName::new("app", "users"),
        column: "ssn".into(),
    };
    assert_eq!(body.columns[1], Source::Derived(vec![ssn]));
}

#[test]
fn inheritance_partitions_and_changes_are_followed() {
    let (catalog, notes) = read(
        "CREATE TABLE events (id int NOT NULL, at date) PARTITION BY RANGE (at);
        CREATE TABLE events_1 (id int NOT NULL, at date);
        ALTER TABLE ONLY events ATTACH PARTITION events_1 FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
        CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
        ALTER TABLE events ADD COLUMN who text, ALTER COLUMN at SET NOT NULL, OWNER TO somebody;
        CREATE TABLE base (a int); CREATE TABLE more (b int) INHERITS (base);
        CREATE TABLE alike (LIKE base INCLUDING ALL, c int);
        ALTER TABLE alike RENAME COLUMN a TO z;
        ALTER TABLE alike RENAME TO renamed;
        CREATE SCHEMA other; ALTER TABLE renamed SET SCHEMA other;
        DROP TABLE base;",
    );
    assert_eq!(notes, []);
    let parent = catalog.relation_named("public", "events").unwrap();
    assert_eq!(parent.children.len(), 2);
    assert_eq!(columns(&catalog, "public", "events"), ["id! 23", "at! 1082", "who 25"]);
    assert_eq!(columns(&catalog, "public", "events_2"), ["id! 23", "at 1082", "who 25"]);
    assert_eq!(
        catalog.relation_named("public", "events_1").unwrap().parents,
        [parent.oid]
    );
    assert_eq!(columns(&catalog, "public", "more"), ["a 23", "b 23"]);
    assert_eq!(columns(&catalog, "other", "renamed"), ["z 23", "c 23"]);
    assert!(catalog.relation_named("public", "base").is_none());
}

#[test]
fn a_view_is_forgotten_when_what_it_shows_changes_its_name() {
    let (catalog, notes) = read(&format!(
        "{SHOP} CREATE VIEW app.v AS SELECT ssn FROM app.users;\nALTER TABLE app.users RENAME ssn TO secret;"
    ));
    assert!(catalog.relation_named("app", "v").is_none());
    assert_eq!(
        messages(&notes),
        ["12: app.v stays unknown: app.users, which it shows, changes behind it"]
    );
}

#[test]
fn functions_operators_casts_and_types_are_defined() {
    let (catalog, notes) = read(
        "CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE DOMAIN short AS text CHECK (length(VALUE) < 9);
        CREATE TYPE pair AS (k text, v mood);
        CREATE TYPE span AS RANGE (subtype = date);
        CREATE FUNCTION lookup(int, many text[] DEFAULT NULL) RETURNS SETOF pair LANGUAGE sql STABLE
            SECURITY DEFINER AS $$ SELECT 'a;b', 'ok' $$;
        CREATE FUNCTION two(OUT a int, OUT b short) AS 'SELECT 1, 2' LANGUAGE sql;
        CREATE FUNCTION tabular() RETURNS TABLE (x int, y mood[]) LANGUAGE sql BEGIN ATOMIC SELECT 1, NULL; END;
        CREATE FUNCTION many(VARIADIC int[]) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
        CREATE PROCEDURE tidy() LANGUAGE sql AS 'SELECT 1';
        CREATE AGGREGATE total (int) (SFUNC = int4pl, STYPE = int);
        CREATE OPERATOR === (FUNCTION = many, LEFTARG = int, RIGHTARG = int);
        CREATE CAST (int AS mood) WITH FUNCTION many(int);
        CREATE CAST (mood AS money) WITH INOUT;",
    );
    assert_eq!(notes, []);
    let of = |name: &str| catalog.functions_named(name)[0].clone();
    let lookup = of("lookup");
    assert!(lookup.returns_set && lookup.security_definer && lookup.takes(1) && lookup.takes(2) && !lookup.takes(3));
    assert_eq!(&*catalog.row_relation(lookup.result).unwrap().name.name, "pair");
    assert_eq!(of("two").result, 2249);
    assert_eq!(of("tabular").outputs.len(), 2);
    assert!(of("many").takes(0) && of("many").takes(9));
    assert!(of("tidy").kind == super::super::FunctionKind::Procedure && of("tidy").result == 2278);
    assert_eq!(of("total").kind, super::super::FunctionKind::Aggregate);
    assert!(of("span").takes(2) && of("span_multirange").takes(0));
    let operator = &catalog.operators_named("===")[0];
    assert_eq!((&*operator.function, operator.immutable), ("public.many", true));
    assert_eq!(catalog.casts_to("mood")[0].function.as_deref(), Some("public.many"));
    assert_eq!(&*catalog.casts_to("money")[0].target_schema, "pg_catalog");
    let domain = catalog.types_named("short").next().unwrap().oid;
    assert_eq!(catalog.base_type(domain), 25);
}

#[test]
fn what_is_not_understood_is_said_with_its_line_and_stays_unknown() {
    let (catalog, notes) = read(
        "CREATE EXTENSION citext;
\\connect other
CREATE TABLE gone.t (a int);
CREATE TABLE odd (a citext);
CREATE ROLE r PASSWORD :'password';
DO $$ BEGIN END $$;

CREATE FUNCTION f() RETURNS missing LANGUAGE sql AS '';
ALTER TABLE nobody ADD COLUMN x int;
SELECT pg_catalog.set_config('search_path', '', false);
CREATE TABLE nowhere (a int);
SELECT create_everything();
CREATE TABLE public.odd (b int);",
    );
    let expected = [
        "1: CREATE EXTENSION citext: what it defines is not known here, and stays unknown",
        "2: `\\connect other` is for psql and was not read",
        "3: there is no schema gone, so gone.t stays unknown",
        "4: the type citext of column a is not known here; the column's name is",
        "5: `CREATE ROLE r PASSWORD :'password'` was not read: syntax error at or near \":\"",
        "6: a DO block was not read: what it defines stays unknown",
        "8: the function public.f answers the type missing, which is not known here; it stays unknown",
        "9: ALTER TABLE was not read: the relation nobody is not known here",
        "11: no schema was selected to create nowhere in; it stays unknown",
        "12: a SELECT whose functions may define something was not read",
        "13: public.odd is defined twice; the first one was kept",
    ];
    assert_eq!(messages(&notes), expected);
    assert_eq!(columns(&catalog, "public", "odd"), ["a 0"]);
    assert!(catalog.functions_named("f").is_empty());
}

#[test]
fn a_dump_is_read_without_a_note() {
    let (catalog, notes) = read(
        "--
-- PostgreSQL database dump
--
\\restrict 7kBzDkOq
SET statement_timeout = 0;
SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
CREATE SCHEMA app;
ALTER SCHEMA app OWNER TO postgres;
CREATE FUNCTION app.f(x integer) RETURNS integer
    LANGUAGE sql
    AS $$ SELECT x; $$;
SET default_tablespace = '';
CREATE TABLE app.t (id integer NOT NULL, name character varying(20) DEFAULT 'a;b'::character varying);
COMMENT ON TABLE app.t IS 'It''s; a table';
CREATE SEQUENCE app.t_id_seq START WITH 1;
ALTER SEQUENCE app.t_id_seq OWNED BY app.t.id;
CREATE VIEW app.v AS
 SELECT id,
    (name)::text AS name
   FROM app.t;
ALTER TABLE ONLY app.t ALTER COLUMN id SET DEFAULT nextval('app.t_id_seq'::regclass);
COPY app.t (id, name) FROM stdin;
1\tit's; \"odd
\\.
SELECT pg_catalog.setval('app.t_id_seq', 1, true);
ALTER TABLE ONLY app.t ADD CONSTRAINT t_pkey PRIMARY KEY (id);
CREATE INDEX t_name ON app.t USING btree (name);
GRANT SELECT ON TABLE app.t TO PUBLIC;
\\unrestrict 7kBzDkOq
",
    );
    assert_eq!(notes, []);
    assert_eq!(columns(&catalog, "app", "t"), ["id! 23", "name 1043"]);
    assert_eq!(columns(&catalog, "app", "v").len(), 2);
}

#[test]
fn the_quick_start_s_schema_is_the_demo_s() {
    let (ours, notes) = read(include_str!("../../../../../../examples/quickstart/schema.sql"));
    assert_eq!(notes, []);
    // The demo fills it by a script for psql, with a password in a variable.
    let (demo, notes) = read(concat!(
        include_str!("../../../../../../examples/quickstart/schema.sql"),
        include_str!("../../../../../../examples/demo/data.sql")
    ));
    assert!(
        notes.iter().all(|note| note.message.contains(":'password'")),
        "{notes:?}"
    );
    for table in ["customers", "orders", "cart_items"] {
        assert_eq!(columns(&ours, "app", table), columns(&demo, "app", table));
        assert!(columns(&ours, "app", table).len() > 2);
    }
}
