//! What a statement means to the session's state, and what it is called in front of people.
//!
//! Everything here is read off the statement's own node; what stands inside it has been walked elsewhere.

use std::sync::Arc;

use super::analysis::{CopyStatement, DiscardWhat, Statement, StatementKind, TransactionVerb};
use super::parse::{pb, NodeEnum as N};
use super::walk::name::{constant, is_true, literal, qualified, strings};
use crate::sql::names::RelationName;

/// CURSOR_OPT_HOLD of the server's parsenodes.h.
const CURSOR_OPT_HOLD: i32 = 0x0020;

/// Transaction control; None for a kind the grammar does not know.
pub fn transaction_verb(kind: i32) -> Option<TransactionVerb> {
    use pb::TransactionStmtKind as K;
    Some(match K::try_from(kind).ok()? {
        K::Undefined => return None,
        K::TransStmtBegin | K::TransStmtStart => TransactionVerb::Begin,
        K::TransStmtCommit => TransactionVerb::Commit,
        K::TransStmtRollback => TransactionVerb::Rollback,
        K::TransStmtSavepoint => TransactionVerb::Savepoint,
        K::TransStmtRelease => TransactionVerb::Release,
        K::TransStmtRollbackTo => TransactionVerb::RollbackTo,
        K::TransStmtPrepare | K::TransStmtCommitPrepared | K::TransStmtRollbackPrepared => TransactionVerb::TwoPhase,
    })
}

/// EXPLAIN with ANALYZE in any spelling, in any place of its options.
pub fn is_analyze(explain: &pb::ExplainStmt) -> bool {
    // The server takes the last of several; here one that is true is enough.
    explain.options.iter().any(|option| match option.node.as_ref() {
        Some(N::DefElem(option)) => option.defname.eq_ignore_ascii_case("analyze") && is_true(option),
        _ => true,
    })
}

/// The FORMAT of EXPLAIN, lower case; the server takes the last of several.
fn explain_format(explain: &pb::ExplainStmt) -> Arc<str> {
    let given = explain
        .options
        .iter()
        .rev()
        .find_map(|option| match option.node.as_ref() {
            Some(N::DefElem(option)) if option.defname.eq_ignore_ascii_case("format") => option.arg.as_deref(),
            _ => None,
        });
    match given.and_then(|value| value.node.as_ref()) {
        Some(N::String(word)) => word.sval.to_ascii_lowercase().into(),
        Some(_) => "unknown".into(),
        None => "text".into(),
    }
}

/// The kind of a statement; `inner` is what PREPARE, DECLARE or EXPLAIN wraps.
pub fn kind(node: &N, inner: Option<&Arc<Statement>>) -> StatementKind {
    let all = |name: &str| (!name.is_empty()).then(|| name.into());
    match (node, inner) {
        (N::TransactionStmt(stmt), _) => match transaction_verb(stmt.kind) {
            Some(verb) => StatementKind::Transaction(verb),
            None => StatementKind::Plain,
        },
        (N::VariableSetStmt(stmt), _) => set_kind(stmt),
        (N::SelectStmt(select), _) => set_config_kind(select),
        (N::VariableShowStmt(_), _) => StatementKind::Show,
        (N::DiscardStmt(stmt), _) => discard_kind(stmt.target),
        (N::PrepareStmt(stmt), Some(inner)) => StatementKind::Prepare {
            name: stmt.name.as_str().into(),
            inner: Arc::clone(inner),
        },
        (N::ExecuteStmt(stmt), _) => StatementKind::Execute {
            name: stmt.name.as_str().into(),
        },
        (N::DeallocateStmt(stmt), _) => StatementKind::Deallocate(all(&stmt.name).filter(|_| !stmt.isall)),
        (N::DeclareCursorStmt(stmt), Some(inner)) => StatementKind::Declare {
            name: stmt.portalname.as_str().into(),
            hold: stmt.options & CURSOR_OPT_HOLD != 0,
            inner: Arc::clone(inner),
        },
        (N::FetchStmt(stmt), _) => StatementKind::Fetch {
            name: stmt.portalname.as_str().into(),
            only_move: stmt.ismove,
        },
        (N::ClosePortalStmt(stmt), _) => StatementKind::CloseCursor(all(&stmt.portalname)),
        (N::ExplainStmt(stmt), Some(inner)) => StatementKind::Explain {
            analyze: is_analyze(stmt),
            format: explain_format(stmt),
            inner: Arc::clone(inner),
        },
        _ => StatementKind::Plain,
    }
}

fn set_kind(stmt: &pb::VariableSetStmt) -> StatementKind {
    use pb::VariableSetKind as K;
    let name: Arc<str> = stmt.name.to_ascii_lowercase().into();
    let set = |name, value| StatementKind::Set {
        name,
        value,
        local: stmt.is_local,
    };
    match K::try_from(stmt.kind) {
        Ok(K::VarResetAll) => StatementKind::Reset(None),
        Ok(K::VarReset) => StatementKind::Reset(Some(name)),
        Ok(K::VarSetDefault) => set(name, None),
        // Several values (search_path) are no constant: the room reads the setting back.
        Ok(K::VarSetValue) => set(name, constant(&stmt.args).map(Into::into)),
        Ok(K::VarSetMulti) => StatementKind::Plain,
        _ => set(name, None),
    }
}

