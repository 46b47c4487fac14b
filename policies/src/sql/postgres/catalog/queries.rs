//! The queries that fill a snapshot, one per section, for servers 12 to 18.
//!
//! Each is one statement, fully qualified, for the text format. They want an empty `search_path`, so that
//! pg_get_viewdef qualifies every name it prints. Nothing here depends on a value from outside.

/// The extension that an object of a catalog belongs to; NULL where it belongs to none.
macro_rules! extension_of {
    ($class:literal, $object:literal) => {
        concat!(
            "(SELECT e.extname FROM pg_catalog.pg_depend d \
             JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid \
             WHERE d.classid OPERATOR(pg_catalog.=) '",
            $class,
            "'::pg_catalog.regclass \
             AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass \
             AND d.objid OPERATOR(pg_catalog.=) ",
            $object,
            ".oid AND d.deptype OPERATOR(pg_catalog.=) 'e')"
        )
    };
}

/// Section name and query, in the order [`super::CatalogBuilder`] wants them.
pub const QUERIES: &[(&str, &str)] = &[
    ("server", SERVER),
    ("schemas", SCHEMAS),
    ("relations", RELATIONS),
    ("columns", COLUMNS),
    ("inherits", INHERITS),
    ("views", VIEWS),
    ("depends", DEPENDS),
    ("functions", FUNCTIONS),
    ("types", TYPES),
    ("operators", OPERATORS),
    ("casts", CASTS),
];

/// The server's own types, which a snapshot leaves out and a schema file names: section and query.
pub const BASE_TYPES: (&str, &str) = (
    "base-types",
    "SELECT t.typname, t.oid FROM pg_catalog.pg_type t \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace \
     WHERE n.nspname OPERATOR(pg_catalog.=) 'pg_catalog' AND t.typrelid OPERATOR(pg_catalog.=) 0 \
     AND t.typname !~ '^_pg_'",
);

const SERVER: &str = "SELECT pg_catalog.current_setting('server_version_num')";

// The server skips schemas of the search_path that the role may not use, so the snapshot has to know them.
const SCHEMAS: &str =
    "SELECT n.nspname, pg_catalog.has_schema_privilege(n.oid, 'USAGE') FROM pg_catalog.pg_namespace n \
     WHERE n.nspname !~ '^pg_(toast|temp_|toast_temp_)'";

// Indexes and toast tables have no place in a FROM clause.
const RELATIONS: &str = "SELECT c.oid, n.nspname, c.relname, c.relkind, c.reltype FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
     WHERE c.relkind IN ('r','p','v','m','f','S','c') AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'";

const COLUMNS: &str = "SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, \
     a.attgenerated OPERATOR(pg_catalog.<>) '' FROM pg_catalog.pg_attribute a \
     JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) a.attrelid \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
     WHERE a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped AND c.relkind IN ('r','p','v','m','f','S','c') \
     AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)' ORDER BY a.attrelid, a.attnum";

const INHERITS: &str = "SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i ORDER BY i.inhrelid, i.inhseqno";

// Views of the server itself are leaves: policies name them as they are.
const VIEWS: &str = "SELECT c.oid, pg_catalog.pg_get_viewdef(c.oid) FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
     WHERE c.relkind IN ('v','m') AND n.nspname NOT IN ('pg_catalog','information_schema') \
     AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'";

const DEPENDS: &str = "SELECT DISTINCT r.ev_class, d.refobjid, d.refobjsubid FROM pg_catalog.pg_depend d \
     JOIN pg_catalog.pg_rewrite r ON r.oid OPERATOR(pg_catalog.=) d.objid \
     JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) r.ev_class \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
     WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
     AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
     AND d.refobjid OPERATOR(pg_catalog.<>) r.ev_class AND c.relkind IN ('v','m') \
     AND n.nspname NOT IN ('pg_catalog','information_schema')";

// The last column of this and the next three: the extension that a function or type belongs to.
// The server's own functions matter only where they answer rows or records; user-defined ones always do.
const FUNCTIONS: &str = concat!(
    "SELECT p.oid, n.nspname, p.proname, p.prokind, l.lanname, p.provolatile, p.prosecdef, \
     p.proretset, p.prorettype, p.pronargs, p.pronargdefaults, p.provariadic OPERATOR(pg_catalog.<>) 0, \
     p.proargtypes, pg_catalog.array_to_string(p.proallargtypes, ' '), \
     pg_catalog.array_to_string(p.proargmodes, ' '), \
     pg_catalog.array_to_json(p.proargnames), ",
    extension_of!("pg_catalog.pg_proc", "p"),
    " FROM pg_catalog.pg_proc p \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
     JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang \
     WHERE (p.oid OPERATOR(pg_catalog.>=) 16384 OR n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog' OR p.proretset \
     OR p.proallargtypes IS NOT NULL OR p.prorettype OPERATOR(pg_catalog.=) 2249) \
     AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'"
);

const TYPES: &str = concat!(
    "SELECT t.oid, n.nspname, t.typname, t.typtype, t.typbasetype, t.typelem, t.typrelid, ",
    extension_of!("pg_catalog.pg_type", "t"),
    " FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace \
     WHERE (t.oid OPERATOR(pg_catalog.>=) 16384 OR t.typtype IN ('d','c')) \
     AND n.nspname !~ '^pg_(toast|temp_|toast_temp_)'"
);

const OPERATORS: &str = concat!(
    "SELECT n.nspname, o.oprname, pn.nspname, p.proname, \
     p.provolatile OPERATOR(pg_catalog.=) 'i', ",
    extension_of!("pg_catalog.pg_proc", "p"),
    " FROM pg_catalog.pg_operator o \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace \
     JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) o.oprcode::pg_catalog.oid \
     JOIN pg_catalog.pg_namespace pn ON pn.oid OPERATOR(pg_catalog.=) p.pronamespace \
     WHERE o.oid OPERATOR(pg_catalog.>=) 16384"
);

const CASTS: &str = concat!(
    "SELECT n.nspname, t.typname, pn.nspname, p.proname, ",
    extension_of!("pg_catalog.pg_proc", "p"),
    " FROM pg_catalog.pg_cast c \
     JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) c.casttarget \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace \
     LEFT JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) c.castfunc \
     LEFT JOIN pg_catalog.pg_namespace pn ON pn.oid OPERATOR(pg_catalog.=) p.pronamespace \
     WHERE c.oid OPERATOR(pg_catalog.>=) 16384"
);
