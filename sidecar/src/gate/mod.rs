//! The gate: the only place that asks the engine, records what was decided, and holds for people.
//!
//! One per session, owned by the task of its room. Every answer is recorded before it is given; an operation that
//! cannot be recorded is refused. Before each operation the gate looks whether the session was cut, the kill switch
//! moved, or a new bundle came; cached decisions are good under their own bundle's number only.
//! Invariant: nobody else can build an [`Admitted`].

mod digest;
mod events;
mod hold;
mod ledger;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sidegate_policies::credential_kinds;
use sidegate_policies::engine::{
    BoundPolicies, Completeness, ConnectFacts, Decision, Effect, Facts, MaskSet, Operation, Phase, Verb,
};
use sidegate_policies::reason::{Reason, Retry};
use sidegate_policies::record::payload;
use sidegate_policies::record::Kind;
use sidegate_policies::wire::NOT_UNDERSTOOD;

pub use events::Intents;
pub use hold::Held;
pub use ledger::Ledger;

use crate::admitted::Admitted;
use crate::authority::{Authority, InForce};
use crate::memory::Pressure;
use crate::record::CannotRecord;
use crate::refusal::{Refusal, Ticket, CONNECTION};
use crate::revoke::Frozen;
use crate::session::Session;

/// Operations whose start is remembered until their outcome.
const UNANSWERED: usize = 4_096;

/// The right to build an [`Admitted`]. Made in this module only.
pub struct Seal(());

/// An operation's number in its session; 0 for bytes that are no operation of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OpId(u64);

impl OpId {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// A resolved protocol frame that can describe itself.
pub trait Frame {
    /// Its facts.
    fn operation(&self) -> Operation<'_>;
    /// What record and approver see.
    fn described(&self) -> Described<'_>;
    /// Says why it was refused, where the decision alone does not: before the refusal is recorded, so that the record
    /// holds what the agent is told.
    fn explain(&self, _refusal: &mut Refusal, _decision: &Decision) {}
    /// What an approval binds to besides target, subject and rules: exact bytes, parameters with types and formats,
    /// upstream identity, database, settings that change meaning, earlier statements of the transaction.
    fn digest_fields(&self) -> Vec<Cow<'_, [u8]>>;
    /// The word for it in refusals.
    fn what(&self) -> &'static str {
        "statement"
    }
    /// How many of its constants and bind values are not shown as they are: only approvers are told, so only they cost it.
    fn hidden_values(&self) -> i32 {
        0
    }
    /// Shows its bind values, in order, as record and approver see them; `None` is NULL.
    fn values(&self, _show: &mut dyn FnMut(Option<&str>)) {}
    /// The operation whose text, resources and masks this one repeats; the record then refers to it.
    fn repeats(&self) -> Option<Repeats<'_>> {
        None
    }
    /// The masks that the plan for its answer was made with. If the decision brings others (a new bundle came between
    /// planning and admission), the frame is refused: an answer is never masked by yesterday's plan.
    fn masks(&self) -> Option<&Arc<MaskSet>> {
        None
    }
    /// How long this frame may be held at most (5 s inside a transaction); absent: the rule's own time.
    fn patience(&self) -> Option<Duration> {
        None
    }
}

/// What record and approver see of a frame. Secrets were redacted and values masked by the room.
#[derive(Debug, Clone, Default)]
pub struct Described<'a> {
    /// The whole text.
    pub text: Cow<'a, str>,
    /// Statements that already ran in the open transaction.
    pub earlier: Vec<Cow<'a, str>>,
    /// What it touches, such as `Select app.customers`.
    pub resources: Vec<Cow<'a, str>>,
    /// Masks that the answer's plan applies, such as `app.customers.email redact`.
    pub masks: Vec<Cow<'a, str>>,
}

/// The operation that another one repeats.
pub struct Repeats<'a> {
    /// The operation.
    pub op: OpId,
    /// Where the gate keeps what intents of such operations have in common.
    pub intents: &'a Intents,
}

/// The gate's answer.
pub enum Admission<F> {
    /// Send it.
    Go(Admitted<F>),
    /// Tell the agent.
    No(Refusal),
    /// Wait for people.
    Hold(Held<F>),
}

