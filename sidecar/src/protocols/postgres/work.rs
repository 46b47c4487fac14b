//! One statement string with its values and surroundings, as the gate sees it, together with the bytes that will leave.
//!
//! Invariant: what describes itself here and what is sent are one value; nothing can be exchanged in between.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sidegate_policies::engine::{Decision, Fact, MaskSet, Operation};
use sidegate_policies::sql::SqlFacts;

use super::codec::bind::Bind;
use super::codec::Frame;
use super::conversation::{Conversation, Prepared};
use super::facts::Planned;
use super::values;
use crate::gate::{Described, OpId, Repeats};
use crate::refusal::Refusal;

/// The longest hold inside an open transaction: its locks and snapshot wait with it.
const IN_TRANSACTION: Duration = Duration::from_secs(5);

/// One operation.
pub struct Work {
    bytes: Bytes,
    plan: Arc<Planned>,
    /// Facts with values, where there are any.
    facts: Option<Box<SqlFacts>>,
    values: Option<(Arc<Prepared>, Arc<Bind>)>,
    in_transaction: bool,
    earlier: Vec<Arc<str>>,
    earlier_digest: [u8; 32],
    repeats: Option<OpId>,
}

impl Work {
    /// A string of statements without values.
    pub fn query(frame: &Frame, plan: &Arc<Planned>, conversation: &Conversation) -> Self {
        let mut work = Work {
            bytes: frame.bytes().clone(),
            plan: plan.clone(),
            facts: None,
            values: None,
            in_transaction: conversation.status != b'I',
            earlier: Vec::new(),
            earlier_digest: conversation.earlier_digest(),
            repeats: None,
        };
        if work.in_transaction {
            work.earlier = conversation.earlier().to_vec();
        }
        // Where no values can come, there are none. A decision that stands did not look at them.
        if work.plan.decided.get().is_none() && work.plan.analysis.facts.params == Fact::Later {
            work.set_params(Vec::new());
        }
        work
    }

    /// A bound statement. `bytes` is what leaves now; `typed`: rules look at values.
    pub fn bound(
        bytes: Bytes,
        plan: &Arc<Planned>,
        values: (Arc<Prepared>, Arc<Bind>),
        typed: bool,
        conversation: &Conversation,
    ) -> Self {
        let mut work = Work::query(&Frame::whole(bytes), plan, conversation);
        if typed {
            work.set_params(values::all_typed(&values.0, &values.1));
        }
        work.values = Some(values);
        work
    }

    /// The same text ran before in this session as this operation.
    #[must_use]
    pub fn repeating(mut self, op: Option<OpId>) -> Self {
        self.repeats = op;
        self
    }

    fn set_params(&mut self, params: Vec<sidegate_policies::sql::ParamValue>) {
        let mut facts = self.plan.analysis.facts.clone();
        facts.params = Fact::Known(params);
        self.facts = Some(Box::new(facts));
    }

    fn hides_values(&self) -> bool {
        self.plan.scrubs() || self.plan.hidden.hides_values()
    }

    /// How many bind values are not shown as they are: all of them, NULL too, or those in which a detector found something.
    fn hidden_bind_values(&self) -> usize {
        let Some((prepared, bind)) = &self.values else {
            return 0;
        };
        if self.hides_values() {
            return bind.values().len();
        }
        let Some(detectors) = self.plan.detectors() else {
            return 0;
        };
        let hides = |(index, value): &(usize, Option<&[u8]>)| {
            value.is_some_and(|value| {
                let oid = prepared.parameter_type(*index);
                values::shown(value, oid, bind.binary(*index), Some(detectors)).1 > 0
            })
        };
        bind.values().enumerate().filter(hides).count()
    }
}

fn borrowed(words: &[Box<str>]) -> Vec<Cow<'_, str>> {
    words.iter().map(|word| Cow::Borrowed(&**word)).collect()
}

impl From<Work> for Bytes {
    fn from(work: Work) -> Bytes {
        work.bytes
    }
}

impl crate::gate::Frame for Work {
    fn operation(&self) -> Operation<'_> {
        let facts = self.facts.as_deref().unwrap_or(&self.plan.analysis.facts);
        self.plan.analysis.operation(facts)
    }

    fn described(&self) -> Described<'_> {
        Described {
            text: Cow::Borrowed(self.plan.shown().0),
            earlier: self.earlier.iter().map(|text| Cow::Borrowed(&**text)).collect(),
            resources: borrowed(self.plan.resources()),
            masks: borrowed(self.plan.mask_words()),
        }
    }

    fn hidden_values(&self) -> i32 {
        let constants = i32::try_from(self.plan.shown().1).unwrap_or(i32::MAX);
        let values = i32::try_from(self.hidden_bind_values()).unwrap_or(i32::MAX);
        constants.saturating_add(values)
    }

    fn values(&self, show: &mut dyn FnMut(Option<&str>)) {
        let Some((prepared, bind)) = &self.values else {
            return;
        };
        let (hidden, detectors) = (self.hides_values(), self.plan.detectors());
        for (index, value) in bind.values().enumerate() {
            match value {
                None => show(None),
                Some(_) if hidden => show(Some("***")),
                Some(value) => {
                    let oid = prepared.parameter_type(index);
                    let (shown, _) = values::shown(value, oid, bind.binary(index), detectors);
                    show(Some(&shown));
                }
            }
        }
    }

    fn explain(&self, refusal: &mut Refusal, decision: &Decision) {
        super::planner::explain(refusal, &self.plan, decision);
    }

    fn digest_fields(&self) -> Vec<Cow<'_, [u8]>> {
        let scope = &self.plan.scope;
        let mut fields: Vec<Cow<'_, [u8]>> = vec![
            Cow::Borrowed(self.plan.text.as_bytes()),
            Cow::Borrowed(scope.role.as_bytes()),
            Cow::Borrowed(scope.database.as_bytes()),
            Cow::Borrowed(&self.earlier_digest),
            Cow::Owned(vec![u8::from(self.in_transaction)]),
        ];
        fields.extend(scope.search_path.iter().map(|schema| Cow::Borrowed(schema.as_bytes())));
        fields.extend(self.plan.mask_words().iter().map(|word| Cow::Borrowed(word.as_bytes())));
        let Some((prepared, bind)) = &self.values else {
            return fields;
        };
        for (index, value) in bind.values().enumerate() {
            fields.push(Cow::Owned(prepared.parameter_type(index).to_be_bytes().to_vec()));
            fields.push(Cow::Owned(vec![
                u8::from(bind.binary(index)),
                u8::from(value.is_some()),
            ]));
            fields.push(Cow::Borrowed(value.unwrap_or_default()));
        }
        fields.extend(
            bind.results
                .iter()
                .map(|format| Cow::Owned(format.to_be_bytes().to_vec())),
        );
        fields
    }

    fn masks(&self) -> Option<&Arc<MaskSet>> {
        Some(&self.plan.masks)
    }

    fn repeats(&self) -> Option<Repeats<'_>> {
        let (prepared, _) = self.values.as_ref()?;
        let intents = &prepared.intents;
        self.repeats.map(|op| Repeats { op, intents })
    }

    fn patience(&self) -> Option<Duration> {
        self.in_transaction.then_some(IN_TRANSACTION)
    }
}
