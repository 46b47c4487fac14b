//! Holding an operation for people: ask, wait, claim, or refuse with a ticket.
//!
//! The upstream is not touched while a frame is held, and the frame cannot leave: it becomes an [`Admitted`] only
//! through a claim the broker says was won. A policy that changed meanwhile voids the hold. Dropping a [`Held`] (a
//! client that went away) ends the hold and leaves the ticket; [`Gate::withdraw`] takes the request back.

use std::sync::Arc;
use std::time::Duration;

use sidegate_policies::api::access_request::{ApproverSet, RequestState, RequestedOperation};
use sidegate_policies::engine::{Decision, Effect, Phase};
use sidegate_policies::reason::{Reason, Retry};
use sidegate_policies::record::payload;
use sidegate_policies::record::Kind;
use sidegate_policies::wire::{ApprovalAsk, ApprovalClaim, ApprovalOutcome, ApprovalState};
use tokio::time::{timeout, timeout_at, Instant};

use super::{digest, events, ticket, Admission, Admitted, Claim, Frame, Gate, OpId, Outcome, Seal};
use crate::approvals::ApproverError;
use crate::metrics::Metrics;
use crate::refusal::{Refusal, Ticket};
use crate::secret::{base64url, hex};

/// Hold where the rule names no time.
const DEFAULT_HOLD: Duration = Duration::from_secs(60);
/// Longest hold of any rule.
const HOLD_LIMIT: Duration = Duration::from_secs(600);
/// What is too long to show cannot be approved.
const SHOWN_LIMIT: usize = 64 * 1024;
/// The broker answers within this, or counts as unreachable.
const BROKER: Duration = Duration::from_secs(5);
/// One long poll.
const POLL_SECONDS: u64 = 10;

/// A frame that waits for people.
pub struct Held<F> {
    frame: F,
    decision: Arc<Decision>,
    digest: [u8; 32],
    patience: Duration,
    op: OpId,
    state: Option<ApprovalState>,
}

/// Keeps the count of held operations true on every way out.
struct Counted(Arc<Metrics>);

impl Counted {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.held.up();
        Counted(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.held.down();
    }
}

/// The state an operation ends its claim in.
pub(super) fn ended(outcome: &Outcome<'_>) -> RequestState {
    match (outcome.unknown, outcome.error) {
        (true, _) => RequestState::Unknown,
        (false, Some(_)) => RequestState::Failed,
        (false, None) => RequestState::Done,
    }
}

impl<F> Held<F> {
    /// The request, once [`Held::ask`] has opened it.
    pub fn ticket(&self) -> Option<Ticket> {
        self.state.as_ref().map(ticket)
    }

    /// How long it is held at most.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The rules that ask, for the notice to the agent.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }
}

impl Gate {
    pub(super) fn hold<F: Frame>(&mut self, frame: F, decision: Arc<Decision>) -> Admission<F> {
        let Some(bundle) = self.bundle.clone() else {
            return Admission::No(Refusal::new(Reason::PolicyGone, frame.what()));
        };
        let shown = frame.described();
        if shown.text.len() > SHOWN_LIMIT {
            let refusal = Refusal::new(Reason::TooLarge, frame.what())
                .because("it needs approval and is too long to be shown to a person");
            return Admission::No(self.record_denied(refusal, Some(&shown)));
        }
        drop(shown);
        let by_rules = decision.asks.iter().filter_map(|ask| ask.hold_for).min();
        let patience = by_rules.unwrap_or(DEFAULT_HOLD).min(HOLD_LIMIT);
        let patience = frame.patience().map_or(patience, |own| own.min(patience));
        let digest = digest::digest(&bundle.digest_key, &self.session, &frame, &decision);
        let op = self.next_op();
        self.totals.held = self.totals.held.saturating_add(1);
        Admission::Hold(Held {
            frame,
            decision,
            digest,
            patience,
            op,
            state: None,
        })
    }

