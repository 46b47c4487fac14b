//! What `sidegate explain` and `sidegate policy test` say of one statement: the decision a running sidecar would make,
//! every rule with what it came to, the facts, what becomes of each output column, and what would have to change.
//!
//! It owns no decision: it walks the way a sidecar walks (structure, masks, values) with the same functions, against
//! a catalog that came from a file. Refused: nothing; what cannot be told is said to be unknown. Bind values, limits
//! and lockdowns of a running instance are not known here.

mod remedy;
mod shown;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use crate::api::access_policy::Limits;
use crate::engine::decision::{Decision, Effect};
use crate::engine::explain::{self, Answer, DetectorLine, Hit, RuleTrace, Trace};
use crate::engine::{
    BoundPolicies, Completeness, ConnectFacts, Fact, Facts, Operation, Phase, PolicySet, Subject, TargetId, Verb,
};
use crate::reason::Reason;
use crate::sql::postgres::analysis::{SessionView, Statement, UNRESOLVED};
use crate::sql::postgres::catalog::{self, Catalog};
use crate::sql::postgres::plan::{PlanRefusal, ResultPlan};
use crate::sql::postgres::{analyse, Analysis, Options};

pub use shown::{mask_words, Approval, OutputLine};

/// The database a statement is explained against, and the session it would run in.
#[derive(Debug, Clone)]
pub struct Setting {
    /// What names mean.
    pub catalog: Arc<Catalog>,
    /// The catalog came from a schema file; otherwise only the server's own names are known.
    pub has_schema: bool,
    /// The server's major version.
    pub major: u32,
    /// The session's search_path, in order.
    pub search_path: Vec<Arc<str>>,
    /// The database, as `sql.database` sees it.
    pub database: Arc<str>,
    /// The role Sidegate logs in as, as `sql.role` sees it.
    pub role: Arc<str>,
}

impl Setting {
    /// A setting without a schema: only the server's own names are known.
    pub fn bare(major: u32) -> Self {
        Setting {
            catalog: Arc::new(catalog::builtin(major).unwrap_or_default()),
            has_schema: false,
            major,
            search_path: catalog::default_path(),
            database: "".into(),
            role: "".into(),
        }
    }

    /// Analyses a text in this setting.
    pub fn analyse(&self, text: &str) -> Analysis {
        let options = Options {
            server_major: self.major,
            standard_conforming_strings: true,
        };
        analyse(text, &options, &self.catalog, self)
    }
}

/// A session that just opened: no prepared statements, no cursors, no transaction.
impl SessionView for Setting {
    fn prepared(&self, _name: &str) -> Option<Arc<Statement>> {
        None
    }
    fn cursor(&self, _name: &str) -> Option<Arc<Statement>> {
        None
    }
    fn search_path(&self) -> &[Arc<str>] {
        &self.search_path
    }
    fn database(&self) -> &Arc<str> {
        &self.database
    }
    fn role(&self) -> &Arc<str> {
        &self.role
    }
    fn in_transaction(&self) -> bool {
        false
    }
    fn has_temporary_tables(&self) -> bool {
        false
    }
}

/// How an operation ends, for exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It passes.
    Allowed,
    /// It is refused.
    Denied,
    /// A person must approve it.
    NeedsApproval,
    /// It is refused because it is no statement that could be judged: a syntax error, a limit, an unknown construct.
    Invalid,
}

/// Everything there is to say about one statement.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// How it ends.
    pub outcome: Outcome,
    /// The decision, the rules that made it, and why.
    pub answer: Answer,
    /// What the Observe-mode policies would have said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<&'static str>,
    /// The commands of the text, such as `SELECT`; empty for a session that opens.
    pub actions: Vec<String>,
    /// What the statement consists of, as rules see it.
    pub parts: Vec<String>,
    /// The grammar's own message, or what was not understood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Every candidate rule in the order of evaluation, with what it came to.
    pub rules: Vec<RuleTrace>,
    /// The facts rules read, by their names in `when`; `unknown` and `later` (bind values) as these words.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<&'static str, Value>,
    /// What becomes of each column of the answer.
    pub columns: Vec<OutputLine>,
    /// What is masked in every text, whatever column it comes from.
    pub detectors: Vec<DetectorLine>,
    /// Columns the statement uses that are masked in its answer.
    pub masked: Vec<String>,
    /// Whose approval it needs.
    pub approvals: Vec<Approval>,
    /// Caps of the operation and its session.
    pub limits: Limits,
    /// What would have to change for it to pass, one sentence each.
    pub change: Vec<String>,
}

/// Explains a statement, or without one the session that opens.
pub fn explain(
    set: &PolicySet,
    subject: &Subject,
    target: &TargetId,
    sql: Option<&str>,
    setting: &Setting,
    now: jiff::Timestamp,
) -> Explanation {
    let bound = set.bind(subject, target);
    match sql {
        Some(sql) => statement(&bound, target, &setting.analyse(sql), setting, now),
        None => opening(&bound, target, now),
    }
}

fn opening(bound: &BoundPolicies, target: &TargetId, now: jiff::Timestamp) -> Explanation {
    let facts = ConnectFacts::default();
    let op = Operation {
        verb: Verb::Connect,
        action: "connect",
        completeness: Completeness::Exact,
        facts: Facts::Connect(&facts),
    };
    let decision = bound.decide(&op, Phase::Final, now);
    let trace = explain::operation(bound, &op, Phase::Final, now);
    let mut told = told(&decision, trace);
    told.change = remedy::changes(&remedy::Case {
        bound,
        target,
        decision: &decision,
        op: &op,
        phase: Phase::Final,
        now,
        refused: None,
        problem: None,
        has_schema: true,
    });
    told
}

