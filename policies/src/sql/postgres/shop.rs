//! The catalog that tests of this module and the fuzzer of the walk share: a small shop, built through the same
//! builder as a real one.
//!
//! Customers hold what policies mask; views, a partition, functions and an operator stand around them in every
//! way a mask has to survive.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::Arc;

use super::analysis::{SessionView, Statement};
use super::catalog::{Catalog, CatalogBuilder};
#[cfg(test)]
use super::{
    parse::{self, Dialect},
    resolve::{bind, Bound},
};

const INT: u32 = 23;
const TEXT: u32 = 25;
const TEXTS: u32 = 1009;

/// (oid, schema, name, kind, columns (`!` behind a name: NOT NULL, `=`: generated, `#`: integer, `@`: text[])).
const RELATIONS: &[(u32, &str, &str, &str, &str)] = &[
    (20_000, "app", "users", "r", "id!# name email ssn card"),
    (
        20_001,
        "app",
        "orders",
        "r",
        "id!# user_id# amount# status note double=#",
    ),
    (20_002, "app", "v_users", "v", "id# login ssn"),
    (20_003, "app", "v_tail", "v", "id# tail"),
    (20_004, "app", "v_nested", "v", "id# hidden"),
    (20_005, "app", "events", "p", "id# who secret"),
    (20_006, "app", "events_2026", "r", "id# who secret"),
    (20_007, "app", "v_broken", "v", "id# x"),
    (20_008, "app", "v_orders", "v", "id# status"),
    (20_009, "pub", "users", "r", "id# ssn"),
    (20_010, "app", "v_count", "v", "n#"),
    (1_259, "pg_catalog", "pg_class", "r", "oid# relname reloptions@"),
    (20_011, "app", "m_users", "m", "ssn"),
    (20_012, "app", "docs", "r", "id# body tags@"),
];

const VIEWS: &[(u32, &str)] = &[
    (
        20_002,
        " SELECT u.id,\n    u.name AS login,\n    u.ssn\n   FROM app.users u;",
    ),
    (
        20_003,
        "SELECT users.id, \"right\"(users.ssn, 4) AS tail FROM app.users;",
    ),
    (20_004, "SELECT v_tail.id, v_tail.tail AS hidden FROM app.v_tail;"),
    (20_007, "SELECT nonsense FROM FROM;"),
    (20_008, "SELECT o.id, o.status FROM app.orders o WHERE o.amount > 0;"),
    (
        20_010,
        "SELECT count(*) AS n FROM app.users WHERE users.ssn IS NOT NULL;",
    ),
    (20_011, "SELECT users.ssn FROM app.users;"),
];

type Rows = Vec<Vec<Option<String>>>;

fn rows<'a>(rows: &[impl AsRef<[&'a str]>]) -> Rows {
    rows.iter()
        .map(|row| {
            row.as_ref()
                .iter()
                .map(|cell| (*cell != "\\N").then(|| (*cell).to_owned()))
                .collect()
        })
        .collect()
}

/// The shop.
pub fn catalog() -> Catalog {
    let mut relations = Vec::new();
    let mut columns = Vec::new();
    for (oid, schema, name, kind, list) in RELATIONS {
        let oid = oid.to_string();
        relations.push(
            [oid.as_str(), schema, name, kind, "0"]
                .map(|cell| Some(cell.to_owned()))
                .to_vec(),
        );
        for (at, column) in list.split(' ').enumerate() {
            let name = column.trim_end_matches(['!', '#', '=', '@']);
            let kind = match column {
                column if column.contains('#') => INT,
                column if column.contains('@') => TEXTS,
                _ => TEXT,
            };
            let flag = |sign: char| if column.contains(sign) { "t" } else { "f" };
            let cells: [&str; 7] = [
                &oid,
                &(at + 1).to_string(),
                name,
                &kind.to_string(),
                "-1",
                flag('!'),
                flag('='),
            ];
            columns.push(cells.map(|cell| Some(cell.to_owned())).to_vec());
        }
    }
    let views = VIEWS
        .iter()
        .map(|(oid, text)| vec![Some(oid.to_string()), Some((*text).to_owned())])
        .collect();
    let mut builder = CatalogBuilder::new(1);
    builder.section("server", rows(&[&["150014"]])).unwrap();
    builder
        .section("schemas", rows(&[&["pg_catalog", "t"], &["app", "t"], &["pub", "t"]]))
        .unwrap();
    builder.section("relations", relations).unwrap();
    builder.section("columns", columns).unwrap();
    builder.section("inherits", rows(&[&["20006", "20005"]])).unwrap();
    builder.section("views", views).unwrap();
    builder
        .section("depends", rows(&[&["20007", "20000", "4"], &["20010", "20000", "4"]]))
        .unwrap();
    let functions: Vec<Vec<&str>> = FUNCTIONS.iter().map(|row| row.split('|').collect()).collect();
    builder.section("functions", rows(&functions)).unwrap();
    builder
        .section("types", rows(&[&["20100", "app", "users", "c", "0", "0", "20000"]]))
        .unwrap();
    builder
        .section("operators", rows(&[&["app", "===", "app", "same", "f"]]))
        .unwrap();
    builder
        .section("casts", rows(&[&["pg_catalog", "money", "app", "to_money"]]))
        .unwrap();
    builder.finish().unwrap()
}

