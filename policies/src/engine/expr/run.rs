//! Runs a lowered expression on the facts of one operation.
//!
//! Facts that are later or unknown decide before anything runs. A failure is *unknown*; `&&` and `||` absorb a
//! failure the other side makes irrelevant, as CEL says. Work is bounded by a budget of steps, so that nested
//! quantifiers over long lists end as unknown instead of holding a session.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::Timestamp;
use smallvec::SmallVec;

use super::facts::{FactId, FactSet};
use super::grammar::Binary;
use super::lower::{Const, Node, Quantifier, TextTest, TimePart};
use super::value::{Failed, ListValue, Text, Value};
use super::When;
use crate::engine::operation::{Completeness, Fact, Facts, Operation, Phase};
use crate::engine::set::CompiledTarget;
use crate::engine::subject::Subject;
use crate::sql::SqlFacts;

/// What a condition comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    True,
    /// It does not.
    False,
    /// A fact it needs is known only at a later phase.
    Later,
    /// It cannot be established.
    Unknown,
}

/// Everything an expression may look at.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// Who acts.
    pub subject: &'a Subject,
    /// On what.
    pub target: &'a CompiledTarget,
    /// What is done.
    pub op: &'a Operation<'a>,
    /// How much is known yet.
    pub phase: Phase,
    /// The time.
    pub now: Timestamp,
}

impl<'a> Scene<'a> {
    /// The SQL facts, unless nothing was understood.
    pub fn sql(&self) -> Option<&'a SqlFacts> {
        match (self.op.facts, self.op.completeness) {
            (_, Completeness::Opaque) => None,
            (Facts::Sql(sql), _) => Some(sql),
            _ => None,
        }
    }

    /// Whether every fact of the set is known; if not, whether it will be.
    pub fn knows(&self, reads: FactSet) -> Outcome {
        let Some(sql) = self.sql() else {
            let needed = matches!(self.op.facts, Facts::Sql(_)) && reads.intersects(SQL);
            return if needed { Outcome::Unknown } else { Outcome::True };
        };
        if !reads.intersects(FALLIBLE) {
            return Outcome::True;
        }
        let gaps = [
            (FactId::SqlTables, gap(&sql.tables)),
            (FactId::SqlReads, gap(&sql.reads)),
            (FactId::SqlWrites, gap(&sql.writes)),
            (FactId::SqlColumns, gap(&sql.columns)),
            (FactId::SqlFunctions, gap(&sql.functions)),
            (FactId::SqlLimit, gap(&sql.limit)),
            (FactId::SqlParams, gap(&sql.params)),
        ];
        let found = |wanted: Outcome| {
            gaps.iter()
                .any(|(fact, state)| reads.contains(*fact) && *state == wanted)
        };
        match (found(Outcome::Later), found(Outcome::Unknown)) {
            (true, _) if self.phase == Phase::Structure => Outcome::Later,
            (false, false) => Outcome::True,
            _ => Outcome::Unknown,
        }
    }

    /// The value of a fact, if it is known.
    pub fn fact(&self, fact: FactId) -> Option<Value<'a>> {
        match fact {
            FactId::SubjectNamespace => Some(plain(&self.subject.namespace)),
            FactId::SubjectServiceAccount => Some(plain(&self.subject.service_account)),
            FactId::SubjectPod => Some(plain(&self.subject.pod)),
            FactId::SubjectLabels => Some(Value::Labels(&self.subject.labels)),
            FactId::TargetNamespace => Some(plain(&self.target.id.namespace)),
            FactId::TargetName => Some(plain(&self.target.id.name)),
            FactId::TargetProtocol => Some(plain(self.target.protocol.as_str())),
            FactId::TargetLabels => Some(Value::Labels(&self.target.bundled.target.metadata.labels)),
            FactId::Now => Some(Value::Time(self.now)),
            FactId::TcpBytesIn | FactId::TcpBytesOut => self.tcp(fact),
            FactId::ConnectDatabase => match self.op.facts {
                Facts::Connect(connect) => Some(connect.database.as_deref().map_or(Value::Null, plain)),
                _ => None,
            },
            _ => self.sql().and_then(|sql| sql_fact(sql, fact)),
        }
    }

    fn tcp(&self, fact: FactId) -> Option<Value<'a>> {
        let Facts::Tcp(tcp) = self.op.facts else { return None };
        let bytes = if fact == FactId::TcpBytesIn {
            tcp.bytes_in
        } else {
            tcp.bytes_out
        };
        Some(Value::Int(i64::try_from(bytes).unwrap_or(i64::MAX)))
    }
}

