//! Promises of the binder: what is read, written and used, and where each output column comes from.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use super::super::analysis::{Output, Source};
use super::super::shop::{bound, bound_for, Shopper};
use super::{Bound, Resolution};
use crate::api::access_policy::SqlCommand;
use crate::engine::operation::Fact;
use crate::sql::facts::PartRelation;
use crate::sql::names::{ColumnName, RelationName};

fn column(name: &str) -> ColumnName {
    let parts: Vec<&str> = name.split('.').collect();
    ColumnName {
        relation: RelationName::new(parts[0], parts[1]),
        column: parts[2].into(),
    }
}

/// `app.users.ssn`, `-` for clean, `(…)` for derived, `row app.users`, `?`.
fn shown(bound: &Bound) -> Vec<String> {
    match &bound.output {
        Output::None => vec!["none".to_owned()],
        Output::Unknown => vec!["unknown".to_owned()],
        Output::Rows(columns) => columns
            .iter()
            .map(|column| match &column.source {
                Source::Clean => "-".to_owned(),
                Source::Column(column) => column.to_string(),
                Source::WholeRow(row) => format!("row {row}"),
                Source::Derived(columns) => {
                    let names: Vec<String> = columns.iter().map(ToString::to_string).collect();
                    format!("({})", names.join(" "))
                }
                Source::Unknown => "?".to_owned(),
            })
            .collect(),
    }
}

fn names(bound: &Bound) -> Vec<String> {
    match &bound.output {
        Output::Rows(columns) => columns
            .iter()
            .map(|column| column.name.as_deref().unwrap_or("").to_owned())
            .collect(),
        _ => Vec::new(),
    }
}

fn uses(bound: &Bound) -> Vec<String> {
    let mut uses: Vec<String> = bound.uses.columns.iter().map(ToString::to_string).collect();
    if bound.uses.unknown {
        uses.push("?".to_owned());
    }
    uses
}

#[track_caller]
fn shows(text: &str, expected: &[&str]) -> Bound {
    let bound = bound(text);
    assert_eq!(shown(&bound), expected, "{text}: {:?}", bound.problems);
    bound
}

#[track_caller]
fn only_shows(text: &str, expected: &[&str]) {
    let bound = shows(text, expected);
    assert_eq!(uses(&bound), Vec::<String>::new(), "{text}: {:?}", bound.problems);
}

const SSN: &str = "app.users.ssn";

#[test]
fn a_bare_column_is_followed_through_aliases_subqueries_and_ctes() {
    for text in [
        "SELECT ssn FROM users",
        "SELECT u.ssn AS harmless FROM app.users u",
        "SELECT users.ssn FROM app.users",
        "SELECT app.users.ssn FROM app.users",
        "SELECT shop.app.users.ssn FROM app.users",
        "SELECT x FROM (SELECT ssn AS x FROM users) q",
        "SELECT q.b FROM (SELECT id, ssn FROM users) q(a, b)",
        "SELECT d FROM users u(a, b, c, d)",
        "WITH c AS (SELECT ssn FROM users) SELECT * FROM c",
        "WITH c(z) AS (SELECT ssn FROM users) SELECT z FROM c AS k",
        "WITH a AS (SELECT ssn FROM users), b AS (SELECT ssn AS y FROM a) SELECT y FROM b",
        "WITH RECURSIVE b AS (SELECT y FROM a), a AS (SELECT ssn AS y FROM users) SELECT y FROM b",
        "SELECT (u).ssn FROM users u",
        "SELECT (SELECT ssn FROM users LIMIT 1)",
        "SELECT l.s FROM orders o, LATERAL (SELECT ssn AS s FROM users) l",
        "SELECT ssn FROM users FOR UPDATE OF users",
        "SELECT ssn FROM users TABLESAMPLE system (10)",
        "SELECT ssn FROM ONLY users",
        "TABLE m_users",
        "SELECT ssn FROM users LIMIT 3 OFFSET 1",
        "SELECT ssn FROM users UNION ALL SELECT ssn FROM users",
        "SELECT ssn FROM users UNION ALL VALUES ('x')",
    ] {
        let bound = bound(text);
        let expected = if text.contains("m_users") {
            "app.m_users.ssn"
        } else {
            SSN
        };
        assert_eq!(shown(&bound), [expected], "{text}: {:?}", bound.problems);
        assert!(
            bound.uses.columns.is_empty() && !bound.uses.unknown,
            "{text}: {:?}",
            bound.uses
        );
    }
}

