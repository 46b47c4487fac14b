//! What would have to change for an operation to pass: in the statement, in a policy, or in what is known of the
//! database. Each change is one sentence, the cheapest first.
//!
//! It asks the same rules that decide. A rule it writes out allows exactly the part that lacks one, never more.

use std::sync::Arc;

use crate::api::access_policy::RuleEffect;
use crate::engine::decision::{Decision, Effect};
use crate::engine::expr::{Outcome, Scene};
use crate::engine::judge::carries;
use crate::engine::rule::CompiledRule;
use crate::engine::{words, BoundPolicies, Completeness, Facts, Operation, Phase, TargetId};
use crate::sql::facts::{Part, PartRelation};
use crate::sql::postgres::plan::PlanRefusal;
use crate::sql::SqlFacts;

/// One decision to be explained.
pub(super) struct Case<'a> {
    pub bound: &'a BoundPolicies,
    pub target: &'a TargetId,
    pub decision: &'a Decision,
    pub op: &'a Operation<'a>,
    pub phase: Phase,
    pub now: jiff::Timestamp,
    pub refused: Option<&'a PlanRefusal>,
    pub problem: Option<&'a str>,
    pub has_schema: bool,
}

/// What would have to change; nothing for what passes.
pub(super) fn changes(case: &Case<'_>) -> Vec<String> {
    if let Some(refused) = case.refused {
        return unmask(case, refused);
    }
    match case.decision.effect {
        Effect::Allow => Vec::new(),
        Effect::Ask => case.decision.asks.iter().map(approve).collect(),
        Effect::Deny => denied(case),
    }
}

fn approve(terms: &crate::engine::AskTerms) -> String {
    let people: Vec<String> = terms.approvers.iter().map(words::approver).collect();
    let who = match (people.as_slice(), terms.count) {
        ([], _) => "Nobody is named who may approve it".to_owned(),
        (_, 0 | 1) => format!("One of these has to approve it: {}", people.join(", ")),
        (_, count) => format!("{count} of these have to approve it: {}", people.join(", ")),
    };
    format!("{who} ({})", terms.rule)
}

fn unmask(case: &Case<'_>, refused: &PlanRefusal) -> Vec<String> {
    let rewrite = match refused {
        PlanRefusal::Used { column, .. } => {
            format!("Use {column} only in the list of selected columns, as it is; it is shown masked there")
        }
        PlanRefusal::Assigned { column, .. } => format!("Set {column} from a parameter or a constant"),
        PlanRefusal::Conflict { .. } => "Name the columns of ON CONFLICT, none of them masked".to_owned(),
        PlanRefusal::Code => "Send what the code does as statements of their own".to_owned(),
        PlanRefusal::PlanFormat => "Ask for FORMAT TEXT or JSON".to_owned(),
        PlanRefusal::Row { relation, .. } => format!("Select the columns of {relation} by name"),
        PlanRefusal::UnknownOutput | PlanRefusal::UnknownUse => return resolve(case, "its columns"),
    };
    let mut changes = vec![rewrite];
    if let Some(policy) = refused.policy() {
        changes.push(format!("Or {policy} stops masking that column for this subject"));
    }
    changes
}

/// What helps where names are not known.
fn resolve(case: &Case<'_>, what: &str) -> Vec<String> {
    if let Some(problem) = case.problem {
        return vec![format!("Write the statement so that it can be understood: {problem}")];
    }
    vec![match case.has_schema {
        true => format!("Check its names: the schema does not hold enough to tell {what}"),
        false => format!("Give --schema FILE: without the database's schema nobody can tell {what}"),
    }]
}

fn denied(case: &Case<'_>) -> Vec<String> {
    let scene = case.bound.target().map(|target| Scene {
        subject: case.bound.subject(),
        target,
        op: case.op,
        phase: case.phase,
        now: case.now,
    });
    let Some(scene) = scene else {
        return vec![format!("There has to be a Target {}", case.target)];
    };
    let opaque = case.op.completeness == Completeness::Opaque;
    if case.problem.is_some() && opaque && rules(case).any(|_| true) {
        // Rules hold because nothing is known of it; once it is understood they may let go.
        return resolve(case, "what it does");
    }
    let mut changes = Vec::new();
    for rule in case
        .bound
        .rules()
        .filter(|rule| rule.effect == RuleEffect::Deny && !rule.observe)
    {
        if case.decision.rules.contains(&rule.rule) {
            changes.push(lift(rule, &scene, case));
        }
    }
    if !rules(case).any(|_| true) {
        changes.push(policy(case));
        return changes;
    }
    match (case.op.facts, case.op.completeness) {
        (Facts::Sql(_), Completeness::Opaque) => changes.extend(resolve(case, "what it does")),
        (Facts::Sql(sql), _) => uncovered(case, sql, &scene, &mut changes),
        (Facts::Connect(_) | Facts::Tcp(_), _) if changes.is_empty() => {
            changes.push(format!("A rule has to allow something on {} now", case.target));
        }
        _ => {}
    }
    changes
}

