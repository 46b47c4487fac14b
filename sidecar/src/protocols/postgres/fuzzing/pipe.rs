//! A stream in memory, and the loop that drives a session over two of them.
//!
//! A pipe answers what it was given, hears everything, and is pending when it has nothing to say. It never blocks a
//! writer. The driver knows when a session waits for a peer, so that no clock decides what happens next.

use std::collections::VecDeque;
use std::future::{poll_fn, Future};
use std::io;
use std::pin::{pin, Pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::answers::Polite;
use super::world::World;

/// Rounds without a byte moved in which tasks of the session may run before it counts as waiting for a peer.
const ROUNDS: u32 = 4;

/// Reads and writes of all pipes.
static MOVES: AtomicU64 = AtomicU64::new(0);

/// One side's peer.
#[derive(Default)]
pub struct Side {
    /// What it still has to say.
    pub say: VecDeque<Bytes>,
    /// What it heard.
    pub heard: Vec<u8>,
    /// It hangs up once it has said everything.
    pub closed: bool,
    /// It answers by itself, at once or when it is asked to.
    pub polite: Option<Polite>,
    /// It answers only when [`Pipe::answer`] is called.
    pub late: bool,
}

impl Side {
    fn answer(&mut self) -> bool {
        let said = match &mut self.polite {
            Some(polite) => polite.answer(&self.heard),
            None => Vec::new(),
        };
        let any = !said.is_empty();
        if any {
            self.say.push_back(said.into());
        }
        any
    }
}

/// A stream whose other end is in the fuzzer's hand.
#[derive(Clone, Default)]
pub struct Pipe(Arc<Mutex<Side>>);

impl Pipe {
    /// A pipe that says these bytes in parts of `part` bytes; 0: at once.
    pub fn saying(bytes: &[u8], part: usize) -> Pipe {
        let pipe = Pipe::default();
        let part = if part == 0 { bytes.len().max(1) } else { part };
        pipe.with(|side| side.say.extend(bytes.chunks(part).map(Bytes::copy_from_slice)));
        pipe
    }

    /// Looks at the other end.
    pub fn with<T>(&self, look: impl FnOnce(&mut Side) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    /// Lets a polite peer answer. False: it has nothing to say.
    pub fn answer(&self) -> bool {
        self.with(Side::answer)
    }

    /// Hangs up. False: it had already.
    pub fn close(&self) -> bool {
        self.with(|side| !std::mem::replace(&mut side.closed, true))
    }

    /// What was heard so far.
    pub fn heard(&self) -> Vec<u8> {
        self.with(|side| side.heard.clone())
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|side| {
            let closed = side.closed;
            let Some(first) = side.say.front_mut() else {
                return if closed { Poll::Ready(Ok(())) } else { Poll::Pending };
            };
            MOVES.fetch_add(1, Ordering::Relaxed);
            let take = first.len().min(buf.remaining());
            buf.put_slice(&first[..take]);
            first.advance(take);
            if first.is_empty() {
                side.say.pop_front();
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        MOVES.fetch_add(1, Ordering::Relaxed);
        self.with(|side| {
            side.heard.extend_from_slice(bytes);
            if !side.late {
                side.answer();
            }
        });
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Drives a session to its end. Whenever it waits, `more` gives it something to go on with, or says that there is
/// nothing: then the session hangs, and the answer is None.
pub fn drive<F: Future>(world: &World, session: F, mut more: impl FnMut() -> bool) -> Option<F::Output> {
    world.runtime.block_on(async {
        // Without a budget: a session that is pending waits for a peer, not for its turn.
        let mut session = pin!(tokio::task::unconstrained(session));
        let (mut rounds, mut seen) = (0, 0);
        loop {
            if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(session.as_mut().poll(cx))).await {
                return Some(output);
            }
            let moves = MOVES.load(Ordering::Relaxed);
            if moves != seen {
                (rounds, seen) = (0, moves);
            }
            rounds += 1;
            if rounds < ROUNDS {
                tokio::task::yield_now().await;
            } else if rounds == ROUNDS {
                // What the session runs off this thread has ended, and has said so, when this has.
                let _ = world.ctx.tasks.blocking(|| ()).await;
            } else if !more() {
                return None;
            } else {
                rounds = 0;
            }
        }
    })
}
