//! The mask plan of one statement: which output columns pass, which are masked and how, and whether the
//! statement may run at all under the masks of its subject.
//!
//! Lineage decides; the server's own column origins only cross-check it. A masked column may be shown, masked,
//! and nothing else: every other use could answer a question about it. What cannot be told is refused as long
//! as any column mask holds.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::analysis::{Analysis, Output, Source, Statement, StatementKind};
use super::catalog::{Catalog, Oid, Relation};
use super::lineage::{mask_of, not_null, Masked, Verdict};
use crate::api::access_policy::{MaskAs, NoOptions, SqlCommand};
use crate::engine::decision::{MaskSet, RuleRef};
use crate::mask::PlanForm;
use crate::reason::Reason;
use crate::sql::facts::SqlFacts;
use crate::sql::names::{ColumnName, RelationName};

/// What happens to the rows of one statement.
#[derive(Debug, Clone)]
pub struct ResultPlan {
    masks: Arc<MaskSet>,
    /// None: any number of columns, and none of them can be masked.
    columns: Option<Vec<ColumnPlan>>,
    scrub: bool,
    /// The rows are a plan over masked relations.
    explained: Option<PlanForm>,
}

/// One output column.
#[derive(Debug, Clone, PartialEq)]
pub enum ColumnPlan {
    /// Passes unchanged (detectors still look at it).
    Pass,
    /// Is masked.
    Mask(PlannedMask),
}

/// A mask for one output column.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedMask {
    /// What its values become.
    pub how: MaskAs,
    /// The policy that says so.
    pub policy: Arc<str>,
    /// The column the policy names.
    pub column: ColumnName,
    /// The column is never NULL at its origin, so its mask must not be either.
    pub not_null: bool,
}

/// Why a statement may not run under these masks. The text names the column and is meant for the agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanRefusal {
    /// A masked column used for more than being shown.
    #[error(
        "{column} is masked and can only be selected as it is: not in a condition, join, ordering, grouping, \
         expression, set operation or write"
    )]
    Used {
        /// The column.
        column: ColumnName,
        /// The policy that masks it.
        policy: Arc<str>,
    },
    /// A masked column assigned from something else than a parameter or a constant.
    #[error("{column} is masked and can only be set from a parameter or a constant")]
    Assigned {
        /// The column.
        column: ColumnName,
        /// The policy that masks it.
        policy: Arc<str>,
    },
    /// ON CONFLICT that may look at a masked column.
    #[error(
        "{column} is masked, and ON CONFLICT without a list of columns may tell whether a value of it exists: \
         name columns that are not masked, as in ON CONFLICT (id)"
    )]
    Conflict {
        /// The column.
        column: ColumnName,
        /// The policy that masks it.
        policy: Arc<str>,
    },
    /// A whole row that holds a masked column.
    #[error("{relation} cannot be selected as a whole row, because {column} is masked: select its columns by name")]
    Row {
        /// The relation.
        relation: RelationName,
        /// The masked column.
        column: ColumnName,
        /// The policy that masks it.
        policy: Arc<str>,
    },
    /// EXPLAIN of masked relations in a form that is not read.
    #[error(
        "columns are masked for this subject, so a plan over their relations is shown in FORMAT TEXT or JSON only"
    )]
    PlanFormat,
    /// Output whose origin cannot be told.
    #[error("columns are masked for this subject, and where this statement's output comes from cannot be told")]
    UnknownOutput,
    /// Code of the agent's own, which runs with what it reads unseen.
    #[error(
        "columns are masked for this subject, and nobody can tell what the code of a DO block, function or procedure \
         does with them"
    )]
    Code,
    /// A use that could not be resolved.
    #[error("columns are masked for this subject, and which columns this statement uses cannot be told")]
    UnknownUse,
}

impl PlanRefusal {
    /// How a refusal of `analysis` is told: its reason, the masks' policy as a rule, and the text.
    pub fn told(&self, analysis: &Analysis) -> (Reason, Option<RuleRef>, String) {
        let unknown = matches!(self, PlanRefusal::UnknownOutput | PlanRefusal::UnknownUse);
        let rule = self.policy().map(|policy| RuleRef {
            policy: policy.clone(),
            rule: "masks".into(),
        });
        match (&analysis.problem, unknown) {
            (Some(problem), true) => (Reason::NotUnderstood, rule, problem.clone()),
            (None, true) => (Reason::Unresolved, rule, self.to_string()),
            (_, false) => (Reason::Denied, rule, self.to_string()),
        }
    }

