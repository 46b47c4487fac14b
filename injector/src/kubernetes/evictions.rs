//! Evicts pods without a valid sidecar, where the operator asked for it, so that their controllers make them anew with one.
//!
//! Refuses what would loop or lose something: nothing is evicted while the API server would not be answered, no pod that
//! nobody makes anew, none of a Job, and none whose controller's newer pods are no better. Invariants: one call at a time and
//! each no sooner than agreed after the one before; a pod is evicted by its UID, never whoever took its name.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, EvictParams, Preconditions};
use kube::{Api, Client};
use serde_json::Value;
use sidegate_cluster::events::{self, warning, About};
use sidegate_cluster::{answered, Failed};
use sidegate_policies::objects::Namespace;
use sidegate_policies::pod::shape::text;
use tokio::sync::watch;

use crate::admit::REV;
use crate::metrics::{Evicted, Metrics};
use crate::probe::Readiness;
use crate::standing::Reason;

/// Between two evictions, where nobody says otherwise.
pub const EVERY: Duration = Duration::from_secs(10);
/// What became of a controller's pods is remembered for so many seconds though none is found: the new one may not be there yet.
const REMEMBERED: i64 = 600;
/// So many wait after a look; the others come with the next ones.
const WAITING: usize = 1_000;

/// A pod that its controller would make anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    about: About,
    reason: Reason,
    /// UID of its controller.
    owner: String,
    /// When it was made, seconds since 1970.
    created: i64,
}

impl Candidate {
    /// This pod without a valid sidecar, if making it anew is what helps, and somebody does.
    pub fn of(namespace: &Namespace, about: &About, reason: Reason, pod: &Value) -> Option<Candidate> {
        let helps = match reason {
            Reason::OlderThanLabel | Reason::Outage | Reason::Tampered | Reason::Unfenced => true,
            Reason::Static | Reason::Windows | Reason::OptedOut | Reason::Audit => false,
        };
        // Namespaces that name a revision belong to another release's injector.
        let another = namespace.labels.contains_key(REV);
        let metadata = pod.get("metadata")?;
        let ends = metadata.get("deletionTimestamp").is_some_and(|at| !at.is_null());
        let over = pod.get("status").map(|status| text(status, "phase"));
        if !helps || ends || matches!(over, Some("Succeeded" | "Failed")) || another {
            return None;
        }
        let owners = metadata.get("ownerReferences").and_then(Value::as_array)?;
        let controls = |owner: &&Value| owner.get("controller").and_then(Value::as_bool) == Some(true);
        let owner = owners.iter().find(controls)?;
        // A Job's pods end by themselves, and one that is lost may count as a failure of the whole Job.
        let job = text(owner, "kind") == "Job" && text(owner, "apiVersion").starts_with("batch/");
        let created: Timestamp = text(metadata, "creationTimestamp").parse().ok()?;
        (!job).then(|| Candidate {
            about: about.clone(),
            reason,
            owner: text(owner, "uid").to_owned(),
            created: created.as_second(),
        })
    }
}

/// Evicts.
pub struct Evictions {
    client: Client,
    every: Duration,
    ready: watch::Receiver<Readiness>,
    metrics: Arc<Metrics>,
    waiting: Waiting,
    last: Option<Instant>,
}

/// Who is next.
#[derive(Default)]
struct Waiting {
    queue: VecDeque<Candidate>,
    /// When a pod of a controller was first evicted, seconds since 1970.
    owners: HashMap<String, i64>,
    /// When a pod was last asked to go.
    asked: HashMap<String, Instant>,
    /// Controllers that are told of.
    hopeless: HashSet<String>,
}

impl Evictions {
    /// By a client that tries once, one in `every`, while `ready` says that the API server is answered.
    pub fn new(client: Client, every: Duration, ready: watch::Receiver<Readiness>, metrics: Arc<Metrics>) -> Self {
        Evictions {
            client,
            every,
            ready,
            metrics,
            waiting: Waiting::default(),
            last: None,
        }
    }

    /// Forgets what was found: it could not look, or does not lead.
    pub fn rest(&mut self) {
        self.waiting.queue.clear();
    }

    /// Takes what a look found at this second since 1970 in place of what was found before.
    pub fn offer(&mut self, found: Vec<Candidate>, now: i64) {
        for candidate in self.waiting.take(found, now) {
            let About { namespace, name, .. } = &candidate.about;
            tracing::warn!(
                namespace,
                name,
                "its controller makes pods without a valid sidecar: they are not evicted again"
            );
        }
    }

