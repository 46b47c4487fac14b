//! `make bench`: Sidegate beside PgBouncer and HAProxy, in one run, with everything on.
//!
//! Every figure is the median of per-round ratios: a round measures every contender once, the order rotates, and
//! CPU is read from the kernel per contender (`/proc/PID/task/*/schedstat`), so a noisy neighbour moves less of it.
//! Nothing here asserts a time; correctness is checked (masked means masked, errors are zero).

mod broker;
mod bulk;
mod contender;
mod cpu;
mod idle;
mod injector;
mod interposer;
mod pgbench;
mod record;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, Result};

const USAGE: &str = "\
Measures Sidegate beside PgBouncer and HAProxy, its broker and its injector, and writes bench/results/<date>-<commit>.json.

Usage: sidegate-bench [--rows A,B] [--rounds N] [--seconds N] [--print]

  --rows A,B     rows by name or its beginning: idle, pg-prepared-c8, record-, bulk, broker-, injector- (default: all)
  --rounds N     rounds of each row (default: 5)
  --seconds N    length of one slice (default: 10)
  --print        print only, and write no file

Examples:
  sidegate-bench --rows pg-prepared,pg-extended --rounds 3
  sidegate-bench --rows injector- --seconds 5";

/// What to measure, and how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rows by name; empty: all.
    rows: Vec<String>,
    /// Rounds per row.
    rounds: usize,
    /// Length of one slice.
    slice: Duration,
    /// No file is written.
    prints: bool,
}

impl Plan {
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Result<Plan> {
        let mut plan = Plan {
            rows: Vec::new(),
            rounds: 5,
            slice: Duration::from_secs(10),
            prints: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| anyhow::anyhow!("{argument} wants a value"))
            };
            match argument.as_str() {
                "--print" => plan.prints = true,
                "--rows" => plan.rows = value()?.split(',').map(str::to_owned).collect(),
                "--rounds" => plan.rounds = value()?.parse()?,
                "--seconds" => plan.slice = Duration::from_secs(value()?.parse()?),
                other => bail!("unknown argument {other}\n\n{USAGE}"),
            }
        }
        Ok(plan)
    }

    fn wants(&self, row: &str) -> bool {
        let asked = |wanted: &String| row.starts_with(wanted.as_str()) || wanted.starts_with(row);
        self.rows.is_empty() || self.rows.iter().any(asked)
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(broker::SERVE) {
        let folder = arguments.next().map(PathBuf::from).unwrap_or_default();
        return broker::serve(&folder, &arguments.next().unwrap_or_default());
    }
    if std::env::args()
        .skip(1)
        .any(|argument| argument == "-h" || argument == "--help")
    {
        println!("{USAGE}");
        return Ok(());
    }
    let plan = Plan::from_arguments(std::env::args().skip(1))?;
    println!(
        "{} round(s) of {} s slices. A full run takes half an hour or more.",
        plan.rounds,
        plan.slice.as_secs()
    );
    let mut report = report::Report::new(&plan);
    // What was measured is told, also where something after it failed.
    let measured = measure(&plan, &mut report);
    report.print();
    if !plan.prints {
        let file = report.write(&PathBuf::from("bench/results"))?;
        println!("\nWritten to {}", file.display());
    }
    measured
}

fn measure(plan: &Plan, report: &mut report::Report) -> Result<()> {
    if plan.wants("idle") {
        idle::measure(report)?;
    }
    if plan.wants("pg-") {
        let field = contender::Field::start()?;
        pgbench::measure(plan, &field, report)?;
    }
    if plan.wants("record-") {
        record::measure(plan, report)?;
    }
    if plan.wants("bulk") {
        bulk::measure(plan, report)?;
    }
    if plan.wants("broker-") {
        broker::measure(plan, report)?;
    }
    if plan.wants("injector-") {
        injector::measure(plan, report)?;
    }
    Ok(())
}
