//! Approvals: one state machine per request, moved only by compare-and-swap on the stored object.
//!
//! Refuses to ask for what no rule asks for, to be flooded, to let the agent decide, and to let one grant run
//! twice. The broker decides nothing here: it carries what people said. The invariant: a state is on the disk
//! before anybody is told of it, and only a won claim may be sent.

pub mod people;
pub mod store;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use sidegate_policies::api::access_request::{
    AccessRequestSpec, AccessRequestStatus, RequestState, RequestSubject, Verdict,
};
use sidegate_policies::api::meta::{Metadata, NamespacedRef, Object};
use sidegate_policies::api::API_VERSION;
use sidegate_policies::engine::Subject;
use sidegate_policies::record::Kind;
use sidegate_policies::wire::{ApprovalAsk, ApprovalClaim, ApprovalOutcome, ApprovalState};
use tokio::sync::watch;

use crate::audit::{Audit, Event, Unrecorded};
use crate::clock::{rfc3339, Clock};
use crate::index::{AskBasis, Index};
use crate::issuer::{client_id, random};
use crate::lockdown::{About, Denied};
use crate::state::StateError;
use people::Person;
use store::{Claim, RequestFolder, Stored, SwapError};

/// Open requests of one subject.
pub const MAX_OPEN: usize = 20;
/// New requests of one subject per minute.
pub const MAX_NEW_PER_MINUTE: usize = 30;
/// Longest text that can be shown to people, and so be approved.
pub const MAX_TEXT: usize = 64 * 1024;
/// A claim without an outcome becomes `Unknown`.
const CLAIM_MS: i64 = 60_000;
/// Finished requests are kept so long.
const KEEP_MS: i64 = 24 * 3_600_000;

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
    State(#[from] StateError),
    /// No random bytes.
    #[error("no random name")]
    Random,
}

/// All requests of one broker.
pub struct Approvals {
    folder: RequestFolder,
    known: Mutex<Known>,
    changed: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
    audit: Arc<Audit>,
}

#[derive(Default)]
struct Known {
    requests: HashMap<String, Stored>,
    created: HashMap<String, VecDeque<i64>>,
}

impl Known {
    /// The latest request of this digest and subject.
    fn same(&self, subject: &RequestSubject, digest: &str) -> Option<&Stored> {
        let alike = |stored: &&Stored| stored.spec().subject == *subject && stored.spec().digest == digest;
        self.requests
            .values()
            .filter(alike)
            .max_by_key(|stored| (stored.created_ms, stored.resource_version))
    }

    /// Caps of one subject: open now, and new within the last minute.
    fn admit(&mut self, subject: &RequestSubject, now_ms: i64) -> Result<(), ApprovalError> {
        let open = self.requests.values().filter(|stored| {
            stored.spec().subject == *subject && matches!(stored.state(), RequestState::Pending | RequestState::Granted)
        });
        if open.count() >= MAX_OPEN {
            return Err(ApprovalError::Flood("20 are open"));
        }
        let times = self.created.entry(subject.pod_uid.clone()).or_default();
        while times.front().is_some_and(|at| at.saturating_add(60_000) <= now_ms) {
            times.pop_front();
        }
        if times.len() >= MAX_NEW_PER_MINUTE {
            return Err(ApprovalError::Flood("30 within a minute"));
        }
        times.push_back(now_ms);
        Ok(())
    }
}

impl Approvals {
    /// Loads every request of the folder.
    pub fn open(folder: RequestFolder, clock: Arc<dyn Clock>, audit: Arc<Audit>) -> Result<Self, StateError> {
        let requests = folder
            .load()?
            .into_iter()
            .map(|stored| (stored.name().to_owned(), stored));
        let known = Known {
            requests: requests.collect(),
            created: HashMap::new(),
        };
        Ok(Approvals {
            folder,
            known: Mutex::new(known),
            changed: watch::channel(0).0,
            clock,
            audit,
        })
    }

    /// Told whenever any request moved.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How many wait for people.
    pub fn waiting(&self) -> usize {
        let all = self.list().into_iter();
        all.filter(|stored| stored.state() == RequestState::Pending).count()
    }

    /// Every request, newest first.
    pub fn list(&self) -> Vec<Stored> {
        let mut all: Vec<Stored> = self.known().requests.values().cloned().collect();
        all.sort_by(|a, b| b.created_ms.cmp(&a.created_ms).then_with(|| a.name().cmp(b.name())));
        all
    }

    /// One request.
    pub fn find(&self, name: &str) -> Option<Stored> {
        self.known().requests.get(name).cloned()
    }

