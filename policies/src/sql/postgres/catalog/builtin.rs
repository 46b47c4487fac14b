//! What a fresh database of a major holds: the server's own relations, functions and types, from tables that
//! `cataloggen` wrote. It stands under a schema file, so that catalogs can be named without a server.
//!
//! Majors between the two tables take the older one: what it lacks is unknown, never guessed.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::builder::Row;
use super::{Catalog, CatalogBuilder, CatalogError, Oid, QUERIES};

const V15: &str = include_str!("pg15.txt");
const V18: &str = include_str!("pg18.txt");

fn table(major: u32) -> &'static str {
    if major >= 18 {
        V18
    } else {
        V15
    }
}

/// The catalog of a fresh database of a major.
pub fn builtin(major: u32) -> Result<Catalog, CatalogError> {
    let mut sections: HashMap<&str, Vec<Row>> = HashMap::new();
    for line in table(major).lines().filter(|line| !line.starts_with('#')) {
        let mut cells = line.split('\t');
        let section = cells.next().unwrap_or_default();
        let row = cells.map(|cell| (cell != "\\N").then(|| cell.to_owned())).collect();
        sections.entry(section).or_default().push(row);
    }
    let mut builder = CatalogBuilder::new(0);
    for (section, _) in QUERIES {
        builder.section(section, sections.remove(section).unwrap_or_default())?;
    }
    builder.finish()
}

/// The server's own types by name, arrays with a `_` before it. The two tables agree on every type both have.
pub(super) fn base_type(name: &str) -> Option<Oid> {
    static TYPES: OnceLock<HashMap<&'static str, Oid>> = OnceLock::new();
    let types = TYPES.get_or_init(|| {
        let lines = V15.lines().chain(V18.lines());
        let cells = lines.filter_map(|line| line.strip_prefix("base-types\t")?.split_once('\t'));
        cells
            .filter_map(|(name, oid)| Some((name, oid.parse().ok()?)))
            .collect()
    });
    types.get(name).copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_catalog_is_there_for_every_major() {
        for major in 12..=18 {
            let catalog = builtin(major).unwrap();
            let class = catalog.relation_named("pg_catalog", "pg_class").unwrap();
            assert_eq!((class.oid, class.column("relname").unwrap().type_oid), (1259, 19));
            assert!(catalog.relation_named("information_schema", "columns").is_some());
            assert!(catalog.searches("public"));
            assert_eq!(catalog.server_version() / 10_000, if major == 18 { 18 } else { 15 });
            assert!(catalog
                .functions_named("pg_get_keywords")
                .iter()
                .all(|known| known.is_builtin()));
        }
        assert_eq!(
            (base_type("int4"), base_type("_text"), base_type("nonsense")),
            (Some(23), Some(1009), None)
        );
    }

    #[test]
    fn both_tables_name_types_alike() {
        let of = |table: &'static str| -> HashMap<&str, &str> {
            let lines = table.lines().filter_map(|line| line.strip_prefix("base-types\t"));
            lines.filter_map(|line| line.split_once('\t')).collect()
        };
        let newer = of(V18);
        for (name, oid) in of(V15) {
            assert!(newer.get(name).is_none_or(|other| *other == oid), "{name}");
        }
    }
}
