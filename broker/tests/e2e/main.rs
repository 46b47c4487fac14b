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
mod exchanges;
mod faces;
mod issuers;
mod keycloak;
mod leases;
mod narrow;
mod oidc;
#[path = "../../../tests/src/openssh.rs"]
mod openssh;
#[path = "../../../tests/src/ports.rs"]
mod ports;
mod provider;
#[path = "../../../tests/src/real_vault.rs"]
mod real_vault;
mod rings;
#[path = "../../../tests/src/stock.rs"]
mod stock;
mod streams;
mod sts;
mod tokens;
mod traces;
mod vault;
mod world;
