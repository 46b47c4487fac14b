//! What a name in a statement means under the session's search_path: relations, functions, operators, types.
//!
//! The rules are the server's own: `pg_temp` is searched first for relations and never for functions,
//! `pg_catalog` comes first unless the path lists it, names are cut at 63 bytes. A name that may be one of the
//! session's own temporary tables is unknown, because the snapshot does not hold those.

use std::sync::Arc;

use super::analysis::SessionView;
use super::catalog::{Catalog, Function, RelationLookup};

/// The longest name the server keeps, in bytes.
const NAME_BYTES: usize = 63;

/// A name as the server keeps it: cut at 63 bytes, between characters.
pub fn truncated(name: &str) -> &str {
    if name.len() <= NAME_BYTES {
        return name;
    }
    let mut end = NAME_BYTES;
    while !name.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    name.get(..end).unwrap_or(name)
}

/// The schemas searched for an unqualified name, in order, the implicit ones included and `pg_temp` left out.
pub fn search_order(view: &dyn SessionView) -> impl Iterator<Item = &str> {
    let listed = view.search_path();
    let implicit = !listed.iter().any(|schema| &**schema == "pg_catalog");
    let first = implicit.then_some("pg_catalog");
    let own = listed.iter().filter_map(move |schema| match &**schema {
        "pg_temp" => None,
        "$user" => Some(&**view.role()),
        other => Some(other),
    });
    first.into_iter().chain(own)
}

/// A relation by the name a statement gives it.
pub fn relation(catalog: &Catalog, schema: Option<&str>, name: &str, view: &dyn SessionView) -> RelationLookup {
    let name = truncated(name);
    let found = match schema {
        Some("pg_temp") => None,
        Some(schema) => catalog.relation_named(truncated(schema), name),
        None if view.may_be_temporary(name) => None,
        None => search_order(view)
            .filter(|schema| catalog.searches(schema))
            .find_map(|schema| catalog.relation_named(schema, name)),
    };
    match found {
        Some(relation) => RelationLookup::Known(Arc::clone(relation)),
        None => RelationLookup::Unknown,
    }
}

/// The functions of the snapshot a call may mean: every overload of that name and argument count in the schemas
/// searched. A name no snapshot function bears is the server's own.
pub fn functions<'a>(
    catalog: &'a Catalog,
    schema: Option<&str>,
    name: &str,
    arguments: u32,
    view: &dyn SessionView,
) -> Vec<&'a Arc<Function>> {
    let reachable = |function: &Function| match schema {
        Some(schema) => &*function.schema == truncated(schema),
        None => search_order(view).any(|searched| searched == &*function.schema),
    };
    catalog
        .functions_named(truncated(name))
        .iter()
        .filter(|function| function.takes(arguments) && reachable(function))
        .collect()
}
