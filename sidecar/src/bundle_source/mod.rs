//! The stream from the broker: who we are, what is frozen, what is allowed.
//!
//! Deny frames are applied at once and never wait for a bundle; bundles are checked, compiled off the runtime and
//! swapped in whole; the latest wins. A bundle that does not compile, or is older than the one held, is refused and
//! the previous one stays. Invariant: an `ack` says what is already in force.

mod apply;
mod stream;

pub use apply::Enforcer;
pub use stream::{run, Attested, Source};