#[test]
fn stars_expand_to_every_column_in_order() {
    let all = [
        "app.users.id",
        "app.users.name",
        "app.users.email",
        SSN,
        "app.users.card",
    ];
    only_shows("SELECT * FROM users", &all);
    only_shows("SELECT u.* FROM users u", &all);
    only_shows("SELECT (u).* FROM users u", &all);
    only_shows("TABLE users", &all);
    only_shows("SELECT * FROM (SELECT ssn, id FROM users) q", &[SSN, "app.users.id"]);
    shows(
        "SELECT * FROM docs JOIN v_count ON true",
        &["app.docs.id", "app.docs.body", "app.docs.tags", "app.v_count.n"],
    );
}

/// Every way to use the column other than showing it as it is.
const USES: &[&str] = &[
    "SELECT id FROM users WHERE ssn = '1'",
    "SELECT id FROM users WHERE id IN (SELECT id FROM users WHERE ssn LIKE '1%')",
    "SELECT id FROM users ORDER BY ssn",
    "SELECT ssn AS s FROM users ORDER BY s",
    "SELECT id, ssn FROM users ORDER BY 2",
    "SELECT ssn FROM users GROUP BY ssn",
    "SELECT ssn AS s FROM users GROUP BY s",
    "SELECT count(*) FROM users GROUP BY GROUPING SETS ((ssn), ())",
    "SELECT count(ssn) FROM users",
    "SELECT count(*) FILTER (WHERE ssn > '5') FROM users",
    "SELECT array_agg(id ORDER BY ssn) FROM users",
    "SELECT rank() OVER (ORDER BY ssn) FROM users",
    "SELECT rank() OVER w FROM users WINDOW w AS (PARTITION BY ssn)",
    "SELECT DISTINCT ssn FROM users",
    "SELECT DISTINCT ON (ssn) id FROM users",
    "SELECT ssn FROM users UNION SELECT ssn FROM users",
    "SELECT ssn FROM users EXCEPT SELECT 'x'",
    "SELECT ssn || '' FROM users",
    "SELECT ssn::varchar FROM users",
    "SELECT ssn COLLATE \"C\" FROM users",
    "SELECT upper(ssn) FROM users",
    "SELECT coalesce(ssn, '') FROM users",
    "SELECT nullif(ssn, '') FROM users",
    "SELECT greatest(ssn, '') FROM users",
    "SELECT CASE WHEN ssn = '1' THEN 1 END FROM users",
    "SELECT CASE WHEN id = 1 THEN ssn END FROM users",
    "SELECT ssn IS NULL FROM users",
    "SELECT ARRAY[ssn] FROM users",
    "SELECT ARRAY(SELECT ssn FROM users)",
    "SELECT ROW(ssn) FROM users",
    "SELECT json_build_object('s', ssn) FROM users",
    "SELECT JSON_OBJECT('s' : ssn) FROM users",
    "SELECT JSON_ARRAYAGG(ssn) FROM users",
    "SELECT xmlelement(name a, ssn) FROM users",
    "SELECT o.id FROM orders o JOIN users u ON o.note = u.ssn",
    "SELECT o.id FROM orders o JOIN (SELECT ssn AS note FROM users) u USING (note)",
    "SELECT o.id FROM orders o NATURAL JOIN (SELECT ssn AS note FROM users) u",
    "SELECT id FROM users LIMIT (SELECT length(ssn) FROM users LIMIT 1)",
    "SELECT count(*) FROM users HAVING max(ssn) > '5'",
    "SELECT 1 WHERE EXISTS (SELECT FROM users WHERE ssn = '1')",
    "SELECT 1 WHERE '1' IN (SELECT ssn FROM users)",
    "SELECT 1 WHERE '1' = ANY (SELECT ssn FROM users)",
    "SELECT id FROM orders o WHERE EXISTS (SELECT 1 FROM users u WHERE u.ssn = o.note)",
    "SELECT k FROM users, LATERAL regexp_split_to_table(ssn, '') k",
    "SELECT x FROM (SELECT ssn AS x FROM users) q WHERE x = '1'",
    "WITH c AS (SELECT ssn FROM users) SELECT 1 FROM c WHERE c.ssn > '5'",
    "WITH RECURSIVE r(n, s) AS (SELECT 1, ssn FROM users UNION SELECT n + 1, s FROM r) SELECT n FROM r",
    "VALUES ((SELECT ssn FROM users LIMIT 1) || '')",
    "SELECT lookup(u.ssn) FROM users u",
    "SELECT (ARRAY[u.ssn])[1] FROM users u",
    "SELECT id FROM users WHERE (id, ssn) = (1, '1')",
    "SELECT ssn INTO copy FROM users",
    "INSERT INTO docs (body) SELECT ssn FROM users",
    "INSERT INTO docs (body) VALUES ((SELECT ssn FROM users LIMIT 1))",
    "UPDATE docs SET body = u.ssn FROM users u",
    "UPDATE docs SET (body, tags) = (SELECT ssn, '' FROM users LIMIT 1)",
    "UPDATE users SET name = ssn",
    "UPDATE users SET name = 'x' WHERE ssn = '1'",
    "DELETE FROM users WHERE ssn = '1'",
    "DELETE FROM docs USING users u WHERE docs.body = u.ssn",
    "INSERT INTO users (id, ssn) VALUES (1, 'x') ON CONFLICT (ssn) DO NOTHING",
    "INSERT INTO users (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET name = users.ssn",
    "INSERT INTO users (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET name = '' WHERE users.ssn = '1'",
    "MERGE INTO docs d USING users u ON d.body = u.ssn WHEN MATCHED THEN DELETE",
    "MERGE INTO docs d USING users u ON d.id = u.id WHEN MATCHED AND u.ssn = '1' THEN DELETE",
    "MERGE INTO docs d USING users u ON d.id = u.id WHEN NOT MATCHED THEN INSERT (body) VALUES (u.ssn)",
    "MERGE INTO users u USING docs d ON d.id = u.id WHEN MATCHED THEN UPDATE SET name = u.ssn",
    "UPDATE users SET name = 'x' RETURNING upper(ssn)",
    "UPDATE users SET ssn = 'x' RETURNING old.ssn = '1'",
    "SELECT to_json(u) FROM users u",
    "SELECT row_to_json(u.*) FROM users u",
    "SELECT json_agg(u) FROM users u",
    "SELECT u::text FROM users u",
    "SELECT u = u FROM users u",
    "SELECT q FROM (SELECT ssn FROM users) q",
    "SELECT ssn(u) FROM users u",
    "SELECT u.label FROM users u",
    "SELECT u.upper FROM users u",
    "SELECT count(u) FROM users u",
    "SELECT ROW(u.*) FROM users u",
    "SELECT x.s FROM users u, json_table('[]', '$' PASSING u.ssn AS p COLUMNS (s text PATH '$')) x",
    "SELECT min(ssn) OVER () FROM users",
    "SELECT DISTINCT * FROM users",
    "SELECT id FROM users WHERE ssn IS DISTINCT FROM 'x' OR ssn BETWEEN 'a' AND 'b'",
    "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY ssn) FROM users",
];

