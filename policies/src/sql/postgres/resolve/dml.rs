//! INSERT, UPDATE, DELETE and MERGE, as statements and inside WITH.
//!
//! What a write reads is used: its source, its conditions and what it assigns. What it assigns *to* is not,
//! but anything other than a parameter or a constant is noted. RETURNING shows, like a target list.

use std::rc::Rc;
use std::sync::Arc;

use super::super::analysis::Source;
use super::super::catalog::Relation;
use super::super::filtered;
use super::super::literals::Assigned;
use super::super::names;
use super::super::parse::pb;
use super::expr::Mix;
use super::from::{alias_name, relation_columns, with_aliases};
use super::scope::{Cols, Frame, Item};
use super::target::{constant_of, is_plain};
use super::Binder;
use crate::api::access_policy::SqlCommand;
use crate::sql::facts::PartRelation;
use crate::sql::names::ColumnName;
use pb::node::Node as N;

/// The relation a write goes to.
struct Target {
    relation: Option<Arc<Relation>>,
    item: Rc<Item>,
}

impl<'t> Binder<'t> {
    pub(super) fn insert(&mut self, insert: &'t pb::InsertStmt) -> Cols {
        self.frames.push(Frame::default());
        self.with_clause(insert.with_clause.as_ref());
        let target = self.target(insert.relation.as_ref(), SqlCommand::Insert);
        let rows = insert.select_stmt.as_deref().map(|query| self.subquery(query));
        if let Some(rows) = &rows {
            self.consume_all(rows);
            self.insert_columns(&target, &insert.cols, rows);
        }
        self.show(&target);
        if let Some(conflict) = insert.on_conflict_clause.as_deref() {
            self.on_conflict(conflict, &target);
        }
        self.returning(insert.returning_clause.as_ref(), &target)
    }

    /// Notes which columns are set, and whether from something else than parameters and constants.
    fn insert_columns(&mut self, target: &Target, names: &'t [pb::Node], rows: &Cols) {
        let listed: Vec<Arc<str>> = if names.is_empty() {
            let all = target.item.cols.columns.iter().take(rows.columns.len());
            all.map(|column| Arc::clone(&column.name)).collect()
        } else {
            let name = |node: &pb::Node| match &node.node {
                Some(N::ResTarget(target)) => Some(names::truncated(&target.name).into()),
                _ => None,
            };
            names.iter().filter_map(name).collect()
        };
        for (at, name) in listed.iter().enumerate() {
            let column = rows.columns.get(at).filter(|_| rows.complete);
            let plain = column.is_some_and(|column| column.plain);
            let constants = column.map(|column| Assigned::Constants(column.constants.clone()));
            self.assigned(target, name, plain, constants.unwrap_or(Assigned::Anything));
        }
    }

    fn on_conflict(&mut self, conflict: &'t pb::OnConflictClause, target: &Target) {
        if let Some(infer) = conflict.infer.as_deref() {
            for node in &infer.index_elems {
                let Some(N::IndexElem(element)) = &node.node else {
                    continue;
                };
                self.use_all(element.expr.as_deref());
                // Whether a row conflicts tells whether a value exists.
                if !element.name.is_empty() {
                    if let Some(column) = self.target_column(target, names::truncated(&element.name)) {
                        self.record.columns.insert(column.clone());
                        self.record.uses.insert(column);
                    }
                }
            }
            self.use_all(infer.where_clause.as_deref());
        }
        let named = conflict
            .infer
            .as_deref()
            .is_some_and(|infer| infer.conname.is_empty() && !infer.index_elems.is_empty());
        if !named {
            self.any_conflict(target);
        }
        if conflict.action != pb::OnConflictAction::OnconflictUpdate as i32 {
            return;
        }
        self.write_part(SqlCommand::Update, target);
        // What was proposed for insertion came from the statement itself.
        let proposed = target.item.cols.columns.iter().map(|column| super::scope::Col {
            source: Source::Clean,
            ..column.clone()
        });
        let excluded = Cols {
            columns: proposed.collect(),
            complete: target.item.cols.complete,
        };
        let excluded = self.named_item("excluded", excluded, false);
        let before = self.proposed.replace(excluded.id);
        if let Some(frame) = self.frames.last_mut() {
            frame.items.push(excluded);
        }
        self.assignments(&conflict.target_list, target);
        self.use_all(conflict.where_clause.as_deref());
        self.proposed = before;
        if let Some(frame) = self.frames.last_mut() {
            frame.items.pop();
        }
    }

