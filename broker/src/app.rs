//! The composition root: everything a broker is made of, put together once, for the binary, `sidegate up` and the
//! tests alike.
//!
//! Refuses to start with any problem in the configuration, and lists all of them. The invariant: when `start`
//! returns, both faces and the control socket accept connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use sidegate_policies::api::Lockdown;
use sidegate_policies::engine::Subject;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::approvals::store::{RequestFolder, Store};
use crate::approvals::Approvals;
use crate::attest::{Attestor, PodView};
use crate::audit::Audit;
use crate::authority::{Authority, Home};
use crate::back;
use crate::config::{BrokerConfig, Place, StartError};
use crate::control::server::{bind, run as run_control, Control};
use crate::control::switch;
use crate::credentials::publish::Published;
use crate::credentials::{Exchanges, Outbound};
use crate::dpop::Dpop;
use crate::front::budget::Budget;
use crate::front::{self, Front, Leases, Streams};
use crate::ground::{self, host, Below, Follow, Ground, Read, Shared};
use crate::in_force::{accepted, InForce};
use crate::issuer::{random, Issuer};
use crate::keeper::Keeper;
use crate::kubernetes::ClusterPeople;
use crate::local_cluster::LocalCluster;
use crate::lockdown::Lockdowns;
use crate::metrics::Metrics;
use crate::ops;
use crate::people;
use crate::records::{Leads, Records, RecordsError, RecordsOptions};
use crate::report::Reporter;
use crate::revoked::{Replicas, Revoked};
use crate::rings::RingName;
use crate::rotation;
use crate::secrets::Secrets;
use crate::server::serve_tls;
use crate::state::{reclaim, StateDir};
use crate::task::{blocking, Tasks};

/// A broker.
#[derive(Debug, Clone, Copy)]
pub struct Broker;

/// A broker that runs.
pub struct Running {
    /// Address of the front face.
    pub front_addr: SocketAddr,
    /// Address of health and metrics, if they are served.
    pub health_addr: Option<SocketAddr>,
    /// Address of the people's face, if it is served.
    pub people_addr: Option<SocketAddr>,
    /// Its URL, as proofs must name it.
    pub front_url: String,
    /// The issuer's URL: address of the back face.
    pub issuer_url: String,
    /// The authority that both faces' certificates chain to.
    pub ca_pem: String,
    /// The same as a file.
    pub ca_file: PathBuf,
    /// The control socket.
    pub control_socket: PathBuf,
    reporter: Arc<Reporter>,
    quit: CancellationToken,
    tasks: Tasks,
    late: Tasks,
}

const PATIENCE: Duration = Duration::from_secs(10);

impl Broker {
    /// Starts everything, or nothing.
    pub async fn start(config: BrokerConfig) -> Result<Running, StartError> {
        let read = Read::config(&config)?;
        let base = Base::open(&config).await?;
        let ground = match read {
            Read::Machine(read) => ground::machine(read, &config, &base.state)?,
            Read::Cluster(options) => {
                let below = base.below();
                match ground::cluster(&options, below, Arc::clone(&config.clock)).await {
                    Ok(ground) => ground,
                    Err(error) => {
                        // Whatever it started already must not outlive a start that failed.
                        base.tasks.shutdown(PATIENCE).await;
                        return Err(error);
                    }
                }
            }
        };
        Broker::rise(config, base, ground)
    }

    /// Starts on a ground that somebody else made from the state and the issuer's URL: what stands in for a cluster
    /// of many pods in benches. The configuration's place is not looked at.
    pub async fn start_on(
        config: BrokerConfig,
        ground: impl FnOnce(&Arc<StateDir>, &str) -> Result<Ground, StartError>,
    ) -> Result<Running, StartError> {
        let base = Base::open(&config).await?;
        let ground = ground(&base.state, &base.listeners.issuer_url)?;
        Broker::rise(config, base, ground)
    }

