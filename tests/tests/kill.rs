//! A sidecar killed in any step of a seeded workload, at any byte of a write, loses nothing it acknowledged; one
//! whose volume refuses in any step refuses too, loses nothing, and goes on once the volume takes writes again.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use serde_json::Value;
use sidegate_policies::api::target::Recording as Class;
use sidegate_policies::record::layout::{LogPath, Store};
use sidegate_policies::record::verify::{verify, Options, Report, Verdict};
use sidegate_policies::record::{Frame, Kind};
use sidegate_sidecar::record::{CannotRecord, Log, LogOptions, Random, SessionRecorder, StartError, Volume};
use sidegate_tests::disk::{Disk, Fault, Frames, Keeper, SeededRandom, Step, StillClock};
use sidegate_tests::recording::{identity, left, open, operate, refuse, Certifier, POD};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Printed when a point fails: this and the fault are all that is needed to see it again.
const SEEDS: [u64; 2] = [3, 20_261_125];
const ACTS: u64 = 40;

/// Seconds since 1970 of the still clock's beginning.
const NOW: u64 = 1_767_225_600;

type Kept = Arc<Mutex<BTreeMap<u64, Frames>>>;

struct Certifiers(Arc<Certifier>);

impl Certifiers {
    fn keeper(&self, instance: u64, open: bool, kept: &Kept) -> Arc<Keeper> {
        let certifier = Arc::clone(&self.0);
        Arc::new(Keeper {
            certify: Box::new(move |key| certifier.certificate(key, instance, NOW).unwrap()),
            open,
            kept: Arc::clone(kept),
        })
    }
}

/// A workload on a log of instance 1.
struct Shift {
    disk: Disk,
    clock: Arc<StillClock>,
    log: Arc<Log>,
    keeper: Arc<Keeper>,
    choice: SeededRandom,
    sessions: Vec<SessionRecorder>,
    op: u64,
    /// Frames that were on the volume at the last acknowledgement.
    acked: Frames,
    refusals: Vec<CannotRecord>,
}

fn start(disk: &Disk, instance: u64, clock: Arc<StillClock>, seed: u64) -> Result<Arc<Log>, StartError> {
    Log::start(LogOptions {
        volume: Arc::new(disk.clone()),
        identity: identity(instance),
        clock,
        random: Arc::new(SeededRandom::new(seed)),
    })
}

impl Shift {
    fn begin(disk: &Disk, seed: u64, certifiers: &Certifiers) -> Result<Shift, StartError> {
        let clock = Arc::new(StillClock::default());
        let shift = Shift {
            log: start(disk, 1, Arc::clone(&clock), seed)?,
            disk: disk.clone(),
            clock,
            keeper: certifiers.keeper(1, false, &Kept::default()),
            choice: SeededRandom::new(!seed),
            sessions: Vec::new(),
            op: 0,
            acked: Frames::new(),
            refusals: Vec::new(),
        };
        shift.tick(false);
        Ok(shift)
    }

    /// The log's task runs once, up to where it waits: certifies and seals what is due, or, as at a stop, flushes and
    /// seals everything.
    fn tick(&self, stopping: bool) {
        let stop = CancellationToken::new();
        if stopping {
            stop.cancel();
        }
        let keeper = Arc::clone(&self.keeper);
        assert!(Arc::clone(&self.log).run(keeper, stop).now_or_never().is_none());
    }

    fn work(&mut self) {
        for _ in 0..ACTS {
            if self.disk.dead() {
                return;
            }
            self.act();
        }
    }

    fn act(&mut self) {
        let what = self.choice.below(10);
        let which = self.choice.below(3);
        let size = usize::try_from(self.choice.below(3000)).unwrap();
        self.op += 1;
        match (what, self.pick(which)) {
            (0 | 1, _) | (2..=7, None) => {
                let mut id = [0u8; 16];
                self.choice.fill(&mut id);
                let class = Class::default();
                match self.log.open(Uuid::from_bytes(id), class, &open(class)) {
                    Ok(session) => {
                        self.sessions.push(session);
                        self.acknowledge();
                    }
                    Err(error) => self.refusals.push(error),
                }
            }
            (2..=5, Some(at)) => {
                let text = "select ".repeat(size / 100 + 1);
                let done = operate(&mut self.sessions[at], self.op, &text, &vec![b'r'; size]);
                self.answered(done);
            }
            (6, Some(at)) => {
                let done = refuse(&mut self.sessions[at], self.op, "drop table t");
                self.answered(done);
            }
            (7, Some(at)) => self.sessions.swap_remove(at).close(left(1)),
            (8, _) => {
                // Little: no collector answers here, and after five seconds that alone refuses everything.
                self.clock.pass_ms(size as u64 / 100);
                self.tick(false);
            }
            _ => self.tick(true),
        }
    }

    fn pick(&self, which: u64) -> Option<usize> {
        usize::try_from(which).unwrap().checked_rem(self.sessions.len())
    }

