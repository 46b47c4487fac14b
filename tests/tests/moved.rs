//! Several brokers keep one store: a log that moves between them, at any moment and back, is one log; what one of them
//! holds of it is held by all, and neither verifier sees a seam. No network, no cluster: real logs, real stores.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::StreamExt as _;
use sidegate_broker::records::{Caller, Leads, Records, RecordsOptions};
use sidegate_policies::record::replay::{replay, Event};
use sidegate_policies::record::verify::{verify_store, Options, Report, Verdict};
use sidegate_policies::record::{stream as items, Frame, Kind};
use sidegate_sidecar::record::{Log, SessionRecorder};
use sidegate_tests::recording::{last_checkpoint, left, operate, Recording, POD};
use sidegate_tests::verifiers::{second, told};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Brokers of these names that lead when they are told to.
struct Brokers {
    state: tempfile::TempDir,
    leads: Vec<Arc<AtomicBool>>,
    records: Vec<Arc<Records>>,
    orphan_after: Duration,
}

impl Brokers {
    /// The first of them leads.
    fn start(count: usize, orphan_after: Duration) -> Brokers {
        let mut brokers = Brokers {
            state: tempfile::tempdir().unwrap(),
            leads: (0..count).map(|at| Arc::new(AtomicBool::new(at == 0))).collect(),
            records: Vec::new(),
            orphan_after,
        };
        brokers.records = (0..count).map(|at| brokers.open(at)).collect();
        brokers
    }

    /// What a start of this broker finds.
    fn open(&self, at: usize) -> Arc<Records> {
        let leads = Arc::clone(&self.leads[at]);
        let options = RecordsOptions {
            replica: format!("broker-{at}"),
            leads: Leads(Arc::new(move || leads.load(Ordering::SeqCst))),
            orphan_after: self.orphan_after,
            ..RecordsOptions::new(self.state.path().join("records"), "local")
        };
        Records::open(options).unwrap()
    }

    /// A log that uploads to the first of them.
    fn recording(&self, instance: u64) -> Recording {
        Recording::start(self.state.path(), Arc::clone(&self.records[0]), instance).unwrap()
    }

    /// Every broker looks after its logs once, `leader` last.
    async fn look_after(&self, leader: usize) {
        for (at, leads) in self.leads.iter().enumerate() {
            leads.store(at == leader, Ordering::SeqCst);
        }
        for (at, records) in self.records.iter().enumerate() {
            if at != leader {
                records.look_after().unwrap();
            }
        }
        self.records[leader].look_after().unwrap();
    }

    /// Summaries of sessions that were called orphans.
    fn orphans(&self) -> Vec<String> {
        files(&self.state.path().join("records/v1/local"), ".orphan.json")
    }

    /// The first of them looks after its logs until everything is in objects.
    async fn stored(&self) {
        until("all of it is stored, and the journal gone", || {
            self.records[0].look_after().unwrap();
            landings(self.state.path()).is_empty()
        })
        .await;
    }

    /// Verified by both verifiers, which agree.
    fn verified(&self) -> Report {
        let root = self.state.path().join("records");
        let report = verify_store(&root, &Options::default()).unwrap();
        assert_eq!(second(&[], &[&root]).unwrap(), [told(&report)], "{report:#?}");
        for records in &self.records {
            assert!(records.alarms().is_empty(), "{:?}", records.alarms());
        }
        report
    }

    fn intents(&self, session: Uuid) -> usize {
        let mut events: Vec<Event> = Vec::new();
        replay(&self.state.path().join("records"), session, &|_| None, &mut |event| {
            events.push(event);
            Ok(())
        })
        .unwrap();
        events.iter().filter(|event| event.header.kind == Kind::Intent).count()
    }
}

fn at(turn: u64) -> usize {
    usize::try_from(turn % 3).unwrap()
}

fn verdict(report: &Report, session: Uuid) -> Verdict {
    let found = report
        .sessions
        .iter()
        .find(|found| found.session == session.to_string());
    found
        .unwrap_or_else(|| panic!("{session} is not in {report:#?}"))
        .verdict
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not within 30 s: {what}");
        tokio::task::yield_now().await;
    }
}

/// Everything that was written is held by a collector.
async fn received(recording: &Recording) {
    let all = || {
        let status = recording.log.status();
        status.received == status.written
    };
    until("the collector holds everything", all).await;
}

