//! What a Pod's spec says about Sidegate, on plain JSON: broker, injector and CLI read the same rules.
//!
//! Refuses nothing by itself: it answers what is wrong. The invariant: only the spec is read, never an annotation
//! and never the status, for those are words of whoever may write them.

pub mod aliases;
pub mod fence;
pub mod network_policy;
pub mod rules;
pub mod shape;
