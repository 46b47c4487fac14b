//! Whether a configuration makes sense: every rule the types cannot say, each with its field path.
//!
//! Owns the checks of single objects and of objects against each other; what the compiler says (patterns,
//! conditions, terms of an Ask) is added with its place, so that one call tells everything. Refuses nothing by
//! itself: it lists. Invariant: a configuration without problems compiles, and what compiles can be enforced.

pub mod hostnames;
pub(crate) mod hosts;
mod injection_profiles;
mod lockdowns;
mod policies;
mod targets;
mod token_issuers;

use std::collections::HashSet;

use serde::Deserialize as _;
use serde_json::Value;

use crate::api::meta::{LabelOperator, LabelSelector, Metadata};
use crate::api::InjectionProfile;
use crate::bundle::{Bundle, BundledTarget};
use crate::compile::Problem;
use crate::objects::{Located, Objects, Origin};
pub use token_issuers::OWN;

/// What the checker found.
#[derive(Debug, Clone, Default)]
pub struct Checked {
    /// What must be fixed before the configuration is used.
    pub problems: Vec<Problem>,
    /// What is probably not meant, such as a reference to a Target that does not exist (yet).
    pub warnings: Vec<Problem>,
}

/// Checks everything, for one agent that may get every Target.
pub fn check(objects: &Objects) -> Checked {
    let mut checked = check_apart(objects);
    targets::together(objects, &mut checked);
    sorted(&mut checked);
    checked
}

/// An InjectionProfile as the API server holds it, if it can be used.
///
/// # Errors
/// It is not understood, or has a problem: nothing is made by it, and nothing of it relaxes anything.
pub fn usable_profile(value: &Value) -> Result<InjectionProfile, String> {
    let profile = InjectionProfile::deserialize(value).map_err(|error| error.to_string())?;
    let objects = Objects {
        injection_profiles: vec![Located::unplaced(profile.clone())],
        ..Objects::default()
    };
    match check_apart(&objects).problems.into_iter().next() {
        None => Ok(profile),
        Some(problem) => Err(format!("{}: {}", problem.field, problem.message)),
    }
}

/// Checks everything but whether Targets can be listened for side by side: in a cluster most never meet in one pod.
pub fn check_apart(objects: &Objects) -> Checked {
    let mut checked = Checked::default();
    targets::check(objects, &mut checked);
    policies::check(objects, &mut checked);
    lockdowns::check(objects, &mut checked);
    token_issuers::check(objects, &mut checked);
    injection_profiles::check(objects, &mut checked);
    for map in &objects.config_maps {
        let label = format!("ConfigMap {}/{}", map.object.namespace, map.object.name);
        let mut report = Report::new(&map.origin, label, &mut checked);
        report.names(&map.object.name, Some(&map.object.namespace));
    }
    for namespace in &objects.namespaces {
        let label = format!("Namespace {}", namespace.object.name);
        let mut report = Report::new(&namespace.origin, label, &mut checked);
        report.names(&namespace.object.name, None);
    }
    compile(objects, &mut checked);
    sorted(&mut checked);
    checked
}

fn sorted(checked: &mut Checked) {
    for list in [&mut checked.problems, &mut checked.warnings] {
        list.sort();
        list.dedup();
    }
}

/// What the compiler says of all of it, with the place each object was written.
fn compile(objects: &Objects, checked: &mut Checked) {
    let bundle = Bundle {
        cluster: "check".to_owned(),
        targets: objects.targets.iter().map(bundled).collect(),
        policies: objects.policies.iter().map(|policy| policy.object.clone()).collect(),
        cluster_policies: objects
            .cluster_policies
            .iter()
            .map(|policy| policy.object.clone())
            .collect(),
        // No digest is made here; the key only has to have its length.
        digest_key: "A".repeat(43),
    };
    let Err(problems) = crate::compile::compile(&bundle) else {
        return;
    };
    let said: HashSet<_> = checked
        .problems
        .iter()
        .map(|p| (p.object.clone(), p.field.clone()))
        .collect();
    for problem in problems {
        if said.contains(&(problem.object.clone(), problem.field.clone())) {
            continue;
        }
        let label = problem.object.clone().unwrap_or_default();
        let placed = match origin(objects, &label) {
            Some(origin) => origin.problem(&label, &problem.field, problem.message),
            None => problem,
        };
        checked.problems.push(placed);
    }
}

