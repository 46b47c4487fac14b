//! The offline verifier: public keys only, on a store or a copy of one.
//!
//! Reads checkpoints first, then landing journals, then objects, so that a store in use is never ahead of what
//! it is held against. Every log is walked once, frame by frame; damage is named and the walk goes on.
//! Refused: a path without a store, unreadable key files. Invariant: the worst verdict sets the exit code, and
//! nothing a damaged store says about itself makes a verdict better.

mod log;
mod report;
mod tiles;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::record::certificate::{KeyFile, Ring};
use crate::record::frame::{sha256, Hash};
use crate::record::layout::{DirectoryStore, LogPath, Store, BROKER};
use crate::record::summary::SessionSummary;
use crate::record::tlog::VerifierKey;

use report::worsen;
pub use report::{Finding, LogReport, Report, SessionReport, Verdict};
use tiles::Claims;

/// What to verify, and against what.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only this session.
    pub session: Option<String>,
    /// A key file; without it the store's own `keys/` are trusted.
    pub keys: Option<PathBuf>,
    /// A checkpoint kept elsewhere.
    pub checkpoint: Option<PathBuf>,
}

/// Why nothing could be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Reading failed.
    #[error("{path}: {error}")]
    Io {
        /// Where.
        path: String,
        /// What.
        error: io::Error,
    },
    /// No store there.
    #[error("{0} holds no record store (no folder v1)")]
    NoStore(String),
    /// Not a key file.
    #[error("{0} is no key file: expected {{\"keys\": [JWK…], \"checkpoints\": [\"name+hash+key\"…]}}")]
    Keys(String),
    /// No such session.
    #[error("the store knows no session {0}")]
    NoSession(String),
}

/// Verifies the store at `root`, the folder that holds `v1`.
pub fn verify_store(root: &Path, options: &Options) -> Result<Report, VerifyError> {
    verify(&DirectoryStore::new(root), &root.display().to_string(), options)
}

/// Verifies any store.
pub fn verify(store: &dyn Store, name: &str, options: &Options) -> Result<Report, VerifyError> {
    let names = list(store, "v1")?;
    let clusters: BTreeSet<&str> = names
        .iter()
        .filter_map(|name| name.strip_prefix("v1/")?.split_once('/'))
        .map(|(cluster, _)| cluster)
        .collect();
    if clusters.is_empty() {
        return Err(VerifyError::NoStore(name.to_owned()));
    }
    let mut report = Report::default();
    for cluster in clusters {
        Cluster::open(store, cluster, options, &mut report)?.verify(&mut report)?;
    }
    report.sessions.sort_by(|a, b| a.session.cmp(&b.session));
    if let Some(wanted) = &options.session {
        report.sessions.retain(|session| session.session == *wanted);
        report.logs.clear();
        if report.sessions.is_empty() {
            return Err(VerifyError::NoSession(wanted.clone()));
        }
    }
    Ok(report)
}

/// Journals of each log: of several brokers each may have one, of which later ones repeat what earlier ones hold.
type Landings = BTreeMap<LogPath, Vec<Vec<u8>>>;

/// So often journals are looked at while they vanish.
const LOOKS: usize = 10;

/// One cluster's part of a store.
struct Cluster<'a> {
    store: &'a dyn Store,
    name: &'a str,
    ring: Ring,
    claims: Claims,
}

