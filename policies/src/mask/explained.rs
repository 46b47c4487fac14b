//! Query plans without what they tell of data: no costs, no row estimates, no widths, no expressions with constants.
//!
//! A plan is read by a list of what may pass; whatever is not on it is hidden. The statement itself uses masked columns
//! for nothing but showing them, so the shape of its plan rests on other columns. What ANALYZE measured stays: rows and
//! times of a statement the agent may run as well.

use serde_json::Value;

/// Stands for what is hidden.
const MARK: &str = "***";

/// How a plan is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanForm {
    /// FORMAT TEXT: a line per row.
    Lines,
    /// FORMAT JSON: one document.
    Json,
}

/// Appends the harmless part of one row of EXPLAIN.
pub fn explained(cell: &[u8], form: PlanForm, out: &mut Vec<u8>) {
    let text = std::str::from_utf8(cell).unwrap_or_default();
    match form {
        PlanForm::Lines => line(text, out),
        PlanForm::Json => {
            let plan = serde_json::from_str(text).ok().and_then(document);
            let plan = plan.unwrap_or_else(|| Value::String(MARK.to_owned()));
            out.extend_from_slice(plan.to_string().as_bytes());
        }
    }
}

/// Nodes that stand alone.
const ALONE: &[&str] = &[
    "Result",
    "ProjectSet",
    "Append",
    "Merge Append",
    "Recursive Union",
    "BitmapAnd",
    "BitmapOr",
    "Nested Loop",
    "Merge Join",
    "Hash Join",
    "Gather",
    "Gather Merge",
    "Materialize",
    "Memoize",
    "Sort",
    "Incremental Sort",
    "Group",
    "Aggregate",
    "GroupAggregate",
    "HashAggregate",
    "MixedAggregate",
    "WindowAgg",
    "Unique",
    "LockRows",
    "Limit",
    "Hash",
];
/// Kinds of joins and set operations, which stand inside a node's name or behind it.
const KINDS: &[&str] = &["Left", "Right", "Full", "Semi", "Anti", "Right Semi", "Right Anti"];
/// Nodes that name what they work on.
const NAMING: &[&str] = &[
    "Seq Scan",
    "Sample Scan",
    "Index Scan",
    "Index Scan Backward",
    "Index Only Scan",
    "Index Only Scan Backward",
    "Bitmap Index Scan",
    "Bitmap Heap Scan",
    "Tid Scan",
    "Tid Range Scan",
    "Subquery Scan",
    "Function Scan",
    "Table Function Scan",
    "Values Scan",
    "CTE Scan",
    "Named Tuplestore Scan",
    "WorkTable Scan",
    "Foreign Scan",
    "Insert",
    "Update",
    "Delete",
    "Merge",
    "Foreign Insert",
    "Foreign Update",
    "Foreign Delete",
];
/// Properties of which only the name passes.
const PROPERTIES: &[&str] = &[
    "Filter",
    "Index Cond",
    "Recheck Cond",
    "Hash Cond",
    "Merge Cond",
    "Join Filter",
    "One-Time Filter",
    "TID Cond",
    "Order By",
    "Sort Key",
    "Presorted Key",
    "Group Key",
    "Cache Key",
    "Run Condition",
    "Output",
    "Conflict Resolution",
    "Conflict Arbiter Indexes",
    "Conflict Filter",
];

fn line(text: &str, out: &mut Vec<u8>) {
    let rest = text.trim_start_matches(' ');
    let indent = text.len().saturating_sub(rest.len());
    out.extend_from_slice(text.get(..indent).unwrap_or_default().as_bytes());
    let (arrow, rest) = match rest.strip_prefix("->  ") {
        Some(rest) => ("->  ", rest),
        None => ("", rest),
    };
    let (head, measured) = match rest.split_once("  (") {
        Some((head, measures)) => (head, actual(measures)),
        None => (rest, None),
    };
    if is_node(head) {
        out.extend_from_slice(arrow.as_bytes());
        out.extend_from_slice(head.as_bytes());
        if let Some(measured) = measured {
            out.extend_from_slice(format!("  ({measured})").as_bytes());
        }
    } else if is_subplan(rest) || is_time(rest) {
        out.extend_from_slice(rest.as_bytes());
    } else {
        let name = rest.split_once(": ").map(|(name, _)| name);
        if let Some(name) = name.filter(|name| PROPERTIES.contains(name)) {
            out.extend_from_slice(format!("{name}: ").as_bytes());
        }
        out.extend_from_slice(MARK.as_bytes());
    }
}

