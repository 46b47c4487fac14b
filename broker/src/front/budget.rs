//! Budgets: how many calls an address, a key and a pod may make, decided before anything costly is done.
//!
//! The agent shares its sidecar's address, and anybody may ask for a nonce: so calls without a present nonce, calls
//! with one, and calls by a key that was attested here draw on budgets of their own, and garbage from the agent does
//! not lock its sidecar out. Refuses with 429 and `Retry-After`. The invariants: memory is bounded, and whoever does
//! not fit into it shares one budget; a flood is one event per ten seconds in the audit, with its count.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sidegate_policies::record::Kind;

use super::{Front, Refusal};
use crate::audit::{Audit, Event};
use crate::clock::Clock;
use crate::config::{Limits, Rate};
use crate::server::Peer;

/// Which budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// See [`Limits::stranger`].
    Stranger,
    /// See [`Limits::newcomer`].
    Newcomer,
    /// See [`Limits::known`].
    Known,
    /// See [`Limits::exchange`].
    Exchange,
    /// See [`Limits::pod`].
    Pod,
    /// No budget: calls at the people's face by nobody whom the cluster knows, which are counted as these are.
    Nobody,
}

impl Lane {
    const ALL: [Lane; 6] = [
        Lane::Stranger,
        Lane::Newcomer,
        Lane::Known,
        Lane::Exchange,
        Lane::Pod,
        Lane::Nobody,
    ];

    /// As in the audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Stranger => "address, no nonce",
            Lane::Newcomer => "address, nonce",
            Lane::Known => "key",
            Lane::Exchange => "pod, exchanges",
            Lane::Pod => "pod, calls",
            Lane::Nobody => "session records",
        }
    }
}

/// Budgets kept at most, of each sort.
const MAX_KEPT: usize = 16_384;
/// Time between two looks for budgets that are full again, and between two audit events of a lane; milliseconds.
const SWEEP_MS: i64 = 1000;
const SAY_MS: i64 = 10_000;
/// One call, in the unit budgets are kept in.
const CALL: i64 = 1000;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: i64,
    at_ms: i64,
}

impl Bucket {
    fn full(rate: Rate, at_ms: i64) -> Self {
        Bucket {
            left: i64::from(rate.burst).saturating_mul(CALL),
            at_ms,
        }
    }

    /// What is left now. A clock that was set back refills nothing.
    fn refill(&mut self, rate: Rate, now_ms: i64) {
        let passed = now_ms.saturating_sub(self.at_ms).max(0);
        let more = passed.saturating_mul(i64::from(rate.per_second));
        let most = i64::from(rate.burst).saturating_mul(CALL);
        self.left = self.left.saturating_add(more).min(most);
        self.at_ms = now_ms;
    }

    fn take(&mut self, rate: Rate, now_ms: i64) -> bool {
        self.refill(rate, now_ms);
        if self.left < CALL {
            return false;
        }
        self.left = self.left.saturating_sub(CALL);
        true
    }

    fn is_full(mut self, rate: Rate, now_ms: i64) -> bool {
        self.refill(rate, now_ms);
        self.left >= i64::from(rate.burst).saturating_mul(CALL)
    }
}

/// Budgets of one sort. One that is full again may be forgotten: it would be made anew the same.
struct Buckets<K> {
    rate: Rate,
    kept: HashMap<K, Bucket>,
    /// Of all that do not fit.
    rest: Bucket,
    swept_ms: i64,
}

impl<K: Hash + Eq> Buckets<K> {
    fn new(rate: Rate, now_ms: i64) -> Self {
        Buckets {
            rate,
            kept: HashMap::new(),
            rest: Bucket::full(rate, now_ms),
            swept_ms: now_ms,
        }
    }

    fn make_room(&mut self, now_ms: i64) {
        let since = now_ms.saturating_sub(self.swept_ms);
        if self.kept.len() >= MAX_KEPT && !(0..SWEEP_MS).contains(&since) {
            self.swept_ms = now_ms;
            let rate = self.rate;
            self.kept.retain(|_, bucket| !bucket.is_full(rate, now_ms));
        }
    }

