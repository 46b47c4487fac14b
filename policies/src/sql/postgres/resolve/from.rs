//! FROM: relations, subqueries, functions, joins, and what each adds to the scope.
//!
//! Visibility follows the server. A subquery that is not LATERAL does not see its neighbours, a join's
//! condition sees its two sides only, and an aliased join hides them.

use std::rc::Rc;
use std::sync::Arc;

use super::super::analysis::Source;
use super::super::catalog::{Catalog, Column, Relation, RelationLookup};
use super::super::names;
use super::super::parse::pb;
use super::expr::Mix;
use super::scope::{Col, Cols, Item};
use super::target::{name_list, renamed, text};
use super::{Binder, Resolution};
use pb::node::Node as N;

impl<'t> Binder<'t> {
    /// Binds a FROM list into the innermost frame.
    pub(super) fn bind_from(&mut self, list: &'t [pb::Node]) {
        for node in list {
            let items = self.bind_item(node);
            if let Some(frame) = self.frames.last_mut() {
                frame.items.extend(items);
            }
        }
    }

    /// Binds one FROM item; what it adds to the scope is returned, not yet added.
    pub(super) fn bind_item(&mut self, node: &'t pb::Node) -> Vec<Rc<Item>> {
        if !self.enter() {
            return vec![self.open_item(None)];
        }
        let items = match &node.node {
            Some(N::RangeVar(var)) => vec![self.range_var(var)],
            Some(N::RangeSubselect(sub)) => vec![self.range_subselect(sub)],
            Some(N::RangeFunction(function)) => vec![self.range_function(function)],
            Some(N::RangeTableSample(sample)) => {
                self.use_all(&sample.args);
                self.use_all(sample.repeatable.as_deref());
                match sample.relation.as_deref() {
                    Some(relation) => self.bind_item(relation),
                    None => Vec::new(),
                }
            }
            Some(N::RangeTableFunc(table)) => vec![self.xml_table(table)],
            Some(N::JsonTable(table)) => vec![self.json_table(table)],
            Some(N::JoinExpr(join)) => self.join(join),
            _ => {
                self.unknown("a FROM item of a kind that is not known here");
                vec![self.open_item(None)]
            }
        };
        self.leave();
        items
    }

    pub(super) fn item(&mut self, alias: Option<&str>, cols: Cols) -> Item {
        self.next_item = self.next_item.saturating_add(1);
        Item {
            id: self.next_item,
            alias: alias.map(Arc::from),
            qualified: None,
            row: None,
            cols: Rc::new(cols),
            by_alias: alias.is_some(),
            by_column: true,
            scalar: false,
        }
    }

    fn open_item(&mut self, alias: Option<&str>) -> Rc<Item> {
        Rc::new(self.item(alias, Cols::default()))
    }

    fn range_var(&mut self, var: &'t pb::RangeVar) -> Rc<Item> {
        let name = names::truncated(&var.relname);
        if var.schemaname.is_empty() {
            if let Some(cols) = self.cte(name) {
                self.record.relations.insert(var.location, Resolution::Cte);
                let cols = with_aliases((*cols).clone(), var.alias.as_ref());
                let item = self.item(Some(alias_name(var.alias.as_ref()).unwrap_or(name)), cols);
                return Rc::new(item);
            }
        }
        match self.lookup(var) {
            Some(relation) => {
                self.record.read(self.catalog, &relation);
                Rc::new(self.relation_item(&relation, var))
            }
            None => {
                self.record.read_unknown();
                self.record.problem(format!("relation \"{name}\" is not known"));
                let cols = with_aliases(Cols::default(), var.alias.as_ref());
                Rc::new(self.item(Some(alias_name(var.alias.as_ref()).unwrap_or(name)), cols))
            }
        }
    }

    /// Looks a relation name up and notes what it means.
    pub(super) fn lookup(&mut self, var: &pb::RangeVar) -> Option<Arc<Relation>> {
        let schema = (!var.schemaname.is_empty()).then_some(var.schemaname.as_str());
        let here = var.catalogname.is_empty() || *var.catalogname == **self.view.database();
        let found = match names::relation(self.catalog, schema, &var.relname, self.view) {
            RelationLookup::Known(relation) if here => Some(relation),
            _ => None,
        };
        let resolution = match &found {
            Some(relation) => Resolution::Base(relation.name.clone()),
            None => Resolution::Unknown,
        };
        self.record.relations.insert(var.location, resolution);
        found
    }

    /// The scope entry of a relation.
    pub(super) fn relation_item(&mut self, relation: &Relation, var: &pb::RangeVar) -> Item {
        let columns = relation_columns(relation);
        let cols = with_aliases(Cols::known(columns), var.alias.as_ref());
        let alias = alias_name(var.alias.as_ref());
        let item = self.item(Some(alias.unwrap_or(&relation.name.name)), cols);
        Item {
            qualified: alias.is_none().then(|| relation.name.clone()),
            row: Some(relation.name.clone()),
            ..item
        }
    }

