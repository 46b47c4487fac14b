//! Finds the few rules that can matter for one part of a statement: by command, then by exact relation.
//!
//! Order is the order of the rules; what the index leaves out could not have matched. Rules about other kinds of
//! operations are in no bucket.

use std::collections::HashMap;
use std::sync::Arc;

use super::expr::Family;
use super::rule::CompiledRule;
use super::words;
use crate::sql::facts::{Part, PartRelation};
use crate::sql::RelationName;

/// Rules of one effect, indexed.
#[derive(Debug, Default)]
pub struct Index {
    /// Every rule, in order.
    pub rules: Vec<Arc<CompiledRule>>,
    buckets: Vec<Bucket>,
}

#[derive(Debug, Default)]
struct Bucket {
    all: Vec<u32>,
    /// Rules that a relation name alone does not find.
    general: Vec<u32>,
    exact: HashMap<RelationName, Vec<u32>>,
}

impl Index {
    /// Indexes rules.
    pub fn new(rules: Vec<Arc<CompiledRule>>) -> Self {
        let mut buckets: Vec<Bucket> = words::COMMANDS.iter().map(|_| Bucket::default()).collect();
        for (at, rule) in rules.iter().enumerate() {
            let Ok(at) = u32::try_from(at) else { break };
            if !rule.concerns(Family::Sql) {
                continue;
            }
            for ((command, _), bucket) in words::COMMANDS.iter().zip(&mut buckets) {
                match &rule.matcher {
                    Some(matcher) if !matcher.command(*command) => continue,
                    Some(matcher) if matcher.tables.given && matcher.tables.patterns.is_empty() => {
                        for relation in &matcher.tables.exact {
                            bucket.exact.entry(relation.clone()).or_default().push(at);
                        }
                    }
                    _ => bucket.general.push(at),
                }
                bucket.all.push(at);
            }
        }
        Index { rules, buckets }
    }

    /// The rules that could match a part, in order.
    pub fn candidates(&self, part: &Part) -> Candidates<'_> {
        let (a, b): (&[u32], &[u32]) = match (self.buckets.get(part.command as usize), &part.relation) {
            (None, _) => (&[], &[]),
            (Some(bucket), PartRelation::Known(relation)) => {
                (&bucket.general, bucket.exact.get(relation).map_or(&[], Vec::as_slice))
            }
            (Some(bucket), _) => (&bucket.all, &[]),
        };
        Candidates {
            rules: &self.rules,
            a,
            b,
        }
    }
}

/// Two ascending lists of rules, merged.
#[derive(Debug, Clone)]
pub struct Candidates<'a> {
    rules: &'a [Arc<CompiledRule>],
    a: &'a [u32],
    b: &'a [u32],
}

impl<'a> Iterator for Candidates<'a> {
    type Item = (u32, &'a Arc<CompiledRule>);

    fn next(&mut self) -> Option<Self::Item> {
        let from_a = match (self.a.first(), self.b.first()) {
            (Some(a), Some(b)) => a <= b,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let list = if from_a { &mut self.a } else { &mut self.b };
        let (first, rest) = list.split_first()?;
        *list = rest;
        Some((*first, self.rules.get(*first as usize)?))
    }
}
