//! The catalog snapshot of one database: relations with their columns, inheritance, views, functions, types,
//! and the user-defined operators and casts.
//!
//! It owns what a name can mean and refuses nothing itself: a name that is not in the snapshot is simply not
//! found, and the resolver calls it unknown. A snapshot never changes; a new one carries a higher epoch.

mod builder;
mod builtin;
mod ddl;
mod queries;
mod snapshot;
mod views;

use std::collections::HashMap;
use std::sync::Arc;

use super::analysis::{SessionView, Source};
use crate::sql::names::{ColumnName, RelationName};

pub use builder::{CatalogBuilder, CatalogError};
pub use builtin::builtin;
pub use ddl::{default_path, read_sql, Note};
pub use queries::{BASE_TYPES, QUERIES};
pub use snapshot::{read_snapshot, snapshot_query, SnapshotError};

/// An object identifier of the server.
pub type Oid = u32;

/// The first object identifier that does not belong to the server itself.
pub const FIRST_USER_OID: Oid = 16_384;

/// One database as it was when the snapshot was taken.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    epoch: u64,
    server_version: u32,
    /// Schemas, and whether the role may use them.
    schemas: HashMap<Arc<str>, bool>,
    relations: HashMap<Oid, Arc<Relation>>,
    names: HashMap<Arc<str>, Vec<Oid>>,
    functions: HashMap<Arc<str>, Vec<Arc<Function>>>,
    types: HashMap<Oid, Arc<Type>>,
    type_names: HashMap<Arc<str>, Vec<Oid>>,
    operators: HashMap<Arc<str>, Vec<Operator>>,
    casts: HashMap<Arc<str>, Vec<Cast>>,
    views: HashMap<Oid, Arc<ViewBody>>,
}

/// What kind of relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RelationKind {
    /// An ordinary table.
    Table,
    /// A partitioned table.
    Partitioned,
    /// A view.
    View,
    /// A materialized view.
    MaterializedView,
    /// A foreign table.
    Foreign,
    /// A sequence, which can be selected from.
    Sequence,
    /// A stand-alone composite type.
    Composite,
    /// An index, or anything else without rows of its own.
    Other,
}

/// A relation.
#[derive(Debug, Clone)]
pub struct Relation {
    /// Its oid.
    pub oid: Oid,
    /// Its name.
    pub name: RelationName,
    /// Its kind.
    pub kind: RelationKind,
    /// The oid of its row type; 0 for none.
    pub row_type: Oid,
    /// Its columns in order of attribute number, dropped ones left out.
    pub columns: Vec<Column>,
    /// Direct inheritance or partition parents.
    pub parents: Vec<Oid>,
    /// Direct inheritance or partition children.
    pub children: Vec<Oid>,
    /// The text of a view, as pg_get_viewdef prints it under an empty search_path.
    pub definition: Option<Arc<str>>,
    /// For a view: (relation, attribute number) pairs its body depends on.
    pub depends: Vec<(Oid, i16)>,
}

/// A column.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its attribute number.
    pub attnum: i16,
    /// Its name.
    pub name: Arc<str>,
    /// Its type.
    pub type_oid: Oid,
    /// Its type modifier; -1 for none.
    pub typmod: i32,
    /// Declared NOT NULL.
    pub not_null: bool,
    /// A generated column, stored or virtual.
    pub generated: bool,
}

/// What kind of function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FunctionKind {
    /// A plain function.
    Plain,
    /// An aggregate.
    Aggregate,
    /// A window function.
    Window,
    /// A procedure.
    Procedure,
}

/// Volatility.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Volatility {
    /// Depends on its arguments only.
    Immutable,
    /// May read the database.
    Stable,
    /// May do anything.
    Volatile,
}

/// One overload of a function. The snapshot holds user-defined ones, and of the server's own only those that
/// answer rows or records, whose columns the resolver needs.
#[derive(Debug, Clone)]
pub struct Function {
    /// Its oid.
    pub oid: Oid,
    /// Its schema.
    pub schema: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: FunctionKind,
    /// The language it is written in.
    pub language: Arc<str>,
    /// Its volatility.
    pub volatility: Volatility,
    /// SECURITY DEFINER.
    pub security_definer: bool,
    /// Answers a set.
    pub returns_set: bool,
    /// Its result type.
    pub result: Oid,
    /// Fewest arguments a call may give.
    pub min_arguments: u32,
    /// Most arguments a call may give; None for a variadic one.
    pub max_arguments: Option<u32>,
    /// The columns it declares through OUT, INOUT or TABLE parameters: (name, type).
    pub outputs: Vec<(Arc<str>, Oid)>,
    /// Argument types.
    pub arguments: Vec<Oid>,
    /// Belongs to an extension whose reviewed list has it: see [`super::functions::is_listed_of`].
    pub listed: bool,
}

impl Function {
    /// Whether the server itself brought it.
    pub fn is_builtin(&self) -> bool {
        self.oid < FIRST_USER_OID
    }

    /// Whether a call with this many arguments may mean it.
    pub fn takes(&self, arguments: u32) -> bool {
        arguments >= self.min_arguments && self.max_arguments.is_none_or(|most| arguments <= most)
    }

    /// `schema.name`.
    pub fn identity(&self) -> Arc<str> {
        format!("{}.{}", self.schema, self.name).into()
    }
}

/// What kind of type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TypeKind {
    /// A base type.
    Base,
    /// A row type.
    Composite,
    /// A domain.
    Domain,
    /// An enum.
    Enum,
    /// A range or multirange.
    Range,
    /// A pseudo-type.
    Pseudo,
}

