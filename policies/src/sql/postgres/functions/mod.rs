//! Which of the server's own functions, operators and types are harmless, per major version.
//!
//! The tables are generated from live servers by `funcgen` after `rules.txt`. A name counts as its worst overload,
//! so no type inference is needed. A major without a table of its own (12 to 14) takes the worst of all verdicts; a
//! name in no table is not listed.

pub mod classify;
pub mod lookup;

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use crate::sql::facts::Effects;

/// What a function may do, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// On the allow-list.
    Harmless,
    /// Changes the session.
    Session,
    /// Takes locks.
    Lock,
    /// Reads data its arguments name.
    Read,
    /// Changes data.
    Write,
    /// Opens connections.
    Network,
    /// Touches files.
    Filesystem,
    /// Administers the server.
    Admin,
    /// Nobody knows.
    Unknown,
}

impl Class {
    const NAMES: [(Class, &'static str); 9] = [
        (Class::Harmless, "harmless"),
        (Class::Session, "session"),
        (Class::Lock, "lock"),
        (Class::Read, "read"),
        (Class::Write, "write"),
        (Class::Network, "network"),
        (Class::Filesystem, "filesystem"),
        (Class::Admin, "admin"),
        (Class::Unknown, "unknown"),
    ];

    /// The class of this name.
    pub fn named(name: &str) -> Option<Class> {
        let hit = Class::NAMES.into_iter().find(|(_, known)| *known == name);
        hit.map(|(class, _)| class)
    }

    /// Its name in the tables.
    pub fn name(self) -> &'static str {
        let hit = Class::NAMES.into_iter().find(|(class, _)| *class == self);
        hit.map_or("unknown", |(_, name)| name)
    }

    /// What a call adds to `sql.effects`.
    pub fn effects(self) -> Effects {
        match self {
            Class::Harmless => Effects::default(),
            Class::Session => Effects::SESSION,
            Class::Lock => Effects::LOCK,
            Class::Read => Effects::READ,
            Class::Write => Effects::WRITE,
            Class::Network => Effects::NETWORK,
            Class::Filesystem => Effects::FILESYSTEM,
            Class::Admin => Effects::ADMIN,
            Class::Unknown => Effects::UNKNOWN,
        }
    }
}

/// What kind of name is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A function of `pg_catalog`.
    Function,
    /// An operator of `pg_catalog`.
    Operator,
    /// A type of `pg_catalog`.
    Type,
    /// A function of `information_schema`.
    Information,
}

/// One major's table.
#[derive(Debug, Default)]
struct Table {
    functions: HashMap<&'static str, Class>,
    operators: HashMap<&'static str, Class>,
    types: HashMap<&'static str, Class>,
    information: HashMap<&'static str, Class>,
}

impl Table {
    fn read(text: &'static str) -> Self {
        let mut table = Table::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            let (Some(kind), Some(name), Some(class)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let class = Class::named(class).unwrap_or(Class::Unknown);
            let map = match kind {
                "f" => &mut table.functions,
                "o" => &mut table.operators,
                "t" => &mut table.types,
                "i" => &mut table.information,
                _ => continue,
            };
            map.insert(name, class);
        }
        table
    }

    fn class(&self, kind: Kind, name: &str) -> Option<Class> {
        let map = match kind {
            Kind::Function => &self.functions,
            Kind::Operator => &self.operators,
            Kind::Type => &self.types,
            Kind::Information => &self.information,
        };
        map.get(name).copied()
    }
}

fn tables() -> &'static [(u32, Table); 4] {
    static TABLES: OnceLock<[(u32, Table); 4]> = OnceLock::new();
    TABLES.get_or_init(|| {
        [
            (15, Table::read(include_str!("pg15.txt"))),
            (16, Table::read(include_str!("pg16.txt"))),
            (17, Table::read(include_str!("pg17.txt"))),
            (18, Table::read(include_str!("pg18.txt"))),
        ]
    })
}

/// Whether the reviewed list of an extension has this function or type.
pub fn is_listed_of(extension: &str, name: &str) -> bool {
    static LISTS: OnceLock<HashMap<&'static str, HashSet<&'static str>>> = OnceLock::new();
    let lists = LISTS.get_or_init(|| {
        let mut lists: HashMap<&str, HashSet<&str>> = HashMap::new();
        let text = include_str!("extensions.txt");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            if let Some(extension) = words.next() {
                lists.entry(extension).or_default().extend(words);
            }
        }
        lists
    });
    lists.get(extension).is_some_and(|list| list.contains(name))
}

