//! The tile log of a cluster: entries, tiles and signed checkpoints (the subset of C2SP tlog-tiles and
//! signed-note that records need).
//!
//! Each footer and each session summary becomes an entry; a checkpoint signs the tree's root and, as extension
//! lines, the head of every open log, so that a tail cut after one shows offline.
//! Refused: notes without a good Ed25519 signature of a known key. Invariant: a checkpoint's text parses back.

use std::fmt::Write as _;

use aws_lc_rs::signature::{Ed25519KeyPair, UnparsedPublicKey, ED25519};
use base64::engine::general_purpose::STANDARD;
use base64::Engine;

use crate::record::footer::public_key;
use crate::record::frame::{hex, sha256, unhex, unhex_into, Hash};

/// Entries or hashes per full tile.
pub const TILE: u64 = 256;

/// What an entry of the log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A segment footer was stored.
    Seal {
        /// `<namespace>/<pod-uid>/<instance>`.
        log: String,
        /// Segment number.
        segment: u64,
        /// First log number of the segment.
        first: u64,
        /// Log number of the footer.
        number: u64,
        /// Hash of the footer's frame.
        hash: Hash,
    },
    /// A session summary was stored.
    Summary {
        /// Path of the object.
        path: String,
        /// SHA-256 of its bytes.
        hash: Hash,
    },
}

impl Entry {
    /// The entry's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Entry::Seal {
                log,
                segment,
                first,
                number,
                hash,
            } => format!("sidegate-seal-v1\n{log}\n{segment} {first} {number}\n{}\n", hex(hash)),
            Entry::Summary { path, hash } => format!("sidegate-summary-v1\n{path}\n{}\n", hex(hash)),
        }
        .into_bytes()
    }

    /// Reads an entry; `None` if it is none or not in its one form.
    pub fn parse(bytes: &[u8]) -> Option<Entry> {
        let text = std::str::from_utf8(bytes).ok()?;
        let lines: Vec<&str> = text.strip_suffix('\n')?.split('\n').collect();
        let entry = match lines.as_slice() {
            ["sidegate-seal-v1", log, numbers, hash] => {
                let mut numbers = numbers.split(' ').map(str::parse::<u64>);
                Entry::Seal {
                    log: (*log).to_owned(),
                    segment: numbers.next()?.ok()?,
                    first: numbers.next()?.ok()?,
                    number: numbers.next()?.ok()?,
                    hash: unhex(hash)?,
                }
            }
            ["sidegate-summary-v1", path, hash] => Entry::Summary {
                path: (*path).to_owned(),
                hash: unhex(hash)?,
            },
            _ => return None,
        };
        (entry.to_bytes() == bytes).then_some(entry)
    }
}

/// The entries of a bundle: each behind its length in two bytes, big-endian.
pub fn bundle_entries(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (entry, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        entries.push(entry);
        bytes = rest;
    }
    Some(entries)
}

/// Appends an entry to a bundle; false if it is too long.
pub fn push_entry(entry: &[u8], bundle: &mut Vec<u8>) -> bool {
    let Ok(length) = u16::try_from(entry.len()) else {
        return false;
    };
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    true
}

/// Path of a tile below `tlog/`: `level` is `entries` or a number; `width` of a partial one.
pub fn tile_path(level: &str, index: u64, width: u64) -> String {
    let mut groups = vec![format!("{:03}", index % 1000)];
    let mut left = index / 1000;
    while left > 0 {
        groups.push(format!("x{:03}", left % 1000));
        left /= 1000;
    }
    groups.reverse();
    let partial = if width < TILE {
        format!(".p/{width}")
    } else {
        String::new()
    };
    format!("tile/{level}/{}{partial}", groups.join("/"))
}

/// A checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// `sidegate/<cluster>/records`.
    pub origin: String,
    /// Entries.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
    /// Microseconds since 1970.
    pub time_us: u64,
    /// Heads of logs that were open or moved.
    pub heads: Vec<LogHead>,
}

/// The head of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHead {
    /// `<namespace>/<pod-uid>/<instance>`.
    pub log: String,
    /// Last log number.
    pub number: u64,
    /// Hash of that frame.
    pub hash: Hash,
}

/// The origin of a cluster's checkpoints.
pub fn origin(cluster: &str) -> String {
    format!("sidegate/{cluster}/records")
}

