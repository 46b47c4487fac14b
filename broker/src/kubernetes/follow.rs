//! Puts into force what people applied: Lockdowns at once, the rest as soon as it settles.
//!
//! Refuses nothing by itself; see [`reading`]. The invariant: a Lockdown waits for no other object and for no disk
//! but its own revision's.

use std::sync::Arc;
use std::time::Duration;

use sidegate_policies::record::Kind as Recorded;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::kinds::{settled, Kinds};
use super::maps::ClusterMaps;
use super::reading::{self, About, Found};
use crate::audit::Event;
use crate::front::Front;
use crate::in_force::InForce;
use crate::report::{Findings, Reporter};

/// ConfigMaps are not followed: those that are due are looked at so often.
const MAPS_AGAIN: Duration = Duration::from_secs(5);

/// Follows the kinds of a cluster.
pub struct Follower {
    /// What people applied.
    pub kinds: Arc<Kinds>,
    /// ConfigMaps that Targets name.
    pub maps: Arc<ClusterMaps>,
    /// Where accepted objects go.
    pub in_force: InForce,
    /// Everything in force, and where findings go.
    pub reporter: Arc<Reporter>,
    /// What was found about objects, Lockdowns left out.
    pub found: watch::Sender<Arc<About>>,
    /// What was found about Lockdowns.
    pub locked: watch::Sender<Arc<About>>,
}

impl Follower {
    /// Lockdowns, until told to stop.
    pub async fn lockdowns(self: Arc<Self>, stop: CancellationToken) {
        let mut changed = self.kinds.lockdowns();
        let mut elsewhere = self.reporter.front.lockdowns.elsewhere();
        changed.mark_changed();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                told = changed.changed() => if told.is_err() { return },
                told = elsewhere.changed() => {
                    if told.is_err() {
                        return;
                    }
                    // A bookmark may have brought this replica there already, with nothing new in it: then the set is
                    // published as of there, and otherwise what is listed anew brings it there (test
                    // `a_lockdown_holds_while_replicas_die_and_come_back`).
                    self.kinds.seen_elsewhere(*elsewhere.borrow_and_update());
                }
            }
            changed.borrow_and_update();
            let this = Arc::clone(&self);
            let tasks = self.reporter.front.tasks.clone();
            tasks.blocking(move || this.freeze()).await;
        }
    }

    fn freeze(&self) {
        let front: &Front = &self.reporter.front;
        let (stored, at) = self.kinds.read();
        let (lockdowns, found) = reading::lockdowns(&stored);
        let names: Vec<&str> = lockdowns
            .iter()
            .map(|lockdown| lockdown.metadata.name.as_str())
            .collect();
        let names = names.join(" ");
        let before = front.lockdowns.now().set.revision;
        if let Err(error) = front.lockdowns.configure_at(lockdowns, at.lockdowns) {
            tracing::error!(%error, "Lockdowns cannot be put into force");
        }
        let revision = front.lockdowns.now().set.revision;
        if revision != before {
            front.audit.note(Event {
                object: &names,
                detail: &format!("deny set {revision}, from the objects of the cluster"),
                ..Event::new(Recorded::Lockdown, "lockdown.applied")
            });
        }
        self.locked.send_replace(Arc::new(found));
    }

    /// Everything else, until told to stop.
    pub async fn rest(self: Arc<Self>, stop: CancellationToken) {
        let mut changed = self.kinds.rest();
        loop {
            let told = tokio::select! {
                () = stop.cancelled() => return,
                told = changed.changed() => Some(told),
                () = self.reporter.front.catch_up.notified() => {
                    self.kinds.list_again();
                    continue;
                }
                () = tokio::time::sleep(MAPS_AGAIN) => None,
            };
            match &told {
                Some(Ok(())) => settled(&mut changed).await,
                Some(Err(_)) => return,
                None => {}
            }
            changed.borrow_and_update();
            // A map that is another one counts as a change of the Targets that name it.
            if !self.maps.refresh(&self.kinds.stored()).await && told.is_none() {
                continue;
            }
            let this = Arc::clone(&self);
            let tasks = self.reporter.front.tasks.clone();
            if tasks.blocking(move || this.put()).await != Some(true) {
                // Tried again after a moment.
                changed.mark_changed();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// Answers whether what was read is in force.
    fn put(&self) -> bool {
        let (stored, at) = self.kinds.read();
        let mut read = reading::read(&stored, &self.maps.known());
        read.objects.settle_authorities(self.maps.home());
        let front = &self.reporter.front;
        let put = self.in_force.put(front, read.objects, read.withheld, Some(at.rest));
        self.reporter.tell(findings(&read.found));
        self.found.send_replace(Arc::new(read.found));
        match put {
            Ok(revision) => {
                tracing::info!(revision, "objects of the cluster accepted");
                true
            }
            Err(error) => {
                tracing::error!(%error, "objects of the cluster are not in force");
                false
            }
        }
    }
}

/// All of it in one list, for `status`.
pub fn findings(found: &About) -> Findings {
    let all = |list: fn(&Found) -> &Vec<_>| found.values().flat_map(|found| list(found).iter().cloned()).collect();
    Findings {
        problems: all(|found| &found.problems),
        warnings: all(|found| &found.warnings),
    }
}