/// oid|schema|name|kind|language|volatility|definer|set|result|args|defaults|variadic|types|all|modes|names.
const FUNCTIONS: &[&str] = &[
    r"21000|app|lookup|f|sql|s|f|f|25|1|0|f|23|\N|\N|\N",
    r"21001|app|shout|f|sql|i|f|f|25|1|0|f|25|\N|\N|\N",
    r"21002|app|label|f|sql|i|f|f|25|1|0|f|20100|\N|\N|\N",
    r#"21003|app|pairs|f|sql|i|f|t|2249|1|0|f|23|23 25 25|i t t|["","k","v"]"#,
    r"21004|app|lower|f|sql|i|f|f|25|1|0|f|1043|\N|\N|\N",
    r#"3208|pg_catalog|jsonb_each|f|internal|i|f|t|2249|1|0|f|3802|3802 25 3802|i o o|["from_json","key","value"]"#,
    r"1067|pg_catalog|generate_series|f|internal|i|f|t|23|2|0|f|23 23|\N|\N|\N",
    r"3204|pg_catalog|json_to_record|f|internal|i|f|f|2249|1|0|f|114|\N|\N|\N",
    r"2331|pg_catalog|unnest|f|internal|i|f|t|2283|1|0|f|2277|\N|\N|\N",
    r#"3322|pg_catalog|unnest|f|internal|i|f|t|2249|1|0|f|3614|3614 25 1005 1009|i o o o|["tsvector","lexeme","positions","weights"]"#,
];

/// A session with `search_path` app, public.
pub struct Shopper {
    /// The search_path.
    pub path: Vec<Arc<str>>,
    /// The database.
    pub database: Arc<str>,
    /// The role.
    pub role: Arc<str>,
    /// Whether there are temporary tables.
    pub temporary: bool,
}

impl Default for Shopper {
    fn default() -> Self {
        Shopper {
            path: vec!["app".into(), "public".into()],
            database: "shop".into(),
            role: "agent".into(),
            temporary: false,
        }
    }
}

impl SessionView for Shopper {
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
        &self.database
    }
    fn role(&self) -> &Arc<str> {
        &self.role
    }
    fn in_transaction(&self) -> bool {
        false
    }
    fn has_temporary_tables(&self) -> bool {
        self.temporary
    }
}

/// Binds one statement in the shop.
#[cfg(test)]
pub(super) fn bound(text: &str) -> Bound {
    bound_for(text, &Shopper::default())
}

#[cfg(test)]
pub(super) fn bound_for(text: &str, shopper: &Shopper) -> Bound {
    let catalog = catalog();
    let result = parse::with_tree(text, Dialect::default(), |statements| {
        let statement = statements[0].stmt.as_ref().unwrap();
        match &statement.node {
            Some(parse::NodeEnum::CopyStmt(copy)) => super::resolve::bind_copy(copy, &catalog, shopper),
            _ => bind(statement, &catalog, shopper),
        }
    });
    result.unwrap_or_else(|error| panic!("{text}: {error}"))
}
