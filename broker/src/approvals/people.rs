//! People who decide: known by the operating system's word, matched against the approvers of every asking rule.
//!
//! Refuses the agent's own user, anyone a rule excludes, and anyone no rule names. The invariant: a set is met
//! only by different people of its own list.

use sidegate_policies::api::access_policy::Approver;
use sidegate_policies::api::access_request::{ApproverSet, PersonDecision, Verdict};

/// A person, as peer credentials and the user database say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// `unix:<user>`.
    pub name: String,
    /// OS groups.
    pub groups: Vec<String>,
    /// The agent's own user, under `--run-as`.
    pub is_agent: bool,
}

impl Person {
    /// Whether this person may say anything about a request with these sets.
    pub fn may_decide(&self, sets: &[ApproverSet]) -> Result<(), String> {
        if self.is_agent {
            return Err("the agent's own user never decides".to_owned());
        }
        if sets.iter().any(|set| eligible(set, &self.name, &self.groups)) {
            return Ok(());
        }
        Err(format!(
            "{} is not among the approvers of this request, or is excluded",
            self.name
        ))
    }

    /// This person's word.
    pub fn decision(&self, verdict: Verdict, reason: Option<String>, at: String) -> PersonDecision {
        PersonDecision {
            by: self.name.clone(),
            groups: self.groups.clone(),
            verdict,
            reason,
            at,
        }
    }
}

fn eligible(set: &ApproverSet, name: &str, groups: &[String]) -> bool {
    let is = |approver: &Approver| match approver {
        Approver::User(user) => user == name,
        Approver::Group(group) => groups.contains(group),
        Approver::Anyone(_) => true,
    };
    set.approvers.iter().any(is) && !set.exclude.iter().any(is)
}

/// Whether every set has as many different people as it wants. No sets are never met.
pub fn all_met(sets: &[ApproverSet], decisions: &[PersonDecision]) -> bool {
    let met = |set: &ApproverSet| {
        let mut names: Vec<&str> = decisions
            .iter()
            .filter(|decision| decision.verdict == Verdict::Approve)
            .filter(|decision| eligible(set, &decision.by, &decision.groups))
            .map(|decision| decision.by.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        names.len() >= usize::try_from(set.count.max(1)).unwrap_or(usize::MAX)
    };
    !sets.is_empty() && sets.iter().all(met)
}
