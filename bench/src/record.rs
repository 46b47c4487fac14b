//! The record by itself: what one core appends to a log, and what it verifies of a store.
//!
//! Appending is the recorder's own code on a real journal: an operation is an intent (written before it answers), the
//! reply's bytes and an outcome. Segments are sealed as they fill; nothing is uploaded, and the clock stands still, so
//! that no collector's silence ends it. Verifying is what `sidegate verify` does, on a store that sidecar and broker made.
//! Both run on one thread. Two shapes: small answers, and answers of 64 KiB kept in full.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use futures_util::FutureExt;
use sidegate_policies::api::target::Recording as Class;
use sidegate_policies::record::verify::{verify_store, Options};
use sidegate_sidecar::record::{DirectoryVolume, Log, LogOptions, SessionRecorder, SystemRandom};
use sidegate_tests::disk::{Keeper, StillClock};
use sidegate_tests::recording::{identity, left, open, operate, store, Certifier, Recording};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::report::{median, Report};
use crate::Plan;

/// A log takes so much before a new one is begun: below the recorder's limit for what waits for a collector.
const LOG_BYTES: u64 = 160 << 20;
/// Seconds since 1970 of the still clock.
const NOW: u64 = 1_767_225_600;
/// Frames that may be on their way to the store.
const UNDER_WAY: u64 = 2_000;
const STATEMENT: &str = "SELECT id, name, city FROM app.customers WHERE region = $1 AND active ORDER BY id LIMIT 20";

struct Shape {
    name: &'static str,
    reply: usize,
    operations: u64,
}

const SHAPES: [Shape; 2] = [
    Shape {
        name: "small",
        reply: 100,
        operations: 100_000,
    },
    Shape {
        name: "64 KiB",
        reply: 64 << 10,
        operations: 4_000,
    },
];

/// Measures the figures `record append …` and `record verify …`.
pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for shape in &SHAPES {
        if plan.wants("record-append") {
            append(plan, report, shape, &runtime)?;
        }
        if plan.wants("record-verify") {
            verify(plan, report, shape, &runtime)?;
        }
    }
    Ok(())
}

fn append(plan: &Plan, report: &mut Report, shape: &Shape, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let reply = reply(shape.reply);
    let (mut nanos, mut megabytes) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let (mut took, mut operations, mut bytes) = (Duration::ZERO, 0u64, 0u64);
        while took < plan.slice {
            let folder = tempfile::Builder::new().prefix("sidegate-record-").tempdir()?;
            let (log, mut session) = begin(folder.path(), runtime)?;
            let began = Instant::now();
            while log.status().spool_bytes < LOG_BYTES && took + began.elapsed() < plan.slice {
                // The clock of the loop is asked once for many operations.
                for _ in 0..256 {
                    operations += 1;
                    operate(&mut session, operations, STATEMENT, &reply)?;
                }
            }
            took += began.elapsed();
            bytes += log.status().spool_bytes;
            session.close(left(operations));
        }
        nanos.push(took.as_nanos() as f64 / operations as f64);
        megabytes.push(bytes as f64 / took.as_secs_f64() / 1e6);
        println!("record append, {}: round {}/{}", shape.name, round + 1, plan.rounds);
    }
    let named = |what: &str| format!("record append {what}, {}", shape.name);
    let bar = (shape.name == "small").then_some(900.0);
    report.figure(&named("operation"), "ns", median(nanos), bar);
    report.figure(&named("bytes"), "MB/s", median(megabytes), None);
    Ok(())
}

/// A certified log with one open session.
fn begin(folder: &Path, runtime: &tokio::runtime::Runtime) -> Result<(Arc<Log>, SessionRecorder)> {
    let log = Log::start(LogOptions {
        volume: Arc::new(DirectoryVolume::open(&folder.join("journal"))?),
        identity: identity(1),
        clock: Arc::new(StillClock::default()),
        random: Arc::new(SystemRandom),
    })?;
    let certifier = Certifier::new("key-1")?;
    let keeper = Arc::new(Keeper {
        certify: Box::new(move |key| certifier.certificate(key, 1, NOW).unwrap_or_default()),
        open: false,
        kept: Arc::default(),
    });
    // Runs up to where it waits: the key is certified, so that full segments are sealed.
    let run = Arc::clone(&log).run(keeper, CancellationToken::new());
    let waits = runtime.block_on(async { run.now_or_never().is_none() });
    ensure!(waits, "the log's task ended");
    let class = Class::default();
    let session = log.open(Uuid::now_v7(), class, &open(class))?;
    Ok((log, session))
}

fn verify(plan: &Plan, report: &mut Report, shape: &Shape, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("sidegate-record-").tempdir()?;
    runtime.block_on(fill(folder.path(), shape))?;
    let (mut megabytes, mut frames) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let began = Instant::now();
        let found = verify_store(&folder.path().join("records"), &Options::default())?;
        let took = began.elapsed().as_secs_f64();
        ensure!(found.exit_code() == 0, "the store does not verify: {found:?}");
        let sum =
            |part: fn(&sidegate_policies::record::verify::LogReport) -> u64| found.logs.iter().map(part).sum::<u64>();
        megabytes.push(sum(|log| log.bytes) as f64 / took / 1e6);
        frames.push(sum(|log| log.frames) as f64 / took);
    }
    let named = |what: &str| format!("record verify {what}, {}", shape.name);
    // 0.5 GB/s where hashing is the work; a million records in 10 s where they are small.
    let (bytes_bar, frames_bar) = match shape.name {
        "small" => (None, Some(100_000.0)),
        _ => (Some(500.0), None),
    };
    report.figure(&named("bytes"), "MB/s", median(megabytes), bytes_bar);
    report.figure(&named("frames"), "/s", median(frames), frames_bar);
    Ok(())
}

/// A store with one session of so many operations, uploaded, sealed and under a checkpoint.
async fn fill(folder: &Path, shape: &Shape) -> Result<()> {
    let recording = Recording::start(folder, store(folder)?, 1)?;
    let mut session = recording.session()?;
    session.opened().await?;
    let reply = reply(shape.reply);
    for operation in 1..=shape.operations {
        operate(&mut session, operation, STATEMENT, &reply)?;
        while recording.log.status().written > recording.log.status().received + UNDER_WAY {
            tokio::task::yield_now().await;
        }
    }
    session.close(left(shape.operations));
    recording.stop().await.context("the store")
}

/// Rows of text, compressible about as tables are.
fn reply(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 64);
    let mut state = 0x2545_f491_4f6c_dd1du64;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(
            format!(
                "{},customer-{:x},2026-01-{:02},open\n",
                state % 100_000,
                state,
                state % 28 + 1
            )
            .as_bytes(),
        );
    }
    bytes.truncate(length);
    bytes
}
