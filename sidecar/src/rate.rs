//! Operations per minute of this pod on one target, over all its sessions.
//!
//! Counts admitted operations in sixty buckets of a second, so that no minute ever holds more than the limit.
//! Refuses instead of waiting. Bounded: one window per target that has a limit.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sidegate_policies::engine::TargetId;

const BUCKETS: usize = 60;

struct Window {
    /// Seconds since the start of [`Rates`], of the newest bucket.
    newest: u64,
    buckets: [u32; BUCKETS],
}

/// Every target's window.
pub struct Rates {
    started: Instant,
    windows: Mutex<HashMap<TargetId, Window>>,
}

impl Default for Rates {
    fn default() -> Self {
        Rates {
            started: Instant::now(),
            windows: Mutex::default(),
        }
    }
}

impl Rates {
    /// Takes one operation out of the target's minute; false if the minute is used up.
    pub fn take(&self, target: &TargetId, per_minute: i64) -> bool {
        self.take_at(target, per_minute, self.started.elapsed())
    }

    fn take_at(&self, target: &TargetId, per_minute: i64, now: Duration) -> bool {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if !windows.contains_key(target) {
            let fresh = Window {
                newest: now.as_secs(),
                buckets: [0; BUCKETS],
            };
            windows.insert(target.clone(), fresh);
        }
        windows
            .get_mut(target)
            .is_some_and(|window| window.take(now.as_secs(), per_minute))
    }
}

impl Window {
    fn take(&mut self, second: u64, per_minute: i64) -> bool {
        let behind = second.saturating_sub(self.newest).min(BUCKETS as u64);
        for step in 1..=behind {
            if let Some(bucket) = self.bucket(self.newest.saturating_add(step)) {
                *bucket = 0;
            }
        }
        self.newest = self.newest.max(second);
        let used: u64 = self.buckets.iter().map(|count| u64::from(*count)).sum();
        if used >= u64::try_from(per_minute).unwrap_or(0) {
            return false;
        }
        let newest = self.newest;
        if let Some(bucket) = self.bucket(newest) {
            *bucket = bucket.saturating_add(1);
        }
        true
    }

    fn bucket(&mut self, second: u64) -> Option<&mut u32> {
        let at = second.checked_rem(BUCKETS as u64)?;
        self.buckets.get_mut(usize::try_from(at).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_holds_more_than_the_limit() {
        let rates = Rates::default();
        let target = TargetId::new("data", "shop");
        let at = |second| Duration::from_secs(second);
        assert!(rates.take_at(&target, 2, at(0)));
        assert!(rates.take_at(&target, 2, at(30)));
        assert!(!rates.take_at(&target, 2, at(59)));
        assert!(rates.take_at(&target, 2, at(60)), "the first one left the minute");
        assert!(!rates.take_at(&target, 2, at(61)));
        assert!(rates.take_at(&target, 2, at(1_000)), "after a long pause all is free");
        assert!(rates.take_at(&TargetId::new("data", "other"), 1, at(61)));
    }
}