    fn range_subselect(&mut self, sub: &'t pb::RangeSubselect) -> Rc<Item> {
        let hide = |binder: &mut Binder<'t>, hidden: bool| {
            if let Some(frame) = binder.frames.last_mut() {
                frame.hidden = hidden;
            }
        };
        let before = self.frames.last().is_some_and(|frame| frame.hidden);
        hide(self, before || !sub.lateral);
        let cols = match sub.subquery.as_deref() {
            Some(query) => self.subquery(query),
            None => Cols::default(),
        };
        hide(self, before);
        let cols = with_aliases(cols, sub.alias.as_ref());
        Rc::new(self.item(alias_name(sub.alias.as_ref()), cols))
    }

    fn range_function(&mut self, range: &'t pb::RangeFunction) -> Rc<Item> {
        let alias = alias_name(range.alias.as_ref());
        let mut all = Cols::known(Vec::new());
        let single = range.functions.len() == 1;
        let mut scalar = false;
        for entry in &range.functions {
            let Some(N::List(pair)) = &entry.node else {
                all.complete = false;
                continue;
            };
            let Some(function) = pair.items.first() else { continue };
            let own = match pair.items.get(1).and_then(|list| list.node.as_ref()) {
                Some(N::List(definitions)) => definitions.items.as_slice(),
                _ => &[],
            };
            let definitions = if own.is_empty() {
                range.coldeflist.as_slice()
            } else {
                own
            };
            let (cols, is_scalar) = self.function_columns(function, definitions, if single { alias } else { None });
            scalar = is_scalar && single && !range.ordinality;
            all.complete &= cols.complete;
            all.columns.extend(cols.columns);
        }
        if range.ordinality {
            all.columns.push(Col::new("ordinality", Source::Clean));
        }
        let cols = with_aliases(all, range.alias.as_ref());
        let name = match (alias, range.functions.first()) {
            (Some(alias), _) => Some(alias.to_owned()),
            (None, Some(first)) => call_name(first).map(str::to_owned),
            (None, None) => None,
        };
        let item = self.item(name.as_deref(), cols);
        Rc::new(Item { scalar, ..item })
    }

    fn xml_table(&mut self, table: &'t pb::RangeTableFunc) -> Rc<Item> {
        let mut mix = Mix::default();
        for node in [&table.docexpr, &table.rowexpr].into_iter().flatten() {
            self.operand(node, &mut mix);
        }
        for namespace in &table.namespaces {
            self.operand(namespace, &mut mix);
        }
        let mut names = Vec::new();
        for column in &table.columns {
            let Some(N::RangeTableFuncCol(column)) = &column.node else {
                continue;
            };
            for node in [&column.colexpr, &column.coldefexpr].into_iter().flatten() {
                self.operand(node, &mut mix);
            }
            names.push(column.colname.as_str());
        }
        let source = mix.source();
        let columns = names.iter().map(|name| Col::new(name, source.clone())).collect();
        let cols = with_aliases(Cols::known(columns), table.alias.as_ref());
        Rc::new(self.item(alias_name(table.alias.as_ref()).or(Some("xmltable")), cols))
    }

    fn json_table(&mut self, table: &'t pb::JsonTable) -> Rc<Item> {
        let mut mix = Mix::default();
        for node in table
            .context_item
            .iter()
            .flat_map(|value| super::operands::value(value))
        {
            self.operand(node, &mut mix);
        }
        for node in &table.passing {
            self.operand(node, &mut mix);
        }
        let mut names = Vec::new();
        let mut work: Vec<&pb::Node> = table.columns.iter().rev().collect();
        while let Some(node) = work.pop() {
            let Some(N::JsonTableColumn(column)) = &node.node else {
                continue;
            };
            if column.coltype == pb::JsonTableColumnType::JtcNested as i32 {
                work.extend(column.columns.iter().rev());
            } else {
                names.push(column.name.as_str());
            }
        }
        let source = mix.source();
        let columns = names.iter().map(|name| Col::new(name, source.clone())).collect();
        let cols = with_aliases(Cols::known(columns), table.alias.as_ref());
        Rc::new(self.item(alias_name(table.alias.as_ref()).or(Some("json_table")), cols))
    }

    fn join(&mut self, join: &'t pb::JoinExpr) -> Vec<Rc<Item>> {
        let left = match join.larg.as_deref() {
            Some(node) => self.bind_item(node),
            None => Vec::new(),
        };
        // The right side may be LATERAL over the left one.
        let kept = self.frames.last().map_or(0, |frame| frame.items.len());
        if let Some(frame) = self.frames.last_mut() {
            frame.items.extend(left.iter().cloned());
        }
        let right = match join.rarg.as_deref() {
            Some(node) => self.bind_item(node),
            None => Vec::new(),
        };
        if let Some(frame) = self.frames.last_mut() {
            frame.items.truncate(kept);
        }
        let (cols, merged) = self.joined(join, &left, &right);
        let mut sides: Vec<Rc<Item>> = left.into_iter().chain(right).collect();
        if let Some(condition) = join.quals.as_deref() {
            let outside = self
                .frames
                .last_mut()
                .map(|frame| std::mem::replace(&mut frame.items, sides.clone()));
            self.use_expr(condition);
            if let (Some(frame), Some(outside)) = (self.frames.last_mut(), outside) {
                frame.items = outside;
            }
        }
        let cols = with_aliases(cols, join.alias.as_ref());
        let whole = Rc::new(self.item(alias_name(join.alias.as_ref()), cols));
        if join.alias.is_some() {
            return vec![whole];
        }
        for side in &mut sides {
            *side = Rc::new(Item {
                by_column: false,
                ..(**side).clone()
            });
        }
        if let Some(alias) = &join.join_using_alias {
            let item = self.item(Some(&alias.aliasname), merged);
            sides.push(Rc::new(Item {
                by_column: false,
                ..item
            }));
        }
        sides.push(whole);
        sides
    }

    /// The columns of a join: merged ones first, then the rest of both sides. Merged columns are compared,
    /// which is a use. Also returned: the merged columns alone.
    fn joined(&mut self, join: &'t pb::JoinExpr, left: &[Rc<Item>], right: &[Rc<Item>]) -> (Cols, Cols) {
        let (left, right) = (side_columns(left), side_columns(right));
        let complete = left.complete && right.complete;
        let shared: Vec<Arc<str>> = if join.is_natural {
            if !complete {
                self.unknown("NATURAL JOIN over a relation that is not known");
            }
            let has = |name: &Arc<str>| right.columns.iter().any(|column| column.name == *name);
            left.columns
                .iter()
                .map(|column| Arc::clone(&column.name))
                .filter(has)
                .collect()
        } else {
            name_list(&join.using_clause)
        };
        let mut merged = Vec::new();
        for name in &shared {
            let find = |cols: &Cols| {
                cols.columns
                    .iter()
                    .find(|column| column.name == *name)
                    .map(|c| c.source.clone())
            };
            let (from_left, from_right) = (find(&left), find(&right));
            let mut mix = Mix::default();
            for source in [&from_left, &from_right] {
                match source {
                    Some(source) => {
                        self.record.refer(self.catalog, source);
                        self.consume(source, &mut mix);
                    }
                    None => {
                        self.unknown(&format!("join column \"{name}\" is not found"));
                        mix.unknown();
                    }
                }
            }
            let source = match pb::JoinType::try_from(join.jointype) {
                Ok(pb::JoinType::JoinInner | pb::JoinType::JoinLeft) => from_left.unwrap_or(Source::Unknown),
                Ok(pb::JoinType::JoinRight) => from_right.unwrap_or(Source::Unknown),
                _ => mix.source(),
            };
            merged.push(Col::new(name, source));
        }
        let rest = left.columns.into_iter().chain(right.columns);
        let rest = rest.filter(|column| !shared.contains(&column.name));
        let merged_cols = Cols::known(merged.clone());
        let columns = merged.into_iter().chain(rest).collect();
        (Cols { columns, complete }, merged_cols)
    }
}

