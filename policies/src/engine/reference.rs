//! The slow interpreter: `policy-api.md`, sentence by sentence, over the objects as people wrote them.
//!
//! No index, no lowering, nothing shared with the engine but the types of facts: patterns are read anew each time
//! and a `when` runs in the CEL library's own interpreter. Tests hold the engine to it; nothing else uses it.

use std::collections::BTreeSet;

use super::decision::Effect;
use super::expr::grammar::oracle;
use super::expr::Scene;
use super::operation::{Completeness, Fact, Facts, Phase};
use crate::api::access_policy::{Limits, MaskAs, Mode, Rule, RuleEffect, SqlCommand, SubjectMatch};
use crate::api::target::TargetProtocol;
use crate::bundle::Bundle;
use crate::sql::facts::{Part, PartRelation};
use crate::sql::{ColumnName, ColumnPattern, NamePart, RelationPattern, SqlFacts};

/// What the interpreter says.
#[derive(Debug, PartialEq)]
pub struct Said {
    pub effect: Effect,
    /// For Deny and Ask: `policy/rule`, sorted; `default` where nothing covers.
    pub rules: BTreeSet<String>,
    pub open: bool,
}

/// What a rule comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tri {
    Yes,
    No,
    Later,
    Unknown,
}

use Tri::{Later, No, Unknown, Yes};

/// One policy of either kind, flattened.
struct Policy<'a> {
    name: String,
    floor: bool,
    observe: bool,
    rules: &'a [Rule],
}

pub struct World<'a> {
    pub bundle: &'a Bundle,
    pub scene: Scene<'a>,
}