impl Checkpoint {
    /// The signed part.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}\n{}\n{}\ntime {}\n",
            self.origin,
            self.size,
            STANDARD.encode(self.root),
            self.time_us
        );
        for head in &self.heads {
            let _ = writeln!(text, "log {} {} {}", head.log, head.number, hex(&head.hash));
        }
        text
    }

    /// The whole signed note.
    pub fn sign(&self, key: &Ed25519KeyPair) -> Option<String> {
        let text = self.text();
        let name = &self.origin;
        let verifier = VerifierKey::new(name, public_key(key));
        let signature = key.try_sign(text.as_bytes()).ok()?;
        let blob = [&verifier.id[..], signature.as_ref()].concat();
        Some(format!("{text}\n\u{2014} {name} {}\n", STANDARD.encode(blob)))
    }

    /// Reads a note and verifies it under one of `keys`.
    pub fn open(note: &str, keys: &[VerifierKey]) -> Result<Checkpoint, NoteError> {
        let (text, signatures) = note.rsplit_once("\n\n").ok_or(NoteError::Form)?;
        let text = format!("{text}\n");
        let line = signatures.strip_suffix('\n').ok_or(NoteError::Form)?;
        let line = line.strip_prefix("\u{2014} ").ok_or(NoteError::Form)?;
        let (name, blob) = line.split_once(' ').ok_or(NoteError::Form)?;
        let blob = STANDARD.decode(blob).map_err(|_| NoteError::Form)?;
        let (id, signature) = blob.split_first_chunk::<4>().ok_or(NoteError::Form)?;
        let key = keys
            .iter()
            .find(|key| key.name == name && key.id == *id)
            .ok_or(NoteError::UnknownKey)?;
        UnparsedPublicKey::new(&ED25519, &key.key)
            .verify(text.as_bytes(), signature)
            .map_err(|_| NoteError::Signature)?;
        let checkpoint = Self::parse(&text).ok_or(NoteError::Form)?;
        if checkpoint.origin != name || checkpoint.text() != text {
            return Err(NoteError::Form);
        }
        Ok(checkpoint)
    }

    fn parse(text: &str) -> Option<Checkpoint> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let mut checkpoint = Checkpoint {
            origin: lines.next()?.to_owned(),
            size: lines.next()?.parse().ok()?,
            root: STANDARD.decode(lines.next()?).ok()?.try_into().ok()?,
            time_us: lines.next()?.strip_prefix("time ")?.parse().ok()?,
            heads: Vec::new(),
        };
        for line in lines {
            let mut parts = line.strip_prefix("log ")?.split(' ');
            checkpoint.heads.push(LogHead {
                log: parts.next()?.to_owned(),
                number: parts.next()?.parse().ok()?,
                hash: unhex(parts.next()?)?,
            });
        }
        Some(checkpoint)
    }
}

/// Why a note is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not the form of a checkpoint.
    #[error("the checkpoint has a wrong form")]
    Form,
    /// No key of the ring.
    #[error("the checkpoint is signed by an unknown key")]
    UnknownKey,
    /// The signature does not verify.
    #[error("the checkpoint's signature does not verify")]
    Signature,
}

/// A public key that verifies notes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    /// Its name.
    pub name: String,
    /// The first four bytes of SHA-256 over name, newline, algorithm and key.
    pub id: [u8; 4],
    /// Ed25519.
    pub key: [u8; 32],
}

impl VerifierKey {
    /// The key under a name.
    pub fn new(name: &str, key: [u8; 32]) -> VerifierKey {
        let digest = sha256(&[name.as_bytes(), b"\n\x01", &key].concat());
        let mut id = [0u8; 4];
        id.copy_from_slice(digest.split_at(4).0);
        VerifierKey {
            name: name.to_owned(),
            id,
            key,
        }
    }

    /// Reads `name+hash+key`.
    pub fn parse(text: &str) -> Option<VerifierKey> {
        let mut parts = text.trim_end().splitn(3, '+');
        let (name, id, key) = (parts.next()?, parts.next()?, parts.next()?);
        let blob = STANDARD.decode(key).ok()?;
        let (1, key) = blob.split_first().map(|(first, rest)| (*first, rest))? else {
            return None;
        };
        let key = VerifierKey::new(name, key.try_into().ok()?);
        let mut said = [0u8; 4];
        unhex_into(id, &mut said)?;
        (said == key.id).then_some(key)
    }
}

impl std::fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blob = [&[1u8][..], &self.key].concat();
        write!(f, "{}+{}+{}", self.name, hex(&self.id), STANDARD.encode(blob))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            origin: origin("local"),
            size: 5,
            root: [4; 32],
            time_us: 17,
            heads: vec![LogHead {
                log: "agents/uid/1".into(),
                number: 9,
                hash: [1; 32],
            }],
        }
    }

    #[test]
    fn any_flip_in_a_checkpoint_is_named() {
        let key = Ed25519KeyPair::generate().unwrap();
        let verifier = VerifierKey::new(&origin("local"), public_key(&key));
        let verifier = VerifierKey::parse(&verifier.to_string()).unwrap();
        let note = checkpoint().sign(&key).unwrap();
        assert_eq!(
            Checkpoint::open(&note, std::slice::from_ref(&verifier)).unwrap(),
            checkpoint()
        );
        for at in 0..note.len() {
            let mut bad = note.clone().into_bytes();
            bad[at] ^= 1;
            let Ok(bad) = String::from_utf8(bad) else { continue };
            assert!(
                Checkpoint::open(&bad, std::slice::from_ref(&verifier)).is_err(),
                "byte {at}"
            );
        }
        assert_eq!(Checkpoint::open(&note, &[]), Err(NoteError::UnknownKey));
    }

    #[test]
    fn entries_and_paths_have_one_form() {
        let seal = Entry::Seal {
            log: "a/b/1".into(),
            segment: 2,
            first: 3,
            number: 9,
            hash: [7; 32],
        };
        assert_eq!(Entry::parse(&seal.to_bytes()), Some(seal.clone()));
        let mut bundle = Vec::new();
        assert!(push_entry(&seal.to_bytes(), &mut bundle));
        assert_eq!(bundle_entries(&bundle).unwrap(), vec![&seal.to_bytes()[..]]);
        assert_eq!(bundle_entries(&bundle[..5]), None);
        assert_eq!(tile_path("0", 5, 256), "tile/0/005");
        assert_eq!(tile_path("entries", 1_234_067, 12), "tile/entries/x001/x234/067.p/12");
    }
}
