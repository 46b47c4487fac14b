//! One pod with its sidecar: pure, on plain JSON, and made anew however often it is called.
//!
//! Owns the order: the pod is judged as it was submitted, then what is ours is taken out, then it is built. Refuses
//! what [`sidegate_policies::pod::rules`] refuses, annotations that are not known, and users nobody can tell apart.
//! Invariants: injecting the result again changes nothing; a field nobody here knows stays; the result has the shape
//! that the broker demands of a pod.

use serde_json::{json, Map, Value};
use sidegate_policies::api::injection_profile::{InjectionProfileSpec, NetworkPolicyMode, Reach};
use sidegate_policies::api::Target;
use sidegate_policies::engine::Subject;
use sidegate_policies::objects::{Namespace, Objects, INJECTED_BY};
use sidegate_policies::pod::fence::Demands;
use sidegate_policies::pod::rules::{is_proxy, Rules, Wrong};
use sidegate_policies::quantity::{ByteSize, CpuShare};

use crate::agents::Change;
use crate::annotations::{self, Asked, STATUS};
use crate::assign::{self, Assigned, EPHEMERAL};
use crate::form::{self, containers, is_ours, items, list, object, others, set, text};
use crate::install::Install;
use crate::names;
use crate::refusal::Refusal;
use crate::sidecar::Sidecar;

/// What an annotation of ours may hold.
const MAX_STATUS: usize = 4_096;
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Warnings that a client is shown.
const MAX_WARNINGS: usize = 10;
/// Characters of one; the server would cut it anyway.
const MAX_WARNING: usize = 120;

/// An InjectionProfile as it is used.
#[derive(Debug, Clone, Copy)]
pub struct Profile<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its generation, where a server gave it one.
    pub generation: Option<i64>,
    /// What it says.
    pub spec: &'a InjectionProfileSpec,
}

impl Profile<'_> {
    /// `name@generation`.
    fn said(&self) -> String {
        match self.generation {
            Some(generation) => format!("{}@{generation}", self.name),
            None => self.name.to_owned(),
        }
    }
}

/// The Targets of a configuration, of which each pod gets what its policies grant.
#[derive(Debug, Clone, Copy)]
pub struct Targets<'a>(pub &'a Objects);

impl<'a> Targets<'a> {
    fn of(&self, namespace: &Namespace, pod: &Value) -> Vec<&'a Target> {
        let spec = pod.get("spec").unwrap_or(&Value::Null);
        let account = match text(spec, "serviceAccountName") {
            "" => "default",
            account => account,
        };
        let labels = annotations::texts(pod, "labels");
        self.0.granted(&Subject {
            namespace: namespace.name.clone(),
            service_account: account.to_owned(),
            pod: String::new(),
            pod_uid: String::new(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        })
    }
}

/// A pod with its sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// The pod.
    pub pod: Value,
    /// What its author should know, at most ten sentences.
    pub warnings: Vec<String>,
}

/// Puts the sidecar into a pod. A template of a pod is one, too.
///
/// # Errors
/// The first rule the pod breaks.
pub fn mutate(
    install: &Install,
    namespace: &Namespace,
    profile: &Profile<'_>,
    targets: &Targets<'_>,
    pod: &Value,
) -> Result<Injected, Refusal> {
    form::checked(pod)?;
    let settings = profile.spec;
    let asked = annotations::read(pod, profile.name, settings)?;
    let demands = Demands::of(settings);
    let rules = Rules {
        audience: &install.audience,
        shapes: settings.shapes,
        exempt: &settings.agents.exempt_containers,
        fence: demands.as_ref(),
    };
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let weak = rules.judge(spec)?;
    let mut warnings: Vec<String> = weak.iter().map(|weak| format!("not safe: {}", weak.message)).collect();
    let uid = user(spec, settings)?;
    let granted = targets.of(namespace, pod);
    let mut assigned = assign::assign(&granted, asked.targets.as_deref(), spec, &mut warnings)?;
    if settings.reach == Reach::Hostnames {
        names::assign(&mut assigned, &granted, spec, &mut warnings)?;
    }
    let guaranteed = is_guaranteed(spec);
    fits(&asked, settings, guaranteed, &mut warnings)?;

    let mut injected = pod.clone();
    let sidecar = Sidecar {
        install,
        profile: settings,
        asked: &asked,
        assigned: &assigned,
        uid,
        guaranteed,
    };
    if let Some(spec) = object(&mut injected, "spec") {
        Change {
            rules,
            agents: &settings.agents,
            cluster_domain: &install.cluster_domain,
            assigned: &assigned,
            skip: &asked.skip,
        }
        .apply(spec, &mut warnings);
        let ours = sidecar.fence().into_iter().chain([sidecar.container()]);
        place(spec, ours, demands.as_ref());
        for volume in sidecar.volumes() {
            put(spec, volume);
        }
        names::place(spec, &assigned.names, &mut warnings);
        sysctls(spec, &assigned)?;
    }
    annotate(&mut injected, profile, &rules, &assigned, &weak);
    label(&mut injected, profile);
    Ok(Injected {
        pod: injected,
        warnings: shown(warnings),
    })
}

