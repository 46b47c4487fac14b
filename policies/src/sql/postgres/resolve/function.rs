//! Functions in FROM: which columns they answer.
//!
//! A scalar function answers one column, one with OUT or TABLE parameters those, one of a row type the columns
//! of its relation. A bare record is open unless the statement gives a column definition list.

use std::rc::Rc;
use std::sync::Arc;

use super::super::analysis::Source;
use super::super::catalog::{Function, Oid};
use super::super::names;
use super::super::parse::pb;
use super::expr::{count, qualified, split, Mix};
use super::from::cast_relation;
use super::scope::{self, Col, Cols, Found};
use super::Binder;
use pb::node::Node as N;

/// The type `record`.
const RECORD: u32 = 2249;
/// Types of the server whose values are plain, each with the type that holds many of them: unnest answers one column for
/// those. Elements of a row type would be taken apart into the row's columns.
const PLAIN: &[(&str, Oid)] = &[
    ("aclitem", 1_034),
    ("bool", 1_000),
    ("bpchar", 1_014),
    ("bytea", 1_001),
    ("char", 1_002),
    ("cidr", 651),
    ("date", 1_182),
    ("float4", 1_021),
    ("float8", 1_022),
    ("inet", 1_041),
    ("int2", 1_005),
    ("int2vector", 22),
    ("int4", 1_007),
    ("int8", 1_016),
    ("interval", 1_187),
    ("json", 199),
    ("jsonb", 3_807),
    ("macaddr", 1_040),
    ("name", 1_003),
    ("numeric", 1_231),
    ("oid", 1_028),
    ("oidvector", 30),
    ("regclass", 2_210),
    ("text", 1_009),
    ("time", 1_183),
    ("timestamp", 1_115),
    ("timestamptz", 1_185),
    ("timetz", 1_270),
    ("uuid", 2_951),
    ("varchar", 1_015),
];

/// Polymorphic result types: the columns depend on an argument.
const POLYMORPHIC: &[u32] = &[2283, 2776, 3500, 5077, 5079];

