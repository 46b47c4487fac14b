//! What came of each Lockdown: which sidecars it touches, how many sessions it ended, and how long that took.
//!
//! Refuses nothing and decides nothing; it is counted for people. Bounded: so many Lockdowns, so many times each; what is
//! beyond is counted without its time. The invariant: a number is what a sidecar acknowledged after the sessions were
//! gone, never what was sent to it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sidegate_policies::wire::{DenyEntry, DenySet};

/// Lockdowns that are counted; those beyond are in force, and have no numbers.
const MAX_LOCKDOWNS: usize = 1_000;
/// Times kept per Lockdown.
const MAX_TIMES: usize = 4_096;

/// What is known of one Lockdown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The deny set that brought it, as it is now.
    pub revision: u64,
    /// Sessions that were ended when it came into force.
    pub closed: u64,
    /// Milliseconds from when it was in force here until 99 of 100 sidecars enforced it and the sessions were gone;
    /// nothing where no sidecar said so yet.
    pub p99_ms: Option<u64>,
}

#[derive(Debug)]
struct Counted {
    revision: u64,
    since: Instant,
    entries: Vec<DenyEntry>,
    closed: u64,
    times_ms: Vec<u32>,
}

/// What one sidecar acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Acknowledged {
    /// The deny set it enforced before.
    pub before: u64,
    /// The one it enforces now.
    pub revision: u64,
    /// Sessions that ended by it.
    pub closed: u64,
    /// When its stream was opened: nobody is counted slow for having been away.
    pub connected: Instant,
    /// Now.
    pub now: Instant,
}

/// Every Lockdown in force.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<String, Counted>);

impl Tally {
    /// Takes a deny set that is in force from now on.
    pub fn publish(&mut self, set: &DenySet, now: Instant) {
        let mut named: BTreeMap<&str, Vec<&DenyEntry>> = BTreeMap::new();
        for entry in &set.entries {
            named.entry(&entry.lockdown).or_default().push(entry);
        }
        self.0.retain(|name, _| named.contains_key(name.as_str()));
        for (name, entries) in named {
            let same = |counted: &Counted| counted.entries.iter().eq(entries.iter().copied());
            if self.0.get(name).is_some_and(same) || (self.0.len() >= MAX_LOCKDOWNS && !self.0.contains_key(name)) {
                continue;
            }
            let counted = Counted {
                revision: set.revision,
                since: now,
                entries: entries.into_iter().cloned().collect(),
                closed: 0,
                times_ms: Vec::new(),
            };
            self.0.insert(name.to_owned(), counted);
        }
    }

    /// Takes what a sidecar acknowledged, for each Lockdown that is new to it and `touches` it. Answers the longest of the
    /// times that counted.
    pub fn acknowledged(
        &mut self,
        told: Acknowledged,
        mut touches: impl FnMut(&[DenyEntry]) -> bool,
    ) -> Option<Duration> {
        let mut longest = None;
        for counted in self.0.values_mut() {
            let new = told.before < counted.revision && counted.revision <= told.revision;
            if !new || !touches(&counted.entries) {
                continue;
            }
            counted.closed = counted.closed.saturating_add(told.closed);
            let took = told.now.saturating_duration_since(counted.since.max(told.connected));
            if counted.times_ms.len() < MAX_TIMES {
                counted
                    .times_ms
                    .push(u32::try_from(took.as_millis()).unwrap_or(u32::MAX));
            }
            longest = longest.max(Some(took));
        }
        longest
    }

    /// What is known of a Lockdown, and what it freezes.
    pub fn of(&self, name: &str) -> Option<(Outcome, Vec<DenyEntry>)> {
        let counted = self.0.get(name)?;
        let outcome = Outcome {
            revision: counted.revision,
            closed: counted.closed,
            p99_ms: p99(&counted.times_ms),
        };
        Some((outcome, counted.entries.clone()))
    }
}

