//! Sessions of one lane that have to be recorded before they go on share a write; none waits for ever, and none is refused
//! for another's sake.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use sidegate_policies::api::target::{Durability, Recording as Class};
use sidegate_policies::record::payload::Intent;
use sidegate_policies::record::{Frame, Kind};
use sidegate_sidecar::record::{
    batch_on_this_thread, CannotRecord, Log, LogOptions, SegmentFile, SessionRecorder, Volume,
};
use sidegate_sidecar::task::{Lanes, Tasks};
use sidegate_tests::disk::{Disk, Fault, SeededRandom, Step, StillClock};
use sidegate_tests::recording::{identity, open};
use tokio::sync::{mpsc, Barrier};
use uuid::Uuid;

const SESSIONS: usize = 8;
/// Steps of a volume before the sessions' own: the log's folder, its first file, its `boot`.
const BEFORE: usize = 3;

fn start(disk: &Disk) -> Arc<Log> {
    start_on(Arc::new(disk.clone()))
}

fn start_on(volume: Arc<dyn Volume>) -> Arc<Log> {
    let options = LogOptions {
        volume,
        identity: identity(1),
        clock: Arc::new(StillClock::default()),
        random: Arc::new(SeededRandom::new(7)),
    };
    Log::start(options).unwrap()
}

fn session(log: &Arc<Log>, durability: Durability) -> SessionRecorder {
    let class = Class {
        durability,
        ..Class::default()
    };
    log.open(Uuid::now_v7(), class, &open(class)).unwrap()
}

/// Buffers an intent.
fn intend(session: &mut SessionRecorder) {
    let intent = Intent {
        text: Some("select 1".into()),
        ..Intent::default()
    };
    session.event(Kind::Intent, Some(1), &intent).unwrap();
}

/// Sessions on one lane, every second one in the other class, that commit in the same round. What each was answered, by
/// class, and what the volume saw of it.
async fn commit_at_once(disk: &Disk, other: Durability) -> (Vec<(Durability, Result<(), CannotRecord>)>, Vec<Step>) {
    let log = start(disk);
    let tasks = Tasks::on(Lanes::start(1).unwrap());
    let (ready, seen) = (Arc::new(Barrier::new(SESSIONS)), Arc::new(Barrier::new(SESSIONS + 1)));
    let (tell, mut told) = mpsc::channel(SESSIONS);
    for number in 0..SESSIONS {
        let (log, tell, ready, seen) = (log.clone(), tell.clone(), ready.clone(), seen.clone());
        let class = if number % 2 == 0 { Durability::Journal } else { other };
        tasks.spawn_session(async move {
            let mut session = session(&log, class);
            intend(&mut session);
            ready.wait().await;
            let answer = poll_fn(|cx| session.poll_commit(cx)).await;
            tell.send((class, answer)).await.unwrap();
            seen.wait().await;
        });
    }
    let mut answers = Vec::new();
    for _ in 0..SESSIONS {
        answers.push(told.recv().await.unwrap());
    }
    let steps = disk.steps().split_off(BEFORE + SESSIONS);
    seen.wait().await;
    tasks.wait().await;
    (answers, steps)
}

/// Every session's frames follow each other; how many there are.
fn chained(disk: &Disk) -> usize {
    let frames = disk.frames(1);
    let mut heads = BTreeMap::new();
    for bytes in frames.values() {
        let frame = Frame::parse(bytes).unwrap();
        let (number, head) = heads.insert(frame.header.session, (0, [0; 32])).unwrap_or_default();
        assert_eq!(frame.header.number, number, "{:?}", frame.header.kind);
        if number > 0 {
            assert_eq!(frame.header.previous, head);
        }
        heads.insert(frame.header.session, (number + 1, frame.hash()));
    }
    frames.len()
}

#[tokio::test]
async fn sessions_of_a_lane_that_commit_in_one_round_share_a_write() {
    let disk = Disk::default();
    let (answers, steps) = commit_at_once(&disk, Durability::BestEffort).await;
    assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "{answers:?}");
    assert!(matches!(steps.as_slice(), [Step::Append(_)]), "{steps:?}");
    // `boot`, and of each session `open`, `intent` and `close`.
    assert_eq!(chained(&disk), 1 + 3 * SESSIONS);
}

#[tokio::test]
async fn a_batch_that_fails_is_written_session_by_session() {
    let disk = Disk::with(Some(Fault::Full {
        step: (BEFORE + SESSIONS) as u64,
        steps: 1,
        bytes: 300,
        broken: false,
    }));
    let (answers, steps) = commit_at_once(&disk, Durability::Journal).await;
    assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "{answers:?}");
    assert_eq!(steps.len(), 2 + SESSIONS, "the batch, its cut, each alone: {steps:?}");
    assert_eq!(chained(&disk), 1 + 3 * SESSIONS);
}