/// What ANALYZE measured, of `cost=… rows=…) (actual time=… rows=… loops=…)`.
fn actual(measures: &str) -> Option<&str> {
    let start = measures.find("actual ")?;
    let found = measures.get(start..)?.split(')').next()?;
    let plain = |word: &str| {
        let value = word
            .split_once('=')
            .map(|(name, value)| (matches!(name, "time" | "rows" | "loops"), value));
        value.is_some_and(|(known, value)| known && value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
    };
    let mut words = found.split(' ').skip(1);
    words.all(plain).then_some(found)
}

fn is_node(head: &str) -> bool {
    let mut name = head;
    for prefix in ["Async ", "Parallel ", "Partial ", "Finalize "] {
        name = name.strip_prefix(prefix).unwrap_or(name);
    }
    let joins = || {
        KINDS.iter().any(|kind| {
            let fits = |join: &str| name.strip_prefix(join).and_then(|rest| rest.strip_prefix(*kind)) == Some(" Join");
            fits("Nested Loop ") || fits("Merge ") || fits("Hash ")
        })
    };
    let sets = || {
        let operation = name.strip_prefix("HashSetOp ").or_else(|| name.strip_prefix("SetOp "));
        operation.is_some_and(|operation| matches!(operation, "Except" | "Except All" | "Intersect" | "Intersect All"))
    };
    ALONE.contains(&name) || joins() || sets() || NAMING.iter().any(|kind| names(name, kind))
}

/// `Kind [using index] on relation [alias]`.
fn names(text: &str, kind: &str) -> bool {
    let Some(rest) = text.strip_prefix(kind) else {
        return false;
    };
    let rest = match rest.strip_prefix(" using ").and_then(identifier) {
        Some(rest) => rest,
        None => rest,
    };
    let Some(mut rest) = rest.strip_prefix(" on ").and_then(identifier) else {
        return false;
    };
    if let Some(inner) = rest.strip_prefix('.').and_then(identifier) {
        rest = inner;
    }
    if let Some(inner) = rest.strip_prefix(' ').and_then(identifier) {
        rest = inner;
    }
    rest.is_empty()
}

/// What stands behind a name.
fn identifier(text: &str) -> Option<&str> {
    if let Some(quoted) = text.strip_prefix('"') {
        let mut from = 0usize;
        loop {
            let end = quoted.get(from..)?.find('"')?.saturating_add(from);
            let after = quoted.get(end.saturating_add(1)..)?;
            if !after.starts_with('"') {
                return Some(after);
            }
            from = end.saturating_add(2);
        }
    }
    let end = text
        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
        .unwrap_or(text.len());
    let starts = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
    text.get(end..).filter(|_| starts)
}

/// `SubPlan 1`, `InitPlan 1 (returns $0)`, `CTE name`.
fn is_subplan(text: &str) -> bool {
    let number = text.strip_prefix("SubPlan ").or_else(|| text.strip_prefix("InitPlan "));
    let numbered = number.is_some_and(|number| {
        let (number, returns) = number.split_once(" (returns ").unwrap_or((number, ")"));
        let digits = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b'$' | b','))
        };
        digits(number) && returns.strip_suffix(')').is_some_and(digits)
    });
    numbered || text.strip_prefix("CTE ").and_then(identifier) == Some("")
}

