//! Merges what the walk saw, what the binder resolved and what the function tables say into the facts of one
//! statement, and the facts of statements into those of a string.
//!
//! The walk and the binder check each other: a relation the walk saw and the binder does not account for is a part
//! with an unknown relation. A fact that cannot be established is unknown, never empty.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::analysis::{SessionView, Statement};
use super::catalog::{Catalog, RelationLookup};
use super::functions::lookup::{Called, Lookup};
use super::guc::{self, Setting};
use super::names::truncated;
use super::resolve::{Bound, Resolution};
use super::walk::{RelationRef, RelationRole, SettingRef, SettingVerb, Syntax};
use crate::api::access_policy::SqlCommand;
use crate::engine::operation::Fact;
use crate::sql::facts::{CommandSet, CopyDirection, Effects, Part, PartRelation, SqlFacts};
use crate::sql::names::RelationName;

/// What one statement is merged from.
pub struct Sources<'a> {
    /// The walk.
    pub syntax: &'a Syntax,
    /// The binder, where the statement or what it wraps has names to bind.
    pub bound: Option<&'a Bound>,
    /// Facts of what stands inside (PREPARE, EXPLAIN) or was stored earlier (EXECUTE, FETCH).
    pub inner: Option<Inside<'a>>,
    /// The catalog, the session and the server.
    pub lookup: Lookup<'a>,
}

