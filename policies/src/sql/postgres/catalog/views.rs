//! Binds the body of every view once per snapshot, so that a statement over a view only looks it up.
//!
//! Bodies are parsed like any statement, within the same limits and on stacks that hold them.
//! A view that cannot be parsed or bound is taken as derived, column by column, from everything the server says
//! it depends on.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::analysis::{SessionView, Source, Statement};
use super::super::parse::{self, Dialect};
use super::super::resolve;
use super::{Catalog, Oid, Relation, ViewBody};
use crate::sql::names::ColumnName;

/// Binds all views of a snapshot.
pub(super) fn bind_all(catalog: &Catalog) -> HashMap<Oid, Arc<ViewBody>> {
    let views = catalog
        .relations
        .values()
        .filter(|relation| relation.definition.is_some());
    views.map(|view| (view.oid, Arc::new(body(catalog, view)))).collect()
}

fn body(catalog: &Catalog, relation: &Relation) -> ViewBody {
    let depends = dependencies(catalog, relation);
    let text = relation.definition.as_deref().unwrap_or_default();
    let bound = parse::with_tree(text, Dialect::default(), |statements| match statements {
        [only] => Some(resolve::bind_body(only.stmt.as_deref()?, catalog, &Owner::default())),
        _ => None,
    });
    let mut body = match bound {
        Ok(Some(body)) if body.known && body.columns.len() == relation.columns.len() => body,
        _ => ViewBody {
            columns: relation
                .columns
                .iter()
                .map(|_| Source::Derived(depends.clone()))
                .collect(),
            relations: Vec::new(),
            uses: depends.clone(),
            known: false,
        },
    };
    let relations = relation.depends.iter().filter_map(|(oid, _)| catalog.relation(*oid));
    body.relations.extend(relations.map(|relation| relation.name.clone()));
    body.relations.sort();
    body.relations.dedup();
    body
}

/// Every column the server says the body depends on.
fn dependencies(catalog: &Catalog, relation: &Relation) -> Vec<ColumnName> {
    let mut columns = Vec::new();
    for (oid, attnum) in &relation.depends {
        let Some(on) = catalog.relation(*oid) else { continue };
        match *attnum {
            0 => columns.extend(on.columns.iter().map(|column| on.column_name(column))),
            attnum => columns.extend(on.attribute(attnum).map(|column| on.column_name(column))),
        }
    }
    columns.sort();
    columns.dedup();
    columns
}

/// The scope of a view's body: pg_get_viewdef qualified every name, and a schema file has its own search_path.
pub(super) struct Owner {
    nothing: Arc<str>,
    path: Vec<Arc<str>>,
}

impl Owner {
    pub(super) fn new(path: Vec<Arc<str>>) -> Self {
        Owner {
            nothing: "".into(),
            path,
        }
    }
}

impl Default for Owner {
    fn default() -> Self {
        Owner::new(Vec::new())
    }
}

impl SessionView for Owner {
    fn prepared(&self, _name: &str) -> Option<Arc<Statement>> {
        None
    }
    fn cursor(&self, _name: &str) -> Option<Arc<Statement>> {
        None
    }
    fn search_path(&self) -> &[Arc<str>] {
        &self.path
    }
    fn database(&self) -> &Arc<str> {
        &self.nothing
    }
    fn role(&self) -> &Arc<str> {
        &self.nothing
    }
    fn in_transaction(&self) -> bool {
        false
    }
    fn has_temporary_tables(&self) -> bool {
        false
    }
}
