//! What was found out a moment ago, for as long as that counts.
//!
//! Refuses nothing. The invariants: nothing is told after its time, and there are never more entries than [`MOST`].

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};

/// How long what the cluster said counts, milliseconds; the API server remembers good reviews as long.
pub const COUNTS_MS: i64 = 10_000;
const MOST: usize = 10_000;

/// Values by key, each with the time until which it counts.
#[derive(Debug)]
pub struct Remembered<K, V>(Mutex<HashMap<K, (i64, V)>>);

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Remembered(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    /// What still counts at this time, in milliseconds since 1970.
    pub fn get(&self, key: &K, now_ms: i64) -> Option<V> {
        let held = self.held();
        let (until, value) = held.get(key)?;
        (*until > now_ms).then(|| value.clone())
    }

    /// Keeps a value found out at this time. Where there is no room it is not kept.
    pub fn keep(&self, key: K, value: V, now_ms: i64) {
        let mut held = self.held();
        if held.len() >= MOST {
            held.retain(|_, (until, _)| *until > now_ms);
        }
        if held.len() < MOST {
            held.insert(key, (now_ms.saturating_add(COUNTS_MS), value));
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<K, (i64, V)>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_counts_after_its_time_and_a_full_memory_forgets_what_is_over_alone() {
        let held = Remembered::default();
        for key in 0..MOST {
            held.keep(key, "early", 0);
        }
        assert_eq!(held.get(&0, COUNTS_MS - 1), Some("early"));
        assert_eq!(held.get(&0, COUNTS_MS), None);
        held.keep(MOST, "late", COUNTS_MS - 1);
        assert_eq!(held.get(&MOST, COUNTS_MS - 1), None, "there is no room");
        held.keep(MOST, "late", COUNTS_MS);
        assert_eq!(held.get(&MOST, COUNTS_MS), Some("late"));
    }
}