/// How an operation ended.
#[derive(Debug, Clone, Default)]
pub struct Outcome<'a> {
    /// Command tag.
    pub tag: Option<&'a str>,
    /// Rows returned or changed.
    pub rows: Option<u64>,
    /// Bytes returned to the agent.
    pub bytes: u64,
    /// Native error code, if it failed.
    pub error: Option<&'a str>,
    /// Native error text, scrubbed.
    pub message: Option<&'a str>,
    /// Why Sidegate stopped it, if it did.
    pub reason: Option<Reason>,
    /// Nobody knows whether it took effect.
    pub unknown: bool,
    /// Data the agent sent behind it.
    pub copied: Option<Copied>,
}

/// Data that an operation took in, as COPY does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Bytes sent to the target.
    pub bytes: u64,
    /// Keyed digest of them, hex.
    pub digest: String,
}

/// Counts for the close frame.
#[derive(Default)]
struct Totals {
    operations: u64,
    denied: u64,
    held: u64,
    rows: u64,
    bytes: u64,
}

/// A claim that waits for its outcome.
pub(super) struct Claim {
    name: Arc<str>,
    nonce: String,
}

/// The gate of one session.
pub struct Gate {
    session: Arc<Session>,
    authority: Arc<Authority>,
    recorder: Ledger,
    bundle: Option<Arc<InForce>>,
    bound: Option<BoundPolicies>,
    generation: u64,
    deny_generation: u64,
    frozen: Frozen,
    last_op: u64,
    /// Operations without an outcome, and when their intent was recorded, oldest first.
    running: VecDeque<(u64, u64)>,
    /// The rules of the last intent as text: the same few decide most operations.
    names: events::Names,
    claims: HashMap<u64, Claim>,
    totals: Totals,
    opened: bool,
    close_reason: Option<&'static str>,
}

impl Gate {
    /// A gate for one session.
    pub fn new(session: Arc<Session>, authority: Arc<Authority>) -> Self {
        // The number first: a set that comes in between is then looked at once more, not missed.
        let deny_generation = authority.deny.generation();
        let frozen = authority.deny.frozen(&session.subject, &session.target);
        let mut gate = Gate {
            deny_generation,
            session,
            authority,
            recorder: Ledger::default(),
            bundle: None,
            bound: None,
            generation: u64::MAX,
            frozen,
            last_op: 0,
            running: VecDeque::new(),
            names: events::Names::default(),
            claims: HashMap::new(),
            totals: Totals::default(),
            opened: false,
            close_reason: None,
        };
        gate.rebind();
        gate
    }

    /// Judges the connection itself: before any dial or lease. An Ask at connect (raw TCP only) is a refusal here;
    /// rooms that can hold use [`Gate::open`].
    pub fn connect(&mut self, facts: &ConnectFacts) -> Result<(), Refusal> {
        match self.open(facts.clone()) {
            Admission::Go(_) => Ok(()),
            Admission::No(refusal) => Err(refusal),
            Admission::Hold(_) => {
                let refusal = Refusal::new(Reason::Denied, CONNECTION)
                    .because("a rule asks for approval of the connection, which this protocol cannot wait for");
                Err(self.record_denied(refusal, None))
            }
        }
    }

    /// Judges the connection itself, and may hold it.
    pub fn open(&mut self, facts: ConnectFacts) -> Admission<Opening> {
        let opening = Opening(facts);
        if let Err(refusal) = self.begin() {
            return Admission::No(self.record_denied(refusal, None));
        }
        self.session.connected(opening.0.clone());
        // A bundle that came since `begin` saw a session without facts, and left it to this one to judge itself by it.
        self.rebind();
        let Some(bound) = &self.bound else {
            let refusal = Refusal::new(Reason::Unavailable, CONNECTION).because("no policy has arrived yet");
            return Admission::No(self.record_denied(refusal, None));
        };
        let decision = Arc::new(bound.decide(&opening.operation(), Phase::Final, jiff::Timestamp::now()));
        // Where no policy says, the kind of credential does: most targets look at it once, and never again.
        let usual = credential_kinds::kind(&self.session.target.spec.credential).session;
        if let Some(limit) = decision.limits.max_session.map(|limit| limit.0).or(usual) {
            let deadline = tokio::time::Instant::now().checked_add(limit);
            self.session.deadline.send_replace(deadline);
        }
        match decision.effect {
            Effect::Allow => Admission::Go(Admitted::new(Seal(()), opening, Some(decision), OpId(0))),
            Effect::Deny => Admission::No(self.refuse(&opening, &decision)),
            Effect::Ask => self.hold(opening, decision),
        }
    }

