//! The committed vectors of the broker's own log in `tests/vectors/audit`: what its writer makes of fixed keys, clock and
//! randomness is those bytes and no others, and both verifiers say of each store what its table says.
//!
//! A change of the format that is meant: `SIDEGATE_WRITE_VECTORS=1 cargo test --workspace --test suites vectors` writes
//! these, and those of the sidecar's log, anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{json, Value};
use sidegate_broker::audit::{Audit, Event};
use sidegate_broker::clock::Clock;
use sidegate_broker::records::{Records, RecordsOptions, Sources};
use sidegate_policies::record::chain::LogChain;
use sidegate_policies::record::footer::{decode_key, encode_key};
use sidegate_policies::record::frame::{finish, CRC_BYTES, PREFIX_BYTES};
use sidegate_policies::record::layout::{LogPath, BROKER};
use sidegate_policies::record::payload::Boot;
use sidegate_policies::record::verify::{verify_store, Options};
use sidegate_policies::record::{Frame, Kind};
use sidegate_sidecar::record::Random;
use sidegate_tests::disk::SeededRandom;
use sidegate_tests::recording::{Certifier, POD};
use sidegate_tests::verifiers::{second, told};

const NOW: u64 = 1_767_225_600;
/// Events of the two segments: one of each kind, then three more.
const EVENTS: [(Kind, &str); 10] = [
    (Kind::Config, "configuration.accepted"),
    (Kind::Bundle, "bundle.loaded"),
    (Kind::Issued, "lease.granted"),
    (Kind::Request, "approval.asked"),
    (Kind::Decided, "approval.approved"),
    (Kind::Lockdown, "lockdown.locked"),
    (Kind::Refused, "token.refused"),
    (Kind::Request, "grant.claimed"),
    (Kind::Decided, "approval.denied"),
    (Kind::Lockdown, "lockdown.unlocked"),
];
const FIRST_SEGMENT: usize = 7;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/audit")
}

/// Both clocks of a broker, moved by hand.
#[derive(Debug, Default)]
struct StillClock(AtomicI64);

impl Clock for StillClock {
    fn now_ms(&self) -> i64 {
        i64::try_from(NOW).unwrap() * 1000 + self.0.load(Ordering::SeqCst)
    }
}

type Certify = Arc<dyn Fn(u64, [u8; 32]) -> String + Send + Sync>;

/// The record store of one broker over its starts.
struct Desk {
    root: tempfile::TempDir,
    jwk: Value,
    certify: Certify,
}

impl Desk {
    fn new(jwk: Value, certify: Certify) -> Desk {
        let root = tempfile::tempdir().unwrap();
        Desk { root, jwk, certify }
    }

    fn start(&self, instance: u64) -> (Arc<Audit>, Arc<StillClock>) {
        let records = Records::open(RecordsOptions::new(self.root.path().join("records"), "local")).unwrap();
        records.set_ring(std::slice::from_ref(&self.jwk)).unwrap();
        let (clock, random) = (Arc::new(StillClock::default()), SeededRandom::new(instance));
        let (mono, certify) = (Arc::clone(&clock), Arc::clone(&self.certify));
        let sources = Sources {
            clock: Arc::<StillClock>::clone(&clock),
            mono_ns: Box::new(move || u64::try_from(mono.0.load(Ordering::SeqCst)).unwrap() * 1_000_000),
            random: Box::new(move |out| random.fill(out)),
            certify: Box::new(move |key| Some(certify(instance, decode_key(key)?))),
        };
        let boot = Boot {
            format: 1,
            release: "0.0.0".into(),
            cluster: "local".into(),
            namespace: BROKER.into(),
            service_account: "broker".into(),
            pod: "broker".into(),
            pod_uid: POD.into(),
            instance,
            separation: "user".into(),
            ..Boot::default()
        };
        (Audit::begin(&records, boot, sources).unwrap(), clock)
    }

    /// Frames of a start's log, wherever they lie.
    fn frames(&self, instance: u64) -> Vec<Vec<u8>> {
        let path = LogPath::new("local", BROKER, POD, instance).unwrap();
        let root = self.root.path().join("records");
        let mut files: Vec<PathBuf> = std::fs::read_dir(root.join(path.folder()))
            .into_iter()
            .flatten()
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        files.push(root.join(path.landing()));
        let bytes: Vec<u8> = files
            .iter()
            .flat_map(|file| std::fs::read(file).unwrap_or_default())
            .collect();
        let (mut frames, mut left) = (Vec::new(), bytes.as_slice());
        while let Ok(frame) = Frame::parse(left) {
            frames.push(frame.bytes.to_vec());
            left = &left[frame.bytes.len()..];
        }
        assert!(left.is_empty());
        frames
    }
}

