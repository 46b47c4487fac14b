//! Policies: what the types and the compiler leave to say, and policies against the Targets they name.
//!
//! Refuses what a named Target could not enforce (statements, masks and row caps on a raw stream). A Target that
//! does not exist, or that does not admit the subject, is a warning: both may still come.

use super::{Checked, Report};
use crate::api::access_policy::{Approver, Limits, Mask, MaskAs, Rule, SubjectMatch};
use crate::api::target::TargetProtocol;
use crate::api::Target;
use crate::objects::Objects;

/// Longest message to an agent.
const MAX_MESSAGE: usize = 200;
/// Most characters a mask keeps.
const MAX_KEPT: i32 = 64;

pub(super) fn check(objects: &Objects, checked: &mut Checked) {
    for located in &objects.policies {
        let policy = &located.object;
        let label = format!("AccessPolicy {}", policy.full_name());
        let mut report = Report::new(&located.origin, label, checked);
        report.metadata(&policy.metadata);
        let spec = &policy.spec;
        body(&spec.rules, &spec.masks, &spec.limits, &mut report);
        subjects(&spec.subjects, &mut report);
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        for (at, reference) in spec.target_refs.iter().enumerate() {
            let field = format!("spec.targetRefs[{at}].name");
            report.reference(field.clone(), &reference.name);
            match objects.target(namespace, &reference.name) {
                Some(target) => {
                    enforceable(&target.object, &spec.rules, &spec.masks, &spec.limits, &mut report);
                    admitted(objects, &target.object, &spec.subjects, &mut report);
                }
                None => {
                    report.warning(
                        field,
                        format!("there is no Target {namespace}/{} (yet)", reference.name),
                    );
                }
            }
        }
    }
    for located in &objects.cluster_policies {
        let policy = &located.object;
        let label = format!("ClusterAccessPolicy {}", policy.full_name());
        let mut report = Report::new(&located.origin, label, checked);
        report.metadata(&policy.metadata);
        let spec = &policy.spec;
        body(&spec.rules, &spec.masks, &spec.limits, &mut report);
        subjects(spec.subjects.as_deref().unwrap_or_default(), &mut report);
        if let Some(selector) = &spec.target_selector {
            report.selector("spec.targetSelector", selector);
        }
        for (at, reference) in spec.target_refs.iter().enumerate() {
            report.reference(format!("spec.targetRefs[{at}].name"), &reference.name);
            if objects.target(&reference.namespace, &reference.name).is_none() {
                report.warning(
                    format!("spec.targetRefs[{at}]"),
                    format!("there is no Target {reference} (yet)"),
                );
            }
        }
    }
}

fn body(rules: &[Rule], masks: &[Mask], limits: &Limits, report: &mut Report<'_>) {
    if rules.is_empty() && masks.is_empty() && limits.is_empty() {
        report.warning(
            "spec",
            "this policy has no rules, masks or limits, so it changes nothing",
        );
    }
    for (at, rule) in rules.iter().enumerate() {
        let field = |key: &str| format!("spec.rules[{at}].{key}");
        if let Some(message) = &rule.message {
            if message.chars().count() > MAX_MESSAGE {
                report.problem(
                    field("message"),
                    format!("at most {MAX_MESSAGE} characters reach the agent"),
                );
            }
            if message.chars().any(char::is_control) {
                report.problem(field("message"), "one line of plain text");
            }
        }
        if rule.name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            report.problem(field("name"), "a name has no blanks");
        }
        let Some(ask) = &rule.ask else {
            continue;
        };
        if ask.hold_for.is_some_and(|span| span.0.is_zero()) {
            report.problem(field("ask.holdFor"), "more than nothing and at most 10m");
        }
        for (at, approver) in ask.approvers.iter().enumerate() {
            person(approver, &field(&format!("ask.approvers[{at}]")), report);
        }
        for (at, person_out) in ask.exclude.iter().enumerate() {
            let place = field(&format!("ask.exclude[{at}]"));
            if matches!(person_out, Approver::Anyone(_)) {
                report.problem(&place, "this would exclude everybody");
            }
            person(person_out, &place, report);
        }
    }
    for (at, mask) in masks.iter().enumerate() {
        if let MaskAs::KeepFirst(keep) | MaskAs::KeepLast(keep) = mask.how {
            if !(0..=MAX_KEPT).contains(&keep.count) {
                report.problem(
                    format!("spec.masks[{at}].as"),
                    format!("a mask keeps 0 to {MAX_KEPT} characters"),
                );
            }
        }
    }
}

fn person(approver: &Approver, field: &str, report: &mut Report<'_>) {
    match approver {
        Approver::User(name) | Approver::Group(name) if name.trim().is_empty() => {
            report.problem(field, "an empty name is nobody's");
        }
        _ => {}
    }
}

fn subjects(subjects: &[SubjectMatch], report: &mut Report<'_>) {
    for (at, subject) in subjects.iter().enumerate() {
        if let Some(account) = &subject.service_account {
            let field = format!("spec.subjects[{at}].serviceAccount");
            if !super::is_label(&account.namespace) {
                let message = format!("`{}` is not a namespace: {}", account.namespace, super::LABEL);
                report.problem(format!("{field}.namespace"), message);
            }
            report.reference(format!("{field}.name"), &account.name);
        }
        if let Some(selector) = &subject.pod_selector {
            report.selector(&format!("spec.subjects[{at}].podSelector"), selector);
        }
    }
}

/// What a raw stream cannot do for a policy that names it.
fn enforceable(target: &Target, rules: &[Rule], masks: &[Mask], limits: &Limits, report: &mut Report<'_>) {
    if target.spec.protocol != TargetProtocol::Tcp {
        return;
    }
    let name = target.full_name();
    for (at, rule) in rules.iter().enumerate() {
        if rule.sql.is_some() {
            let message = format!("Target {name} is a raw TCP stream without statements; give it a policy of its own");
            report.problem(format!("spec.rules[{at}].sql"), message);
        }
    }
    if !masks.is_empty() {
        report.problem(
            "spec.masks",
            format!("Target {name} is a raw TCP stream; nothing in it can be masked"),
        );
    }
    if limits.rows.is_some() {
        report.problem(
            "spec.limits.rows",
            format!("Target {name} is a raw TCP stream without rows"),
        );
    }
}

/// Whether the Target admits the namespaces of the subjects named.
fn admitted(objects: &Objects, target: &Target, subjects: &[SubjectMatch], report: &mut Report<'_>) {
    for (at, subject) in subjects.iter().enumerate() {
        let Some(account) = &subject.service_account else {
            continue;
        };
        if !objects.admits(target, &account.namespace) {
            let message = format!(
                "Target {} does not admit namespace {}; see its spec.allowedNamespaces",
                target.full_name(),
                account.namespace
            );
            report.warning(format!("spec.subjects[{at}].serviceAccount.namespace"), message);
        }
    }
}
