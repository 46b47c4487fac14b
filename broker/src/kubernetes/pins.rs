//! Pins in the API server: one Lease per pod in the broker's namespace, named after the pod's UID.
//!
//! Refuses what [`judge`] refuses. The invariant: two replicas cannot pin two keys, for a Lease is created once and
//! replaced only at the version it was read at.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, Client};

use super::leases::keep;
use super::{answered, Failed};
use crate::pins::{judge, Instance, Judged, Pin, PinRefused, Pins};

/// Where a Lease holds its pin, as JSON.
const PIN: &str = "sidegate.dev/pin";
/// What tells our Leases from others.
pub(super) const LABEL: (&str, &str) = ("sidegate.dev/component", "pin");
/// Rounds against other replicas before the caller is told to try again.
const ROUNDS: usize = 4;

/// Pins as Leases.
pub struct PinLeases(Api<Lease>);

impl PinLeases {
    /// In this namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        PinLeases(Api::namespaced(client, namespace))
    }

    async fn keep(
        &self,
        pod_uid: &str,
        instance: &Instance,
        thumbprint: &str,
        settled: bool,
    ) -> Result<(), PinRefused> {
        let cluster = |error: Failed| PinRefused::Cluster(error.to_string());
        for _ in 0..ROUNDS {
            let found = answered(self.0.get_opt(pod_uid)).await.map_err(cluster)?;
            let pinned = found.as_ref().map(read).transpose()?;
            let Judged::Moves(pin) = judge(pinned.as_ref(), instance, thumbprint, settled)? else {
                return Ok(());
            };
            let kept = keep(&self.0, pod_uid, found, |lease| written(lease, &pin, thumbprint)).await;
            if kept.map_err(cluster)? {
                return Ok(());
            }
            // Another replica was first: what it pinned is judged in the next round.
        }
        Err(PinRefused::Cluster("other replicas pin the same pod".to_owned()))
    }
}

impl Pins for PinLeases {
    fn pin<'a>(
        &'a self,
        pod_uid: &'a str,
        instance: &'a Instance,
        thumbprint: &'a str,
        settled: bool,
    ) -> BoxFuture<'a, Result<(), PinRefused>> {
        Box::pin(self.keep(pod_uid, instance, thumbprint, settled))
    }
}

/// A Lease of that name without a pin we can read is not ours to overwrite.
fn read(lease: &Lease) -> Result<Pin, PinRefused> {
    let text = lease.metadata.annotations.as_ref().and_then(|all| all.get(PIN));
    let pin = text.and_then(|text| serde_json::from_str(text).ok());
    pin.ok_or_else(|| PinRefused::Cluster("the pod's Lease holds no pin".to_owned()))
}

fn written(mut lease: Lease, pin: &Pin, thumbprint: &str) -> Lease {
    let text = serde_json::to_string(pin).unwrap_or_default();
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(PIN.to_owned(), text);
    let labels: &mut BTreeMap<_, _> = lease.metadata.labels.get_or_insert_default();
    labels.insert(LABEL.0.to_owned(), LABEL.1.to_owned());
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(thumbprint.to_owned()),
        ..LeaseSpec::default()
    });
    lease
}