/// All columns `*` would expand a side to.
fn side_columns(items: &[Rc<Item>]) -> Cols {
    let mut out = Cols::known(Vec::new());
    for item in items.iter().filter(|item| item.by_column) {
        out.complete &= item.cols.complete;
        out.columns.extend(item.cols.columns.iter().cloned());
    }
    out
}

/// The columns of a relation, each its own source.
pub(super) fn relation_columns(relation: &Relation) -> Vec<Col> {
    let column = |column: &Column| Col::new(&column.name, Source::Column(relation.column_name(column)));
    relation.columns.iter().map(column).collect()
}

pub(super) fn alias_name(alias: Option<&pb::Alias>) -> Option<&str> {
    alias
        .map(|alias| names::truncated(&alias.aliasname))
        .filter(|name| !name.is_empty())
}

pub(super) fn with_aliases(cols: Cols, alias: Option<&pb::Alias>) -> Cols {
    match alias {
        Some(alias) if !alias.colnames.is_empty() => renamed(cols, &alias.colnames),
        _ => cols,
    }
}

/// The name a function in FROM goes by without an alias: that of its first function.
fn call_name(entry: &pb::Node) -> Option<&str> {
    let Some(N::List(pair)) = &entry.node else { return None };
    match &pair.items.first()?.node {
        Some(N::FuncCall(call)) => call.funcname.last().and_then(text),
        Some(N::SqlvalueFunction(_)) | None => None,
        Some(_) => None,
    }
}

/// The relation whose row type a cast names.
pub(super) fn cast_relation(
    catalog: &Catalog,
    node: &pb::Node,
    view: &dyn super::super::analysis::SessionView,
) -> Option<Arc<Relation>> {
    let Some(N::TypeCast(cast)) = &node.node else {
        return None;
    };
    let (schema, name) = super::expr::qualified(&cast.type_name.as_ref()?.names);
    match names::relation(catalog, schema, name, view) {
        RelationLookup::Known(relation) => Some(relation),
        RelationLookup::Unknown => None,
    }
}
