//! The log's mutable half: chains, the segment being written, the record key and its ratchet.
//!
//! Everything here happens under the log's mutex: give frames their place, hash them, one write, then move the
//! state. A failed write moves nothing. Sealing signs the footer with the current key, names the next one and
//! drops the current one: a key stolen later cannot rewrite earlier segments.
//! Invariant: the bytes in the files are exactly the frames the chains speak of.

use std::collections::VecDeque;
use std::sync::Arc;

use aws_lc_rs::signature::Ed25519KeyPair;
use sidegate_policies::record::footer::{self, Footer, Head, SEGMENT_BYTES, SEGMENT_NS};
use sidegate_policies::record::frame::{self, hex, Frame, Hash, Header};
use sidegate_policies::record::merkle::Tree;
use sidegate_policies::record::payload::Clock;
use sidegate_policies::record::Kind;
use smallvec::SmallVec;

use super::journal::{SegmentFile, Volume};
use super::random::{self, Random};
use super::CannotRecord;

/// Room kept for the footer, whatever else fills the disk.
pub(super) const SEAL_ROOM: u64 = 1 << 20;

/// A file of the log, as the uploader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub file: String,
    pub first: u64,
    /// First log number after it, once nothing more is appended.
    pub end: Option<u64>,
    pub len: u64,
}

#[derive(Debug, Clone, Copy)]
struct Chain {
    next: u64,
    head: Hash,
}

struct OpenSession {
    id: [u8; 16],
    chain: Chain,
}

struct Current {
    file: Box<dyn SegmentFile>,
    len: u64,
}

/// What one session adds.
pub(super) struct Part<'a> {
    pub slot: usize,
    /// Its frames.
    pub bytes: &'a mut Vec<u8>,
    /// When the last of them was made: monotonic ns and wall µs.
    pub at: (u64, u64),
}

/// See the module.
pub(super) struct State {
    volume: Arc<dyn Volume>,
    random: Arc<dyn Random>,
    pub log: String,
    pub boot: Hash,
    pub next: u64,
    /// Hash of the log's last frame.
    pub head: Hash,
    zero: Chain,
    sessions: Vec<Option<OpenSession>>,
    free: Vec<usize>,
    current: Option<Current>,
    pub pieces: VecDeque<Piece>,
    tree: Tree,
    segment: u64,
    segment_first: u64,
    segment_bytes: u64,
    segment_began_ns: Option<u64>,
    previous_footer: Hash,
    key: Ed25519KeyPair,
    pub certified: bool,
    offset_us: Option<i64>,
    /// Where the frames of several sessions become one write.
    together: Vec<u8>,
    /// Why the last append failed, until one succeeds.
    pub failing: Option<CannotRecord>,
}

impl State {
    /// A log whose `boot` frame is `boot_frame`; nothing is on disk yet.
    pub fn new(
        volume: Arc<dyn Volume>,
        random: Arc<dyn Random>,
        log: String,
        boot: Hash,
        key: Ed25519KeyPair,
    ) -> State {
        State {
            volume,
            random,
            log,
            boot,
            next: 0,
            head: [0; 32],
            zero: Chain { next: 0, head: [0; 32] },
            sessions: Vec::new(),
            free: Vec::new(),
            current: None,
            pieces: VecDeque::new(),
            tree: Tree::default(),
            segment: 0,
            segment_first: 0,
            segment_bytes: 0,
            segment_began_ns: None,
            previous_footer: [0; 32],
            key,
            certified: false,
            offset_us: None,
            together: Vec::new(),
            failing: None,
        }
    }

    /// The key that will sign the next footer.
    pub fn public_key(&self) -> [u8; 32] {
        footer::public_key(&self.key)
    }

    /// Takes a slot for a session.
    pub fn enter(&mut self, id: [u8; 16]) -> usize {
        let session = OpenSession {
            id,
            chain: Chain {
                next: 0,
                head: self.boot,
            },
        };
        if let Some(slot) = self.free.pop() {
            if let Some(place) = self.sessions.get_mut(slot) {
                *place = Some(session);
                return slot;
            }
        }
        self.sessions.push(Some(session));
        self.sessions.len().saturating_sub(1)
    }

    /// Gives a session's slot back; its `close` is written.
    pub fn leave(&mut self, slot: usize) {
        if self.sessions.get_mut(slot).and_then(Option::take).is_some() {
            self.free.push(slot);
        }
    }

    /// Open sessions.
    pub fn open_sessions(&self) -> usize {
        self.sessions.len().saturating_sub(self.free.len())
    }

