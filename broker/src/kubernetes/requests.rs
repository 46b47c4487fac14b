//! Requests as AccessRequest objects beside their Targets, which people decide with the rights that RBAC gives them.
//!
//! Refuses to believe a state that somebody wrote: whether a request is granted is computed from its decisions whenever it
//! is read. The invariants: a request moves only in the version it was read in, so that of any number of replicas one
//! moves it; a claim is judged by what the API server has now; nothing here writes a decision.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::GroupVersionKind;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use sidegate_policies::api::access_request::{PersonDecision, RequestState, RequestSubject};
use sidegate_policies::api::{AccessRequest, API_VERSION, GROUP, VERSION};
use sidegate_policies::approval::{outcome, Place};
use sidegate_policies::engine::Subject;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::watch::{follow, Change};
use super::{answered, ClusterPods, Failed, Leader};
use crate::approvals::store::{Made, Store, StoreError, Stored, SwapError};
use crate::clock::{parse_rfc3339, Clock};
use crate::config::StartError;
use crate::control::{CREATED, SESSION};
use crate::task::Tasks;

/// What the broker keeps beside a request, as JSON. Only the broker may write the object around it.
const KEPT: &str = "sidegate.dev/request";
/// Listed within this, or the broker does not start.
const LISTED: Duration = Duration::from_secs(30);
/// A request that was deleted is remembered so long for whoever waits for it, milliseconds.
const GONE_MS: i64 = 10 * 60_000;
/// A request this young may be missing from a list that began before it, and its pod from what was heard of pods.
const YOUNG_MS: i64 = 10_000;

/// Requests of the cluster.
pub struct RequestObjects {
    client: Client,
    runtime: Handle,
    leader: Arc<Leader>,
    pods: Arc<ClusterPods>,
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<String, Held>>,
    changed: watch::Sender<u64>,
    listed: watch::Sender<bool>,
}

struct Held {
    stored: Arc<Stored>,
    /// Since when it is deleted, milliseconds.
    gone_ms: Option<i64>,
}

/// The part of a request that people do not need to see.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    valid_for_ms: i64,
    basis: String,
    session: String,
    bundle: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl RequestObjects {
    /// Follows them, and returns once all were listed.
    pub async fn open(
        client: &Client,
        leader: &Arc<Leader>,
        pods: &Arc<ClusterPods>,
        clock: &Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, StartError> {
        let requests = Arc::new(RequestObjects {
            client: client.clone(),
            runtime: Handle::current(),
            leader: Arc::clone(leader),
            pods: Arc::clone(pods),
            clock: Arc::clone(clock),
            known: Mutex::default(),
            changed: watch::channel(0).0,
            listed: watch::channel(false).0,
        });
        tasks.spawn("requests", Arc::clone(&requests).run(tasks.stopping()));
        let mut listed = requests.listed.subscribe();
        let whole = tokio::time::timeout(LISTED, listed.wait_for(|listed| *listed)).await;
        if !matches!(whole, Ok(Ok(_))) {
            return Err(StartError::cluster(
                "AccessRequests are not listed: are their definitions applied, and may the broker list and watch them?",
            ));
        }
        drop(whole);
        Ok(requests)
    }

    async fn run(self: Arc<Self>, stop: CancellationToken) {
        let told = |change: Result<_, watcher::Error>| match change {
            Ok(change) => self.take(change),
            Err(error) => tracing::warn!(%error, "AccessRequests cannot be followed now"),
        };
        follow(self.everywhere(), stop, read, told).await;
    }

    fn everywhere(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource())
    }

    fn beside(&self, stored: &Stored) -> Api<DynamicObject> {
        let namespace = stored.request.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced_with(self.client.clone(), namespace, &resource())
    }

    fn take(&self, change: Change<Result<Stored, NotOurs>>) {
        let now_ms = self.clock.now_ms();
        {
            let mut known = self.known();
            match change {
                Change::All(listed) => {
                    let listed: Vec<Stored> = listed.into_iter().filter_map(ours).collect();
                    let there: HashSet<String> = listed.iter().map(Stored::key).collect();
                    for (key, held) in known.iter_mut().filter(|(key, _)| !there.contains(*key)) {
                        let young = held.stored.created_ms.saturating_add(YOUNG_MS) > now_ms;
                        if !young && held.gone_ms.is_none() {
                            tracing::debug!(request = key, "deleted while nobody listened");
                            held.bury(now_ms);
                        }
                    }
                    for stored in listed {
                        put(&mut known, stored);
                    }
                    self.listed.send_replace(true);
                }
                Change::Put(stored) => {
                    if let Some(stored) = ours(stored) {
                        put(&mut known, stored);
                    }
                }
                Change::Gone(stored) => {
                    if let Some(held) = ours(stored).and_then(|stored| known.get_mut(&stored.key())) {
                        held.bury(now_ms);
                    }
                }
            }
            known.retain(|_, held| held.gone_ms.is_none_or(|gone| gone.saturating_add(GONE_MS) > now_ms));
        }
        self.moved();
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn moved(&self) {
        self.changed
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }

    /// Takes what the API server answered.
    fn heard(&self, object: DynamicObject) -> Result<Arc<Stored>, StoreError> {
        let stored = read(object).map_err(|not| StoreError::Cluster(not.to_string()))?;
        let stored = put(&mut self.known(), stored);
        self.moved();
        Ok(stored)
    }

    fn heard_gone(&self, key: &str) {
        if let Some(held) = self.known().get_mut(key) {
            held.bury(self.clock.now_ms());
        }
        self.moved();
    }

    fn wait<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
        self.runtime.block_on(answered(call))
    }

    /// What is there under the name of this one.
    fn present(&self, stored: &Stored) -> Result<Option<Arc<Stored>>, StoreError> {
        let found = self.wait(self.beside(stored).get_opt(stored.name())).map_err(failed)?;
        found.map(|object| self.heard(object)).transpose()
    }
}

