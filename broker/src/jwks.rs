//! `sidegate-broker jwks`: prints the public keys of the running broker, for providers that hold an uploaded copy.
//!
//! Refuses nothing: it shows what the public face shows to everybody. Keys that will sign within the week are among them,
//! so one upload a month is in time.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::Value;
use sidegate_broker::control::client::Client;

/// The broker answers within this, or not at all.
const DEADLINE: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 1 << 20;

/// Whose keys.
#[derive(Debug, Args)]
pub struct Arguments {
    /// State folder of the running broker.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

/// Asks, and prints them.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let absent = format!(
        "no broker runs with state {}; start it first",
        arguments.state.display()
    );
    let client = Client {
        state: &arguments.state,
        deadline: DEADLINE,
        largest: MAX_ANSWER,
        absent: &absent,
    };
    let keys: Value = client.call(Method::GET, "/jwks", None::<&()>)?;
    writeln!(std::io::stdout().lock(), "{keys}")?;
    Ok(ExitCode::SUCCESS)
}
