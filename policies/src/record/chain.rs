//! One log as it must be, frame by frame: the strict reader of recovery and collector.
//!
//! Follows log numbers, every session's chain, segments with their roots, and the ratchet of keys. The first
//! frame that does not fit is refused and nothing moves; what to say about damaged logs is the verifier's job.
//! Invariant: after `accept` of a `seal` frame, everything before it is vouched for by the log's own keys.

use std::collections::HashMap;

use crate::record::footer::{decode_key, encode_key, Footer, FooterError, Head};
use crate::record::frame::{encode, hex, unhex, Frame, FrameError, Hash, Header};
use crate::record::kind::Kind;
use crate::record::merkle::Tree;
use crate::record::payload::Boot;

/// Where a chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainHead {
    /// Number of the next frame.
    pub next: u64,
    /// Hash of the last one.
    pub head: Hash,
}

/// Why a frame does not continue a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Frames are missing.
    #[error("gap: log number {expected} is missing, {found} follows")]
    Gap {
        /// Expected.
        expected: u64,
        /// Found.
        found: u64,
    },
    /// The log number was used before.
    #[error("fork: log number {found} comes again where {expected} is due")]
    Fork {
        /// Expected.
        expected: u64,
        /// Found.
        found: u64,
    },
    /// The frame names another predecessor, or another place in its session.
    #[error("log number {0} does not chain to its session")]
    Chain(u64),
    /// A kind where it cannot be: `boot` twice, a session without `open`, frames after `close`.
    #[error("log number {0} is of a kind that cannot stand there")]
    Order(u64),
    /// A payload of the log itself cannot be read.
    #[error("log number {0} has a payload that cannot be read")]
    Payload(u64),
    /// The footer is not the one of this segment.
    #[error("the footer at log number {0} does not fit its segment")]
    Segment(u64),
    /// The footer's form or signature is wrong.
    #[error("log number {number}: {error}")]
    Footer {
        /// Where.
        number: u64,
        /// What.
        error: FooterError,
    },
}

/// A log in the making.
#[derive(Debug, Clone)]
pub struct LogChain {
    /// Next log number.
    pub next: u64,
    /// Hash of the last frame.
    pub head: Hash,
    /// Hash of the `boot` frame; zeros before it.
    pub boot: Hash,
    /// Key that signs the next footer.
    pub key: [u8; 32],
    /// Next segment's number.
    pub segment: u64,
    /// Log number of the last footer, if any.
    pub sealed: Option<u64>,
    sessions: HashMap<[u8; 16], ChainHead>,
    zero: ChainHead,
    tree: Tree,
    first: u64,
    previous_footer: Hash,
    /// Begun in the middle: chains seen for the first time are taken as they are.
    partial: bool,
}

impl Default for LogChain {
    fn default() -> Self {
        let zero = ChainHead { next: 0, head: [0; 32] };
        LogChain {
            next: 0,
            head: [0; 32],
            boot: [0; 32],
            key: [0; 32],
            segment: 0,
            sealed: None,
            sessions: HashMap::new(),
            zero,
            tree: Tree::default(),
            first: 0,
            previous_footer: [0; 32],
            partial: false,
        }
    }
}

impl LogChain {
    /// A log of which only what comes from `next` on is at hand. Signatures are not judged.
    pub fn partial(boot: Hash, next: u64) -> LogChain {
        LogChain {
            boot,
            next,
            first: next,
            partial: true,
            ..LogChain::default()
        }
    }

    /// A log as its last footer leaves it. `seal` is that frame, verified before.
    pub fn resume(seal: &Frame<'_>) -> Option<LogChain> {
        let footer = Footer::read(seal.payload).ok()?.footer;
        let head = seal.hash();
        let mut sessions = HashMap::new();
        for open in &footer.heads {
            let id = uuid::Uuid::parse_str(&open.session).ok()?;
            let chain = ChainHead {
                next: open.number.checked_add(1)?,
                head: unhex(&open.hash)?,
            };
            sessions.insert(*id.as_bytes(), chain);
        }
        Some(LogChain {
            next: seal.header.log_number.checked_add(1)?,
            head,
            boot: unhex(&footer.log)?,
            key: decode_key(&footer.next_key)?,
            segment: footer.segment.checked_add(1)?,
            sealed: Some(seal.header.log_number),
            sessions,
            zero: ChainHead {
                next: seal.header.number.checked_add(1)?,
                head,
            },
            tree: Tree::default(),
            first: seal.header.log_number.checked_add(1)?,
            previous_footer: head,
            partial: false,
        })
    }

    /// Sessions without `close`.
    pub fn open_sessions(&self) -> impl Iterator<Item = (&[u8; 16], &ChainHead)> {
        self.sessions.iter()
    }

    /// Frames since the last footer.
    pub fn unsealed(&self) -> u64 {
        self.tree.size()
    }

    /// Appends to `out` the frame of the log itself that comes next; `now` is monotonic ns and wall µs. Nothing moves
    /// until it is taken. For a writer without sessions.
    pub fn own(&self, kind: Kind, payload: &[u8], now: (u64, u64), out: &mut Vec<u8>) -> Result<Hash, FrameError> {
        let header = Header::of_log(kind, self.next, self.zero.next, now, self.zero.head);
        encode(&header, payload, out)
    }