    /// What must hold before any session opens, and the `open` frame.
    fn begin(&mut self) -> Result<(), Refusal> {
        let what = CONNECTION;
        let recorded = self.write_open();
        if self.authority.is_draining() {
            return Err(Refusal::new(Reason::Draining, what));
        }
        if !self.authority.fresh_for(&self.session.target.id) {
            return Err(self.unheard(what));
        }
        recorded.map_err(|_| Refusal::new(Reason::CannotRecord, what))?;
        self.refresh_frozen();
        if self.frozen.refuses(jiff::Timestamp::now().as_millisecond()) {
            return Err(Refusal::new(Reason::Locked, what));
        }
        if !self.session.target.known {
            return Err(Refusal::new(Reason::Unavailable, what).because("no policy has arrived yet"));
        }
        if self.session.target.not_understood.is_some() {
            let why = format!("{NOT_UNDERSTOOD}: this sidecar is older than a policy about the target");
            return Err(Refusal::new(Reason::PolicyGone, what).because(why));
        }
        self.check_room(what, Pressure::Shed)?;
        self.check(what)
    }

    /// Why nothing new opens while the broker is away (tests `a_sidecar_whose_broker_is_away_serves_once_it_is_back` and
    /// `a_bundle_kept_from_before_refuses_until_the_broker_spoke`).
    fn unheard(&self, what: &'static str) -> Refusal {
        let (reason, why) = match (self.authority.spoken(), self.authority.silent()) {
            (false, _) => (
                Reason::Unavailable,
                "BrokerUnreachable: the broker has not answered yet",
            ),
            (true, None) => (Reason::Stale, "NotAttested: the broker vouches for this pod no more"),
            (true, Some(_)) if self.bundle.is_some() => {
                (Reason::Stale, "RevocationStale: what is frozen and allowed may be old")
            }
            (true, Some(_)) => (Reason::Stale, "BundleStale: no policy is new enough"),
        };
        Refusal::new(reason, what).because(why)
    }

    /// Asks with structure alone: what must fall, falls; nothing is granted.
    pub fn structure(&mut self, op: &Operation<'_>) -> Result<Decision, Refusal> {
        self.check("statement")?;
        self.rebind();
        let Some(bound) = &self.bound else {
            return Err(Refusal::new(Reason::PolicyGone, "statement"));
        };
        Ok(bound.decide(op, Phase::Structure, jiff::Timestamp::now()))
    }

    /// Records a refusal that [`Gate::structure`] implied, and turns its decision into words.
    pub fn deny<F: Frame>(&mut self, frame: &F, decision: &Decision) -> Refusal {
        self.refuse(frame, decision)
    }

    /// Judges one operation.
    pub fn admit<F: Frame>(&mut self, frame: F) -> Admission<F> {
        if let Err(refusal) = self.check(frame.what()) {
            return Admission::No(self.record_denied(refusal, Some(&frame.described())));
        }
        self.rebind();
        let Some(bound) = &self.bound else {
            let refusal = Refusal::new(Reason::PolicyGone, frame.what());
            return Admission::No(self.record_denied(refusal, Some(&frame.described())));
        };
        let decision = bound.decide(&frame.operation(), Phase::Final, jiff::Timestamp::now());
        self.settle(frame, Arc::new(decision))
    }

    /// Admits a re-execution under a cacheable decision. The decision must come from the bundle in force (compare
    /// [`Gate::generation`]); from an older one the frame is judged anew.
    pub fn admit_decided<F: Frame>(&mut self, frame: F, decision: &Arc<Decision>, generation: u64) -> Admission<F> {
        if generation != self.authority.generation() || !decision.cacheable {
            return self.admit(frame);
        }
        if let Err(refusal) = self.check(frame.what()) {
            return Admission::No(self.record_denied(refusal, Some(&frame.described())));
        }
        self.settle(frame, decision.clone())
    }