    /// Asks: the same digest of the same subject is the same request, and a denial is remembered.
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
        let mut known = self.known();
        if let Some(same) = known.same(&subject, &ask.digest) {
            let shared = matches!(
                same.state(),
                RequestState::Pending | RequestState::Granted | RequestState::Denied
            );
            if shared && same.until_ms > now_ms && same.basis == basis.digest {
                return Ok(same.answer(false));
            }
        }
        known.admit(&subject, now_ms)?;
        let stored = self.new_request(&known, who, ask, basis)?;
        self.folder.create(&stored)?;
        let answer = stored.answer(false);
        known.requests.insert(stored.name().to_owned(), stored);
        drop(known);
        self.moved();
        Ok(answer)
    }

    /// A request of this subject.
    pub fn get(&self, who: &Subject, name: &str) -> Result<ApprovalState, ApprovalError> {
        Ok(self.own(&self.known(), who, name)?.answer(false))
    }

    /// Claims a grant. A repeated claim with the same nonce is the same claim; any other loses.
    pub fn claim(
        &self,
        who: &Subject,
        name: &str,
        claim: &ApprovalClaim,
        index: &Index,
        denied: &Denied,
    ) -> Result<ApprovalState, ApprovalError> {
        let now_ms = self.clock.now_ms();
        let mut known = self.known();
        let mut stored = self.own(&known, who, name)?;
        if stored.spec().digest != claim.digest {
            return Err(ApprovalError::Digest);
        }
        if let Some(lockdown) = denied.frozen(about(who, &stored.target()), now_ms) {
            return Err(ApprovalError::Locked(lockdown.to_owned()));
        }
        match (stored.state(), &stored.claim) {
            (RequestState::Claimed, Some(held)) if held.nonce == claim.nonce => return Ok(stored.answer(true)),
            (RequestState::Granted, _) if stored.until_ms > now_ms => {}
            _ => return Ok(stored.answer(false)),
        }
        let rules = stored.spec().rules.clone();
        let basis = index.ask_basis(who, &stored.target(), &rules);
        if basis.is_none_or(|basis| basis.digest != stored.basis) {
            let void = self.transition(&mut known, &stored, RequestState::Void)?;
            return Ok(void.answer(false));
        }
        stored.claim = Some(Claim {
            nonce: claim.nonce.clone(),
            session: claim.session.clone(),
            operation: claim.operation,
            at_ms: now_ms,
        });
        // A grant is used up on record first: a claim that nobody can prove is not won.
        self.audit.record(Event {
            subject: &client_id(who),
            pod_uid: &who.pod_uid,
            object: name,
            digest: &claim.digest,
            detail: &format!("session {}, operation {}", claim.session, claim.operation),
            ..Event::new(Kind::Request, "grant.claimed")
        })?;
        let moved = self.transition(&mut known, &stored, RequestState::Claimed)?;
        let won = moved.state() == RequestState::Claimed;
        Ok(moved.answer(won))
    }

    /// Settles a claim.
    pub fn outcome(
        &self,
        who: &Subject,
        name: &str,
        outcome: &ApprovalOutcome,
    ) -> Result<ApprovalState, ApprovalError> {
        let mut known = self.known();
        let stored = self.own(&known, who, name)?;
        let ends = matches!(
            outcome.state,
            RequestState::Done | RequestState::Failed | RequestState::Unknown
        );
        let holds = stored.claim.as_ref().is_some_and(|claim| claim.nonce == outcome.nonce);
        if !ends || !holds {
            return Err(ApprovalError::NotAllowed("no claim with this nonce".to_owned()));
        }
        if stored.state() != RequestState::Claimed {
            return Ok(stored.answer(false));
        }
        Ok(self.transition(&mut known, &stored, outcome.state)?.answer(false))
    }

    /// The agent cancelled: never sent, if this wins.
    pub fn withdraw(&self, who: &Subject, name: &str) -> Result<ApprovalState, ApprovalError> {
        let mut known = self.known();
        let stored = self.own(&known, who, name)?;
        match stored.state() {
            RequestState::Pending | RequestState::Granted => Ok(self
                .transition(&mut known, &stored, RequestState::Cancelled)?
                .answer(false)),
            _ => Ok(stored.answer(false)),
        }
    }

    /// One person's word. Who it is comes from the system, never from the request.
    pub fn decide(
        &self,
        name: &str,
        person: &Person,
        verdict: Verdict,
        reason: Option<String>,
    ) -> Result<Stored, ApprovalError> {
        let now_ms = self.clock.now_ms();
        let mut known = self.known();
        let mut stored = known.requests.get(name).cloned().ok_or(ApprovalError::NotFound)?;
        if stored.state() != RequestState::Pending {
            return Err(ApprovalError::NotPending(stored.state()));
        }
        if stored.until_ms <= now_ms {
            self.transition(&mut known, &stored, RequestState::Expired)?;
            return Err(ApprovalError::NotPending(RequestState::Expired));
        }
        person
            .may_decide(&stored.spec().approver_sets)
            .map_err(ApprovalError::NotAllowed)?;
        let decisions = &mut stored.status_mut().decisions;
        if decisions.iter().any(|decision| decision.by == person.name) {
            return Err(ApprovalError::NotAllowed(format!(
                "{} has already decided",
                person.name
            )));
        }
        let event = match verdict {
            Verdict::Approve => "approval.approved",
            Verdict::Deny => "approval.denied",
        };
        let said = reason.clone().unwrap_or_default();
        decisions.push(person.decision(verdict, reason, rfc3339(now_ms)));
        // On record before it takes effect: a word that cannot be recorded was not given.
        self.audit.record(Event {
            subject: &person.name,
            pod_uid: &stored.spec().subject.pod_uid,
            object: name,
            digest: &stored.spec().digest,
            detail: &said,
            ..Event::new(Kind::Decided, event)
        })?;
        let next = match verdict {
            Verdict::Deny => RequestState::Denied,
            Verdict::Approve if people::all_met(&stored.spec().approver_sets, &stored.status().decisions) => {
                RequestState::Granted
            }
            Verdict::Approve => RequestState::Pending,
        };
        if next != RequestState::Pending {
            stored.until_ms = now_ms.saturating_add(stored.valid_for_ms);
            stored.status_mut().valid_until = Some(rfc3339(stored.until_ms));
        }
        self.transition(&mut known, &stored, next)
    }

    /// Expiry, claims without outcome, deleted files, changed policies, lockdowns, and old finished requests.
    pub fn sweep(&self, index: &Index, denied: &Denied) -> Result<(), ApprovalError> {
        let now_ms = self.clock.now_ms();
        let mut known = self.known();
        let all: Vec<Stored> = known.requests.values().cloned().collect();
        for stored in all {
            if let Some(next) = self.due(&stored, index, denied, now_ms) {
                self.transition(&mut known, &stored, next)?;
            } else if stored.is_over() && stored.moved_ms.saturating_add(KEEP_MS) <= now_ms {
                self.folder.remove(stored.name())?;
                known.requests.remove(stored.name());
            }
        }
        known
            .created
            .retain(|_, times| times.back().is_some_and(|at| at.saturating_add(60_000) > now_ms));
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
                let deleted = !self.folder.holds(stored.name());
                (frozen || changed || deleted).then_some(RequestState::Void)
            }
            RequestState::Claimed => {
                let at_ms = stored.claim.as_ref().map_or(0, |claim| claim.at_ms);
                (at_ms.saturating_add(CLAIM_MS) <= now_ms).then_some(RequestState::Unknown)
            }
            _ => None,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn own(&self, known: &Known, who: &Subject, name: &str) -> Result<Stored, ApprovalError> {
        let stored = known.requests.get(name).ok_or(ApprovalError::NotFound)?;
        if stored.spec().subject != request_subject(who) {
            return Err(ApprovalError::NotFound);
        }
        Ok(stored.clone())
    }

    /// Swaps on the disk, then remembers. An object deleted meanwhile is void: deleting is how people revoke.
    fn transition(&self, known: &mut Known, stored: &Stored, next: RequestState) -> Result<Stored, ApprovalError> {
        let mut moved = stored.clone();
        moved.status_mut().state = next;
        moved.moved_ms = self.clock.now_ms();
        match self.folder.swap(&mut moved) {
            Ok(()) => {}
            Err(SwapError::Gone) => moved.status_mut().state = RequestState::Void,
            Err(SwapError::Changed(present)) => moved = *present,
            Err(SwapError::State(error)) => {
                self.audit.note(Event {
                    object: moved.name(),
                    detail: &format!("it could not move to {next:?}: {error}"),
                    ..Event::new(Kind::Request, "request.failed")
                });
                return Err(error.into());
            }
        }
        self.audit.note(Event {
            pod_uid: &moved.asked_by.pod_uid,
            object: moved.name(),
            detail: &format!("{:?} to {:?}", stored.state(), moved.state()),
            ..Event::new(Kind::Request, "request.moved")
        });
        known.requests.insert(moved.name().to_owned(), moved.clone());
        self.moved();
        Ok(moved)
    }

    fn moved(&self) {
        self.changed
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }

    fn new_request(
        &self,
        known: &Known,
        who: &Subject,
        ask: ApprovalAsk,
        basis: AskBasis,
    ) -> Result<Stored, ApprovalError> {
        let now_ms = self.clock.now_ms();
        let mut name = random_name()?;
        while known.requests.contains_key(&name) {
            name = random_name()?;
        }
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
        Ok(Stored {
            resource_version: 1,
            created_ms: now_ms,
            moved_ms: now_ms,
            until_ms,
            valid_for_ms,
            basis: basis.digest,
            session: ask.session,
            bundle: ask.bundle,
            asked_by: who.clone(),
            claim: None,
            request: Object {
                api_version: API_VERSION.to_owned(),
                kind: "AccessRequest".to_owned(),
                metadata: Metadata {
                    name,
                    namespace: Some(namespace.to_owned()),
                    ..Metadata::default()
                },
                spec: AccessRequestSpec {
                    subject: request_subject(who),
                    target,
                    operation: ask.operation,
                    digest: ask.digest,
                    rules: basis.sets.iter().map(|set| set.rule.clone()).collect(),
                    approver_sets: basis.sets,
                    expires_at: rfc3339(until_ms),
                },
                status: Some(AccessRequestStatus::default()),
            },
        })
    }
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

/// `ar-` and six characters of base32.
fn random_name() -> Result<String, ApprovalError> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bytes = random::<6>().map_err(|_| ApprovalError::Random)?;
    let letters = bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 31)));
    Ok(format!(
        "ar-{}",
        letters.map(|letter| char::from(*letter)).collect::<String>()
    ))
}