/// Facts of a body.
#[derive(Clone, Copy)]
pub enum Inside<'a> {
    /// It stands inside the statement, and its relations have been checked there.
    Wrapped(&'a SqlFacts),
    /// It was stored earlier.
    Stored(&'a SqlFacts),
}

/// The facts of one statement, and the relations its text names.
pub fn statement(sources: &Sources<'_>) -> (SqlFacts, Vec<RelationName>) {
    let Sources {
        syntax,
        bound,
        inner,
        lookup,
    } = sources;
    let called = lookup.called(&syntax.functions);
    let wraps = matches!(inner, Some(Inside::Wrapped(_)));
    let relations = Relations::of(syntax, *bound, wraps, lookup.catalog, lookup.view);
    let mut facts = SqlFacts {
        statements: 1,
        commands: syntax.commands,
        effects: syntax.effects,
        limit: syntax.limit,
        returning: syntax.returning,
        copy: syntax.copy,
        objects: sorted(syntax.objects.iter().cloned()),
        channels: sorted(syntax.channels.iter().cloned()),
        filtered: bound.is_none_or(|bound| bound.filtered),
        params: match syntax.parameters {
            0 => Fact::Known(Vec::new()),
            _ => Fact::Later,
        },
        in_transaction: lookup.view.in_transaction(),
        database: Arc::clone(lookup.view.database()),
        role: Arc::clone(lookup.view.role()),
        ..SqlFacts::default()
    };
    if let Some(bound) = bound {
        facts.reads = bound.reads.clone();
        facts.writes = bound.writes.clone();
        facts.columns = bound.columns.clone();
    }
    add_settings(&mut facts, syntax.settings.iter().chain(&called.settings));
    add_functions(&mut facts, called, bound.map_or(&[], |bound| &bound.functions), syntax);
    let named = relations.named.clone();
    add_relations(&mut facts, relations, syntax);
    match inner {
        None => {}
        Some(Inside::Wrapped(inner)) => absorb(&mut facts, inner),
        Some(Inside::Stored(inner)) => {
            absorb(&mut facts, inner);
            facts.limit = inner.limit;
            if inner.params.known().is_none() {
                facts.params = Fact::Unknown;
            }
        }
    }
    complete_parts(&mut facts);
    (facts, named)
}

/// What the names of relations came to.
#[derive(Default)]
struct Relations {
    parts: BTreeSet<(SqlCommand, PartRelationKey)>,
    named: Vec<RelationName>,
    written: Vec<RelationName>,
    read: Vec<RelationName>,
    /// A relation of a utility statement whose columns are not told apart.
    whole: bool,
    unknown: bool,
}

/// A part's relation in an order, so that parts are sorted.
type PartRelationKey = (u8, Option<RelationName>);

fn key(relation: PartRelation) -> PartRelationKey {
    match relation {
        PartRelation::None => (0, None),
        PartRelation::Known(name) => (1, Some(name)),
        PartRelation::Unknown => (2, None),
    }
}

impl Relations {
    fn of(syntax: &Syntax, bound: Option<&Bound>, wraps: bool, catalog: &Catalog, view: &dyn SessionView) -> Relations {
        let mut found = Relations::default();
        for reference in &syntax.relations {
            match reference.role {
                RelationRole::Query => match bound.and_then(|bound| bound.relations.get(&reference.location)) {
                    Some(Resolution::Base(name)) => found.named.push(name.clone()),
                    Some(Resolution::Cte | Resolution::New | Resolution::Alias) => {}
                    Some(Resolution::Unknown) => found.lost(reference.command),
                    // What is wrapped has been checked where it was analysed on its own.
                    None if bound.is_none() && wraps => {}
                    None => found.lost(reference.command),
                },
                RelationRole::Existing => found.existing(reference, catalog, view),
                RelationRole::Created { temporary } => found.created(reference, temporary, catalog, view),
            }
        }
        if let Some(bound) = bound {
            for (command, relation) in &bound.parts {
                found.unknown |= *relation == PartRelation::Unknown;
                found.parts.insert((*command, key(relation.clone())));
            }
        }
        for command in ALL_COMMANDS {
            if syntax.unnamed.contains(command) {
                found.lost(command);
            }
        }
        found
    }

    fn lost(&mut self, command: SqlCommand) {
        self.unknown = true;
        self.parts.insert((command, key(PartRelation::Unknown)));
    }

    fn existing(&mut self, reference: &RelationRef, catalog: &Catalog, view: &dyn SessionView) {
        let foreign = reference
            .database
            .as_deref()
            .is_some_and(|database| database != &**view.database());
        match catalog.resolve_relation(reference.schema.as_deref(), &reference.name, view) {
            RelationLookup::Known(relation) if !foreign => {
                let name = relation.name.clone();
                match reference.command {
                    SqlCommand::Truncate | SqlCommand::Maintain => self.written.push(name.clone()),
                    SqlCommand::Copy => {
                        self.whole = true;
                        self.read.push(name.clone());
                        self.written.push(name.clone());
                    }
                    _ => {}
                }
                self.named.push(name.clone());
                self.parts.insert((reference.command, key(PartRelation::Known(name))));
            }
            _ => self.lost(reference.command),
        }
    }

    fn created(&mut self, reference: &RelationRef, temporary: bool, catalog: &Catalog, view: &dyn SessionView) {
        let schema = match reference.schema.as_deref() {
            _ if temporary => Some("pg_temp"),
            Some(schema) => Some(truncated(schema)),
            // The server takes the first schema of the path that exists.
            None => view
                .search_path()
                .iter()
                .map(|schema| &**schema)
                .find_map(|schema| match schema {
                    "$user" => catalog.has_schema(view.role()).then(|| &**view.role()),
                    other => catalog.has_schema(other).then_some(other),
                }),
        };
        match schema {
            Some(schema) => {
                let name = RelationName::new(schema, truncated(&reference.name));
                self.parts.insert((reference.command, key(PartRelation::Known(name))));
            }
            None => self.lost(reference.command),
        }
    }
}

fn add_relations(facts: &mut SqlFacts, relations: Relations, syntax: &Syntax) {
    facts.parts = relations.parts.iter().map(part).collect();
    if relations.unknown {
        facts.tables = Fact::Unknown;
        facts.columns = Fact::Unknown;
        facts.reads = Fact::Unknown;
        facts.writes = Fact::Unknown;
        return;
    }
    let tables = facts.parts.iter().filter_map(|part| match &part.relation {
        PartRelation::Known(name) => Some(name.clone()),
        PartRelation::None | PartRelation::Unknown => None,
    });
    facts.tables = Fact::Known(sorted(tables));
    union(&mut facts.writes, &Fact::Known(relations.written));
    union(&mut facts.reads, &Fact::Known(relations.read));
    if relations.whole || syntax.commands.contains(SqlCommand::Do) {
        facts.columns = Fact::Unknown;
    }
}

fn part((command, relation): &(SqlCommand, PartRelationKey)) -> Part {
    Part {
        command: *command,
        relation: match relation {
            (1, Some(name)) => PartRelation::Known(name.clone()),
            (0, _) => PartRelation::None,
            _ => PartRelation::Unknown,
        },
        rides_along: false,
    }
}

fn add_functions(facts: &mut SqlFacts, called: Called, bound: &[Arc<str>], syntax: &Syntax) {
    let Called {
        mut functions,
        mut unlisted,
        mut effects,
        settings: _,
        unknown,
    } = called;
    for function in bound {
        functions.insert(Arc::clone(function));
        if unlisted.insert(Arc::clone(function)) {
            effects.insert(Effects::UNKNOWN);
        }
    }
    facts.effects.insert(effects);
    // The code of a DO block is beyond reach: a rule that looks at functions fires, one that allows DO may.
    let blind = syntax.commands.contains(SqlCommand::Do);
    facts.functions = if unknown || blind {
        Fact::Unknown
    } else {
        Fact::Known(functions.into_iter().collect())
    };
    facts.unlisted_functions = if unknown {
        Fact::Unknown
    } else {
        Fact::Known(unlisted.into_iter().collect())
    };
}

fn add_settings<'s>(facts: &mut SqlFacts, settings: impl Iterator<Item = &'s SettingRef>) {
    for setting in settings {
        facts.settings.push(Arc::clone(&setting.name));
        let listed = match setting.verb {
            SettingVerb::Read | SettingVerb::Reset => true,
            SettingVerb::Set | SettingVerb::Store => {
                guc::class_of_value(&setting.name, setting.value.as_deref()) == Setting::Harmless
            }
        };
        if !listed {
            facts.unlisted_settings.push(Arc::clone(&setting.name));
        }
    }
    facts.settings = sorted(std::mem::take(&mut facts.settings));
    facts.unlisted_settings = sorted(std::mem::take(&mut facts.unlisted_settings));
}

