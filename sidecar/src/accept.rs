//! Listeners: one port per target on every loopback family, budgets, and the owner of each connection.
//!
//! Where the pod's hosts file leads a target's own names to an address of its own, that address is held too, on the port
//! the environment names: as the hosts file, it stays what it was when the pod was made. A port that cannot be held on all
//! families is not held at all, and another process's listener is never shared.
//! Accepting never waits for a session. Refuses, before a byte, connections of other users where one is named.
//! Invariant: the address a connection arrived on names its target; there is no pass-through.

mod owner;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use sidegate_policies::engine::{Subject, TargetId};
use sidegate_policies::pod::aliases;
use sidegate_policies::reason::Reason;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::gate::Gate;
use crate::protocols::{self, Conn, RoomContext};
use crate::session::Session;
use crate::target::TargetState;

/// Connections of this sidecar.
const IN_ALL: usize = 4_096;
/// Connections of one target.
const PER_TARGET: usize = 1_024;
/// Connections that have not logged in yet.
const BEFORE_LOGIN: usize = 256;
const BACKLOG: i32 = 1_024;
/// A room has this long to say goodbye once its session is cut.
const GOODBYE: Duration = Duration::from_secs(5);
/// Pause after the system refused to accept (no descriptors left).
const PAUSE: Duration = Duration::from_millis(50);

/// Why a target does not listen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ListenError {
    /// Somebody has the port.
    #[error("port {port} on {address} is taken by another program; {}", remedy(*address))]
    Taken {
        /// The port.
        port: u16,
        /// The address.
        address: IpAddr,
    },
    /// The system refuses.
    #[error("port {port} on {address} cannot be listened on: {error}")]
    System {
        /// The port.
        port: u16,
        /// The address.
        address: IpAddr,
        /// What the system said.
        error: String,
    },
    /// The Target names no port.
    #[error("listen.port is not a port")]
    NoPort,
}

fn remedy(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(address) if address.octets().starts_with(&aliases::OURS) => {
            "free it, or let the Target answer for no hostnames"
        }
        _ => "free it or change listen.port",
    }
}

/// One target's open listeners.
struct Listening {
    port: u16,
    target: Arc<ArcSwap<TargetState>>,
    per_target: Arc<Semaphore>,
    /// On its port.
    local: Doors,
    /// On the address of its names: stays where it is when the port moves.
    named: Doors,
}

/// Addresses that are listened on, until they are stopped together.
#[derive(Default)]
struct Doors {
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
}

/// Addresses held: the kernel takes connections, nobody has looked at them yet.
type Held = Vec<(SocketAddr, TcpListener)>;

/// A port held on every loopback family, and the address of its target's names, if it has one.
pub struct HeldPort {
    local: Held,
    named: Held,
}

impl HeldPort {
    /// Holds a port. This needs neither keys nor a broker, so that clients which start beside us find it at once.
    pub fn bind(port: u16, named: Option<SocketAddrV4>) -> Result<HeldPort, ListenError> {
        let local = bind(port)?;
        let named = named.map_or(Ok(Vec::new()), |at| bind_all(at.port(), &[IpAddr::V4(*at.ip())]))?;
        Ok(HeldPort { local, named })
    }
}

/// Every listener.
pub struct Listeners {
    authority: Arc<Authority>,
    context: RoomContext,
    agent_uid: Option<u32>,
    /// Where names lead, as the environment says.
    named: BTreeMap<TargetId, SocketAddrV4>,
    in_all: Arc<Semaphore>,
    before_login: Arc<Semaphore>,
    open: Mutex<BTreeMap<TargetId, Listening>>,
    problems: Mutex<HashMap<TargetId, ListenError>>,
}