    /// Admits bytes that are no operation of their own: Sync, Flush, Describe of a judged object, CopyData of an
    /// admitted COPY. Refuses once the session is cut or frozen.
    pub fn passive<F>(&mut self, frame: F) -> Result<Admitted<F>, Refusal> {
        self.check_alive("statement")?;
        Ok(Admitted::new(Seal(()), frame, None, OpId(0)))
    }

    /// Number of the bundle that the gate judges by from here on, the newest: cached plans compare it.
    pub fn generation(&mut self) -> u64 {
        self.rebind();
        self.generation
    }

    /// Version of the bundle the gate last judged by.
    pub fn bundle(&self) -> &str {
        self.bundle.as_ref().map(|bundle| &*bundle.version).unwrap_or_default()
    }

    /// What must be masked in answers of this session, by the bundle in force.
    pub fn masks(&mut self) -> Arc<MaskSet> {
        self.rebind();
        self.bound
            .as_ref()
            .map(|bound| bound.masks().clone())
            .unwrap_or_default()
    }

    /// Records how an operation ended; settles its approval.
    pub fn outcome(&mut self, op: OpId, outcome: Outcome<'_>) {
        let at = self.running.iter().position(|(running, _)| *running == op.0);
        let started = at.and_then(|at| self.running.remove(at));
        let latency = started.map(|(_, at_ns)| self.recorder.since_ns(at_ns) / 1_000);
        self.totals.rows = self.totals.rows.saturating_add(outcome.rows.unwrap_or(0));
        self.totals.bytes = self.totals.bytes.saturating_add(outcome.bytes);
        let event = events::outcome(&outcome, latency.unwrap_or_default());
        // A lost outcome stops the next operation (`ready`), not this one, which already ran.
        let _ = self.recorder.outcome(op.0, event);
        // Most sessions never claim anything, and looking that up takes a hash.
        let claim = (!self.claims.is_empty()).then(|| self.claims.remove(&op.0)).flatten();
        if let Some(claim) = claim {
            self.settle_claim(claim, hold::ended(&outcome));
        }
    }

    /// The session's recorder.
    pub fn recorder(&mut self) -> &mut Ledger {
        &mut self.recorder
    }

    /// The session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Refuses something that never became a frame (a start-up packet, a message out of state), and records it.
    pub fn refused(&mut self, refusal: Refusal, text: Option<&str>) -> Refusal {
        let described = text.map(|text| Described {
            text: text.into(),
            ..Described::default()
        });
        self.record_denied(refusal, described.as_ref())
    }

    /// Says how the session ended, for the close frame: `client`, `target` or a reason's name.
    pub fn closing(&mut self, how: &'static str) {
        self.close_reason.get_or_insert(how);
    }

    fn settle<F: Frame>(&mut self, frame: F, decision: Arc<Decision>) -> Admission<F> {
        match decision.effect {
            Effect::Deny => Admission::No(self.refuse(&frame, &decision)),
            Effect::Ask => self.hold(frame, decision),
            Effect::Allow if !same_masks(&frame, &decision) => {
                let refusal = Refusal::new(Reason::PlanMismatch, frame.what())
                    .because("the policy changed while it was planned")
                    .again(Retry::Same);
                Admission::No(self.record_denied(refusal, Some(&frame.described())))
            }
            Effect::Allow => {
                if let Err(refusal) = self.take_rate(&frame, &decision) {
                    return Admission::No(self.record_denied(refusal, Some(&frame.described())));
                }
                match self.intend(&frame, &decision, None) {
                    Ok(op) => Admission::Go(Admitted::new(Seal(()), frame, Some(decision), op)),
                    Err(_) => Admission::No(self.unrecorded(frame.what())),
                }
            }
        }
    }

