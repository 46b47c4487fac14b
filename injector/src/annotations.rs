//! What a pod itself says about its sidecar, by labels and annotations of `sidegate.dev`.
//!
//! Refuses every key and every value that is not known, with the list of right ones: a typing error never means "off".
//! Invariant: only what the profile allows is read, and it can only ask for less or for other sizes.

use serde_json::Value;
use sidegate_policies::api::injection_profile::{InjectionProfileSpec, PodAnnotation};
use sidegate_policies::objects::{INJECT, INJECTED_BY};
use sidegate_policies::quantity::{ByteSize, CpuShare};

use crate::form::{others, text};
use crate::refusal::Refusal;

/// Every key of ours begins so.
pub const PREFIX: &str = "sidegate.dev/";
/// Written by us, and made anew every time.
pub const STATUS: &str = "sidegate.dev/status";

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// What a pod asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Only these Targets: `name` or `namespace/name`.
    pub targets: Option<Vec<String>>,
    /// The sidecar's log level.
    pub log_level: Option<String>,
    /// The sidecar's CPU request.
    pub cpu: Option<CpuShare>,
    /// The sidecar's memory request.
    pub memory: Option<ByteSize>,
    /// Containers that get no variables.
    pub skip: Vec<String>,
}

/// Reads the annotations of a pod.
pub fn read(pod: &Value, profile: &str, spec: &InjectionProfileSpec) -> Result<Asked, Refusal> {
    let mut asked = Asked::default();
    for (key, value) in texts(pod, "annotations") {
        let Some(name) = key.strip_prefix(PREFIX).filter(|_| key != STATUS) else {
            continue;
        };
        let known = PodAnnotation::ALL.into_iter().find(|known| known.as_str() == name);
        let annotation = known.ok_or_else(|| {
            Refusal::invalid(
                "annotation",
                format!("there is no annotation {key}; {}", allowed(profile, spec)),
            )
        })?;
        if !spec.allow_annotations.contains(&annotation) {
            let message = format!(
                "InjectionProfile {profile} does not allow the annotation {key}; {}",
                allowed(profile, spec)
            );
            return Err(Refusal::invalid("annotation", message));
        }
        one(&mut asked, annotation, key, value, pod)?;
    }
    Ok(asked)
}

fn one(asked: &mut Asked, annotation: PodAnnotation, key: &str, value: &str, pod: &Value) -> Result<(), Refusal> {
    let wrong = |right: &str| {
        let message = format!("annotation {key} is `{value}`; write {right}");
        Err(Refusal::invalid("annotation", message))
    };
    match annotation {
        PodAnnotation::Targets => asked.targets = Some(words(value)),
        PodAnnotation::LogLevel => match LEVELS.contains(&value) {
            true => asked.log_level = Some(value.to_owned()),
            false => return wrong("one of error, warn, info, debug, trace"),
        },
        PodAnnotation::CpuRequest => match value.parse() {
            Ok(CpuShare(0)) | Err(_) => return wrong("a share of CPU such as 25m or 1"),
            Ok(share) => asked.cpu = Some(share),
        },
        PodAnnotation::MemoryRequest => match value.parse() {
            Ok(ByteSize(0)) | Err(_) => return wrong("a size such as 32Mi"),
            Ok(size) => asked.memory = Some(size),
        },
        PodAnnotation::SkipContainers => {
            let names: Vec<&str> = containers(pod).collect();
            asked.skip = words(value);
            if let Some(unknown) = asked.skip.iter().find(|name| !names.contains(&name.as_str())) {
                let message = format!(
                    "annotation {key} names a container {unknown}, which the pod does not have; it has {}",
                    names.join(", ")
                );
                return Err(Refusal::invalid("annotation", message));
            }
        }
    }
    Ok(())
}

/// Whether the pod's label asks to be left alone.
pub fn opts_out(pod: &Value) -> Result<bool, Refusal> {
    let mut out = false;
    for (key, value) in texts(pod, "labels").filter(|(key, _)| key.starts_with(PREFIX)) {
        match (key, value) {
            (INJECT, "false") => out = true,
            (INJECT, "enabled") => {}
            (INJECT, _) => {
                let message = format!(
                    "label {INJECT} of the pod is `{value}`; write false to leave the pod alone, or enabled, or remove it"
                );
                return Err(Refusal::invalid("label", message));
            }
            // Ours: what a template or an earlier round has of it is made anew.
            (INJECTED_BY, _) => {}
            _ => {
                let message = format!("there is no label {key} of pods; remove it: the one there is is {INJECT}");
                return Err(Refusal::invalid("label", message));
            }
        }
    }
    Ok(out)
}

fn allowed(profile: &str, spec: &InjectionProfileSpec) -> String {
    let names: Vec<String> = spec
        .allow_annotations
        .iter()
        .map(|annotation| format!("{PREFIX}{}", annotation.as_str()))
        .collect();
    match names.is_empty() {
        true => format!("remove it: InjectionProfile {profile} allows none"),
        false => format!("remove it: allowed are {}", names.join(", ")),
    }
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &str> {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    others(spec).map(|container| text(container, "name"))
}

/// Labels or annotations.
pub fn texts<'a>(pod: &'a Value, field: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let map = pod.get("metadata").and_then(|metadata| metadata.get(field));
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}
