//! Our own name resolution (UPS-1): configured name servers, no hosts file, no search list.
//!
//! Names are taken as absolute. Answers live 1 to 60 s. The system's resolver is never asked: in a pod the agent can
//! rewrite its files.

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
pub struct Names(Option<Resolver<TokioRuntimeProvider>>);

impl Names {
    /// Asks these servers and nobody else. Without any, only literals can be dialled.
    pub fn new(servers: &[SocketAddr]) -> Self {
        if servers.is_empty() {
            return Names(None);
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
        Names(builder.with_options(options).build().ok())
    }

    /// Every address of a name.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NamesError> {
        let Some(resolver) = &self.0 else {
            return Err(NamesError::NoServers(name.to_owned()));
        };
        let absolute = format!("{}.", name.trim_end_matches('.'));
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
