//! A catalog from a schema written in SQL, such as `pg_dump --schema-only` prints, on top of the server's own.
//!
//! Statements are read in their order with the server's grammar; what they define goes into the same types a
//! running sidecar fills from the server. What is not understood is noted with its line and defines nothing, so that
//! whatever needs it stays unknown. Rights are not read: every schema may be used. Nothing is ever executed.

mod routine;
mod split;
mod table;
mod types;
mod view;

use std::sync::Arc;

use super::super::names::truncated;
use super::super::parse::{self, pb, Dialect, NodeEnum as N};
use super::views::Owner;
use super::{Catalog, Oid, Relation, RelationLookup, FIRST_USER_OID};
use split::{Kind, Script};

/// Something of a schema file that was not understood, and so is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The line the statement begins on, from 1.
    pub line: u64,
    /// What was not understood, and what it means.
    pub message: String,
}

/// What a statement came to: nothing to say, or why what it defines stays unknown.
type Read<T = ()> = Result<T, String>;

/// Reads a schema on top of a catalog, usually [`super::builtin`].
pub fn read_sql(text: &str, base: Catalog) -> (Catalog, Vec<Note>) {
    let mut reader = Reader {
        catalog: base,
        path: default_path(),
        next_oid: FIRST_USER_OID,
        line: 0,
        notes: Vec::new(),
    };
    reader.catalog.epoch = 1;
    let mut script = Script::new(text);
    while let Some(piece) = script.next() {
        reader.line = piece.line;
        match piece.kind {
            // pg_dump guards its scripts with these two, which say nothing about the schema.
            Kind::Meta(line) if line.starts_with("\\restrict") || line.starts_with("\\unrestrict") => {}
            Kind::Meta(line) => reader.note(format!("`{}` is for psql and was not read", head(line))),
            Kind::Sql(sql) => {
                if reader.sql(sql) {
                    script.skip_copy_data();
                }
            }
        }
    }
    (reader.catalog, reader.notes)
}

/// The search_path of a session that set none.
pub fn default_path() -> Vec<Arc<str>> {
    vec!["$user".into(), "public".into()]
}

/// A schema while it is read.
struct Reader {
    catalog: Catalog,
    path: Vec<Arc<str>>,
    next_oid: Oid,
    line: u64,
    notes: Vec<Note>,
}

impl Reader {
    fn note(&mut self, message: String) {
        self.notes.push(Note {
            line: self.line,
            message,
        });
    }

    fn oid(&mut self) -> Oid {
        let oid = self.next_oid;
        self.next_oid = oid.saturating_add(1);
        oid
    }

    /// Reads one statement; whether data lines follow it.
    fn sql(&mut self, sql: &str) -> bool {
        let read = parse::with_tree(sql, Dialect::default(), |statements| {
            let mut data = false;
            for statement in statements.iter().filter_map(|raw| raw.stmt.as_deref()) {
                data |= matches!(&statement.node, Some(N::CopyStmt(copy))
                    if copy.is_from && copy.filename.is_empty() && !copy.is_program);
                if let Err(why) = self.statement(statement) {
                    self.note(why);
                }
            }
            data
        });
        read.unwrap_or_else(|error| {
            self.note(format!("`{}` was not read: {error}", head(sql)));
            let words: Vec<String> = sql.split_whitespace().map(str::to_ascii_lowercase).collect();
            words.first().is_some_and(|word| word == "copy") && words.iter().any(|word| word == "stdin")
        })
    }

    fn statement(&mut self, statement: &pb::Node) -> Read {
        let Some(node) = &statement.node else { return Ok(()) };
        match node {
            N::CreateSchemaStmt(e) => self.schema(e),
            N::CreateStmt(e) => self.table(e, super::RelationKind::Table),
            N::CreateForeignTableStmt(e) => match &e.base_stmt {
                Some(base) => self.table(base, super::RelationKind::Foreign),
                None => Ok(()),
            },
            N::CreateSeqStmt(e) => self.sequence(e.sequence.as_ref()),
            N::AlterTableStmt(e) => self.alter_table(e),
            N::RenameStmt(e) => self.rename(e),
            N::AlterObjectSchemaStmt(e) => self.set_schema(e),
            N::DropStmt(e) => self.drop_objects(e),
            N::ViewStmt(e) => self.view(e),
            N::CreateTableAsStmt(e) => self.table_as(e),
            N::CreateFunctionStmt(e) => self.function(e),
            N::DefineStmt(e) => self.define(e),
            N::CreateCastStmt(e) => self.cast(e),
            N::CompositeTypeStmt(e) => self.composite(e),
            N::CreateEnumStmt(e) => self.plain_type(&e.type_name, super::TypeKind::Enum, 0),
            N::CreateDomainStmt(e) => self.domain(e),
            N::CreateRangeStmt(e) => self.range(e),
            N::VariableSetStmt(e) => self.set(e),
            N::SelectStmt(e) => self.select(e),
            other if is_silent(other) => Ok(()),
            other => Err(unread(other)),
        }
    }

