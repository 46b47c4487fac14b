//! Memory: what this process may use, and what gives way before the kernel decides.
//!
//! From 65 % of the limit on, new sessions are refused, from 75 % new operations too, from 85 % the session that holds
//! the most ends. A single tick is too slow for a burst, so the buffers of all sessions together have half the limit:
//! a session that wants more than its small share once that is used up ends. Without a limit nothing is refused.
//! Invariant: nobody waits for this; the gate reads one number.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use sidegate_policies::reason::Reason;
use tokio::time::{interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::session::Sessions;

/// How often the use is measured.
const EVERY: Duration = Duration::from_millis(100);
/// From this share of the limit on (percent) new sessions are refused.
const SHED: u64 = 65;
/// From here on new operations are refused.
const REFUSE: u64 = 75;
/// From here on the session that holds the most ends.
const CUT: u64 = 85;
/// What a session may hold even when all buffers together are at their limit.
const SHARE: u64 = 256 * 1024;

/// How much room is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Enough.
    None,
    /// No new sessions.
    Shed,
    /// No new operations either.
    Refuse,
    /// Sessions must end.
    Cut,
}

/// The memory of this process.
#[derive(Debug)]
pub struct Memory {
    limit: Option<u64>,
    pressure: AtomicU8,
}

impl Memory {
    /// A limit in bytes; absent: whatever the machine has.
    pub fn new(limit: Option<u64>) -> Memory {
        Memory {
            limit: limit.filter(|limit| *limit > 0),
            pressure: AtomicU8::new(Pressure::None as u8),
        }
    }

    /// The limit in bytes.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// How much room is left, as measured last.
    pub fn pressure(&self) -> Pressure {
        match self.pressure.load(Ordering::Relaxed) {
            0 => Pressure::None,
            1 => Pressure::Shed,
            2 => Pressure::Refuse,
            _ => Pressure::Cut,
        }
    }

    /// Takes a measurement: so many bytes are in use.
    pub fn measured(&self, used: u64) -> Pressure {
        let Some(limit) = self.limit else {
            return Pressure::None;
        };
        let percent = used.saturating_mul(100).checked_div(limit).unwrap_or(u64::MAX);
        let pressure = match percent {
            CUT.. => Pressure::Cut,
            REFUSE.. => Pressure::Refuse,
            SHED.. => Pressure::Shed,
            _ => Pressure::None,
        };
        self.pressure.store(pressure as u8, Ordering::Relaxed);
        pressure
    }

    /// Whether a session may hold so many bytes in its buffers while all sessions together hold `all`.
    pub fn fits(&self, bytes: u64, all: u64) -> bool {
        let limit = self.limit.map_or(u64::MAX, |limit| limit / 2);
        all <= limit || bytes <= SHARE
    }
}

/// Measures until the sidecar stops.
pub async fn watch(authority: Arc<Authority>, stop: CancellationToken) {
    let Some(limit) = authority.memory.limit() else {
        return;
    };
    tracing::info!(limit, "memory is limited");
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Pressure::None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // What cannot be read is no reason to refuse: the budget of the buffers holds all the same.
        let Some(used) = used() else { continue };
        let pressure = authority.memory.measured(used);
        if pressure != before {
            tracing::warn!(used, limit, ?pressure, "memory pressure changed");
            before = pressure;
        }
        if pressure == Pressure::Cut {
            end_largest(&authority.sessions);
        }
    }
}

/// Ends the session that holds the most, if ending it helps.
fn end_largest(sessions: &Sessions) {
    let open = sessions.matching(|session| session.cut_reason().is_none());
    let Some(largest) = open.iter().max_by_key(|session| session.held()) else {
        return;
    };
    if largest.held() > SHARE {
        tracing::warn!(session = %largest.id, held = largest.held(), "ended for want of memory");
        largest.end(Reason::Limit);
    }
}

/// The smaller of what the environment and the control group say, in bytes.
pub fn limit(told: Option<u64>) -> Option<u64> {
    let group = read_number("/sys/fs/cgroup/memory.max");
    match (told, group) {
        (Some(told), Some(group)) => Some(told.min(group)),
        (told, group) => told.or(group),
    }
}

/// Resident bytes of this process.
fn used() -> Option<u64> {
    resident(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// A number in a file of its own; `max` and anything else is none.
fn read_number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::session::tests::session;

    const LIMIT: u64 = 128 << 20;

    #[test]
    fn pressure_rises_with_the_share_that_is_used() {
        let memory = Memory::new(Some(LIMIT));
        for (percent, pressure) in [
            (0, Pressure::None),
            (64, Pressure::None),
            (66, Pressure::Shed),
            (76, Pressure::Refuse),
            (86, Pressure::Cut),
            (300, Pressure::Cut),
            (10, Pressure::None),
        ] {
            assert_eq!(memory.measured(LIMIT / 100 * percent), pressure, "{percent} %");
            assert_eq!(memory.pressure(), pressure);
        }
        assert_eq!(Memory::new(None).measured(u64::MAX), Pressure::None);
        assert_eq!(Memory::new(Some(0)).measured(u64::MAX), Pressure::None);
    }

    #[test]
    fn who_holds_much_ends_when_all_buffers_are_full() {
        let memory = Memory::new(Some(LIMIT));
        assert!(memory.fits(LIMIT / 2, LIMIT / 2));
        assert!(!memory.fits(LIMIT / 2, LIMIT / 2 + 1));
        assert!(memory.fits(SHARE, LIMIT), "a small share is always left");
        assert!(Memory::new(None).fits(u64::MAX, u64::MAX), "no limit");
    }

    #[test]
    fn the_largest_session_ends_and_idle_ones_stay() {
        let sessions = Arc::new(Sessions::default());
        let (large, small) = (session(1), session(2));
        let entered = [sessions.enter(large.clone()), sessions.enter(small.clone())];
        assert_eq!(sessions.hold(&large, 9 << 20), 9 << 20);
        assert_eq!(sessions.hold(&small, 1000), (9 << 20) + 1000);
        end_largest(&sessions);
        assert_eq!(large.cut_reason(), Some(Reason::Limit));
        end_largest(&sessions);
        assert_eq!(small.cut_reason(), None, "ending it would not help");
        drop(entered);
        assert_eq!(sessions.hold(&session(3), 0), 0, "what ended holds nothing");
    }

    #[test]
    fn resident_bytes_are_read_from_status() {
        assert_eq!(
            resident("Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t   300 kB\n"),
            Some(300 * 1024)
        );
        assert_eq!(resident(""), None);
        assert!(used().unwrap() > 1 << 20);
    }
}
