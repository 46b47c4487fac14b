//! Analyses the statements of one string in order: each is walked, bound, merged, and told what it means to the
//! session.
//!
//! What PREPARE, DECLARE, EXPLAIN, CREATE … AS and COPY wrap is analysed as a statement of its own. A later
//! statement of the string may depend on an earlier one: prepared statements and cursors made in the string are
//! known, names after a statement that may change their meaning are not.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::analysis::{Output, OutputColumn, SessionView, Source, Statement, StatementKind, TransactionVerb, Uses};
use super::catalog::Catalog;
use super::functions::lookup::Lookup;
use super::guc::{self, Setting};
use super::literals::Literals;
use super::parse::{pb, NodeEnum as N};
use super::prescan::Limit;
use super::resolve::{self, Bound};
use super::walk::{self, Syntax};
use super::{commands, effects, merge, Options};
use crate::api::access_policy::SqlCommand;
use crate::engine::operation::{Completeness, Fact};
use crate::sql::facts::{Effects, PartRelation, SqlFacts};

/// Why a statement is Opaque.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// In words.
    pub message: String,
    /// The limit it ran into.
    pub limit: Option<Limit>,
}

/// Analyses every statement of a tree.
pub fn all(
    text: &str,
    tree: &[pb::RawStmt],
    options: &Options,
    catalog: &Catalog,
    view: &dyn SessionView,
) -> Vec<(Arc<Statement>, Option<Trouble>)> {
    let mut context = Context {
        options,
        catalog,
        view,
        prepared: HashMap::new(),
        cursors: HashMap::new(),
        stale: false,
    };
    tree.iter().map(|raw| context.raw(text, raw)).collect()
}

struct Context<'a> {
    options: &'a Options,
    catalog: &'a Catalog,
    view: &'a dyn SessionView,
    prepared: HashMap<Arc<str>, Arc<Statement>>,
    cursors: HashMap<Arc<str>, Arc<Statement>>,
    /// An earlier statement of the string may have changed what names mean.
    stale: bool,
}

/// What a statement wraps, runs or fetches from.
enum Inner {
    Nothing,
    /// A statement inside this one.
    Wrapped(Arc<Statement>),
    /// A body stored earlier.
    Stored(Arc<Statement>),
    /// A body nobody saw.
    Missing(String),
}

impl Inner {
    fn statement(&self) -> Option<&Arc<Statement>> {
        match self {
            Inner::Wrapped(statement) | Inner::Stored(statement) => Some(statement),
            Inner::Nothing | Inner::Missing(_) => None,
        }
    }

    fn facts(&self) -> Option<merge::Inside<'_>> {
        match self {
            Inner::Wrapped(statement) => Some(merge::Inside::Wrapped(&statement.facts)),
            Inner::Stored(statement) => Some(merge::Inside::Stored(&statement.facts)),
            Inner::Nothing | Inner::Missing(_) => None,
        }
    }
}

