//! One agent connection from its first byte: start-up, admission, both logins, then the relay.
//!
//! It refuses before it spends: parameters and policy are judged before a lease is asked for or anything is dialled,
//! and the collector must know of the session before the first byte goes to the target.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use sidegate_policies::engine::ConnectFacts;
use sidegate_policies::mask::Keys;
use sidegate_policies::reason::Reason;
use sidegate_policies::record::payload::Pins;
use sidegate_policies::record::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::codec::error::Fields;
use super::codec::{startup as packets, write};
use super::conversation::Conversation;
use super::login::{self, ConnectError, Connected};
use super::mask::cells::MaskKit;
use super::mask::echo::Echo;
use super::params::{self, ParameterError, Requested};
use super::planner::Planner;
use super::relay::{Parts, Relay};
use super::reply::{self, Severity};
use super::startup::{self, Opened};
use super::stream::AgentStream;
use super::{cancel, Shared};
use crate::gate::Gate;
use crate::protocols::{Conn, RoomContext};
use crate::refusal::{Refusal, CONNECTION};
use crate::session::Session;
use crate::target::TargetState;
use crate::upstream::Upstream;

/// The agent's part of the login.
const STARTUP: Duration = Duration::from_secs(10);
/// The last words.
const CLOSE: Duration = Duration::from_secs(2);
/// A cancel request, from dial to the server's close.
const CANCEL: Duration = Duration::from_secs(10);

/// Serves one connection.
pub async fn serve(conn: Conn, session: Arc<Session>, gate: Gate, ctx: RoomContext) {
    // Each in a place of its own: what the login needed is not kept for as long as the session lasts.
    if let Some(relay) = Box::pin(enter(conn, session, gate, ctx)).await {
        relay.await;
    }
}

/// From the first byte to the relay, which is what is left to run.
async fn enter(
    mut conn: Conn,
    session: Arc<Session>,
    mut gate: Gate,
    ctx: RoomContext,
) -> Option<BoxFuture<'static, ()>> {
    let shared = ctx.shared.of::<Shared>();
    let budget = conn.take_login_budget();
    let acceptor = ctx.tls.acceptor(Some(b"postgresql"));
    let opened = tokio::select! {
        biased;
        () = session.cut.cancelled() => return None,
        opened = tokio::time::timeout(STARTUP, startup::open(conn.stream, &acceptor)) => opened,
    };
    match opened {
        Ok(Ok(Opened::Session { stream, startup, rest })) => {
            let agent = Agent { stream, rest };
            return log_in(agent, startup, &session, gate, ctx, &shared, budget).await;
        }
        Ok(Ok(Opened::Cancel { pid, key })) => {
            gate.closing("cancel");
            if !shared.keys.cancel(pid, &key, tokio::time::Instant::now()) {
                tracing::info!(target = %session.target.id, unknown = shared.keys.unknown(), "a cancel request with an unknown key");
            }
        }
        Ok(Err(error)) => {
            tracing::debug!(target = %session.target.id, %error, "no login");
            gate.closing("startup");
        }
        Err(_) => gate.closing("startup"),
    }
    None
}

/// Text of a record.
type Text<'a> = Cow<'a, str>;

struct Agent {
    stream: AgentStream<TcpStream>,
    rest: BytesMut,
}

impl Agent {
    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(CLOSE, sent)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    async fn end(mut self, fields: &Fields) {
        let _ = self.send(fields.frame(b'E').bytes()).await;
        let _ = tokio::time::timeout(CLOSE, self.stream.shutdown()).await;
    }
}

async fn log_in(
    mut agent: Agent,
    startup: packets::Startup,
    session: &Arc<Session>,
    mut gate: Gate,
    ctx: RoomContext,
    shared: &Shared,
    budget: Option<tokio::sync::OwnedSemaphorePermit>,
) -> Option<BoxFuture<'static, ()>> {
    let requested = match params::judge(&startup, &session.target.spec.databases) {
        Ok(requested) => requested,
        Err(error) => {
            let (reason, state) = match error {
                ParameterError::Replication => (Reason::Denied, Some("0A000")),
                _ => (Reason::Denied, None),
            };
            let mut refusal = Refusal::new(reason, CONNECTION).because(error.to_string());
            refusal.hint = error.hint().map(Into::into);
            let refusal = gate.refused(refusal, None);
            let state = state.unwrap_or_else(|| reply::sqlstate(reason, Severity::Login));
            agent.end(&reply::with_state(&refusal, Severity::Login, state)).await;
            return None;
        }
    };
    let (minor, told) = startup::negotiate(&startup, &requested.unknown_options);
    if let Some(told) = told {
        if agent.send(&told).await.is_err() {
            return None;
        }
    }
    let connected = tokio::select! {
        biased;
        () = session.cut.cancelled() => Err(cut(session)),
        connected = admit(&requested, session, &mut gate, &ctx) => connected,
    };
    let connected = match connected {
        Ok(connected) => connected,
        Err(refusal) => {
            gate.closing(refusal.reason.as_str());
            agent.end(&reply::error(&refusal, Severity::Login)).await;
            return None;
        }
    };
    let (mut parts, welcome) = prepare(agent, &requested, minor, connected, session, gate, ctx, shared)?;
    drop(budget);
    let welcomed = async {
        parts.agent.write_all(&welcome).await?;
        parts.agent.flush().await
    };
    let welcomed = matches!(tokio::time::timeout(CLOSE, welcomed).await, Ok(Ok(())));
    welcomed.then(|| Relay::new(parts).run().boxed())
}

fn cut(session: &Session) -> Refusal {
    Refusal::new(session.cut_reason().unwrap_or(Reason::Internal), CONNECTION)
}

