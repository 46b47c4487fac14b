//! `sidegate`: local mode and every verb people type. This file parses the command line and turns the outcome of a
//! verb into an exit code; each verb is a file under `commands/`. Nothing here decides about an operation.

mod agent;
mod cluster;
mod commands;
mod control;
mod instance;
mod out;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use tikv_jemallocator::Jemalloc;
use zeroizing_alloc::ZeroAlloc;

use crate::out::{Format, Out, Tone};

/// Freed memory is overwritten, and so is what a growing buffer leaves behind: copies of credentials in buffers of libraries are out
/// of our reach otherwise (tests `nothing_of_a_token_is_left_once_its_lease_is_gone` and its neighbours).
#[global_allocator]
static ALLOCATOR: ZeroAlloc<Jemalloc> = ZeroAlloc(Jemalloc);

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  refused, failed, or a test case did not hold
  2  wrong usage or configuration; nothing was started
`sidegate verify`, `explain`, `inject`, `check`, `unprotected` and `outdated` have codes of their own: see their --help.";

/// Lets AI agents reach databases without ever holding a credential.
#[derive(Debug, Parser)]
#[command(name = "sidegate", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
struct Cli {
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

/// Which running instance is meant.
#[derive(Debug, Clone, Args)]
pub struct StateArg {
    /// State folder of the instance. Default: $XDG_STATE_HOME/sidegate, for root /var/lib/sidegate.
    #[arg(long, value_name = "DIR", env = "SIDEGATE_STATE")]
    pub state: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check whether a cluster is fit for Sidegate, and the installation works
    Check(commands::check::CheckArgs),
    /// List pods that should have a sidecar and have no valid one, by reason
    Unprotected(commands::unprotected::UnprotectedArgs),
    /// List pods that would get another sidecar if they were made anew
    Outdated(commands::unprotected::OutdatedArgs),
    /// Run Sidegate on this machine, or run a program behind it
    Up(commands::up::UpArgs),
    /// Show what is served, what is not and why, and who is connected
    Status(commands::status::StatusArgs),
    /// List operations that wait for a person
    Requests(commands::requests::RequestsArgs),
    /// Approve a waiting operation
    Approve(commands::decide::DecideArgs),
    /// Deny a waiting operation
    Deny(commands::decide::DecideArgs),
    /// List recorded sessions
    Sessions(commands::sessions::SessionsArgs),
    /// Show what happened in a session, as the agent saw it
    Replay(commands::replay::ReplayArgs),
    /// List what people decided, and what the broker gave out or refused
    Audit(commands::audit::AuditArgs),
    /// Check a record store offline, with public keys only
    Verify(commands::verify::VerifyArgs),
    /// Say what an agent may do, or what becomes of a statement and why
    Explain(commands::explain::ExplainArgs),
    /// Print manifests with the sidecar in their pods, offline
    Inject(commands::inject::InjectArgs),
    /// Check and test policies
    #[command(subcommand)]
    Policy(commands::policy::PolicyCommand),
    /// Freeze a subject, a target, a secret or everything, at once
    Lock(commands::lock::LockArgs),
    /// Lift a freeze
    Unlock(commands::lock::UnlockArgs),
    /// Print shell completions
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let out = Out::new(cli.output);
    match run(cli.command, &out) {
        Ok(code) => code,
        Err(error) => {
            // A reader that went away (`sidegate sessions | head`) is no failure.
            let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
            if causes.any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            out.remark(format!("{} {error:#}", out.tone(Tone::Bad, "error:")));
            match error.downcast_ref::<commands::Usage>() {
                Some(_) => ExitCode::from(2),
                None => ExitCode::from(1),
            }
        }
    }
}

fn run(command: Command, out: &Out) -> anyhow::Result<ExitCode> {
    if out.format == Format::Asciicast && !matches!(command, Command::Replay(_)) {
        let usage = "-o asciicast is a recording of a session: only `replay` prints one";
        return Err(commands::Usage(usage.to_owned()).into());
    }
    match command {
        Command::Check(args) => commands::check::run(&args, out),
        Command::Unprotected(args) => commands::unprotected::run(&args, out),
        Command::Outdated(args) => commands::unprotected::run_outdated(&args, out),
        Command::Up(args) => commands::up::run(args, out),
        Command::Status(args) => commands::status::run(args, out),
        Command::Requests(args) => commands::requests::run(args, out),
        Command::Approve(args) => commands::decide::run(args, true, out),
        Command::Deny(args) => commands::decide::run(args, false, out),
        Command::Sessions(args) => commands::sessions::run(args, out),
        Command::Replay(args) => commands::replay::run(args, out),
        Command::Audit(args) => commands::audit::run(args, out),
        Command::Verify(args) => commands::verify::run(args, out),
        Command::Explain(args) => commands::explain::run(&args, out),
        Command::Inject(args) => commands::inject::run(&args, out),
        Command::Policy(command) => commands::policy::run(command, out),
        Command::Lock(args) => commands::lock::run(args, out),
        Command::Unlock(args) => commands::lock::lift(args, out),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sidegate", &mut text);
            out.raw(&text)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
