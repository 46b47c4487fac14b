//! One of several replicas leads: it alone writes what need be written once.
//!
//! Refuses to lead on a Lease it did not renew in time. The invariant: two replicas lead at once only for as long as a
//! call is under way, for one stops before the other may begin; nothing that must be exclusive rests on that.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::leases::keep;
use crate::{answered, Failed};

/// A Lease that nobody renewed for so long is free.
const LASTS: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long leads no more.
const RENEWED_WITHIN: Duration = Duration::from_secs(10);
/// Looked at so often.
const EVERY: Duration = Duration::from_secs(4);

/// A name for this start of this replica: its host's, which in a pod is the pod's, so that people who look at the Lease
/// know who leads, and something that no other start has.
pub fn name(unique: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => unique.to_owned(),
        host => format!("{host}_{unique}"),
    }
}

/// This replica's part in the election.
pub struct Leader {
    leases: Api<Lease>,
    /// The Lease.
    lease: String,
    /// This replica, unlike any other and any other start of it.
    name: String,
    renewed: Mutex<Option<Instant>>,
}

/// What was last seen of the Lease: its version, and since when. Only our own clock counts, as clocks differ.
type Seen = Option<(String, Instant)>;

impl Leader {
    /// A replica, of this name, that does not lead yet on this Lease of the namespace.
    pub fn new(client: Client, namespace: &str, lease: &str, name: String) -> Self {
        Leader {
            leases: Api::namespaced(client, namespace),
            lease: lease.to_owned(),
            name,
            renewed: Mutex::new(None),
        }
    }

    /// Whether this replica leads now.
    pub fn leads(&self) -> bool {
        let renewed = self.renewed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        renewed.is_some_and(|renewed| renewed.elapsed() < RENEWED_WITHIN)
    }

    /// Stands for election until told to stop, then gives the Lease up.
    pub async fn run(self: std::sync::Arc<Self>, stop: CancellationToken) {
        let mut seen: Seen = None;
        loop {
            if let Err(error) = self.turn(&mut seen).await {
                tracing::warn!(%error, "the Lease of the leader cannot be kept");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
        if self.leads() {
            self.set(None);
            let _ = self.give_up().await;
        }
    }

    fn set(&self, renewed: Option<Instant>) {
        *self.renewed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = renewed;
    }

    async fn turn(&self, seen: &mut Seen) -> Result<(), Failed> {
        let now = Instant::now();
        let found = answered(self.leases.get_opt(&self.lease)).await?;
        if found.as_ref().is_some_and(|lease| !self.may_take(lease, seen, now)) {
            self.set(None);
            return Ok(());
        }
        if keep(&self.leases, &self.lease, found, |lease| self.held(lease)).await? {
            if !self.leads() {
                tracing::info!(replica = self.name, "this replica leads");
            }
            // Since the call began: what took long to answer was renewed before.
            self.set(Some(now));
        } else {
            self.set(None);
        }
        Ok(())
    }

    /// Ours, nobody's, or not renewed for as long as we have watched it.
    fn may_take(&self, lease: &Lease, seen: &mut Seen, now: Instant) -> bool {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if holder.is_none_or(|holder| holder.is_empty() || holder == self.name) {
            return true;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        match seen {
            Some((known, since)) if *known == version => now.saturating_duration_since(*since) >= LASTS,
            _ => {
                *seen = Some((version, now));
                false
            }
        }
    }

    fn held(&self, mut lease: Lease) -> Lease {
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.name) {
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
            spec.acquire_time = Some(MicroTime(Timestamp::now()));
        }
        spec.holder_identity = Some(self.name.clone());
        spec.lease_duration_seconds = i32::try_from(LASTS.as_secs()).ok();
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        lease
    }

    /// Leaves the Lease free, so that the next leader need not wait.
    async fn give_up(&self) -> Result<(), Failed> {
        let Some(mut lease) = answered(self.leases.get_opt(&self.lease)).await? else {
            return Ok(());
        };
        let spec: &mut LeaseSpec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.name) {
            spec.holder_identity = None;
            answered(self.leases.replace(&self.lease, &PostParams::default(), &lease)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn leader(name: &str) -> Leader {
        // Nothing is listening there, and nothing here asks.
        let config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"));
        Leader::new(
            Client::try_from(config).unwrap(),
            "sidegate-system",
            "leader",
            name.to_owned(),
        )
    }

    fn version(mut lease: Lease, version: &str) -> Lease {
        lease.metadata.resource_version = Some(version.to_owned());
        lease
    }

    #[tokio::test]
    async fn a_lease_is_taken_when_it_stood_still_for_as_long_as_it_lasts() {
        let (one, two) = (leader("one"), leader("two"));
        let held = version(one.held(Lease::default()), "7");
        let (start, mut seen) = (Instant::now(), None);
        assert!(one.may_take(&held, &mut None, start), "its own");
        assert!(!two.may_take(&held, &mut seen, start));
        assert!(!two.may_take(&held, &mut seen, start + LASTS / 2));
        // Renewed meanwhile: the wait begins anew, whatever the times in it say.
        let renewed = version(one.held(held.clone()), "8");
        assert!(!two.may_take(&renewed, &mut seen, start + LASTS));
        assert!(!two.may_take(&renewed, &mut seen, start + LASTS + LASTS / 2));
        assert!(two.may_take(&renewed, &mut seen, start + LASTS * 2));
        let mut free = renewed;
        free.spec.as_mut().unwrap().holder_identity = None;
        assert!(two.may_take(&free, &mut None, start), "given up");
    }

    #[tokio::test]
    async fn a_leader_that_could_not_renew_leads_no_more() {
        let one = leader("one");
        assert!(!one.leads());
        one.set(Some(Instant::now()));
        assert!(one.leads());
        one.set(Instant::now().checked_sub(RENEWED_WITHIN));
        assert!(!one.leads());
        assert!(RENEWED_WITHIN < LASTS, "one stops before the other may begin");
    }
}
