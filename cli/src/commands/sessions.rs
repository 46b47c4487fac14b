//! `sidegate sessions`: what was recorded, newest last, so that the end of a long list is what matters; on this machine,
//! or at the brokers of a cluster, which say who may see it.

use std::process::ExitCode;

use clap::Args;
use sidegate_broker::control::SessionRow;

use super::HomeArg;
use crate::cluster::{Cluster, ClusterArgs};
use crate::control;
use crate::instance::state_folder;
use crate::out::{visible, Out};
use crate::StateArg;

/// Arguments of `sessions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate sessions
  sidegate sessions --target data/shop --denied
  sidegate sessions -o json | jq -r '.[].id'
  kubectl sidegate sessions -n agents
  kubectl sidegate sessions -A --denied

In a cluster -n is the agents' namespace. Whoever may `list sessions.sidegate.dev` there sees its sessions; a
port-forward leads to the broker (docs/kubectl.md has the Roles).")]
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
    /// Sessions of every namespace of the cluster.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[command(flatten)]
    state: StateArg,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    home: HomeArg,
}

/// Lists sessions.
pub fn run(args: SessionsArgs, out: &Out) -> anyhow::Result<ExitCode> {
    let mut rows: Vec<SessionRow> = if args.all_namespaces || args.cluster.chosen() {
        of_cluster(
            &args.cluster.cluster()?,
            &args.home.sidegate_namespace,
            args.all_namespaces,
        )?
    } else {
        control::get(&state_folder(args.state.state), "/sessions")?
    };
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

/// Sessions that every broker of the cluster knows.
fn of_cluster(cluster: &Cluster, home: &str, everywhere: bool) -> anyhow::Result<Vec<SessionRow>> {
    let path = match everywhere {
        true => "/v1/sessions".to_owned(),
        false => format!("/v1/sessions?namespace={}", cluster.namespace),
    };
    let mut rows: Vec<SessionRow> = Vec::new();
    for broker in cluster.brokers(home)? {
        rows.extend(cluster.ask_broker::<Vec<SessionRow>>(home, &broker, &path)?);
    }
    rows.sort_by(|a, b| (&a.started, &a.id).cmp(&(&b.started, &b.id)));
    rows.dedup_by(|a, b| a.id == b.id);
    Ok(rows)
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