    /// Appends the frames of these sessions, built with placeholders, in one write. Clears them on success; otherwise nothing
    /// was appended for any of them. Answers the last log number.
    pub fn append(&mut self, parts: &mut [Part<'_>]) -> Result<u64, CannotRecord> {
        for part in &*parts {
            self.watch_clock(part.at)?;
        }
        if let Some(last) = parts.last() {
            self.rotate_if_full(last.at)?;
        }
        let mut placed = Placed::after(self.next);
        let mut chains = SmallVec::<[Chain; 8]>::new();
        for part in &mut *parts {
            let session = self.sessions.get(part.slot).and_then(Option::as_ref);
            let chain = session.map(|session| session.chain).ok_or(CannotRecord::Closed)?;
            chains.push(placed.all(chain, part.bytes)?);
        }
        if let [only] = parts {
            self.take(&placed, only.bytes)?;
        } else {
            let mut together = std::mem::take(&mut self.together);
            together.clear();
            for part in &*parts {
                together.extend_from_slice(part.bytes);
            }
            let taken = self.take(&placed, &together);
            self.together = together;
            taken?;
        }
        for (part, chain) in parts.iter_mut().zip(chains) {
            if let Some(session) = self.sessions.get_mut(part.slot).and_then(Option::as_mut) {
                session.chain = chain;
            }
            part.bytes.clear();
        }
        Ok(self.next.saturating_sub(1))
    }

    /// Appends a frame of the log itself.
    pub fn append_own(&mut self, kind: Kind, payload: &[u8], mono_ns: u64, wall_us: u64) -> Result<Hash, CannotRecord> {
        let header = Header::of_log(kind, self.next, self.zero.next, (mono_ns, wall_us), self.zero.head);
        let mut bytes = Vec::new();
        frame::encode(&header, payload, &mut bytes).map_err(|_| CannotRecord::TooLarge)?;
        let mut placed = Placed::after(self.next);
        let chain = placed.all(self.zero, &mut bytes)?;
        self.take(&placed, &bytes)?;
        self.zero = chain;
        Ok(self.zero.head)
    }

    /// Writes frames that have their places, and moves the log on to where they end.
    fn take(&mut self, placed: &Placed, bytes: &[u8]) -> Result<(), CannotRecord> {
        let began = self.segment_began_ns.or_else(|| first_time(bytes));
        self.write(bytes)?;
        for hash in &placed.hashes {
            self.tree.push(hash);
            self.head = *hash;
        }
        self.next = placed.next;
        self.segment_bytes = self.segment_bytes.saturating_add(bytes.len() as u64);
        self.segment_began_ns = began;
        Ok(())
    }

    /// One write. A torn one is cut off again; where even that fails, the file is abandoned.
    fn write(&mut self, bytes: &[u8]) -> Result<(), CannotRecord> {
        if let Err(error) = self.open_file() {
            return Err(self.failed(&error));
        }
        let Some(current) = self.current.as_mut() else {
            return Err(CannotRecord::Disk(std::io::ErrorKind::NotFound));
        };
        match current.file.append(bytes) {
            Ok(()) => {
                current.len = current.len.saturating_add(bytes.len() as u64);
                if let Some(piece) = self.pieces.back_mut() {
                    piece.len = current.len;
                }
                self.failing = None;
                Ok(())
            }
            Err(error) => {
                if current.file.cut(current.len).is_err() {
                    self.end_piece();
                }
                Err(self.failed(&error))
            }
        }
    }

    fn failed(&mut self, error: &std::io::Error) -> CannotRecord {
        let refusal = CannotRecord::Disk(error.kind());
        self.failing = Some(refusal.clone());
        refusal
    }

    fn open_file(&mut self) -> std::io::Result<()> {
        if self.current.is_some() {
            return Ok(());
        }
        let name = format!("{:020}.seg", self.next);
        if self.pieces.back().is_some_and(|piece| piece.file == name) {
            // An earlier attempt left a file of this name with nothing good in it.
            self.volume.remove(&self.log, &name)?;
            self.pieces.pop_back();
        }
        let reserve = SEGMENT_BYTES.saturating_add(SEAL_ROOM);
        let file = match self.volume.create(&self.log, &name, reserve) {
            // A full disk let the file be named and not allocated. No piece has this name, so nothing is in it.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                self.volume.remove(&self.log, &name)?;
                self.volume.create(&self.log, &name, reserve)?
            }
            other => other?,
        };
        self.current = Some(Current { file, len: 0 });
        self.pieces.push_back(Piece {
            file: name,
            first: self.next,
            end: None,
            len: 0,
        });
        Ok(())
    }

