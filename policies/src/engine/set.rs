//! The compiled policies of one bundle, and what of them concerns one subject on one target.
//!
//! A [`PolicySet`] is immutable, shared and swapped whole. [`PolicySet::bind`] narrows it to the candidates of one
//! subject and target, once per session; [`BoundPolicies::decide`] is the hot path. A subject or target the set
//! does not know is bound to nothing, and nothing denies.

use std::collections::HashMap;
use std::sync::Arc;

use super::decision::{Decision, Effect, MaskSet, RuleRef};
use super::operation::{Operation, Phase};
use super::subject::{Subject, TargetId};
use crate::api::access_policy::Limits;
use crate::api::target::TargetProtocol;
use crate::bundle::BundledTarget;
use crate::reason::Reason;

/// Every target and policy of one bundle, compiled.
#[derive(Debug, Default)]
pub struct PolicySet {
    pub(crate) version: Arc<str>,
    pub(crate) targets: HashMap<TargetId, Arc<CompiledTarget>>,
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

/// The candidates of one subject on one target.
#[derive(Debug, Clone)]
pub struct BoundPolicies {
    target: TargetId,
    masks: Arc<MaskSet>,
    limits: Limits,
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

    /// Narrows the set to what concerns one subject on one target.
    pub fn bind(&self, _subject: &Subject, target: &TargetId) -> BoundPolicies {
        BoundPolicies {
            target: target.clone(),
            masks: Arc::default(),
            limits: Limits::default(),
        }
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

impl BoundPolicies {
    /// Decides one operation.
    pub fn decide(&self, _op: &Operation<'_>, _phase: Phase, _now: jiff::Timestamp) -> Decision {
        Decision {
            effect: Effect::Deny,
            reason: Some(Reason::Denied),
            rules: Arc::new([RuleRef {
                policy: "".into(),
                rule: "default".into(),
            }]),
            message: Some(format!("no policy names this agent on {}", self.target).into()),
            asks: Arc::new([]),
            masks: self.masks.clone(),
            limits: self.limits,
            rule_digest: [0; 32],
            open: false,
            cacheable: false,
            observed: None,
        }
    }

    /// What must be masked in answers to this subject on this target.
    pub fn masks(&self) -> &Arc<MaskSet> {
        &self.masks
    }

    /// Caps, strictest of all matching policies.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}
