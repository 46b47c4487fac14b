//! The composition root: the one place where an injector is put together, for `main` and tests alike.
//!
//! Refuses to start with a certificate whose key is another's, and without having heard of every kind once: it never
//! answers from half of what is known. Invariant: it holds no secret but the keys of the webhook's certificates.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

pub use crate::certificates::Lives;
pub use crate::files::{FileError, Files};
use crate::install::Install;
use crate::kubernetes::{
    connect, connect_for_one_try, follow_authority, Absent, Cluster, Configurations, Evictions, Keeper, Leader,
    Profiles, Watchdog,
};
pub use crate::kubernetes::{Wanted, EVICT_EVERY, WATCH_EVERY};
use crate::metrics::Metrics;
use crate::ops::{self, Ops};
use crate::probe::{self, Readiness};
use crate::served::{tls, Served};
use crate::server::{serve, Server};
use crate::task::Tasks;
use crate::webhook::Webhook;

/// Tasks have so long to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an injector is started with.
#[derive(Debug, Clone)]
pub struct InjectorConfig {
    /// Where it listens. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where it says whether it is ready, without TLS; absent: nowhere.
    pub health_listen: Option<SocketAddr>,
    /// The address by which it calls itself; absent: loopback, or where it listens.
    pub own_address: Option<IpAddr>,
    /// Where its certificate comes from.
    pub certificates: Certificates,
    /// What sidecars are told.
    pub install: InstallFrom,
    /// A kubeconfig; absent: the service account of this pod.
    pub kubeconfig: Option<PathBuf>,
    /// The injector's own namespace, whose pods are left alone.
    pub namespace: String,
    /// The name of the webhook configurations that call it, and of the Lease of whoever leads.
    pub name: String,
    /// This replica, unlike any other and any other start of it.
    pub replica: String,
    /// How often the leader looks for pods without a valid sidecar; [`WATCH_EVERY`] but in tests.
    pub watch_every: Duration,
    /// Whether its leader tells in the status of InjectionProfiles what it counts. Of two releases side by side one does.
    pub report_profiles: bool,
    /// How long after an eviction of a pod without a valid sidecar the next one is; [`EVICT_EVERY`] but in tests. Absent: none is
    /// evicted.
    pub evict_every: Option<Duration>,
}

/// Where the webhook's certificate comes from.
#[derive(Debug, Clone)]
pub enum Certificates {
    /// Its replicas make and renew it themselves, in a Secret, and write the caBundle.
    SelfManaged(Wanted),
    /// Somebody else does both.
    Files(Files),
}

/// Where what sidecars are told comes from.
#[derive(Debug, Clone)]
pub enum InstallFrom {
    /// All of it is known.
    Given(Install),
    /// All but the authority, which the broker publishes in this namespace.
    Published(Install),
}

impl InstallFrom {
    /// What is known from the start: all but the authority.
    fn told(&self) -> &Install {
        match self {
            InstallFrom::Given(install) | InstallFrom::Published(install) => install,
        }
    }
}

/// Why an injector did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file with the certificate or the key.
    #[error(transparent)]
    Files(#[from] FileError),
    /// TLS cannot be spoken.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// Two numbers have one name.
    #[error("metrics: {0}")]
    Metrics(String),
    /// The address cannot be bound.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] Absent),
}

/// An injector that runs.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it says whether it is ready.
    pub health: Option<SocketAddr>,
    tasks: Tasks,
}

impl Running {
    /// Ends it; reviews under way are answered.
    pub async fn shutdown(self) {
        self.tasks.shutdown(PATIENCE).await;
    }
}

/// Starts an injector; it serves when this returns, as soon as it has a certificate.
///
/// # Errors
/// The certificate, an address or the API server cannot be used.
pub async fn start(config: InjectorConfig) -> Result<Running, StartError> {
    let tasks = Tasks::default();
    let started = started(config, &tasks).await;
    if started.is_err() {
        tasks.shutdown(PATIENCE).await;
    }
    started
}

