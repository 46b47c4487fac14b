//! Which egress rules a NetworkPolicy for the pods of an InjectionProfile would have: to name servers, broker and Targets.
//!
//! Pure: it knows objects and what the install says, resolves no name and reads no Service. Refuses to guess: what cannot be
//! written by an address or by pods' labels is told as cut off, and a rule that may not fit as unsure. Invariants: nothing
//! here is ever called enforced; every Target that a pod of the namespace could be granted has a rule or stands under
//! `cut_off`; what is left out for its length is counted.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::api::injection_profile::{InjectionProfileSpec, Taken};
use crate::objects::{Objects, INJECTED_BY};

/// Lines that one list holds.
const MAX_LINES: usize = 64;
/// Lines of all namespaces together, and namespaces: an object of the API server has an end.
const MAX_ALL: usize = 1_000;
const MAX_NAMESPACES: usize = 256;
/// Characters of a line.
const MAX_LINE: usize = 400;
/// The label of the cluster's own DNS, and where it is: both are Kubernetes' usual ones.
const DNS: (&str, &str) = ("k8s-app=kube-dns", "kube-system");

/// What the install says of where sidecars go.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The broker's front face, `https://HOST[:PORT]`: sidecars speak to nothing else of it.
    pub broker_url: &'a str,
    /// Name servers, `IP[:PORT]`.
    pub name_servers: &'a [String],
    /// What names that end in `.svc` are completed with.
    pub cluster_domain: &'a str,
}

/// What the policies of one profile would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// `Audit`: none of it is made.
    pub mode: &'static str,
    /// The label by which pods would be selected. Pods have it that were made since the profile says Audit.
    pub selects: String,
    /// In every namespace.
    pub common: Egress,
    /// Besides, by namespace.
    pub namespaces: Vec<InNamespace>,
    /// Namespaces that are not told here, because it would be too long.
    pub omitted: usize,
}

/// The part of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InNamespace {
    /// Its name.
    pub name: String,
    /// What would be let out.
    #[serde(flatten)]
    pub egress: Egress,
}

/// Rules, and what is to be said of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Egress {
    /// What would be let out: ports, to whom, and what for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// Rules that may let out something else than what is meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unsure: Vec<String>,
    /// What pods rightly reach, and no rule can be written for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cut_off: Vec<String>,
}

/// Whom a rule lets out to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Address(IpAddr),
    /// Pods of a namespace.
    Pods(String),
    Dns,
}

impl std::fmt::Display for To {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            To::Address(ip @ IpAddr::V4(_)) => write!(f, "{ip}/32"),
            To::Address(ip @ IpAddr::V6(_)) => write!(f, "{ip}/128"),
            To::Pods(namespace) => write!(f, "pods of namespace {namespace}"),
            To::Dns => write!(f, "pods {} of namespace {}", DNS.0, DNS.1),
        }
    }
}

/// Where a host name or literal leads.
enum Leads {
    To(IpAddr),
    /// A Service of this namespace.
    Service(String),
    Elsewhere,
}

