//! The order of evaluation: any Deny that fires wins; then every part must be covered, else the answer is no, before
//! anyone is asked; then any Ask that fires asks; else the operation passes.
//!
//! A rule that reads a later fact is left open. What is unknown fires a Deny or an Ask and never covers. Nothing
//! here fails: what cannot be decided is denied.

use std::sync::Arc;

use smallvec::SmallVec;

use super::decision::Effect;
use super::expr::{Family, Outcome, Scene};
use super::index::Index;
use super::operation::{Completeness, Fact, Facts};
use super::rule::CompiledRule;
use super::set::RuleSet;
use super::words;
use crate::api::access_policy::{RuleEffect, SqlCommand};
use crate::api::target::TargetProtocol;
use crate::reason::Reason;
use crate::sql::facts::{Part, PartRelation};
use crate::sql::SqlFacts;

/// A few rules, in the order they are named.
pub type Rules<'a> = SmallVec<[&'a Arc<CompiledRule>; 4]>;

/// What the evaluation came to.
#[derive(Debug)]
pub struct Verdict<'a> {
    /// The verdict.
    pub effect: Effect,
    /// Why, unless it is Allow.
    pub reason: Option<Reason>,
    /// The rules that made it; empty means the default.
    pub rules: Rules<'a>,
    /// The rules that covered, where others made the verdict.
    pub covered: Rules<'a>,
    /// What to tell the agent where no rule has words of its own.
    pub because: Option<String>,
    /// Some rule reads a later fact.
    pub open: bool,
    /// Some rule looked at time, values or counters.
    pub volatile: bool,
}

/// One evaluation under way.
pub struct Judge<'a> {
    rules: &'a RuleSet,
    scene: Scene<'a>,
    /// Coverage is not needed: only Observe-mode policies concern this subject.
    waived: bool,
    open: bool,
    volatile: bool,
}

/// Rules that fired, and whether for sure.
type Fired = SmallVec<[(u32, bool); 4]>;

enum Cover {
    By(u32),
    Open,
    Nothing,
}

