//! Leases given out, and what ends them before their time: handing back, a pod that is gone, a Lockdown, a grant that is.
//!
//! Refuses more than [`MAX_LEASES`]. Invariants: nothing secret is in here but what a source needs to end what it made; an
//! entry that leaves the table takes what was made for it along, where it was made; nobody ends another pod's lease.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sidegate_policies::api::target::Credential;
use sidegate_policies::bundle::BundledTarget;
use sidegate_policies::credential_kinds;

use super::Front;
use crate::attest::NotAttested;
use crate::credentials::vault::VaultLease;
use crate::credentials::Exchanged;
use crate::index::Offer;
use crate::issuer::Workload;
use crate::lockdown::{About, Denied};

const MAX_LEASES: usize = 100_000;
/// Between two looks at pods and ends.
const TICK: Duration = Duration::from_secs(1);

/// Leases given out: for handing back, for going on, and for status.
#[derive(Default)]
pub struct Leases(Mutex<HashMap<String, Held>>);

/// One of them.
pub struct Held {
    /// Whose it is.
    pub who: Arc<Workload>,
    /// `namespace/name` of its Target.
    pub target: String,
    /// What its Target said of the login then: under another word it does not go on.
    pub credential: Credential,
    /// When it ends, milliseconds since 1970.
    pub until_ms: i64,
    /// What was made for it elsewhere.
    pub upstream: Option<Arc<VaultLease>>,
    /// A provider's token: with the last lease that has it goes the token.
    pub token: Option<Arc<Exchanged>>,
}

impl Held {
    fn is_of(&self, who: &Workload) -> bool {
        self.who.subject.pod_uid == who.subject.pod_uid
    }

    /// Whether something elsewhere is to end with it.
    fn reaches_out(&self) -> bool {
        self.upstream.is_some() || self.token.as_ref().is_some_and(|token| token.is_ended_elsewhere())
    }

    fn stands(&self, bundled: &BundledTarget) -> bool {
        bundled.target.full_name() == self.target && bundled.target.spec.credential == self.credential
    }
}

impl Leases {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Puts one in; false where there are too many.
    pub fn add(&self, id: &str, held: Held, now_ms: i64) -> bool {
        let mut table = self.table();
        table.retain(|_, held| held.until_ms > now_ms);
        if table.len() >= MAX_LEASES {
            return false;
        }
        table.insert(id.to_owned(), held);
        true
    }

    /// Takes one of this pod's out; answers whether it was there.
    pub fn end(&self, id: &str, who: &Workload) -> bool {
        let mut table = self.table();
        let own = table.get(id).is_some_and(|held| held.is_of(who));
        own && table.remove(id).is_some()
    }

    /// What was made for a lease of this pod on this Target, as long as the Target says of its login what it said then.
    pub fn upstream(&self, id: &str, who: &Workload, target: &BundledTarget) -> Option<Arc<VaultLease>> {
        let table = self.table();
        let held = table.get(id).filter(|held| held.is_of(who) && held.stands(target))?;
        held.upstream.clone()
    }

    /// Lets one go on until then; false where it has gone meanwhile.
    pub fn prolong(&self, id: &str, until_ms: i64) -> bool {
        self.table().get_mut(id).is_some_and(|held| {
            held.until_ms = until_ms;
            true
        })
    }

    /// How many are out now.
    pub fn active(&self, now_ms: i64) -> usize {
        self.table().values().filter(|held| held.until_ms > now_ms).count()
    }

    /// The same of one kind of credential.
    pub fn active_of(&self, kind: &str, now_ms: i64) -> usize {
        let out = |held: &&Held| credential_kinds::kind(&held.credential).name == kind && held.until_ms > now_ms;
        self.table().values().filter(out).count()
    }

    /// Takes out what has ended.
    fn sweep(&self, now_ms: i64) {
        self.table().retain(|_, held| held.until_ms > now_ms);
    }

    /// Takes out what a Lockdown closes.
    fn lock_out(&self, denied: &Denied, now_ms: i64) {
        self.table().retain(|_, held| {
            let about = About {
                subject: Some(&held.who.subject),
                target: Some(&held.target),
                secret: None,
                issuer: held.credential.issuer(),
            };
            !held.reaches_out() || !denied.closes(about, now_ms)
        });
    }

    /// Whose those are with which something elsewhere ends.
    fn made(&self) -> Vec<(String, Arc<Workload>)> {
        let table = self.table();
        let made = table.iter().filter(|(_, held)| held.reaches_out());
        made.map(|(id, held)| (id.clone(), Arc::clone(&held.who))).collect()
    }

