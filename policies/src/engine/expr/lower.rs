//! What a checked expression becomes: a tree of typed steps without names, ready to run.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use regex::Regex;

use super::facts::FactId;
use super::grammar::Binary;

/// One step.
#[derive(Debug, Clone)]
pub(super) enum Node {
    /// A constant.
    Const(Const),
    /// A fact.
    Fact(FactId),
    /// The variable of an enclosing `exists` or `all`, counted from the outermost.
    Variable(usize),
    /// `labels[key]`; fails where the key is missing.
    Label(Box<Node>, Box<Node>),
    /// `key in labels`, `has(labels.key)`.
    HasLabel(Box<Node>, Box<Node>),
    /// `list[index]`; fails outside the list.
    Element(Box<Node>, Box<Node>),
    /// A list literal.
    List(Vec<Node>),
    /// Logical not.
    Not(Box<Node>),
    /// Arithmetic negation.
    Negate(Box<Node>),
    /// Logical and: false if any is false, whatever fails beside it.
    And(Vec<Node>),
    /// Logical or: true if any is true, whatever fails beside it.
    Or(Vec<Node>),
    /// Condition, then, else.
    Choose(Box<[Node; 3]>),
    /// Membership in a list.
    In(Box<[Node; 2]>),
    /// Comparison or arithmetic.
    Binary(Binary, Box<[Node; 2]>),
    /// Number of elements or characters.
    Size(Box<Node>),
    /// A test of one text with another.
    Text(TextTest, Box<[Node; 2]>),
    /// A search by regular expression.
    Matches(Box<Node>, Regex),
    /// `exists` or `all` over a list.
    Quantified(Quantifier, Box<[Node; 2]>),
    /// A part of a point in time, in UTC.
    TimePart(TimePart, Box<Node>),
}

/// A constant.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Const {
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Arc<str>),
    Time(Timestamp),
    Span(SignedDuration),
    Null,
}

/// Tests of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextTest {
    StartsWith,
    EndsWith,
    Contains,
}

/// Quantifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantifier {
    Exists,
    All,
}

/// Parts of a point in time, counted as CEL counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimePart {
    FullYear,
    /// From 0.
    Month,
    /// From 1.
    Date,
    /// From 0.
    DayOfMonth,
    /// Sunday is 0.
    DayOfWeek,
    Hours,
    Minutes,
    Seconds,
}

impl TimePart {
    /// Finds a part by the name of its CEL function.
    pub(super) fn find(name: &str) -> Option<TimePart> {
        Some(match name {
            "getFullYear" => TimePart::FullYear,
            "getMonth" => TimePart::Month,
            "getDate" => TimePart::Date,
            "getDayOfMonth" => TimePart::DayOfMonth,
            "getDayOfWeek" => TimePart::DayOfWeek,
            "getHours" => TimePart::Hours,
            "getMinutes" => TimePart::Minutes,
            "getSeconds" => TimePart::Seconds,
            _ => return None,
        })
    }
}
