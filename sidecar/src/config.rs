//! What a sidecar must be told, and how it is read from the environment.
//!
//! Every problem is reported, not the first. `allow_loopback_literals` has no variable: only a composition root that
//! runs beside its broker on one machine may set it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use serde::Deserialize;
use sidegate_policies::api::injection_profile::{OnBrokerUnavailable, Tier};
use sidegate_policies::api::target::TargetProtocol;
use sidegate_policies::engine::TargetId;
use sidegate_policies::pod::aliases;
use sidegate_policies::quantity::ByteSize;

use crate::authority::Separation;
use crate::broker::Url;
use crate::dial::names;
use crate::staleness::Limits;
use crate::task::Lanes;

/// Where the kubelet projects the token.
const TOKEN_FILE: &str = "/var/run/secrets/sidegate.dev/token/token";
/// Where probe and memory volume are, unless the environment says otherwise.
pub const RUN_DIR: &str = "/run/sidegate";
const JOURNAL_DIR: &str = "/var/lib/sidegate/journal";

/// Everything a sidecar is told.
#[derive(Debug, Clone)]
pub struct SidecarConfig {
    /// The broker's front face.
    pub broker: Url,
    /// PEM of the authority that must have signed the broker's certificate.
    pub broker_ca_pem: String,
    /// The service-account token.
    pub token_file: PathBuf,
    /// Listeners that exist before the first bundle.
    pub ports: Vec<Announced>,
    /// Name servers for targets and broker.
    pub name_servers: Vec<SocketAddr>,
    /// What names that end in `.svc` are completed with, such as `cluster.local`.
    pub cluster_domain: Option<String>,
    /// Memory volume.
    pub run_dir: PathBuf,
    /// Journal volume.
    pub journal_dir: PathBuf,
    /// Local mode: a Target that states a loopback literal may be dialled there.
    pub allow_loopback_literals: bool,
    /// How agent and sidecar are kept apart.
    pub separation: Separation,
    /// Only this user's connections are served.
    pub agent_uid: Option<u32>,
    /// Threads that sessions run on.
    pub lanes: usize,
    /// Bytes of memory this process may use; a control group's own limit counts too, the smaller of both.
    pub memory_limit: Option<u64>,
    /// Where `GET /metrics` is served, in plain HTTP; nowhere: not at all.
    pub metrics: Vec<SocketAddr>,
    /// How a silent broker is met, where the bundle does not say: what the pod's profile says.
    pub staleness: Limits,
    /// Whether there is a fence around the pod to look for.
    pub fenced: bool,
    /// Whether nothing of the agent's begins before the first bundle.
    pub waits: bool,
    /// Which pod this is, as the kubelet says. For logs, and for what an earlier start kept: who we are is the broker's
    /// word.
    pub pod: PodFacts,
}

/// A pod as the environment describes it: whatever depends on it only refuses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its addresses, comma-separated.
    pub ips: String,
}

/// A listener named by the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Its target.
    pub target: TargetId,
    /// The protocol its refusals are written in.
    pub protocol: TargetProtocol,
    /// Its port.
    pub port: u16,
    /// Where the pod's hosts file leads the Target's own names, if it does.
    pub named: Option<SocketAddrV4>,
}

/// One thing wrong with the environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {message}")]
pub struct ConfigProblem {
    /// The variable.
    pub variable: &'static str,
    /// What is wrong, and what to write.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortEntry {
    port: u16,
    protocol: TargetProtocol,
    /// Informative: listeners are on every loopback family.
    #[serde(default)]
    #[allow(dead_code)]
    addresses: Vec<String>,
    #[serde(default)]
    named: Option<SocketAddrV4>,
}

