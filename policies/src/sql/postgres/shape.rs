//! The shape of a text: the text with its plain literals lifted out, so that one analysis serves every text of a
//! client that pastes values into its statements.
//!
//! Two halves that must agree. [`Shape::of`] lifts, by the grammar's own tokens, decimal integers of int4's range and
//! plain `'…'` strings; a text in which nothing but these could be a literal is read without the grammar's scanner, which
//! costs as much as all else that a simple query needs (`a_plain_text_has_the_shape_its_tokens_give`). [`free`] says, from the tree, which constants cannot change what analysis finds: a value in
//! VALUES or SET, or one compared with a bare column. Whoever keeps an analysis under a shape must compare every
//! other literal by value ([`Shape::agrees`]). Invariant: two texts of one shape whose other literals are equal have
//! equal analyses; proven by `shapes_never_borrow_a_verdict`.

use std::ops::Range;

use smallvec::SmallVec;

use super::parse::{self, pb, TokenKind};
use pb::node::Node as N;
use pb::AExprKind as Kind;

/// Stands for a lifted integer in a key. A text holds no NUL, so no text can spell it.
const INTEGER: &[u8] = b"\0i";
/// Stands for a lifted string.
const STRING: &[u8] = b"\0s";

/// A text without its plain literals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    key: Vec<u8>,
    literals: Literals,
}

