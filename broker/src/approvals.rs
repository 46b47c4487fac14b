//! Approvals: one state machine per request, moved only by compare-and-swap on the stored object.
//!
//! Refuses to ask for what no rule asks for, to be flooded, to let the agent decide, and to let one grant run
//! twice. The broker decides nothing here: it carries what people said. The invariants: a state is stored before
//! anybody is told of it, and only a won claim may be sent; no lock is held while a store is waited for.

pub mod people;
pub mod store;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use sidegate_policies::api::access_policy::Approver;
use sidegate_policies::api::access_request::{
    AccessRequestSpec, AccessRequestStatus, RequestClaim, RequestState, RequestSubject, RequestedOperation, Verdict,
};
use sidegate_policies::api::meta::{Metadata, NamespacedRef, Object};
use sidegate_policies::api::API_VERSION;
use sidegate_policies::approval::{outcome, Place, MAX_DECISIONS};
use sidegate_policies::engine::Subject;
use sidegate_policies::record::replay::escape;
use sidegate_policies::record::Kind;
use sidegate_policies::wire::{ApprovalAsk, ApprovalClaim, ApprovalOutcome, ApprovalState};
use tokio::sync::watch;

use crate::audit::{Audit, Event, Unrecorded};
use crate::clock::{parse_rfc3339, rfc3339, Clock};
use crate::index::{AskBasis, Index};
use crate::issuer::{client_id, random};
use crate::lockdown::{About, Denied};
use people::Person;
use store::{Made, Store, StoreError, Stored, SwapError};

/// Open requests of one subject.
pub const MAX_OPEN: usize = 20;
/// New requests of one subject per minute, at one broker.
pub const MAX_NEW_PER_MINUTE: usize = 30;
/// Longest text that can be shown to people, and so be approved.
pub const MAX_TEXT: usize = 64 * 1024;
/// A claim without an outcome becomes `Unknown`.
const CLAIM_MS: i64 = 60_000;
/// Finished requests are kept so long.
const KEEP_MS: i64 = 24 * 3_600_000;
/// Rounds against other replicas, and people, before the caller is told to try again.
const ROUNDS: usize = 8;
/// Names tried for a new request, beside those of the same operation that are known.
const NAMES: usize = 16;
/// Characters of an operation in lists.
const SUMMARY: usize = 60;
/// Housekeeping comes at least so often.
const TICK: Duration = Duration::from_millis(500);
/// Between two looks, while looking fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why a call about a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    /// No such request of this subject.
    #[error("no such request")]
    NotFound,
    /// The rules named do not ask for this target.
    #[error("no rule in force asks for this")]
    NotAsked,
    /// Too long to be shown to people.
    #[error("too long to be shown: more than 64 KiB")]
    TooLong,
    /// Too many open or new requests.
    #[error("too many requests: {0}")]
    Flood(&'static str),
    /// A Lockdown freezes it.
    #[error("frozen by lockdown `{0}`")]
    Locked(String),
    /// The request is decided, used or over.
    #[error("the request is {0:?}")]
    NotPending(RequestState),
    /// This person may not decide it.
    #[error("{0}")]
    NotAllowed(String),
    /// The claim is about something else.
    #[error("the digest is another one")]
    Digest,
    /// It cannot be recorded, so it is not done.
    #[error("{0}")]
    Unrecorded(#[from] Unrecorded),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others move the same request all the time.
    #[error("the request changes all the time")]
    Contended,
}

/// All requests of one broker.
pub struct Approvals {
    store: Arc<dyn Store>,
    caps: Mutex<Caps>,
    clock: Arc<dyn Clock>,
    audit: Arc<Audit>,
}

/// What one subject may ask at once, by pod UID.
#[derive(Default)]
struct Caps {
    created: HashMap<String, VecDeque<i64>>,
    /// Requests that are being stored at this moment.
    asking: HashMap<String, usize>,
}

/// A place among the requests of one subject, until its request is stored.
struct Turn<'a> {
    approvals: &'a Approvals,
    pod_uid: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut caps = self.approvals.caps();
        if let Some(asking) = caps.asking.get_mut(&self.pod_uid) {
            *asking = asking.saturating_sub(1);
        }
    }
}

/// Who moved a request.
enum Moved {
    /// We did.
    Ours(Arc<Stored>),
    /// Somebody else was first, or deleted it.
    Theirs(Arc<Stored>),
}

