//! One change in a valid call at a time: every row of the attestation table has its refusal here.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::clock::SystemClock;
use crate::config::Identity;
use crate::jwt::SigningKey;
use crate::local_cluster::{LocalCluster, AUDIENCE};
use crate::pins::PinFiles;
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
        Attestor {
            audience: AUDIENCE.to_owned(),
            issuers: self.cluster.clone(),
            reviewer: odd.clone(),
            pods: odd,
            pins: Arc::new(PinFiles::open(&self.state).unwrap()),
            notices: Arc::new(Logged),
            images: Arc::new(AnyImage),
            strangers: Default::default(),
            looked: Default::default(),
            timed: Arc::new(Untimed),
            clock: Arc::new(SystemClock),
        }
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

/// Takes one image.
struct Only(&'static str);

impl Images for Only {
    fn allowed(&self, image: &str) -> Result<(), String> {
        (image == self.0).then_some(()).ok_or_else(|| format!("not `{image}`"))
    }

    fn pinned(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn step_4_a_sidecar_of_another_image_is_refused_and_the_reason_names_it() {
    let bench = Bench::new();
    let token = bench.cluster.issue().unwrap();
    let with = |image: &'static str| {
        let change: ChangePod = Box::new(move |pod| pod.shape.image = image.to_owned());
        Attestor {
            images: Arc::new(Only("ours")),
            ..bench.attestor(Box::new(|_| {}), change, false)
        }
    };
    let refused = outcome(&with("theirs"), &token, &key()).await.unwrap_err();
    assert_eq!(refused.to_string(), "image: not `theirs`");
    outcome(&with("ours"), &token, &key()).await.unwrap();
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

/// Pods of a profile that demands a fence, or of one that cannot be read.
struct Demanding(Arc<LocalCluster>, Fenced, Result<Option<Demands>, Unavailable>);

impl Pods for Demanding {
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>> {
        let fenced = self.1.clone();
        Box::pin(async move {
            let pod = self.0.pod(namespace, name).await?;
            Ok(pod.map(|pod| PodView { fenced, ..pod }))
        })
    }

    fn demanded(&self, _: &str) -> Result<Option<Demands>, Unavailable> {
        self.2.clone()
    }
}

#[tokio::test]
async fn step_4_a_pod_whose_profile_demands_a_fence_gets_nothing_without_it() {
    use sidegate_policies::pod::fence::rights;
    let bench = Bench::new();
    let token = bench.cluster.issue().unwrap();
    let spec = |image: &str| {
        serde_json::json!({
            "initContainers": [
                {"name": "sidegate-fence", "image": image, "command": ["/sidegate-sidecar"], "args": ["fence"],
                 "env": [{"name": "SIDEGATE_FENCE_UIDS", "value": "61937"}], "securityContext": rights()},
                {"name": "sidegate", "image": "ours", "restartPolicy": "Always", "securityContext": {"runAsUser": 61937}},
            ],
            "containers": [{"name": "agent", "securityContext": {
                "runAsUser": 1000, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            }}],
        })
    };
    let (good, other) = (Fenced::of(&spec("ours")), Fenced::of(&spec("theirs")));
    let demanded = || Ok(Some(Demands::default()));
    let cases = [
        (good.clone(), demanded(), None),
        (good.clone(), Ok(None), None),
        (Fenced::default(), Ok(None), None),
        (
            Fenced::default(),
            demanded(),
            Some("fence: the profile demands a fence, and there is none"),
        ),
        (
            other.clone(),
            demanded(),
            Some("fence: sidegate-fence is not the fence"),
        ),
        // What is called so has rights that nobody else may have, in every tier.
        (other, Ok(None), Some("fence: sidegate-fence is not the fence")),
        (good, Err(Unavailable), Some("unavailable")),
    ];
    for (fenced, demands, said) in cases {
        let mut attestor = bench.honest();
        attestor.pods = Arc::new(Demanding(bench.cluster.clone(), fenced, demands));
        let answer = outcome(&attestor, &token, &key()).await;
        match (answer, said) {
            (Ok(_), None) => drop(bench.cluster.restarted().unwrap()),
            (Err(refused), Some(said)) => assert!(refused.to_string().starts_with(said), "{refused}"),
            (answer, said) => panic!("{said:?}: {answer:?}"),
        };
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

#[tokio::test]
async fn a_pod_that_is_ending_keeps_the_key_it_has_and_gets_no_other() {
    let bench = Bench::new();
    let token = bench.cluster.issue().unwrap();
    let ending = || bench.attestor(Box::new(|_| {}), Box::new(|pod| pod.deleting = true), false);
    let first = key();
    assert!(matches!(
        outcome(&ending(), &token, &first).await,
        Err(NotAttested::RestartNotSeen)
    ));
    let who = outcome(&bench.honest(), &token, &first).await.unwrap();
    outcome(&ending(), &token, &first).await.unwrap();
    ending().still(&who).await.unwrap();
    bench.cluster.restarted().unwrap();
    assert!(matches!(
        outcome(&ending(), &token, &key()).await,
        Err(NotAttested::RestartNotSeen)
    ));
}

/// What was heard of last may lag behind: it shows an older instance, or no pod yet.
struct Heard {
    now: Arc<LocalCluster>,
    last: std::sync::Mutex<Option<PodView>>,
    asked: std::sync::atomic::AtomicU64,
}

impl Pods for Heard {
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>> {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.now.pod(namespace, name)
    }

    fn known<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>> {
        Box::pin(async { Ok(self.last.lock().unwrap().clone()) })
    }
}

#[tokio::test]
async fn nobody_is_turned_away_for_what_was_heard_of_last() {
    let bench = Bench::new();
    let stale = bench.cluster.view();
    bench.cluster.restarted().unwrap();
    for (last, asked) in [(Some(stale), 1), (None, 1), (Some(bench.cluster.view()), 0)] {
        let pods = Arc::new(Heard {
            now: bench.cluster.clone(),
            last: std::sync::Mutex::new(last),
            asked: Default::default(),
        });
        let mut attestor = bench.honest();
        attestor.pods = pods.clone();
        let who = workload(&bench);
        attestor.still(&who).await.unwrap();
        assert_eq!(pods.asked.load(std::sync::atomic::Ordering::SeqCst), asked);
    }
}

/// Counts the keys that were looked at.
#[derive(Default)]
struct Keys(std::sync::atomic::AtomicU64);

impl Timed for Keys {
    fn took(&self, step: Step, _: Duration) {
        let count = u64::from(step == Step::Key);
        self.0.fetch_add(count, std::sync::atomic::Ordering::SeqCst);
    }
}

#[tokio::test]
async fn who_asks_again_soon_is_looked_at_again_only_where_the_pod_changed() {
    use crate::clock::ManualClock;
    use std::sync::atomic::Ordering::SeqCst;
    let bench = Bench::new();
    let token = bench.cluster.issue().unwrap();
    let clock = Arc::new(ManualClock::starting_now());
    let heard = Arc::new(Heard {
        now: bench.cluster.clone(),
        last: std::sync::Mutex::new(Some(bench.cluster.view())),
        asked: Default::default(),
    });
    let keys = Arc::<Keys>::default();
    let attestor = Attestor {
        pods: heard.clone(),
        timed: keys.clone(),
        clock: clock.clone(),
        ..bench.honest()
    };
    let asked = || (heard.asked.load(SeqCst), keys.0.load(SeqCst));
    let (first, second) = (key(), key());
    outcome(&attestor, &token, &first).await.unwrap();
    outcome(&attestor, &token, &first).await.unwrap();
    assert_eq!(asked(), (1, 1), "nothing changed");
    // Another key is another caller, however soon.
    assert!(outcome(&attestor, &token, &second).await.is_err());
    assert_eq!(asked(), (2, 2));
    // What was heard is not the pod that was looked at: by whatever, and also where it is gone.
    let mut other = bench.cluster.view();
    other.labels.insert("changed".to_owned(), "now".to_owned());
    for (times, last) in [(3, Some(other)), (4, None)] {
        *heard.last.lock().unwrap() = last;
        outcome(&attestor, &token, &first).await.unwrap();
        assert_eq!(asked(), (times, times));
    }
    *heard.last.lock().unwrap() = Some(bench.cluster.view());
    outcome(&attestor, &token, &first).await.unwrap();
    assert_eq!(asked(), (4, 4));
    // It does not count for longer, however often it was asked for.
    clock.advance_ms(crate::remembered::COUNTS_MS);
    outcome(&attestor, &token, &first).await.unwrap();
    assert_eq!(asked(), (5, 5));
    // A newer instance was heard of, and its key pinned: the old one's is refused.
    bench.cluster.restarted().unwrap();
    *heard.last.lock().unwrap() = Some(bench.cluster.view());
    outcome(&attestor, &token, &second).await.unwrap();
    assert!(matches!(
        outcome(&attestor, &token, &first).await,
        Err(NotAttested::RestartNotSeen)
    ));
}

fn workload(bench: &Bench) -> Workload {
    let pod = bench.cluster.view();
    Workload {
        account_uid: String::new(),
        ends: 0,
        instance: pod.instance.count,
        node: pod.node,
        subject: Subject {
            namespace: pod.namespace,
            service_account: pod.service_account,
            pod: pod.name,
            pod_uid: pod.uid,
            labels: pod.labels,
        },
    }
}

/// Keys that come with the first look for them.
struct Renewing {
    cluster: Arc<LocalCluster>,
    looked: std::sync::Mutex<bool>,
    may: bool,
}

impl Issuers for Renewing {
    fn trust(&self) -> Arc<ClusterTrust> {
        let trust = self.cluster.trust();
        match *self.looked.lock().unwrap() {
            true => trust,
            false => Arc::new(ClusterTrust {
                keys: KeySet::default(),
                ..(*trust).clone()
            }),
        }
    }

    fn renew(&self) -> BoxFuture<'_, bool> {
        *self.looked.lock().unwrap() = self.may;
        Box::pin(async { self.may })
    }
}

#[tokio::test]
async fn a_token_of_an_unknown_key_makes_us_look_for_it_once() {
    let bench = Bench::new();
    let token = bench.cluster.issue().unwrap();
    for may in [true, false] {
        let mut attestor = bench.attestor(Box::new(|_| panic!("asked")), Box::new(|_| {}), false);
        attestor.issuers = Arc::new(Renewing {
            cluster: bench.cluster.clone(),
            looked: false.into(),
            may,
        });
        // The key that was found vouches for the token, so its pod's budget counts before anybody is asked; what no key
        // vouches for is asked about first.
        let key = key();
        let judged = attestor.attest(Slot::ServiceAccount, &token, &key, &|_| false, &|_| false);
        let judged = std::panic::AssertUnwindSafe(judged);
        match (may, futures_util::FutureExt::catch_unwind(judged).await) {
            (true, Ok(Err(NotAttested::TooMany))) | (false, Err(_)) => {}
            (may, other) => panic!("may look: {may}, {:?}", other.map(|other| other.map(|_| ()))),
        }
    }
}

/// The same claims, changed, under a key that nobody publishes.
fn resigned(token: &str, header: serde_json::Value, change: impl FnOnce(&mut serde_json::Value)) -> String {
    use base64::Engine as _;
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let mut claims = serde_json::from_slice(&claims).unwrap();
    change(&mut claims);
    let hidden = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    hidden.sign_parts(&header, &claims).unwrap()
}

/// A review that says yes to this pod, whatever the token.
fn vouching(bench: &Bench) -> ChangeReview {
    let uid = bench.cluster.pod_uid().to_owned();
    Box::new(move |review| {
        *review = Review {
            authenticated: true,
            error: None,
            audiences: vec![AUDIENCE.to_owned()],
            user: "system:serviceaccount:local:agent".to_owned(),
            groups: vec!["system:serviceaccounts".to_owned()],
            pod_uid: Some(uid.clone()),
            credential_id: Some("JTI=abc".to_owned()),
        }
    })
}

#[tokio::test]
async fn a_token_of_an_unknown_key_is_the_review_s_to_judge_and_what_is_wrong_without_the_key_stops() {
    let bench = Bench::new();
    let token = bench.cluster.issue().unwrap();
    let hidden = serde_json::json!({"alg": "ES256", "kid": "hidden"});
    let good = resigned(&token, hidden.clone(), |_| {});
    let yes = bench.attestor(vouching(&bench), Box::new(|_| {}), false);
    let (mut presented, never) = (Presented::default(), |_: &str| false);
    let who = yes
        .attest_told(Slot::ServiceAccount, &good, &key(), (&never, &|_| true), &mut presented)
        .await
        .unwrap();
    assert_eq!(who.subject.pod_uid, bench.cluster.pod_uid());
    assert_eq!(
        (presented.credential_id.as_str(), presented.pod_uid.as_str()),
        ("JTI=abc", bench.cluster.pod_uid())
    );
    // The cluster does not vouch for it: nobody's budget is spent, and nothing it says is told.
    let no = bench.attestor(Box::new(|review| review.authenticated = false), Box::new(|_| {}), false);
    let (mut presented, spent) = (Presented::default(), |_: &str| {
        panic!("a stranger spent a pod's budget")
    });
    let refused = no
        .attest_told(Slot::ServiceAccount, &good, &key(), (&never, &spent), &mut presented)
        .await;
    assert!(matches!(refused, Err(NotAttested::Review(_))));
    assert_eq!(presented, Presented::default());
    // Over its budget once it is vouched for.
    let late = yes.attest(Slot::ServiceAccount, &good, &key(), &never, &never).await;
    assert!(matches!(late, Err(NotAttested::TooMany)));
    // Provably wrong without any key, or under a key that is held: nobody is asked.
    let asked = || bench.attestor(Box::new(|_| panic!("asked")), Box::new(|_| panic!("asked")), false);
    let held = bench.cluster.trust().keys.iter().next().unwrap().kid.clone();
    let wrong = [
        resigned(&token, hidden.clone(), |claims| {
            claims["aud"] = serde_json::json!(["elsewhere"])
        }),
        resigned(&token, hidden.clone(), |claims| {
            claims["iss"] = "https://elsewhere".into()
        }),
        resigned(&token, hidden.clone(), |claims| claims["exp"] = 1.into()),
        resigned(&token, hidden.clone(), |claims| {
            claims["kubernetes.io"]["pod"] = serde_json::Value::Null
        }),
        resigned(&token, hidden.clone(), |claims| {
            claims["sub"] = "system:serviceaccount:local:other".into()
        }),
        resigned(&token, serde_json::json!({"alg": "HS256", "kid": "hidden"}), |_| {}),
        resigned(&token, serde_json::json!({"alg": "ES256"}), |_| {}),
        resigned(&token, serde_json::json!({"alg": "ES256", "kid": held}), |_| {}),
    ];
    for (index, token) in wrong.iter().enumerate() {
        let refused = outcome(&asked(), token, &key()).await;
        assert!(
            matches!(refused, Err(NotAttested::Token(_))),
            "change {index}: {:?}",
            refused.map(|_| ())
        );
    }
    let frozen = asked()
        .attest(Slot::ServiceAccount, &good, &key(), &|_| true, &|_| true)
        .await;
    assert!(matches!(frozen, Err(NotAttested::Token(Refused::TokenId))));
    // A few at once, and the others later: a flood of them reaches the API server as a trickle.
    let full = Attestor {
        strangers: Strangers(Semaphore::new(0)),
        ..asked()
    };
    assert!(matches!(
        outcome(&full, &good, &key()).await,
        Err(NotAttested::Unavailable(_))
    ));
}
