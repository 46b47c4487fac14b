//! `sidegate status`: what is served and where, what is not and why, who is connected, what is frozen; on this machine, or
//! in a cluster.

use std::process::ExitCode;

use clap::Args;
use sidegate_broker::control::Status;

use super::{overview, HomeArg};
use crate::cluster::ClusterArgs;
use crate::control;
use crate::instance::state_folder;
use crate::out::{visible, Out, Tone};
use crate::StateArg;

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate status
  sidegate status -o json | jq '.targets[].listen'
  kubectl sidegate status")]
pub struct StatusArgs {
    #[command(flatten)]
    state: StateArg,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    home: HomeArg,
}

/// Prints the state of the running instance.
pub fn run(args: StatusArgs, out: &Out) -> anyhow::Result<ExitCode> {
    if let Some(cluster) = args.cluster.connect()? {
        return overview::run(&cluster, &args.home.sidegate_namespace, out);
    }
    let status: Status = control::get(&state_folder(args.state.state), "/status")?;
    if out.json() {
        out.document(&status)?;
    } else {
        print(&status, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(status: &Status, out: &Out) -> anyhow::Result<()> {
    let short = |version: &Option<String>| version.as_ref().map(|v| v.chars().take(12).collect::<String>());
    out.line(format!(
        "Sidegate {}, agent {}, separation: {}",
        status.release, status.subject, status.separation
    ))?;
    let offered = short(&status.bundle).unwrap_or_else(|| "none".to_owned());
    match status.bundle == status.bundle_in_force {
        true => out.line(format!("Policies {offered}, in force"))?,
        false => out.line(out.tone(Tone::Warn, format!("Policies {offered} offered, not in force yet")))?,
    }
    out.line(format!(
        "{} open session(s); {} operation(s) allowed, {} refused, {} held",
        status.sessions, status.allowed, status.denied, status.held
    ))?;
    if status.panics > 0 {
        out.line(out.tone(
            Tone::Bad,
            format!("{} panic(s) caught: please report them", status.panics),
        ))?;
    }
    for name in &status.lockdowns {
        out.line(out.tone(Tone::Bad, format!("Lockdown in force: {}", visible(name))))?;
    }
    for problem in &status.problems {
        out.line(out.tone(Tone::Bad, format!("Not taken: {problem}")))?;
    }
    for warning in &status.warnings {
        out.line(out.tone(Tone::Warn, format!("Note: {warning}")))?;
    }
    out.line("")?;
    let rows: Vec<Vec<String>> = status.targets.iter().map(row).collect();
    out.table(&["TARGET", "PROTOCOL", "LOCAL", "LEADS TO", "SESSIONS", "NOTE"], &rows)?;
    Ok(())
}

fn row(target: &sidegate_policies::wire::TargetStatus) -> Vec<String> {
    let local = match target.listen.is_empty() {
        true => "-".to_owned(),
        false => target.listen.join(", "),
    };
    let mut notes: Vec<String> = target.problem.iter().map(|problem| visible(problem)).collect();
    notes.extend(target.insecure.iter().map(|weak| format!("insecure: {weak}")));
    vec![
        visible(&target.target),
        target.protocol.clone(),
        local,
        visible(&target.address),
        target.sessions.to_string(),
        notes.join("; "),
    ]
}