    fn take_rate<F: Frame>(&self, frame: &F, decision: &Decision) -> Result<(), Refusal> {
        match decision.limits.per_minute {
            Some(limit) if !self.authority.rates.take(&self.session.target.id, limit) => {
                Err(Refusal::new(Reason::Limit, frame.what())
                    .because(format!("more than {limit} operations in a minute"))
                    .again(Retry::Later)
                    .hint("Spread your operations out, or do more with each"))
            }
            _ => Ok(()),
        }
    }

    /// Buffers the intent. It is durable after the recorder's commit, which [`crate::upstream::Upstream`] makes
    /// before it writes.
    fn intend<F: Frame>(
        &mut self,
        frame: &F,
        decision: &Arc<Decision>,
        approval: Option<&str>,
    ) -> Result<OpId, CannotRecord> {
        let op = self.next_op();
        let version = self.bundle.as_ref().map(|bundle| &*bundle.version).unwrap_or_default();
        let names = self.names.of(&decision.rules);
        let intent = || events::intent(frame, decision, names, version, approval);
        let kept = approval.is_none() && decision.cacheable;
        let written = match frame.repeats().filter(|_| kept) {
            Some(repeats) => {
                let members = repeats.intents.members(repeats.op, decision, self.generation, intent)?;
                self.recorder.write(Kind::Intent, Some(op.0), |event| {
                    event.members(&members);
                    event.texts("params", |show| frame.values(show));
                })
            }
            None => self.recorder.write(Kind::Intent, Some(op.0), |event| {
                event.payload(&intent());
                event.texts("params", |show| frame.values(show));
            }),
        };
        written?;
        if self.running.len() >= UNANSWERED {
            self.running.pop_front();
        }
        self.running.push_back((op.0, self.recorder.at_ns()));
        self.totals.operations = self.totals.operations.saturating_add(1);
        self.authority.metrics.allowed.up();
        Ok(op)
    }

    fn next_op(&mut self) -> OpId {
        self.last_op = self.last_op.saturating_add(1);
        OpId(self.last_op)
    }

    fn refuse<F: Frame>(&mut self, frame: &F, decision: &Decision) -> Refusal {
        let mut refusal =
            Refusal::new(decision.reason.unwrap_or(Reason::Denied), frame.what()).by(decision.rules.first().cloned());
        refusal.message = decision.message.clone();
        frame.explain(&mut refusal, decision);
        self.record_denied(refusal, Some(&frame.described()))
    }

    fn record_denied(&mut self, refusal: Refusal, described: Option<&Described<'_>>) -> Refusal {
        // Refused before the connection was judged: the record begins here.
        let _ = self.write_open();
        let op = self.next_op();
        self.totals.denied = self.totals.denied.saturating_add(1);
        self.authority.metrics.denied.up();
        let event = events::denied(&refusal, described, self.bundle.as_ref().map(|bundle| &*bundle.version));
        // A refusal stands whether or not it can be recorded.
        let written = self.recorder.event(Kind::Denied, Some(op.0), &event);
        if written.and_then(|()| self.recorder.commit()).is_err() {
            tracing::warn!(id = %refusal.id, reason = refusal.reason.as_str(), "a refusal could not be recorded");
        }
        refusal
    }

    fn unrecorded(&mut self, what: &'static str) -> Refusal {
        self.totals.denied = self.totals.denied.saturating_add(1);
        self.authority.metrics.denied.up();
        Refusal::new(Reason::CannotRecord, what)
    }

    /// Cut, frozen, or unable to record?
    fn check(&mut self, what: &'static str) -> Result<(), Refusal> {
        self.check_alive(what)?;
        self.check_room(what, Pressure::Refuse)?;
        self.recorder
            .ready()
            .map_err(|_| Refusal::new(Reason::CannotRecord, what))
    }

    /// Memory runs short: what is new is refused before what runs has to end.
    fn check_room(&self, what: &'static str, from: Pressure) -> Result<(), Refusal> {
        if self.authority.memory.pressure() < from {
            return Ok(());
        }
        self.authority.metrics.shed.up();
        Err(Refusal::new(Reason::Unavailable, what).because("Sidegate is short of memory"))
    }

    /// Takes what the session holds in its buffers now, in bytes. False: all sessions together hold as much as they
    /// may, and this one more than a small share of it, so it has to end.
    pub fn hold_bytes(&self, bytes: u64) -> bool {
        let all = self.authority.sessions.hold(&self.session, bytes);
        self.authority.memory.fits(bytes, all)
    }