/// Who the sidecar runs as: somebody no container of the pod says it is.
fn user(spec: &Value, settings: &InjectionProfileSpec) -> Result<i64, Refusal> {
    let of_pod = spec.pointer("/securityContext/runAsUser");
    let mut taken: Vec<i64> = others(spec)
        .filter_map(|container| container.pointer("/securityContext/runAsUser"))
        .filter_map(Value::as_i64)
        .collect();
    taken.extend(of_pod.and_then(Value::as_i64));
    let wanted = [settings.run_as.uid, settings.run_as.alternate_uid];
    let free = wanted.into_iter().find(|uid| !taken.contains(uid));
    free.ok_or_else(|| {
        let [uid, alternate] = wanted;
        let message = format!(
            "containers of the pod run as {uid} and {alternate}, which the sidecar needs one of to be told apart; \
             change runAsUser of one"
        );
        Refusal::forbidden("runAsUser", message)
    })
}

fn fits(
    asked: &Asked,
    settings: &InjectionProfileSpec,
    guaranteed: bool,
    warnings: &mut Vec<String>,
) -> Result<(), Refusal> {
    if guaranteed && (asked.cpu.is_some() || asked.memory.is_some()) {
        warnings.push("the pod is Guaranteed: the sidecar gets what its profile says for such pods".to_owned());
    }
    let most = settings.resources.limits.cpu;
    if let (Some(cpu), Some(most)) = (asked.cpu, most.filter(|most| asked.cpu > Some(*most))) {
        let message = format!(
            "annotation sidegate.dev/cpu-request is {cpu}, and the sidecar's limit is {most}; write at most that"
        );
        return Err(Refusal::invalid("annotation", message));
    }
    let limit = settings.resources.limits.memory;
    match asked.memory {
        Some(memory) if memory > limit => {
            let message = format!(
                "annotation sidegate.dev/memory-request is {memory}, and the sidecar's limit is {limit}; write at most that"
            );
            Err(Refusal::invalid("annotation", message))
        }
        _ => Ok(()),
    }
}

/// Whether every container but ours is Guaranteed: limits for both, and requests equal to them.
fn is_guaranteed(spec: &Value) -> bool {
    others(spec).all(|container| {
        ["cpu", "memory"].into_iter().all(|resource| {
            let amount = |kind: &str| {
                let found = container.pointer(&format!("/resources/{kind}/{resource}"));
                found.and_then(|found| quantity(resource, found))
            };
            let limit = amount("limits").filter(|limit| *limit > 0);
            limit.is_some() && amount("requests").is_none_or(|request| Some(request) == limit)
        })
    })
}

fn quantity(resource: &str, value: &Value) -> Option<u64> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    match resource {
        "cpu" => text.parse().ok().map(|CpuShare(share)| share),
        _ => text.parse().ok().map(|ByteSize(bytes)| bytes),
    }
}

/// First in line, so that later init containers have their targets too, and none begins before the fence. A mesh's proxies
/// that went first stay there; before a fence only those that the profile itself names.
fn place(spec: &mut Value, ours: impl Iterator<Item = Value>, demands: Option<&Demands>) {
    let Some(all) = list(spec, "initContainers") else {
        return;
    };
    // Counted before what is called like ours goes: a proxy behind that is not in front.
    let named =
        |found: &Value| demands.is_none_or(|demands| demands.exempts(text(found, "name"), text(found, "image")));
    let leading = all.iter().take_while(|found| is_proxy(found) && named(found)).count();
    all.retain(|found| !is_ours(found));
    all.splice(leading..leading, ours);
}

/// A volume of ours, in its place if it has one.
fn put(spec: &mut Value, volume: Value) {
    let Some(all) = list(spec, "volumes") else {
        return;
    };
    let name = text(&volume, "name").to_owned();
    let same = |found: &Value| text(found, "name") == name;
    let at = all.iter().position(same).unwrap_or(all.len());
    all.retain(|found| !same(found));
    all.insert(at, volume);
}