impl World<'_> {
    fn about(&self, subjects: Option<&Vec<SubjectMatch>>) -> bool {
        let subject = self.scene.subject;
        subjects.is_none_or(|kinds| {
            kinds.iter().any(|kind| {
                kind.service_account
                    .as_ref()
                    .is_none_or(|account| account.to_string() == subject.account())
                    && kind
                        .pod_selector
                        .as_ref()
                        .is_none_or(|selector| selector.matches(&subject.labels))
            })
        })
    }

    fn candidates(&self) -> Vec<Policy<'_>> {
        let target = &self.scene.target.id;
        let labels = &self.scene.target.bundled.target.metadata.labels;
        let mut all = Vec::new();
        for policy in &self.bundle.cluster_policies {
            let spec = &policy.spec;
            let by_name = spec
                .target_refs
                .iter()
                .any(|named| named.to_string() == target.to_string());
            let by_label = spec
                .target_selector
                .as_ref()
                .is_some_and(|selector| selector.matches(labels));
            let every = spec.target_refs.is_empty() && spec.target_selector.is_none();
            if (by_name || by_label || every) && self.about(spec.subjects.as_ref()) {
                all.push(Policy {
                    name: policy.full_name(),
                    floor: true,
                    observe: spec.mode == Mode::Observe,
                    rules: &spec.rules,
                });
            }
        }
        for policy in &self.bundle.policies {
            let spec = &policy.spec;
            let here = policy.metadata.namespace.as_deref() == Some(&*target.namespace);
            let named = here && spec.target_refs.iter().any(|named| *named.name == *target.name);
            if named && self.about(Some(&spec.subjects)) {
                all.push(Policy {
                    name: policy.full_name(),
                    floor: false,
                    observe: spec.mode == Mode::Observe,
                    rules: &spec.rules,
                });
            }
        }
        all
    }

    /// The live decision, and what would have been decided with the Observe-mode policies in force.
    pub fn decide(&self) -> (Said, Option<Said>) {
        let candidates = self.candidates();
        let live: Vec<&Policy<'_>> = candidates.iter().filter(|policy| !policy.observe).collect();
        let any_live = live.iter().any(|policy| !policy.floor);
        let only_observe = !any_live && candidates.iter().any(|policy| !policy.floor && policy.observe);
        let observed = candidates.iter().any(|policy| policy.observe).then(|| {
            let all: Vec<&Policy<'_>> = candidates.iter().collect();
            self.evaluate(&all, false)
        });
        (self.evaluate(&live, only_observe), observed)
    }

    fn evaluate(&self, policies: &[&Policy<'_>], waived: bool) -> Said {
        let rules: Vec<(&Policy<'_>, &Rule)> = policies
            .iter()
            .flat_map(|policy| policy.rules.iter().map(move |rule| (*policy, rule)))
            .filter(|(_, rule)| self.takes_part(rule))
            .collect();
        let name = |policy: &Policy<'_>, rule: &Rule| format!("{}/{}", policy.name, rule.name);
        let parts = self.parts();
        let mut open = false;
        let mut fired = |effect: RuleEffect| {
            let mut names = BTreeSet::new();
            for (policy, rule) in rules.iter().filter(|(_, rule)| rule.effect == effect) {
                for part in &parts {
                    match self.fires(rule, part.as_ref()) {
                        Yes | Unknown => {
                            names.insert(name(policy, rule));
                        }
                        Later => open = true,
                        No => {}
                    }
                }
            }
            names
        };
        let denied = fired(RuleEffect::Deny);
        let said = |effect, rules, open| Said { effect, rules, open };
        if !denied.is_empty() {
            return said(Effect::Deny, denied, false);
        }
        let covering: Vec<(&Policy<'_>, &Rule)> = rules
            .iter()
            .copied()
            .filter(|(policy, rule)| !policy.floor && rule.effect != RuleEffect::Deny)
            .collect();
        let coverage = if waived { Yes } else { self.covered(&covering, &parts) };
        if !matches!(coverage, Yes | Later) {
            return said(Effect::Deny, BTreeSet::from(["default".to_owned()]), false);
        }
        let asked = match (self.scene.op.facts, self.scene.target.protocol) {
            (Facts::Tcp(_), _) | (Facts::Connect(_), TargetProtocol::Postgres) => BTreeSet::new(),
            _ => fired(RuleEffect::Ask),
        };
        let open = open || coverage == Later;
        match asked.is_empty() {
            true => said(Effect::Allow, BTreeSet::new(), open),
            false => said(Effect::Ask, asked, open),
        }
    }

    /// The parts of the operation; None stands for the whole of one that has none to look at.
    fn parts(&self) -> Vec<Option<Part>> {
        match (self.scene.op.facts, self.scene.op.completeness) {
            (Facts::Sql(_), Completeness::Opaque) | (Facts::Connect(_) | Facts::Tcp(_), _) => vec![None],
            (Facts::Sql(sql), _) if sql.parts.is_empty() => vec![Some(Part {
                command: SqlCommand::Other,
                relation: PartRelation::None,
                rides_along: true,
            })],
            (Facts::Sql(sql), _) => sql.parts.iter().cloned().map(Some).collect(),
        }
    }

    /// A rule is about the operations its matcher and its condition speak of.
    fn takes_part(&self, rule: &Rule) -> bool {
        let text = rule.when.as_deref().unwrap_or("");
        let sql = rule.sql.is_some() || text.contains("sql.");
        let tcp = text.contains("tcp.");
        let connect = text.contains("connect.");
        match (self.scene.op.facts, rule.effect) {
            (Facts::Sql(_), _) => !tcp && !connect,
            (Facts::Tcp(_), _) => !sql && !connect,
            // A session that opens: a Deny or Ask must be about that; an Allow or Ask that could apply admits.
            (Facts::Connect(_), RuleEffect::Deny) => !sql && !tcp,
            (Facts::Connect(_), _) => match self.scene.target.protocol {
                TargetProtocol::Postgres => !tcp,
                TargetProtocol::Tcp => !sql,
            },
        }
    }

    fn sql(&self) -> Option<&SqlFacts> {
        match (self.scene.op.facts, self.scene.op.completeness) {
            (Facts::Sql(_), Completeness::Opaque) => None,
            (Facts::Sql(sql), _) => Some(sql),
            _ => None,
        }
    }

    fn gap<T>(&self, fact: &Fact<T>) -> Tri {
        match (fact, self.scene.phase) {
            (Fact::Known(_), _) => Yes,
            (Fact::Later, Phase::Structure) => Later,
            _ => Unknown,
        }
    }

    fn condition(&self, rule: &Rule) -> Tri {
        let Some(text) = &rule.when else { return Yes };
        let names = |name: &str| {
            text.match_indices(name).any(|(at, _)| {
                let after = text[at + name.len()..].chars().next();
                !after.is_some_and(|c| c.is_alphanumeric())
            })
        };
        match self.sql() {
            None if text.contains("sql.") => return Unknown,
            None => {}
            Some(sql) => {
                let mut worst = Yes;
                let gaps = [
                    ("sql.tables", self.gap(&sql.tables)),
                    ("sql.reads", self.gap(&sql.reads)),
                    ("sql.writes", self.gap(&sql.writes)),
                    ("sql.columns", self.gap(&sql.columns)),
                    ("sql.functions", self.gap(&sql.functions)),
                    ("sql.limit", self.gap(&sql.limit)),
                    ("sql.params", self.gap(&sql.params)),
                ];
                for (_, state) in gaps.into_iter().filter(|(name, _)| names(name)) {
                    worst = match (worst, state) {
                        (Later, _) | (_, Later) => Later,
                        (Unknown, _) | (_, Unknown) => Unknown,
                        _ => Yes,
                    };
                }
                if worst != Yes {
                    return worst;
                }
            }
        }
        match oracle::interpret(text, &self.scene) {
            Some(true) => Yes,
            Some(false) => No,
            None => Unknown,
        }
    }

    fn and(states: &[Tri]) -> Tri {
        for wanted in [No, Later, Unknown] {
            if states.contains(&wanted) {
                return wanted;
            }
        }
        Yes
    }

    fn yes(value: bool) -> Tri {
        if value {
            Yes
        } else {
            No
        }
    }

    /// Deny and Ask: one hit per key is enough.
    fn fires(&self, rule: &Rule, part: Option<&Part>) -> Tri {
        let Some(matcher) = &rule.sql else {
            return self.condition(rule);
        };
        let (Some(part), Some(sql)) = (part, self.sql()) else {
            let about_statements = matches!(self.scene.op.facts, Facts::Sql(_));
            return if about_statements {
                Self::and(&[Unknown, self.condition(rule)])
            } else {
                No
            };
        };
        let mut states = vec![Self::yes(
            matcher.commands.is_empty() || matcher.commands.contains(&part.command),
        )];
        if !matcher.tables.is_empty() {
            states.push(match &part.relation {
                PartRelation::None => No,
                PartRelation::Unknown => Unknown,
                PartRelation::Known(relation) => Self::yes(matcher.tables.iter().any(|text| {
                    let pattern = RelationPattern::parse(text).unwrap();
                    pattern.matches(&relation.schema, &relation.name)
                })),
            });
        }
        if !matcher.columns.is_empty() {
            states.push(match &sql.columns {
                Fact::Known(columns) => Self::yes(columns.iter().any(|column| column_named(&matcher.columns, column))),
                gap => self.gap(gap),
            });
        }
        if !matcher.functions.is_empty() {
            states.push(match &sql.functions {
                Fact::Known(functions) => {
                    Self::yes(functions.iter().any(|name| function_named(&matcher.functions, name)))
                }
                gap => self.gap(gap),
            });
        }
        if !matcher.settings.is_empty() {
            states.push(Self::yes(
                sql.settings.iter().any(|name| word_named(&matcher.settings, name)),
            ));
        }
        if !matcher.channels.is_empty() {
            states.push(Self::yes(
                sql.channels.iter().any(|name| word_named(&matcher.channels, name)),
            ));
        }
        if states.contains(&No) {
            return No;
        }
        states.push(self.condition(rule));
        Self::and(&states)
    }

    /// Allow, and the Ask of an AccessPolicy where it fires: everything the part uses must be named.
    fn covers(&self, rule: &Rule, part: &Part, sql: &SqlFacts) -> Tri {
        if rule.effect == RuleEffect::Ask && !matches!(self.fires(rule, Some(part)), Yes | Later) {
            return No;
        }
        let mut states = vec![self.condition(rule)];
        if let Some(matcher) = &rule.sql {
            states.push(Self::yes(
                matcher.commands.is_empty() || matcher.commands.contains(&part.command),
            ));
            if !matcher.tables.is_empty() {
                states.push(match &part.relation {
                    PartRelation::None => Self::yes(!matches!(
                        part.command,
                        SqlCommand::Create
                            | SqlCommand::Alter
                            | SqlCommand::Drop
                            | SqlCommand::Grant
                            | SqlCommand::Revoke
                            | SqlCommand::Comment
                            | SqlCommand::Maintain
                            | SqlCommand::Copy
                            | SqlCommand::Do
                            | SqlCommand::Other
                            | SqlCommand::Insert
                            | SqlCommand::Update
                            | SqlCommand::Delete
                            | SqlCommand::Merge
                            | SqlCommand::Truncate
                    )),
                    PartRelation::Unknown => Unknown,
                    PartRelation::Known(relation) => Self::yes(matcher.tables.iter().any(|text| {
                        let pattern = RelationPattern::parse(text).unwrap();
                        pattern.matches(&relation.schema, &relation.name)
                    })),
                });
            }
            if !matcher.columns.is_empty() {
                states.push(match &sql.columns {
                    Fact::Known(columns) => Self::yes(
                        columns
                            .iter()
                            .filter(|column| belongs(column, part, sql))
                            .all(|column| column_named(&matcher.columns, column)),
                    ),
                    gap => self.gap(gap),
                });
            }
        }
        match states {
            states if states.contains(&No) || states.contains(&Unknown) => No,
            states => Self::and(&states),
        }
    }

    fn could_apply(&self, rule: &Rule) -> bool {
        let text = rule.when.as_deref().unwrap_or("");
        text.contains("sql.") || text.contains("tcp.") || self.condition(rule) == Yes
    }

    fn covered(&self, rules: &[(&Policy<'_>, &Rule)], parts: &[Option<Part>]) -> Tri {
        let best = |states: &mut dyn Iterator<Item = Tri>| {
            let states: Vec<Tri> = states.collect();
            match (states.contains(&Yes), states.contains(&Later)) {
                (true, _) => Yes,
                (_, true) => Later,
                _ => No,
            }
        };
        if let Facts::Connect(_) = self.scene.op.facts {
            return Self::yes(rules.iter().any(|(_, rule)| self.could_apply(rule)));
        }
        let Some(sql) = self.sql() else {
            let mut states = rules
                .iter()
                .filter(|(_, rule)| rule.sql.is_none())
                .map(|(_, rule)| self.condition(rule));
            return best(&mut states);
        };
        let mut whole = Vec::new();
        for part in parts.iter().flatten() {
            let carried = part.rides_along
                && rules.iter().any(|(_, rule)| {
                    let select = part.command != SqlCommand::Select
                        || rule.sql.as_ref().is_none_or(|matcher| {
                            matcher.commands.is_empty() || matcher.commands.contains(&SqlCommand::Select)
                        });
                    rule.effect == RuleEffect::Allow && select && self.could_apply(rule)
                });
            whole.push(match carried {
                true => Yes,
                false => best(&mut rules.iter().map(|(_, rule)| self.covers(rule, part, sql))),
            });
        }
        whole.extend(self.named(rules, parts, sql));
        Self::and(&whole)
    }

    /// Every function, setting and channel beyond the harmless is named by a rule that covers some part.
    fn named(&self, rules: &[(&Policy<'_>, &Rule)], parts: &[Option<Part>], sql: &SqlFacts) -> Vec<Tri> {
        let covering: Vec<(&Rule, Tri)> = rules
            .iter()
            .flat_map(|(_, rule)| parts.iter().flatten().map(|part| (*rule, self.covers(rule, part, sql))))
            .filter(|(_, state)| matches!(state, Yes | Later))
            .collect();
        let by = |names: &dyn Fn(&Rule) -> bool| {
            let states: Vec<Tri> = covering
                .iter()
                .filter(|(rule, _)| rule.sql.is_none() || names(rule))
                .map(|(_, state)| *state)
                .collect();
            match (states.contains(&Yes), states.is_empty()) {
                (true, _) => Yes,
                (false, false) => Later,
                (false, true) => No,
            }
        };
        let mut found = Vec::new();
        match &sql.unlisted_functions {
            Fact::Known(functions) => {
                for name in functions {
                    found.push(by(&|rule| function_named(&rule.sql.as_ref().unwrap().functions, name)));
                }
            }
            _ => found.push(by(&|_| false)),
        }
        for name in &sql.unlisted_settings {
            found.push(by(&|rule| word_named(&rule.sql.as_ref().unwrap().settings, name)));
        }
        for name in &sql.channels {
            found.push(by(&|rule| word_named(&rule.sql.as_ref().unwrap().channels, name)));
        }
        found
    }

    /// The strongest mask of a column, and the strictest limits.
    pub fn obligations(&self, column: &ColumnName) -> (Option<MaskAs>, Limits) {
        let names: BTreeSet<(bool, String)> = self
            .candidates()
            .iter()
            .filter(|policy| !policy.observe)
            .map(|policy| (policy.floor, policy.name.clone()))
            .collect();
        let mut best: Option<((u8, i32, String), MaskAs)> = None;
        let mut limits = Limits::default();
        let cluster = self.bundle.cluster_policies.iter();
        let all = cluster
            .map(|policy| (true, policy.full_name(), &policy.spec.masks, policy.spec.limits))
            .chain(
                self.bundle
                    .policies
                    .iter()
                    .map(|policy| (false, policy.full_name(), &policy.spec.masks, policy.spec.limits)),
            );
        for (floor, name, masks, own) in all {
            if !names.contains(&(floor, name.clone())) {
                continue;
            }
            limits = limits.strictest(&own);
            for mask in masks.iter().filter(|mask| column_named(&mask.columns, column)) {
                let (rank, keeps) = match mask.how {
                    MaskAs::Null(_) => (0, 0),
                    MaskAs::Redact(_) => (1, 0),
                    MaskAs::Hash(_) => (2, 0),
                    MaskAs::Token(_) => (3, 0),
                    MaskAs::DateTrunc(_) => (4, 0),
                    MaskAs::KeepFirst(keep) | MaskAs::KeepLast(keep) => (5, keep.count),
                };
                let key = (rank, keeps, name.clone());
                if best.as_ref().is_none_or(|(known, _)| key < *known) {
                    best = Some((key, mask.how));
                }
            }
        }
        (best.map(|(_, how)| how), limits)
    }
}

fn column_named(patterns: &[String], column: &ColumnName) -> bool {
    patterns.iter().any(|text| {
        let pattern = ColumnPattern::parse(text).unwrap();
        pattern.matches(&column.relation.schema, &column.relation.name, &column.column)
    })
}

fn function_named(patterns: &[String], name: &str) -> bool {
    let Ok(RelationPattern {
        schema: NamePart::Exact(schema),
        name: NamePart::Exact(name),
    }) = RelationPattern::parse(name)
    else {
        return false;
    };
    patterns
        .iter()
        .any(|text| RelationPattern::parse(text).unwrap().matches(&schema, &name))
}

fn word_named(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    })
}

fn belongs(column: &ColumnName, part: &Part, sql: &SqlFacts) -> bool {
    let of = |part: &Part| matches!(&part.relation, PartRelation::Known(known) if *known == column.relation);
    of(part) || sql.parts.iter().all(|part| !of(part))
}
