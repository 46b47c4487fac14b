//! From a text to a plan: parsed, resolved, decided by structure, with a mask plan per statement.
//!
//! A [`Planned`] is one text with the [`Plan`] it shares with every text of the same meaning; `plans` keeps those.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use sidegate_policies::engine::{Decision, MaskSet};
use sidegate_policies::mask::Detectors;
use sidegate_policies::sql::facts::PartRelation;
use sidegate_policies::sql::postgres::catalog::Catalog;
use sidegate_policies::sql::postgres::literals::Hidden;
use sidegate_policies::sql::postgres::plan::{ColumnPlan, PlanRefusal, ResultPlan};
use sidegate_policies::sql::postgres::{Analysis, StatementKind, TransactionVerb};
use sidegate_policies::sql::SqlFacts;

use crate::refusal::Refusal;

/// Everything besides the text that a plan depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The target's UID and address.
    pub target: String,
    /// The database.
    pub database: Arc<str>,
    /// The role at the server.
    pub role: Arc<str>,
    /// The search_path in order.
    pub search_path: Vec<Arc<str>>,
    /// Who acts.
    pub subject: String,
    /// The server's major version.
    pub major: u32,
    /// The bundle.
    pub generation: u64,
    /// The catalog snapshot.
    pub epoch: u64,
}

/// One text, planned.
pub struct Planned {
    /// The text.
    pub text: Arc<str>,
    /// What holds for it, and for every text of its shape that has the same literals wherever they matter.
    pub plan: Arc<Plan>,
    shown: OnceLock<(Box<str>, u32)>,
}

impl Planned {
    /// A text with its plan.
    pub fn new(text: &str, plan: Arc<Plan>) -> Self {
        Planned {
            text: text.into(),
            plan,
            shown: OnceLock::new(),
        }
    }

    /// The text as records and people see it, and how many of its constants are hidden. What is sent and what approvals
    /// bind to is the text itself.
    pub fn shown(&self) -> (&str, u32) {
        let detectors = self.plan.detectors();
        if self.plan.hidden.is_empty() && detectors.is_none() {
            return (&self.text, 0);
        }
        let (text, count) = self.shown.get_or_init(|| {
            let (text, count) = self.plan.hidden.shown(&self.text, detectors);
            (text.into(), count)
        });
        (text, *count)
    }

    /// The server's error as the record keeps it: it may quote a secret of the text.
    pub fn recorded_error(&self, message: String) -> String {
        match self.plan.hidden.holds_secrets() {
            true => "(not kept: it may quote a secret of the statement)".to_owned(),
            false => message,
        }
    }
}

impl Deref for Planned {
    type Target = Plan;

    fn deref(&self) -> &Plan {
        &self.plan
    }
}

/// What a text does and how its answers are masked.
pub struct Plan {
    /// What it does.
    pub analysis: Analysis,
    /// A mask plan for each statement; empty where the text is refused by it.
    pub plans: Vec<ResultPlan>,
    /// What of the text is hidden where it is shown.
    pub hidden: Hidden,
    /// The masks these are made of.
    pub masks: Arc<MaskSet>,
    /// The decision by structure.
    pub structure: Decision,
    /// The final decision, once made, where it may be kept.
    pub decided: OnceLock<Arc<Decision>>,
    /// The catalog it was resolved in.
    pub catalog: Arc<Catalog>,
    /// What it depends on.
    pub scope: Arc<Scope>,
    /// What records say of it, once asked for.
    pub words: Words,
}

/// Words that hold for every operation of a plan.
#[derive(Default)]
pub struct Words {
    detectors: OnceLock<Detectors>,
    masks: OnceLock<Box<[Box<str>]>>,
    resources: OnceLock<Box<[Box<str>]>>,
}

/// Resources of one statement string that the record names.
const MAX_RESOURCES: usize = 256;

impl Plan {
    /// What looks through its text and values where they are recorded and shown; none where no policy asks for that.
    pub fn detectors(&self) -> Option<&Detectors> {
        let wanted = &self.masks.detectors;
        (!wanted.is_empty()).then(|| self.words.detectors.get_or_init(|| Detectors::redacting(wanted)))
    }

