//! Catalog snapshots: one per target and database, loaded on connections of their own, shared by sessions.
//!
//! A snapshot is refreshed when DDL was seen, when a name or OID was missing, and every 30 seconds; its epoch rises only
//! when it changed. A session that needs one and cannot have it is refused. Sessions never wait for a refresh they did
//! not need.

mod load;
mod refresh;

pub use refresh::{Snapshot, Snapshots};
