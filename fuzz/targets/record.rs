//! The record verifier: a small store of real segments, damaged.
//!
//! The first byte: 0 the bytes replace a stored file, 1 they edit a segment, 2 they edit a segment whose checksums and
//! lengths are then made to fit again. The second chooses the file; edits are four bytes each (what, where, with what).
//! Invariants: nothing panics; a store whose segments are not what was written is never called intact; and the frame,
//! footer and stream readers take any bytes.

#![no_main]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use sidegate_policies::record::frame::CRC_BYTES;
use sidegate_policies::record::layout::Store;
use sidegate_policies::record::verify::{verify, Options};
use sidegate_policies::record::{stream, Frame};

/// A store in memory.
#[derive(Clone, Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Store for Files {
    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        let below = |name: &&String| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
        Ok(self.0.keys().filter(below).cloned().collect())
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The store as it was written.
fn pristine() -> &'static Files {
    static STORE: OnceLock<Files> = OnceLock::new();
    STORE.get_or_init(|| {
        let mut files = Files::default();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("store");
        load(&root, &root, &mut files);
        let report = verify(&files, "store", &Options::default()).expect("fuzz/store is a store");
        assert_eq!(report.exit_code(), 0, "fuzz/store is not intact: {report:?}");
        files
    })
}

fn load(root: &Path, folder: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(folder).expect("fuzz/store can be read") {
        let path = entry.expect("fuzz/store can be read").path();
        if path.is_dir() {
            load(root, &path, files);
        } else {
            let name = path
                .strip_prefix(root)
                .expect("below the root")
                .to_string_lossy()
                .into_owned();
            files
                .0
                .insert(name, std::fs::read(&path).expect("fuzz/store can be read"));
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[mode, which], rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let pristine = pristine();
    let segments = |name: &&String| name.contains("/log/");
    let names: Vec<&String> = match mode % 3 {
        0 => pristine.0.keys().collect(),
        _ => pristine.0.keys().filter(segments).collect(),
    };
    let name = names[usize::from(which) % names.len()];
    let written = &pristine.0[name];
    let damaged = match mode % 3 {
        0 => rest.to_vec(),
        1 => edited(written.clone(), rest),
        _ => sealed_again(edited(written.clone(), rest)),
    };
    read_all(&damaged);
    if damaged == *written {
        return;
    }
    let mut store = pristine.clone();
    store.0.insert(name.clone(), damaged);
    let verdict = verify(&store, "store", &Options::default());
    if segments(&name) {
        let intact = verdict.is_ok_and(|report| report.exit_code() == 0);
        assert!(!intact, "damage of {name} goes unnoticed");
    }
});

/// Edits: a byte changed, bytes inserted, the end cut off, a part doubled, a part dropped, a number added to.
fn edited(mut bytes: Vec<u8>, edits: &[u8]) -> Vec<u8> {
    for edit in edits.chunks_exact(4).take(16) {
        let &[what, high, low, with] = edit else { continue };
        if bytes.is_empty() {
            break;
        }
        let at = usize::from(u16::from_be_bytes([high, low])) % bytes.len();
        let end = (at + usize::from(with) * 4).min(bytes.len());
        match what % 6 {
            0 => bytes[at] ^= with,
            1 => bytes.insert(at, with),
            2 => bytes.truncate(at),
            3 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            4 => drop(bytes.drain(at..end)),
            _ => bytes[at] = bytes[at].wrapping_add(with),
        }
    }
    bytes
}

/// Makes every frame's checksum fit, as somebody who tampers would.
fn sealed_again(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Ok(frame) = Frame::parse_unchecked(&bytes[at..]) {
        let end = at + frame.bytes.len();
        let crc = crc32c::crc32c(&bytes[at..end - CRC_BYTES]).to_le_bytes();
        bytes[end - CRC_BYTES..end].copy_from_slice(&crc);
        at = end;
    }
    bytes
}

fn read_all(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((_, length))) = stream::parse(rest) {
        assert!(length > 0 && length <= rest.len(), "an item of {length} bytes");
        rest = &rest[length..];
    }
    let mut rest = bytes;
    while let Ok(frame) = Frame::parse_unchecked(rest) {
        rest = &rest[frame.bytes.len()..];
    }
}
