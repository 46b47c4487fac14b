//! Which columns stand behind a column: those a view shows, and those of inheritance and partition relatives.
//!
//! A mask on any of them is a mask on the column itself. A child carries its parents' masks because it holds
//! their rows, and a parent carries its children's because reading it reads them.

use std::collections::HashSet;
use std::sync::Arc;

use super::analysis::Source;
use super::catalog::{Catalog, Oid, Relation};
use crate::engine::decision::{MaskRule, MaskSet};
use crate::sql::names::ColumnName;

/// The mask that holds for a column.
#[derive(Debug, Clone, PartialEq)]
pub struct Masked<'m> {
    /// The mask.
    pub rule: &'m MaskRule,
    /// The column the policy names.
    pub column: ColumnName,
    /// The value is computed from that column, so no part of it may stay.
    pub whole: bool,
}

/// What masks say about a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict<'m> {
    /// No mask holds.
    Clean,
    /// This one does.
    Masked(Masked<'m>),
    /// The column comes from a view whose lineage cannot be told.
    Unknown,
}

/// One column behind another.
struct Behind {
    column: ColumnName,
    derived: bool,
}

/// Every column behind a column, itself first: through views, up to inheritance parents and, if asked, down to
/// children. The flag says whether something could not be told.
fn behind(catalog: &Catalog, column: &ColumnName, children: bool) -> (Vec<Behind>, bool) {
    let mut found: Vec<Behind> = Vec::new();
    let mut seen: HashSet<(ColumnName, bool)> = HashSet::new();
    let mut work = vec![(column.clone(), false)];
    let mut unknown = false;
    while let Some((column, derived)) = work.pop() {
        if !seen.insert((column.clone(), derived)) {
            continue;
        }
        if let Some(relation) = catalog.relation_named(&column.relation.schema, &column.relation.name) {
            relatives(catalog, relation, &column, children, |next| work.push((next, derived)));
            unknown |= through_view(catalog, relation, &column, derived, &mut work);
        }
        found.push(Behind { column, derived });
    }
    (found, unknown)
}

fn relatives(
    catalog: &Catalog,
    relation: &Relation,
    column: &ColumnName,
    children: bool,
    mut push: impl FnMut(ColumnName),
) {
    let down: &[Oid] = if children { &relation.children } else { &[] };
    for oid in relation.parents.iter().chain(down) {
        let Some(relative) = catalog.relation(*oid) else {
            continue;
        };
        if let Some(same) = relative.column(&column.column) {
            push(relative.column_name(same));
        }
    }
}

/// Pushes what a view's column shows; true if that cannot be told.
fn through_view(
    catalog: &Catalog,
    relation: &Relation,
    column: &ColumnName,
    derived: bool,
    work: &mut Vec<(ColumnName, bool)>,
) -> bool {
    let Some(body) = catalog.view_body(relation.oid) else {
        return false;
    };
    let position = relation.columns.iter().position(|own| own.name == column.column);
    match position.and_then(|position| body.columns.get(position)) {
        Some(Source::Clean) => {}
        Some(Source::Column(base)) => work.push((base.clone(), derived)),
        Some(Source::Derived(bases)) => work.extend(bases.iter().map(|base| (base.clone(), true))),
        Some(Source::WholeRow(row)) => match catalog.relation_named(&row.schema, &row.name) {
            Some(row) => work.extend(row.columns.iter().map(|each| (row.column_name(each), true))),
            None => return true,
        },
        Some(Source::Unknown) | None => return true,
    }
    false
}

/// The columns a rule may name when it means this one: itself, what a view shows through it, and its
/// inheritance parents.
pub fn identities(catalog: &Catalog, column: &ColumnName) -> Vec<ColumnName> {
    let (found, _) = behind(catalog, column, false);
    found.into_iter().map(|behind| behind.column).collect()
}

/// The mask that holds for a column, the strongest of all that fit it or a column behind it.
pub fn mask_of<'m>(masks: &'m MaskSet, catalog: &Catalog, column: &ColumnName) -> Verdict<'m> {
    if masks.columns.is_empty() {
        return Verdict::Clean;
    }
    let (found, unknown) = behind(catalog, column, true);
    let mut best: Option<(usize, Masked<'m>)> = None;
    for behind in found {
        let name = &behind.column;
        let hit = masks.columns.iter().enumerate().find(|(_, rule)| {
            rule.pattern
                .matches(&name.relation.schema, &name.relation.name, &name.column)
        });
        let Some((strength, rule)) = hit else { continue };
        let whole = behind.derived;
        best = Some(match best {
            Some((known, mut kept)) if known <= strength => {
                kept.whole |= whole;
                (known, kept)
            }
            other => {
                let whole = whole || other.is_some_and(|(_, kept)| kept.whole);
                let column = behind.column;
                (strength, Masked { rule, column, whole })
            }
        });
    }
    match best {
        Some((_, masked)) => Verdict::Masked(masked),
        None if unknown => Verdict::Unknown,
        None => Verdict::Clean,
    }
}

/// Whether a column never holds NULL, seen through views that show it bare.
pub fn not_null(catalog: &Catalog, column: &ColumnName) -> bool {
    let mut current = column.clone();
    for _ in 0..32 {
        let Some(relation) = catalog.relation_named(&current.relation.schema, &current.relation.name) else {
            return false;
        };
        let Some(position) = relation.columns.iter().position(|own| own.name == current.column) else {
            return false;
        };
        let body: Option<&Arc<_>> = catalog.view_body(relation.oid);
        match body.and_then(|body| body.columns.get(position)) {
            Some(Source::Column(base)) => current = base.clone(),
            Some(_) => return false,
            None => return relation.columns.get(position).is_some_and(|own| own.not_null),
        }
    }
    false
}
