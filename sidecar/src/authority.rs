//! What this sidecar may act on right now: the bundle in force, the kill switch, and how fresh both are.
//!
//! The bundle is swapped whole and numbered; the gate compares numbers, so a new one governs the next operation.
//! Refuses new sessions when the broker has been silent. Invariant: nothing is allowed before a bundle, a subject and
//! a deny set have come from the broker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use sidegate_policies::engine::set::PolicySet;
use sidegate_policies::engine::{Subject, TargetId};
use sidegate_policies::reason::Reason;

use crate::approvals::Approver;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::rate::Rates;
use crate::record::Log;
use crate::revoke::Revocations;
use crate::session::{Session, Sessions};
use crate::staleness::{Limits, Staleness};
use crate::target::TargetState;
use crate::task::Tasks;

/// One bundle, compiled.
pub struct InForce {
    /// Counts the bundles of this process; never the same twice.
    pub generation: u64,
    /// SHA-256 of the body.
    pub version: Arc<str>,
    /// The broker's revision of it.
    pub revision: u64,
    /// Cluster name.
    pub cluster: String,
    /// The engine.
    pub policies: PolicySet,
    /// Its targets.
    pub targets: BTreeMap<TargetId, Arc<TargetState>>,
    /// Key of approval digests.
    pub digest_key: Vec<u8>,
}

/// How well the agent is kept apart from the sidecar's own state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Separation {
    /// Same OS user: every record says so.
    #[default]
    None,
    /// Another OS user.
    User,
    /// Another container of the pod.
    Pod,
}

impl Separation {
    /// The word in records and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Separation::None => "none",
            Separation::User => "user",
            Separation::Pod => "pod",
        }
    }
}

/// Everything a gate asks before it says yes.
pub struct Authority {
    bundle: ArcSwapOption<InForce>,
    generation: AtomicU64,
    subject: ArcSwapOption<Subject>,
    log: ArcSwapOption<Log>,
    started: Instant,
    /// Milliseconds since `started` (monotonic) and since 1970 (wall) of the last word; the later clock wins.
    heard: AtomicU64,
    heard_wall: AtomicI64,
    /// A deny set has come.
    armed: AtomicBool,
    draining: AtomicBool,
    /// What is frozen.
    pub deny: Revocations,
    /// Open sessions.
    pub sessions: Arc<Sessions>,
    /// Operations per minute.
    pub rates: Rates,
    /// Memory, and what gives way.
    pub memory: Memory,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// People.
    pub approver: Arc<dyn Approver>,
    /// Tasks.
    pub tasks: Tasks,
    /// How the agent is kept apart.
    pub separation: Separation,
    /// How long the broker may be silent.
    pub staleness: Limits,
}

impl Authority {
    /// An authority that allows nothing yet.
    pub fn new(approver: Arc<dyn Approver>, tasks: Tasks, separation: Separation) -> Self {
        Authority {
            bundle: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            subject: ArcSwapOption::empty(),
            log: ArcSwapOption::empty(),
            started: Instant::now(),
            heard: AtomicU64::new(0),
            heard_wall: AtomicI64::new(0),
            armed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            deny: Revocations::default(),
            sessions: Arc::default(),
            rates: Rates::default(),
            memory: Memory::new(None),
            metrics: Arc::default(),
            approver,
            tasks,
            separation,
            staleness: Limits::default(),
        }
    }

    /// The same with so many bytes of memory; absent: no limit.
    #[must_use]
    pub fn limited_to(mut self, memory: Option<u64>) -> Self {
        self.memory = Memory::new(memory);
        self
    }

    /// Number of the bundle in force; 0 before the first. A cached plan is worth nothing under another number.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The bundle in force.
    pub fn in_force(&self) -> Option<Arc<InForce>> {
        self.bundle.load_full()
    }

    /// Swaps a compiled bundle in. The number is set here.
    pub fn enforce(&self, mut bundle: InForce) -> Arc<InForce> {
        let generation = self.generation().saturating_add(1);
        bundle.generation = generation;
        let bundle = Arc::new(bundle);
        self.bundle.store(Some(bundle.clone()));
        self.metrics.bundle_since.mark();
        self.generation.store(generation, Ordering::Release);
        bundle
    }

    /// Who the broker attested this pod to be.
    pub fn subject(&self) -> Option<Arc<Subject>> {
        self.subject.load_full()
    }

    /// Takes the broker's word on who this pod is.
    pub fn attested(&self, subject: Subject) {
        self.subject.store(Some(Arc::new(subject)));
    }

    /// The log of this start; none before the broker said who we are.
    pub fn log(&self) -> Option<Arc<Log>> {
        self.log.load_full()
    }

    /// Records go here from now on.
    pub fn records_to(&self, log: Arc<Log>) {
        self.log.store(Some(log));
    }

    /// The broker spoke just now.
    pub fn heard(&self) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Zero means never.
        self.heard.store(elapsed.max(1), Ordering::Release);
        self.heard_wall
            .store(jiff::Timestamp::now().as_millisecond(), Ordering::Release);
    }

    /// Nothing the broker said before counts as heard any more.
    pub fn unheard(&self) {
        self.heard.store(0, Ordering::Release);
    }

    /// A deny set is in force: without one nothing is allowed.
    pub fn armed(&self) {
        self.armed.store(true, Ordering::Release);
    }

    /// How long the broker has been silent, by whichever clock says longer; `None`: it never spoke.
    pub fn silent(&self) -> Option<Duration> {
        let heard = self.heard.load(Ordering::Acquire);
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let wall = jiff::Timestamp::now().as_millisecond();
        let wall = wall.saturating_sub(self.heard_wall.load(Ordering::Acquire));
        let longer = elapsed.saturating_sub(heard).max(u64::try_from(wall).unwrap_or(0));
        (heard != 0).then(|| Duration::from_millis(longer))
    }

    /// Whether bundle and kill switch are fresh enough for a new session.
    pub fn fresh(&self) -> bool {
        self.armed.load(Ordering::Acquire) && self.staleness.judge(self.silent()) == Staleness::Fresh
    }

    /// Ends the open sessions this is true of, and counts them as cut.
    pub fn cut(&self, reason: Reason, overdue: impl Fn(&Session) -> bool) -> Vec<Arc<Session>> {
        let closing = self.sessions.matching(overdue);
        for session in &closing {
            session.end(reason);
        }
        self.metrics.cut.add(closing.len() as u64);
        closing
    }

    /// This bundle counts no more: everything is denied until another one comes.
    pub fn void(&self, held: &Arc<InForce>) {
        let present = self.bundle.load();
        if present.as_ref().is_some_and(|present| Arc::ptr_eq(present, held)) {
            let before = self.bundle.compare_and_swap(&present, None);
            if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, held)) {
                self.generation.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// No new sessions from here on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the process is shutting down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}
