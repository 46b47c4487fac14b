//! Several brokers that keep one store: what each says of itself, and what becomes of the logs of one that is gone.
//!
//! Each writes where it stands into a file of its own (`private/standing/<replica>`): heads for the leader's
//! checkpoints, the logs it hears, and its open sessions for lists. One whose file does not change for as long as it
//! takes to call a sidecar silent is gone; the leader then keeps what it left. Only our own clock counts.
//! Invariant: nothing that is lost here costs a frame; a standing that is late or gone delays, and decides nothing else.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sidegate_policies::record::frame::{hex, unhex};
use sidegate_policies::record::layout::{LogPath, BROKER};
use sidegate_policies::record::summary::SessionSummary;
use sidegate_policies::record::tlog::LogHead;

use super::read_back::{self, frames};
use super::{lock, wall_us, Records, RecordsError};

const STANDING: &str = "private/standing";
/// A sidecar says something every five seconds.
const HEARD_WITHIN: Duration = Duration::from_secs(30);

/// What one replica says of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Standing {
    /// Another one each time.
    at: u64,
    heads: Vec<Head>,
    /// Logs whose sidecar it hears.
    hears: Vec<String>,
    /// Sessions without an end.
    sessions: Vec<SessionSummary>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    log: String,
    number: u64,
    hash: String,
}

/// When each of the others was last seen to say something new.
#[derive(Default)]
pub(super) struct Watched {
    seen: HashMap<String, (u64, Instant)>,
    others: Others,
}

/// The other replicas that are there now.
#[derive(Debug, Clone, Default)]
pub(super) struct Others(HashMap<String, Standing>);

impl Others {
    /// Whether one of them hears the log's sidecar.
    pub fn hear(&self, log: &str) -> bool {
        self.0
            .values()
            .any(|standing| standing.hears.iter().any(|heard| heard == log))
    }

    fn heads(&self) -> impl Iterator<Item = LogHead> + '_ {
        let heads = self.0.values().flat_map(|standing| &standing.heads);
        heads.filter_map(|head| {
            Some(LogHead {
                log: head.log.clone(),
                number: head.number,
                hash: unhex(&head.hash)?,
            })
        })
    }
}

impl Records {
    /// Whether this broker leads: what need be done once is its work.
    pub(super) fn leads(&self) -> bool {
        (self.options.leads.0)()
    }

    /// Says where this replica stands, and looks at the others.
    pub(super) fn stand(&self) -> Result<Others, RecordsError> {
        if !self.is_shared() {
            return Ok(Others::default());
        }
        let logs = self.all_logs();
        let within = HEARD_WITHIN.min(self.options.orphan_after.checked_div(2).unwrap_or_default());
        let mut standing = Standing {
            at: wall_us(),
            ..Standing::default()
        };
        for log in &logs {
            let mut log = lock(log);
            if log.is_heard(within) {
                standing.hears.push(log.path.to_string());
            }
            standing.sessions.extend(log.open_sessions());
            standing.heads.extend(log.head().map(|head| Head {
                log: head.log,
                number: head.number,
                hash: hex(&head.hash),
            }));
        }
        let bytes = serde_json::to_vec(&standing).map_err(|_| RecordsError::Key("a standing cannot be written"))?;
        let name = format!("{STANDING}/{}", self.options.replica);
        self.objects.replace_private(&name, &bytes)?;
        self.look()
    }

    /// The other replicas that are there.
    fn look(&self) -> Result<Others, RecordsError> {
        let (mut watched, now) = (lock(&self.watched), Instant::now());
        let (mut seen, mut others) = (HashMap::new(), Others::default());
        for name in self.objects.list(STANDING)? {
            let replica = name.rsplit('/').next().unwrap_or_default();
            if replica == self.options.replica {
                continue;
            }
            let bytes = self.objects.read(&name)?.unwrap_or_default();
            let Ok(standing) = serde_json::from_slice::<Standing>(&bytes) else {
                continue;
            };
            let since = match watched.seen.get(replica) {
                Some((at, since)) if *at == standing.at => *since,
                _ => now,
            };
            seen.insert(replica.to_owned(), (standing.at, since));
            if now.saturating_duration_since(since) < self.options.orphan_after {
                others.0.insert(replica.to_owned(), standing);
            }
        }
        watched.seen = seen;
        watched.others = others.clone();
        Ok(others)
    }

    /// Says that this replica is there no more.
    pub(super) fn leave(&self) {
        let name = format!("{STANDING}/{}", self.options.replica);
        if self.is_shared() && self.objects.remove(&name).is_err() {
            tracing::warn!("the others will take this replica for one that is there, for a while");
        }
    }

    /// Takes up the logs of replicas that are gone, so that their sessions are sealed, and removes their journals once
    /// objects hold what was in them.
    pub(super) fn adopt(&self, others: &Others) -> Result<(), RecordsError> {
        for (name, path, replica) in self.landings()? {
            let there = replica == self.options.replica || others.0.contains_key(&replica);
            if there || path.namespace == BROKER {
                continue;
            }
            // One log that cannot be read keeps no other from being sealed, and no checkpoint from being signed.
            if let Err(error) = self.adopt_one(&name, &path) {
                self.alarm(&path.to_string(), &error.to_string());
            }
        }
        Ok(())
    }

    fn adopt_one(&self, name: &str, path: &LogPath) -> Result<(), RecordsError> {
        let log = self.log(path)?;
        let bytes = self.objects.read(name)?.unwrap_or_default();
        let last = frames(&bytes).last().map(|frame| frame.header.log_number);
        let mut state = lock(&log);
        if last.is_some_and(|last| last >= state.next()) {
            // This broker had it before the one that is gone: what it remembers is old
            // (`what_a_log_became_after_it_left_is_not_lost_with_the_broker_it_went_to`).
            *state = read_back::load(self, path)?.state;
        }
        if last.is_none_or(|last| state.is_stored(last)) {
            self.objects.remove(name)?;
        }
        Ok(())
    }

    /// The heads of all logs, each at its furthest.
    pub(super) fn heads(&self, others: &Others) -> Vec<LogHead> {
        let own = self.all_logs().into_iter().filter_map(|log| lock(&log).head());
        let mut heads: HashMap<String, LogHead> = HashMap::new();
        for head in own.chain(others.heads()) {
            match heads.get(&head.log) {
                Some(further) if further.number >= head.number => {}
                _ => drop(heads.insert(head.log.clone(), head)),
            }
        }
        let mut heads: Vec<LogHead> = heads.into_values().collect();
        heads.sort_by(|a, b| a.log.cmp(&b.log));
        heads
    }

    /// Sessions that are open at other replicas, as of their last standing.
    pub(super) fn open_elsewhere(&self) -> Vec<SessionSummary> {
        let watched = lock(&self.watched);
        let standings = watched.others.0.values();
        standings
            .flat_map(|standing| standing.sessions.iter().cloned())
            .collect()
    }
}
