//! SELECT, VALUES, set operations and common table expressions.
//!
//! Showing a bare column is no use of it; DISTINCT, set operations that compare rows, grouping, ordering and
//! every condition are.

use std::rc::Rc;

use super::super::analysis::Source;
use super::super::names;
use super::super::parse::pb;
use super::expr::{split, Mix};
use super::scope::{self, Col, Cols, Cte, CteState, Found, Frame, Item};
use super::target::{constant_of, is_plain, renamed};
use super::{Binder, Resolution};
use pb::node::Node as N;

/// Rounds after which a recursive query's columns are taken as unknown.
const ROUNDS: usize = 64;

impl<'t> Binder<'t> {
    /// A query inside another, or the statement of a common table expression.
    pub(super) fn subquery(&mut self, node: &'t pb::Node) -> Cols {
        if !self.enter() {
            return Cols::default();
        }
        let cols = match &node.node {
            Some(N::SelectStmt(select)) => self.select(select),
            Some(N::InsertStmt(insert)) => self.insert(insert),
            Some(N::UpdateStmt(update)) => self.update(update),
            Some(N::DeleteStmt(delete)) => self.delete(delete),
            Some(N::MergeStmt(merge)) => self.merge(merge),
            _ => {
                self.unknown("a query of a kind that is not known here");
                Cols::default()
            }
        };
        self.leave();
        cols
    }

    pub(super) fn select(&mut self, select: &'t pb::SelectStmt) -> Cols {
        self.frames.push(Frame::default());
        self.with_clause(select.with_clause.as_ref());
        let operation = pb::SetOperation::try_from(select.op);
        let cols = match operation {
            Ok(pb::SetOperation::SetopNone | pb::SetOperation::Undefined) if !select.values_lists.is_empty() => {
                let cols = self.values(&select.values_lists);
                self.tail(select, &cols, false);
                cols
            }
            Ok(pb::SetOperation::SetopNone | pb::SetOperation::Undefined) => {
                let cols = self.plain_select(select);
                self.tail(select, &cols, true);
                cols
            }
            _ => {
                let cols = self.set_operation(select);
                self.tail(select, &cols, false);
                cols
            }
        };
        if let Some(into) = &select.into_clause {
            // The rows go into a new table instead of the answer.
            if let Some(rel) = &into.rel {
                self.record.relations.insert(rel.location, Resolution::New);
            }
            self.consume_all(&cols);
        }
        self.frames.pop();
        cols
    }

    fn plain_select(&mut self, select: &'t pb::SelectStmt) -> Cols {
        self.bind_from(&select.from_clause);
        let cols = self.targets(&select.target_list);
        self.use_all(select.where_clause.as_deref());
        for node in &select.group_clause {
            self.group_by(node, &cols);
        }
        self.use_all(select.having_clause.as_deref());
        for node in &select.window_clause {
            if let Some(N::WindowDef(window)) = &node.node {
                self.window(window, &mut Mix::default());
            }
        }
        match select.distinct_clause.as_slice() {
            [pb::Node { node: None }] => {
                self.consume_all(&cols);
            }
            list => {
                for node in list {
                    self.by_output(node, &cols, true);
                }
            }
        }
        cols
    }

    /// ORDER BY, LIMIT and locking, which follow a query of any form.
    fn tail(&mut self, select: &'t pb::SelectStmt, cols: &Cols, inputs: bool) {
        for node in &select.sort_clause {
            if let Some(N::SortBy(by)) = &node.node {
                if let Some(node) = by.node.as_deref() {
                    self.by_output(node, cols, inputs);
                }
            }
        }
        self.use_all(select.limit_count.as_deref());
        self.use_all(select.limit_offset.as_deref());
        for node in &select.locking_clause {
            let Some(N::LockingClause(lock)) = &node.node else {
                continue;
            };
            for relation in &lock.locked_rels {
                if let Some(N::RangeVar(var)) = &relation.node {
                    self.record.relations.insert(var.location, Resolution::Alias);
                }
            }
        }
    }

    /// GROUP BY: an input column first, then an output name or position.
    fn group_by(&mut self, node: &'t pb::Node, cols: &Cols) {
        if let Some(N::GroupingSet(set)) = &node.node {
            for each in &set.content {
                self.group_by(each, cols);
            }
            return;
        }
        if let Some(name) = bare_name(node) {
            if let Some(frame) = self.frames.last() {
                if !matches!(scope::in_frame(frame, name), Found::Nothing) {
                    return self.use_expr(node);
                }
            }
        }
        self.by_output(node, cols, true);
    }

