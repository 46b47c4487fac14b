//! The decision engine: pure, synchronous, total. `decide` never fails and never waits; what it cannot
//! establish denies.

pub mod decision;
pub mod operation;
pub mod set;
pub mod subject;

pub use decision::{AskTerms, Decision, Effect, MaskRule, MaskSet, Observed, RuleRef};
pub use operation::{Completeness, ConnectFacts, Fact, Facts, Operation, Phase, TcpFacts, Verb};
pub use set::{BoundPolicies, CompiledTarget, PolicySet};
pub use subject::{Subject, TargetId};
