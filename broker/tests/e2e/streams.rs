//! Streams: order, pushes, a broken edit, expiry and renewal.

use std::fs;

use sidegate_broker::BrokerConfig;
use sidegate_policies::api::lockdown::{Freeze, LockdownSpec};
use sidegate_policies::bundle::{version, Bundle};
use sidegate_policies::seal::{deny_digest, Revisions, Statement};
use sidegate_policies::wire::{NackClass, SidecarStatus, ToBroker, ToSidecar};

use crate::client::Stream;
use crate::world::{World, CONFIG};
use sidegate_broker::clock::Clock as _;

fn everything() -> LockdownSpec {
    LockdownSpec {
        reason: "test".to_owned(),
        until: None,
        action: Default::default(),
        freeze: vec![Freeze::Everything(Default::default())],
    }
}

pub async fn bundle(stream: &mut Stream) -> (String, Bundle, Statement) {
    loop {
        if let ToSidecar::Bundle {
            version: named,
            body,
            seal,
        } = stream.news().await.unwrap()
        {
            assert_eq!(named, version(body.as_bytes()));
            let statement = serde_json::from_str(&seal.statement).unwrap();
            return (named, serde_json::from_str(&body).unwrap(), statement);
        }
    }
}

#[tokio::test]
async fn a_stream_opens_with_hello_then_the_deny_set_then_the_bundle() {
    let world = World::start().await;
    world.running.front().lockdowns.lock("incident", everything()).unwrap();
    let mut stream = world.sidecar().await.stream().await;
    let Some(ToSidecar::Hello {
        subject,
        deny_revision,
        instance,
        ..
    }) = stream.next().await
    else {
        panic!("no hello");
    };
    assert_eq!(Some(&subject), world.running.subject());
    assert_eq!(subject.labels["tier"], "one");
    assert_eq!(instance, 1);
    let Some(ToSidecar::Deny(set)) = stream.news().await else {
        panic!("no deny set")
    };
    assert_eq!(set.revision, deny_revision);
    assert_eq!(set.entries.len(), 1);
    let (_, bundle, _) = bundle(&mut stream).await;
    let names: Vec<String> = bundle
        .targets
        .iter()
        .map(|bundled| bundled.target.full_name())
        .collect();
    assert_eq!(names, ["local/shop", "local/warehouse"]);
}

#[tokio::test]
async fn an_edit_is_pushed_with_a_higher_revision_and_a_broken_one_keeps_the_last_good_set() {
    let world = World::start().await;
    let mut stream = world.sidecar().await.stream().await;
    let (first, _, before) = bundle(&mut stream).await;
    let file = world.path("config/all.yaml");
    fs::write(&file, CONFIG.replace("tables: [app.orders]", "tables: [")).unwrap();
    // Every heartbeat gives the watcher time; the problem shows up in the status.
    while world.running.status().problems.is_empty() {
        stream.next().await.unwrap();
    }
    assert_eq!(world.running.status().bundle.as_deref(), Some(first.as_str()));
    fs::write(&file, CONFIG.replace("tables: [app.orders]", "tables: [app.invoices]")).unwrap();
    let (second, changed, after) = bundle(&mut stream).await;
    assert_ne!(first, second);
    assert_eq!(
        before
            .revisions
            .behind(&after.revisions)
            .map(|behind| behind.what)
            .as_deref(),
        Some("Configuration")
    );
    assert_eq!(after.revisions.behind(&before.revisions), None);
    assert_eq!(
        changed.policies[0].spec.rules[1].sql.as_ref().unwrap().tables,
        ["app.invoices"]
    );
    assert!(world.running.status().problems.is_empty());
}

