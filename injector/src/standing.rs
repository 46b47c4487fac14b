//! How a pod that exists stands: whether its sidecar is what the broker would believe, and if there is none, why; and
//! what would be another if it were made anew.
//!
//! The command line tells people, and the watchdog counts. Refuses nothing: it looks. The invariants: what counts is the
//! spec that the server stored, never an annotation; a pod for which no reason is known is counted under the worst that
//! fits, never left out.

use std::collections::BTreeMap;

use serde_json::Value;
use sidegate_policies::api::injection_profile::ExemptContainer;
use sidegate_policies::objects::{Namespace, INJECT};
use sidegate_policies::pod::aliases;
use sidegate_policies::pod::fence::{Demands, Fenced};
use sidegate_policies::pod::rules::is_windows;
use sidegate_policies::pod::shape::{text, Shape, SIDECAR};

use crate::admit::{admit, Verdict};
use crate::annotations::{opts_out, texts, STATUS};
use crate::form::{items, others};
use crate::install::Install;
use crate::kubernetes::Snapshot;
use crate::patch;

/// What a mirror of a static pod has; the kubelet sets it.
const MIRROR: &str = "kubernetes.io/config.mirror";
const ADMISSION: &str = "sidegate.dev/admission";
const OPT_OUT: &str = "sidegate.dev/allow-pod-opt-out";

/// Why a pod of a labelled namespace has no valid sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It was there before its namespace was labelled.
    OlderThanLabel,
    /// It came after the label, and nothing added a sidecar: the webhook was gone or gone around.
    Outage,
    /// A node's own file makes it: no admission applies.
    Static,
    /// It runs on Windows.
    Windows,
    /// Its label asks to be left alone, and its namespace lets it.
    OptedOut,
    /// Its namespace only audits, and its shape would have been refused.
    Audit,
    /// It has something called a sidecar, which the broker would not believe.
    Tampered,
    /// Its profile is Enforced, and it has no fence that would hold.
    Unfenced,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 8] = [
        Reason::OlderThanLabel,
        Reason::Outage,
        Reason::Static,
        Reason::Windows,
        Reason::OptedOut,
        Reason::Audit,
        Reason::Tampered,
        Reason::Unfenced,
    ];

    /// Its word, for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::OlderThanLabel => "older-than-label",
            Reason::Outage => "outage",
            Reason::Static => "static",
            Reason::Windows => "windows",
            Reason::OptedOut => "opted-out",
            Reason::Audit => "audit",
            Reason::Tampered => "tampered",
            Reason::Unfenced => "unfenced",
        }
    }

    /// What to do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Reason::OlderThanLabel => "make it anew, as by `kubectl rollout restart`",
            Reason::Outage => "see that the webhook runs (`kubectl sidegate check`), then make it anew",
            Reason::Static => "make it by the API server, or move it to another namespace",
            Reason::Windows => "run it on Linux, or in a namespace without Sidegate",
            Reason::OptedOut => "remove the label sidegate.dev/inject=false of its template",
            Reason::Audit => {
                "change its shape as the warning says, then label the namespace sidegate.dev/admission=enforce"
            }
            Reason::Tampered => "delete it, and look at who changed it",
            Reason::Unfenced => "make it anew: its profile was Cooperative when it was made, or it was changed since",
        }
    }
}

/// A pod without a valid sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unprotected {
    /// Why, in one word.
    pub reason: Reason,
    /// Why, for people, where the word does not say it all.
    pub detail: String,
}

impl Unprotected {
    /// What is wrong, where the reason does not say it all, and what to do, for people.
    pub fn advice(&self) -> String {
        match self.detail.as_str() {
            "" => self.reason.remedy().to_owned(),
            detail => format!("{detail}; {}", self.reason.remedy()),
        }
    }
}

/// What a sidecar must show, as the broker's leader wrote it into ConfigMap `sidegate-admission`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Belief {
    /// The audience of tokens for the broker.
    pub audience: String,
    /// Digests of images; none: images are not pinned.
    pub digests: Vec<String>,
    /// Profiles that demand a fence, and what they demand of it.
    pub fences: BTreeMap<String, Demands>,
}

impl Belief {
    /// The ConfigMap, in the broker's namespace.
    pub const MAP: &str = "sidegate-admission";

    /// Of the ConfigMap's data; nothing until the broker's leader wrote it.
    pub fn of(map: &Value) -> Option<Belief> {
        let data = map.get("data")?;
        let digests = text(data, "digests").lines().map(str::trim);
        let belief = Belief {
            audience: text(data, "audience").to_owned(),
            digests: digests.filter(|line| !line.is_empty()).map(str::to_owned).collect(),
            fences: data.as_object().into_iter().flatten().filter_map(demanded).collect(),
        };
        (!belief.audience.is_empty()).then_some(belief)
    }