impl<'a> Cluster<'a> {
    fn open(
        store: &'a dyn Store,
        name: &'a str,
        options: &Options,
        report: &mut Report,
    ) -> Result<Cluster<'a>, VerifyError> {
        let ring = match &options.keys {
            Some(file) => ring_of_file(file)?,
            None => ring_of_store(store, name, report)?,
        };
        let mut cluster = Cluster {
            store,
            name,
            ring,
            claims: Claims::default(),
        };
        let extra = options.checkpoint.as_deref().map(read_file).transpose()?;
        tiles::read(
            store,
            name,
            &cluster.ring,
            extra.as_deref(),
            &mut cluster.claims,
            report,
        )?;
        Ok(cluster)
    }

    fn verify(mut self, report: &mut Report) -> Result<(), VerifyError> {
        // Landing before objects: what leaves the one is in the other already.
        let landings = self.read_landings(report)?;
        let mut logs: BTreeMap<LogPath, Vec<String>> = BTreeMap::new();
        for name in self.names(report)? {
            let inside = name.strip_prefix(&format!("v1/{}/log/", self.name)).unwrap_or_default();
            let folder = inside.rsplit_once('/').map_or("", |(folder, _)| folder);
            match LogPath::parse(self.name, folder) {
                Some(path) => logs.entry(path).or_default().push(name),
                None => report.store(Verdict::Forged, format!("{name} is in no log's folder")),
            }
        }
        let claimed = self.claims.logs().filter_map(|log| LogPath::parse(self.name, log));
        for path in landings.keys().cloned().chain(claimed) {
            logs.entry(path).or_default();
        }
        let mut sessions: BTreeMap<String, log::SessionEnd> = BTreeMap::new();
        let mut earlier: BTreeMap<String, LogPath> = BTreeMap::new();
        // Later starts first: what a restart found of an earlier log is a claim about that one.
        for (path, objects) in logs.iter().rev() {
            let walked = log::walk(&self, path, objects, landings.get(path).map_or(&[], Vec::as_slice))?;
            earlier.remove(&walked.boot);
            for found in walked.recovered {
                let of = LogPath::new(&path.cluster, &path.namespace, &path.pod_uid, found.instance);
                earlier.extend(of.map(|of| (found.boot.clone(), of)));
                self.claims.recovered.insert(found.boot, found.end);
            }
            report.logs.push(walked.report);
            for (id, end) in walked.sessions {
                merge(&mut sessions, id, end);
            }
        }
        // Of a sidecar the later log may well come before the rest of the earlier one; the broker writes both itself.
        earlier.retain(|_, path| path.namespace == BROKER && !logs.contains_key(path));
        report
            .logs
            .extend(earlier.into_values().map(|path| LogReport::gone(&path)));
        self.hold_against_summaries(&mut sessions)?;
        let shredded = list(self.store, &format!("v1/{}/shred", self.name))?;
        for (id, end) in sessions {
            let shredded = shredded.iter().any(|name| name.rsplit('/').next() == Some(&id));
            report.sessions.push(end.verdict(id, shredded));
        }
        Ok(())
    }

    /// The landing journals of each log. One that vanishes between list and read became an object, or another replica
    /// goes on with it in a journal of its own: then all are looked at anew.
    fn read_landings(&self, report: &mut Report) -> Result<Landings, VerifyError> {
        let prefix = format!("v1/{}/landing/", self.name);
        let mut looks = 0usize;
        loop {
            let (mut landings, mut others, mut vanished) = (Landings::new(), Vec::new(), false);
            for name in list(self.store, prefix.trim_end_matches('/'))? {
                let inside = name.strip_prefix(&prefix).unwrap_or_default();
                let Some((path, _)) = LogPath::parse_landing(self.name, inside) else {
                    others.push(name);
                    continue;
                };
                match self.read(&name)? {
                    Some(bytes) => landings.entry(path).or_default().push(bytes),
                    None => vanished = true,
                }
            }
            looks = looks.saturating_add(1);
            if !vanished || looks == LOOKS {
                let say = |name: String| report.store(Verdict::Forged, format!("{name} is no landing journal"));
                others.into_iter().for_each(say);
                return Ok(landings);
            }
        }
    }

    /// Log objects; names nobody writes are findings.
    fn names(&self, report: &mut Report) -> Result<Vec<String>, VerifyError> {
        let base = format!("v1/{}/", self.name);
        let mut logs = Vec::new();
        for name in list(self.store, base.trim_end_matches('/'))? {
            let inside = name.strip_prefix(&base).unwrap_or_default();
            match inside.split_once('/').map(|(first, _)| first) {
                Some("log") => logs.push(name),
                Some("landing" | "session" | "tlog" | "keys" | "shred") => {}
                _ => report.store(Verdict::Forged, format!("{name} does not belong into a store")),
            }
        }
        Ok(logs)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, VerifyError> {
        read(self.store, name)
    }

    fn hold_against_summaries(&self, sessions: &mut BTreeMap<String, log::SessionEnd>) -> Result<(), VerifyError> {
        let prefix = format!("v1/{}/session", self.name);
        let mut names: BTreeSet<String> = list(self.store, &prefix)?.into_iter().collect();
        names.extend(self.claims.summaries.keys().cloned());
        for name in names {
            let id = name
                .rsplit('/')
                .next()
                .and_then(|file| file.split('.').next())
                .unwrap_or_default();
            let bytes = self.read(&name)?;
            let claim = self.claims.summaries.get(&name);
            let Some(finding) = judge_summary(&name, bytes.as_deref(), claim, sessions.get_mut(id)) else {
                continue;
            };
            match sessions.get_mut(id) {
                Some(end) => worsen(&mut end.finding, finding.verdict, finding.why),
                None => drop(sessions.insert(id.to_owned(), log::SessionEnd::found(finding))),
            }
        }
        Ok(())
    }
}