    fn rise(config: BrokerConfig, base: Base, ground: Ground) -> Result<Running, StartError> {
        let Base {
            state,
            listeners,
            names,
            tasks,
        } = base;
        let authority = Arc::new(authority(&state, names, &ground, &config)?);
        let issuer = Arc::new(issuer(&state, &listeners, &ground, &config)?);
        let records = open_records(&state, &issuer, &config, ground.follow.leads())?;
        let audit = Audit::start(&state, &records, &issuer, &config.clock, &ground.separation)?;
        // Of replicas the leader rotates, as soon as its housekeeping begins.
        if ground.shared.is_none() {
            rotation::keep(&issuer, &records, &audit, config.clock.now());
        }
        let digest_key = digest_key(&state, ground.shared.as_ref())?;
        let in_force = InForce::new(&state, &config, digest_key);
        let (in_force, index) = in_force.first(ground.objects, ground.withheld, ground.revisions)?;
        let lockdowns = Lockdowns::open(Arc::clone(&state), Arc::clone(&config.clock))?;
        let lockdowns = Arc::new(lockdowns.of_generation(config.store_generation));
        let exchanges = exchanges(
            &config,
            &issuer,
            &lockdowns,
            &audit,
            &tasks,
            (&ground.secrets, &ground.follow),
        );
        let (metrics, attestor) = timed(ground.attestor)?;
        let front = Arc::new(Front {
            issuer,
            authority: Arc::clone(&authority),
            attestor,
            dpop: dpop(&listeners, &config)?,
            index,
            lockdowns,
            approvals: Arc::new(open_approvals(&state, ground.shared.as_ref(), &config, &audit)?),
            audit,
            secrets: ground.secrets,
            exchanges,
            leases: Leases::default(),
            revoked: revoked(&state, ground.shared.as_ref())?,
            metrics,
            budget: Budget::new(config.limits, Arc::clone(&config.clock)),
            streams: Streams::default(),
            stream_age: config.stream_age,
            sealer: authority.sealer(),
            catch_up: Notify::new(),
            clock: Arc::clone(&config.clock),
            tasks: tasks.clone(),
        });
        let at = ground.shared.as_ref().map(|shared| shared.at.lockdowns);
        begin(&front, ground.lockdowns, at)?;
        let reporter = Arc::new(Reporter {
            front: Arc::clone(&front),
            subject: ground.local.as_deref().map(subject_of),
            cluster: ground.local,
            separation: ground.separation,
            records: Arc::clone(&records),
            front_url: listeners.front_url.clone(),
            findings: Mutex::new(ground.findings),
        });
        let keeper = Keeper {
            reporter: Arc::clone(&reporter),
            watched: ground::follow(ground.follow, in_force, &reporter),
            token_written: config.clock.now(),
        };
        tasks.spawn("keeper", keeper.run());
        work(&front, listeners.front_url.clone());
        let late = Tasks::new();
        late.spawn("records", Arc::clone(&records).run(late.stopping()));
        let running = running(&listeners, &state, &authority, &reporter, (tasks, late));
        let registry = ground.shared.map(|shared| shared.people);
        serve(listeners, &authority, (reporter, registry), running.quit.clone());
        Ok(running)
    }
}

fn running(
    listeners: &Listeners,
    state: &StateDir,
    authority: &Authority,
    reporter: &Arc<Reporter>,
    (tasks, late): (Tasks, Tasks),
) -> Running {
    Running {
        front_addr: listeners.front_addr,
        health_addr: listeners.health.as_ref().and_then(|health| health.local_addr().ok()),
        people_addr: listeners.people.as_ref().and_then(|people| people.local_addr().ok()),
        front_url: listeners.front_url.clone(),
        issuer_url: listeners.issuer_url.clone(),
        ca_pem: authority.ca_pem().to_owned(),
        ca_file: state.path("keys/ca.pem"),
        control_socket: state.path("control.sock"),
        reporter: Arc::clone(reporter),
        quit: CancellationToken::new(),
        tasks,
        late,
    }
}

/// The first Lockdowns, and on record what is in force.
fn begin(front: &Front, lockdowns: Vec<Lockdown>, at: Option<u64>) -> Result<(), StartError> {
    front.lockdowns.configure_as_of(lockdowns, at)?;
    switch::say_ended(&front.audit, &front.lockdowns);
    accepted(&front.audit, front.index().revision()).map_err(|error| StartError::Records(error.to_string()))
}

