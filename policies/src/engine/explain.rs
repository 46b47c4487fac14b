//! Explanations: what a subject may do on each target, and why one operation was decided as it was.
//!
//! Owns no decision: everything said here is asked of the same rules that decide, one by one. Values are made for
//! printing and for JSON, in the order of evaluation.

use std::fmt;

use serde::Serialize;

use super::decision::{Decision, Effect};
use super::expr::{Family, Outcome, Scene};
use super::judge::{carries, NOTHING};
use super::operation::{Completeness, Facts, Operation, Phase, Verb};
use super::rule::CompiledRule;
use super::set::{BoundPolicies, PolicySet, Standing};
use super::subject::{Subject, TargetId};
use super::words;
use crate::api::access_policy::{Detector, Limits, MaskAs, RuleEffect};
use crate::engine::ConnectFacts;
use crate::sql::facts::Part;
use crate::sql::names::NamePart;
use crate::sql::{ColumnPattern, SqlFacts};

/// What a subject may do on one target.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// The target, `namespace/name`.
    pub target: String,
    /// Its protocol.
    pub protocol: &'static str,
    /// Whether a session may open, and why not.
    pub connect: Answer,
    /// Only Observe-mode policies concern this subject: operations pass.
    pub observe_only: bool,
    /// Rules by what they do, in the order of evaluation.
    pub denied: Vec<RuleLine>,
    /// Rules that need a person.
    pub asked: Vec<RuleLine>,
    /// Rules that let through.
    pub allowed: Vec<RuleLine>,
    /// Columns that are masked.
    pub masks: Vec<MaskLine>,
    /// What is masked wherever it is found.
    pub detectors: Vec<DetectorLine>,
    /// Caps.
    pub limits: Limits,
}

/// A decision in short.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// allow, ask or deny.
    pub effect: &'static str,
    /// snake_case reason, unless allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// `policy/rule` of the rules that made it.
    pub rules: Vec<String>,
    /// The operator's words, or ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Some rule waits for bind values.
    pub open: bool,
}

/// One rule as people read it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleLine {
    /// The policy.
    pub policy: String,
    /// The rule.
    pub rule: String,
    /// Observe mode: recorded, never applied.
    pub observe: bool,
    /// What it matches: `Select, Update on app.orders`, or `everything`.
    pub what: String,
    /// Its condition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// Who may approve.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<String>,
    /// The operator's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// One masked column pattern.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MaskLine {
    /// `schema.relation.column`.
    pub columns: String,
    /// What the value becomes.
    #[serde(rename = "as")]
    pub how: MaskAs,
    /// The policy that says so.
    pub policy: String,
}

/// One detector.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DetectorLine {
    /// What is found.
    pub detect: Detector,
    /// What it becomes.
    #[serde(rename = "as")]
    pub how: MaskAs,
}

/// Why one operation was decided as it was.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// The decision.
    pub answer: Answer,
    /// What the Observe-mode policies would have said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<&'static str>,
    /// What the operation consists of, as rules see it.
    pub parts: Vec<String>,
    /// Every candidate rule, with what it came to.
    pub rules: Vec<RuleTrace>,
    /// Columns the operation uses that are masked in its answer.
    pub masked: Vec<String>,
}

/// One rule and what it came to.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleTrace {
    /// The policy.
    pub policy: String,
    /// The rule.
    pub rule: String,
    /// Allow, Deny or Ask.
    pub effect: RuleEffect,
    /// Observe mode.
    pub observe: bool,
    /// Whether it matched.
    pub outcome: Hit,
    /// Why, in a few words.
    pub why: String,
    /// Its condition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}

/// Whether a rule matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Hit {
    /// It did.
    Hit,
    /// It did not.
    Miss,
    /// It could not be established.
    Unknown,
    /// It waits for bind values.
    Later,
}

impl From<Outcome> for Hit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::True => Hit::Hit,
            Outcome::False => Hit::Miss,
            Outcome::Unknown => Hit::Unknown,
            Outcome::Later => Hit::Later,
        }
    }
}

