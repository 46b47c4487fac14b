//! What binding collects on its way: pairs of command and relation, columns, uses, functions, problems.
//!
//! Everything is a set, because a recursive query is bound more than once. A use is recorded where a value is
//! computed with; showing a value records nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::super::analysis::{Output, Source, Uses};
use super::super::catalog::{Catalog, Relation, RelationKind};
use super::super::lineage;
use super::super::literals::Assigned;
use super::{Bound, Resolution};
use crate::api::access_policy::SqlCommand;
use crate::engine::operation::Fact;
use crate::sql::facts::PartRelation;
use crate::sql::names::{ColumnName, RelationName};

#[derive(Debug, Default)]
pub(super) struct Record {
    parts: Vec<(SqlCommand, PartRelation)>,
    seen_parts: HashSet<(SqlCommand, PartRelation)>,
    reads: BTreeSet<RelationName>,
    pub reads_unknown: bool,
    writes: BTreeSet<RelationName>,
    pub writes_unknown: bool,
    pub columns: BTreeSet<ColumnName>,
    pub columns_unknown: bool,
    pub uses: BTreeSet<ColumnName>,
    pub uses_unknown: bool,
    pub assigned: BTreeSet<ColumnName>,
    pub conflicts: BTreeSet<ColumnName>,
    meets: Vec<(ColumnName, Assigned)>,
    pub functions: BTreeSet<Arc<str>>,
    pub relations: HashMap<i32, Resolution>,
    problems: BTreeSet<String>,
    pub unfiltered: bool,
}

impl Record {
    pub fn part(&mut self, command: SqlCommand, relation: PartRelation) {
        let part = (command, relation);
        if self.seen_parts.insert(part.clone()) {
            self.parts.push(part);
        }
    }

    pub fn problem(&mut self, text: String) {
        if self.problems.len() < 16 {
            self.problems.insert(text);
        }
    }

    pub fn read(&mut self, catalog: &Catalog, relation: &Relation) {
        let mut work = vec![relation.name.clone()];
        while let Some(name) = work.pop() {
            self.part(SqlCommand::Select, PartRelation::Known(name.clone()));
            if !self.reads.insert(name.clone()) {
                continue;
            }
            work.extend(body_relations(catalog, &name));
        }
    }

    pub fn read_unknown(&mut self) {
        self.part(SqlCommand::Select, PartRelation::Unknown);
        self.reads_unknown = true;
        self.columns_unknown = true;
    }

    /// A write. Through a view over one relation it is a write to that relation too.
    pub fn write(&mut self, catalog: &Catalog, command: SqlCommand, relation: &Relation) {
        let mut name = relation.name.clone();
        // Views over views; the bound is for a snapshot that contradicts itself.
        for _ in 0..64 {
            self.part(command, PartRelation::Known(name.clone()));
            self.writes.insert(name.clone());
            let behind = body_relations(catalog, &name);
            match <[RelationName; 1]>::try_from(behind) {
                Ok([only]) => name = only,
                Err(several) => {
                    for each in several {
                        if let Some(each) = catalog.relation_named(&each.schema, &each.name) {
                            self.read(catalog, each);
                        }
                    }
                    return;
                }
            }
        }
        self.writes_unknown = true;
    }

    pub fn write_unknown(&mut self, command: SqlCommand) {
        self.part(command, PartRelation::Unknown);
        self.writes_unknown = true;
        self.columns_unknown = true;
    }

    /// Columns of a value somebody refers to.
    pub fn refer(&mut self, catalog: &Catalog, source: &Source) {
        match source {
            Source::Column(column) => {
                self.columns.insert(column.clone());
            }
            Source::WholeRow(row) => self.columns.extend(row_columns(catalog, row)),
            Source::Clean | Source::Derived(_) | Source::Unknown => {}
        }
    }

    /// A column is assigned: from these constants, or from what cannot be told apart.
    pub fn meet(&mut self, column: ColumnName, by: Assigned) {
        if by != Assigned::Constants(Vec::new()) {
            self.meets.push((column, by));
        }
    }

    pub fn finish(self, catalog: &Catalog, output: Output) -> Bound {
        let mut columns = BTreeSet::new();
        for column in &self.columns {
            columns.extend(lineage::identities(catalog, column));
        }
        let mut parts = self.parts;
        if parts.is_empty() {
            parts.push((SqlCommand::Select, PartRelation::None));
        }
        Bound {
            parts,
            reads: fact(self.reads, self.reads_unknown),
            writes: fact(self.writes, self.writes_unknown),
            columns: fact(columns, self.columns_unknown),
            relations: self.relations,
            functions: self.functions.into_iter().collect(),
            output,
            uses: Uses {
                columns: self.uses.into_iter().collect(),
                assigned: self.assigned.into_iter().collect(),
                conflicts: self.conflicts.into_iter().collect(),
                unknown: self.uses_unknown,
            },
            meets: self.meets,
            filtered: !self.unfiltered,
            problems: self.problems.into_iter().collect(),
        }
    }

    pub fn reads(&self) -> impl Iterator<Item = &RelationName> {
        self.reads.iter()
    }
}

fn fact<T>(set: BTreeSet<T>, unknown: bool) -> Fact<Vec<T>> {
    if unknown {
        Fact::Unknown
    } else {
        Fact::Known(set.into_iter().collect())
    }
}

/// The relations a view's body names; none for anything else.
fn body_relations(catalog: &Catalog, name: &RelationName) -> Vec<RelationName> {
    let Some(relation) = catalog.relation_named(&name.schema, &name.name) else {
        return Vec::new();
    };
    // A materialized view holds its own copy, yet what it shows is what those relations held.
    if !matches!(relation.kind, RelationKind::View | RelationKind::MaterializedView) {
        return Vec::new();
    }
    match catalog.view_body(relation.oid) {
        Some(body) => body.relations.clone(),
        None => Vec::new(),
    }
}

pub(super) fn row_columns(catalog: &Catalog, row: &RelationName) -> Vec<ColumnName> {
    match catalog.relation_named(&row.schema, &row.name) {
        Some(relation) => relation.columns.iter().map(|each| relation.column_name(each)).collect(),
        None => Vec::new(),
    }
}
