//! What exchanges came to, for a while: tokens until half of their life, refusals for some seconds, and who is waiting
//! for what.
//!
//! A token that its provider wants back is not kept here: it is given again while a lease has it. Refuses more than [`MAX`]
//! entries: what ends first makes room, and where every entry is an exchange that runs,
//! nothing is begun. Invariant: of one key at most one exchange runs.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::{Exchanged, Failure, Outcome};

/// SHA-256 of everything that tells results apart.
pub(super) type Key = [u8; 32];

/// Entries, at most.
pub(super) const MAX: usize = 4_096;

/// Where an outcome appears.
pub(super) type Told = watch::Receiver<Option<Outcome>>;

/// What is there.
pub(super) enum Found {
    /// A token.
    Held(Arc<Exchanged>),
    /// An exchange that will tell.
    Running(Told),
}

/// All of it.
#[derive(Default)]
pub(super) struct Cache(HashMap<Key, Entry>);

struct Entry {
    state: State,
    /// Since when the provider says that it does not know of the trust.
    spreading_since: Option<i64>,
}

enum State {
    Running(Told),
    Good(Arc<Exchanged>),
    /// The same, as long as somebody has it: then its provider is told that it is over.
    Lent {
        held: Weak<Exchanged>,
        until_ms: i64,
    },
    Refused {
        failure: Failure,
        until_ms: i64,
    },
}

impl Entry {
    /// When it is good for nothing any more; never while it runs.
    fn ends(&self) -> i64 {
        match &self.state {
            // Whose task is gone tells nobody.
            State::Running(told) if told.has_changed().is_err() && told.borrow().is_none() => i64::MIN,
            State::Running(_) => i64::MAX,
            State::Good(held) => held.until_ms,
            State::Lent { held, .. } if held.strong_count() == 0 => i64::MIN,
            State::Lent { until_ms, .. } => *until_ms,
            State::Refused { until_ms, .. } => *until_ms,
        }
    }
}

impl Cache {
    /// What there is for a key now; nothing: begin an exchange. `anew`: the last token was refused.
    pub(super) fn find(&self, key: &Key, generation: u64, now_ms: i64, anew: bool) -> Option<Result<Found, Failure>> {
        let entry = self.0.get(key)?;
        match &entry.state {
            State::Running(told) if entry.ends() == i64::MAX => Some(Ok(Found::Running(told.clone()))),
            State::Good(held) if !anew && held.fresh(generation, now_ms) => Some(Ok(Found::Held(Arc::clone(held)))),
            State::Lent { held, .. } if !anew => {
                let held = held.upgrade().filter(|held| held.fresh(generation, now_ms));
                held.map(|held| Ok(Found::Held(held)))
            }
            State::Refused { failure, until_ms } if *until_ms > now_ms => Some(Err(failure.clone())),
            _ => None,
        }
    }

    /// Puts a running exchange in; false where there is no room.
    pub(super) fn begin(&mut self, key: Key, told: Told, now_ms: i64) -> bool {
        if !self.0.contains_key(&key) && self.0.len() >= MAX {
            self.0.retain(|_, entry| entry.ends() > now_ms);
        }
        if !self.0.contains_key(&key) && self.0.len() >= MAX {
            let first = self.0.iter().min_by_key(|(_, entry)| entry.ends());
            let first = first.filter(|(_, entry)| entry.ends() < i64::MAX).map(|(key, _)| *key);
            let Some(first) = first else { return false };
            self.0.remove(&first);
        }
        let spreading_since = self.0.get(&key).and_then(|entry| entry.spreading_since);
        self.put(key, State::Running(told), spreading_since);
        true
    }

    /// A token came.
    pub(super) fn keep(&mut self, key: Key, held: &Arc<Exchanged>) {
        let state = match held.ending {
            None => State::Good(Arc::clone(held)),
            Some(_) => State::Lent {
                held: Arc::downgrade(held),
                until_ms: held.until_ms,
            },
        };
        self.put(key, state, None);
    }

    /// It was refused, and will be until then.
    pub(super) fn refuse(&mut self, key: Key, failure: Failure, until_ms: i64) {
        self.put(key, State::Refused { failure, until_ms }, None);
    }

    /// The provider does not know of the trust; milliseconds since it said so first.
    pub(super) fn spreading(&mut self, key: &Key, now_ms: i64) -> i64 {
        let Some(entry) = self.0.get_mut(key) else { return 0 };
        now_ms.saturating_sub(*entry.spreading_since.get_or_insert(now_ms))
    }

    /// It is asked again then.
    pub(super) fn spread(&mut self, key: Key, failure: Failure, until_ms: i64) {
        let since = self.0.get(&key).and_then(|entry| entry.spreading_since);
        self.put(key, State::Refused { failure, until_ms }, since);
    }

    /// Nothing worth keeping came of it.
    pub(super) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    fn put(&mut self, key: Key, state: State, spreading_since: Option<i64>) {
        self.0.insert(key, Entry { state, spreading_since });
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