impl Held {
    /// What was open is void: deleting is how people revoke.
    fn bury(&mut self, now_ms: i64) {
        self.gone_ms.get_or_insert(now_ms);
        if !self.stored.is_over() {
            let stored = Arc::make_mut(&mut self.stored);
            stored.status_mut().state = RequestState::Void;
            stored.moved_ms = now_ms;
        }
    }
}

impl Store for RequestObjects {
    fn all(&self) -> Vec<Arc<Stored>> {
        self.known().values().map(|held| Arc::clone(&held.stored)).collect()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn find(&self, name: &str, of: Option<&RequestSubject>) -> Result<Option<Arc<Stored>>, StoreError> {
        let fits =
            |stored: &Arc<Stored>| stored.name() == name && of.is_none_or(|subject| stored.spec().subject == *subject);
        // What was heard of is asked for by itself: a list goes through every namespace.
        if let Some(known) = self.all().into_iter().find(fits) {
            match self.present(&known)? {
                Some(present) if fits(&present) => return Ok(Some(present)),
                Some(_) => {}
                None => {
                    // Whoever waits for one that was deleted is told so.
                    self.heard_gone(&known.key());
                    return Ok(self.all().into_iter().find(fits));
                }
            }
        }
        let named = ListParams::default().fields(&format!("metadata.name={name}"));
        let listed = self.wait(self.everywhere().list(&named)).map_err(failed)?;
        let there = listed.items.into_iter().filter_map(|object| ours(read(object)));
        let heard = there.map(|stored| put(&mut self.known(), stored)).find(fits);
        self.moved();
        Ok(heard)
    }

    fn create(&self, stored: Stored) -> Result<Made, StoreError> {
        let object = written(&stored).map_err(StoreError::Unfit)?;
        match self.wait(self.beside(&stored).create(&PostParams::default(), &object)) {
            Ok(object) => Ok(Made::New(self.heard(object)?)),
            Err(error) if error.is(409) => match self.present(&stored)? {
                Some(present) => Ok(Made::Taken(present)),
                None => Err(StoreError::Cluster("it was there and is gone; ask again".to_owned())),
            },
            Err(error) if error.is(422) || error.is(413) => Err(StoreError::Unfit(error.to_string())),
            Err(error) => Err(failed(error)),
        }
    }

    fn swap(&self, mut next: Stored) -> Result<Arc<Stored>, SwapError> {
        // Only what changes: the words of people are not ours to write, not even as they are.
        let status = next.status();
        let patch = json!({
            "metadata": {"resourceVersion": next.resource_version.to_string()},
            "status": {
                "state": status.state, "validUntil": status.valid_until, "recorded": status.recorded,
                "movedAt": status.moved_at, "claim": status.claim,
            },
        });
        let api = self.beside(&next);
        let patch = Patch::Merge(&patch);
        match self.wait(api.patch_status(next.name(), &PatchParams::default(), &patch)) {
            Ok(object) => Ok(self.heard(object)?),
            Err(error) if error.is(404) => {
                next.status_mut().state = RequestState::Void;
                self.known().insert(
                    next.key(),
                    Held {
                        gone_ms: Some(self.clock.now_ms()),
                        stored: Arc::new(next),
                    },
                );
                self.moved();
                Err(SwapError::Gone)
            }
            Err(error) if error.is(409) => match self.present(&next)? {
                Some(present) => Err(SwapError::Changed(present)),
                None => {
                    self.heard_gone(&next.key());
                    Err(SwapError::Gone)
                }
            },
            Err(error) => Err(failed(error).into()),
        }
    }

    fn remove(&self, stored: &Stored) -> Result<(), StoreError> {
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: Some(stored.resource_version.to_string()),
                uid: None,
            }),
            ..DeleteParams::default()
        };
        match self.wait(self.beside(stored).delete(stored.name(), &parameters)) {
            // Somebody else removed it, or wrote it meanwhile: then it is looked at again.
            Err(error) if !error.is(404) && !error.is(409) => Err(failed(error)),
            Err(error) if error.is(409) => Ok(()),
            _ => {
                self.known().remove(&stored.key());
                Ok(())
            }
        }
    }

    fn place(&self) -> Place {
        Place::Cluster
    }

    fn keeps_house(&self) -> bool {
        self.leader.leads()
    }

    fn is_gone(&self, stored: &Stored) -> bool {
        let young = stored.created_ms.saturating_add(YOUNG_MS) > self.clock.now_ms();
        let subject = &stored.spec().subject;
        !young
            && self
                .pods
                .is_gone(&stored.asked_by.namespace, &subject.pod, &subject.pod_uid)
    }
}

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(GROUP, VERSION, "AccessRequest"),
        "accessrequests",
    )
}

