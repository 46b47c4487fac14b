//! What the recorder promises: nothing forwarded unrecorded, everything readable after a kill, replay as recorded.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use sidegate_broker::records::SessionKeys;
use sidegate_policies::api::target::Durability;
use sidegate_policies::record::replay::{csv_line, json_line, replay, Content, Event, Transcript};
use sidegate_policies::record::verify::{verify_store, Options, Report, Verdict};
use sidegate_policies::record::Kind;
use sidegate_policies::wire::RecordAck;
use sidegate_sidecar::record::{
    CannotRecord, Clock, DirectoryVolume, Log, LogOptions, RecordSink, RecordStream, SegmentFile, SinkError,
    SystemClock, SystemRandom, Volume,
};
use sidegate_tests::recording::{identity, last_checkpoint, left, operate, refuse, small_store, store, Recording};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

fn verify(state: &Path) -> Report {
    verify_store(&state.join("records"), &Options::default()).unwrap()
}

fn verdict(report: &Report, session: Uuid) -> Verdict {
    let name = session.to_string();
    report
        .sessions
        .iter()
        .find(|found| found.session == name)
        .unwrap()
        .verdict
}

fn events(state: &Path, session: Uuid) -> Vec<Event> {
    let root = state.join("records");
    let keys = SessionKeys::open(&root).unwrap();
    let mut events = Vec::new();
    replay(&root, session, &|id| keys.get(id), &mut |event| {
        events.push(event);
        Ok(())
    })
    .unwrap();
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_sessions_are_valid_and_replay_as_recorded() {
    let state = tempfile::tempdir().unwrap();
    let ids = small_store(state.path()).await.unwrap();
    let report = verify(state.path());
    assert_eq!(report.exit_code(), 0, "{report:#?}");
    assert!(report.checkpoints > 0);
    for id in &ids {
        assert_eq!(verdict(&report, *id), Verdict::Valid);
    }
    let told: Vec<Event> = events(state.path(), ids[2]);
    let kinds: Vec<Kind> = told.iter().map(|event| event.header.kind).collect();
    let operation = [Kind::Intent, Kind::Body, Kind::Outcome];
    let right: Vec<Kind> = [Kind::Open]
        .into_iter()
        .chain(operation.into_iter().cycle().take(9))
        .chain([Kind::Denied, Kind::Close])
        .collect();
    assert_eq!(kinds, right);
    assert!(matches!(&told[2].content, Content::Bytes { bytes, .. } if bytes == b"bbbb"));
    let mut transcript = Transcript::default();
    let text: String = told.iter().map(|event| transcript.tell(event)).collect();
    for part in [
        "shop/orders",
        "> select b from t",
        "allow by shop/reads",
        "x drop table t",
        "DENIED (denied) by shop/no-ddl",
        "closed (client)",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(told
        .iter()
        .all(|event| !json_line(event).contains('\n') && !csv_line(event).contains('\n')));
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_bytes_hold_no_content_without_the_session_key() {
    let state = tempfile::tempdir().unwrap();
    let recording = Recording::start(state.path(), store(state.path()).unwrap(), 1).unwrap();
    let mut session = recording.session().unwrap();
    session.opened().await.unwrap();
    operate(&mut session, 1, "select 'canary-text'", b"canary-reply").unwrap();
    refuse(&mut session, 2, "drop table canary_table").unwrap();
    let id = session.id();
    session.close(left(1));
    recording.stop().await.unwrap();
    let mut checked = 0;
    for file in files(state.path()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(
            !bytes.windows(6).any(|window| window == b"canary"),
            "{}",
            file.display()
        );
        checked += 1;
    }
    assert!(checked > 5);
    // Shredding is deleting the key: the content is gone, the chain is not.
    std::fs::remove_file(state.path().join(format!("records/private/session-keys/{id}"))).unwrap();
    let told = events(state.path(), id);
    assert!(told
        .iter()
        .any(|event| matches!(&event.content, Content::Unreadable(_))));
    assert_eq!(verdict(&verify(state.path()), id), Verdict::Valid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_event_and_a_long_reply_come_back_whole_or_say_what_is_missing() {
    let state = tempfile::tempdir().unwrap();
    let recording = Recording::start(state.path(), store(state.path()).unwrap(), 1).unwrap();
    let mut session = recording.session().unwrap();
    session.opened().await.unwrap();
    // Random letters do not compress below a frame.
    let mut noise = vec![0u8; 3 << 20];
    aws_lc_rs::rand::fill(&mut noise).unwrap();
    let text: String = noise.iter().map(|byte| char::from(b' ' + byte % 94)).collect();
    let reply: Vec<u8> = noise.iter().take(400_000).copied().collect();
    operate(&mut session, 1, &text, &reply).unwrap();
    let id = session.id();
    session.close(left(1));
    recording.stop().await.unwrap();
    let told = events(state.path(), id);
    let Content::Json(intent) = &told[1].content else {
        panic!("{:?}", told[1].header)
    };
    assert_eq!(intent["text"].as_str().unwrap(), text);
    let mut kept = Vec::new();
    for event in &told {
        if let Content::Bytes { offset, bytes, .. } = &event.content {
            let at = usize::try_from(*offset).unwrap();
            assert_eq!(bytes[..], reply[at..at + bytes.len()]);
            kept.push((at, bytes.len()));
        }
    }
    assert_eq!(kept, [(0, 65536), (400_000 - 65536, 65536)]);
    let outcome = told.iter().find(|event| event.header.kind == Kind::Outcome).unwrap();
    let Content::Json(outcome) = &outcome.content else {
        panic!()
    };
    assert_eq!(outcome["bodyBytes"], 400_000);
    assert_eq!(outcome["bodyDigest"].as_str().unwrap().len(), 64);
    assert_eq!(verdict(&verify(state.path()), id), Verdict::Valid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_is_recovered_uploaded_and_named_unsealed() {
    let state = tempfile::tempdir().unwrap();
    let records = store(state.path()).unwrap();
    let first = Recording::start(state.path(), Arc::clone(&records), 1).unwrap();
    let mut done = first.session().unwrap();
    done.opened().await.unwrap();
    operate(&mut done, 1, "select 1", b"1").unwrap();
    let done_id = done.id();
    done.close(left(1));
    // The flusher may be the one that finds the session closed and seals; then it does so a moment after `close`
    // returns. boot, cert, open, intent, body, outcome, close, seal: from then on no kill can unseal it.
    wait_until(|| first.log.status().written == 8).await;
    let mut cut = first.session().unwrap();
    cut.opened().await.unwrap();
    operate(&mut cut, 1, "select 2", b"2").unwrap();
    operate(&mut cut, 2, "select 3", b"3").unwrap();
    let cut_id = cut.id();
    first.kill().await;
    // What a kill leaves out: the last outcome and `close`.
    let _kept = std::mem::ManuallyDrop::new(cut);
    let second = Recording::start(state.path(), Arc::clone(&records), 2).unwrap();
    let mut later = second.session().unwrap();
    later.opened().await.unwrap();
    let later_id = later.id();
    later.close(left(0));
    wait_until(|| {
        records
            .sessions()
            .iter()
            .any(|found| found.id == cut_id.to_string() && found.orphan.is_some())
    })
    .await;
    // The recovered log leaves the journal once it is stored.
    wait_until(|| std::fs::read_dir(state.path().join("journal")).unwrap().count() == 1).await;
    second.stop().await.unwrap();
    let report = verify(state.path());
    assert_eq!(verdict(&report, done_id), Verdict::Valid, "{report:#?}");
    assert_eq!(verdict(&report, later_id), Verdict::Valid);
    assert!(
        matches!(verdict(&report, cut_id), Verdict::Unsealed { .. }),
        "{report:#?}"
    );
    assert_eq!(report.exit_code(), 10);
    let intents = events(state.path(), cut_id)
        .iter()
        .filter(|event| event.header.kind == Kind::Intent)
        .count();
    assert_eq!(intents, 2, "an intent that was committed survives the kill");
    assert!(records.alarms().is_empty(), "{:?}", records.alarms());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_torn_at_any_byte_costs_only_the_torn_frame() {
    let state = tempfile::tempdir().unwrap();
    let records = store(state.path()).unwrap();
    let recording = Recording::start(state.path(), records, 1).unwrap();
    let mut session = recording.session().unwrap();
    session.opened().await.unwrap();
    recording.kill().await;
    operate(&mut session, 1, "select 1", b"1").unwrap();
    let journal = only_log(&state.path().join("journal"));
    let file = files(&journal).pop().unwrap();
    let whole = std::fs::read(&file).unwrap();
    let frames = frame_ends(&whole);
    let (before, after) = (frames[frames.len() - 2], frames[frames.len() - 1]);
    let _kept = std::mem::ManuallyDrop::new(session);
    for cut in before..=after {
        let copy = tempfile::tempdir().unwrap();
        let folder = copy.path().join("journal").join(journal.file_name().unwrap());
        private_folder(&folder);
        std::fs::write(folder.join(file.file_name().unwrap()), &whole[..cut]).unwrap();
        let records = store(copy.path()).unwrap();
        let again = Recording::start(copy.path(), records, 2).unwrap();
        let found = first_recovered(&copy.path().join("journal"));
        let good = if cut == after { frames.len() } else { frames.len() - 1 };
        assert_eq!(found["count"], good as u64, "cut at {cut}");
        assert_eq!(found["number"], good as u64 - 1);
        let why = if cut == before || cut == after { "end" } else { "torn" };
        assert_eq!(found["why"], why, "cut at {cut}");
        again.kill().await;
    }
}

/// A volume that can be full, and that can tear writes.
struct Faulty {
    inner: DirectoryVolume,
    full: Arc<AtomicBool>,
    tear: Arc<AtomicU64>,
}

struct FaultyFile {
    inner: Box<dyn SegmentFile>,
    full: Arc<AtomicBool>,
    tear: Arc<AtomicU64>,
}

impl SegmentFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            let torn = usize::try_from(self.tear.load(Ordering::SeqCst))
                .unwrap()
                .min(bytes.len());
            self.inner.append(&bytes[..torn])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.append(bytes)
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.inner.cut(len)
    }
}

impl Volume for Faulty {
    fn create_log(&self, log: &str) -> io::Result<()> {
        self.inner.create_log(log)
    }
    fn create(&self, log: &str, file: &str, reserve: u64) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(FaultyFile {
            inner: self.inner.create(log, file, reserve)?,
            full: Arc::clone(&self.full),
            tear: Arc::clone(&self.tear),
        }))
    }
    fn read(&self, log: &str, file: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.inner.read(log, file, offset, len)
    }
    fn logs(&self) -> io::Result<Vec<String>> {
        self.inner.logs()
    }
    fn files(&self, log: &str) -> io::Result<Vec<(String, u64)>> {
        self.inner.files(log)
    }
    fn remove(&self, log: &str, file: &str) -> io::Result<()> {
        self.inner.remove(log, file)
    }
    fn remove_log(&self, log: &str) -> io::Result<()> {
        self.inner.remove_log(log)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_in_journal_counts_in_best_effort_and_leaves_a_valid_record() {
    let state = tempfile::tempdir().unwrap();
    let (full, tear) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let volume = Arc::new(Faulty {
        inner: DirectoryVolume::open(&state.path().join("journal")).unwrap(),
        full: Arc::clone(&full),
        tear: Arc::clone(&tear),
    });
    let records = store(state.path()).unwrap();
    let clock = Arc::new(SystemClock::default());
    let recording = Recording::start_on(volume, clock, records, 1).unwrap();
    let mut strict = recording.session().unwrap();
    let mut loose = recording.session_in(Durability::BestEffort).unwrap();
    strict.opened().await.unwrap();
    operate(&mut strict, 1, "select 1", b"1").unwrap();
    full.store(true, Ordering::SeqCst);
    for torn in [0u64, 1, 50, 200] {
        tear.store(torn, Ordering::SeqCst);
        let refused = operate(&mut strict, 2, "select 2", b"2").unwrap_err();
        let refused = refused.downcast::<CannotRecord>().unwrap();
        assert_eq!(refused, CannotRecord::Disk(io::ErrorKind::StorageFull));
        operate(&mut loose, 1, "select 3", b"3").unwrap();
    }
    assert!(recording.log.status().failing.is_some());
    // BestEffort goes on, and says what it lost.
    let mut noise = vec![0u8; 200_000];
    aws_lc_rs::rand::fill(&mut noise).unwrap();
    for op in 2..60 {
        operate(&mut loose, op, "select 4", &noise).unwrap();
    }
    full.store(false, Ordering::SeqCst);
    strict.commit().unwrap();
    loose.commit().unwrap();
    let (strict_id, loose_id) = (strict.id(), loose.id());
    strict.close(left(1));
    loose.close(left(1));
    assert!(recording.log.status().lost > 0);
    recording.stop().await.unwrap();
    let report = verify(state.path());
    assert_eq!(verdict(&report, strict_id), Verdict::Valid, "{report:#?}");
    assert_eq!(verdict(&report, loose_id), Verdict::Valid);
}

/// A clock that tests move.
#[derive(Default)]
struct Moved(AtomicU64);

impl Clock for Moved {
    fn mono_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst) * 1_000_000_000
    }
    fn wall_us(&self) -> u64 {
        1_700_000_000_000_000 + self.0.load(Ordering::SeqCst) * 1_000_000
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_collector_stops_operations_after_five_seconds_and_drains_without_gap_afterwards() {
    let state = tempfile::tempdir().unwrap();
    let records = store(state.path()).unwrap();
    let volume = Arc::new(DirectoryVolume::open(&state.path().join("journal")).unwrap());
    let clock = Arc::new(Moved::default());
    let recording = Recording::start_on(volume, Arc::<Moved>::clone(&clock), Arc::clone(&records), 1).unwrap();
    recording.wire.silent.store(true, Ordering::SeqCst);
    let mut session = recording.session().unwrap();
    operate(&mut session, 1, "select 1", b"1").unwrap();
    session.ready().unwrap();
    clock.0.fetch_add(6, Ordering::SeqCst);
    // Whether the stream was up before it fell silent is a race; both ways end the same.
    if recording.log.status().received == 0 {
        assert_eq!(session.ready(), Err(CannotRecord::CollectorSilent));
        assert!(recording.session().is_err(), "no new session either");
    }
    recording.wire.silent.store(false, Ordering::SeqCst);
    session.opened().await.unwrap();
    wait_until(|| session.ready().is_ok()).await;
    operate(&mut session, 2, "select 2", b"2").unwrap();
    let id = session.id();
    session.close(left(2));
    recording.stop().await.unwrap();
    assert!(records.alarms().is_empty(), "{:?}", records.alarms());
    let intents = events(state.path(), id)
        .iter()
        .filter(|event| event.header.kind == Kind::Intent)
        .count();
    assert_eq!(intents, 2);
    assert!(matches!(
        verdict(&verify(state.path()), id),
        Verdict::ClockSuspect | Verdict::Valid
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_restarts_goes_on_where_it_was() {
    let state = tempfile::tempdir().unwrap();
    let recording = Recording::start(state.path(), store(state.path()).unwrap(), 1).unwrap();
    let mut early = recording.session().unwrap();
    operate(&mut early, 1, "select 1", b"1").unwrap();
    let mut long = recording.session().unwrap();
    long.opened().await.unwrap();
    early.close(left(1));
    let (early_id, long_id) = (early.id(), long.id());
    last_checkpoint(Arc::clone(&recording.records)).await;
    let report = verify(state.path());
    assert!(matches!(verdict(&report, long_id), Verdict::Open { .. }), "{report:#?}");
    assert_eq!(report.exit_code(), 0, "{report:#?}");
    // A second store on the same folder is what a restart reads.
    let again = store(state.path()).unwrap();
    assert!(again
        .sessions()
        .iter()
        .any(|found| found.id == long_id.to_string() && found.ended.is_none()));
    drop(again);
    long.close(left(0));
    recording.stop().await.unwrap();
    let report = verify(state.path());
    assert_eq!(verdict(&report, early_id), Verdict::Valid, "{report:#?}");
    assert_eq!(verdict(&report, long_id), Verdict::Valid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_summary_that_cannot_be_written_is_written_later() {
    let state = tempfile::tempdir().unwrap();
    let recording = Recording::start(state.path(), store(state.path()).unwrap(), 1).unwrap();
    // A file where summaries have their folder: nothing else of the store is in its way.
    let summaries = state.path().join("records/v1/local/session");
    std::fs::write(&summaries, b"").unwrap();
    let mut session = recording.session().unwrap();
    operate(&mut session, 1, "select 1", b"1").unwrap();
    session.close(left(1));
    wait_until(|| !recording.records.alarms().is_empty()).await;
    std::fs::remove_file(&summaries).unwrap();
    let id = session.id();
    recording.stop().await.unwrap();
    let written: Vec<_> = files(&summaries);
    let name = format!("{id}.json");
    assert!(written.iter().any(|path| path.ends_with(&name)), "{written:?}");
    assert_eq!(verdict(&verify(state.path()), id), Verdict::Valid);
}

/// A collector that says what it holds, and refuses whatever comes.
#[derive(Default)]
struct Unwilling {
    asked: AtomicU64,
    /// What is sent to it lies here.
    sent: std::sync::Mutex<Vec<mpsc::Receiver<bytes::Bytes>>>,
}

impl RecordSink for Unwilling {
    fn certify(&self, _: [u8; 32]) -> BoxFuture<'_, Result<String, SinkError>> {
        Box::pin(async { Err(SinkError("no".into())) })
    }

    fn connect(&self) -> BoxFuture<'_, Result<RecordStream, SinkError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let ((up, sent), (acks, down)) = (mpsc::channel(8), mpsc::channel(8));
        self.sent.lock().unwrap().push(sent);
        let message = "log number 0 comes after log number 7".to_owned();
        for ack in [RecordAck::Received { upto: 7 }, RecordAck::Refused { upto: 7, message }] {
            acks.try_send(ack).unwrap();
        }
        Box::pin(async { Ok(RecordStream { up, down }) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_goes_on_refusing_is_asked_less_and_less_often() {
    let state = tempfile::tempdir().unwrap();
    let volume = Arc::new(DirectoryVolume::open(&state.path().join("journal")).unwrap());
    let log = Log::start(LogOptions {
        volume,
        identity: identity(1),
        clock: Arc::new(SystemClock::default()),
        random: Arc::new(SystemRandom),
    });
    let (sink, stop) = (Arc::new(Unwilling::default()), CancellationToken::new());
    let run = log.unwrap().run(Arc::<Unwilling>::clone(&sink), stop.clone());
    // The clock stands while anything runs, and goes on to the next pause: a minute of pauses, and no more.
    let minute = tokio::time::sleep(std::time::Duration::from_secs(60));
    tokio::select! {
        () = run => panic!("it ended by itself"),
        () = minute => {}
    }
    let asked = sink.asked.load(Ordering::SeqCst);
    assert!((10..=25).contains(&asked), "asked {asked} times in a minute");
}

async fn wait_until(done: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "it did not happen within 20 s");
        tokio::task::yield_now().await;
    }
}

/// Every file below a folder.
pub fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(files(&path));
        } else {
            out.push(path);
        }
    }
    out.sort();
    out
}

fn only_log(journal: &Path) -> std::path::PathBuf {
    std::fs::read_dir(journal).unwrap().next().unwrap().unwrap().path()
}

fn private_folder(folder: &Path) {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .unwrap();
}

fn frame_ends(bytes: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    while let Ok(frame) = sidegate_policies::record::Frame::parse(&bytes[at..]) {
        at += frame.bytes.len();
        ends.push(at);
    }
    ends
}

/// The `recovered` frame of the newest log on a journal.
fn first_recovered(journal: &Path) -> serde_json::Value {
    for file in files(journal) {
        let bytes = std::fs::read(file).unwrap();
        let mut at = 0;
        while let Ok(frame) = sidegate_policies::record::Frame::parse(&bytes[at..]) {
            at += frame.bytes.len();
            if frame.header.kind == Kind::Recovered {
                return serde_json::from_slice(frame.payload).unwrap();
            }
        }
    }
    panic!("no recovered frame");
}
