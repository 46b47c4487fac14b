//! Types an expression against the fact table and lowers it.
//!
//! Refuses unknown names, operands of the wrong type, results other than bool, facts of two families in one
//! expression, and literals that can never be a value of the fact they are compared with, so that a typing slip in
//! a Deny does not silently allow.

use std::sync::Arc;

use regex::RegexBuilder;

use super::facts::{Element, FactId, FactSet, Family, Kind};
use super::grammar::{self, Ast, Binary, Literal};
use super::lower::{Const, Node, Quantifier, TextTest, TimePart};
use super::ExprError;
use crate::engine::words;
use crate::sql::Effects;

/// A compiled `when`.
#[derive(Debug, Clone)]
pub struct When {
    pub(super) node: Node,
    text: Arc<str>,
    reads: FactSet,
    family: Family,
}

impl When {
    /// Compiles an expression; it must be true or false.
    pub fn compile(text: &str) -> Result<When, ExprError> {
        let ast = grammar::parse(text)?;
        let mut checker = Checker {
            variables: Vec::new(),
            reads: FactSet::default(),
        };
        let (node, kind) = checker.typed(&ast)?;
        if kind != Kind::Bool {
            return Err(ExprError::Type(format!(
                "the result is {}; a `when` must be true or false",
                kind.describe()
            )));
        }
        Ok(When {
            node,
            text: text.into(),
            reads: checker.reads,
            family: family(checker.reads)?,
        })
    }

    /// As written.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// The facts it names.
    pub fn reads(&self) -> FactSet {
        self.reads
    }

    /// Which operations it is about.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether it names anything that may change between two runs of one operation.
    pub fn is_volatile(&self) -> bool {
        self.reads.iter().any(FactId::is_volatile)
    }
}

fn family(reads: FactSet) -> Result<Family, ExprError> {
    let mut family = Family::Any;
    for fact in reads.iter() {
        match (family, fact.family()) {
            (_, Family::Any) => {}
            (Family::Any, own) => family = own,
            (seen, own) if seen == own => {}
            _ => {
                return Err(ExprError::Type(
                    "facts of `sql`, `tcp` and `connect` cannot be used together: no operation has both".to_owned(),
                ))
            }
        }
    }
    Ok(family)
}

type Typed = (Node, Kind);

struct Checker {
    variables: Vec<(String, Kind)>,
    reads: FactSet,
}

impl Checker {
    fn typed(&mut self, ast: &Ast) -> Result<Typed, ExprError> {
        match ast {
            Ast::Literal(literal) => Ok(constant(literal)),
            Ast::Name(name) => self.name(name),
            Ast::Select(operand, field) => self.select(operand, field),
            Ast::Index(operand, index) => self.index(operand, index),
            Ast::List(items) => self.list(items),
            Ast::Not(operand) => Ok((Node::Not(Box::new(self.bool(operand, "!")?)), Kind::Bool)),
            Ast::Negate(operand) => self.negate(operand),
            Ast::And(terms) => Ok((Node::And(self.bools(terms, "&&")?), Kind::Bool)),
            Ast::Or(terms) => Ok((Node::Or(self.bools(terms, "||")?), Kind::Bool)),
            Ast::Choose(parts) => self.choose(parts),
            Ast::In(pair) => self.membership(pair),
            Ast::Binary(op, pair) => self.binary(*op, pair),
            Ast::Call(name, target, args) => self.call(name, target.as_deref(), args),
        }
    }

    fn bool(&mut self, ast: &Ast, operator: &str) -> Result<Node, ExprError> {
        match self.typed(ast)? {
            (node, Kind::Bool) => Ok(node),
            (_, other) => Err(ExprError::Type(format!(
                "`{operator}` needs a bool, not {}",
                other.describe()
            ))),
        }
    }

    fn bools(&mut self, terms: &[Ast], operator: &str) -> Result<Vec<Node>, ExprError> {
        terms.iter().map(|term| self.bool(term, operator)).collect()
    }

