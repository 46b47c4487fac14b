//! The decision engine: pure, synchronous, total. `decide` never fails and never waits; what it cannot
//! establish denies.

pub mod decision;
pub mod digest;
pub mod explain;
pub mod expr;
pub(crate) mod index;
pub(crate) mod judge;
pub(crate) mod masks;
pub(crate) mod matcher;
pub mod operation;
pub(crate) mod rule;
pub mod set;
pub mod subject;
pub(crate) mod words;

pub use decision::{AskTerms, Decision, Effect, MaskRule, MaskSet, Observed, RuleRef};
pub use operation::{Completeness, ConnectFacts, Fact, Facts, Operation, Phase, TcpFacts, Verb};
pub use set::{BoundPolicies, CompiledTarget, PolicySet, Standing};
pub use subject::{Subject, TargetId};

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod differential;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
pub(crate) mod fixtures;
#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    missing_docs
)]
mod reference;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests;
