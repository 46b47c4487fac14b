//! `when`: CEL expressions over facts, checked completely at load and run natively.
//!
//! [`grammar`] turns text into a small tree (the only file that names `cel`), [`check`] types it against the fact
//! table and lowers it, [`run`] evaluates what was lowered without a context or an interpreter. An expression that
//! names an unknown fact, mixes types, is too long or too deep never compiles; one that fails while it runs is
//! *unknown*, never true or false.

pub mod check;
pub mod facts;
pub mod grammar;
mod lower;
pub mod run;
pub mod value;

pub use check::When;
pub use facts::{FactId, FactSet, Family};
pub use run::{Outcome, Scene};

/// Longest expression, in bytes.
pub const MAX_LENGTH: usize = 4096;
/// Deepest nesting of an expression.
pub const MAX_DEPTH: usize = 32;

/// Why an expression does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExprError {
    /// Longer than [`MAX_LENGTH`].
    #[error("the expression has {0} bytes; at most {MAX_LENGTH} are allowed")]
    TooLong(usize),
    /// Deeper than [`MAX_DEPTH`].
    #[error("the expression is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Not CEL.
    #[error("not a CEL expression: {0}")]
    Syntax(String),
    /// CEL, but not the part of it that policies may use.
    #[error("{0}")]
    Unsupported(String),
    /// A name outside the fact table.
    #[error("unknown name `{name}`; {known}")]
    UnknownName {
        /// As written.
        name: String,
        /// What there is instead.
        known: String,
    },
    /// Operand or result of the wrong type.
    #[error("{0}")]
    Type(String),
    /// A literal that can never be a value of the fact it is compared with.
    #[error("`{literal}` is never a value of {fact}; it is one of {values}")]
    NeverMatches {
        /// As written.
        literal: String,
        /// The fact.
        fact: &'static str,
        /// Its values.
        values: String,
    },
    /// A regular expression that does not compile or is too large.
    #[error("the pattern `{pattern}` is not usable: {why}")]
    Pattern {
        /// As written.
        pattern: String,
        /// Why not.
        why: String,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
