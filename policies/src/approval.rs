//! Who may decide about a request, and what the decisions come to: the same for the broker, the webhook and the command
//! line.
//!
//! Refuses the agent's own identity, everybody excluded, and everybody that no rule names. The invariant: what is written
//! in a status counts for nothing here but the decisions themselves, and a decision of somebody who may not decide is as
//! if it were not there.

use crate::api::access_policy::Approver;
use crate::api::access_request::{AccessRequestSpec, ApproverSet, PersonDecision, RequestState, Verdict};

/// Most decisions of one request.
pub const MAX_DECISIONS: usize = 32;

/// What names of people are names of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Users and groups of one machine; `anyone` is whoever reaches the control socket.
    Machine,
    /// Users and groups of an API server; `anyone` is nobody.
    Cluster,
}

/// Somebody who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who<'a> {
    /// The user's name, as authenticated.
    pub name: &'a str,
    /// The user's groups.
    pub groups: &'a [String],
}

/// Why somebody may not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Barred {
    /// The agent itself, or a service account beside it.
    #[error("the agent's own side never decides: service accounts of its namespace are barred")]
    OwnSide,
    /// A rule excludes them.
    #[error("the policy excludes them")]
    Excluded,
    /// No rule names them.
    #[error("no asking rule names them as approver")]
    NotNamed,
}

/// Whether this person may say anything about a request.
///
/// # Errors
/// Why not.
pub fn may_decide(spec: &AccessRequestSpec, who: Who<'_>, place: Place) -> Result<(), Barred> {
    let namespace = &spec.subject.service_account.namespace;
    let beside = format!("system:serviceaccounts:{namespace}");
    let account = format!("system:serviceaccount:{namespace}:");
    if place == Place::Cluster && (who.name.starts_with(&account) || who.groups.contains(&beside)) {
        return Err(Barred::OwnSide);
    }
    if among(&spec.exclude, who, place) {
        return Err(Barred::Excluded);
    }
    let sets = || spec.approver_sets.iter();
    if sets().any(|set| eligible(set, who, place)) {
        return Ok(());
    }
    match sets().any(|set| among(&set.approvers, who, place)) {
        true => Err(Barred::Excluded),
        false => Err(Barred::NotNamed),
    }
}

/// What the decisions come to: `Pending`, `Granted` or `Denied`, and which of them brought it about. The first that
/// settles it does; later ones change nothing.
pub fn outcome(spec: &AccessRequestSpec, decisions: &[PersonDecision], place: Place) -> (RequestState, Option<usize>) {
    let mut agreed: Vec<&PersonDecision> = Vec::new();
    for (at, decision) in decisions.iter().enumerate().take(MAX_DECISIONS) {
        if may_decide(spec, who(decision), place).is_err() {
            continue;
        }
        match decision.verdict {
            Verdict::Deny => return (RequestState::Denied, Some(at)),
            Verdict::Approve => agreed.push(decision),
        }
        if all_met(&spec.approver_sets, &agreed, place) {
            return (RequestState::Granted, Some(at));
        }
    }
    (RequestState::Pending, None)
}

/// Those of somebody's groups that the request names: the others count for nothing, and are nobody's business.
pub fn counting(spec: &AccessRequestSpec, groups: &[String]) -> Vec<String> {
    let sets = spec.approver_sets.iter();
    let named: Vec<&Approver> = sets
        .flat_map(|set| set.approvers.iter().chain(&set.exclude))
        .chain(&spec.exclude)
        .collect();
    let counts = |group: &&String| {
        named
            .iter()
            .any(|one| matches!(one, Approver::Group(name) if name == *group))
    };
    groups.iter().filter(counts).cloned().collect()
}

fn who(decision: &PersonDecision) -> Who<'_> {
    Who {
        name: &decision.by,
        groups: &decision.groups,
    }
}

