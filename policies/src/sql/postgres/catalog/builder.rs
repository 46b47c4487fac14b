//! Turns the rows of [`super::QUERIES`] into a snapshot.
//!
//! Rows come from the server and are not trusted to be well formed: a cell that does not read as what the
//! section wants, or more rows than the bounds allow, fails the whole snapshot. A builder is used once.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::functions;
use super::{
    Cast, Catalog, Column, Function, FunctionKind, Oid, Operator, Relation, RelationKind, Type, TypeKind, Volatility,
    QUERIES,
};
use crate::sql::names::RelationName;

/// The most rows one section may have.
const MOST_ROWS: usize = 2_000_000;

/// A snapshot that could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// A section nobody knows.
    #[error("the catalog has no section `{0}`")]
    Section(String),
    /// A section that was not delivered.
    #[error("the catalog section `{0}` is missing")]
    Missing(&'static str),
    /// A cell that does not read.
    #[error("catalog section `{section}`, row {row}: column {column} does not read")]
    Cell {
        /// The section.
        section: String,
        /// The row, from 0.
        row: usize,
        /// The column, from 0.
        column: usize,
    },
    /// Too many rows.
    #[error("catalog section `{0}` has too many rows")]
    TooLarge(String),
}

/// One row as the server sent it.
pub type Row = Vec<Option<String>>;

/// Collects sections, then builds.
#[derive(Debug, Default)]
pub struct CatalogBuilder {
    epoch: u64,
    sections: HashMap<String, Vec<Row>>,
}

impl CatalogBuilder {
    /// A builder for the snapshot with this epoch.
    pub fn new(epoch: u64) -> Self {
        CatalogBuilder {
            epoch,
            sections: HashMap::new(),
        }
    }

    /// Takes the rows of one section.
    pub fn section(&mut self, name: &str, rows: Vec<Row>) -> Result<&mut Self, CatalogError> {
        if !QUERIES.iter().any(|(known, _)| *known == name) {
            return Err(CatalogError::Section(name.to_owned()));
        }
        if rows.len() > MOST_ROWS {
            return Err(CatalogError::TooLarge(name.to_owned()));
        }
        self.sections.insert(name.to_owned(), rows);
        Ok(self)
    }

    /// Builds the snapshot and binds its views. May take milliseconds: not for an event loop.
    pub fn finish(mut self) -> Result<Catalog, CatalogError> {
        let mut catalog = Catalog {
            epoch: self.epoch,
            ..Catalog::default()
        };
        self.each("server", |cells| {
            catalog.server_version = cells.number(0)?;
            Ok(())
        })?;
        self.each("schemas", |cells| {
            catalog.schemas.insert(cells.name(0)?, cells.flag(1)?);
            Ok(())
        })?;
        let mut relations = self.relations()?;
        self.details(&mut relations)?;
        for (oid, relation) in relations {
            let name = Arc::clone(&relation.name.name);
            catalog.names.entry(name).or_default().push(oid);
            catalog.relations.insert(oid, Arc::new(relation));
        }
        self.routines(&mut catalog)?;
        self.kinds(&mut catalog)?;
        catalog.views = super::views::bind_all(&catalog);
        Ok(catalog)
    }

