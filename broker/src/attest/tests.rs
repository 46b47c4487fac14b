//! One change in a valid call at a time: every row of the attestation table has its refusal here.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::clock::SystemClock;
use crate::config::Identity;
use crate::jwt::SigningKey;
use crate::local_cluster::LocalCluster;
use crate::state::StateDir;

type ChangeReview = Box<dyn Fn(&mut Review) + Send + Sync>;
type ChangePod = Box<dyn Fn(&mut PodView) + Send + Sync>;

/// A cluster that shows something else than it should.
struct Odd {
    inner: Arc<LocalCluster>,
    review: ChangeReview,
    pod: ChangePod,
    gone: bool,
}

impl TokenReviewer for Odd {
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> BoxFuture<'a, Result<Review, Unavailable>> {
        Box::pin(async move {
            let mut review = self.inner.review(token, audience).await?;
            (self.review)(&mut review);
            Ok(review)
        })
    }
}

impl Pods for Odd {
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>> {
        Box::pin(async move {
            let mut pod = self.inner.pod(namespace, name).await?;
            if let Some(pod) = &mut pod {
                (self.pod)(pod);
            }
            Ok(pod.filter(|_| !self.gone))
        })
    }
}

struct Bench {
    _temp: tempfile::TempDir,
    state: Arc<StateDir>,
    cluster: Arc<LocalCluster>,
}

impl Bench {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(&temp.path().join("state")).unwrap());
        let cluster = LocalCluster::open(state.clone(), &Identity::default(), Arc::new(SystemClock)).unwrap();
        Bench {
            _temp: temp,
            state,
            cluster: Arc::new(cluster),
        }
    }

    fn attestor(&self, review: ChangeReview, pod: ChangePod, gone: bool) -> Attestor {
        let odd = Arc::new(Odd {
            inner: self.cluster.clone(),
            review,
            pod,
            gone,
        });
        let pins = Pins::open(&self.state).unwrap();
        Attestor::new(self.cluster.trust(), odd.clone(), odd, pins, Arc::new(SystemClock))
    }

    fn honest(&self) -> Attestor {
        self.attestor(Box::new(|_| {}), Box::new(|_| {}), false)
    }
}

fn key() -> PublicKey {
    SigningKey::from_pkcs8(&SigningKey::generate().unwrap())
        .unwrap()
        .public()
        .clone()
}

async fn outcome(attestor: &Attestor, token: &str, key: &PublicKey) -> Result<Workload, NotAttested> {
    attestor
        .attest(Slot::ServiceAccount, token, key, &|_| false, &|_| true)
        .await
}

#[tokio::test]
async fn a_valid_token_live_pod_and_key_attest_the_workload() {
    let bench = Bench::new();
    let who = outcome(&bench.honest(), &bench.cluster.issue().unwrap(), &key())
        .await
        .unwrap();
    assert_eq!(who.subject.account(), "local/agent");
    assert_eq!(who.subject.pod_uid, bench.cluster.pod_uid());
    assert_eq!(who.instance, 1);
}

#[tokio::test]
async fn step_1_a_provably_wrong_token_ends_before_anybody_is_asked() {
    let bench = Bench::new();
    let attestor = bench.attestor(Box::new(|_| panic!("asked")), Box::new(|_| panic!("asked")), false);
    let token = bench.cluster.issue().unwrap();
    let forged = format!("{}x", &token[..token.len() - 1]);
    assert!(matches!(
        outcome(&attestor, &forged, &key()).await,
        Err(NotAttested::Token(_))
    ));
    let frozen = attestor
        .attest(Slot::ServiceAccount, &token, &key(), &|_| true, &|_| true)
        .await;
    assert!(matches!(frozen, Err(NotAttested::Token(Refused::TokenId))));
}

#[tokio::test]
async fn a_pod_over_its_budget_ends_before_anybody_is_asked_and_a_forged_token_spends_none_of_it() {
    let bench = Bench::new();
    let attestor = bench.attestor(Box::new(|_| panic!("asked")), Box::new(|_| panic!("asked")), false);
    let token = bench.cluster.issue().unwrap();
    let uid = bench.cluster.pod_uid();
    let over = |pod_uid: &str| {
        assert_eq!(pod_uid, uid);
        false
    };
    let key = key();
    let late = attestor
        .attest(Slot::ServiceAccount, &token, &key, &|_| false, &over)
        .await;
    assert!(matches!(late, Err(NotAttested::TooMany)));
    let forged = format!("{}x", &token[..token.len() - 1]);
    let spent = |_: &str| panic!("a forged token spent a pod's budget");
    let forged = attestor
        .attest(Slot::ServiceAccount, &forged, &key, &|_| false, &spent)
        .await;
    assert!(matches!(forged, Err(NotAttested::Token(_))));
}

