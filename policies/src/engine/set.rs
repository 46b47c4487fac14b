//! The compiled policies of one bundle, and what of them concerns one subject on one target.
//!
//! A [`PolicySet`] is immutable, shared and swapped whole. [`PolicySet::bind`] narrows it to the candidates of one
//! subject and target, once per session; [`BoundPolicies::decide`] is the hot path and allocates only where a
//! decision is not the plain Allow of one rule. A subject or target the set does not know is denied everything.

use std::collections::HashMap;
use std::sync::Arc;

use super::decision::{AskTerms, Decision, Effect, MaskRule, MaskSet, Observed, RuleRef};
use super::digest::{self, Parts};
use super::expr::Scene;
use super::index::Index;
use super::judge::{Judge, Rules, Verdict};
use super::masks;
use super::operation::{Completeness, Facts, Operation, Phase};
use super::rule::{CompiledPolicy, CompiledRule};
use super::subject::{Subject, TargetId};
use crate::api::access_policy::{Limits, RuleEffect};
use crate::api::target::TargetProtocol;
use crate::bundle::BundledTarget;
use crate::reason::Reason;

/// Every target and policy of one bundle, compiled.
#[derive(Debug, Default)]
pub struct PolicySet {
    pub(crate) version: Arc<str>,
    pub(crate) targets: HashMap<TargetId, Arc<CompiledTarget>>,
    /// Cluster policies first, then by name.
    pub(crate) policies: Vec<CompiledPolicy>,
}

/// One Target as the engine sees it.
#[derive(Debug)]
pub struct CompiledTarget {
    /// Its name.
    pub id: TargetId,
    /// Its protocol.
    pub protocol: TargetProtocol,
    /// The object and what the broker resolved for it.
    pub bundled: BundledTarget,
    /// SHA-256 of its canonical form: uid, names, labels and spec.
    pub digest: [u8; 32],
}

/// Rules by what they do.
#[derive(Debug, Default)]
pub(crate) struct RuleSet {
    pub(crate) denies: Index,
    pub(crate) asks: Index,
    /// Rules that may cover: Allows, and Asks of AccessPolicies.
    pub(crate) covers: Index,
}

impl RuleSet {
    pub(crate) fn new<'a>(policies: impl Iterator<Item = &'a CompiledPolicy>) -> Self {
        let rules: Vec<&Arc<CompiledRule>> = policies.flat_map(|policy| &policy.rules).collect();
        let of = |wanted: fn(&CompiledRule) -> bool| {
            Index::new(
                rules
                    .iter()
                    .filter(|rule| wanted(rule))
                    .map(|rule| Arc::clone(rule))
                    .collect(),
            )
        };
        RuleSet {
            denies: of(|rule| rule.effect == RuleEffect::Deny),
            asks: of(|rule| rule.effect == RuleEffect::Ask),
            covers: of(|rule| !rule.floor && rule.effect != RuleEffect::Deny),
        }
    }
}

/// The candidates of one subject on one target. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BoundPolicies(Arc<Bound>);

/// What a subject has to do with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Some live AccessPolicy is about both.
    Live,
    /// Only Observe-mode AccessPolicies are: operations pass, and the record says so.
    ObserveOnly,
    /// None is.
    Nobody,
}

#[derive(Debug)]
struct Bound {
    subject: Subject,
    id: TargetId,
    target: Option<Arc<CompiledTarget>>,
    standing: Standing,
    live: RuleSet,
    /// Live and Observe-mode rules together, where there are any of the latter.
    shadow: Option<RuleSet>,
    masks: Arc<MaskSet>,
    mask_digests: Vec<[u8; 32]>,
    detectors_digest: Option<[u8; 32]>,
    limits: Limits,
    base: Parts,
}

impl PolicySet {
    /// A target, if the bundle holds it.
    pub fn target(&self, target: &TargetId) -> Option<&CompiledTarget> {
        self.targets.get(target).map(Arc::as_ref)
    }

    /// Every target.
    pub fn targets(&self) -> impl Iterator<Item = &CompiledTarget> {
        self.targets.values().map(Arc::as_ref)
    }