#[tokio::test]
async fn a_lockdown_reaches_the_stream_at_once_and_its_acknowledgement_is_reported() {
    let world = World::start().await;
    let mut stream = world.sidecar().await.stream().await;
    bundle(&mut stream).await;
    let revision = world.running.front().lockdowns.lock("incident", everything()).unwrap();
    let Some(ToSidecar::Deny(set)) = stream.news().await else {
        panic!("no deny set")
    };
    assert_eq!((set.revision, set.entries.len()), (revision, 1));
    let mut changed = world.running.front().streams.watch();
    stream
        .say(&ToBroker::Ack {
            version: None,
            revision: Some(revision),
            closed: 3,
            took_us: 40,
        })
        .await;
    stream
        .say(&ToBroker::Status(SidecarStatus {
            sessions: 2,
            ..SidecarStatus::default()
        }))
        .await;
    while world.running.status().sessions != 2 {
        changed.changed().await.unwrap();
    }
    let report = &world.running.status().connected[0];
    assert_eq!((report.deny_revision, report.closed, report.took_us), (revision, 3, 40));
    world.running.front().lockdowns.unlock("incident").unwrap();
    let Some(ToSidecar::Deny(set)) = stream.news().await else {
        panic!("no deny set")
    };
    assert!(
        set.revision > revision && set.entries.is_empty(),
        "a removal is a higher revision"
    );
}

#[tokio::test]
async fn a_stream_ends_with_its_session_unless_it_is_renewed() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let mut kept = sidecar.stream().await;
    let mut lost = sidecar.stream().await;
    bundle(&mut kept).await;
    world.clock.advance_ms(200_000);
    sidecar.session = None;
    sidecar.login(&world.token()).await;
    kept.say(&ToBroker::Reauth {
        token: sidecar.session.clone().unwrap(),
    })
    .await;
    kept.say(&ToBroker::Status(SidecarStatus {
        sessions: 7,
        ..SidecarStatus::default()
    }))
    .await;
    let mut changed = world.running.front().streams.watch();
    while world.running.status().sessions != 7 {
        changed.changed().await.unwrap();
    }
    world.clock.advance_ms(150_000);
    while lost.next().await.is_some() {}
    assert!(kept.next().await.is_some());
    assert_eq!(world.running.status().sidecars, 1);
}

#[tokio::test]
async fn another_keys_token_does_not_renew_a_stream_and_nonsense_ends_it() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let mut stream = sidecar.stream().await;
    world.running.local().unwrap().restarted().unwrap();
    let mut newer = sidecar.twin();
    newer.login(&world.token()).await;
    stream
        .say(&ToBroker::Reauth {
            token: newer.session.clone().unwrap(),
        })
        .await;
    while stream.next().await.is_some() {}
    let mut second = newer.stream().await;
    second
        .say(&ToBroker::Hello {
            protocol: 99,
            release: String::new(),
            bundle: None,
            deny_revision: 0,
            revisions: Revisions::default(),
        })
        .await;
    while second.next().await.is_some() {}
}

#[tokio::test]
async fn a_refused_bundle_is_offered_three_times_and_reported() {
    let world = World::start().await;
    let mut stream = world.sidecar().await.stream().await;
    for _ in 0..3 {
        let (version, ..) = bundle(&mut stream).await;
        stream
            .say(&ToBroker::Nack {
                class: NackClass::Compile,
                version,
                message: "parse".to_owned(),
            })
            .await;
    }
    let mut changed = world.running.front().streams.watch();
    stream
        .say(&ToBroker::Status(SidecarStatus {
            sessions: 1,
            ..SidecarStatus::default()
        }))
        .await;
    while world.running.status().sessions != 1 {
        changed.changed().await.unwrap();
    }
    assert_eq!(world.running.status().connected[0].nack.as_deref(), Some("parse"));
    assert!(
        matches!(stream.next().await, Some(ToSidecar::Heartbeat { .. })),
        "not offered a fourth time"
    );
}

#[tokio::test]
async fn a_stopping_broker_tells_its_streams_to_drain() {
    let world = World::start().await;
    let mut stream = world.sidecar().await.stream().await;
    bundle(&mut stream).await;
    let World {
        running, temp: _temp, ..
    } = world;
    let (_, last) = tokio::join!(running.shutdown(), stream.news());
    assert!(matches!(last, Some(ToSidecar::Drain)));
}