    /// Evicts the next one, if it is time.
    pub async fn step(&mut self, now: i64) {
        let due = self.last.is_none_or(|at| at.elapsed() >= self.every);
        if !due || self.ready.borrow().verdict.is_err() {
            return;
        }
        let Some(candidate) = self.waiting.next() else {
            return;
        };
        self.last = Some(Instant::now());
        let (namespace, name) = (&candidate.about.namespace, &candidate.about.name);
        match self.evict(&candidate.about).await {
            Ok(()) => {
                tracing::info!(namespace, name, reason = candidate.reason.as_str(), "evicted");
                self.metrics.evicted(Evicted::Gone);
                self.waiting.evicted(&candidate, now);
                let why = candidate.reason.as_str();
                let message = format!("No valid sidecar ({why}): evicted, so that its controller makes it anew.");
                let event = warning("sidegate-injector", &candidate.about, "Evicted", &message);
                if let Err(error) = events::write(&self.client, &event).await {
                    tracing::warn!(%error, "an Event cannot be written");
                }
            }
            // It went by itself, or its name is another's.
            Err(error) if error.is(404) || error.is(409) => {}
            Err(error) if error.is(429) => {
                tracing::info!(namespace, name, %error, "not evicted: its PodDisruptionBudget keeps it for now");
                self.metrics.evicted(Evicted::Kept);
            }
            Err(error) => {
                tracing::warn!(namespace, name, %error, "not evicted");
                self.metrics.evicted(Evicted::Failed);
            }
        }
    }

    async fn evict(&self, pod: &About) -> Result<(), Failed> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let parameters = EvictParams {
            delete_options: Some(DeleteParams {
                preconditions: Some(Preconditions {
                    uid: Some(pod.uid.clone()),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            }),
            ..EvictParams::default()
        };
        answered(api.evict(&pod.name, &parameters)).await.map(|_| ())
    }
}

impl Waiting {
    /// Answers of each controller that is not tried again a pod, the first time.
    fn take(&mut self, found: Vec<Candidate>, now: i64) -> Vec<Candidate> {
        let pods: HashSet<&str> = found.iter().map(|pod| pod.about.uid.as_str()).collect();
        self.asked.retain(|uid, _| pods.contains(uid.as_str()));
        let owners: HashSet<&str> = found.iter().map(|pod| pod.owner.as_str()).collect();
        self.owners
            .retain(|uid, since| owners.contains(uid.as_str()) || now.saturating_sub(*since) < REMEMBERED);
        self.hopeless.retain(|uid| owners.contains(uid.as_str()));
        // Made after a pod of the same controller was evicted, and no better: so would the next one be.
        let again = |pod: &Candidate| self.owners.get(&pod.owner).is_some_and(|since| pod.created > *since);
        let given_up: HashSet<String> = found
            .iter()
            .filter(|pod| again(pod))
            .map(|pod| pod.owner.clone())
            .collect();
        let (mut news, mut queue): (Vec<_>, Vec<_>) = found.into_iter().partition(|pod| given_up.contains(&pod.owner));
        // Who was not asked yet comes first, then who was asked longest ago.
        queue.sort_by_key(|pod| self.asked.get(&pod.about.uid).copied());
        queue.truncate(WAITING);
        self.queue = queue.into();
        news.retain(|pod| self.hopeless.insert(pod.owner.clone()));
        news
    }

    fn next(&mut self) -> Option<Candidate> {
        let next = self.queue.pop_front()?;
        self.asked.insert(next.about.uid.clone(), Instant::now());
        Some(next)
    }

