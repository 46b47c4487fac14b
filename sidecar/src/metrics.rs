//! Counters for status: plain atomics, labels from code only, never from an agent.
//!
//! Owns nothing else; reading them never waits, and a counter never decides anything.

use std::sync::atomic::{AtomicU64, Ordering};

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
}
