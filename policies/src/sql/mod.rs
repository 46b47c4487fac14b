//! SQL as policies see it: facts of a statement, names and name patterns. Grammar and resolution of one
//! dialect live in its own folder ([`postgres`]).

pub mod facts;
pub mod names;
pub mod postgres;

pub use facts::{CommandSet, CopyDirection, Effects, ParamValue, Part, SqlFacts};
pub use names::{ColumnName, ColumnPattern, NamePart, RelationName, RelationPattern};
