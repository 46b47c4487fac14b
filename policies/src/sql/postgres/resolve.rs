//! Binds the names of one statement to the catalog: which relations it reads and writes, which columns it uses
//! and for what, and where every output column comes from.
//!
//! It takes SELECT, INSERT, UPDATE, DELETE and MERGE, and COPY of a relation; other statements have no columns
//! to bind. What does not resolve is unknown, never guessed.

mod dml;
mod expr;
mod from;
mod function;
mod operands;
mod record;
mod scope;
mod select;
mod target;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use super::analysis::{Output, OutputColumn, SessionView, Source, Uses};
use super::catalog::{Catalog, ViewBody};
use super::literals::Assigned;
use super::parse::pb;
use pb::node::Node as N;
use record::Record;
use scope::{Col, Cols, Frame};

pub(super) use operands::of as operands_of;

/// The deepest nesting that is followed.
const DEEPEST: u32 = 1_000;
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
    /// A name of the FROM clause (FOR UPDATE OF).
    Alias,
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
    /// What columns are assigned from, where constants take part.
    pub meets: Vec<(ColumnName, Assigned)>,
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
            meets: Vec::new(),
            filtered: false,
            problems: vec![problem.to_owned()],
        }
    }

    /// Takes the output as a source of something else (CREATE TABLE AS, CREATE VIEW): each column is used, and
    /// nothing is answered.
    pub fn output_is_used(&mut self) {
        match std::mem::replace(&mut self.output, Output::None) {
            Output::None => {}
            Output::Unknown => self.uses.unknown = true,
            Output::Rows(columns) => {
                for column in columns {
                    match column.source {
                        Source::Clean => {}
                        Source::Column(column) => self.uses.columns.push(column),
                        Source::Derived(columns) => self.uses.columns.extend(columns),
                        // Which columns a row has is known only to the catalog.
                        Source::WholeRow(_) | Source::Unknown => self.uses.unknown = true,
                    }
                }
                self.uses.columns.sort();
                self.uses.columns.dedup();
            }
        }
    }
}

/// Binds one SELECT, INSERT, UPDATE, DELETE or MERGE.
pub fn bind(statement: &pb::Node, catalog: &Catalog, view: &dyn SessionView) -> Bound {
    let mut binder = Binder::new(catalog, view);
    let cols = binder.subquery(statement);
    let output = match &statement.node {
        Some(N::SelectStmt(select)) if leftmost(select).into_clause.is_some() => {
            binder.consume_all(&cols);
            Output::None
        }
        Some(N::SelectStmt(_)) => output(cols),
        Some(N::InsertStmt(e)) => returned(e.returning_clause.as_ref(), cols),
        Some(N::UpdateStmt(e)) => returned(e.returning_clause.as_ref(), cols),
        Some(N::DeleteStmt(e)) => returned(e.returning_clause.as_ref(), cols),
        Some(N::MergeStmt(e)) => returned(e.returning_clause.as_ref(), cols),
        _ => return Bound::unknown("a statement without names to bind"),
    };
    binder.record.finish(catalog, output)
}

/// Binds `COPY relation [(columns)] TO` or `FROM`. `COPY (query)` is bound by binding the query.
pub fn bind_copy(copy: &pb::CopyStmt, catalog: &Catalog, view: &dyn SessionView) -> Bound {
    let mut binder = Binder::new(catalog, view);
    let cols = binder.copy(copy);
    let output = if copy.is_from { Output::None } else { output(cols) };
    binder.record.finish(catalog, output)
}

/// Binds the body of a view: what its columns show, which relations it names, which columns it refers to.
pub(super) fn bind_body(query: &pb::Node, catalog: &Catalog, view: &dyn SessionView) -> ViewBody {
    let mut binder = Binder::new(catalog, view);
    let cols = binder.subquery(query);
    ViewBody {
        relations: binder.record.reads().cloned().collect(),
        uses: binder.record.columns.iter().cloned().collect(),
        known: cols.complete && !binder.record.reads_unknown,
        columns: cols.columns.into_iter().map(|column| column.source).collect(),
    }
}

fn leftmost(select: &pb::SelectStmt) -> &pb::SelectStmt {
    let mut current = select;
    while let Some(left) = current.larg.as_deref() {
        current = left;
    }
    current
}

fn returned(clause: Option<&pb::ReturningClause>, cols: Cols) -> Output {
    match clause {
        Some(clause) if !clause.exprs.is_empty() => output(cols),
        _ => Output::None,
    }
}

fn output(cols: Cols) -> Output {
    if !cols.complete {
        return Output::Unknown;
    }
    let column = |col: Col| OutputColumn {
        name: Some(col.name),
        source: col.source,
    };
    Output::Rows(cols.columns.into_iter().map(column).collect())
}

/// The state of binding one statement.
struct Binder<'t> {
    catalog: &'t Catalog,
    view: &'t dyn SessionView,
    frames: Vec<Frame<'t>>,
    depth: u32,
    next_item: u32,
    record: Record,
    /// Item and column of each column reference, by its location.
    refs: HashMap<i32, (u32, Arc<str>)>,
    /// The item of ON CONFLICT's proposed row, while its assignments are bound.
    proposed: Option<u32>,
}

impl<'t> Binder<'t> {
    fn new(catalog: &'t Catalog, view: &'t dyn SessionView) -> Self {
        Binder {
            catalog,
            view,
            frames: Vec::new(),
            depth: 0,
            next_item: 0,
            record: Record::default(),
            refs: HashMap::new(),
            proposed: None,
        }
    }

    /// Goes one level deeper; false where that is too deep, and then there is nothing to leave.
    fn enter(&mut self) -> bool {
        if self.depth >= DEEPEST {
            self.unknown("too deep");
            return false;
        }
        self.depth = self.depth.saturating_add(1);
        true
    }

    fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// Notes that some column could not be told.
    fn unknown(&mut self, problem: &str) -> Source {
        self.record.problem(problem.to_owned());
        self.record.columns_unknown = true;
        self.record.uses_unknown = true;
        Source::Unknown
    }
}
