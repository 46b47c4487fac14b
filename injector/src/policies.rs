//! Objects of ours as they are applied: what is admitted can be enforced.
//!
//! The same loader and compiler judge here that judge in the broker and on the command line. Refused: an object with any
//! problem, each named by its field, and a reference across namespaces that its other side does not allow. What does not
//! exist yet is a warning, because objects come in any order. Invariants: names are compared exactly; `Lockdown` is not
//! judged here, for the kill switch must work while nobody answers.

use serde_json::Value;
use sidegate_cluster::stored::document;
use sidegate_policies::api::{AccessPolicy, Target, API_VERSION};
use sidegate_policies::check::check_apart;
use sidegate_policies::compile::Problem;
use sidegate_policies::objects::{Located, Objects};
use sidegate_policies::yaml::{load, Source};

use crate::refusal::Refusal;

/// How many problems one refusal tells.
const TOLD: usize = 5;
/// The name under which the object is read: problems of others have another one, or none.
const IT: &str = "the object under review";

/// A kind that is judged, by its name in URLs.
const KINDS: [(&str, &str); 5] = [
    ("targets", "Target"),
    ("accesspolicies", "AccessPolicy"),
    ("clusteraccesspolicies", "ClusterAccessPolicy"),
    ("injectionprofiles", "InjectionProfile"),
    ("tokenissuers", "TokenIssuer"),
];

/// The kind of a resource, if it is judged here.
pub fn kind(plural: &str) -> Option<&'static str> {
    let found = KINDS.iter().find(|(name, _)| *name == plural);
    found.map(|(_, kind)| *kind)
}

/// Every resource that is judged here, for people.
pub fn resources() -> String {
    KINDS.map(|(plural, _)| plural).join(", ")
}

/// What came of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// Why it is refused.
    pub problems: Vec<(String, String)>,
    /// References that their other side does not allow, as far as is known.
    pub grants: Vec<(String, String)>,
    /// What to look at.
    pub warnings: Vec<String>,
}

impl Judged {
    /// Nothing; or why it is refused.
    ///
    /// # Errors
    /// There is a problem, or a reference that is not allowed.
    pub fn verdict(self) -> Result<Vec<String>, Refusal> {
        let all: Vec<String> = self
            .problems
            .iter()
            .chain(&self.grants)
            .map(|(field, message)| match field.is_empty() {
                true => message.clone(),
                false => format!("{field}: {message}"),
            })
            .collect();
        if all.is_empty() {
            return Ok(self.warnings);
        }
        let more = match all.len().saturating_sub(TOLD) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let told: Vec<String> = all.into_iter().take(TOLD).collect();
        let rule = if self.problems.is_empty() { "grant" } else { "object" };
        Err(Refusal::invalid(rule, format!("{}{more}", told.join("; "))))
    }
}

/// Judges an object of this kind beside what is known of others.
pub fn judge(kind: &str, object: &Value, known: &Objects) -> Judged {
    let loaded = load(&[stored(IT, kind, object)]);
    let mut objects = loaded.objects;
    let mut problems = loaded.problems;
    let mut judged = Judged::default();
    beside(&mut objects, known);
    if problems.is_empty() {
        let checked = check_apart(&objects);
        problems = checked.problems;
        let warnings = checked.warnings.into_iter().filter(is_its);
        judged.warnings = warnings.filter(|warning| !is_elsewhere(warning)).map(words).collect();
        grants(&objects, &mut judged);
    }
    let its = problems.into_iter().filter(is_its);
    judged.problems = its.map(|problem| (problem.field, problem.message)).collect();
    judged
}

/// An object of ours, as a file that holds it alone.
fn stored(name: &str, kind: &str, object: &Value) -> Source {
    Source {
        name: name.to_owned(),
        text: document(API_VERSION, kind, object),
    }
}

fn is_its(problem: &Problem) -> bool {
    problem.file.as_deref() == Some(IT)
}

/// ConfigMaps are not read here: the broker says on the object whether they are there.
fn is_elsewhere(warning: &Problem) -> bool {
    warning.message.contains("ConfigMap")
}

fn words(warning: Problem) -> String {
    match warning.field.is_empty() {
        true => warning.message,
        false => format!("{}: {}", warning.field, warning.message),
    }
}

/// What the object refers to, so that it is judged against that; nothing else of what is known.
fn beside(objects: &mut Objects, known: &Objects) {
    let mut targets: Vec<&Located<Target>> = Vec::new();
    for policy in &objects.policies {
        let namespace = policy.object.metadata.namespace.as_deref().unwrap_or_default();
        let named = policy.object.spec.target_refs.iter();
        targets.extend(named.filter_map(|reference| known.target(namespace, &reference.name)));
    }
    for policy in &objects.cluster_policies {
        let named = policy.object.spec.target_refs.iter();
        targets.extend(named.filter_map(|reference| known.target(&reference.namespace, &reference.name)));
    }
    let targets: Vec<Located<Target>> = targets.into_iter().cloned().collect();
    if !objects.targets.is_empty() {
        objects.token_issuers.clone_from(&known.token_issuers);
    }
    objects.targets.extend(targets);
    objects.namespaces.clone_from(&known.namespaces);
}

/// References to what exists and does not allow them.
fn grants(objects: &Objects, judged: &mut Judged) {
    if let Some(target) = its_target(objects) {
        if let Err(unresolved) = objects.issuer_of(target) {
            if unresolved.reason != "IssuerNotFound" {
                let field = format!("spec.credential.{}.issuer", target.spec.credential.as_str());
                judged.grants.push((field, unresolved.message));
            }
        }
    }
    for policy in objects.policies.iter().map(|located| &located.object) {
        lent(objects, policy, judged);
    }
    let said = |warning: &String| {
        judged
            .grants
            .iter()
            .any(|(_, message)| warning.ends_with(message.as_str()))
    };
    let warnings: Vec<String> = judged
        .warnings
        .iter()
        .filter(|warning| !said(warning))
        .cloned()
        .collect();
    judged.warnings = warnings;
}

/// The Target under review, if it is one: policies are read without Targets of their own.
fn its_target(objects: &Objects) -> Option<&Target> {
    let alone = objects.policies.is_empty() && objects.cluster_policies.is_empty();
    objects.targets.first().filter(|_| alone).map(|located| &located.object)
}

fn lent(objects: &Objects, policy: &AccessPolicy, judged: &mut Judged) {
    let home = policy.metadata.namespace.as_deref().unwrap_or_default();
    for reference in &policy.spec.target_refs {
        let Some(target) = objects.target(home, &reference.name) else {
            continue;
        };
        for (at, subject) in policy.spec.subjects.iter().enumerate() {
            let Some(account) = &subject.service_account else {
                continue;
            };
            if !objects.admits(&target.object, &account.namespace) {
                let message = format!(
                    "Target {} does not admit namespace {}; see its spec.allowedNamespaces",
                    target.object.full_name(),
                    account.namespace
                );
                let field = format!("spec.subjects[{at}].serviceAccount.namespace");
                judged.grants.push((field, message));
            }
        }
    }
}

#[cfg(test)]
#[path = "policies_tests.rs"]
mod tests;