impl<'t> Binder<'t> {
    /// The columns of one function in FROM, and whether it is a scalar.
    pub(super) fn function_columns(
        &mut self,
        function: &'t pb::Node,
        definitions: &'t [pb::Node],
        alias: Option<&str>,
    ) -> (Cols, bool) {
        let Some(N::FuncCall(call)) = &function.node else {
            let source = self.expr(function);
            let mut mix = Mix::default();
            self.consume(&source, &mut mix);
            let name = alias.unwrap_or("?column?");
            return (Cols::known(vec![Col::new(name, mix.source())]), true);
        };
        let source = self.expr(function);
        if !definitions.is_empty() {
            let columns = definitions.iter().filter_map(|definition| match &definition.node {
                Some(N::ColumnDef(column)) => Some(Col::new(names::truncated(&column.colname), source.clone())),
                _ => None,
            });
            return (Cols::known(columns.collect()), false);
        }
        let (schema, name) = qualified(&call.funcname);
        let plain = || call.args.iter().all(|argument| self.is_plain_array(argument));
        // The server knows several arguments only behind the bare name, and refuses them behind its own schema's.
        if schema.is_none_or(|schema| schema == "pg_catalog") && name == "unnest" && call.args.len() > 1 {
            if !plain() {
                return (Cols::default(), false);
            }
            let columns = call.args.iter().map(|_| Col::new("unnest", source.clone()));
            return (Cols::known(columns.collect()), false);
        }
        let candidates = names::functions(self.catalog, schema, name, count(call.args.len()), self.view);
        let of_array =
            name == "unnest" && candidates.iter().all(|candidate| &*candidate.schema == "pg_catalog") && plain();
        if of_array {
            return (scalar(None, alias, name, source), true);
        }
        let mut shapes: Vec<Shape> = Vec::new();
        for candidate in &candidates {
            let shape = self.shape(candidate, call);
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        match <[Shape; 1]>::try_from(shapes) {
            Ok([Shape::Scalar(output)]) => (scalar(output.as_deref(), alias, name, source), true),
            Ok([Shape::Row(columns)]) => {
                let columns = columns.iter().map(|column| Col::new(column, source.clone()));
                (Cols::known(columns.collect()), false)
            }
            Ok([Shape::Open]) => (Cols::default(), false),
            // No candidate: one of the server's own with a scalar result. Several that disagree: open.
            Err(none) if none.is_empty() => (scalar(None, alias, name, source), true),
            Err(_) => (Cols::default(), false),
        }
    }

    /// Whether an argument is an array of plain values for sure: whichever unnest is meant then, it answers one column,
    /// and neither the three of unnest(tsvector) nor those of a row.
    fn is_plain_array(&self, argument: &pb::Node) -> bool {
        match &argument.node {
            Some(N::AArrayExpr(array)) => {
                let constant = |element: &pb::Node| matches!(element.node, Some(N::AConst(_)));
                array.elements.iter().all(constant)
            }
            Some(N::TypeCast(cast)) => cast.type_name.as_ref().is_some_and(|to| {
                let (schema, name) = qualified(&to.names);
                !to.array_bounds.is_empty()
                    && schema.is_none_or(|schema| schema == "pg_catalog")
                    && PLAIN.iter().any(|(plain, _)| *plain == name)
                    && cast_relation(self.catalog, argument, self.view).is_none()
            }),
            _ => self
                .column_type(argument)
                .is_some_and(|oid| PLAIN.iter().any(|(_, array)| *array == oid)),
        }
    }

    /// The type of a column that is named, by the catalog.
    fn column_type(&self, node: &pb::Node) -> Option<Oid> {
        let Some(N::ColumnRef(reference)) = &node.node else {
            return None;
        };
        let (names, false) = split(reference) else {
            return None;
        };
        let (name, item) = names.split_last()?;
        let item = if item.is_empty() {
            let Found::Column(_, id) = scope::bare(&self.frames, name) else {
                return None;
            };
            let mut items = self.frames.iter().flat_map(|frame| &frame.items);
            Rc::clone(items.find(|item| item.id == id)?)
        } else {
            self.item_named(item)?
        };
        let row = item.row.as_ref()?;
        let relation = self.catalog.relation_named(&row.schema, &row.name)?;
        // Names may be an alias's own; the order is the relation's.
        let at = item.cols.columns.iter().position(|column| &*column.name == *name)?;
        if item.cols.columns.len() != relation.columns.len() {
            return None;
        }
        relation.columns.get(at).map(|column| column.type_oid)
    }

    fn shape(&self, function: &Function, call: &pb::FuncCall) -> Shape {
        match function.outputs.as_slice() {
            [] => {}
            [(name, _)] if function.result != RECORD => {
                return Shape::Scalar((!name.is_empty()).then(|| Arc::clone(name)));
            }
            several => {
                let numbered = several.iter().enumerate().map(|(at, (name, _))| match &**name {
                    "" => format!("column{}", at.saturating_add(1)).into(),
                    _ => Arc::clone(name),
                });
                return Shape::Row(numbered.collect());
            }
        }
        if function.result == RECORD {
            return Shape::Open;
        }
        if POLYMORPHIC.contains(&function.result) && &*function.name != "unnest" {
            let row = call
                .args
                .first()
                .and_then(|arg| cast_relation(self.catalog, arg, self.view));
            return match row {
                Some(relation) => Shape::Row(relation.columns.iter().map(|c| Arc::clone(&c.name)).collect()),
                None => Shape::Open,
            };
        }
        match self.catalog.row_relation(function.result) {
            Some(relation) => Shape::Row(relation.columns.iter().map(|c| Arc::clone(&c.name)).collect()),
            None => Shape::Scalar(None),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Shape {
    /// One column, with its own name where a single OUT parameter has one.
    Scalar(Option<Arc<str>>),
    Row(Vec<Arc<str>>),
    Open,
}

fn scalar(output: Option<&str>, alias: Option<&str>, name: &str, source: Source) -> Cols {
    Cols::known(vec![Col::new(output.or(alias).unwrap_or(name), source)])
}