/// Counters, which the attestor's steps are told to.
fn timed(mut attestor: Attestor) -> Result<(Metrics, Attestor), StartError> {
    let metrics = Metrics::new().map_err(|error| StartError::crypto("metrics", error))?;
    attestor.timed = metrics.steps();
    Ok((metrics, attestor))
}

/// What goes on beside calls.
fn work(front: &Arc<Front>, front_url: String) {
    let tasks = &front.tasks;
    tasks.spawn("publish", back::publish(Arc::clone(front), front_url));
    tasks.spawn("leases", front::lease_table::keep(Arc::clone(front)));
    tasks.spawn("approvals", front::approvals::keep(Arc::clone(front)));
    tasks.spawn("audit", Arc::clone(&front.audit).run(tasks.stopping()));
}

/// What every broker has below its ground.
struct Base {
    /// Its private folder.
    state: Arc<StateDir>,
    listeners: Listeners,
    /// What the certificate of both faces is for.
    names: Vec<String>,
    /// All its tasks.
    tasks: Tasks,
}

impl Base {
    async fn open(config: &BrokerConfig) -> Result<Base, StartError> {
        if let Place::Cluster(_) = config.place {
            let taken = reclaim(&config.state_dir)?;
            if taken > 0 {
                tracing::warn!(
                    taken,
                    "the group of the volume was let into the state directory, and is no more"
                );
            }
        }
        let state = Arc::new(StateDir::open(&config.state_dir)?);
        let listeners = Listeners::bind(config, &state).await?;
        let names = names(config, &listeners);
        Ok(Base {
            state,
            listeners,
            names,
            tasks: Tasks::new(),
        })
    }

    fn below(&self) -> Below<'_> {
        Below {
            state: &self.state,
            issuer_url: &self.listeners.issuer_url,
            names: &self.names,
            tasks: &self.tasks,
        }
    }
}

impl Running {
    /// Status, as the control face gives it.
    pub fn status(&self) -> crate::control::Status {
        self.reporter.status()
    }

    /// The Targets the agent gets, for its environment.
    pub fn targets(&self) -> Vec<sidegate_policies::api::Target> {
        self.reporter.served()
    }

    /// Everything the faces serve from, for the process that shares this one.
    pub fn front(&self) -> &Arc<Front> {
        &self.reporter.front
    }

    /// The record store.
    pub fn records(&self) -> Arc<Records> {
        Arc::clone(&self.reporter.records)
    }

    /// The one agent of local mode.
    pub fn subject(&self) -> Option<&Subject> {
        self.reporter.subject.as_ref()
    }

    /// The local cluster double, which holds the agent's pod and the sidecar's token; nothing in a real cluster.
    pub fn local(&self) -> Option<&Arc<LocalCluster>> {
        self.reporter.cluster.as_ref()
    }

    /// Returns when a person asked over the control socket to stop.
    pub async fn asked_to_stop(&self) {
        self.quit.cancelled().await;
    }

    /// Tells streams to drain, ends every task, and waits for them. The record store comes last: its checkpoint
    /// covers what sidecars uploaded until their streams closed, and the audit of all that.
    pub async fn shutdown(self) {
        self.tasks.shutdown(PATIENCE).await;
        let audit = Arc::clone(&self.reporter.front.audit);
        self.reporter.front.budget.say_last(&audit);
        if blocking(move || audit.finish()).await.is_none() {
            tracing::error!("the audit log could not be ended");
        }
        self.late.shutdown(PATIENCE).await;
        let _ = std::fs::remove_file(&self.control_socket);
    }
}

/// Bound sockets and the URLs that follow from them.
struct Listeners {
    front: TcpListener,
    back: TcpListener,
    control: UnixListener,
    health: Option<TcpListener>,
    people: Option<TcpListener>,
    front_addr: SocketAddr,
    front_url: String,
    issuer_url: String,
}

