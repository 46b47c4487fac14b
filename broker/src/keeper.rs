//! Housekeeping: watches the configuration, lifts lockdowns whose time has passed, rotates keys, and
//! renews the local service-account token.
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

use crate::audit::Event;
use crate::config::HOME;
use crate::control::switch;
use crate::folder::{Fingerprint, Folders};
use crate::front::Front;
use crate::in_force::{InForce, NotAccepted};
use crate::index::Withheld;
use crate::local_cluster::{LocalCluster, TOKEN_LIFE};
use crate::report::{Findings, Reporter};
use crate::rotation;
use crate::task::Tasks;

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

/// The housekeeper of one broker.
pub struct Keeper {
    /// Everything in force, and where findings go.
    pub reporter: Arc<Reporter>,
    /// The folders of a machine; nothing in a cluster, whose objects are followed elsewhere.
    pub watched: Option<Watched>,
    /// When the service-account token was last written, seconds since 1970.
    pub token_written: i64,
}

/// Folders that are watched.
pub struct Watched {
    /// Where the configuration is.
    pub folders: Folders,
    /// How it looked when it was last read.
    pub seen: Fingerprint,
    /// Where an accepted configuration goes.
    pub in_force: InForce,
    /// A good configuration is not in force, and must be tried again.
    pub again: bool,
}

impl Keeper {
    /// Runs until the broker stops.
    pub async fn run(mut self) {
        let tasks = self.reporter.front.tasks.clone();
        let stop = tasks.stopping();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            if let Some(watched) = &mut self.watched {
                watched.look(&self.reporter).await;
            }
            self.keep().await;
        }
    }

    async fn keep(&mut self) {
        let front = Arc::clone(&self.reporter.front);
        let records = Arc::clone(&self.reporter.records);
        let cluster = self.reporter.cluster.clone();
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
                rotation::keep_authority(&front.authority, &front.audit, now);
                renew && cluster.is_some_and(|cluster| renewed(&cluster))
            })
            .await;
        if kept == Some(true) {
            self.token_written = now;
        }
    }
}

impl Watched {
    /// Looks at the folders, and takes what changed.
    async fn look(&mut self, reporter: &Reporter) {
        let tasks = &reporter.front.tasks;
        let folders = self.folders.clone();
        let Some(now) = tasks.blocking(move || folders.fingerprint()).await else {
            return;
        };
        if now != self.seen || self.again {
            self.seen = self.settle(now, tasks).await;
            self.reload(reporter).await;
        }
    }

    /// Waits until the folders look the same twice, at most a second.
    async fn settle(&self, mut last: Fingerprint, tasks: &Tasks) -> Fingerprint {
        for _ in 0..DEBOUNCE_ROUNDS {
            tokio::time::sleep(DEBOUNCE).await;
            let folders = self.folders.clone();
            match tasks.blocking(move || folders.fingerprint()).await {
                Some(now) if now != last => last = now,
                _ => break,
            }
        }
        last
    }

    async fn reload(&mut self, reporter: &Reporter) {
        let folders = self.folders.clone();
        self.again = false;
        let Some(loaded) = reporter.front.tasks.blocking(move || load(&folders)).await else {
            return;
        };
        let findings = match loaded {
            Ok((objects, warnings)) => match self.accept(&reporter.front, objects) {
                Ok(revision) => {
                    tracing::info!(revision, warnings = warnings.len(), "configuration accepted");
                    Findings {
                        problems: Vec::new(),
                        warnings,
                    }
                }
                Err(error) => {
                    self.again = true;
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
                reporter.front.audit.note(Event {
                    detail: &format!("{} problem(s); the last good one stays in force", problems.len()),
                    ..Event::new(Kind::Config, "configuration.refused")
                });
                Findings {
                    problems,
                    warnings: Vec::new(),
                }
            }
        };
        reporter.tell(findings);
    }

    fn accept(&self, front: &Front, mut objects: Objects) -> Result<u64, NotAccepted> {
        objects.settle_authorities(HOME);
        // Lockdowns first: what a new configuration freezes is frozen before what it allows is offered.
        front.lockdowns.configure(objects.lockdowns())?;
        self.in_force.put(front, objects, Withheld::default(), None)
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