fn say(audit: &Audit, clock: &StillClock, events: &[(Kind, &'static str)]) {
    for (kind, event) in events {
        clock.0.fetch_add(7, Ordering::SeqCst);
        let event = Event {
            subject: "unix:ann",
            object: "ar-1",
            detail: "a vector",
            ..Event::new(*kind, event)
        };
        audit.record(event).unwrap();
    }
}

/// The log of a broker that was stopped: two segments.
fn stopped(jwk: &Value, certify: &Certify) -> Vec<Vec<u8>> {
    let desk = Desk::new(jwk.clone(), Arc::clone(certify));
    let (audit, clock) = desk.start(1);
    work(&audit, &clock);
    audit.finish();
    desk.frames(1)
}

/// The logs of a broker that was killed, and of its next start.
fn killed(jwk: &Value, certify: &Certify) -> [Vec<Vec<u8>>; 2] {
    let desk = Desk::new(jwk.clone(), Arc::clone(certify));
    let (audit, clock) = desk.start(1);
    work(&audit, &clock);
    drop(audit);
    let (audit, clock) = desk.start(2);
    say(&audit, &clock, &EVENTS[..1]);
    audit.finish();
    [desk.frames(1), desk.frames(2)]
}

fn work(audit: &Audit, clock: &StillClock) {
    let (first, second) = EVENTS.split_at(FIRST_SEGMENT);
    say(audit, clock, first);
    clock.0.fetch_add(10_000, Ordering::SeqCst);
    audit.keep();
    say(audit, clock, second);
}

/// An event of the broker in a log of a sidecar, which nobody writes.
fn astray() -> Vec<u8> {
    let boot = Boot {
        cluster: "local".into(),
        namespace: "agents".into(),
        pod_uid: POD.into(),
        instance: 1,
        public_key: encode_key(&[7; 32]),
        ..Boot::default()
    };
    let event = json!({"event": "approval.approved", "subject": "unix:ann"});
    let (mut chain, mut bytes) = (LogChain::default(), Vec::new());
    for (kind, payload) in [(Kind::Boot, json!(boot)), (Kind::Decided, event)] {
        let mut frame = Vec::new();
        chain
            .own(kind, payload.to_string().as_bytes(), (1, 1), &mut frame)
            .unwrap();
        chain.accept(&Frame::parse(&frame).unwrap()).unwrap();
        bytes.extend(frame);
    }
    bytes
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

/// A store: name, what was done, expected exit code, its files.
struct Vector {
    name: &'static str,
    what: &'static str,
    exit: u8,
    files: Vec<(String, &'static str)>,
}

/// The committed files.
fn files(jwk: &Value, certify: &Certify) -> BTreeMap<&'static str, Vec<u8>> {
    let signed = stopped(jwk, certify);
    let [first, second] = killed(jwk, certify);
    assert_eq!(
        first,
        signed[..signed.len() - 1],
        "a kill leaves out the last seal and nothing else"
    );
    let events: Vec<usize> = (0..signed.len())
        .filter(|at| Frame::parse(&signed[*at]).unwrap().header.kind.of_broker())
        .collect();
    assert_eq!(events.len(), EVENTS.len());
    let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut frames = signed.clone();
        change(&mut frames);
        frames.concat()
    };
    let (last, before) = first.split_last().unwrap();
    BTreeMap::from([
        ("signed", signed.concat()),
        ("killed", first.concat()),
        ("next-start", second.concat()),
        ("killed-cut", before.concat()),
        ("killed-edited", [before.concat(), edited(last, true)].concat()),
        (
            "edited",
            with(&|frames| frames[events[4]] = edited(&frames[events[4]], false)),
        ),
        (
            "edited-crc",
            with(&|frames| frames[events[4]] = edited(&frames[events[4]], true)),
        ),
        ("dropped", with(&|frames| drop(frames.remove(events[4])))),
        ("reordered", with(&|frames| frames.swap(events[4], events[5]))),
        ("astray", astray()),
    ])
}

/// The stores they are laid out as.
fn stores() -> Vec<Vector> {
    let path = |namespace: &str, instance| LogPath::new("local", namespace, POD, instance).unwrap();
    let of_first = |file| (path(BROKER, 1).object(0), file);
    let next = || (path(BROKER, 2).object(0), "next-start");
    let vector = |name, what, exit, files| Vector {
        name,
        what,
        exit,
        files,
    };
    let journal = vec![(path(BROKER, 1).landing(), "killed")];
    let foreign = vec![(path("agents", 1).object(0), "astray")];
    vec![
        vector("signed", "a broker that was stopped", 0, vec![of_first("signed")]),
        vector("in-use", "no second seal yet", 0, journal),
        vector(
            "unsealed",
            "ended without its second seal",
            10,
            vec![of_first("killed")],
        ),
        vector(
            "killed",
            "the next start found it",
            10,
            vec![of_first("killed"), next()],
        ),
        vector(
            "killed-cut",
            "its last event cut off after the next start",
            20,
            vec![of_first("killed-cut"), next()],
        ),
        vector(
            "killed-edited",
            "its last event edited after the next start",
            22,
            vec![of_first("killed-edited"), next()],
        ),
        vector(
            "killed-gone",
            "all of it removed after the next start",
            20,
            vec![next()],
        ),
        vector("edited", "one payload byte of a decision", 22, vec![of_first("edited")]),
        vector(
            "edited-crc",
            "the same, with a fitting CRC",
            22,
            vec![of_first("edited-crc")],
        ),
        vector("dropped", "one decision missing", 21, vec![of_first("dropped")]),
        vector("reordered", "two events exchanged", 22, vec![of_first("reordered")]),
        vector("astray", "a decision in a sidecar's log", 22, foreign),
    ]
}

#[test]
fn the_broker_writes_the_committed_bytes_and_both_verifiers_say_what_the_table_says() {
    let folder = folder();
    if std::env::var_os("SIDEGATE_WRITE_VECTORS").is_some() {
        write_anew(&folder);
    }
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let certificates = [1, 2].map(|instance| text(&format!("certificate-{instance}.jws")).trim_end().to_owned());
    let keys: Value = serde_json::from_str(&text("keys.json")).unwrap();
    let certify: Certify = Arc::new(move |instance, _| certificates[usize::try_from(instance).unwrap() - 1].clone());
    let stores = stores();
    for (name, bytes) in &files(&keys["keys"][0], &certify) {
        let committed = std::fs::read(folder.join(format!("{name}.sgr"))).unwrap();
        let differs = committed.iter().zip(bytes).position(|(a, b)| a != b);
        assert!(committed == *bytes, "{name}: other bytes, first at {differs:?}");
    }
    let table: Vec<Value> = serde_json::from_str(&text("table.json")).unwrap();
    for (row, ours, theirs) in judged(&folder, &stores) {
        let said = table.iter().find(|said| said["name"] == row["name"]);
        assert_eq!(said, Some(&row), "{}: the first verifier", row["name"]);
        assert_eq!(ours, theirs, "{}: the second verifier", row["name"]);
    }
    assert_eq!(table.len(), stores.len());
}

/// Rows of the table, and what both verifiers say.
fn judged(folder: &Path, stores: &[Vector]) -> Vec<(Value, Value, Value)> {
    let keys = folder.join("keys.json");
    let mut rows = Vec::new();
    for vector in stores {
        let root = tempfile::tempdir().unwrap();
        for (place, file) in &vector.files {
            let place = root.path().join(place);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::copy(folder.join(format!("{file}.sgr")), place).unwrap();
        }
        let options = Options {
            keys: Some(keys.clone()),
            ..Options::default()
        };
        let ours = told(&verify_store(root.path(), &options).unwrap());
        let theirs = second(&[Path::new("--keys"), &keys], &[root.path()]).unwrap().remove(0);
        assert_eq!(ours["exit"], vector.exit, "{}: {ours}", vector.name);
        let files: BTreeMap<&String, String> = vector
            .files
            .iter()
            .map(|(place, file)| (place, format!("{file}.sgr")))
            .collect();
        let row = json!({
            "name": vector.name, "what": vector.what, "files": files, "exit": vector.exit, "store": ours["store"],
            "logs": ours["logs"],
        });
        rows.push((row, ours, theirs));
    }
    rows
}

fn write_anew(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let certifier = Certifier::new("key-1").unwrap();
    let jwk = certifier.jwk();
    let given: Arc<Mutex<BTreeMap<u64, String>>> = Arc::default();
    let keep = Arc::clone(&given);
    let certify: Certify = Arc::new(move |instance, key| {
        let make = || certifier.certificate(key, instance, NOW).unwrap();
        keep.lock().unwrap().entry(instance).or_insert_with(make).clone()
    });
    let files = files(&jwk, &certify);
    let put = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    for (instance, certificate) in given.lock().unwrap().iter() {
        put(&format!("certificate-{instance}.jws"), &format!("{certificate}\n"));
    }
    let keys = json!({"keys": [jwk]});
    put("keys.json", &format!("{keys:#}\n"));
    for (name, bytes) in &files {
        std::fs::write(folder.join(format!("{name}.sgr")), bytes).unwrap();
    }
    let rows: Vec<Value> = judged(folder, &stores()).into_iter().map(|(row, _, _)| row).collect();
    put("table.json", &format!("{:#}\n", json!(rows)));
}
