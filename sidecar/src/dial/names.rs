//! Our own name resolution (UPS-1): configured name servers, no hosts file, no search list.
//!
//! Names are taken as absolute, but for those of services (`db.data.svc`), which the cluster's domain completes. Answers
//! live 1 to 60 s. The system's resolver is never asked: in a pod the agent can rewrite its files.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::Resolver;

/// A name that did not resolve.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NamesError {
    /// No name server is configured.
    #[error("`{0}` cannot be resolved: no name server is configured")]
    NoServers(String),
    /// The servers gave no address.
    #[error("`{name}` did not resolve: {error}")]
    Failed {
        /// The name.
        name: String,
        /// What went wrong.
        error: String,
    },
}

/// Most addresses of one name that are looked at.
const ADDRESS_LIMIT: usize = 16;

/// The resolver.
pub struct Names {
    resolver: Option<Resolver<TokioRuntimeProvider>>,
    /// The cluster's own domain.
    domain: Option<String>,
}

impl Names {
    /// Asks these servers and nobody else. Without any, only literals can be dialled.
    pub fn new(servers: &[SocketAddr]) -> Self {
        let none = Names {
            resolver: None,
            domain: None,
        };
        if servers.is_empty() {
            return none;
        }
        let servers = servers.iter().map(|server| {
            let mut ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            for way in &mut ways {
                way.port = server.port();
            }
            NameServerConfig::new(server.ip(), true, ways.to_vec())
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        let mut options = ResolverOpts::default();
        options.use_hosts_file = ResolveHosts::Never;
        options.ndots = 0;
        options.timeout = Duration::from_secs(2);
        options.attempts = 2;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = 256;
        options.positive_min_ttl = Some(Duration::from_secs(1));
        options.positive_max_ttl = Some(Duration::from_secs(60));
        options.negative_max_ttl = Some(Duration::from_secs(1));
        let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        Names {
            resolver: builder.with_options(options).build().ok(),
            ..none
        }
    }

    /// Names of services, which end in `.svc`, are completed with this domain.
    #[must_use]
    pub fn in_cluster(mut self, domain: Option<&str>) -> Self {
        self.domain = domain.map(str::to_owned);
        self
    }

    /// The name to ask for: absolute.
    fn absolute(&self, name: &str) -> String {
        let name = name.trim_end_matches('.');
        match &self.domain {
            Some(domain) if name.to_ascii_lowercase().ends_with(".svc") => format!("{name}.{domain}."),
            _ => format!("{name}."),
        }
    }

    /// Every address of a name.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NamesError> {
        let Some(resolver) = &self.resolver else {
            return Err(NamesError::NoServers(name.to_owned()));
        };
        let absolute = self.absolute(name);
        let failed = |error: String| NamesError::Failed {
            name: name.to_owned(),
            error,
        };
        let answer = resolver
            .lookup_ip(absolute)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let addresses: Vec<IpAddr> = answer.iter().take(ADDRESS_LIMIT).collect();
        if addresses.is_empty() {
            return Err(failed("no address".to_owned()));
        }
        Ok(addresses)
    }
}

/// The name servers of a `resolv.conf` text; local mode reads the file once, at start.
pub fn servers_of(resolv_conf: &str) -> Vec<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        let word = words.next()?;
        let ip: IpAddr = word.split('%').next()?.parse().ok()?;
        Some(SocketAddr::new(ip, 53))
    });
    servers.take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_services_are_completed() {
        let names = Names::new(&[]).in_cluster(Some("cluster.local"));
        assert_eq!(names.absolute("db.data.svc"), "db.data.svc.cluster.local.");
        assert_eq!(names.absolute("DB.data.SVC."), "DB.data.SVC.cluster.local.");
        assert_eq!(
            names.absolute("db.data.svc.cluster.local"),
            "db.data.svc.cluster.local."
        );
        assert_eq!(names.absolute("db.example.com"), "db.example.com.");
        assert_eq!(Names::new(&[]).absolute("db.data.svc"), "db.data.svc.");
    }
}
