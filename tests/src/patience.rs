//! Waiting for what nothing announces.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};

/// Longest wait for something that takes a moment.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something holds, and says what was seen last if it never does.
///
/// # Errors
/// It does not hold in time, or cannot be looked at.
pub fn until<T: Debug>(what: &str, mut look: impl FnMut() -> Result<T>, holds: impl Fn(&T) -> bool) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look()?;
        if holds(&seen) {
            return Ok(seen);
        }
        if Instant::now() >= deadline {
            bail!("not within {} s: {what}; seen last: {seen:?}", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