/// Every command has a part, if only one without a relation.
fn complete_parts(facts: &mut SqlFacts) {
    for part in &facts.parts {
        facts.commands.insert(part.command);
    }
    for command in ALL_COMMANDS {
        if facts.commands.contains(command) && !facts.parts.iter().any(|part| part.command == command) {
            facts.parts.push(Part {
                command,
                relation: PartRelation::None,
                rides_along: false,
            });
        }
    }
}

/// Adds the facts of what a statement wraps or runs.
fn absorb(facts: &mut SqlFacts, inner: &SqlFacts) {
    for part in &inner.parts {
        if !facts.parts.contains(part) {
            facts.parts.push(part.clone());
        }
    }
    facts.commands.extend(inner.commands);
    facts.effects.insert(inner.effects);
    union(&mut facts.tables, &inner.tables);
    union(&mut facts.reads, &inner.reads);
    union(&mut facts.writes, &inner.writes);
    union(&mut facts.columns, &inner.columns);
    union(&mut facts.functions, &inner.functions);
    union(&mut facts.unlisted_functions, &inner.unlisted_functions);
    facts.filtered &= inner.filtered;
    facts.returning |= inner.returning;
    facts.explain |= inner.explain;
    if facts.copy == CopyDirection::None {
        facts.copy = inner.copy;
    }
    append(&mut facts.objects, &inner.objects);
    append(&mut facts.settings, &inner.settings);
    append(&mut facts.unlisted_settings, &inner.unlisted_settings);
    append(&mut facts.channels, &inner.channels);
}

