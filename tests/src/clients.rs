//! Stock clients in their own languages, run as the processes they are. Each prints `ok <name> <checks>` or fails;
//! one that is not installed is an error that names the command to install it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};

use crate::postgres::cache;

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
pub const CLIENTS: [&str; 5] = ["psycopg", "asyncpg", "node-postgres", "pgx", "pgjdbc"];

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
        _ => {
            command = Command::new("java");
            command
                .arg("-cp")
                .arg(installed.join("postgresql-42.7.8.jar"))
                .arg(flows().join("java/Flow.java"));
        }
    }
    Ok(command)
}

/// Runs one client's flow against an endpoint and answers its closing line.
pub fn run(client: &str, endpoint: &Endpoint) -> Result<String> {
    let mut command = command(client)?;
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
    let output = command
        .stdin(Stdio::null())
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
