//! Sidegate's broker: it says who a sidecar is, what it may reach, and with which credential for the next minutes.
//!
//! It is the only part that reads secrets. It decides no operation: the gate in the sidecar does. It refuses
//! whatever it cannot verify, with a precise reason in the audit and one opaque error outward.

pub mod audit;
pub mod clock;
pub mod config;
pub mod jwt;
pub mod state;
pub mod task;