/// `SELECT set_config('name', 'value', local)` and nothing else.
fn set_config_kind(select: &pb::SelectStmt) -> StatementKind {
    let call = match select.target_list.as_slice() {
        [target] if select.from_clause.is_empty() && select.where_clause.is_none() => set_config(target),
        _ => None,
    };
    call.unwrap_or(StatementKind::Plain)
}

fn set_config(target: &pb::Node) -> Option<StatementKind> {
    let N::ResTarget(target) = target.node.as_ref()? else {
        return None;
    };
    let N::FuncCall(call) = target.val.as_ref()?.node.as_ref()? else {
        return None;
    };
    let (None | Some("pg_catalog"), "set_config") = qualified(&call.funcname)? else {
        return None;
    };
    let [name, value, local] = call.args.as_slice() else {
        return None;
    };
    Some(StatementKind::Set {
        name: literal(name)?.to_ascii_lowercase().into(),
        value: literal(value).map(Into::into),
        local: constant(std::slice::from_ref(local)).is_none_or(|local| local != "false"),
    })
}

fn discard_kind(target: i32) -> StatementKind {
    use pb::DiscardMode as M;
    StatementKind::Discard(match M::try_from(target) {
        Ok(M::DiscardPlans) => DiscardWhat::Plans,
        Ok(M::DiscardSequences) => DiscardWhat::Sequences,
        Ok(M::DiscardTemp) => DiscardWhat::Temp,
        _ => DiscardWhat::All,
    })
}

/// COPY from or to the client. An option that is not known here is its name: the statement is Opaque then.
pub fn copy(stmt: &pb::CopyStmt, relation: Option<RelationName>) -> Result<CopyStatement, String> {
    let mut copy = CopyStatement {
        from: stmt.is_from,
        relation,
        format: "text".into(),
        delimiter: None,
        quote: None,
        escape: None,
        null: None,
        header: false,
    };
    for option in &stmt.options {
        let Some(N::DefElem(option)) = option.node.as_ref() else {
            return Err("without a name".to_owned());
        };
        let text = option_text(option);
        let byte = || match text.as_deref().unwrap_or_default().as_bytes() {
            [byte] => Ok(Some(*byte)),
            _ => Err(option.defname.clone()),
        };
        match option.defname.as_str() {
            "format" => copy.format = text.unwrap_or_default().to_ascii_lowercase().into(),
            "delimiter" => copy.delimiter = byte()?,
            "quote" => copy.quote = byte()?,
            "escape" => copy.escape = byte()?,
            "null" => copy.null = text.map(Into::into),
            "header" => copy.header = is_true(option),
            // They change what is read, skipped or quoted, not how a line falls into fields.
            "freeze" | "force_quote" | "force_not_null" | "force_null" | "default" => {}
            "on_error" | "log_verbosity" | "reject_limit" if stmt.is_from => {}
            other => return Err(other.to_owned()),
        }
    }
    match &*copy.format {
        "text" | "csv" | "binary" => Ok(copy),
        _ => Err("format".to_owned()),
    }
}

fn option_text(option: &pb::DefElem) -> Option<String> {
    match option.arg.as_ref()?.node.as_ref()? {
        N::String(text) => Some(text.sval.clone()),
        N::Integer(number) => Some(number.ival.to_string()),
        N::TypeName(name) => strings(&name.names)?.last().map(|name| (*name).to_owned()),
        _ => None,
    }
}

