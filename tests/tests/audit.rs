//! The broker's own log: an edited or dropped event is named by both verifiers, a kill at any byte keeps what was
//! acknowledged, and nobody but the broker can write such an event.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use sidegate_broker::audit::{Audit, Event};
use sidegate_broker::clock::{Clock, SystemClock};
use sidegate_broker::config::Separation;
use sidegate_broker::issuer::Issuer;
use sidegate_broker::records::{Records, RecordsOptions};
use sidegate_broker::state::StateDir;
use sidegate_policies::record::audit::read;
use sidegate_policies::record::chain::LogChain;
use sidegate_policies::record::footer::{encode_key, public_key};
use sidegate_policies::record::frame::{finish, hex, CRC_BYTES, PREFIX_BYTES};
use sidegate_policies::record::layout::{DirectoryStore, LogPath};
use sidegate_policies::record::payload::{Audit as Payload, Boot, Recovered};
use sidegate_policies::record::verify::{verify_store, Options};
use sidegate_policies::record::{Frame, Kind};
use sidegate_tests::recording::last_checkpoint;
use sidegate_tests::verifiers::{second, told};

/// Set in the process that is killed: its state folder.
const CHILD: &str = "SIDEGATE_AUDIT_CHILD";

/// A broker's record store and audit, without the rest of it.
struct Desk {
    state: StateDir,
    records: Arc<Records>,
    audit: Arc<Audit>,
}

impl Desk {
    fn open(root: &Path) -> Desk {
        let state = StateDir::open(root).unwrap();
        let (url, now) = ("https://127.0.0.1:1".to_owned(), SystemClock.now());
        let issuer = Issuer::open(&state, url, "local".to_owned(), now).unwrap();
        let records = Records::open(RecordsOptions::new(state.dir("records").unwrap(), "local")).unwrap();
        records.set_ring(&issuer.record_ring()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let audit = Audit::start(&state, &records, &Arc::new(issuer), &clock, &Separation::None).unwrap();
        Desk { state, records, audit }
    }

    fn record(&self, object: &str) {
        let event = Event {
            subject: "unix:ann",
            object,
            ..Event::new(Kind::Decided, "approval.approved")
        };
        self.audit.record(event).unwrap();
    }

    fn store(&self) -> PathBuf {
        self.state.path("records")
    }
}

fn objects(root: &Path) -> Vec<String> {
    let events = read(&DirectoryStore::new(root)).unwrap().into_iter();
    let of_broker = events.filter(|event| event.kind.of_broker());
    of_broker.map(|event| event.says.object.into_owned()).collect()
}

/// What the broker's latest start found of earlier ones.
fn found(root: &Path) -> Vec<Recovered> {
    let journal = std::fs::read(files(root, "/landing/_broker/").pop().unwrap()).unwrap();
    let of = |frame: &Vec<u8>| {
        let frame = Frame::parse(frame).unwrap();
        (frame.header.kind == Kind::Recovered).then(|| serde_json::from_slice(frame.payload).unwrap())
    };
    frames(&journal).iter().filter_map(of).collect()
}

fn files(root: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.join("v1")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.to_str().unwrap().contains(part) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

/// With its modes: a state folder is for its owner only.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Both verifiers agree; answers the exit code of each store.
fn judged(roots: &[PathBuf]) -> Vec<u8> {
    let paths: Vec<&Path> = roots.iter().map(PathBuf::as_path).collect();
    let second = second(&[], &paths).unwrap();
    let judge = |(root, theirs): (&PathBuf, &serde_json::Value)| {
        let report = verify_store(root, &Options::default()).unwrap();
        assert_eq!(told(&report), *theirs, "{}", root.display());
        report.exit_code()
    };
    roots.iter().zip(&second).map(judge).collect()
}

/// Copies of a store, each changed in one way, and what they must be called.
struct Cases<'a> {
    pristine: &'a Path,
    scratch: &'a Path,
    made: Vec<(PathBuf, String, &'static [u8])>,
}

impl Cases<'_> {
    /// The store with one file replaced, or removed.
    fn add(&mut self, what: String, right: &'static [u8], file: &Path, content: Option<&[u8]>) {
        let root = self.scratch.join(self.made.len().to_string());
        copy(self.pristine, &root);
        let file = root.join(file);
        match content {
            Some(bytes) => std::fs::write(file, bytes).unwrap(),
            None => std::fs::remove_file(file).unwrap(),
        }
        self.made.push((root, what, right));
    }

    fn judge(self) {
        let roots: Vec<PathBuf> = self.made.iter().map(|(root, _, _)| root.clone()).collect();
        for (code, (_, what, right)) in judged(&roots).into_iter().zip(self.made) {
            assert!(right.contains(&code), "{what}: exit {code}, not {right:?}");
        }
    }
}

fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut left = bytes;
    while let Ok(frame) = Frame::parse(left) {
        found.push(frame.bytes.to_vec());
        left = &left[frame.bytes.len()..];
    }
    assert!(left.is_empty());
    found
}

