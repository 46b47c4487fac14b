//! The lease keeper against a scripted source, with the clock paused.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use sidegate_policies::api::target::TargetProtocol;
use sidegate_policies::wire::LeaseMaterial as Wire;

use super::*;
use crate::session::tests::subject;
use crate::session::Session;
use crate::target::TargetState;

/// Answers after a second; counts; fails on demand.
#[derive(Default)]
struct Script {
    asked: AtomicU64,
    failing: std::sync::atomic::AtomicBool,
    /// A lease goes on, but not beyond this.
    last: Mutex<Option<tokio::time::Instant>>,
    renewed: Mutex<Vec<String>>,
    refused: Mutex<Vec<String>>,
    places: Mutex<Vec<Option<String>>>,
    returned: Mutex<Vec<String>>,
}

struct Source(Arc<Script>);

impl LeaseSource for Source {
    fn lease(&self, request: LeaseRequest) -> BoxFuture<'static, Result<Lease, CredentialError>> {
        let script = self.0.clone();
        async move {
            let number = script.asked.fetch_add(1, Ordering::SeqCst);
            script.refused.lock().unwrap().extend(request.refused);
            script.places.lock().unwrap().push(request.place);
            tokio::time::sleep(Duration::from_secs(1)).await;
            if script.failing.load(Ordering::SeqCst) {
                return Err(CredentialError::Unavailable);
            }
            let last = *script.last.lock().unwrap();
            if let (Some(last), Some(id)) = (last, request.renew) {
                script.renewed.lock().unwrap().push(id.clone());
                let left = last.saturating_duration_since(tokio::time::Instant::now());
                return Ok(Lease {
                    id,
                    material: Wire::Kept,
                    expires_in: left.as_secs().min(300),
                });
            }
            Ok(Lease {
                id: format!("lease-{number}"),
                material: Wire::Password {
                    user: "app".into(),
                    password: "canary".into(),
                },
                expires_in: 300,
            })
        }
        .boxed()
    }

    fn give_back(&self, id: String) -> BoxFuture<'static, ()> {
        self.0.returned.lock().unwrap().push(id);
        async {}.boxed()
    }
}

struct Rig {
    script: Arc<Script>,
    credentials: Arc<Credentials>,
    sessions: Arc<Sessions>,
    tasks: Tasks,
    stop: CancellationToken,
    target: Arc<TargetState>,
}

fn target(port: i32) -> TargetState {
    let mut target = TargetState::announced(TargetId::new("data", "shop"), TargetProtocol::Postgres, 1);
    target.spec.address.port = port;
    target
}

fn rig() -> Rig {
    let (script, sessions, tasks) = (Arc::<Script>::default(), Arc::<Sessions>::default(), Tasks::default());
    let stop = CancellationToken::new();
    let source = Arc::new(Source(script.clone()));
    Rig {
        credentials: Arc::new(Credentials::new(source, sessions.clone(), tasks.clone(), stop.clone())),
        script,
        sessions,
        tasks,
        stop,
        target: Arc::new(target(5432)),
    }
}

impl Rig {
    fn session(&self) -> (Arc<Session>, crate::session::Entered) {
        let number = self.sessions.next_number();
        let session = Arc::new(Session::new(number, subject(), self.target.clone(), None));
        (session.clone(), self.sessions.enter(session))
    }

