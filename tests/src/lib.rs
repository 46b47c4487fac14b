//! The harness of Sidegate's tests: real PostgreSQL servers of any installed major, free ports, throw-away
//! authorities, and a [`world::World`] that runs broker and sidecar in this process.
//!
//! Everything binds 127.0.0.1, lives in temporary folders and ends with the value that owns it. A part that cannot
//! be had is an error that says how to get it, never a silent skip.

pub mod amazon;
pub mod authority;
pub mod bearer;
pub mod cli;
pub mod cluster;
pub mod disk;
pub mod heap;
pub mod http;
pub mod middle;
pub mod names;
pub mod patience;
pub mod people;
pub mod ports;
pub mod postgres;
pub mod provider;
pub mod psql;
pub mod real_vault;
pub mod recording;
pub mod shop;
pub mod sockets;
pub mod stock;
pub mod told;
pub mod vault;
pub mod verifiers;
pub mod wire;
pub mod world;
