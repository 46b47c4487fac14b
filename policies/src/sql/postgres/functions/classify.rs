//! Reads the rules file that classes the server's own functions.
//!
//! Only the generator uses it at run time; it stands here, beside the tables, so that a test can hold the committed
//! tables against the committed rules. A line it cannot read is an error: a rule must not be skipped in silence.

use super::Class;

/// A rule that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct RuleError {
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: &'static str,
}

/// What the catalog says of an overload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// An aggregate.
    Aggregate,
    /// Declared immutable.
    Immutable,
    /// Declared stable.
    Stable,
    /// Declared volatile.
    Volatile,
}

/// The rules in order.
#[derive(Debug, Clone)]
pub struct Rules(Vec<(Class, String)>);

impl Rules {
    /// Reads a rules file.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(class) = words.next() else { continue };
            let error = |problem| RuleError {
                line: index.saturating_add(1),
                problem,
            };
            let class = Class::named(class).ok_or_else(|| error("no such class"))?;
            let before = rules.len();
            rules.extend(words.map(|word| (class, word.to_owned())));
            if rules.len() == before {
                return Err(error("a class without a pattern"));
            }
        }
        Ok(Rules(rules))
    }

    /// The class of one overload; unknown where no rule fits.
    pub fn class(&self, name: &str, nature: Nature) -> Class {
        let fits = |pattern: &str| match pattern {
            "@aggregate" => nature == Nature::Aggregate,
            "@immutable" => nature == Nature::Immutable,
            "@stable" => nature == Nature::Stable,
            "@volatile" => nature == Nature::Volatile,
            pattern => glob(pattern, name),
        };
        let hit = self.0.iter().find(|(_, pattern)| fits(pattern));
        hit.map_or(Class::Unknown, |(class, _)| *class)
    }
}

fn glob(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            after.is_empty() || (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|tail| glob(after, tail)))
        }),
    }
}