type Literals = SmallVec<[Range<usize>; 4]>;
/// Where a literal stands, and what stands for it in the key.
type Lifted = (Range<usize>, &'static [u8]);

impl Shape {
    /// The shape of a text, or None where the text has no plain literal, holds a NUL, or does not scan.
    pub fn of(text: &str) -> Option<Shape> {
        Shape::plain(text).unwrap_or_else(|| Shape::scanned(text))
    }

    /// [`Shape::of`] a text that can be read without the grammar's scanner; None for any other.
    pub fn plain(text: &str) -> Option<Option<Shape>> {
        plain_literals(text.as_bytes()).map(|found| Shape::without(text, found))
    }

    /// [`Shape::of`] by the grammar's scanner.
    pub fn scanned(text: &str) -> Option<Shape> {
        if text.as_bytes().contains(&0) {
            return None;
        }
        let tokens = parse::tokens(text).ok()?;
        let literals = tokens.into_iter().filter_map(|token| {
            let range = token.start..token.end;
            let literal = text.as_bytes().get(range.clone())?;
            match token.kind {
                TokenKind::Integer if literal.iter().all(u8::is_ascii_digit) => Some((range, INTEGER)),
                TokenKind::Text if is_plain(literal) => Some((range, STRING)),
                _ => None,
            }
        });
        Shape::without(text, literals)
    }

    /// The text without these, each with what stands for it in the key.
    fn without(text: &str, lifted: impl IntoIterator<Item = Lifted>) -> Option<Shape> {
        let bytes = text.as_bytes();
        let mut key = Vec::with_capacity(bytes.len());
        let (mut literals, mut copied) = (Literals::new(), 0);
        for (range, stand_in) in lifted {
            key.extend_from_slice(bytes.get(copied..range.start)?);
            key.extend_from_slice(stand_in);
            copied = range.end;
            literals.push(range);
        }
        key.extend_from_slice(bytes.get(copied..)?);
        (!literals.is_empty()).then_some(Shape { key, literals })
    }

    /// The text with its literals replaced: whole, never a hash of it.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Literals that are not among the free ones (sorted) of the text's analysis, with their places: they belong to
    /// the key.
    /// None if no literal is free, for then the shape serves no other text.
    pub fn pinned(&self, text: &str, free: &[usize]) -> Option<Pinned> {
        let pinned: Vec<_> = self
            .literals
            .iter()
            .enumerate()
            .filter(|(_, range)| free.binary_search(&range.start).is_err())
            .map(|(index, range)| Some((index, text.get(range.clone())?.into())))
            .collect::<Option<_>>()?;
        (pinned.len() < self.literals.len()).then_some(Pinned(pinned))
    }

    /// Whether a text of this shape has the same literals wherever they matter.
    pub fn agrees(&self, text: &str, pinned: &Pinned) -> bool {
        pinned.0.iter().all(|(index, value)| {
            let range = self.literals.get(*index);
            range.and_then(|range| text.get(range.clone())) == Some(&**value)
        })
    }
}

/// The literals of a shape whose values carry meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned(Vec<(usize, Box<str>)>);

/// The plain literals of a text that holds no others and nothing that hides some: no comment, no quoted name, no dollar
/// but those of parameters, no backslash, no string with a prefix or of two pieces, no number that is not of at most nine digits. None for any
/// other text, whatever it is: the grammar's scanner knows.
fn plain_literals(text: &[u8]) -> Option<SmallVec<[Lifted; 4]>> {
    let mut found = SmallVec::new();
    let mut at = 0;
    while let Some(first) = text.get(at) {
        let rest = text.get(at..)?;
        let next = rest.get(1).copied().unwrap_or_default();
        let length = match first {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                let length = run(rest, |byte| byte.is_ascii_alphanumeric() || *byte == b'_');
                // A prefix makes another kind of string of the quotes behind it.
                if matches!(rest.get(length), Some(b'\'' | b'&')) {
                    return None;
                }
                length
            }
            b'0'..=b'9' => {
                let length = run(rest, u8::is_ascii_digit);
                let behind = rest.get(length).copied().unwrap_or_default();
                if length > 9 || behind == b'.' || behind == b'_' || behind.is_ascii_alphabetic() {
                    return None;
                }
                found.push((at..at.saturating_add(length), INTEGER));
                length
            }
            b'$' => {
                let length = run(rest.get(1..)?, u8::is_ascii_digit);
                let behind = rest.get(length.saturating_add(1)).copied().unwrap_or_default();
                if !(1..=5).contains(&length) || behind == b'_' || behind == b'$' || behind.is_ascii_alphabetic() {
                    return None;
                }
                length.saturating_add(1)
            }
            b'\'' => {
                let length = plain_string(rest)?;
                found.push((at..at.saturating_add(length), STRING));
                length
            }
            b'-' if next == b'-' => return None,
            b'/' if next == b'*' => return None,
            b'.' if next.is_ascii_digit() || next == b'.' => return None,
            b' ' | b'\n' | b'\r' | b'\t' | b',' | b';' | b'(' | b')' | b'[' | b']' | b'.' | b':' | b'=' | b'<'
            | b'>' | b'+' | b'-' | b'*' | b'/' | b'%' | b'!' | b'~' | b'|' => 1,
            _ => return None,
        };
        at = at.saturating_add(length);
    }
    Some(found)
}

/// Length of the plain string that `text` begins with: one piece, no backslash.
fn plain_string(text: &[u8]) -> Option<usize> {
    let mut end = 1_usize;
    loop {
        let (here, next) = (*text.get(end)?, text.get(end.saturating_add(1)));
        match here {
            b'\\' | 0 => return None,
            b'\'' if next == Some(&b'\'') => end = end.saturating_add(2),
            b'\'' => break,
            _ => end = end.saturating_add(1),
        }
    }
    let length = end.saturating_add(1);
    let behind = text.get(length..).unwrap_or_default();
    // A string may go on in another line.
    let goes_on = behind.get(run(behind, u8::is_ascii_whitespace)) == Some(&b'\'');
    (!goes_on).then_some(length)
}

/// How many bytes at the start are of one kind.
fn run(text: &[u8], of: impl Fn(&u8) -> bool) -> usize {
    text.iter().position(|byte| !of(byte)).unwrap_or(text.len())
}

