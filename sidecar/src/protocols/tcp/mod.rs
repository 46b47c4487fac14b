//! The raw TCP room: a connection is allowed or denied, its bytes are counted, capped and recorded, and nothing is
//! understood.
//!
//! The first bytes of the agent are looked at only to refuse a protocol that Sidegate could have read, unless the
//! Target names it in `carries`. Half-close is kept. Refusals have no words here: the connection is reset, and the
//! record says why. Invariant: what goes to the target was admitted, and what comes back was recorded, in order.

mod relay;
mod sniff;

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use sidegate_policies::api::target::TargetProtocol;
use sidegate_policies::engine::{Completeness, ConnectFacts, Decision, Facts, Operation, TcpFacts, Verb};
use sidegate_policies::reason::Reason;
use sidegate_policies::record::payload;
use sidegate_policies::record::Kind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{Conn, Room, RoomContext};
use crate::dial::{self, DialError};
use crate::gate::{Admission, Described, Frame, Gate, OpId};
use crate::refusal::{Refusal, CONNECTION};
use crate::session::Session;

/// Raw TCP.
pub struct Tcp;

impl Room for Tcp {
    fn protocol(&self) -> TargetProtocol {
        TargetProtocol::Tcp
    }

    fn name(&self) -> &'static str {
        "tcp"
    }

    fn serve(&self, conn: Conn, session: Arc<Session>, gate: Gate, ctx: RoomContext) -> BoxFuture<'static, ()> {
        serve(conn, session, gate, ctx).boxed()
    }
}

/// Where the bytes go: the target, in the clear or over TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The whole stream as one operation. Its bytes follow, each batch admitted as part of it.
struct StreamFrame {
    facts: TcpFacts,
    text: String,
}

impl Frame for StreamFrame {
    fn operation(&self) -> Operation<'_> {
        Operation {
            verb: Verb::Statement,
            action: "stream",
            completeness: Completeness::Opaque,
            facts: Facts::Tcp(&self.facts),
        }
    }

    fn described(&self) -> Described<'_> {
        Described {
            text: Cow::Borrowed(&self.text),
            ..Described::default()
        }
    }

    fn digest_fields(&self) -> Vec<Cow<'_, [u8]>> {
        vec![Cow::Borrowed(b"stream")]
    }

    fn what(&self) -> &'static str {
        "stream"
    }
}

async fn serve(mut conn: Conn, session: Arc<Session>, mut gate: Gate, ctx: RoomContext) {
    let done = tokio::select! {
        biased;
        () = session.cut.cancelled() => Err(refusal(session.cut_reason().unwrap_or(Reason::Internal))),
        opened = open(&mut conn, &session, &mut gate, &ctx) => opened,
    };
    match done {
        Ok(Some(opened)) => {
            conn.logged_in();
            relay::run(conn.stream, opened, &session, &mut gate).await;
        }
        // The agent went away before anything was sent.
        Ok(None) => gate.closing("client"),
        Err(refusal) => {
            gate.closing(refusal.reason.as_str());
            reset(&conn.stream);
        }
    }
}

/// A connection to the target, and what the agent already sent.
pub(super) struct Opened {
    target: Box<dyn Stream>,
    first: Vec<u8>,
    op: OpId,
    /// Bytes the target may send.
    cap: u64,
}

async fn open(
    conn: &mut Conn,
    session: &Session,
    gate: &mut Gate,
    ctx: &RoomContext,
) -> Result<Option<Opened>, Refusal> {
    // A connection that a person granted is the operation; any other gets one of its own below.
    let granted = match gate.open(ConnectFacts::default()) {
        Admission::Go(_) => None,
        Admission::No(refusal) => return Err(refusal),
        Admission::Hold(held) => {
            let admitted = held.wait(gate).await?;
            Some((admitted.op(), cap(admitted.decision())))
        }
    };
    let Some((first, label)) = sniffed(conn, session, gate).await? else {
        return Ok(None);
    };
    gate.recorder()
        .opened()
        .await
        .map_err(|_| refusal(Reason::CannotRecord))?;
    let target = connect(session, gate, ctx).await?;
    let (op, cap) = match granted {
        Some(granted) => granted,
        None => stream_operation(session, gate, &label)?,
    };
    Ok(Some(Opened { target, first, op, cap }))
}

fn stream_operation(session: &Session, gate: &mut Gate, label: &str) -> Result<(OpId, u64), Refusal> {
    let frame = StreamFrame {
        facts: TcpFacts::default(),
        text: format!("raw stream to {}{label}", session.target.address()),
    };
    match gate.admit(frame) {
        Admission::Go(stream) => Ok((stream.op(), cap(stream.decision()))),
        Admission::No(refusal) => Err(refusal),
        // Asks on raw TCP are about the connection; the loader refuses any other.
        Admission::Hold(_) => Err(gate.refused(refusal(Reason::Denied), None)),
    }
}

fn cap(decision: Option<&Arc<Decision>>) -> u64 {
    let limit = decision.and_then(|decision| decision.limits.bytes);
    limit.map_or(u64::MAX, |size| size.0)
}

/// Looks at the agent's first bytes. None: it closed without any.
async fn sniffed(conn: &Conn, session: &Session, gate: &mut Gate) -> Result<Option<(Vec<u8>, String)>, Refusal> {
    let first = match sniff::first_bytes(&conn.stream).await {
        Ok(sniff::First::Bytes(first)) => first,
        Ok(sniff::First::Silence) => Vec::new(),
        Ok(sniff::First::Closed) | Err(_) => return Ok(None),
    };
    let Some(found) = sniff::recognise(&first) else {
        return Ok(Some((first, String::new())));
    };
    if session.target.spec.carries.contains(&found) {
        return Ok(Some((first, format!(", carrying {found:?} unread"))));
    }
    let refused = refusal(Reason::Denied).because(format!(
        "{found:?} must not cross a raw TCP Target unread; make a Target of its own protocol or name it in `carries`"
    ));
    Err(gate.refused(refused, None))
}

async fn connect(session: &Session, gate: &mut Gate, ctx: &RoomContext) -> Result<Box<dyn Stream>, Refusal> {
    let target = &session.target;
    let dialled = dial::dial(target, &ctx.dial)
        .await
        .map_err(|error| failed(gate, &error))?;
    let peer = dialled.peer.to_string();
    let mut pins = payload::Pins {
        address: Some(peer.into()),
        tls: Some("none".into()),
        mechanism: Some("none".into()),
        ..payload::Pins::default()
    };
    let stream: Box<dyn Stream> = if dial::wants_tls(target) {
        let started = dial::start_tls(dialled.stream, target, &ctx.dial, None).await;
        let (stream, facts) = started.map_err(|error| failed(gate, &error))?;
        pins.tls = Some(format!("{} {}", facts.version, facts.server_name).into());
        Box::new(stream)
    } else {
        let stream: TcpStream = dialled.stream;
        Box::new(stream)
    };
    gate.recorder()
        .event(Kind::Pins, None, &pins)
        .map_err(|_| refusal(Reason::CannotRecord))?;
    Ok(stream)
}

/// The precise cause goes into the record's text, the reason to the refusal.
fn failed(gate: &mut Gate, error: &DialError) -> Refusal {
    let cause = error.to_string();
    gate.refused(refusal(error.reason()), Some(&cause))
}

fn refusal(reason: Reason) -> Refusal {
    Refusal::new(reason, CONNECTION)
}

/// Ends a refused connection with a reset, so that no client takes it for an orderly end.
pub(super) fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
}

#[cfg(test)]
mod tests;