    /// ORDER BY and DISTINCT ON: an output name or position, else an expression over the inputs.
    fn by_output(&mut self, node: &'t pb::Node, cols: &Cols, inputs: bool) {
        let position = match &node.node {
            Some(N::AConst(pb::AConst {
                val: Some(pb::a_const::Val::Ival(number)),
                ..
            })) => Some(number.ival),
            _ => None,
        };
        if let Some(position) = position {
            let index = usize::try_from(position)
                .ok()
                .and_then(|position| position.checked_sub(1));
            match index.and_then(|index| cols.columns.get(index)) {
                Some(column) if cols.complete => {
                    self.consume(&column.source, &mut Mix::default());
                }
                _ => {
                    self.unknown("an output position that is not known");
                }
            }
            return;
        }
        if let Some(name) = bare_name(node) {
            let mut hit = false;
            for column in cols.columns.iter().filter(|column| &*column.name == name) {
                hit = true;
                self.consume(&column.source, &mut Mix::default());
            }
            if hit {
                return;
            }
        }
        if inputs || cols.complete {
            self.use_expr(node);
        } else {
            self.unknown("an output name that is not known");
        }
    }

    fn values(&mut self, lists: &'t [pb::Node]) -> Cols {
        let mut merged: Option<Cols> = None;
        for row in lists {
            let Some(N::List(row)) = &row.node else { continue };
            let mut columns = Vec::with_capacity(row.items.len());
            for (at, value) in row.items.iter().enumerate() {
                let name = format!("column{}", at.saturating_add(1));
                columns.push(Col {
                    source: self.expr(value),
                    plain: is_plain(value),
                    constants: constant_of(value).into_iter().collect(),
                    name: name.into(),
                });
            }
            let row = Cols::known(columns);
            merged = Some(match merged {
                Some(rows) => stacked(rows, &row),
                None => row,
            });
        }
        merged.unwrap_or_default()
    }

    fn set_operation(&mut self, select: &'t pb::SelectStmt) -> Cols {
        let mut side = |side: &'t Option<Box<pb::SelectStmt>>| match side.as_deref() {
            Some(select) if self.enter() => {
                let cols = self.select(select);
                self.leave();
                cols
            }
            _ => Cols::default(),
        };
        let (left, right) = (side(&select.larg), side(&select.rarg));
        if !is_union_all(select) {
            self.consume_all(&left);
            self.consume_all(&right);
        }
        stacked(left, &right)
    }

    /// Enters the common table expressions of a WITH clause into the innermost frame and binds them.
    pub(super) fn with_clause(&mut self, with: Option<&'t pb::WithClause>) {
        let Some(with) = with else { return };
        let expressions = with.ctes.iter().filter_map(|node| match &node.node {
            Some(N::CommonTableExpr(cte)) => Some(cte.as_ref()),
            _ => None,
        });
        let level = self.frames.len().saturating_sub(1);
        if with.recursive {
            // All of them see each other, also the later ones.
            if let Some(frame) = self.frames.last_mut() {
                frame.ctes.extend(expressions.map(|node| Cte {
                    node,
                    state: CteState::Unbound,
                }));
            }
            let many = self.frames.last().map_or(0, |frame| frame.ctes.len());
            for index in 0..many {
                self.bind_cte(level, index);
            }
            return;
        }
        for node in expressions {
            let cols = Rc::new(self.cte_columns(node, None));
            if let Some(frame) = self.frames.last_mut() {
                frame.ctes.push(Cte {
                    node,
                    state: CteState::Bound(cols),
                });
            }
        }
    }

    /// The columns of a common table expression by name, the innermost first.
    pub(super) fn cte(&mut self, name: &str) -> Option<Rc<Cols>> {
        let (level, index) = self.frames.iter().enumerate().rev().find_map(|(level, frame)| {
            let same = |cte: &Cte<'_>| names::truncated(&cte.node.ctename) == name;
            frame.ctes.iter().position(same).map(|index| (level, index))
        })?;
        Some(self.bind_cte(level, index))
    }

    fn bind_cte(&mut self, level: usize, index: usize) -> Rc<Cols> {
        let Some(cte) = self.frames.get(level).and_then(|frame| frame.ctes.get(index)) else {
            return Rc::default();
        };
        let node = cte.node;
        match &cte.state {
            CteState::Bound(cols) | CteState::Binding(Some(cols)) => return Rc::clone(cols),
            CteState::Binding(None) => {
                self.unknown("a recursive query that refers to itself too early");
                return Rc::default();
            }
            CteState::Unbound => {}
        }
        // It is bound where it was written, not where it is referred to first.
        let inner = self.frames.split_off(level.saturating_add(1));
        let items = match self.frames.last_mut() {
            Some(frame) => std::mem::take(&mut frame.items),
            None => Vec::new(),
        };
        self.set_cte(level, index, CteState::Binding(None));
        let cols = Rc::new(self.cte_columns(node, Some((level, index))));
        self.set_cte(level, index, CteState::Bound(Rc::clone(&cols)));
        if let Some(frame) = self.frames.last_mut() {
            frame.items = items;
        }
        self.frames.extend(inner);
        cols
    }

    fn set_cte(&mut self, level: usize, index: usize, state: CteState) {
        if let Some(cte) = self.frames.get_mut(level).and_then(|frame| frame.ctes.get_mut(index)) {
            cte.state = state;
        }
    }

    fn cte_columns(&mut self, cte: &'t pb::CommonTableExpr, place: Option<(usize, usize)>) -> Cols {
        let Some(query) = cte.ctequery.as_deref() else {
            return Cols::default();
        };
        let cols = match (place, recursive_union(query)) {
            (Some(place), Some(select)) => self.recursive_columns(cte, select, place),
            _ => renamed(self.subquery(query), &cte.aliascolnames),
        };
        self.search_and_cycle(cte, cols)
    }

    /// `base UNION [ALL] step`, where the step may refer to the whole: bound until its columns stand still.
    fn recursive_columns(
        &mut self,
        cte: &'t pb::CommonTableExpr,
        select: &'t pb::SelectStmt,
        (level, index): (usize, usize),
    ) -> Cols {
        let mut known: Option<Cols> = None;
        for _ in 0..ROUNDS {
            self.frames.push(Frame::default());
            self.with_clause(select.with_clause.as_ref());
            let left = match (&known, select.larg.as_deref()) {
                (Some(known), _) => known.clone(),
                (None, Some(left)) => renamed(self.select(left), &cte.aliascolnames),
                (None, None) => Cols::default(),
            };
            let seen = self.search_and_cycle(cte, left.clone());
            self.set_cte(level, index, CteState::Binding(Some(Rc::new(seen))));
            let right = match select.rarg.as_deref() {
                Some(right) => self.select(right),
                None => Cols::default(),
            };
            let both = stacked(left.clone(), &right);
            if !is_union_all(select) {
                self.consume_all(&left);
                self.consume_all(&right);
            }
            self.tail(select, &both, false);
            self.frames.pop();
            if known.as_ref() == Some(&both) {
                return both;
            }
            known = Some(both);
        }
        self.unknown("a recursive query whose columns do not settle");
        Cols::default()
    }

    fn search_and_cycle(&mut self, cte: &'t pb::CommonTableExpr, mut cols: Cols) -> Cols {
        if cte.search_clause.is_none() && cte.cycle_clause.is_none() {
            return cols;
        }
        // Both collect the listed columns into arrays; which ones is not worth telling apart.
        let source = self.consume_all(&cols);
        if let Some(search) = &cte.search_clause {
            cols.columns.push(Col::new(&search.search_seq_column, source.clone()));
        }
        if let Some(cycle) = &cte.cycle_clause {
            self.use_all(cycle.cycle_mark_value.as_deref());
            self.use_all(cycle.cycle_mark_default.as_deref());
            cols.columns.push(Col::new(&cycle.cycle_mark_column, Source::Clean));
            cols.columns.push(Col::new(&cycle.cycle_path_column, source));
        }
        cols
    }

    /// An item that shows some columns under a name, for RETURNING, ON CONFLICT and MERGE.
    pub(super) fn named_item(&mut self, name: &str, cols: Cols, by_column: bool) -> Rc<Item> {
        let item = self.item(Some(name), cols);
        Rc::new(Item { by_column, ..item })
    }
}