impl SidecarConfig {
    /// Reads the environment through `get`, so that tests need not change the process's own.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<ConfigProblem>> {
        let mut problems = Problems::default();
        let broker = problems.need("SIDEGATE_BROKER_URL", get("SIDEGATE_BROKER_URL"), |text| {
            Url::parse(text).map_err(|error| error.to_string())
        });
        let ca = problems.need("SIDEGATE_BROKER_CA", get("SIDEGATE_BROKER_CA"), pem_or_file);
        let ports = problems.may("SIDEGATE_PORTS", get("SIDEGATE_PORTS"), ports);
        let servers = problems.may("SIDEGATE_NAME_SERVERS", get("SIDEGATE_NAME_SERVERS"), servers);
        let agent_uid = problems.may("SIDEGATE_AGENT_UID", get("SIDEGATE_AGENT_UID"), |text| {
            text.parse::<u32>().map_err(|error| error.to_string())
        });
        let cluster_domain = problems.may("SIDEGATE_CLUSTER_DOMAIN", get("SIDEGATE_CLUSTER_DOMAIN"), domain);
        let memory_limit = problems.may("SIDEGATE_MEMORY_LIMIT", get("SIDEGATE_MEMORY_LIMIT"), bytes);
        let staleness = problems.may("SIDEGATE_STALENESS", get("SIDEGATE_STALENESS"), |text| {
            text.parse().map(Limits::of)
        });
        let tier = problems.may("SIDEGATE_TIER", get("SIDEGATE_TIER"), |text| {
            word([Tier::Cooperative, Tier::Enforced], Tier::as_str, text)
        });
        let unavailable = "SIDEGATE_ON_BROKER_UNAVAILABLE";
        let unavailable = problems.may(unavailable, get(unavailable), |text| {
            word(OnBrokerUnavailable::ALL, OnBrokerUnavailable::as_str, text)
        });
        let said = |name: &str| get(name).unwrap_or_default();
        let ips = said("SIDEGATE_POD_IPS");
        let metrics = problems.may("SIDEGATE_METRICS_PORT", get("SIDEGATE_METRICS_PORT"), |text| {
            scraped_at(text, &ips)
        });
        let path = |name: &str, default: &str| get(name).map_or_else(|| PathBuf::from(default), PathBuf::from);
        match (broker, ca, problems.0.is_empty()) {
            (Some(broker), Some(broker_ca_pem), true) => Ok(SidecarConfig {
                broker,
                broker_ca_pem,
                token_file: path("SIDEGATE_TOKEN_FILE", TOKEN_FILE),
                ports: ports.unwrap_or_default(),
                name_servers: servers.unwrap_or_default(),
                cluster_domain,
                run_dir: path("SIDEGATE_RUN_DIR", RUN_DIR),
                journal_dir: path("SIDEGATE_JOURNAL_DIR", JOURNAL_DIR),
                allow_loopback_literals: false,
                separation: Separation::Pod,
                agent_uid,
                lanes: Lanes::wanted(),
                memory_limit,
                metrics: metrics.unwrap_or_default(),
                staleness: staleness.unwrap_or_default(),
                fenced: tier == Some(Tier::Enforced),
                waits: unavailable == Some(OnBrokerUnavailable::BlockPod),
                pod: PodFacts {
                    name: said("SIDEGATE_POD_NAME"),
                    uid: said("SIDEGATE_POD_UID"),
                    ips,
                },
            }),
            _ => Err(problems.0),
        }
    }
}

/// One of a field's words.
fn word<T: Copy>(all: [T; 2], written: fn(T) -> &'static str, text: &str) -> Result<T, String> {
    let found = all.into_iter().find(|one| written(*one) == text);
    found.ok_or_else(|| format!("`{text}` is none of {}", all.map(written).join(", ")))
}

/// A port on each of the pod's addresses.
fn scraped_at(port: &str, ips: &str) -> Result<Vec<SocketAddr>, String> {
    let port: u16 = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
    let ips = ips.split(',').map(str::trim).filter(|ip| !ip.is_empty());
    let read = |ip: &str| {
        ip.parse()
            .map_err(|_| format!("`{ip}` of SIDEGATE_POD_IPS is not an IP address"))
    };
    let ips: Vec<std::net::IpAddr> = ips.map(read).collect::<Result<_, String>>()?;
    match (port, ips.is_empty()) {
        (0, _) => Err("the port must be 1 to 65535".to_owned()),
        (_, true) => Err("needs SIDEGATE_POD_IPS, to listen there".to_owned()),
        _ => Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()),
    }
}