#[test]
fn every_other_occurrence_of_a_column_is_a_use() {
    for text in USES {
        let bound = bound(text);
        assert!(bound.uses.columns.contains(&column(SSN)), "{text}: {:?}", bound.uses);
    }
}

#[test]
fn what_a_view_shows_is_the_views_own_column() {
    only_shows("SELECT ssn FROM v_users", &["app.v_users.ssn"]);
    only_shows("SELECT * FROM v_tail", &["app.v_tail.id", "app.v_tail.tail"]);
    let bound = bound("SELECT login FROM v_users");
    let Fact::Known(columns) = &bound.columns else { panic!() };
    assert_eq!(*columns, [column("app.users.name"), column("app.v_users.login")]);
}

#[test]
fn parts_and_reads_reach_the_relations_behind_views() {
    let bound = bound("SELECT hidden FROM v_nested");
    let read = |name| (SqlCommand::Select, PartRelation::Known(RelationName::new("app", name)));
    assert_eq!(bound.parts, [read("v_nested"), read("v_tail"), read("users")]);
    let Fact::Known(reads) = &bound.reads else { panic!() };
    assert_eq!(reads.len(), 3);
    let written = super::super::shop::bound("UPDATE v_orders SET status = 'x' WHERE id = 1");
    let update = |name| (SqlCommand::Update, PartRelation::Known(RelationName::new("app", name)));
    assert_eq!(written.parts, [update("v_orders"), update("orders")]);
}

