//! A catalog as one JSON document: the sections a running sidecar loads, as one query of the server prints them.
//!
//! It is for databases whose schema file does not say everything, such as what extensions define. A document of
//! another format, or with a section missing, is refused whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use super::builder::Row;
use super::{Catalog, CatalogBuilder, CatalogError, QUERIES};

/// The format's name, and its version.
const FORMAT: &str = "sidegate-catalog/1";

/// How many columns each of [`QUERIES`] answers.
const WIDTHS: [(&str, usize); 11] = [
    ("server", 1),
    ("schemas", 2),
    ("relations", 5),
    ("columns", 7),
    ("inherits", 2),
    ("views", 2),
    ("depends", 3),
    ("functions", 17),
    ("types", 8),
    ("operators", 6),
    ("casts", 5),
];

/// A document that is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not JSON of this shape.
    #[error("not a catalog snapshot: {0}")]
    Json(#[from] serde_json::Error),
    /// Another format.
    #[error("not a catalog snapshot of format {FORMAT}, but of `{0}`")]
    Format(String),
    /// Its rows do not make a catalog.
    #[error("{0}")]
    Catalog(#[from] CatalogError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    sections: BTreeMap<String, Vec<Row>>,
}

/// Reads a snapshot.
pub fn read_snapshot(text: &str) -> Result<Catalog, SnapshotError> {
    let document: Document = serde_json::from_str(text)?;
    if document.format != FORMAT {
        return Err(SnapshotError::Format(document.format));
    }
    let mut builder = CatalogBuilder::new(1);
    for (section, rows) in document.sections {
        builder.section(&section, rows)?;
    }
    Ok(builder.finish()?)
}

/// The SQL whose only answer, run by `psql -XqAt`, is a snapshot of the database.
pub fn snapshot_query() -> String {
    let mut sql =
        format!("SET search_path = '';\nSELECT pg_catalog.json_build_object('format', '{FORMAT}', 'sections',");
    sql.push_str(" pg_catalog.json_build_object(\n");
    let width = |section: &str| {
        WIDTHS
            .iter()
            .find(|(name, _)| *name == section)
            .map_or(0, |(_, width)| *width)
    };
    for (at, (section, query)) in QUERIES.iter().enumerate() {
        let names: Vec<String> = (1..=width(section)).map(|at| format!("c{at}")).collect();
        let cells: Vec<String> = names.iter().map(|name| format!("r.{name}::pg_catalog.text")).collect();
        let comma = if at == 0 { "" } else { ",\n" };
        let (cells, names) = (cells.join(", "), names.join(", "));
        let _ = write!(
            sql,
            "{comma}'{section}', (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_array({cells})), '[]')\n \
             FROM ({query}) AS r({names}))"
        );
    }
    sql.push_str("));\n");
    sql
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_query_asks_for_every_section() {
        let query = snapshot_query();
        for (section, own) in QUERIES {
            assert!(
                query.contains(&format!("'{section}'")) && query.contains(own),
                "{section}"
            );
            assert!(WIDTHS.iter().any(|(name, _)| name == section), "{section} has no width");
        }
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        let wrong = |text: &str| {
            read_snapshot(text)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default()
        };
        assert!(wrong("CREATE TABLE t ()").starts_with("not a catalog snapshot"));
        assert!(wrong(r#"{"format": "other", "sections": {}}"#).contains("`other`"));
        assert!(wrong(r#"{"format": "sidegate-catalog/1", "sections": {}}"#).contains("`server` is missing"));
        assert!(wrong(r#"{"format": "sidegate-catalog/1", "sections": {"serv": []}}"#).contains("no section `serv`"));
    }
}