#[derive(Default)]
struct Problems(Vec<ConfigProblem>);

impl Problems {
    fn need<T>(
        &mut self,
        variable: &'static str,
        text: Option<String>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if text.as_deref().unwrap_or_default().is_empty() {
            let message = "must be set".to_owned();
            self.0.push(ConfigProblem { variable, message });
            return None;
        }
        self.may(variable, text, read)
    }

    fn may<T>(
        &mut self,
        variable: &'static str,
        text: Option<String>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = text.filter(|text| !text.is_empty())?;
        match read(&text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.0.push(ConfigProblem { variable, message });
                None
            }
        }
    }
}

/// PEM in place, or the path of a file that holds it.
fn pem_or_file(text: &str) -> Result<String, String> {
    if sidegate_policies::check::holds_certificate(text) {
        return Ok(text.to_owned());
    }
    std::fs::read_to_string(text).map_err(|error| format!("neither PEM nor a readable file: {error}"))
}

fn ports(text: &str) -> Result<Vec<Announced>, String> {
    let entries: BTreeMap<String, PortEntry> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut ports = Vec::new();
    for (name, entry) in entries {
        let (namespace, target) = name
            .split_once('/')
            .ok_or_else(|| format!("`{name}` is not of the form namespace/name"))?;
        if entry.port == 0 || entry.named.is_some_and(|named| named.port() == 0) {
            return Err(format!("`{name}`: the port must be 1 to 65535"));
        }
        // Loopback, and no other pod's: nobody outside is ever listened for.
        if let Some(named) = entry
            .named
            .filter(|named| !named.ip().octets().starts_with(&aliases::OURS))
        {
            return Err(format!("`{name}`: {named} is not an address of 127.71.0.0/16"));
        }
        ports.push(Announced {
            target: TargetId::new(namespace, target),
            protocol: entry.protocol,
            port: entry.port,
            named: entry.named,
        });
    }
    Ok(ports)
}

fn servers(text: &str) -> Result<Vec<SocketAddr>, String> {
    let read = |word: &str| {
        let with_port = word.parse::<SocketAddr>();
        with_port
            .or_else(|_| word.parse().map(|ip| SocketAddr::new(ip, 53)))
            .map_err(|_| format!("`{word}` is not an IP address"))
    };
    text.split([',', ' '])
        .filter(|word| !word.is_empty())
        .map(read)
        .collect()
}

/// A cluster's domain: labels of letters, digits and hyphens.
fn domain(text: &str) -> Result<String, String> {
    let text = text.trim_matches('.');
    let label = |label: &str| {
        let inside = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty() && label.len() <= 63 && label.chars().all(inside)
    };
    if text.len() <= 200 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a DNS domain"))
    }
}

/// A number of bytes, with or without a unit: `134217728`, `128Mi`.
fn bytes(text: &str) -> Result<u64, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}"))?;
    match size.0 {
        0 => Err("must be more than nothing".to_owned()),
        bytes => Ok(bytes),
    }
}

