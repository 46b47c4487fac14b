//! Stock `psql` as the agent runs it: a clean environment, no password, the local port.

use std::process::{Command, Stdio};

use anyhow::Result;

/// What psql said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Standard output, unaligned, without the last line end.
    pub out: String,
    /// Standard error: errors with SQLSTATE, DETAIL and HINT.
    pub err: String,
    /// Exit code.
    pub code: i32,
}

impl Said {
    /// The SQLSTATEs of every error, in order.
    pub fn states(&self) -> Vec<&str> {
        let lines = self
            .err
            .lines()
            .filter_map(|line| line.split_once("ERROR:  ").or(line.split_once("FATAL:  ")));
        lines.filter_map(|(_, text)| text.split(':').next()).collect()
    }

    /// Whether Sidegate refused something.
    pub fn refused(&self) -> bool {
        self.err.contains("Sidegate refused")
    }
}

/// Runs each text as one `-c` of one session.
pub fn psql(port: u16, database: &str, texts: &[&str]) -> Result<Said> {
    let mut command = Command::new("psql");
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("PGSSLMODE", "disable")
        .env("PGCONNECT_TIMEOUT", "20")
        .args([
            "-X",
            "-A",
            "-t",
            "-v",
            "VERBOSITY=verbose",
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
        ])
        .args(["-U", "whoever", "-d", database]);
    for text in texts {
        command.args(["-c", text]);
    }
    let output = command.stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    Ok(Said {
        out: text(&output.stdout),
        err: text(&output.stderr),
        code: output.status.code().unwrap_or(-1),
    })
}

/// The same from async code.
pub async fn psql_async(port: u16, database: &str, texts: &[&str]) -> Result<Said> {
    let (database, texts) = (
        database.to_owned(),
        texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(),
    );
    tokio::task::spawn_blocking(move || psql(port, &database, &texts.iter().map(String::as_str).collect::<Vec<_>>()))
        .await?
}