/// Whether every set has as many different people as it wants. No sets are never met.
fn all_met(sets: &[ApproverSet], agreed: &[&PersonDecision], place: Place) -> bool {
    let met = |set: &ApproverSet| {
        let people = agreed.iter().filter(|decision| eligible(set, who(decision), place));
        let mut names: Vec<&str> = people.map(|decision| decision.by.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.len() >= usize::try_from(set.count.max(1)).unwrap_or(usize::MAX)
    };
    !sets.is_empty() && sets.iter().all(met)
}

fn eligible(set: &ApproverSet, who: Who<'_>, place: Place) -> bool {
    among(&set.approvers, who, place) && !among(&set.exclude, who, place)
}

fn among(people: &[Approver], who: Who<'_>, place: Place) -> bool {
    people.iter().any(|approver| match approver {
        Approver::User(user) => user == who.name,
        Approver::Group(group) => who.groups.contains(group),
        Approver::Anyone(_) => place == Place::Machine,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(sets: serde_json::Value, exclude: serde_json::Value) -> AccessRequestSpec {
        serde_json::from_value(json!({
            "subject": {"serviceAccount": {"namespace": "agents", "name": "support"}, "pod": "p", "podUid": "u"},
            "target": {"namespace": "data", "name": "shop"},
            "operation": {"protocol": "Postgres", "action": "UPDATE", "text": "UPDATE x"},
            "digest": "d", "rules": ["data/p/r"], "approverSets": sets, "exclude": exclude,
            "expiresAt": "2026-11-29T00:00:00Z",
        }))
        .unwrap()
    }

    fn set(approvers: serde_json::Value, count: i32) -> serde_json::Value {
        json!({"rule": "data/p/r", "approvers": approvers, "count": count})
    }

    fn said(by: &str, groups: &[&str], verdict: Verdict) -> PersonDecision {
        PersonDecision {
            by: by.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            verdict,
            reason: None,
            at: "2026-11-29T00:00:00Z".to_owned(),
        }
    }

    fn comes_to(spec: &AccessRequestSpec, decisions: &[PersonDecision]) -> RequestState {
        outcome(spec, decisions, Place::Cluster).0
    }

    #[test]
    fn a_set_is_met_by_different_people_of_its_own_list() {
        let two = spec(json!([set(json!([{"group": "leads"}]), 2)]), json!([]));
        let ann = said("ann", &["leads"], Verdict::Approve);
        assert_eq!(comes_to(&two, std::slice::from_ref(&ann)), RequestState::Pending);
        assert_eq!(
            comes_to(&two, &[ann.clone(), ann.clone()]),
            RequestState::Pending,
            "the same person"
        );
        let stranger = said("eve", &["others"], Verdict::Approve);
        assert_eq!(comes_to(&two, &[ann.clone(), stranger]), RequestState::Pending);
        let bob = said("bob", &["leads"], Verdict::Approve);
        assert_eq!(
            outcome(&two, &[ann, bob], Place::Cluster),
            (RequestState::Granted, Some(1))
        );
        let nobody = spec(json!([]), json!([]));
        assert_eq!(
            comes_to(&nobody, &[said("ann", &[], Verdict::Approve)]),
            RequestState::Pending
        );
    }

    #[test]
    fn every_set_must_be_met_and_the_first_word_that_settles_it_does() {
        let sets = json!([set(json!([{"group": "leads"}]), 1), set(json!([{"user": "bob"}]), 1)]);
        let both = spec(sets, json!([]));
        let ann = said("ann", &["leads"], Verdict::Approve);
        let bob = said("bob", &[], Verdict::Approve);
        assert_eq!(comes_to(&both, std::slice::from_ref(&ann)), RequestState::Pending);
        let no = said("dan", &["leads"], Verdict::Deny);
        assert_eq!(
            comes_to(&both, &[ann.clone(), bob.clone(), no.clone()]),
            RequestState::Granted
        );
        assert_eq!(
            outcome(&both, &[ann, no, bob], Place::Cluster),
            (RequestState::Denied, Some(1))
        );
        let denied_by_a_stranger = [said("eve", &["others"], Verdict::Deny)];
        assert_eq!(comes_to(&both, &denied_by_a_stranger), RequestState::Pending);
    }

    #[test]
    fn the_agents_side_and_excluded_people_never_decide() {
        let everyone = json!([{"group": "system:authenticated"}, {"user": "system:serviceaccount:agents:support"}]);
        let open = spec(json!([set(everyone, 1)]), json!([{"group": "owners"}]));
        let may = |name: &str, groups: &[&str]| {
            let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
            may_decide(&open, Who { name, groups: &groups }, Place::Cluster)
        };
        let all = "system:authenticated";
        assert_eq!(may("ann", &[all]), Ok(()));
        assert_eq!(
            may("system:serviceaccount:agents:support", &[all]),
            Err(Barred::OwnSide)
        );
        assert_eq!(may("system:serviceaccount:agents:other", &[all]), Err(Barred::OwnSide));
        assert_eq!(
            may("ann", &[all, "system:serviceaccounts:agents"]),
            Err(Barred::OwnSide)
        );
        assert_eq!(may("system:serviceaccount:bots:approver", &[all]), Ok(()));
        assert_eq!(may("own", &[all, "owners"]), Err(Barred::Excluded));
        assert_eq!(may("ann", &[]), Err(Barred::NotNamed));
        let forged = [said("system:serviceaccount:agents:support", &[all], Verdict::Approve)];
        assert_eq!(comes_to(&open, &forged), RequestState::Pending);
    }

    #[test]
    fn anyone_is_nobody_in_a_cluster() {
        let anyone = spec(json!([set(json!([{"anyone": {}}]), 1)]), json!([]));
        let word = [said("ann", &[], Verdict::Approve)];
        assert_eq!(outcome(&anyone, &word, Place::Machine).0, RequestState::Granted);
        assert_eq!(outcome(&anyone, &word, Place::Cluster).0, RequestState::Pending);
    }
}