    fn name(&mut self, name: &str) -> Result<Typed, ExprError> {
        let found = self.variables.iter().rposition(|(variable, _)| variable == name);
        if let Some((at, (_, kind))) = found.and_then(|at| self.variables.get(at).map(|variable| (at, variable))) {
            return Ok((Node::Variable(at), *kind));
        }
        match FactId::find(name) {
            Some(fact) => Ok(self.fact(fact)),
            None => Err(unknown(name)),
        }
    }

    fn fact(&mut self, fact: FactId) -> Typed {
        self.reads.insert(fact);
        (Node::Fact(fact), fact.kind())
    }

    fn select(&mut self, operand: &Ast, field: &str) -> Result<Typed, ExprError> {
        if let Ast::Name(root) = operand {
            if !self.variables.iter().any(|(variable, _)| variable == root) {
                let name = format!("{root}.{field}");
                return match FactId::find(&name) {
                    Some(fact) => Ok(self.fact(fact)),
                    None => Err(unknown(&name)),
                };
            }
        }
        match self.typed(operand)? {
            (node, Kind::Labels) => Ok((Node::Label(Box::new(node), text(field)), Kind::Text)),
            (_, other) => Err(ExprError::Type(format!("{} has no field `{field}`", other.describe()))),
        }
    }

    fn index(&mut self, operand: &Ast, index: &Ast) -> Result<Typed, ExprError> {
        let (node, kind) = self.typed(operand)?;
        let (at, at_kind) = self.typed(index)?;
        let (node, at) = (Box::new(node), Box::new(at));
        match (kind, at_kind) {
            (Kind::Labels, Kind::Text) => Ok((Node::Label(node, at), Kind::Text)),
            (Kind::List(element), Kind::Int) if element != Element::Empty => {
                Ok((Node::Element(node, at), element.kind()))
            }
            (kind, at) => Err(ExprError::Type(format!(
                "{} cannot be indexed with {}",
                kind.describe(),
                at.describe()
            ))),
        }
    }

    fn list(&mut self, items: &[Ast]) -> Result<Typed, ExprError> {
        let mut element = Element::Empty;
        let mut nodes = Vec::with_capacity(items.len());
        for item in items {
            let (node, kind) = self.typed(item)?;
            let own = match kind {
                Kind::Text => Element::Text,
                Kind::Int => Element::Int,
                Kind::Double => Element::Double,
                Kind::Bool => Element::Bool,
                other => return Err(ExprError::Type(format!("a list cannot hold {}", other.describe()))),
            };
            if element != Element::Empty && element != own {
                return Err(ExprError::Type("all elements of a list must have one type".to_owned()));
            }
            element = own;
            nodes.push(node);
        }
        Ok((Node::List(nodes), Kind::List(element)))
    }

    fn negate(&mut self, operand: &Ast) -> Result<Typed, ExprError> {
        let (node, kind) = self.typed(operand)?;
        match kind {
            Kind::Int | Kind::Double => Ok((Node::Negate(Box::new(node)), kind)),
            other => Err(ExprError::Type(format!("`-` needs a number, not {}", other.describe()))),
        }
    }

    fn choose(&mut self, parts: &[Ast; 3]) -> Result<Typed, ExprError> {
        let [condition, yes, no] = parts;
        let condition = self.bool(condition, "?:")?;
        let (yes, kind) = self.typed(yes)?;
        let (no, other) = self.typed(no)?;
        if kind != other {
            return Err(ExprError::Type(format!(
                "both sides of `?:` must have one type, not {} and {}",
                kind.describe(),
                other.describe()
            )));
        }
        Ok((Node::Choose(Box::new([condition, yes, no])), kind))
    }

