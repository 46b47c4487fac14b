//! From a message's text to a plan or a refusal: catalog, cache, analysis, structure, masks, in this order.
//!
//! A missing name may be a table made a moment ago: one fresh snapshot is fetched before the text is judged unresolved.
//! Whatever is refused here has been recorded.

use std::sync::{Arc, OnceLock};

use sidegate_policies::engine::{Decision, Effect};
use sidegate_policies::reason::Reason;
use sidegate_policies::sql::postgres::analysis::UNRESOLVED;
use sidegate_policies::sql::postgres::catalog::Catalog;
use sidegate_policies::sql::postgres::literals::{self, Hidden};
use sidegate_policies::sql::postgres::plan::ResultPlan;
use sidegate_policies::sql::postgres::prescan::Limit;
use sidegate_policies::sql::postgres::{self as sql, analyse, Options, SessionView, Statement, StatementKind};
use sidegate_policies::sql::Effects;
use tokio::io::{AsyncRead, AsyncWrite};

use super::catalog::Snapshot;
use super::codec::{parse, write, Frame, MAX_TEXT};
use super::facts::{self, Plan, Planned, Scope, Words};
use super::params;
use super::plans::{Kept, PlanCache};
use super::relay::Relay;
use super::work::Work;
use crate::refusal::Refusal;
use crate::target::TargetState;

/// What planning needs besides the conversation.
pub struct Planner {
    /// Plans of all sessions.
    pub cache: Arc<PlanCache>,
    /// The catalog of this database.
    pub snapshot: Arc<Snapshot>,
    /// The target.
    pub target: Arc<TargetState>,
    /// Who acts, for the scope.
    pub subject: String,
    /// The server's major version.
    pub major: u32,
    /// What every application_name of this session begins with.
    pub prefix: String,
    /// The scope plans were made in last.
    pub scope: Option<Arc<Scope>>,
    /// The last text that had a kept plan, for clients that send one text again and again.
    pub last: Option<Last>,
}

/// A plan that was good as it stood, where and when it was looked up.
pub struct Last {
    scope: Arc<Scope>,
    in_transaction: bool,
    plan: Arc<Planned>,
}