/// What one accept loop needs.
struct Door {
    listeners: Arc<Listeners>,
    target: Arc<ArcSwap<TargetState>>,
    per_target: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Listeners {
    /// No listener yet.
    pub fn new(authority: Arc<Authority>, context: RoomContext, agent_uid: Option<u32>) -> Self {
        Listeners {
            authority,
            context,
            agent_uid,
            named: BTreeMap::new(),
            in_all: Arc::new(Semaphore::new(IN_ALL)),
            before_login: Arc::new(Semaphore::new(BEFORE_LOGIN)),
            open: Mutex::default(),
            problems: Mutex::default(),
        }
    }

    /// The same, which also answers for names at these addresses.
    #[must_use]
    pub fn named(mut self, named: BTreeMap<TargetId, SocketAddrV4>) -> Self {
        self.named = named;
        self
    }

    /// Listens for a target, or hands new connections of an open port to its newer form.
    pub fn listen(self: &Arc<Self>, target: Arc<TargetState>) -> Result<(), ListenError> {
        self.listen_on(target, None)
    }

    /// The same on a port that is held already.
    pub fn listen_on(self: &Arc<Self>, target: Arc<TargetState>, held: Option<HeldPort>) -> Result<(), ListenError> {
        let id = target.id.clone();
        let done = self.open_port(target, held);
        let mut problems = lock(&self.problems);
        match &done {
            Ok(()) => problems.remove(&id),
            Err(error) => problems.insert(id, error.clone()),
        };
        done
    }

    fn open_port(self: &Arc<Self>, target: Arc<TargetState>, held: Option<HeldPort>) -> Result<(), ListenError> {
        let port = target.listen_port().ok_or(ListenError::NoPort)?;
        let mut open = lock(&self.open);
        if let Some(listening) = open.get_mut(&target.id) {
            if listening.port == port {
                listening.target.store(target);
                return Ok(());
            }
            self.shut(&listening.local);
            return match bind(port) {
                Ok(local) => {
                    listening.port = port;
                    listening.target.store(target);
                    listening.local = self.doors(local, &listening.target, &listening.per_target);
                    Ok(())
                }
                // Held as a whole or not at all.
                Err(error) => {
                    self.shut(&listening.named);
                    open.remove(&target.id);
                    Err(error)
                }
            };
        }
        let HeldPort { local, named } = match held {
            Some(held) => held,
            None => HeldPort::bind(port, self.named.get(&target.id).copied())?,
        };
        let id = target.id.clone();
        let slot = Arc::new(ArcSwap::new(target));
        let per_target = Arc::new(Semaphore::new(PER_TARGET));
        let listening = Listening {
            port,
            local: self.doors(local, &slot, &per_target),
            named: self.doors(named, &slot, &per_target),
            target: slot,
            per_target,
        };
        open.insert(id, listening);
        Ok(())
    }

    /// Begins to accept on what is held.
    fn doors(self: &Arc<Self>, held: Held, target: &Arc<ArcSwap<TargetState>>, per_target: &Arc<Semaphore>) -> Doors {
        let mut doors = Doors::default();
        for (address, listener) in held {
            self.context.dial.own_listener(address);
            doors.addresses.push(address);
            let door = Door {
                listeners: self.clone(),
                target: target.clone(),
                per_target: per_target.clone(),
                stop: doors.stop.clone(),
            };
            self.context.tasks.spawn("listener", door.accept(listener));
        }
        doors
    }

    /// Listens for these targets and no others, and holds leases of no others. Ports of targets that are gone are closed first, so that another
    /// target may take them.
    pub fn reconcile(self: &Arc<Self>, targets: &BTreeMap<TargetId, Arc<TargetState>>) {
        {
            let mut open = lock(&self.open);
            let gone: Vec<TargetId> = open.keys().filter(|id| !targets.contains_key(*id)).cloned().collect();
            for id in gone {
                if let Some(listening) = open.remove(&id) {
                    self.shut_all(&listening);
                }
            }
        }
        self.context.credentials.keep(targets);
        lock(&self.problems).retain(|id, _| targets.contains_key(id));
        for (id, target) in targets {
            if let Err(error) = self.listen(target.clone()) {
                tracing::error!(target = %id, %error, "a target does not listen");
            }
        }
    }

    /// No new connections on any port.
    pub fn close(&self) {
        let mut open = lock(&self.open);
        for listening in open.values() {
            self.shut_all(listening);
        }
        open.clear();
    }

    /// Where a target listens.
    pub fn addresses(&self, target: &TargetId) -> Vec<SocketAddr> {
        lock(&self.open)
            .get(target)
            .map(|listening| [&*listening.local.addresses, &*listening.named.addresses].concat())
            .unwrap_or_default()
    }

    /// Why a target does not listen.
    pub fn problem(&self, target: &TargetId) -> Option<ListenError> {
        lock(&self.problems).get(target).cloned()
    }

    fn shut_all(&self, listening: &Listening) {
        self.shut(&listening.local);
        self.shut(&listening.named);
    }

    fn shut(&self, doors: &Doors) {
        doors.stop.cancel();
        for address in &doors.addresses {
            self.context.dial.forget_listener(address);
        }
    }

    fn is_foreign(&self, uid: &io::Result<u32>) -> bool {
        match (self.agent_uid, uid) {
            (Some(agent), Ok(uid)) => agent != *uid,
            // A socket the kernel knows nothing about is nobody's we serve.
            (Some(_), Err(_)) => true,
            (None, _) => false,
        }
    }
}

impl Door {
    async fn accept(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "accepting failed; pausing");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Takes a budget, asks for the owner, starts the session. Never waits.
    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let listeners = &self.listeners;
        let (authority, tasks) = (&listeners.authority, &listeners.context.tasks);
        let budgets = (
            listeners.in_all.clone().try_acquire_owned(),
            self.per_target.clone().try_acquire_owned(),
            listeners.before_login.clone().try_acquire_owned(),
        );
        let (Ok(in_all), Ok(per_target), Ok(before_login)) = budgets else {
            authority.metrics.shed.up();
            return;
        };
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let uid = owner::owner(peer, local);
        if listeners.is_foreign(&uid) {
            authority.metrics.foreign.up();
            tracing::warn!(%peer, uid = ?uid.ok(), "closed a connection that is not the agent's");
            return;
        }
        crate::dial::tune(&stream);
        let target = self.target.load_full();
        let Some(room) = protocols::room(target.spec.protocol) else {
            return;
        };
        let subject = authority.subject().unwrap_or_else(|| Arc::new(nobody()));
        let session = Session::new(authority.sessions.next_number(), subject, target, uid.ok());
        let session = Arc::new(session);
        let entered = authority.sessions.enter(session.clone());
        // The session's own event loop has to know of the stream, not this one.
        let Ok(stream) = stream.into_std() else {
            return;
        };
        let gate = Gate::new(session.clone(), authority.clone());
        let (context, metrics, served) = (listeners.context.clone(), authority.metrics.clone(), session.clone());
        let serving = tasks.spawn_session(async move {
            metrics.sessions.up();
            // Dropped on every way out, a panic included.
            let _held = (entered, in_all, per_target, Open(metrics));
            let Ok(stream) = TcpStream::from_std(stream) else {
                return;
            };
            let conn = Conn {
                stream,
                peer,
                local,
                before_login: Some(before_login),
            };
            room.serve(conn, served, gate, context).await;
        });
        tasks.spawn("session watch", watch_over(session, serving));
    }
}