    fn take(&mut self, key: K, now_ms: i64) -> bool {
        let rate = self.rate;
        if let Some(bucket) = self.kept.get_mut(&key) {
            return bucket.take(rate, now_ms);
        }
        self.make_room(now_ms);
        if self.kept.len() >= MAX_KEPT {
            return self.rest.take(rate, now_ms);
        }
        let mut bucket = Bucket::full(rate, now_ms);
        let taken = bucket.take(rate, now_ms);
        self.kept.insert(key, bucket);
        taken
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    unsaid: u64,
    said_ms: Option<i64>,
}

struct Kept {
    strangers: Buckets<IpAddr>,
    newcomers: Buckets<IpAddr>,
    known: Buckets<String>,
    exchanges: Buckets<String>,
    pods: Buckets<String>,
    counts: [Count; Lane::ALL.len()],
    refused: u64,
}

/// The budgets in force.
pub struct Budget {
    kept: Mutex<Kept>,
    clock: Arc<dyn Clock>,
}

impl Budget {
    /// Nothing used yet.
    pub fn new(limits: Limits, clock: Arc<dyn Clock>) -> Self {
        let now = clock.now_ms();
        let kept = Kept {
            strangers: Buckets::new(limits.stranger, now),
            newcomers: Buckets::new(limits.newcomer, now),
            known: Buckets::new(limits.known, now),
            exchanges: Buckets::new(limits.exchange, now),
            pods: Buckets::new(limits.pod, now),
            counts: Default::default(),
            refused: 0,
        };
        Budget {
            kept: Mutex::new(kept),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes one call before anything is verified. `claimed` is the thumbprint of the key that a proof with a present
    /// nonce claims to be made with; it opens the lane of attested keys only to those who know such a thumbprint.
    pub fn call(&self, peer: IpAddr, claimed: Option<&str>) -> Result<(), Lane> {
        let now = self.clock.now_ms();
        let mut kept = self.lock();
        let rate = kept.known.rate;
        let known = claimed.and_then(|key| kept.known.kept.get_mut(key));
        let (taken, lane) = match (known, claimed) {
            (Some(bucket), _) => (bucket.take(rate, now), Lane::Known),
            (None, Some(_)) => (kept.newcomers.take(peer, now), Lane::Newcomer),
            (None, None) => (kept.strangers.take(peer, now), Lane::Stranger),
        };
        kept.judge(taken, lane)
    }

    /// Takes one exchange of a pod whose token's signature was good.
    pub fn exchange(&self, pod_uid: &str) -> Result<(), Lane> {
        let now = self.clock.now_ms();
        let mut kept = self.lock();
        let taken = kept.exchanges.take(pod_uid.to_owned(), now);
        kept.judge(taken, Lane::Exchange)
    }

    /// Takes one call of an authenticated pod.
    pub fn pod(&self, pod_uid: &str) -> Result<(), Lane> {
        let now = self.clock.now_ms();
        let mut kept = self.lock();
        let taken = kept.pods.take(pod_uid.to_owned(), now);
        kept.judge(taken, Lane::Pod)
    }

    /// Remembers the key of an attested caller: its next calls need no address's budget.
    pub fn know(&self, thumbprint: &str) {
        let now = self.clock.now_ms();
        let mut kept = self.lock();
        if kept.known.kept.contains_key(thumbprint) {
            return;
        }
        kept.known.make_room(now);
        if kept.known.kept.len() < MAX_KEPT {
            let bucket = Bucket::full(kept.known.rate, now);
            kept.known.kept.insert(thumbprint.to_owned(), bucket);
        }
    }

    /// Counts a call at the people's face by nobody whom the cluster knows.
    pub fn nobody(&self) {
        self.lock().count(Lane::Nobody);
    }

    /// Calls refused since start.
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// Writes what was refused to the audit: at most one event per lane in ten seconds.
    pub fn say(&self, audit: &Audit) {
        self.say_after(audit, SAY_MS);
    }

    /// Writes what was refused and not said yet: the broker stops.
    pub fn say_last(&self, audit: &Audit) {
        self.say_after(audit, 0);
    }

    fn say_after(&self, audit: &Audit, pause_ms: i64) {
        let now = self.clock.now_ms();
        let mut due = Vec::new();
        for (lane, count) in Lane::ALL.into_iter().zip(self.lock().counts.iter_mut()) {
            let waited = count.said_ms.is_none_or(|said| now.saturating_sub(said) >= pause_ms);
            if count.unsaid > 0 && waited {
                due.push((lane, std::mem::take(&mut count.unsaid)));
                count.said_ms = Some(now);
            }
        }
        for (lane, refused) in due {
            let (event, why) = match lane {
                Lane::Nobody => (
                    "record.refused",
                    "with neither a certificate nor a token that the cluster knows",
                ),
                _ => ("budget.refused", "over the budget"),
            };
            audit.note(Event {
                object: lane.as_str(),
                detail: &format!("{refused} call(s) {why}"),
                ..Event::new(Kind::Refused, event)
            });
        }
    }
}

impl Kept {
    fn judge(&mut self, taken: bool, lane: Lane) -> Result<(), Lane> {
        if taken {
            return Ok(());
        }
        self.refused = self.refused.saturating_add(1);
        self.count(lane);
        Err(lane)
    }

    fn count(&mut self, lane: Lane) {
        for (of, count) in Lane::ALL.into_iter().zip(self.counts.iter_mut()) {
            if of == lane {
                count.unsaid = count.unsaid.saturating_add(1);
            }
        }
    }
}

/// Before everything else: takes the call out of its budget, or answers 429.
pub async fn guard(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    // Nobody knows where it came from: all such calls share one budget.
    let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let mut proofs = request.headers().get_all("dpop").iter();
    let claimed = match (proofs.next(), proofs.next()) {
        (Some(proof), None) => front.dpop.claimed_key(proof.as_bytes()),
        _ => None,
    };
    match front.budget.call(peer, claimed.as_deref()) {
        Ok(()) => next.run(request).await,
        Err(_) => over(&front).into_response(),
    }
}

/// The refusal of a call over its budget, counted for the audit.
pub fn over(front: &Front) -> Refusal {
    front.budget.say(&front.audit);
    Refusal::too_many()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::audit::tests::{audit, told};
    use crate::clock::ManualClock;
    use crate::state::StateDir;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn budget() -> (Budget, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::starting_now());
        (Budget::new(Limits::default(), clock.clone()), clock)
    }

    /// Takes until the budget is used up. One that never is must not hang the test.
    fn drain(mut take: impl FnMut() -> Result<(), Lane>) -> u32 {
        const FAR: u32 = 100_000;
        (0..FAR).find(|_| take().is_err()).unwrap_or(FAR)
    }

    #[test]
    fn a_pod_exchanges_five_times_a_second_and_no_more() {
        let (budget, clock) = budget();
        let rate = Limits::default().exchange;
        assert_eq!(rate.per_second, 5, "identity-and-broker.md section 12");
        assert_eq!(drain(|| budget.exchange("a")), rate.burst);
        assert_eq!(budget.exchange("a"), Err(Lane::Exchange));
        budget.exchange("b").unwrap();
        clock.advance_ms(1000);
        assert_eq!(drain(|| budget.exchange("a")), 5);
        clock.advance_ms(-60_000);
        assert_eq!(drain(|| budget.exchange("a")), 0, "a clock set back refills nothing");
        clock.advance_ms(3_600_000);
        assert_eq!(drain(|| budget.exchange("a")), rate.burst, "never more than the burst");
    }

    #[test]
    fn garbage_without_and_with_nonce_does_not_lock_the_attested_key_of_that_address_out() {
        let (budget, _) = budget();
        budget.know("sidecar");
        assert_eq!(drain(|| budget.call(HERE, None)), Limits::default().stranger.burst);
        budget.call(HERE, Some("new sidecar")).unwrap();
        drain(|| budget.call(HERE, Some("agent")));
        let mut number = 0;
        let rotating = drain(|| {
            number += 1;
            budget.call(HERE, Some(&format!("made up {number}")))
        });
        assert_eq!(rotating, 0, "made-up keys open no budget of their own");
        budget.call(HERE, Some("sidecar")).unwrap();
        let elsewhere = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
        budget.call(elsewhere, None).unwrap();
        assert_eq!(
            drain(|| budget.call(elsewhere, Some("sidecar"))) + 1,
            Limits::default().known.burst
        );
    }

    #[test]
    fn memory_is_bounded_and_who_does_not_fit_shares_one_budget() {
        let (budget, clock) = budget();
        let taken = (0..u32::try_from(MAX_KEPT).unwrap() + 1000)
            .filter(|number| budget.call(IpAddr::V4(Ipv4Addr::from(*number)), None).is_ok())
            .count();
        assert_eq!(budget.lock().strangers.kept.len(), MAX_KEPT);
        let rest = usize::try_from(Limits::default().stranger.burst).unwrap();
        assert_eq!(taken, MAX_KEPT + rest);
        clock.advance_ms(60_000);
        budget.call(HERE, None).unwrap();
        assert_eq!(budget.lock().strangers.kept.len(), 1, "full ones are forgotten");
        for number in 0..MAX_KEPT + 10 {
            budget.know(&number.to_string());
        }
        assert!(budget.lock().known.kept.len() <= MAX_KEPT);
    }

    #[test]
    fn a_flood_is_one_event_in_ten_seconds_with_its_count() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        let (budget, clock) = budget();
        let audit = audit(&state, clock.clone());
        let flood = || {
            drain(|| budget.call(HERE, None));
            for _ in 0..99 {
                let _ = budget.call(HERE, None);
                budget.say(&audit);
            }
        };
        flood();
        flood();
        clock.advance_ms(SAY_MS);
        budget.say(&audit);
        budget.say(&audit);
        audit.keep();
        let said: Vec<String> = told(&state).into_iter().map(|(_, detail)| detail).collect();
        assert_eq!(said, ["2 call(s) over the budget", "198 call(s) over the budget"]);
        assert_eq!(budget.refused(), 200);
    }

    #[test]
    fn people_whom_nobody_knows_are_one_event_in_ten_seconds_with_their_count() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        let (budget, clock) = budget();
        let audit = audit(&state, clock.clone());
        for _ in 0..100 {
            budget.nobody();
            budget.say(&audit);
        }
        clock.advance_ms(SAY_MS);
        budget.say(&audit);
        audit.keep();
        let said: Vec<String> = told(&state).into_iter().map(|(_, detail)| detail).collect();
        let why = "with neither a certificate nor a token that the cluster knows";
        assert_eq!(said, [format!("1 call(s) {why}"), format!("99 call(s) {why}")]);
        assert_eq!(budget.refused(), 0, "nobody's budget");
    }
}
