//! What the walk finds in one statement, names as written: commands, effects, relations, functions, settings.
//!
//! Nothing here is resolved. A name is only what the text says; what it means is decided against the catalog by
//! whoever merges this with the binding.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::api::access_policy::SqlCommand;
use crate::engine::operation::Fact;
use crate::sql::facts::{CommandSet, CopyDirection, Effects};

/// One statement as the walk saw it, everything nested included.
#[derive(Debug, Clone)]
pub struct Syntax {
    /// Every command.
    pub commands: CommandSet,
    /// What the commands may do; functions add theirs once they are resolved.
    pub effects: Effects,
    /// Every relation named.
    pub relations: Vec<RelationRef>,
    /// Every function, operator and type named.
    pub functions: BTreeSet<FunctionRef>,
    /// Settings named, lower case, with what is done to them.
    pub settings: Vec<SettingRef>,
    /// LISTEN, UNLISTEN and NOTIFY channels.
    pub channels: Vec<Arc<str>>,
    /// Kinds of objects defined, altered or dropped.
    pub objects: Vec<Arc<str>>,
    /// The highest `$n`.
    pub parameters: u32,
    /// The top LIMIT.
    pub limit: Fact<Option<i64>>,
    /// A write answers rows.
    pub returning: bool,
    /// COPY's direction.
    pub copy: CopyDirection,
    /// Commands that reach relations they do not name.
    pub unnamed: CommandSet,
    /// Some query stands in the tree, so that a part without relation is a Select of nothing.
    pub query: bool,
    /// Cursors named by WHERE CURRENT OF.
    pub current_of: Vec<Arc<str>>,
    /// Where constants stand that must not be shown.
    pub secrets: Vec<SecretRef>,
    /// What was not understood; the statement is Opaque then.
    pub problem: Option<Problem>,
    /// The tree is deeper than the limit.
    pub too_deep: bool,
}

impl Default for Syntax {
    fn default() -> Self {
        Syntax {
            commands: CommandSet::EMPTY,
            effects: Effects::default(),
            relations: Vec::new(),
            functions: BTreeSet::new(),
            settings: Vec::new(),
            channels: Vec::new(),
            objects: Vec::new(),
            parameters: 0,
            limit: Fact::Known(None),
            returning: false,
            copy: CopyDirection::None,
            unnamed: CommandSet::EMPTY,
            query: false,
            current_of: Vec::new(),
            secrets: Vec::new(),
            problem: None,
            too_deep: false,
        }
    }
}

/// Why a statement is Opaque.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Problem {
    /// A node kind that the grammar does not yield, or that nobody has reviewed.
    #[error("a {0} node stands where Sidegate does not know what it does")]
    Node(&'static str),
    /// An empty node where one is needed.
    #[error("an empty node stands where Sidegate does not know what it does")]
    Empty,
    /// A field with a value outside its enumeration.
    #[error("a {0} has a value Sidegate does not know")]
    Value(&'static str),
    /// Syntax newer than the server.
    #[error("{what} is newer than the server's major version {server}")]
    Newer {
        /// The syntax.
        what: &'static str,
        /// The server's major.
        server: u32,
    },
}

/// A relation as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationRef {
    /// Byte position in the text, -1 where the grammar keeps none.
    pub location: i32,
    /// The database, where one is written.
    pub database: Option<Arc<str>>,
    /// The schema, where one is written.
    pub schema: Option<Arc<str>>,
    /// The name.
    pub name: Arc<str>,
    /// What is done to it.
    pub command: SqlCommand,
    /// How it is meant.
    pub role: RelationRole,
}

/// How a relation name is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RelationRole {
    /// In a query: the binder accounts for it.
    Query,
    /// In a utility statement, an existing relation.
    Existing,
    /// In a utility statement, a relation that it creates.
    Created {
        /// A temporary one.
        temporary: bool,
    },
}

/// A function, operator or type as written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionRef {
    /// What kind of name it is.
    pub kind: FunctionKind,
    /// The schema, where one is written.
    pub schema: Option<Arc<str>>,
    /// The name.
    pub name: Arc<str>,
    /// Number of arguments; None: any.
    pub arguments: Option<u32>,
    /// The first argument is a string constant.
    pub first_literal: Option<Arc<str>>,
}

/// What kind of name a [`FunctionRef`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FunctionKind {
    /// A function, aggregate, window function or procedure.
    Call,
    /// An operator: the function behind it counts.
    Operator,
    /// A type: its input function, its casts and its domain checks count.
    Type,
    /// A name after an expression, which calls a function of that name unless it is a field.
    Attribute,
    /// The same after one name: a column where the binder knows one.
    ColumnOrAttribute,
}

/// A setting as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingRef {
    /// Its name, lower case.
    pub name: Arc<str>,
    /// What is done to it.
    pub verb: SettingVerb,
    /// The value, where it is a constant.
    pub value: Option<Arc<str>>,
}

/// What is done to a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SettingVerb {
    /// SET or a function that sets, in this session.
    Set,
    /// RESET, SET TO DEFAULT: back to what was pinned at login.
    Reset,
    /// SHOW or current_setting.
    Read,
    /// ALTER ROLE, DATABASE, SYSTEM … SET, or attached to a function: outlives the session.
    Store,
}

/// A place of the text whose constants must not be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretRef {
    /// Byte offset.
    pub at: usize,
    /// Which constants, seen from there.
    pub what: SecretKind,
}

/// Which constants a [`SecretRef`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    /// The first constant at the place or behind it.
    Next,
    /// The first constant or name there: the value of a setting needs no quotes.
    Word,
    /// Arguments of the call whose name begins there.
    Arguments(super::super::literals::Arguments),
    /// The string at the place or behind it is code: constants in it are looked at as if they stood outside.
    Code,
}
