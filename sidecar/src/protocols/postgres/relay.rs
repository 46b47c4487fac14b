//! The relay of one session: one task that polls both directions.
//!
//! It owns the streams, the queue of expectations and the order of everything. It refuses to read more from the agent
//! than it can answer, and to write anything that the recorder has not taken. Messages of the agent are handled in
//! `agent`, those of the server in `server`, refusals in `refuse`, approvals in `hold`.
//! Invariant: bytes reach the server through `Upstream` only, and the agent only after the scan for the lease's secret.

use std::cell::RefCell;
use std::future::{poll_fn, Future};
use std::pin::{pin, Pin};
use std::sync::Arc;
use std::task::{ready, Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sidegate_policies::reason::Reason;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::agent::Step;
use super::cancel;
use super::codec::{write, AgentScanner, CodecError, Frame, ServerScanner};
use super::conversation::{Conversation, Prepared};
use super::hold::Parked;
use super::mask::cells::MaskKit;
use super::mask::echo::Echo;
use super::planner::Planner;
use super::queue::Queue;
use super::reply::{self, Severity};
use crate::gate::Gate;
use crate::protocols::RoomContext;
use crate::refusal::{Refusal, SESSION};
use crate::session::Session;
use crate::upstream::{drop_written, Upstream};

/// Bytes that may wait for a peer before the other side is not read any more.
const HIGH: usize = 256 * 1024;
/// What is read at once: little from an idle peer, more from one that fills it.
const CHUNKS: std::ops::RangeInclusive<usize> = 16 * 1024..=256 * 1024;
/// Room made for little messages.
const LITTLE: usize = 512;
/// A peer that takes nothing for this long is gone.
const STALLED: Duration = Duration::from_secs(60);
/// The last words to an agent may take this long.
const CLOSE: Duration = Duration::from_secs(2);

thread_local! {
    /// Where little messages are read first. All sessions of a lane share it: it stays in the processor's cache, and a
    /// session that waits holds no buffer of its own.
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; *CHUNKS.start()].into_boxed_slice());
}

/// Reads up to `chunk` bytes behind what is in the buffer.
fn poll_fill<R: AsyncRead + Unpin>(
    peer: &mut R,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
    chunk: usize,
) -> Poll<std::io::Result<usize>> {
    if chunk > *CHUNKS.start() {
        buffer.reserve(chunk);
        return pin!(peer.read_buf(buffer)).poll(cx);
    }
    READ.with_borrow_mut(|space| {
        let mut space = ReadBuf::new(space);
        ready!(Pin::new(peer).poll_read(cx, &mut space))?;
        let filled = space.filled();
        if buffer.is_empty() && buffer.capacity() > *CHUNKS.start() {
            // It was a busy peer's.
            *buffer = BytesMut::new();
        }
        buffer.reserve(filled.len().max(LITTLE));
        buffer.extend_from_slice(filled);
        Poll::Ready(Ok(filled.len()))
    })
}

/// How a session ends.
#[derive(Debug)]
pub enum End {
    /// The agent said goodbye: what it sent before is carried out, as by the server.
    Goodbye,
    /// The agent went away.
    Client,
    /// The server ended the connection.
    Target,
    /// The session was cut.
    Cut(Reason),
    /// The agent broke the protocol.
    Violation(String),
    /// The server broke the protocol.
    Server(String),
    /// The session is over with these words.
    Refused(Box<Refusal>),
    /// The lease's secret was on its way to the agent.
    Echo,
}

impl From<CodecError> for End {
    fn from(error: CodecError) -> End {
        End::Violation(error.to_string())
    }
}