    /// Why the broker would not believe a pod, if it would not.
    fn doubts(&self, spec: &Value) -> Option<String> {
        let shape = Shape::of(spec, &self.audience);
        if let Some(wrong) = shape.wrong() {
            return Some(wrong.to_owned());
        }
        let digest = shape.image.rsplit_once('@').map_or("", |(_, digest)| digest);
        let pinned = self.digests.is_empty() || self.digests.iter().any(|known| known == digest);
        (!pinned).then(|| format!("its image {} is none of ConfigMap sidegate-admission", shape.image))
    }
}

/// What an entry of the map says of a profile's fence, if it demands one.
fn demanded((key, lines): (&String, &Value)) -> Option<(String, Demands)> {
    let (profile, lines) = (key.strip_prefix("profile.")?, lines.as_str()?);
    let mut demands = Demands::default();
    for line in lines.lines() {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["allowUid", uid] => demands.allowed.extend(uid.parse::<i64>()),
            ["exempt", name, prefix] => demands.exempt.push(ExemptContainer {
                name: (*name).to_owned(),
                image_prefix: (*prefix).to_owned(),
            }),
            _ => {}
        }
    }
    let enforced = lines.lines().any(|line| line == "tier Enforced");
    enforced.then(|| (profile.to_owned(), demands))
}

/// Whether a namespace is labelled, whatever its other labels say.
pub fn is_labelled(namespace: &Namespace) -> bool {
    namespace.labels.get(INJECT).is_some_and(|value| value == "enabled")
}

/// When a namespace got its label, RFC 3339: the last time that whoever owns the label changed anything, for the server
/// keeps no other.
pub fn labelled_at(namespace: &Value) -> Option<&str> {
    let owners = namespace.pointer("/metadata/managedFields").and_then(Value::as_array)?;
    let label = format!("f:{INJECT}");
    let owning = owners.iter().filter(|owner| {
        let labels = owner.pointer("/fieldsV1/f:metadata/f:labels");
        labels.is_some_and(|labels| labels.get(&label).is_some())
    });
    owning.filter_map(|owner| owner.get("time")?.as_str()).max()
}

/// Whether a pod is over: nothing in it runs, nor ever will.
pub fn has_ended(pod: &Value) -> bool {
    matches!(
        pod.pointer("/status/phase").and_then(Value::as_str),
        Some("Succeeded" | "Failed")
    )
}

/// Why a pod of a labelled namespace has no valid sidecar; nothing where it has one, or has ended.
pub fn unprotected(belief: &Belief, namespace: &Namespace, since: Option<&str>, pod: &Value) -> Option<Unprotected> {
    if has_ended(pod) || !is_labelled(namespace) {
        return None;
    }
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let told = |reason, detail: String| Some(Unprotected { reason, detail });
    let Some(doubt) = belief.doubts(spec) else {
        let demands = belief.fences.get(namespace.profile());
        return Fenced::of(spec)
            .wrong(demands)
            .and_then(|why| told(Reason::Unfenced, why));
    };
    if texts(pod, "annotations").any(|(key, _)| key == MIRROR) {
        return told(Reason::Static, String::new());
    }
    if items(spec, "initContainers")
        .chain(items(spec, "containers"))
        .any(|found| text(found, "name") == SIDECAR)
    {
        return told(Reason::Tampered, doubt);
    }
    if is_windows(spec) {
        return told(Reason::Windows, String::new());
    }
    let says = |key: &str, value: &str| namespace.labels.get(key).is_some_and(|found| found == value);
    if says(OPT_OUT, "true") && opts_out(pod).unwrap_or(false) {
        return told(Reason::OptedOut, String::new());
    }
    let created = pod.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
    // Both are RFC 3339 in UTC, in whole seconds: they compare as texts.
    if let (Some(created), Some(since)) = (created, since) {
        if created <= since {
            return told(Reason::OlderThanLabel, String::new());
        }
    }
    if says(ADMISSION, "audit") {
        return told(Reason::Audit, String::new());
    }
    told(Reason::Outage, String::new())
}