    /// The version of the bundle this set was compiled from; empty where it did not come as a body.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// The policies that are about this subject and target, cluster policies first.
    pub(crate) fn candidates<'a>(
        &'a self,
        subject: &'a Subject,
        target: &'a CompiledTarget,
    ) -> impl Iterator<Item = &'a CompiledPolicy> + Clone {
        self.policies
            .iter()
            .filter(move |policy| policy.targets.includes(target) && policy.names(subject))
    }

    /// Narrows the set to what concerns one subject on one target.
    pub fn bind(&self, subject: &Subject, target: &TargetId) -> BoundPolicies {
        let Some(found) = self.targets.get(target) else {
            return BoundPolicies(Arc::new(Bound::nothing(subject, target)));
        };
        let candidates = self.candidates(subject, found);
        let live = candidates.clone().filter(|policy| !policy.observe);
        let mut own = candidates.clone().filter(|policy| !policy.floor);
        let standing = match (own.clone().any(|policy| !policy.observe), own.next().is_some()) {
            (true, _) => Standing::Live,
            (false, true) => Standing::ObserveOnly,
            (false, false) => Standing::Nobody,
        };
        let masks = mask_set(live.clone());
        let limits = live
            .clone()
            .fold(Limits::default(), |limits, policy| limits.strictest(&policy.limits));
        let shadow = candidates.clone().any(|policy| policy.observe);
        BoundPolicies(Arc::new(Bound {
            subject: subject.clone(),
            id: target.clone(),
            standing,
            live: RuleSet::new(live),
            shadow: shadow.then(|| RuleSet::new(candidates)),
            mask_digests: masks.columns.iter().map(mask_digest).collect(),
            detectors_digest: (!masks.detectors.is_empty()).then(|| digest::of(&masks.detectors)),
            masks: Arc::new(masks),
            limits,
            base: Parts::new(&found.digest, &digest::of(&limits)),
            target: Some(Arc::clone(found)),
        }))
    }

    /// Decides one operation. Where several are decided for one subject and target, [`PolicySet::bind`] once.
    pub fn decide(
        &self,
        subject: &Subject,
        target: &TargetId,
        op: &Operation<'_>,
        phase: Phase,
        now: jiff::Timestamp,
    ) -> Decision {
        self.bind(subject, target).decide(op, phase, now)
    }
}

fn mask_set<'a>(live: impl Iterator<Item = &'a CompiledPolicy>) -> MaskSet {
    let mut columns: Vec<MaskRule> = Vec::new();
    let mut detectors = Vec::new();
    for policy in live {
        columns.extend(policy.masks.iter().cloned());
        detectors.extend(
            policy
                .detectors
                .iter()
                .map(|(what, how)| (*what, *how, Arc::clone(&policy.name))),
        );
    }
    masks::add_up(columns, detectors)
}

fn mask_digest(mask: &MaskRule) -> [u8; 32] {
    digest::of(&(format!("{:?}", mask.pattern), &mask.how, &*mask.policy))
}

impl Bound {
    fn nothing(subject: &Subject, id: &TargetId) -> Self {
        Bound {
            subject: subject.clone(),
            id: id.clone(),
            target: None,
            standing: Standing::Nobody,
            live: RuleSet::default(),
            shadow: None,
            masks: Arc::default(),
            mask_digests: Vec::new(),
            detectors_digest: None,
            limits: Limits::default(),
            base: Parts::new(&[0; 32], &[0; 32]),
        }
    }

    /// Hash of everything that took part.
    fn digest(&self, op: &Operation<'_>, verdict: &Verdict<'_>) -> [u8; 32] {
        let mut parts = self.base.clone();
        if let Facts::Sql(sql) = op.facts {
            let columns = match op.completeness {
                Completeness::Opaque => None,
                _ => sql.columns.known(),
            };
            for (mask, leaf) in self.masks.columns.iter().zip(&self.mask_digests) {
                let touches = columns.is_none_or(|columns| {
                    columns.iter().any(|column| {
                        let relation = &column.relation;
                        mask.pattern.matches(&relation.schema, &relation.name, &column.column)
                    })
                });
                if touches {
                    parts.add(b'm', leaf);
                }
            }
            if let Some(leaf) = &self.detectors_digest {
                parts.add(b'd', leaf);
            }
        }
        verdict.covered.iter().for_each(|rule| parts.add(b'c', &rule.digest));
        verdict.rules.iter().for_each(|rule| parts.add(b'r', &rule.digest));
        parts.finish()
    }
}

