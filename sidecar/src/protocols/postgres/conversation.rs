//! What the session has made so far: prepared statements, portals, cursors, settings and transaction status.
//!
//! Our maps follow what the server confirms: an object counts once it was sent, and no longer once the server refused
//! it. A name we did not see created is refused. The transaction status comes from ReadyForQuery only.
//! Invariant: what a name stands for here is what it stands for at the server.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use sidegate_policies::sql::postgres::{SessionView, Statement, StatementKind, TransactionVerb};
use smallvec::SmallVec;

use super::codec::bind::Bind;
use super::codec::row_description::{in_formats, Field};
use super::codec::Frame;
use super::facts::Planned;
use super::mask::rows::RowMasker;
use crate::gate::{Intents, OpId};

/// Prepared statements of one session.
pub const MAX_STATEMENTS: usize = 10_000;
/// Bytes of their texts.
pub const MAX_STATEMENT_BYTES: usize = 32 << 20;
/// Portals of one session.
pub const MAX_PORTALS: usize = 1_024;
/// Statements of the open transaction that approvals bind to and approvers see.
const MAX_EARLIER: usize = 64;

/// A prepared statement.
pub struct Prepared {
    /// Its name.
    pub name: Bytes,
    /// The Parse message, for sending it later and for judging it again.
    pub frame: Frame,
    /// Declared parameter types.
    pub declared: Vec<u32>,
    plan: Mutex<Arc<Planned>>,
    /// Parameter types as the server says.
    pub parameters: OnceLock<Vec<u32>>,
    /// Columns as the server says; an empty list: no rows.
    pub fields: OnceLock<Vec<Field>>,
    /// The same as the server wrote it, for the record.
    pub description: OnceLock<Bytes>,
    /// What the record of its first run says of its columns.
    pub recorded: OnceLock<Bytes>,
    /// The first operation that ran it: later ones refer to it in the record.
    pub first: OnceLock<OpId>,
    /// What the record says of each of those.
    pub intents: Arc<Intents>,
    sent: AtomicBool,
    dead: AtomicBool,
}

impl Prepared {
    /// A statement that has been judged at Parse.
    pub fn new(name: Bytes, frame: Frame, declared: Vec<u32>, plan: Arc<Planned>) -> Self {
        Prepared {
            name,
            frame,
            declared,
            plan: Mutex::new(plan),
            parameters: OnceLock::new(),
            fields: OnceLock::new(),
            description: OnceLock::new(),
            recorded: OnceLock::new(),
            first: OnceLock::new(),
            intents: Arc::default(),
            sent: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        }
    }

    /// Takes the place of another under its name. Where both are the same text with the same plan, the record goes on
    /// referring to the first run.
    pub fn follow(&mut self, before: &Prepared) {
        if self.declared != before.declared || !Arc::ptr_eq(&self.plan(), &before.plan()) {
            return;
        }
        self.intents = before.intents.clone();
        if let Some(first) = before.first.get() {
            let _ = self.first.set(*first);
        }
        if let Some(recorded) = before.recorded.get() {
            let _ = self.recorded.set(recorded.clone());
        }
    }

    /// Its plan.
    pub fn plan(&self) -> Arc<Planned> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a newer plan.
    pub fn replan(&self, plan: Arc<Planned>) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    /// Whether its Parse has been sent.
    pub fn is_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// Its Parse has been sent, or has not after all.
    pub fn set_sent(&self, sent: bool) {
        self.sent.store(sent, Ordering::Relaxed);
    }

    /// The server refused it.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    fn alive(&self) -> bool {
        !self.dead.load(Ordering::Relaxed)
    }

    /// The type of a parameter, as far as known; 0: unknown.
    pub fn parameter_type(&self, index: usize) -> u32 {
        let described = self.parameters.get().and_then(|all| all.get(index)).copied();
        described.or_else(|| self.declared.get(index).copied()).unwrap_or(0)
    }
}

/// A portal: a statement with its values.
pub struct Portal {
    /// Its name.
    pub name: Bytes,
    /// The statement.
    pub prepared: Arc<Prepared>,
    /// Its plan when it was bound.
    pub plan: Arc<Planned>,
    /// Values and formats.
    pub bind: Arc<Bind>,
    /// The operation its Bind was admitted as.
    pub op: OpId,
    /// The bundle under which it was judged last.
    pub generation: AtomicU64,
    /// Rows it may answer.
    pub row_limit: Option<u64>,
    /// Bytes it may answer.
    pub byte_limit: Option<u64>,
    /// Its columns as the server described them to the agent, where the record keeps replies.
    pub description: OnceLock<Bytes>,
    /// How its rows are masked, once its columns are known.
    pub masker: OnceLock<Option<Mutex<RowMasker>>>,
    /// Rows so far.
    pub rows: AtomicU64,
    /// Bytes so far.
    pub bytes: AtomicU64,
    done: AtomicBool,
    dead: AtomicBool,
}

