//! Policies: every pattern parsed, every `when` typed, every rule digested.
//!
//! Refuses whatever could not be enforced as written, with the field's path. A ClusterAccessPolicy never allows; an
//! Ask has terms; a rule's matcher and condition are about one kind of operation.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::{problem, Problem};
use crate::api::access_policy::{Ask, Limits, Mask, Mode, Rule, RuleEffect, SqlMatch, SubjectMatch};
use crate::api::{AccessPolicy, ClusterAccessPolicy};
use crate::bundle::Bundle;
use crate::engine::decision::{AskTerms, MaskRule, RuleRef};
use crate::engine::expr::{Family, When};
use crate::engine::matcher::{word, Relations, SqlMatcher};
use crate::engine::rule::{CompiledPolicy, CompiledRule, TargetScope};
use crate::engine::{digest, TargetId};
use crate::sql::{ColumnPattern, RelationPattern};

/// Compiles every policy: cluster policies first, each kind by name.
pub fn compile(bundle: &Bundle, problems: &mut Vec<Problem>) -> Vec<CompiledPolicy> {
    let mut floors: Vec<&ClusterAccessPolicy> = bundle.cluster_policies.iter().collect();
    floors.sort_by_key(|policy| policy.full_name());
    let mut own: Vec<&AccessPolicy> = bundle.policies.iter().collect();
    own.sort_by_key(|policy| policy.full_name());
    let mut names = HashSet::new();
    let mut compiled = Vec::with_capacity(floors.len().saturating_add(own.len()));
    for policy in floors {
        compiled.push(cluster_policy(policy, problems));
    }
    for policy in own {
        compiled.push(access_policy(policy, problems));
    }
    for policy in &compiled {
        if !names.insert((policy.floor, Arc::clone(&policy.name))) {
            let object = object(policy.floor, &policy.name);
            problems.push(problem(&object, "metadata.name", "this policy is there twice"));
        }
    }
    compiled
}

fn object(floor: bool, name: &str) -> String {
    let kind = if floor { "ClusterAccessPolicy" } else { "AccessPolicy" };
    format!("{kind} {name}")
}

fn access_policy(policy: &AccessPolicy, problems: &mut Vec<Problem>) -> CompiledPolicy {
    let name = policy.full_name();
    let object = object(false, &name);
    let namespace = policy.metadata.namespace.clone().unwrap_or_default();
    let spec = &policy.spec;
    if namespace.is_empty() {
        problems.push(problem(
            &object,
            "metadata.namespace",
            "an AccessPolicy lives in a namespace; name it",
        ));
    }
    if spec.target_refs.is_empty() {
        problems.push(problem(&object, "spec.targetRefs", "name at least one Target"));
    }
    if spec.subjects.is_empty() {
        problems.push(problem(&object, "spec.subjects", "name at least one subject"));
    }
    let targets = spec
        .target_refs
        .iter()
        .map(|target| TargetId::new(&namespace, &target.name))
        .collect();
    let body = Body {
        rules: &spec.rules,
        masks: &spec.masks,
        limits: spec.limits,
        mode: spec.mode,
        subjects: Some(&spec.subjects),
        targets: TargetScope::Named(targets),
    };
    Compiler::new(&object, &name, false, spec.mode, problems).policy(body)
}

fn cluster_policy(policy: &ClusterAccessPolicy, problems: &mut Vec<Problem>) -> CompiledPolicy {
    let name = policy.full_name();
    let object = object(true, &name);
    let spec = &policy.spec;
    let named: Vec<TargetId> = spec
        .target_refs
        .iter()
        .map(|target| TargetId::new(&target.namespace, &target.name))
        .collect();
    let targets = match (&spec.target_selector, named.is_empty()) {
        (None, true) => TargetScope::Every,
        (None, false) => TargetScope::Named(named),
        (Some(selector), true) => TargetScope::Labelled(selector.clone()),
        (Some(selector), false) => TargetScope::Either(named, selector.clone()),
    };
    if spec.subjects.as_ref().is_some_and(Vec::is_empty) {
        let message = "an empty list names nobody; leave the field out to mean everyone";
        problems.push(problem(&object, "spec.subjects", message));
    }
    let body = Body {
        rules: &spec.rules,
        masks: &spec.masks,
        limits: spec.limits,
        mode: spec.mode,
        subjects: spec.subjects.as_ref(),
        targets,
    };
    Compiler::new(&object, &name, true, spec.mode, problems).policy(body)
}

