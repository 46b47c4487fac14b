//! Our lineage against the server's own: wherever PostgreSQL names the column a result field comes from, the analysis
//! names it too. It may name more; naming less would let a masked column through under another name.
//!
//! The queries are generated from a seed, nested as deep as people nest them, and only described, never run.

mod generator;

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};
use sidegate_policies::engine::operation::Completeness;
use sidegate_policies::explanation::Setting;
use sidegate_policies::sql::names::ColumnName;
use sidegate_policies::sql::postgres::catalog::{read_snapshot, snapshot_query, Catalog};
use sidegate_policies::sql::postgres::lineage::identities;
use sidegate_policies::sql::postgres::{Output, Source};
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::wire::{describe, parse, sync, Frame, Wire};

use generator::Generator;

/// Printed with every failure: it repeats the corpus.
const SEED: u64 = 20_261_125;
const QUERIES: usize = 1500;

const SCHEMA: &str = "
CREATE ROLE whoever LOGIN SUPERUSER;
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE TYPE app.address AS (street text, zip text);
CREATE DOMAIN app.short AS text CHECK (length(VALUE) < 90);
CREATE TABLE app.users (id int PRIMARY KEY, gone int, name app.short NOT NULL, ssn text, tags text[], home app.address,
    moods app.mood[], doc jsonb);
ALTER TABLE app.users DROP COLUMN gone;
CREATE TABLE app.orders (id int PRIMARY KEY, user_id int, total int, note text);
CREATE TABLE app.events (id int, at date, who text) PARTITION BY RANGE (at);
CREATE TABLE app.events_1 PARTITION OF app.events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE app.base (id int, a text);
CREATE TABLE app.derived (b text) INHERITS (app.base);
CREATE VIEW app.people AS SELECT id AS person, ssn AS number, name || '!' AS loud FROM app.users;
CREATE VIEW app.nested AS SELECT p.number AS inner_number, o.note FROM app.people p JOIN app.orders o ON o.user_id = p.person;
CREATE VIEW app.shifted (z, y) AS SELECT * FROM (SELECT note, id FROM app.orders) s;
CREATE MATERIALIZED VIEW app.counted AS SELECT number, count(*) AS n FROM app.people GROUP BY number;
CREATE FUNCTION app.pick(int) RETURNS SETOF app.users LANGUAGE sql STABLE AS 'SELECT * FROM app.users WHERE id = $1';
CREATE FUNCTION app.both(int) RETURNS TABLE (p int, q text) LANGUAGE sql STABLE AS 'SELECT id, ssn FROM app.users';
CREATE FUNCTION app.outs(OUT a int, OUT b text) LANGUAGE sql STABLE AS 'SELECT 1, ''x''';
CREATE FUNCTION app.where_is(int) RETURNS app.address LANGUAGE sql STABLE AS 'SELECT home FROM app.users LIMIT 1';
";

/// What the server says of one result field.
struct Field {
    name: String,
    table: u32,
    attnum: i16,
}

/// What became of the corpus.
#[derive(Debug, Default)]
struct Tally {
    /// The server turned it away.
    rejected: usize,
    /// We do not say where its output comes from, which refuses it where masks hold.
    unknown: usize,
    fields: usize,
    named: usize,
    /// The server named it, and we named just that.
    exact: usize,
}

fn fields(frames: &[Frame]) -> Option<Vec<Field>> {
    let body = &frames.iter().find(|frame| frame.kind == b'T')?.body;
    let number = |at: usize, bytes: usize| {
        body[at..at + bytes]
            .iter()
            .fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte))
    };
    let mut found = Vec::new();
    let mut at = 2;
    while found.len() < number(0, 2) as usize {
        let end = at + body[at..].iter().position(|byte| *byte == 0)?;
        found.push(Field {
            name: String::from_utf8_lossy(&body[at..end]).into_owned(),
            table: number(end + 1, 4),
            attnum: number(end + 5, 2) as u16 as i16,
        });
        at = end + 19;
    }
    Some(found)
}

/// Every column our lineage says a value may come from; None where it says that it cannot tell.
fn ours(source: &Source, catalog: &Catalog) -> Option<Vec<ColumnName>> {
    let direct = match source {
        Source::Clean => Vec::new(),
        Source::Column(column) => vec![column.clone()],
        Source::Derived(columns) => columns.clone(),
        Source::WholeRow(row) => {
            let relation = catalog.relation_named(&row.schema, &row.name)?;
            relation
                .columns
                .iter()
                .map(|column| relation.column_name(column))
                .collect()
        }
        Source::Unknown => return None,
    };
    Some(direct.iter().flat_map(|column| identities(catalog, column)).collect())
}