/// The relay of one session.
pub struct Relay<A, S> {
    pub(super) agent: A,
    pub(super) agent_in: AgentScanner,
    pub(super) out: BytesMut,
    scanned: usize,
    pub(super) upstream: Upstream<S>,
    pub(super) server_in: ServerScanner,
    pub(super) gate: Gate,
    pub(super) session: Arc<Session>,
    pub(super) ctx: RoomContext,
    pub(super) conversation: Conversation,
    pub(super) queue: Queue,
    pub(super) planner: Planner,
    pub(super) masks: MaskKit,
    /// The agent's messages are void until its Sync.
    pub(super) skip: bool,
    /// The agent heard an error where the server went on: nothing more of this batch reaches it.
    pub(super) muted: bool,
    /// That Sync is answered by us: the server saw nothing of its batch.
    pub(super) local_sync: bool,
    /// Extended messages were forwarded since the last Sync.
    pub(super) unsynced: bool,
    /// Later messages wait until everything is answered.
    pub(super) barrier: bool,
    /// A capped statement was sent since the last Sync. Its cap is kept by a cancel, which hits whatever runs when the
    /// server hears of it: up to the Sync all is void then, and nothing may stand behind that
    /// (`what_stands_behind_a_capped_statement_waits_for_its_end`).
    pub(super) capped: bool,
    /// COPY data of the agent is expected, or what remains of it after an error.
    pub(super) copy_in: bool,
    /// Parses that wait for their Bind.
    pub(super) withheld: Vec<Arc<Prepared>>,
    pub(super) parked: Option<Parked>,
    pub(super) unparsable: u32,
    pub(super) key: Option<cancel::Held>,
    pub(super) server_key: Option<(i32, Bytes)>,
    pub(super) cancelling: Option<oneshot::Receiver<()>>,
    pub(super) generation: u64,
    /// A statement changed search_path in this session, so that it may change back.
    pub(super) path_touched: bool,
    /// The search_path must be asked for before anything else is judged.
    pub(super) path_dirty: bool,
    /// The agent was read last, and not the server.
    agent_spoke: bool,
    chunk: usize,
    /// Bytes in buffers, as the gate knows.
    held: usize,
    echo: Echo,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Whom `cut` wakes.
    woken_by_cut: Option<Waker>,
}

/// What a relay starts with.
pub struct Parts<A, S> {
    /// The agent's stream.
    pub agent: A,
    /// Bytes it sent behind its start-up packet.
    pub rest: BytesMut,
    /// The server.
    pub upstream: Upstream<S>,
    /// Bytes it sent behind its login.
    pub server_in: ServerScanner,
    /// The gate.
    pub gate: Gate,
    /// The context.
    pub ctx: RoomContext,
    /// State after login.
    pub conversation: Conversation,
    /// Plans.
    pub planner: Planner,
    /// Masks.
    pub masks: MaskKit,
    /// Our cancel key.
    pub key: Option<cancel::Held>,
    /// The server's.
    pub server_key: Option<(i32, Bytes)>,
    /// The lease's secrets.
    pub echo: Echo,
}