fn plain(text: &str) -> Value<'_> {
    Value::Text(Text::Plain(Cow::Borrowed(text)))
}

fn gap<T>(fact: &Fact<T>) -> Outcome {
    match fact {
        Fact::Known(_) => Outcome::True,
        Fact::Later => Outcome::Later,
        Fact::Unknown => Outcome::Unknown,
    }
}

/// Facts that a statement which was understood may still lack.
const FALLIBLE: FactSet = FactSet::of(&[
    FactId::SqlTables,
    FactId::SqlReads,
    FactId::SqlWrites,
    FactId::SqlColumns,
    FactId::SqlFunctions,
    FactId::SqlLimit,
    FactId::SqlParams,
]);

/// Facts that a statement which was not understood lacks.
const SQL: FactSet = FactSet::range(FactId::SqlCommands, FactId::SqlRole);

fn sql_fact(sql: &SqlFacts, fact: FactId) -> Option<Value<'_>> {
    Some(match fact {
        FactId::SqlCommands => Value::List(ListValue::Commands(sql.commands)),
        FactId::SqlTables => Value::List(ListValue::Relations(sql.tables.known()?)),
        FactId::SqlReads => Value::List(ListValue::Relations(sql.reads.known()?)),
        FactId::SqlWrites => Value::List(ListValue::Relations(sql.writes.known()?)),
        FactId::SqlColumns => Value::List(ListValue::Columns(sql.columns.known()?)),
        FactId::SqlFunctions => Value::List(ListValue::Texts(sql.functions.known()?)),
        FactId::SqlEffects => Value::List(ListValue::Effects(sql.effects)),
        FactId::SqlFiltered => Value::Bool(sql.filtered),
        FactId::SqlLimit => sql.limit.known()?.map_or(Value::Null, Value::Int),
        FactId::SqlReturning => Value::Bool(sql.returning),
        FactId::SqlCopy => plain(sql.copy.as_str()),
        FactId::SqlExplain => Value::Bool(sql.explain),
        FactId::SqlStatements => Value::Int(i64::from(sql.statements)),
        FactId::SqlObjects => Value::List(ListValue::Texts(&sql.objects)),
        FactId::SqlParams => Value::List(ListValue::Params(sql.params.known()?)),
        FactId::SqlSettings => Value::List(ListValue::Texts(&sql.settings)),
        FactId::SqlChannels => Value::List(ListValue::Texts(&sql.channels)),
        FactId::SqlInTransaction => Value::Bool(sql.in_transaction),
        FactId::SqlDatabase => plain(&sql.database),
        FactId::SqlRole => plain(&sql.role),
        _ => return None,
    })
}

impl When {
    /// What the condition comes to for one operation.
    pub fn outcome(&self, scene: &Scene<'_>) -> Outcome {
        match scene.knows(self.reads()) {
            Outcome::True => {}
            other => return other,
        }
        let mut run = Run {
            scene,
            variables: SmallVec::new(),
            steps: MAX_STEPS,
        };
        match run.bool(&self.node) {
            Ok(true) => Outcome::True,
            Ok(false) => Outcome::False,
            Err(Failed) => Outcome::Unknown,
        }
    }
}

struct Run<'a, 's> {
    scene: &'s Scene<'a>,
    variables: SmallVec<[Value<'a>; 2]>,
    steps: u32,
}

impl<'a> Run<'a, '_> {
    fn bool(&mut self, node: &'a Node) -> Result<bool, Failed> {
        match self.value(node)? {
            Value::Bool(value) => Ok(value),
            _ => Err(Failed),
        }
    }

