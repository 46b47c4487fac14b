//! Ends of lockdowns that are to be told: which are in force and when their time passes, kept over restarts.
//!
//! Owns the file `lockdowns.ends`. An end is forgotten once it is on record, never before, so one that comes while no
//! broker runs, or is killed, is told at the next start. Refuses nothing: a file that cannot be read or written is a line
//! in the log and costs an event, never a freeze. Invariant: a lockdown that never was in force never ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::state::StateDir;

const FILE: &str = "lockdowns.ends";

/// A lockdown whose time has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its name.
    pub name: String,
    /// When its time passed, milliseconds since 1970.
    pub at_ms: i64,
    /// The broker was not running then, or was killed before it could tell.
    pub late: bool,
    /// It is still defined; otherwise its definition was removed meanwhile, and perhaps before its time.
    pub defined: bool,
}

/// Lockdowns with an end, from when they are in force until their end is on record.
#[derive(Debug)]
pub(super) struct Ends {
    state: Arc<StateDir>,
    known: BTreeMap<String, i64>,
    /// Told, and not yet known to be on record.
    told: BTreeSet<String>,
    /// Ends before this come from an earlier start.
    opened_ms: i64,
    ended: Vec<Ended>,
}

impl Ends {
    pub fn open(state: &Arc<StateDir>, now_ms: i64) -> Self {
        let read = state.read(FILE).map(Option::unwrap_or_default);
        let known = match read {
            Ok(bytes) if bytes.is_empty() => BTreeMap::new(),
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(%error, FILE, "ends of lockdowns cannot be read: those that came meanwhile are not told");
                BTreeMap::new()
            }),
            Err(error) => {
                tracing::error!(%error, "ends of lockdowns cannot be read: those that came meanwhile are not told");
                BTreeMap::new()
            }
        };
        Ends {
            state: Arc::clone(state),
            known,
            told: BTreeSet::new(),
            opened_ms: now_ms,
            ended: Vec::new(),
        }
    }

    /// Takes what is defined now: names, and when each ends (`None`: never).
    pub fn update(&mut self, defined: &BTreeMap<String, Option<i64>>, now_ms: i64) {
        let before = self.known.clone();
        for (name, until) in defined {
            match until {
                Some(until) if *until > now_ms => {
                    self.told.remove(name);
                    self.known.insert(name.clone(), *until);
                }
                // It ended, and perhaps its end was moved.
                Some(until) => {
                    self.known.entry(name.clone()).and_modify(|known| *known = *until);
                }
                None => drop(self.known.remove(name)),
            }
        }
        // Lifted before its time: whoever did that is on record.
        self.known
            .retain(|name, until| *until <= now_ms || defined.contains_key(name));
        for (name, until) in &self.known {
            if *until <= now_ms && self.told.insert(name.clone()) {
                self.ended.push(Ended {
                    name: name.clone(),
                    at_ms: *until,
                    late: *until <= self.opened_ms,
                    defined: defined.contains_key(name),
                });
            }
        }
        if self.known != before {
            self.write();
        }
    }

    /// Those that ended since this was asked last.
    pub fn take(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// Every end that was taken is on record.
    pub fn recorded(&mut self) {
        let untaken = |name: &String| self.ended.iter().any(|ended| ended.name == *name);
        let before = self.known.len();
        let (known, told) = (&mut self.known, &self.told);
        known.retain(|name, _| !told.contains(name) || untaken(name));
        if self.known.len() != before {
            self.write();
        }
        self.told.retain(|name| self.known.contains_key(name));
    }

    /// Whether the end of one was told and is not known to be on record.
    pub fn waits(&self) -> bool {
        self.told.iter().any(|name| self.known.contains_key(name))
    }

    fn write(&self) {
        let written = serde_json::to_vec(&self.known).map_err(|error| error.to_string());
        let written = written.and_then(|bytes| self.state.write(FILE, &bytes).map_err(|error| error.to_string()));
        if let Err(error) = written {
            tracing::error!(
                error,
                "ends of lockdowns cannot be kept: one that comes while no broker runs is not told"
            );
        }
    }
}