impl Leads {
    fn of(host: &str, cluster_domain: &str) -> Leads {
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse() {
            return Leads::To(ip);
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let domain = format!(".{}", cluster_domain.trim_matches('.').to_ascii_lowercase());
        let name = name.strip_suffix(&domain).unwrap_or(&name);
        let mut labels = name.strip_suffix(".svc").unwrap_or_default().rsplit('.');
        match (labels.next(), labels.next()) {
            (Some(namespace), Some(service)) if !namespace.is_empty() && !service.is_empty() => {
                Leads::Service(namespace.to_owned())
            }
            _ => Leads::Elsewhere,
        }
    }
}

/// What would be made for the pods of a profile in these namespaces.
pub fn audit(
    objects: &Objects,
    place: &Place<'_>,
    (profile, spec): (&str, &InjectionProfileSpec),
    namespaces: &[&str],
) -> Told {
    let mut told = Told {
        mode: "Audit",
        selects: format!("{INJECTED_BY}={profile}"),
        common: common(place, spec),
        namespaces: Vec::new(),
        omitted: 0,
    };
    let mut lines = 0_usize;
    for name in namespaces {
        let egress = targets(objects, place, name);
        lines = lines.saturating_add(egress.lines());
        if lines > MAX_ALL || told.omitted > 0 || told.namespaces.len() >= MAX_NAMESPACES {
            told.omitted = told.omitted.saturating_add(1);
            continue;
        }
        let name = (*name).to_owned();
        told.namespaces.push(InNamespace { name, egress });
    }
    told
}

/// What every pod needs, whatever it is granted.
fn common(place: &Place<'_>, spec: &InjectionProfileSpec) -> Egress {
    let mut egress = Egress::default();
    for server in place.name_servers {
        let literal = server.parse().map(|ip| SocketAddr::new(ip, 53));
        match literal.or_else(|_| server.parse::<SocketAddr>()) {
            Ok(at) => egress.egress.push(format!(
                "UDP and TCP {} to {}: name server",
                at.port(),
                To::Address(at.ip())
            )),
            Err(_) => egress.cut_off.push(format!("name server {server}: it is no address")),
        }
    }
    match place.name_servers.is_empty() {
        true => egress.unsure.push("no name server is known".to_owned()),
        false => {
            // As most clusters have it: their plugins compare addresses of pods, and not that of the Service before them.
            let why = "name server, where it is the cluster's own";
            egress.egress.push(format!("UDP and TCP 53 to {}: {why}", To::Dns));
        }
    }
    let (host, port) = authority(place.broker_url);
    match Leads::of(host, place.cluster_domain) {
        Leads::To(ip) => egress.egress.push(format!("TCP {port} to {}: broker", To::Address(ip))),
        // The chart's Service has the port of the pods behind it.
        Leads::Service(namespace) => {
            egress
                .egress
                .push(format!("TCP {port} to {}: broker", To::Pods(namespace)));
        }
        Leads::Elsewhere => egress.cut_off.push(format!("broker {host}:{port}: {}", NAMED)),
    }
    egress.unsure.push(
        "an address that is a Service's own: a network plugin may compare that of the pod behind it, with its port"
            .to_owned(),
    );
    let agents = &spec.agents;
    if agents.cluster_token == Taken::Keep {
        let kept = "the cluster's API, whose token agents keep (agents.clusterToken)";
        egress.cut_off.push(kept.to_owned());
    }
    if agents.cloud_identity == Taken::Keep {
        let kept = "the cloud's services, whose identities agents keep (agents.cloudIdentity)";
        egress.cut_off.push(kept.to_owned());
    }
    for container in &agents.exempt_containers {
        let name = &container.name;
        egress.cut_off.push(format!(
            "what container {name} reaches by itself (agents.exemptContainers)"
        ));
    }
    egress.fitted()
}

const NAMED: &str = "a NetworkPolicy knows addresses and pods, no host names";

/// The Targets that pods of a namespace could be granted.
fn targets(objects: &Objects, place: &Place<'_>, namespace: &str) -> Egress {
    let mut egress = Egress::default();
    // By whom, and by port where it is known: two Targets at one address are one rule.
    let mut rules: BTreeMap<(To, Option<i32>), Vec<String>> = BTreeMap::new();
    for target in objects.granted_within(namespace) {
        let (name, address) = (target.full_name(), &target.spec.address);
        let named = format!("Target {name} ({}:{})", address.host, address.port);
        match Leads::of(&address.host, place.cluster_domain) {
            Leads::To(ip) => rules
                .entry((To::Address(ip), Some(address.port)))
                .or_default()
                .push(format!("Target {name}")),
            Leads::Service(home) => {
                egress.unsure.push(format!(
                    "{named}: the pods and the port behind that Service are not known here; one without a selector leads \
                     elsewhere"
                ));
                rules.entry((To::Pods(home), None)).or_default().push(named);
            }
            Leads::Elsewhere => egress.cut_off.push(format!("{named}: {NAMED}")),
        }
    }
    for ((to, port), why) in rules {
        let why = why.join(", ");
        egress.egress.push(match port {
            Some(port) => format!("TCP {port} to {to}: {why}"),
            None => format!("TCP, any port, to {to}: {why}"),
        });
    }
    egress.fitted()
}

/// Host and port of an `https://` URL.
fn authority(url: &str) -> (&str, u16) {
    let rest = url.strip_prefix("https://").unwrap_or(url);
    let rest = rest.split('/').next().unwrap_or_default();
    let split = rest
        .rsplit_once(':')
        .filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    match split.and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some(found) => found,
        None => (rest, 443),
    }
}

impl Egress {
    fn lines(&self) -> usize {
        [&self.egress, &self.unsure, &self.cut_off]
            .iter()
            .map(|all| all.len())
            .sum()
    }

    /// No longer than it may be, and saying how much longer it would have been.
    fn fitted(mut self) -> Self {
        for all in [&mut self.egress, &mut self.unsure, &mut self.cut_off] {
            for line in all.iter_mut().filter(|line| line.chars().count() > MAX_LINE) {
                *line = line.chars().take(MAX_LINE.saturating_sub(1)).chain(['…']).collect();
            }
            let kept = MAX_LINES.saturating_sub(1);
            let more = all.len().saturating_sub(kept);
            if more > 1 {
                all.truncate(kept);
                all.push(format!("and {more} more"));
            }
        }
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "network_policy_tests.rs"]
mod tests;
