//! What the engine answers: allow, deny or ask, with every obligation and everything needed to explain it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::api::access_policy::{Approver, Detector, Limits, MaskAs};
use crate::reason::Reason;
use crate::sql::ColumnPattern;

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Passes, under the decision's obligations.
    Allow,
    /// People must approve first.
    Ask,
    /// Refused.
    Deny,
}

impl Effect {
    /// `allow`, `ask` or `deny`.
    pub fn as_str(self) -> &'static str {
        match self {
            Effect::Allow => "allow",
            Effect::Ask => "ask",
            Effect::Deny => "deny",
        }
    }
}

/// A rule by policy (`namespace/name`, or the bare name of a cluster policy) and name. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    /// The policy.
    pub policy: Arc<str>,
    /// The rule; `default` where nothing matched.
    pub rule: Arc<str>,
}

impl fmt::Display for RuleRef {
    /// `policy/rule`; the bare rule where no policy made it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.policy.is_empty() {
            f.write_str(&self.rule)
        } else {
            write!(f, "{}/{}", self.policy, self.rule)
        }
    }
}

/// The engine's answer to one operation. Rules, masks and terms are shared, so a clone copies no text.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The verdict.
    pub effect: Effect,
    /// The reason, where the verdict is not Allow.
    pub reason: Option<Reason>,
    /// The rules that made it: for Deny those that denied (the first is quoted to the agent), for Ask those that
    /// ask, for Allow those that covered.
    pub rules: Arc<[RuleRef]>,
    /// The operator's message of the first denying rule.
    pub message: Option<Arc<str>>,
    /// What the approval needs, one entry per asking rule; empty unless the verdict is Ask.
    pub asks: Arc<[AskTerms]>,
    /// What must be masked in the answer.
    pub masks: Arc<MaskSet>,
    /// Caps, strictest of all matching policies.
    pub limits: Limits,
    /// Hash of the Target and of every rule, mask and limit that took part; approvals bind to it.
    pub rule_digest: [u8; 32],
    /// True at [`super::Phase::Structure`] when a rule is still open because it reads a later fact.
    pub open: bool,
    /// True when no rule looked at time, values or counters, so that the decision may be cached with its facts.
    pub cacheable: bool,
    /// What Observe-mode policies would have said.
    pub observed: Option<Arc<Observed>>,
}

/// The verdict of the Observe-mode policies, recorded and never applied.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Their verdict.
    pub effect: Effect,
    /// Their rules.
    pub rules: Arc<[RuleRef]>,
    /// True when only Observe-mode policies match this subject and target, so that the operation passes.
    pub only: bool,
}

/// What one asking rule demands.
#[derive(Debug, Clone, PartialEq)]
pub struct AskTerms {
    /// The rule.
    pub rule: RuleRef,
    /// Who may approve.
    pub approvers: Arc<[Approver]>,
    /// Who may not.
    pub exclude: Arc<[Approver]>,
    /// How many different people.
    pub count: u32,
    /// How long to hold; absent: the protocol's default.
    pub hold_for: Option<Duration>,
    /// How long a grant may be used.
    pub valid_for: Duration,
}

/// Everything that must be masked in answers to one subject on one target.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MaskSet {
    /// Masks by column, strongest first where patterns overlap: the first that fits a column is the one to apply.
    pub columns: Vec<MaskRule>,
    /// Masks by what a value looks like.
    pub detectors: Vec<(Detector, MaskAs)>,
}

impl MaskSet {
    /// Whether nothing is masked.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty() && self.detectors.is_empty()
    }

    /// The mask of a resolved column, if one applies: the strongest of all whose pattern fits.
    pub fn column(&self, schema: &str, relation: &str, column: &str) -> Option<&MaskRule> {
        self.columns
            .iter()
            .find(|rule| rule.pattern.matches(schema, relation, column))
    }
}

/// One column mask.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskRule {
    /// Which columns.
    pub pattern: ColumnPattern,
    /// What they become.
    pub how: MaskAs,
    /// The policy that says so.
    pub policy: Arc<str>,
}
