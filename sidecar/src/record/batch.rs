//! One write for what all sessions of a lane have to make durable in the same round of its loop.
//!
//! A session that may not go on before its frames are written joins, and sleeps. The first one to join has itself woken at
//! once: the lane runs what is ready before it, others join, and then it is its turn. Whoever of them runs first writes
//! for all and wakes the rest. A batch that fails is written session by session, so that none is refused for another.
//! Off the lanes there are no such rounds, and a session that has its lane to itself has nobody to wait for: they write
//! for themselves.
//! Invariant: nobody sleeps on a batch that nobody writes. The first is woken already, and one that goes away writes before.

use std::cell::RefCell;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;

use super::buffer::{Buffer, Shared};
use super::log::Log;
use super::segment::Part;
use super::CannotRecord;

thread_local! {
    /// Nothing where the thread is no lane.
    static LANE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Lane {
    /// Sessions that record here.
    sessions: usize,
    /// Those that joined the batch.
    members: Vec<Member>,
}

struct Member {
    log: Arc<Log>,
    shared: Arc<Shared>,
    waker: Waker,
}

/// From here on the sessions of this thread, which never leave it, write together.
pub fn on_this_thread() {
    LANE.set(Some(Lane::default()));
}

/// What `of` answers about this thread's lane, if it is one.
fn lane<T>(of: impl FnOnce(&mut Lane) -> T) -> Option<T> {
    let asked = LANE.try_with(|lane| lane.try_borrow_mut().ok()?.as_mut().map(of));
    asked.ok().flatten()
}

/// A session begins to record on this thread.
pub(super) fn enter() {
    lane(|lane| lane.sessions = lane.sessions.saturating_add(1));
}

/// It ends. If others wait for a batch that it is in, that is written now.
pub(super) fn leave(shared: &Arc<Shared>) {
    lane(|lane| lane.sessions = lane.sessions.saturating_sub(1));
    if shared.lock().joined {
        write(shared);
    }
}

/// Ready once everything that the session buffered is written, or why it cannot be.
pub(super) fn poll(log: &Arc<Log>, shared: &Arc<Shared>, cx: &Context<'_>) -> Poll<Result<(), CannotRecord>> {
    let mut buffer = shared.lock();
    if buffer.joined {
        drop(buffer);
        write(shared);
        buffer = shared.lock();
        buffer.joined = false;
    } else if buffer.failed.is_none()
        && !buffer.bytes.is_empty()
        && lane(|lane| lane.join(log, shared, cx)) == Some(true)
    {
        (buffer.joined, buffer.moved) = (true, true);
        return Poll::Pending;
    }
    let written = match buffer.failed.take() {
        Some(failed) => Err(failed),
        // What is left is not in a batch.
        None => shared.write(log, &mut buffer).map(drop),
    };
    buffer.moved = true;
    Poll::Ready(shared.verdict(written))
}

impl Lane {
    /// False: nobody else is there to write with.
    fn join(&mut self, log: &Arc<Log>, shared: &Arc<Shared>, cx: &Context<'_>) -> bool {
        if self.sessions < 2 {
            return false;
        }
        if self.members.is_empty() {
            cx.waker().wake_by_ref();
        }
        self.members.push(Member {
            log: log.clone(),
            shared: shared.clone(),
            waker: cx.waker().clone(),
        });
        true
    }
}

/// Members on their way to the log. However it comes out, they are woken: where it panics that ends one session, and the
/// others write for themselves.
struct Batch<'a> {
    members: Vec<Member>,
    /// Who runs now.
    own: &'a Arc<Shared>,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for member in self.members.drain(..) {
            if !Arc::ptr_eq(&member.shared, self.own) {
                member.waker.wake();
            }
        }
        // The list is about as long in the next round.
        let emptied = std::mem::take(&mut self.members);
        lane(|lane| {
            if lane.members.is_empty() {
                lane.members = emptied;
            }
        });
    }
}

/// Writes the batch and wakes everybody in it but `own`.
fn write(own: &Arc<Shared>) {
    // Nothing is borrowed while others are woken.
    let Some(members) = lane(|lane| std::mem::take(&mut lane.members)) else {
        return;
    };
    let batch = Batch { members, own };
    let mut rest = batch.members.as_slice();
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|member| Arc::ptr_eq(&member.log, &first.log));
        let (these, others) = rest.split_at(same.count());
        write_to(&first.log, these);
        rest = others;
    }
}

fn write_to(log: &Log, members: &[Member]) {
    let mut buffers: SmallVec<[MutexGuard<'_, Buffer>; 16]> =
        members.iter().map(|member| member.shared.lock()).collect();
    let mut parts = SmallVec::<[Part<'_>; 16]>::new();
    for (buffer, member) in buffers.iter_mut().zip(members) {
        // The flusher may have been here.
        if !buffer.bytes.is_empty() {
            parts.push(buffer.part(member.shared.slot));
        }
    }
    let together = if parts.is_empty() {
        Ok(0)
    } else {
        log.append(&mut parts)
    };
    drop(parts);
    for (buffer, member) in buffers.iter_mut().zip(members) {
        buffer.joined = false;
        if together.is_ok() {
            buffer.written(log);
        } else {
            buffer.failed = member.shared.write(log, buffer).err();
        }
    }
}
