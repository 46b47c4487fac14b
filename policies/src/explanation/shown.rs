//! Facts, output columns and approvals in the words people read.
//!
//! Facts carry the names they have in `when`, so that what is shown can be written into a rule.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Serialize;
use serde_json::{json, Value};

use crate::api::access_policy::{DateUnit, MaskAs};
use crate::engine::decision::AskTerms;
use crate::engine::words;
use crate::engine::Fact;
use crate::quantity::Span;
use crate::sql::postgres::analysis::{Output, Source, Statement, StatementKind};
use crate::sql::postgres::plan::{ColumnPlan, ResultPlan};
use crate::sql::postgres::Analysis;

/// One column of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputLine {
    /// The statement of the text, from 1.
    pub statement: usize,
    /// Its name, as far as it is known.
    pub name: String,
    /// Where its values come from.
    pub source: String,
    /// What they become; absent where they pass.
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    pub how: Option<MaskAs>,
    /// The column the mask is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The policy that masks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

/// What one asking rule demands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// `policy/rule`.
    pub rule: String,
    /// Who may approve.
    pub approvers: Vec<String>,
    /// Who may not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// How many different people.
    pub count: u32,
    /// How long the operation waits; absent: the protocol's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_for: Option<Span>,
    /// How long an approval may be used.
    pub valid_for: Span,
}

pub(super) fn approval(terms: &AskTerms) -> Approval {
    Approval {
        rule: terms.rule.to_string(),
        approvers: terms.approvers.iter().map(words::approver).collect(),
        exclude: terms.exclude.iter().map(words::approver).collect(),
        count: terms.count,
        hold_for: terms.hold_for.map(Span),
        valid_for: Span(terms.valid_for),
    }
}

/// The facts of a text by their names in `when`.
pub(super) fn facts(analysis: &Analysis) -> BTreeMap<&'static str, Value> {
    let facts = &analysis.facts;
    if analysis.statements.is_empty() && analysis.problem.is_some() {
        return BTreeMap::new();
    }
    let commands: Vec<&str> = words::commands_of(facts.commands).map(words::command).collect();
    let effects: Vec<&str> = facts.effects.names().collect();
    [
        ("sql.statements", json!(facts.statements)),
        ("sql.commands", json!(commands)),
        ("sql.tables", names(&facts.tables)),
        ("sql.reads", names(&facts.reads)),
        ("sql.writes", names(&facts.writes)),
        ("sql.columns", names(&facts.columns)),
        ("sql.functions", names(&facts.functions)),
        ("sql.effects", json!(effects)),
        ("sql.filtered", json!(facts.filtered)),
        ("sql.limit", fact(&facts.limit, |limit| json!(limit))),
        ("sql.returning", json!(facts.returning)),
        ("sql.copy", json!(facts.copy.as_str())),
        ("sql.explain", json!(facts.explain)),
        ("sql.objects", json!(facts.objects)),
        ("sql.settings", json!(facts.settings)),
        ("sql.channels", json!(facts.channels)),
        ("sql.params", fact(&facts.params, |params| json!(params.len()))),
        ("sql.inTransaction", json!(facts.in_transaction)),
        ("sql.database", json!(facts.database)),
        ("sql.role", json!(facts.role)),
    ]
    .into()
}

fn fact<T>(fact: &Fact<T>, show: impl FnOnce(&T) -> Value) -> Value {
    match fact {
        Fact::Known(value) => show(value),
        Fact::Later => json!("later"),
        Fact::Unknown => json!("unknown"),
    }
}

fn names<T: Display>(names: &Fact<Vec<T>>) -> Value {
    fact(names, |names| {
        names.iter().map(|name| Value::String(name.to_string())).collect()
    })
}

/// Whether a statement answers rows of its own.
pub(super) fn answers(statement: &Statement) -> bool {
    !matches!(statement.output, Output::None)
}

/// What becomes of each output column.
pub(super) fn columns(analysis: &Analysis, plans: &[ResultPlan]) -> Vec<OutputLine> {
    let mut lines = Vec::new();
    for (at, (statement, plan)) in analysis.statements.iter().zip(plans).enumerate() {
        // Their names stand for a query that answers later.
        if matches!(
            statement.kind,
            StatementKind::Prepare { .. } | StatementKind::Declare { .. } | StatementKind::Explain { .. }
        ) {
            continue;
        }
        let Output::Rows(output) = &statement.output else {
            continue;
        };
        for (index, column) in output.iter().enumerate() {
            let masked = match plan.columns().and_then(|columns| columns.get(index)) {
                Some(ColumnPlan::Mask(mask)) => Some(mask),
                Some(ColumnPlan::Pass) | None => None,
            };
            lines.push(OutputLine {
                statement: at.saturating_add(1),
                name: column.name.as_deref().unwrap_or("?column?").to_owned(),
                source: source(&column.source),
                how: masked.map(|mask| mask.how),
                column: masked.map(|mask| mask.column.to_string()),
                policy: masked.map(|mask| mask.policy.to_string()),
            });
        }
    }
    lines
}

fn source(source: &Source) -> String {
    match source {
        Source::Clean => "no column".to_owned(),
        Source::Column(column) => column.to_string(),
        Source::WholeRow(relation) => format!("whole rows of {relation}"),
        Source::Derived(columns) => {
            let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
            format!("computed from {}", columns.join(", "))
        }
        Source::Unknown => "unknown".to_owned(),
    }
}

/// A mask in a few words.
pub fn mask_words(how: &MaskAs) -> String {
    match how {
        MaskAs::Null(_) => "NULL".to_owned(),
        MaskAs::Redact(_) => "redacted (***)".to_owned(),
        MaskAs::Hash(_) => "a keyed hash".to_owned(),
        MaskAs::Token(_) => "a pseudonym".to_owned(),
        MaskAs::DateTrunc(trunc) => match trunc.unit {
            DateUnit::Month => "cut to its month".to_owned(),
            DateUnit::Year => "cut to its year".to_owned(),
        },
        MaskAs::KeepFirst(keep) => format!("only its first {} characters", keep.count),
        MaskAs::KeepLast(keep) => format!("only its last {} characters", keep.count),
    }
}