impl<'a> Judge<'a> {
    /// Judges one operation by one set of rules.
    pub(crate) fn judge(rules: &'a RuleSet, scene: Scene<'a>, waived: bool) -> Verdict<'a> {
        let mut judge = Judge {
            rules,
            scene,
            waived,
            open: false,
            volatile: false,
        };
        match (scene.op.facts, scene.op.completeness) {
            (Facts::Connect(_), _) => judge.connect(),
            (Facts::Tcp(_), _) => judge.whole(Family::Tcp),
            (Facts::Sql(_), Completeness::Opaque) => judge.whole(Family::Sql),
            (Facts::Sql(sql), _) => judge.statement(sql),
        }
    }

    fn statement(&mut self, facts: &'a SqlFacts) -> Verdict<'a> {
        let parts: &[Part] = if facts.parts.is_empty() { &NOTHING } else { &facts.parts };
        let denied = self.fired(&self.rules.denies, parts, facts);
        if !denied.is_empty() {
            return self.denied(&denied);
        }
        let covered = match self.coverage(parts, facts) {
            Ok(covered) => covered,
            Err((reason, because)) => return self.refused(reason, because),
        };
        let asked = self.fired(&self.rules.asks, parts, facts);
        self.granted(covered, asked)
    }

    /// Deny or Ask rules that fire on any part.
    fn fired(&mut self, index: &'a Index, parts: &[Part], facts: &SqlFacts) -> Fired {
        let mut fired = Fired::new();
        for part in parts {
            for (at, rule) in index.candidates(part) {
                self.volatile |= rule.is_volatile();
                match rule.fires(part, facts, &self.scene) {
                    Outcome::True => fired.push((at, true)),
                    Outcome::Unknown => fired.push((at, false)),
                    Outcome::Later => self.open = true,
                    Outcome::False => {}
                }
            }
        }
        tidy(fired)
    }

    /// Rules that fire on an operation without parts.
    fn fired_whole(&mut self, index: &'a Index, family: Family) -> Fired {
        let mut fired = Fired::new();
        for (at, rule) in (0u32..).zip(&index.rules) {
            if !rule.concerns(family) || (family != Family::Sql && rule.matcher.is_some()) {
                continue;
            }
            self.volatile |= rule.is_volatile();
            match rule.fires_whole(&self.scene) {
                Outcome::True => fired.push((at, true)),
                Outcome::Unknown => fired.push((at, false)),
                Outcome::Later => self.open = true,
                Outcome::False => {}
            }
        }
        tidy(fired)
    }

    /// The rules that cover every part and name everything that needs naming, or why not.
    fn coverage(&mut self, parts: &[Part], facts: &SqlFacts) -> Result<SmallVec<[u32; 4]>, (Reason, String)> {
        let mut used = SmallVec::new();
        if self.waived {
            return Ok(used);
        }
        for part in parts {
            match self.cover(part, facts) {
                Cover::By(at) => used.push(at),
                Cover::Open => self.open = true,
                Cover::Nothing => return Err(self.uncovered(part, facts)),
            }
        }
        self.naming(parts, facts, &mut used)?;
        used.sort_unstable();
        used.dedup();
        Ok(used)
    }

    fn cover(&mut self, part: &Part, facts: &SqlFacts) -> Cover {
        let mut open = false;
        for (at, rule) in self.rules.covers.candidates(part) {
            self.volatile |= rule.is_volatile();
            match rule.covers(part, facts, &self.scene) {
                Outcome::True => return Cover::By(at),
                Outcome::Later => open = true,
                Outcome::False | Outcome::Unknown => {}
            }
        }
        if part.rides_along {
            for (at, rule) in (0u32..).zip(&self.rules.covers.rules) {
                self.volatile |= rule.is_volatile();
                if carries(rule, part, &self.scene) {
                    return Cover::By(at);
                }
            }
        }
        if open {
            Cover::Open
        } else {
            Cover::Nothing
        }
    }

    /// Every function, setting and channel beyond the harmless lists must be named by a rule that covers a part.
    fn naming(
        &mut self,
        parts: &[Part],
        facts: &SqlFacts,
        used: &mut SmallVec<[u32; 4]>,
    ) -> Result<(), (Reason, String)> {
        let functions: &[Arc<str>] = match &facts.unlisted_functions {
            Fact::Known(functions) => functions,
            Fact::Later | Fact::Unknown => &[],
        };
        let blind = facts.unlisted_functions.known().is_none();
        if !blind && functions.is_empty() && facts.unlisted_settings.is_empty() && facts.channels.is_empty() {
            return Ok(());
        }
        let covering = self.covering(parts, facts);
        if blind {
            self.named(&covering, used, |rule| rule.matcher.is_none())
                .ok_or_else(|| no_rule(Reason::Unresolved, "functions that could not be resolved".to_owned()))?;
        }
        for name in functions {
            self.named(&covering, used, |rule| {
                names(rule, |matcher| matcher.names_function(name))
            })
            .ok_or_else(|| no_rule(Reason::Denied, format!("the function {name}")))?;
        }
        for name in &facts.unlisted_settings {
            self.named(&covering, used, |rule| {
                names(rule, |matcher| matcher.names_setting(name))
            })
            .ok_or_else(|| no_rule(Reason::Denied, format!("the setting {name}")))?;
        }
        for name in &facts.channels {
            self.named(&covering, used, |rule| {
                names(rule, |matcher| matcher.names_channel(name))
            })
            .ok_or_else(|| no_rule(Reason::Denied, format!("the channel {name}")))?;
        }
        Ok(())
    }

    /// Every rule that covers some part, and whether for sure.
    fn covering(&mut self, parts: &[Part], facts: &SqlFacts) -> Fired {
        let mut covering = Fired::new();
        for part in parts {
            for (at, rule) in self.rules.covers.candidates(part) {
                self.volatile |= rule.is_volatile();
                match rule.covers(part, facts, &self.scene) {
                    Outcome::True => covering.push((at, true)),
                    Outcome::Later => covering.push((at, false)),
                    Outcome::False | Outcome::Unknown => {}
                }
            }
        }
        covering.sort_unstable_by_key(|(at, sure)| (!*sure, *at));
        covering.dedup_by_key(|(at, _)| *at);
        covering
    }

    fn named(
        &mut self,
        covering: &Fired,
        used: &mut SmallVec<[u32; 4]>,
        names: impl Fn(&CompiledRule) -> bool,
    ) -> Option<()> {
        let rules = &self.rules.covers.rules;
        let found = covering
            .iter()
            .find(|(at, _)| rules.get(*at as usize).is_some_and(|rule| names(rule)))?;
        match found {
            (at, true) => used.push(*at),
            (_, false) => self.open = true,
        }
        Some(())
    }

    /// Says what no rule allows, as exactly as the rules that came close let it.
    fn uncovered(&self, part: &Part, facts: &SqlFacts) -> (Reason, String) {
        if self.rules.covers.rules.is_empty() {
            return (Reason::Denied, self.nothing_is_allowed());
        }
        let close = self.rules.covers.candidates(part).find_map(|(_, rule)| {
            let matcher = rule.matcher.as_ref().filter(|matcher| !matcher.columns.is_empty())?;
            let mut wider = matcher.clone();
            wider.columns.clear();
            match wider.covers(part, facts, self.scene.phase) {
                Outcome::True => matcher.unnamed_column(part, facts),
                _ => None,
            }
        });
        if let Some(column) = close {
            let command = words::command(part.command);
            return (Reason::Denied, format!("no rule allows {command} with column {column}"));
        }
        let reason = match part.relation {
            PartRelation::Unknown => Reason::Unresolved,
            _ => Reason::Denied,
        };
        no_rule(reason, words::part(part))
    }

    /// An operation that was not understood, or a stream: only rules without a matcher can cover it.
    fn whole(&mut self, family: Family) -> Verdict<'a> {
        let denied = self.fired_whole(&self.rules.denies, family);
        if !denied.is_empty() {
            return self.denied(&denied);
        }
        let mut covered: SmallVec<[u32; 4]> = SmallVec::new();
        let mut later = false;
        if !self.waived {
            for (at, rule) in (0u32..).zip(&self.rules.covers.rules) {
                if !rule.concerns(family) {
                    continue;
                }
                self.volatile |= rule.is_volatile();
                match rule.covers_whole(&self.scene) {
                    Outcome::True => {
                        covered.push(at);
                        break;
                    }
                    Outcome::Later => later = true,
                    Outcome::False | Outcome::Unknown => {}
                }
            }
            if covered.is_empty() && !later {
                return self.not_understood(family);
            }
            self.open |= covered.is_empty();
        }
        // A stream was held when it opened; there is nothing left to hold.
        let asked = match family {
            Family::Sql => self.fired_whole(&self.rules.asks, family),
            _ => Fired::new(),
        };
        self.granted(covered, asked)
    }

    /// Where no rule could allow anything. A policy that only denies or asks names the agent all the same.
    fn nothing_is_allowed(&self) -> String {
        let target = &self.scene.target.id;
        if self.rules.denies.rules.is_empty() && self.rules.asks.rules.is_empty() {
            format!("no policy names this agent on {target}")
        } else {
            format!("no rule allows this agent anything on {target}")
        }
    }

    fn not_understood(&self, family: Family) -> Verdict<'a> {
        let target = &self.scene.target.id;
        let (reason, because) = match (family, self.rules.covers.rules.is_empty()) {
            (_, true) => (Reason::Denied, self.nothing_is_allowed()),
            (Family::Sql, _) => (
                Reason::NotUnderstood,
                "it could not be understood, and no rule allows what cannot be understood".to_owned(),
            ),
            _ => no_rule(Reason::Denied, format!("a stream to {target}")),
        };
        self.refused(reason, because)
    }

    /// A session that opens.
    fn connect(&mut self) -> Verdict<'a> {
        let denied = self.fired_whole(&self.rules.denies, Family::Connect);
        if !denied.is_empty() {
            return self.denied(&denied);
        }
        let own = match self.scene.target.protocol {
            TargetProtocol::Postgres => Family::Sql,
            TargetProtocol::Tcp => Family::Tcp,
        };
        let mut covered: SmallVec<[u32; 4]> = SmallVec::new();
        if !self.waived {
            for (at, rule) in (0u32..).zip(&self.rules.covers.rules) {
                if !rule.concerns(Family::Connect) && !rule.concerns(own) {
                    continue;
                }
                self.volatile |= rule.is_volatile();
                if rule.could_apply(&self.scene, Family::Connect) {
                    covered.push(at);
                    break;
                }
            }
            if covered.is_empty() {
                let because = if self.rules.covers.rules.is_empty() {
                    self.nothing_is_allowed()
                } else {
                    format!("no rule allows anything on {} now", self.scene.target.id)
                };
                return self.refused(Reason::Denied, because);
            }
        }
        let asked = match own {
            Family::Tcp => self.fired_whole(&self.rules.asks, Family::Connect),
            _ => Fired::new(),
        };
        self.granted(covered, asked)
    }

    fn denied(&self, fired: &Fired) -> Verdict<'a> {
        let sure = fired.iter().any(|(_, sure)| *sure);
        let first = fired.iter().filter(|(_, sure)| *sure);
        let rest = fired.iter().filter(|(_, sure)| !*sure);
        let rules = pick(&self.rules.denies, first.chain(rest).map(|(at, _)| *at));
        let (reason, because) = match (sure, self.scene.op.completeness) {
            (true, _) => (Reason::Denied, None),
            (false, Completeness::Opaque) => (
                Reason::NotUnderstood,
                Some("it could not be understood, so the rule holds".to_owned()),
            ),
            (false, _) => (
                Reason::Unresolved,
                Some("a name the rule asks about could not be resolved, so the rule holds".to_owned()),
            ),
        };
        Verdict {
            effect: Effect::Deny,
            reason: Some(reason),
            rules,
            covered: Rules::new(),
            because,
            open: false,
            volatile: self.volatile,
        }
    }

    fn refused(&self, reason: Reason, because: String) -> Verdict<'a> {
        Verdict {
            effect: Effect::Deny,
            reason: Some(reason),
            rules: Rules::new(),
            covered: Rules::new(),
            because: Some(because),
            open: false,
            volatile: self.volatile,
        }
    }

    fn granted(&self, covered: SmallVec<[u32; 4]>, asked: Fired) -> Verdict<'a> {
        let covered = pick(&self.rules.covers, covered.into_iter());
        let asking = !asked.is_empty();
        let (rules, covered) = if asking {
            (pick(&self.rules.asks, asked.iter().map(|(at, _)| *at)), covered)
        } else {
            (covered, Rules::new())
        };
        Verdict {
            effect: if asking { Effect::Ask } else { Effect::Allow },
            reason: asking.then_some(Reason::ApprovalRequired),
            rules,
            covered,
            because: None,
            open: self.open,
            volatile: self.volatile,
        }
    }
}