impl BoundPolicies {
    /// Decides one operation.
    pub fn decide(&self, op: &Operation<'_>, phase: Phase, now: jiff::Timestamp) -> Decision {
        let bound = &*self.0;
        let Some(target) = &bound.target else {
            return self.no_target();
        };
        let scene = Scene {
            subject: &bound.subject,
            target,
            op,
            phase,
            now,
        };
        let waived = bound.standing == Standing::ObserveOnly;
        let verdict = Judge::judge(&bound.live, scene, waived);
        let shadow = bound.shadow.as_ref().map(|rules| Judge::judge(rules, scene, false));
        let volatile = verdict.volatile || shadow.as_ref().is_some_and(|shadow| shadow.volatile);
        Decision {
            effect: verdict.effect,
            reason: verdict.reason,
            message: message(&verdict),
            asks: terms(&verdict),
            masks: Arc::clone(&bound.masks),
            limits: bound.limits,
            rule_digest: bound.digest(op, &verdict),
            open: verdict.open,
            cacheable: !verdict.open && !volatile,
            observed: shadow.map(|shadow| {
                Arc::new(Observed {
                    effect: shadow.effect,
                    rules: refs(shadow.effect, &shadow.rules),
                    only: waived,
                })
            }),
            rules: refs(verdict.effect, &verdict.rules),
        }
    }

    fn no_target(&self) -> Decision {
        let bound = &*self.0;
        Decision {
            effect: Effect::Deny,
            reason: Some(Reason::Denied),
            rules: refs(Effect::Deny, &Rules::new()),
            message: Some(format!("there is no target {}", bound.id).into()),
            asks: Arc::default(),
            masks: Arc::clone(&bound.masks),
            limits: bound.limits,
            rule_digest: bound.base.finish(),
            open: false,
            cacheable: true,
            observed: None,
        }
    }

    /// What must be masked in answers to this subject on this target.
    pub fn masks(&self) -> &Arc<MaskSet> {
        &self.0.masks
    }

    /// Caps, strictest of all matching policies.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// What the subject has to do with the target.
    pub fn standing(&self) -> Standing {
        self.0.standing
    }

    /// The subject.
    pub fn subject(&self) -> &Subject {
        &self.0.subject
    }

    /// The target, if there is one.
    pub fn target(&self) -> Option<&CompiledTarget> {
        self.0.target.as_deref()
    }

    /// Every rule that could matter, Observe-mode rules included, in order.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &Arc<CompiledRule>> {
        let set = self.0.shadow.as_ref().unwrap_or(&self.0.live);
        let asks_of_floors = set.asks.rules.iter().filter(|rule| rule.floor);
        set.denies.rules.iter().chain(asks_of_floors).chain(&set.covers.rules)
    }
}

/// The operator's words, or ours where a rule has none and the agent could not know why.
fn message(verdict: &Verdict<'_>) -> Option<Arc<str>> {
    if let Some(because) = &verdict.because {
        return Some(because.as_str().into());
    }
    match verdict.effect {
        Effect::Allow => None,
        Effect::Ask | Effect::Deny => verdict.rules.first().and_then(|rule| rule.message.clone()),
    }
}

fn terms(verdict: &Verdict<'_>) -> Arc<[AskTerms]> {
    match (verdict.effect, verdict.rules.as_slice()) {
        (Effect::Ask, [only]) => Arc::clone(&only.alone_terms),
        (Effect::Ask, several) => several.iter().filter_map(|rule| rule.terms.clone()).collect(),
        _ => Arc::default(),
    }
}

fn refs(effect: Effect, rules: &Rules<'_>) -> Arc<[RuleRef]> {
    match rules.as_slice() {
        [only] => Arc::clone(&only.alone),
        [] if effect == Effect::Deny => Arc::new([RuleRef {
            policy: "".into(),
            rule: DEFAULT.into(),
        }]),
        [] => Arc::default(),
        several => several.iter().map(|rule| rule.rule.clone()).collect(),
    }
}

/// The name of the rule that is not there.
pub const DEFAULT: &str = "default";
