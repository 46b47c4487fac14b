//! The server's own tools: a `psql` script with its expected output, and `pgbench` in its three modes.

use std::process::{Command, Output};

use anyhow::{ensure, Context, Result};

use super::checks::{ssn, Checks};
use super::{environment, flows, Endpoint};
use sidegate_tests::postgres::{cache, Postgres, SUPERUSER, SUPERUSER_PASSWORD};

/// The plain values of `app.people.ssn`, as they stand in the expected outputs.
const PLAIN: [&str; 3] = ["531-22-8841", "212-09-9923", "402-77-1350"];

/// A tool by its name and major, `psql-18`.
fn tool(name: &str) -> Result<Command> {
    let path = match name.split_once('-').context("NAME-MAJOR")? {
        (tool, "15") => format!("/usr/lib/postgresql/15/bin/{tool}").into(),
        (tool, major) => cache()?.join(format!("postgres-{major}-clients/bin/{tool}")),
    };
    ensure!(
        path.exists(),
        "{name} is missing at {}: run `bash tests/setup/need.sh postgres drivers`",
        path.display()
    );
    Ok(Command::new(path))
}

fn run(name: &str, endpoint: &Endpoint, arguments: &[&str]) -> Result<Output> {
    let mut command = tool(name)?;
    environment(&mut command, endpoint);
    // The script's folder, so that it can be named as it stands.
    command.current_dir(flows().join("psql")).args(arguments);
    command.output().with_context(|| name.to_owned())
}

/// The scripts' output must be the expected one, line by line.
pub(super) fn psql(name: &str, endpoint: &Endpoint) -> Result<String> {
    let mut checks = Checks::default();
    let scripts: &[&str] = if name == "psql-15" {
        &["flow"]
    } else {
        &["flow", "flow18"]
    };
    for script in scripts {
        let output = run(name, endpoint, &["-X", "-q", "-f", &format!("{script}.sql")])?;
        let mut expected = std::fs::read_to_string(flows().join(format!("psql/{script}.out")))?;
        for plain in PLAIN {
            expected = expected.replace(plain, &ssn(endpoint, plain));
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        for (number, (said, expected)) in said.lines().zip(expected.lines()).enumerate() {
            let what = format!(
                "{name} {script}.out:{}: {said:?}, not {expected:?}\n{errors}",
                number + 1
            );
            checks.check(&what, said == expected)?;
        }
        let what = format!("{name} {script}: {}\n{said}\n{errors}", output.status);
        let whole = output.status.success() && said.lines().count() == expected.lines().count();
        checks.check(&what, whole)?;
    }
    Ok(checks.ok(name))
}

/// Fills pgbench's own tables directly at the server, readable and writable for `role`.
pub fn prepare_bench(server: &Postgres, database: &str, role: &str) -> Result<()> {
    let endpoint = Endpoint {
        port: server.port,
        user: SUPERUSER.into(),
        password: Some(SUPERUSER_PASSWORD.into()),
        database: database.into(),
        masked: false,
        gated: false,
    };
    let output = run("pgbench-15", &endpoint, &["-i", "-q", "-s", "1"])?;
    ensure!(
        output.status.success(),
        "pgbench -i: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tables = "pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history";
    server.sql(database, &format!("GRANT ALL ON {tables} TO {role}"))?;
    Ok(())
}

/// Both scripts it brings along, in every mode: no transaction may fail, and every one must have been done.
pub(super) fn pgbench(name: &str, endpoint: &Endpoint) -> Result<String> {
    let mut checks = Checks::default();
    for mode in ["simple", "extended", "prepared"] {
        for script in ["select-only", "tpcb-like"] {
            let output = run(
                name,
                endpoint,
                &["-n", "-c", "4", "-j", "2", "-t", "25", "-M", mode, "-b", script],
            )?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let done = said.contains("number of transactions actually processed: 100/100")
                && said.contains("number of failed transactions: 0 ");
            let what = format!(
                "{name} -M {mode} -b {script}: {}\n{said}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
            checks.check(&what, output.status.success() && done)?;
        }
    }
    Ok(checks.ok(name))
}