async fn run(recording: &Recording, session: &mut SessionRecorder, op: u64) {
    until("it may be recorded", || session.ready().is_ok()).await;
    operate(session, op, "select 1", b"1").unwrap();
    received(recording).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_moves_between_brokers_is_one_log() {
    let brokers = Brokers::start(3, Duration::from_secs(60));
    let mut recording = brokers.recording(1);
    let mut session = recording.session().unwrap();
    session.opened().await.unwrap();
    let mut id = Vec::new();
    for op in 1..=12u64 {
        run(&recording, &mut session, op).await;
        if op % 4 == 0 {
            // Sealed and stored wherever it is now, and the next one begins there.
            let done = session.id();
            session.close(left(4));
            id.push(done);
            session = recording.session().unwrap();
            session.opened().await.unwrap();
        }
        brokers.look_after(at(op)).await;
        assert_eq!(brokers.verified().exit_code(), 0, "after {op}");
        recording.move_to(&brokers.records[at(op)]).unwrap();
    }
    let last = session.id();
    session.close(left(0));
    id.push(last);
    recording.stop().await.unwrap();
    for records in &brokers.records {
        last_checkpoint(Arc::clone(records)).await;
    }
    let report = brokers.verified();
    for (at, session) in id.iter().enumerate() {
        assert_eq!(verdict(&report, *session), Verdict::Valid, "{report:#?}");
        assert_eq!(brokers.intents(*session), if at < 3 { 4 } else { 0 });
    }
    // Whoever asks whichever of them is told the same.
    for records in &brokers.records {
        let listed: Vec<String> = records.sessions().into_iter().map(|session| session.id).collect();
        assert_eq!(listed, id.iter().map(Uuid::to_string).collect::<Vec<_>>());
    }
    assert!(landings(brokers.state.path()).is_empty(), "journals are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_held_when_it_died_is_not_lost_when_its_log_moves() {
    let mut brokers = Brokers::start(2, Duration::from_secs(60));
    let mut recording = brokers.recording(1);
    let mut session = recording.session().unwrap();
    session.opened().await.unwrap();
    run(&recording, &mut session, 1).await;
    // A machine that is gone: nothing of it runs any more, and its folder is as it was.
    recording.move_to(&brokers.records[1]).unwrap();
    drop(brokers.records.remove(0));
    run(&recording, &mut session, 2).await;
    let own = landings(brokers.state.path());
    assert!(own.len() == 1 && own[0].ends_with(".broker-1.sgr"), "{own:?}");
    let (id, opened) = (session.id(), brokers.records[0].sessions());
    assert!(opened.iter().any(|open| open.id == id.to_string()), "{opened:?}");
    session.close(left(2));
    brokers.leads[1].store(true, Ordering::SeqCst);
    recording.stop().await.unwrap();
    last_checkpoint(Arc::clone(&brokers.records[0])).await;
    assert_eq!(verdict(&brokers.verified(), id), Verdict::Valid);
    assert_eq!(brokers.intents(id), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_a_log_left_lets_go_of_it_and_calls_nobody_an_orphan() {
    let brokers = Brokers::start(2, Duration::from_secs(4));
    let mut recording = brokers.recording(1);
    let mut session = recording.session().unwrap();
    session.opened().await.unwrap();
    run(&recording, &mut session, 1).await;
    recording.move_to(&brokers.records[1]).unwrap();
    // The one it left finds it silent after a while, and sees that the other one hears it.
    let (began, mut op) = (tokio::time::Instant::now(), 1);
    while brokers.records[0].logs_here() > 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "it never lets go");
        op += 1;
        run(&recording, &mut session, op).await;
        brokers.records[1].look_after().unwrap();
        brokers.records[0].look_after().unwrap();
    }
    let orphans = brokers.orphans();
    assert!(orphans.is_empty(), "{orphans:?}");
    let id = session.id();
    assert!(matches!(verdict(&brokers.verified(), id), Verdict::Open { .. }));
    session.close(left(op));
    recording.stop().await.unwrap();
    brokers.look_after(0).await;
    assert_eq!(verdict(&brokers.verified(), id), Verdict::Valid);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_broker_and_a_dead_sidecar_left_is_sealed_by_the_leader() {
    let mut brokers = Brokers::start(2, Duration::from_millis(200));
    let mut recording = brokers.recording(1);
    recording.move_to(&brokers.records[1]).unwrap();
    let mut session = recording.session().unwrap();
    session.opened().await.unwrap();
    run(&recording, &mut session, 1).await;
    brokers.records[1].look_after().unwrap();
    let id = session.id();
    recording.kill().await;
    drop(brokers.records.remove(1));
    brokers.stored().await;
    let orphans = brokers.orphans();
    assert!(
        orphans.len() == 1 && orphans[0].contains(&id.to_string()),
        "{orphans:?}"
    );
    let report = brokers.verified();
    assert!(matches!(verdict(&report, id), Verdict::Unsealed { .. }), "{report:#?}");
    assert_eq!(brokers.intents(id), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_log_became_after_it_left_is_not_lost_with_the_broker_it_went_to() {
    let mut brokers = Brokers::start(2, Duration::from_millis(200));
    let mut recording = brokers.recording(1);
    let mut session = recording.session().unwrap();
    session.opened().await.unwrap();
    run(&recording, &mut session, 1).await;
    // The leader called it an orphan in a pause, which binds nobody.
    until("it is silent", || {
        brokers.records[0].look_after().unwrap();
        !brokers.orphans().is_empty()
    })
    .await;
    recording.move_to(&brokers.records[1]).unwrap();
    run(&recording, &mut session, 2).await;
    let id = session.id();
    // Both die before that broker said that it hears it.
    recording.kill().await;
    drop(brokers.records.remove(1));
    brokers.stored().await;
    let report = brokers.verified();
    assert!(matches!(verdict(&report, id), Verdict::Unsealed { .. }), "{report:#?}");
    assert_eq!(brokers.intents(id), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_remembers_of_a_log_that_left_is_stored_by_nobody() {
    let mut brokers = Brokers::start(2, Duration::from_millis(200));
    let mut recording = brokers.recording(1);
    let mut session = recording.session().unwrap();
    session.opened().await.unwrap();
    run(&recording, &mut session, 1).await;
    recording.move_to(&brokers.records[1]).unwrap();
    run(&recording, &mut session, 2).await;
    let id = session.id();
    recording.kill().await;
    drop(brokers.records.remove(1));
    // Nobody says that it hears it, and nobody leads: the one that had it first lets go of it.
    brokers.leads[0].store(false, Ordering::SeqCst);
    until("it is let go of", || {
        brokers.records[0].look_after().unwrap();
        brokers.records[0].logs_here() == 0
    })
    .await;
    assert!(brokers.orphans().is_empty(), "{:?}", brokers.orphans());
    brokers.leads[0].store(true, Ordering::SeqCst);
    brokers.stored().await;
    assert_eq!(brokers.orphans().len(), 1);
    brokers.verified();
    assert_eq!(brokers.intents(id), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_lead_at_once_sign_one_tree() {
    let brokers = Brokers::start(2, Duration::from_secs(60));
    brokers.leads[1].store(true, Ordering::SeqCst);
    for instance in 1..=6 {
        let mut recording = brokers.recording(instance);
        recording
            .move_to(&brokers.records[usize::try_from(instance % 2).unwrap()])
            .unwrap();
        let mut session = recording.session().unwrap();
        session.opened().await.unwrap();
        run(&recording, &mut session, 1).await;
        session.close(left(1));
        recording.stop().await.unwrap();
        let both = brokers.records.iter().map(|records| {
            let records = Arc::clone(records);
            tokio::task::spawn_blocking(move || records.look_after())
        });
        for done in both.collect::<Vec<_>>() {
            done.await.unwrap().unwrap();
        }
    }
    brokers.records[0].look_after().unwrap();
    brokers.records[1].look_after().unwrap();
    let report = brokers.verified();
    assert_eq!((report.exit_code(), report.sessions.len()), (0, 6), "{report:#?}");
    // A start finds what both made.
    let fresh = brokers.open(1);
    fresh.look_after().unwrap();
    assert_eq!(brokers.verified().exit_code(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_died_before_its_checkpoint_is_followed_by_one_that_makes_the_same_tree() {
    let brokers = Brokers::start(2, Duration::from_secs(60));
    brokers.leads[0].store(false, Ordering::SeqCst);
    // Both have noted entries, and would take their own before the other's.
    for instance in 1..=2 {
        let mut recording = brokers.recording(instance);
        let records = &brokers.records[usize::try_from(instance - 1).unwrap()];
        recording.move_to(records).unwrap();
        let mut session = recording.session().unwrap();
        session.opened().await.unwrap();
        run(&recording, &mut session, 1).await;
        session.close(left(1));
        recording.stop().await.unwrap();
    }
    // The first leader gets as far as its tiles: where its checkpoint would be, something else is.
    let log = brokers.state.path().join("records/v1/local/tlog");
    let in_the_way: Vec<_> = (1..40).map(|size| log.join(format!("checkpoint.{size}"))).collect();
    in_the_way
        .iter()
        .for_each(|place| std::fs::create_dir_all(place).unwrap());
    brokers.leads[0].store(true, Ordering::SeqCst);
    brokers.records[0].look_after().unwrap_err();
    in_the_way.iter().for_each(|place| std::fs::remove_dir(place).unwrap());
    assert!(!files(&log.join("tile"), "").is_empty(), "it wrote no tiles");
    brokers.look_after(1).await;
    let report = brokers.verified();
    assert_eq!((report.exit_code(), report.sessions.len()), (0, 2), "{report:#?}");
    brokers.look_after(0).await;
    assert_eq!(brokers.verified().exit_code(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_says_two_things_to_two_brokers_is_an_alarm() {
    let brokers = Brokers::start(2, Duration::from_secs(60));
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Recording::start(one.path(), Arc::clone(&brokers.records[0]), 1).unwrap();
    let mut session = first.session().unwrap();
    session.opened().await.unwrap();
    run(&first, &mut session, 1).await;
    // The same pod and instance with another log: a sidecar that would have two records of one time.
    let second = Recording::start(other.path(), Arc::clone(&brokers.records[1]), 1).unwrap();
    until("it is an alarm", || !brokers.records[1].alarms().is_empty()).await;
    until("the sidecar is told", || second.log.status().refused > 0).await;
    assert_eq!(second.log.status().received, 0, "taken");
    second.kill().await;
    let report = verify_store(&brokers.state.path().join("records"), &Options::default()).unwrap();
    assert!(
        matches!(verdict(&report, session.id()), Verdict::Open { .. }),
        "{report:#?}"
    );
}

/// A stream to a broker by hand.
struct Stream {
    up: mpsc::Sender<Bytes>,
    answers: BoxStream<'static, Bytes>,
}

impl Stream {
    fn open(records: &Arc<Records>, log: &Log) -> Stream {
        let (up, chunks) = mpsc::channel::<Bytes>(8);
        let body = stream::unfold(chunks, |mut chunks| async move {
            let chunk = chunks.recv().await?;
            Some((Ok::<Bytes, ()>(chunk), chunks))
        });
        let caller = Caller {
            namespace: "agents".into(),
            service_account: "agent".into(),
            pod_uid: POD.into(),
            instance: 1,
        };
        let mut hello = Vec::new();
        items::announce(1, &log.boot(), &mut hello);
        up.try_send(hello.into()).unwrap();
        let answers = Arc::clone(records).accept(caller, body).boxed();
        Stream { up, answers }
    }

    /// Log number up to which the next answer says that frames are held; nothing where the stream ends instead.
    async fn acknowledged(&mut self) -> Option<u64> {
        let lines = self.answers.next().await?;
        let line: serde_json::Value = serde_json::from_slice(lines.split(|byte| *byte == b'\n').next()?).unwrap();
        assert!(line.to_string().contains("upto"), "{line}");
        find(&line, "upto")
    }
}

fn find(value: &serde_json::Value, name: &str) -> Option<u64> {
    let object = value.as_object()?;
    object
        .get(name)
        .and_then(serde_json::Value::as_u64)
        .or_else(|| object.values().find_map(|value| find(value, name)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_a_broker_still_has_acknowledges_nothing_once_the_log_is_elsewhere() {
    let brokers = Brokers::start(2, Duration::from_secs(60));
    let mut recording = brokers.recording(1);
    let mut session = recording.session().unwrap();
    session.opened().await.unwrap();
    run(&recording, &mut session, 1).await;
    let mut stale = Stream::open(&brokers.records[0], &recording.log);
    let before = stale.acknowledged().await.unwrap();
    recording.move_to(&brokers.records[1]).unwrap();
    run(&recording, &mut session, 2).await;
    let held = landings(brokers.state.path());
    assert!(held.len() == 1 && held[0].ends_with(".broker-1.sgr"), "{held:?}");
    // What lay in the first broker's buffers: the same frames, and those that it does not hold.
    let journal = std::fs::read(&held[0]).unwrap();
    let mut late = Vec::new();
    let mut at = 0;
    while let Ok(frame) = Frame::parse(&journal[at..]) {
        at += frame.bytes.len();
        items::frame(frame.bytes, &mut late);
    }
    stale.up.send(late.into()).await.unwrap();
    let after = stale.acknowledged().await;
    assert!(
        after.is_none_or(|after| after <= before),
        "it acknowledged {after:?} after {before}"
    );
    assert_eq!(landings(brokers.state.path()), held, "it made a journal of its own");
    let id = session.id();
    session.close(left(2));
    recording.stop().await.unwrap();
    brokers.look_after(0).await;
    assert_eq!(verdict(&brokers.verified(), id), Verdict::Valid);
}

fn landings(state: &Path) -> Vec<String> {
    files(&state.join("records/v1/local/landing"), ".sgr")
}

/// Files with this ending; none where there is no folder.
fn files(folder: &Path, end: &str) -> Vec<String> {
    if !folder.exists() {
        return Vec::new();
    }
    let found = crate::records::files(folder);
    let found = found.iter().filter_map(|path| path.to_str());
    found.filter(|path| path.ends_with(end)).map(str::to_owned).collect()
}
