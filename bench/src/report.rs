//! Collects samples, prints the table, writes one JSON with every round.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde::Serialize;

use crate::Plan;

/// One slice of one contender.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Operations (or bytes) per second.
    pub rate: f64,
    /// Microseconds of the contender's CPU per operation (or per MB).
    pub cpu_micros: f64,
    /// Share of time the hypervisor took.
    pub steal: f64,
}

/// A single figure with a bar.
#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    unit: String,
    value: f64,
    /// What is aimed at, where something is.
    bar: Option<f64>,
}

/// Everything measured in one run.
#[derive(Debug, Serialize)]
pub struct Report {
    commit: String,
    date: String,
    cores: usize,
    rounds: usize,
    slice_seconds: u64,
    versions: BTreeMap<String, String>,
    /// Row, contender, one sample per round.
    rows: BTreeMap<String, BTreeMap<String, Vec<Sample>>>,
    figures: Vec<Figure>,
}

fn against(bar: Option<f64>) -> String {
    bar.map(|bar| format!(" (bar {bar})")).unwrap_or_default()
}

/// The middle value; of an even number the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// What all but the last hundredth stay within.
pub fn p99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = values.len() * 99 / 100;
    values
        .get(at.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

impl Report {
    /// An empty report of this commit and machine.
    pub fn new(plan: &Plan) -> Report {
        let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
        Report {
            commit: commit
                .map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
                .unwrap_or_default(),
            date: jiff::Timestamp::now().to_string(),
            cores: std::thread::available_parallelism().map(usize::from).unwrap_or(0),
            rounds: plan.rounds,
            slice_seconds: plan.slice.as_secs(),
            versions: BTreeMap::new(),
            rows: BTreeMap::new(),
            figures: Vec::new(),
        }
    }

    /// Notes peers' versions.
    pub fn versions(&mut self, versions: &[(String, String)]) {
        self.versions.extend(versions.iter().cloned());
    }

    /// Adds a sample.
    pub fn add(&mut self, row: &str, contender: &str, round: usize, sample: Sample) {
        let samples = self
            .rows
            .entry(row.to_owned())
            .or_default()
            .entry(contender.to_owned())
            .or_default();
        samples.truncate(round);
        samples.push(sample);
    }

    /// Adds a single figure.
    pub fn figure(&mut self, name: &str, unit: &str, value: f64, bar: impl Into<Option<f64>>) {
        let bar = bar.into();
        println!("{name}: {value:.2} {unit}{}", against(bar));
        self.figures.push(Figure {
            name: name.to_owned(),
            unit: unit.to_owned(),
            value,
            bar,
        });
    }

    fn line(&self, row: &str, contender: &str) -> Option<String> {
        let contenders = self.rows.get(row)?;
        let (direct, samples) = (contenders.get("direct")?, contenders.get(contender)?);
        let ratios: Vec<f64> = samples.iter().zip(direct).map(|(s, d)| s.rate / d.rate).collect();
        let spread = (
            ratios.iter().copied().fold(f64::MAX, f64::min),
            ratios.iter().copied().fold(0.0, f64::max),
        );
        Some(format!(
            "{row:<18} {contender:<10} {:>14.0}/s  {:>5.2} of direct ({:.2}-{:.2})  {:>7.1} us CPU",
            median(samples.iter().map(|s| s.rate).collect()),
            median(ratios),
            spread.0,
            spread.1,
            median(samples.iter().map(|s| s.cpu_micros).collect()),
        ))
    }

    /// Prints one row.
    pub fn print_row(&self, row: &str) {
        for contender in self.rows.get(row).into_iter().flat_map(BTreeMap::keys) {
            println!("{}", self.line(row, contender).unwrap_or_default());
        }
    }

    /// Prints everything.
    pub fn print(&self) {
        println!(
            "\nMedian of per-round ratios to direct; CPU per operation (bulk rows: bytes per second, CPU per MB)."
        );
        for row in self.rows.keys() {
            self.print_row(row);
        }
        for figure in &self.figures {
            println!(
                "{:<33} {:>14.2} {}{}",
                figure.name,
                figure.value,
                figure.unit,
                against(figure.bar)
            );
        }
    }

    /// Writes the JSON.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let day: String = self.date.chars().take(10).collect();
        let file = folder.join(format!("{day}-{}.json", self.commit));
        std::fs::write(&file, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(file)
    }
}
