//! What the gate writes into the record: one payload per answer, borrowed from the frame.
//!
//! Owns the words; the form is `sidegate_policies::record::payload`. Texts of refusals are capped at 64 KiB.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sidegate_policies::api::target::{Durability, RecordContent};
use sidegate_policies::engine::{Decision, Effect, RuleRef};
use sidegate_policies::record::payload;

use super::{Described, Frame, OpId, Outcome, Totals};
use crate::authority::{InForce, Separation};
use crate::record::{CannotRecord, Members};
use crate::refusal::Refusal;
use crate::session::Session;

/// Longest text of a refused operation that is kept.
const DENIED_TEXT: usize = 64 * 1024;

pub(super) fn open<'a>(session: &'a Session, separation: Separation, bundle: Option<&'a InForce>) -> payload::Open<'a> {
    let target = &session.target;
    let recording = target.spec.recording;
    payload::Open {
        subject: (*session.subject).clone(),
        target: target.id.to_string().into(),
        target_uid: (!target.uid.is_empty()).then(|| target.uid.as_str().into()),
        protocol: target.spec.protocol.as_str().into(),
        peer: None,
        peer_uid: session.peer_uid,
        address: target.known.then(|| target.address().into()),
        durability: match recording.durability {
            Durability::Journal => "Journal".into(),
            Durability::BestEffort => "BestEffort".into(),
        },
        content: match recording.content {
            RecordContent::Full => "Full".into(),
            RecordContent::Statements => "Statements".into(),
        },
        separation: separation.as_str().into(),
        bundle: bundle.map(|bundle| Cow::Borrowed(&*bundle.version)).unwrap_or_default(),
        weakenings: target.insecure().into_iter().map(Cow::Owned).collect(),
        terminal: None,
    }
}

/// Names of the rules that decided last, so that the same rules are not spelled out for each operation.
#[derive(Default)]
pub(super) struct Names {
    rules: Option<Arc<[RuleRef]>>,
    names: Vec<String>,
}

impl Names {
    /// The names of these rules.
    pub(super) fn of(&mut self, rules: &Arc<[RuleRef]>) -> &[String] {
        let same = self.rules.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, rules));
        if !same {
            self.names = rules.iter().map(rule_name).collect();
            self.rules = Some(rules.clone());
        }
        &self.names
    }
}

/// What the intents of operations that repeat one have in common, spelled out once. It holds for one decision.
#[derive(Default)]
pub struct Intents(Mutex<Option<Kept>>);

struct Kept {
    op: OpId,
    decision: Arc<Decision>,
    generation: u64,
    members: Arc<Members>,
}

impl Intents {
    /// Everything but number and values of an intent that repeats `op` under this decision of this bundle.
    pub(super) fn members<'a>(
        &self,
        op: OpId,
        decision: &Arc<Decision>,
        generation: u64,
        intent: impl FnOnce() -> payload::Intent<'a>,
    ) -> Result<Arc<Members>, CannotRecord> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let good =
            |kept: &&Kept| kept.op == op && kept.generation == generation && Arc::ptr_eq(&kept.decision, decision);
        if let Some(kept) = kept.as_ref().filter(good) {
            return Ok(kept.members.clone());
        }
        let members = Arc::new(Members::of(&intent())?);
        *kept = Some(Kept {
            op,
            decision: decision.clone(),
            generation,
            members: members.clone(),
        });
        Ok(members)
    }
}

/// An intent without its bind values: those are written behind it.
pub(super) fn intent<'a, F: Frame>(
    frame: &'a F,
    decision: &'a Decision,
    names: &'a [String],
    bundle: &'a str,
    approval: Option<&'a str>,
) -> payload::Intent<'a> {
    let op = frame.operation();
    let reference = frame.repeats();
    let (text, resources, masks) = match reference {
        Some(_) => (None, Vec::new(), Vec::new()),
        None => {
            let described = frame.described();
            (Some(described.text), described.resources, described.masks)
        }
    };
    payload::Intent {
        verb: op.verb.as_str().into(),
        action: op.action.into(),
        text,
        reference: reference.map(|repeats| repeats.op.get()),
        params: Vec::new(),
        resources,
        decision: match decision.effect {
            Effect::Ask => "ask".into(),
            Effect::Allow | Effect::Deny => "allow".into(),
        },
        rules: names.iter().map(|name| Cow::Borrowed(name.as_str())).collect(),
        bundle: bundle.into(),
        masks,
        approval: approval.map(Cow::Borrowed),
        digest: None,
        observed: decision.observed.as_ref().map(|observed| {
            let rules = rules(&observed.rules).join(" ");
            format!("{} {rules}", observed.effect.as_str()).into()
        }),
    }
}

pub(super) fn outcome<'a>(outcome: &'a Outcome<'a>, lat_us: u64) -> payload::Outcome<'a> {
    let copied = outcome.copied.as_ref();
    payload::Outcome {
        tag: outcome.tag.map(Cow::Borrowed),
        rows: outcome.rows,
        bytes: outcome.bytes,
        error: outcome.error.map(Cow::Borrowed),
        message: outcome.message.map(Cow::Borrowed),
        reason: outcome.reason,
        lat_us,
        copied_bytes: copied.map(|copied| copied.bytes),
        copied_digest: copied.map(|copied| copied.digest.as_str().into()),
        ..payload::Outcome::default()
    }
}

pub(super) fn denied<'a>(
    refusal: &'a Refusal,
    described: Option<&'a Described<'_>>,
    bundle: Option<&'a str>,
) -> payload::Denied<'a> {
    payload::Denied {
        reason: refusal.reason,
        rule: refusal.rule.as_ref().map(|rule| rule_name(rule).into()),
        text: described.map(|described| head(&described.text).into()),
        shown: refusal.text().into(),
        id: refusal.id.as_str().into(),
        bundle: bundle.map(Cow::Borrowed),
        cause: None,
    }
}

pub(super) fn held<'a, F: Frame>(
    ticket: &'a str,
    decision: &Decision,
    frame: &'a F,
    digest: &[u8],
    patience: Duration,
) -> payload::Held<'a> {
    payload::Held {
        ticket: ticket.into(),
        rules: decision.asks.iter().map(|ask| rule_name(&ask.rule).into()).collect(),
        text: Some(frame.described().text),
        params: values(frame).into_iter().map(|value| value.map(Cow::Owned)).collect(),
        digest: crate::secret::hex(digest).into(),
        hold_ms: millis(patience),
    }
}

/// A frame's bind values, as people see them.
pub(super) fn values<F: Frame>(frame: &F) -> Vec<Option<String>> {
    let mut values = Vec::new();
    frame.values(&mut |value| values.push(value.map(str::to_owned)));
    values
}

pub(super) fn close(how: &str, totals: &Totals) -> payload::Close<'static> {
    payload::Close {
        reason: how.to_owned().into(),
        operations: totals.operations,
        denied: totals.denied,
        held: totals.held,
        rows: totals.rows,
        bytes: totals.bytes,
        duration_ms: 0,
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `policy/rule`, or the bare rule where no policy stands behind it.
pub(super) fn rule_name(rule: &RuleRef) -> String {
    if rule.policy.is_empty() {
        rule.rule.to_string()
    } else {
        format!("{}/{}", rule.policy, rule.rule)
    }
}

fn rules(rules: &[RuleRef]) -> Vec<Cow<'static, str>> {
    rules.iter().map(|rule| rule_name(rule).into()).collect()
}

fn head(text: &str) -> &str {
    let mut end = text.len().min(DENIED_TEXT);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}