fn failed(error: Failed) -> StoreError {
    StoreError::Cluster(error.to_string())
}

/// The newer of what is known and this. Another object of the same name counts on from where the store is.
fn put(known: &mut HashMap<String, Held>, stored: Stored) -> Arc<Stored> {
    let key = stored.key();
    match known.get(&key) {
        Some(held) if held.stored.resource_version > stored.resource_version => Arc::clone(&held.stored),
        _ => {
            let stored = Arc::new(stored);
            let held = Held {
                stored: Arc::clone(&stored),
                gone_ms: None,
            };
            known.insert(key, held);
            stored
        }
    }
}

/// An object that no broker wrote.
#[derive(Debug, thiserror::Error)]
#[error("AccessRequest {name} is not one of the broker's: {why}")]
struct NotOurs {
    name: String,
    why: String,
}

fn ours(read: Result<Stored, NotOurs>) -> Option<Stored> {
    read.map_err(|not| tracing::warn!(%not, "left alone")).ok()
}

/// The object as it is created. Its status begins empty: the definition says how.
fn written(stored: &Stored) -> Result<DynamicObject, String> {
    let kept = Kept {
        valid_for_ms: stored.valid_for_ms,
        basis: stored.basis.clone(),
        session: stored.session.clone(),
        bundle: stored.bundle.clone(),
        labels: stored.asked_by.labels.clone(),
    };
    let kept = serde_json::to_string(&kept).map_err(|error| error.to_string())?;
    let metadata = &stored.request.metadata;
    let mut object = json!({
        "apiVersion": API_VERSION, "kind": "AccessRequest",
        "metadata": {
            "name": metadata.name, "namespace": metadata.namespace,
            "annotations": {KEPT: kept, CREATED: crate::clock::rfc3339(stored.created_ms), SESSION: stored.session},
        },
        "spec": stored.request.spec,
    });
    // It goes with its Target.
    if let (Some(uid), Some(metadata)) = (
        &stored.target_uid,
        object.get_mut("metadata").and_then(Value::as_object_mut),
    ) {
        let owner = json!([{
            "apiVersion": API_VERSION, "kind": "Target", "name": stored.request.spec.target.name, "uid": uid,
        }]);
        metadata.insert("ownerReferences".to_owned(), owner);
    }
    serde_json::from_value(object).map_err(|error| error.to_string())
}