/// Settings of the pod's network that the listeners need.
fn sysctls(spec: &mut Value, assigned: &Assigned) -> Result<(), Refusal> {
    const START: &str = "net.ipv4.ip_unprivileged_port_start";
    const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";
    let ports = names::ports(assigned);
    let lowest = ports.first().copied().filter(|port| *port < 1_024);
    let reserved: Vec<u16> = ports.into_iter().filter(|port| EPHEMERAL.contains(port)).collect();
    if lowest.is_none() && reserved.is_empty() {
        return Ok(());
    }
    let Some(all) = object(spec, "securityContext").and_then(|context| list(context, "sysctls")) else {
        return Ok(());
    };
    if let Some(lowest) = lowest {
        let found = all.iter().find(|sysctl| text(sysctl, "name") == START);
        match found.map(|sysctl| text(sysctl, "value").to_owned()) {
            None => all.push(json!({"name": START, "value": "0"})),
            Some(value) if value.parse::<u16>().is_ok_and(|start| start <= lowest) => {}
            Some(value) => {
                let message = format!(
                    "the pod sets {START} to {value}, and a Target listens on port {lowest}; set it to 0 or remove it"
                );
                return Err(Refusal::forbidden("sysctl", message));
            }
        }
    }
    if reserved.is_empty() {
        return Ok(());
    }
    if !all.iter().any(|sysctl| text(sysctl, "name") == RESERVED) {
        all.push(json!({"name": RESERVED, "value": ""}));
    }
    if let Some(sysctl) = all.iter_mut().find(|sysctl| text(sysctl, "name") == RESERVED) {
        let mut words: Vec<String> = text(sysctl, "value").split(',').map(str::to_owned).collect();
        words.retain(|word| !word.is_empty());
        words.extend(reserved.iter().map(u16::to_string));
        let mut seen = std::collections::BTreeSet::new();
        words.retain(|word| seen.insert(word.clone()));
        // Separated by commas: with a space the pod's sandbox would not start.
        set(sysctl, "value", Value::from(words.join(",")));
    }
    Ok(())
}

/// What was done, for people; no decision ever reads it.
fn annotate(pod: &mut Value, profile: &Profile<'_>, rules: &Rules<'_>, assigned: &Assigned, weak: &[Wrong]) {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let mut status = Map::new();
    status.insert("profile".to_owned(), profile.said().into());
    status.insert("tier".to_owned(), profile.spec.tier.as_str().into());
    if !profile.spec.fence.allow_uids.is_empty() {
        status.insert("allowUids".to_owned(), json!(profile.spec.fence.allow_uids));
    }
    status.insert("ports".to_owned(), json!(assigned.ports));
    if profile.spec.reach == Reach::Hostnames {
        status.insert("names".to_owned(), assigned.names.told());
    }
    let exempt: Vec<&str> = containers(spec)
        .filter(|container| rules.is_exempt(container))
        .map(|container| text(container, "name"))
        .collect();
    if !exempt.is_empty() {
        status.insert("exempt".to_owned(), json!(exempt));
    }
    if !weak.is_empty() {
        let rules: std::collections::BTreeSet<&str> = weak.iter().map(|weak| weak.rule).collect();
        status.insert("weakened".to_owned(), json!(rules));
    }
    let agents = &profile.spec.agents;
    for (field, taken) in [
        ("clusterToken", agents.cluster_token),
        ("cloudIdentity", agents.cloud_identity),
    ] {
        if taken == sidegate_policies::api::injection_profile::Taken::Keep {
            status.insert(field.to_owned(), "Keep".into());
        }
    }
    let mut said = Value::Object(status);
    for (field, count) in [("names", assigned.names.listens.len()), ("ports", assigned.ports.len())] {
        if said.to_string().len() > MAX_STATUS && said.get(field).is_some() {
            set(&mut said, field, json!(count));
        }
    }
    let first = items(spec, "containers").find(|container| !rules.is_exempt(container));
    let first = first.map(|container| text(container, "name").to_owned());
    let Some(annotations) = object(pod, "metadata").and_then(|metadata| object(metadata, "annotations")) else {
        return;
    };
    set(annotations, STATUS, Value::from(said.to_string()));
    if let Some(first) = first.filter(|_| annotations.get(DEFAULT_CONTAINER).is_none()) {
        set(annotations, DEFAULT_CONTAINER, Value::from(first));
    }
}

/// By this a NetworkPolicy would select the pods that have a sidecar, and no others of their namespace. Where the profile does
/// not ask for it, it is taken out.
fn label(pod: &mut Value, profile: &Profile<'_>) {
    let wanted = profile.spec.network_policy != NetworkPolicyMode::Off;
    if !wanted && !annotations::texts(pod, "labels").any(|(key, _)| key == INJECTED_BY) {
        return;
    }
    let Some(labels) = object(pod, "metadata").and_then(|metadata| object(metadata, "labels")) else {
        return;
    };
    if wanted {
        set(labels, INJECTED_BY, Value::from(profile.name));
    } else if let Some(labels) = labels.as_object_mut() {
        labels.remove(INJECTED_BY);
    }
}

/// Warnings as a client is shown them: few and short.
pub fn shown(mut warnings: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    warnings.retain(|warning| seen.insert(warning.clone()));
    let more = warnings.len().saturating_sub(MAX_WARNINGS);
    if more > 0 {
        warnings.truncate(MAX_WARNINGS.saturating_sub(1));
        warnings.push(format!("and {} more", more.saturating_add(1)));
    }
    for warning in &mut warnings {
        if warning.chars().count() > MAX_WARNING {
            *warning = warning
                .chars()
                .take(MAX_WARNING.saturating_sub(1))
                .chain(['…'])
                .collect();
        }
    }
    warnings
}