#[test]
fn nested_writes_and_returning_have_their_parts() {
    let bound =
        bound("WITH d AS (DELETE FROM orders WHERE id = 1 RETURNING id) INSERT INTO docs (id) SELECT id FROM d");
    let part = |command, name| (command, PartRelation::Known(RelationName::new("app", name)));
    for expected in [
        part(SqlCommand::Delete, "orders"),
        part(SqlCommand::Select, "orders"),
        part(SqlCommand::Insert, "docs"),
    ] {
        assert!(bound.parts.contains(&expected), "{:?}", bound.parts);
    }
    assert_eq!(bound.parts.len(), 3);
    let merge = super::super::shop::bound(
        "MERGE INTO docs d USING orders o ON d.id = o.id WHEN MATCHED THEN UPDATE SET body = 'x' WHEN NOT MATCHED THEN INSERT (id) VALUES (1)",
    );
    for expected in [
        part(SqlCommand::Merge, "docs"),
        part(SqlCommand::Update, "docs"),
        part(SqlCommand::Insert, "docs"),
        part(SqlCommand::Select, "orders"),
    ] {
        assert!(merge.parts.contains(&expected), "{:?}", merge.parts);
    }
    let upsert = super::super::shop::bound("INSERT INTO docs (id) VALUES (1) ON CONFLICT DO NOTHING");
    assert_eq!(upsert.parts, [part(SqlCommand::Insert, "docs")]);
    let nothing = super::super::shop::bound("SELECT 1");
    assert_eq!(nothing.parts, [(SqlCommand::Select, PartRelation::None)]);
}

#[test]
fn every_relation_name_is_accounted_for_by_its_location() {
    let text = "WITH c AS (SELECT 1) SELECT * FROM c, users, nowhere FOR UPDATE OF users";
    let bound = bound(text);
    let at = |needle: &str, nth: usize| {
        let (place, _) = text.match_indices(needle).nth(nth).unwrap();
        bound.relations[&i32::try_from(place).unwrap()].clone()
    };
    assert_eq!(at("c, users", 0), Resolution::Cte);
    assert_eq!(at("users", 0), Resolution::Base(RelationName::new("app", "users")));
    assert_eq!(at("nowhere", 0), Resolution::Unknown);
    assert_eq!(at("users", 1), Resolution::Alias);
}