/// What a subject may do, on one target or on every target where some policy is about it.
pub fn access(set: &PolicySet, subject: &Subject, target: Option<&TargetId>, now: jiff::Timestamp) -> Vec<Access> {
    let mut ids: Vec<TargetId> = match target {
        Some(target) => vec![target.clone()],
        None => set.targets().map(|target| target.id.clone()).collect(),
    };
    ids.sort();
    ids.iter()
        .map(|id| (id, set.bind(subject, id)))
        .filter(|(_, bound)| target.is_some() || bound.standing() != Standing::Nobody)
        .map(|(id, bound)| access_to(id, &bound, now))
        .collect()
}

fn access_to(id: &TargetId, bound: &BoundPolicies, now: jiff::Timestamp) -> Access {
    let lines = |effect: RuleEffect| -> Vec<RuleLine> {
        bound
            .rules()
            .filter(|rule| rule.effect == effect)
            .map(|rule| line(rule))
            .collect()
    };
    let facts = ConnectFacts::default();
    let open = Operation {
        verb: Verb::Connect,
        action: "connect",
        completeness: Completeness::Exact,
        facts: Facts::Connect(&facts),
    };
    Access {
        target: id.to_string(),
        protocol: bound.target().map_or("", |target| target.protocol.as_str()),
        connect: answer(&bound.decide(&open, Phase::Final, now)),
        observe_only: bound.standing() == Standing::ObserveOnly,
        denied: lines(RuleEffect::Deny),
        asked: lines(RuleEffect::Ask),
        allowed: lines(RuleEffect::Allow),
        masks: bound
            .masks()
            .columns
            .iter()
            .map(|mask| MaskLine {
                columns: column_pattern(&mask.pattern),
                how: mask.how,
                policy: mask.policy.to_string(),
            })
            .collect(),
        detectors: bound
            .masks()
            .detectors
            .iter()
            .map(|(detect, how)| DetectorLine {
                detect: *detect,
                how: *how,
            })
            .collect(),
        limits: *bound.limits(),
    }
}

/// A decision in short.
pub fn answer(decision: &Decision) -> Answer {
    Answer {
        effect: decision.effect.as_str(),
        reason: decision.reason.map(crate::reason::Reason::as_str),
        rules: decision.rules.iter().map(ToString::to_string).collect(),
        message: decision.message.as_deref().map(str::to_owned),
        open: decision.open,
    }
}

fn line(rule: &CompiledRule) -> RuleLine {
    RuleLine {
        policy: rule.rule.policy.to_string(),
        rule: rule.rule.rule.to_string(),
        observe: rule.observe,
        what: what(rule),
        when: rule.when.as_ref().map(|when| when.text().to_string()),
        approvers: rule
            .terms
            .iter()
            .flat_map(|terms| terms.approvers.iter())
            .map(words::approver)
            .collect(),
        message: rule.message.as_deref().map(str::to_owned),
    }
}

fn what(rule: &CompiledRule) -> String {
    let Some(matcher) = &rule.matcher else {
        return "everything".to_owned();
    };
    let mut text: String = match matcher.commands.is_empty() {
        true => "every command".to_owned(),
        false => words::commands_of(matcher.commands)
            .map(words::command)
            .collect::<Vec<_>>()
            .join(", "),
    };
    let mut exact: Vec<String> = matcher.tables.exact.iter().map(ToString::to_string).collect();
    exact.sort();
    let tables = exact
        .into_iter()
        .chain(matcher.tables.patterns.iter().map(|p| pair(&p.schema, &p.name)));
    let keys: [(&str, Vec<String>); 5] = [
        (" on ", tables.collect()),
        ("; columns ", matcher.columns.iter().map(column_pattern).collect()),
        (
            "; functions ",
            matcher.functions.iter().map(|p| pair(&p.schema, &p.name)).collect(),
        ),
        ("; settings ", matcher.settings.iter().map(part).collect()),
        ("; channels ", matcher.channels.iter().map(part).collect()),
    ];
    for (lead, names) in keys {
        if !names.is_empty() {
            text.push_str(lead);
            text.push_str(&names.join(", "));
        }
    }
    text
}

