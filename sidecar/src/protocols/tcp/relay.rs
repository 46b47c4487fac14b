//! Bytes both ways through bounded buffers, until both sides are done, a cap is reached, or the session is cut.
//!
//! Both directions move by themselves: a side that does not read stops its own direction only. A side that closes
//! its half is closed on the other half only. What the target takes is what was recorded first; a peer that takes
//! nothing for a minute ends the stream.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::digest::{Context as Digest, SHA256};
use bytes::Bytes;
use sidegate_policies::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout, Instant};

use super::{reset, Opened};
use crate::gate::{Gate, OpId, Outcome};
use crate::session::Session;
use crate::upstream::Upstream;

/// A buffer starts small and grows once it was filled.
const SMALL: usize = 4 * 1024;
const LARGE: usize = 64 * 1024;
/// How much of the agent's bytes is kept in the record.
const KEPT: u64 = 64 * 1024;
const STALLED: Duration = Duration::from_secs(60);

/// How far a direction's end has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Open,
    /// Its reader saw the end; the writer is to be told.
    Ending,
    Closed,
}

/// One direction.
struct Flow {
    buffer: Vec<u8>,
    bytes: u64,
    digest: Digest,
    half: Half,
    /// Since when its writer has been behind.
    behind: Option<Instant>,
}

impl Flow {
    fn new() -> Self {
        Flow {
            buffer: vec![0; SMALL],
            bytes: 0,
            digest: Digest::new(&SHA256),
            half: Half::Open,
            behind: None,
        }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
    }

    /// A buffer that was filled is too small.
    fn grow(&mut self, filled: usize) {
        if filled == self.buffer.len() && filled < LARGE {
            self.buffer.resize(LARGE, 0);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.behind.and_then(|since| since.checked_add(STALLED))
    }
}

/// Why the stream ended.
enum End {
    /// Both sides closed.
    Done,
    /// One side broke.
    Broken(&'static str),
    /// Sidegate stopped it.
    Stopped(Reason),
}

/// What happened on one of the four halves.
enum Event {
    AgentSaid(usize),
    AgentTook(usize),
    AgentTold,
    TargetSaid(usize),
    TargetTook,
    TargetTold,
    Broken(&'static str),
}

struct Relay {
    agent: TcpStream,
    target: Upstream<Box<dyn super::Stream>>,
    up: Flow,
    down: Flow,
    /// The part of the downward buffer that the agent has not taken yet.
    pending: std::ops::Range<usize>,
    op: OpId,
    cap: u64,
}

/// Relays until the end, then records the outcome.
pub(super) async fn run(agent: TcpStream, opened: Opened, session: &Session, gate: &mut Gate) {
    let mut relay = Relay {
        agent,
        target: Upstream::after_login(opened.target),
        up: Flow::new(),
        down: Flow::new(),
        pending: 0..0,
        op: opened.op,
        cap: opened.cap,
    };
    let end = match relay.upward(&opened.first, gate) {
        Err(end) => end,
        Ok(()) => tokio::select! {
            biased;
            () = session.cut.cancelled() => End::Stopped(session.cut_reason().unwrap_or(Reason::Internal)),
            end = relay.both_ways(gate) => end,
        },
    };
    relay.finish(end, gate).await;
}

impl Relay {
    async fn both_ways(&mut self, gate: &mut Gate) -> End {
        while self.up.half != Half::Closed || self.down.half != Half::Closed {
            let deadline = [self.up.deadline(), self.down.deadline()].into_iter().flatten().min();
            let event = tokio::select! {
                biased;
                event = poll_fn(|cx| self.poll(cx)) => event,
                () = at(deadline) => return End::Broken(if self.up.behind.is_some() { "target" } else { "client" }),
            };
            if let Err(end) = self.step(event, gate) {
                return end;
            }
        }
        End::Done
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Poll::Ready(event) = self.poll_up(cx) {
            return Poll::Ready(event);
        }
        self.poll_down(cx)
    }

    /// Sends what waits for the target; only then is more taken from the agent.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.target.has_unsent() {
            return done(self.target.poll_send(cx), "target", |()| Event::TargetTook);
        }
        match self.up.half {
            Half::Open => {
                let mut buffer = ReadBuf::new(&mut self.up.buffer);
                let read = Pin::new(&mut self.agent).poll_read(cx, &mut buffer);
                let length = buffer.filled().len();
                done(read, "client", |()| Event::AgentSaid(length))
            }
            Half::Ending => done(calm(self.target.poll_shutdown(cx)), "target", |()| Event::TargetTold),
            Half::Closed => Poll::Pending,
        }
    }