/// Rules that can cover.
fn rules<'a>(case: &Case<'a>) -> impl Iterator<Item = &'a Arc<CompiledRule>> {
    case.bound.rules().filter(|rule| {
        let covers = match rule.effect {
            RuleEffect::Allow => true,
            RuleEffect::Ask => !rule.floor,
            RuleEffect::Deny => false,
        };
        covers && !rule.observe
    })
}

/// What makes a Deny let go.
fn lift(rule: &CompiledRule, scene: &Scene<'_>, case: &Case<'_>) -> String {
    let name = &rule.rule;
    let sure = match (scene.op.facts, scene.op.completeness) {
        (Facts::Sql(sql), Completeness::Exact | Completeness::Partial) => {
            sql.parts.is_empty()
                || sql
                    .parts
                    .iter()
                    .any(|part| rule.fires(part, sql, scene) == Outcome::True)
        }
        _ => rule.fires_whole(scene) == Outcome::True,
    };
    if !sure {
        let help = resolve(case, "whether it concerns this statement").remove(0);
        return format!("{name} holds because something could not be told. {help}");
    }
    match (&rule.when, &rule.message) {
        (Some(when), Some(message)) => format!("{name} lets go when `{}` no longer holds: {message}", when.text()),
        (Some(when), None) => format!("{name} lets go when `{}` no longer holds", when.text()),
        (None, _) => format!("{name} denies this whatever the statement says: only a change of that policy helps"),
    }
}

/// The policy that is missing altogether.
fn policy(case: &Case<'_>) -> String {
    let (subject, target) = (case.bound.subject(), case.target);
    format!(
        "An AccessPolicy in namespace {} has to name both: targetRefs: [{{name: {}}}], \
         subjects: [{{serviceAccount: {{namespace: {}, name: {}}}}}]",
        target.namespace, target.name, subject.namespace, subject.service_account
    )
}

fn uncovered(case: &Case<'_>, sql: &SqlFacts, scene: &Scene<'_>, changes: &mut Vec<String>) {
    let mut covering: Vec<&Arc<CompiledRule>> = Vec::new();
    for part in &sql.parts {
        let fits: Vec<_> = rules(case)
            .filter(|rule| matches!(rule.covers(part, sql, scene), Outcome::True | Outcome::Later))
            .collect();
        let carried = part.rides_along && rules(case).any(|rule| carries(rule, part, scene));
        if fits.is_empty() && !carried {
            missing(case, part, sql, scene, changes);
        }
        covering.extend(fits);
    }
    let names = |named: &dyn Fn(&CompiledRule) -> bool| covering.iter().any(|rule| named(rule));
    let list = |what: &str, name: &str| {
        format!("A rule that allows this has to list `{name}` under sql.{what}, or have no sql matcher")
    };
    match sql.unlisted_functions.known() {
        None => changes.extend(resolve(case, "which functions it calls")),
        Some(functions) => {
            for name in functions {
                if !names(&|rule| rule.matcher.as_ref().is_none_or(|m| m.names_function(name))) {
                    changes.push(list("functions", name));
                }
            }
        }
    }
    for name in &sql.unlisted_settings {
        if !names(&|rule| rule.matcher.as_ref().is_none_or(|m| m.names_setting(name))) {
            changes.push(list("settings", name));
        }
    }
    for name in &sql.channels {
        if !names(&|rule| rule.matcher.as_ref().is_none_or(|m| m.names_channel(name))) {
            changes.push(list("channels", name));
        }
    }
    changes.dedup();
}

/// What would cover a part that nothing covers.
fn missing(case: &Case<'_>, part: &Part, sql: &SqlFacts, scene: &Scene<'_>, changes: &mut Vec<String>) {
    let command = words::command(part.command);
    if part.relation == PartRelation::Unknown {
        let help = resolve(case, &format!("which relation {command} is about"));
        changes.extend(
            help.into_iter()
                .filter(|line| !changes.contains(line))
                .collect::<Vec<_>>(),
        );
        return;
    }
    for rule in rules(case) {
        let Some(matcher) = &rule.matcher else {
            if let (Some(when), Outcome::False) = (&rule.when, rule.condition(scene)) {
                changes.push(format!("{} allows it when `{}` holds", rule.rule, when.text()));
            }
            continue;
        };
        let mut wider = matcher.clone();
        wider.columns.clear();
        if wider.covers(part, sql, scene.phase) != Outcome::True {
            continue;
        }
        if matcher.covers(part, sql, scene.phase) == Outcome::True {
            if let (Some(when), Outcome::False) = (&rule.when, rule.condition(scene)) {
                changes.push(format!("{} allows it when `{}` holds", rule.rule, when.text()));
            }
        } else if let Some(column) = matcher.unnamed_column(part, sql) {
            changes.push(format!(
                "Leave out {column}, or list it under sql.columns of {}",
                rule.rule
            ));
        }
    }
    let tables = match &part.relation {
        PartRelation::Known(relation) => format!(", tables: [{relation}]"),
        PartRelation::None | PartRelation::Unknown => String::new(),
    };
    changes.push(format!(
        "A rule has to allow {}: {{name: …, effect: Allow, sql: {{commands: [{command}]{tables}}}}}",
        words::part(part)
    ));
}
