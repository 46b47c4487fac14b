//! The labelled namespaces: profiles, pod security, quotas.

use serde_json::Value;
use sidegate_injector::admit::is_enabled;
use sidegate_injector::standing::is_labelled;
use sidegate_injector::Snapshot;
use sidegate_policies::api::injection_profile::{InjectionProfileSpec, Tier};
use sidegate_policies::objects::{Namespace, PROFILE};

use super::{egress, Finding, Look};
use crate::cluster::Where;
use crate::commands::seen::{self, text, Seen};
use crate::commands::unprotected;

const PSA: &str = "pod-security.kubernetes.io/enforce";

/// Findings about them.
pub fn findings(look: &Look<'_>) -> Vec<Finding> {
    const WHAT: &str = "namespaces";
    let seen = match Seen::read(look.cluster) {
        Ok(seen) => seen,
        Err(error) => return vec![Finding::failed(WHAT, &error)],
    };
    let injecting = seen.injecting();
    let mut findings = profiles(&injecting);
    let mut labelled = 0_usize;
    for stored in &seen.namespaces {
        let namespace = Namespace::of(stored);
        let what = format!("namespace {}", namespace.name);
        // Nobody is asked about a namespace whose label is misspelt: here is the one place that says so.
        if let Err(refusal) = is_enabled(&namespace) {
            findings.push(Finding::bad(&what, refusal.to_string(), "correct the label"));
        }
        if !is_labelled(&namespace) {
            continue;
        }
        labelled = labelled.saturating_add(1);
        let profile = namespace.profile();
        findings.push(named(&what, profile, &injecting, stored));
        findings.extend(quotas(look, &what, &namespace.name, spec(&injecting, profile)));
    }
    if labelled == 0 {
        findings.push(Finding::warn(
            WHAT,
            "none is labelled: no pod gets a sidecar",
            "kubectl label namespace NAME sidegate.dev/inject=enabled",
        ));
    }
    findings.extend(egress::findings(&seen.profiles, look.home));
    let unprotected = seen::pods(look.cluster, &seen, None)
        .and_then(|pods| unprotected::found(look.cluster, &seen, look.home, &pods));
    match unprotected {
        Ok(found) if found.is_empty() => {
            findings.push(Finding::good(
                "pods",
                "every one of the labelled namespaces has a valid sidecar",
            ));
        }
        Ok(found) => findings.push(Finding::warn(
            "pods",
            format!("{} of the labelled namespaces have no valid sidecar", found.len()),
            "kubectl sidegate unprotected",
        )),
        Err(error) => findings.push(Finding::failed("pods", &error)),
    }
    findings
}

fn profiles(injecting: &Snapshot) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, why) in &injecting.unusable {
        let what = format!("InjectionProfile {name}");
        findings.push(Finding::bad(&what, format!("it is not usable: {why}"), "correct it"));
    }
    if injecting.objects.injection_profiles.is_empty() && injecting.unusable.is_empty() {
        findings.push(Finding::bad(
            "profiles",
            "there is no InjectionProfile: pods of labelled namespaces are refused",
            "create one called default (docs/injection.md)",
        ));
    }
    findings
}

fn spec<'a>(injecting: &'a Snapshot, name: &str) -> Option<&'a InjectionProfileSpec> {
    Some(&injecting.objects.injection_profile(name)?.spec)
}

/// Its profile and its pod security level.
fn named(what: &str, profile: &str, injecting: &Snapshot, stored: &Value) -> Finding {
    let Some(spec) = spec(injecting, profile) else {
        return Finding::bad(
            what,
            format!("it names InjectionProfile {profile}, which is not there or not usable: its pods are refused"),
            format!("create it, or label the namespace {PROFILE}=NAME"),
        );
    };
    let level = stored
        .pointer("/metadata/labels")
        .and_then(|all| all.get(PSA))
        .and_then(Value::as_str);
    let said = match level {
        Some(level) => format!("profile {profile}, pod security {level}"),
        None => format!("profile {profile}, no pod security level"),
    };
    match (spec.tier, level) {
        (Tier::Cooperative, _) => Finding::good(what, format!("{said}; the sidecar meets the restricted one")),
        (Tier::Enforced, Some("baseline" | "restricted")) => Finding::bad(
            what,
            format!("{said}, which refuses NET_ADMIN, and with it the fence of tier Enforced: its pods are refused"),
            format!("label it {PSA}=privileged, or give it a profile of tier Cooperative"),
        ),
        (Tier::Enforced, _) => Finding::good(what, format!("{said}, which lets the fence of tier Enforced in")),
    }
}

/// A quota that counts limits refuses a container that has none.
fn quotas(look: &Look<'_>, what: &str, namespace: &str, profile: Option<&InjectionProfileSpec>) -> Option<Finding> {
    let quotas: Vec<Value> = look.cluster.list(seen::QUOTAS, Where::Namespace(namespace)).ok()?;
    let unlimited = profile?.resources.limits.cpu.is_none();
    let counting = |quota: &&Value| {
        let hard = quota.pointer("/spec/hard").and_then(Value::as_object);
        hard.is_some_and(|hard| hard.contains_key("limits.cpu"))
    };
    let quota = quotas.iter().find(counting).filter(|_| unlimited)?;
    Some(Finding::bad(
        what,
        format!(
            "ResourceQuota {} counts limits.cpu, and the sidecar has no CPU limit: the server refuses its pods",
            text(quota, "/metadata/name")
        ),
        "write resources.limits.cpu into the InjectionProfile, such as 500m",
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::commands::check::Verdict;

    #[test]
    fn a_namespace_that_does_not_let_its_fence_in_is_wrong() {
        let profile = |name: &str, tier: &str| {
            let image = json!({"repository": "r/s", "digest": format!("sha256:{}", "a".repeat(64))});
            Arc::new(json!({
                "apiVersion": "sidegate.dev/v1alpha1", "kind": "InjectionProfile", "metadata": {"name": name},
                "spec": {"image": image, "tier": tier},
            }))
        };
        let profiles = [profile("fenced", "Enforced"), profile("default", "Cooperative")];
        let none: [Arc<Value>; 0] = [];
        let known = Snapshot::of(none.iter(), profiles.iter(), none.iter(), none.iter());
        for (profile, level, verdict) in [
            ("fenced", "restricted", Verdict::Bad),
            ("fenced", "baseline", Verdict::Bad),
            ("fenced", "privileged", Verdict::Good),
            ("default", "restricted", Verdict::Good),
        ] {
            let stored = json!({"metadata": {"labels": {PSA: level}}});
            let found = named("namespace agents", profile, &known, &stored);
            assert_eq!(found.verdict, verdict, "{profile} {level}: {}", found.said);
        }
    }
}