    /// Gives the agent what waits for it; only then is more taken from the target.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if !self.pending.is_empty() {
            let bytes = self.down.buffer.get(self.pending.clone()).unwrap_or_default();
            return done(
                Pin::new(&mut self.agent).poll_write(cx, bytes),
                "client",
                Event::AgentTook,
            );
        }
        match self.down.half {
            Half::Open => {
                let mut buffer = ReadBuf::new(&mut self.down.buffer);
                let read = self.target.poll_read(cx, &mut buffer);
                let length = buffer.filled().len();
                done(read, "target", |()| Event::TargetSaid(length))
            }
            Half::Ending => {
                let told = calm(Pin::new(&mut self.agent).poll_shutdown(cx));
                done(told, "client", |()| Event::AgentTold)
            }
            Half::Closed => Poll::Pending,
        }
    }

    fn step(&mut self, event: Event, gate: &mut Gate) -> Result<(), End> {
        match event {
            Event::AgentSaid(0) => self.up.half = Half::Ending,
            Event::AgentSaid(length) => {
                let bytes = self.up.buffer.get(..length).unwrap_or_default().to_vec();
                self.up.grow(length);
                self.upward(&bytes, gate)?;
            }
            Event::TargetTook => self.up.behind = None,
            Event::TargetTold => self.up.half = Half::Closed,
            Event::TargetSaid(0) => self.down.half = Half::Ending,
            Event::TargetSaid(length) => self.downward(length, gate)?,
            Event::AgentTook(0) => return Err(End::Broken("client")),
            Event::AgentTook(length) => {
                self.pending.start = self.pending.start.saturating_add(length);
                let more = !self.pending.is_empty();
                self.down.behind = more.then(Instant::now);
                if !more {
                    self.down.grow(self.pending.end);
                }
            }
            Event::AgentTold => self.down.half = Half::Closed,
            Event::Broken(side) => return Err(End::Broken(side)),
        }
        Ok(())
    }

    /// Bytes of the agent: recorded up to what is kept, admitted, queued.
    fn upward(&mut self, bytes: &[u8], gate: &mut Gate) -> Result<(), End> {
        let offset = self.up.bytes;
        let keep = usize::try_from(KEPT.saturating_sub(offset)).unwrap_or(usize::MAX);
        let kept = bytes.get(..bytes.len().min(keep)).unwrap_or_default();
        let unrecorded = |_| End::Stopped(Reason::CannotRecord);
        if !kept.is_empty() {
            gate.recorder()
                .request_bytes(self.op.get(), offset, kept)
                .map_err(unrecorded)?;
        }
        self.up.count(bytes);
        let admitted = gate.passive(Bytes::copy_from_slice(bytes));
        self.target
            .queue(admitted.map_err(|refusal| End::Stopped(refusal.reason))?);
        self.target.seal(gate.recorder()).map_err(unrecorded)?;
        self.up.behind = Some(Instant::now());
        Ok(())
    }

    /// Bytes of the target: counted against the cap, recorded, then the agent's.
    fn downward(&mut self, length: usize, gate: &mut Gate) -> Result<(), End> {
        if self.down.bytes.saturating_add(length as u64) > self.cap {
            return Err(End::Stopped(Reason::Limit));
        }
        let bytes = self.down.buffer.get(..length).unwrap_or_default();
        gate.recorder().body(self.op.get(), bytes);
        self.down.digest.update(bytes);
        self.down.bytes = self.down.bytes.saturating_add(length as u64);
        self.pending = 0..length;
        self.down.behind = Some(Instant::now());
        Ok(())
    }

    async fn finish(mut self, end: End, gate: &mut Gate) {
        let tag = format!(
            "{} bytes up, {} bytes down, sha256 up {}, sha256 down {}",
            self.up.bytes,
            self.down.bytes,
            crate::secret::hex(self.up.digest.finish().as_ref()),
            crate::secret::hex(self.down.digest.finish().as_ref()),
        );
        let (how, reason) = match end {
            End::Done => ("client", None),
            End::Broken(side) => (side, None),
            End::Stopped(reason) => (reason.as_str(), Some(reason)),
        };
        let outcome = Outcome {
            tag: Some(&tag),
            bytes: self.down.bytes,
            reason,
            ..Outcome::default()
        };
        gate.outcome(self.op, outcome);
        gate.closing(how);
        if !matches!(end, End::Done) {
            reset(&self.agent);
        }
        let _ = timeout(Duration::from_secs(2), self.target.shutdown()).await;
    }
}

fn done<T>(poll: Poll<io::Result<T>>, side: &'static str, event: impl FnOnce(T) -> Event) -> Poll<Event> {
    poll.map(|result| result.map_or(Event::Broken(side), event))
}

/// A half-close that the other side no longer cares about is no failure.
fn calm(poll: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
    poll.map(|result| match result {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    })
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
