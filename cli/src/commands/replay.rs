//! `sidegate replay`: what happened in a session, as the agent saw it after masking. Replay never executes anything
//! and judges nothing; `sidegate verify` does the judging.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use sidegate_broker::records::SessionKeys;
use sidegate_policies::record::replay::{self, Asciicast, Transcript};

use super::Usage;
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

Without the store's private folder the content of answers is unreadable; events and decisions are not.")]
pub struct ReplayArgs {
    /// Session id, or the beginning of one.
    session: String,
    /// Lines for people, JSON lines, CSV that no spreadsheet takes for formulas, or a terminal recording.
    #[arg(long = "as", value_enum, value_name = "FORM")]
    form: Option<Form>,
    /// A record store or a copy of one, instead of the running instance's.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(flatten)]
    state: StateArg,
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
    let root = args
        .store
        .unwrap_or_else(|| state_folder(args.state.state).join("records"));
    if !root.is_dir() {
        return Err(Usage(format!("{} is not a record store", root.display())).into());
    }
    let keys = SessionKeys::open(&root).ok();
    let session = replay::find(&root, &args.session)?;
    let form = match (args.form, out.format) {
        (Some(form), _) => form,
        (None, Format::Text) => Form::Text,
        (None, Format::Json) => Form::Json,
        (None, Format::Asciicast) => Form::Asciicast,
        (None, Format::Yaml) => return Err(Usage("a session is not printed as YAML; write -o json".to_owned()).into()),
    };
    let mut stdout = io::stdout().lock();
    let (mut transcript, mut recording) = (Transcript::default(), Asciicast::default());
    if form == Form::Csv {
        stdout.write_all(replay::csv_header().as_bytes())?;
        stdout.write_all(b"\n")?;
    }
    let look_up = |id| keys.as_ref().and_then(|keys| keys.get(id));
    replay::replay(&root, session, &look_up, &mut |event| match form {
        Form::Text => stdout.write_all(transcript.tell(&event).as_bytes()),
        Form::Json => writeln!(stdout, "{}", replay::json_line(&event)),
        Form::Asciicast => stdout.write_all(recording.tell(&event).as_bytes()),
        Form::Csv => writeln!(stdout, "{}", replay::csv_line(&event)),
    })?;
    Ok(ExitCode::SUCCESS)
}
