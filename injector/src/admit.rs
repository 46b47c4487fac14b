//! What becomes of one pod: left alone, injected, or refused; for the webhook and the command line alike.
//!
//! The namespace decides; a pod opts out only where its namespace allows that. Refused: a label with a value that is
//! not known, a profile that does not exist, and what [`crate::mutate`] refuses. Invariant: no wrong value means "off".

use std::collections::BTreeMap;

use serde_json::Value;
use sidegate_policies::api::injection_profile::Windows;
use sidegate_policies::objects::{Namespace, Objects, DEFAULT_PROFILE, INJECT, PROFILE};
use sidegate_policies::pod::rules::is_windows;

use crate::annotations::{opts_out, PREFIX};
use crate::install::Install;
use crate::mutate::{mutate, Injected, Profile, Targets};
use crate::refusal::Refusal;

const OPT_OUT: &str = "sidegate.dev/allow-pod-opt-out";
const ADMISSION: &str = "sidegate.dev/admission";
/// Which injector is asked: for the API server.
pub(crate) const REV: &str = "sidegate.dev/rev";
/// Read by the admission policies: it changes nothing here.
const PORT_FORWARD: &str = "sidegate.dev/allow-port-forward";

/// What is known when a pod comes.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// The installation.
    pub install: &'a Install,
    /// Profiles, Targets, policies and labels of namespaces.
    pub objects: &'a Objects,
    /// Generations of profiles, where a server gave them.
    pub generations: &'a BTreeMap<String, i64>,
    /// Profiles that are not usable, and why.
    pub unusable: &'a BTreeMap<String, String>,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It is created as it is.
    Untouched {
        /// Why, in one word.
        why: &'static str,
        /// What its author should know.
        warnings: Vec<String>,
    },
    /// It is created with a sidecar.
    Injected {
        /// The pod, and what its author should know.
        injected: Injected,
        /// The profile it was made by.
        profile: String,
    },
    /// It is not created.
    Refused(Refusal),
}

/// Namespaces of the cluster itself: refusing pods there could stop it from mending itself.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// What the labels of a namespace say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Says {
    enabled: bool,
    profile: String,
    may_opt_out: bool,
    only_audit: bool,
}

/// A namespace with no other label than the one that puts sidecars into its pods.
pub fn enabled(name: &str) -> Namespace {
    Namespace {
        name: name.to_owned(),
        labels: BTreeMap::from([(INJECT.to_owned(), "enabled".to_owned())]),
    }
}

/// Whether pods of a namespace are left alone whatever it is labelled: the cluster's own, and the injector's.
pub(crate) fn is_spared(namespace: &str, own: &str) -> bool {
    SYSTEM.contains(&namespace) || namespace == own
}

/// Decides about a pod of a namespace.
pub fn admit(world: &World<'_>, namespace: &Namespace, pod: &Value) -> Verdict {
    match judged(world, namespace, pod) {
        Ok(verdict) => verdict,
        Err(refusal) => Verdict::Refused(refusal),
    }
}

fn judged(world: &World<'_>, namespace: &Namespace, pod: &Value) -> Result<Verdict, Refusal> {
    if SYSTEM.contains(&namespace.name.as_str()) {
        return Ok(untouched("system"));
    }
    let says = says(namespace)?;
    if !says.enabled {
        return Ok(untouched("not-enabled"));
    }
    let attempt = injected(world, namespace, &says, pod);
    match attempt {
        Err(refusal) if says.only_audit => Ok(Verdict::Untouched {
            why: "audit",
            warnings: vec![format!("not protected, would be refused: {refusal}")],
        }),
        attempt => attempt,
    }
}

