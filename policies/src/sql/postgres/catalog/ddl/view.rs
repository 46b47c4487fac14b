//! Views, materialized views and CREATE TABLE AS of a schema file: their columns come from binding the query to what
//! is defined so far.
//!
//! A view whose query cannot be bound in full stays unknown: without it nobody could say what stands behind its
//! columns.

use std::sync::Arc;

use super::super::super::analysis::{Output, Source};
use super::super::super::names::truncated;
use super::super::super::parse::{pb, NodeEnum as N};
use super::super::super::resolve;
use super::super::{Column, RelationKind, ViewBody};
use super::table::merge;
use super::{strings, Read, Reader};

impl Reader {
    pub(super) fn view(&mut self, e: &pb::ViewStmt) -> Read {
        let (Some(var), Some(query)) = (&e.view, e.query.as_deref()) else {
            return Ok(());
        };
        if var.relpersistence == "t" {
            return Err(format!("{} is temporary: agents' sessions do not see it", var.relname));
        }
        let place = self.place(&var.schemaname, &var.relname)?;
        let known = self
            .catalog
            .relation_named(&place.0, &place.1)
            .map(|known| (known.oid, known.is_view()));
        match known {
            // A dump writes views that need each other first as empty ones.
            Some((oid, true)) if e.replace => self.forget(oid),
            Some(_) => self.is_free(&place.0, &place.1)?,
            None => {}
        }
        self.shown(place, RelationKind::View, query, &strings(&e.aliases))
    }

    pub(super) fn table_as(&mut self, e: &pb::CreateTableAsStmt) -> Read {
        let into = e.into.as_deref();
        let (Some(into), Some(query)) = (into, e.query.as_deref()) else {
            return Ok(());
        };
        let Some(var) = &into.rel else { return Ok(()) };
        let place = self.place(&var.schemaname, &var.relname)?;
        if let Err(taken) = self.is_free(&place.0, &place.1) {
            return if e.if_not_exists { Ok(()) } else { Err(taken) };
        }
        let kind = match e.objtype() {
            pb::ObjectType::ObjectMatview => RelationKind::MaterializedView,
            _ => RelationKind::Table,
        };
        self.shown(place, kind, query, &strings(&into.col_names))
    }

    fn shown(&mut self, place: (Arc<str>, Arc<str>), kind: RelationKind, query: &pb::Node, aliases: &[&str]) -> Read {
        let name = format!("{}.{}", place.0, place.1);
        let stays = |why: &str| format!("{name} stays unknown: {why}");
        if !matches!(query.node, Some(N::SelectStmt(_))) {
            return Err(stays("its rows do not come from a SELECT"));
        }
        let scope = self.scope();
        let body: ViewBody = resolve::bind_body(query, &self.catalog, &scope);
        let bound = resolve::bind(query, &self.catalog, &scope);
        // A missing relation explains the columns that are missing with it.
        let missing = bound.problems.iter().find(|problem| problem.starts_with("relation"));
        let problem = missing.or(bound.problems.first());
        let why = problem.map_or("what stands behind its columns cannot be told", String::as_str);
        let output = match bound.output {
            Output::Rows(output) if body.known && body.columns.len() == output.len() => output,
            _ => return Err(stays(why)),
        };
        let mut columns: Vec<Column> = Vec::new();
        for (at, column) in output.iter().enumerate() {
            let own = column.name.as_deref().unwrap_or("?column?");
            let name = truncated(aliases.get(at).copied().unwrap_or(own));
            if columns.iter().any(|known| &*known.name == name) {
                return Err(stays("two of its columns have one name"));
            }
            let base = match &column.source {
                Source::Column(base) => self.catalog.column(base).map(|base| base.type_oid),
                _ => None,
            };
            let column = Column {
                attnum: 0,
                name: name.into(),
                // What an expression's type is, only the server can tell.
                type_oid: base.unwrap_or_default(),
                typmod: -1,
                not_null: false,
                generated: false,
            };
            merge(&mut columns, [column]);
        }
        let oid = self.add_relation(place, kind, columns, Vec::new());
        if kind != RelationKind::Table {
            self.catalog.views.insert(oid, Arc::new(body));
        }
        Ok(())
    }
}