impl Listeners {
    async fn bind(config: &BrokerConfig, state: &StateDir) -> Result<Self, StartError> {
        let front = listen(config.listen).await?;
        let back = listen_again(config.issuer_listen, state).await?;
        let health = match config.health_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let people = match config.people_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let front_addr = local(&front, config.listen)?;
        let back_addr = local(&back, config.issuer_listen)?;
        state.write("issuer.port", back_addr.port().to_string().as_bytes())?;
        Ok(Listeners {
            control: bind(&state.path("control.sock"))?,
            health,
            people,
            front,
            back,
            front_addr,
            front_url: config.front_url.clone().unwrap_or_else(|| url(front_addr)),
            issuer_url: config.issuer_url.clone().unwrap_or_else(|| url(back_addr)),
        })
    }
}

/// What the certificate of both faces is for: where they listen, and what they are called by.
fn names(config: &BrokerConfig, listeners: &Listeners) -> Vec<String> {
    let mut names = vec![config.listen.ip().to_string(), config.issuer_listen.ip().to_string()];
    let urls = [&listeners.front_url, &listeners.issuer_url].into_iter();
    names.extend(urls.filter_map(|url| host(url).map(str::to_owned)));
    names
}

/// An unspecified address is reached, and certified, as loopback.
fn url(address: SocketAddr) -> String {
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    format!("https://{}", SocketAddr::new(host, address.port()))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen {
        address: address.to_string(),
        source,
    })
}

/// The issuer's URL should not change over restarts: with port 0, last time's port is tried first.
async fn listen_again(address: SocketAddr, state: &StateDir) -> Result<TcpListener, StartError> {
    if address.port() == 0 {
        let last = state.read("issuer.port")?.unwrap_or_default();
        let port = String::from_utf8_lossy(&last).trim().parse::<u16>().unwrap_or(0);
        if let Ok(listener) = TcpListener::bind(SocketAddr::new(address.ip(), port)).await {
            return Ok(listener);
        }
    }
    listen(address).await
}

fn local(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Listen {
        address: asked.to_string(),
        source,
    })
}

fn serve(
    listeners: Listeners,
    authority: &Arc<Authority>,
    (reporter, registry): (Arc<Reporter>, Option<Arc<ClusterPeople>>),
    quit: CancellationToken,
) {
    let front = Arc::clone(&reporter.front);
    let tasks = front.tasks.clone();
    let routes = front::router(Arc::clone(&front), Arc::clone(&reporter.records).router());
    tasks.spawn(
        "front",
        serve_tls(listeners.front, authority.tls(), routes, tasks.clone()),
    );
    let routes = back::router(front, &listeners.front_url);
    tasks.spawn(
        "back",
        serve_tls(listeners.back, authority.tls(), routes, tasks.clone()),
    );
    if let (Some(listener), Some(registry)) = (listeners.people, registry) {
        let face = people::listen::run(listener, Arc::clone(authority), Arc::clone(&reporter), registry);
        tasks.spawn("people", face);
    }
    // Last: whoever asks whether it is ready is told the truth.
    if let Some(health) = listeners.health {
        tasks.spawn("health", ops::run(health, Arc::clone(&reporter.front), tasks.clone()));
    }
    let control = Arc::new(Control { reporter, quit });
    tasks.spawn("control", run_control(listeners.control, control));
}

/// Requests: objects that the replicas of a cluster share, or files of this machine.
fn open_approvals(
    state: &StateDir,
    shared: Option<&Shared>,
    config: &BrokerConfig,
    audit: &Arc<Audit>,
) -> Result<Approvals, StartError> {
    let store: Arc<dyn Store> = match shared {
        Some(shared) => Arc::clone(&shared.requests) as Arc<dyn Store>,
        None => Arc::new(RequestFolder::open(state)?),
    };
    Ok(Approvals::over(store, Arc::clone(&config.clock), Arc::clone(audit)))
}

