//! The broker under load: exchanges, and what reaches many sidecars how soon.
//!
//! The broker runs in a process of its own (this program, started again), so that its CPU and memory are its own; its
//! cluster is a double of many pods (ten thousand of them) or a real API server (`cluster.rs`, a thousand), its front
//! face the real one: TLS, HTTP/2, proofs, records. The sidecars are simulated: a connection, a key and a stream each.

mod client;
mod cluster;
mod fleet;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{mpsc, Arc};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_policies::wire::{ToBroker, ToSidecar};
use sidegate_tests::sockets::more_sockets;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use self::client::{Sidecar, Stream};
use self::fleet::Fleet;
use crate::cpu;
use crate::report::{p99, Report};
use crate::Plan;

pub use fleet::serve;

/// The word that starts the broker's own process.
pub const SERVE: &str = "--serve-broker";
/// Exchanges under way at once.
const EXCHANGERS: usize = 8;
/// Handshakes under way at once while streams are opened for the first time, and when all come back together.
const OPENING: usize = 64;
const REOPENING: usize = 256;
/// Everything that must come has come within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gives the token of a pod.
type Tokens = Arc<dyn Fn(usize) -> Result<String> + Send + Sync>;

/// A broker in a process of its own.
struct Served {
    child: Child,
    folder: tempfile::TempDir,
    url: String,
    ca: String,
    /// The audience of service-account tokens in a cluster.
    issuer: String,
    tls: Arc<rustls::ClientConfig>,
    /// Microseconds since 1970 at which each later index was in force.
    in_force: mpsc::Receiver<u64>,
}

impl Served {
    /// Starts it for so many pods of a double.
    fn start(pods: usize) -> Result<Served> {
        let folder = tempfile::Builder::new().prefix("sidegate-broker-bench-").tempdir()?;
        std::fs::create_dir(folder.path().join("config"))?;
        configure(folder.path(), "first")?;
        Served::on(folder, &pods.to_string())
    }

    /// Starts it on a number of pods, or the cluster of a kubeconfig.
    fn on(folder: tempfile::TempDir, place: &str) -> Result<Served> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([SERVE, &folder.path().to_string_lossy(), place])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        let first: Value = serde_json::from_str(&lines.next().context("the broker ended")??)?;
        let text = |name: &str| first[name].as_str().map(str::to_owned).context("an address");
        let (url, ca, issuer) = (text("url")?, text("ca")?, text("issuer")?);
        let (told, in_force) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(at) = line.trim().parse() {
                    if told.send(at).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Served {
            child,
            folder,
            tls: client::tls(&ca)?,
            url,
            ca,
            issuer,
            in_force,
        })
    }

    /// Tokens of the double's pods.
    fn tokens(&self) -> Result<Tokens> {
        let fleet = Fleet::open(&self.folder.path().join("state/fleet.p8"), 0)?;
        Ok(Arc::new(move |pod| fleet.token(pod)))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A hundred rules that every pod gets; `mark` makes it another bundle.
fn configure(folder: &Path, mark: &str) -> Result<()> {
    let mut text = String::from(
        "apiVersion: sidegate.dev/v1alpha1\nkind: Target\nmetadata: {name: shop, namespace: agents}\nspec:\n  \
         protocol: Postgres\n  address: {host: db.example, port: 5432}\n  credential: {token: {audience: shop, username: \
         reader}}\n  listen: {port: 15432}\n---\napiVersion: sidegate.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: \
         agents, namespace: agents}\nspec:\n  targetRefs: [{name: shop}]\n  subjects: [{serviceAccount: {namespace: \
         agents, name: support}}]\n  rules:\n",
    );
    for number in 0..100 {
        text.push_str(&format!(
            "  - {{name: r{number}-{mark}, effect: Allow, sql: {{commands: [Select], tables: [\"app.t{number}\"]}}}}\n"
        ));
    }
    let path = folder.join("config/all.yaml");
    let fresh = folder.join("config/all.new");
    std::fs::write(&fresh, text)?;
    Ok(std::fs::rename(fresh, path)?)
}

fn now_micros() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0)
}

/// The figures of `make bench-broker`.
pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    more_sockets()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if plan.wants("broker-exchange") {
        let served = Served::start(1_000)?;
        runtime.block_on(exchanges("broker-exchange", plan, &served, &served.tokens()?, report))?;
    }
    if plan.wants("broker-cluster") {
        cluster::measure(plan, &runtime, report)?;
    }
    for (row, streams) in [("broker-streams-1k", 1_000), ("broker-streams-10k", 10_000)] {
        if plan.wants(row) {
            runtime.block_on(streams_of(row, streams, plan.rounds, report))?;
        }
    }
    Ok(())
}

