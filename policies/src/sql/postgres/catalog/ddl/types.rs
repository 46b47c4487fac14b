//! Types of a schema file: enums, domains, row types, ranges, and what a type name means.
//!
//! A type gets its array beside it, as on the server. A type that is not known is noted where it is used, because a
//! function over it could not be told apart from others.

use std::sync::Arc;

use super::super::super::names::{search_order, truncated};
use super::super::super::parse::{pb, NodeEnum as N};
use super::super::builtin::base_type;
use super::super::{Function, FunctionKind, Oid, RelationKind, Type, TypeKind, Volatility};
use super::table::merge;
use super::{strings, Read, Reader};

impl Reader {
    /// Adds a type and its array type.
    pub(super) fn add_type(
        &mut self,
        (schema, name): (Arc<str>, Arc<str>),
        kind: TypeKind,
        base: Oid,
        relation: Oid,
    ) -> Oid {
        let oid = self.oid();
        let array = Arc::from(format!("_{name}"));
        for (oid, name, kind, base, element, relation) in [
            (oid, name, kind, base, 0, relation),
            (self.oid(), array, TypeKind::Base, 0, oid, 0),
        ] {
            let found = Type {
                oid,
                schema: Arc::clone(&schema),
                name: Arc::clone(&name),
                kind,
                base,
                element,
                relation,
                listed: false,
            };
            self.catalog.type_names.entry(name).or_default().push(oid);
            self.catalog.types.insert(oid, Arc::new(found));
        }
        oid
    }

    /// The type a name means.
    pub(super) fn type_oid(&self, name: &pb::TypeName) -> Option<Oid> {
        let names = strings(&name.names);
        let (schema, written) = match names.as_slice() {
            [name] => (None, truncated(name)),
            [schema, name] | [_, schema, name] => (Some(truncated(schema)), truncated(name)),
            _ => return None,
        };
        if name.pct_type {
            return None;
        }
        let plain = match written {
            "serial" | "serial4" => "int4",
            "bigserial" | "serial8" => "int8",
            "smallserial" | "serial2" => "int2",
            other => other,
        };
        let full = match name.array_bounds.is_empty() {
            true => plain.to_owned(),
            false => format!("_{plain}"),
        };
        if schema.is_none_or(|schema| schema == "pg_catalog") {
            if let Some(oid) = base_type(&full) {
                return Some(oid);
            }
        }
        let scope = self.scope();
        let reached = |found: &Type| match schema {
            Some(schema) => *found.schema == *schema,
            None => search_order(&scope).any(|searched| searched == &*found.schema),
        };
        let found = self.catalog.types_named(&full).find(|found| reached(found));
        found.map(|found| found.oid)
    }

    /// The type of a column; an unknown one is noted, and the column is there all the same.
    pub(super) fn type_of_column(&mut self, name: &pb::TypeName, column: &str) -> Oid {
        let found = self.type_oid(name);
        if found.is_none() {
            let written = strings(&name.names).join(".");
            self.note(format!(
                "the type {written} of column {column} is not known here; the column's name is"
            ));
        }
        found.unwrap_or_default()
    }

    pub(super) fn plain_type(&mut self, names: &[pb::Node], kind: TypeKind, base: Oid) -> Read {
        let place = self.place_of(names)?;
        self.add_type(place, kind, base, 0);
        Ok(())
    }

    pub(super) fn domain(&mut self, e: &pb::CreateDomainStmt) -> Read {
        let base = e.type_name.as_ref().and_then(|name| self.type_oid(name));
        let base = base.ok_or_else(|| {
            let name = strings(&e.domainname).join(".");
            format!("the domain {name} is over a type that is not known here, and stays unknown")
        })?;
        self.plain_type(&e.domainname, TypeKind::Domain, base)
    }

    pub(super) fn composite(&mut self, e: &pb::CompositeTypeStmt) -> Read {
        let Some(var) = &e.typevar else { return Ok(()) };
        let place = self.place(&var.schemaname, &var.relname)?;
        self.is_free(&place.0, &place.1)?;
        let mut columns = Vec::new();
        for def in &e.coldeflist {
            if let Some(N::ColumnDef(def)) = &def.node {
                let column = self.column(def);
                merge(&mut columns, [column]);
            }
        }
        self.add_relation(place, RelationKind::Composite, columns, Vec::new());
        Ok(())
    }

    /// A range with its multirange, and the functions that build them.
    pub(super) fn range(&mut self, e: &pb::CreateRangeStmt) -> Read {
        let (schema, name) = self.place_of(&e.type_name)?;
        let given = e.params.iter().find_map(|param| match &param.node {
            Some(N::DefElem(param)) if param.defname == "multirange_type_name" => param.arg.as_deref(),
            _ => None,
        });
        let multirange: Arc<str> = match given.and_then(|arg| arg.node.as_ref()) {
            Some(N::TypeName(given)) => strings(&given.names).last().copied().unwrap_or_default().into(),
            _ if name.contains("range") => name.replacen("range", "multirange", 1).into(),
            _ => format!("{name}_multirange").into(),
        };
        let range = self.add_type((Arc::clone(&schema), Arc::clone(&name)), TypeKind::Range, 0, 0);
        let multi = self.add_type((Arc::clone(&schema), Arc::clone(&multirange)), TypeKind::Range, 0, 0);
        self.constructor((&schema, &name), range, 2, Some(3));
        self.constructor((&schema, &multirange), multi, 0, None);
        Ok(())
    }

    fn constructor(&mut self, (schema, name): (&Arc<str>, &Arc<str>), result: Oid, least: u32, most: Option<u32>) {
        let function = Function {
            oid: self.oid(),
            schema: Arc::clone(schema),
            name: Arc::clone(name),
            kind: FunctionKind::Plain,
            language: "internal".into(),
            volatility: Volatility::Immutable,
            security_definer: false,
            returns_set: false,
            result,
            min_arguments: least,
            max_arguments: most,
            outputs: Vec::new(),
            arguments: Vec::new(),
            listed: false,
        };
        self.add_function(function);
    }
}