#[test]
fn unknown_names_make_facts_unknown_and_never_guessed() {
    for text in [
        "SELECT * FROM nowhere",
        "SELECT ssn FROM nowhere, docs",
        "SELECT x FROM json_to_record('{}') x",
        "SELECT * FROM other.users",
        "SELECT * FROM elsewhere.app.users",
        "SELECT * FROM pg_temp.users",
        "SELECT nothing FROM users",
    ] {
        let bound = bound(text);
        let unknown = bound.output == Output::Unknown || shown(&bound).contains(&"?".to_owned());
        assert!(unknown, "{text}: {:?}", bound.output);
    }
    let bound = bound("DELETE FROM nowhere WHERE id = 1");
    assert_eq!(bound.writes, Fact::Unknown);
    assert_eq!(bound.parts, [(SqlCommand::Delete, PartRelation::Unknown)]);
}

#[test]
fn an_unqualified_name_may_be_a_temporary_table() {
    let shopper = Shopper {
        temporary: true,
        ..Shopper::default()
    };
    assert_eq!(bound_for("SELECT * FROM users", &shopper).output, Output::Unknown);
    assert_eq!(shown(&bound_for("SELECT ssn FROM app.users", &shopper)), [SSN]);
}

#[test]
fn names_follow_case_path_and_length_rules() {
    only_shows("SELECT SSN FROM Users", &[SSN]);
    assert_eq!(
        bound("SELECT ssn FROM \"Users\"").output,
        bound("SELECT ssn FROM nowhere").output
    );
    only_shows("SELECT relname FROM pg_class", &["pg_catalog.pg_class.relname"]);
    only_shows("SELECT ssn FROM pub.users", &["pub.users.ssn"]);
}

#[test]
fn joins_merge_the_columns_they_compare() {
    let bound = shows(
        "SELECT * FROM users JOIN docs USING (id)",
        &[
            "app.users.id",
            "app.users.name",
            "app.users.email",
            SSN,
            "app.users.card",
            "app.docs.body",
            "app.docs.tags",
        ],
    );
    assert_eq!(uses(&bound), ["app.docs.id", "app.users.id"]);
    shows(
        "SELECT id FROM users FULL JOIN docs USING (id)",
        &["(app.docs.id app.users.id)"],
    );
    shows("SELECT id FROM users RIGHT JOIN docs USING (id)", &["app.docs.id"]);
    shows("SELECT j.ssn FROM (users JOIN docs USING (id)) j", &[SSN]);
    shows("SELECT k.id FROM users JOIN docs USING (id) AS k", &["app.users.id"]);
    shows(
        "SELECT d.body, u.ssn FROM users u CROSS JOIN docs d",
        &["app.docs.body", SSN],
    );
}

#[test]
fn inner_scopes_hide_outer_ones_and_neighbours_stay_apart() {
    only_shows("SELECT (SELECT body FROM docs LIMIT 1) FROM users", &["app.docs.body"]);
    only_shows("SELECT (SELECT ssn FROM docs LIMIT 1) FROM users", &[SSN]);
    // Without LATERAL the neighbour is not visible: the name means the outer query's column.
    shows(
        "SELECT (SELECT q.s FROM docs d, (SELECT name AS s) q LIMIT 1) FROM users",
        &["app.users.name"],
    );
    only_shows(
        "WITH users AS (SELECT body FROM docs) SELECT * FROM users",
        &["app.docs.body"],
    );
    only_shows("WITH users AS (SELECT ssn FROM users) SELECT * FROM users", &[SSN]);
    only_shows(
        "WITH users AS (SELECT body FROM docs) SELECT ssn FROM app.users",
        &[SSN],
    );
}

#[test]
fn recursive_queries_settle_on_every_column_that_flows_in() {
    let bound = bound(
        "WITH RECURSIVE r(a, b) AS (SELECT name, body FROM users, docs UNION ALL SELECT b, ssn FROM r, users) SELECT a, b FROM r",
    );
    let shown = shown(&bound);
    assert!(
        shown[0].contains("app.users.ssn") && shown[0].contains("app.users.name"),
        "{shown:?}"
    );
    assert!(
        shown[1].contains("app.users.ssn") && shown[1].contains("app.docs.body"),
        "{shown:?}"
    );
    only_shows(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT i FROM n",
        &["-"],
    );
}

