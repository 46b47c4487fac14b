//! The agent's side of the PostgreSQL room; the invariants stand in `sidecar/src/protocols/postgres/fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidegate_sidecar::protocols::postgres::fuzzing::agent(bytes));
