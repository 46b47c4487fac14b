//! By which names a pod finds its Targets: one loopback address a Target, the names that lead there by the pod's hosts file,
//! and the Target's real port on it.
//!
//! Refuses a pod whose own host aliases lead such a name elsewhere. Another team's Target never stops a pod: a name belongs
//! to the Target whose address it is, else to the first by name, and what another one claims is left out with a warning.
//! Targets that share a name are one host and share its address, each on its own port. Invariants: an address and a port
//! name one Target; a Target has the same address in every pod, but for collisions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::{json, Value};
use sidegate_policies::api::Target;
use sidegate_policies::pod::aliases::{is_ours, names, OURS};
use sidegate_policies::record::frame::sha256;

use crate::assign::{clashes, owner, Assigned};
use crate::form::{items, list, others, text};
use crate::refusal::Refusal;

/// Where the kubelet writes the hosts file, unless a container mounts something there; over a folder above it writes all
/// the same.
const HOSTS: [&str; 2] = ["etc", "hosts"];

/// The names of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Where each Target answers by `namespace/name`.
    pub listens: BTreeMap<String, SocketAddrV4>,
    /// The names that lead to each address.
    pub aliases: BTreeMap<Ipv4Addr, Vec<String>>,
}

impl Names {
    /// For people: `namespace/name` with its address and its names.
    pub fn told(&self) -> Value {
        let told = self.listens.iter().map(|(target, at)| {
            let names = self.aliases.get(at.ip());
            (target.clone(), json!({"at": at.to_string(), "names": names}))
        });
        Value::Object(told.collect())
    }
}

/// Gives the assigned Targets their names.
pub fn assign(
    assigned: &mut Assigned,
    granted: &[&Target],
    spec: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Refusal> {
    let told = granted
        .iter()
        .filter(|target| assigned.ports.contains_key(&target.full_name()));
    let mut names = Names::default();
    for claim in claims(told.copied(), spec, warnings) {
        names.settle(&claim, warnings);
    }
    for (target, at) in &names.listens {
        clashes(spec, target, at.port(), warnings);
        if let Some(entry) = assigned.announced.get_mut(target).and_then(Value::as_object_mut) {
            entry.insert("named".to_owned(), at.to_string().into());
        }
    }
    names.refused(spec)?;
    if !names.listens.is_empty() {
        hidden(spec, warnings);
    }
    assigned.names = names;
    Ok(())
}

/// One name that a Target wants to answer for.
struct Claim<'a> {
    target: String,
    port: u16,
    name: &'a str,
}

/// Every claim, those of Targets that are found there first: nobody else answers for a Target's own address.
fn claims<'a>(targets: impl Iterator<Item = &'a Target>, spec: &Value, warnings: &mut Vec<String>) -> Vec<Claim<'a>> {
    let mut all: Vec<(bool, Claim<'a>)> = Vec::new();
    for target in targets {
        let full = target.full_name();
        let address = &target.spec.address;
        let Ok(port) = u16::try_from(address.port) else {
            continue;
        };
        let hostnames = &target.spec.listen.hostnames;
        if let Some(proxy) = owner(spec, port).filter(|_| !hostnames.is_empty()) {
            warnings.push(format!(
                "names of Target {full} are left out: {proxy} uses port {port} itself"
            ));
            continue;
        }
        let own = address.host.trim_end_matches('.').to_ascii_lowercase();
        all.extend(hostnames.iter().map(|name| {
            let target = full.clone();
            (*name != own, Claim { target, port, name })
        }));
    }
    // Stable: within each half they stay in order of their Targets.
    all.sort_by_key(|(other, _)| *other);
    all.into_iter().map(|(_, claim)| claim).collect()
}

impl Names {
    fn settle(&mut self, claim: &Claim<'_>, warnings: &mut Vec<String>) {
        let leads = |ip: &Ipv4Addr, names: &Vec<String>| names.iter().any(|name| name == claim.name).then_some(*ip);
        let taken = self.aliases.iter().find_map(|(ip, names)| leads(ip, names));
        let own = self.listens.get(&claim.target).map(|at| *at.ip());
        match (taken, own) {
            (Some(taken), Some(own)) if taken == own => {}
            (Some(taken), None) if self.at(taken, claim.port).is_none() => self.listen(claim, taken),
            (Some(taken), _) => {
                let other = self
                    .at(taken, claim.port)
                    .or_else(|| self.listens.iter().find(|(_, at)| *at.ip() == taken));
                let other = other.map_or("", |(target, _)| target.as_str());
                warnings.push(format!(
                    "{} does not lead to Target {}: Target {other} has that name",
                    claim.name, claim.target
                ));
            }
            (None, own) => {
                let ip = own.unwrap_or_else(|| self.free(&claim.target));
                self.listen(claim, ip);
                self.aliases.entry(ip).or_default().push(claim.name.to_owned());
            }
        }
    }

    fn listen(&mut self, claim: &Claim<'_>, ip: Ipv4Addr) {
        self.listens
            .insert(claim.target.clone(), SocketAddrV4::new(ip, claim.port));
    }

    /// Who answers there.
    fn at(&self, ip: Ipv4Addr, port: u16) -> Option<(&String, &SocketAddrV4)> {
        self.listens.iter().find(|(_, at)| **at == SocketAddrV4::new(ip, port))
    }

