//! `sidegate audit`: what people decided, and what the broker gave out or refused, from a record store or a copy of it.
//! Reads only; whether the store can be believed is what `sidegate verify` says.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use sidegate_policies::record::audit::{read, AuditEvent};
use sidegate_policies::record::layout::DirectoryStore;

use crate::instance::state_folder;
use crate::out::{visible, Out};
use crate::StateArg;

/// Arguments of `audit`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate audit
  sidegate audit --kind decided --kind lockdown
  sidegate audit ./copy-of-the-store -o json | jq -r 'select(.object == \"ar-7k2fx3\")'

Kinds: decided, request, lockdown, issued, refused, config, bundle; recovered: an earlier start was killed.
It tells and does not judge: `sidegate verify` says whether the store can be believed.")]
pub struct AuditArgs {
    /// The store. Default: `records` in the state folder.
    store: Option<PathBuf>,
    /// Only events of this kind; may be repeated.
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    #[command(flatten)]
    state: StateArg,
}

/// Lists the broker's events, newest last.
pub fn run(args: AuditArgs, out: &Out) -> anyhow::Result<ExitCode> {
    let store = match args.store {
        Some(store) => store,
        None => state_folder(args.state.state).join("records"),
    };
    let mut events = read(&DirectoryStore::new(&store)).with_context(|| store.display().to_string())?;
    events.retain(|event| args.kind.is_empty() || args.kind.iter().any(|kind| kind == event.kind.as_str()));
    if out.json() {
        out.document(&events)?;
        return Ok(ExitCode::SUCCESS);
    }
    if events.is_empty() {
        out.line("No event was recorded.")?;
        return Ok(ExitCode::SUCCESS);
    }
    let cells: Vec<Vec<String>> = events.iter().map(cells).collect();
    out.table(&["AT", "KIND", "EVENT", "BY", "ABOUT", "DETAIL"], &cells)?;
    Ok(ExitCode::SUCCESS)
}

fn cells(event: &AuditEvent) -> Vec<String> {
    let says = &event.says;
    vec![
        event.at.clone(),
        event.kind.as_str().to_owned(),
        visible(&says.event),
        visible(&says.subject),
        visible(&says.object),
        visible(&says.detail),
    ]
}
