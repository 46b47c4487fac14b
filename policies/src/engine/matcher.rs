//! A rule's SQL matcher, compiled: which parts of a statement it names, and how surely.
//!
//! A Deny or Ask *fires* on a part when one hit per key is there; an Allow *covers* a part only when everything
//! the part uses is named. What could not be established is Unknown here and decided by the caller: it fires, and
//! it never covers. Functions, settings and channels beyond the harmless lists are named by the rules that cover
//! together, so [`SqlMatcher::covers`] leaves them to [`SqlMatcher::names_function`] and its siblings.

use std::collections::HashSet;
use std::sync::Arc;

use super::expr::Outcome;
use super::operation::{Fact, Phase};
use crate::api::access_policy::SqlCommand;
use crate::sql::facts::{Part, PartRelation};
use crate::sql::{ColumnName, ColumnPattern, CommandSet, NamePart, RelationName, RelationPattern, SqlFacts};

/// A compiled `sql` matcher. Keys that were not given are empty and hold.
#[derive(Debug, Clone, Default)]
pub struct SqlMatcher {
    pub(crate) commands: CommandSet,
    pub(crate) tables: Relations,
    pub(crate) columns: Vec<ColumnPattern>,
    pub(crate) functions: Vec<RelationPattern>,
    pub(crate) settings: Vec<NamePart>,
    pub(crate) channels: Vec<NamePart>,
}

/// Relation patterns: exact names by hash, the others in order.
#[derive(Debug, Clone, Default)]
pub struct Relations {
    /// Whether the key was given at all.
    pub given: bool,
    /// Exact names.
    pub exact: HashSet<RelationName>,
    /// The others.
    pub patterns: Vec<RelationPattern>,
}

impl Relations {
    /// Collects patterns.
    pub fn new(patterns: Vec<RelationPattern>) -> Self {
        let mut relations = Relations {
            given: !patterns.is_empty(),
            ..Relations::default()
        };
        for pattern in patterns {
            match (&pattern.schema, &pattern.name) {
                (NamePart::Exact(schema), NamePart::Exact(name)) => {
                    relations.exact.insert(RelationName {
                        schema: schema.clone(),
                        name: name.clone(),
                    });
                }
                _ => relations.patterns.push(pattern),
            }
        }
        relations
    }

    /// Whether a relation is named.
    pub fn matches(&self, relation: &RelationName) -> bool {
        self.exact.contains(relation)
            || self
                .patterns
                .iter()
                .any(|pattern| pattern.matches(&relation.schema, &relation.name))
    }
}

/// Puts outcomes of keys that must all hold together: a miss decides, then what is late, then what is unknown.
pub fn both(a: Outcome, b: Outcome) -> Outcome {
    match (a, b) {
        (Outcome::False, _) | (_, Outcome::False) => Outcome::False,
        (Outcome::Later, _) | (_, Outcome::Later) => Outcome::Later,
        (Outcome::Unknown, _) | (_, Outcome::Unknown) => Outcome::Unknown,
        (Outcome::True, Outcome::True) => Outcome::True,
    }
}

/// The same for what must cover something for sure: what is unknown can never be made good by what comes later.
pub fn surely(a: Outcome, b: Outcome) -> Outcome {
    match (a, b) {
        (Outcome::Unknown, _) | (_, Outcome::Unknown) => Outcome::False,
        (a, b) => both(a, b),
    }
}

/// The outcome of a fact that is not known at a phase.
pub fn missing<T>(fact: &Fact<T>, phase: Phase) -> Outcome {
    match (fact, phase) {
        (Fact::Later, Phase::Structure) => Outcome::Later,
        _ => Outcome::Unknown,
    }
}

fn holds(value: bool) -> Outcome {
    if value {
        Outcome::True
    } else {
        Outcome::False
    }
}

impl SqlMatcher {
    /// Whether the command is one the matcher names.
    pub fn command(&self, command: SqlCommand) -> bool {
        self.commands.is_empty() || self.commands.contains(command)
    }

    /// Whether a Deny or Ask fires on a part.
    pub fn fires(&self, part: &Part, facts: &SqlFacts, phase: Phase) -> Outcome {
        if !self.command(part.command) {
            return Outcome::False;
        }
        let relation = match (&part.relation, self.tables.given) {
            (_, false) => Outcome::True,
            (PartRelation::None, true) => Outcome::False,
            (PartRelation::Known(relation), true) => holds(self.tables.matches(relation)),
            (PartRelation::Unknown, true) => Outcome::Unknown,
        };
        if relation == Outcome::False {
            return relation;
        }
        both(relation, self.fires_on_statement(facts, phase))
    }

    /// The keys that look at the whole statement.
    fn fires_on_statement(&self, facts: &SqlFacts, phase: Phase) -> Outcome {
        let mut outcome = Outcome::True;
        if !self.columns.is_empty() {
            outcome = both(outcome, self.fires_on_columns(facts, phase));
        }
        if !self.functions.is_empty() {
            let functions = match &facts.functions {
                Fact::Known(functions) => holds(functions.iter().any(|name| self.names_function(name))),
                gap => missing(gap, phase),
            };
            outcome = both(outcome, functions);
        }
        if !self.settings.is_empty() {
            outcome = both(
                outcome,
                holds(facts.settings.iter().any(|name| self.names_setting(name))),
            );
        }
        if !self.channels.is_empty() {
            outcome = both(
                outcome,
                holds(facts.channels.iter().any(|name| self.names_channel(name))),
            );
        }
        outcome
    }