/// What would be another if a protected pod were made anew, in words; nothing where all would be the same.
pub fn outdated(known: &Snapshot, namespace: &Namespace, pod: &Value) -> Vec<String> {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let sidecar = items(spec, "initContainers").find(|found| text(found, "name") == SIDECAR);
    let Some((sidecar, install)) = sidecar.and_then(|found| Some((found, installed(spec, found)?))) else {
        return Vec::new();
    };
    let (anew, profile) = match admit(&known.world(&install), namespace, pod) {
        Verdict::Refused(refusal) => return vec![format!("it would be refused now: {refusal}")],
        Verdict::Untouched { why, .. } => return vec![format!("it would get no sidecar now: {why}")],
        Verdict::Injected { injected, profile } => (injected.pod, profile),
    };
    let mut told = Vec::new();
    let spec = anew.get("spec").unwrap_or(&Value::Null);
    let now = items(spec, "initContainers").find(|found| text(found, "name") == SIDECAR);
    let now = now.unwrap_or(&Value::Null);
    if text(sidecar, "image") != text(now, "image") {
        told.push(format!("image {}, now {}", text(sidecar, "image"), text(now, "image")));
    }
    let (had, has) = (ports(pod).unwrap_or_default(), ports(&anew).unwrap_or_default());
    for (target, port) in has.iter().filter(|(target, port)| had.get(*target) != Some(port)) {
        told.push(format!(
            "Target {target} (port {port}) has no variables in it: its policy or the Target came later"
        ));
    }
    for (target, port) in had.iter().filter(|(target, port)| has.get(*target) != Some(port)) {
        told.push(format!(
            "Target {target} (port {port}) is granted no more, or moved its port"
        ));
    }
    let (named, now) = (names(pod), names(&anew));
    for (target, _) in had.iter().filter(|(target, port)| has.get(*target) == Some(port)) {
        if named.get(target) != now.get(target) {
            told.push(format!("Target {target} is found by other names now"));
        }
    }
    let was = made_by(pod);
    if was.as_deref() != made_by(&anew).as_deref() {
        let now = made_by(&anew).unwrap_or(profile);
        told.push(format!(
            "profile {}, now {now}",
            was.unwrap_or_else(|| "unknown".to_owned())
        ));
    }
    if told.is_empty() && !patch::between(pod, &anew).is_empty() {
        told.push("settings of the sidecar".to_owned());
    }
    told
}

/// Where a stored sidecar was told that its broker is: what the injector itself was told when it made it.
fn installed(spec: &Value, sidecar: &Value) -> Option<Install> {
    let of = |name: &str| variable(sidecar, name).map(str::to_owned);
    let volumes = items(spec, "volumes").filter(|volume| text(volume, "name") == "sidegate-token");
    let mut audiences =
        volumes.filter_map(|volume| volume.pointer("/projected/sources/0/serviceAccountToken/audience"));
    Some(Install {
        broker_url: of("SIDEGATE_BROKER_URL")?,
        broker_ca_pem: of("SIDEGATE_BROKER_CA")?,
        audience: audiences.next()?.as_str()?.to_owned(),
        name_servers: of("SIDEGATE_NAME_SERVERS")
            .map(|servers| servers.split(',').map(str::to_owned).collect())
            .unwrap_or_default(),
        cluster_domain: of("SIDEGATE_CLUSTER_DOMAIN")?,
    })
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let mut found = items(container, "env").filter(|variable| text(variable, "name") == name);
    found.next()?.get("value")?.as_str()
}

/// Ports by Target that a pod's sidecar was told of when it was made; nothing where it has no sidecar.
pub fn ports(pod: &Value) -> Option<BTreeMap<String, u16>> {
    let told = told(pod)?;
    let targets = told.as_object().into_iter().flatten();
    let port = |listens: &Value| u16::try_from(listens.get("port")?.as_u64()?).ok();
    Some(
        targets
            .filter_map(|(target, listens)| Some((target.clone(), port(listens)?)))
            .collect(),
    )
}

/// What a pod's sidecar was told to listen for.
fn told(pod: &Value) -> Option<Value> {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let sidecar = items(spec, "initContainers").find(|found| text(found, "name") == SIDECAR)?;
    serde_json::from_str(variable(sidecar, "SIDEGATE_PORTS")?).ok()
}

/// By which names a Target is found in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Where they lead.
    pub at: std::net::SocketAddrV4,
    /// The names, by the pod's host aliases.
    pub names: Vec<String>,
}

/// Names by Target that lead to a pod's sidecar; none where agents use ports alone.
pub fn names(pod: &Value) -> BTreeMap<String, Named> {
    let told = told(pod).unwrap_or_default();
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let named = |listens: &Value| -> Option<Named> {
        let at: std::net::SocketAddrV4 = text(listens, "named").parse().ok()?;
        let ip = at.ip().to_string();
        let ours = items(spec, "hostAliases").filter(|alias| text(alias, "ip") == ip);
        let names = ours.flat_map(aliases::names).map(str::to_owned).collect();
        Some(Named { at, names })
    };
    let targets = told.as_object().into_iter().flatten();
    targets
        .filter_map(|(target, listens)| Some((target.clone(), named(listens)?)))
        .collect()
}

/// Containers of a pod that are not the sidecar.
pub fn agents(pod: &Value) -> impl Iterator<Item = &Value> {
    others(pod.get("spec").unwrap_or(&Value::Null))
}

/// `profile@generation`, as a pod's annotation has it. For people: whoever may change the pod may change it.
pub fn made_by(pod: &Value) -> Option<String> {
    let told = texts(pod, "annotations").find(|(key, _)| *key == STATUS)?.1.to_owned();
    let told: Value = serde_json::from_str(&told).ok()?;
    Some(told.get("profile")?.as_str()?.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "standing_tests.rs"]
mod tests;
