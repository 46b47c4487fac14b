//! pgbench -S in its three modes at 1, 8 and 64 clients, every contender in every round.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::contender::{Contender, Field, DATABASE, USER};
use crate::report::{Report, Sample};
use crate::{cpu, Plan};

const MODES: [&str; 3] = ["simple", "extended", "prepared"];
const CLIENTS: [u32; 3] = [1, 8, 64];

/// Measures every row that the plan wants.
pub fn measure(plan: &Plan, field: &Field, report: &mut Report) -> Result<()> {
    report.versions(&field.versions);
    for mode in MODES {
        for clients in CLIENTS {
            let row = format!("pg-{mode}-c{clients}");
            if !plan.wants(&row) {
                continue;
            }
            for contender in &field.contenders {
                slice(contender, mode, clients, Duration::from_secs(2)).context("warming up")?;
            }
            for round in 0..plan.rounds {
                for at in 0..field.contenders.len() {
                    let contender = &field.contenders[(at + round) % field.contenders.len()];
                    let sample = slice(contender, mode, clients, plan.slice)?;
                    report.add(&row, contender.name, round, sample);
                }
                println!("{row}: round {}/{}", round + 1, plan.rounds);
            }
            report.print_row(&row);
        }
    }
    Ok(())
}

fn slice(contender: &Contender, mode: &str, clients: u32, length: Duration) -> Result<Sample> {
    let (before, steal) = (cpu::nanoseconds(&contender.pids)?, cpu::steal()?);
    let output = Command::new("pgbench")
        .args([
            "-S",
            "-n",
            "-M",
            mode,
            "-j",
            "1",
            "-c",
            &clients.to_string(),
            "-T",
            &length.as_secs().to_string(),
        ])
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &contender.port.to_string(),
            "-U",
            USER,
            DATABASE,
        ])
        .env("PGSSLMODE", "disable")
        .stdin(Stdio::null())
        .output()?;
    let (after, steal_after) = (cpu::nanoseconds(&contender.pids)?, cpu::steal()?);
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "{} ({mode}, {clients} clients): {}",
            contender.name,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let field = |start: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(start)).unwrap_or("");
        line.trim()
            .split([' ', '/'])
            .next()
            .and_then(|word| word.parse::<f64>().ok())
    };
    let transactions = field("number of transactions actually processed:").context("pgbench's count")?;
    if field("number of failed transactions:").is_some_and(|failed| failed > 0.0) {
        bail!("{}: failed transactions", contender.name);
    }
    let ticks = (steal_after.1 - steal.1).max(1) as f64;
    Ok(Sample {
        rate: field("tps =").context("pgbench's tps")?,
        cpu_micros: (after - before) as f64 / 1_000.0 / transactions.max(1.0),
        steal: (steal_after.0 - steal.0) as f64 / ticks,
    })
}