impl Portal {
    /// A portal that is about to be bound.
    pub fn new(prepared: Arc<Prepared>, plan: Arc<Planned>, bind: Arc<Bind>, op: OpId, generation: u64) -> Self {
        Portal {
            name: Bytes::copy_from_slice(bind.portal()),
            prepared,
            plan,
            bind,
            op,
            generation: AtomicU64::new(generation),
            row_limit: None,
            byte_limit: None,
            description: OnceLock::new(),
            masker: OnceLock::new(),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            done: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        }
    }

    /// What the record has to say of its columns before its first row: nothing where they are not known, or where the
    /// statement's first run, to which later ones refer, said the same.
    pub fn header(&self) -> Option<Bytes> {
        let described = self.description.get().cloned();
        let own = described.or_else(|| in_formats(self.prepared.description.get()?, &self.bind.results))?;
        if self.prepared.first.get() == Some(&self.op) {
            let _ = self.prepared.recorded.set(Bytes::copy_from_slice(&own));
            return Some(own);
        }
        (self.prepared.recorded.get() != Some(&own)).then_some(own)
    }

    /// Marks its outcome as recorded. False: it was already.
    pub fn finish(&self) -> bool {
        !self.done.swap(true, Ordering::Relaxed)
    }

    /// The server refused it.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Whether the server holds it, as far as known.
    pub fn alive(&self) -> bool {
        !self.dead.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Cursor {
    statement: Arc<Statement>,
    hold: bool,
}

/// Objects by name. The unnamed one, which most clients use for everything, is found without a hash.
#[derive(Clone)]
struct Named<T> {
    unnamed: Option<T>,
    named: HashMap<Bytes, T>,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Named {
            unnamed: None,
            named: HashMap::new(),
        }
    }
}

impl<T> Named<T> {
    fn get(&self, name: &[u8]) -> Option<&T> {
        if name.is_empty() {
            return self.unnamed.as_ref();
        }
        self.named.get(name)
    }

    fn insert(&mut self, name: Bytes, object: T) -> Option<T> {
        if name.is_empty() {
            return self.unnamed.replace(object);
        }
        self.named.insert(name, object)
    }

    fn remove(&mut self, name: &[u8]) -> Option<T> {
        if name.is_empty() {
            return self.unnamed.take();
        }
        self.named.remove(name)
    }

    fn len(&self) -> usize {
        self.named.len().saturating_add(usize::from(self.unnamed.is_some()))
    }
}

/// The session's state.
#[derive(Clone)]
pub struct Conversation {
    statements: Named<Arc<Prepared>>,
    statement_bytes: usize,
    /// PREPARE's own bodies, which live in the server's same list of names.
    sql_prepared: HashMap<Bytes, Arc<Statement>>,
    portals: Named<Arc<Portal>>,
    cursors: HashMap<Bytes, Cursor>,
    /// Transaction status of the last ReadyForQuery: `I`, `T` or `E`.
    pub status: u8,
    /// Texts that ran in the open transaction, shortened, and the digest of all of them.
    earlier: Vec<Arc<str>>,
    earlier_digest: [u8; 32],
    search_path: Vec<Arc<str>>,
    database: Arc<str>,
    role: Arc<str>,
    temporary: bool,
}

impl Conversation {
    /// The state right after login.
    pub fn new(database: &str, role: &str, search_path: &str, status: u8) -> Self {
        Conversation {
            statements: Named::default(),
            statement_bytes: 0,
            sql_prepared: HashMap::new(),
            portals: Named::default(),
            cursors: HashMap::new(),
            status,
            earlier: Vec::new(),
            earlier_digest: [0; 32],
            search_path: search_order(search_path, role),
            database: database.into(),
            role: role.into(),
            temporary: false,
        }
    }

    /// A prepared statement of the protocol.
    pub fn statement(&self, name: &[u8]) -> Option<&Arc<Prepared>> {
        self.statements.get(name).filter(|statement| statement.alive())
    }

    /// Whether one more statement of this size fits.
    pub fn statement_fits(&self, size: usize) -> bool {
        self.statements.len() < MAX_STATEMENTS && self.statement_bytes.saturating_add(size) <= MAX_STATEMENT_BYTES
    }

    /// Puts a statement under its name; what was there before is returned.
    pub fn put_statement(&mut self, prepared: Arc<Prepared>) -> Option<Arc<Prepared>> {
        self.statement_bytes = self.statement_bytes.saturating_add(prepared.frame.bytes().len());
        let old = self.statements.insert(prepared.name.clone(), prepared);
        if let Some(old) = &old {
            self.statement_bytes = self.statement_bytes.saturating_sub(old.frame.bytes().len());
        }
        old
    }

