//! `sidegate sessions`: what was recorded, newest last, so that the end of a long list is what matters.

use std::process::ExitCode;

use clap::Args;
use sidegate_broker::control::SessionRow;

use crate::control;
use crate::instance::state_folder;
use crate::out::{visible, Out};
use crate::StateArg;

/// Arguments of `sessions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate sessions
  sidegate sessions --target data/shop --denied
  sidegate sessions -o json | jq -r '.[].id'")]
pub struct SessionsArgs {
    /// Only this subject, as NAMESPACE/SERVICEACCOUNT.
    #[arg(long, value_name = "NS/SA")]
    subject: Option<String>,
    /// Only this Target, as NAMESPACE/NAME.
    #[arg(long, value_name = "NS/NAME")]
    target: Option<String>,
    /// Only sessions in which something was refused.
    #[arg(long)]
    denied: bool,
    #[command(flatten)]
    state: StateArg,
}

/// Lists sessions.
pub fn run(args: SessionsArgs, out: &Out) -> anyhow::Result<ExitCode> {
    let mut rows: Vec<SessionRow> = control::get(&state_folder(args.state.state), "/sessions")?;
    rows.retain(|row| args.subject.as_ref().is_none_or(|subject| *subject == row.subject));
    rows.retain(|row| args.target.as_ref().is_none_or(|target| *target == row.target));
    rows.retain(|row| !args.denied || row.denied > 0);
    if out.json() {
        out.document(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        out.line("No session was recorded.")?;
        return Ok(ExitCode::SUCCESS);
    }
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    out.table(
        &["SESSION", "STARTED", "SUBJECT", "TARGET", "SENT", "REFUSED", "STATE"],
        &cells,
    )?;
    Ok(ExitCode::SUCCESS)
}

fn cells(row: &SessionRow) -> Vec<String> {
    let state = match (&row.ended, &row.cut) {
        (None, _) => "open".to_owned(),
        (Some(_), Some(cut)) => format!("cut: {}", visible(cut)),
        (Some(_), None) => "closed".to_owned(),
    };
    vec![
        row.id.clone(),
        row.started.clone(),
        visible(&row.subject),
        visible(&row.target),
        row.operations.to_string(),
        row.denied.to_string(),
        state,
    ]
}