/// What both kinds of policy have.
struct Body<'a> {
    rules: &'a [Rule],
    masks: &'a [Mask],
    limits: Limits,
    mode: Mode,
    subjects: Option<&'a Vec<SubjectMatch>>,
    targets: TargetScope,
}

struct Compiler<'a> {
    object: &'a str,
    name: Arc<str>,
    floor: bool,
    observe: bool,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Compiler<'a> {
    fn new(object: &'a str, name: &str, floor: bool, mode: Mode, problems: &'a mut Vec<Problem>) -> Self {
        Compiler {
            object,
            name: name.into(),
            floor,
            observe: mode == Mode::Observe,
            problems,
        }
    }

    fn report(&mut self, field: impl Into<String>, message: impl Display) {
        self.problems.push(problem(self.object, field, message.to_string()));
    }

    fn policy(mut self, body: Body<'_>) -> CompiledPolicy {
        let mut names = HashSet::new();
        let mut rules = Vec::with_capacity(body.rules.len());
        for (at, rule) in body.rules.iter().enumerate() {
            let field = format!("spec.rules[{at}]");
            if !names.insert(rule.name.as_str()) {
                self.report(
                    format!("{field}.name"),
                    format!("`{}` is the name of an earlier rule", rule.name),
                );
            }
            rules.push(Arc::new(self.rule(rule, &field)));
        }
        for (at, kind) in body.subjects.into_iter().flatten().enumerate() {
            if kind.service_account.is_none() && kind.pod_selector.is_none() {
                self.report(
                    format!("spec.subjects[{at}]"),
                    "an empty entry would mean everyone; name a serviceAccount or a podSelector",
                );
            }
        }
        let mut masks = Vec::new();
        let mut detectors = Vec::new();
        for (at, mask) in body.masks.iter().enumerate() {
            self.mask(mask, &format!("spec.masks[{at}]"), &mut masks);
            detectors.extend(mask.detect.iter().map(|what| (*what, mask.how)));
        }
        self.limits(&body.limits);
        CompiledPolicy {
            name: self.name,
            floor: self.floor,
            observe: body.mode == Mode::Observe,
            targets: body.targets,
            subjects: body.subjects.cloned(),
            rules,
            masks,
            detectors,
            limits: body.limits,
        }
    }

    fn rule(&mut self, rule: &Rule, field: &str) -> CompiledRule {
        if rule.name.is_empty() || rule.name.len() > 63 {
            self.report(format!("{field}.name"), "a name has 1 to 63 characters");
        }
        if self.floor && rule.effect == RuleEffect::Allow {
            self.report(
                format!("{field}.effect"),
                "a ClusterAccessPolicy never allows; use Deny or Ask",
            );
        }
        let matcher = rule.sql.as_ref().map(|sql| self.matcher(sql, &format!("{field}.sql")));
        let when = rule.when.as_deref().and_then(|text| self.when(text, field));
        let family = self.family(rule, when.as_ref(), field);
        let reference = RuleRef {
            policy: Arc::clone(&self.name),
            rule: rule.name.as_str().into(),
        };
        let terms = self.terms(rule, &reference, field);
        CompiledRule {
            alone: Arc::new([reference.clone()]),
            alone_terms: terms.iter().cloned().collect(),
            digest: digest::of(&json!({ "policy": &*self.name, "rule": rule })),
            rule: reference,
            effect: rule.effect,
            floor: self.floor,
            observe: self.observe,
            matcher,
            when,
            message: rule.message.as_deref().map(Into::into),
            terms,
            family,
        }
    }

    fn when(&mut self, text: &str, field: &str) -> Option<When> {
        When::compile(text)
            .map_err(|error| self.report(format!("{field}.when"), error))
            .ok()
    }

    /// A rule is about one kind of operation: its matcher's, or that of the facts it reads.
    fn family(&mut self, rule: &Rule, when: Option<&When>, field: &str) -> Family {
        let own = when.map_or(Family::Any, When::family);
        match (rule.sql.is_some(), own) {
            (true, Family::Any | Family::Sql) => Family::Sql,
            (true, _) => {
                self.report(
                    format!("{field}.when"),
                    "a rule with an `sql` matcher is about statements, which have no such facts",
                );
                Family::Sql
            }
            (false, Family::Tcp) if rule.effect == RuleEffect::Ask => {
                self.report(
                    format!("{field}.when"),
                    "a stream is held when it opens, before it has carried anything; an Ask cannot read tcp facts",
                );
                Family::Tcp
            }
            (false, own) => own,
        }
    }

    fn matcher(&mut self, sql: &SqlMatch, field: &str) -> SqlMatcher {
        SqlMatcher {
            commands: sql.commands.iter().copied().collect(),
            tables: Relations::new(self.patterns(&sql.tables, field, "tables", RelationPattern::parse)),
            columns: self.patterns(&sql.columns, field, "columns", ColumnPattern::parse),
            functions: self.patterns(&sql.functions, field, "functions", RelationPattern::parse),
            settings: self.patterns(&sql.settings, field, "settings", word),
            channels: self.patterns(&sql.channels, field, "channels", word),
        }
    }

    fn patterns<T, E: Display>(
        &mut self,
        texts: &[String],
        field: &str,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        let mut parsed = Vec::with_capacity(texts.len());
        for (at, text) in texts.iter().enumerate() {
            match parse(text) {
                Ok(pattern) => parsed.push(pattern),
                Err(error) => self.report(format!("{field}.{key}[{at}]"), error),
            }
        }
        parsed
    }

    fn terms(&mut self, rule: &Rule, reference: &RuleRef, field: &str) -> Option<AskTerms> {
        match (rule.effect, &rule.ask) {
            (RuleEffect::Ask, Some(ask)) => Some(self.ask(ask, reference, &format!("{field}.ask"))),
            (RuleEffect::Ask, None) => {
                self.report(format!("{field}.ask"), "an Ask needs `ask` with its approvers");
                None
            }
            (_, Some(_)) => {
                self.report(format!("{field}.ask"), "only a rule with effect Ask has `ask`");
                None
            }
            (_, None) => None,
        }
    }

    fn ask(&mut self, ask: &Ask, reference: &RuleRef, field: &str) -> AskTerms {
        if ask.approvers.is_empty() {
            self.report(format!("{field}.approvers"), "name at least one approver");
        }
        let count = match u32::try_from(ask.count) {
            Ok(count @ 1..=5) => count,
            _ => {
                self.report(format!("{field}.count"), "1 to 5 people");
                1
            }
        };
        let valid_for = ask.valid_for.map_or(VALID_FOR, |span| span.0);
        if ask.hold_for.is_some_and(|span| span.0 > MAX_HOLD) {
            self.report(format!("{field}.holdFor"), "at most 10m");
        }
        if valid_for > MAX_VALID || valid_for.is_zero() {
            self.report(format!("{field}.validFor"), "more than nothing and at most 24h");
        }
        AskTerms {
            rule: reference.clone(),
            approvers: ask.approvers.clone().into(),
            exclude: ask.exclude.clone().into(),
            count,
            hold_for: ask.hold_for.map(|span| span.0),
            valid_for,
        }
    }

    fn mask(&mut self, mask: &Mask, field: &str, masks: &mut Vec<MaskRule>) {
        if mask.columns.is_empty() == mask.detect.is_empty() {
            self.report(field, "a mask has either `columns` or `detect`");
        }
        for pattern in self.patterns(&mask.columns, field, "columns", ColumnPattern::parse) {
            masks.push(MaskRule {
                pattern,
                how: mask.how,
                policy: Arc::clone(&self.name),
            });
        }
    }

    fn limits(&mut self, limits: &Limits) {
        let positive = [
            ("rows", limits.rows.is_some_and(|rows| rows < 1)),
            ("bytes", limits.bytes.is_some_and(|bytes| bytes.0 < 1)),
            ("perMinute", limits.per_minute.is_some_and(|rate| rate < 1)),
            ("maxSession", limits.max_session.is_some_and(|span| span.0.is_zero())),
        ];
        for (key, wrong) in positive {
            if wrong {
                self.report(format!("spec.limits.{key}"), "a limit is at least 1");
            }
        }
    }
}

const VALID_FOR: Duration = Duration::from_secs(15 * 60);
const MAX_VALID: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_HOLD: Duration = Duration::from_secs(10 * 60);