impl Context<'_> {
    fn raw(&mut self, text: &str, raw: &pb::RawStmt) -> (Arc<Statement>, Option<Trouble>) {
        let range = range(text, raw);
        let Some(node) = raw.stmt.as_deref() else {
            let trouble = "an empty statement".to_owned();
            return self.opaque(range, "UNKNOWN".into(), StatementKind::Plain, trouble, None);
        };
        let (statement, trouble) = self.statement(node, range);
        self.remember(&statement);
        (statement, trouble)
    }

    fn statement(&mut self, node: &pb::Node, range: Range<usize>) -> (Arc<Statement>, Option<Trouble>) {
        let syntax = walk::walk(node, self.options.server_major);
        let Some(kind_node) = node.node.as_ref() else {
            let trouble = "an empty statement".to_owned();
            return self.opaque(range, "UNKNOWN".into(), StatementKind::Plain, trouble, None);
        };
        let action = commands::action(kind_node, &syntax.objects);
        let unclear = |limit: Option<Limit>, message: String| (message, limit);
        let trouble = match (syntax.too_deep, syntax.problem) {
            (true, _) => Some(unclear(Some(Limit::Depth), Limit::Depth.to_string())),
            (false, Some(problem)) => Some(unclear(None, problem.to_string())),
            (false, None) => None,
        };
        if let Some((message, limit)) = trouble {
            // The kind is kept where it needs nothing from inside, so that the session's own maps stay true.
            let kind = commands::kind(kind_node, None);
            return self.opaque(range, action, kind, message, limit);
        }
        let inner = self.inner(kind_node, &range);
        if let Inner::Missing(message) = inner {
            let kind = commands::kind(kind_node, None);
            return self.opaque(range, action, kind, message, None);
        }
        if let Some(wrapped) = inner
            .statement()
            .filter(|inner| inner.completeness == Completeness::Opaque)
        {
            let kind = commands::kind(kind_node, Some(wrapped));
            let message = "what it wraps was not understood".to_owned();
            return self.opaque(range, action, kind, message, None);
        }
        match self.merged(node, kind_node, &syntax, &inner) {
            Ok(draft) => (Arc::new(draft.finish(range, action, &syntax)), None),
            Err(message) => self.opaque(range, action, StatementKind::Plain, message, None),
        }
    }

    /// What this statement wraps or runs.
    fn inner(&mut self, node: &N, range: &Range<usize>) -> Inner {
        let wrapped = |query: &Option<Box<pb::Node>>, context: &mut Self| match query.as_deref() {
            Some(query) => Inner::Wrapped(context.statement(query, range.clone()).0),
            None => Inner::Missing("nothing inside".to_owned()),
        };
        match node {
            N::PrepareStmt(stmt) => wrapped(&stmt.query, self),
            N::DeclareCursorStmt(stmt) => wrapped(&stmt.query, self),
            N::ExplainStmt(stmt) => wrapped(&stmt.query, self),
            N::CreateTableAsStmt(stmt) => wrapped(&stmt.query, self),
            N::ViewStmt(stmt) => wrapped(&stmt.query, self),
            N::CopyStmt(stmt) if stmt.query.is_some() => wrapped(&stmt.query, self),
            N::ExecuteStmt(stmt) => self.stored(&stmt.name, true),
            N::FetchStmt(stmt) => self.stored(&stmt.portalname, false),
            _ => Inner::Nothing,
        }
    }

    fn stored(&self, name: &str, prepared: bool) -> Inner {
        let found = if prepared {
            self.prepared.get(name).cloned().or_else(|| self.view.prepared(name))
        } else {
            self.cursors.get(name).cloned().or_else(|| self.view.cursor(name))
        };
        match found {
            Some(body) => Inner::Stored(body),
            None if prepared => Inner::Missing(format!("the prepared statement \"{name}\" is not known here")),
            None => Inner::Missing(format!("the cursor \"{name}\" is not known here")),
        }
    }

    fn merged(&self, node: &pb::Node, kind_node: &N, syntax: &Syntax, inner: &Inner) -> Result<Draft, String> {
        let bound = self.bind(node, kind_node);
        let lookup = Lookup {
            catalog: self.catalog,
            view: self.view,
            major: self.options.server_major,
        };
        let (mut facts, named) = merge::statement(&merge::Sources {
            syntax,
            bound: bound.as_ref(),
            inner: inner.facts(),
            lookup,
        });
        let mut draft = Draft::of(bound, inner.statement());
        draft.literals.secrets.clone_from(&syntax.secrets);
        match inner {
            Inner::Wrapped(inner) => draft.literals.wrap(&inner.literals),
            Inner::Stored(inner) => draft.literals.run(&inner.literals),
            Inner::Nothing | Inner::Missing(_) => {}
        }
        draft.kind = match kind_node {
            N::CopyStmt(stmt) if !stmt.is_program && stmt.filename.is_empty() => {
                let relation = copied(&facts, stmt);
                let copy = commands::copy(stmt, relation)
                    .map_err(|option| format!("the COPY option {option} is not understood"))?;
                StatementKind::Copy(Box::new(copy))
            }
            other => commands::kind(other, inner.statement()),
        };
        draft.shape(kind_node, &mut facts);
        let inherited = inner.statement().map_or(&[][..], |inner| &inner.facts.parts);
        effects::mark(&mut facts, &draft.kind, &named, inherited);
        if let N::ExplainStmt(stmt) = kind_node {
            facts.explain = true;
            if !commands::is_analyze(stmt) {
                merge::as_plain_explain(&mut facts);
            }
        }
        if self.stale {
            merge::forget_names(&mut facts);
            draft.forget(&facts);
        }
        draft.facts = facts;
        Ok(draft)
    }

    fn bind(&self, node: &pb::Node, kind: &N) -> Option<Bound> {
        match kind {
            N::SelectStmt(_) | N::InsertStmt(_) | N::UpdateStmt(_) | N::DeleteStmt(_) | N::MergeStmt(_) => {
                Some(resolve::bind(node, self.catalog, self.view))
            }
            N::CopyStmt(stmt) if stmt.relation.is_some() && !stmt.is_program && stmt.filename.is_empty() => {
                Some(resolve::bind_copy(stmt, self.catalog, self.view))
            }
            _ => None,
        }
    }

    /// What the string itself adds to the session, for the statements after this one.
    fn remember(&mut self, statement: &Arc<Statement>) {
        match &statement.kind {
            StatementKind::Prepare { name, inner } => {
                self.prepared.insert(Arc::clone(name), Arc::clone(inner));
            }
            StatementKind::Declare { name, inner, .. } => {
                self.cursors.insert(Arc::clone(name), Arc::clone(inner));
            }
            _ => {}
        }
        self.stale |= changes_names(statement);
    }

    fn opaque(
        &self,
        range: Range<usize>,
        action: Arc<str>,
        kind: StatementKind,
        message: String,
        limit: Option<Limit>,
    ) -> (Arc<Statement>, Option<Trouble>) {
        let statement = Statement {
            range,
            kind,
            action,
            facts: unknown_facts(self.view),
            completeness: Completeness::Opaque,
            output: Output::Unknown,
            uses: Uses {
                unknown: true,
                ..Uses::default()
            },
            parameters: 0,
            literals: Literals::default(),
        };
        (Arc::new(statement), Some(Trouble { message, limit }))
    }
}

