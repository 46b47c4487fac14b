//! The broker.

pub mod control;
