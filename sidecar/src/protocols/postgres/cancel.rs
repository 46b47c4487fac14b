//! Cancelling: our own keys, and the way from a key to the session that holds it.
//!
//! Ids we hand out have their sign bit clear and mean nothing at the server; keys are 4 bytes at protocol 3.0 and 32 at
//! 3.2 and compared in constant time. Unknown keys are closed and counted; more than ten a second are not looked at.
//! Invariant: a key reaches its own session only, and only the statement it was received for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use aws_lc_rs::{constant_time, rand};
use bytes::{BufMut, Bytes};
use futures_util::task::AtomicWaker;
use tokio::time::{Duration, Instant};

use super::codec::write;

/// An id we handed to an agent. Never the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OurPid(i32);

/// Tries with unknown keys that are looked at per second.
const TRIES_PER_SECOND: u32 = 10;

/// Where a cancel request arrives in a session.
#[derive(Default)]
pub struct Mailbox {
    waker: AtomicWaker,
    /// The statement in flight, counted by the session; 0: none.
    current: AtomicU64,
    /// The statement the last request was received for.
    asked: AtomicU64,
}

impl Mailbox {
    /// The session says which statement is in flight, if any.
    pub fn in_flight(&self, generation: Option<u64>) {
        self.current.store(generation.unwrap_or(0), Ordering::Release);
    }

    /// Takes the statement that is to be cancelled, if a request came for it; otherwise wakes the task when one comes.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<u64> {
        self.waker.register(cx.waker());
        match self.asked.swap(0, Ordering::AcqRel) {
            0 => Poll::Pending,
            generation => Poll::Ready(generation),
        }
    }

    fn ring(&self) {
        let current = self.current.load(Ordering::Acquire);
        if current != 0 {
            self.asked.store(current, Ordering::Release);
            self.waker.wake();
        }
    }
}

struct Entry {
    key: Vec<u8>,
    mailbox: Arc<Mailbox>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<OurPid, Entry>,
    window: Option<(Instant, u32)>,
}

/// Every key in force.
#[derive(Default)]
pub struct Keys {
    table: Mutex<Table>,
    unknown: AtomicU64,
}

/// A session's key, in force until dropped.
pub struct Held {
    keys: Arc<Keys>,
    pid: OurPid,
    key: Vec<u8>,
    /// Where requests arrive.
    pub mailbox: Arc<Mailbox>,
}

impl Keys {
    /// A fresh key for a session that speaks the given protocol minor. None: no random numbers.
    pub fn issue(self: &Arc<Self>, minor: u16) -> Option<Held> {
        let mut key = vec![0u8; if minor >= 2 { 32 } else { 4 }];
        rand::fill(&mut key).ok()?;
        let mailbox = Arc::new(Mailbox::default());
        let mut table = self.table();
        for _ in 0..64 {
            let mut raw = [0u8; 4];
            rand::fill(&mut raw).ok()?;
            // Old drivers ignore negative ids; zero looks like no id.
            let pid = OurPid((i32::from_be_bytes(raw) & i32::MAX).max(1));
            if table.entries.contains_key(&pid) {
                continue;
            }
            table.entries.insert(
                pid,
                Entry {
                    key: key.clone(),
                    mailbox: mailbox.clone(),
                },
            );
            return Some(Held {
                keys: self.clone(),
                pid,
                key,
                mailbox,
            });
        }
        None
    }

    /// Delivers a cancel request. False: the key is not known.
    pub fn cancel(&self, pid: i32, key: &[u8], now: Instant) -> bool {
        let mut table = self.table();
        if let Some((since, tries)) = table.window {
            if now.duration_since(since) < Duration::from_secs(1) && tries >= TRIES_PER_SECOND {
                return false;
            }
        }
        let mailbox = table.entries.get(&OurPid(pid)).and_then(|entry| {
            constant_time::verify_slices_are_equal(&entry.key, key)
                .ok()
                .map(|()| entry.mailbox.clone())
        });
        match mailbox {
            Some(mailbox) => {
                mailbox.ring();
                true
            }
            None => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
                table.window = match table.window {
                    Some((since, tries)) if now.duration_since(since) < Duration::from_secs(1) => {
                        Some((since, tries.saturating_add(1)))
                    }
                    _ => Some((now, 1)),
                };
                false
            }
        }
    }

    /// Requests with unknown keys so far.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// What the agent was told.
    #[cfg(test)]
    pub fn parts(&self) -> (i32, Vec<u8>) {
        (self.pid.0, self.key.clone())
    }

    /// The BackendKeyData that tells the agent.
    pub fn message(&self) -> Bytes {
        let message = write::one(b'K', |out| {
            out.put_i32(self.pid.0);
            out.put_slice(&self.key);
        });
        message.into()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keys.table().entries.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_reaches_its_own_session_only() {
        let keys = Arc::new(Keys::default());
        let (one, two) = (keys.issue(0).unwrap(), keys.issue(2).unwrap());
        let now = Instant::now();
        let (pid, key) = one.parts();
        one.mailbox.in_flight(Some(7));
        two.mailbox.in_flight(Some(9));
        assert!(keys.cancel(pid, &key, now));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert_eq!(one.mailbox.poll(&mut cx), Poll::Ready(7));
        assert_eq!(
            (one.mailbox.poll(&mut cx), two.mailbox.poll(&mut cx)),
            (Poll::Pending, Poll::Pending)
        );
        assert!(!keys.cancel(two.parts().0, &key, now));
        assert_eq!((one.key.len(), two.key.len()), (4, 32));
        assert!(pid > 0);
        drop(one);
        assert!(!keys.cancel(pid, &key, now));
        assert_eq!(keys.unknown(), 2);
    }

    #[tokio::test]
    async fn a_request_without_a_statement_in_flight_is_forgotten() {
        let keys = Arc::new(Keys::default());
        let held = keys.issue(0).unwrap();
        let (pid, key) = held.parts();
        assert!(keys.cancel(pid, &key, Instant::now()));
        held.mailbox.in_flight(Some(1));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert_eq!(held.mailbox.poll(&mut cx), Poll::Pending);
    }

    #[tokio::test]
    async fn guessing_is_capped_at_ten_a_second() {
        let keys = Arc::new(Keys::default());
        let held = keys.issue(0).unwrap();
        let now = Instant::now();
        for _ in 0..20 {
            assert!(!keys.cancel(1, b"none", now));
        }
        let (pid, key) = held.parts();
        assert!(!keys.cancel(pid, &key, now), "not looked at in this second");
        assert!(keys.cancel(pid, &key, now + Duration::from_secs(1)));
    }
}