    /// ON CONFLICT without columns asks every unique index, or one by its name, which the snapshot does not hold: any
    /// column of the target may be what it tells about.
    fn any_conflict(&mut self, target: &Target) {
        match &target.relation {
            Some(relation) => {
                let columns = relation.columns.iter().map(|column| relation.column_name(column));
                self.record.conflicts.extend(columns);
            }
            None => self.record.uses_unknown = true,
        }
    }

    pub(super) fn update(&mut self, update: &'t pb::UpdateStmt) -> Cols {
        self.frames.push(Frame::default());
        self.with_clause(update.with_clause.as_ref());
        let target = self.target(update.relation.as_ref(), SqlCommand::Update);
        self.bind_from(&update.from_clause);
        self.show(&target);
        self.assignments(&update.target_list, &target);
        self.condition(update.where_clause.as_deref(), &target);
        self.returning(update.returning_clause.as_ref(), &target)
    }

    pub(super) fn delete(&mut self, delete: &'t pb::DeleteStmt) -> Cols {
        self.frames.push(Frame::default());
        self.with_clause(delete.with_clause.as_ref());
        let target = self.target(delete.relation.as_ref(), SqlCommand::Delete);
        self.bind_from(&delete.using_clause);
        self.show(&target);
        self.condition(delete.where_clause.as_deref(), &target);
        self.returning(delete.returning_clause.as_ref(), &target)
    }

    pub(super) fn merge(&mut self, merge: &'t pb::MergeStmt) -> Cols {
        self.frames.push(Frame::default());
        self.with_clause(merge.with_clause.as_ref());
        let target = self.target(merge.relation.as_ref(), SqlCommand::Merge);
        let source = match merge.source_relation.as_deref() {
            Some(node) => self.bind_item(node),
            None => Vec::new(),
        };
        let both: Vec<Rc<Item>> = source.iter().cloned().chain([Rc::clone(&target.item)]).collect();
        self.show_only(both.clone());
        self.use_all(merge.join_condition.as_deref());
        for node in &merge.merge_when_clauses {
            let Some(N::MergeWhenClause(when)) = &node.node else {
                continue;
            };
            let matched = pb::MergeMatchKind::try_from(when.match_kind);
            self.show_only(match matched {
                Ok(pb::MergeMatchKind::MergeWhenNotMatchedByTarget) => source.clone(),
                Ok(pb::MergeMatchKind::MergeWhenNotMatchedBySource) => vec![Rc::clone(&target.item)],
                _ => both.clone(),
            });
            self.use_all(when.condition.as_deref());
            let joined = matched == Ok(pb::MergeMatchKind::MergeWhenMatched);
            let join = merge.join_condition.as_deref().filter(|_| joined);
            self.merge_action(when, join, &target);
        }
        self.show_only(both);
        self.returning(merge.returning_clause.as_ref(), &target)
    }

    fn merge_action(&mut self, when: &'t pb::MergeWhenClause, join: Option<&'t pb::Node>, target: &Target) {
        let changes = |binder: &mut Self| {
            let conditions = [join, when.condition.as_deref()];
            let narrowed = conditions
                .into_iter()
                .flatten()
                .any(|node| binder.narrows(node, target));
            binder.record.unfiltered |= !narrowed;
        };
        match pb::CmdType::try_from(when.command_type) {
            Ok(pb::CmdType::CmdUpdate) => {
                self.write_part(SqlCommand::Update, target);
                self.assignments(&when.target_list, target);
                changes(self);
            }
            Ok(pb::CmdType::CmdDelete) => {
                self.write_part(SqlCommand::Delete, target);
                changes(self);
            }
            Ok(pb::CmdType::CmdInsert) => {
                self.write_part(SqlCommand::Insert, target);
                let mut columns = Vec::new();
                for value in &when.values {
                    let source = self.expr(value);
                    self.consume(&source, &mut Mix::default());
                    columns.push(super::scope::Col {
                        plain: is_plain(value),
                        constants: constant_of(value).into_iter().collect(),
                        ..super::scope::Col::new("", source)
                    });
                }
                self.insert_columns(target, &when.target_list, &Cols::known(columns));
            }
            Ok(pb::CmdType::CmdNothing) => {}
            _ => {
                self.unknown("a MERGE action of a kind that is not known here");
            }
        }
    }