/// Counts a session down.
struct Open(Arc<crate::metrics::Metrics>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.sessions.down();
    }
}

/// Watches a session from aside, so that it pays nothing for it: `maxSession` cuts it, and a room that does not end
/// soon after a cut is dropped.
async fn watch_over(session: Arc<Session>, serving: AbortHandle) {
    let mut deadline = session.deadline.subscribe();
    let expired = async {
        loop {
            let at = *deadline.borrow_and_update();
            let changed = deadline.changed();
            match at {
                None => {
                    if changed.await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                Some(at) => {
                    tokio::time::sleep_until(at).await;
                    session.end(Reason::MaxSession);
                    std::future::pending::<()>().await;
                }
            }
        }
    };
    let overdue = async {
        session.cut.cancelled().await;
        sleep(GOODBYE).await;
    };
    tokio::select! {
        biased;
        () = session.ended() => {}
        () = overdue => {
            tracing::warn!(session = %session.id, "a room did not end in time after a cut");
            serving.abort();
        }
        () = expired => {}
    }
}

fn nobody() -> Subject {
    Subject {
        namespace: String::new(),
        service_account: String::new(),
        pod: String::new(),
        pod_uid: String::new(),
        labels: BTreeMap::new(),
    }
}

/// Binds a port on every loopback family, or on none.
fn bind(port: u16) -> Result<Held, ListenError> {
    bind_all(
        port,
        &[IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
    )
}

/// Binds a port on each of these addresses that exists, and at least on one, or on none.
fn bind_all(port: u16, ips: &[IpAddr]) -> Result<Held, ListenError> {
    let mut sockets = Vec::new();
    for ip in ips.iter().copied() {
        let address = SocketAddr::new(ip, port);
        match bind_one(address) {
            Ok(listener) => sockets.push((address, listener)),
            // The family does not exist here.
            Err(error) if is_absent(&error) && !sockets.is_empty() => {}
            Err(error) if is_absent(&error) && ip.is_ipv4() => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(ListenError::Taken { port, address: ip });
            }
            Err(error) => {
                let error = error.to_string();
                return Err(ListenError::System {
                    port,
                    address: ip,
                    error,
                });
            }
        }
    }
    if sockets.is_empty() {
        let error = "no loopback address".to_owned();
        let address = ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        return Err(ListenError::System { port, address, error });
    }
    Ok(sockets)
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Allows a restart over connections in TIME_WAIT; an open listener of anybody else still refuses it.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is inside is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