/// In order, each rule once; for sure if on any part for sure.
fn tidy(mut fired: Fired) -> Fired {
    fired.sort_unstable_by_key(|(at, sure)| (*at, !*sure));
    fired.dedup_by_key(|(at, _)| *at);
    fired
}

fn pick(index: &Index, which: impl Iterator<Item = u32>) -> Rules<'_> {
    which.filter_map(|at| index.rules.get(at as usize)).collect()
}

fn names(rule: &CompiledRule, named: impl Fn(&super::matcher::SqlMatcher) -> bool) -> bool {
    rule.matcher.as_ref().is_none_or(named)
}

fn no_rule(reason: Reason, what: String) -> (Reason, String) {
    (reason, format!("no rule allows {what}"))
}

/// Whether a rule lets a harmless part ride along: reads of the harmless catalogs with an Allow for Select, anything
/// else with any Allow. An Ask carries nothing, or adding one would let something pass unasked.
pub fn carries(rule: &CompiledRule, part: &Part, scene: &Scene<'_>) -> bool {
    let names_select = || {
        rule.matcher
            .as_ref()
            .is_none_or(|matcher| matcher.command(SqlCommand::Select))
    };
    rule.effect == RuleEffect::Allow
        && rule.concerns(Family::Sql)
        && (part.command != SqlCommand::Select || names_select())
        && rule.could_apply(scene, Family::Any)
}

/// What stands for a statement string without statements.
pub static NOTHING: [Part; 1] = [Part {
    command: SqlCommand::Other,
    relation: PartRelation::None,
    rides_along: true,
}];