#[tokio::test]
async fn what_no_write_takes_is_refused_in_journal_alone() {
    let disk = Disk::with(Some(Fault::Full {
        step: (BEFORE + SESSIONS) as u64,
        steps: 1_000,
        bytes: 1,
        broken: false,
    }));
    let (answers, _) = commit_at_once(&disk, Durability::BestEffort).await;
    for (class, answer) in answers {
        let full = CannotRecord::Disk(io::ErrorKind::StorageFull);
        let right = match class {
            Durability::Journal => Err(full),
            Durability::BestEffort => Ok(()),
        };
        assert_eq!(answer, right, "{class:?}");
    }
    assert_eq!(chained(&disk), 1 + SESSIONS);
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One poll of a session's commit, and whom it wakes.
fn poll(session: &mut SessionRecorder) -> (Poll<Result<(), CannotRecord>>, Arc<Woken>) {
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(woken.clone());
    (session.poll_commit(&mut Context::from_waker(&waker)), woken)
}

/// A volume whose n-th append panics.
struct Panicking(Disk, Arc<AtomicUsize>);

struct PanickingFile(Box<dyn SegmentFile>, Arc<AtomicUsize>);

impl Volume for Panicking {
    fn create_log(&self, log: &str) -> io::Result<()> {
        self.0.create_log(log)
    }
    fn create(&self, log: &str, file: &str, reserve: u64) -> io::Result<Box<dyn SegmentFile>> {
        let file = self.0.create(log, file, reserve)?;
        Ok(Box::new(PanickingFile(file, self.1.clone())))
    }
    fn read(&self, log: &str, file: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.0.read(log, file, offset, len)
    }
    fn logs(&self) -> io::Result<Vec<String>> {
        self.0.logs()
    }
    fn files(&self, log: &str) -> io::Result<Vec<(String, u64)>> {
        self.0.files(log)
    }
    fn remove(&self, log: &str, file: &str) -> io::Result<()> {
        self.0.remove(log, file)
    }
    fn remove_log(&self, log: &str) -> io::Result<()> {
        self.0.remove_log(log)
    }
}

impl SegmentFile for PanickingFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        assert_ne!(self.1.fetch_sub(1, Ordering::SeqCst), 1, "as the test wants it");
        self.0.append(bytes)
    }
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.0.cut(len)
    }
}

#[test]
fn a_panic_in_the_write_of_a_batch_ends_one_session_alone() {
    batch_on_this_thread();
    let disk = Disk::default();
    // `boot`, three times `open`, the batch.
    let log = start_on(Arc::new(Panicking(disk.clone(), Arc::new(AtomicUsize::new(5)))));
    let mut sessions = [0; 3].map(|_| session(&log, Durability::Journal));
    let woken = sessions.each_mut().map(|session| {
        intend(session);
        poll(session).1
    });
    let [first, second, third] = &mut sessions;
    assert!(catch_unwind(AssertUnwindSafe(|| poll(first))).is_err());
    assert!(woken.iter().all(|woken| woken.0.load(Ordering::SeqCst)));
    for session in [second, third] {
        assert_eq!(poll(session).0, Poll::Ready(Ok(())));
    }
    drop(sessions);
    assert_eq!(chained(&disk), 1 + 3 * 3);
}

#[test]
fn nobody_sleeps_on_a_batch_whose_first_session_is_gone() {
    batch_on_this_thread();
    let disk = Disk::default();
    let log = start(&disk);
    let mut alone = session(&log, Durability::Journal);
    intend(&mut alone);
    assert_eq!(poll(&mut alone).0, Poll::Ready(Ok(())), "whom should it wait for?");
    let [mut first, mut second] = [0; 2].map(|_| session(&log, Durability::Journal));
    for session in [&mut first, &mut second] {
        intend(session);
    }
    let (pending, woken) = poll(&mut first);
    assert_eq!((pending, woken.0.load(Ordering::SeqCst)), (Poll::Pending, true));
    let (pending, woken) = poll(&mut second);
    assert_eq!((pending, woken.0.load(Ordering::SeqCst)), (Poll::Pending, false));
    let before = disk.frames(1).len();
    drop(first);
    assert!(woken.0.load(Ordering::SeqCst));
    // Both intents, and the first one's close.
    assert_eq!(disk.frames(1).len(), before + 3);
    assert_eq!(poll(&mut second).0, Poll::Ready(Ok(())));
}

#[test]
fn what_came_after_a_commit_that_nobody_waited_for_is_written_by_the_next() {
    batch_on_this_thread();
    let disk = Disk::default();
    let log = start(&disk);
    let [mut first, mut second] = [0; 2].map(|_| session(&log, Durability::Journal));
    for session in [&mut first, &mut second] {
        intend(session);
        assert_eq!(poll(session).0, Poll::Pending);
    }
    assert_eq!(poll(&mut first).0, Poll::Ready(Ok(())));
    // The second one's future was dropped; it goes on with something else.
    intend(&mut second);
    let before = disk.frames(1).len();
    assert_eq!(poll(&mut second).0, Poll::Pending);
    assert_eq!(poll(&mut second).0, Poll::Ready(Ok(())));
    assert_eq!(disk.frames(1).len(), before + 1);
}