/// A type: user-defined ones, and domains of the server's own schemas.
#[derive(Debug, Clone)]
pub struct Type {
    /// Its oid.
    pub oid: Oid,
    /// Its schema.
    pub schema: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: TypeKind,
    /// The type a domain is over; 0 otherwise.
    pub base: Oid,
    /// The element type of an array; 0 otherwise.
    pub element: Oid,
    /// The relation a row type belongs to; 0 otherwise.
    pub relation: Oid,
    /// Belongs to an extension whose reviewed list has it: see [`super::functions::is_listed_of`].
    pub listed: bool,
}

/// A user-defined operator.
#[derive(Debug, Clone)]
pub struct Operator {
    /// Its schema.
    pub schema: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The function behind it, `schema.name`.
    pub function: Arc<str>,
    /// Whether that function is immutable.
    pub immutable: bool,
    /// Belongs to an extension whose reviewed list has it: see [`super::functions::is_listed_of`].
    pub listed: bool,
}

/// A user-defined cast, by target type.
#[derive(Debug, Clone)]
pub struct Cast {
    /// Schema of the target type.
    pub target_schema: Arc<str>,
    /// Name of the target type.
    pub target: Arc<str>,
    /// The function behind it, `schema.name`; None for binary-coercible and I/O casts.
    pub function: Option<Arc<str>>,
    /// Belongs to an extension whose reviewed list has it: see [`super::functions::is_listed_of`].
    pub listed: bool,
}

/// The body of a view, bound under the view's own scope.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewBody {
    /// Where each column comes from, in column order, in terms of the relations the body names.
    pub columns: Vec<Source>,
    /// Relations the body names.
    pub relations: Vec<RelationName>,
    /// Columns the body uses.
    pub uses: Vec<ColumnName>,
    /// Whether the body could be bound in full.
    pub known: bool,
}

/// What a relation name means.
#[derive(Debug, Clone)]
pub enum RelationLookup {
    /// This relation.
    Known(Arc<Relation>),
    /// Not in the snapshot, or possibly a temporary table of the session.
    Unknown,
}

impl Catalog {
    /// The snapshot's number; it grows with every change seen.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// `server_version_num`, such as 150014.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// Whether a schema exists.
    pub fn has_schema(&self, name: &str) -> bool {
        self.schemas.contains_key(name)
    }

    /// Whether the server looks into a schema of the search_path: it skips those the role may not use.
    pub fn searches(&self, schema: &str) -> bool {
        self.schemas.get(schema).copied().unwrap_or(false)
    }

    /// A relation by oid.
    pub fn relation(&self, oid: Oid) -> Option<&Arc<Relation>> {
        self.relations.get(&oid)
    }

    /// A relation by its full name.
    pub fn relation_named(&self, schema: &str, name: &str) -> Option<&Arc<Relation>> {
        let candidates = self.names.get(name)?;
        candidates
            .iter()
            .filter_map(|oid| self.relations.get(oid))
            .find(|relation| &*relation.name.schema == schema)
    }

    /// A relation as a statement names it, under the session's search_path.
    pub fn resolve_relation(&self, schema: Option<&str>, name: &str, view: &dyn SessionView) -> RelationLookup {
        super::names::relation(self, schema, name, view)
    }

    /// A column by its full name.
    pub fn column(&self, column: &ColumnName) -> Option<&Column> {
        self.relation_named(&column.relation.schema, &column.relation.name)?
            .column(&column.column)
    }

    /// The overloads of a function name, in every schema.
    pub fn functions_named(&self, name: &str) -> &[Arc<Function>] {
        self.functions.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The user-defined operators of a name, in every schema.
    pub fn operators_named(&self, name: &str) -> &[Operator] {
        self.operators.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The user-defined casts to types of a name, in every schema.
    pub fn casts_to(&self, type_name: &str) -> &[Cast] {
        self.casts.get(type_name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The types of a name, in every schema.
    pub fn types_named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Arc<Type>> {
        let oids = self.type_names.get(name).map(Vec::as_slice).unwrap_or_default();
        oids.iter().filter_map(|oid| self.types.get(oid))
    }

    /// A type by oid: None for the server's own base types, which the snapshot leaves out.
    pub fn type_of(&self, oid: Oid) -> Option<&Arc<Type>> {
        self.types.get(&oid)
    }

    /// What a domain is over, through domains over domains; the type itself where it is none.
    pub fn base_type(&self, oid: Oid) -> Oid {
        let mut current = oid;
        for _ in 0..32 {
            match self.types.get(&current) {
                Some(found) if found.kind == TypeKind::Domain => current = found.base,
                _ => return current,
            }
        }
        current
    }

    /// The relation a row type belongs to.
    pub fn row_relation(&self, type_oid: Oid) -> Option<&Arc<Relation>> {
        let base = self.base_type(type_oid);
        self.relations.get(&self.types.get(&base)?.relation)
    }

    /// The bound body of a view.
    pub fn view_body(&self, oid: Oid) -> Option<&Arc<ViewBody>> {
        self.views.get(&oid)
    }
}

impl Relation {
    /// A column by name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| &*column.name == name)
    }

    /// A column by attribute number.
    pub fn attribute(&self, attnum: i16) -> Option<&Column> {
        self.columns.iter().find(|column| column.attnum == attnum)
    }

    /// Whether its rows come from a query the schema's owner wrote.
    pub fn is_view(&self) -> bool {
        matches!(self.kind, RelationKind::View | RelationKind::MaterializedView)
    }

    /// The full name of one of its columns.
    pub fn column_name(&self, column: &Column) -> ColumnName {
        ColumnName {
            relation: self.name.clone(),
            column: Arc::clone(&column.name),
        }
    }
}