fn read(mut object: DynamicObject) -> Result<Stored, NotOurs> {
    object.metadata.managed_fields = None;
    let name = object.metadata.name.clone().unwrap_or_default();
    let version = object.metadata.resource_version.clone().unwrap_or_default();
    let kept = object.metadata.annotations.as_mut().and_then(|all| all.remove(KEPT));
    let created = object.metadata.creation_timestamp.as_ref();
    let created_ms = created.map_or(0, |time| time.0.as_millisecond());
    let not_ours = |why: String| NotOurs {
        name: name.clone(),
        why,
    };
    let kept = kept.ok_or_else(|| not_ours(format!("it has no annotation {KEPT}")))?;
    let kept: Kept = serde_json::from_str(&kept).map_err(|error| not_ours(format!("{KEPT}: {error}")))?;
    let value = serde_json::to_value(object).map_err(|error| not_ours(error.to_string()))?;
    let request: AccessRequest = serde_json::from_value(value).map_err(|error| not_ours(error.to_string()))?;
    let subject = &request.spec.subject;
    let moved = request.status.as_ref().and_then(|status| status.moved_at.as_deref());
    let expires_ms = parse_rfc3339(&request.spec.expires_at).unwrap_or(0);
    let mut stored = Stored {
        resource_version: version.parse().unwrap_or(0),
        created_ms,
        moved_ms: moved.and_then(parse_rfc3339).unwrap_or(created_ms),
        until_ms: expires_ms,
        valid_for_ms: kept.valid_for_ms,
        basis: kept.basis,
        session: kept.session,
        bundle: kept.bundle,
        asked_by: Subject {
            namespace: subject.service_account.namespace.clone(),
            service_account: subject.service_account.name.clone(),
            pod: subject.pod.clone(),
            pod_uid: subject.pod_uid.clone(),
            labels: kept.labels,
        },
        target_uid: None,
        request,
    };
    stand(&mut stored, expires_ms);
    Ok(stored)
}