    fn end_piece(&mut self) {
        self.current = None;
        if let Some(piece) = self.pieces.back_mut() {
            piece.end = Some(self.next);
        }
    }

    fn rotate_if_full(&mut self, now: (u64, u64)) -> Result<(), CannotRecord> {
        if self.certified && self.segment_bytes >= SEGMENT_BYTES {
            self.seal(now.0, now.1)?;
        }
        Ok(())
    }

    /// Writes a `clock` frame when the wall clock moved against the monotonic one by more than a second.
    fn watch_clock(&mut self, (mono_ns, wall_us): (u64, u64)) -> Result<(), CannotRecord> {
        let offset = Clock::offset_us((mono_ns, wall_us));
        let before = *self.offset_us.get_or_insert(offset);
        let Some(jump) = Clock::moved(before, offset) else {
            return Ok(());
        };
        let payload = serde_json::to_vec(&jump).map_err(|_| CannotRecord::Encoding)?;
        self.append_own(Kind::Clock, &payload, mono_ns, wall_us)?;
        self.offset_us = Some(offset);
        Ok(())
    }

    /// Whether the segment is due: 10 s after its first frame.
    pub fn seal_due(&self, mono_ns: u64) -> bool {
        self.certified
            && self
                .segment_began_ns
                .is_some_and(|began| mono_ns.saturating_sub(began) >= SEGMENT_NS)
    }

    /// Ends the segment: footer, signature, next key, next file. Nothing is written for an empty segment.
    pub fn seal(&mut self, mono_ns: u64, wall_us: u64) -> Result<(), CannotRecord> {
        if !self.certified || self.tree.size() == 0 {
            return Ok(());
        }
        let next_key = random::record_key(self.random.as_ref())?;
        let footer = Footer {
            segment: self.segment,
            log: hex(&self.boot),
            first: self.segment_first,
            last: self.next.saturating_sub(1),
            root: hex(&self.tree.root()),
            previous: hex(&self.previous_footer),
            next_key: footer::encode_key(&footer::public_key(&next_key)),
            heads: self.heads(),
            mono_ns,
            wall_us,
            number: self.zero.next,
        };
        let payload = footer.sign(&self.key).map_err(|_| CannotRecord::Encoding)?;
        self.previous_footer = self.append_own(Kind::Seal, &payload, mono_ns, wall_us)?;
        // The old key pair is dropped here and its memory cleansed by the library.
        self.key = next_key;
        self.segment = self.segment.saturating_add(1);
        self.segment_first = self.next;
        self.segment_bytes = 0;
        self.segment_began_ns = None;
        self.tree = Tree::default();
        self.end_piece();
        Ok(())
    }

    fn heads(&self) -> Vec<Head> {
        self.sessions
            .iter()
            .flatten()
            .filter(|session| session.chain.next > 0)
            .map(|session| Head {
                session: uuid::Uuid::from_bytes(session.id).to_string(),
                number: session.chain.next.saturating_sub(1),
                hash: hex(&session.chain.head),
            })
            .collect()
    }
}

/// Frames that were given their places, and not written yet.
struct Placed {
    next: u64,
    hashes: SmallVec<[Hash; 8]>,
}

impl Placed {
    fn after(next: u64) -> Placed {
        Placed {
            next,
            hashes: SmallVec::new(),
        }
    }

    /// Gives every frame in `buffer` its log number, its predecessor and its checksum. Answers where its chain then stands.
    fn all(&mut self, mut chain: Chain, buffer: &mut [u8]) -> Result<Chain, CannotRecord> {
        let mut left = buffer;
        while !left.is_empty() {
            let total = frame::total_length(left).map_err(|_| CannotRecord::Encoding)?;
            let (bytes, rest) = left.split_at_mut_checked(total).ok_or(CannotRecord::Encoding)?;
            let hash = frame::place(bytes, self.next, &chain.head).map_err(|_| CannotRecord::Encoding)?;
            self.hashes.push(hash);
            self.next = self.next.saturating_add(1);
            chain = Chain {
                next: chain.next.saturating_add(1),
                head: hash,
            };
            left = rest;
        }
        Ok(chain)
    }
}

fn first_time(buffer: &[u8]) -> Option<u64> {
    Frame::parse_unchecked(buffer).ok().map(|frame| frame.header.mono_ns)
}