fn part(part: &NamePart) -> String {
    match part {
        NamePart::Any => "*".to_owned(),
        NamePart::Prefix(prefix) => format!("{prefix}*"),
        NamePart::Exact(name) => name.to_string(),
    }
}

fn pair(schema: &NamePart, name: &NamePart) -> String {
    format!("{}.{}", part(schema), part(name))
}

fn column_pattern(pattern: &ColumnPattern) -> String {
    let relation = &pattern.relation;
    format!("{}.{}", pair(&relation.schema, &relation.name), part(&pattern.column))
}

/// Why one operation is decided as it is: every rule with hit, miss, unknown or later, and why.
pub fn operation(bound: &BoundPolicies, op: &Operation<'_>, phase: Phase, now: jiff::Timestamp) -> Trace {
    let decision = bound.decide(op, phase, now);
    let rules = match bound.target() {
        None => Vec::new(),
        Some(target) => {
            let scene = Scene {
                subject: bound.subject(),
                target,
                op,
                phase,
                now,
            };
            bound.rules().map(|rule| trace(rule, &scene)).collect()
        }
    };
    let sql = match (op.facts, op.completeness) {
        (Facts::Sql(sql), Completeness::Exact | Completeness::Partial) => Some(sql),
        _ => None,
    };
    Trace {
        answer: answer(&decision),
        observed: decision.observed.as_ref().map(|observed| observed.effect.as_str()),
        parts: sql.map_or_else(Vec::new, |sql| sql.parts.iter().map(words::part).collect()),
        rules,
        masked: sql.map_or_else(Vec::new, |sql| masked(&decision, sql)),
    }
}

/// Columns the statement uses that the decision masks.
pub fn masked(decision: &Decision, sql: &SqlFacts) -> Vec<String> {
    let columns = sql.columns.known().map_or(&[][..], Vec::as_slice);
    columns
        .iter()
        .filter(|column| {
            let relation = &column.relation;
            decision
                .masks
                .column(&relation.schema, &relation.name, &column.column)
                .is_some()
        })
        .map(ToString::to_string)
        .collect()
}

fn trace(rule: &CompiledRule, scene: &Scene<'_>) -> RuleTrace {
    let (outcome, why) = came_to(rule, scene);
    RuleTrace {
        policy: rule.rule.policy.to_string(),
        rule: rule.rule.rule.to_string(),
        effect: rule.effect,
        observe: rule.observe,
        outcome: outcome.into(),
        why,
        when: rule.when.as_ref().map(|when| when.text().to_string()),
    }
}

fn came_to(rule: &CompiledRule, scene: &Scene<'_>) -> (Outcome, String) {
    let said = |outcome, why: &str| (outcome, why.to_owned());
    match (scene.op.facts, scene.op.completeness) {
        (Facts::Sql(_), _) if !rule.concerns(Family::Sql) => {
            said(Outcome::False, "it is about other operations than statements")
        }
        (Facts::Sql(_), Completeness::Opaque) => opaque(rule, scene),
        (Facts::Sql(sql), _) => on_statement(rule, sql, scene),
        (Facts::Tcp(_), _) if !rule.concerns(Family::Tcp) => {
            said(Outcome::False, "it is about other operations than streams")
        }
        (Facts::Connect(_), _) if rule.effect == RuleEffect::Allow => match rule.could_apply(scene, Family::Connect) {
            true => said(Outcome::True, "it could apply"),
            false => said(Outcome::False, "its condition does not hold"),
        },
        (Facts::Connect(_), _) if rule.matcher.is_some() || !rule.concerns(Family::Connect) => {
            said(Outcome::False, "it is about what happens after the session opened")
        }
        (Facts::Tcp(_) | Facts::Connect(_), _) => condition_only(rule, scene),
    }
}

