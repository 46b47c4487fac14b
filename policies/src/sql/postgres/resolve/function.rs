//! Functions in FROM: which columns they answer.
//!
//! A scalar function answers one column, one with OUT or TABLE parameters those, one of a row type the columns
//! of its relation. A bare record is open unless the statement gives a column definition list.

use std::sync::Arc;

use super::super::analysis::Source;
use super::super::catalog::Function;
use super::super::names;
use super::super::parse::pb;
use super::expr::{count, qualified, Mix};
use super::from::cast_relation;
use super::scope::{Col, Cols};
use super::Binder;
use pb::node::Node as N;

/// The type `record`.
const RECORD: u32 = 2249;

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
        if name == "unnest" && call.args.len() > 1 {
            let columns = call.args.iter().map(|_| Col::new("unnest", source.clone()));
            return (Cols::known(columns.collect()), false);
        }
        let candidates = names::functions(self.catalog, schema, name, count(call.args.len()), self.view);
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
