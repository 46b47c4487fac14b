//! The committed vectors in `tests/vectors`: what the writer makes of fixed keys, clock and randomness is those bytes
//! and no others, and both verifiers say of each what its table says.
//!
//! A change of the format that is meant: `SIDEGATE_WRITE_VECTORS=1 cargo test --workspace --test suites vectors` writes them anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::Ed25519KeyPair;
use futures_util::FutureExt;
use serde_json::{json, Value};
use sidegate_policies::api::target::Recording as Class;
use sidegate_policies::record::footer::public_key;
use sidegate_policies::record::layout::LogPath;
use sidegate_policies::record::merkle::Tree;
use sidegate_policies::record::session_key::plain;
use sidegate_policies::record::tlog::{origin, Checkpoint, LogHead, VerifierKey};
use sidegate_policies::record::verify::{verify_store, Options};
use sidegate_policies::record::{frame, Frame, Kind, SessionKey};
use sidegate_sidecar::record::{Log, LogOptions, SessionRecorder};
use sidegate_tests::disk::{Disk, Keeper, SeededRandom, StillClock};
use sidegate_tests::recording::{identity, left, open, operate, refuse, Certifier, POD};
use sidegate_tests::verifiers::{second, told};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const NOW: u64 = 1_767_225_600;
const SESSIONS: [u128; 3] = [
    0x019b_76da_a800_7000_8000_0000_0000_0001,
    0x019b_76da_a800_7000_8000_0000_0000_0002,
    0x019b_76da_a800_7000_8000_0000_0000_0003,
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// The writer's log: two interleaved sessions and a seal, a third session and a seal.
struct Written {
    frames: Vec<Vec<u8>>,
    session_keys: Vec<Vec<u8>>,
}

fn write(certify: impl Fn([u8; 32]) -> String + Send + Sync + 'static) -> Written {
    let (disk, clock, random) = (
        Disk::default(),
        Arc::new(StillClock::default()),
        Arc::new(SeededRandom::new(1)),
    );
    let log = Log::start(LogOptions {
        volume: Arc::new(disk.clone()),
        identity: identity(1),
        clock: Arc::<StillClock>::clone(&clock),
        random: Arc::<SeededRandom>::clone(&random),
    })
    .unwrap();
    let keeper = Arc::new(Keeper {
        certify: Box::new(certify),
        open: false,
        kept: Arc::default(),
    });
    // The log's task runs up to where it waits: the key is certified, and nothing else comes between.
    let run = Arc::clone(&log).run(keeper, CancellationToken::new());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { assert!(run.now_or_never().is_none()) });
    let begin = |id: u128| -> SessionRecorder {
        clock.pass_ms(1);
        log.open(Uuid::from_u128(id), Class::default(), &open(Class::default()))
            .unwrap()
    };
    let (mut a, mut b) = (begin(SESSIONS[0]), begin(SESSIONS[1]));
    for op in 1..3 {
        clock.pass_ms(5);
        operate(&mut a, op, "select a from t", b"aaaa").unwrap();
        operate(&mut b, op, "select b from t", b"bbbb").unwrap();
    }
    refuse(&mut b, 3, "drop table t").unwrap();
    clock.pass_ms(5);
    a.close(left(2));
    b.close(left(2));
    let mut c = begin(SESSIONS[2]);
    operate(&mut c, 1, "select c from t", b"cccc").unwrap();
    c.close(left(1));
    let drawn = random.drawn.lock().unwrap();
    // Record key and nonce of the log, keys of a and b, the next record key, the key of c.
    let session_keys = [2, 3, 5].into_iter().map(|at| drawn[at].clone()).collect();
    Written {
        frames: disk.frames(1).into_values().collect(),
        session_keys,
    }
}

/// A vector: name, what was done, expected exit code, whether it is a landing journal, whether the checkpoint is given.
struct Vector {
    name: &'static str,
    what: &'static str,
    exit: u8,
    landing: bool,
    checkpoint: bool,
    bytes: Vec<u8>,
}

