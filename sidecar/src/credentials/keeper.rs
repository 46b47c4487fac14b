//! The one task that owns a target's lease: fetch on demand, renew while used, stop in time, hand back at the end.
//!
//! Invariant: at most one request for a target is under way, whoever waits; a caller that gives up cancels nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sidegate_policies::reason::Reason;
use sidegate_policies::wire::{Lease, LeaseRequest};
use tokio::sync::{watch, Notify};
use tokio::time::{sleep_until, timeout, Instant};
use tokio_util::sync::CancellationToken;

use super::{CredentialError, LeaseHandle, LeaseSource, Meter};
use crate::session::Sessions;
use crate::target::TargetState;

/// Waiters share a failure this long.
const SHARED_FAILURE: Duration = Duration::from_millis(250);
/// One request to the broker.
const FETCH: Duration = Duration::from_secs(10);
/// First and longest pause between failed requests.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A lease that goes on for less than this longer has come to its end.
const GAIN: Duration = Duration::from_secs(2);
/// How long handing back may take at the end.
const GIVE_BACK: Duration = Duration::from_secs(2);

#[derive(Clone)]
enum State {
    Empty,
    Ready(Arc<LeaseHandle>),
    Failed(CredentialError, Instant),
}

pub(super) struct Keeper {
    target: Arc<TargetState>,
    stop: CancellationToken,
    state: watch::Sender<State>,
    wanted: Notify,
    /// The time of its renewal passed while no session was open: whoever takes the lease now needs it renewed after all.
    passed_over: AtomicBool,
    refused: Mutex<Option<String>>,
    meter: Arc<Meter>,
}

/// What the task does next by itself.
struct Plan {
    /// Renew at this time, if sessions are open then.
    renew: Option<Instant>,
    /// Stop using the lease at this time.
    stop: Option<Instant>,
    failures: u32,
    /// No request before this.
    not_before: Instant,
}

impl Keeper {
    pub(super) fn new(target: Arc<TargetState>, meter: Arc<Meter>, stop: CancellationToken) -> Self {
        Keeper {
            target,
            stop,
            state: watch::Sender::new(State::Empty),
            wanted: Notify::new(),
            passed_over: AtomicBool::new(false),
            refused: Mutex::default(),
            meter,
        }
    }

    /// Whether its lease is for this place, and of this credential.
    pub(super) fn is_for(&self, target: &TargetState) -> bool {
        self.target.same_place(target)
    }

    /// Hands the lease back; this keeper gives out no other.
    pub(super) fn end(&self) {
        self.stop.cancel();
    }

    /// How long the lease that is held lasts, if one is.
    pub(super) fn left(&self) -> Option<Duration> {
        match &*self.state.borrow() {
            State::Ready(lease) => Some(lease.life().saturating_sub(lease.age())),
            _ => None,
        }
    }

    pub(super) async fn lease(&self) -> Result<Arc<LeaseHandle>, CredentialError> {
        let mut seen = self.state.subscribe();
        if let Some(answer) = settled(&seen.borrow_and_update()) {
            if answer.is_ok() && self.passed_over.load(Ordering::Relaxed) {
                self.wanted.notify_one();
            }
            return answer;
        }
        self.wanted.notify_one();
        let _waiting = self.meter.waiting();
        loop {
            if seen.changed().await.is_err() {
                return Err(CredentialError::Unavailable);
            }
            if let Some(answer) = settled(&seen.borrow_and_update()) {
                return answer;
            }
        }
    }