#[test]
fn returning_shows_the_targets_columns() {
    only_shows("UPDATE users SET name = 'x' RETURNING ssn", &[SSN]);
    only_shows(
        "INSERT INTO users (id) VALUES (1) RETURNING id, ssn AS x",
        &["app.users.id", SSN],
    );
    only_shows("DELETE FROM users u RETURNING u.ssn", &[SSN]);
    only_shows("UPDATE users SET name = 'x' RETURNING old.ssn, new.ssn", &[SSN, SSN]);
    only_shows("UPDATE users SET name = 'x' RETURNING WITH (OLD AS o) o.ssn", &[SSN]);
    only_shows("WITH d AS (DELETE FROM users RETURNING ssn) SELECT * FROM d", &[SSN]);
    only_shows("UPDATE users SET name = 'x'", &["none"]);
    shows(
        "MERGE INTO docs d USING m_users u ON d.id = 1 WHEN MATCHED THEN DELETE RETURNING merge_action(), u.ssn, d.body",
        &["-", "app.m_users.ssn", "app.docs.body"],
    );
}

#[test]
fn copy_out_shows_columns_by_position_without_generated_ones() {
    only_shows(
        "COPY orders TO STDOUT",
        &[
            "app.orders.id",
            "app.orders.user_id",
            "app.orders.amount",
            "app.orders.status",
            "app.orders.note",
        ],
    );
    only_shows("COPY users (ssn, id) TO STDOUT", &[SSN, "app.users.id"]);
    let copy_in = bound("COPY users (id, ssn) FROM STDIN");
    assert_eq!(copy_in.output, Output::None);
    assert_eq!(copy_in.parts[0].0, SqlCommand::Insert);
}

#[test]
fn whole_rows_are_rows_when_shown_and_all_their_columns_when_used() {
    only_shows("SELECT u FROM users u", &["row app.users"]);
    only_shows("SELECT users FROM users", &["row app.users"]);
    let used = bound("SELECT row_to_json(d) FROM docs d");
    assert_eq!(uses(&used), ["app.docs.body", "app.docs.id", "app.docs.tags"]);
}

