//! The facts of one SQL statement, or of one string of statements, that rules can read.
//!
//! Facts are merged over a string: its parts, names and effects add up, and it is filtered only if every
//! UPDATE and DELETE in it is.

use std::sync::Arc;

use super::names::{ColumnName, RelationName};
use crate::api::access_policy::SqlCommand;
use crate::engine::operation::Fact;

/// One (command, relation) pair. An Allow must cover every pair of a statement; a Deny or Ask fires on any.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Part {
    /// The command.
    pub command: SqlCommand,
    /// The relation, resolved. None: the statement names no relation. Unknown: it does, and it did not resolve.
    pub relation: PartRelation,
    /// A part that any Allow of the subject on this Target carries: transaction control, SHOW, harmless SET,
    /// and reads of the reviewed harmless part of the system catalogs for a Select allow.
    pub rides_along: bool,
}

/// The relation of a [`Part`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PartRelation {
    /// The statement names no relation.
    None,
    /// A resolved relation.
    Known(RelationName),
    /// A relation that did not resolve; a rule that asks for its name is unknown.
    Unknown,
}

/// Where COPY data flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CopyDirection {
    /// No COPY.
    #[default]
    None,
    /// COPY … FROM STDIN.
    In,
    /// COPY … TO STDOUT.
    Out,
}

impl CopyDirection {
    /// `in`, `out` or `none`, as CEL sees it.
    pub fn as_str(self) -> &'static str {
        match self {
            CopyDirection::None => "none",
            CopyDirection::In => "in",
            CopyDirection::Out => "out",
        }
    }
}

/// A bind value, typed as far as its declared type tells.
#[derive(Debug, Clone, PartialEq)]
pub enum ParamValue {
    /// SQL NULL.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer type.
    Int(i64),
    /// A floating-point type.
    Float(f64),
    /// Text, and every type whose text form arrived.
    Text(Arc<str>),
    /// A binary value of a type Sidegate does not decode: unknown to rules.
    Opaque,
}

/// A set of [`SqlCommand`]s as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CommandSet(u32);

impl CommandSet {
    /// The empty set.
    pub const EMPTY: CommandSet = CommandSet(0);

    /// Adds a command.
    pub fn insert(&mut self, command: SqlCommand) {
        self.0 |= 1u32.checked_shl(command as u32).unwrap_or(0);
    }

    /// Whether a command is in the set.
    pub fn contains(self, command: SqlCommand) -> bool {
        self.0 & 1u32.checked_shl(command as u32).unwrap_or(0) != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds every command of another set.
    pub fn extend(&mut self, other: CommandSet) {
        self.0 |= other.0;
    }
}

impl FromIterator<SqlCommand> for CommandSet {
    fn from_iter<I: IntoIterator<Item = SqlCommand>>(commands: I) -> Self {
        let mut set = CommandSet::EMPTY;
        commands.into_iter().for_each(|command| set.insert(command));
        set
    }
}

/// What a statement may do besides answering: `sql.effects`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Effects(u16);

impl Effects {
    /// Reads data.
    pub const READ: Effects = Effects(1);
    /// Changes session state.
    pub const SESSION: Effects = Effects(1 << 1);
    /// Takes explicit or advisory locks.
    pub const LOCK: Effects = Effects(1 << 2);
    /// Changes data.
    pub const WRITE: Effects = Effects(1 << 3);
    /// Defines code or schema.
    pub const DEFINE: Effects = Effects(1 << 4);
    /// Changes who may do what.
    pub const GRANT: Effects = Effects(1 << 5);
    /// Touches files or programs of the server.
    pub const FILESYSTEM: Effects = Effects(1 << 6);
    /// Opens connections from the server.
    pub const NETWORK: Effects = Effects(1 << 7);
    /// Administers the server.
    pub const ADMIN: Effects = Effects(1 << 8);
    /// Nobody knows.
    pub const UNKNOWN: Effects = Effects(1 << 9);