    fn membership(&mut self, pair: &[Ast; 2]) -> Result<Typed, ExprError> {
        let [item, list] = pair;
        let (item, kind) = self.typed(item)?;
        let (list, list_kind) = self.typed(list)?;
        match (kind, list_kind) {
            (Kind::Text, Kind::Labels) => Ok((Node::HasLabel(Box::new(list), Box::new(item)), Kind::Bool)),
            (kind, Kind::List(element)) if element == Element::Empty || equatable(kind, element.kind()) => {
                never(&item, &list)?;
                Ok((Node::In(Box::new([item, list])), Kind::Bool))
            }
            (kind, list) => Err(ExprError::Type(format!(
                "{} is never in {}",
                kind.describe(),
                list.describe()
            ))),
        }
    }

    fn binary(&mut self, op: Binary, pair: &[Ast; 2]) -> Result<Typed, ExprError> {
        let [a, b] = pair;
        let (a, left) = self.typed(a)?;
        let (b, right) = self.typed(b)?;
        let kind = match op {
            Binary::Equal | Binary::NotEqual if equatable(left, right) => Some(Kind::Bool),
            Binary::Less | Binary::LessEqual | Binary::Greater | Binary::GreaterEqual if ordered(left, right) => {
                Some(Kind::Bool)
            }
            Binary::Add | Binary::Subtract | Binary::Multiply | Binary::Divide | Binary::Modulo => {
                arithmetic(op, left, right)
            }
            _ => None,
        };
        never(&a, &b)?;
        match kind {
            Some(kind) => Ok((Node::Binary(op, Box::new([a, b])), kind)),
            None => Err(ExprError::Type(format!(
                "`{}` does not work on {} and {}",
                op.symbol(),
                left.describe(),
                right.describe()
            ))),
        }
    }

    fn call(&mut self, name: &str, target: Option<&Ast>, args: &[Ast]) -> Result<Typed, ExprError> {
        match (name, target, args) {
            ("size", Some(operand), []) | ("size", None, [operand]) => self.size(operand),
            ("has", None, [Ast::Select(operand, field)]) => match self.typed(operand)? {
                (node, Kind::Labels) => Ok((Node::HasLabel(Box::new(node), text(field)), Kind::Bool)),
                _ => Err(ExprError::Type(
                    "`has` asks for a label: has(subject.labels.team)".to_owned(),
                )),
            },
            ("exists", Some(list), [Ast::Name(variable), body]) => {
                self.quantified(Quantifier::Exists, list, variable, body)
            }
            ("all", Some(list), [Ast::Name(variable), body]) => self.quantified(Quantifier::All, list, variable, body),
            ("startsWith", Some(a), [b]) => self.text_test(TextTest::StartsWith, name, a, b),
            ("endsWith", Some(a), [b]) => self.text_test(TextTest::EndsWith, name, a, b),
            ("contains", Some(a), [b]) => self.text_test(TextTest::Contains, name, a, b),
            ("matches", Some(operand), [pattern]) => self.matches(operand, pattern),
            ("timestamp", None, [Ast::Literal(Literal::Text(text))]) => match text.parse() {
                Ok(time) => Ok((Node::Const(Const::Time(time)), Kind::Time)),
                Err(_) => Err(ExprError::Type(format!(
                    "`{text}` is not a timestamp such as 2026-01-31T08:00:00Z"
                ))),
            },
            ("duration", None, [Ast::Literal(Literal::Text(text))]) => match super::value::span(text) {
                Some(span) => Ok((Node::Const(Const::Span(span)), Kind::Span)),
                None => Err(ExprError::Type(format!(
                    "`{text}` is not a duration such as 90s or 1h30m"
                ))),
            },
            (name, Some(operand), []) if TimePart::find(name).is_some() => self.time_part(name, operand),
            _ => Err(ExprError::Unsupported(format!(
                "no function `{name}` with {} argument(s); a `when` may use size, has, exists, all, startsWith, \
                 endsWith, contains, matches, timestamp, duration, getFullYear, getMonth, getDate, getDayOfMonth, \
                 getDayOfWeek, getHours, getMinutes and getSeconds",
                args.len()
            ))),
        }
    }

