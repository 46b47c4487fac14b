//! Binds the names of one statement to the catalog: which relations it reads and writes, which columns it uses
//! and for what, and where every output column comes from.
//!
//! It takes SELECT, INSERT, UPDATE, DELETE and MERGE, and COPY of a relation; other statements have no columns
//! to bind. What does not resolve is unknown, never guessed.

use std::collections::HashMap;
use std::sync::Arc;

use super::analysis::{Output, SessionView, Uses};
use super::catalog::Catalog;
use super::parse::pb;
use crate::api::access_policy::SqlCommand;
use crate::engine::operation::Fact;
use crate::sql::facts::PartRelation;
use crate::sql::names::{ColumnName, RelationName};

/// What a relation name at one place of the statement means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// A relation of the catalog.
    Base(RelationName),
    /// A common table expression of the statement.
    Cte,
    /// A relation the statement creates (SELECT INTO).
    New,
    /// Not resolved.
    Unknown,
}

/// One statement, bound.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// (command, relation) pairs, base relations behind views included; sorted, without duplicates.
    pub parts: Vec<(SqlCommand, PartRelation)>,
    /// Relations read.
    pub reads: Fact<Vec<RelationName>>,
    /// Relations written.
    pub writes: Fact<Vec<RelationName>>,
    /// Columns used anywhere, those behind views and of inheritance parents included.
    pub columns: Fact<Vec<ColumnName>>,
    /// What each relation name means, by its location in the text.
    pub relations: HashMap<i32, Resolution>,
    /// User-defined functions found only here (attribute notation), and candidates of calls: `schema.name`.
    pub functions: Vec<Arc<str>>,
    /// Where the output columns come from.
    pub output: Output,
    /// Columns used for anything but being shown as they are.
    pub uses: Uses,
    /// Every UPDATE and DELETE compares a column of its target with something.
    pub filtered: bool,
    /// What was not understood, in words.
    pub problems: Vec<String>,
}

impl Bound {
    /// A statement of which nothing is known.
    pub fn unknown(problem: &str) -> Self {
        Bound {
            parts: vec![(SqlCommand::Other, PartRelation::Unknown)],
            reads: Fact::Unknown,
            writes: Fact::Unknown,
            columns: Fact::Unknown,
            relations: HashMap::new(),
            functions: Vec::new(),
            output: Output::Unknown,
            uses: Uses {
                unknown: true,
                ..Uses::default()
            },
            filtered: false,
            problems: vec![problem.to_owned()],
        }
    }
}

/// Binds one SELECT, INSERT, UPDATE, DELETE or MERGE.
pub fn bind(_statement: &pb::Node, _catalog: &Catalog, _view: &dyn SessionView) -> Bound {
    Bound::unknown("names are not bound")
}

/// Binds `COPY relation [(columns)] TO` or `FROM`. `COPY (query)` is bound by binding the query.
pub fn bind_copy(_copy: &pb::CopyStmt, _catalog: &Catalog, _view: &dyn SessionView) -> Bound {
    Bound::unknown("names are not bound")
}