impl<A, S> Relay<A, S>
where
    A: AsyncRead + AsyncWrite + Unpin + Send,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// The scope in force.
    pub(super) fn scope(&mut self) -> Arc<Scope> {
        let (generation, epoch) = (self.gate.generation(), self.planner.snapshot.epoch());
        let search_path = self.conversation.search_path();
        if let Some(scope) = &self.planner.scope {
            if scope.generation == generation && scope.epoch == epoch && scope.search_path == search_path {
                return scope.clone();
            }
        }
        let scope = Arc::new(Scope {
            target: format!("{} {}", self.planner.target.uid, self.planner.target.address()),
            database: self.conversation.database().clone(),
            role: self.conversation.role().clone(),
            search_path: search_path.to_vec(),
            subject: self.planner.subject.clone(),
            major: self.planner.major,
            generation,
            epoch,
        });
        self.planner.scope = Some(scope.clone());
        scope
    }

    /// Whether a plan still holds.
    pub(super) fn is_current(&mut self, plan: &Planned) -> bool {
        let scope = self.scope();
        let one = Arc::ptr_eq(&scope, &plan.scope);
        let same = one || *scope == *plan.scope;
        if same && !one {
            // The plan was made by another session: from here on both have one scope, which is told by its address.
            self.planner.scope = Some(plan.scope.clone());
        }
        same && !self.planner.snapshot.is_stale()
            && plan.analysis.facts.in_transaction == self.conversation.in_transaction()
    }

    /// The kept plan of a text, if it has one that can be used as it stands. Everything else is for
    /// [`Relay::judge_sent`], which looks again.
    pub(super) fn kept(&mut self, text: &[u8]) -> Option<Arc<Planned>> {
        let text = std::str::from_utf8(text).ok()?;
        let snapshot = &self.planner.snapshot;
        if snapshot.is_stale() || snapshot.is_old() || self.conversation.has_temporary_tables() {
            return None;
        }
        let (scope, in_transaction) = (self.scope(), self.conversation.in_transaction());
        let same = |last: &&Last| {
            Arc::ptr_eq(&last.scope, &scope) && last.in_transaction == in_transaction && *last.plan.text == *text
        };
        if let Some(last) = self.planner.last.as_ref().filter(same) {
            return Some(last.plan.clone());
        }
        match self.planner.cache.get(text, &scope, in_transaction) {
            Kept::Plan(plan) if !hides_name_change(&plan) && renamed(&plan, &self.planner.prefix).is_none() => {
                self.planner.last = Some(Last {
                    scope,
                    in_transaction,
                    plan: plan.clone(),
                });
                Some(plan)
            }
            _ => None,
        }
    }

    /// Plans a text. A SET of application_name is planned in a form that keeps our prefix: that form is returned, and
    /// must be sent in place of the frame.
    pub(super) async fn judge_sent(
        &mut self,
        frame: &Frame,
        text: &[u8],
    ) -> Result<(Option<Frame>, Arc<Planned>), Refusal> {
        let plan = self.judge(frame, text).await?;
        if hides_name_change(&plan) {
            let refusal = Refusal::new(Reason::Denied, "statement")
                .because("application_name carries who the session belongs to, so it is set by a plain SET alone")
                .hint("Send SET application_name as a statement of its own");
            return Err(self.gate.refused(refusal, Some(plan.shown().0)));
        }
        let Some(renamed) = renamed(&plan, &self.planner.prefix) else {
            return Ok((None, plan));
        };
        let rewritten = match parse::decode(frame) {
            Ok(parsed) if frame.tag() == b'P' => write::parse(&String::from_utf8_lossy(parsed.name), &renamed),
            _ => write::query(&renamed),
        };
        let plan = self.judge(&rewritten, renamed.as_bytes()).await?;
        Ok((Some(rewritten), plan))
    }

    /// Plans a text, or refuses it.
    pub(super) async fn judge(&mut self, frame: &Frame, text: &[u8]) -> Result<Arc<Planned>, Refusal> {
        if text.len() > MAX_TEXT {
            return Err(self.gate.refused(Refusal::new(Reason::TooLarge, "statement"), None));
        }
        let Ok(text) = std::str::from_utf8(text) else {
            let refusal = Refusal::new(Reason::NotUnderstood, "statement").because("its text is not valid UTF-8");
            return Err(self.gate.refused(refusal, None));
        };
        self.fresh_catalog(text).await?;
        let (scope, in_transaction) = (self.scope(), self.conversation.in_transaction());
        let shared = !self.conversation.has_temporary_tables();
        let shape = match shared.then(|| self.planner.cache.get(text, &scope, in_transaction)) {
            Some(Kept::Plan(plan)) => return Ok(plan),
            Some(Kept::Missing(shape)) => shape,
            None => None,
        };
        let plan = self.plan_text(frame, text).await?;
        let plan = Arc::new(Planned::new(text, Arc::new(plan)));
        if shared {
            self.planner.cache.put(&plan, shape.as_ref(), in_transaction);
        }
        Ok(plan)
    }

    async fn fresh_catalog(&mut self, text: &str) -> Result<(), Refusal> {
        let snapshot = self.planner.snapshot.clone();
        if snapshot.is_stale() {
            return self.fetch_catalog(text).await;
        }
        if snapshot.is_old() {
            let (target, ctx) = (self.planner.target.clone(), self.ctx.clone());
            let database = self.conversation.database().clone();
            self.ctx.tasks.spawn("catalog", async move {
                if let Err(error) = snapshot.fetch(&target, &ctx, &database).await {
                    tracing::warn!(target = %target.id, %error, "the catalog could not be refreshed");
                }
            });
        }
        Ok(())
    }

    pub(super) async fn fetch_catalog(&mut self, text: &str) -> Result<(), Refusal> {
        let database = self.conversation.database().clone();
        let fetched = self
            .planner
            .snapshot
            .fetch(&self.planner.target, &self.ctx, &database)
            .await;
        fetched.map_err(|error| {
            tracing::warn!(target = %self.planner.target.id, %error, "the catalog could not be read");
            let refusal =
                Refusal::new(Reason::Unavailable, "statement").because("the target's catalog could not be read");
            self.gate.refused(refusal, Some(&literals::unknown(text)))
        })
    }

    async fn plan_text(&mut self, frame: &Frame, text: &str) -> Result<Plan, Refusal> {
        let mut plan = self.analyse(text).await?;
        if plan.unresolved() && self.planner.snapshot.may_refetch() {
            self.fetch_catalog(text).await?;
            plan = self.analyse(text).await?;
        }
        let plans = ResultPlan::of_text(&plan.masks, &plan.analysis, &plan.catalog);
        plan.hidden = Hidden::of(text, &plan.analysis, &plan.masks, &plan.catalog, plans.is_err());
        if plan.structure.effect == Effect::Deny {
            return Err(self.denied(frame, text, plan));
        }
        match plans {
            Ok(plans) => {
                plan.plans = plans;
                Ok(plan)
            }
            Err(refused) => {
                let refusal = facts::mask_refusal(&refused, &plan.analysis);
                self.count_unparsable(&plan);
                Err(self
                    .gate
                    .refused(refusal, Some(&plan.hidden.shown(text, plan.detectors()).0)))
            }
        }
    }

    /// Parses, resolves and decides by structure. What is not small does so off this thread, where it may take its time
    /// and wait for its turn without holding up other sessions.
    async fn analyse(&mut self, text: &str) -> Result<Plan, Refusal> {
        let catalog: Arc<Catalog> = self.planner.snapshot.catalog().unwrap_or_default();
        let options = Options {
            server_major: self.planner.major,
            standard_conforming_strings: true,
        };
        let analysis = if sql::is_small(text) {
            analyse(text, &options, &catalog, &self.conversation)
        } else {
            let (text, view, catalog) = (text.to_owned(), self.conversation.clone(), catalog.clone());
            let analysed = move || analyse(&text, &options, &catalog, &view);
            let analysed = self.ctx.tasks.blocking(analysed).await;
            analysed.map_err(|_| self.gate.refused(Refusal::new(Reason::Internal, "statement"), None))?
        };
        if let Some(limit) = analysis.limit {
            let reason = if limit == Limit::Busy {
                Reason::Unavailable
            } else {
                Reason::TooLarge
            };
            let mut refusal = Refusal::new(reason, "statement").because(limit.to_string());
            refusal.nested = limit.is_complexity();
            return Err(self.gate.refused(refusal, Some(&literals::unknown(text))));
        }
        let structure = self.gate.structure(&analysis.operation(&analysis.facts))?;
        let masks = self.gate.masks();
        self.masks.update(&masks);
        Ok(Plan {
            analysis,
            plans: Vec::new(),
            hidden: Hidden::ALL,
            masks,
            structure,
            decided: OnceLock::new(),
            catalog,
            scope: self.scope(),
            words: Words::default(),
        })
    }

    fn denied(&mut self, frame: &Frame, text: &str, plan: Plan) -> Refusal {
        self.count_unparsable(&plan);
        let plan = Arc::new(Planned::new(text, Arc::new(plan)));
        let work = Work::query(frame, &plan, &self.conversation);
        self.gate.deny(&work, &plan.structure)
    }

    fn count_unparsable(&mut self, plan: &Plan) {
        if plan.analysis.problem.is_some() {
            self.unparsable = self.unparsable.saturating_add(1);
        }
    }
}

