//! Housekeeping: watches the configuration, lifts lockdowns whose time has passed, expires requests, rotates keys,
//! and renews the local service-account token.
//!
//! Refuses to hand on a configuration with a problem: the last good one stays in force and the problems are
//! reported. The invariant: a configuration becomes visible whole, with a revision never used before.

use std::sync::Arc;
use std::time::Duration;

use sidegate_policies::check::check;
use sidegate_policies::compile::Problem;
use sidegate_policies::objects::Objects;
use sidegate_policies::record::Kind;
use sidegate_policies::yaml;
use tokio::sync::watch;

use crate::audit::{Audit, Event, Unrecorded};
use crate::control::switch;
use crate::folder::{Fingerprint, Folders};
use crate::index::Index;
use crate::local_cluster::{LocalCluster, TOKEN_LIFE};
use crate::report::{Findings, Reporter};
use crate::rotation;
use crate::state::{StateDir, StateError};

const TICK: Duration = Duration::from_millis(500);
const DEBOUNCE: Duration = Duration::from_millis(100);
const DEBOUNCE_ROUNDS: usize = 10;

/// Reads and checks the folders: objects and warnings, or every problem.
pub fn load(folders: &Folders) -> Result<(Objects, Vec<Problem>), Vec<Problem>> {
    let loaded = yaml::load(&folders.read()?);
    let mut problems = loaded.problems;
    let checked = check(&loaded.objects);
    problems.extend(checked.problems);
    if problems.is_empty() {
        Ok((loaded.objects, checked.warnings))
    } else {
        problems.sort();
        problems.dedup();
        Err(problems)
    }
}

/// Why a good configuration was not put into force. It is tried again.
#[derive(Debug, thiserror::Error)]
enum NotAccepted {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the configuration is not in force: {0}")]
    Unrecorded(#[from] Unrecorded),
}

/// The audit event of a configuration put into force. It is on record first.
pub(crate) fn accepted(audit: &Audit, revision: u64) -> Result<(), Unrecorded> {
    audit.record(Event {
        object: &revision.to_string(),
        ..Event::new(Kind::Config, "configuration.accepted")
    })
}

/// The housekeeper of one broker.
pub struct Keeper {
    /// Where the configuration is.
    pub folders: Folders,
    /// How it looked when it was last read.
    pub seen: Fingerprint,
    /// Where an accepted configuration goes.
    pub index: watch::Sender<Arc<Index>>,
    /// Counters.
    pub state: Arc<StateDir>,
    /// The cluster's name and the key of approval digests, for new indexes.
    pub cluster_name: String,
    /// Base64url.
    pub digest_key: String,
    /// Everything in force, and where findings go.
    pub reporter: Arc<Reporter>,
    /// When the service-account token was last written, seconds since 1970.
    pub token_written: i64,
}

impl Keeper {
    /// Runs until the broker stops.
    pub async fn run(mut self) {
        let tasks = self.reporter.front.tasks.clone();
        let stop = tasks.stopping();
        let mut again = false;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let folders = self.folders.clone();
            if let Some(now) = tasks.blocking(move || folders.fingerprint()).await {
                if now != self.seen || again {
                    self.seen = self.settle(now).await;
                    again = self.reload().await;
                }
            }
            self.keep().await;
        }
    }

    /// Waits until the folders look the same twice, at most a second.
    async fn settle(&self, mut last: Fingerprint) -> Fingerprint {
        for _ in 0..DEBOUNCE_ROUNDS {
            tokio::time::sleep(DEBOUNCE).await;
            let folders = self.folders.clone();
            match self.reporter.front.tasks.blocking(move || folders.fingerprint()).await {
                Some(now) if now != last => last = now,
                _ => break,
            }
        }
        last
    }

    /// Answers whether a good configuration is not in force and must be tried again.
    async fn reload(&self) -> bool {
        let folders = self.folders.clone();
        let tasks = &self.reporter.front.tasks;
        let Some(loaded) = tasks.blocking(move || load(&folders)).await else {
            return false;
        };
        let mut again = false;
        let findings = match loaded {
            Ok((objects, warnings)) => match self.accept(objects) {
                Ok(revision) => {
                    tracing::info!(revision, warnings = warnings.len(), "configuration accepted");
                    Findings {
                        problems: Vec::new(),
                        warnings,
                    }
                }
                Err(error) => {
                    again = true;
                    Findings {
                        problems: vec![unplaced(error.to_string())],
                        warnings,
                    }
                }
            },
            Err(problems) => {
                tracing::warn!(
                    problems = problems.len(),
                    "configuration refused; the last good one stays in force"
                );
                self.reporter.front.audit.note(Event {
                    detail: &format!("{} problem(s); the last good one stays in force", problems.len()),
                    ..Event::new(Kind::Config, "configuration.refused")
                });
                Findings {
                    problems,
                    warnings: Vec::new(),
                }
            }
        };
        *self
            .reporter
            .findings
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = findings;
        again
    }

    fn accept(&self, objects: Objects) -> Result<u64, NotAccepted> {
        let revision = self.state.count("bundle")?;
        let index = Index::new(objects, revision, self.cluster_name.clone(), self.digest_key.clone());
        // Lockdowns first: what a new configuration freezes is frozen before what it allows is offered.
        self.reporter.front.lockdowns.configure(index.lockdowns())?;
        accepted(&self.reporter.front.audit, revision)?;
        self.index.send_replace(Arc::new(index));
        Ok(revision)
    }

    async fn keep(&mut self) {
        let front = Arc::clone(&self.reporter.front);
        let records = Arc::clone(&self.reporter.records);
        let cluster = Arc::clone(&self.reporter.cluster);
        let now = front.clock.now();
        // The kubelet renews at 80 % of a token's life; so do we.
        let renew = now.saturating_sub(self.token_written) >= TOKEN_LIFE.saturating_mul(4).div_euclid(5);
        let tasks = front.tasks.clone();
        let kept = tasks
            .blocking(move || {
                if let Err(error) = front.lockdowns.refresh() {
                    tracing::error!(%error, "lockdowns cannot be read");
                }
                switch::say_ended(&front.audit, &front.lockdowns);
                front.budget.say(&front.audit);
                rotation::keep(&front.issuer, &records, &front.audit, now);
                if let Err(error) = front.approvals.sweep(&front.index(), &front.lockdowns.now()) {
                    tracing::error!(%error, "requests cannot be swept");
                }
                renew && renewed(&cluster)
            })
            .await;
        if kept == Some(true) {
            self.token_written = now;
        }
    }
}

fn renewed(cluster: &LocalCluster) -> bool {
    match cluster.write_token() {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(%error, "the service-account token cannot be renewed");
            false
        }
    }
}

fn unplaced(message: String) -> Problem {
    Problem {
        file: None,
        line: None,
        column: None,
        object: None,
        field: String::new(),
        message,
    }
}