/// The frame with another payload byte; `repair` makes its checksum fit.
fn edited(frame: &[u8], repair: bool) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes[PREFIX_BYTES + 12] ^= 1;
    if repair {
        bytes.truncate(frame.len() - CRC_BYTES);
        finish(&mut bytes, 0);
    }
    bytes
}

/// Every edit, drop and exchange of a broker's event in a signed `file`.
fn tamper(cases: &mut Cases<'_>, file: &Path) {
    let pristine = frames(&std::fs::read(cases.pristine.join(file)).unwrap());
    let of_broker = |frame: &[u8]| Frame::parse(frame).unwrap().header.kind.of_broker();
    let events: Vec<usize> = (0..pristine.len()).filter(|at| of_broker(&pristine[*at])).collect();
    assert!(events.len() >= 3);
    for at in events {
        for repair in [false, true] {
            let mut frames = pristine.clone();
            frames[at] = edited(&frames[at], repair);
            cases.add(format!("edit of frame {at}"), &[22], file, Some(&frames.concat()));
        }
        let mut frames = pristine.clone();
        frames.remove(at);
        cases.add(format!("drop of frame {at}"), &[21, 22], file, Some(&frames.concat()));
        let mut frames = pristine.clone();
        frames.swap(at, at + 1);
        cases.add(format!("exchange at frame {at}"), &[22], file, Some(&frames.concat()));
    }
    cases.add("everything cut".to_owned(), &[20], file, Some(&[]));
    cases.add("the whole log removed".to_owned(), &[20], file, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_or_dropped_event_is_named_by_both_verifiers() {
    let (temp, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let desk = Desk::open(&temp.path().join("state"));
    for object in ["ar-1", "ar-2", "ar-3"] {
        desk.record(object);
    }
    last_checkpoint(Arc::clone(&desk.records)).await;
    let store = desk.store();
    assert_eq!(objects(&store), ["ar-1", "ar-2", "ar-3"]);
    assert_eq!(judged(std::slice::from_ref(&store)), [0]);
    // Not signed yet; the checkpoint knows the head.
    let inside = |part: &str| files(&store, part)[0].strip_prefix(&store).unwrap().to_owned();
    let landing = inside("/landing/_broker/");
    let all = frames(&std::fs::read(store.join(&landing)).unwrap());
    let (last, before) = all.split_last().unwrap();
    let (open, signed) = (scratch.path().join("open"), scratch.path().join("signed"));
    std::fs::create_dir(&open).unwrap();
    std::fs::create_dir(&signed).unwrap();
    let mut cases = Cases {
        pristine: &store,
        scratch: &open,
        made: Vec::new(),
    };
    let changed = [before.concat(), edited(last, true)].concat();
    cases.add(
        "last event cut after a checkpoint".to_owned(),
        &[20],
        &landing,
        Some(&before.concat()),
    );
    cases.add(
        "last event edited after a checkpoint".to_owned(),
        &[22],
        &landing,
        Some(&changed),
    );
    cases.judge();
    // Signed.
    desk.audit.finish();
    last_checkpoint(Arc::clone(&desk.records)).await;
    assert_eq!(judged(std::slice::from_ref(&store)), [0]);
    let mut cases = Cases {
        pristine: &store,
        scratch: &signed,
        made: Vec::new(),
    };
    tamper(&mut cases, &inside("/log/_broker/"));
    cases.judge();
}

#[test]
fn an_event_of_the_broker_in_a_sidecars_log_is_forged() {
    let temp = tempfile::tempdir().unwrap();
    let path = LogPath::new("local", "agents", "pod-1", 1).unwrap();
    let key = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
    let boot = Boot {
        cluster: path.cluster.clone(),
        namespace: path.namespace.clone(),
        pod_uid: path.pod_uid.clone(),
        instance: path.instance,
        public_key: encode_key(&public_key(&key)),
        ..Boot::default()
    };
    let event = Payload {
        event: "approval.approved".into(),
        subject: "unix:ann".into(),
        ..Payload::default()
    };
    let mut chain = LogChain::default();
    let mut bytes = Vec::new();
    let payloads = [
        (Kind::Boot, serde_json::to_vec(&boot).unwrap()),
        (Kind::Decided, serde_json::to_vec(&event).unwrap()),
    ];
    for (kind, payload) in payloads {
        let mut frame = Vec::new();
        chain.own(kind, &payload, (1, 1), &mut frame).unwrap();
        chain.accept(&Frame::parse(&frame).unwrap()).unwrap();
        bytes.extend(frame);
    }
    let place = temp.path().join(path.landing());
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::write(place, bytes).unwrap();
    assert_eq!(judged(&[temp.path().to_owned()]), [22]);
    assert!(objects(temp.path()).is_empty(), "and it is not told as one");
}

#[test]
fn a_journal_torn_at_any_byte_keeps_the_events_before_the_tear() {
    let temp = tempfile::tempdir().unwrap();
    let state = temp.path().join("state");
    let desk = Desk::open(&state);
    for object in ["ar-1", "ar-2", "ar-3"] {
        desk.record(object);
    }
    let landing = files(&desk.store(), "/landing/_broker/").remove(0);
    let landing = landing.strip_prefix(&state).unwrap().to_owned();
    let bytes = std::fs::read(state.join(&landing)).unwrap();
    let all = frames(&bytes);
    let kept_at = |length: usize| {
        let ends = all.iter().scan(0, |end, frame| {
            *end += frame.len();
            Some((*end, Frame::parse(frame).unwrap().header.kind.of_broker()))
        });
        ends.filter(|(end, event)| *event && *end <= length).count()
    };
    let ends: Vec<usize> = all
        .iter()
        .scan(0, |end, frame| {
            *end += frame.len();
            Some(*end)
        })
        .collect();
    for length in (0..bytes.len()).step_by(41).chain([bytes.len()]).chain(ends.clone()) {
        let torn = temp.path().join(format!("torn-{length}"));
        copy(&state, &torn);
        std::fs::write(torn.join(&landing), &bytes[..length]).unwrap();
        let again = Desk::open(&torn);
        again.record("ar-4");
        let mut right: Vec<&str> = ["ar-1", "ar-2", "ar-3"][..kept_at(length)].to_vec();
        right.push("ar-4");
        assert_eq!(objects(&again.store()), right, "torn at byte {length}");
        // Up to the last whole frame; the rest is cut and said to be.
        let good = ends.iter().filter(|end| **end <= length).max();
        let told: Vec<(u64, &str)> = match good {
            Some(end) if *end == length => vec![(0, "end")],
            Some(end) => vec![((length - end) as u64, "torn")],
            None => vec![],
        };
        let found = found(&again.store());
        let found: Vec<(u64, &str)> = found.iter().map(|one| (one.cut_bytes, one.why.as_str())).collect();
        assert_eq!(found, told, "torn at byte {length}");
        let code = verify_store(&again.store(), &Options::default()).unwrap().exit_code();
        assert_eq!(code, if good.is_some() { 10 } else { 0 }, "torn at byte {length}");
        drop(again);
        std::fs::remove_dir_all(torn).unwrap();
    }
}

/// The process that is killed: four threads record as fast as they can and say what was acknowledged.
fn record_until_killed(state: &Path) {
    let desk = Desk::open(state);
    println!("\nbegun");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let desk = &desk;
            scope.spawn(move || {
                for number in 0..u64::MAX {
                    let object = format!("{}-{thread}-{number}", std::process::id());
                    desk.record(&object);
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "acked {object}").unwrap();
                    out.flush().unwrap();
                }
            });
        }
    });
}