    fn value(&mut self, node: &'a Node) -> Result<Value<'a>, Failed> {
        self.steps = self.steps.checked_sub(1).ok_or(Failed)?;
        Ok(match node {
            Node::Const(constant) => of_const(constant),
            Node::Fact(fact) => self.scene.fact(*fact).ok_or(Failed)?,
            Node::Variable(at) => self.variables.get(*at).cloned().ok_or(Failed)?,
            Node::Label(labels, key) => {
                let (labels, key) = (self.labels(labels)?, self.text(key)?);
                labels.get(&*key.cow()).map(|value| plain(value)).ok_or(Failed)?
            }
            Node::HasLabel(labels, key) => {
                let (labels, key) = (self.labels(labels)?, self.text(key)?);
                Value::Bool(labels.contains_key(&*key.cow()))
            }
            Node::Element(list, index) => self.element(list, index)?,
            Node::List(items) => {
                let values: Result<Arc<[Value<'a>]>, Failed> = items.iter().map(|item| self.value(item)).collect();
                Value::List(ListValue::Values(values?))
            }
            Node::Not(operand) => Value::Bool(!self.bool(operand)?),
            Node::Negate(operand) => match self.value(operand)? {
                Value::Int(value) => Value::Int(value.checked_neg().ok_or(Failed)?),
                Value::Double(value) => Value::Double(-value),
                _ => return Err(Failed),
            },
            Node::And(terms) => Value::Bool(!self.any(terms, false)?),
            Node::Or(terms) => Value::Bool(self.any(terms, true)?),
            Node::Choose(parts) => {
                let [condition, yes, no] = &**parts;
                if self.bool(condition)? {
                    self.value(yes)?
                } else {
                    self.value(no)?
                }
            }
            Node::In(pair) => self.is_in(pair)?,
            Node::Binary(op, pair) => self.binary(*op, pair)?,
            Node::Size(operand) => self.size(operand)?,
            Node::Text(test, pair) => self.text_test(*test, pair)?,
            Node::Matches(operand, regex) => Value::Bool(regex.is_match(&self.text(operand)?.cow())),
            Node::Quantified(which, pair) => self.quantified(*which, pair)?,
            Node::TimePart(part, operand) => match self.value(operand)? {
                Value::Time(time) => Value::Int(time_part(*part, time)),
                _ => return Err(Failed),
            },
        })
    }

    /// Whether any term is `wanted`; a failure counts only if none is.
    fn any(&mut self, terms: &'a [Node], wanted: bool) -> Result<bool, Failed> {
        let mut failed = false;
        for term in terms {
            match self.bool(term) {
                Ok(value) if value == wanted => return Ok(true),
                Ok(_) => {}
                Err(Failed) => failed = true,
            }
        }
        if failed {
            Err(Failed)
        } else {
            Ok(false)
        }
    }

    fn text(&mut self, node: &'a Node) -> Result<Text<'a>, Failed> {
        match self.value(node)? {
            Value::Text(text) => Ok(text),
            _ => Err(Failed),
        }
    }

    fn labels(&mut self, node: &'a Node) -> Result<&'a BTreeMap<String, String>, Failed> {
        match self.value(node)? {
            Value::Labels(labels) => Ok(labels),
            _ => Err(Failed),
        }
    }

    fn list(&mut self, node: &'a Node) -> Result<ListValue<'a>, Failed> {
        match self.value(node)? {
            Value::List(list) => Ok(list),
            _ => Err(Failed),
        }
    }

    fn element(&mut self, list: &'a Node, index: &'a Node) -> Result<Value<'a>, Failed> {
        let list = self.list(list)?;
        match self.value(index)? {
            Value::Int(at) => list.get(usize::try_from(at).map_err(|_| Failed)?)?.ok_or(Failed),
            _ => Err(Failed),
        }
    }

    fn size(&mut self, operand: &'a Node) -> Result<Value<'a>, Failed> {
        let size = match self.value(operand)? {
            Value::List(list) => list.len(),
            Value::Labels(labels) => labels.len(),
            Value::Text(text) => text.cow().chars().count(),
            _ => return Err(Failed),
        };
        Ok(Value::Int(i64::try_from(size).map_err(|_| Failed)?))
    }

    fn text_test(&mut self, test: TextTest, pair: &'a [Node; 2]) -> Result<Value<'a>, Failed> {
        let [a, b] = pair;
        let (a, b) = (self.text(a)?, self.text(b)?);
        let (a, b) = (a.cow(), b.cow());
        Ok(Value::Bool(match test {
            TextTest::StartsWith => a.starts_with(&*b),
            TextTest::EndsWith => a.ends_with(&*b),
            TextTest::Contains => a.contains(&*b),
        }))
    }

    fn is_in(&mut self, pair: &'a [Node; 2]) -> Result<Value<'a>, Failed> {
        let [item, list] = pair;
        let item = self.value(item)?;
        if let (Node::List(items), Value::Text(text)) = (list, &item) {
            // The commonest shape, a fact in a list of literals, without building the list.
            let literals = items.iter().map(|item| match item {
                Node::Const(Const::Text(literal)) => Some(&**literal),
                _ => None,
            });
            if literals.clone().all(|literal| literal.is_some()) {
                return Ok(Value::Bool(literals.flatten().any(|literal| text.is(literal))));
            }
        }
        let list = self.list(list)?;
        let mut failed = false;
        for at in 0..list.len() {
            self.steps = self.steps.checked_sub(1).ok_or(Failed)?;
            match list
                .get(at)
                .and_then(|element| element.ok_or(Failed))
                .and_then(|element| same(&item, &element))
            {
                Ok(true) => return Ok(Value::Bool(true)),
                Ok(false) => {}
                Err(Failed) => failed = true,
            }
        }
        if failed {
            Err(Failed)
        } else {
            Ok(Value::Bool(false))
        }
    }

    fn quantified(&mut self, which: Quantifier, pair: &'a [Node; 2]) -> Result<Value<'a>, Failed> {
        let [list, body] = pair;
        let list = self.list(list)?;
        let wanted = which == Quantifier::Exists;
        let mut failed = false;
        for at in 0..list.len() {
            let found = match list.get(at) {
                Ok(Some(element)) => {
                    self.variables.push(element);
                    let found = self.bool(body);
                    self.variables.pop();
                    found
                }
                _ => Err(Failed),
            };
            match found {
                Ok(value) if value == wanted => return Ok(Value::Bool(wanted)),
                Ok(_) => {}
                Err(Failed) => failed = true,
            }
        }
        if failed {
            Err(Failed)
        } else {
            Ok(Value::Bool(!wanted))
        }
    }

    fn binary(&mut self, op: Binary, pair: &'a [Node; 2]) -> Result<Value<'a>, Failed> {
        let [a, b] = pair;
        let (a, b) = (self.value(a)?, self.value(b)?);
        let order = |holds: fn(Ordering) -> bool| compare(&a, &b).map(|order| Value::Bool(holds(order)));
        match op {
            Binary::Equal => same(&a, &b).map(Value::Bool),
            Binary::NotEqual => same(&a, &b).map(|same| Value::Bool(!same)),
            Binary::Less => order(Ordering::is_lt),
            Binary::LessEqual => order(Ordering::is_le),
            Binary::Greater => order(Ordering::is_gt),
            Binary::GreaterEqual => order(Ordering::is_ge),
            _ => arithmetic(op, &a, &b),
        }
    }
}

fn of_const(constant: &Const) -> Value<'_> {
    match constant {
        Const::Bool(value) => Value::Bool(*value),
        Const::Int(value) => Value::Int(*value),
        Const::Double(value) => Value::Double(*value),
        Const::Text(text) => plain(text),
        Const::Time(time) => Value::Time(*time),
        Const::Span(span) => Value::Span(*span),
        Const::Null => Value::Null,
    }
}

/// Equality: values of different types are different, numbers compare by value.
fn same(a: &Value<'_>, b: &Value<'_>) -> Result<bool, Failed> {
    Ok(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Text(a), Value::Text(b)) => a.same(b),
        (Value::Null, Value::Null) => true,
        (Value::Int(_) | Value::Double(_), Value::Int(_) | Value::Double(_)) => compare(a, b) == Ok(Ordering::Equal),
        (Value::Time(a), Value::Time(b)) => a == b,
        (Value::Span(a), Value::Span(b)) => a == b,
        (Value::List(a), Value::List(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for at in 0..a.len() {
                let (Some(a), Some(b)) = (a.get(at)?, b.get(at)?) else {
                    return Err(Failed);
                };
                if !same(&a, &b)? {
                    return Ok(false);
                }
            }
            true
        }
        _ => false,
    })
}

fn compare(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, Failed> {
    #[allow(clippy::cast_precision_loss)] // An integer beyond 2^53 beside a float compares as CEL compares it.
    let order = match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
        (Value::Double(a), Value::Int(b)) => a.partial_cmp(&(*b as f64)),
        (Value::Text(a), Value::Text(b)) => Some(a.cow().cmp(&b.cow())),
        (Value::Time(a), Value::Time(b)) => Some(a.cmp(b)),
        (Value::Span(a), Value::Span(b)) => Some(a.cmp(b)),
        _ => None,
    };
    order.ok_or(Failed)
}

fn arithmetic<'a>(op: Binary, a: &Value<'a>, b: &Value<'a>) -> Result<Value<'a>, Failed> {
    let value = match (op, a, b) {
        (Binary::Add, Value::Int(a), Value::Int(b)) => a.checked_add(*b).map(Value::Int),
        (Binary::Subtract, Value::Int(a), Value::Int(b)) => a.checked_sub(*b).map(Value::Int),
        (Binary::Multiply, Value::Int(a), Value::Int(b)) => a.checked_mul(*b).map(Value::Int),
        (Binary::Divide, Value::Int(a), Value::Int(b)) => a.checked_div(*b).map(Value::Int),
        (Binary::Modulo, Value::Int(a), Value::Int(b)) => a.checked_rem(*b).map(Value::Int),
        (Binary::Add, Value::Double(a), Value::Double(b)) => Some(Value::Double(a + b)),
        (Binary::Subtract, Value::Double(a), Value::Double(b)) => Some(Value::Double(a - b)),
        (Binary::Multiply, Value::Double(a), Value::Double(b)) => Some(Value::Double(a * b)),
        (Binary::Divide, Value::Double(a), Value::Double(b)) => Some(Value::Double(a / b)),
        (Binary::Add, Value::Text(a), Value::Text(b)) => Some(concatenated(a, b)?),
        (Binary::Subtract, Value::Time(a), Value::Time(b)) => Some(Value::Span(a.duration_since(*b))),
        (Binary::Add, Value::Time(a), Value::Span(b)) => a.checked_add(*b).ok().map(Value::Time),
        (Binary::Subtract, Value::Time(a), Value::Span(b)) => a.checked_sub(*b).ok().map(Value::Time),
        (Binary::Add, Value::Span(a), Value::Span(b)) => a.checked_add(*b).map(Value::Span),
        (Binary::Subtract, Value::Span(a), Value::Span(b)) => a.checked_sub(*b).map(Value::Span),
        _ => None,
    };
    value.ok_or(Failed)
}

fn concatenated<'a>(a: &Text<'_>, b: &Text<'_>) -> Result<Value<'a>, Failed> {
    let (a, b) = (a.cow(), b.cow());
    if a.len().saturating_add(b.len()) > MAX_TEXT {
        return Err(Failed);
    }
    Ok(Value::Text(Text::Plain(Cow::Owned(format!("{a}{b}")))))
}

fn time_part(part: TimePart, time: Timestamp) -> i64 {
    let zoned = time.to_zoned(TimeZone::UTC);
    match part {
        TimePart::FullYear => i64::from(zoned.year()),
        TimePart::Month => i64::from(zoned.month()).saturating_sub(1),
        TimePart::Date => i64::from(zoned.day()),
        TimePart::DayOfMonth => i64::from(zoned.day()).saturating_sub(1),
        TimePart::DayOfWeek => i64::from(zoned.weekday().to_sunday_zero_offset()),
        TimePart::Hours => i64::from(zoned.hour()),
        TimePart::Minutes => i64::from(zoned.minute()),
        TimePart::Seconds => i64::from(zoned.second()),
    }
}

/// Steps one expression may take.
const MAX_STEPS: u32 = 200_000;
/// Longest text an expression may build.
const MAX_TEXT: usize = 1 << 20;