fn vectors(frames: &[Vec<u8>]) -> Vec<Vector> {
    let kind = |bytes: &Vec<u8>| Frame::parse(bytes).unwrap().header.kind;
    let intents: Vec<usize> = (0..frames.len())
        .filter(|at| kind(&frames[*at]) == Kind::Intent)
        .collect();
    let seals: Vec<usize> = (0..frames.len())
        .filter(|at| kind(&frames[*at]) == Kind::Seal)
        .collect();
    let whole = frames.concat();
    let flip = |repair: bool| {
        let mut frames = frames.to_vec();
        let bytes = &mut frames[intents[0]];
        bytes[frame::PREFIX_BYTES + 3] ^= 1;
        if repair {
            let hashed = bytes.len() - frame::CRC_BYTES;
            let mut again = bytes[..hashed].to_vec();
            frame::finish(&mut again, 0);
            *bytes = again;
        }
        frames.concat()
    };
    let mut dropped = frames.to_vec();
    dropped.remove(intents[1]);
    let mut reordered = frames.to_vec();
    reordered.swap(intents[0], intents[1]);
    let vector = |name, what, exit, bytes| Vector {
        name,
        what,
        exit,
        landing: false,
        checkpoint: false,
        bytes,
    };
    let before_last_seal = frames[..seals[1]].concat();
    vec![
        Vector {
            checkpoint: true,
            ..vector("valid", "as written", 0, whole.clone())
        },
        Vector {
            landing: true,
            ..vector("open", "in use: no second seal yet", 0, before_last_seal.clone())
        },
        vector(
            "unsealed",
            "ended without its second seal",
            10,
            before_last_seal.clone(),
        ),
        Vector {
            checkpoint: true,
            ..vector(
                "cut-after-checkpoint",
                "the second seal cut off; a checkpoint knows it",
                20,
                before_last_seal,
            )
        },
        vector(
            "truncated",
            "cut inside the last frame",
            20,
            whole[..whole.len() - 20].to_vec(),
        ),
        vector("edited", "one payload byte of an intent", 22, flip(false)),
        vector("edited-crc", "the same, with a fitting CRC", 22, flip(true)),
        vector("dropped", "one intent missing", 21, dropped.concat()),
        vector("reordered", "two intents exchanged", 22, reordered.concat()),
    ]
}

/// A note over an empty tile log that names the last frame of the whole log.
fn checkpoint(last: &[u8]) -> (String, VerifierKey) {
    let key = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    let last = Frame::parse(last).unwrap();
    let checkpoint = Checkpoint {
        origin: origin("local"),
        size: 0,
        root: Tree::default().root(),
        time_us: NOW * 1_000_000,
        heads: vec![LogHead {
            log: format!("agents/{POD}/1"),
            number: last.header.log_number,
            hash: last.hash(),
        }],
    };
    let verifier = VerifierKey::new(&origin("local"), public_key(&key));
    (checkpoint.sign(&key).unwrap(), verifier)
}

/// Lays a vector out as a store.
fn lay_out(vector: &Vector, root: &Path) {
    let path = LogPath::new("local", "agents", POD, 1).unwrap();
    let place = root.join(if vector.landing { path.landing() } else { path.object(0) });
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::write(place, &vector.bytes).unwrap();
}

#[test]
fn the_writer_makes_the_committed_bytes_and_both_verifiers_say_what_the_table_says() {
    let folder = folder();
    if std::env::var_os("SIDEGATE_WRITE_VECTORS").is_some() {
        write_anew(&folder);
    }
    let certificate = text(&folder, "certificate.jws").trim_end().to_owned();
    let written = write(move |_| certificate.clone());
    let table: Value = serde_json::from_str(&text(&folder, "table.json")).unwrap();
    let (note, _) = checkpoint(written.frames.last().unwrap());
    assert_eq!(note, text(&folder, "checkpoint"));
    let vectors = vectors(&written.frames);
    assert_eq!(table["vectors"].as_array().unwrap().len(), vectors.len());
    for vector in &vectors {
        let committed = std::fs::read(folder.join(format!("{}.sgr", vector.name))).unwrap();
        let differs = committed.iter().zip(&vector.bytes).position(|(a, b)| a != b);
        assert!(
            committed == vector.bytes,
            "{}: other bytes, first at {differs:?}",
            vector.name
        );
    }
    for (row, ours, theirs) in judged(&folder, &vectors) {
        let name = row["name"].as_str().unwrap();
        let said = table["vectors"]
            .as_array()
            .unwrap()
            .iter()
            .find(|said| said["name"] == name);
        assert_eq!(said, Some(&row), "{name}: the first verifier");
        assert_eq!(ours, theirs, "{name}: the second verifier");
    }
    sealed_payloads_open(&written.frames, &table);
}