    fn answered(&mut self, done: anyhow::Result<()>) {
        match done {
            Ok(()) => self.acknowledge(),
            Err(error) => self.refusals.push(error.downcast().unwrap()),
        }
    }

    fn acknowledge(&mut self) {
        let written = self.log.status().written;
        self.acked = self.disk.frames(1);
        self.acked.retain(|number, _| *number < written);
    }
}

/// A store of nothing but what a collector kept.
struct Shelf(BTreeMap<String, Vec<u8>>);

impl Shelf {
    fn new(kept: &BTreeMap<u64, Frames>, certifier: &Certifier) -> Shelf {
        let key = certifier.jwk().to_string().into_bytes();
        let mut objects = BTreeMap::from([("v1/local/keys/record-1.jwk".to_owned(), key)]);
        for (instance, frames) in kept {
            let path = LogPath::new("local", "agents", POD, *instance).unwrap();
            let bytes = frames.values().flatten().copied().collect();
            objects.insert(path.object(*frames.keys().next().unwrap()), bytes);
        }
        Shelf(objects)
    }

    fn verify(&self) -> Report {
        verify(self, "shelf", &Options::default()).unwrap()
    }
}

impl Store for Shelf {
    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        let below = format!("{prefix}/");
        Ok(self.0.keys().filter(|name| name.starts_with(&below)).cloned().collect())
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// What must be said of the sessions in a log that has ended.
fn expected(frames: &Frames) -> BTreeMap<String, Verdict> {
    let frames: Vec<Frame<'_>> = frames.values().map(|bytes| Frame::parse(bytes).unwrap()).collect();
    let sealed = frames
        .iter()
        .rposition(|frame| frame.header.kind == Kind::Seal)
        .unwrap_or(0);
    let mut sessions: BTreeMap<Uuid, (Option<u64>, Verdict)> = BTreeMap::new();
    for (at, frame) in frames
        .iter()
        .enumerate()
        .filter(|(_, frame)| !frame.header.kind.of_log())
    {
        let entry = sessions
            .entry(Uuid::from_bytes(frame.header.session))
            .or_insert((None, Verdict::Unsealed { after: None }));
        if at < sealed {
            entry.0 = Some(frame.header.number);
        }
        let signed_close = at < sealed && frame.header.kind == Kind::Close;
        entry.1 = match signed_close {
            true => Verdict::Valid,
            false => Verdict::Unsealed { after: entry.0 },
        };
    }
    let named = sessions.into_iter().map(|(id, (_, verdict))| (id.to_string(), verdict));
    named.collect()
}

/// The `recovered` payload about instance 1 in the log of `instance`.
fn recovered(disk: &Disk, instance: u64) -> Option<Value> {
    let frames = disk.frames(instance);
    let found = frames.values().map(|bytes| Frame::parse(bytes).unwrap());
    found
        .filter(|frame| frame.header.kind == Kind::Recovered)
        .map(|frame| serde_json::from_slice::<Value>(frame.payload).unwrap())
        .find(|payload| payload["instance"] == 1)
}

/// Restarts twice on what the kill left, uploads, and holds everything against what was acknowledged.
async fn recover(left_behind: &Disk, acked: &Frames, certifiers: &Certifiers, point: &str) {
    let disk = left_behind.revive();
    // The first restart is killed before it uploads; the second must find the same.
    drop(start(&disk, 2, Arc::default(), 2).unwrap());
    let first = recovered(&disk, 2);
    let log = start(&disk, 3, Arc::default(), 3).unwrap();
    assert_eq!(recovered(&disk, 3), first, "{point}: a second recovery differs");
    let kept = Kept::default();
    let stop = CancellationToken::new();
    {
        let keeper = certifiers.keeper(3, true, &kept);
        let run = Arc::clone(&log).run(keeper, stop.clone());
        tokio::pin!(run);
        let uploaded = async {
            while disk.logs().unwrap().len() > 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = &mut run => {}
            () = uploaded => {}
        }
        let class = Class::default();
        let mut later = log.open(Uuid::now_v7(), class, &open(class)).unwrap();
        later.close(left(0));
        stop.cancel();
        run.await;
    }
    let kept = kept.lock().unwrap();
    let nothing = Frames::new();
    let found = kept.get(&1).unwrap_or(&nothing);
    let lost = acked.iter().find(|(number, bytes)| found.get(number) != Some(bytes));
    assert_eq!(lost, None, "{point}: acknowledged, and not recovered");
    let count = first.as_ref().map_or(0, |first| first["count"].as_u64().unwrap());
    assert_eq!(count, found.len() as u64, "{point}: {first:?}");
    let report = Shelf::new(&kept, &certifiers.0).verify();
    assert!(
        report.store.is_empty() && report.exit_code() <= 10,
        "{point}: {report:#?}"
    );
    let log = format!("agents/{POD}/1");
    let told: BTreeMap<String, Verdict> = report
        .sessions
        .iter()
        .filter(|session| session.log == log)
        .map(|session| (session.session.clone(), session.verdict))
        .collect();
    assert_eq!(told, expected(found), "{point}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn certifiers() -> Certifiers {
    Certifiers(Arc::new(Certifier::new("key-1").unwrap()))
}

/// The steps of a workload that nothing disturbs.
fn undisturbed(seed: u64, certifiers: &Certifiers) -> Vec<Step> {
    let disk = Disk::default();
    let mut shift = Shift::begin(&disk, seed, certifiers).unwrap();
    shift.work();
    assert!(shift.refusals.is_empty(), "seed {seed}: {:?}", shift.refusals);
    let seals = disk
        .frames(1)
        .values()
        .filter(|bytes| bytes[5] == Kind::Seal.code())
        .count();
    assert!(seals > 2, "seed {seed}: {seals} segments are too few to show anything");
    disk.steps()
}

#[test]
fn a_kill_at_any_step_and_byte_loses_nothing_that_was_acknowledged() {
    let certifiers = certifiers();
    let mut points = 0;
    runtime().block_on(async {
        for seed in SEEDS {
            let places = SeededRandom::new(seed);
            for (step, kind) in undisturbed(seed, &certifiers).into_iter().enumerate() {
                let mut arrive = vec![0];
                if let Step::Append(length) = kind {
                    let torn = places.below(length as u64 - 1) + 1;
                    arrive.extend([usize::try_from(torn).unwrap(), length]);
                }
                for bytes in arrive {
                    let step = step as u64;
                    let fault = Fault::Kill { step, bytes };
                    let point = format!("seed {seed}, {fault:?}");
                    let disk = Disk::with(Some(fault));
                    let acked = match Shift::begin(&disk, seed, &certifiers) {
                        Ok(mut shift) => {
                            shift.work();
                            std::mem::take(&mut shift.acked)
                        }
                        Err(_) => Frames::new(),
                    };
                    assert!(disk.dead(), "{point} was not reached");
                    recover(&disk, &acked, &certifiers, &point).await;
                    points += 1;
                }
            }
        }
    });
    assert!(points > 200, "{points}");
}

#[test]
fn a_volume_that_refuses_at_any_step_refuses_the_statement_and_recording_goes_on_after_it() {
    let certifiers = certifiers();
    let mut refused = 0;
    runtime().block_on(async {
        for seed in SEEDS {
            let places = SeededRandom::new(seed);
            for (step, kind) in undisturbed(seed, &certifiers).into_iter().enumerate() {
                let length = if let Step::Append(length) = kind { length } else { 1 };
                let fault = Fault::Full {
                    step: step as u64,
                    steps: 1 + places.below(8),
                    bytes: usize::try_from(places.below(length as u64 + 1)).unwrap(),
                    broken: places.below(2) == 1,
                };
                refused += full_at(fault, seed, &certifiers).await;
            }
        }
    });
    assert!(refused > 50, "{refused}");
}

/// Answers how many statements and sessions were refused.
async fn full_at(fault: Fault, seed: u64, certifiers: &Certifiers) -> usize {
    let point = format!("seed {seed}, {fault:?}");
    let disk = Disk::with(Some(fault));
    let begun = Shift::begin(&disk, seed, certifiers);
    let mut shift = match begun {
        Ok(shift) => shift,
        Err(_) => {
            // No log, no agent. The next start finds a volume that works.
            disk.heal();
            recover(&disk, &Frames::new(), certifiers, &point).await;
            return 0;
        }
    };
    shift.work();
    let full = CannotRecord::Disk(io::ErrorKind::StorageFull);
    assert!(
        shift.refusals.iter().all(|refusal| *refusal == full),
        "{point}: {:?}",
        shift.refusals
    );
    disk.heal();
    // The volume works again: so does recording, in this process.
    shift.tick(false);
    let class = Class::default();
    let mut later = shift.log.open(Uuid::now_v7(), class, &open(class)).expect(&point);
    operate(&mut later, 1, "select later", b"later").expect(&point);
    shift.sessions.push(later);
    shift.acknowledge();
    assert_eq!(shift.log.status().failing, None, "{point}");
    // A kill now loses nothing of it, whatever the refusals left on the volume.
    recover(&disk, &shift.acked, certifiers, &point).await;
    for session in &mut shift.sessions {
        session.close(left(1));
    }
    shift.tick(true);
    let written = shift.log.status().written;
    let mut frames = disk.frames(1);
    frames.retain(|number, _| *number < written);
    let lost = shift
        .acked
        .iter()
        .find(|(number, bytes)| frames.get(number) != Some(bytes));
    assert_eq!(lost, None, "{point}: acknowledged, and gone");
    let report = Shelf::new(&BTreeMap::from([(1, frames)]), &certifiers.0).verify();
    assert_eq!(report.exit_code(), 0, "{point}: {report:#?}");
    shift.refusals.len()
}