/// Whether names after this statement may mean something else than before it.
fn changes_names(statement: &Statement) -> bool {
    let defines = [
        SqlCommand::Create,
        SqlCommand::Alter,
        SqlCommand::Drop,
        SqlCommand::Do,
        SqlCommand::Call,
    ];
    let pinned = |name: &Arc<str>| guc::class(name) == Setting::Pinned;
    // Undoing a transaction undoes its SETs and its definitions, which the catalog may have shown already.
    let undoes = matches!(
        statement.kind,
        StatementKind::Transaction(TransactionVerb::Rollback | TransactionVerb::RollbackTo | TransactionVerb::TwoPhase)
    );
    statement.completeness == Completeness::Opaque
        || undoes
        || matches!(statement.kind, StatementKind::Discard(_) | StatementKind::Reset(None))
        || defines
            .iter()
            .any(|command| statement.facts.commands.contains(*command))
        || statement.facts.settings.iter().any(pinned) && !matches!(statement.kind, StatementKind::Show)
        || statement.facts.effects.contains(Effects::UNKNOWN)
}

/// Facts of which nothing is known.
pub fn unknown_facts(view: &dyn SessionView) -> SqlFacts {
    SqlFacts {
        statements: 1,
        parts: vec![crate::sql::facts::Part {
            command: SqlCommand::Other,
            relation: PartRelation::Unknown,
            rides_along: false,
        }],
        tables: Fact::Unknown,
        reads: Fact::Unknown,
        writes: Fact::Unknown,
        columns: Fact::Unknown,
        functions: Fact::Unknown,
        unlisted_functions: Fact::Unknown,
        effects: Effects::UNKNOWN,
        filtered: false,
        limit: Fact::Unknown,
        params: Fact::Unknown,
        in_transaction: view.in_transaction(),
        database: Arc::clone(view.database()),
        role: Arc::clone(view.role()),
        ..SqlFacts::default()
    }
}

/// A statement in the making.
struct Draft {
    kind: StatementKind,
    facts: SqlFacts,
    output: Output,
    uses: Uses,
    problems: bool,
    /// Its parameters are those of a body, not its own.
    prepares: bool,
    inner: Completeness,
    literals: Literals,
}

impl Draft {
    fn of(bound: Option<Bound>, inner: Option<&Arc<Statement>>) -> Draft {
        let mut draft = Draft {
            kind: StatementKind::Plain,
            facts: SqlFacts::default(),
            output: Output::None,
            uses: Uses::default(),
            problems: false,
            prepares: false,
            inner: inner.map_or(Completeness::Exact, |inner| inner.completeness),
            literals: Literals::default(),
        };
        if let Some(bound) = bound {
            draft.literals = Literals::of_bound(bound.meets);
            draft.output = bound.output;
            draft.uses = bound.uses;
            draft.problems = !bound.problems.is_empty();
        }
        if let Some(inner) = inner {
            draft.output = inner.output.clone();
            draft.uses = inner.uses.clone();
        }
        draft
    }