fn is_union_all(select: &pb::SelectStmt) -> bool {
    select.op == pb::SetOperation::SetopUnion as i32 && select.all
}

fn recursive_union(query: &pb::Node) -> Option<&pb::SelectStmt> {
    match &query.node {
        Some(N::SelectStmt(select)) if select.op == pb::SetOperation::SetopUnion as i32 => Some(select),
        _ => None,
    }
}

/// Rows of two queries in one column each: what comes from either side.
fn stacked(left: Cols, right: &Cols) -> Cols {
    if !left.complete || !right.complete || left.columns.len() != right.columns.len() {
        let unknown = |column: &Col| Col::new(&column.name, Source::Unknown);
        return Cols {
            columns: left.columns.iter().map(unknown).collect(),
            complete: false,
        };
    }
    // Thousands of rows may follow each other: what is known of the first is added to, not copied.
    let columns = left.columns.into_iter().zip(&right.columns).map(|(mut one, other)| {
        one.constants.extend_from_slice(&other.constants);
        Col {
            source: either(&one.source, &other.source),
            plain: one.plain && other.plain,
            ..one
        }
    });
    Cols::known(columns.collect())
}

fn either(one: &Source, other: &Source) -> Source {
    match (one, other) {
        (Source::Unknown, _) | (_, Source::Unknown) => Source::Unknown,
        (one, other) if one == other => one.clone(),
        (Source::Clean, shown) | (shown, Source::Clean) => shown.clone(),
        // Rows of different relations cannot be taken apart by attribute any more.
        (Source::WholeRow(_), _) | (_, Source::WholeRow(_)) => Source::Unknown,
        (one, other) => {
            let mut columns: Vec<_> = [one, other]
                .into_iter()
                .flat_map(|source| match source {
                    Source::Column(column) => std::slice::from_ref(column),
                    Source::Derived(columns) => columns.as_slice(),
                    _ => &[],
                })
                .cloned()
                .collect();
            columns.sort();
            columns.dedup();
            Source::Derived(columns)
        }
    }
}

fn bare_name(node: &pb::Node) -> Option<&str> {
    match &node.node {
        Some(N::ColumnRef(reference)) => match (split(reference), reference.fields.len()) {
            ((names, false), 1) => names.into_iter().next(),
            _ => None,
        },
        _ => None,
    }
}