    /// The address of a Target, or the next one that is nobody's in this pod.
    fn free(&self, target: &str) -> Ipv4Addr {
        let [first, second, ..] = sha256(target.as_bytes());
        let start = u16::from_be_bytes([first, second]);
        let candidates = (0..=u16::MAX).map(|step| {
            let [third, fourth] = start.wrapping_add(step).to_be_bytes();
            Ipv4Addr::new(OURS[0], OURS[1], third, fourth)
        });
        // There are a thousand times more of them than Targets in a pod.
        let mut free = candidates.filter(|ip| !self.aliases.contains_key(ip));
        free.next().unwrap_or(Ipv4Addr::LOCALHOST)
    }

    /// A pod that leads such a name elsewhere by itself says two things, and only its author knows which one is meant.
    fn refused(&self, spec: &Value) -> Result<(), Refusal> {
        for alias in items(spec, "hostAliases").filter(|alias| !is_ours(alias)) {
            for name in names(alias) {
                let Some((ip, _)) = self.aliases.iter().find(|(_, all)| all.iter().any(|own| own == name)) else {
                    continue;
                };
                let target = self.listens.iter().find(|(_, at)| at.ip() == ip);
                let message = format!(
                    "hostAliases of the pod lead {name} to {}, and Target {} answers for that name; remove the one or the other",
                    text(alias, "ip"),
                    target.map_or("", |(target, _)| target)
                );
                return Err(Refusal::forbidden("hostname", message));
            }
        }
        Ok(())
    }
}

/// Where an agent's own mount hides the pod's hosts file, names lead past the sidecar.
fn hidden(spec: &Value, warnings: &mut Vec<String>) {
    for container in others(spec) {
        let over = |mount: &Value| {
            let parts = text(mount, "mountPath").split('/');
            parts.filter(|part| !part.is_empty() && *part != ".").eq(HOSTS)
        };
        if items(container, "volumeMounts").any(over) {
            warnings.push(format!(
                "container {} mounts over /etc/hosts: there names of Targets lead past the sidecar",
                text(container, "name")
            ));
        }
    }
}

/// The pod's host aliases with ours, made anew.
pub fn place(spec: &mut Value, names: &Names, warnings: &mut Vec<String>) {
    let wanted: Vec<Value> = names
        .aliases
        .iter()
        .map(|(ip, names)| json!({"ip": ip.to_string(), "hostnames": names}))
        .collect();
    let strange = |alias: &Value| is_ours(alias) && !wanted.contains(alias);
    if items(spec, "hostAliases").any(strange) {
        warnings.push("host aliases in 127.71.0.0/16 are Sidegate's own, and made anew".to_owned());
    }
    let before = items(spec, "hostAliases").filter(|alias| is_ours(alias)).count();
    if before == 0 && wanted.is_empty() {
        return;
    }
    let Some(all) = list(spec, "hostAliases") else {
        return;
    };
    all.retain(|alias| !is_ours(alias));
    all.extend(wanted);
    if all.is_empty() {
        if let Some(spec) = spec.as_object_mut() {
            spec.remove("hostAliases");
        }
    }
}

/// Every port that somebody listens on for a Target.
pub fn ports(assigned: &Assigned) -> BTreeSet<u16> {
    let named = assigned.names.listens.values().map(SocketAddrV4::port);
    assigned.ports.values().copied().chain(named).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn target(name: &str, host: &str, port: u16, hostnames: Value) -> Target {
        let value = json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target", "metadata": {"name": name, "namespace": "data"},
            "spec": {
                "protocol": "TCP", "address": {"host": host, "port": port}, "credential": {"none": {}},
                "listen": {"port": 1, "hostnames": hostnames},
            },
        });
        serde_json::from_value(value).unwrap()
    }

    fn settled(targets: &[Target]) -> (Names, Vec<String>) {
        let (mut names, mut warnings) = (Names::default(), Vec::new());
        for claim in claims(targets.iter(), &Value::Null, &mut warnings) {
            names.settle(&claim, &mut warnings);
        }
        (names, warnings)
    }

    #[test]
    fn an_address_is_the_same_in_every_pod_and_never_another_targets() {
        let [a, b] = ["a", "b"].map(|name| target(name, name, 1, json!([name])));
        let at = |names: &Names, target: &str| *names.listens.get(target).unwrap().ip();
        let (both, warnings) = settled(&[a, b.clone()]);
        let (alone, _) = settled(&[b]);
        assert_eq!((at(&both, "data/b"), warnings.len()), (at(&alone, "data/b"), 0));
        // Two names of one hash: the next address.
        let taken = Names {
            aliases: BTreeMap::from([(at(&alone, "data/b"), Vec::new())]),
            ..Names::default()
        };
        assert_eq!(
            u32::from(taken.free("data/b")),
            u32::from(at(&alone, "data/b")).wrapping_add(1)
        );
    }

    /// Nobody takes the name under which another Target itself is found, whatever its own name is.
    #[test]
    fn a_name_belongs_to_the_target_whose_address_it_is() {
        let stranger = target("a", "evil.example", 5432, json!(["evil.example", "db.data.svc"]));
        let owner = target("z", "DB.data.svc.", 5432, json!(["db.data.svc"]));
        let (names, warnings) = settled(&[stranger, owner]);
        let at = names.listens.get("data/z").unwrap();
        assert_eq!(names.aliases.get(at.ip()).unwrap(), &["db.data.svc"]);
        assert_eq!(
            warnings,
            ["db.data.svc does not lead to Target data/a: Target data/z has that name"]
        );
    }
}