    /// The server refused a Parse: the name stands for what it stood for before, if nothing replaced it meanwhile.
    pub fn undo_statement(&mut self, prepared: &Arc<Prepared>, before: Option<Arc<Prepared>>) {
        prepared.kill();
        let current = self
            .statements
            .get(&prepared.name)
            .is_some_and(|now| Arc::ptr_eq(now, prepared));
        if current {
            self.remove_statement(&prepared.name.clone());
            // A failed unnamed Parse leaves no unnamed statement.
            if let Some(before) = before.filter(|before| !before.name.is_empty()) {
                self.put_statement(before);
            }
        }
    }

    /// Removes a statement.
    pub fn remove_statement(&mut self, name: &[u8]) {
        if let Some(old) = self.statements.remove(name) {
            self.statement_bytes = self.statement_bytes.saturating_sub(old.frame.bytes().len());
        }
        self.sql_prepared.remove(name);
    }

    /// A portal.
    pub fn portal(&self, name: &[u8]) -> Option<&Arc<Portal>> {
        self.portals.get(name).filter(|portal| portal.alive())
    }

    /// Whether DECLARE made a cursor of this name that is still open, as far as known.
    pub fn has_cursor(&self, name: &[u8]) -> bool {
        self.cursors.contains_key(name)
    }

    /// Bytes of the prepared statements' messages.
    pub fn statement_bytes(&self) -> usize {
        self.statement_bytes
    }

    /// Whether one more portal fits.
    pub fn portal_fits(&self) -> bool {
        self.portals.len().saturating_add(self.cursors.len()) < MAX_PORTALS
    }

    /// Puts a portal under its name; what was there before is returned.
    pub fn put_portal(&mut self, portal: Arc<Portal>) -> Option<Arc<Portal>> {
        self.portals.insert(portal.name.clone(), portal)
    }

    /// The server refused a Bind.
    pub fn undo_portal(&mut self, portal: &Arc<Portal>) {
        portal.kill();
        if self
            .portals
            .get(&portal.name)
            .is_some_and(|now| Arc::ptr_eq(now, portal))
        {
            self.portals.remove(&portal.name);
        }
    }

    /// Removes a portal.
    pub fn remove_portal(&mut self, name: &[u8]) -> Option<Arc<Portal>> {
        self.portals.remove(name)
    }

    /// A new status came: portals and plain cursors end with their transaction. Returns the portals that ended.
    pub fn ready(&mut self, status: u8) -> SmallVec<[Arc<Portal>; 1]> {
        self.status = status;
        if status != b'I' {
            return SmallVec::new();
        }
        self.earlier.clear();
        self.earlier_digest = [0; 32];
        self.cursors.retain(|_, cursor| cursor.hold);
        let unnamed = self.portals.unnamed.take();
        let named = self.portals.named.drain().map(|(_, portal)| portal);
        unnamed.into_iter().chain(named).collect()
    }

    /// A statement ran in the open transaction: approvals of later ones bind to it. `shown`: what people see of it.
    pub fn ran(&mut self, text: &str, shown: &str) {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        context.update(&self.earlier_digest);
        context.update(text.as_bytes());
        if let Ok(digest) = context.finish().as_ref().try_into() {
            self.earlier_digest = digest;
        }
        if self.earlier.len() < MAX_EARLIER {
            self.earlier.push(shown.chars().take(500).collect::<String>().into());
        }
    }

    /// Digest of the texts that ran in the open transaction.
    pub fn earlier_digest(&self) -> [u8; 32] {
        self.earlier_digest
    }

    /// Those texts, shortened, for the approver.
    pub fn earlier(&self) -> &[Arc<str>] {
        &self.earlier
    }

    /// A statement of the agent completed at the server: our maps follow.
    pub fn completed(&mut self, statement: &Arc<Statement>) {
        match &statement.kind {
            StatementKind::Prepare { name, inner } => {
                self.sql_prepared.insert(key(name), inner.clone());
            }
            StatementKind::Deallocate(Some(name)) => self.remove_statement(&key(name)),
            StatementKind::Deallocate(None) => self.forget_statements(),
            StatementKind::Declare { name, hold, inner } => {
                self.cursors.insert(
                    key(name),
                    Cursor {
                        statement: inner.clone(),
                        hold: *hold,
                    },
                );
            }
            StatementKind::CloseCursor(Some(name)) => {
                self.cursors.remove(&key(name));
            }
            StatementKind::CloseCursor(None) => self.cursors.clear(),
            StatementKind::Discard(what) => self.discarded(*what),
            StatementKind::Transaction(TransactionVerb::Commit | TransactionVerb::Rollback) => {
                self.cursors.retain(|_, cursor| cursor.hold);
            }
            _ => {}
        }
        if creates_temporary(statement) {
            self.temporary = true;
        }
    }