/// Rows of the table, and what both verifiers say.
fn judged(folder: &Path, vectors: &[Vector]) -> Vec<(Value, Value, Value)> {
    let (keys, note) = (folder.join("keys.json"), folder.join("checkpoint"));
    let mut rows = Vec::new();
    for vector in vectors {
        let root = tempfile::tempdir().unwrap();
        lay_out(vector, root.path());
        let options = Options {
            keys: Some(keys.clone()),
            checkpoint: vector.checkpoint.then(|| note.clone()),
            ..Options::default()
        };
        let ours = told(&verify_store(root.path(), &options).unwrap());
        let mut given = vec![Path::new("--keys"), keys.as_path()];
        if vector.checkpoint {
            given.extend([Path::new("--checkpoint"), note.as_path()]);
        }
        let theirs = second(&given, &[root.path()]).unwrap().remove(0);
        assert_eq!(ours["exit"], vector.exit, "{}: {ours}", vector.name);
        let row = json!({
            "name": vector.name, "what": vector.what, "place": if vector.landing { "landing" } else { "log" },
            "checkpoint": vector.checkpoint, "exit": vector.exit, "store": ours["store"], "logs": ours["logs"],
            "sessions": ours["sessions"],
        });
        rows.push((row, ours, theirs));
    }
    rows
}

fn sealed_payloads_open(frames: &[Vec<u8>], table: &Value) {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for bytes in frames {
        let frame = Frame::parse(bytes).unwrap();
        if frame.header.kind == Kind::Intent {
            let session = Uuid::from_bytes(frame.header.session).to_string();
            let mut raw = [0; 32];
            let key = table["sessionKeys"][&session].as_str().unwrap();
            frame::unhex_into(key, &mut raw).unwrap();
            let key = SessionKey::from_bytes(raw.into()).unwrap();
            let payload = plain(&frame.header, frame.payload, Some(&key)).unwrap();
            let says: Value = serde_json::from_slice(&payload).unwrap();
            texts
                .entry(session)
                .or_default()
                .push(says["text"].as_str().unwrap().to_owned());
        }
    }
    let texts: Vec<Vec<String>> = texts.into_values().collect();
    assert_eq!(
        texts,
        [
            vec!["select a from t"; 2],
            vec!["select b from t"; 2],
            vec!["select c from t"]
        ]
    );
}

fn text(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}

fn write_anew(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let certifier = Certifier::new("key-1").unwrap();
    let jwk = certifier.jwk();
    let last = Arc::new(Mutex::new(String::new()));
    let given = Arc::clone(&last);
    let written = write(move |key| {
        let certificate = certifier.certificate(key, 1, NOW).unwrap();
        *given.lock().unwrap() = certificate.clone();
        certificate
    });
    let put = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    put("certificate.jws", &format!("{}\n", last.lock().unwrap()));
    let (note, verifier) = checkpoint(written.frames.last().unwrap());
    put("checkpoint", &note);
    let keys = json!({"keys": [jwk], "checkpoints": [verifier.to_string()]});
    put("keys.json", &format!("{keys:#}\n"));
    let vectors = vectors(&written.frames);
    for vector in &vectors {
        std::fs::write(folder.join(format!("{}.sgr", vector.name)), &vector.bytes).unwrap();
    }
    let rows: Vec<Value> = judged(folder, &vectors).into_iter().map(|(row, _, _)| row).collect();
    let keys: BTreeMap<String, String> = SESSIONS
        .iter()
        .zip(&written.session_keys)
        .map(|(id, key)| (Uuid::from_u128(*id).to_string(), frame::hex(key)))
        .collect();
    let table = json!({"vectors": rows, "sessionKeys": keys});
    put("table.json", &format!("{table:#}\n"));
}