    /// The policy whose mask is in the way, where one is.
    pub fn policy(&self) -> Option<&Arc<str>> {
        match self {
            PlanRefusal::Used { policy, .. }
            | PlanRefusal::Assigned { policy, .. }
            | PlanRefusal::Conflict { policy, .. }
            | PlanRefusal::Row { policy, .. } => Some(policy),
            PlanRefusal::PlanFormat | PlanRefusal::Code => None,
            PlanRefusal::UnknownOutput | PlanRefusal::UnknownUse => None,
        }
    }
}

fn plan_form(format: &str) -> Result<PlanForm, PlanRefusal> {
    match format {
        "text" => Ok(PlanForm::Lines),
        "json" => Ok(PlanForm::Json),
        _ => Err(PlanRefusal::PlanFormat),
    }
}

/// One field of the server's RowDescription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldOrigin {
    /// The table it says the field comes from; 0 for none.
    pub table_oid: Oid,
    /// The attribute number; 0 for none or a whole row.
    pub attnum: i16,
    /// The field's type.
    pub type_oid: Oid,
    /// Its type modifier.
    pub typmod: i32,
}

/// The masks of one result, ready for its rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ColumnMasks {
    /// Masked columns in ascending order of position.
    pub columns: Vec<ColumnMask>,
    /// Whether detectors look at the text-like cells of the others.
    pub detect: bool,
    /// The only column is a plan over masked relations, written like this: nothing but its shape passes.
    pub explained: Option<PlanForm>,
}

impl ColumnMasks {
    /// Whether rows pass untouched.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty() && !self.detect && self.explained.is_none()
    }
}

/// One masked column of a result.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnMask {
    /// Its position, from 0.
    pub index: usize,
    /// What its values become, by whom, and for which column.
    pub mask: PlannedMask,
    /// The type of the values, as the server sends it, domains resolved.
    pub type_oid: Oid,
    /// Their type modifier.
    pub typmod: i32,
}

/// The server's answer does not fit the plan: nothing of it may pass (XX000, and a counter).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another number of columns.
    #[error("the result has {found} columns where {planned} were planned")]
    Count {
        /// As planned.
        planned: usize,
        /// As answered.
        found: usize,
    },
    /// A masked column where the plan has none.
    #[error("result column {} comes from {column}, which is masked, and the plan says it is not", index.saturating_add(1))]
    Origin {
        /// The position, from 0.
        index: usize,
        /// The masked column.
        column: ColumnName,
    },
    /// A column of a relation the snapshot does not hold: it is out of date.
    #[error("result column {} comes from a relation the catalog snapshot does not hold", index.saturating_add(1))]
    Stale {
        /// The position, from 0.
        index: usize,
    },
}

impl ResultPlan {
    /// A plan for every statement of a text, or why the text may not run.
    pub fn of_text(
        masks: &Arc<MaskSet>,
        analysis: &Analysis,
        catalog: &Catalog,
    ) -> Result<Vec<ResultPlan>, PlanRefusal> {
        if analysis.statements.is_empty() && analysis.problem.is_some() && !masks.columns.is_empty() {
            // Nothing is known of it: its answer could hold anything.
            return Err(PlanRefusal::UnknownOutput);
        }
        let statements = analysis.statements.iter();
        statements
            .map(|statement| ResultPlan::build(masks, statement, catalog))
            .collect()
    }

    /// Plans one statement under the masks of a decision, or says why it may not run.
    pub fn build(masks: &Arc<MaskSet>, statement: &Statement, catalog: &Catalog) -> Result<ResultPlan, PlanRefusal> {
        let plan = |columns, scrub| ResultPlan {
            masks: Arc::clone(masks),
            columns,
            scrub,
            explained: None,
        };
        if masks.columns.is_empty() {
            return Ok(plan(None, false));
        }
        if brings_code(&statement.facts) {
            return Err(PlanRefusal::Code);
        }
        check_uses(masks, statement, catalog)?;
        let scrub = touches_masked(masks, statement, catalog);
        if let StatementKind::Prepare { inner, .. }
        | StatementKind::Declare { inner, .. }
        | StatementKind::Explain { inner, .. } = &statement.kind
        {
            // Refused now rather than at EXECUTE or FETCH: the name would stand for something that cannot run.
            let inner = ResultPlan::build(masks, inner, catalog)?;
            let scrub = scrub || inner.scrub;
            let explained = match &statement.kind {
                StatementKind::Explain { format, .. } if scrub => Some(plan_form(format)?),
                _ => None,
            };
            return Ok(ResultPlan {
                explained,
                ..plan(None, scrub)
            });
        }
        if matches!(statement.kind, StatementKind::Show) {
            return Ok(plan(None, false));
        }
        let columns = match &statement.output {
            Output::None => Vec::new(),
            Output::Rows(columns) => columns
                .iter()
                .map(|column| plan_column(masks, &column.source, catalog))
                .collect::<Result<_, _>>()?,
            Output::Unknown => return Err(PlanRefusal::UnknownOutput),
        };
        Ok(plan(Some(columns), scrub))
    }

