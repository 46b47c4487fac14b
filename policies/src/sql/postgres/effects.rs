//! Which parts of a statement ride along with any Allow: what drivers send on connect and reset, transaction
//! control, harmless settings, and reads of the reviewed part of the system catalogs.
//!
//! A part rides only when nothing else in its statement needs a rule. Catalog relations that hold secrets, sampled
//! values or other sessions' statements have to be named, unless they stand behind a reviewed system view.

use super::analysis::{StatementKind, TransactionVerb};
use crate::api::access_policy::SqlCommand;
use crate::sql::facts::{Effects, Part, PartRelation, SqlFacts};
use crate::sql::names::RelationName;

/// Functions that, called by themselves without a relation, only tidy up or tune the session.
const SESSION_CALLS: &[&str] = &[
    "pg_catalog.set_config",
    "pg_catalog.current_setting",
    "pg_catalog.pg_advisory_unlock_all",
];

/// Relations of the system schemas that have to be named.
const SECRET: &[&str] = &[
    "pg_authid",
    "pg_backend_memory_contexts",
    "pg_config",
    "pg_db_role_setting",
    "pg_file_settings",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_foreign_table",
    "pg_hba_file_rules",
    "pg_ident_file_mappings",
    "pg_largeobject",
    "pg_locks",
    "pg_prepared_xacts",
    "pg_shadow",
    "pg_shmem_allocations",
    "pg_shmem_allocations_numa",
    "pg_statistic",
    "pg_statistic_ext_data",
    "pg_stats",
    "pg_stats_ext",
    "pg_stats_ext_exprs",
    "pg_subscription",
    "pg_user_mapping",
    "pg_user_mappings",
    "pg_aios",
    "foreign_data_wrapper_options",
    "foreign_server_options",
    "foreign_table_options",
    "column_options",
    "user_mapping_options",
    "_pg_foreign_data_wrappers",
    "_pg_foreign_servers",
    "_pg_foreign_table_columns",
    "_pg_foreign_tables",
    "_pg_user_mappings",
];

/// Beginnings of such names: views of other sessions and of replication.
const SECRET_PREFIXES: &[&str] = &[
    "pg_stat_activity",
    "pg_stat_progress_",
    "pg_stat_replication",
    "pg_stat_wal_receiver",
    "pg_stat_subscription",
    "pg_stat_ssl",
    "pg_stat_gssapi",
    "pg_stat_statements",
    "pg_replication_",
    "pg_toast",
];

/// Whether a relation is the server's own.
pub fn is_system(relation: &RelationName) -> bool {
    matches!(&*relation.schema, "pg_catalog" | "information_schema")
}

/// Whether a relation of the server's own may be read by anyone who may read at all.
pub fn is_harmless_catalog(relation: &RelationName) -> bool {
    let name = &*relation.name;
    is_system(relation) && !SECRET.contains(&name) && !SECRET_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Marks the parts that ride along. `named` are the relations the text itself names; parts of a body keep the
/// mark they got there.
pub fn mark(facts: &mut SqlFacts, kind: &StatementKind, named: &[RelationName], inherited: &[Part]) {
    let quiet = facts.unlisted_settings.is_empty()
        && facts.channels.is_empty()
        && facts.unlisted_functions.known().is_some_and(Vec::is_empty);
    let whole = quiet && rides_whole(facts, kind);
    // What a system view reaches rides with it; a relation named outright, or behind someone's own view, does not.
    let only_system = named.iter().all(is_system);
    for part in &mut facts.parts {
        let same = |other: &&Part| other.command == part.command && other.relation == part.relation;
        if let Some(known) = inherited.iter().find(same) {
            part.rides_along = whole || known.rides_along;
            continue;
        }
        part.rides_along = whole
            || match (&part.relation, part.command) {
                (PartRelation::Known(relation), SqlCommand::Select) => {
                    is_harmless_catalog(relation) || (only_system && is_system(relation) && !named.contains(relation))
                }
                _ => false,
            };
    }
}

fn rides_whole(facts: &SqlFacts, kind: &StatementKind) -> bool {
    match kind {
        StatementKind::Transaction(TransactionVerb::TwoPhase) => false,
        StatementKind::Transaction(_) | StatementKind::Show | StatementKind::Discard(_) => true,
        StatementKind::Deallocate(_) | StatementKind::CloseCursor(_) | StatementKind::Reset(_) => true,
        StatementKind::Set { .. } => true,
        _ => is_session_call(facts) || is_unlisten_all(facts) || is_transaction_mode(facts),
    }
}

/// SELECT of nothing but functions that tidy up or tune the session.
fn is_session_call(facts: &SqlFacts) -> bool {
    let functions = facts.functions.known().map(Vec::as_slice).unwrap_or_default();
    let [Part {
        command: SqlCommand::Select,
        relation: PartRelation::None,
        ..
    }] = facts.parts.as_slice()
    else {
        return false;
    };
    !functions.is_empty() && functions.iter().all(|name| SESSION_CALLS.contains(&&**name))
}

/// UNLISTEN *, the only statement of its command without a channel.
fn is_unlisten_all(facts: &SqlFacts) -> bool {
    let only = |part: &Part| part.command == SqlCommand::Listen;
    !facts.parts.is_empty() && facts.parts.iter().all(only) && facts.channels.is_empty()
}

/// SET TRANSACTION and SET SESSION CHARACTERISTICS.
fn is_transaction_mode(facts: &SqlFacts) -> bool {
    let only = |part: &Part| matches!(part.command, SqlCommand::Set) && part.relation == PartRelation::None;
    !facts.parts.is_empty() && facts.parts.iter().all(only)
}

/// What planning alone may do: no row is written and nothing is defined, but functions may run.
pub fn of_plain_explain(effects: Effects) -> Effects {
    let mut kept = Effects::READ;
    for (effect, _) in Effects::NAMES {
        if effects.contains(effect) && effect != Effects::WRITE && effect != Effects::DEFINE {
            kept.insert(effect);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalogs_with_secrets_need_naming() {
        for name in [
            "pg_authid",
            "pg_shadow",
            "pg_stats",
            "pg_statistic",
            "pg_stat_activity",
            "pg_user_mappings",
        ] {
            assert!(!is_harmless_catalog(&RelationName::new("pg_catalog", name)), "{name}");
        }
        for name in [
            "pg_class",
            "pg_attribute",
            "pg_type",
            "pg_roles",
            "pg_stat_user_tables",
            "pg_settings",
        ] {
            assert!(is_harmless_catalog(&RelationName::new("pg_catalog", name)), "{name}");
        }
        assert!(is_harmless_catalog(&RelationName::new("information_schema", "columns")));
        assert!(!is_harmless_catalog(&RelationName::new(
            "information_schema",
            "user_mapping_options"
        )));
        assert!(!is_harmless_catalog(&RelationName::new("public", "pg_class")));
    }
}
