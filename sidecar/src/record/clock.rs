//! The recorder's two clocks: monotonic for order and deadlines, wall for people.
//!
//! Behind a trait so that tests move time; the system clock is the only one outside tests.
//! Invariant: `mono_ns` never goes back within one process.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Both clocks.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since the clock was made.
    fn mono_ns(&self) -> u64;
    /// Microseconds since 1970.
    fn wall_us(&self) -> u64;
}

/// The system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock { origin: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn mono_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wall_us(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}