/// The facts of a whole string.
pub fn string(statements: &[Arc<Statement>], view: &dyn SessionView) -> SqlFacts {
    let mut facts = match statements {
        [] => SqlFacts {
            in_transaction: view.in_transaction(),
            database: Arc::clone(view.database()),
            role: Arc::clone(view.role()),
            ..SqlFacts::default()
        },
        [first, ..] => first.facts.clone(),
    };
    for statement in statements.iter().skip(1) {
        let next = &statement.facts;
        absorb(&mut facts, next);
        facts.limit = if facts.limit == next.limit {
            next.limit
        } else {
            Fact::Unknown
        };
        facts.params = match (&facts.params, &next.params) {
            (Fact::Known(_), Fact::Known(_)) => Fact::Known(Vec::new()),
            _ => Fact::Later,
        };
    }
    facts.statements = u32::try_from(statements.len()).unwrap_or(u32::MAX);
    facts
}

/// What is left of a statement's facts when an earlier one of the same string may have changed what its names mean.
pub fn forget_names(facts: &mut SqlFacts) {
    let mut changed = false;
    for part in &mut facts.parts {
        if part.relation != PartRelation::None {
            part.relation = PartRelation::Unknown;
            part.rides_along = false;
            changed = true;
        }
    }
    facts.parts.dedup();
    if changed {
        facts.tables = Fact::Unknown;
        facts.reads = Fact::Unknown;
        facts.writes = Fact::Unknown;
        facts.columns = Fact::Unknown;
    }
    if facts.functions.known().is_none_or(|functions| !functions.is_empty()) || changed {
        facts.functions = Fact::Unknown;
        facts.unlisted_functions = Fact::Unknown;
    }
}

/// A plain EXPLAIN: the same relations, under its own command, and nothing runs but planning.
pub fn as_plain_explain(facts: &mut SqlFacts) {
    for part in &mut facts.parts {
        part.command = SqlCommand::Explain;
        part.rides_along = false;
    }
    let mut seen = BTreeSet::new();
    facts.parts.retain(|part| seen.insert(key(part.relation.clone())));
    facts.commands = CommandSet::EMPTY;
    facts.commands.insert(SqlCommand::Explain);
    facts.effects = super::effects::of_plain_explain(facts.effects);
    facts.returning = false;
    if let (Fact::Known(writes), Fact::Known(_)) = (&facts.writes, &facts.reads) {
        let planned = Fact::Known(writes.clone());
        union(&mut facts.reads, &planned);
        facts.writes = Fact::Known(Vec::new());
    }
}

fn union<T: Ord + Clone>(into: &mut Fact<Vec<T>>, from: &Fact<Vec<T>>) {
    match (&mut *into, from) {
        (Fact::Known(list), Fact::Known(more)) => append(list, more),
        (_, Fact::Unknown) => *into = Fact::Unknown,
        (Fact::Known(_), Fact::Later) => *into = Fact::Later,
        (Fact::Later | Fact::Unknown, _) => {}
    }
}

fn append<T: Ord + Clone>(list: &mut Vec<T>, more: &[T]) {
    if !more.is_empty() {
        list.extend_from_slice(more);
        list.sort();
        list.dedup();
    }
}

fn sorted<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.into_iter().collect();
    items.sort();
    items.dedup();
    items
}

/// Every command, in order.
const ALL_COMMANDS: [SqlCommand; 23] = [
    SqlCommand::Select,
    SqlCommand::Insert,
    SqlCommand::Update,
    SqlCommand::Delete,
    SqlCommand::Merge,
    SqlCommand::Truncate,
    SqlCommand::Copy,
    SqlCommand::Explain,
    SqlCommand::Create,
    SqlCommand::Alter,
    SqlCommand::Drop,
    SqlCommand::Grant,
    SqlCommand::Revoke,
    SqlCommand::Comment,
    SqlCommand::Maintain,
    SqlCommand::Lock,
    SqlCommand::Listen,
    SqlCommand::Notify,
    SqlCommand::Do,
    SqlCommand::Call,
    SqlCommand::Set,
    SqlCommand::Transaction,
    SqlCommand::Other,
];