/// What a summary says against its session, if it does not fit.
fn judge_summary(
    name: &str,
    bytes: Option<&[u8]>,
    claim: Option<&Hash>,
    session: Option<&mut log::SessionEnd>,
) -> Option<Finding> {
    let last = session.as_ref().and_then(|session| session.last());
    let Some(bytes) = bytes else {
        return Some(Finding::new(
            Verdict::Truncated { after: last },
            format!("{name} is gone"),
        ));
    };
    if claim.is_some_and(|claim| *claim != sha256(bytes)) {
        return Some(Finding::new(Verdict::Forged, format!("{name} is not what was stored")));
    }
    let Ok(summary) = serde_json::from_slice::<SessionSummary>(bytes) else {
        return Some(Finding::new(Verdict::Forged, format!("{name} cannot be read")));
    };
    let Some(session) = session else {
        return Some(Finding::new(Verdict::Truncated { after: None }, "its frames are gone"));
    };
    session.told(&summary)
}

/// A session is in one log; in two it is forged.
fn merge(sessions: &mut BTreeMap<String, log::SessionEnd>, id: String, mut end: log::SessionEnd) {
    if sessions.contains_key(&id) {
        worsen(&mut end.finding, Verdict::Forged, "the session appears in two logs");
    }
    sessions.insert(id, end);
}

fn ring_of_file(file: &Path) -> Result<Ring, VerifyError> {
    let parsed: KeyFile =
        serde_json::from_slice(&read_file(file)?).map_err(|_| VerifyError::Keys(file.display().to_string()))?;
    let mut ring = Ring::default();
    if !ring.add_file(&parsed) {
        return Err(VerifyError::Keys(file.display().to_string()));
    }
    Ok(ring)
}

fn ring_of_store(store: &dyn Store, cluster: &str, report: &mut Report) -> Result<Ring, VerifyError> {
    let mut ring = Ring::default();
    for name in list(store, &format!("v1/{cluster}/keys"))? {
        let bytes = read(store, &name)?.unwrap_or_default();
        let good = if name.ends_with(".jwk") {
            serde_json::from_slice(&bytes).is_ok_and(|jwk| ring.add_jwk(&jwk))
        } else {
            let key = std::str::from_utf8(&bytes).ok().and_then(VerifierKey::parse);
            let good = key.is_some() && name.ends_with(".vkey");
            ring.checkpoints.extend(key);
            good
        };
        if !good {
            report.store(Verdict::Forged, format!("{name} is no key"));
        }
    }
    Ok(ring)
}

fn read_file(path: &Path) -> Result<Vec<u8>, VerifyError> {
    std::fs::read(path).map_err(|error| VerifyError::Io {
        path: path.display().to_string(),
        error,
    })
}

fn list(store: &dyn Store, prefix: &str) -> Result<Vec<String>, VerifyError> {
    store.list(prefix).map_err(|error| VerifyError::Io {
        path: prefix.to_owned(),
        error,
    })
}

fn read(store: &dyn Store, name: &str) -> Result<Option<Vec<u8>>, VerifyError> {
    match store.read(name) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(VerifyError::Io {
            path: name.to_owned(),
            error,
        }),
    }
}