fn bundled(target: &Located<crate::api::Target>) -> BundledTarget {
    BundledTarget {
        target: target.object.clone(),
        ca_pem: None,
        loopback: false,
    }
}

/// Where the object of a label was written.
fn origin<'a>(objects: &'a Objects, label: &str) -> Option<&'a Origin> {
    let (kind, name) = label.split_once(' ')?;
    match kind {
        "Target" => objects
            .targets
            .iter()
            .find(|o| o.object.full_name() == name)
            .map(|o| &o.origin),
        "AccessPolicy" => objects
            .policies
            .iter()
            .find(|o| o.object.full_name() == name)
            .map(|o| &o.origin),
        "ClusterAccessPolicy" => {
            let all = &objects.cluster_policies;
            all.iter().find(|o| o.object.full_name() == name).map(|o| &o.origin)
        }
        _ => None,
    }
}

/// Collects what is wrong with one object.
struct Report<'a> {
    origin: &'a Origin,
    label: String,
    checked: &'a mut Checked,
}

impl<'a> Report<'a> {
    fn new(origin: &'a Origin, label: String, checked: &'a mut Checked) -> Self {
        Report { origin, label, checked }
    }

    fn problem(&mut self, field: impl AsRef<str>, message: impl Into<String>) {
        let problem = self.origin.problem(&self.label, field.as_ref(), message);
        self.checked.problems.push(problem);
    }

    fn warning(&mut self, field: impl AsRef<str>, message: impl Into<String>) {
        let warning = self.origin.problem(&self.label, field.as_ref(), message);
        self.checked.warnings.push(warning);
    }

    /// A name and namespace as Kubernetes takes them.
    fn names(&mut self, name: &str, namespace: Option<&str>) {
        if !is_subdomain(name) {
            self.problem("metadata.name", format!("`{name}` is not a name: {SUBDOMAIN}"));
        }
        if let Some(namespace) = namespace {
            if !is_label(namespace) {
                self.problem(
                    "metadata.namespace",
                    format!("`{namespace}` is not a namespace: {LABEL}"),
                );
            }
        }
    }

    fn metadata(&mut self, metadata: &Metadata) {
        self.names(&metadata.name, metadata.namespace.as_deref());
    }

    /// A reference's name.
    fn reference(&mut self, field: String, name: &str) {
        if !is_subdomain(name) {
            self.problem(field, format!("`{name}` is not a name: {SUBDOMAIN}"));
        }
    }

    fn selector(&mut self, field: &str, selector: &LabelSelector) {
        for (at, requirement) in selector.match_expressions.iter().enumerate() {
            let place = format!("{field}.matchExpressions[{at}].values");
            let none = requirement.values.is_empty();
            match requirement.operator {
                LabelOperator::In | LabelOperator::NotIn if none => self.problem(place, "In and NotIn need values"),
                LabelOperator::Exists | LabelOperator::DoesNotExist if !none => {
                    self.problem(place, "Exists and DoesNotExist take no values");
                }
                _ => {}
            }
        }
    }
}

const LABEL: &str = "lower-case letters, digits and dashes, at most 63";
const SUBDOMAIN: &str = "lower-case letters, digits, dashes and dots, at most 253";

/// A DNS label as Kubernetes names namespaces.
pub fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// A digest as image references have it.
pub fn is_digest(text: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let digits = text.strip_prefix("sha256:");
    digits.is_some_and(|digits| digits.len() == 64 && digits.bytes().all(hex))
}

/// Whether a text holds a PEM certificate at all.
pub fn holds_certificate(text: &str) -> bool {
    text.contains("-----BEGIN CERTIFICATE-----")
}

/// Labels joined by dots, as Kubernetes names objects.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}
