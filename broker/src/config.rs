//! What a broker is started with, and why it may refuse to start.
//!
//! Holds no secret, only paths to them. The invariant: a configuration with a problem starts nothing, and every
//! problem is listed, not the first.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sidegate_policies::compile::Problem;

use crate::clock::{Clock, SystemClock};
use crate::state::StateError;

/// What a broker is started with.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Where callers and kinds come from.
    pub place: Place,
    /// Private folder for keys, pins, approvals, records and the control socket.
    pub state_dir: PathBuf,
    /// The record store, where the brokers of a cluster share one; absent: `records` in the state folder.
    pub shared_records: Option<SharedRecords>,
    /// Address of the front face. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Address of the issuer's public face. Port 0 takes the port of the last start if it is free, else any.
    pub issuer_listen: SocketAddr,
    /// Where health and metrics are served, in plain HTTP; absent: nowhere.
    pub health_listen: Option<SocketAddr>,
    /// Where people's tools look at records, over TLS; absent: nowhere. In a cluster only, whose API server knows people.
    pub people_listen: Option<SocketAddr>,
    /// What sidecars call the front face by, `https://HOST[:PORT]`; absent: its address.
    pub front_url: Option<String>,
    /// The issuer's name in every token, `https://HOST[:PORT]`; absent: the address of the public face.
    pub issuer_url: Option<String>,
    /// The cluster's name, part of every `sub`.
    pub cluster: String,
    /// How often callers may call.
    pub limits: Limits,
    /// Whether an identity provider may live on this machine. Only a composition root says so, in local mode and in
    /// tests; no argument or variable does.
    pub loopback_providers: bool,
    /// How long a stream lives at most, a tenth more or less: then another replica may be nearer.
    pub stream_age: Duration,
    /// Raised after the store of a cluster was restored from a backup: its revisions begin lower, and sidecars take
    /// nothing older than what they hold.
    pub store_generation: u64,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
}

impl BrokerConfig {
    /// The defaults: loopback and free ports.
    pub fn new(place: Place, state_dir: PathBuf) -> Self {
        let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        BrokerConfig {
            place,
            state_dir,
            shared_records: None,
            listen: loopback,
            issuer_listen: loopback,
            health_listen: None,
            people_listen: None,
            front_url: None,
            issuer_url: None,
            cluster: "local".to_owned(),
            limits: Limits::default(),
            loopback_providers: false,
            stream_age: Duration::from_secs(3600),
            store_generation: 0,
            clock: Arc::new(SystemClock),
        }
    }
}

/// A record store that several brokers keep together.
#[derive(Debug, Clone)]
pub struct SharedRecords {
    /// The folder, on a file system that all of them see alike.
    pub dir: PathBuf,
    /// Which of them this one is: a name that it keeps over restarts, as it keeps its state folder.
    pub replica: String,
}

/// Where callers and kinds come from.
#[derive(Debug, Clone)]
pub enum Place {
    /// One machine with one agent, described by files.
    Machine(Machine),
    /// A cluster, by its API server.
    Cluster(ClusterOptions),
}

impl Place {
    /// The broker's own namespace, where its Secrets and ConfigMaps are.
    pub fn home(&self) -> &str {
        match self {
            Place::Machine(_) => HOME,
            Place::Cluster(options) => &options.namespace,
        }
    }
}

/// The broker's own namespace on one machine.
pub const HOME: &str = "sidegate-system";

/// How the API server is found.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// A kubeconfig; absent: the service account of the broker's own pod.
    pub kubeconfig: Option<PathBuf>,
    /// The broker's own namespace, where pins are kept.
    pub namespace: String,
    /// What the objects of the broker begin with, as the chart names them: Secrets `<name>-keys` and `<name>-tls`.
    pub name: String,
    /// What the install says of pods.
    pub admission: AdmissionOptions,
}

/// What the install says of pods.
#[derive(Debug, Clone, Default)]
pub struct AdmissionOptions {
    /// Digest of the sidecar's image, `sha256:` and 64 hex digits; absent: images are not pinned.
    pub sidecar_digest: Option<String>,
    /// User ids that sidecars run as, besides those that profiles name.
    pub uids: Vec<u32>,
    /// Members may change what the admission policies protect.
    pub break_glass_group: Option<String>,
}

/// What the chart calls the broker of a release named `sidegate`.
pub const DEFAULT_NAME: &str = "sidegate-broker";

/// One machine with one agent.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Folders with `*.yaml`, read together and watched.
    pub config_dirs: Vec<PathBuf>,
    /// Folder laid out `<namespace>/<name>/<key>`; absent: no Secret can be read.
    pub secrets_dir: Option<PathBuf>,
    /// Who the agent is. Default: `local/agent`, not separated.
    pub identity: Identity,
}

impl From<Machine> for Place {
    fn from(machine: Machine) -> Self {
        Place::Machine(machine)
    }
}

/// The one agent of local mode, as its Pod would say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Namespace of the pod.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Pod labels that policies match.
    pub labels: BTreeMap<String, String>,
    /// Whether the agent runs as another OS user.
    pub separation: Separation,
}

impl Default for Identity {
    fn default() -> Self {
        Identity {
            namespace: "local".to_owned(),
            service_account: "agent".to_owned(),
            labels: BTreeMap::new(),
            separation: Separation::None,
        }
    }
}

/// What stands between the agent and the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Separation {
    /// Nothing: the agent is the starting user and may read the state directory.
    None,
    /// The agent runs as this OS user, who never approves and never commands.
    User {
        /// Its uid.
        uid: u32,
        /// Its name.
        name: String,
    },
}

impl Separation {
    /// Whether this uid is the agent's own and therefore may not command or decide.
    pub fn is_agent(&self, peer: u32) -> bool {
        matches!(self, Separation::User { uid, .. } if *uid == peer)
    }
}

impl fmt::Display for Separation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Separation::None => f.write_str("none"),
            Separation::User { name, .. } => write!(f, "user {name}"),
        }
    }
}

/// How fast a budget refills, and how much it holds; in calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls a second in the long run.
    pub per_second: u32,
    /// Calls at once after a pause.
    pub burst: u32,
}

/// The budgets of one front face.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Calls without a present nonce, by peer address.
    pub stranger: Rate,
    /// Calls with a present nonce by a key not attested here, by peer address.
    pub newcomer: Rate,
    /// Calls by a key that was attested here, by key: before its signature is checked.
    pub known: Rate,
    /// Exchanges at `/token`, by pod UID: before the cluster is asked.
    pub exchange: Rate,
    /// All other calls, by pod UID.
    pub pod: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        let rate = |per_second, burst| Rate { per_second, burst };
        Limits {
            stranger: rate(10, 40),
            newcomer: rate(50, 200),
            known: rate(50, 200),
            exchange: rate(5, 20),
            pod: rate(50, 200),
        }
    }
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration has problems; all of them.
    #[error("{} problem(s) in the configuration", .0.len())]
    Config(Vec<Problem>),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// A key, certificate or TLS setting cannot be made.
    #[error("cannot prepare {what}: {why}")]
    Crypto {
        /// What.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The API server cannot be used.
    #[error("cannot use the cluster: {0}")]
    Cluster(String),
    /// The record store cannot be opened.
    #[error("cannot open the record store: {0}")]
    Records(String),
}

impl StartError {
    pub(crate) fn cluster(why: impl std::fmt::Display) -> Self {
        StartError::Cluster(why.to_string())
    }

    pub(crate) fn crypto(what: &'static str, why: impl std::fmt::Display) -> Self {
        StartError::Crypto {
            what,
            why: why.to_string(),
        }
    }
}