    /// Every effect with its name in CEL.
    pub const NAMES: [(Effects, &'static str); 10] = [
        (Effects::READ, "read"),
        (Effects::SESSION, "session"),
        (Effects::LOCK, "lock"),
        (Effects::WRITE, "write"),
        (Effects::DEFINE, "define"),
        (Effects::GRANT, "grant"),
        (Effects::FILESYSTEM, "filesystem"),
        (Effects::NETWORK, "network"),
        (Effects::ADMIN, "admin"),
        (Effects::UNKNOWN, "unknown"),
    ];

    /// Adds effects.
    pub fn insert(&mut self, other: Effects) {
        self.0 |= other.0;
    }

    /// Whether all effects of `other` are in this set.
    pub fn contains(self, other: Effects) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of the effects in the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Effects::NAMES
            .into_iter()
            .filter(move |(effect, _)| self.contains(*effect))
            .map(|(_, name)| name)
    }
}

/// Facts of one SQL operation. Lists are sorted and free of duplicates.
#[derive(Debug, Clone, PartialEq)]
pub struct SqlFacts {
    /// How many statements the string holds.
    pub statements: u32,
    /// Every (command, relation) pair.
    pub parts: Vec<Part>,
    /// Every command, nested ones too.
    pub commands: CommandSet,
    /// Every relation, base relations behind views included.
    pub tables: Fact<Vec<RelationName>>,
    /// Relations read.
    pub reads: Fact<Vec<RelationName>>,
    /// Relations written.
    pub writes: Fact<Vec<RelationName>>,
    /// Columns used anywhere, `*` and whole rows expanded.
    pub columns: Fact<Vec<ColumnName>>,
    /// Functions (`schema.name`), those behind operators, casts and aggregates too.
    pub functions: Fact<Vec<Arc<str>>>,
    /// Of these, the functions beyond the harmless list: an Allow must name each of them.
    pub unlisted_functions: Fact<Vec<Arc<str>>>,
    /// What the statement may do.
    pub effects: Effects,
    /// Every UPDATE and DELETE compares a column of its target with something.
    pub filtered: bool,
    /// The top LIMIT as a number, if there is one.
    pub limit: Fact<Option<i64>>,
    /// Whether a write answers rows.
    pub returning: bool,
    /// COPY's direction.
    pub copy: CopyDirection,
    /// Whether this is an EXPLAIN.
    pub explain: bool,
    /// Kinds of objects of CREATE, ALTER and DROP: `Table`, `View`, `Function`, …
    pub objects: Vec<Arc<str>>,
    /// Settings named.
    pub settings: Vec<Arc<str>>,
    /// Of these, the settings beyond the harmless list: an Allow must name each of them.
    pub unlisted_settings: Vec<Arc<str>>,
    /// LISTEN and NOTIFY channels.
    pub channels: Vec<Arc<str>>,
    /// Bind values.
    pub params: Fact<Vec<ParamValue>>,
    /// Whether the session is inside a transaction block.
    pub in_transaction: bool,
    /// The session's database.
    pub database: Arc<str>,
    /// The role Sidegate logged in as.
    pub role: Arc<str>,
}

impl Default for SqlFacts {
    fn default() -> Self {
        SqlFacts {
            statements: 0,
            parts: Vec::new(),
            commands: CommandSet::EMPTY,
            tables: Fact::Known(Vec::new()),
            reads: Fact::Known(Vec::new()),
            writes: Fact::Known(Vec::new()),
            columns: Fact::Known(Vec::new()),
            functions: Fact::Known(Vec::new()),
            unlisted_functions: Fact::Known(Vec::new()),
            effects: Effects::default(),
            filtered: true,
            limit: Fact::Known(None),
            returning: false,
            copy: CopyDirection::None,
            explain: false,
            objects: Vec::new(),
            settings: Vec::new(),
            unlisted_settings: Vec::new(),
            channels: Vec::new(),
            params: Fact::Known(Vec::new()),
            in_transaction: false,
            database: "".into(),
            role: "".into(),
        }
    }
}