fn statement(
    bound: &BoundPolicies,
    target: &TargetId,
    analysis: &Analysis,
    setting: &Setting,
    now: jiff::Timestamp,
) -> Explanation {
    let op = analysis.operation(&analysis.facts);
    // Without bind values a statement with parameters is judged as far as its structure tells.
    let phase = match analysis.facts.params {
        Fact::Later => Phase::Structure,
        Fact::Known(_) | Fact::Unknown => Phase::Final,
    };
    let decision = bound.decide(&op, phase, now);
    let trace = explain::operation(bound, &op, phase, now);
    let plans = ResultPlan::of_text(&decision.masks, analysis, &setting.catalog);
    let refused = plans.as_ref().err().filter(|_| decision.effect != Effect::Deny);
    let mut told = told(&decision, trace);
    if let Some(limit) = analysis.limit {
        told.answer = answer(Reason::TooLarge, &[], limit.to_string());
    } else if let Some(refused) = refused {
        told.answer = by_masks(refused, analysis);
        told.approvals.clear();
    } else if decision.effect == Effect::Deny {
        told.answer = by_structure(told.answer, analysis);
    }
    told.outcome = outcome(&told.answer);
    told.actions = analysis.statements.iter().map(|each| each.action.to_string()).collect();
    told.problem = analysis.problem.clone();
    told.facts = shown::facts(analysis);
    let effect = told.outcome;
    if let (Ok(plans), true) = (&plans, matches!(effect, Outcome::Allowed | Outcome::NeedsApproval)) {
        told.columns = shown::columns(analysis, plans);
        let answers = analysis.statements.iter().any(|each| shown::answers(each));
        told.detectors.retain(|_| answers);
    } else {
        told.detectors.clear();
    }
    told.change = remedy::changes(&remedy::Case {
        bound,
        target,
        decision: &decision,
        op: &op,
        phase,
        now,
        refused,
        problem: analysis.problem.as_deref(),
        has_schema: setting.has_schema,
    });
    told
}

fn told(decision: &Decision, trace: Trace) -> Explanation {
    let detectors = decision.masks.detectors.iter().map(|(detect, how)| DetectorLine {
        detect: *detect,
        how: *how,
    });
    Explanation {
        outcome: outcome(&trace.answer),
        answer: trace.answer,
        observed: trace.observed,
        actions: Vec::new(),
        parts: trace.parts,
        problem: None,
        rules: trace.rules,
        facts: BTreeMap::new(),
        columns: Vec::new(),
        detectors: detectors.collect(),
        masked: trace.masked,
        approvals: decision.asks.iter().map(shown::approval).collect(),
        limits: decision.limits,
        change: Vec::new(),
    }
}

fn outcome(answer: &Answer) -> Outcome {
    match answer.effect {
        "allow" => Outcome::Allowed,
        "ask" => Outcome::NeedsApproval,
        _ if matches!(answer.reason, Some("not_understood" | "too_large")) => Outcome::Invalid,
        _ => Outcome::Denied,
    }
}

fn answer(reason: Reason, rules: &[String], message: String) -> Answer {
    Answer {
        effect: Effect::Deny.as_str(),
        reason: Some(reason.as_str()),
        rules: rules.to_vec(),
        message: Some(message),
        open: false,
    }
}

/// The refusal of a statement that rules let through and a mask does not.
fn by_masks(refused: &PlanRefusal, analysis: &Analysis) -> Answer {
    let (reason, rule, message) = refused.told(analysis);
    let rules: Vec<String> = rule.iter().map(ToString::to_string).collect();
    answer(reason, &rules, message)
}

/// A refusal says why, where the decision alone does not: the grammar's message, or the names that did not resolve.
fn by_structure(mut answer: Answer, analysis: &Analysis) -> Answer {
    if let Some(problem) = &analysis.problem {
        answer.reason = Some(Reason::NotUnderstood.as_str());
        answer.message = Some(problem.clone());
    } else if answer.message.is_none() && analysis.is_unresolved() {
        answer.message = Some(UNRESOLVED.to_owned());
    }
    answer
}

/// A refusal that comes before any rule: a target that is not served to this subject, or a lockdown.
pub fn refusal(reason: Reason, message: String) -> Explanation {
    let answer = answer(reason, &[], message);
    Explanation {
        outcome: Outcome::Denied,
        answer,
        observed: None,
        actions: Vec::new(),
        parts: Vec::new(),
        problem: None,
        rules: Vec::new(),
        facts: BTreeMap::new(),
        columns: Vec::new(),
        detectors: Vec::new(),
        masked: Vec::new(),
        approvals: Vec::new(),
        limits: Limits::default(),
        change: Vec::new(),
    }
}

/// Whether a rule took part in the decision.
pub fn decided(explanation: &Explanation, rule: &RuleTrace) -> bool {
    let name = format!("{}/{}", rule.policy, rule.rule);
    rule.outcome != Hit::Miss && explanation.answer.rules.contains(&name)
}

#[cfg(test)]
mod tests;
