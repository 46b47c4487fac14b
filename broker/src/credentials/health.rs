//! How one provider fares: a circuit that opens when it fails, a budget of retries, and its own word on when to come
//! back.
//!
//! Refuses calls while the circuit is open, but for one probe. Times come from the broker's clock, so a clock that was
//! set back closes nothing for ever. Invariant: a provider in trouble is asked less often, never more.

use std::collections::VecDeque;

/// So many failures within [`WINDOW_MS`] open the circuit.
const FAILURES: usize = 5;
const WINDOW_MS: i64 = 10_000;
/// It stays open so long; then one call probes.
const OPEN_MS: i64 = 5_000;
/// A probe that tells nothing for so long is lost.
const PROBE_MS: i64 = 30_000;
/// Retries at hand at most, in tenths: each call earns one tenth, each retry costs ten.
const BUDGET: u32 = 100;
/// The longest time a provider can ask for.
const MAX_WAIT_MS: i64 = 60_000;

/// One provider.
pub(super) struct Health {
    failures: VecDeque<i64>,
    open_until: Option<i64>,
    probing_since: Option<i64>,
    not_before: Option<i64>,
    budget: u32,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            failures: VecDeque::new(),
            open_until: None,
            probing_since: None,
            not_before: None,
            budget: BUDGET,
        }
    }
}

/// Whether `at` is still ahead, and no farther than it ever was set.
fn ahead(at: Option<i64>, now_ms: i64, most: i64) -> bool {
    at.is_some_and(|at| at > now_ms && at.saturating_sub(now_ms) <= most)
}

impl Health {
    /// Whether it may be called now.
    pub(super) fn admit(&mut self, now_ms: i64) -> bool {
        if ahead(self.not_before, now_ms, MAX_WAIT_MS) || ahead(self.open_until, now_ms, OPEN_MS) {
            return false;
        }
        if self.open_until.is_some() {
            let lost = |since: i64| now_ms.saturating_sub(since) >= PROBE_MS || since > now_ms;
            if self.probing_since.is_some_and(|since| !lost(since)) {
                return false;
            }
            self.probing_since = Some(now_ms);
        }
        self.budget = self.budget.saturating_add(1).min(BUDGET);
        true
    }

    /// A call came to something, be it a no.
    pub(super) fn answered(&mut self) {
        self.failures.clear();
        self.open_until = None;
        self.probing_since = None;
    }

    /// A call failed; `retry_after` in seconds, where it said so.
    pub(super) fn failed(&mut self, now_ms: i64, retry_after: Option<u64>) {
        if let Some(seconds) = retry_after {
            let wait = i64::try_from(seconds)
                .unwrap_or(i64::MAX)
                .saturating_mul(1000)
                .min(MAX_WAIT_MS);
            self.not_before = Some(now_ms.saturating_add(wait));
        }
        let old = |at: &i64| now_ms.saturating_sub(*at) >= WINDOW_MS || *at > now_ms;
        self.failures.retain(|at| !old(at));
        self.failures.push_back(now_ms);
        if self.probing_since.take().is_some() || self.failures.len() >= FAILURES {
            self.failures.clear();
            self.open_until = Some(now_ms.saturating_add(OPEN_MS));
        }
    }

    /// Whether a failed call may be tried once more at once.
    pub(super) fn retry(&mut self) -> bool {
        match self.budget.checked_sub(10) {
            Some(left) if self.open_until.is_none() => {
                self.budget = left;
                true
            }
            _ => false,
        }
    }

    /// Whether the circuit is open.
    pub(super) fn is_open(&self, now_ms: i64) -> bool {
        ahead(self.open_until, now_ms, OPEN_MS)
    }

    /// Whether there is anything to remember.
    pub(super) fn is_troubled(&self, now_ms: i64) -> bool {
        self.open_until.is_some() || !self.failures.is_empty() || ahead(self.not_before, now_ms, MAX_WAIT_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_failures_in_ten_seconds_open_the_circuit_for_one_probe() {
        let mut health = Health::default();
        for at in [0, 1, 2, 3] {
            assert!(health.admit(at));
            health.failed(at, None);
        }
        // The first four are too old by then.
        assert!(health.admit(10_003));
        health.failed(10_003, None);
        for at in 10_004..10_008 {
            assert!(health.admit(at));
            health.failed(at, None);
        }
        assert!(!health.admit(10_008) && !health.admit(15_000));
        assert!(health.is_open(10_008) && !health.is_open(15_007));
        assert!(health.admit(15_007), "one probe");
        assert!(!health.admit(15_008), "and no other");
        health.failed(15_100, None);
        assert!(!health.admit(20_000), "open again at once");
        assert!(health.admit(20_100));
        health.answered();
        assert!(health.admit(20_101) && health.admit(20_102));
    }

    #[test]
    fn retries_cost_ten_calls_each() {
        let mut health = Health::default();
        assert_eq!((0..20).filter(|_| health.retry()).count(), 10);
        assert_eq!((0..9).filter(|_| health.admit(0)).count(), 9);
        assert!(!health.retry());
        assert!(health.admit(0) && health.retry() && !health.retry());
    }

    #[test]
    fn a_provider_says_when_to_come_back_and_no_later_than_in_a_minute() {
        let mut health = Health::default();
        health.failed(0, Some(7));
        assert!(!health.admit(6_999) && health.admit(7_000));
        health.failed(10_000, Some(u64::MAX));
        assert!(!health.admit(69_999) && health.admit(70_000));
        health.failed(100_000, Some(30));
        assert!(
            health.admit(1_000),
            "a clock that was set back does not close it for ever"
        );
    }
}
