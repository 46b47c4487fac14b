//! Sidegate's broker: it says who a sidecar is, what it may reach, and with which credential for the next minutes.
//!
//! It is the only part that reads secrets. It decides no operation: the gate in the sidecar does. It refuses
//! whatever it cannot verify, with a precise reason in the audit and one opaque error outward.

pub mod app;
pub mod approvals;
pub mod attest;
pub mod audit;
pub mod authority;
pub mod back;
pub mod clock;
pub mod config;
pub mod control;
pub mod credentials;
pub mod dpop;
pub mod folder;
pub mod front;
pub mod ground;
pub mod in_force;
pub mod index;
pub mod issuer;
pub mod jwt;
pub mod keeper;
pub mod kubernetes;
pub mod local_cluster;
pub mod lockdown;
pub mod metrics;
pub mod ops;
pub mod people;
pub mod pins;
pub mod records;
pub mod remembered;
pub mod report;
pub mod revoked;
pub mod rings;
pub mod rotation;
pub mod seal;
pub mod secrets;
pub mod server;
pub mod spans;
pub mod state;
pub mod task;
pub mod traces;

pub use app::{Broker, Running};
pub use config::{BrokerConfig, Identity, Machine, Place, Separation, SharedRecords, StartError};
pub use jwt::fuzz_jwt;