/// The record store, which keeps the keys that certify record keys for ever.
fn open_records(
    state: &StateDir,
    issuer: &Issuer,
    config: &BrokerConfig,
    leads: Option<Leads>,
) -> Result<Arc<Records>, StartError> {
    let options = match (&config.shared_records, leads) {
        (Some(shared), Some(leads)) => RecordsOptions {
            replica: shared.replica.clone(),
            leads,
            ..RecordsOptions::new(shared.dir.clone(), &config.cluster)
        },
        _ => RecordsOptions::new(state.dir("records")?, &config.cluster),
    };
    let fail = |error: RecordsError| StartError::Records(error.to_string());
    let records = Records::open(options).map_err(fail)?;
    records.set_ring(&issuer.record_ring()).map_err(fail)?;
    Ok(records)
}

fn exchanges(
    config: &BrokerConfig,
    issuer: &Arc<Issuer>,
    lockdowns: &Arc<Lockdowns>,
    audit: &Arc<Audit>,
    tasks: &Tasks,
    (secrets, follow): (&Secrets, &Follow),
) -> Arc<Exchanges> {
    let secrets = (secrets.clone(), config.place.home().to_owned());
    let published = Arc::new(Published::new(follow.key_maps()));
    Arc::new(Exchanges::new(
        Arc::clone(issuer),
        Arc::clone(lockdowns),
        Arc::clone(audit),
        Arc::clone(&config.clock),
        Outbound::new(config.loopback_providers, tasks.clone()),
        secrets,
        published,
    ))
}

/// The issuer, over rings that replicas share or that this machine has.
fn issuer(
    state: &StateDir,
    listeners: &Listeners,
    ground: &Ground,
    config: &BrokerConfig,
) -> Result<Issuer, StartError> {
    let (url, cluster) = (listeners.issuer_url.clone(), config.cluster.clone());
    match &ground.shared {
        Some(shared) => Ok(Issuer::over(
            url,
            cluster,
            RingName::ALL.map(|ring| shared.keys.ring(ring)),
        )),
        None => Issuer::open(state, url, cluster, config.clock.now()),
    }
}

fn dpop(listeners: &Listeners, config: &BrokerConfig) -> Result<Dpop, StartError> {
    let dpop = Dpop::new(listeners.front_url.clone(), Arc::clone(&config.clock));
    dpop.map_err(|error| StartError::crypto("the nonce key", error))
}

fn revoked(state: &Arc<StateDir>, shared: Option<&Shared>) -> Result<Revoked, StartError> {
    match shared {
        Some(shared) => Ok(Revoked::over(Arc::clone(&shared.revoked) as Arc<dyn Replicas>)),
        None => Revoked::open(Arc::clone(state)),
    }
}

/// The authority: what the replicas of a cluster share, or this machine's own.
fn authority(
    state: &StateDir,
    names: Vec<String>,
    ground: &Ground,
    config: &BrokerConfig,
) -> Result<Authority, StartError> {
    let Some(shared) = &ground.shared else {
        return Authority::open(state, &names, &*config.clock);
    };
    let home = Arc::clone(&shared.tls) as Arc<dyn Home>;
    let authority = Authority::over(names, shared.tls.served(), Some(home))?;
    // For whoever is told on standard output where the authority is.
    state.dir("keys")?;
    state.write("keys/ca.pem", authority.ca_pem().as_bytes())?;
    Ok(authority)
}

/// The key of approval digests, made once.
fn digest_key(state: &StateDir, shared: Option<&Shared>) -> Result<String, StartError> {
    if let Some(shared) = shared {
        return Ok(shared.keys.digest_key());
    }
    let key = state.read_or_create("keys/digest", || {
        let key = random::<32>().map_err(|error| StartError::crypto("the digest key", error))?;
        Ok::<_, StartError>(key.to_vec())
    })?;
    Ok(URL_SAFE_NO_PAD.encode(key))
}

fn subject_of(cluster: &LocalCluster) -> Subject {
    let PodView {
        namespace,
        name,
        uid,
        service_account,
        labels,
        ..
    } = cluster.view();
    Subject {
        namespace,
        service_account,
        pod: name,
        pod_uid: uid,
        labels,
    }
}
