//! The broker's clock: wall time in milliseconds since 1970, behind a trait so that tests move it by hand.
//!
//! Refuses nothing. The invariant: whoever judges an expiry asks this clock and no other, so that one test
//! clock moves every expiry of the broker at once.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Wall time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> i64;

    /// Seconds since 1970.
    fn now(&self) -> i64 {
        self.now_ms().div_euclid(1000)
    }
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}

/// A clock that stands still until it is moved: for tests of expiry.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// Starts at the system's present time.
    pub fn starting_now() -> Self {
        ManualClock(AtomicI64::new(SystemClock.now_ms()))
    }

    /// Moves forward (or back, with a negative number).
    pub fn advance_ms(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// RFC 3339 in UTC with milliseconds.
pub fn rfc3339(ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(ms) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => "9999-12-31T23:59:59.000Z".to_owned(),
    }
}

/// Reads RFC 3339.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(|time| time.as_millisecond())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read_back() {
        let ms = SystemClock.now_ms();
        assert_eq!(parse_rfc3339(&rfc3339(ms)).unwrap(), ms);
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert!(parse_rfc3339("tomorrow").is_none());
    }
}
