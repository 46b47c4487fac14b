//! Sidegate's data plane: the gate beside every agent.
//!
//! Owns listeners, protocols, the gate, leases and the recorder. It refuses whatever it cannot judge, and it never
//! forwards a byte that the gate has not admitted. It holds no Kubernetes client and reads no secret from disk but
//! the projected service-account token; credentials come as leases and stay in memory.
//! Invariant: [`admitted::Admitted`] is built by the gate and opened by [`upstream::Upstream`], nowhere else.

pub mod accept;
pub mod admitted;
pub mod app;
pub mod approvals;
pub mod authority;
pub mod broker;
pub mod bundle_source;
pub mod config;
pub mod credentials;
pub mod dial;
pub mod fence;
pub mod gate;
pub mod identity;
pub mod memory;
pub mod metrics;
pub mod probe;
pub mod protocols;
pub mod rate;
pub mod record;
pub mod refusal;
pub mod revoke;
pub mod scrape;
pub mod secret;
pub mod session;
pub mod staleness;
pub mod target;
pub mod task;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod upstream;
