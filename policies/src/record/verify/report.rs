//! Verdicts: what a verifier says, and the exit code that follows.
//!
//! The worst finding wins, whatever order things were found in; of two equally bad ones the first is told.
//! Invariant: `code` orders verdicts from harmless to worst, and 0 means nothing was tampered with.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::record::layout::LogPath;

/// What is true of a session, a log or a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Complete, chained, signed.
    Valid,
    /// Good so far, and still going on: nothing is known after frame `until`.
    Open {
        /// Number of the last frame.
        until: u64,
    },
    /// Complete, chained, signed; its content is unreadable by decision.
    Shredded,
    /// A tail without signature, as a crash leaves it.
    Unsealed {
        /// Number of the last signed frame.
        after: Option<u64>,
    },
    /// Order is good, times are to be doubted.
    ClockSuspect,
    /// Frames existed that are not there.
    Truncated {
        /// Number of the last frame that is.
        after: Option<u64>,
    },
    /// Frames are missing in between.
    Gap {
        /// First missing.
        from: u64,
        /// Last missing.
        to: u64,
    },
    /// Hash, signature, certificate, splice or overwrite.
    Forged,
}

impl Verdict {
    /// Its exit code.
    pub fn code(self) -> u8 {
        match self {
            Verdict::Valid | Verdict::Open { .. } | Verdict::Shredded => 0,
            Verdict::Unsealed { .. } => 10,
            Verdict::ClockSuspect => 11,
            Verdict::Truncated { .. } => 20,
            Verdict::Gap { .. } => 21,
            Verdict::Forged => 22,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = |after: &Option<u64>| after.map_or("nothing".to_owned(), |number| number.to_string());
        match self {
            Verdict::Valid => f.write_str("VALID"),
            Verdict::Open { until } => write!(f, "OPEN(until {until})"),
            Verdict::Shredded => f.write_str("SHREDDED"),
            Verdict::Unsealed { after: number } => write!(f, "UNSEALED(after {})", after(number)),
            Verdict::ClockSuspect => f.write_str("CLOCK-SUSPECT"),
            Verdict::Truncated { after: number } => write!(f, "TRUNCATED(after {})", after(number)),
            Verdict::Gap { from, to } => write!(f, "GAP({from}..{to})"),
            Verdict::Forged => f.write_str("FORGED"),
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A verdict and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub verdict: Verdict,
    /// Why, in words.
    pub why: String,
}

impl Finding {
    /// A finding.
    pub fn new(verdict: Verdict, why: impl Into<String>) -> Finding {
        Finding {
            verdict,
            why: why.into(),
        }
    }
}

/// Keeps the worse of what is known and what was found.
pub(super) fn worsen(known: &mut Option<Finding>, verdict: Verdict, why: impl Into<String>) {
    let worse = known.as_ref().is_none_or(|known| verdict.code() > known.verdict.code());
    if worse {
        *known = Some(Finding::new(verdict, why));
    }
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionReport {
    /// Its id.
    pub session: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Why, where it is not plainly valid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// `<namespace>/<pod-uid>/<instance>` of its log.
    pub log: String,
    /// Frames found.
    pub frames: u64,
}

/// One log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogReport {
    /// `<namespace>/<pod-uid>/<instance>`.
    pub log: String,
    /// The verdict over the log itself.
    pub verdict: Verdict,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Frames found.
    pub frames: u64,
    /// Segments whose footer verified.
    pub segments: u64,
    /// Bytes read.
    pub bytes: u64,
}

impl LogReport {
    /// A log of which a later start tells and nothing is there.
    pub(super) fn gone(path: &LogPath) -> LogReport {
        LogReport {
            log: path.to_string(),
            verdict: Verdict::Truncated { after: None },
            why: "a later start tells of it, and it is gone".to_owned(),
            frames: 0,
            segments: 0,
            bytes: 0,
        }
    }
}

/// Everything that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Findings about checkpoints, tiles, keys and stray objects.
    pub store: Vec<Finding>,
    /// The logs.
    pub logs: Vec<LogReport>,
    /// The sessions, by id.
    pub sessions: Vec<SessionReport>,
    /// Checkpoints that verified.
    pub checkpoints: u64,
}

impl Report {
    pub(super) fn store(&mut self, verdict: Verdict, why: impl Into<String>) {
        self.store.push(Finding::new(verdict, why));
    }

    /// The worst verdict's exit code.
    pub fn exit_code(&self) -> u8 {
        let store = self.store.iter().map(|finding| finding.verdict);
        let logs = self.logs.iter().map(|log| log.verdict);
        let sessions = self.sessions.iter().map(|session| session.verdict);
        store.chain(logs).chain(sessions).map(Verdict::code).max().unwrap_or(0)
    }
}
