//! Dial guards.