    /// What the statement answers, where that is not what its query answers.
    fn shape(&mut self, node: &N, facts: &mut SqlFacts) {
        match node {
            N::PrepareStmt(_) => {
                self.output = Output::None;
                self.prepares = true;
                // The body's values come with EXECUTE.
                if facts.params.known().is_none() {
                    facts.params = Fact::Unknown;
                }
            }
            N::DeclareCursorStmt(_) => self.output = Output::None,
            N::FetchStmt(stmt) if stmt.ismove => self.output = Output::None,
            // A plan shows the constants and estimates of every column it touches.
            N::ExplainStmt(_) => {
                self.output = Output::Rows(vec![OutputColumn {
                    name: Some("QUERY PLAN".into()),
                    source: match &facts.columns {
                        Fact::Known(columns) if columns.is_empty() => Source::Clean,
                        Fact::Known(columns) => Source::Derived(columns.clone()),
                        Fact::Later | Fact::Unknown => Source::Unknown,
                    },
                }]);
            }
            N::CreateTableAsStmt(_) | N::ViewStmt(_) => self.use_output(),
            N::CopyStmt(stmt) if stmt.is_program || !stmt.filename.is_empty() => {
                self.use_output();
                if stmt.relation.is_some() {
                    self.uses.unknown = true;
                }
            }
            N::VariableShowStmt(_) => {
                self.output = Output::Rows(vec![OutputColumn {
                    name: None,
                    source: Source::Clean,
                }]);
            }
            // A procedure's OUT arguments come from code nobody read.
            N::CallStmt(_) => self.output = Output::Unknown,
            _ => {}
        }
    }

    /// Every output column is put somewhere else than before the agent: that is a use of it.
    fn use_output(&mut self) {
        match std::mem::replace(&mut self.output, Output::None) {
            Output::None => {}
            Output::Unknown => self.uses.unknown = true,
            Output::Rows(columns) => {
                for column in columns {
                    match column.source {
                        Source::Clean => {}
                        Source::Column(column) => self.uses.columns.push(column),
                        Source::Derived(columns) => self.uses.columns.extend(columns),
                        Source::WholeRow(_) | Source::Unknown => self.uses.unknown = true,
                    }
                }
                self.uses.columns.sort();
                self.uses.columns.dedup();
            }
        }
    }

    /// Names that may have changed their meaning take the lineage with them.
    fn forget(&mut self, facts: &SqlFacts) {
        if facts.tables == Fact::Unknown {
            self.uses.unknown = true;
            if self.output != Output::None {
                self.output = Output::Unknown;
            }
        }
    }

    fn finish(self, range: Range<usize>, action: Arc<str>, syntax: &Syntax) -> Statement {
        let facts = self.facts;
        let known = facts.tables.known().is_some()
            && facts.reads.known().is_some()
            && facts.writes.known().is_some()
            && facts.columns.known().is_some()
            && facts.functions.known().is_some()
            && facts.unlisted_functions.known().is_some();
        let own = if known && !self.problems {
            Completeness::Exact
        } else {
            Completeness::Partial
        };
        Statement {
            range,
            kind: self.kind,
            action,
            completeness: own.max(self.inner),
            output: self.output,
            uses: self.uses,
            parameters: match self.prepares {
                true => 0,
                false => syntax.parameters,
            },
            literals: self.literals,
            facts,
        }
    }
}

/// The relation a COPY of a relation names.
fn copied(facts: &SqlFacts, stmt: &pb::CopyStmt) -> Option<crate::sql::names::RelationName> {
    stmt.relation.as_ref()?;
    let list = if stmt.is_from { &facts.writes } else { &facts.reads };
    match list.known().map(Vec::as_slice) {
        Some([only]) => Some(only.clone()),
        Some(several) => {
            let named = &stmt.relation.as_ref()?.relname;
            several.iter().find(|name| &*name.name == named.as_str()).cloned()
        }
        None => None,
    }
}

/// Where a statement stands in its string, without the blanks around it.
fn range(text: &str, raw: &pb::RawStmt) -> Range<usize> {
    let start = usize::try_from(raw.stmt_location).unwrap_or_default().min(text.len());
    let end = match usize::try_from(raw.stmt_len) {
        Ok(0) | Err(_) => text.len(),
        Ok(length) => start.saturating_add(length).min(text.len()),
    };
    let Some(inner) = text.get(start..end) else {
        return 0..text.len();
    };
    let trimmed = inner.trim_start();
    let start = end.saturating_sub(trimmed.len());
    start..start.saturating_add(trimmed.trim_end().len())
}