/// Exchanges of a thousand pods, one after the other on eight connections: CPU of the broker's whole process each.
async fn exchanges(row: &str, plan: &Plan, served: &Served, tokens: &Tokens, report: &mut Report) -> Result<()> {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for first in 0..EXCHANGERS {
        let (tokens, stop, done) = (Arc::clone(tokens), Arc::clone(&stop), Arc::clone(&done));
        let (url, tls) = (served.url.clone(), Arc::clone(&served.tls));
        tasks.spawn(async move {
            // A pod keeps its key: another one would be refused.
            let mut keys: Vec<Option<Sidecar>> = (0..1_000 / EXCHANGERS).map(|_| None).collect();
            let connection = client::connect(&url, tls).await?;
            let mut nonce = None;
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                let pod = turn % keys.len();
                turn += 1;
                let sidecar = keys[pod].get_or_insert_with(|| Sidecar::new(&url));
                sidecar.nonce = nonce.take().or(sidecar.nonce.take());
                let token = tokens(pod * EXCHANGERS + first)?;
                sidecar.exchange(&mut connection.clone(), &token).await?;
                nonce.clone_from(&sidecar.nonce);
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    let pid = served.child.id();
    // Keys are made and pinned in the first pass.
    while done.load(Ordering::Relaxed) < 2_000 && tasks.len() == EXCHANGERS {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for round in 0..plan.rounds {
        let (before, cpu_before, since) = (done.load(Ordering::Relaxed), cpu::nanoseconds(&[pid])?, Instant::now());
        tokio::time::sleep(plan.slice).await;
        let count = (done.load(Ordering::Relaxed) - before) as f64;
        let spent = (cpu::nanoseconds(&[pid])? - cpu_before) as f64;
        report.figure(&format!("{row}, round {round}"), "ms CPU", spent / count / 1e6, 0.8);
        let rate = count / since.elapsed().as_secs_f64();
        report.figure(&format!("{row} rate, round {round}"), "/s", rate, None);
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// What one stream saw: when a bundle came, and when a deny set.
type Seen = (u64, bool);

/// Opens so many streams, then changes the bundle and freezes, and looks how soon each sidecar has it.
async fn streams_of(row: &str, count: usize, rounds: usize, report: &mut Report) -> Result<()> {
    let served = Served::start(count)?;
    let pid = served.child.id();
    let bare = cpu::resident(pid)?;
    let since = Instant::now();
    let (tell, mut told) = tokio::sync::mpsc::channel::<Seen>(1 << 16);
    let (tokens, sidecars) = (served.tokens()?, sidecars(&served, count));
    let mut streams = open_all(&served, &tokens, &sidecars, OPENING, &tell).await?;
    report.figure(
        &format!("{row}: all open after"),
        "s",
        since.elapsed().as_secs_f64(),
        None,
    );
    // Each has its first deny set and bundle before anything is measured.
    take(&mut told, 2 * count, &mut streams).await?;
    let resident = cpu::resident(pid)?;
    let bar = (count == 10_000).then_some(1_024.0);
    let megabytes = resident as f64 / f64::from(1 << 20);
    report.figure(&format!("{row}: resident"), "MiB", megabytes, bar);
    let each = resident.saturating_sub(bare) as f64 / count as f64 / 1024.0;
    report.figure(&format!("{row}: per stream"), "KiB", each, None);
    let before = cpu::nanoseconds(&[pid])?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = (cpu::nanoseconds(&[pid])? - before) as f64 / 5e9 * 100.0;
    report.figure(&format!("{row}: idle"), "% of a core", idle, None);

    let push_bar = if count == 1_000 { 300.0 } else { 3_000.0 };
    for round in 0..rounds {
        configure(served.folder.path(), &format!("round{round}"))?;
        let in_force = served.in_force.recv_timeout(PATIENCE)?;
        let seen = take(&mut told, count, &mut streams).await?;
        ensure!(
            seen.iter().all(|(_, bundle)| *bundle),
            "deny sets came instead of bundles"
        );
        let name = format!("{row}: bundle in force to the last 1 %, round {round}");
        report.figure(&name, "ms", late(&seen, in_force), push_bar);
    }
    for round in 0..rounds {
        let began = now_micros();
        let lock =
            json!({"reason": "bench", "action": "Close", "freeze": [{"namespace": format!("elsewhere{round}")}]});
        let state = served.folder.path().join("state");
        // It answers once sidecars have confirmed; what counts here is what they saw.
        let asked = tokio::task::spawn_blocking(move || fleet::control(&state, "/lock", &lock));
        let seen = take(&mut told, count, &mut streams).await?;
        ensure!(
            seen.iter().all(|(_, bundle)| !*bundle),
            "bundles came instead of deny sets"
        );
        let name = format!("{row}: lockdown asked to the last 1 %, round {round}");
        report.figure(&name, "ms", late(&seen, began), (count == 1_000).then_some(1_000.0));
        asked.await??;
    }
    // As after a broker that died: every connection, session and stream anew, and what each is sent first.
    streams.shutdown().await;
    let since = Instant::now();
    let mut streams = open_all(&served, &tokens, &sidecars, REOPENING, &tell).await?;
    take(&mut told, 2 * count, &mut streams).await?;
    let back = since.elapsed().as_secs_f64();
    report.figure(&format!("{row}: all back after"), "s", back, 60.0);
    Ok(())
}

/// The sidecars of so many pods, each with a key.
fn sidecars(served: &Served, count: usize) -> Vec<Arc<Mutex<Sidecar>>> {
    let sidecar = |_| Arc::new(Mutex::new(Sidecar::new(&served.url)));
    (0..count).map(sidecar).collect()
}

async fn open_all(
    served: &Served,
    tokens: &Tokens,
    sidecars: &[Arc<Mutex<Sidecar>>],
    opening: usize,
    tell: &tokio::sync::mpsc::Sender<Seen>,
) -> Result<JoinSet<Result<()>>> {
    let count = sidecars.len();
    let turns = Arc::new(tokio::sync::Semaphore::new(opening));
    let opened = Arc::new(AtomicU64::new(0));
    let mut streams = JoinSet::new();
    for (pod, sidecar) in sidecars.iter().enumerate() {
        let turn = Arc::clone(&turns).acquire_owned().await?;
        let (url, tls, token) = (served.url.clone(), Arc::clone(&served.tls), tokens(pod)?);
        let (tell, opened, sidecar) = (tell.clone(), Arc::clone(&opened), Arc::clone(sidecar));
        streams.spawn(async move {
            let mut sidecar = sidecar.lock().await;
            let mut connection = client::connect(&url, tls).await?;
            sidecar.exchange(&mut connection, &token).await?;
            let mut stream = sidecar.stream(&mut connection).await?;
            drop(sidecar);
            opened.fetch_add(1, Ordering::Relaxed);
            drop(turn);
            follow(&mut stream, &tell).await
        });
    }
    let deadline = Instant::now() + PATIENCE;
    while opened.load(Ordering::Relaxed) < count as u64 {
        if let Some(ended) = streams.try_join_next() {
            ended??;
        }
        ensure!(
            Instant::now() < deadline,
            "only {} streams opened",
            opened.load(Ordering::Relaxed)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(streams)
}

/// Tells of every bundle and deny set, and acknowledges it.
async fn follow(stream: &mut Stream, tell: &tokio::sync::mpsc::Sender<Seen>) -> Result<()> {
    let hello = ToBroker::Hello {
        protocol: 1,
        release: "bench".to_owned(),
        bundle: None,
        deny_revision: 0,
        revisions: Default::default(),
    };
    stream.say(&hello).await?;
    loop {
        let line = stream.next().await?;
        let seen = now_micros();
        let ack = match line {
            ToSidecar::Bundle { version, .. } => {
                let _ = tell.send((seen, true)).await;
                ToBroker::Ack {
                    version: Some(version),
                    revision: None,
                    closed: 0,
                    took_us: 0,
                }
            }
            ToSidecar::Deny(set) => {
                let _ = tell.send((seen, false)).await;
                ToBroker::Ack {
                    version: None,
                    revision: Some(set.revision),
                    closed: 0,
                    took_us: 0,
                }
            }
            _ => continue,
        };
        stream.say(&ack).await?;
    }
}

/// So many tellings, or the error of a stream that ended.
async fn take(
    told: &mut tokio::sync::mpsc::Receiver<Seen>,
    count: usize,
    streams: &mut JoinSet<Result<()>>,
) -> Result<Vec<Seen>> {
    let mut seen = Vec::with_capacity(count);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while seen.len() < count {
        tokio::select! {
            one = told.recv() => seen.push(one.context("every stream ended")?),
            Some(ended) = streams.join_next() => ended??,
            () = tokio::time::sleep_until(deadline) => anyhow::bail!("{} of {count} within a minute", seen.len()),
        }
    }
    Ok(seen)
}

/// Milliseconds until all but the last hundredth had it.
fn late(seen: &[Seen], began: u64) -> f64 {
    let after = seen.iter().map(|(at, _)| at.saturating_sub(began) as f64 / 1e3);
    p99(after.collect())
}