    fn target(&mut self, var: Option<&'t pb::RangeVar>, command: SqlCommand) -> Target {
        let Some(var) = var else {
            self.record.write_unknown(command);
            let item = Rc::new(self.item(None, Cols::default()));
            return Target { relation: None, item };
        };
        match self.lookup(var) {
            Some(relation) => {
                self.record.write(self.catalog, command, &relation);
                let item = Rc::new(self.relation_item(&relation, var));
                Target {
                    relation: Some(relation),
                    item,
                }
            }
            None => {
                self.record.write_unknown(command);
                self.record
                    .problem(format!("relation \"{}\" is not known", names::truncated(&var.relname)));
                let cols = with_aliases(Cols::default(), var.alias.as_ref());
                let name = alias_name(var.alias.as_ref()).unwrap_or(names::truncated(&var.relname));
                let item = Rc::new(self.item(Some(name), cols));
                Target { relation: None, item }
            }
        }
    }

    fn write_part(&mut self, command: SqlCommand, target: &Target) {
        match &target.relation {
            Some(relation) => self.record.write(self.catalog, command, relation),
            None => self.record.write_unknown(command),
        }
    }

    /// Puts the target first in scope.
    fn show(&mut self, target: &Target) {
        if let Some(frame) = self.frames.last_mut() {
            frame.items.insert(0, Rc::clone(&target.item));
        }
    }

    fn show_only(&mut self, items: Vec<Rc<Item>>) {
        if let Some(frame) = self.frames.last_mut() {
            frame.items = items;
        }
    }

    /// The full name of a target's column; where aliases rename columns the target list uses the true names.
    fn target_column(&mut self, target: &Target, name: &str) -> Option<ColumnName> {
        let Some(relation) = &target.relation else {
            self.record.columns_unknown = true;
            return None;
        };
        match relation.column(name) {
            Some(column) => Some(relation.column_name(column)),
            None => {
                self.unknown(&format!("column \"{name}\" of the target is not found"));
                None
            }
        }
    }

    fn assigned(&mut self, target: &Target, name: &str, plain: bool, by: Assigned) {
        if let Some(column) = self.target_column(target, name) {
            self.record.columns.insert(column.clone());
            self.record.meet(column.clone(), by);
            if !plain {
                self.record.assigned.insert(column);
            }
        }
    }

    /// `SET column = value, …`.
    fn assignments(&mut self, list: &'t [pb::Node], target: &Target) {
        for node in list {
            let Some(N::ResTarget(set)) = &node.node else { continue };
            for step in &set.indirection {
                if let Some(N::AIndices(indices)) = &step.node {
                    self.use_all(indices.lidx.as_deref());
                    self.use_all(indices.uidx.as_deref());
                }
            }
            let (plain, by) = match set.val.as_deref() {
                Some(value) => self.assigned_value(value, names::truncated(&set.name)),
                None => (false, Assigned::Anything),
            };
            self.assigned(target, names::truncated(&set.name), plain, by);
        }
    }

    /// Uses an assigned value; true if it is a parameter, a constant or what the statement itself proposed. The second
    /// answer tells which constants the column gets.
    fn assigned_value(&mut self, value: &'t pb::Node, column: &str) -> (bool, Assigned) {
        match &value.node {
            // `(a, b) = …` names its source once per column; the first stands for all.
            Some(N::MultiAssignRef(multi)) => {
                let Some(source) = multi.source.as_deref() else {
                    return (false, Assigned::Anything);
                };
                match &source.node {
                    Some(N::RowExpr(row)) => {
                        let at = usize::try_from(multi.colno).ok().and_then(|at| at.checked_sub(1));
                        match at.and_then(|at| row.args.get(at)) {
                            Some(value) => self.assigned_value(value, column),
                            None => {
                                self.use_expr(source);
                                (false, Assigned::Anything)
                            }
                        }
                    }
                    _ if multi.colno == 1 => {
                        self.use_expr(source);
                        (false, Assigned::Anything)
                    }
                    _ => (false, Assigned::Anything),
                }
            }
            Some(N::ColumnRef(reference)) => {
                let source = self.column_ref(reference);
                self.consume(&source, &mut Mix::default());
                // `ssn = excluded.ssn`: the constants proposed for the column are known already.
                let proposed = self.refs.get(&reference.location);
                let same = proposed.is_some_and(|(item, name)| Some(*item) == self.proposed && **name == *column);
                let by = match same {
                    true => Assigned::Constants(Vec::new()),
                    false => Assigned::Anything,
                };
                (source == Source::Clean, by)
            }
            _ => {
                self.use_expr(value);
                match is_plain(value) {
                    true => (true, Assigned::Constants(constant_of(value).into_iter().collect())),
                    false => (false, Assigned::Anything),
                }
            }
        }
    }