#[test]
fn assignments_from_anything_but_parameters_and_constants_are_noted() {
    let assigned = |text: &str| {
        bound(text)
            .uses
            .assigned
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert!(assigned("UPDATE users SET ssn = $1, card = 'x'::text, email = DEFAULT").is_empty());
    assert!(assigned("INSERT INTO users (id, ssn) VALUES ($1, 'x'), (2, $2)").is_empty());
    assert!(
        assigned("INSERT INTO users (id, ssn) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET ssn = excluded.ssn")
            .is_empty()
    );
    assert_eq!(assigned("UPDATE users SET ssn = name"), [SSN]);
    assert_eq!(assigned("UPDATE users SET ssn = upper('x')"), [SSN]);
    assert_eq!(assigned("INSERT INTO users (id, ssn) SELECT 1, body FROM docs"), [SSN]);
}

#[test]
fn user_functions_operators_and_casts_are_found_behind_their_notations() {
    let functions = |text: &str| {
        bound(text)
            .functions
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(functions("SELECT lookup(1)"), ["app.lookup"]);
    assert_eq!(functions("SELECT u.label FROM users u"), ["app.label"]);
    assert_eq!(functions("SELECT lower('x')"), ["app.lower"]);
    assert!(functions("SELECT pg_catalog.lower('x')").is_empty());
    assert_eq!(functions("SELECT 1 === 2"), ["app.same"]);
    assert_eq!(functions("SELECT 'x'::money"), ["app.to_money"]);
    shows("SELECT lookup(1)", &["?"]);
    shows("SELECT shout('x')", &["-"]);
    shows("SELECT query_to_xml('x', true, true, '')", &["?"]);
}

#[test]
fn functions_in_from_answer_the_columns_they_declare() {
    only_shows("SELECT * FROM generate_series(1, 3)", &["-"]);
    only_shows("SELECT g FROM generate_series(1, 3) g", &["-"]);
    only_shows("SELECT key, value FROM jsonb_each('{}')", &["-", "-"]);
    only_shows("SELECT k, v FROM pairs(1)", &["-", "-"]);
    only_shows("SELECT a FROM json_to_record('{}') AS x(a int, b text)", &["-"]);
    only_shows(
        "SELECT n, o FROM unnest($1::text[]) WITH ORDINALITY AS t(n, o)",
        &["-", "-"],
    );
    for text in [
        "SELECT t FROM docs d, unnest(d.tags) t",
        "SELECT t FROM docs d(a, b, c), pg_catalog.unnest(d.c) t",
        "SELECT t FROM docs, unnest(tags) t",
    ] {
        shows(text, &["(app.docs.tags)"]);
    }
    only_shows("SELECT n FROM unnest(ARRAY['a', 'b']) n", &["-"]);
    // psql asks so for \d+.
    let options = shows(
        "SELECT array(SELECT 'toast.' || x FROM pg_catalog.unnest(c.reloptions) x) FROM pg_class c",
        &["(pg_catalog.pg_class.reloptions)"],
    );
    assert_eq!(uses(&options), ["pg_catalog.pg_class.reloptions"]);
    // unnest(tsvector) answers three columns: which one is meant is not known.
    shows("SELECT t FROM docs d, unnest(lookup(1)) t", &["?"]);
}

/// unnest takes rows apart: a name may be one of the row's columns, and must not be looked for outside.
#[test]
fn columns_of_unnested_rows_are_not_taken_for_outer_ones() {
    for rows in [
        "ARRAY(SELECT u FROM users u)",
        "ARRAY[(SELECT u FROM users u LIMIT 1)]",
        "ARRAY(SELECT u FROM users u)::users[]",
        "$1::app.users[]",
        "ARRAY(SELECT u FROM users u), ARRAY['x']",
        "ARRAY['x'], $1::users[]",
    ] {
        for from in ["", "pg_catalog."] {
            let text = format!("SELECT (SELECT ssn FROM {from}unnest({rows}) x LIMIT 1) FROM (SELECT 'a' AS ssn) o");
            shows(&text, &["?"]);
        }
    }
}

#[test]
fn columns_are_named_as_the_server_names_them() {
    let named = |text: &str| names(&bound(text));
    assert_eq!(
        named("SELECT 1, 'x'::text, ssn::varchar, upper(ssn), u.id, count(*), CASE WHEN true THEN 1 ELSE ssn END, (u).name FROM users u"),
        ["?column?", "text", "ssn", "upper", "id", "count", "ssn", "name"]
    );
    assert_eq!(
        named("SELECT (SELECT ssn FROM users), EXISTS (SELECT 1), ARRAY[1], ROW(1), coalesce(1, 2), CURRENT_DATE, nullif(1, 2)"),
        ["ssn", "exists", "array", "row", "coalesce", "current_date", "nullif"]
    );
    assert_eq!(named("VALUES (1, 2)"), ["column1", "column2"]);
}

#[test]
fn nesting_beyond_the_limit_is_unknown_and_not_a_crash() {
    let deep = format!("SELECT {}1", "1 + ".repeat(3_000));
    let outcome = std::panic::catch_unwind(|| bound(&deep));
    if let Ok(bound) = outcome {
        assert!(bound.uses.unknown);
    }
    let nested = format!("SELECT {}ssn{} FROM users", "(SELECT ".repeat(40), ")".repeat(40));
    only_shows(&nested, &[SSN]);
}
