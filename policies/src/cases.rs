//! `policy test`: cases people write beside their policies, and whether they hold.
//!
//! A case names a subject, a target and a statement, and what must come of it. Unknown fields are refused, and so
//! is a case that expects nothing. The caller supplies the analysis of statements, so that this file needs no
//! grammar.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::explain::{self, Trace};
use crate::engine::{Effect, Facts, Operation, Phase, PolicySet, Subject, TargetId, Verb};
use crate::sql::postgres::Analysis;

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Case {
    /// Its name, for the report.
    pub name: String,
    /// The subject, `namespace/serviceAccount`.
    #[serde(rename = "as")]
    pub subject: String,
    /// The pod's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The target, `namespace/name`.
    pub target: String,
    /// The statement. Absent: the session that opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
    /// What must be decided.
    pub expect: Expect,
    /// A rule that must have made the decision: `policy/rule`, or the bare rule; `default` where no rule allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The columns of the statement that must be masked, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masks: Option<Vec<String>>,
}

/// What a case expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// It passes.
    Allow,
    /// A person must approve it.
    Ask,
    /// It is refused.
    Deny,
}

impl From<Expect> for Effect {
    fn from(expect: Expect) -> Self {
        match expect {
            Expect::Allow => Effect::Allow,
            Expect::Ask => Effect::Ask,
            Expect::Deny => Effect::Deny,
        }
    }
}

/// How one case went.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseResult {
    /// The case's name.
    pub name: String,
    /// Whether it holds.
    pub passed: bool,
    /// What differs, one line each; empty if it holds.
    pub failures: Vec<String>,
    /// Why the decision was what it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Trace>,
}

/// Runs cases against compiled policies.
pub fn run(
    set: &PolicySet,
    cases: &[Case],
    now: jiff::Timestamp,
    mut analyse: impl FnMut(&str) -> Analysis,
) -> Vec<CaseResult> {
    cases.iter().map(|case| one(set, case, now, &mut analyse)).collect()
}

fn one(set: &PolicySet, case: &Case, now: jiff::Timestamp, analyse: &mut impl FnMut(&str) -> Analysis) -> CaseResult {
    let (subject, target) = match (subject(case), target(case)) {
        (Ok(subject), Ok(target)) => (subject, target),
        (subject, target) => {
            let failures = [subject.err(), target.err()].into_iter().flatten().collect();
            return failed(case, failures);
        }
    };
    if set.target(&target).is_none() {
        return failed(case, vec![format!("there is no Target {target}")]);
    }
    let connect = crate::engine::ConnectFacts::default();
    let analysis = case.sql.as_deref().map(analyse);
    let op = match &analysis {
        Some(analysis) => Operation {
            verb: Verb::Statement,
            action: "statement",
            completeness: analysis.completeness,
            facts: Facts::Sql(&analysis.facts),
        },
        None => Operation {
            verb: Verb::Connect,
            action: "connect",
            completeness: crate::engine::Completeness::Exact,
            facts: Facts::Connect(&connect),
        },
    };
    let trace = explain::operation(&set.bind(&subject, &target), &op, Phase::Final, now);
    let problem = analysis.as_ref().and_then(|analysis| analysis.problem.as_deref());
    let failures = differences(case, &trace, problem);
    CaseResult {
        name: case.name.clone(),
        passed: failures.is_empty(),
        failures,
        trace: Some(trace),
    }
}

fn failed(case: &Case, failures: Vec<String>) -> CaseResult {
    CaseResult {
        name: case.name.clone(),
        passed: false,
        failures,
        trace: None,
    }
}

fn names<'a>(text: &'a str, field: &str) -> Result<(&'a str, &'a str), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace, name))
        }
        _ => Err(format!("`{field}: {text}` is not NAMESPACE/NAME")),
    }
}

fn subject(case: &Case) -> Result<Subject, String> {
    let (namespace, account) = names(&case.subject, "as")?;
    Ok(Subject {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        pod: "case".to_owned(),
        pod_uid: "case".to_owned(),
        labels: case.labels.clone(),
    })
}

fn target(case: &Case) -> Result<TargetId, String> {
    let (namespace, name) = names(&case.target, "target")?;
    Ok(TargetId::new(namespace, name))
}

