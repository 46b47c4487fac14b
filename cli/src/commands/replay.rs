//! `sidegate replay`: what happened in a session, as the agent saw it after masking. Replay never executes anything
//! and judges nothing; `sidegate verify` does the judging.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use sidegate_broker::records::SessionKeys;
use sidegate_policies::record::replay;

use super::{HomeArg, Usage};
use crate::cluster::{Cluster, ClusterArgs, Turned};
use crate::instance::state_folder;
use crate::out::{Format, Out};
use crate::StateArg;

/// Arguments of `replay`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate sessions
  sidegate replay 0190a6c2
  sidegate replay 0190a6c2 --as csv > session.csv
  sidegate replay 0190a6c2 -o json | jq 'select(.kind == \"denied\")'
  sidegate replay 0190a6c2 -o asciicast > session.cast && asciinema play session.cast
  sidegate replay 0190a6c2 --store ./copy-of-the-store
  kubectl sidegate replay 0190a6c2

Without the store's private folder the content of answers is unreadable; events and decisions are not.
In a cluster, whoever may `get sessions/content.sidegate.dev` in the agent's namespace may see it, and the broker's
audit says who looked.")]
pub struct ReplayArgs {
    /// Session id, or the beginning of one.
    session: String,
    /// Lines for people, JSON lines, CSV that no spreadsheet takes for formulas, or a terminal recording.
    #[arg(long = "as", value_enum, value_name = "FORM")]
    form: Option<Form>,
    /// A record store or a copy of one, instead of the running instance's.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context", "namespace"])]
    store: Option<PathBuf>,
    #[command(flatten)]
    state: StateArg,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    home: HomeArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
    Csv,
    Asciicast,
}

/// Replays a session.
pub fn run(args: ReplayArgs, out: &Out) -> anyhow::Result<ExitCode> {
    let form = form(args.form, out)?;
    if args.store.is_none() {
        if let Some(cluster) = args.cluster.connect()? {
            return of_cluster(&cluster, &args.home.sidegate_namespace, &args.session, form);
        }
    }
    let root = args
        .store
        .unwrap_or_else(|| state_folder(args.state.state).join("records"));
    if !root.is_dir() {
        return Err(Usage(format!("{} is not a record store", root.display())).into());
    }
    let keys = SessionKeys::open(&root).ok();
    let session = replay::find(&root, &args.session)?;
    let look_up = |id| keys.as_ref().and_then(|keys| keys.get(id));
    replay::tell(&root, session, &look_up, form, &mut io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

/// The form that was asked for, by `--as` or by `-o`.
fn form(asked: Option<Form>, out: &Out) -> anyhow::Result<replay::Form> {
    Ok(match (asked, out.format) {
        (Some(Form::Text), _) | (None, Format::Text | Format::Wide) => replay::Form::Text,
        (Some(Form::Json), _) | (None, Format::Json) => replay::Form::Json,
        (Some(Form::Asciicast), _) | (None, Format::Asciicast) => replay::Form::Asciicast,
        (Some(Form::Csv), _) => replay::Form::Csv,
        (None, Format::Yaml) => return Err(Usage("a session is not printed as YAML; write -o json".to_owned()).into()),
    })
}

/// Asks the brokers of the cluster in turn, as long as they do not know the session.
fn of_cluster(cluster: &Cluster, home: &str, session: &str, form: replay::Form) -> anyhow::Result<ExitCode> {
    if session.is_empty() || !session.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        return Err(Usage(format!("`{session}` is not the beginning of a session's id")).into());
    }
    let path = format!("/v1/sessions/{session}/replay?as={}", form.as_str());
    let mut unknown = None;
    for broker in cluster.brokers(home)? {
        let mut stdout = io::stdout().lock();
        match cluster.visit(home, &broker, &path, &mut |piece| stdout.write_all(piece)) {
            Ok(()) => return Ok(ExitCode::SUCCESS),
            Err(error) if error.downcast_ref::<Turned>().is_some_and(|turned| turned.code == 404) => {
                unknown = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match unknown {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}