    /// Takes a request back before anything was sent.
    pub async fn withdraw(&mut self, ticket: &Ticket) {
        let released = payload::Released {
            ticket: (&*ticket.name).into(),
            how: "withdrawn".into(),
            held_ms: 0,
        };
        let _ = self.recorder.event(Kind::Released, None, &released);
        let _ = self.recorder.commit();
        let withdrawn = self.authority.approver.withdraw(ticket.name.to_string());
        let _ = timeout(BROKER, withdrawn).await;
    }

    /// Tells the broker how a claimed operation ended; in the background, because nothing waits for it.
    pub(super) fn settle_claim(&self, claim: Claim, state: RequestState) {
        let approver = self.authority.approver.clone();
        self.authority.tasks.spawn("approval outcome", async move {
            let outcome = ApprovalOutcome {
                state,
                nonce: claim.nonce,
            };
            // Lost three times, the broker calls it Unknown by itself.
            for _attempt in 0..3 {
                let told = approver.outcome(claim.name.to_string(), outcome.clone());
                if let Ok(Ok(())) = timeout(BROKER, told).await {
                    return;
                }
            }
        });
    }
}

impl<F: Frame> Held<F> {
    /// Opens the request with the broker, or finds the one that exists. After this [`Held::ticket`] is there.
    pub async fn ask(&mut self, gate: &mut Gate) -> Result<(), Refusal> {
        if self.state.is_some() {
            return Ok(());
        }
        let asked = gate.authority.approver.ask(self.request(gate));
        let state = match timeout(BROKER, asked).await {
            Ok(Ok(state)) => state,
            Ok(Err(error)) => return Err(self.denied(gate, self.not_asked(&error))),
            Err(_) => return Err(self.denied(gate, self.refusal(Reason::Unavailable))),
        };
        let event = events::held(&state.name, &self.decision, &self.frame, &self.digest, self.patience);
        let written = gate.recorder.event(Kind::Held, Some(self.op.0), &event);
        if written.and_then(|()| gate.recorder.commit()).is_err() {
            return Err(gate.unrecorded(self.frame.what()));
        }
        self.state = Some(state);
        Ok(())
    }

    /// Waits until people decided, then claims; or refuses with the ticket once patience ends.
    pub async fn wait(mut self, gate: &mut Gate) -> Result<Admitted<F>, Refusal> {
        let _counted = Counted::new(&gate.authority.metrics);
        let started = Instant::now();
        self.ask(gate).await?;
        let deadline = started.checked_add(self.patience).unwrap_or(started);
        let Some(mut state) = self.state.clone() else {
            return Err(self.refusal(Reason::Internal));
        };
        while state.state == RequestState::Pending {
            match self.next_state(gate, &state, deadline).await {
                Ok(Some(next)) => state = next,
                Ok(None) => break,
                Err(refusal) => return Err(self.release(gate, "cut", started, refusal)),
            }
        }
        self.state = Some(state.clone());
        match self.verdict(&state) {
            None => self.claim(gate, state, started).await,
            Some((how, refusal)) => Err(self.release(gate, how, started, refusal)),
        }
    }

    /// What a state other than Granted means for the agent.
    fn verdict(&self, state: &ApprovalState) -> Option<(&'static str, Refusal)> {
        let (how, reason) = match state.state {
            RequestState::Granted => return None,
            RequestState::Pending => ("ticket", Reason::ApprovalRequired),
            RequestState::Denied => ("denied", Reason::ApprovalDenied),
            RequestState::Expired => ("expired", Reason::ApprovalExpired),
            RequestState::Cancelled => ("withdrawn", Reason::Withdrawn),
            RequestState::Void => ("void", Reason::ApprovalExpired),
            // Someone else of this subject runs it under the same grant.
            RequestState::Claimed | RequestState::Done | RequestState::Failed | RequestState::Unknown => {
                ("spent", Reason::ApprovalExpired)
            }
        };
        let mut refusal = self.refusal(reason);
        if reason == Reason::ApprovalRequired {
            refusal.ticket = Some(Box::new(ticket(state)));
        }
        if how == "void" {
            refusal = refusal.because("what asked for the approval changed meanwhile");
        }
        if how == "spent" {
            refusal = refusal.because("the approval was used already");
        }
        Some((how, refusal))
    }