async fn started(config: InjectorConfig, tasks: &Tasks) -> Result<Running, StartError> {
    let served = Arc::new(Served::default());
    let tls = Arc::new(tls(Arc::clone(&served))?);
    let (listener, address) = bind(config.listen).await?;
    let (ready, readiness) = watch::channel(Readiness::default());
    let metrics = Arc::new(Metrics::new().map_err(StartError::Metrics)?);
    let (count, unprotected) = watch::channel(None);
    let ops = Arc::new(Ops {
        ready: readiness,
        metrics: Arc::clone(&metrics),
        served: Arc::clone(&served),
        configurations: OnceLock::new(),
        leader: OnceLock::new(),
        cluster: OnceLock::new(),
        unprotected,
    });
    let health = match config.health_listen {
        None => None,
        Some(wanted) => {
            let (listener, address) = bind(wanted).await?;
            tasks.spawn(ops::serve(listener, Arc::clone(&ops), tasks.clone()));
            Some(address)
        }
    };
    let client = connect(config.kubeconfig.as_deref()).await.map_err(Absent::from)?;
    let configurations = Configurations::follow(&client, &config.name, tasks);
    let _ = ops.configurations.set(Arc::clone(&configurations));
    let leader = Leader::new(client.clone(), &config.namespace, &config.name, config.replica);
    let leader = Arc::new(leader);
    let _ = ops.leader.set(Arc::clone(&leader));
    tasks.spawn(Arc::clone(&leader).run(tasks.stopping()));
    let profiles = config.report_profiles.then(|| Profiles::new(client.clone()));
    let watchdog = Watchdog::new(
        client.clone(),
        &config.namespace,
        Arc::clone(&leader),
        config.watch_every,
        profiles.clone(),
    );
    let evictions = evictions(config.evict_every, config.kubeconfig.as_deref(), &ops).await?;
    tasks.spawn(watchdog.evicting(evictions).run(count, tasks.stopping()));
    match config.certificates {
        Certificates::Files(files) => {
            served.swap(files.read()?);
            tasks.spawn(files.follow(Arc::clone(&served), tasks.stopping()));
        }
        Certificates::SelfManaged(wanted) => {
            let shared = (Arc::clone(&configurations), Arc::clone(&served));
            let leader = Arc::clone(&leader);
            Keeper::start(&client, &config.namespace, wanted, leader, shared.0, shared.1, tasks);
        }
    }
    let told = config.install.told().clone();
    let install = match config.install {
        InstallFrom::Given(install) => watch::channel(Some(Arc::new(install))).1,
        InstallFrom::Published(install) => follow_authority(&client, &config.namespace, install, tasks),
    };
    let cluster = Cluster::follow(client, tasks).await?;
    let _ = ops.cluster.set(Arc::clone(&cluster));
    if let Some(profiles) = profiles {
        let (known, home) = ((Arc::clone(&cluster), told), config.namespace.clone());
        tasks.spawn(profiles.follow(known, home, leader, tasks.stopping()));
    }
    let webhook = Webhook::new(install, config.namespace, cluster);
    tasks.spawn(serve(
        listener,
        tls,
        Arc::new(Server::new(webhook, metrics)),
        tasks.clone(),
    ));
    let own = SocketAddr::new(own(config.own_address, address), address.port());
    tasks.spawn(probe::keep(own, configurations, served, ready, tasks.stopping()));
    Ok(Running {
        address,
        health,
        tasks: tasks.clone(),
    })
}

/// Who evicts, where somebody does.
async fn evictions(
    every: Option<Duration>,
    kubeconfig: Option<&Path>,
    ops: &Ops,
) -> Result<Option<Evictions>, StartError> {
    let Some(every) = every else {
        return Ok(None);
    };
    let client = connect_for_one_try(kubeconfig).await.map_err(Absent::from)?;
    let (ready, metrics) = (ops.ready.clone(), Arc::clone(&ops.metrics));
    Ok(Some(Evictions::new(client, every, ready, metrics)))
}

async fn bind(wanted: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Listen(wanted, error);
    let listener = TcpListener::bind(wanted).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn own(given: Option<IpAddr>, listens: SocketAddr) -> IpAddr {
    let any = listens.ip().is_unspecified();
    given.unwrap_or(if any { Ipv4Addr::LOCALHOST.into() } else { listens.ip() })
}