fn condition_only(rule: &CompiledRule, scene: &Scene<'_>) -> (Outcome, String) {
    match rule.when {
        None => (Outcome::True, "it matches every operation".to_owned()),
        Some(_) => {
            let outcome = rule.condition(scene);
            (outcome, condition_words(outcome).to_owned())
        }
    }
}

fn opaque(rule: &CompiledRule, scene: &Scene<'_>) -> (Outcome, String) {
    if rule.matcher.is_none() {
        return condition_only(rule, scene);
    }
    match rule.fires_whole(scene) {
        Outcome::False => (Outcome::False, condition_words(Outcome::False).to_owned()),
        outcome => (outcome, "the statement was not understood".to_owned()),
    }
}

fn on_statement(rule: &CompiledRule, sql: &SqlFacts, scene: &Scene<'_>) -> (Outcome, String) {
    let parts: &[Part] = if sql.parts.is_empty() { &NOTHING } else { &sql.parts };
    let covers = rule.effect == RuleEffect::Allow;
    let mut best: Option<(Outcome, &Part)> = None;
    for part in parts {
        let outcome = match covers {
            true => rule.covers(part, sql, scene),
            false => rule.fires(part, sql, scene),
        };
        let better = best.is_none_or(|(known, _)| rank(outcome) < rank(known));
        if better {
            best = Some((outcome, part));
        }
    }
    match best {
        Some((Outcome::True, part)) => (Outcome::True, format!("it names {}", words::part(part))),
        Some((Outcome::Later, part)) => (
            Outcome::Later,
            format!("it names {}, and waits for bind values", words::part(part)),
        ),
        Some((Outcome::Unknown, part)) => (Outcome::Unknown, format!("it cannot be told for {}", words::part(part))),
        _ if covers && parts.iter().any(|part| part.rides_along && carries(rule, part, scene)) => {
            (Outcome::True, "harmless parts ride along with it".to_owned())
        }
        _ => (Outcome::False, missed(rule, parts, sql, scene)),
    }
}

fn rank(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::True => 0,
        Outcome::Unknown => 1,
        Outcome::Later => 2,
        Outcome::False => 3,
    }
}

fn missed(rule: &CompiledRule, parts: &[Part], sql: &SqlFacts, scene: &Scene<'_>) -> String {
    let Some(matcher) = &rule.matcher else {
        return condition_words(rule.condition(scene)).to_owned();
    };
    let named: Vec<&Part> = parts.iter().filter(|part| matcher.command(part.command)).collect();
    let commands = || {
        let all: Vec<&str> = parts.iter().map(|part| words::command(part.command)).collect();
        all.join(", ")
    };
    if named.is_empty() {
        return format!("it does not name {}", commands());
    }
    let covers = rule.effect == RuleEffect::Allow;
    let unnamed = named.iter().find_map(|part| matcher.unnamed_column(part, sql));
    let matched = |part: &&&Part| match covers {
        true => matcher.covers(part, sql, scene.phase),
        false => matcher.fires(part, sql, scene.phase),
    };
    if named.iter().any(|part| matched(&part) == Outcome::True) {
        return condition_words(rule.condition(scene)).to_owned();
    }
    match (covers && !matcher.columns.is_empty(), unnamed) {
        (true, Some(column)) => format!("it does not name column {column}"),
        _ => {
            let all: Vec<String> = named.iter().map(|part| words::part(part)).collect();
            format!("it does not name {}", all.join(", "))
        }
    }
}

fn condition_words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::True => "its condition holds",
        Outcome::False => "its condition does not hold",
        Outcome::Later => "its condition waits for bind values",
        Outcome::Unknown => "its condition cannot be established",
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.effect)?;
        if !self.rules.is_empty() {
            write!(f, " ({})", self.rules.join(", "))?;
        }
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

