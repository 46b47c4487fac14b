//! One client connection from accept to close, and the table of all of them.
//!
//! A session can be cut from outside (lockdown, policy change, expiry, drain); the first reason wins and stays.
//! The table is what a lockdown walks. Invariant: a session is in the table from before its room starts until after
//! its room has ended, so nothing that runs is out of the kill switch's reach.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sidegate_policies::engine::{ConnectFacts, Subject};
use sidegate_policies::reason::Reason;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Counter;
use crate::target::TargetState;

/// Reasons a session can be cut for, in the order of their codes.
const CUTS: [Reason; 9] = [
    Reason::Locked,
    Reason::PolicyGone,
    Reason::LeaseEnded,
    Reason::MaxSession,
    Reason::Draining,
    Reason::Stale,
    Reason::CannotRecord,
    Reason::Limit,
    Reason::Internal,
];

/// One client connection.
pub struct Session {
    /// Its id, a UUIDv7.
    pub id: uuid::Uuid,
    /// Who acts.
    pub subject: Arc<Subject>,
    /// On what.
    pub target: Arc<TargetState>,
    /// Owner of the client's socket, by the kernel.
    pub peer_uid: Option<u32>,
    /// Cancelled when the session must end; [`Session::cut_reason`] says why.
    pub cut: CancellationToken,
    number: u64,
    /// Bytes in its buffers.
    held: AtomicU64,
    cut_code: AtomicU8,
    ended: CancellationToken,
    facts: OnceLock<ConnectFacts>,
    pub(crate) deadline: tokio::sync::watch::Sender<Option<Instant>>,
}

impl Session {
    /// A session that is about to start. The number orders sessions of one sidecar start.
    pub fn new(number: u64, subject: Arc<Subject>, target: Arc<TargetState>, peer_uid: Option<u32>) -> Self {
        Session {
            id: uuid::Uuid::now_v7(),
            subject,
            target,
            peer_uid,
            cut: CancellationToken::new(),
            number,
            held: AtomicU64::new(0),
            cut_code: AtomicU8::new(0),
            ended: CancellationToken::new(),
            facts: OnceLock::new(),
            deadline: tokio::sync::watch::Sender::new(None),
        }
    }

    /// Ends the session. Only the first reason counts.
    pub fn end(&self, reason: Reason) {
        let code = CUTS.iter().position(|cut| *cut == reason);
        let code = code
            .and_then(|at| u8::try_from(at).ok())
            .and_then(|at| at.checked_add(1))
            // A reason that is not listed still cuts, as Internal.
            .unwrap_or(CUTS.len() as u8);
        let _ = self
            .cut_code
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        self.cut.cancel();
    }

    /// Why the session was cut, if it was.
    pub fn cut_reason(&self) -> Option<Reason> {
        let code = self.cut_code.load(Ordering::Acquire).checked_sub(1)?;
        CUTS.get(usize::from(code)).copied()
    }

    /// Bytes in its buffers, as it said last.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Its number among the sessions of this sidecar start.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What it connected with, once the gate has admitted it.
    pub fn facts(&self) -> Option<&ConnectFacts> {
        self.facts.get()
    }

    pub(crate) fn connected(&self, facts: ConnectFacts) {
        let _ = self.facts.set(facts);
    }

    /// Completes when the session's room has ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

/// Every open session.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<HashMap<u64, Arc<Session>>>,
    last: AtomicU64,
    /// Sessions that are over: by each cut in order, then those that ended by themselves.
    closed: [Counter; CUTS.len() + 1],
    /// Bytes in the buffers of all of them.
    held: AtomicU64,
}

impl Sessions {
    /// The next session number.
    pub fn next_number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Puts a session into the table; it leaves when the guard is dropped.
    pub fn enter(self: &Arc<Self>, session: Arc<Session>) -> Entered {
        self.table().insert(session.number, session.clone());
        Entered {
            sessions: self.clone(),
            session,
        }
    }

    /// Every session that satisfies a condition.
    pub fn matching(&self, mut condition: impl FnMut(&Session) -> bool) -> Vec<Arc<Session>> {
        let open = self.table();
        open.values().filter(|session| condition(session)).cloned().collect()
    }

    /// How many sessions are over, by the reason they were cut for, or `ended` where nothing cut them.
    pub fn closed(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let reasons = CUTS.iter().map(|reason| reason.as_str()).chain(["ended"]);
        reasons.zip(self.closed.iter().map(Counter::get))
    }

    fn close(&self, session: &Session) {
        let reason = session.cut_reason();
        let at = reason.and_then(|reason| CUTS.iter().position(|cut| *cut == reason));
        if let Some(counter) = self.closed.get(at.unwrap_or(CUTS.len())) {
            counter.up();
        }
    }

    /// Takes what a session holds in its buffers now; answers what all of them hold.
    pub fn hold(&self, session: &Session, bytes: u64) -> u64 {
        let before = session.held.swap(bytes, Ordering::Relaxed);
        if bytes >= before {
            let more = bytes.saturating_sub(before);
            self.held.fetch_add(more, Ordering::Relaxed).saturating_add(more)
        } else {
            let less = before.saturating_sub(bytes);
            self.held.fetch_sub(less, Ordering::Relaxed).saturating_sub(less)
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.table().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Session>>> {
        // The table is never left half-changed, so a poisoned lock is still good.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place in the table.
pub struct Entered {
    sessions: Arc<Sessions>,
    session: Arc<Session>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.sessions.table().remove(&self.session.number);
        self.sessions.close(&self.session);
        self.sessions.hold(&self.session, 0);
        self.session.ended.cancel();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use sidegate_policies::api::target::TargetProtocol;
    use sidegate_policies::engine::TargetId;

    pub(crate) fn subject() -> Arc<Subject> {
        Arc::new(Subject {
            namespace: "agents".into(),
            service_account: "support".into(),
            pod: "support-1".into(),
            pod_uid: "uid-1".into(),
            labels: Default::default(),
        })
    }

    pub(crate) fn session(number: u64) -> Arc<Session> {
        let target = TargetState::announced(TargetId::new("data", "shop"), TargetProtocol::Tcp, 1);
        Arc::new(Session::new(number, subject(), Arc::new(target), None))
    }

    #[test]
    fn the_first_cut_reason_stays() {
        let session = session(1);
        assert_eq!(session.cut_reason(), None);
        session.end(Reason::Locked);
        session.end(Reason::Draining);
        assert_eq!(session.cut_reason(), Some(Reason::Locked));
        assert!(session.cut.is_cancelled());
    }

    #[tokio::test]
    async fn the_table_holds_what_runs() {
        let sessions = Arc::new(Sessions::default());
        let session = session(sessions.next_number());
        let entered = sessions.enter(session.clone());
        assert_eq!(sessions.matching(|_| true).len(), 1);
        drop(entered);
        assert!(sessions.is_empty());
        session.ended().await;
    }

    #[test]
    fn sessions_that_are_over_are_counted_by_what_ended_them() {
        let sessions = Arc::new(Sessions::default());
        for reason in [None, Some(Reason::Locked), Some(Reason::Locked), Some(Reason::Internal)] {
            let session = session(sessions.next_number());
            let entered = sessions.enter(session.clone());
            if let Some(reason) = reason {
                session.end(reason);
            }
            drop(entered);
        }
        let counted: Vec<_> = sessions.closed().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("locked", 2), ("internal", 1), ("ended", 1)]);
    }
}