/// Whether a text may change application_name in a form that cannot be rewritten: by set_config, or in a string with
/// other statements. The server's log would then no longer say whose session it was.
fn hides_name_change(plan: &Plan) -> bool {
    let facts = &plan.analysis.facts;
    let changes = facts.effects.contains(Effects::SESSION)
        && facts
            .settings
            .iter()
            .any(|name| name.eq_ignore_ascii_case("application_name"));
    let plain = |statement: &Statement| match &statement.kind {
        StatementKind::Set { .. } => statement.action.starts_with("SET"),
        StatementKind::Reset(_) | StatementKind::Show => true,
        _ => false,
    };
    changes && !matches!(plan.analysis.statements.as_slice(), [only] if plain(only))
}

/// The text to send instead of a SET of application_name that lacks our prefix.
fn renamed(plan: &Planned, prefix: &str) -> Option<String> {
    let [only] = plan.analysis.statements.as_slice() else {
        return None;
    };
    match &only.kind {
        StatementKind::Set {
            name,
            value: Some(value),
            local,
        } if &**name == "application_name" && !value.starts_with(prefix) => {
            let full = params::application_name(prefix, value);
            let quoted = full.replace('\'', "''");
            let local = if *local { "LOCAL " } else { "" };
            Some(format!("SET {local}application_name TO '{quoted}'"))
        }
        _ => None,
    }
}

/// Says why, where the decision alone does not: the grammar's message, or the names that did not resolve.
pub fn explain(refusal: &mut Refusal, plan: &Plan, decision: &Decision) {
    if let Some(problem) = &plan.analysis.problem {
        refusal.reason = Reason::NotUnderstood;
        refusal.message = Some(problem.as_str().into());
        return;
    }
    if decision.message.is_none() && plan.unresolved() {
        refusal.message = Some(UNRESOLVED.into());
    }
}
