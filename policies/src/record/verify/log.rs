//! One log of a store: its sources in order, the walk over them, and what each session ends as.
//!
//! Sources are the log's objects by name, then its landing journals. What checkpoints, later starts and summaries
//! claim is held against what is there. Invariant: a session's verdict starts from what the walk found and only
//! gets worse.

use std::collections::BTreeMap;

use crate::record::frame::{Frame, Hash};
use crate::record::layout::{object_first, LogPath};
use crate::record::summary::SessionSummary;
use crate::record::verify::walk::Walker;
use crate::record::verify::{worsen, Cluster, Finding, LogReport, SessionReport, Verdict, VerifyError};

/// What a start found of an earlier one.
pub(super) struct EarlierStart {
    /// Hash of that log's `boot`, hex.
    pub boot: String,
    pub instance: u64,
    /// Its last log number, and the hash of that frame.
    pub end: (u64, Hash),
}

/// A walked log.
pub(super) struct Walked {
    pub report: LogReport,
    pub sessions: Vec<(String, SessionEnd)>,
    pub recovered: Vec<EarlierStart>,
    /// Hash of its `boot`, hex.
    pub boot: String,
}

/// How a session stands at the end of the walk.
#[derive(Debug, Clone, Default)]
pub(super) struct SessionEnd {
    pub log: String,
    pub frames: u64,
    /// Number after its last frame.
    pub next: u64,
    pub head: Hash,
    pub first_log_number: u64,
    pub closed: bool,
    /// Number of its last frame that a footer covers.
    pub sealed: Option<u64>,
    /// The log goes on: nothing says that it ended.
    pub alive: bool,
    pub finding: Option<Finding>,
}

impl SessionEnd {
    /// A session of which only a finding is known.
    pub fn found(finding: Finding) -> SessionEnd {
        SessionEnd {
            finding: Some(finding),
            ..SessionEnd::default()
        }
    }

    /// Number of the last frame.
    pub fn last(&self) -> Option<u64> {
        self.next.checked_sub(1)
    }

    /// Holds the session against its summary.
    pub fn told(&mut self, summary: &SessionSummary) -> Option<Finding> {
        if summary.orphan.is_some() {
            self.alive = false;
            // The session may have gone on after a silence; the summary must fit a prefix.
            let fits = summary.frames <= self.frames;
            return (!fits).then(|| self.lost("its orphan summary tells of more frames"));
        }
        if summary.frames > self.frames {
            return Some(self.lost("its summary tells of more frames"));
        }
        let fits = summary.frames == self.frames
            && summary.head == self.head
            && summary.log == self.log
            && summary.first == self.first_log_number;
        (!fits).then(|| Finding::new(Verdict::Forged, "its summary does not fit its frames"))
    }

    fn lost(&self, why: &str) -> Finding {
        Finding::new(Verdict::Truncated { after: self.last() }, why)
    }

    /// The verdict.
    pub fn verdict(self, session: String, shredded: bool) -> SessionReport {
        let last = self.last();
        let all_sealed = self.sealed.is_some() && self.sealed == last;
        let (verdict, why) = match self.finding {
            Some(finding) => (finding.verdict, finding.why),
            None if self.closed && all_sealed && shredded => (Verdict::Shredded, String::new()),
            None if self.closed && all_sealed => (Verdict::Valid, String::new()),
            None if self.alive => (
                Verdict::Open {
                    until: last.unwrap_or(0),
                },
                String::new(),
            ),
            None if self.closed => (
                Verdict::Unsealed { after: self.sealed },
                "its last frames are not signed".into(),
            ),
            None => (
                Verdict::Unsealed { after: self.sealed },
                "it ended without close".into(),
            ),
        };
        SessionReport {
            session,
            verdict,
            why,
            log: self.log,
            frames: self.frames,
        }
    }
}

/// Walks a log: `objects` by name, then the landing journals, the one that begins first before the others.
pub(super) fn walk(
    cluster: &Cluster<'_>,
    path: &LogPath,
    objects: &[String],
    landings: &[Vec<u8>],
) -> Result<Walked, VerifyError> {
    let name = path.to_string();
    let mut walker = Walker::new(path, &cluster.ring, cluster.claims.of(&name));
    walker.seals = cluster.claims.seals.get(&name).cloned().unwrap_or_default();
    if cluster.claims.torn.contains(&name) {
        walker.log_finding(Verdict::Forged, "checkpoints disagree about the log");
    }
    let mut landings: Vec<&Vec<u8>> = landings.iter().collect();
    landings.sort_by_key(|bytes| begins(bytes));
    walker.repeated_from = landings.first().map_or(u64::MAX, |bytes| begins(bytes));
    let mut bytes_read = 0u64;
    for (index, object) in objects.iter().enumerate() {
        let bytes = cluster.read(object)?.unwrap_or_default();
        bytes_read = bytes_read.saturating_add(bytes.len() as u64);
        let last = index.saturating_add(1) == objects.len() && landings.is_empty();
        walker.object(object_first(object), &bytes, last);
    }
    for bytes in landings {
        bytes_read = bytes_read.saturating_add(bytes.len() as u64);
        walker.landing(bytes);
    }
    let boot = walker.boot_hex();
    walker.end(cluster.claims.recovered.get(&boot).copied());
    let (mut report, sessions, recovered) = walker.into_parts();
    report.bytes = bytes_read;
    Ok(Walked {
        report,
        sessions,
        recovered,
        boot,
    })
}

/// Log number that a journal begins with.
fn begins(bytes: &[u8]) -> u64 {
    Frame::parse_unchecked(bytes).map_or(u64::MAX, |frame| frame.header.log_number)
}

/// Sessions by id, as text.
pub(super) fn by_name(sessions: BTreeMap<[u8; 16], SessionEnd>) -> Vec<(String, SessionEnd)> {
    sessions
        .into_iter()
        .map(|(id, end)| (uuid::Uuid::from_bytes(id).to_string(), end))
        .collect()
}

/// Puts a finding on a session.
pub(super) fn mark(session: &mut SessionEnd, finding: &Finding) {
    worsen(&mut session.finding, finding.verdict, finding.why.clone());
}