    /// Drops the lease if it is still the one that was refused.
    pub(super) fn refused(&self, id: &str) {
        self.state.send_if_modified(|state| {
            let same = matches!(state, State::Ready(lease) if lease.id() == id);
            if same {
                *state = State::Empty;
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.to_owned());
            }
            same
        });
    }

    pub(super) async fn run(self: Arc<Self>, source: Arc<dyn LeaseSource>, sessions: Arc<Sessions>) {
        let mut plan = Plan {
            renew: None,
            stop: None,
            failures: 0,
            not_before: Instant::now(),
        };
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = at(plan.stop) => self.lapse(&*source, &sessions, &mut plan).await,
                () = at(plan.renew) => {
                    // Without open sessions the lease may lapse, unless one comes before it does: it would be cut then
                    // (`a_session_that_comes_after_a_renewal_nobody_needed_outlives_the_lease_it_began_with`).
                    if self.open(&sessions) {
                        self.fetch(&*source, &mut plan).await;
                    } else {
                        plan.renew = None;
                        self.passed_over.store(true, Ordering::Relaxed);
                    }
                }
                () = self.wanted.notified() => self.serve(&*source, &mut plan).await,
            }
        }
        self.hand_back(&*source).await;
    }

    /// Somebody wants a lease.
    async fn serve(&self, source: &dyn LeaseSource, plan: &mut Plan) {
        let passed_over = self.passed_over.swap(false, Ordering::Relaxed);
        if self.usable().is_some() {
            if passed_over {
                // As if it were time now: it is tried again where it fails.
                plan.renew = Some(Instant::now().max(plan.not_before));
            }
            return;
        }
        if Instant::now() < plan.not_before {
            let failure = match &*self.state.borrow() {
                State::Failed(error, _) => error.clone(),
                _ => CredentialError::Unavailable,
            };
            self.state.send_replace(State::Failed(failure, Instant::now()));
            return;
        }
        self.fetch(source, plan).await;
    }

    async fn fetch(&self, source: &dyn LeaseSource, plan: &mut Plan) {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        let held = self.usable();
        let request = LeaseRequest {
            target: self.target.id.to_string(),
            // One that cannot be named is none, and not any.
            place: Some(self.target.place().digest().unwrap_or_default()),
            refused,
            renew: held.as_ref().map(|held| held.id().to_owned()),
            public_key: None,
        };
        let (asked, wall) = (Instant::now(), jiff::Timestamp::now().as_millisecond());
        let answer = timeout(FETCH, source.lease(request)).await;
        let answer = answer.unwrap_or(Err(CredentialError::Unavailable));
        self.meter.fetched(asked.elapsed(), answer.as_ref().map(|_| ()));
        match answer.and_then(|lease| taken(lease, held.as_deref(), asked, wall)) {
            Ok((lease, goes_on)) => {
                plan.succeeded(asked, &lease, goes_on);
                self.state.send_replace(State::Ready(Arc::new(lease)));
            }
            Err(error) => {
                plan.failed();
                tracing::warn!(target = %self.target.id, %error, "no lease");
                // An old lease serves until its hard stop.
                if self.usable().is_none() {
                    self.state.send_replace(State::Failed(error, Instant::now()));
                }
            }
        }
    }

    /// The hard stop: sessions whose lease chain ended are cut, and what was leased is handed back.
    async fn lapse(&self, source: &dyn LeaseSource, sessions: &Sessions, plan: &mut Plan) {
        plan.stop = None;
        plan.renew = None;
        let held = self.state.send_replace(State::Empty);
        for session in sessions.matching(|session| session.target.id == self.target.id) {
            session.end(Reason::LeaseEnded);
        }
        give_back(source, held).await;
    }

    /// The lease, if it may be used now.
    pub(super) fn usable(&self) -> Option<Arc<LeaseHandle>> {
        match &*self.state.borrow() {
            State::Ready(lease) if lease.usable() => Some(lease.clone()),
            _ => None,
        }
    }

    fn open(&self, sessions: &Sessions) -> bool {
        !sessions
            .matching(|session| session.target.id == self.target.id)
            .is_empty()
    }

    async fn hand_back(&self, source: &dyn LeaseSource) {
        // Whoever still waits need not wait longer.
        let ended = State::Failed(CredentialError::Unavailable, Instant::now());
        give_back(source, self.state.send_replace(ended)).await;
    }
}

async fn give_back(source: &dyn LeaseSource, held: State) {
    if let State::Ready(lease) = held {
        let _ = timeout(GIVE_BACK, source.give_back(lease.id().to_owned())).await;
    }
}

/// What an answer means for the lease that is held: another one, or (true) the same one with another life.
pub(super) fn taken(
    lease: Lease,
    held: Option<&LeaseHandle>,
    asked: Instant,
    wall: i64,
) -> Result<(LeaseHandle, bool), CredentialError> {
    let (id, expires_in) = (lease.id.clone(), lease.expires_in);
    if let Some(fresh) = LeaseHandle::new(lease, asked, wall) {
        return Ok((fresh, false));
    }
    // "As before" about another lease, or about none, is no answer.
    let held = held
        .filter(|held| held.id() == id)
        .ok_or(CredentialError::Unavailable)?;
    Ok((held.prolonged(expires_in, asked, wall), true))
}

impl Plan {
    /// `goes_on`: it is the lease that was held, with another life.
    fn succeeded(&mut self, asked: Instant, lease: &LeaseHandle, goes_on: bool) {
        self.failures = 0;
        self.not_before = asked;
        // Between 60 and 75 % of its life, so that many sidecars do not come at once.
        let share = 0.60 + 0.15 * random_unit();
        let (before, stop) = (self.stop, asked.checked_add(lease.hard_stop()));
        self.renew = asked.checked_add(lease.life().mul_f64(share));
        self.stop = stop;
        // A chain that cannot be made longer ends at its stop; asking again would gain nothing.
        let least = before.and_then(|before| before.checked_add(GAIN));
        if goes_on && least.is_none_or(|least| stop.is_none_or(|stop| stop < least)) {
            self.renew = None;
        }
    }

    fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let (first, longest) = BACK_OFF;
        let factor = 2u32.saturating_pow(self.failures.min(16));
        let ceiling = first.saturating_mul(factor).min(longest);
        let pause = ceiling.mul_f64(random_unit());
        let again = Instant::now().checked_add(pause);
        self.not_before = again.unwrap_or_else(Instant::now);
        if self.renew.is_some() {
            self.renew = again;
        }
    }
}

/// What a state means for somebody who asks now; none: nothing yet.
fn settled(state: &State) -> Option<Result<Arc<LeaseHandle>, CredentialError>> {
    match state {
        State::Ready(lease) if lease.usable() => Some(Ok(lease.clone())),
        State::Failed(error, at) if at.elapsed() < SHARED_FAILURE => Some(Err(error.clone())),
        _ => None,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Uniform in [0, 1).
pub(crate) fn random_unit() -> f64 {
    let mut raw = [0u8; 4];
    // Without randomness jitter is lost, nothing else.
    let _ = aws_lc_rs::rand::fill(&mut raw);
    f64::from(u32::from_le_bytes(raw)) / (f64::from(u32::MAX) + 1.0)
}