    fn asked(&self) -> u64 {
        self.script.asked.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_misses_make_one_call() {
    let rig = rig();
    let waiting = (0..1_000).map(|_| rig.credentials.lease(&rig.target));
    let leases = futures_util::future::join_all(waiting).await;
    assert!(leases.iter().all(|lease| lease.as_ref().unwrap().id() == "lease-0"));
    assert_eq!(rig.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_while_sessions_are_open_and_lapses_otherwise() {
    let rig = rig();
    let (session, entered) = rig.session();
    rig.credentials.lease(&rig.target).await.unwrap();
    tokio::time::sleep(Duration::from_secs(240)).await;
    assert_eq!(rig.asked(), 2, "renewed between 60 and 75 % of 300 s");
    assert_eq!(session.cut_reason(), None);
    drop(entered);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(rig.asked(), 2, "nobody needs it");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_comes_after_a_renewal_nobody_needed_outlives_the_lease_it_began_with() {
    let rig = rig();
    rig.credentials.lease(&rig.target).await.unwrap();
    tokio::time::sleep(Duration::from_secs(270)).await;
    assert_eq!(rig.asked(), 1, "nobody was there at its renewal");
    let (session, _entered) = rig.session();
    rig.script.failing.store(true, Ordering::SeqCst);
    assert_eq!(rig.credentials.lease(&rig.target).await.unwrap().id(), "lease-0");
    tokio::time::sleep(Duration::from_secs(2)).await;
    rig.script.failing.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(session.cut_reason(), None, "one that fails is tried again");
    let asked = rig.asked();
    for _ in 0..3 {
        assert_ne!(rig.credentials.lease(&rig.target).await.unwrap().id(), "lease-0");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(rig.asked(), asked, "and no more than once");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_invisible_until_the_hard_stop_and_then_ends_sessions() {
    let rig = rig();
    let (session, _entered) = rig.session();
    rig.credentials.lease(&rig.target).await.unwrap();
    rig.script.failing.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(280)).await;
    assert!(rig.credentials.lease(&rig.target).await.is_ok());
    assert_eq!(session.cut_reason(), None);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(session.cut_reason(), Some(Reason::LeaseEnded));
    assert!(rig.credentials.lease(&rig.target).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refused_lease_is_replaced_once_and_named() {
    let rig = rig();
    let lease = rig.credentials.lease(&rig.target).await.unwrap();
    let (one, other) = tokio::join!(
        rig.credentials.refused(&rig.target, &lease),
        rig.credentials.refused(&rig.target, &lease)
    );
    assert_eq!((one.unwrap().id(), other.unwrap().id()), ("lease-1", "lease-1"));
    assert_eq!(*rig.script.refused.lock().unwrap(), ["lease-0"]);
}

#[tokio::test(start_paused = true)]
async fn failures_back_off() {
    let rig = rig();
    rig.script.failing.store(true, Ordering::SeqCst);
    for _ in 0..200 {
        assert!(rig.credentials.lease(&rig.target).await.is_err());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(rig.asked() < 60, "{} calls", rig.asked());
    rig.script.failing.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(rig.credentials.lease(&rig.target).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_handed_back_at_the_end() {
    let rig = rig();
    rig.credentials.lease(&rig.target).await.unwrap();
    rig.stop.cancel();
    rig.tasks.wait().await;
    assert_eq!(*rig.script.returned.lock().unwrap(), ["lease-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_goes_on_keeps_what_it_carries_and_ends_with_its_sessions_where_its_source_says() {
    let rig = rig();
    let began = tokio::time::Instant::now();
    *rig.script.last.lock().unwrap() = Some(began + Duration::from_secs(1_000));
    let (session, _entered) = rig.session();
    let first = rig.credentials.lease(&rig.target).await.unwrap();
    tokio::time::sleep(Duration::from_secs(700)).await;
    let later = rig.credentials.lease(&rig.target).await.unwrap();
    assert_eq!(later.id(), "lease-0");
    assert_eq!(later.needles(), [b"canary"]);
    assert!(!first.usable() && later.usable(), "another life, the same lease");
    let renewed = rig.script.renewed.lock().unwrap().clone();
    assert!(
        renewed.len() >= 2 && renewed.iter().all(|id| id == "lease-0"),
        "{renewed:?}"
    );
    // Nothing makes it longer than its source does: five seconds before that end everything on it is over.
    tokio::time::sleep(Duration::from_secs(296)).await;
    assert_eq!(session.cut_reason(), Some(Reason::LeaseEnded));
    assert_eq!(
        *rig.script.returned.lock().unwrap(),
        ["lease-0"],
        "and it is handed back"
    );
    assert!(rig.asked() < 20, "{} calls", rig.asked());
    assert_ne!(rig.credentials.lease(&rig.target).await.unwrap().id(), "lease-0");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_a_lease_goes_on_is_none_where_another_one_or_nothing_is_held() {
    let kept = |id: &str| Lease {
        id: id.into(),
        material: Wire::Kept,
        expires_in: 300,
    };
    let (now, wall) = (tokio::time::Instant::now(), jiff::Timestamp::now().as_millisecond());
    let rig = rig();
    let held = rig.credentials.lease(&rig.target).await.unwrap();
    assert!(keeper::taken(kept("lease-0"), Some(&held), now, wall).is_ok_and(|(_, goes_on)| goes_on));
    assert!(keeper::taken(kept("lease-1"), Some(&held), now, wall).is_err());
    assert!(keeper::taken(kept("lease-0"), None, now, wall).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_leads_elsewhere_gets_a_lease_of_its_own() {
    let rig = rig();
    let moved = Arc::new(target(5433));
    assert_eq!(rig.credentials.lease(&rig.target).await.unwrap().id(), "lease-0");
    assert_eq!(rig.credentials.lease(&moved).await.unwrap().id(), "lease-1");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*rig.script.returned.lock().unwrap(), ["lease-0"]);
    assert_eq!(rig.credentials.left().len(), 1);
    // The broker is told which place each is for, and leases nothing for another one.
    let places = [&rig.target, &moved].map(|target| target.place().digest());
    assert_eq!(*rig.script.places.lock().unwrap(), places);
    assert!(places[0].is_some() && places[0] != places[1]);
}

#[tokio::test(start_paused = true)]
async fn what_was_leased_for_targets_that_are_gone_or_moved_is_handed_back() {
    let rig = rig();
    let keep = |targets: &[&Arc<TargetState>]| {
        let targets = targets.iter().map(|target| (target.id.clone(), Arc::clone(target)));
        rig.credentials.keep(&targets.collect());
    };
    let returned = || rig.script.returned.lock().unwrap().clone();
    rig.credentials.lease(&rig.target).await.unwrap();
    keep(&[&rig.target]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.credentials.lease(&rig.target).await.unwrap().id(), "lease-0");
    keep(&[&Arc::new(target(5433))]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(returned(), ["lease-0"]);
    assert_eq!(rig.credentials.lease(&rig.target).await.unwrap().id(), "lease-1");
    keep(&[]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(returned(), ["lease-0", "lease-1"]);
}
