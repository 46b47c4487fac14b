//! Stock clients, run as their users run them: drivers of other languages and the server's own tools as the processes
//! they are, drivers in Rust within this one. Each answers `ok <name> <checks>` or fails; one that is not installed is
//! an error that names the command to install it.

mod checks;
mod sqlx_flow;
mod tokio_postgres_flow;
mod tools;

use std::future::Future;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};

use sidegate_tests::postgres::cache;
pub use tools::prepare_bench;

/// Where a client connects, and what it should expect.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// User named at login.
    pub user: String,
    /// Password, where the endpoint asks for one.
    pub password: Option<String>,
    /// Database.
    pub database: String,
    /// `app.people.ssn` is masked to its last four characters.
    pub masked: bool,
    /// `DROP TABLE` and unfiltered writes are refused by policy.
    pub gated: bool,
}

/// Every client of the suite.
pub const CLIENTS: [&str; 11] = [
    "psycopg",
    "asyncpg",
    "node-postgres",
    "pgx",
    "pgjdbc",
    "tokio-postgres",
    "sqlx",
    "psql-15",
    "psql-18",
    "pgbench-15",
    "pgbench-18",
];

/// A flow takes seconds; one that hangs is a failure, not a wait.
const PATIENCE: Duration = Duration::from_secs(120);

fn flows() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients")
}

fn command(client: &str) -> Result<Command> {
    let installed = cache()?.join("clients");
    let mut command;
    match client {
        "psycopg" | "asyncpg" => {
            command = Command::new(installed.join("venv/bin/python"));
            command.arg(flows().join(format!("python/{client}_flow.py")));
        }
        "node-postgres" => {
            std::fs::copy(flows().join("node/flow.mjs"), installed.join("node/flow.mjs")).context("node-postgres")?;
            command = Command::new("node");
            command.arg(installed.join("node/flow.mjs"));
        }
        "pgx" => command = Command::new(installed.join("pgx")),
        "pgjdbc" => {
            command = Command::new("java");
            command
                .arg("-cp")
                .arg(installed.join("postgresql-42.7.8.jar"))
                .arg(flows().join("java/Flow.java"));
        }
        other => bail!("no client is named {other}"),
    }
    Ok(command)
}

/// The environment every client gets, and no more.
fn environment(command: &mut Command, endpoint: &Endpoint) {
    command.env_clear();
    for name in ["PATH", "HOME", "LANG"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", endpoint.port.to_string())
        .env("PGUSER", &endpoint.user)
        .env("PGDATABASE", &endpoint.database)
        .env("PGSSLMODE", "disable")
        .env("MASKED", if endpoint.masked { "1" } else { "0" })
        .env("GATED", if endpoint.gated { "1" } else { "0" });
    if let Some(password) = &endpoint.password {
        command.env("PGPASSWORD", password);
    }
    command.stdin(Stdio::null());
}

/// A flow in Rust, on a runtime of its own.
fn within<F: Future<Output = Result<String>>>(client: &str, flow: F) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let deadline = async { tokio::time::timeout(PATIENCE, flow).await.context("the flow hangs")? };
    runtime.block_on(deadline).context(client.to_owned())
}

/// Runs one client's flow against an endpoint and answers its closing line. Not from async code.
pub fn run(client: &str, endpoint: &Endpoint) -> Result<String> {
    match client {
        "tokio-postgres" => return within(client, tokio_postgres_flow::flow(endpoint)),
        "sqlx" => return within(client, sqlx_flow::flow(endpoint)),
        "psql-15" | "psql-18" => return tools::psql(client, endpoint),
        "pgbench-15" | "pgbench-18" => return tools::pgbench(client, endpoint),
        _ => {}
    }
    let mut command = command(client)?;
    environment(&mut command, endpoint);
    let output = command
        .output()
        .with_context(|| format!("{client} cannot be started: run `bash tests/setup/need.sh drivers`"))?;
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success() && printed.starts_with("ok "),
        "{client}: {}\n{printed}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(printed)
}