    /// Whether what a lease is for is in this bundle, unchanged.
    fn granted(&self, id: &str, offer: &Offer) -> bool {
        let table = self.table();
        let standing = |held: &Held| offer.target(&held.target).is_some_and(|bundled| held.stands(bundled));
        table.get(id).is_some_and(standing)
    }
}

/// Ends what must end before its time, until the broker stops.
///
/// Proved by `a_user_made_for_a_lease_is_removed_with_its_pod_its_grant_and_by_a_lockdown`.
pub async fn keep(front: Arc<Front>) {
    let stop = front.tasks.stopping();
    let mut denied = front.lockdowns.watch();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let looks = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = denied.changed() => {
                if changed.is_err() {
                    return;
                }
                false
            }
            _ = tick.tick() => true,
        };
        let now_ms = front.clock.now_ms();
        let now = Arc::clone(&denied.borrow_and_update());
        front.leases.lock_out(&now, now_ms);
        if looks {
            front.leases.sweep(now_ms);
            look(&front).await;
        }
    }
}

/// Takes out what was made for pods that are gone, and for Targets their bundle no longer holds.
async fn look(front: &Front) {
    let mut gone = HashMap::new();
    for (id, who) in front.leases.made() {
        let instance = (who.subject.pod_uid.clone(), who.instance);
        let is_gone = match gone.get(&instance) {
            Some(known) => *known,
            // Only what is known to be gone is ended: a cluster that cannot be asked takes nothing away.
            None => matches!(front.attestor.still(&who).await, Err(NotAttested::Pod(_))),
        };
        gone.insert(instance, is_gone);
        let granted = || front.leases.granted(&id, &front.index().offer(&who.subject));
        if is_gone || !granted() {
            front.leases.end(&id, &who);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sidegate_policies::engine::Subject;

    use super::*;

    fn workload(pod_uid: &str) -> Arc<Workload> {
        Arc::new(Workload {
            subject: Subject {
                namespace: "agents".into(),
                service_account: "support".into(),
                pod: "support-1".into(),
                pod_uid: pod_uid.into(),
                labels: Default::default(),
            },
            account_uid: "u".into(),
            node: "n".into(),
            instance: 1,
            ends: i64::MAX,
        })
    }

    fn held(who: &Arc<Workload>, until_ms: i64) -> Held {
        Held {
            who: Arc::clone(who),
            target: "data/shop".into(),
            credential: serde_json::from_str(r#"{"none": {}}"#).unwrap(),
            until_ms,
            token: None,
            upstream: None,
        }
    }

    #[test]
    fn nobody_ends_the_lease_of_another_pod_of_the_same_name() {
        let (leases, one, other) = (Leases::default(), workload("uid-1"), workload("uid-2"));
        assert!(leases.add("a", held(&one, 1_000), 0));
        assert!(!leases.end("a", &other), "another pod");
        assert!(!leases.end("b", &one), "another lease");
        assert!(leases.end("a", &one) && !leases.end("a", &one));
    }

    #[test]
    fn what_was_made_under_another_word_of_the_target_does_not_go_on() {
        let held = held(&workload("uid-1"), 1_000);
        let stands = |name: &str, credential: &str| {
            let text = format!(
                r#"{{"loopback": false, "target": {{"apiVersion": "sidegate.dev/v1alpha1", "kind": "Target",
                "metadata": {{"name": "{name}", "namespace": "data"}}, "spec": {{"protocol": "Postgres",
                "address": {{"host": "db", "port": 1}}, "listen": {{"port": 1}}, "credential": {credential}}}}}}}"#
            );
            held.stands(&serde_json::from_str(&text).unwrap())
        };
        assert!(stands("shop", r#"{"none": {}}"#));
        assert!(!stands("shop", r#"{"none": {"username": "other"}}"#));
        assert!(!stands("ledger", r#"{"none": {}}"#));
    }

    #[test]
    fn what_has_ended_is_neither_counted_nor_kept_nor_brought_back() {
        let (leases, one) = (Leases::default(), workload("uid-1"));
        leases.add("a", held(&one, 1_000), 0);
        leases.add("b", held(&one, 2_000), 0);
        assert!(leases.prolong("a", 3_000));
        leases.sweep(2_000);
        assert_eq!(leases.active(2_000), 1);
        assert!(!leases.prolong("b", 9_000) && !leases.end("b", &one));
        leases.add("c", held(&one, 9_000), 3_000);
        assert!(!leases.end("a", &one), "a new one sweeps as well");
    }
}