    fn discarded(&mut self, what: sidegate_policies::sql::postgres::DiscardWhat) {
        use sidegate_policies::sql::postgres::DiscardWhat;
        match what {
            DiscardWhat::All => {
                self.forget_statements();
                self.cursors.clear();
                self.temporary = false;
            }
            DiscardWhat::Temp => self.temporary = false,
            DiscardWhat::Plans | DiscardWhat::Sequences => {}
        }
    }

    fn forget_statements(&mut self) {
        // The unnamed statement survives DEALLOCATE ALL.
        self.statements.named.clear();
        self.statement_bytes = self
            .statements
            .unnamed
            .as_ref()
            .map_or(0, |statement| statement.frame.bytes().len());
        self.sql_prepared.clear();
    }

    /// Takes a search_path as the server showed it.
    pub fn set_search_path(&mut self, shown: &str) {
        self.search_path = search_order(shown, &self.role);
    }
}

fn key(name: &Arc<str>) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

/// CREATE TEMPORARY of any kind, as far as the action's words tell; anything else that creates in pg_temp names it.
fn creates_temporary(statement: &Statement) -> bool {
    use sidegate_policies::api::access_policy::SqlCommand;
    if !statement.facts.commands.contains(SqlCommand::Create) {
        return false;
    }
    let temporary = |name: &sidegate_policies::sql::RelationName| name.schema.starts_with("pg_temp");
    statement.action.to_ascii_uppercase().contains("TEMP")
        || statement
            .facts
            .writes
            .known()
            .is_none_or(|writes| writes.iter().any(temporary))
}

/// The schemas of a search_path, in order, `$user` replaced.
fn search_order(shown: &str, role: &str) -> Vec<Arc<str>> {
    let (mut found, mut rest) = (Vec::new(), shown.trim());
    while !rest.is_empty() {
        let (name, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_name(quoted),
            None => match rest.split_once(',') {
                Some((name, after)) => (name.trim().to_lowercase(), after),
                None => (rest.trim().to_lowercase(), ""),
            },
        };
        let name = if name == "$user" { role.to_owned() } else { name };
        if !name.is_empty() {
            found.push(Arc::from(name));
        }
        rest = after.trim_start_matches([',', ' ']);
    }
    found
}

fn quoted_name(text: &str) -> (String, &str) {
    let (mut name, mut chars) = (String::new(), text.char_indices().peekable());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if chars.peek().is_some_and(|(_, next)| *next == '"') => {
                name.push('"');
                chars.next();
            }
            '"' => return (name, text.get(at.saturating_add(1)..).unwrap_or_default()),
            c => name.push(c),
        }
    }
    (name, "")
}

impl SessionView for Conversation {
    fn prepared(&self, name: &str) -> Option<Arc<Statement>> {
        let name = name.as_bytes();
        let sql = self.sql_prepared.get(name).cloned();
        sql.or_else(|| {
            self.statement(name)
                .and_then(|prepared| prepared.plan().analysis.statements.first().cloned())
        })
    }

    fn cursor(&self, name: &str) -> Option<Arc<Statement>> {
        let name = name.as_bytes();
        let cursor = self.cursors.get(name).map(|cursor| cursor.statement.clone());
        // FETCH also reads portals of the protocol.
        cursor.or_else(|| {
            self.portal(name)
                .and_then(|portal| portal.plan.analysis.statements.first().cloned())
        })
    }

    fn search_path(&self) -> &[Arc<str>] {
        &self.search_path
    }

    fn database(&self) -> &Arc<str> {
        &self.database
    }

    fn role(&self) -> &Arc<str> {
        &self.role
    }

    fn in_transaction(&self) -> bool {
        self.status != b'I'
    }

    fn has_temporary_tables(&self) -> bool {
        self.temporary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_search_path_reads_as_the_server_means_it() {
        let order = |shown: &str| {
            search_order(shown, "agent")
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(order("\"$user\", public"), ["agent", "public"]);
        assert_eq!(
            order("App, \"We\"\"ird, x\" , pg_temp"),
            ["app", "We\"ird, x", "pg_temp"]
        );
        assert!(order("").is_empty() && order("\"\"").is_empty());
    }

    #[test]
    fn what_ran_earlier_in_the_transaction_changes_the_digest_until_it_ends() {
        let mut conversation = Conversation::new("d", "r", "public", b'T');
        let fresh = conversation.earlier_digest();
        conversation.ran("update t set x = 1", "update t set x = 1");
        assert_ne!(conversation.earlier_digest(), fresh);
        conversation.ready(b'I');
        assert_eq!(conversation.earlier_digest(), fresh);
    }
}