#[test]
fn a_journal_left_beside_the_object_it_became_is_not_called_torn() {
    let temp = tempfile::tempdir().unwrap();
    let state = temp.path().join("state");
    let desk = Desk::open(&state);
    desk.record("ar-1");
    let journal = files(&desk.store(), "/landing/_broker/").remove(0);
    desk.audit.finish();
    let object = files(&desk.store(), "/log/_broker/").remove(0);
    drop(desk);
    // What a kill between the two leaves.
    std::fs::copy(object, journal).unwrap();
    let again = Desk::open(&state);
    let told: Vec<_> = found(&again.store())
        .into_iter()
        .map(|one| (one.count, one.cut_bytes, one.why))
        .collect();
    assert_eq!(told, [(0, 0, "end".to_owned())]);
    assert_eq!(judged(&[again.store()]), [0]);
}

/// Runs a test of this file in a process of its own, on `state`, and kills it after so many events were acknowledged.
fn killed(test: &str, state: &Path, after: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, state)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((_, object)) = line.split_once("acked ") else {
            continue;
        };
        acknowledged.push(object.to_owned());
        if acknowledged.len() == after {
            child.kill().unwrap();
        }
    }
    assert!(!child.wait().unwrap().success());
    assert!(acknowledged.len() >= after);
    acknowledged
}

