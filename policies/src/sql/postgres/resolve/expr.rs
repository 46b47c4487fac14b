//! Expressions: where their value comes from, and which columns they use on the way.
//!
//! A bare column reference passes its source on and uses nothing. Everything else uses each column it touches.
//! A node that is not listed makes the value unknown.

use std::sync::Arc;

use super::super::analysis::Source;
use super::super::catalog::Volatility;
use super::super::names;
use super::super::parse::pb;
use super::record::row_columns;
use super::scope::{self, Col, Cols, Found, Item};
use super::target::text;
use super::Binder;
use crate::sql::names::ColumnName;
use pb::node::Node as N;

/// Functions of the server whose answer holds table data that no argument shows.
const DATA_FUNCTIONS: &[&str] = &[
    "cursor_to_xml",
    "cursor_to_xmlschema",
    "database_to_xml",
    "database_to_xml_and_xmlschema",
    "dblink",
    "lo_get",
    "loread",
    "pg_logical_slot_get_changes",
    "pg_logical_slot_peek_changes",
    "pg_read_binary_file",
    "pg_read_file",
    "query_to_xml",
    "query_to_xml_and_xmlschema",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "table_to_xml",
    "table_to_xml_and_xmlschema",
    "ts_rewrite",
    "ts_stat",
];

/// Sources of operands, added up to the source of what is computed from them.
#[derive(Debug, Default)]
pub(super) struct Mix {
    columns: Vec<ColumnName>,
    unknown: bool,
}

impl Mix {
    pub fn unknown(&mut self) {
        self.unknown = true;
    }

    pub fn source(mut self) -> Source {
        self.columns.sort();
        self.columns.dedup();
        match (self.unknown, self.columns.is_empty()) {
            (true, _) => Source::Unknown,
            (false, true) => Source::Clean,
            (false, false) => Source::Derived(self.columns),
        }
    }
}

impl<'t> Binder<'t> {
    /// The source of an expression's value.
    pub(super) fn expr(&mut self, node: &'t pb::Node) -> Source {
        let Some(inner) = &node.node else { return Source::Clean };
        if !self.enter() {
            return Source::Unknown;
        }
        let source = self.expr_inner(inner);
        self.leave();
        source
    }

    fn expr_inner(&mut self, node: &'t N) -> Source {
        match node {
            N::AConst(_)
            | N::ParamRef(_)
            | N::SetToDefault(_)
            | N::SqlvalueFunction(_)
            | N::MergeSupportFunc(_)
            | N::CurrentOfExpr(_)
            | N::Integer(_)
            | N::Float(_)
            | N::Boolean(_)
            | N::String(_)
            | N::BitString(_) => Source::Clean,
            N::ColumnRef(reference) => self.column_ref(reference),
            N::AExpr(operation) => self.operation(operation),
            N::SubLink(link) => self.sublink(link),
            N::TypeCast(cast) => self.cast(cast),
            N::FuncCall(call) => self.call(call),
            N::AIndirection(indirection) => self.indirection(indirection),
            N::JsonArrayQueryConstructor(constructor) => match &constructor.query {
                Some(query) => {
                    let cols = self.subquery(query);
                    self.consume_all(&cols)
                }
                None => Source::Unknown,
            },
            other => match super::operands::of(other) {
                Some(operands) => self.computed(operands),
                None => {
                    self.unknown("an expression of a kind that is not known here");
                    Source::Unknown
                }
            },
        }
    }

    /// Uses each operand.
    pub(super) fn computed(&mut self, operands: impl IntoIterator<Item = &'t pb::Node>) -> Source {
        let mut mix = Mix::default();
        for operand in operands {
            self.operand(operand, &mut mix);
        }
        mix.source()
    }

    /// Uses one expression and adds it to what is computed.
    pub(super) fn operand(&mut self, node: &'t pb::Node, mix: &mut Mix) {
        let source = self.expr(node);
        self.consume(&source, mix);
    }

    /// Uses an expression whose value goes nowhere but into a decision or a write.
    pub(super) fn use_expr(&mut self, node: &'t pb::Node) {
        self.operand(node, &mut Mix::default());
    }

    /// Uses optional and listed expressions.
    pub(super) fn use_all(&mut self, nodes: impl IntoIterator<Item = &'t pb::Node>) {
        for node in nodes {
            self.use_expr(node);
        }
    }

    /// Records that a value is computed with.
    pub(super) fn consume(&mut self, source: &Source, mix: &mut Mix) {
        let columns = match source {
            Source::Clean => return,
            Source::Unknown => {
                mix.unknown = true;
                return;
            }
            Source::Column(column) => vec![column.clone()],
            Source::WholeRow(row) => row_columns(self.catalog, row),
            Source::Derived(columns) => columns.clone(),
        };
        self.record.uses.extend(columns.iter().cloned());
        mix.columns.extend(columns);
    }

    pub(super) fn consume_all(&mut self, cols: &Cols) -> Source {
        let mut mix = Mix {
            unknown: !cols.complete,
            ..Mix::default()
        };
        for column in &cols.columns {
            self.consume(&column.source, &mut mix);
        }
        mix.source()
    }

