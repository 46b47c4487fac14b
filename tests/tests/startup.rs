//! What clients ask on their own at start-up and when they look at a schema must be understood: `psql`'s `\d` family,
//! pgjdbc's metadata, psycopg's and asyncpg's type look-ups, what SQLAlchemy and Django reflect, how Hibernate validates and
//! updates a schema, how ActiveRecord learns, dumps and migrates one, and what they and Prisma's client then send.
//!
//! Of Prisma only the client (`engineType = "client"`, over node-postgres) is here: `prisma migrate` and `prisma db pull` need
//! its schema engine, a binary that the CLI fetches from binaries.prisma.sh and npm does not carry.
//!
//! Nothing is kept of their statements: each run lets the real clients loose on a real server that logs what it is
//! sent, and analyses that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use sidegate_policies::engine::operation::Completeness;
use sidegate_policies::explanation::Setting;
use sidegate_policies::sql::postgres::catalog::{read_snapshot, snapshot_query};
use sidegate_tests::postgres::{cache, Major, Options, Postgres};

/// Before every line of the server's log, so that a statement of many lines is told from the next entry.
const PREFIX: &str = "sg|";
/// What parts two entries.
const BETWEEN: &str = "\nsg|";

const SCHEMA: &str = "
CREATE ROLE whoever LOGIN SUPERUSER;
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'ok');
CREATE TYPE app.pair AS (k text, v app.mood);
CREATE DOMAIN app.short AS text CHECK (length(VALUE) < 20);
CREATE TABLE app.users (id bigserial PRIMARY KEY, name app.short NOT NULL DEFAULT 'x', ssn text UNIQUE, moods app.mood[],
    p app.pair, at timestamptz DEFAULT now(), CHECK (id > 0));
CREATE TABLE app.orders (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, total numeric(10, 2),
    user_id bigint REFERENCES app.users ON DELETE CASCADE);
CREATE INDEX ON app.orders (total);
CREATE TABLE app.events (id int, at date, who text) PARTITION BY RANGE (at);
CREATE TABLE app.events_1 PARTITION OF app.events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE VIEW app.people AS SELECT id, name FROM app.users;
CREATE MATERIALIZED VIEW app.counted AS SELECT name, count(*) AS n FROM app.users GROUP BY 1;
CREATE FUNCTION app.f(a int) RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE SEQUENCE app.seq;
COMMENT ON TABLE app.users IS 'people';
CREATE TABLE items (id serial PRIMARY KEY, name varchar(80) NOT NULL, doc jsonb, tags text[]);
INSERT INTO app.users (moods, p) VALUES ('{ok}', '(a,ok)');
";

/// Commands of `psql` that ask the catalogs.
const PSQL: &str = "\\d|\\d+|\\d app.users|\\d+ app.users|\\d app.orders|\\d+ app.events|\\d app.events_1|\
    \\d+ app.people|\\d app.counted|\\d app.seq|\\d app.orders_total_idx|\\dt|\\dt+ app.*|\\dv app.*|\
    \\dm app.*|\\di app.*|\\ds app.*|\\df app.*|\\df+ app.f|\\dn+|\\du|\\dT+ app.*|\\dD app.*|\\dx|\\l|\
    \\dp app.*|\\dc|\\dC|\\dd|\\do app.*|\\db|\\des|\\ddp|\\dO app.*|\\dL|\\dP app.*|\\dy|\\dRp|\\dRs|\
    \\dX|\\dF|\\dA|\\drds|\\sf app.f|\\sv app.people|\\dE";

struct Client {
    name: &'static str,
    /// It asks at least so many different statements, or something went wrong unseen.
    least: usize,
    command: Command,
}

fn path(name: &str) -> Result<PathBuf> {
    let path = cache()?.join(name);
    ensure!(
        path.exists(),
        "{} is missing: run `bash tests/setup/need.sh postgres drivers`",
        path.display()
    );
    Ok(path)
}

