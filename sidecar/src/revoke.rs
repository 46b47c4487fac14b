//! The kill switch in this sidecar: what is frozen, and the generation that every operation checks.
//!
//! A deny set replaces the previous one whole; a lower revision than the one held is refused, so nothing frozen thaws
//! by a lagging broker. Invariant: after [`Revocations::apply`] returns, no operation of a frozen session passes the
//! gate, and every matching session has been told to end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use sidegate_policies::api::lockdown::{Freeze, LockdownAction};
use sidegate_policies::api::target::Credential;
use sidegate_policies::engine::Subject;
use sidegate_policies::wire::{DenyEntry, DenySet};

use crate::session::{Session, Sessions};
use crate::target::TargetState;
use sidegate_policies::reason::Reason;

/// More entries than this deny everything.
pub const ENTRY_LIMIT: usize = 10_000;

/// What is frozen now.
#[derive(Default)]
pub struct Revocations {
    set: ArcSwap<DenySet>,
    /// Bumped with every set, after the set is in place.
    generation: AtomicU64,
    swap: Mutex<()>,
}

/// Entries of the set that touch one session, worked out once per generation.
#[derive(Default, Clone)]
pub struct Frozen {
    /// When the latest closing entry ends, milliseconds since 1970; `i64::MAX` without an end.
    close_until: Option<i64>,
    /// The same for entries of either action.
    any_until: Option<i64>,
}

impl Frozen {
    /// Whether nothing touches the session: the common case, which needs no clock.
    pub fn is_free(&self) -> bool {
        self.any_until.is_none()
    }

    /// Whether open sessions are frozen at this time.
    pub fn closes(&self, now_ms: i64) -> bool {
        self.close_until.is_some_and(|until| now_ms < until)
    }

    /// Whether new sessions are refused at this time.
    pub fn refuses(&self, now_ms: i64) -> bool {
        self.any_until.is_some_and(|until| now_ms < until)
    }
}

/// What applying a deny set did.
pub struct Applied {
    /// Sessions that were told to end.
    pub closing: Vec<Arc<Session>>,
}

impl Revocations {
    /// The generation of the set in force: compare it before every operation.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Revision of the set in force.
    pub fn revision(&self) -> u64 {
        self.set.load().revision
    }

    /// The set in force.
    pub fn set(&self) -> Arc<DenySet> {
        self.set.load_full()
    }

    /// Swaps the set and tells matching sessions to end. None if the revision is lower than the one held.
    pub fn apply(&self, set: DenySet, sessions: &Sessions) -> Option<Applied> {
        {
            let _one_at_a_time = self.swap.lock().unwrap_or_else(PoisonError::into_inner);
            if set.revision < self.revision() {
                return None;
            }
            self.set.store(Arc::new(set));
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        Some(Applied {
            closing: self.cut(sessions, jiff::Timestamp::now().as_millisecond()),
        })
    }

    fn cut(&self, sessions: &Sessions, now_ms: i64) -> Vec<Arc<Session>> {
        let closing = sessions.matching(|session| {
            self.frozen(&session.subject, &session.target).closes(now_ms) && session.cut_reason().is_none()
        });
        for session in &closing {
            session.end(Reason::Locked);
        }
        closing
    }

    /// What the set in force means for one subject on one target.
    pub fn frozen(&self, subject: &Subject, target: &TargetState) -> Frozen {
        let set = self.set.load();
        let mut frozen = Frozen::default();
        if set.entries.len() > ENTRY_LIMIT {
            frozen.close_until = Some(i64::MAX);
            frozen.any_until = Some(i64::MAX);
            return frozen;
        }
        for entry in set.entries.iter().filter(|entry| touches(entry, subject, target)) {
            let until = Some(entry.until_ms.unwrap_or(i64::MAX));
            frozen.any_until = frozen.any_until.max(until);
            if entry.action == LockdownAction::Close {
                frozen.close_until = frozen.close_until.max(until);
            }
        }
        frozen
    }
}

fn touches(entry: &DenyEntry, subject: &Subject, target: &TargetState) -> bool {
    let id = &target.id;
    match &entry.freeze {
        Freeze::ServiceAccount(account) => {
            account.namespace == subject.namespace && account.name == subject.service_account
        }
        Freeze::Pod(pod) => pod.namespace == subject.namespace && pod.name == subject.pod,
        Freeze::Namespace(namespace) => *namespace == subject.namespace,
        Freeze::Target(named) => *named.namespace == *id.namespace && *named.name == *id.name,
        Freeze::Secret(secret) => {
            *secret.namespace == *id.namespace
                && matches!(&target.spec.credential, Credential::Secret(own) if own.name == secret.name)
        }
        Freeze::Issuer(issuer) => target.spec.credential.issuer() == Some(issuer),
        // The broker voids the token itself: its next use ends the stream and every lease.
        Freeze::TokenId(_) => false,
        Freeze::Everything(_) => true,
    }
}

#[cfg(test)]
#[path = "revoke_tests.rs"]
mod tests;
