//! Sidegate's shared vocabulary: the kinds people write, the compiler that turns them into a
//! [`engine::PolicySet`], the decision engine, SQL facts, masks, and the bundle, wire and record formats.
//!
//! This crate is pure: no runtime, no sockets, no secrets. The same code decides in the sidecar, compiles in
//! the broker and explains in the command line, so what is admitted is what is enforced.
//! It refuses to guess: whatever it cannot understand is an error or an unknown fact, and unknown denies.

pub mod address;
pub mod api;
pub mod approval;
pub mod bundle;
pub mod cases;
pub mod check;
pub mod compile;
pub mod credential_kinds;
pub mod engine;
pub mod explanation;
pub mod mask;
pub mod objects;
pub mod pod;
pub mod presets;
pub mod quantity;
pub mod reason;
pub mod record;
pub mod seal;
pub mod sql;
pub mod wire;
pub mod yaml;
