//! `sidegate verify`: checks a record store, or a copy of it, offline and with public keys only. The exit code is the
//! worst verdict, so that a script can act on it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use sidegate_policies::record::verify::{verify_store, Options, Report, Verdict};

use super::Usage;
use crate::out::{visible, Out, Tone};

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate verify /var/lib/sidegate/records
  sidegate verify ./copy-of-the-store --keys ring.json --checkpoint checkpoint
  sidegate verify STORE --session 0190a6c2-... -o json

Exit codes, by the worst verdict:
   0  VALID, OPEN (still being written) or SHREDDED (chain good, content unreadable by decision)
   2  wrong usage, or the store cannot be read
  10  UNSEALED: a tail without signature after a crash, consistent with the heartbeats
  11  CLOCK-SUSPECT
  20  TRUNCATED: proof of later frames exists
  21  GAP: frames are missing
  22  FORGED: a hash, a signature, a certificate, a splice or an overwrite")]
pub struct VerifyArgs {
    /// The store: `records` in a state folder, or a copy of it.
    store: PathBuf,
    /// Only this session.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Public keys kept elsewhere (JWK set), instead of the store's own.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// A checkpoint kept elsewhere: the store must be a continuation of it.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
}

/// Verifies a store.
pub fn run(args: VerifyArgs, out: &Out) -> anyhow::Result<ExitCode> {
    let options = Options {
        session: args.session,
        keys: args.keys,
        checkpoint: args.checkpoint,
    };
    let report = verify_store(&args.store, &options).map_err(|error| Usage(error.to_string()))?;
    if out.json() {
        out.document(&report)?;
    } else {
        print(&report, out)?;
    }
    Ok(ExitCode::from(report.exit_code()))
}

fn print(report: &Report, out: &Out) -> anyhow::Result<()> {
    let verdict = |verdict: Verdict| {
        let tone = match verdict.code() {
            0 => Tone::Good,
            10 | 11 => Tone::Warn,
            _ => Tone::Bad,
        };
        out.tone(tone, format!("{:<12}", verdict.to_string()))
    };
    let because = |why: &str| match why.is_empty() {
        true => String::new(),
        false => format!("  {}", visible(why)),
    };
    for session in &report.sessions {
        let (name, frames) = (visible(&session.session), session.frames);
        out.line(format!(
            "{} session {name}  {frames} frames{}",
            verdict(session.verdict),
            because(&session.why)
        ))?;
    }
    for log in &report.logs {
        let (name, segments) = (visible(&log.log), log.segments);
        out.line(format!(
            "{} log {name}  {segments} signed segment(s){}",
            verdict(log.verdict),
            because(&log.why)
        ))?;
    }
    for finding in &report.store {
        out.line(format!("{} store{}", verdict(finding.verdict), because(&finding.why)))?;
    }
    let sum = format!(
        "{} session(s), {} log(s), {} checkpoint(s)",
        report.sessions.len(),
        report.logs.len(),
        report.checkpoints
    );
    match report.exit_code() {
        0 => out.line(format!("{}: {sum}", out.tone(Tone::Good, "verified")))?,
        code => out.line(format!(
            "{} (exit code {code}): {sum}",
            out.tone(Tone::Bad, "not verified")
        ))?,
    }
    Ok(())
}
