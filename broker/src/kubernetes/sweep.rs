//! The leader removes the pin of a pod that is gone, ten minutes after it was first missed.
//!
//! Refuses to remove on hearsay: before anything goes, every pod of the cluster is listed at that moment, and a pin goes
//! only in the version it was seen in. The invariant: while a pod exists, so does its pin.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PartialObjectMeta, Preconditions};
use kube::core::ObjectList;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use super::leader::Leader;
use super::pins::LABEL;
use super::{answered, Failed};
use crate::clock::Clock;

/// Looked at so often.
const EVERY: Duration = Duration::from_secs(60);
/// A pod has been gone for so long when its pin goes, milliseconds.
const KEPT_MS: i64 = 10 * 60_000;
/// Objects per page of a list.
const PAGE: u32 = 500;
/// Pins removed per round: the rest has its turn in the next.
const MAX_AT_ONCE: usize = 200;

/// Removes pins.
pub struct PinSweeper {
    leases: Api<Lease>,
    pods: Api<Pod>,
    clock: Arc<dyn Clock>,
    missed: Missed,
}

/// Since when pods with a pin have been gone, milliseconds.
#[derive(Debug, Default)]
struct Missed(BTreeMap<String, i64>);

impl Missed {
    /// Takes which of the pinned pods are there; answers those that have been gone for long enough.
    fn due(&mut self, pinned: &BTreeSet<String>, there: &BTreeSet<String>, now_ms: i64) -> Vec<String> {
        self.0.retain(|uid, _| pinned.contains(uid) && !there.contains(uid));
        for uid in pinned.difference(there) {
            self.0.entry(uid.clone()).or_insert(now_ms);
        }
        let long = |since: &i64| now_ms.saturating_sub(*since) >= KEPT_MS;
        let due = self.0.iter().filter(|(_, since)| long(since));
        due.take(MAX_AT_ONCE).map(|(uid, _)| uid.clone()).collect()
    }
}

impl PinSweeper {
    /// Over this client, for pins in this namespace.
    pub fn new(client: Client, namespace: &str, clock: Arc<dyn Clock>) -> Self {
        PinSweeper {
            leases: Api::namespaced(client.clone(), namespace),
            pods: Api::all(client),
            clock,
            missed: Missed::default(),
        }
    }

    /// Sweeps while this replica leads, until told to stop.
    pub async fn run(mut self, leader: Arc<Leader>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            if !leader.leads() {
                // Who leads next counts anew: later is harmless.
                self.missed = Missed::default();
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                swept = self.round() => match swept {
                    Ok(0) => {}
                    Ok(pins) => tracing::info!(pins, "pins of pods that are gone were removed"),
                    Err(error) => tracing::warn!(%error, "pins of pods that are gone cannot be removed now"),
                },
            }
        }
    }

    /// One look. Answers how many pins were removed.
    ///
    /// # Errors
    /// Where the API server does not answer, or refuses.
    pub async fn round(&mut self) -> Result<usize, Failed> {
        let pins = self.pins().await?;
        let pinned: BTreeSet<String> = pins.keys().cloned().collect();
        let there = self.there().await?;
        let mut removed = 0_usize;
        for uid in self.missed.due(&pinned, &there, self.clock.now_ms()) {
            let Some(version) = pins.get(&uid) else { continue };
            let parameters = DeleteParams {
                preconditions: Some(Preconditions {
                    resource_version: Some(version.clone()),
                    uid: None,
                }),
                ..DeleteParams::default()
            };
            match answered(self.leases.delete(&uid, &parameters)).await {
                Ok(_) => removed = removed.saturating_add(1),
                // Removed by another, or written meanwhile: it is looked at again.
                Err(error) if error.is(404) || error.is(409) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Every pin: the pod's UID and the version it was read in.
    async fn pins(&self) -> Result<BTreeMap<String, String>, Failed> {
        let labelled = ListParams::default()
            .limit(PAGE)
            .labels(&format!("{}={}", LABEL.0, LABEL.1));
        let mut pins = BTreeMap::new();
        let mut token = None;
        loop {
            let parameters = paged(&labelled, token.take());
            let page: ObjectList<PartialObjectMeta<Lease>> = answered(self.leases.list_metadata(&parameters)).await?;
            token = next(&page);
            pins.extend(page.items.into_iter().filter_map(|lease| {
                let metadata = lease.metadata;
                Some((metadata.name?, metadata.resource_version?))
            }));
            if token.is_none() {
                return Ok(pins);
            }
        }
    }

    /// The UIDs of all pods, as the API server has them now, not as they were last heard of.
    async fn there(&self) -> Result<BTreeSet<String>, Failed> {
        let all = ListParams::default().limit(PAGE);
        let mut there = BTreeSet::new();
        let mut token = None;
        loop {
            let parameters = paged(&all, token.take());
            let page: ObjectList<PartialObjectMeta<Pod>> = answered(self.pods.list_metadata(&parameters)).await?;
            token = next(&page);
            there.extend(page.items.into_iter().filter_map(|pod| pod.metadata.uid));
            if token.is_none() {
                return Ok(there);
            }
        }
    }
}

fn paged(parameters: &ListParams, token: Option<String>) -> ListParams {
    let parameters = parameters.clone();
    match token {
        Some(token) => parameters.continue_token(&token),
        None => parameters,
    }
}

fn next<T: Clone>(page: &ObjectList<T>) -> Option<String> {
    page.metadata.continue_.clone().filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uids(all: &[&str]) -> BTreeSet<String> {
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pin_goes_ten_minutes_after_its_pod_and_never_while_it_is_there() {
        let (mut missed, pinned) = (Missed::default(), uids(&["a", "b"]));
        assert!(missed.due(&pinned, &uids(&["a", "b"]), 0).is_empty());
        assert!(missed.due(&pinned, &uids(&["a"]), KEPT_MS).is_empty(), "gone just now");
        assert!(missed.due(&pinned, &uids(&["a"]), KEPT_MS * 2 - 1).is_empty());
        assert_eq!(missed.due(&pinned, &uids(&["a"]), KEPT_MS * 2), ["b"]);
        // A list that missed a pod which is there after all: the wait begins anew.
        assert!(missed.due(&pinned, &uids(&["b"]), KEPT_MS * 3).is_empty());
        assert!(missed.due(&pinned, &uids(&["a", "b"]), KEPT_MS * 4).is_empty());
        assert!(
            missed.due(&pinned, &uids(&["b"]), KEPT_MS * 5).is_empty(),
            "gone again just now"
        );
        // A pin that somebody else removed is forgotten.
        assert!(missed.due(&uids(&["b"]), &uids(&[]), KEPT_MS * 6).is_empty());
        assert_eq!(missed.0.keys().collect::<Vec<_>>(), ["b"]);
    }
}
