//! What analysing a statement string yields: facts for the engine, and for the room the kind of each statement,
//! where every output column comes from, and which columns are used for anything but being shown.

use std::ops::Range;
use std::sync::Arc;

use super::literals::Literals;
use super::prescan::Limit;
use crate::engine::operation::{Completeness, Facts, Operation, Verb};
use crate::sql::facts::SqlFacts;
use crate::sql::names::{ColumnName, RelationName};

/// One statement string, analysed.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// Its statements, in order. Empty for an empty string.
    pub statements: Vec<Arc<Statement>>,
    /// Facts of the whole string.
    pub facts: SqlFacts,
    /// Exact, Partial, or Opaque when the grammar or the walk gave up.
    pub completeness: Completeness,
    /// For Opaque: the grammar's own message, or what was not understood.
    pub problem: Option<String>,
    /// A limit the text ran into; it is Opaque then, and the refusal says so (54000, 54001).
    pub limit: Option<Limit>,
    /// Where constants stand whose values this analysis does not depend on, by byte offset, sorted: see
    /// [`super::shape`]. Of a single statement without meaning for session state only.
    pub free: Vec<usize>,
}

/// What a refusal says of a text whose names did not resolve, where no rule says more.
pub const UNRESOLVED: &str = "it names a table or column that does not exist or cannot be resolved";

impl Analysis {
    /// The operation that rules judge, with facts of this text: its own, or the same with bind values.
    pub fn operation<'a>(&'a self, facts: &'a SqlFacts) -> Operation<'a> {
        Operation {
            verb: Verb::Statement,
            action: self.statements.first().map_or("", |first| &*first.action),
            completeness: self.completeness,
            facts: Facts::Sql(facts),
        }
    }

    /// Whether some relation or column of the text is unknown.
    pub fn is_unresolved(&self) -> bool {
        let facts = &self.facts;
        !self.statements.is_empty() && (facts.tables.known().is_none() || facts.columns.known().is_none())
    }
}

/// One statement.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Where it stands in the string.
    pub range: Range<usize>,
    /// What it means to the session.
    pub kind: StatementKind,
    /// Its command in words, such as `SELECT` or `CREATE TABLE`; shown to people.
    pub action: Arc<str>,
    /// Its own facts.
    pub facts: SqlFacts,
    /// How well it was understood.
    pub completeness: Completeness,
    /// Where its output columns come from.
    pub output: Output,
    /// Columns used for anything but being shown as they are.
    pub uses: Uses,
    /// Number of `$n` parameters.
    pub parameters: u32,
    /// Which of its constants may have to be hidden where its text is shown.
    pub literals: Literals,
}

/// What a statement means to the session's own state.
#[derive(Debug, Clone)]
pub enum StatementKind {
    /// A statement without meaning for session state.
    Plain,
    /// BEGIN, COMMIT, ROLLBACK and savepoints.
    Transaction(TransactionVerb),
    /// SET or a listed function that sets.
    Set {
        /// The setting, lower case.
        name: Arc<str>,
        /// Its value where it is a constant; None for DEFAULT.
        value: Option<Arc<str>>,
        /// SET LOCAL.
        local: bool,
    },
    /// RESET name, or all.
    Reset(Option<Arc<str>>),
    /// SHOW.
    Show,
    /// DISCARD.
    Discard(DiscardWhat),
    /// PREPARE name AS ….
    Prepare {
        /// The name.
        name: Arc<str>,
        /// The body.
        inner: Arc<Statement>,
    },
    /// EXECUTE name: facts and output are those of the stored body.
    Execute {
        /// The name.
        name: Arc<str>,
    },
    /// DEALLOCATE name, or all.
    Deallocate(Option<Arc<str>>),
    /// DECLARE name CURSOR FOR ….
    Declare {
        /// The name.
        name: Arc<str>,
        /// WITH HOLD.
        hold: bool,
        /// The query.
        inner: Arc<Statement>,
    },
    /// FETCH or MOVE: facts and output are those of the cursor's query.
    Fetch {
        /// The cursor.
        name: Arc<str>,
        /// MOVE: answers no rows.
        only_move: bool,
    },
    /// CLOSE name, or all.
    CloseCursor(Option<Arc<str>>),
    /// COPY from or to the client.
    Copy(Box<CopyStatement>),
    /// EXPLAIN; with ANALYZE the explained statement runs.
    Explain {
        /// ANALYZE in any spelling.
        analyze: bool,
        /// FORMAT, lower case.
        format: Arc<str>,
        /// What is explained.
        inner: Arc<Statement>,
    },
}