    /// The masks it applies, such as `app.customers.email redact`: what records and approvers are told.
    pub fn mask_words(&self) -> &[Box<str>] {
        self.words.masks.get_or_init(|| {
            let columns = self.plans.iter().filter_map(ResultPlan::columns).flatten();
            let masks = columns.filter_map(|column| match column {
                ColumnPlan::Mask(mask) => Some(mask),
                _ => None,
            });
            masks
                .map(|mask| format!("{} {}", mask.column, mask_name(&mask.how)).into())
                .collect()
        })
    }

    /// What it touches, such as `Select app.customers`: what records are told.
    pub fn resources(&self) -> &[Box<str>] {
        self.words.resources.get_or_init(|| {
            let words = self.analysis.facts.parts.iter().map(|part| {
                let relation = match &part.relation {
                    PartRelation::Known(relation) => format!(" {relation}"),
                    PartRelation::None => String::new(),
                    PartRelation::Unknown => " ?".to_owned(),
                };
                format!("{:?}{relation}", part.command).into()
            });
            words.take(MAX_RESOURCES).collect()
        })
    }

    /// Whether errors of this text may quote hidden values.
    pub fn scrubs(&self) -> bool {
        !self.masks.columns.is_empty()
            && (self.plans.len() != self.analysis.statements.len() || self.plans.iter().any(ResultPlan::scrubs_errors))
    }

    /// Whether answers pass untouched.
    pub fn passes(&self) -> bool {
        self.masks.is_empty() || (!self.plans.is_empty() && self.plans.iter().all(ResultPlan::is_pass))
    }

    /// Whether later messages must wait for its reply: it may change what text or names mean, or what the maps hold.
    pub fn is_barrier(&self) -> bool {
        self.analysis.statements.iter().any(|statement| match &statement.kind {
            StatementKind::Plain => defines(&statement.facts),
            StatementKind::Explain { .. } | StatementKind::Show | StatementKind::Execute { .. } => false,
            StatementKind::Fetch { .. } => false,
            StatementKind::Copy(copy) => copy.from,
            StatementKind::Transaction(verb) => matches!(verb, TransactionVerb::TwoPhase),
            _ => true,
        })
    }

    /// Whether it changes the catalog.
    pub fn defines(&self) -> bool {
        self.analysis
            .statements
            .iter()
            .any(|statement| defines(&statement.facts))
    }

    /// Whether it copies from the agent.
    pub fn copies_in(&self) -> bool {
        let copy_in = |kind: &StatementKind| matches!(kind, StatementKind::Copy(copy) if copy.from);
        self.analysis
            .statements
            .iter()
            .any(|statement| copy_in(&statement.kind))
    }

    /// Whether names in it did not resolve, so that a fresher snapshot might help.
    pub fn unresolved(&self) -> bool {
        self.analysis.is_unresolved()
    }
}

fn defines(facts: &SqlFacts) -> bool {
    use sidegate_policies::api::access_policy::SqlCommand;
    use sidegate_policies::sql::Effects;
    facts.effects.contains(Effects::DEFINE)
        || [
            SqlCommand::Create,
            SqlCommand::Alter,
            SqlCommand::Drop,
            SqlCommand::Do,
            SqlCommand::Call,
        ]
        .into_iter()
        .any(|command| facts.commands.contains(command))
}

/// The refusal of a text whose masks stand in the way.
pub fn mask_refusal(refused: &PlanRefusal, analysis: &Analysis) -> Refusal {
    let (reason, rule, text) = refused.told(analysis);
    Refusal::new(reason, "statement").because(text).by(rule)
}

fn mask_name(how: &sidegate_policies::api::access_policy::MaskAs) -> &'static str {
    use sidegate_policies::api::access_policy::MaskAs;
    match how {
        MaskAs::Null(_) => "null",
        MaskAs::Redact(_) => "redact",
        MaskAs::Hash(_) => "hash",
        MaskAs::Token(_) => "token",
        MaskAs::DateTrunc(_) => "dateTrunc",
        MaskAs::KeepFirst(_) => "keepFirst",
        MaskAs::KeepLast(_) => "keepLast",
    }
}