    /// A name that stands for a value.
    pub(super) fn column_ref(&mut self, reference: &'t pb::ColumnRef) -> Source {
        let (names, star) = split(reference);
        if star {
            // `t.*` inside an expression is the row of t.
            return match self.item_named(&names) {
                Some(item) => {
                    let row = self.row_of(&item);
                    let mut mix = Mix::default();
                    self.consume(&row, &mut mix);
                    mix.source()
                }
                None => self.unknown("`*` where a value stands"),
            };
        }
        let found = match names.as_slice() {
            [name] => scope::bare(&self.frames, name),
            [.., name] => match self.item_named(names.get(..names.len().saturating_sub(1)).unwrap_or_default()) {
                Some(item) => match scope::of_item(&item, name) {
                    Found::Nothing => return self.attribute(&item, name),
                    found => found,
                },
                None => Found::Nothing,
            },
            [] => Found::Nothing,
        };
        self.found(found, reference.location, names.last().copied().unwrap_or_default())
    }

    fn found(&mut self, found: Found, location: i32, name: &str) -> Source {
        match found {
            Found::Column(Col { source, .. }, item) => {
                self.refs.insert(location, (item, name.into()));
                self.record.refer(self.catalog, &source);
                source
            }
            Found::Row(item) => self.row_of(&item),
            Found::Maybe(item) => {
                if let Some(item) = item {
                    self.refs.insert(location, (item, name.into()));
                }
                self.unknown(&format!("column \"{name}\" may belong to a relation that is not known"))
            }
            Found::Ambiguous => self.unknown(&format!("column \"{name}\" is ambiguous")),
            Found::Nothing => self.unknown(&format!("column \"{name}\" is not found")),
        }
    }

    pub(super) fn item_named(&self, names: &[&str]) -> Option<std::rc::Rc<Item>> {
        match names {
            [name] => scope::item(&self.frames, None, name),
            [schema, name] => scope::item(&self.frames, Some(schema), name),
            [database, schema, name] if **self.view.database() == **database => {
                scope::item(&self.frames, Some(schema), name)
            }
            _ => None,
        }
    }

    /// The row of an item as one value.
    pub(super) fn row_of(&mut self, item: &Item) -> Source {
        match (&item.row, item.scalar, item.cols.columns.first()) {
            (Some(row), _, _) => {
                let row = Source::WholeRow(row.clone());
                self.record.refer(self.catalog, &row);
                row
            }
            (None, true, Some(only)) => only.source.clone(),
            // No single relation stands behind the row, so it cannot be taken apart again.
            _ => self.consume_all(&item.cols),
        }
    }

    /// `row.name` where the row has no such column: a function of one row, or a mistake.
    fn attribute(&mut self, item: &Item, name: &str) -> Source {
        let row = self.row_of(item);
        let mut mix = Mix::default();
        self.consume(&row, &mut mix);
        self.function_identities(None, name, 1, &mut mix);
        if names::functions(self.catalog, None, name, 1, self.view).is_empty() {
            self.record.functions.insert(format!("pg_catalog.{name}").into());
            return self.unknown(&format!("\"{name}\" is neither a column nor a known function of a row"));
        }
        mix.source()
    }

    fn operation(&mut self, operation: &'t pb::AExpr) -> Source {
        let mut mix = Mix::default();
        for side in [&operation.lexpr, &operation.rexpr].into_iter().flatten() {
            self.operand(side, &mut mix);
        }
        self.operator(&operation.name, &mut mix);
        mix.source()
    }

    fn operator(&mut self, name: &[pb::Node], mix: &mut Mix) {
        let (schema, name) = qualified(name);
        for operator in self.catalog.operators_named(name) {
            let reachable = match schema {
                Some(schema) => *operator.schema == *schema,
                None => names::search_order(self.view).any(|searched| *searched == *operator.schema),
            };
            if reachable {
                // What extensions list is found by name, and needs no naming.
                if !operator.listed {
                    self.record.functions.insert(Arc::clone(&operator.function));
                }
                mix.unknown |= !operator.immutable;
            }
        }
    }

    fn cast(&mut self, cast: &'t pb::TypeCast) -> Source {
        let mut mix = Mix::default();
        if let Some(arg) = &cast.arg {
            self.operand(arg, &mut mix);
        }
        let type_names = cast
            .type_name
            .as_ref()
            .map(|name| name.names.as_slice())
            .unwrap_or_default();
        let (schema, name) = qualified(type_names);
        for user in self.catalog.casts_to(name) {
            if let (true, Some(function)) = (
                schema.is_none_or(|schema| *schema == *user.target_schema),
                &user.function,
            ) {
                if !user.listed {
                    self.record.functions.insert(Arc::clone(function));
                    mix.unknown = true;
                }
            }
        }
        mix.source()
    }

