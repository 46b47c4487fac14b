//! Approvals: an operation waits for people, and nothing else of its session passes meanwhile.
//!
//! While it waits, cancel is heard and takes the request back, a heartbeat notice goes out every 15 seconds, and what
//! the agent sends is kept up to 64 KiB and not read further. An agent that goes away ends the hold; its ticket stays.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use sidegate_policies::reason::Reason;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::agent::Next;
use super::codec::error::Fields;
use super::relay::{End, Relay};
use super::work::Work;
use crate::admitted::Admitted;
use crate::gate::Held;
use crate::refusal::{Refusal, Ticket};

/// Between two notices.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// What an agent may send while one of its operations is held.
const KEPT: usize = 64 * 1024;
/// The last words to an agent that takes none.
const NOTICE: Duration = Duration::from_secs(2);

/// An operation that waits, and what happens when it need not any more.
pub struct Parked {
    /// The operation.
    pub held: Held<Work>,
    /// What follows.
    pub next: Next,
}

/// What the wait ended with. One lives at a time, on the stack of the wait.
#[allow(clippy::large_enum_variant)]
enum Waited {
    Granted(Admitted<Work>),
    Refused(Refusal),
    Cancelled,
    Gone,
    Cut,
}

impl<A, S> Relay<A, S>
where
    A: AsyncRead + AsyncWrite + Unpin + Send,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Holds the parked operation. Everything before it has been answered.
    pub(super) async fn hold(&mut self) -> Result<(), End> {
        let Some(Parked { mut held, next }) = self.parked.take() else {
            return Ok(());
        };
        self.flush_server().await?;
        if let Err(refusal) = held.ask(&mut self.gate).await {
            return self.refuse(refusal, next.kind());
        }
        let Some(ticket) = held.ticket() else {
            return self.refuse(Refusal::new(Reason::Internal, "statement"), next.kind());
        };
        let patience = held.patience();
        self.notice(&ticket, patience).await?;
        match self.wait_for_people(held, &ticket, patience).await? {
            Waited::Granted(admitted) => self.go(admitted, next),
            Waited::Refused(refusal) => self.refuse(refusal, next.kind()),
            Waited::Cancelled => {
                self.gate.withdraw(&ticket).await;
                let refusal = Refusal::new(Reason::Withdrawn, "statement");
                self.refuse(refusal, next.kind())
            }
            Waited::Gone => Err(End::Client),
            Waited::Cut => Err(End::Cut(self.session.cut_reason().unwrap_or(Reason::Internal))),
        }
    }

    async fn notice(&mut self, ticket: &Ticket, patience: Duration) -> Result<(), End> {
        notice_fields(ticket, patience).write(&mut self.out, b'N');
        self.flush_agent().await
    }

    async fn wait_for_people(&mut self, held: Held<Work>, ticket: &Ticket, patience: Duration) -> Result<Waited, End> {
        let (cut, key) = (self.session.cut.clone(), self.key.as_ref());
        if let Some(key) = key {
            key.mailbox.in_flight(Some(self.generation));
        }
        let started = tokio::time::Instant::now();
        let mut beat = tokio::time::interval_at(started.checked_add(HEARTBEAT).unwrap_or(started), HEARTBEAT);
        let mut decided = pin!(held.wait(&mut self.gate));
        loop {
            let agent_in = &mut self.agent_in;
            let room = agent_in.waiting() < KEPT;
            let cancelled = poll_fn(|cx| match key {
                Some(key) => key.mailbox.poll(cx).map(|_| ()),
                None => Poll::Pending,
            });
            tokio::select! {
                biased;
                () = cut.cancelled() => return Ok(Waited::Cut),
                () = cancelled => return Ok(Waited::Cancelled),
                result = &mut decided => return Ok(match result {
                    Ok(admitted) => Waited::Granted(admitted),
                    Err(refusal) => Waited::Refused(refusal),
                }),
                read = self.agent.read_buf(agent_in.buffer()), if room => {
                    if !matches!(read, Ok(count) if count > 0) {
                        return Ok(Waited::Gone);
                    }
                }
                _ = beat.tick() => {
                    let left = patience.saturating_sub(started.elapsed());
                    let notice = notice_fields(ticket, left).frame(b'N');
                    let told = async {
                        self.agent.write_all(notice.bytes()).await?;
                        self.agent.flush().await
                    };
                    if !matches!(tokio::time::timeout(NOTICE, told).await, Ok(Ok(()))) {
                        return Ok(Waited::Gone);
                    }
                }
            }
        }
    }
}

fn notice_fields(ticket: &Ticket, left: Duration) -> Fields {
    let text = format!(
        "waiting for approval {}, up to {} s; cancel to withdraw",
        ticket.name,
        left.as_secs()
    );
    Fields::new("NOTICE", "00000", &text)
}