    fn evicted(&mut self, pod: &Candidate, now: i64) {
        self.owners.entry(pod.owner.clone()).or_insert(now);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn about(uid: &str) -> About {
        About {
            namespace: "agents".to_owned(),
            name: format!("pod-{uid}"),
            uid: uid.to_owned(),
        }
    }

    fn candidate(uid: &str, owner: &str, created: i64) -> Candidate {
        Candidate {
            about: about(uid),
            reason: Reason::Outage,
            owner: owner.to_owned(),
            created,
        }
    }

    fn namespace(labels: Value) -> Namespace {
        Namespace::of(&json!({"metadata": {"name": "agents", "labels": labels}}))
    }

    #[test]
    fn only_who_is_made_anew_and_is_helped_by_it_is_a_candidate() {
        let enabled = namespace(json!({"sidegate.dev/inject": "enabled"}));
        let pod = |change: &dyn Fn(&mut Value)| {
            let mut pod = json!({
                "metadata": {
                    "creationTimestamp": "1970-01-12T13:46:40Z",
                    "ownerReferences": [
                        {"apiVersion": "v1", "kind": "Other", "uid": "other"},
                        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "uid": "owner", "controller": true},
                    ],
                },
                "status": {"phase": "Running"},
            });
            change(&mut pod);
            pod
        };
        let of = |reason, change: &dyn Fn(&mut Value)| Candidate::of(&enabled, &about("a"), reason, &pod(change));
        let found = of(Reason::Outage, &|_| {}).unwrap();
        assert_eq!(found, candidate("a", "owner", 1_000_000));
        for reason in Reason::ALL {
            let helps = matches!(
                reason,
                Reason::OlderThanLabel | Reason::Outage | Reason::Tampered | Reason::Unfenced
            );
            assert_eq!(of(reason, &|_| {}).is_some(), helps, "{}", reason.as_str());
        }
        type Change = &'static dyn Fn(&mut Value);
        let none: [(&str, Change); 6] = [
            ("bare", &|pod| pod["metadata"]["ownerReferences"] = json!([])),
            ("owned by nobody who controls", &|pod| {
                pod["metadata"]["ownerReferences"][1]["controller"] = json!(false);
            }),
            ("a Job's", &|pod| {
                pod["metadata"]["ownerReferences"][1]["kind"] = json!("Job");
                pod["metadata"]["ownerReferences"][1]["apiVersion"] = json!("batch/v1");
            }),
            ("ending", &|pod| {
                pod["metadata"]["deletionTimestamp"] = json!("1970-01-12T13:46:40Z")
            }),
            ("over", &|pod| pod["status"]["phase"] = json!("Succeeded")),
            ("of an unknown age", &|pod| {
                pod["metadata"]["creationTimestamp"] = json!("yesterday")
            }),
        ];
        for (what, change) in none {
            assert_eq!(of(Reason::Outage, change), None, "{what}");
        }
        let another = namespace(json!({"sidegate.dev/inject": "enabled", "sidegate.dev/rev": "next"}));
        assert_eq!(
            Candidate::of(&another, &about("a"), Reason::Outage, &pod(&|_| {})),
            None
        );
    }

    #[test]
    fn a_controller_whose_newer_pods_are_no_better_is_given_up_and_told_of_once() {
        let mut waiting = Waiting::default();
        let both = vec![candidate("old", "owner", 10), candidate("else", "another", 10)];
        assert!(waiting.take(both, 100).is_empty());
        let first = waiting.next().unwrap();
        waiting.evicted(&first, 100);
        let look = || {
            vec![
                candidate("new", "owner", 101),
                candidate("second", "owner", 10),
                candidate("else", "another", 10),
            ]
        };
        // The new one is not there yet.
        waiting.take(Vec::new(), 101);
        let told = waiting.take(look(), 102);
        assert_eq!(told, [candidate("new", "owner", 101)]);
        assert_eq!(waiting.queue, [candidate("else", "another", 10)]);
        assert!(waiting.take(look(), 103).is_empty(), "told of once");
        assert_eq!(waiting.queue.len(), 1);
        // All of them are well, and later another outage comes: it is tried again.
        waiting.take(Vec::new(), 100 + REMEMBERED);
        waiting.take(look(), 101 + REMEMBERED);
        assert_eq!(waiting.queue.len(), 3);
    }

    #[test]
    fn who_may_not_go_keeps_nobody_waiting() {
        let mut waiting = Waiting::default();
        let look = || {
            vec![
                candidate("kept", "a", 1),
                candidate("next", "b", 1),
                candidate("last", "c", 1),
            ]
        };
        let mut asked = Vec::new();
        for _ in 0..4 {
            waiting.take(look(), 1);
            asked.push(waiting.next().unwrap().about.uid);
        }
        assert_eq!(asked, ["kept", "next", "last", "kept"]);
    }

    #[tokio::test]
    async fn nothing_is_evicted_while_the_api_server_would_not_be_answered() {
        // Nobody listens there: whoever is asked to go stays.
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let (ready, readiness) = watch::channel(Readiness::default());
        let metrics = Arc::new(Metrics::new().unwrap());
        let mut evictions = Evictions::new(client, EVERY, readiness, metrics);
        evictions.offer(vec![candidate("a", "owner", 1), candidate("b", "owner", 1)], 1);
        evictions.step(1).await;
        assert_eq!((evictions.waiting.queue.len(), evictions.last), (2, None));
        ready.send_modify(|readiness| readiness.verdict = Ok(()));
        evictions.step(2).await;
        assert_eq!(evictions.waiting.queue.len(), 1);
        assert!(evictions.waiting.owners.is_empty(), "it did not go");
        // It is too early for another.
        evictions.step(3).await;
        assert_eq!(evictions.waiting.queue.len(), 1);
        evictions.rest();
        assert!(evictions.waiting.queue.is_empty());
    }
}