fn clients() -> Result<Vec<Client>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let psql = |program: PathBuf| {
        let mut command = Command::new(program);
        command
            .args(["-X", "-q"])
            .args(PSQL.split('|').flat_map(|asked| ["-c", asked]));
        command
    };
    let python = |script: &str| -> Result<Command> {
        let mut command = Command::new(path("clients/venv/bin/python")?);
        command.arg("-B").arg(here.join("python").join(script));
        Ok(command)
    };
    let java = |class_path: PathBuf, source: &str| {
        let mut command = Command::new("java");
        command.arg("-cp").arg(class_path).arg(here.join("java").join(source));
        command
    };
    let driver = path("clients/postgresql-42.7.8.jar")?;
    let mut ruby = Command::new("ruby");
    ruby.arg(here.join("ruby/reflect.rb"));
    let mut node = Command::new("node");
    node.arg(path("clients/prisma/start.mjs")?);
    let client = |name, least, command| Client { name, least, command };
    Ok(vec![
        client("psql-15", 60, psql("/usr/lib/postgresql/15/bin/psql".into())),
        client("psql-18", 60, psql(path("postgres-18-clients/bin/psql")?)),
        client("pgjdbc", 25, java(driver, "Metadata.java")),
        client("drivers in Python", 10, python("type_lookups.py")?),
        client("SQLAlchemy and Django", 40, python("reflect.py")?),
        client(
            "Hibernate",
            25,
            java(path("clients/hibernate")?.join("*"), "Hibernate.java"),
        ),
        client("ActiveRecord", 90, ruby),
        client("Prisma", 20, node),
    ])
}

/// Every statement of the log, once, in order.
fn statements(log: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let entries = || log.split(BETWEEN);
    // What the server turned away itself, such as a column that another version has.
    let refused: Vec<&str> = entries()
        .filter_map(|entry| entry.strip_prefix("STATEMENT:  "))
        .map(str::trim_end)
        .collect();
    for entry in entries() {
        let simple = entry.strip_prefix("LOG:  statement: ");
        let extended = || {
            entry
                .strip_prefix("LOG:  execute ")?
                .split_once(": ")
                .map(|(_, text)| text)
        };
        if let Some(text) = simple
            .or_else(extended)
            .map(str::trim_end)
            .filter(|text| !refused.contains(text))
        {
            // The log shifts every line but the first by a tab.
            let text = text.replace("\n\t", "\n");
            if !found.contains(&text) {
                found.push(text);
            }
        }
    }
    found
}

fn understood(major: Major) -> Result<()> {
    let options = Options {
        hba: vec!["host all all 127.0.0.1/32 trust".to_owned()],
        settings: vec![
            "log_statement = 'all'".to_owned(),
            format!("log_line_prefix = '{PREFIX}'"),
        ],
        ..Options::default()
    };
    let server = Postgres::with(major, options)?;
    server.sql("postgres", SCHEMA)?;
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    for Client {
        name,
        least,
        mut command,
    } in clients()?
    {
        let before = server.log().len();
        let output = command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", server.port.to_string())
            .env("PGUSER", "whoever")
            .env("PGDATABASE", "postgres")
            .output()
            .with_context(|| format!("{name} cannot be started"))?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        // psql goes on after a command that an older server does not know.
        ensure!(output.status.success() || name.starts_with("psql"), "{name}: {errors}");
        let log = server.log();
        let asked = statements(log.get(before..).unwrap_or_default());
        println!("{major:?}, {name}: {} different statements", asked.len());
        ensure!(
            asked.len() >= least,
            "{name} asked {} statements: {errors}",
            asked.len()
        );
        // What it made is there by now.
        let catalog = read_snapshot(&server.sql("postgres", &snapshot_query())?)?;
        let setting = Setting {
            catalog: catalog.into(),
            has_schema: true,
            ..Setting::bare(major.number())
        };
        for text in asked {
            let analysis = setting.analyse(&text);
            let why = match (&analysis.problem, analysis.completeness) {
                (Some(problem), _) => problem.clone(),
                (None, Completeness::Opaque) => "opaque".to_owned(),
                _ if analysis.is_unresolved() => "a name is not resolved".to_owned(),
                (None, Completeness::Partial) => "not all of it is known".to_owned(),
                _ => continue,
            };
            wrong.insert(text, format!("{name}: {why}"));
        }
    }
    let told: Vec<String> = wrong.iter().map(|(text, why)| format!("{why}\n{text}")).collect();
    ensure!(
        wrong.is_empty(),
        "{major:?}, {} statements:\n{}",
        wrong.len(),
        told.join("\n\n")
    );
    Ok(())
}

#[test]
fn what_clients_ask_a_server_15_on_their_own_is_understood() -> Result<()> {
    understood(Major::V15)
}

#[test]
fn what_clients_ask_a_server_18_on_their_own_is_understood() -> Result<()> {
    understood(Major::V18)
}