    fn each(
        &mut self,
        section: &'static str,
        mut take: impl FnMut(Cells<'_>) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let rows = self.sections.remove(section).ok_or(CatalogError::Missing(section))?;
        for (row, cells) in rows.iter().enumerate() {
            take(Cells { section, row, cells })?;
        }
        Ok(())
    }

    fn relations(&mut self) -> Result<HashMap<Oid, Relation>, CatalogError> {
        let mut relations = HashMap::new();
        self.each("relations", |cells| {
            let oid = cells.number(0)?;
            let relation = Relation {
                oid,
                name: RelationName::new(cells.text(1)?, cells.text(2)?),
                kind: relation_kind(cells.text(3)?),
                row_type: cells.number(4)?,
                columns: Vec::new(),
                parents: Vec::new(),
                children: Vec::new(),
                definition: None,
                depends: Vec::new(),
            };
            relations.insert(oid, relation);
            Ok(())
        })?;
        Ok(relations)
    }

    fn details(&mut self, relations: &mut HashMap<Oid, Relation>) -> Result<(), CatalogError> {
        // Names and types repeat by the thousand; one copy of each is kept.
        let mut names: HashMap<String, Arc<str>> = HashMap::new();
        self.each("columns", |cells| {
            let text = cells.text(2)?;
            let name = match names.get(text) {
                Some(known) => Arc::clone(known),
                None => {
                    let new: Arc<str> = text.into();
                    names.insert(text.to_owned(), Arc::clone(&new));
                    new
                }
            };
            let column = Column {
                attnum: cells.number(1)?,
                name,
                type_oid: cells.number(3)?,
                typmod: cells.number(4)?,
                not_null: cells.flag(5)?,
                generated: cells.flag(6)?,
            };
            if let Some(relation) = relations.get_mut(&cells.number(0)?) {
                relation.columns.push(column);
            }
            Ok(())
        })?;
        for relation in relations.values_mut() {
            relation.columns.sort_by_key(|column| column.attnum);
        }
        self.each("inherits", |cells| {
            let (child, parent) = (cells.number(0)?, cells.number(1)?);
            if let Some(relation) = relations.get_mut(&child) {
                relation.parents.push(parent);
            }
            if let Some(relation) = relations.get_mut(&parent) {
                relation.children.push(child);
            }
            Ok(())
        })?;
        self.each("views", |cells| {
            let definition = cells.optional(1).map(Arc::from);
            if let Some(relation) = relations.get_mut(&cells.number(0)?) {
                relation.definition = definition;
            }
            Ok(())
        })?;
        self.each("depends", |cells| {
            let on = (cells.number(1)?, cells.number(2)?);
            if let Some(relation) = relations.get_mut(&cells.number(0)?) {
                relation.depends.push(on);
            }
            Ok(())
        })
    }

    fn routines(&mut self, catalog: &mut Catalog) -> Result<(), CatalogError> {
        self.each("functions", |cells| {
            let function = function(cells)?;
            let name = Arc::clone(&function.name);
            catalog.functions.entry(name).or_default().push(Arc::new(function));
            Ok(())
        })?;
        self.each("operators", |cells| {
            let operator = Operator {
                schema: cells.name(0)?,
                name: cells.name(1)?,
                function: format!("{}.{}", cells.text(2)?, cells.text(3)?).into(),
                immutable: cells.flag(4)?,
                listed: cells.listed(5, cells.text(3)?),
            };
            let name = Arc::clone(&operator.name);
            catalog.operators.entry(name).or_default().push(operator);
            Ok(())
        })
    }

    fn kinds(&mut self, catalog: &mut Catalog) -> Result<(), CatalogError> {
        self.each("types", |cells| {
            let found = Type {
                oid: cells.number(0)?,
                schema: cells.name(1)?,
                name: cells.name(2)?,
                kind: type_kind(cells.text(3)?),
                base: cells.number(4)?,
                element: cells.number(5)?,
                relation: cells.number(6)?,
                listed: cells.listed(7, cells.text(2)?),
            };
            let name = Arc::clone(&found.name);
            catalog.type_names.entry(name).or_default().push(found.oid);
            catalog.types.insert(found.oid, Arc::new(found));
            Ok(())
        })?;
        self.each("casts", |cells| {
            let function = match (cells.optional(2), cells.optional(3)) {
                (Some(schema), Some(name)) => Some(format!("{schema}.{name}").into()),
                _ => None,
            };
            let cast = Cast {
                target_schema: cells.name(0)?,
                target: cells.name(1)?,
                function,
                listed: cells.listed(4, cells.optional(3).unwrap_or_default()),
            };
            let name = Arc::clone(&cast.target);
            catalog.casts.entry(name).or_default().push(cast);
            Ok(())
        })
    }
}

fn function(cells: Cells<'_>) -> Result<Function, CatalogError> {
    let given: u32 = cells.number(9)?;
    let defaults: u32 = cells.number(10)?;
    let variadic = cells.flag(11)?;
    let arguments = cells.numbers(12)?;
    let all = cells.numbers(13)?;
    let modes: Vec<&str> = cells.optional(14).unwrap_or_default().split_whitespace().collect();
    let names: Vec<String> = match cells.optional(15) {
        Some(json) => serde_json::from_str(json).map_err(|_| cells.wrong(15))?,
        None => Vec::new(),
    };
    let outputs = all
        .iter()
        .zip(&modes)
        .enumerate()
        .filter(|(_, (_, mode))| matches!(**mode, "o" | "b" | "t"))
        .map(|(at, (oid, _))| (names.get(at).map(String::as_str).unwrap_or_default().into(), *oid))
        .collect();
    // A variadic call may give any number of values for the last parameter, or none.
    let needed = given.saturating_sub(defaults).saturating_sub(u32::from(variadic));
    Ok(Function {
        oid: cells.number(0)?,
        schema: cells.name(1)?,
        name: cells.name(2)?,
        kind: match cells.text(3)? {
            "a" => FunctionKind::Aggregate,
            "w" => FunctionKind::Window,
            "p" => FunctionKind::Procedure,
            _ => FunctionKind::Plain,
        },
        language: cells.name(4)?,
        volatility: match cells.text(5)? {
            "i" => Volatility::Immutable,
            "s" => Volatility::Stable,
            _ => Volatility::Volatile,
        },
        security_definer: cells.flag(6)?,
        returns_set: cells.flag(7)?,
        result: cells.number(8)?,
        min_arguments: needed,
        max_arguments: if variadic { None } else { Some(given) },
        outputs,
        arguments,
        listed: cells.listed(16, cells.text(2)?),
    })
}

fn relation_kind(letter: &str) -> RelationKind {
    match letter {
        "r" => RelationKind::Table,
        "p" => RelationKind::Partitioned,
        "v" => RelationKind::View,
        "m" => RelationKind::MaterializedView,
        "f" => RelationKind::Foreign,
        "S" => RelationKind::Sequence,
        "c" => RelationKind::Composite,
        _ => RelationKind::Other,
    }
}

fn type_kind(letter: &str) -> TypeKind {
    match letter {
        "c" => TypeKind::Composite,
        "d" => TypeKind::Domain,
        "e" => TypeKind::Enum,
        "r" | "m" => TypeKind::Range,
        "p" => TypeKind::Pseudo,
        _ => TypeKind::Base,
    }
}

/// One row while it is read.
#[derive(Clone, Copy)]
struct Cells<'a> {
    section: &'a str,
    row: usize,
    cells: &'a [Option<String>],
}

