//! What this sidecar may act on right now: the bundle in force, the kill switch, and how fresh both are.
//!
//! The bundle is swapped whole and numbered; the gate compares numbers, so a new one governs the next operation.
//! Refuses new sessions when the broker has been silent. Invariant: nothing is allowed before a bundle, a subject and
//! a deny set have come from the broker in this very process; what was kept from an earlier one only refuses.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use sidegate_policies::engine::set::PolicySet;
use sidegate_policies::engine::{Subject, TargetId};
use sidegate_policies::reason::Reason;
use sidegate_policies::seal::Revisions;

use crate::approvals::Approver;
use crate::fence::canary::Canary;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::rate::Rates;
use crate::record::Log;
use crate::revoke::Revocations;
use crate::session::{Session, Sessions};
use crate::staleness::{Leased, Limits, Staleness};
use crate::target::TargetState;
use crate::task::Tasks;

/// Clocks of broker and sidecar may differ by so much.
const SKEW_MS: u64 = 60_000;

/// One bundle, compiled.
pub struct InForce {
    /// Counts the bundles of this process; never the same twice.
    pub generation: u64,
    /// SHA-256 of the body.
    pub version: Arc<str>,
    /// How far the broker had read the store.
    pub revisions: Revisions,
    /// Cluster name.
    pub cluster: String,
    /// The engine.
    pub policies: PolicySet,
    /// Its targets.
    pub targets: BTreeMap<TargetId, Arc<TargetState>>,
    /// Targets that could not be read themselves, and why: nobody listens for them.
    pub unread: BTreeMap<TargetId, String>,
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
    /// A bundle has come from the broker in this process, or it said that the one kept is still the one.
    confirmed: AtomicBool,
    /// The highest revisions ever taken, also those of a bundle that is void by now.
    taken: ArcSwap<Revisions>,
    /// Who knows which targets have a valid lease.
    leased: OnceLock<Arc<dyn Leased>>,
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
    /// Whether a fence around the pod stands.
    pub canary: Canary,
    /// How long the broker may be silent, where the bundle does not say.
    staleness: Limits,
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
            confirmed: AtomicBool::new(false),
            taken: ArcSwap::default(),
            leased: OnceLock::new(),
            draining: AtomicBool::new(false),
            deny: Revocations::default(),
            sessions: Arc::default(),
            rates: Rates::default(),
            memory: Memory::new(None),
            metrics: Arc::default(),
            approver,
            tasks,
            separation,
            canary: Canary::default(),
            staleness: Limits::default(),
        }
    }

    /// The same with so many bytes of memory; absent: no limit.
    #[must_use]
    pub fn limited_to(mut self, memory: Option<u64>) -> Self {
        self.memory = Memory::new(memory);
        self
    }

    /// The same with how it meets a silent broker.
    #[must_use]
    pub fn meeting_silence(mut self, limits: Limits) -> Self {
        self.staleness = limits;
        self
    }

    /// Takes who knows which targets have a valid lease; once.
    pub fn leases_known_to(&self, who: Arc<dyn Leased>) {
        let _ = self.leased.set(who);
    }

    /// How long the broker may be silent, as the environment says.
    pub fn limits(&self) -> Limits {
        self.staleness
    }

    /// Whether a target has a lease that may be used now.
    pub fn holds_lease(&self, target: &TargetId) -> bool {
        self.leased.get().is_some_and(|leased| leased.holds(target))
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
        self.took(&bundle.revisions);
        let bundle = Arc::new(bundle);
        self.bundle.store(Some(bundle.clone()));
        self.metrics.bundle_since.mark();
        self.generation.store(generation, Ordering::Release);
        bundle
    }

    /// The highest revisions taken: nothing older is taken any more.
    pub fn taken(&self) -> Arc<Revisions> {
        self.taken.load_full()
    }

    /// A store was read this far.
    pub fn took(&self, revisions: &Revisions) {
        self.taken.rcu(|taken| taken.raised(revisions));
    }

    /// The broker gave the bundle in force, or said that it is still the one.
    pub fn confirmed(&self) {
        self.confirmed.store(true, Ordering::Release);
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

    /// Takes the broker's clock, in milliseconds since 1970: one that differs by more than a minute is counted, for tokens
    /// and certificates will not agree for long.
    pub fn broker_clock(&self, now_ms: i64) {
        let own = jiff::Timestamp::now().as_millisecond();
        if own.abs_diff(now_ms) > SKEW_MS {
            self.metrics.skewed.up();
        }
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

    /// Whether bundle and kill switch are fresh enough for a new session with any target.
    pub fn fresh(&self) -> bool {
        self.spoken() && self.limits().judge(self.silent()) == Staleness::Fresh
    }

    /// The same for one target: where work goes before safety, one with a valid lease is served on (test
    /// `each_column_refuses_and_ends_what_its_rows_say`).
    pub fn fresh_for(&self, target: &TargetId) -> bool {
        self.lets_in(target, self.silent())
    }

    /// The same after such a silence.
    pub(crate) fn lets_in(&self, target: &TargetId, silent: Option<Duration>) -> bool {
        let limits = self.limits();
        match limits.judge(silent) {
            Staleness::Fresh => self.spoken(),
            Staleness::Refuse | Staleness::Close => {
                silent.is_some() && limits.spares_leased && self.spoken() && self.holds_lease(target)
            }
            Staleness::Void => false,
        }
    }

    /// Whether bundle and deny set are the broker's word to this process (test
    /// `a_bundle_kept_from_before_refuses_until_the_broker_spoke`).
    pub fn spoken(&self) -> bool {
        self.armed.load(Ordering::Acquire) && self.confirmed.load(Ordering::Acquire)
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[tokio::test]
    async fn whichever_clock_says_longer_says_how_long_the_broker_was_silent() {
        let bench = Bench::new();
        let authority = &bench.authority;
        assert!(authority.silent().unwrap() < Duration::from_secs(20));
        let hour = 3_600_000;
        // The wall clock jumped ahead, or the machine slept: what stands still then is the other clock.
        authority.heard_wall.fetch_sub(hour, Ordering::Release);
        assert!(authority.silent().unwrap() >= Duration::from_secs(3_600));
        assert!(!authority.fresh());
        // It jumped back: the monotonic clock is asked.
        authority.heard_wall.fetch_add(2 * hour, Ordering::Release);
        assert!(authority.silent().unwrap() < Duration::from_secs(20));
        authority.unheard();
        assert_eq!(authority.silent(), None);
    }

    #[tokio::test]
    async fn a_broker_whose_clock_is_more_than_a_minute_off_is_counted() {
        let bench = Bench::new();
        let now = jiff::Timestamp::now().as_millisecond();
        for (off, counted) in [(0, 0), (-50_000, 0), (50_000, 0), (-70_000, 1), (70_000, 2)] {
            bench.authority.broker_clock(now + off);
            assert_eq!(bench.authority.metrics.skewed.get(), counted, "{off} ms");
        }
    }
}
