//! `policy test`: cases people write beside their policies, and whether they hold.
//!
//! A case names a subject, a target and a statement, and what must come of it. Unknown fields are refused, and so
//! is a case that expects nothing. A case is decided as a running sidecar would decide it, masks included.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::{Effect, Subject, TargetId};
use crate::explanation::Explanation;

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
    /// A rule that must have made the decision: `policy/rule`, or the bare rule; `default` where no rule allows, and
    /// `masks` where a masked column is used for more than being shown.
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
    pub explanation: Option<Box<Explanation>>,
}

/// Decides one case; `explain` gets its subject, target and statement, and refuses a target that is not there.
pub fn run(
    case: &Case,
    explain: impl FnOnce(&Subject, &TargetId, Option<&str>) -> Result<Explanation, String>,
) -> CaseResult {
    let (subject, target) = match (case.subject(), case.target()) {
        (Ok(subject), Ok(target)) => (subject, target),
        (subject, target) => {
            let failures = [subject.err(), target.err()].into_iter().flatten().collect();
            return failed(case, failures);
        }
    };
    let explanation = match explain(&subject, &target, case.sql.as_deref()) {
        Ok(explanation) => explanation,
        Err(problem) => return failed(case, vec![problem]),
    };
    let failures = differences(case, &explanation);
    CaseResult {
        name: case.name.clone(),
        passed: failures.is_empty(),
        failures,
        explanation: Some(Box::new(explanation)),
    }
}

impl Case {
    /// The subject it names.
    pub fn subject(&self) -> Result<Subject, String> {
        let (namespace, account) = names(&self.subject, "as")?;
        Ok(Subject {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            pod: "case".to_owned(),
            pod_uid: "case".to_owned(),
            labels: self.labels.clone(),
        })
    }

    /// The Target it names.
    pub fn target(&self) -> Result<TargetId, String> {
        let (namespace, name) = names(&self.target, "target")?;
        Ok(TargetId::new(namespace, name))
    }
}

fn failed(case: &Case, failures: Vec<String>) -> CaseResult {
    CaseResult {
        name: case.name.clone(),
        passed: false,
        failures,
        explanation: None,
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

fn differences(case: &Case, trace: &Explanation) -> Vec<String> {
    let mut failures = Vec::new();
    let wanted = Effect::from(case.expect);
    if trace.answer.effect != wanted.as_str() {
        failures.push(format!("expected {}, got {}", wanted.as_str(), trace.answer));
    }
    if let Some(rule) = &case.rule {
        let fits = |made: &String| made == rule || made.rsplit_once('/').is_some_and(|(_, bare)| bare == rule);
        if !trace.answer.rules.iter().any(fits) {
            let made = trace.answer.rules.join(", ");
            let made = if made.is_empty() { "none".to_owned() } else { made };
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
    use crate::engine::fixtures::{noon, policy, set};
    use crate::explanation::{explain, Setting};
    use crate::sql::postgres::catalog::{builtin, read_sql};

    fn results(cases: serde_json::Value) -> Vec<CaseResult> {
        let set = set(&[policy(
            "p",
            json!({
                "rules": [{"name": "read", "effect": "Allow", "sql": {"commands": ["Select"], "tables": ["app.*"]}}],
                "masks": [{"columns": ["app.users.ssn"], "as": {"redact": {}}}]}),
        )]);
        let schema = "CREATE SCHEMA app; CREATE TABLE app.users (id int, ssn text);";
        let (catalog, _) = read_sql(schema, builtin(15).unwrap());
        let setting = Setting {
            catalog: catalog.into(),
            has_schema: true,
            ..Setting::bare(15)
        };
        let cases: Vec<Case> = serde_json::from_value(cases).unwrap();
        let one = |case: &Case| {
            run(case, |subject, target, sql| match set.target(target) {
                Some(_) => Ok(explain(&set, subject, target, sql, &setting, noon())),
                None => Err(format!("there is no Target {target}")),
            })
        };
        cases.iter().map(one).collect()
    }

    #[test]
    fn cases_that_hold_pass() {
        let all = results(json!([
            {"name": "reads", "as": "agents/support", "target": "data/shop", "sql": "SELECT * FROM app.users",
             "expect": "Allow", "rule": "data/p/read", "masks": ["app.users.ssn"]},
            {"name": "no ddl", "as": "agents/support", "target": "data/shop", "sql": "DROP TABLE app.users",
             "expect": "Deny", "rule": "default"},
            {"name": "no guessing", "as": "agents/support", "target": "data/shop", "expect": "Deny", "rule": "masks",
             "sql": "SELECT id FROM app.users WHERE ssn = '1'"},
            {"name": "opens", "as": "agents/support", "target": "data/shop", "expect": "Allow", "rule": "read"},
            {"name": "stranger", "as": "agents/other", "target": "data/shop", "sql": "SELECT 1", "expect": "Deny"},
        ]));
        assert!(all.iter().all(|result| result.passed), "{all:#?}");
    }

    #[test]
    fn cases_that_do_not_hold_say_what_differs() {
        let all = results(json!([
            {"name": "a", "as": "agents/support", "target": "data/shop", "sql": "DROP TABLE app.users",
             "expect": "Allow", "rule": "read", "masks": ["app.users.id"]},
            {"name": "b", "as": "agents", "target": "data/none", "sql": "SELECT 1", "expect": "Deny"},
            {"name": "c", "as": "agents/support", "target": "data/none", "sql": "SELECT 1", "expect": "Deny"},
        ]));
        assert!(all.iter().all(|result| !result.passed));
        assert_eq!(
            all[0].failures,
            [
                "expected allow, got deny (default): no rule allows Drop on app.users",
                "expected rule read, got default",
                "expected masks on app.users.id, got none",
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