#[test]
fn a_killed_brokers_last_events_stay_unsigned_and_the_next_start_vouches_for_where_they_end() {
    if let Some(state) = std::env::var_os(CHILD) {
        return record_until_killed(Path::new(&state));
    }
    let (temp, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = temp.path().join("state");
    let test = "audit::a_killed_brokers_last_events_stay_unsigned_and_the_next_start_vouches_for_where_they_end";
    killed(test, &state, 7);
    let desk = Desk::open(&state);
    desk.record("later");
    desk.audit.finish();
    let store = desk.store();
    // Its key died with it: no later start makes that good.
    assert_eq!(judged(std::slice::from_ref(&store)), [10]);
    let report = verify_store(&store, &Options::default()).unwrap();
    let verdicts: Vec<String> = report.logs.iter().map(|log| log.verdict.to_string()).collect();
    assert_eq!(verdicts, ["VALID", "UNSEALED(after nothing)"]);
    let told = read(&DirectoryStore::new(&store)).unwrap().into_iter();
    let told: Vec<_> = told.filter(|event| event.kind == Kind::Recovered).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].says.object, report.logs[1].log);
    // There is no checkpoint here: what is cut off or changed from now on is held against that one frame.
    let object = files(&store, "/log/_broker/").remove(0);
    let object = object.strip_prefix(&store).unwrap().to_owned();
    let all = frames(&std::fs::read(store.join(&object)).unwrap());
    let (last, before) = all.split_last().unwrap();
    assert!(told[0].says.detail.contains(&hex(&Frame::parse(last).unwrap().hash())));
    let mut cases = Cases {
        pristine: &store,
        scratch: scratch.path(),
        made: Vec::new(),
    };
    let changed = [before.concat(), edited(last, true)].concat();
    cases.add("last event cut".to_owned(), &[20], &object, Some(&before.concat()));
    cases.add("last event edited".to_owned(), &[22], &object, Some(&changed));
    cases.add("all events cut".to_owned(), &[20], &object, Some(&all[0]));
    cases.add("the whole log removed".to_owned(), &[20], &object, None);
    cases.judge();
}

#[test]
fn a_broker_killed_in_mid_write_keeps_every_event_it_acknowledged() {
    if let Some(state) = std::env::var_os(CHILD) {
        return record_until_killed(Path::new(&state));
    }
    let temp = tempfile::tempdir().unwrap();
    let state = temp.path().join("state");
    let test = "audit::a_broker_killed_in_mid_write_keeps_every_event_it_acknowledged";
    let mut acknowledged = Vec::new();
    for kill_after in [1, 9, 40, 111] {
        acknowledged.extend(killed(test, &state, kill_after));
    }
    let desk = Desk::open(&state);
    let kept = objects(&desk.store());
    let lost: Vec<&String> = acknowledged.iter().filter(|object| !kept.contains(object)).collect();
    assert!(lost.is_empty(), "{} of {}: {lost:?}", lost.len(), acknowledged.len());
    assert_eq!(judged(&[desk.store()]), [10]);
}