impl Moved {
    fn now(self) -> Arc<Stored> {
        match self {
            Moved::Ours(stored) | Moved::Theirs(stored) => stored,
        }
    }
}

impl Approvals {
    /// Over the requests of this store.
    pub fn over(store: Arc<dyn Store>, clock: Arc<dyn Clock>, audit: Arc<Audit>) -> Self {
        Approvals {
            store,
            caps: Mutex::default(),
            clock,
            audit,
        }
    }

    /// Told whenever any request moved.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.store.changed()
    }

    /// How many wait for people.
    pub fn waiting(&self) -> usize {
        let all = self.store.all().into_iter();
        all.filter(|stored| stored.state() == RequestState::Pending).count()
    }

    /// Every request, newest first.
    pub fn list(&self) -> Vec<Arc<Stored>> {
        let mut all = self.store.all();
        all.sort_by(|a, b| b.created_ms.cmp(&a.created_ms).then_with(|| a.name().cmp(b.name())));
        all
    }

    /// Asks: the same digest of the same subject is the same request, and a denial is remembered.
    ///
    /// # Errors
    /// Nothing asks for it, it cannot be shown, or it is one too many. Waits for the store.
    pub fn ask(
        &self,
        who: &Subject,
        ask: ApprovalAsk,
        index: &Index,
        denied: &Denied,
    ) -> Result<ApprovalState, ApprovalError> {
        let now_ms = self.clock.now_ms();
        if ask.operation.text.len() > MAX_TEXT || ask.digest.len() != 64 {
            return Err(ApprovalError::TooLong);
        }
        let about = About {
            subject: Some(who),
            target: Some(&ask.target),
            ..About::default()
        };
        if let Some(lockdown) = denied.frozen(about, now_ms) {
            return Err(ApprovalError::Locked(lockdown.to_owned()));
        }
        let rules: Vec<String> = ask.approver_sets.iter().map(|set| set.rule.clone()).collect();
        let basis = index
            .ask_basis(who, &ask.target, &rules)
            .ok_or(ApprovalError::NotAsked)?;
        let subject = request_subject(who);
        let mut alike = self.store.all();
        alike.retain(|stored| stored.spec().subject == subject && stored.spec().digest == ask.digest);
        let latest = alike
            .iter()
            .max_by_key(|stored| (stored.created_ms, stored.resource_version));
        if let Some(same) = latest.filter(|same| shared(same, &basis, now_ms)) {
            return Ok(same.answer(false));
        }
        let _turn = self.admit(&subject, now_ms)?;
        let mut stored = self.new_request(who, ask, &basis);
        // Replicas that are asked the same at once make the same name of it, and a name is taken once.
        for number in alike.len()..alike.len().saturating_add(NAMES) {
            stored.request.metadata.name = ticket(&stored, number);
            match self.store.create(stored.clone()).map_err(unfit)? {
                Made::New(made) => return Ok(made.answer(false)),
                Made::Taken(other) => {
                    let same = other.spec().subject == subject && other.spec().digest == stored.spec().digest;
                    if same && shared(&other, &basis, now_ms) {
                        return Ok(other.answer(false));
                    }
                }
            }
        }
        Err(ApprovalError::Contended)
    }

    /// Caps of one subject: open now, and new within the last minute.
    fn admit(&self, subject: &RequestSubject, now_ms: i64) -> Result<Turn<'_>, ApprovalError> {
        let all = self.store.all();
        let open = all.iter().filter(|stored| {
            stored.spec().subject == *subject && matches!(stored.state(), RequestState::Pending | RequestState::Granted)
        });
        let open = open.count();
        let mut caps = self.caps();
        let asking = caps.asking.entry(subject.pod_uid.clone()).or_default();
        if open.saturating_add(*asking) >= MAX_OPEN {
            return Err(ApprovalError::Flood("20 are open"));
        }
        *asking = asking.saturating_add(1);
        let turn = Turn {
            approvals: self,
            pod_uid: subject.pod_uid.clone(),
        };
        let times = caps.created.entry(subject.pod_uid.clone()).or_default();
        while times.front().is_some_and(|at| at.saturating_add(60_000) <= now_ms) {
            times.pop_front();
        }
        let flood = times.len() >= MAX_NEW_PER_MINUTE;
        if !flood {
            times.push_back(now_ms);
        }
        drop(caps);
        match flood {
            true => Err(ApprovalError::Flood("30 within a minute")),
            false => Ok(turn),
        }
    }

    /// A request of this subject, as last heard of. Waits for nothing.
    ///
    /// # Errors
    /// There is none that was heard of: [`Approvals::look`] may know more.
    pub fn get(&self, who: &Subject, name: &str) -> Result<ApprovalState, ApprovalError> {
        let subject = request_subject(who);
        let all = self.store.all();
        let mut own = all.iter().filter(|stored| stored.spec().subject == subject);
        let found = own.find(|stored| stored.name() == name);
        Ok(found.ok_or(ApprovalError::NotFound)?.answer(false))
    }

    /// A request of this subject, as it is. Waits for the store.
    ///
    /// # Errors
    /// There is none.
    pub fn look(&self, who: &Subject, name: &str) -> Result<ApprovalState, ApprovalError> {
        Ok(self.own(who, name)?.answer(false))
    }

    /// Claims a grant. A repeated claim with the same nonce is the same claim; any other loses. Waits for the store.
    ///
    /// # Errors
    /// It is about something else, frozen, or cannot be recorded or stored.
    pub fn claim(
        &self,
        who: &Subject,
        name: &str,
        claim: &ApprovalClaim,
        index: &Index,
        denied: &Denied,
    ) -> Result<ApprovalState, ApprovalError> {
        for _ in 0..ROUNDS {
            let now_ms = self.clock.now_ms();
            let stored = self.own(who, name)?;
            if stored.spec().digest != claim.digest {
                return Err(ApprovalError::Digest);
            }
            if let Some(lockdown) = denied.frozen(about(who, &stored.target()), now_ms) {
                return Err(ApprovalError::Locked(lockdown.to_owned()));
            }
            match (stored.state(), stored.claim()) {
                (RequestState::Claimed, Some(held)) if held.nonce == claim.nonce => return Ok(stored.answer(true)),
                (RequestState::Granted, None) if stored.until_ms > now_ms => {}
                _ => return Ok(stored.answer(false)),
            }
            // People of the rules as they are now: what the object says of them is compared, never believed.
            let basis = index.ask_basis(who, &stored.target(), &stored.spec().rules);
            if basis.is_none_or(|basis| basis.digest != stored.basis || basis.sets != stored.spec().approver_sets) {
                return Ok(self.transition(&stored, RequestState::Void)?.now().answer(false));
            }
            let mut next = self.on_record(&stored)?;
            next.status_mut().claim = Some(RequestClaim {
                nonce: claim.nonce.clone(),
                session: claim.session.clone(),
                operation: i64::try_from(claim.operation).unwrap_or(i64::MAX),
                at: rfc3339(now_ms),
            });
            next.status_mut().state = RequestState::Claimed;
            let event = Event {
                subject: &client_id(who),
                pod_uid: &who.pod_uid,
                object: name,
                digest: &claim.digest,
                detail: &format!("session {}, operation {}", claim.session, claim.operation),
                ..Event::new(Kind::Request, "grant.claimed")
            };
            // A grant is used up on record first: a claim that nobody can prove is not won.
            self.audit.record(event)?;
            match self.step(&stored, next)? {
                Moved::Ours(moved) => return Ok(moved.answer(true)),
                Moved::Theirs(_) => self.audit.note(Event {
                    event: "grant.lost",
                    detail: "somebody else moved it first: nothing is sent by this claim",
                    ..event
                }),
            }
        }
        Err(ApprovalError::Contended)
    }

    /// Settles a claim. Waits for the store.
    ///
    /// # Errors
    /// It is not the caller's claim, or this is no ending.
    pub fn outcome(
        &self,
        who: &Subject,
        name: &str,
        outcome: &ApprovalOutcome,
    ) -> Result<ApprovalState, ApprovalError> {
        let ends = matches!(
            outcome.state,
            RequestState::Done | RequestState::Failed | RequestState::Unknown
        );
        self.until_ours(who, name, |stored| {
            let holds = stored.claim().is_some_and(|claim| claim.nonce == outcome.nonce);
            if !ends || !holds {
                return Err(ApprovalError::NotAllowed("no claim with this nonce".to_owned()));
            }
            Ok((stored.state() == RequestState::Claimed).then_some(outcome.state))
        })
    }

    /// The agent cancelled: never sent, if this wins. Waits for the store.
    ///
    /// # Errors
    /// There is no such request.
    pub fn withdraw(&self, who: &Subject, name: &str) -> Result<ApprovalState, ApprovalError> {
        self.until_ours(who, name, |stored| {
            let open = matches!(stored.state(), RequestState::Pending | RequestState::Granted);
            Ok(open.then_some(RequestState::Cancelled))
        })
    }

    /// Moves a request of this subject to where `next` says, looking anew whenever somebody else was first.
    fn until_ours(
        &self,
        who: &Subject,
        name: &str,
        next: impl Fn(&Stored) -> Result<Option<RequestState>, ApprovalError>,
    ) -> Result<ApprovalState, ApprovalError> {
        for _ in 0..ROUNDS {
            let stored = self.own(who, name)?;
            let Some(next) = next(&stored)? else {
                return Ok(stored.answer(false));
            };
            if let Moved::Ours(moved) = self.transition(&stored, next)? {
                return Ok(moved.answer(false));
            }
        }
        Err(ApprovalError::Contended)
    }

    /// One person's word, on a machine. Who it is comes from the system, never from the request.
    ///
    /// # Errors
    /// This person may not, or it is too late.
    pub fn decide(
        &self,
        name: &str,
        person: &Person,
        verdict: Verdict,
        reason: Option<String>,
    ) -> Result<Arc<Stored>, ApprovalError> {
        if self.store.place() == Place::Cluster {
            let words = "people decide on the AccessRequest itself: `sidegate approve NAME -n NAMESPACE`, or kubectl";
            return Err(ApprovalError::NotAllowed(words.to_owned()));
        }
        for _ in 0..ROUNDS {
            let stored = self.store.find(name, None)?.ok_or(ApprovalError::NotFound)?;
            let next = self.decided(&stored, person, verdict, reason.clone())?;
            match self.step(&stored, next)? {
                Moved::Ours(moved) => return Ok(moved),
                Moved::Theirs(present) if present.state() != RequestState::Pending => return Ok(present),
                Moved::Theirs(_) => {}
            }
        }
        Err(ApprovalError::Contended)
    }

    fn decided(
        &self,
        stored: &Arc<Stored>,
        person: &Person,
        verdict: Verdict,
        reason: Option<String>,
    ) -> Result<Stored, ApprovalError> {
        let now_ms = self.clock.now_ms();
        if stored.state() != RequestState::Pending {
            return Err(ApprovalError::NotPending(stored.state()));
        }
        if stored.until_ms <= now_ms {
            self.transition(stored, RequestState::Expired)?;
            return Err(ApprovalError::NotPending(RequestState::Expired));
        }
        person.may_decide(stored.spec()).map_err(ApprovalError::NotAllowed)?;
        let decisions = &stored.status().decisions;
        if decisions.iter().any(|decision| decision.by == person.name) {
            let words = format!("{} has already decided", person.name);
            return Err(ApprovalError::NotAllowed(words));
        }
        if decisions.len() >= MAX_DECISIONS {
            return Err(ApprovalError::NotAllowed("too many people have decided".to_owned()));
        }
        let mut next = Stored::clone(stored);
        let word = person.decision(verdict, reason, rfc3339(now_ms));
        next.status_mut().decisions.push(word);
        let state = outcome(next.spec(), &next.status().decisions, Place::Machine).0;
        next.status_mut().state = state;
        if state != RequestState::Pending {
            next.until_ms = now_ms.saturating_add(next.valid_for_ms);
        }
        self.on_record(&next)
    }

    /// The same with every decision in the audit log: a word that cannot be recorded was not given.
    fn on_record(&self, stored: &Stored) -> Result<Stored, ApprovalError> {
        let mut next = stored.clone();
        let decisions = &stored.status().decisions;
        for decision in decisions
            .iter()
            .skip(decisions.len().saturating_sub(stored.unrecorded()))
        {
            let event = match decision.verdict {
                Verdict::Approve => "approval.approved",
                Verdict::Deny => "approval.denied",
            };
            self.audit.record(Event {
                subject: &decision.by,
                pod_uid: &stored.spec().subject.pod_uid,
                object: stored.name(),
                digest: &stored.spec().digest,
                detail: decision.reason.as_deref().unwrap_or_default(),
                ..Event::new(Kind::Decided, event)
            })?;
        }
        let until_ms = stored.until_ms;
        let status = next.status_mut();
        status.recorded = i32::try_from(status.decisions.len()).ok();
        if matches!(status.state, RequestState::Granted | RequestState::Denied) {
            status.valid_until = Some(rfc3339(until_ms));
        }
        Ok(next)
    }

    /// Expiry, claims without outcome, deleted requests, changed policies, lockdowns, decisions that are not on record,
    /// and old finished requests. Waits for the store.
    ///
    /// # Errors
    /// The first of those that the store did not take: they wait for the next time, and hold up no other.
    pub fn sweep(&self, index: &Index, denied: &Denied) -> Result<(), ApprovalError> {
        let now_ms = self.clock.now_ms();
        self.caps()
            .created
            .retain(|_, times| times.back().is_some_and(|at| at.saturating_add(60_000) > now_ms));
        self.caps().asking.retain(|_, asking| *asking > 0);
        if !self.store.keeps_house() {
            return Ok(());
        }
        let mut failed = Ok(());
        for stored in self.store.all() {
            failed = failed.and(self.swept(&stored, index, denied, now_ms));
        }
        failed
    }

    fn swept(&self, stored: &Arc<Stored>, index: &Index, denied: &Denied, now_ms: i64) -> Result<(), ApprovalError> {
        if stored.unrecorded() > 0 {
            let next = self.on_record(stored)?;
            self.step(stored, next)?;
        } else if let Some(next) = self.due(stored, index, denied, now_ms) {
            self.transition(stored, next)?;
        } else if stored.is_over() && stored.moved_ms.saturating_add(KEEP_MS) <= now_ms {
            self.store.remove(stored)?;
        }
        Ok(())
    }

    /// Where a request must go now by itself.
    fn due(&self, stored: &Stored, index: &Index, denied: &Denied, now_ms: i64) -> Option<RequestState> {
        match stored.state() {
            RequestState::Pending | RequestState::Granted => {
                if stored.until_ms <= now_ms {
                    return Some(RequestState::Expired);
                }
                let subject = &stored.asked_by;
                let frozen = denied.frozen(about(subject, &stored.target()), now_ms).is_some();
                let basis = index.ask_basis(subject, &stored.target(), &stored.spec().rules);
                let changed = basis.is_none_or(|basis| basis.digest != stored.basis);
                (frozen || changed || self.store.is_gone(stored)).then_some(RequestState::Void)
            }
            RequestState::Claimed => {
                let at_ms = stored.claim().and_then(|claim| parse_rfc3339(&claim.at)).unwrap_or(0);
                (at_ms.saturating_add(CLAIM_MS) <= now_ms).then_some(RequestState::Unknown)
            }
            _ => None,
        }
    }

    fn caps(&self) -> MutexGuard<'_, Caps> {
        self.caps.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn own(&self, who: &Subject, name: &str) -> Result<Arc<Stored>, ApprovalError> {
        let found = self.store.find(name, Some(&request_subject(who)))?;
        found.ok_or(ApprovalError::NotFound)
    }

    fn transition(&self, stored: &Arc<Stored>, next: RequestState) -> Result<Moved, ApprovalError> {
        let mut moved = Stored::clone(stored);
        moved.status_mut().state = next;
        self.step(stored, moved)
    }

    /// Swaps in the store. A request deleted meanwhile is void: deleting is how people revoke.
    fn step(&self, stored: &Arc<Stored>, mut next: Stored) -> Result<Moved, ApprovalError> {
        next.moved_ms = self.clock.now_ms();
        let at = rfc3339(next.moved_ms);
        next.status_mut().moved_at = Some(at);
        let wanted = next.state();
        let moved = match self.store.swap(next) {
            Ok(moved) => Moved::Ours(moved),
            Err(SwapError::Gone) => {
                let mut void = Stored::clone(stored);
                void.status_mut().state = RequestState::Void;
                Moved::Theirs(Arc::new(void))
            }
            Err(SwapError::Changed(present)) => Moved::Theirs(present),
            Err(SwapError::Store(error)) => {
                self.audit.note(Event {
                    object: stored.name(),
                    detail: &format!("it could not move to {wanted:?}: {error}"),
                    ..Event::new(Kind::Request, "request.failed")
                });
                return Err(error.into());
            }
        };
        let (Moved::Ours(now) | Moved::Theirs(now)) = &moved;
        if now.state() != stored.state() {
            self.audit.note(Event {
                pod_uid: &now.asked_by.pod_uid,
                object: now.name(),
                detail: &format!("{:?} to {:?}", stored.state(), now.state()),
                ..Event::new(Kind::Request, "request.moved")
            });
        }
        Ok(moved)
    }

    /// A request without a name yet.
    fn new_request(&self, who: &Subject, ask: ApprovalAsk, basis: &AskBasis) -> Stored {
        let now_ms = self.clock.now_ms();
        let asked = i64::try_from(ask.valid_for_seconds)
            .unwrap_or(i64::MAX)
            .saturating_mul(1000);
        let own = i64::try_from(basis.valid_for.as_millis()).unwrap_or(i64::MAX);
        let valid_for_ms = asked.clamp(1000, own.max(1000));
        let until_ms = now_ms.saturating_add(valid_for_ms);
        let (namespace, target) = ask.target.split_once('/').unwrap_or_default();
        let target = NamespacedRef {
            namespace: namespace.to_owned(),
            name: target.to_owned(),
        };
        let mut exclude: Vec<Approver> = Vec::new();
        for person in basis.sets.iter().flat_map(|set| &set.exclude) {
            if !exclude.contains(person) {
                exclude.push(person.clone());
            }
        }
        Stored {
            resource_version: 1,
            created_ms: now_ms,
            moved_ms: now_ms,
            until_ms,
            valid_for_ms,
            basis: basis.digest.clone(),
            session: ask.session,
            bundle: ask.bundle,
            asked_by: who.clone(),
            target_uid: basis.target_uid.clone(),
            request: Object {
                api_version: API_VERSION.to_owned(),
                kind: "AccessRequest".to_owned(),
                metadata: Metadata {
                    namespace: Some(namespace.to_owned()),
                    ..Metadata::default()
                },
                spec: AccessRequestSpec {
                    subject: request_subject(who),
                    target,
                    operation: RequestedOperation {
                        summary: summary(&ask.operation.text),
                        ..ask.operation
                    },
                    digest: ask.digest,
                    rules: basis.sets.iter().map(|set| set.rule.clone()).collect(),
                    approver_sets: basis.sets.clone(),
                    exclude,
                    expires_at: rfc3339(until_ms),
                },
                status: Some(AccessRequestStatus::default()),
            },
        }
    }
}

