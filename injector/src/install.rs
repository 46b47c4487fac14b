//! What every sidecar of one installation is told: where its broker is, and whom it must be to be believed.
//!
//! Refuses a broker that is not reached by verified TLS. Invariant: it holds nothing secret, because it is written
//! into pods that agents may read.

use std::path::Path;

use serde::Deserialize;
use sidegate_policies::check::holds_certificate;

/// One installation of Sidegate, as sidecars are told of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Install {
    /// The broker's front face, `https://HOST[:PORT]`.
    pub broker_url: String,
    /// PEM of the authority that must have signed the broker's certificate.
    pub broker_ca_pem: String,
    /// The audience of tokens for the broker: its issuer URL.
    pub audience: String,
    /// IP addresses of name servers, for the broker and for targets. A sidecar does not read the pod's resolv.conf.
    #[serde(default)]
    pub name_servers: Vec<String>,
    /// What names that end in `.svc` are completed with.
    #[serde(default = "cluster_local")]
    pub cluster_domain: String,
}

/// The name servers that a resolv.conf names: those of the injector's own pod serve the whole cluster.
pub fn name_servers(resolv_conf: &str) -> Vec<String> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    servers.map(str::to_owned).collect()
}

fn cluster_local() -> String {
    "cluster.local".to_owned()
}

impl Install {
    /// Reads one from a file.
    ///
    /// # Errors
    /// What is wrong with the file, with its name.
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
        Install::read(&text).map_err(|problems| format!("{name}: {}", problems.join("; ")))
    }

    /// Reads one from YAML or JSON.
    ///
    /// # Errors
    /// Every problem, each with its field.
    pub fn read(text: &str) -> Result<Self, Vec<String>> {
        let read: Result<Install, _> = sidegate_policies::yaml::read(text);
        let install = read.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<String>>())?;
        let problems = install.problems();
        match problems.is_empty() {
            true => Ok(install),
            false => Err(problems),
        }
    }

    /// An installation whose authority is not known yet.
    ///
    /// # Errors
    /// Every problem with the rest, each with its field.
    pub fn unpublished(
        broker_url: String,
        audience: String,
        name_servers: Vec<String>,
        cluster_domain: String,
    ) -> Result<Self, Vec<String>> {
        let install = Install {
            broker_url,
            broker_ca_pem: String::new(),
            audience,
            name_servers,
            cluster_domain,
        };
        let mut problems = install.problems();
        problems.retain(|problem| !problem.starts_with("brokerCaPem: "));
        match problems.is_empty() {
            true => Ok(install),
            false => Err(problems),
        }
    }

    /// The same installation with this authority, if the two make sense together.
    ///
    /// # Errors
    /// Every problem, each with its field.
    pub fn with_authority(&self, pem: &str) -> Result<Self, Vec<String>> {
        let install = Install {
            broker_ca_pem: pem.to_owned(),
            ..self.clone()
        };
        let problems = install.problems();
        match problems.is_empty() {
            true => Ok(install),
            false => Err(problems),
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (field, url) in [("brokerUrl", &self.broker_url), ("audience", &self.audience)] {
            let rest = url.strip_prefix("https://").unwrap_or_default();
            if rest.is_empty() || rest.chars().any(|c| c.is_whitespace() || c.is_control() || c == '$') {
                problems.push(format!("{field}: `{url}` is not https://HOST[:PORT]"));
            }
        }
        if !holds_certificate(&self.broker_ca_pem) {
            problems.push("brokerCaPem: this holds no PEM certificate".to_owned());
        }
        if self.broker_ca_pem.contains("PRIVATE KEY") {
            problems.push("brokerCaPem: this holds a private key, and every pod could read it; remove it".to_owned());
        }
        for server in &self.name_servers {
            let address = server.parse::<std::net::IpAddr>().is_ok();
            if !address && server.parse::<std::net::SocketAddr>().is_err() {
                problems.push(format!("nameServers: `{server}` is not an IP address"));
            }
        }
        problems
    }
}
