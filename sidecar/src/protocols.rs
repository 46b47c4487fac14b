//! Protocols: what a room is, and the list of them.
//!
//! A room serves one client connection from its first byte to its last. It gets a gate and a context narrowed to its
//! session; it has no other way to the engine, the record, a credential or the target. No other file names a room.

pub mod postgres;
pub mod tcp;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use sidegate_policies::api::target::TargetProtocol;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::credentials::Credentials;
use crate::dial::DialContext;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::session::Session;
use crate::task::Tasks;
use crate::tls::agent::AgentTls;

/// One protocol.
pub trait Room: Send + Sync {
    /// The Targets it serves.
    fn protocol(&self) -> TargetProtocol;
    /// Its name in logs.
    fn name(&self) -> &'static str;
    /// Serves one connection. It must end soon after `session.cut` is cancelled, with the protocol's own words.
    fn serve(&self, conn: Conn, session: Arc<Session>, gate: Gate, ctx: RoomContext) -> BoxFuture<'static, ()>;
}

/// An accepted connection.
pub struct Conn {
    /// The stream.
    pub stream: TcpStream,
    /// The agent's end.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    pub(crate) before_login: Option<OwnedSemaphorePermit>,
}

impl Conn {
    /// The login is complete: the connection leaves the budget of those that are still logging in.
    pub fn logged_in(&mut self) {
        self.before_login = None;
    }

    /// Takes the budget out, where the stream moves on by itself. Drop it when the login is complete.
    pub fn take_login_budget(&mut self) -> Option<OwnedSemaphorePermit> {
        self.before_login.take()
    }
}

/// What a room may use.
#[derive(Clone)]
pub struct RoomContext {
    /// Leases.
    pub credentials: Arc<Credentials>,
    /// Dialling.
    pub dial: Arc<DialContext>,
    /// TLS towards the agent.
    pub tls: Arc<AgentTls>,
    /// Tasks and blocking work.
    pub tasks: Tasks,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What rooms keep between connections.
    pub shared: Arc<Shared>,
}

/// State that rooms keep between connections of one running sidecar, one value per type (cancel keys, catalogs).
#[derive(Default)]
pub struct Shared(Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>);

impl Shared {
    /// The value of a type, made at first use.
    pub fn of<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = kept.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default()));
        // The key is the value's own type, so the other branch is never taken.
        value.clone().downcast::<T>().unwrap_or_default()
    }
}

/// Every protocol this build speaks; one line each.
pub fn registry() -> &'static [&'static dyn Room] {
    &[&postgres::Postgres, &tcp::Tcp]
}

/// The room of a protocol.
pub fn room(protocol: TargetProtocol) -> Option<&'static dyn Room> {
    registry().iter().copied().find(|room| room.protocol() == protocol)
}
