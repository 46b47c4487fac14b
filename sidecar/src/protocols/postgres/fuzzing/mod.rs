//! Entries for fuzzers: one whole session from a string of bytes, without sockets, broker or server.
//!
//! Everything between the two streams is the real thing: start-up, login, codec, relay, gate, engine, masks and
//! recorder; the streams, the journal's disk and the lease's source are made here. Built for fuzzers and for this
//! crate's tests only, which replay the seeds of `fuzz/corpus`.
//! Invariant: the same bytes give the same session, so that what a fuzzer finds can be reproduced.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing
)]

mod agent;
pub(super) mod answers;
pub(super) mod pipe;
mod server;
pub(super) mod world;

/// What a lease of these sessions carries: it must never reach the agent.
const PASSWORD: &str = "lease-canary-4f19c2";
/// What masked columns hold: it must never reach the agent either.
const CANARY: &str = "masked-canary-8d07e5b1";

/// An agent that says these bytes, to a server that answers politely.
///
/// The first byte is a bit set: 1 limits and detectors are on, 2 the bytes begin behind the login, 4 the server is
/// version 18 instead of 15, 8 it answers late instead of at once, 16 the session is played once more in small parts
/// and must go the same way. The second byte is the size of those parts. Panics when an invariant breaks.
pub fn agent(bytes: &[u8]) {
    agent::run(bytes);
}

/// A server that says these bytes: during the login, to an agent that works, or by a script of whole messages.
///
/// The first byte chooses: 0 login, 1 raw bytes after the login, 2 a script whose rows hold a canary in masked columns;
/// the second is a bit set as [`agent()`]'s, or how the login is made; the third says what the agent asks for. Panics
/// when an invariant breaks.
pub fn server(bytes: &[u8]) {
    server::run(bytes);
}

#[cfg(test)]
#[allow(clippy::print_stderr)] // says which seed broke
mod tests {
    /// Every file of a folder of `fuzz/corpus`.
    fn seeds(target: &str) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../fuzz/corpus")
            .join(target);
        let mut seeds = Vec::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            seeds.push((path.clone(), std::fs::read(path).unwrap()));
        }
        assert!(seeds.len() > 5, "{} holds no seeds", folder.display());
        seeds
    }

    #[test]
    fn every_seed_of_the_agents_fuzzer_keeps_the_invariants() {
        for (path, bytes) in seeds("agent") {
            eprintln!("{}", path.display());
            super::agent(&bytes);
        }
    }

    #[test]
    fn every_seed_of_the_servers_fuzzer_keeps_the_invariants() {
        for (path, bytes) in seeds("server") {
            eprintln!("{}", path.display());
            super::server(&bytes);
        }
    }
}