/// Where the request stands by what people said in time, whatever somebody wrote into `state`; and until when.
fn stand(stored: &mut Stored, expires_ms: i64) {
    let open = matches!(
        stored.state(),
        RequestState::Pending | RequestState::Granted | RequestState::Denied
    );
    if !open {
        return;
    }
    let status = stored.status();
    let in_time = |decision: &&PersonDecision| parse_rfc3339(&decision.at).is_some_and(|at| at <= expires_ms);
    let counted: Vec<PersonDecision> = status.decisions.iter().filter(in_time).cloned().collect();
    let (state, by) = outcome(stored.spec(), &counted, Place::Cluster);
    let at_ms = by
        .and_then(|by| counted.get(by))
        .and_then(|decision| parse_rfc3339(&decision.at));
    if let Some(at_ms) = at_ms {
        let wished = status
            .usable_for
            .map(|span| i64::try_from(span.0.as_millis()).unwrap_or(i64::MAX));
        let lasts = wished.unwrap_or(i64::MAX).min(stored.valid_for_ms);
        stored.until_ms = at_ms.saturating_add(lasts);
    }
    stored.status_mut().state = state;
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn object() -> Value {
        let kept =
            json!({"validForMs": 60_000, "basis": "b", "session": "s", "bundle": "v", "labels": {"tier": "one"}});
        json!({
            "apiVersion": API_VERSION, "kind": "AccessRequest",
            "metadata": {
                "name": "ar-x", "namespace": "data", "resourceVersion": "7",
                "creationTimestamp": "2026-11-29T10:00:00Z", "annotations": {KEPT: kept.to_string()},
            },
            "spec": {
                "subject": {"serviceAccount": {"namespace": "agents", "name": "support"}, "pod": "p", "podUid": "u"},
                "target": {"namespace": "data", "name": "shop"},
                "operation": {"protocol": "Postgres", "action": "UPDATE", "text": "UPDATE x"},
                "digest": "d", "rules": ["data/p/r"],
                "approverSets": [{"rule": "data/p/r", "approvers": [{"group": "leads"}], "count": 1}],
                "expiresAt": "2026-11-29T10:15:00Z",
            },
            "status": {"state": "Pending", "decisions": []},
        })
    }

    fn stored(object: Value) -> Result<Stored, NotOurs> {
        read(serde_json::from_value(object).unwrap())
    }

    fn word(by: &str, group: &str, at: &str) -> Value {
        json!({"by": by, "groups": [group], "verdict": "Approve", "at": at})
    }

    #[test]
    fn a_state_that_somebody_wrote_is_not_believed() {
        let mut forged = object();
        forged["status"]["state"] = json!("Granted");
        assert_eq!(stored(forged.clone()).unwrap().state(), RequestState::Pending);
        forged["status"]["decisions"] = json!([word("eve", "others", "2026-11-29T10:01:00Z")]);
        assert_eq!(stored(forged).unwrap().state(), RequestState::Pending);
        let mut late = object();
        late["status"]["decisions"] = json!([word("ann", "leads", "2026-11-29T10:15:01Z")]);
        assert_eq!(stored(late).unwrap().state(), RequestState::Pending, "after it expired");
        let mut good = object();
        good["status"]["decisions"] = json!([word("ann", "leads", "2026-11-29T10:01:00Z")]);
        let good = stored(good).unwrap();
        assert_eq!((good.state(), good.unrecorded()), (RequestState::Granted, 1));
        assert_eq!(good.until_ms, parse_rfc3339("2026-11-29T10:02:00Z").unwrap());
    }

    #[test]
    fn a_grant_lasts_as_its_giver_says_and_never_longer_than_the_rule() {
        for (wish, until) in [("10s", "2026-11-29T10:01:10Z"), ("1h", "2026-11-29T10:02:00Z")] {
            let mut granted = object();
            granted["status"]["decisions"] = json!([word("ann", "leads", "2026-11-29T10:01:00Z")]);
            granted["status"]["for"] = json!(wish);
            assert_eq!(
                stored(granted).unwrap().until_ms,
                parse_rfc3339(until).unwrap(),
                "{wish}"
            );
        }
    }

    #[test]
    fn what_was_used_stays_used_and_what_no_broker_wrote_is_left_alone() {
        let mut used = object();
        used["status"] = json!({
            "state": "Claimed", "decisions": [word("ann", "leads", "2026-11-29T10:01:00Z")],
            "claim": {"nonce": "n", "session": "s", "operation": 1, "at": "2026-11-29T10:01:01Z"},
        });
        assert_eq!(stored(used).unwrap().state(), RequestState::Claimed);
        let mut foreign = object();
        foreign["metadata"]["annotations"] = json!({});
        assert!(stored(foreign)
            .unwrap_err()
            .to_string()
            .contains("not one of the broker's"));
        let mut broken = object();
        broken["metadata"]["annotations"] = json!({KEPT: "{}"});
        assert!(stored(broken).is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let first = stored(object()).unwrap();
        let mut again = serde_json::to_value(written(&first).unwrap()).unwrap();
        again["metadata"]["resourceVersion"] = json!("7");
        again["metadata"]["creationTimestamp"] = json!("2026-11-29T10:00:00Z");
        let again = stored(again).unwrap();
        assert_eq!((again.basis.as_str(), &again.asked_by), ("b", &first.asked_by));
        assert_eq!(again.spec(), first.spec());
        let mut owned = first;
        owned.target_uid = Some("t-1".to_owned());
        let owned = serde_json::to_value(written(&owned).unwrap()).unwrap();
        assert_eq!(owned["metadata"]["ownerReferences"][0]["uid"], "t-1");
        assert_eq!(owned["metadata"]["ownerReferences"][0]["name"], "shop");
    }
}