#[tokio::test]
async fn a_bundle_is_sealed_for_its_pod_and_sealed_again_beside_a_new_deny_set() {
    let world = World::start().await;
    let mut stream = world.sidecar().await.stream().await;
    let (version, bundle, statement) = bundle(&mut stream).await;
    let subject = world.running.subject().unwrap();
    assert_eq!((&statement.version, &statement.pod_uid), (&version, &subject.pod_uid));
    assert_eq!(statement.cluster, bundle.cluster);
    assert_eq!(statement.sealed_ms, world.clock.now_ms());
    assert_eq!(statement.deny_digest, deny_digest(&Default::default()));

    world.clock.advance_ms(5_000);
    let revision = world.running.front().lockdowns.lock("incident", everything()).unwrap();
    let Some(ToSidecar::Deny(set)) = stream.news().await else {
        panic!("no deny set")
    };
    let Some(ToSidecar::Seal(seal)) = stream.news().await else {
        panic!("no seal")
    };
    let again: Statement = serde_json::from_str(&seal.statement).unwrap();
    assert_eq!((again.deny_revision, again.deny_digest), (revision, deny_digest(&set)));
    assert_eq!(again.version, version);
    assert!(again.sealed_ms >= statement.sealed_ms + 5_000);
    assert_eq!(again.revisions, statement.revisions);
}

#[tokio::test]
async fn a_replica_that_is_behind_a_sidecar_waits_before_it_offers() {
    let world = World::start().await;
    let mut sidecar = world.sidecar().await;
    let mut first = sidecar.stream().await;
    let (version, _, statement) = bundle(&mut first).await;
    let newer = Revisions::of("Configuration", statement.revisions.kinds["Configuration"] + 1);
    let mut behind = sidecar.stream_holding(Some("another".to_owned()), newer.clone()).await;
    let mut same = sidecar.stream_holding(Some(version.clone()), newer).await;
    // The very bundle it holds is no step back; once that stream has it, the other one had time enough.
    assert_eq!(bundle(&mut same).await.0, version);
    assert!(matches!(behind.next().await, Some(ToSidecar::Hello { .. })));
    assert!(matches!(behind.next().await, Some(ToSidecar::Deny(_))));
    for _ in 0..2 {
        assert!(
            matches!(behind.next().await, Some(ToSidecar::Heartbeat { .. })),
            "offered"
        );
    }
    let file = world.path("config/all.yaml");
    fs::write(&file, CONFIG.replace("tables: [app.orders]", "tables: [app.invoices]")).unwrap();
    let (offered, _, caught_up) = bundle(&mut behind).await;
    assert_ne!(offered, version);
    assert_eq!(
        caught_up.revisions.kinds["Configuration"],
        statement.revisions.kinds["Configuration"] + 1
    );
    // A row of the failure matrix: nothing that was offered meanwhile had to be refused.
    let page = world.page();
    assert!(!page.contains("sidegate_broker_nacks_total{"), "{page}");
}

#[tokio::test]
async fn a_sidecar_that_says_nothing_of_what_it_holds_is_offered_a_bundle_all_the_same() {
    let world = World::start().await;
    let mut stream = world.sidecar().await.mute_stream().await;
    bundle(&mut stream).await;
}

#[tokio::test]
async fn a_stream_is_asked_to_end_after_its_time_and_ends_if_it_is_not_replaced() {
    let minute = |config: &mut BrokerConfig| config.stream_age = std::time::Duration::from_secs(60);
    let world = World::start_with(CONFIG, minute)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let mut stream = world.sidecar().await.stream().await;
    bundle(&mut stream).await;
    world.clock.advance_ms(53_000);
    assert!(matches!(stream.next().await, Some(ToSidecar::Heartbeat { .. })));
    assert!(
        matches!(stream.next().await, Some(ToSidecar::Heartbeat { .. })),
        "asked too early"
    );
    world.clock.advance_ms(14_000);
    assert!(matches!(stream.news().await, Some(ToSidecar::Drain)));
    assert_eq!(
        world.running.status().sidecars,
        1,
        "it is served until another one is open"
    );
    assert!(matches!(stream.next().await, Some(ToSidecar::Heartbeat { .. })));
    world.clock.advance_ms(11_000);
    assert!(stream.news().await.is_none(), "it ends");
}
