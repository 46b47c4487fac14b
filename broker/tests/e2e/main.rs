//! The broker in-process, called over real TLS and HTTP/2 the way a sidecar does.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![allow(clippy::expect_used)]

mod approvals;
mod budgets;
mod client;
mod control;
mod faces;
mod leases;
mod rings;
mod streams;
mod tokens;
mod world;