fn differences(case: &Case, trace: &Trace, problem: Option<&str>) -> Vec<String> {
    let mut failures = Vec::new();
    let wanted = Effect::from(case.expect);
    if trace.answer.effect != wanted.as_str() {
        let problem = problem.map(|problem| format!(" [{problem}]")).unwrap_or_default();
        failures.push(format!("expected {}, got {}{problem}", wanted.as_str(), trace.answer));
    }
    if let Some(rule) = &case.rule {
        let fits = |made: &String| made == rule || made.rsplit_once('/').is_some_and(|(_, bare)| bare == rule);
        if !trace.answer.rules.iter().any(fits) {
            let made = trace.answer.rules.join(", ");
            failures.push(format!("expected rule {rule}, got {made}"));
        }
    }
    if let Some(masks) = &case.masks {
        let mut wanted = masks.clone();
        wanted.sort();
        wanted.dedup();
        if wanted != trace.masked {
            let show = |list: &[String]| {
                if list.is_empty() {
                    "none".to_owned()
                } else {
                    list.join(", ")
                }
            };
            failures.push(format!(
                "expected masks on {}, got {}",
                show(&wanted),
                show(&trace.masked)
            ));
        }
    }
    failures
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::access_policy::SqlCommand::{Drop, Select};
    use crate::engine::fixtures::{column, noon, policy, set, statement};
    use crate::engine::{Completeness, Fact};

    fn analysed(text: &str) -> Analysis {
        let mut facts = match text.starts_with("DROP") {
            true => statement(&[(Drop, "app.users")]),
            false => statement(&[(Select, "app.users")]),
        };
        facts.columns = Fact::Known(vec![column("app.users.id"), column("app.users.ssn")]);
        Analysis {
            statements: Vec::new(),
            facts,
            completeness: Completeness::Exact,
            problem: None,
            limit: None,
        }
    }

    fn results(cases: serde_json::Value) -> Vec<CaseResult> {
        let set = set(&[policy(
            "p",
            json!({
                "rules": [{"name": "read", "effect": "Allow", "sql": {"commands": ["Select"], "tables": ["app.*"]}}],
                "masks": [{"columns": ["app.users.ssn"], "as": {"redact": {}}}]}),
        )]);
        let cases: Vec<Case> = serde_json::from_value(cases).unwrap();
        run(&set, &cases, noon(), analysed)
    }

    #[test]
    fn cases_that_hold_pass() {
        let all = results(json!([
            {"name": "reads", "as": "agents/support", "target": "data/shop", "sql": "SELECT 1", "expect": "Allow",
             "rule": "data/p/read", "masks": ["app.users.ssn"]},
            {"name": "no ddl", "as": "agents/support", "target": "data/shop", "sql": "DROP TABLE x", "expect": "Deny",
             "rule": "default"},
            {"name": "opens", "as": "agents/support", "target": "data/shop", "expect": "Allow", "rule": "read"},
            {"name": "stranger", "as": "agents/other", "target": "data/shop", "sql": "SELECT 1", "expect": "Deny"},
        ]));
        assert!(all.iter().all(|result| result.passed), "{all:#?}");
    }

    #[test]
    fn cases_that_do_not_hold_say_what_differs() {
        let all = results(json!([
            {"name": "a", "as": "agents/support", "target": "data/shop", "sql": "DROP TABLE x", "expect": "Allow",
             "rule": "read", "masks": []},
            {"name": "b", "as": "agents", "target": "data/none", "sql": "SELECT 1", "expect": "Deny"},
            {"name": "c", "as": "agents/support", "target": "data/none", "sql": "SELECT 1", "expect": "Deny"},
        ]));
        assert!(all.iter().all(|result| !result.passed));
        assert_eq!(
            all[0].failures,
            [
                "expected allow, got deny (default): no rule allows Drop on app.users",
                "expected rule read, got default",
                "expected masks on none, got app.users.ssn",
            ]
        );
        assert_eq!(all[1].failures, ["`as: agents` is not NAMESPACE/NAME"]);
        assert_eq!(all[2].failures, ["there is no Target data/none"]);
    }

    #[test]
    fn unknown_fields_of_a_case_are_refused() {
        let case = json!({"name": "a", "as": "a/b", "target": "c/d", "expect": "Deny", "sq": "SELECT 1"});
        assert!(serde_json::from_value::<Case>(case).is_err());
    }
}
