//! Ids of revoked tokens for all replicas: one Lease each in the broker's namespace, created once.
//!
//! Refuses to start before the list was whole: what was revoked would be good again. The invariants: an id is on the
//! API server when its revocation is answered; every replica hears of it by its watch, and forgets it only after the
//! token has ended.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use aws_lc_rs::digest::{digest, SHA256};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use sidegate_policies::record::frame::hex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::watch::{follow_those, Change};
use super::{answered, leases, Failed, Leader};
use crate::clock::Clock;
use crate::config::StartError;
use crate::revoked::{NotRevoked, Replicas, KEEP, MAX_IDS};
use crate::task::Tasks;

/// What tells our Leases from others.
const LABEL: (&str, &str) = ("sidegate.dev/component", "revoked");
/// Where a Lease says when its token ends, seconds since 1970.
const ENDS: &str = "sidegate.dev/ends";
/// Listed within this, or the broker does not start.
const LISTED: Duration = Duration::from_secs(30);
/// Ended ones are removed so often.
const SWEEP: Duration = Duration::from_secs(30);

/// Revoked ids as Leases.
pub struct RevokedLeases {
    api: Api<Lease>,
    leader: Arc<Leader>,
    clock: Arc<dyn Clock>,
    /// Name of the Lease to the end of its token. An end that cannot be read never comes.
    known: RwLock<HashMap<String, i64>>,
    listed: watch::Sender<bool>,
}

impl RevokedLeases {
    /// Follows them, and returns once all were listed.
    pub async fn open(
        client: Client,
        namespace: &str,
        leader: Arc<Leader>,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, StartError> {
        let revoked = Arc::new(RevokedLeases {
            api: Api::namespaced(client, namespace),
            leader,
            clock,
            known: RwLock::default(),
            listed: watch::channel(false).0,
        });
        tasks.spawn("revoked", Arc::clone(&revoked).run(tasks.stopping()));
        let mut listed = revoked.listed.subscribe();
        let whole = tokio::time::timeout(LISTED, listed.wait_for(|listed| *listed)).await;
        if !matches!(whole, Ok(Ok(_))) {
            return Err(StartError::cluster(
                "revoked tokens are not listed: may the broker list and watch Leases of its namespace?",
            ));
        }
        drop(whole);
        Ok(revoked)
    }

    async fn run(self: Arc<Self>, stop: CancellationToken) {
        let ours = watcher::Config::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let told = |change: Result<_, watcher::Error>| match change {
            Ok(change) => self.take(change),
            Err(error) => tracing::warn!(%error, "revoked tokens cannot be followed now"),
        };
        let followed = follow_those(self.api.clone(), ours, stop.clone(), entry, told);
        let swept = stop.run_until_cancelled(async {
            loop {
                tokio::time::sleep(SWEEP).await;
                self.sweep().await;
            }
        });
        tokio::join!(followed, swept);
    }

    fn take(&self, change: Change<(String, i64)>) {
        let mut known = self.known.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        match change {
            Change::All(listed) => {
                // What was revoked here and is not on the API server yet stays.
                known.extend(listed);
                self.listed.send_replace(true);
            }
            Change::Put((name, ends)) => {
                known.insert(name, ends);
            }
            // Only its end makes an id good to forget, whoever removed the Lease.
            Change::Gone(_) => {}
        }
        forget_ended(&mut known, self.clock.now());
    }

    /// Removes the Leases of tokens that have ended, while this replica leads.
    async fn sweep(&self) {
        if !self.leader.leads() {
            return;
        }
        let ours = kube::api::ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let listed = match answered(self.api.list(&ours)).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "revoked tokens cannot be listed");
                return;
            }
        };
        let now = self.clock.now();
        for (name, ends) in listed.items.into_iter().map(entry) {
            if ends.saturating_add(KEEP) <= now {
                if let Err(error) = leases::remove(&self.api, &name).await {
                    tracing::warn!(%error, "the Lease of an ended token cannot be removed");
                }
            }
        }
    }

    async fn create(&self, name: &str, ends: i64) -> Result<(), Failed> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())])),
                annotations: Some(BTreeMap::from([(ENDS.to_owned(), ends.to_string())])),
                ..ObjectMeta::default()
            },
            spec: None,
        };
        match answered(self.api.create(&PostParams::default(), &lease)).await {
            Ok(_) => Ok(()),
            // Revoked before, here or elsewhere.
            Err(error) if error.is(409) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Replicas for RevokedLeases {
    fn holds(&self, id: &str) -> bool {
        let known = self.known.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.contains_key(&name(id))
    }

    fn add(&self, id: &str, expires: i64) -> Result<(), NotRevoked> {
        let name = name(id);
        {
            let mut known = self.known.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            forget_ended(&mut known, self.clock.now());
            if known.len() >= MAX_IDS && !known.contains_key(&name) {
                return Err(NotRevoked::Full);
            }
            known.insert(name.clone(), expires);
        }
        let shared = |error: &dyn std::fmt::Display| NotRevoked::Shared(error.to_string());
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| shared(&error))?;
        let created = runtime.block_on(self.create(&name, expires));
        created.map_err(|error| shared(&error))
    }
}

fn forget_ended(known: &mut HashMap<String, i64>, now: i64) {
    known.retain(|_, ends| ends.saturating_add(KEEP) > now);
}

/// Ids are case-sensitive, names of objects are not; and nobody who reads Leases learns an id.
fn name(id: &str) -> String {
    let hash = hex(digest(&SHA256, id.as_bytes()).as_ref());
    format!("revoked-{}", hash.get(..40).unwrap_or(&hash))
}

fn entry(lease: Lease) -> (String, i64) {
    let ends = lease.metadata.annotations.as_ref().and_then(|all| all.get(ENDS));
    let ends = ends.and_then(|ends| ends.parse().ok()).unwrap_or(i64::MAX);
    (lease.metadata.name.unwrap_or_default(), ends)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_named_after_its_id_and_one_that_cannot_be_read_never_ends() {
        assert_ne!(name("Ab"), name("aB"));
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!(name("Ab_c").bytes().all(plain) && name("x").len() <= 63);
        let mut lease = Lease::default();
        assert_eq!(entry(lease.clone()).1, i64::MAX);
        lease.metadata.annotations = Some(BTreeMap::from([(ENDS.to_owned(), "17".to_owned())]));
        assert_eq!(entry(lease).1, 17);
    }
}
