//! Which Targets a pod is told of, on which ports, and by which variables.
//!
//! Refuses an annotation that names a Target the pod is not granted, and a port that a mesh's proxy in the pod owns.
//! Another team's Target never stops a pod: of two on one port the first by name stays, as the broker decides too, and
//! the other one is left out with a warning.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{json, Value};
use sidegate_policies::api::Target;

use crate::form::{containers, items, others, text};
use crate::names::Names;
use crate::refusal::Refusal;

/// More Targets than this are not announced to one pod.
const MAX_TARGETS: usize = 64;
/// Ports that a proxy uses itself: what its containers' names begin with, from, to.
const OWNED: [(&str, u16, u16); 4] = [
    ("istio-", 15_000, 15_090),
    ("linkerd-", 4_140, 4_191),
    ("daprd", 3_500, 3_500),
    ("daprd", 50_001, 50_001),
];
/// Where a sidecar shows what it counts, or the first port behind it that nobody in the pod declares.
const METRICS: u16 = 15_390;
/// What Linux takes for outgoing connections by default.
pub const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// The Targets of one pod, with their ports and variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assigned {
    /// Port by `namespace/name`.
    pub ports: BTreeMap<String, u16>,
    /// The port of the sidecar's metrics.
    pub metrics: u16,
    /// `SIDEGATE_PORTS`, as the sidecar reads it.
    pub announced: Value,
    /// Where each Target is: `SIDEGATE_<TARGET>_HOST` and `_PORT`.
    pub own: Vec<(String, String)>,
    /// What the Targets themselves set.
    pub env: Vec<(String, String)>,
    /// By which names they are found besides.
    pub names: Names,
}

/// Assigns the granted Targets, or those of them that are asked for.
pub fn assign(
    granted: &[&Target],
    asked: Option<&[String]>,
    spec: &Value,
    warnings: &mut Vec<String>,
) -> Result<Assigned, Refusal> {
    let mut assigned = Assigned {
        announced: json!({}),
        ..Assigned::default()
    };
    let mut taken: BTreeMap<u16, String> = BTreeMap::new();
    let mut words = BTreeSet::new();
    for target in narrowed(granted, asked)? {
        let name = target.full_name();
        let Ok(port) = u16::try_from(target.spec.listen.port) else {
            warnings.push(format!(
                "Target {name} is left out: {} is no port",
                target.spec.listen.port
            ));
            continue;
        };
        if let Some(first) = taken.get(&port) {
            warnings.push(format!("Target {name} is left out: Target {first} has port {port}"));
            continue;
        }
        if assigned.ports.len() >= MAX_TARGETS {
            warnings.push(format!(
                "Target {name} is left out: a pod is told of {MAX_TARGETS} Targets at most"
            ));
            continue;
        }
        declared(spec, &name, port, warnings)?;
        taken.insert(port, name.clone());
        if let Some(map) = assigned.announced.as_object_mut() {
            let entry = json!({"port": port, "protocol": target.spec.protocol.as_str()});
            map.insert(name.clone(), entry);
        }
        let word = word(&target.metadata.name, &mut words);
        assigned
            .own
            .push((format!("SIDEGATE_{word}_HOST"), "127.0.0.1".to_owned()));
        assigned.own.push((format!("SIDEGATE_{word}_PORT"), port.to_string()));
        for variable in &target.spec.env {
            let found = assigned.env.iter().find(|(name, _)| *name == variable.name);
            match found {
                None => assigned.env.push((variable.name.clone(), variable.value.clone())),
                Some((_, value)) if *value != variable.value => {
                    warnings.push(format!(
                        "{} of Target {name} is left out: another Target sets it",
                        variable.name
                    ));
                }
                Some(_) => {}
            }
        }
        assigned.ports.insert(name, port);
    }
    let free = |port: &u16| !taken.contains_key(port) && !declares(spec, *port);
    assigned.metrics = (METRICS..).find(free).unwrap_or(METRICS);
    Ok(assigned)
}

/// Whether a container of the pod says that it listens there; what an earlier injection made is no container of its own.
fn declares(spec: &Value, port: u16) -> bool {
    others(spec)
        .flat_map(|container| items(container, "ports"))
        .any(|declared| declared.get("containerPort") == Some(&port.into()))
}

fn narrowed<'a>(granted: &[&'a Target], asked: Option<&[String]>) -> Result<Vec<&'a Target>, Refusal> {
    let Some(asked) = asked else {
        return Ok(granted.to_vec());
    };
    let named = |target: &Target, word: &str| target.metadata.name == word || target.full_name() == word;
    if let Some(unknown) = asked
        .iter()
        .find(|word| !granted.iter().any(|target| named(target, word)))
    {
        let names: Vec<String> = granted.iter().map(|target| target.full_name()).collect();
        let granted = match names.is_empty() {
            true => "it is granted none".to_owned(),
            false => format!("it is granted {}", names.join(", ")),
        };
        let message = format!(
            "annotation sidegate.dev/targets names {unknown}, which no AccessPolicy grants this pod; {granted}"
        );
        return Err(Refusal::invalid("targets", message));
    }
    let wanted = |target: &&&Target| asked.iter().any(|word| named(target, word));
    Ok(granted.iter().filter(wanted).copied().collect())
}

/// What the pod itself says about a port.
fn declared(spec: &Value, target: &str, port: u16, warnings: &mut Vec<String>) -> Result<(), Refusal> {
    if let Some(name) = owner(spec, port) {
        let message = format!(
            "Target {target} listens on port {port}, which {name} uses itself; change listen.port of the Target"
        );
        return Err(Refusal::forbidden("port", message));
    }
    clashes(spec, target, port, warnings);
    Ok(())
}

/// The proxy in the pod that uses a port itself.
pub fn owner(spec: &Value, port: u16) -> Option<&str> {
    let mut names = containers(spec).map(|container| text(container, "name"));
    names.find(|name| {
        let uses = |(owner, from, to): &(&str, u16, u16)| name.starts_with(owner) && (*from..=*to).contains(&port);
        OWNED.iter().any(uses)
    })
}

/// Warns of containers that say they listen on a port themselves.
pub fn clashes(spec: &Value, target: &str, port: u16, warnings: &mut Vec<String>) {
    for container in containers(spec) {
        let same = |declared: &Value| declared.get("containerPort") == Some(&port.into());
        if items(container, "ports").any(same) {
            let name = text(container, "name");
            warnings.push(format!(
                "container {name} declares port {port}, where Target {target} listens"
            ));
        }
    }
}

/// A Target's name as a part of variables' names; another Target's word gets a number.
fn word(name: &str, words: &mut BTreeSet<String>) -> String {
    let plain: String = name
        .chars()
        .map(|c| match c.is_ascii_alphanumeric() {
            true => c.to_ascii_uppercase(),
            false => '_',
        })
        .collect();
    let numbered = (2..=MAX_TARGETS).map(|number| format!("{plain}_{number}"));
    let mut candidates = std::iter::once(plain.clone()).chain(numbered);
    let free = candidates.find(|word| words.insert(word.clone()));
    free.unwrap_or(plain)
}