impl<A, S> Relay<A, S>
where
    A: AsyncRead + AsyncWrite + Unpin + Send,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// A relay after both logins.
    pub fn new(parts: Parts<A, S>) -> Self {
        let session = parts.gate.session().clone();
        let mut agent_in = AgentScanner::default();
        agent_in.buffer().extend_from_slice(&parts.rest);
        Relay {
            cut: Box::pin(session.cut.clone().cancelled_owned()),
            agent: parts.agent,
            agent_in,
            out: BytesMut::new(),
            scanned: 0,
            upstream: parts.upstream,
            server_in: parts.server_in,
            gate: parts.gate,
            session,
            ctx: parts.ctx,
            conversation: parts.conversation,
            queue: Queue::default(),
            planner: parts.planner,
            masks: parts.masks,
            skip: false,
            muted: false,
            local_sync: false,
            unsynced: false,
            barrier: false,
            capped: false,
            copy_in: false,
            withheld: Vec::new(),
            parked: None,
            unparsable: 0,
            key: parts.key,
            server_key: parts.server_key,
            cancelling: None,
            generation: 0,
            path_touched: false,
            path_dirty: false,
            agent_spoke: false,
            chunk: *CHUNKS.start(),
            held: 0,
            echo: parts.echo,
            woken_by_cut: None,
        }
    }

    /// Runs until the session ends, and says the last words.
    pub async fn run(mut self) {
        let end = loop {
            if let Err(end) = self.turn().await {
                break end;
            }
        };
        self.close(end).await;
    }

    /// One round: what the server said, what the agent said, then wait for either.
    pub(super) async fn turn(&mut self) -> Result<(), End> {
        self.pump_server()?;
        // What rarely happens is boxed: a future is moved whole each time it is made, and these are large.
        if self.parked.is_some() && self.queue.is_empty() {
            Box::pin(self.hold()).await?;
        }
        while let Some(frame) = self.pump_agent()? {
            Box::pin(self.on_slow(frame)).await?;
        }
        self.mark_flight();
        self.seal().await?;
        if self.parked.is_some() && self.queue.is_empty() {
            return Ok(());
        }
        if self.cancelling.is_some() {
            // A flood of rows must not keep the cancel that ends it from running.
            tokio::task::yield_now().await;
        }
        self.wait().await
    }

    /// Whether the agent's next message must wait.
    fn blocked(&mut self) -> bool {
        if self.barrier && self.queue.is_empty() {
            self.barrier = false;
        }
        self.barrier
            || self.parked.is_some()
            || self.cancelling.is_some()
            || self.queue.is_full()
            || self.upstream.unsent() > HIGH
            || self.out.len() > HIGH
    }

    /// Handles what the agent said, up to a message that has to wait for something.
    fn pump_agent(&mut self) -> Result<Option<Frame>, End> {
        while !self.blocked() {
            match self.agent_step()? {
                Step::Done => {}
                Step::More => return Ok(None),
                Step::Slow(frame) => return Ok(Some(frame)),
            }
        }
        Ok(None)
    }

    /// Tells the cancel key which statement is in flight: a request counts for that one only.
    pub(super) fn mark_flight(&mut self) {
        if let Some(key) = &self.key {
            let flying = !self.queue.is_empty() || self.parked.is_some();
            key.mailbox.in_flight(flying.then_some(self.generation));
        }
    }

    /// Makes intents durable. What cannot be recorded is not sent: its statements fail, here and at the server.
    pub(super) async fn seal(&mut self) -> Result<(), End> {
        let (upstream, recorder) = (&mut self.upstream, self.gate.recorder());
        if poll_fn(|cx| upstream.poll_seal(recorder, cx)).await.is_err() {
            self.upstream.discard();
            self.fail_unsealed()?;
        }
        self.queue.seal();
        Ok(())
    }

    /// Appends our own or judged bytes for the agent.
    pub(super) fn tell(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Queues bytes that are no operation of their own.
    pub(super) fn forward(&mut self, frame: Frame) -> Result<(), End> {
        match self.gate.passive(frame) {
            Ok(admitted) => {
                self.upstream.queue(admitted);
                Ok(())
            }
            Err(refusal) => Err(End::Refused(Box::new(refusal))),
        }
    }

    fn scan_out(&mut self) -> Result<(), End> {
        let fresh = self.out.get(self.scanned..).unwrap_or_default();
        if !fresh.is_empty() && self.echo.found(fresh) {
            return Err(End::Echo);
        }
        self.scanned = self.out.len();
        Ok(())
    }

    /// Tells the gate what this session holds. A message that is put together may be 16 MiB long, and so may a row:
    /// many of them at once are more than the process has.
    fn count_buffers(&mut self) -> Result<(), End> {
        let (agent, server) = (self.agent_in.waiting(), self.server_in.buffer().len());
        let held = agent
            .saturating_add(server)
            .saturating_add(self.out.len())
            .saturating_add(self.upstream.unsent())
            .saturating_add(self.conversation.statement_bytes());
        if held == self.held {
            return Ok(());
        }
        self.held = held;
        if self.gate.hold_bytes(u64::try_from(held).unwrap_or(u64::MAX)) {
            Ok(())
        } else {
            self.session.end(Reason::Limit);
            Err(End::Cut(Reason::Limit))
        }
    }

    /// Waits until there is something to do. A peer that takes nothing of what waits for it for a minute is gone.
    async fn wait(&mut self) -> Result<(), End> {
        self.scan_out()?;
        self.count_buffers()?;
        // Most writes are taken at once: no timer is set for them.
        let mut stalled: Option<Pin<Box<tokio::time::Sleep>>> = None;
        poll_fn(|cx| {
            if let Poll::Ready(done) = self.poll_io(cx) {
                return Poll::Ready(done);
            }
            if !self.is_writing() {
                return Poll::Pending;
            }
            let timer = stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALLED)));
            timer.as_mut().poll(cx).map(|()| Err(End::Client))
        })
        .await
    }

    fn is_writing(&self) -> bool {
        !self.out.is_empty() || self.upstream.has_unsent()
    }

    /// Ends first, then writes, then reads. Ready once there is something new to look at: a write that took all there
    /// was brings nothing, unless reading had stopped because of it.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if let Some(reason) = self.session.cut_reason() {
            return Poll::Ready(Err(End::Cut(reason)));
        }
        let held_up = self.out.len() > HIGH || self.upstream.unsent() > HIGH;
        let cancelled = self.poll_cancel(cx);
        let mut wrote = match self.poll_out(cx) {
            Ok(progress) => progress,
            Err(end) => return Poll::Ready(Err(end)),
        };
        if self.upstream.has_unsent() {
            match self.upstream.poll_send(cx) {
                Poll::Ready(Ok(())) => wrote = true,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Target)),
                Poll::Pending => {}
            }
        }
        let read = match self.poll_reads(cx) {
            Ok(read) => read,
            Err(end) => return Poll::Ready(Err(end)),
        };
        if read || cancelled || (wrote && (held_up || self.is_writing())) {
            return Poll::Ready(Ok(()));
        }
        if self.poll_cut(cx) {
            let reason = self.session.cut_reason().unwrap_or(Reason::Internal);
            return Poll::Ready(Err(End::Cut(reason)));
        }
        Poll::Pending
    }

    /// Has this task woken when the session is cut. Asking costs a lock, and a waker that is known stays known:
    /// whoever cuts sets the reason first, which every poll looks at, then wakes.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> bool {
        if self
            .woken_by_cut
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            return false;
        }
        let over = self.cut.as_mut().poll(cx).is_ready();
        self.woken_by_cut = Some(cx.waker().clone());
        over
    }

    fn poll_cancel(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        if let Some(done) = &mut self.cancelling {
            if Pin::new(done).poll(cx).is_ready() {
                self.cancelling = None;
                progress = true;
            }
        }
        // A request counts for what is in flight: where nothing is, none is waited for.
        let flying = self.key.as_ref().filter(|_| !self.queue.is_empty());
        if let Some(Poll::Ready(generation)) = flying.map(|key| key.mailbox.poll(cx)) {
            if generation == self.generation {
                self.cancel_upstream();
                progress = true;
            }
        }
        progress
    }

    pub(super) fn poll_out(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut progress = false;
        while self.scanned > 0 {
            let ready = self.out.get(..self.scanned).unwrap_or_default();
            match Pin::new(&mut self.agent).poll_write(cx, ready) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(End::Client),
                Poll::Ready(Ok(written)) => {
                    drop_written(&mut self.out, written.min(self.scanned));
                    self.scanned = self.scanned.saturating_sub(written);
                    progress = true;
                }
                Poll::Pending => return Ok(progress),
            }
        }
        if progress {
            if self.out.capacity() > HIGH && self.out.is_empty() {
                self.out = BytesMut::new();
            }
            match Pin::new(&mut self.agent).poll_flush(cx) {
                Poll::Ready(Err(_)) => return Err(End::Client),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        Ok(progress)
    }

    /// Reads what either side says. Whoever did not speak last is expected to, and is asked first; if it said a little,
    /// that is handled before the other one is asked, which always happens before this task sleeps.
    fn poll_reads(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut read = false;
        for agent in [!self.agent_spoke, self.agent_spoke] {
            let count = if agent {
                self.poll_agent(cx)?
            } else {
                self.poll_server(cx)?
            };
            if count > 0 {
                (self.agent_spoke, read) = (agent, true);
            }
            if (1..*CHUNKS.start()).contains(&count) {
                break;
            }
        }
        Ok(read)
    }

    fn poll_server(&mut self, cx: &mut Context<'_>) -> Result<usize, End> {
        if self.out.len() > HIGH {
            return Ok(0);
        }
        match poll_fill(&mut self.upstream, cx, self.server_in.buffer(), self.chunk) {
            Poll::Ready(Ok(0) | Err(_)) => Err(End::Target),
            Poll::Ready(Ok(count)) => {
                let wanted = if count >= self.chunk {
                    self.chunk.saturating_mul(4)
                } else {
                    *CHUNKS.start()
                };
                self.chunk = wanted.min(*CHUNKS.end());
                Ok(count)
            }
            Poll::Pending => Ok(0),
        }
    }

    fn poll_agent(&mut self, cx: &mut Context<'_>) -> Result<usize, End> {
        if self.blocked() {
            return Ok(0);
        }
        match poll_fill(&mut self.agent, cx, self.agent_in.buffer(), *CHUNKS.start()) {
            Poll::Ready(Ok(0) | Err(_)) => Err(End::Client),
            Poll::Ready(Ok(count)) => Ok(count),
            Poll::Pending => Ok(0),
        }
    }

    /// Writes everything that waits for the agent.
    pub(super) async fn flush_agent(&mut self) -> Result<(), End> {
        self.scan_out()?;
        let all = poll_fn(|cx| match self.poll_out(cx) {
            Ok(_) if self.out.is_empty() => Poll::Ready(Ok(())),
            Ok(_) => Poll::Pending,
            Err(end) => Poll::Ready(Err(end)),
        });
        tokio::time::timeout(STALLED, all).await.unwrap_or(Err(End::Client))
    }

    /// Writes everything that waits for the server.
    pub(super) async fn flush_server(&mut self) -> Result<(), End> {
        self.seal().await?;
        self.upstream.send().await.map_err(|_| End::Target)
    }

    async fn close(mut self, end: End) {
        // Nothing that waits leaves before it was looked at, whatever the session ends of.
        let end = match end {
            End::Echo => End::Echo,
            end => self.scan_out().err().unwrap_or(end),
        };
        // A server at work would not notice that its client is gone: it is told to stop.
        if !self.queue.is_empty() && !matches!(end, End::Goodbye | End::Target) {
            self.cancel_upstream();
        }
        self.abandon();
        let last = self.last_words(end);
        if let Some(fields) = last {
            // The middle of a row cannot be followed by words.
            if !self.server_in.inside_frame() {
                fields.write(&mut self.out, b'E');
            }
        }
        let _ = tokio::time::timeout(CLOSE, self.flush_agent()).await;
        // Locks must not outlive the agent: the server is told, and the socket closes whether it hears it or not.
        if let Ok(admitted) = self.gate.passive(write::terminate()) {
            self.upstream.queue(admitted);
            let _ = tokio::time::timeout(CLOSE, self.upstream.flush(self.gate.recorder())).await;
        }
        let _ = self.upstream.shutdown().await;
        let _ = tokio::time::timeout(CLOSE, tokio::io::AsyncWriteExt::shutdown(&mut self.agent)).await;
    }

    /// What the agent is told at the end, and what the record says.
    fn last_words(&mut self, end: End) -> Option<super::codec::error::Fields> {
        let refusal = match end {
            End::Goodbye | End::Client => {
                self.gate.closing("client");
                return None;
            }
            End::Target => {
                self.gate.closing("target");
                return None;
            }
            End::Cut(Reason::Limit) => Refusal::new(Reason::Limit, SESSION)
                .because("Sidegate was short of memory, and this session held most of it")
                .hint("Open a new connection, and send and ask for less at once"),
            End::Cut(reason) => Refusal::new(reason, SESSION),
            End::Refused(refusal) => *refusal,
            End::Violation(what) => {
                let refusal = Refusal::new(Reason::ProtocolViolation, "message").because(what);
                self.gate.closing("protocol_violation");
                self.gate.refused(refusal, None)
            }
            End::Server(what) => {
                tracing::warn!(session = %self.session.id, what, "the server broke the protocol");
                self.gate.closing("target");
                Refusal::new(Reason::UpstreamRefused, SESSION).because("the target broke the protocol")
            }
            End::Echo => {
                // What holds the secret must not leave.
                self.out.truncate(self.scanned);
                self.session.end(Reason::Internal);
                tracing::error!(session = %self.session.id, "the lease's secret was on its way to the agent");
                let refusal = Refusal::new(Reason::Internal, SESSION).because("the answer held a credential");
                self.gate.refused(refusal, None)
            }
        };
        self.gate.closing(refusal.reason.as_str());
        Some(reply::error(&refusal, Severity::Session))
    }
}
