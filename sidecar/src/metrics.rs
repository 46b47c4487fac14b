//! Counters for status and for scrapes: plain atomics, labels from code only, never from an agent.
//!
//! Owns nothing else; reading them never waits, and a counter never decides anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one away.
    pub fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Adds many.
    pub fn add(&self, many: u64) {
        self.0.fetch_add(many, Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper ends of buckets, seconds.
const BUCKETS: [f64; 8] = [0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0];

/// A histogram of times.
#[derive(Debug, Default)]
pub struct Seconds {
    /// How many took no longer than each bucket's end.
    below: [Counter; BUCKETS.len()],
    count: Counter,
    micros: Counter,
}

impl Seconds {
    /// Something took so long.
    pub fn observe(&self, took: Duration) {
        for (end, below) in BUCKETS.iter().zip(&self.below) {
            if took.as_secs_f64() <= *end {
                below.up();
            }
        }
        self.count.up();
        self.micros.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Each bucket's end with how many took no longer; how many there were, and how long all of them took.
    pub fn read(&self) -> (impl Iterator<Item = (f64, u64)> + '_, u64, Duration) {
        let below = BUCKETS.iter().zip(&self.below);
        let below = below.map(|(end, below)| (*end, below.get()));
        (below, self.count.get(), Duration::from_micros(self.micros.get()))
    }
}

/// When something happened last.
#[derive(Debug, Default)]
pub struct Since(Mutex<Option<Instant>>);

impl Since {
    /// It happens now.
    pub fn mark(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago; nothing where it never happened.
    pub fn age(&self) -> Option<Duration> {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.map(|at| at.elapsed())
    }
}

/// Everything counted in one sidecar.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Open sessions.
    pub sessions: Counter,
    /// Operations allowed since start.
    pub allowed: Counter,
    /// Operations refused since start.
    pub denied: Counter,
    /// Operations held now.
    pub held: Counter,
    /// Connections closed because their owner is not the agent.
    pub foreign: Counter,
    /// Connections closed because a budget was used up.
    pub shed: Counter,
    /// Sessions cut since start.
    pub cut: Counter,
    /// Bundles refused since start.
    pub nacks: Counter,
    /// When the present bundle came into force.
    pub bundle_since: Since,
    /// Files with a last known good bundle that were not taken.
    pub kept_refused: Counter,
    /// Streams that fell silent or broke.
    pub streams_lost: Counter,
    /// Heartbeats whose clock was more than a minute from ours.
    pub skewed: Counter,
}