impl<'a> Cells<'a> {
    fn wrong(self, column: usize) -> CatalogError {
        CatalogError::Cell {
            section: self.section.to_owned(),
            row: self.row,
            column,
        }
    }

    fn optional(self, column: usize) -> Option<&'a str> {
        self.cells.get(column)?.as_deref()
    }

    /// Whether the extension in a column lists a name. Older snapshots have no such column.
    fn listed(self, column: usize, name: &str) -> bool {
        self.optional(column)
            .is_some_and(|extension| functions::is_listed_of(extension, name))
    }

    fn text(self, column: usize) -> Result<&'a str, CatalogError> {
        self.optional(column).ok_or_else(|| self.wrong(column))
    }

    fn name(self, column: usize) -> Result<Arc<str>, CatalogError> {
        self.text(column).map(Arc::from)
    }

    fn number<T: std::str::FromStr>(self, column: usize) -> Result<T, CatalogError> {
        self.text(column)?.parse().map_err(|_| self.wrong(column))
    }

    fn numbers(self, column: usize) -> Result<Vec<Oid>, CatalogError> {
        let text = self.optional(column).unwrap_or_default();
        text.split_whitespace()
            .map(|part| part.parse().map_err(|_| self.wrong(column)))
            .collect()
    }

    fn flag(self, column: usize) -> Result<bool, CatalogError> {
        match self.text(column)? {
            // As the server prints it, and as it casts it to text.
            "t" | "true" => Ok(true),
            "f" | "false" => Ok(false),
            _ => Err(self.wrong(column)),
        }
    }
}
