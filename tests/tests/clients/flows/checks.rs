//! What a flow in Rust counts and how it fails: the first promise that does not hold ends it with its name.

use anyhow::{ensure, Result};

use super::Endpoint;

/// The number of promises that held so far.
#[derive(Debug, Default)]
pub(super) struct Checks(u32);

impl Checks {
    /// One promise.
    pub(super) fn check(&mut self, what: &str, holds: bool) -> Result<()> {
        ensure!(holds, "{what}");
        self.0 += 1;
        Ok(())
    }

    /// The closing line, as clients of other languages print it.
    pub(super) fn ok(&self, client: &str) -> String {
        format!("ok {client} {}", self.0)
    }
}

/// `app.people.ssn` as this endpoint shows it.
pub(super) fn ssn(endpoint: &Endpoint, plain: &str) -> String {
    match plain.split_at_checked(plain.len().saturating_sub(4)) {
        Some((hidden, shown)) if endpoint.masked => "*".repeat(hidden.len()) + shown,
        _ => plain.to_owned(),
    }
}