/// The machine's own name servers, read once: local mode only.
pub fn system_name_servers() -> Vec<SocketAddr> {
    std::fs::read_to_string("/etc/resolv.conf")
        .map(|text| names::servers_of(&text))
        .unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sidegate_policies::api::injection_profile::Staleness;

    use super::*;

    fn read(values: &[(&str, &str)]) -> Result<SidecarConfig, Vec<ConfigProblem>> {
        let values: BTreeMap<String, String> = values
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        SidecarConfig::from_env(|name| values.get(name).cloned())
    }

    const CA: (&str, &str) = ("SIDEGATE_BROKER_CA", "-----BEGIN CERTIFICATE-----");

    #[test]
    fn a_whole_environment_is_read() {
        let config = read(&[
            ("SIDEGATE_BROKER_URL", "https://127.0.0.1:8443"),
            CA,
            (
                "SIDEGATE_PORTS",
                r#"{"data/shop": {"protocol": "Postgres", "port": 15432, "named": "127.71.3.4:5432"}}"#,
            ),
            ("SIDEGATE_NAME_SERVERS", "10.0.0.10,10.0.0.11:5353"),
            ("SIDEGATE_AGENT_UID", "1000"),
            ("SIDEGATE_CLUSTER_DOMAIN", "cluster.local."),
            ("SIDEGATE_MEMORY_LIMIT", "134217728"),
            ("SIDEGATE_METRICS_PORT", "9464"),
            ("SIDEGATE_STALENESS", "Strict"),
            ("SIDEGATE_TIER", "Enforced"),
            ("SIDEGATE_POD_NAME", "support-1"),
            ("SIDEGATE_POD_UID", "7a1b9c52"),
            ("SIDEGATE_POD_IPS", "10.0.0.7,fd00::7"),
        ])
        .unwrap();
        assert_eq!(config.cluster_domain.as_deref(), Some("cluster.local"));
        assert_eq!(config.memory_limit, Some(128 << 20));
        assert_eq!(config.staleness, Limits::of(Staleness::Strict));
        assert!(config.fenced);
        assert_eq!(
            (&*config.pod.name, &*config.pod.uid, &*config.pod.ips),
            ("support-1", "7a1b9c52", "10.0.0.7,fd00::7")
        );
        assert_eq!(config.broker.to_string(), "https://127.0.0.1:8443");
        assert_eq!(config.ports.len(), 1);
        assert_eq!(config.ports[0].named, Some("127.71.3.4:5432".parse().unwrap()));
        assert_eq!(config.name_servers.len(), 2);
        assert_eq!(config.agent_uid, Some(1000));
        let scraped: Vec<String> = config.metrics.iter().map(ToString::to_string).collect();
        assert_eq!(scraped, ["10.0.0.7:9464", "[fd00::7]:9464"]);
        assert!(!config.allow_loopback_literals, "no variable turns it on");
    }

    #[test]
    fn a_name_is_listened_for_on_an_address_of_ours_alone() {
        for named in [
            "0.0.0.0:5432",
            "10.1.2.3:5432",
            "127.0.0.1:5432",
            "127.71.3.4:0",
            "127.71.3.4",
            "[::1]:5432",
        ] {
            let text = format!(r#"{{"data/shop": {{"protocol": "Postgres", "port": 15432, "named": "{named}"}}}}"#);
            assert!(ports(&text).is_err(), "{named}");
        }
    }

    #[test]
    fn every_problem_is_reported() {
        let problems = read(&[
            ("SIDEGATE_BROKER_URL", "http://broker"),
            ("SIDEGATE_PORTS", r#"{"shop": {"protocol": "Postgres", "port": 1}}"#),
            ("SIDEGATE_NAME_SERVERS", "localhost"),
            ("SIDEGATE_CLUSTER_DOMAIN", "cluster local"),
            ("SIDEGATE_MEMORY_LIMIT", "much"),
            ("SIDEGATE_METRICS_PORT", "9464"),
            ("SIDEGATE_STALENESS", "strict"),
            ("SIDEGATE_TIER", "enforced"),
            ("SIDEGATE_ON_BROKER_UNAVAILABLE", "Start"),
        ])
        .unwrap_err();
        let names: Vec<&str> = problems.iter().map(|problem| problem.variable).collect();
        assert_eq!(
            names,
            [
                "SIDEGATE_BROKER_URL",
                "SIDEGATE_BROKER_CA",
                "SIDEGATE_PORTS",
                "SIDEGATE_NAME_SERVERS",
                "SIDEGATE_CLUSTER_DOMAIN",
                "SIDEGATE_MEMORY_LIMIT",
                "SIDEGATE_STALENESS",
                "SIDEGATE_TIER",
                "SIDEGATE_ON_BROKER_UNAVAILABLE",
                "SIDEGATE_METRICS_PORT"
            ]
        );
    }
}