    /// The WHERE of an UPDATE or DELETE.
    fn condition(&mut self, condition: Option<&'t pb::Node>, target: &Target) {
        self.use_all(condition);
        let narrowed = condition.is_some_and(|condition| self.narrows(condition, target));
        self.record.unfiltered |= !narrowed;
    }

    fn narrows(&self, condition: &pb::Node, target: &Target) -> bool {
        let not_null = |name: &str| {
            let column = target.relation.as_ref().and_then(|relation| relation.column(name));
            column.is_some_and(|column| column.not_null)
        };
        filtered::narrows(
            condition,
            &filtered::Target {
                refs: &self.refs,
                item: target.item.id,
                not_null: &not_null,
            },
        )
    }

    fn returning(&mut self, clause: Option<&'t pb::ReturningClause>, target: &Target) -> Cols {
        let Some(clause) = clause.filter(|clause| !clause.exprs.is_empty()) else {
            self.frames.pop();
            return Cols::known(Vec::new());
        };
        match &target.relation {
            Some(relation) => self.record.read(self.catalog, relation),
            None => self.record.part(SqlCommand::Select, PartRelation::Unknown),
        }
        let (mut old, mut new) = ("old", "new");
        for node in &clause.options {
            let Some(N::ReturningOption(option)) = &node.node else {
                continue;
            };
            match pb::ReturningOptionKind::try_from(option.option) {
                Ok(pb::ReturningOptionKind::ReturningOptionOld) => old = names::truncated(&option.value),
                Ok(pb::ReturningOptionKind::ReturningOptionNew) => new = names::truncated(&option.value),
                _ => {}
            }
        }
        for name in [old, new] {
            // Behind the others: an item the statement itself calls so is meant first.
            let version = Item {
                alias: Some(name.into()),
                qualified: None,
                by_column: false,
                ..(*target.item).clone()
            };
            if let Some(frame) = self.frames.last_mut() {
                frame.items.push(Rc::new(version));
            }
        }
        let cols = self.targets(&clause.exprs);
        self.frames.pop();
        cols
    }

    /// `COPY relation` out or in: columns by position, generated ones left out of the default list.
    pub(super) fn copy(&mut self, copy: &'t pb::CopyStmt) -> Cols {
        let command = if copy.is_from {
            SqlCommand::Insert
        } else {
            SqlCommand::Select
        };
        let Some(var) = copy.relation.as_ref() else {
            return Cols::default();
        };
        let Some(relation) = self.lookup(var) else {
            if copy.is_from {
                self.record.write_unknown(command);
            } else {
                self.record.read_unknown();
            }
            return Cols::default();
        };
        if copy.is_from {
            self.record.write(self.catalog, command, &relation);
        } else {
            self.record.read(self.catalog, &relation);
        }
        let all = relation_columns(&relation);
        let mut out = Cols::known(Vec::new());
        if copy.attlist.is_empty() {
            let kept = relation.columns.iter().zip(all).filter(|(column, _)| !column.generated);
            out.columns = kept.map(|(_, col)| col).collect();
        } else {
            for name in super::target::name_list(&copy.attlist) {
                match all.iter().find(|col| col.name == name) {
                    Some(col) => out.columns.push(col.clone()),
                    None => {
                        self.unknown(&format!("column \"{name}\" of the target is not found"));
                        out.complete = false;
                    }
                }
            }
        }
        for column in &out.columns {
            self.record.refer(self.catalog, &column.source);
        }
        if let Some(condition) = copy.where_clause.as_deref() {
            // COPY FROM … WHERE looks at the rows that come in.
            self.frames.push(Frame::default());
            let item = Rc::new(self.relation_item(&relation, var));
            self.show_only(vec![item]);
            self.expr(condition);
            self.frames.pop();
        }
        out
    }
}