/// The class of one of the server's own names; None where no table knows it.
pub fn class(server_major: u32, kind: Kind, name: &str) -> Option<Class> {
    let tables = tables();
    if let Some((_, own)) = tables.iter().find(|(major, _)| *major == server_major) {
        return own.class(kind, name);
    }
    // Listed in all, or not listed: a name that one of them lacks may be anything.
    let verdicts = tables.iter().map(|(_, table)| table.class(kind, name));
    verdicts
        .map(|verdict| verdict.unwrap_or(Class::Unknown))
        .max()
        .filter(|worst| *worst != Class::Unknown || tables.iter().any(|(_, table)| table.class(kind, name).is_some()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::classify::{Nature, Rules};
    use super::*;

    #[test]
    fn what_reaches_beyond_its_arguments_is_never_listed() {
        for major in 12..=18 {
            for name in [
                "pg_read_file",
                "pg_read_binary_file",
                "pg_ls_dir",
                "pg_stat_file",
                "lo_import",
                "lo_export",
                "query_to_xml",
                "table_to_xml",
                "database_to_xml",
                "ts_stat",
                "ts_rewrite",
                "set_config",
                "pg_notify",
                "nextval",
                "setval",
                "pg_sleep",
                "pg_advisory_lock",
                "pg_try_advisory_xact_lock",
                "pg_terminate_backend",
                "pg_reload_conf",
                "pg_logical_emit_message",
                "pg_stat_get_activity",
                "pg_switch_wal",
                "txid_current",
                "no_such_function",
            ] {
                let class = class(major, Kind::Function, name);
                assert_ne!(class, Some(Class::Harmless), "{major} {name}");
            }
        }
    }

    #[test]
    fn what_every_driver_calls_is_listed() {
        for major in 12..=18 {
            for name in [
                "lower",
                "count",
                "sum",
                "now",
                "coalesce_never_a_function",
                "date_trunc",
                "version",
                "current_setting",
                "pg_get_userbyid",
                "format_type",
                "pg_table_is_visible",
                "obj_description",
                "array_agg",
                "row_number",
                "generate_series",
                "jsonb_build_object",
                "pg_advisory_unlock_all",
                "currval",
                "gen_random_uuid",
            ] {
                let listed = class(major, Kind::Function, name) == Some(Class::Harmless);
                assert_eq!(listed, name != "coalesce_never_a_function", "{major} {name}");
            }
            for name in ["=", "<>", "||", "~~", "->>", "@>", "+", "&&"] {
                assert_eq!(
                    class(major, Kind::Operator, name),
                    Some(Class::Harmless),
                    "{major} {name}"
                );
            }
            for name in [
                "int4",
                "text",
                "timestamptz",
                "jsonb",
                "regclass",
                "uuid",
                "_text",
                "bpchar",
            ] {
                assert_eq!(class(major, Kind::Type, name), Some(Class::Harmless), "{major} {name}");
            }
        }
    }

    #[test]
    fn every_verdict_of_16_and_17_is_one_that_was_reviewed_for_15_or_18() {
        let reviewed: std::collections::HashSet<&str> = [include_str!("pg15.txt"), include_str!("pg18.txt")]
            .iter()
            .flat_map(|text| text.lines())
            .collect();
        for text in [include_str!("pg16.txt"), include_str!("pg17.txt")] {
            let mut lines = text.lines().filter(|line| !line.starts_with('#'));
            assert!(lines.clone().count() > 2700);
            assert_eq!(lines.find(|line| !reviewed.contains(line)), None);
        }
    }

    #[test]
    fn a_function_counts_from_the_major_that_brought_it() {
        for (name, first) in [("pg_input_is_valid", 16), ("to_bin", 17), ("casefold", 18)] {
            for major in 12..=18 {
                let listed = class(major, Kind::Function, name) == Some(Class::Harmless);
                assert_eq!(listed, major >= first, "{major} {name}");
            }
        }
    }

    #[test]
    fn extensions_list_what_only_computes() {
        assert!(is_listed_of("citext", "citext_eq") && is_listed_of("uuid-ossp", "uuid_generate_v4"));
        for (extension, name) in [
            ("citext", "similarity"),
            ("pg_trgm", "set_limit"),
            ("tablefunc", "crosstab"),
            ("dblink", "dblink"),
            ("#", "A"),
        ] {
            assert!(!is_listed_of(extension, name), "{extension} {name}");
        }
    }

    #[test]
    fn the_rules_file_reads_and_the_first_rule_decides() {
        let rules = Rules::parse(include_str!("rules.txt")).unwrap();
        assert_eq!(rules.class("table_to_xml", Nature::Stable), Class::Read);
        assert_eq!(rules.class("pg_advisory_unlock_all", Nature::Volatile), Class::Harmless);
        assert_eq!(
            rules.class("pg_create_physical_replication_slot", Nature::Volatile),
            Class::Network
        );
        assert_eq!(rules.class("brand_new", Nature::Volatile), Class::Unknown);
        assert_eq!(Rules::parse("harmless\n").unwrap_err().line, 1);
        assert!(Rules::parse("fine lower\n").is_err());
    }

    #[test]
    fn the_tables_agree_with_the_rules() {
        let rules = Rules::parse(include_str!("rules.txt")).unwrap();
        for (major, table) in tables() {
            for (name, class) in &table.functions {
                // Overloads differ in volatility, so the worst nature is only a bound.
                let best = rules
                    .class(name, Nature::Immutable)
                    .min(rules.class(name, Nature::Aggregate));
                assert!(*class >= best, "{major} {name}: run funcgen");
            }
        }
    }
}