    fn fires_on_columns(&self, facts: &SqlFacts, phase: Phase) -> Outcome {
        match &facts.columns {
            Fact::Known(columns) => holds(columns.iter().any(|column| self.names_column(column))),
            gap => missing(gap, phase),
        }
    }

    /// Whether an Allow covers a part, functions, settings and channels aside.
    pub fn covers(&self, part: &Part, facts: &SqlFacts, phase: Phase) -> Outcome {
        if !self.command(part.command) {
            return Outcome::False;
        }
        let relation = match (&part.relation, self.tables.given) {
            (_, false) => Outcome::True,
            (PartRelation::None, true) => holds(needs_no_relation(part.command)),
            (PartRelation::Known(relation), true) => holds(self.tables.matches(relation)),
            (PartRelation::Unknown, true) => Outcome::Unknown,
        };
        if relation == Outcome::False || self.columns.is_empty() {
            return relation;
        }
        surely(relation, self.covers_columns(part, facts, phase))
    }

    fn covers_columns(&self, part: &Part, facts: &SqlFacts, phase: Phase) -> Outcome {
        match &facts.columns {
            Fact::Known(columns) => holds(
                columns
                    .iter()
                    .filter(|column| concerns(column, part, facts))
                    .all(|column| self.names_column(column)),
            ),
            gap => missing(gap, phase),
        }
    }

    /// The first column the part uses and the matcher does not name.
    pub fn unnamed_column<'f>(&self, part: &Part, facts: &'f SqlFacts) -> Option<&'f ColumnName> {
        facts
            .columns
            .known()?
            .iter()
            .find(|column| concerns(column, part, facts) && !self.names_column(column))
    }

    /// Whether a column is named.
    pub fn names_column(&self, column: &ColumnName) -> bool {
        let relation = &column.relation;
        self.columns
            .iter()
            .any(|pattern| pattern.matches(&relation.schema, &relation.name, &column.column))
    }

    /// Whether a function (`schema.name`) is named. A name that cannot be taken apart is not.
    pub fn names_function(&self, function: &str) -> bool {
        if self.functions.is_empty() {
            return false;
        }
        match function.split_once('.') {
            Some((schema, name)) if !function.contains('"') && !name.contains('.') => {
                self.functions.iter().any(|pattern| pattern.matches(schema, name))
            }
            _ => match RelationPattern::parse(function) {
                Ok(RelationPattern {
                    schema: NamePart::Exact(schema),
                    name: NamePart::Exact(name),
                }) => self.functions.iter().any(|pattern| pattern.matches(&schema, &name)),
                _ => false,
            },
        }
    }

    /// Whether a setting is named.
    pub fn names_setting(&self, setting: &str) -> bool {
        self.settings.iter().any(|pattern| pattern.matches(setting))
    }

    /// Whether a channel is named.
    pub fn names_channel(&self, channel: &str) -> bool {
        self.channels.iter().any(|pattern| pattern.matches(channel))
    }
}

/// Whether a used column counts for a part: it belongs to the part's relation, or to no part at all, in which case
/// nobody else would ask for it.
fn concerns(column: &ColumnName, part: &Part, facts: &SqlFacts) -> bool {
    let of = |part: &Part| matches!(&part.relation, PartRelation::Known(relation) if *relation == column.relation);
    of(part) || !facts.parts.iter().any(of)
}

/// Commands that act on nothing but what the statement itself says, so that a rule limited to some tables may still
/// cover them where no relation is named (`SELECT 1`). A rule limited to tables never covers a `CREATE ROLE`.
fn needs_no_relation(command: SqlCommand) -> bool {
    matches!(
        command,
        SqlCommand::Select
            | SqlCommand::Explain
            | SqlCommand::Call
            | SqlCommand::Set
            | SqlCommand::Transaction
            | SqlCommand::Listen
            | SqlCommand::Notify
            | SqlCommand::Lock
    )
}

/// Reads a one-part pattern: exact, `*`, a prefix with a trailing `*`, or anything in double quotes.
pub fn word(text: &str) -> Result<NamePart, String> {
    let wrong = || {
        format!(
            "`{text}` is not a name: write it exactly, as `*`, as a prefix with a trailing `*`, or in double quotes"
        )
    };
    if let Some(quoted) = text.strip_prefix('"') {
        let inner = quoted.strip_suffix('"').ok_or_else(wrong)?;
        let name = inner.replace("\"\"", "\u{0}");
        if name.is_empty() || name.contains('"') {
            return Err(wrong());
        }
        return Ok(NamePart::Exact(name.replace('\u{0}', "\"").into()));
    }
    let (stem, star) = text.strip_suffix('*').map_or((text, false), |stem| (stem, true));
    let valid = stem
        .chars()
        .all(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '-'));
    let stem: Arc<str> = stem.to_lowercase().into();
    match (valid, stem.is_empty(), star) {
        (true, true, true) => Ok(NamePart::Any),
        (true, false, true) => Ok(NamePart::Prefix(stem)),
        (true, false, false) => Ok(NamePart::Exact(stem)),
        _ => Err(wrong()),
    }
}