/// Transaction control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransactionVerb {
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END.
    Commit,
    /// ROLLBACK, ABORT.
    Rollback,
    /// SAVEPOINT.
    Savepoint,
    /// RELEASE SAVEPOINT.
    Release,
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo,
    /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
    TwoPhase,
}

/// What DISCARD throws away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiscardWhat {
    /// ALL.
    All,
    /// PLANS.
    Plans,
    /// SEQUENCES.
    Sequences,
    /// TEMP.
    Temp,
}

/// COPY from or to the client.
#[derive(Debug, Clone)]
pub struct CopyStatement {
    /// Into the server.
    pub from: bool,
    /// The relation, where COPY names one (otherwise it copies a query).
    pub relation: Option<RelationName>,
    /// Format: `text`, `csv` or `binary`.
    pub format: Arc<str>,
    /// Field delimiter, where it is not the format's own.
    pub delimiter: Option<u8>,
    /// CSV quote.
    pub quote: Option<u8>,
    /// CSV escape.
    pub escape: Option<u8>,
    /// The text that stands for NULL, where it is not the format's own.
    pub null: Option<Arc<str>>,
    /// CSV, text: the first line is a header.
    pub header: bool,
}

/// Where the output columns come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// The statement answers no rows.
    None,
    /// One entry per column, in order.
    Rows(Vec<OutputColumn>),
    /// Rows whose columns are not known (record-returning functions, unresolved names).
    Unknown,
}

/// One output column.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputColumn {
    /// Its name as far as known.
    pub name: Option<Arc<str>>,
    /// Where its value comes from.
    pub source: Source,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Nothing but constants, parameters and harmless functions of them.
    Clean,
    /// The bare value of one column of a relation the statement names (through aliases, subqueries and CTEs).
    /// The relation may be a view or an inheritance child: `lineage` says which columns stand behind it.
    Column(ColumnName),
    /// The whole row of a relation, as a composite.
    WholeRow(RelationName),
    /// Computed from these base columns.
    Derived(Vec<ColumnName>),
    /// Cannot be told.
    Unknown,
}

/// Columns used for anything but being shown as they are: predicates, joins, ordering, grouping, expressions,
/// aggregates, set operations, sources of writes. On a masked column such a use answers a question about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Uses {
    /// The base columns, sorted.
    pub columns: Vec<ColumnName>,
    /// Columns a write assigns from anything but a parameter, a constant or DEFAULT, sorted.
    pub assigned: Vec<ColumnName>,
    /// Columns of a relation on which ON CONFLICT names no columns: it may tell whether a value of any of them exists.
    pub conflicts: Vec<ColumnName>,
    /// Some use could not be resolved.
    pub unknown: bool,
}

/// What the analysis may ask about the session: statements and cursors it created, and names that depend on its
/// settings.
pub trait SessionView: Sync {
    /// The body of a SQL-level or protocol-level prepared statement.
    fn prepared(&self, name: &str) -> Option<Arc<Statement>>;
    /// The query of an open cursor.
    fn cursor(&self, name: &str) -> Option<Arc<Statement>>;
    /// The session's search_path, schema names in order, `pg_temp` and `pg_catalog` only where listed.
    fn search_path(&self) -> &[Arc<str>];
    /// The database.
    fn database(&self) -> &Arc<str>;
    /// The role.
    fn role(&self) -> &Arc<str>;
    /// Inside a transaction block.
    fn in_transaction(&self) -> bool;
    /// The session has its own temporary tables, so an unqualified name may mean one of them.
    fn has_temporary_tables(&self) -> bool;
    /// Whether this unqualified relation name may mean one of them.
    fn may_be_temporary(&self, _relation: &str) -> bool {
        self.has_temporary_tables()
    }
}