    fn size(&mut self, operand: &Ast) -> Result<Typed, ExprError> {
        let (node, kind) = self.typed(operand)?;
        match kind {
            Kind::Text | Kind::Labels | Kind::List(_) => Ok((Node::Size(Box::new(node)), Kind::Int)),
            other => Err(ExprError::Type(format!("{} has no size", other.describe()))),
        }
    }

    fn quantified(&mut self, which: Quantifier, list: &Ast, name: &str, body: &Ast) -> Result<Typed, ExprError> {
        let (list, kind) = self.typed(list)?;
        let Kind::List(element) = kind else {
            return Err(ExprError::Type(format!("{} is not a list", kind.describe())));
        };
        let taken = ["sql", "subject", "target", "tcp", "connect", "now"].contains(&name)
            || self.variables.iter().any(|(variable, _)| variable == name);
        if taken {
            return Err(ExprError::Type(format!(
                "`{name}` already means something else; name the variable differently"
            )));
        }
        self.variables.push((name.to_owned(), element.kind()));
        let body = self.bool(body, if which == Quantifier::All { "all" } else { "exists" });
        self.variables.pop();
        Ok((Node::Quantified(which, Box::new([list, body?])), Kind::Bool))
    }

    fn text_test(&mut self, test: TextTest, name: &str, a: &Ast, b: &Ast) -> Result<Typed, ExprError> {
        let (a, left) = self.typed(a)?;
        let (b, right) = self.typed(b)?;
        match (texty(left), right) {
            (true, Kind::Text) => Ok((Node::Text(test, Box::new([a, b])), Kind::Bool)),
            _ => Err(ExprError::Type(format!(
                "`{name}` needs two strings, not {} and {}",
                left.describe(),
                right.describe()
            ))),
        }
    }

    fn matches(&mut self, operand: &Ast, pattern: &Ast) -> Result<Typed, ExprError> {
        let (node, kind) = self.typed(operand)?;
        let Ast::Literal(Literal::Text(pattern)) = pattern else {
            return Err(ExprError::Type(
                "`matches` needs its pattern as a string literal".to_owned(),
            ));
        };
        if !texty(kind) {
            return Err(ExprError::Type(format!(
                "`matches` needs a string, not {}",
                kind.describe()
            )));
        }
        let regex = RegexBuilder::new(pattern)
            .size_limit(PATTERN_SIZE)
            .dfa_size_limit(PATTERN_SIZE)
            .build()
            .map_err(|error| ExprError::Pattern {
                pattern: pattern.clone(),
                why: error
                    .to_string()
                    .lines()
                    .last()
                    .unwrap_or("it does not compile")
                    .to_owned(),
            })?;
        Ok((Node::Matches(Box::new(node), regex), Kind::Bool))
    }

    fn time_part(&mut self, name: &str, operand: &Ast) -> Result<Typed, ExprError> {
        let (node, kind) = self.typed(operand)?;
        match (kind, TimePart::find(name)) {
            (Kind::Time, Some(part)) => Ok((Node::TimePart(part, Box::new(node)), Kind::Int)),
            _ => Err(ExprError::Type(format!(
                "`{name}` needs a timestamp, not {}",
                kind.describe()
            ))),
        }
    }
}

fn text(field: &str) -> Box<Node> {
    Box::new(Node::Const(Const::Text(field.into())))
}

fn constant(literal: &Literal) -> Typed {
    match literal {
        Literal::Bool(value) => (Node::Const(Const::Bool(*value)), Kind::Bool),
        Literal::Int(value) => (Node::Const(Const::Int(*value)), Kind::Int),
        Literal::Double(value) => (Node::Const(Const::Double(*value)), Kind::Double),
        Literal::Text(value) => (Node::Const(Const::Text(value.as_str().into())), Kind::Text),
        Literal::Null => (Node::Const(Const::Null), Kind::Null),
    }
}