    /// The planned columns; None where any number of columns passes.
    pub fn columns(&self) -> Option<&[ColumnPlan]> {
        self.columns.as_deref()
    }

    /// Whether errors and notices of the statement may quote masked values and must be replaced.
    pub fn scrubs_errors(&self) -> bool {
        self.scrub
    }

    /// Whether any column is masked or looked at.
    pub fn is_pass(&self) -> bool {
        let masked = |column: &ColumnPlan| matches!(column, ColumnPlan::Mask(_));
        self.masks.detectors.is_empty()
            && self.explained.is_none()
            && !self.columns.as_ref().is_some_and(|all| all.iter().any(masked))
    }

    /// Compares the server's description of the result with the plan. Origins never widen what passes: they
    /// may only reveal that the plan is wrong.
    pub fn check_origin(&self, fields: &[FieldOrigin], catalog: &Catalog) -> Result<ColumnMasks, Mismatch> {
        let detect = !self.masks.detectors.is_empty();
        if let Some(form) = self.explained {
            return match fields {
                [_] => Ok(ColumnMasks {
                    explained: Some(form),
                    ..ColumnMasks::default()
                }),
                _ => Err(Mismatch::Count {
                    planned: 1,
                    found: fields.len(),
                }),
            };
        }
        if self.masks.columns.is_empty() {
            return Ok(ColumnMasks {
                detect,
                ..ColumnMasks::default()
            });
        }
        if let Some(planned) = self.columns.as_ref().filter(|planned| planned.len() != fields.len()) {
            return Err(Mismatch::Count {
                planned: planned.len(),
                found: fields.len(),
            });
        }
        let mut columns = Vec::new();
        for (index, field) in fields.iter().enumerate() {
            match self.columns.as_ref().and_then(|planned| planned.get(index)) {
                Some(ColumnPlan::Mask(mask)) => columns.push(ColumnMask {
                    index,
                    mask: mask.clone(),
                    type_oid: catalog.base_type(field.type_oid),
                    typmod: field.typmod,
                }),
                Some(ColumnPlan::Pass) | None => self.check_passing(index, field, catalog)?,
            }
        }
        Ok(ColumnMasks {
            columns,
            detect,
            explained: None,
        })
    }

    fn check_passing(&self, index: usize, field: &FieldOrigin, catalog: &Catalog) -> Result<(), Mismatch> {
        if field.table_oid == 0 || field.attnum < 0 {
            return Ok(());
        }
        let relation = catalog.relation(field.table_oid).ok_or(Mismatch::Stale { index })?;
        let suspects: Vec<ColumnName> = match field.attnum {
            0 => relation.columns.iter().map(|each| relation.column_name(each)).collect(),
            attnum => match relation.attribute(attnum) {
                Some(column) => vec![relation.column_name(column)],
                None => return Err(Mismatch::Stale { index }),
            },
        };
        match suspects
            .into_iter()
            .find(|column| mask_of(&self.masks, catalog, column) != Verdict::Clean)
        {
            Some(column) => Err(Mismatch::Origin { index, column }),
            None => Ok(()),
        }
    }
}

/// Whether a statement runs code the agent wrote, or leaves it behind for a trigger, a default or a later call: an Allow
/// for it is no leave to read past the masks (`code_of_the_agents_own_is_refused_under_masks`). What is there already
/// is the operator's, who names it.
fn brings_code(facts: &SqlFacts) -> bool {
    let routine = |object: &Arc<str>| matches!(&**object, "Function" | "Procedure");
    facts.commands.contains(SqlCommand::Do)
        || (facts.commands.contains(SqlCommand::Create) && facts.objects.iter().any(routine))
}