/// A string in plain quotes: one piece, no backslash, which another dialect would read as an escape.
fn is_plain(literal: &[u8]) -> bool {
    let inner = literal.strip_prefix(b"'").and_then(|rest| rest.strip_suffix(b"'"));
    let Some(inner) = inner else { return false };
    let mut rest = inner.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'\\' => return false,
            // A doubled quote. Anything else behind one is a string continued in another line.
            b'\'' if rest.next() != Some(&b'\'') => return false,
            _ => {}
        }
    }
    true
}

/// Where the constants of a statement stand whose values cannot change what analysis finds, by byte offset.
///
/// Everything not listed here matters: LIMIT, positions in GROUP BY and ORDER BY, arguments of functions, casts, type
/// modifiers, output columns, whatever stands inside a subquery.
pub(super) fn free(statement: &pb::Node) -> Vec<usize> {
    let mut found = Vec::new();
    match &statement.node {
        Some(N::SelectStmt(select)) if select.op == pb::SetOperation::SetopNone as i32 => {
            condition(select.where_clause.as_deref(), &mut found);
        }
        Some(N::InsertStmt(insert)) => {
            if let Some(N::SelectStmt(select)) = insert.select_stmt.as_deref().and_then(|node| node.node.as_ref()) {
                for row in &select.values_lists {
                    if let Some(N::List(row)) = &row.node {
                        row.items.iter().for_each(|item| value(item, &mut found));
                    }
                }
            }
        }
        Some(N::UpdateStmt(update)) => {
            for target in &update.target_list {
                if let Some(N::ResTarget(target)) = &target.node {
                    if let Some(assigned) = target.val.as_deref() {
                        value(assigned, &mut found);
                    }
                }
            }
            condition(update.where_clause.as_deref(), &mut found);
        }
        Some(N::DeleteStmt(delete)) => condition(delete.where_clause.as_deref(), &mut found),
        _ => {}
    }
    found.sort_unstable();
    found
}

/// Comparisons with a bare column, under AND, OR and NOT.
fn condition(node: Option<&pb::Node>, found: &mut Vec<usize>) {
    let mut work: Vec<&pb::Node> = node.into_iter().collect();
    while let Some(node) = work.pop() {
        match &node.node {
            Some(N::BoolExpr(expression)) => work.extend(&expression.args),
            Some(N::AExpr(expression)) => beside_column(expression, found),
            _ => {}
        }
    }
}

/// A value of VALUES or SET: a constant, or one beside a bare column.
fn value(node: &pb::Node, found: &mut Vec<usize>) {
    match &node.node {
        Some(N::AExpr(expression)) => beside_column(expression, found),
        _ => constant(node, found),
    }
}

/// Constants on one side of an operator that has a bare column on the other.
fn beside_column(expression: &pb::AExpr, found: &mut Vec<usize>) {
    let listed = matches!(
        Kind::try_from(expression.kind),
        Ok(Kind::AexprOp
            | Kind::AexprIn
            | Kind::AexprLike
            | Kind::AexprIlike
            | Kind::AexprDistinct
            | Kind::AexprNotDistinct
            | Kind::AexprBetween
            | Kind::AexprNotBetween)
    );
    let (Some(left), Some(right)) = (expression.lexpr.as_deref(), expression.rexpr.as_deref()) else {
        return;
    };
    let is_column = |node: &pb::Node| matches!(&node.node, Some(N::ColumnRef(_)));
    if listed && is_column(left) {
        constants(right, found);
    } else if listed && is_column(right) {
        constant(left, found);
    }
}

fn constants(node: &pb::Node, found: &mut Vec<usize>) {
    match &node.node {
        Some(N::List(list)) => list.items.iter().for_each(|item| constant(item, found)),
        _ => constant(node, found),
    }
}

fn constant(node: &pb::Node, found: &mut Vec<usize>) {
    if let Some(N::AConst(constant)) = &node.node {
        found.extend(usize::try_from(constant.location).ok());
    }
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;