#[tokio::test]
async fn step_2_the_review_must_vouch_for_our_audience_user_group_and_pod() {
    let bench = Bench::new();
    let token = bench.cluster.issue().unwrap();
    let changes: Vec<ChangeReview> = vec![
        Box::new(|review| review.authenticated = false),
        Box::new(|review| review.error = Some("x".to_owned())),
        Box::new(|review| review.audiences.clear()),
        Box::new(|review| review.audiences = vec!["other".to_owned()]),
        Box::new(|review| review.user = "system:serviceaccount:local:other".to_owned()),
        Box::new(|review| review.groups.clear()),
        Box::new(|review| review.pod_uid = None),
        Box::new(|review| review.pod_uid = Some("other".to_owned())),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let attestor = bench.attestor(change, Box::new(|_| {}), false);
        let refused = outcome(&attestor, &token, &key()).await;
        assert!(matches!(refused, Err(NotAttested::Review(_))), "change {index}");
    }
}

#[tokio::test]
async fn step_3_the_live_pod_must_be_the_one_named_and_alive() {
    let bench = Bench::new();
    let token = bench.cluster.issue().unwrap();
    let changes: Vec<ChangePod> = vec![
        Box::new(|pod| pod.uid = "other".to_owned()),
        Box::new(|pod| pod.service_account = "other".to_owned()),
        Box::new(|pod| pod.node = "other".to_owned()),
        Box::new(|pod| pod.deleting = true),
        Box::new(|pod| pod.alive = false),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let attestor = bench.attestor(Box::new(|_| {}), change, false);
        let refused = outcome(&attestor, &token, &key()).await;
        assert!(matches!(refused, Err(NotAttested::Pod(_))), "change {index}");
    }
    let attestor = bench.attestor(Box::new(|_| {}), Box::new(|_| {}), true);
    assert!(matches!(
        outcome(&attestor, &token, &key()).await,
        Err(NotAttested::Pod(_))
    ));
}

#[tokio::test]
async fn step_4_a_pod_whose_token_others_can_read_is_refused() {
    let bench = Bench::new();
    let token = bench.cluster.issue().unwrap();
    let changes: Vec<ChangePod> = vec![
        Box::new(|pod| pod.shape.token_volumes.push("second".to_owned())),
        Box::new(|pod| pod.shape.token_volumes.clear()),
        Box::new(|pod| pod.shape.mounted_by.push(("agent".to_owned(), false))),
        Box::new(|pod| pod.shape.mounted_by = vec![("agent".to_owned(), true)]),
        Box::new(|pod| pod.shape.mounted_by = vec![(SIDECAR.to_owned(), false)]),
        Box::new(|pod| pod.shape.intruders.push("debugger".to_owned())),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let attestor = bench.attestor(Box::new(|_| {}), change, false);
        let refused = outcome(&attestor, &token, &key()).await;
        assert!(matches!(refused, Err(NotAttested::Shape(_))), "change {index}");
    }
}

#[tokio::test]
async fn step_5_a_second_key_for_a_running_instance_is_refused_and_a_newer_instance_accepted() {
    let bench = Bench::new();
    let attestor = bench.honest();
    let token = bench.cluster.issue().unwrap();
    let (first, second) = (key(), key());
    let who = outcome(&attestor, &token, &first).await.unwrap();
    assert!(matches!(
        outcome(&attestor, &token, &second).await,
        Err(NotAttested::RestartNotSeen)
    ));
    attestor.still(&who).await.unwrap();
    bench.cluster.restarted().unwrap();
    assert_eq!(outcome(&attestor, &token, &second).await.unwrap().instance, 2);
    assert!(attestor.still(&who).await.is_err(), "the old instance's session ends");
    assert!(matches!(
        outcome(&attestor, &token, &first).await,
        Err(NotAttested::RestartNotSeen)
    ));
}