    fn sublink(&mut self, link: &'t pb::SubLink) -> Source {
        use pb::SubLinkType as Kind;
        let mut mix = Mix::default();
        if let Some(test) = &link.testexpr {
            self.operand(test, &mut mix);
        }
        self.operator(&link.oper_name, &mut mix);
        let Some(query) = &link.subselect else {
            return Source::Unknown;
        };
        let cols = self.subquery(query);
        match Kind::try_from(link.sub_link_type) {
            // What EXISTS selects is never looked at; its conditions are recorded as uses already.
            Ok(Kind::ExistsSublink) => Source::Clean,
            // One bare column stays one: the value of the subquery is the value of its only row.
            Ok(Kind::ExprSublink) if cols.complete && cols.columns.len() == 1 => {
                match cols.columns.into_iter().next() {
                    Some(only) => only.source,
                    None => Source::Unknown,
                }
            }
            _ => {
                let answer = self.consume_all(&cols);
                self.consume(&answer, &mut mix);
                mix.source()
            }
        }
    }

    fn call(&mut self, call: &'t pb::FuncCall) -> Source {
        let mut mix = Mix::default();
        let (schema, name) = qualified(&call.funcname);
        for arg in &call.args {
            self.operand(arg, &mut mix);
        }
        self.use_sort(&call.agg_order, &mut mix);
        if let Some(filter) = &call.agg_filter {
            self.operand(filter, &mut mix);
        }
        if let Some(window) = &call.over {
            self.window(window, &mut mix);
        }
        self.function_identities(schema, name, count(call.args.len()), &mut mix);
        mix.source()
    }

    /// Records what a function name may mean. The answer of a function that may read the database is unknown.
    pub(super) fn function_identities(&mut self, schema: Option<&str>, name: &str, arguments: u32, mix: &mut Mix) {
        for function in names::functions(self.catalog, schema, name, arguments, self.view) {
            if !function.is_builtin() {
                if !function.listed {
                    self.record.functions.insert(function.identity());
                }
                mix.unknown |= function.volatility != Volatility::Immutable;
            }
        }
        mix.unknown |= DATA_FUNCTIONS.contains(&name);
    }

    pub(super) fn use_sort(&mut self, sort: &'t [pb::Node], mix: &mut Mix) {
        for by in sort {
            match &by.node {
                Some(N::SortBy(by)) => {
                    if let Some(node) = &by.node {
                        self.operand(node, mix);
                    }
                }
                _ => self.operand(by, mix),
            }
        }
    }

    pub(super) fn window(&mut self, window: &'t pb::WindowDef, mix: &mut Mix) {
        for node in &window.partition_clause {
            self.operand(node, mix);
        }
        self.use_sort(&window.order_clause, mix);
        for offset in [&window.start_offset, &window.end_offset].into_iter().flatten() {
            self.operand(offset, mix);
        }
    }

    fn indirection(&mut self, indirection: &'t pb::AIndirection) -> Source {
        // `(t).column` is `t.column`.
        if let (Some(item), [field]) = (self.row_argument(indirection), indirection.indirection.as_slice()) {
            if let Some(name) = text(field) {
                return match scope::of_item(&item, name) {
                    Found::Nothing => self.attribute(&item, name),
                    found => self.found(found, -1, name),
                };
            }
        }
        let mut mix = Mix::default();
        if let Some(arg) = &indirection.arg {
            self.operand(arg, &mut mix);
        }
        for step in &indirection.indirection {
            match &step.node {
                Some(N::AIndices(indices)) => {
                    for bound in [&indices.lidx, &indices.uidx].into_iter().flatten() {
                        self.operand(bound, &mut mix);
                    }
                }
                // A field may be a function of the row as well.
                Some(N::String(field)) => self.function_identities(None, &field.sval, 1, &mut mix),
                _ => mix.unknown = true,
            }
        }
        mix.source()
    }

    /// The item, where the argument of an indirection is an item's whole row.
    pub(super) fn row_argument(&self, indirection: &'t pb::AIndirection) -> Option<std::rc::Rc<Item>> {
        match &indirection.arg.as_ref()?.node {
            Some(N::ColumnRef(reference)) => match split(reference) {
                (names, false) => match names.as_slice() {
                    [name] => match scope::bare(&self.frames, name) {
                        Found::Row(item) if !item.scalar => Some(item),
                        _ => None,
                    },
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }
}

/// The names of a reference, and whether it ends in `*`.
pub(super) fn split(reference: &pb::ColumnRef) -> (Vec<&str>, bool) {
    let mut names = Vec::with_capacity(reference.fields.len());
    let mut star = false;
    for field in &reference.fields {
        match &field.node {
            Some(N::String(name)) => names.push(names::truncated(&name.sval)),
            Some(N::AStar(_)) => star = true,
            _ => {}
        }
    }
    (names, star)
}

/// Schema and name of a qualified name; of three parts the first, the database, is dropped.
pub(super) fn qualified(name: &[pb::Node]) -> (Option<&str>, &str) {
    match name {
        [name] => (None, text(name).unwrap_or_default()),
        [.., schema, name] => (text(schema), text(name).unwrap_or_default()),
        [] => (None, ""),
    }
}

pub(super) fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
