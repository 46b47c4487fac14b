//! The canary scan: after sessions through a real sidecar, the Secret's password and the pod's token are in nothing that
//! agents, operators or files can show.
//!
//! Every log line of broker and sidecar in this process is kept from the start, down to `trace`. Each place that is
//! searched must also show something it is known to have: a search that looks nowhere finds nothing.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{ensure, Context, Result};
use sidegate_policies::record::audit::read;
use sidegate_policies::record::layout::DirectoryStore;
use sidegate_tests::cluster::{Cluster, Programs};
use sidegate_tests::http::get;
use sidegate_tests::shop::{DATABASE, PASSWORD};
use sidegate_tests::wire::{query, Wire};
use sidegate_tests::{psql::psql, told};
use tracing_subscriber::EnvFilter;

use crate::applied::{Shop, NAME};
use crate::charts;
use crate::site::{until, Agent, Site};

/// What was logged so far.
static LOGGED: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Kept;

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGGED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps every log line of this process.
pub fn listen() {
    let filter = EnvFilter::new("info,sidegate_broker=trace,sidegate_sidecar=trace");
    let json = tracing_subscriber::fmt().json().with_env_filter(filter);
    let _ = json.with_writer(|| Kept).try_init();
}

/// Whether a line was logged that holds all of these.
pub fn logged(parts: &[&str]) -> bool {
    let logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&logged);
    text.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

/// Places that were searched, and what each must never show.
struct Scan {
    never: Vec<(&'static str, Vec<u8>)>,
}

impl Scan {
    /// Searches one place, which is known to show `known`.
    fn place(&self, place: &str, bytes: &[u8], known: &str) -> Result<()> {
        let holds = |needle: &[u8]| needle.is_empty() || bytes.windows(needle.len()).any(|window| window == needle);
        ensure!(holds(known.as_bytes()), "{place} does not even show {known}");
        for (what, needle) in &self.never {
            ensure!(!holds(needle), "{place} shows {what}");
        }
        Ok(())
    }

    /// Searches every file below a folder; answers how many there were.
    fn folder(&self, folder: &Path, skip: &[&str]) -> Result<usize> {
        let mut files = 0;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if skip.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                files += self.folder(&path, skip)?;
            } else if path.is_file() {
                let bytes = match fs::read(&path) {
                    // Uploaded meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    read => read?,
                };
                self.place(&path.display().to_string(), &bytes, "")?;
                files += 1;
            }
        }
        Ok(files)
    }
}

/// A session that reads, one that is refused, one that is cut by a Lockdown: what the agent received, the logs, the
/// records, the audit, both pages of metrics, the files of both halves and the objects of the cluster show no secret.
pub fn a_secret_is_seen_by_nobody(programs: &Programs) -> Result<()> {
    let cluster = Cluster::start(programs)?;
    charts::install_kinds(&cluster)?;
    let site = Arc::new(Site::start(&cluster)?);
    let shop = Shop::of(Agent::of(&cluster, site, |_| {})?)?;
    shop.open()?;
    let sidecar = shop.agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    let token = fs::read(shop.agent.folder().join("token"))?;
    ensure!(token.len() > 100, "no token");
    let signature = token
        .rsplit(|byte| *byte == b'.')
        .next()
        .context("no signature")?
        .to_vec();
    let scan = Scan {
        never: vec![("the password", PASSWORD.into()), ("the pod's token", signature)],
    };
    let mut wire = Wire::login(shop.local, DATABASE)?;
    for text in [NAME, "DROP TABLE app.people", "SELEC", "SHOW password_encryption"] {
        wire.ask(&[query(text)])?;
    }
    // Now and at the end: what was uploaded is no longer there, so there may be nothing to see.
    ensure!(
        shop.agent.folder().join("journal").is_dir(),
        "the sidecar has no journal"
    );
    scan.folder(shop.agent.folder(), &["token"])?;
    let refused = psql(shop.local, DATABASE, &["SELECT rolpassword FROM pg_authid"])?;
    scan.place("what psql was told", format!("{refused:?}").as_bytes(), "ERROR")?;
    let runtime = &shop.agent.site.runtime;
    let health = shop.agent.site.broker.health_addr.context("no health port")?;
    for (address, known) in [
        (health, "sidegate_broker_streams 1"),
        (sidecar.scrape_addrs[0], "sidegate_lease_waiters"),
    ] {
        let (_, page) = runtime.block_on(get(address, "GET /metrics"))?;
        scan.place("a page of metrics", page.as_bytes(), known)?;
    }
    let freeze = r#"{"apiVersion": "sidegate.dev/v1alpha1", "kind": "Lockdown", "metadata": {"name": "drill"},
        "spec": {"reason": "drill", "freeze": [{"everything": {}}]}}"#;
    shop.agent.apply(freeze)?;
    until("the session ends", || Ok(wire.alive().unwrap_or(false)), |alive| !alive)?;
    scan.place("what the agent received", &wire.received, "Ada")?;
    let kinds = "events,leases,configmaps,pods,targets,accesspolicies,lockdowns";
    let list = ["get", kinds, "--all-namespaces", "-o", "json"];
    let told = |objects: &String| objects.contains("sessionsClosed");
    let objects = until("the Lockdown's status", || cluster.kubectl(&list, ""), told)?;
    scan.place("the cluster's objects", objects.as_bytes(), "sessionsClosed")?;

    shop.agent.end(sidecar);
    let Shop { agent, server, .. } = shop;
    scan.folder(agent.folder(), &["token"])?;
    let site = Arc::into_inner(agent.site).context("the broker is held elsewhere")?;
    let folder = site.end();
    let state = folder.path().join("state");
    ensure!(scan.folder(&state, &[])? > 5, "the broker left no files");
    let sessions = serde_json::to_vec(&told::events(&state)?)?;
    scan.place("the records", &sessions, "SELECT name FROM app.people")?;
    let audit = read(&DirectoryStore::new(&state.join("records")))?;
    scan.place("the audit", &serde_json::to_vec(&audit)?, "lease.granted")?;
    let logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    scan.place("the logs", &logged, "lease.granted")?;
    drop(server);
    Ok(())
}
