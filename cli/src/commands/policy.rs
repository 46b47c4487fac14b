//! `sidegate policy`: checks of policies without anything running, for editors and CI.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;
use sidegate_policies::compile::Problem;
use sidegate_policies::sql::postgres::catalog::snapshot_query;

use super::source;
use crate::out::{Out, Tone};

/// Verbs of `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Check configuration folders or files: every problem, with file, line and field
    #[command(after_help = "Examples:
  sidegate policy check ./policies
  sidegate policy check target.yaml policy.yaml -o json

Exit codes:
  0  no problem (there may be warnings)
  2  at least one problem")]
    Check(CheckArgs),
    /// Run files of cases: what must be allowed, denied, asked and masked
    Test(super::cases::TestArgs),
    /// Print the SQL whose answer is a schema file for `explain` and `policy test`
    #[command(after_help = "Example:
  sidegate policy schema-query | psql -XqAt \"$DATABASE_URL\" > schema.json

It reads the system catalogs only, and knows what a schema written as SQL may not say, such as what
extensions define. The file holds names, types and view definitions, and no data.")]
    SchemaQuery,
}

/// Arguments of `policy check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Folders or files.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Findings<'a> {
    problems: &'a [Problem],
    warnings: &'a [Problem],
}

/// Runs a verb of `policy`.
pub fn run(command: PolicyCommand, out: &Out) -> Result<ExitCode> {
    match command {
        PolicyCommand::Check(args) => check(&args, out),
        PolicyCommand::Test(args) => super::cases::run(&args, out),
        PolicyCommand::SchemaQuery => {
            out.raw(snapshot_query().as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn check(args: &CheckArgs, out: &Out) -> Result<ExitCode> {
    let configuration = source::read(&args.paths)?;
    let (problems, warnings) = (&configuration.problems, &configuration.warnings);
    if out.json() {
        out.document(&Findings { problems, warnings })?;
    } else {
        source::print_problems(problems, Tone::Bad, out);
        source::print_problems(warnings, Tone::Warn, out);
        let objects = &configuration.objects;
        out.line(match problems.len() {
            0 => format!(
                "{}  {} Target(s), {} AccessPolicy(s), {} ClusterAccessPolicy(s), {} Lockdown(s)",
                out.tone(Tone::Good, "ok"),
                objects.targets.len(),
                objects.policies.len(),
                objects.cluster_policies.len(),
                objects.lockdowns.len(),
            ),
            count => out.tone(Tone::Bad, format!("{count} problem(s)")),
        })?;
    }
    Ok(match problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(2),
    })
}
