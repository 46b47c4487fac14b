//! The exhaustive walk of a statement tree: every node kind, every field, with a work list instead of recursion.

mod syntax;

pub use syntax::{FunctionKind, FunctionRef, Problem, RelationRef, RelationRole, SettingRef, SettingVerb, Syntax};