/// Compares one query; answers what is wrong with it.
fn compare(setting: &Setting, text: &str, fields: &[Field], tally: &mut Tally) -> Result<(), String> {
    let analysis = setting.analyse(text);
    if let Some(problem) = &analysis.problem {
        return Err(format!("not understood: {problem}"));
    }
    if analysis.completeness == Completeness::Opaque {
        return Err("opaque".to_owned());
    }
    let columns = match &analysis.statements[0].output {
        Output::Rows(columns) => columns,
        Output::Unknown => {
            tally.unknown += 1;
            return Ok(());
        }
        Output::None => return Err("we say that it answers no rows".to_owned()),
    };
    if columns.len() != fields.len() {
        return Err(format!("{} columns, the server says {}", columns.len(), fields.len()));
    }
    for (at, (column, field)) in columns.iter().zip(fields).enumerate() {
        tally.fields += 1;
        if field.table == 0 {
            continue;
        }
        tally.named += 1;
        let catalog = &setting.catalog;
        let relation = catalog.relation(field.table).ok_or("a relation we do not know")?;
        let origins: Vec<ColumnName> = match field.attnum {
            0 => relation.columns.iter().map(|each| relation.column_name(each)).collect(),
            attnum if attnum < 0 => continue,
            attnum => vec![relation.column_name(relation.attribute(attnum).ok_or("an attribute we do not know")?)],
        };
        let Some(told) = ours(&column.source, catalog) else {
            continue;
        };
        if let Some(missed) = origins.iter().find(|origin| !told.contains(origin)) {
            return Err(format!(
                "field {at} (`{}`) comes from {missed}, and we say {:?}",
                field.name, column.source
            ));
        }
        tally.exact += usize::from(matches!(&column.source, Source::Column(own) if origins == [own.clone()]));
    }
    Ok(())
}

fn differ(major: Major) -> Result<()> {
    let options = Options {
        hba: vec!["host all all 127.0.0.1/32 trust".to_owned()],
        ..Options::default()
    };
    let server = Postgres::with(major, options)?;
    server.sql("postgres", SCHEMA)?;
    let catalog = read_snapshot(&server.sql("postgres", &snapshot_query())?)?;
    let setting = Setting {
        catalog: catalog.into(),
        has_schema: true,
        ..Setting::bare(major.number())
    };
    let mut wire = Wire::login(server.port, "postgres")?;
    let mut generator = Generator::new(SEED, major.number());
    let mut tally = Tally::default();
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    for _ in 0..QUERIES {
        let text = generator.statement();
        let frames = wire.ask(&[parse("", &text), describe(b'S', ""), sync()])?;
        if let Some(error) = frames.iter().find(|frame| frame.kind == b'E') {
            let message = error.field(b'M').unwrap_or_default();
            ensure!(
                error.field(b'C').as_deref() != Some("42601"),
                "the generator writes no SQL: {message}: {text}"
            );
            tally.rejected += 1;
            if std::env::var_os("SIDEGATE_SHOW_REJECTED").is_some() {
                println!("{message}: {text}");
            }
            continue;
        }
        let fields = fields(&frames).with_context(|| format!("no RowDescription: {text}"))?;
        if let Err(why) = compare(&setting, &text, &fields, &mut tally) {
            wrong.insert(text, why);
        }
    }
    println!("{major:?}: {QUERIES} queries of seed {SEED}: {tally:?}");
    let shortest: Vec<String> = {
        let mut all: Vec<_> = wrong.iter().collect();
        all.sort_by_key(|(text, _)| text.len());
        all.iter()
            .take(12)
            .map(|(text, why)| format!("{why}\n    {text}"))
            .collect()
    };
    ensure!(
        wrong.is_empty(),
        "{major:?}, seed {SEED}: {} of {QUERIES} queries:\n  {}",
        wrong.len(),
        shortest.join("\n  ")
    );
    // Teeth: most of it is described, and the server names many origins that we tell exactly.
    ensure!(tally.rejected < QUERIES / 5, "{tally:?}");
    ensure!(tally.unknown < QUERIES / 10, "{tally:?}");
    ensure!(tally.named > QUERIES && tally.exact * 10 > tally.named * 7, "{tally:?}");
    Ok(())
}

#[test]
fn every_origin_that_postgresql_15_names_is_in_our_lineage() -> Result<()> {
    differ(Major::V15)
}

#[test]
fn every_origin_that_postgresql_18_names_is_in_our_lineage() -> Result<()> {
    differ(Major::V18)
}