/// `Planning Time: 0.052 ms`.
fn is_time(text: &str) -> bool {
    let value = text
        .strip_prefix("Planning Time: ")
        .or_else(|| text.strip_prefix("Execution Time: "))
        .and_then(|value| value.strip_suffix(" ms"));
    value.is_some_and(|value| value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

/// Keys of JSON plans with names of things and kinds of nodes.
const WORDS: &[&str] = &[
    "Node Type",
    "Parent Relationship",
    "Join Type",
    "Strategy",
    "Partial Mode",
    "Operation",
    "Command",
    "Scan Direction",
    "Subplan Name",
    "Relation Name",
    "Schema",
    "Alias",
    "Index Name",
    "CTE Name",
    "Function Name",
    "Tuplestore Name",
];
/// Flags of nodes.
const FLAGS: &[&str] = &[
    "Parallel Aware",
    "Async Capable",
    "Inner Unique",
    "Single Copy",
    "Disabled",
];
/// What ANALYZE measured.
const MEASURES: &[&str] = &[
    "Actual Startup Time",
    "Actual Total Time",
    "Actual Rows",
    "Actual Loops",
    "Planning Time",
    "Execution Time",
];

/// A plan as JSON: a list of statements.
fn document(plan: Value) -> Option<Value> {
    let Value::Array(statements) = plan else { return None };
    let kept: Option<Vec<Value>> = statements.into_iter().map(node).collect();
    kept.map(Value::Array)
}

/// The harmless part of a node. The parser bounds how deep it goes.
fn node(value: Value) -> Option<Value> {
    let Value::Object(fields) = value else { return None };
    let mut kept = serde_json::Map::new();
    for (key, value) in fields {
        let name = key.as_str();
        let value = match value {
            Value::Array(plans) if name == "Plans" => Some(Value::Array(plans.into_iter().filter_map(node).collect())),
            plan @ Value::Object(_) if name == "Plan" => node(plan),
            value @ Value::String(_) => WORDS.contains(&name).then_some(value),
            value @ Value::Bool(_) => FLAGS.contains(&name).then_some(value),
            value @ Value::Number(_) => MEASURES.contains(&name).then_some(value),
            _ => None,
        };
        if let Some(value) = value {
            kept.insert(key, value);
        }
    }
    Some(Value::Object(kept))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(line: &str) -> String {
        let mut out = Vec::new();
        explained(line.as_bytes(), PlanForm::Lines, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn the_shape_stays_and_estimates_and_constants_go() {
        for (line, expected) in [
            (
                "Seq Scan on people  (cost=0.00..1.03 rows=3 width=64)",
                "Seq Scan on people",
            ),
            (
                "  ->  Index Only Scan Backward using \"a \"\"b\" on app.people p  (cost=0.1 rows=1 width=4)",
                "  ->  Index Only Scan Backward using \"a \"\"b\" on app.people p",
            ),
            ("  Filter: (name = 'canary'::text)", "  Filter: ***"),
            ("canary'::text)", "***"),
            ("  Limit canary", "  ***"),
            ("  Seq Scan on people canary extra", "  ***"),
            ("  Something New: canary", "  ***"),
            (
                "  ->  Hash Right Anti Join  (cost=1.0..2.0 rows=7 width=9)",
                "  ->  Hash Right Anti Join",
            ),
            (
                "Finalize GroupAggregate  (cost=1 rows=2 width=3) (actual time=0.010..0.020 rows=3 loops=1)",
                "Finalize GroupAggregate  (actual time=0.010..0.020 rows=3 loops=1)",
            ),
            (
                "Limit  (cost=1 rows=2 width=3) (actual time=canary rows=3 loops=1)",
                "Limit",
            ),
            ("Planning Time: 0.052 ms", "Planning Time: 0.052 ms"),
            ("Execution Time: canary ms", "***"),
            ("  InitPlan 1 (returns $0)", "  InitPlan 1 (returns $0)"),
            ("  CTE canary one", "  ***"),
            ("  Buffers: shared hit=1", "  ***"),
        ] {
            assert_eq!(text(line), expected, "{line}");
        }
    }

    #[test]
    fn json_keeps_what_is_listed() {
        let plan = r#"[{"Plan": {"Node Type": "Limit", "Total Cost": 1.5, "Plan Rows": 3, "Plan Width": 64, "Output": ["'canary'"],
            "Actual Rows": 3, "Alias": ["canary"], "Plans": [{"Node Type": "Seq Scan", "Relation Name": "people",
            "Filter": "(name = 'canary')", "Parallel Aware": false}]}, "Settings": {"canary": "canary"}, "Planning Time": 0.1}]"#;
        let mut out = Vec::new();
        explained(plan.as_bytes(), PlanForm::Json, &mut out);
        let kept: Value = serde_json::from_slice(&out).unwrap_or_default();
        let expected = serde_json::json!([{"Plan": {"Node Type": "Limit", "Actual Rows": 3, "Plans": [
            {"Node Type": "Seq Scan", "Relation Name": "people", "Parallel Aware": false}]}, "Planning Time": 0.1}]);
        assert_eq!(kept, expected);
        out.clear();
        explained(b"canary", PlanForm::Json, &mut out);
        assert_eq!(out, b"\"***\"");
    }

    proptest! {
        #[test]
        fn any_row_comes_out_as_text(cell in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut out = Vec::new();
            explained(&cell, PlanForm::Lines, &mut out);
            explained(&cell, PlanForm::Json, &mut out);
            prop_assert!(std::str::from_utf8(&out).is_ok());
        }
    }
}