/// Until the next look, after so many that failed: half a minute at most, with a quarter off so that replicas part.
pub(crate) fn pause(failures: u32) -> Duration {
    if failures == 0 {
        return TICK;
    }
    let longest = TICK.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST_PAUSE);
    // Without randomness jitter is lost, nothing else.
    let [off] = random::<1>().unwrap_or_default();
    let off = longest.saturating_mul(u32::from(off)).checked_div(1024);
    longest.saturating_sub(off.unwrap_or_default())
}

/// What a store has no room for cannot be shown to people either.
fn unfit(error: StoreError) -> ApprovalError {
    match error {
        StoreError::Unfit(_) => ApprovalError::TooLong,
        other => other.into(),
    }
}

/// Whether asking again is answered by this request.
fn shared(same: &Stored, basis: &AskBasis, now_ms: i64) -> bool {
    let stands = matches!(
        same.state(),
        RequestState::Pending | RequestState::Granted | RequestState::Denied
    );
    stands && same.until_ms > now_ms && same.basis == basis.digest
}

fn about<'a>(subject: &'a Subject, target: &'a str) -> About<'a> {
    About {
        subject: Some(subject),
        target: Some(target),
        ..About::default()
    }
}

fn request_subject(who: &Subject) -> RequestSubject {
    RequestSubject {
        service_account: NamespacedRef {
            namespace: who.namespace.clone(),
            name: who.service_account.clone(),
        },
        pod: who.pod.clone(),
        pod_uid: who.pod_uid.clone(),
    }
}

/// The beginning of a text, on one line that cannot drive a terminal.
fn summary(text: &str) -> String {
    let line = escape(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut shown: String = line.chars().take(SUMMARY).collect();
    if shown.len() < line.len() {
        shown.push('…');
    }
    shown
}

/// `ar-` and eight characters of base32: the same for everybody who counts this request as the same one of its kind.
fn ticket(stored: &Stored, number: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut hash = Context::new(&SHA256);
    for part in [
        &stored.target(),
        &stored.asked_by.pod_uid,
        &stored.spec().digest,
        &number.to_string(),
    ] {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    let hash = hash.finish();
    let letters = hash.as_ref().iter().take(8);
    let letters = letters.filter_map(|byte| ALPHABET.get(usize::from(byte & 31)));
    format!("ar-{}", letters.map(|letter| char::from(*letter)).collect::<String>())
}
