//! The stream from the broker: who we are, what is frozen, what is allowed.
//!
//! Deny frames are applied at once and never wait for a bundle; bundles are checked, compiled off the runtime and
//! swapped in whole; the latest wins. A bundle that the broker did not seal for this pod, that does not compile, or
//! that is older than what was taken is refused and the previous one stays. What is in force is kept in a file, which a
//! start without a broker refuses by. Invariant: an `ack` says what is already in force.

mod apply;
mod kept;
mod restore;
mod seal;
mod stream;

pub use apply::{BundleRefused, Enforcer};
pub use kept::Keeper;
pub use restore::restore;
pub use seal::Seals;
pub use stream::{run, Attested, Source};

#[cfg(test)]
pub(crate) use seal::tests as signing;