/// The effect of an answer in words of policies.
pub fn effect_word(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "Allow",
        Effect::Ask => "Ask",
        Effect::Deny => "Deny",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::access_policy::SqlCommand::{Delete, Drop, Select};
    use crate::engine::fixtures::*;
    use crate::engine::Fact;

    fn example() -> PolicySet {
        set(&[
            policy(
                "support",
                json!({
                    "rules": [
                        {"name": "read", "effect": "Allow", "sql": {"commands": ["Select"], "tables": ["app.*"]}},
                        {"name": "refund", "effect": "Ask", "sql": {"commands": ["Update"], "tables": ["app.orders"]},
                         "ask": {"approvers": [{"group": "leads"}]}},
                        {"name": "filtered", "effect": "Deny", "sql": {"commands": ["Delete"]}, "when": "!sql.filtered",
                         "message": "Add a WHERE clause."}],
                    "masks": [{"columns": ["app.users.ssn"], "as": {"keepLast": {"count": 4}}}],
                    "limits": {"rows": 100}}),
            ),
            floor(
                "no-ddl",
                json!({"rules": [{"name": "no-ddl", "effect": "Deny", "sql": {"commands": ["Drop"]}}]}),
            ),
        ])
    }

    #[test]
    fn access_says_what_is_allowed_asked_denied_and_masked() {
        let all = access(&example(), &agent(), None, noon());
        assert_eq!(all.len(), 2);
        let shop = &all[0];
        assert_eq!((shop.target.as_str(), shop.connect.effect), ("data/shop", "allow"));
        assert_eq!(shop.allowed[0].what, "Select on app.*");
        assert_eq!(shop.asked[0].approvers, ["group leads"]);
        let denied: Vec<&str> = shop.denied.iter().map(|line| line.rule.as_str()).collect();
        assert_eq!(denied, ["no-ddl", "filtered"]);
        assert_eq!(shop.masks[0].columns, "app.users.ssn");
        assert_eq!(shop.limits.rows, Some(100));
        // A stream carries no statements, so nothing of this opens it.
        assert_eq!(all[1].connect.effect, "deny");
    }

    #[test]
    fn access_of_a_stranger_is_empty_unless_a_target_is_named() {
        let mut stranger = agent();
        stranger.service_account = "other".into();
        assert!(access(&example(), &stranger, None, noon()).is_empty());
        let named = access(&example(), &stranger, Some(&shop()), noon());
        assert_eq!(named[0].connect.effect, "deny");
    }

    #[test]
    fn an_operation_is_explained_rule_by_rule() {
        let set = example();
        let mut facts = statement(&[(Delete, "app.orders"), (Select, "app.users")]);
        facts.filtered = false;
        facts.columns = Fact::Known(vec![column("app.users.ssn")]);
        let trace = operation(&set.bind(&agent(), &shop()), &sql(&facts), Phase::Final, noon());
        assert_eq!(
            trace.answer.to_string(),
            "deny (data/support/filtered): Add a WHERE clause."
        );
        let of = |name: &str| trace.rules.iter().find(|rule| rule.rule == name).unwrap();
        assert_eq!((of("filtered").outcome, of("read").outcome), (Hit::Hit, Hit::Hit));
        assert_eq!((of("refund").outcome, of("no-ddl").outcome), (Hit::Miss, Hit::Miss));
        assert_eq!(of("no-ddl").why, "it does not name Delete, Select");
        assert_eq!(trace.masked, ["app.users.ssn"]);
        facts.filtered = true;
        let trace = operation(&set.bind(&agent(), &shop()), &sql(&facts), Phase::Final, noon());
        let filtered = trace.rules.iter().find(|rule| rule.rule == "filtered").unwrap();
        assert_eq!(filtered.why, "its condition does not hold");
        assert_eq!(
            trace.answer.to_string(),
            "deny (default): no rule allows Delete on app.orders"
        );
    }

    #[test]
    fn what_was_not_understood_is_unknown_to_every_matcher() {
        let set = example();
        let facts = statement(&[(Drop, "app.orders")]);
        let trace = operation(
            &set.bind(&agent(), &shop()),
            &crate::engine::fixtures::opaque(&facts),
            Phase::Final,
            noon(),
        );
        assert!(trace.rules.iter().all(|rule| rule.outcome == Hit::Unknown));
        assert!(trace.parts.is_empty());
    }
}
