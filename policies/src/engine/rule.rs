//! One rule and one policy, compiled. Shared by every session and never changed.

use std::sync::Arc;

use super::decision::{AskTerms, RuleRef};
use super::expr::{Family, Outcome, Scene, When};
use super::matcher::{both, surely, SqlMatcher};
use super::subject::{Subject, TargetId};
use crate::api::access_policy::{Detector, Limits, MaskAs, RuleEffect, SubjectMatch};
use crate::api::meta::{LabelSelector, NamespacedRef};
use crate::engine::decision::MaskRule;
use crate::engine::set::CompiledTarget;
use crate::sql::facts::Part;
use crate::sql::SqlFacts;

/// A compiled rule.
#[derive(Debug)]
pub struct CompiledRule {
    /// Policy and name.
    pub rule: RuleRef,
    /// What it does.
    pub effect: RuleEffect,
    /// From a ClusterAccessPolicy: its Ask covers nothing.
    pub floor: bool,
    /// From an Observe-mode policy.
    pub observe: bool,
    /// Its matcher; none matches every operation.
    pub matcher: Option<SqlMatcher>,
    /// Its condition.
    pub when: Option<When>,
    /// The operator's words.
    pub message: Option<Arc<str>>,
    /// What an approval needs.
    pub terms: Option<AskTerms>,
    /// Which operations it is about.
    pub family: Family,
    /// SHA-256 of its canonical form.
    pub digest: [u8; 32],
    /// The rule alone, as decisions name it.
    pub alone: Arc<[RuleRef]>,
    /// The terms alone.
    pub alone_terms: Arc<[AskTerms]>,
}

impl CompiledRule {
    /// Whether the rule is about operations of this family at all.
    pub fn concerns(&self, family: Family) -> bool {
        self.family == Family::Any || self.family == family
    }

    /// What the condition comes to.
    pub fn condition(&self, scene: &Scene<'_>) -> Outcome {
        self.when.as_ref().map_or(Outcome::True, |when| when.outcome(scene))
    }

    /// Whether a Deny or Ask fires on one part of a statement that was understood.
    pub fn fires(&self, part: &Part, facts: &SqlFacts, scene: &Scene<'_>) -> Outcome {
        let matched = self
            .matcher
            .as_ref()
            .map_or(Outcome::True, |matcher| matcher.fires(part, facts, scene.phase));
        match matched {
            Outcome::False => Outcome::False,
            matched => both(matched, self.condition(scene)),
        }
    }

    /// Whether an Allow, or an Ask, covers one part of a statement that was understood. An Ask covers only what it
    /// fires on for sure, so that whatever it covers is asked.
    pub fn covers(&self, part: &Part, facts: &SqlFacts, scene: &Scene<'_>) -> Outcome {
        if self.effect == RuleEffect::Ask {
            match self.fires(part, facts, scene) {
                Outcome::True | Outcome::Later => {}
                Outcome::False | Outcome::Unknown => return Outcome::False,
            }
        }
        let matched = self
            .matcher
            .as_ref()
            .map_or(Outcome::True, |matcher| matcher.covers(part, facts, scene.phase));
        match matched {
            Outcome::False | Outcome::Unknown => Outcome::False,
            matched => surely(matched, self.condition(scene)),
        }
    }

    /// Whether a rule fires on an operation that has no parts to look at: one that was not understood, or a stream.
    pub fn fires_whole(&self, scene: &Scene<'_>) -> Outcome {
        let matched = if self.matcher.is_some() {
            Outcome::Unknown
        } else {
            Outcome::True
        };
        both(matched, self.condition(scene))
    }

    /// Whether a rule without a matcher covers the whole operation, whatever it is.
    pub fn covers_whole(&self, scene: &Scene<'_>) -> Outcome {
        match (&self.matcher, self.condition(scene)) {
            (Some(_), _) | (None, Outcome::Unknown) => Outcome::False,
            (None, outcome) => outcome,
        }
    }

    /// Whether the rule lets harmless parts ride along and sessions open: it could apply to some operation now.
    /// A condition on the operation's own facts may hold for another operation, so it does not count against it.
    pub fn could_apply(&self, scene: &Scene<'_>, own: Family) -> bool {
        match &self.when {
            Some(when) if when.family() == Family::Any || when.family() == own => when.outcome(scene) == Outcome::True,
            _ => true,
        }
    }

    /// Whether the condition looks at anything that changes between two runs of one operation.
    pub fn is_volatile(&self) -> bool {
        self.when.as_ref().is_some_and(When::is_volatile)
    }
}

/// Which Targets a policy is about.
#[derive(Debug)]
pub enum TargetScope {
    /// These.
    Named(Vec<TargetId>),
    /// Those with such labels.
    Labelled(LabelSelector),
    /// Those with such labels, and these.
    Either(Vec<TargetId>, LabelSelector),
    /// Every Target.
    Every,
}

impl TargetScope {
    /// Whether a target is meant.
    pub fn includes(&self, target: &CompiledTarget) -> bool {
        let labels = &target.bundled.target.metadata.labels;
        match self {
            TargetScope::Named(names) => names.contains(&target.id),
            TargetScope::Labelled(selector) => selector.matches(labels),
            TargetScope::Either(names, selector) => names.contains(&target.id) || selector.matches(labels),
            TargetScope::Every => true,
        }
    }
}

/// A compiled policy.
#[derive(Debug)]
pub struct CompiledPolicy {
    /// As people name it.
    pub name: Arc<str>,
    /// A ClusterAccessPolicy.
    pub floor: bool,
    /// Observe mode.
    pub observe: bool,
    /// Its Targets.
    pub targets: TargetScope,
    /// Its subjects; None is everyone.
    pub subjects: Option<Vec<SubjectMatch>>,
    /// Its rules, in order.
    pub rules: Vec<Arc<CompiledRule>>,
    /// Its column masks.
    pub masks: Vec<MaskRule>,
    /// Its detectors.
    pub detectors: Vec<(Detector, MaskAs)>,
    /// Its limits.
    pub limits: Limits,
}

impl CompiledPolicy {
    /// Whether the policy is about this subject.
    pub fn names(&self, subject: &Subject) -> bool {
        match &self.subjects {
            None => true,
            Some(kinds) => kinds.iter().any(|kind| fits(kind, subject)),
        }
    }
}

fn fits(kind: &SubjectMatch, subject: &Subject) -> bool {
    let account =
        |account: &NamespacedRef| account.namespace == subject.namespace && account.name == subject.service_account;
    kind.service_account.as_ref().is_none_or(account)
        && kind
            .pod_selector
            .as_ref()
            .is_none_or(|selector| selector.matches(&subject.labels))
}
