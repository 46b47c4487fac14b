//! Values while a `when` runs. They borrow from the operation; only concatenated text owns anything.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::sql::facts::{Effects, ParamValue};
use crate::sql::names::{ColumnName, RelationName};

/// Something failed while an expression ran: a missing label, a wrong bind value, an overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed;

/// A value.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    /// true or false.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Double(f64),
    /// Text.
    Text(Text<'a>),
    /// A point in time.
    Time(Timestamp),
    /// A length of time.
    Span(SignedDuration),
    /// null.
    Null,
    /// A list.
    List(ListValue<'a>),
    /// Labels.
    Labels(&'a BTreeMap<String, String>),
}

/// Text, or a name that is text when somebody looks.
#[derive(Debug, Clone)]
pub enum Text<'a> {
    /// Text.
    Plain(Cow<'a, str>),
    /// `schema.relation`.
    Relation(&'a RelationName),
    /// `schema.relation.column`.
    Column(&'a ColumnName),
}

impl<'a> Text<'a> {
    /// The text, built only for names.
    pub fn cow(&self) -> Cow<'_, str> {
        match self {
            Text::Plain(text) => Cow::Borrowed(text),
            Text::Relation(name) => Cow::Owned(name.to_string()),
            Text::Column(name) => Cow::Owned(name.to_string()),
        }
    }

    /// Whether it is this text. Builds nothing.
    pub fn is(&self, text: &str) -> bool {
        let mut rest = Rest(text);
        match self {
            Text::Plain(own) => own == text,
            Text::Relation(name) => write!(rest, "{name}").is_ok() && rest.0.is_empty(),
            Text::Column(name) => write!(rest, "{name}").is_ok() && rest.0.is_empty(),
        }
    }

    /// Whether two texts are the same.
    pub fn same(&self, other: &Text<'_>) -> bool {
        match (self, other) {
            (Text::Relation(a), Text::Relation(b)) => a == b,
            (Text::Column(a), Text::Column(b)) => a == b,
            (Text::Plain(a), other) => other.is(a),
            (other, Text::Plain(b)) => other.is(b),
            (a, b) => a.cow() == b.cow(),
        }
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Text::Plain(text) => f.write_str(text),
            Text::Relation(name) => name.fmt(f),
            Text::Column(name) => name.fmt(f),
        }
    }
}

/// What is left to compare; a write that differs ends the comparison.
struct Rest<'a>(&'a str);

impl Write for Rest<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(part).ok_or(fmt::Error)?;
        Ok(())
    }
}

/// A list.
#[derive(Debug, Clone)]
pub enum ListValue<'a> {
    /// Relations.
    Relations(&'a [RelationName]),
    /// Columns.
    Columns(&'a [ColumnName]),
    /// Texts.
    Texts(&'a [Arc<str>]),
    /// Effects.
    Effects(Effects),
    /// Commands, by name.
    Commands(crate::sql::CommandSet),
    /// Bind values.
    Params(&'a [ParamValue]),
    /// A list literal.
    Values(Arc<[Value<'a>]>),
}

impl<'a> ListValue<'a> {
    /// How many elements.
    pub fn len(&self) -> usize {
        match self {
            ListValue::Relations(list) => list.len(),
            ListValue::Columns(list) => list.len(),
            ListValue::Texts(list) => list.len(),
            ListValue::Effects(effects) => effects.names().count(),
            ListValue::Commands(commands) => crate::engine::words::commands_of(*commands).count(),
            ListValue::Params(list) => list.len(),
            ListValue::Values(list) => list.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One element; fails for a bind value nobody can read.
    pub fn get(&self, index: usize) -> Result<Option<Value<'a>>, Failed> {
        let text = |text: &'a str| Value::Text(Text::Plain(Cow::Borrowed(text)));
        Ok(match self {
            ListValue::Relations(list) => list.get(index).map(|name| Value::Text(Text::Relation(name))),
            ListValue::Columns(list) => list.get(index).map(|name| Value::Text(Text::Column(name))),
            ListValue::Texts(list) => list.get(index).map(|own| text(own)),
            ListValue::Effects(effects) => effects.names().nth(index).map(text),
            ListValue::Commands(commands) => crate::engine::words::commands_of(*commands)
                .nth(index)
                .map(|command| text(crate::engine::words::command(command))),
            ListValue::Params(list) => list.get(index).map(param).transpose()?,
            ListValue::Values(list) => list.get(index).cloned(),
        })
    }
}

fn param(value: &ParamValue) -> Result<Value<'_>, Failed> {
    Ok(match value {
        ParamValue::Null => Value::Null,
        ParamValue::Bool(value) => Value::Bool(*value),
        ParamValue::Int(value) => Value::Int(*value),
        ParamValue::Float(value) => Value::Double(*value),
        ParamValue::Text(text) => Value::Text(Text::Plain(Cow::Borrowed(text))),
        ParamValue::Opaque => return Err(Failed),
    })
}

/// Reads a CEL duration such as `90s` or `1h30m`.
pub fn span(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut total = SignedDuration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits)?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let nanos: i64 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        let part = SignedDuration::from_nanos(number.parse::<i64>().ok()?.checked_mul(nanos)?);
        total = total.checked_add(part)?;
        rest = after;
    }
    if negative {
        SignedDuration::ZERO.checked_sub(total)
    } else {
        Some(total)
    }
}
