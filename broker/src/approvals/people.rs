//! People who decide on a machine: known by the operating system's word.
//!
//! Refuses the agent's own user, and whoever [`sidegate_policies::approval`] refuses. The invariant: who decides comes
//! from the kernel, never from the call.

use sidegate_policies::api::access_request::{AccessRequestSpec, PersonDecision, Verdict};
use sidegate_policies::approval::{may_decide, Place, Who};

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
    /// Whether this person may say anything about this request.
    ///
    /// # Errors
    /// Why not, in words for them.
    pub fn may_decide(&self, spec: &AccessRequestSpec) -> Result<(), String> {
        if self.is_agent {
            return Err("the agent's own user never decides".to_owned());
        }
        let who = Who {
            name: &self.name,
            groups: &self.groups,
        };
        may_decide(spec, who, Place::Machine).map_err(|barred| format!("{} may not decide: {barred}", self.name))
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
