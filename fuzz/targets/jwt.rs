//! The JWT wrapper: no bytes make it panic, in any slot.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidegate_broker::fuzz_jwt(bytes));