    /// The next state, or none once patience ended. An unreachable broker is asked again until then.
    async fn next_state(
        &self,
        gate: &Gate,
        known: &ApprovalState,
        deadline: Instant,
    ) -> Result<Option<ApprovalState>, Refusal> {
        let cut = gate.session.cut.clone();
        let polled = async {
            let left = deadline.saturating_duration_since(Instant::now()).as_secs();
            let seconds = left.clamp(1, POLL_SECONDS);
            let answer = gate.authority.approver.wait(known.name.clone(), known.clone(), seconds);
            let margin = BROKER.saturating_add(Duration::from_secs(seconds));
            match timeout(margin, answer).await {
                Ok(Ok(state)) => state,
                _ => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    known.clone()
                }
            }
        };
        tokio::select! {
            biased;
            () = cut.cancelled() => Err(self.refusal(gate.session.cut_reason().unwrap_or(Reason::Internal))),
            state = timeout_at(deadline, polled) => Ok(state.ok()),
        }
    }

    async fn claim(self, gate: &mut Gate, state: ApprovalState, started: Instant) -> Result<Admitted<F>, Refusal> {
        if let Err(refusal) = self.still_asks(gate) {
            return Err(self.release(gate, "void", started, refusal));
        }
        let mut nonce = [0u8; 16];
        if aws_lc_rs::rand::fill(&mut nonce).is_err() {
            return Err(self.release(gate, "cut", started, self.refusal(Reason::Internal)));
        }
        let claim = ApprovalClaim {
            session: gate.session.id.to_string(),
            operation: self.op.0,
            digest: hex(&self.digest),
            nonce: base64url(&nonce),
        };
        let won = claim_twice(gate, &state.name, &claim).await;
        let refusal = match won {
            Ok(answer) if answer.won && answer.state == RequestState::Claimed => {
                return self.send(gate, answer, claim.nonce, started);
            }
            Ok(answer) => match self.verdict(&answer) {
                Some((_, refusal)) => refusal,
                None => self.refusal(Reason::Unavailable),
            },
            Err(_) => self.refusal(Reason::Unavailable),
        };
        Err(self.release(gate, "not claimed", started, refusal))
    }

    /// The claim is won: intent, then the frame may go.
    fn send(
        self,
        gate: &mut Gate,
        answer: ApprovalState,
        nonce: String,
        started: Instant,
    ) -> Result<Admitted<F>, Refusal> {
        let claim = Claim {
            name: answer.name.as_str().into(),
            nonce,
        };
        let written = self.record_grant(gate, &answer, started);
        let intended = written.and_then(|()| {
            let op = gate.intend(&self.frame, &self.decision, Some(&answer.name))?;
            gate.recorder.commit()?;
            Ok(op)
        });
        // A lockdown may have come while the claim was under way.
        let alive = gate.check_alive(self.frame.what());
        match (intended, alive) {
            (Ok(op), Ok(())) => {
                gate.claims.insert(op.0, claim);
                Ok(Admitted::new(Seal(()), self.frame, Some(self.decision), op))
            }
            (_, Err(refusal)) => {
                gate.settle_claim(claim, RequestState::Failed);
                Err(gate.record_denied(refusal, None))
            }
            (Err(_), Ok(())) => {
                gate.settle_claim(claim, RequestState::Failed);
                Err(gate.unrecorded(self.frame.what()))
            }
        }
    }

    fn record_grant(
        &self,
        gate: &mut Gate,
        answer: &ApprovalState,
        started: Instant,
    ) -> Result<(), crate::record::CannotRecord> {
        let granted = payload::Granted {
            ticket: answer.name.as_str().into(),
            decided_by: answer.decided_by.iter().map(|by| by.as_str().into()).collect(),
        };
        gate.recorder.event(Kind::Granted, Some(self.op.0), &granted)?;
        let released = payload::Released {
            ticket: answer.name.as_str().into(),
            how: "claimed".into(),
            held_ms: events::millis(started.elapsed()),
        };
        gate.recorder.event(Kind::Released, Some(self.op.0), &released)
    }

    /// Whether the bundle in force would still ask the very same.
    fn still_asks(&self, gate: &mut Gate) -> Result<(), Refusal> {
        gate.check(self.frame.what())?;
        gate.rebind();
        let Some(bound) = &gate.bound else {
            return Err(self.refusal(Reason::PolicyGone));
        };
        let now = bound.decide(&self.frame.operation(), Phase::Final, jiff::Timestamp::now());
        if now.effect == Effect::Ask && now.rule_digest == self.decision.rule_digest {
            gate.take_rate(&self.frame, &now)
        } else {
            Err(self
                .refusal(Reason::ApprovalExpired)
                .because("what asked for the approval changed meanwhile"))
        }
    }

    /// What the agent is told where no request could be opened.
    fn not_asked(&self, error: &ApproverError) -> Refusal {
        match error {
            ApproverError::Unavailable => self.refusal(Reason::Unavailable),
            ApproverError::Locked => self.refusal(Reason::Locked),
            ApproverError::TooMany => self
                .refusal(Reason::Limit)
                .because("too many requests already wait for people")
                .again(Retry::Later)
                .hint("Wait until somebody has decided one of them"),
            // Broker and sidecar judge by different bundles for a moment.
            ApproverError::Refused => self
                .refusal(Reason::Unavailable)
                .because("the broker does not open a request for it"),
        }
    }

    fn request(&self, gate: &Gate) -> ApprovalAsk {
        let described = self.frame.described();
        let operation = RequestedOperation {
            protocol: gate.session.target.spec.protocol.as_str().to_owned(),
            action: self.frame.operation().action.to_owned(),
            summary: String::new(),
            text: described.text.into_owned(),
            parameters: events::values(&self.frame)
                .into_iter()
                .map(|value| value.unwrap_or_else(|| "NULL".to_owned()))
                .collect(),
            earlier: described.earlier.iter().map(|text| text.to_string()).collect(),
            hidden_values: self.frame.hidden_values(),
        };
        let sets = self.decision.asks.iter().map(|ask| ApproverSet {
            rule: events::rule_name(&ask.rule),
            approvers: ask.approvers.to_vec(),
            exclude: ask.exclude.to_vec(),
            count: i32::try_from(ask.count).unwrap_or(i32::MAX),
        });
        let valid = self.decision.asks.iter().map(|ask| ask.valid_for.as_secs()).min();
        ApprovalAsk {
            target: gate.session.target.id.to_string(),
            session: gate.session.id.to_string(),
            operation,
            digest: hex(&self.digest),
            approver_sets: sets.collect(),
            valid_for_seconds: valid.unwrap_or(0),
            bundle: gate.bundle().to_owned(),
        }
    }

    fn refusal(&self, reason: Reason) -> Refusal {
        let rule = self.decision.asks.first().map(|ask| ask.rule.clone());
        Refusal::new(reason, self.frame.what()).by(rule)
    }

    fn denied(&self, gate: &mut Gate, refusal: Refusal) -> Refusal {
        gate.record_denied(refusal, Some(&self.frame.described()))
    }

    fn release(&self, gate: &mut Gate, how: &'static str, started: Instant, refusal: Refusal) -> Refusal {
        let name = self.state.as_ref().map(|state| state.name.as_str()).unwrap_or_default();
        let released = payload::Released {
            ticket: name.into(),
            how: how.into(),
            held_ms: events::millis(started.elapsed()),
        };
        let _ = gate.recorder.event(Kind::Released, Some(self.op.0), &released);
        self.denied(gate, refusal)
    }
}

/// A claim whose reply was lost is repeated with the same nonce: the broker knows it for the same claim.
async fn claim_twice(gate: &Gate, name: &str, claim: &ApprovalClaim) -> Result<ApprovalState, ApproverError> {
    for _attempt in 0..2 {
        let claimed = gate.authority.approver.claim(name.to_owned(), claim.clone());
        if let Ok(Ok(state)) = timeout(BROKER, claimed).await {
            return Ok(state);
        }
    }
    Err(ApproverError::Unavailable)
}