/// The time that 99 of 100 kept, by the nearest rank.
fn p99(times: &[u32]) -> Option<u64> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = sorted.len().saturating_mul(99).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied().map(u64::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use sidegate_policies::api::lockdown::Freeze;

    fn entry(lockdown: &str, freeze: Freeze) -> DenyEntry {
        DenyEntry {
            lockdown: lockdown.to_owned(),
            freeze,
            action: Default::default(),
            until_ms: None,
        }
    }

    fn set(revision: u64, entries: Vec<DenyEntry>) -> DenySet {
        DenySet { revision, entries }
    }

    fn told(before: u64, revision: u64, closed: u64, (connected, now): (Instant, Instant)) -> Acknowledged {
        Acknowledged {
            before,
            revision,
            closed,
            connected,
            now,
        }
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_lockdown_counts_the_sidecars_it_touches_from_when_it_was_in_force() {
        let (start, mut tally) = (Instant::now(), Tally::default());
        let agents = entry("agents", Freeze::Namespace("agents".to_owned()));
        tally.publish(&set(5, vec![agents.clone()]), start);
        assert_eq!(tally.of("agents").unwrap().0.p99_ms, None, "nobody said so yet");
        let took = tally.acknowledged(told(4, 5, 2, (start, after(start, 30))), |_| true);
        assert_eq!(took, Some(Duration::from_millis(30)));
        let foreign = tally.acknowledged(told(4, 5, 9, (start, after(start, 900))), |_| false);
        assert_eq!(foreign, None);
        let (outcome, _) = tally.of("agents").unwrap();
        assert_eq!((outcome.revision, outcome.closed, outcome.p99_ms), (5, 2, Some(30)));
        // Another Lockdown makes another deny set, and adds nothing to this one.
        let other = entry("other", Freeze::Issuer("corp".to_owned()));
        tally.publish(&set(6, vec![agents.clone(), other.clone()]), after(start, 1_000));
        tally.acknowledged(told(5, 6, 7, (start, after(start, 1_010))), |_| true);
        assert_eq!(tally.of("agents").unwrap().0, outcome);
        assert_eq!(tally.of("other").unwrap().0.closed, 7);
        // Changed, it begins anew; lifted, it is nobody.
        let wider = entry("agents", Freeze::Everything(Default::default()));
        tally.publish(&set(7, vec![wider, other]), after(start, 2_000));
        assert_eq!(tally.of("agents").unwrap().0.closed, 0);
        tally.publish(&set(8, Vec::new()), after(start, 3_000));
        assert!(tally.of("agents").is_none());
    }

    #[test]
    fn a_sidecar_that_was_away_is_not_slow_and_one_that_skipped_a_set_counts_for_both() {
        let (start, mut tally) = (Instant::now(), Tally::default());
        let one = entry("one", Freeze::Namespace("agents".to_owned()));
        let two = entry("two", Freeze::Namespace("agents".to_owned()));
        tally.publish(&set(1, vec![one.clone()]), start);
        tally.publish(&set(2, vec![one, two]), after(start, 10));
        tally.acknowledged(told(0, 2, 3, (after(start, 60_000), after(start, 60_020))), |_| true);
        for name in ["one", "two"] {
            let (outcome, _) = tally.of(name).unwrap();
            assert_eq!((outcome.closed, outcome.p99_ms), (3, Some(20)), "{name}");
        }
    }

    #[test]
    fn what_is_counted_is_bounded_and_the_rank_is_the_nearest() {
        assert_eq!(p99(&[]), None);
        assert_eq!(p99(&[7]), Some(7));
        let times: Vec<u32> = (1..=200).rev().collect();
        assert_eq!(p99(&times), Some(198));
        let (start, mut tally) = (Instant::now(), Tally::default());
        let many = (0..MAX_LOCKDOWNS + 5).map(|number| entry(&format!("l{number:05}"), Freeze::Issuer("x".to_owned())));
        tally.publish(&set(1, many.collect()), start);
        assert_eq!(tally.0.len(), MAX_LOCKDOWNS);
        for _ in 0..MAX_TIMES + 5 {
            tally.acknowledged(told(0, 1, 1, (start, start)), |entries| entries[0].lockdown == "l00000");
        }
        assert_eq!(tally.0["l00000"].times_ms.len(), MAX_TIMES);
        assert_eq!(tally.0["l00000"].closed, u64::try_from(MAX_TIMES).unwrap() + 5);
    }
}