/// Policy, record, lease, target: in this order.
async fn admit(
    requested: &Requested,
    session: &Arc<Session>,
    gate: &mut Gate,
    ctx: &RoomContext,
) -> Result<Connected, Refusal> {
    gate.connect(&ConnectFacts {
        database: Some(requested.database.clone()),
    })?;
    if gate.recorder().opened().await.is_err() {
        let refusal = Refusal::new(Reason::CannotRecord, CONNECTION);
        return Err(gate.refused(refusal, None));
    }
    let prefix = prefix(session);
    let parameters = |role: &str| params::upstream(requested, role, &prefix);
    let connected = login::connect(&session.target, ctx, &requested.user, startup::NEWEST_MINOR, parameters).await;
    connected.map_err(|error| {
        log_failure(&session.target, &error);
        let refusal = Refusal::new(error.reason(), CONNECTION).because(error.told());
        gate.refused(refusal, Some(&error.to_string()))
    })
}

fn log_failure(target: &TargetState, error: &ConnectError) {
    tracing::warn!(target = %target.id, %error, "the target could not be logged in to");
}

/// `sg:<namespace>/<serviceaccount>:<session>`; the session by the random end of its id.
fn prefix(session: &Session) -> String {
    let id = session.id.simple().to_string();
    let tail = id.get(id.len().saturating_sub(12)..).unwrap_or_default();
    format!("sg:{}:{tail}", session.subject.account())
}

#[allow(clippy::too_many_arguments)] // everything a session is made of meets here, once
fn prepare(
    agent: Agent,
    requested: &Requested,
    minor: u16,
    connected: Connected,
    session: &Arc<Session>,
    mut gate: Gate,
    ctx: RoomContext,
    shared: &Shared,
) -> Option<(Parts<AgentStream<TcpStream>, login::ServerStream>, BytesMut)> {
    record_pins(&mut gate, requested, &connected);
    let keys = Keys::random().ok()?;
    let key = match &connected.login.cancel {
        Some(_) => Some(shared.keys.issue(minor)?),
        None => None,
    };
    let welcome = welcome(requested, &connected, key.as_ref());
    let needles = connected.lease.needles();
    let echo = Echo::new(&needles);
    let login = &connected.login;
    let conversation = Conversation::new(
        &requested.database,
        &connected.role,
        &connected.search_path,
        login.status,
    );
    let planner = Planner {
        cache: shared.plans.clone(),
        snapshot: shared.snapshots.of(&session.target, &requested.database),
        target: session.target.clone(),
        subject: session.subject.account(),
        major: login.major(),
        prefix: prefix(session),
        scope: None,
        last: None,
    };
    let masks = MaskKit::new(keys, gate.masks());
    let parts = Parts {
        agent: agent.stream,
        rest: agent.rest,
        upstream: Upstream::after_login(connected.stream),
        server_in: connected.scanner,
        gate,
        ctx,
        conversation,
        planner,
        masks,
        key,
        server_key: connected.login.cancel,
        echo,
    };
    Some((parts, welcome))
}

fn record_pins(gate: &mut Gate, requested: &Requested, connected: &Connected) {
    let login = &connected.login;
    let echoed = [
        "client_encoding",
        "standard_conforming_strings",
        "TimeZone",
        "DateStyle",
        "IntervalStyle",
        "server_version",
        "application_name",
    ];
    let mut settings: BTreeMap<Text<'_>, Text<'_>> = BTreeMap::new();
    for name in echoed {
        if let Some(value) = login.reported(name) {
            settings.insert(name.into(), value.into());
        }
    }
    settings.insert("search_path".into(), connected.search_path.as_str().into());
    settings.insert("protocol".into(), format!("3.{}", login.minor).into());
    let tls = match &connected.tls {
        Some(facts) => format!("{} {}", facts.version, facts.server_name),
        None => "none".to_owned(),
    };
    let record = Pins {
        address: Some(connected.peer.to_string().into()),
        mechanism: Some(login.mechanism.into()),
        tls: Some(tls.into()),
        credential: Some(connected.lease.id().into()),
        user: Some(connected.role.as_str().into()),
        database: Some(requested.database.as_str().into()),
        settings,
    };
    // What cannot be recorded stops the first operation.
    let _ = gate.recorder().event(Kind::Pins, None, &record);
}

/// AuthenticationOk, what the server reported, our cancel key, ReadyForQuery.
fn welcome(requested: &Requested, connected: &Connected, key: Option<&cancel::Held>) -> BytesMut {
    let mut out = BytesMut::with_capacity(1024);
    out.extend_from_slice(b"R\0\0\0\x08\0\0\0\0");
    for (name, value) in &connected.login.reported {
        let own = name == "application_name";
        let value = if own { &requested.application_name } else { value };
        write::parameter_status(&mut out, name, value);
    }
    if let Some(key) = key {
        out.extend_from_slice(&key.message());
    }
    out.extend_from_slice(write::ready(connected.login.status).bytes());
    out
}

/// Cancels at the server, on a connection of its own under the same TLS rule, and waits until the server closes it.
pub async fn send_cancel(target: &TargetState, ctx: &RoomContext, pid: i32, key: &Bytes) -> Result<(), ConnectError> {
    let whole = async {
        let mut stream = login::reach(target, ctx).await?.stream;
        let io = |error: std::io::Error| ConnectError::Login(error.into());
        stream.write_all(&packets::cancel_request(pid, key)).await.map_err(io)?;
        stream.flush().await.map_err(io)?;
        let mut rest = [0u8; 64];
        while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        Ok(())
    };
    tokio::time::timeout(CANCEL, whole)
        .await
        .unwrap_or(Err(ConnectError::Deadline))
}
