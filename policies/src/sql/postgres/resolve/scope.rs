//! Scopes: what a column reference can see, and what it finds.
//!
//! One frame per query level, innermost last; each holds the FROM items bound so far and the level's common
//! table expressions. Lookup follows the server: a column name at any level wins over a whole-row name, and a
//! name that may come from an item whose columns are not known is unknown.

use std::rc::Rc;
use std::sync::Arc;

use super::super::analysis::Source;
use super::super::parse::pb;
use crate::sql::names::RelationName;

/// One column of an item or of a query's output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Col {
    pub name: Arc<str>,
    pub source: Source,
    /// The expression is a parameter, a constant or DEFAULT.
    pub plain: bool,
    /// Where the constants stand that a plain column is made of, by byte offset.
    pub constants: Vec<usize>,
}

impl Col {
    pub fn new(name: &str, source: Source) -> Self {
        Col {
            name: name.into(),
            source,
            plain: false,
            constants: Vec::new(),
        }
    }
}

/// The columns of an item or of a query's output.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cols {
    pub columns: Vec<Col>,
    /// False when there may be other columns, or none of these.
    pub complete: bool,
}

impl Cols {
    pub fn known(columns: Vec<Col>) -> Self {
        Cols {
            columns,
            complete: true,
        }
    }
}

/// One entry of a FROM clause.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Identifies the entry in the statement.
    pub id: u32,
    /// The name it is referred to by; None for a join without an alias.
    pub alias: Option<Arc<str>>,
    /// The relation, where `schema.relation.column` may mean this item: only without an alias.
    pub qualified: Option<RelationName>,
    /// The relation whose rows these are.
    pub row: Option<RelationName>,
    pub cols: Rc<Cols>,
    /// `item.column` finds it.
    pub by_alias: bool,
    /// A bare column name finds its columns, and `*` expands it.
    pub by_column: bool,
    /// A function with a scalar result: its name as a value is that scalar.
    pub scalar: bool,
}

impl Item {
    pub fn column(&self, name: &str) -> Option<&Col> {
        self.cols.columns.iter().find(|column| &*column.name == name)
    }

    /// Whether a base relation's system columns can be had from it.
    fn system_column(&self, name: &str) -> bool {
        self.row.is_some() && matches!(name, "ctid" | "xmin" | "xmax" | "cmin" | "cmax" | "tableoid")
    }
}

/// How far a common table expression has been bound.
#[derive(Debug, Clone)]
pub(super) enum CteState {
    Unbound,
    /// While its own query is bound: the columns known so far (a recursive reference), None at first.
    Binding(Option<Rc<Cols>>),
    Bound(Rc<Cols>),
}

/// A common table expression.
#[derive(Debug, Clone)]
pub(super) struct Cte<'t> {
    pub node: &'t pb::CommonTableExpr,
    pub state: CteState,
}

/// One query level.
#[derive(Debug, Default)]
pub(super) struct Frame<'t> {
    pub items: Vec<Rc<Item>>,
    pub ctes: Vec<Cte<'t>>,
    /// While a subquery of this level's FROM is bound that is not LATERAL.
    pub hidden: bool,
}

/// What a name found.
#[derive(Debug)]
pub(super) enum Found {
    /// A column of the item with this number.
    Column(Col, u32),
    /// The item itself, as a row.
    Row(Rc<Item>),
    /// It may be a column of an item whose columns are not known: of this item, if it can only be that one.
    Maybe(Option<u32>),
    /// More than one column of that name; the server refuses it too.
    Ambiguous,
    Nothing,
}

/// A bare name: a column at any level, else an item at any level.
pub(super) fn bare(frames: &[Frame<'_>], name: &str) -> Found {
    for frame in frames.iter().rev().filter(|frame| !frame.hidden) {
        match in_frame(frame, name) {
            Found::Nothing => {}
            found => return found,
        }
    }
    match item(frames, None, name) {
        Some(item) => Found::Row(item),
        None => Found::Nothing,
    }
}

/// A bare column name at one level.
pub(super) fn in_frame(frame: &Frame<'_>, name: &str) -> Found {
    let visible = || frame.items.iter().filter(|item| item.by_column);
    let mut hits = visible().flat_map(|item| {
        let same = item.cols.columns.iter().filter(|column| &*column.name == name);
        same.map(move |column| (column, item.id))
    });
    if let Some((column, id)) = hits.next() {
        return match hits.next() {
            Some(_) => Found::Ambiguous,
            None => Found::Column(column.clone(), id),
        };
    }
    let mut open = visible().filter(|item| !item.cols.complete);
    if let Some(first) = open.next() {
        return Found::Maybe(open.next().is_none().then_some(first.id));
    }
    // System columns are found only by name, and never where a join hides its sides.
    let mut system = frame
        .items
        .iter()
        .filter(|item| item.by_column && item.system_column(name));
    match (system.next(), system.next()) {
        (Some(item), None) => Found::Column(Col::new(name, Source::Clean), item.id),
        (Some(_), Some(_)) => Found::Ambiguous,
        (None, _) => Found::Nothing,
    }
}

/// An item by the name it is referred to, the innermost first.
pub(super) fn item(frames: &[Frame<'_>], schema: Option<&str>, name: &str) -> Option<Rc<Item>> {
    frames.iter().rev().filter(|frame| !frame.hidden).find_map(|frame| {
        frame
            .items
            .iter()
            .find(|item| item.by_alias && answers_to(item, schema, name))
            .cloned()
    })
}

fn answers_to(item: &Item, schema: Option<&str>, name: &str) -> bool {
    match schema {
        None => item.alias.as_deref() == Some(name),
        Some(schema) => item
            .qualified
            .as_ref()
            .is_some_and(|relation| &*relation.schema == schema && &*relation.name == name),
    }
}

/// A column of an item.
pub(super) fn of_item(item: &Rc<Item>, name: &str) -> Found {
    match item.column(name) {
        Some(column) => Found::Column(column.clone(), item.id),
        None if item.system_column(name) => Found::Column(Col::new(name, Source::Clean), item.id),
        None if !item.cols.complete => Found::Maybe(Some(item.id)),
        None => Found::Nothing,
    }
}
