//! The composition root: the one place where a sidecar is put together, for `main`, `sidegate up` and tests alike.
//!
//! Listeners named by the environment are bound before anything else; a port that is taken fails the start. Shutting
//! down is the reverse: no new connections, sessions end with words, records are sealed, leases handed back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sidegate_policies::engine::Subject;
use sidegate_policies::reason::Reason;
use sidegate_policies::wire::{SidecarStatus, TargetStatus, NOT_UNDERSTOOD};
use tokio::sync::watch;
use tokio::time::{interval, timeout, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::accept::{HeldPort, ListenError, Listeners};
use crate::authority::Authority;
use crate::broker::Broker;
use crate::bundle_source::{self, Attested, Enforcer, Keeper, Seals};
use crate::config::{Announced, SidecarConfig};
use crate::credentials::Credentials;
use crate::dial::names::Names;
use crate::dial::DialContext;
use crate::fence::canary;
use crate::identity::{Identity, IdentityError};
use crate::memory;
use crate::protocols::RoomContext;
use crate::record::{DirectoryVolume, Log, LogIdentity, LogOptions, SystemClock, SystemRandom};
use crate::scrape::{self, Scraped};
use crate::staleness;
use crate::target::TargetState;
use crate::task::{Lanes, Tasks};
use crate::tls::agent::AgentTls;
use crate::tls::{client, TlsError};

/// How often status is worked out.
const STATUS_EVERY: Duration = Duration::from_millis(250);
/// Sessions have this long to end at shutdown.
const DRAIN: Duration = Duration::from_secs(5);
/// Records and leases have this long after that.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why a sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The broker's authority, or our own towards the agent.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The process key.
    #[error("identity: {0}")]
    Identity(#[from] IdentityError),
    /// A listener named by the environment.
    #[error("target {target}: {error}")]
    Listen {
        /// Its target.
        target: String,
        /// Why.
        error: ListenError,
    },
    /// The journal volume.
    #[error("journal {path}: {error}")]
    Journal {
        /// Where.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The threads of sessions.
    #[error("threads for sessions: {0}")]
    Threads(std::io::Error),
}

/// A sidecar.
pub struct Sidecar;

/// A sidecar that runs.
pub struct Running {
    authority: Arc<Authority>,
    listeners: Arc<Listeners>,
    broker: Broker,
    tasks: Tasks,
    status: watch::Receiver<SidecarStatus>,
    /// Where metrics are served.
    pub scrape_addrs: Vec<std::net::SocketAddr>,
    /// Ends sources and leases.
    stop: CancellationToken,
    /// Ends the log, after the sessions.
    stop_log: CancellationToken,
    /// The log has ended.
    log_done: CancellationToken,
}

impl Sidecar {
    /// Starts a sidecar. It serves once the broker has said who it is and what is allowed; until then it refuses.
    pub async fn start(config: SidecarConfig) -> Result<Running, StartError> {
        // Before anything that takes time: the first random number alone costs tens of milliseconds.
        let held = hold(&config)?;
        let scrapes = scrape::bind(&config.metrics).await;
        let [stop, stop_log, log_done] = [(); 3].map(|()| CancellationToken::new());
        let tasks = Tasks::on(Lanes::start(config.lanes).map_err(StartError::Threads)?);
        let identity = Identity::new(&config.token_file)?;
        let tls = client::pinned(&config.broker_ca_pem)?;
        let broker = Broker::new(config.broker.clone(), tls, names(&config), identity, tasks.apart());
        let authority = Authority::new(Arc::new(broker.clone()), tasks.clone(), config.separation);
        let authority = authority
            .limited_to(memory::limit(config.memory_limit))
            .meeting_silence(config.staleness);
        let authority = Arc::new(authority);
        let context = context(&config, &broker, &authority, &stop)?;
        let scraped = Arc::new(Scraped {
            authority: authority.clone(),
            credentials: context.credentials.clone(),
            broker: broker.clone(),
        });
        authority.leases_known_to(context.credentials.clone());
        let named = config
            .ports
            .iter()
            .filter_map(|port| Some((port.target.clone(), port.named?)));
        let listeners = Listeners::new(authority.clone(), context, config.agent_uid).named(named.collect());
        let listeners = Arc::new(listeners);
        announce(held, &listeners)?;
        let volume = volume(&config)?;

        let (publish, status) = watch::channel(SidecarStatus::default());
        let enforcer = Arc::new(Enforcer {
            authority: authority.clone(),
            listeners: listeners.clone(),
            seals: Seals::pinned(&config.broker_ca_pem)?,
        });
        bundle_source::restore(enforcer.clone(), config.run_dir.clone(), config.pod.uid.clone()).await;
        let keeper = Arc::new(Keeper::new(config.run_dir.clone()));
        tasks.spawn("keeper", keeper.clone().run(tasks.clone(), stop.clone()));
        let source = bundle_source::Source {
            broker: broker.clone(),
            enforcer,
            status: status.clone(),
            attested: begin_log(volume, &authority, &broker, (&stop_log, &log_done)),
            keeper,
        };
        let scrape_addrs = scrapes
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect();
        for listener in scrapes {
            let serving = scrape::serve(listener, scraped.clone(), tasks.clone(), stop.clone());
            tasks.spawn("scrapes", serving);
        }
        tasks.spawn("token", broker.clone().keep_token(stop.clone()));
        tasks.spawn("bundle stream", bundle_source::run(source, stop.clone()));
        let told = tell(authority.clone(), listeners.clone(), publish, stop.clone());
        tasks.spawn("status", told);
        tasks.spawn("memory", memory::watch(authority.clone(), stop.clone()));
        tasks.spawn("staleness", staleness::watch(authority.clone(), stop.clone()));
        if config.fenced {
            tasks.spawn("canary", canary::watch(authority.clone(), stop.clone()));
        }
        Ok(Running {
            authority,
            listeners,
            broker,
            tasks,
            status,
            scrape_addrs,
            stop,
            stop_log,
            log_done,
        })
    }
}

/// The resolver of this configuration.
fn names(config: &SidecarConfig) -> Names {
    Names::new(&config.name_servers).in_cluster(config.cluster_domain.as_deref())
}

fn context(
    config: &SidecarConfig,
    broker: &Broker,
    authority: &Authority,
    stop: &CancellationToken,
) -> Result<RoomContext, StartError> {
    let tasks = authority.tasks.clone();
    let credentials = Credentials::new(
        Arc::new(broker.clone()),
        authority.sessions.clone(),
        tasks.clone(),
        stop.clone(),
    );
    Ok(RoomContext {
        credentials: Arc::new(credentials),
        dial: Arc::new(DialContext::new(names(config), config.allow_loopback_literals)),
        tls: Arc::new(AgentTls::new()?),
        tasks,
        metrics: authority.metrics.clone(),
        shared: Arc::default(),
    })
}

/// The ports that the environment names, with what will listen there.
fn hold(config: &SidecarConfig) -> Result<Vec<(TargetState, HeldPort)>, StartError> {
    let hold = |port: &Announced| {
        let held = HeldPort::bind(port.port, port.named).map_err(|error| StartError::Listen {
            target: port.target.to_string(),
            error,
        })?;
        Ok((
            TargetState::announced(port.target.clone(), port.protocol, port.port),
            held,
        ))
    };
    config.ports.iter().map(hold).collect()
}

fn announce(held: Vec<(TargetState, HeldPort)>, listeners: &Arc<Listeners>) -> Result<(), StartError> {
    for (target, held) in held {
        let name = target.id.to_string();
        listeners.listen_on(Arc::new(target), Some(held)).map_err(|error| {
            listeners.close();
            StartError::Listen { target: name, error }
        })?;
    }
    Ok(())
}

fn volume(config: &SidecarConfig) -> Result<Arc<DirectoryVolume>, StartError> {
    let opened = DirectoryVolume::open(&config.journal_dir);
    let volume = opened.map_err(|error| StartError::Journal {
        path: config.journal_dir.display().to_string(),
        error,
    })?;
    Ok(Arc::new(volume))
}

/// Starts the log the first time the broker says who we are; the record names the attested subject, never our own
/// word. Who we are cannot change within one start.
fn begin_log(
    volume: Arc<DirectoryVolume>,
    authority: &Arc<Authority>,
    broker: &Broker,
    (stop, done): (&CancellationToken, &CancellationToken),
) -> Attested {
    let (authority, broker) = (authority.clone(), broker.clone());
    let (stop, done) = (stop.clone(), done.clone());
    let first: Mutex<Option<(Subject, u64)>> = Mutex::default();
    Arc::new(move |subject, instance| {
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        match &*first {
            Some((before, number)) if before.pod_uid == subject.pod_uid && *number == instance => return Ok(()),
            Some(_) => return Err("the broker calls this process somebody else".to_owned()),
            None => {}
        }
        let options = LogOptions {
            volume: volume.clone(),
            identity: log_identity(subject, instance, &authority),
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom),
        };
        let log = Log::start(options).map_err(|error| error.to_string())?;
        let work = log.clone().run(Arc::new(broker.clone()), stop.clone());
        let done = done.clone().drop_guard();
        authority.tasks.spawn("record", async move {
            work.await;
            drop(done);
        });
        authority.records_to(log);
        *first = Some((subject.clone(), instance));
        Ok(())
    })
}

fn log_identity(subject: &Subject, instance: u64, authority: &Authority) -> LogIdentity {
    LogIdentity {
        cluster: authority
            .in_force()
            .map_or_else(|| "local".to_owned(), |bundle| bundle.cluster.clone()),
        namespace: subject.namespace.clone(),
        service_account: subject.service_account.clone(),
        pod: subject.pod.clone(),
        pod_uid: subject.pod_uid.clone(),
        instance,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        separation: authority.separation.as_str().to_owned(),
    }
}

/// Works out the status and publishes it when it changed.
async fn tell(
    authority: Arc<Authority>,
    listeners: Arc<Listeners>,
    publish: watch::Sender<SidecarStatus>,
    stop: CancellationToken,
) {
    let mut ticks = interval(STATUS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = status(&authority, &listeners);
        publish.send_if_modified(|before| {
            let changed = *before != now;
            if changed {
                *before = now;
            }
            changed
        });
    }
}

/// Why nobody is served on a target, if nobody is.
fn problem(target: &TargetState, listeners: &Listeners) -> Option<String> {
    let listens = listeners.problem(&target.id).map(|problem| problem.to_string());
    listens.or_else(|| target.not_understood.as_deref().map(not_understood))
}

fn not_understood(why: &str) -> String {
    format!("{NOT_UNDERSTOOD}: {why}")
}

/// What this sidecar tells the broker about itself.
pub(crate) fn status(authority: &Authority, listeners: &Listeners) -> SidecarStatus {
    let bundle = authority.in_force();
    let targets = bundle.iter().flat_map(|bundle| bundle.targets.values());
    let targets = targets.map(|target| TargetStatus {
        target: target.id.to_string(),
        protocol: target.spec.protocol.as_str().to_owned(),
        listen: listeners
            .addresses(&target.id)
            .iter()
            .map(ToString::to_string)
            .collect(),
        address: target.address(),
        problem: problem(target, listeners),
        not_understood: target.not_understood.clone(),
        insecure: target.insecure(),
        sessions: authority
            .sessions
            .matching(|session| session.target.id == target.id)
            .len() as u64,
    });
    let unread = bundle.iter().flat_map(|bundle| &bundle.unread);
    let unread = unread.map(|(id, why)| TargetStatus {
        target: id.to_string(),
        problem: Some(not_understood(why)),
        not_understood: Some(why.clone()),
        ..TargetStatus::default()
    });
    let metrics = &authority.metrics;
    SidecarStatus {
        bundle: bundle.as_ref().map(|bundle| bundle.version.to_string()),
        fresh: authority.fresh(),
        targets: targets.chain(unread).collect(),
        sessions: metrics.sessions.get(),
        allowed: metrics.allowed.get(),
        denied: metrics.denied.get(),
        held: metrics.held.get(),
        panics: authority.tasks.panics(),
        egress: authority.canary.told(),
    }
}

impl Running {
    /// Status as it changes.
    pub fn status(&self) -> watch::Receiver<SidecarStatus> {
        self.status.clone()
    }

    /// What is in force.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Where targets listen.
    pub fn listeners(&self) -> &Arc<Listeners> {
        &self.listeners
    }

    /// Waits until a bundle of the broker's is in force and status shows it; false if that takes longer than `limit`.
    pub async fn ready(&self, limit: Duration) -> bool {
        let mut status = self.status();
        let ready = status.wait_for(|status| status.bundle.is_some() && status.fresh);
        matches!(timeout(limit, ready).await, Ok(Ok(_))) && self.authority.fresh()
    }

    /// Waits until any bundle is in force: the broker's, or one that an earlier start of this sidecar left.
    pub async fn bundled(&self) {
        let _ = self.status().wait_for(|status| status.bundle.is_some()).await;
    }

    /// Ends everything: no new connections, sessions cut with words, records sealed and sent, leases handed back.
    /// Returns how many tasks had to be left behind; zero is the rule.
    pub async fn shutdown(self) -> usize {
        self.authority.drain();
        self.listeners.close();
        let open = self.authority.sessions.matching(|_| true);
        for session in &open {
            session.end(Reason::Draining);
        }
        let ended = futures_util::future::join_all(open.iter().map(|session| session.ended()));
        let _ = timeout(DRAIN, ended).await;
        self.stop_log.cancel();
        // The record's last frames go up while the token is still kept fresh.
        if self.authority.log().is_some() {
            let _ = timeout(FAREWELL, self.log_done.cancelled()).await;
        }
        self.stop.cancel();
        let _ = timeout(FAREWELL, self.tasks.wait()).await;
        let left = self.broker.close().await;
        self.tasks.running().saturating_add(left)
    }
}