/// The command in words, as the server's command tags have it.
pub fn action(node: &N, objects: &[Arc<str>]) -> Arc<str> {
    let fixed = match node {
        N::SelectStmt(_) => "SELECT",
        N::InsertStmt(_) => "INSERT",
        N::UpdateStmt(_) => "UPDATE",
        N::DeleteStmt(_) => "DELETE",
        N::MergeStmt(_) => "MERGE",
        N::TransactionStmt(stmt) => match transaction_verb(stmt.kind) {
            Some(TransactionVerb::Begin) => "BEGIN",
            Some(TransactionVerb::Commit) => "COMMIT",
            Some(TransactionVerb::Rollback | TransactionVerb::RollbackTo) => "ROLLBACK",
            Some(TransactionVerb::Savepoint) => "SAVEPOINT",
            Some(TransactionVerb::Release) => "RELEASE",
            Some(TransactionVerb::TwoPhase) => "PREPARE TRANSACTION",
            None => "TRANSACTION",
        },
        N::VariableSetStmt(stmt) => match kind(node, None) {
            StatementKind::Reset(_) => "RESET",
            _ if stmt.is_local => "SET LOCAL",
            _ => "SET",
        },
        N::VariableShowStmt(_) => "SHOW",
        N::DiscardStmt(_) => "DISCARD",
        N::PrepareStmt(_) => "PREPARE",
        N::ExecuteStmt(_) => "EXECUTE",
        N::DeallocateStmt(_) => "DEALLOCATE",
        N::DeclareCursorStmt(_) => "DECLARE CURSOR",
        N::FetchStmt(stmt) if stmt.ismove => "MOVE",
        N::FetchStmt(_) => "FETCH",
        N::ClosePortalStmt(_) => "CLOSE CURSOR",
        N::ExplainStmt(_) => "EXPLAIN",
        N::CopyStmt(_) => "COPY",
        N::TruncateStmt(_) => "TRUNCATE TABLE",
        N::LockStmt(_) => "LOCK TABLE",
        N::ListenStmt(_) => "LISTEN",
        N::UnlistenStmt(_) => "UNLISTEN",
        N::NotifyStmt(_) => "NOTIFY",
        N::DoStmt(_) => "DO",
        N::CallStmt(_) => "CALL",
        N::LoadStmt(_) => "LOAD",
        N::CheckPointStmt(_) => "CHECKPOINT",
        N::VacuumStmt(stmt) if stmt.is_vacuumcmd => "VACUUM",
        N::VacuumStmt(_) => "ANALYZE",
        N::ReindexStmt(_) => "REINDEX",
        N::ClusterStmt(_) => "CLUSTER",
        N::RefreshMatViewStmt(_) => "REFRESH MATERIALIZED VIEW",
        N::ConstraintsSetStmt(_) => "SET CONSTRAINTS",
        N::CommentStmt(_) => "COMMENT",
        N::SecLabelStmt(_) => "SECURITY LABEL",
        N::GrantStmt(stmt) if stmt.is_grant => "GRANT",
        N::GrantStmt(_) => "REVOKE",
        N::GrantRoleStmt(stmt) if stmt.is_grant => "GRANT ROLE",
        N::GrantRoleStmt(_) => "REVOKE ROLE",
        N::AlterDefaultPrivilegesStmt(_) => "ALTER DEFAULT PRIVILEGES",
        N::AlterSystemStmt(_) => "ALTER SYSTEM",
        N::ImportForeignSchemaStmt(_) => "IMPORT FOREIGN SCHEMA",
        N::ReassignOwnedStmt(_) => "REASSIGN OWNED",
        N::DropOwnedStmt(_) => "DROP OWNED",
        N::CreateTableAsStmt(_) => "CREATE TABLE AS",
        _ => return definition(node, objects),
    };
    fixed.into()
}

/// CREATE, ALTER or DROP and the kind of object, in words.
fn definition(node: &N, objects: &[Arc<str>]) -> Arc<str> {
    let verb = match node {
        N::DropStmt(_) | N::DropRoleStmt(_) | N::DropdbStmt(_) | N::DropTableSpaceStmt(_) => "DROP",
        N::DropUserMappingStmt(_) | N::DropSubscriptionStmt(_) => "DROP",
        N::AlterTableStmt(_) | N::RenameStmt(_) | N::AlterOwnerStmt(_) | N::AlterObjectSchemaStmt(_) => "ALTER",
        N::AlterObjectDependsStmt(_) | N::AlterTableMoveAllStmt(_) | N::AlterFunctionStmt(_) => "ALTER",
        N::AlterSeqStmt(_) | N::AlterRoleStmt(_) | N::AlterRoleSetStmt(_) | N::AlterDatabaseStmt(_) => "ALTER",
        N::AlterDatabaseSetStmt(_) | N::AlterDatabaseRefreshCollStmt(_) | N::AlterDomainStmt(_) => "ALTER",
        N::AlterTypeStmt(_) | N::AlterEnumStmt(_) | N::AlterPolicyStmt(_) | N::AlterCollationStmt(_) => "ALTER",
        N::AlterExtensionStmt(_) | N::AlterExtensionContentsStmt(_) | N::AlterFdwStmt(_) => "ALTER",
        N::AlterForeignServerStmt(_) | N::AlterUserMappingStmt(_) | N::AlterEventTrigStmt(_) => "ALTER",
        N::AlterOpFamilyStmt(_) | N::AlterOperatorStmt(_) | N::AlterPublicationStmt(_) => "ALTER",
        N::AlterSubscriptionStmt(_) | N::AlterStatsStmt(_) | N::AlterTableSpaceOptionsStmt(_) => "ALTER",
        N::AlterTsdictionaryStmt(_) | N::AlterTsconfigurationStmt(_) => "ALTER",
        _ => "CREATE",
    };
    let mut words = verb.to_owned();
    for letter in objects.first().map_or("", |object| object).chars() {
        if letter.is_ascii_uppercase() {
            words.push(' ');
        }
        words.push(letter.to_ascii_uppercase());
    }
    words.into()
}