    fn check_alive(&mut self, what: &'static str) -> Result<(), Refusal> {
        if let Some(reason) = self.session.cut_reason() {
            return Err(Refusal::new(reason, what));
        }
        self.refresh_frozen();
        if !self.frozen.is_free() && self.frozen.closes(jiff::Timestamp::now().as_millisecond()) {
            self.session.end(Reason::Locked);
            return Err(Refusal::new(Reason::Locked, what));
        }
        Ok(())
    }

    fn refresh_frozen(&mut self) {
        let generation = self.authority.deny.generation();
        if generation != self.deny_generation {
            self.frozen = self.authority.deny.frozen(&self.session.subject, &self.session.target);
            self.deny_generation = generation;
        }
    }

    /// Judges by the newest bundle from here on.
    fn rebind(&mut self) {
        let generation = self.authority.generation();
        if generation == self.generation {
            return;
        }
        let first = self.generation == u64::MAX;
        self.generation = generation;
        self.bundle = self.authority.in_force();
        self.bound = self
            .bundle
            .as_ref()
            .map(|bundle| bundle.policies.bind(&self.session.subject, &self.session.target.id));
        if let (false, Some(bundle)) = (first || !self.opened, &self.bundle) {
            let change = payload::PolicyChange {
                bundle: Cow::Borrowed(&bundle.version),
            };
            let _ = self.recorder.event(Kind::Policy, None, &change);
        }
    }

    fn write_open(&mut self) -> Result<(), CannotRecord> {
        if self.opened {
            return Ok(());
        }
        self.rebind();
        let event = events::open(&self.session, self.authority.separation, self.bundle.as_deref());
        self.opened = true;
        self.recorder.begin(self.authority.log(), &self.session, &event)
    }
}

impl Drop for Gate {
    /// Writes the close frame, on every way out; claims without an outcome become Unknown.
    fn drop(&mut self) {
        let claims: Vec<Claim> = self.claims.drain().map(|(_, claim)| claim).collect();
        for claim in claims {
            self.settle_claim(claim, sidegate_policies::api::access_request::RequestState::Unknown);
        }
        let cut = self.session.cut_reason();
        if let Some(reason) = cut {
            let event = payload::Cut { reason, lockdown: None };
            let _ = self.recorder.event(Kind::Cut, None, &event);
        }
        let how = cut.map(Reason::as_str).or(self.close_reason).unwrap_or("dropped");
        self.recorder.close(events::close(how, &self.totals));
    }
}

/// A connection, as a frame.
pub struct Opening(ConnectFacts);

impl Opening {
    /// What the connection asks for.
    pub fn facts(&self) -> &ConnectFacts {
        &self.0
    }
}

impl Frame for Opening {
    fn operation(&self) -> Operation<'_> {
        Operation {
            verb: Verb::Connect,
            action: "connect",
            completeness: Completeness::Exact,
            facts: Facts::Connect(&self.0),
        }
    }

    fn described(&self) -> Described<'_> {
        let text = match &self.0.database {
            Some(database) => format!("connect to database {database}").into(),
            None => "connect".into(),
        };
        Described {
            text,
            ..Described::default()
        }
    }

    fn digest_fields(&self) -> Vec<Cow<'_, [u8]>> {
        let database = self.0.database.as_deref().unwrap_or_default();
        vec![Cow::Borrowed(b"connect"), Cow::Borrowed(database.as_bytes())]
    }

    fn what(&self) -> &'static str {
        CONNECTION
    }
}

/// Whether the plan of a frame was made with the masks of the decision.
fn same_masks<F: Frame>(frame: &F, decision: &Decision) -> bool {
    let planned = frame.masks();
    planned.is_none_or(|planned| Arc::ptr_eq(planned, &decision.masks) || **planned == *decision.masks)
}

/// The ticket of an approval state.
pub(super) fn ticket(state: &sidegate_policies::wire::ApprovalState) -> Ticket {
    Ticket {
        name: state.name.as_str().into(),
        until_ms: state.until_ms,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