fn check_uses(masks: &MaskSet, statement: &Statement, catalog: &Catalog) -> Result<(), PlanRefusal> {
    if statement.uses.unknown {
        return Err(PlanRefusal::UnknownUse);
    }
    for column in &statement.uses.columns {
        if let Some((column, policy)) = hit(masks, catalog, column, PlanRefusal::UnknownUse)? {
            return Err(PlanRefusal::Used { column, policy });
        }
    }
    for column in &statement.uses.assigned {
        if let Some((column, policy)) = hit(masks, catalog, column, PlanRefusal::UnknownUse)? {
            return Err(PlanRefusal::Assigned { column, policy });
        }
    }
    for column in &statement.uses.conflicts {
        if let Some((column, policy)) = hit(masks, catalog, column, PlanRefusal::UnknownUse)? {
            return Err(PlanRefusal::Conflict { column, policy });
        }
    }
    Ok(())
}

/// The masked column behind a column and the policy, if any.
fn hit(
    masks: &MaskSet,
    catalog: &Catalog,
    column: &ColumnName,
    unknown: PlanRefusal,
) -> Result<Option<(ColumnName, Arc<str>)>, PlanRefusal> {
    match mask_of(masks, catalog, column) {
        Verdict::Clean => Ok(None),
        // The agent wrote the first name; the second may be one it has never seen.
        Verdict::Masked(masked) => Ok(Some((column.clone(), Arc::clone(&masked.rule.policy)))),
        Verdict::Unknown => Err(unknown),
    }
}

fn plan_column(masks: &MaskSet, source: &Source, catalog: &Catalog) -> Result<ColumnPlan, PlanRefusal> {
    match source {
        Source::Clean => Ok(ColumnPlan::Pass),
        Source::Column(column) => match mask_of(masks, catalog, column) {
            Verdict::Clean => Ok(ColumnPlan::Pass),
            Verdict::Masked(masked) => Ok(ColumnPlan::Mask(planned(&masked, not_null(catalog, column)))),
            Verdict::Unknown => Err(PlanRefusal::UnknownOutput),
        },
        Source::Derived(columns) => {
            let mut strongest: Option<Masked<'_>> = None;
            for column in columns {
                match mask_of(masks, catalog, column) {
                    Verdict::Clean => {}
                    Verdict::Masked(masked) => {
                        let whole = Masked { whole: true, ..masked };
                        strongest = Some(strongest.unwrap_or(whole));
                    }
                    Verdict::Unknown => return Err(PlanRefusal::UnknownOutput),
                }
            }
            Ok(strongest.map_or(ColumnPlan::Pass, |masked| ColumnPlan::Mask(planned(&masked, false))))
        }
        Source::WholeRow(row) => {
            let relation = catalog
                .relation_named(&row.schema, &row.name)
                .ok_or(PlanRefusal::UnknownOutput)?;
            whole_row(masks, relation, catalog)
        }
        Source::Unknown => Err(PlanRefusal::UnknownOutput),
    }
}

fn whole_row(masks: &MaskSet, relation: &Relation, catalog: &Catalog) -> Result<ColumnPlan, PlanRefusal> {
    for column in &relation.columns {
        let name = relation.column_name(column);
        if let Some((column, policy)) = hit(masks, catalog, &name, PlanRefusal::UnknownOutput)? {
            return Err(PlanRefusal::Row {
                relation: relation.name.clone(),
                column,
                policy,
            });
        }
    }
    Ok(ColumnPlan::Pass)
}

fn planned(masked: &Masked<'_>, not_null: bool) -> PlannedMask {
    // A value computed from a masked column shows nothing of itself: its last four digits are not the column's.
    let how = match (&masked.rule.how, masked.whole) {
        (how @ MaskAs::Null(_), _) | (how, false) => *how,
        (_, true) => MaskAs::Redact(NoOptions {}),
    };
    PlannedMask {
        how,
        policy: Arc::clone(&masked.rule.policy),
        column: masked.column.clone(),
        not_null,
    }
}

/// Whether any relation of the statement has a masked column: the server quotes whole rows in its errors.
pub(super) fn touches_masked(masks: &MaskSet, statement: &Statement, catalog: &Catalog) -> bool {
    let Some(tables) = statement.facts.tables.known() else {
        return true;
    };
    tables.iter().any(|name| {
        let Some(relation) = catalog.relation_named(&name.schema, &name.name) else {
            return true;
        };
        relation
            .columns
            .iter()
            .any(|column| mask_of(masks, catalog, &relation.column_name(column)) != Verdict::Clean)
    })
}
