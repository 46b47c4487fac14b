//! `sidegate-broker rotate --now`: asks the running broker, over its control socket, for new keys at once.
//!
//! Refuses without `--now`: planned rotation needs nobody. The exit code is 1 where a ring keeps its old keys.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use sidegate_broker::control::client::Client;
use sidegate_broker::control::{RingName, RolledAuthority, Rotate, RotatedNow};

/// The broker answers within this, or did not do it.
const DEADLINE: Duration = Duration::from_secs(30);
const MAX_ANSWER: usize = 1 << 20;

/// What is rotated.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Really: sessions are attested anew, and third parties may hold the old keys for a while.
    #[arg(long, required = true)]
    now: bool,
    /// State folder of the running broker.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// access, federation or record; may be repeated. All of them if absent.
    #[arg(long, value_name = "RING", value_parser = ring)]
    ring: Vec<RingName>,
    /// Not the rings, but the authority of the broker's TLS, in a cluster. Sidecars that pinned the old one go on.
    #[arg(long, conflicts_with = "ring")]
    authority: bool,
}

fn ring(text: &str) -> Result<RingName, String> {
    let mut all = RingName::ALL.into_iter();
    all.find(|ring| ring.as_str() == text)
        .ok_or_else(|| "write access, federation or record".to_owned())
}

/// Asks, and prints what was done.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let rotate = Rotate {
        rings: arguments.ring.clone(),
    };
    let absent = format!(
        "no broker runs with state {}; start it, then rotate",
        arguments.state.display()
    );
    let client = Client {
        state: &arguments.state,
        deadline: DEADLINE,
        largest: MAX_ANSWER,
        absent: &absent,
    };
    let mut out = std::io::stdout().lock();
    if arguments.authority {
        let rolled: RolledAuthority = client.call(Method::POST, "/roll-authority", None::<&()>)?;
        writeln!(out, "new authority: {}\n{}", rolled.authority, rolled.notice)?;
        return Ok(ExitCode::SUCCESS);
    }
    let done: RotatedNow = client.call(Method::POST, "/rotate", Some(&rotate))?;
    for ring in &done.rotated {
        for kid in &ring.kids {
            writeln!(out, "{}: new key {kid}", ring.ring.as_str())?;
        }
        for kid in &ring.removed {
            writeln!(out, "{}: removed {kid}", ring.ring.as_str())?;
        }
    }
    for failed in &done.failed {
        writeln!(out, "NOT rotated: {failed}")?;
    }
    if let Some(unrecorded) = &done.unrecorded {
        writeln!(out, "in force, but not in the audit log yet: {unrecorded}")?;
    }
    writeln!(out, "{}", done.notice)?;
    Ok(if done.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