    /// The footer that would end the segment now; `next_key` signs the one after it.
    pub fn footer(&self, next_key: &[u8; 32], now: (u64, u64)) -> Footer {
        let heads = self.sessions.iter().map(|(id, chain)| Head {
            session: uuid::Uuid::from_bytes(*id).to_string(),
            number: chain.next.saturating_sub(1),
            hash: hex(&chain.head),
        });
        Footer {
            segment: self.segment,
            log: hex(&self.boot),
            first: self.first,
            last: self.next.saturating_sub(1),
            root: hex(&self.tree.root()),
            previous: hex(&self.previous_footer),
            next_key: encode_key(next_key),
            heads: heads.collect(),
            mono_ns: now.0,
            wall_us: now.1,
            number: self.zero.next,
        }
    }

    /// Takes the next frame, or says why it is not the next one; then nothing has moved.
    pub fn accept(&mut self, frame: &Frame<'_>) -> Result<Hash, ChainError> {
        let header = &frame.header;
        let number = header.log_number;
        if number > self.next {
            return Err(ChainError::Gap {
                expected: self.next,
                found: number,
            });
        }
        if number < self.next {
            return Err(ChainError::Fork {
                expected: self.next,
                found: number,
            });
        }
        let of_log = header.session == [0; 16];
        if of_log != header.kind.of_log() || (number == 0) != (header.kind == Kind::Boot) {
            return Err(ChainError::Order(number));
        }
        let chain = self.chain_of(frame)?;
        if (header.number, header.previous) != (chain.next, chain.head) {
            return Err(ChainError::Chain(number));
        }
        let hash = frame.hash();
        if header.kind == Kind::Boot {
            self.begin(frame, hash)?;
        }
        let sealed = self.check_seal(frame)?;
        self.advance(frame, hash, sealed);
        Ok(hash)
    }

    fn chain_of(&self, frame: &Frame<'_>) -> Result<ChainHead, ChainError> {
        let header = &frame.header;
        let as_is = ChainHead {
            next: header.number,
            head: header.previous,
        };
        if header.session == [0; 16] {
            let fresh = self.partial && self.zero.next == 0;
            return Ok(if fresh { as_is } else { self.zero });
        }
        match self.sessions.get(&header.session) {
            Some(_) if header.kind == Kind::Open => Err(ChainError::Order(header.log_number)),
            Some(chain) => Ok(*chain),
            None if header.kind == Kind::Open => Ok(ChainHead {
                next: 0,
                head: self.boot,
            }),
            None if self.partial => Ok(as_is),
            None => Err(ChainError::Order(header.log_number)),
        }
    }

    fn begin(&mut self, frame: &Frame<'_>, hash: Hash) -> Result<(), ChainError> {
        let boot: Boot =
            serde_json::from_slice(frame.payload).map_err(|_| ChainError::Payload(frame.header.log_number))?;
        self.key = decode_key(&boot.public_key).ok_or(ChainError::Payload(frame.header.log_number))?;
        self.boot = hash;
        Ok(())
    }

    fn check_seal(&self, frame: &Frame<'_>) -> Result<Option<Footer>, ChainError> {
        if frame.header.kind != Kind::Seal {
            return Ok(None);
        }
        let number = frame.header.log_number;
        let signed = Footer::read(frame.payload).map_err(|error| ChainError::Footer { number, error })?;
        if self.partial {
            return Ok(Some(signed.footer));
        }
        signed
            .verify(&self.key)
            .map_err(|error| ChainError::Footer { number, error })?;
        if !self.fits(frame, &signed.footer) {
            return Err(ChainError::Segment(number));
        }
        Ok(Some(signed.footer))
    }

    fn fits(&self, frame: &Frame<'_>, footer: &Footer) -> bool {
        footer.segment == self.segment
            && footer.log == hex(&self.boot)
            && footer.first == self.first
            && footer.last.checked_add(1) == Some(self.next)
            && footer.root == hex(&self.tree.root())
            && footer.previous == hex(&self.previous_footer)
            && footer.mono_ns == frame.header.mono_ns
            && footer.wall_us == frame.header.wall_us
            && footer.number == frame.header.number
            && self.heads_fit(footer)
    }

    fn heads_fit(&self, footer: &Footer) -> bool {
        footer.heads.len() == self.sessions.len()
            && footer.heads.iter().all(|head| {
                uuid::Uuid::parse_str(&head.session)
                    .ok()
                    .and_then(|id| self.sessions.get(id.as_bytes()))
                    .is_some_and(|chain| {
                        head.number.checked_add(1) == Some(chain.next) && head.hash == hex(&chain.head)
                    })
            })
    }

    fn advance(&mut self, frame: &Frame<'_>, hash: Hash, sealed: Option<Footer>) {
        let header = &frame.header;
        let chain = ChainHead {
            next: header.number.saturating_add(1),
            head: hash,
        };
        if header.session == [0; 16] {
            self.zero = chain;
        } else if header.kind == Kind::Close {
            self.sessions.remove(&header.session);
        } else {
            self.sessions.insert(header.session, chain);
        }
        self.next = header.log_number.saturating_add(1);
        self.head = hash;
        match sealed {
            None => self.tree.push(&hash),
            Some(footer) => {
                self.key = decode_key(&footer.next_key).unwrap_or_default();
                self.segment = footer.segment.saturating_add(1);
                self.previous_footer = hash;
                self.first = self.next;
                self.sealed = Some(header.log_number);
                self.tree = Tree::default();
            }
        }
    }
}