fn unknown(name: &str) -> ExprError {
    let root = name.split('.').next().unwrap_or(name);
    let fields = FactId::fields(root);
    let known = match (root, fields.is_empty()) {
        ("now", _) => "`now` is a timestamp and has no fields".to_owned(),
        (_, false) => format!("there are {}", fields.join(", ")),
        (_, true) => "a `when` may name sql.*, subject.*, target.*, tcp.*, connect.database and now".to_owned(),
    };
    ExprError::UnknownName {
        name: name.to_owned(),
        known,
    }
}

fn texty(kind: Kind) -> bool {
    matches!(kind, Kind::Text | Kind::TextOrNull | Kind::Param)
}

fn scalar(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Bool
            | Kind::Int
            | Kind::Double
            | Kind::Text
            | Kind::Null
            | Kind::Param
            | Kind::IntOrNull
            | Kind::TextOrNull
    )
}

fn equatable(a: Kind, b: Kind) -> bool {
    match (a, b) {
        (Kind::Labels, _) | (_, Kind::Labels) => false,
        (Kind::List(a), Kind::List(b)) => a == b || a == Element::Empty || b == Element::Empty,
        (Kind::Param, other) | (other, Kind::Param) => scalar(other),
        (Kind::Int | Kind::Null, Kind::IntOrNull) | (Kind::IntOrNull, Kind::Int | Kind::Null) => true,
        (Kind::Text | Kind::Null, Kind::TextOrNull) | (Kind::TextOrNull, Kind::Text | Kind::Null) => true,
        (a, b) => a == b,
    }
}

fn ordered(a: Kind, b: Kind) -> bool {
    let orderable = |kind| {
        matches!(
            kind,
            Kind::Int | Kind::Double | Kind::Text | Kind::Param | Kind::IntOrNull
        )
    };
    match (a, b) {
        (Kind::Time, Kind::Time) | (Kind::Span, Kind::Span) => true,
        (Kind::Param, other) | (other, Kind::Param) => orderable(other),
        (Kind::Int | Kind::IntOrNull, Kind::Int | Kind::IntOrNull) => true,
        (a, b) => a == b && orderable(a),
    }
}

fn arithmetic(op: Binary, a: Kind, b: Kind) -> Option<Kind> {
    match (op, a, b) {
        (_, Kind::Int | Kind::IntOrNull, Kind::Int | Kind::IntOrNull) => Some(Kind::Int),
        (Binary::Modulo, ..) => None,
        (_, Kind::Double, Kind::Double) => Some(Kind::Double),
        (Binary::Add, Kind::Text, Kind::Text) => Some(Kind::Text),
        (Binary::Subtract, Kind::Time, Kind::Time) => Some(Kind::Span),
        (Binary::Add | Binary::Subtract, Kind::Time, Kind::Span) => Some(Kind::Time),
        (Binary::Add | Binary::Subtract, Kind::Span, Kind::Span) => Some(Kind::Span),
        _ => None,
    }
}

/// Refuses literals that can never be a value of the closed fact they meet.
fn never(a: &Node, b: &Node) -> Result<(), ExprError> {
    let (fact, other) = match (a, b) {
        (Node::Fact(fact), other) | (other, Node::Fact(fact)) => (*fact, other),
        _ => return Ok(()),
    };
    let values: Vec<&str> = match fact {
        FactId::SqlCommands => words::COMMANDS.iter().map(|(_, name)| *name).collect(),
        FactId::SqlEffects => Effects::NAMES.iter().map(|(_, name)| *name).collect(),
        FactId::SqlCopy => vec!["in", "out", "none"],
        FactId::TargetProtocol => vec!["Postgres", "TCP"],
        _ => return Ok(()),
    };
    let literals = match other {
        Node::List(items) => items.iter().collect(),
        single => vec![single],
    };
    for literal in literals {
        if let Node::Const(Const::Text(text)) = literal {
            if !values.contains(&&**text) {
                return Err(ExprError::NeverMatches {
                    literal: text.to_string(),
                    fact: fact.name(),
                    values: values.join(", "),
                });
            }
        }
    }
    Ok(())
}

/// Bytes a compiled pattern may take.
const PATTERN_SIZE: usize = 1 << 20;