    fn schema(&mut self, e: &pb::CreateSchemaStmt) -> Read {
        let role = e.authrole.as_ref().map(|role| role.rolename.as_str());
        let name = match (e.schemaname.as_str(), role) {
            ("", Some(role)) => role,
            (name, _) => name,
        };
        let name: Arc<str> = truncated(name).into();
        self.catalog.schemas.insert(Arc::clone(&name), true);
        let before = std::mem::replace(&mut self.path, vec![name]);
        for element in &e.schema_elts {
            if let Err(why) = self.statement(element) {
                self.note(why);
            }
        }
        self.path = before;
        Ok(())
    }

    fn set(&mut self, e: &pb::VariableSetStmt) -> Read {
        if e.name != "search_path" {
            return Ok(());
        }
        if e.args.is_empty() {
            self.path = default_path();
            return Ok(());
        }
        let names: Option<Vec<Arc<str>>> = e.args.iter().map(|arg| constant(arg).map(Arc::from)).collect();
        self.path = names.ok_or("the search_path set here was not understood; names behind it may be wrong")?;
        self.path.retain(|name| !name.is_empty());
        Ok(())
    }

    /// `SELECT set_config('search_path', '', false)` is how pg_dump sets it, and `setval` fills sequences.
    fn select(&mut self, e: &pb::SelectStmt) -> Read {
        let unread = || "a SELECT whose functions may define something was not read".to_owned();
        for target in &e.target_list {
            let call = match &target.node {
                Some(N::ResTarget(target)) => target.val.as_deref().and_then(|value| match &value.node {
                    Some(N::FuncCall(call)) => Some(call),
                    _ => None,
                }),
                _ => None,
            };
            let call = call.ok_or_else(unread)?;
            match (strings(&call.funcname).last().copied(), call.args.as_slice()) {
                (Some("setval"), _) => {}
                (Some("set_config"), [name, value, ..]) if constant(name) == Some("search_path") => {
                    let value = constant(value).ok_or_else(unread)?;
                    let names = value.split(',').map(|name| name.trim().trim_matches('"'));
                    self.path = names.filter(|name| !name.is_empty()).map(Arc::from).collect();
                }
                (Some("set_config"), _) => {}
                _ => return Err(unread()),
            }
        }
        Ok(())
    }

    /// The schema new objects go into, and the object's name.
    fn place<'n>(&self, schema: &'n str, name: &'n str) -> Read<(Arc<str>, Arc<str>)> {
        let name: Arc<str> = truncated(name).into();
        if !schema.is_empty() {
            let schema = truncated(schema);
            return match self.catalog.schemas.get_key_value(schema) {
                Some((known, _)) => Ok((Arc::clone(known), name)),
                None => Err(format!("there is no schema {schema}, so {schema}.{name} stays unknown")),
            };
        }
        let first = self.path.iter().find(|schema| self.catalog.has_schema(schema));
        let schema = first.ok_or_else(|| format!("no schema was selected to create {name} in; it stays unknown"))?;
        Ok((Arc::clone(schema), name))
    }

    /// The place of an object by a list of names.
    fn place_of(&self, names: &[pb::Node]) -> Read<(Arc<str>, Arc<str>)> {
        match strings(names).as_slice() {
            [name] => self.place("", name),
            [schema, name] | [_, schema, name] => self.place(schema, name),
            _ => Err("an object without a name stays unknown".to_owned()),
        }
    }

    /// The session a statement of the script runs in.
    fn scope(&self) -> Owner {
        Owner::new(self.path.clone())
    }

    fn find(&self, var: &pb::RangeVar) -> Read<Arc<Relation>> {
        let schema = (!var.schemaname.is_empty()).then_some(var.schemaname.as_str());
        match self.catalog.resolve_relation(schema, &var.relname, &self.scope()) {
            RelationLookup::Known(relation) => Ok(relation),
            RelationLookup::Unknown => Err(format!("the relation {} is not known here", written(var))),
        }
    }
}