fn injected(world: &World<'_>, namespace: &Namespace, says: &Says, pod: &Value) -> Result<Verdict, Refusal> {
    if opts_out(pod)? {
        if says.may_opt_out {
            return Ok(untouched("opted-out"));
        }
        let message = format!(
            "the pod is labelled {INJECT}=false, and namespace {} does not let pods opt out; remove the label, or have \
             the namespace labelled {OPT_OUT}=true",
            namespace.name
        );
        return Err(Refusal::forbidden("opt-out", message));
    }
    if let Some(why) = world.unusable.get(&says.profile) {
        let message = format!("InjectionProfile {} is not usable: {why}; correct it", says.profile);
        return Err(Refusal::invalid("profile", message));
    }
    let Some(found) = world.objects.injection_profile(&says.profile) else {
        let message = format!(
            "there is no InjectionProfile {}, which namespace {} names; create it, or label the namespace with {PROFILE} \
             and one of: {}",
            says.profile,
            namespace.name,
            names(world.objects)
        );
        return Err(Refusal::invalid("profile", message));
    };
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    if is_windows(spec) {
        if found.spec.shapes.windows == Windows::Skip {
            return Ok(Verdict::Untouched {
                why: "windows",
                warnings: vec!["not protected: a Windows pod cannot have the sidecar".to_owned()],
            });
        }
        let message = "a Windows pod cannot have the sidecar; run it on Linux, or in a namespace without Sidegate";
        return Err(Refusal::forbidden("windows", message));
    }
    let profile = Profile {
        name: &says.profile,
        generation: world.generations.get(&says.profile).copied(),
        spec: &found.spec,
    };
    let injected = mutate(world.install, namespace, &profile, &Targets(world.objects), pod)?;
    Ok(Verdict::Injected {
        injected,
        profile: says.profile.clone(),
    })
}

fn untouched(why: &'static str) -> Verdict {
    Verdict::Untouched {
        why,
        warnings: Vec::new(),
    }
}

fn names(objects: &Objects) -> String {
    let names = objects
        .injection_profiles
        .iter()
        .map(|located| located.object.metadata.name.as_str());
    let names: Vec<&str> = names.collect();
    match names.is_empty() {
        true => "(none exists)".to_owned(),
        false => names.join(", "),
    }
}

/// Whether pods of a namespace are ours to decide about.
///
/// # Errors
/// A label of ours that is not known, or whose value is not.
pub fn is_enabled(namespace: &Namespace) -> Result<bool, Refusal> {
    says(namespace).map(|says| says.enabled)
}

fn says(namespace: &Namespace) -> Result<Says, Refusal> {
    let mut says = Says {
        enabled: false,
        profile: DEFAULT_PROFILE.to_owned(),
        may_opt_out: false,
        only_audit: false,
    };
    for (key, value) in namespace.labels.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        let wrong = |right: &str| {
            let message = format!(
                "label {key} of namespace {} is `{value}`; write {right}",
                namespace.name
            );
            Err(Refusal::invalid("label", message))
        };
        match (key.as_str(), value.as_str()) {
            (INJECT, "enabled") => says.enabled = true,
            (INJECT, "disabled") => {}
            (INJECT, _) => return wrong("enabled or disabled"),
            (PROFILE, "") => return wrong("the name of an InjectionProfile"),
            (PROFILE, name) => says.profile = name.to_owned(),
            (OPT_OUT, "true") => says.may_opt_out = true,
            (OPT_OUT, "false") => {}
            (OPT_OUT, _) => return wrong("true or false"),
            (ADMISSION, "audit") => says.only_audit = true,
            (ADMISSION, "enforce") => {}
            (ADMISSION, _) => return wrong("enforce or audit"),
            (REV, _) => {}
            (PORT_FORWARD, "true" | "false") => {}
            (PORT_FORWARD, _) => return wrong("true or false"),
            (other, _) => {
                let message = format!(
                    "namespace {} has a label {other}, which is not known; remove it: known are {INJECT}, {PROFILE}, \
                     {OPT_OUT}, {ADMISSION}, {PORT_FORWARD}, {REV}",
                    namespace.name
                );
                return Err(Refusal::invalid("label", message));
            }
        }
    }
    Ok(says)
}