/// A relation's name as the script writes it.
fn written(var: &pb::RangeVar) -> String {
    match var.schemaname.is_empty() {
        true => var.relname.clone(),
        false => format!("{}.{}", var.schemaname, var.relname),
    }
}

/// The strings of a list of names.
fn strings(names: &[pb::Node]) -> Vec<&str> {
    let text = names.iter().map(|node| match &node.node {
        Some(N::String(text)) => Some(text.sval.as_str()),
        _ => None,
    });
    text.flatten().collect()
}

/// A string constant.
fn constant(node: &pb::Node) -> Option<&str> {
    match &node.node {
        Some(N::AConst(constant)) => match &constant.val {
            Some(pb::a_const::Val::Sval(text)) => Some(text.sval.as_str()),
            _ => None,
        },
        Some(N::TypeCast(cast)) => constant(cast.arg.as_deref()?),
        _ => None,
    }
}

/// The beginning of a statement, for a note.
fn head(sql: &str) -> String {
    let line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

/// Statements that define no name a statement of an agent could mean: data, rights, comments, indexes, triggers.
fn is_silent(node: &N) -> bool {
    matches!(
        node,
        N::InsertStmt(_)
            | N::UpdateStmt(_)
            | N::DeleteStmt(_)
            | N::MergeStmt(_)
            | N::TruncateStmt(_)
            | N::CopyStmt(_)
            | N::GrantStmt(_)
            | N::GrantRoleStmt(_)
            | N::AlterDefaultPrivilegesStmt(_)
            | N::AlterOwnerStmt(_)
            | N::CommentStmt(_)
            | N::SecLabelStmt(_)
            | N::IndexStmt(_)
            | N::CreateStatsStmt(_)
            | N::AlterStatsStmt(_)
            | N::CreateTrigStmt(_)
            | N::CreateEventTrigStmt(_)
            | N::AlterEventTrigStmt(_)
            | N::CreatePolicyStmt(_)
            | N::AlterPolicyStmt(_)
            | N::CreatePublicationStmt(_)
            | N::AlterPublicationStmt(_)
            | N::CreateSubscriptionStmt(_)
            | N::AlterSubscriptionStmt(_)
            | N::CreateRoleStmt(_)
            | N::AlterRoleStmt(_)
            | N::AlterRoleSetStmt(_)
            | N::AlterDatabaseStmt(_)
            | N::AlterDatabaseSetStmt(_)
            | N::AlterSeqStmt(_)
            | N::AlterEnumStmt(_)
            | N::AlterDomainStmt(_)
            | N::AlterFunctionStmt(_)
            | N::AlterOperatorStmt(_)
            | N::CreateFdwStmt(_)
            | N::AlterFdwStmt(_)
            | N::CreateForeignServerStmt(_)
            | N::AlterForeignServerStmt(_)
            | N::CreateUserMappingStmt(_)
            | N::AlterUserMappingStmt(_)
            | N::CreatePlangStmt(_)
            | N::CreateAmStmt(_)
            | N::CreateOpClassStmt(_)
            | N::CreateOpFamilyStmt(_)
            | N::AlterOpFamilyStmt(_)
            | N::CreateConversionStmt(_)
            | N::CreateTransformStmt(_)
            | N::AlterCollationStmt(_)
            | N::AlterTsdictionaryStmt(_)
            | N::AlterTsconfigurationStmt(_)
            | N::CreateTableSpaceStmt(_)
            | N::TransactionStmt(_)
            | N::ConstraintsSetStmt(_)
            | N::LockStmt(_)
            | N::VacuumStmt(_)
            | N::ClusterStmt(_)
            | N::ReindexStmt(_)
            | N::RefreshMatViewStmt(_)
            | N::ReplicaIdentityStmt(_)
            | N::CheckPointStmt(_)
            | N::VariableShowStmt(_)
    )
}

/// Why a statement that may define something was not read.
fn unread(node: &N) -> String {
    match node {
        N::CreateExtensionStmt(e) => format!(
            "CREATE EXTENSION {}: what it defines is not known here, and stays unknown",
            e.extname
        ),
        N::DoStmt(_) => "a DO block was not read: what it defines stays unknown".to_owned(),
        N::RuleStmt(e) => format!("CREATE RULE {}: rules are not read", e.rulename),
        N::CreatedbStmt(e) => format!("CREATE DATABASE {}: a schema file is about one database", e.dbname),
        N::ImportForeignSchemaStmt(_) => {
            "IMPORT FOREIGN SCHEMA: the tables it defines are on another server, and stay unknown".to_owned()
        }
        _ => "a statement of a kind that is not read in a schema file: what it defines stays unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests;
