//! What is kept of one operation's reply: first and last 64 KiB, the total and a keyed digest of the whole.
//!
//! Takes bytes that were masked before; `Statements` keeps totals only. Bounded by 128 KiB per session whatever
//! the reply's length.
//! Invariant: head and tail never overlap, and together they are the whole reply if it fits both.

use aws_lc_rs::hmac;

/// Bytes kept at either end.
pub(super) const KEEP: usize = 64 << 10;

/// A keyed digest of content so far.
pub struct Digesting(hmac::Context);

impl Digesting {
    pub(super) fn new(key: &hmac::Key) -> Digesting {
        Digesting(hmac::Context::with_key(key))
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces, hex.
    pub fn hex(&self) -> String {
        sidegate_policies::record::frame::hex(self.0.clone().sign().as_ref())
    }
}

/// The reply of one operation so far.
pub(super) struct ReplyBody {
    pub op: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
    total: u64,
    digest: hmac::Context,
}

/// A finished reply: pieces by offset.
pub(super) struct FinishedBody {
    pub total: u64,
    pub digest: String,
    pub pieces: Vec<(u64, Vec<u8>)>,
}

impl ReplyBody {
    pub fn new(op: u64, key: &hmac::Key) -> ReplyBody {
        ReplyBody {
            op,
            head: Vec::new(),
            tail: Vec::new(),
            total: 0,
            digest: hmac::Context::with_key(key),
        }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.total = self.total.saturating_add(bytes.len() as u64);
        let room = KEEP.saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at(room);
        self.head.extend_from_slice(first);
        self.push_tail(rest);
    }

    /// The tail buffer holds up to twice what is kept and is cut down when full, so each byte moves at most once.
    fn push_tail(&mut self, rest: &[u8]) {
        if rest.len() >= KEEP {
            self.tail.clear();
            let from = rest.len().saturating_sub(KEEP);
            self.tail.extend_from_slice(rest.get(from..).unwrap_or_default());
            return;
        }
        if self.tail.len().saturating_add(rest.len()) > KEEP.saturating_mul(2) {
            let surplus = self.tail.len().saturating_sub(KEEP);
            self.tail.drain(..surplus);
        }
        self.tail.extend_from_slice(rest);
    }

    pub fn finish(mut self) -> FinishedBody {
        let surplus = self.tail.len().saturating_sub(KEEP);
        self.tail.drain(..surplus);
        let tail_at = self.total.saturating_sub(self.tail.len() as u64);
        let mut pieces = Vec::new();
        if !self.head.is_empty() {
            pieces.push((0, self.head));
        }
        if !self.tail.is_empty() {
            pieces.push((tail_at, self.tail));
        }
        FinishedBody {
            total: self.total,
            digest: sidegate_policies::record::frame::hex(self.digest.sign().as_ref()),
            pieces,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn first_and_last_64_kib_are_kept_for_every_way_to_cut_the_stream() {
        let whole: Vec<u8> = (0..400_000u32).map(|n| (n % 251) as u8).collect();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        for (length, step) in [
            (0, 1),
            (10, 3),
            (KEEP, 999),
            (KEEP + 5, 70_000),
            (2 * KEEP, 4096),
            (400_000, 1000),
            (400_000, 400_000),
        ] {
            let mut body = ReplyBody::new(0, &key);
            for piece in whole[..length].chunks(step) {
                body.push(piece);
            }
            let done = body.finish();
            assert_eq!(done.total, length as u64);
            let kept: usize = done.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
            assert_eq!(kept, length.min(2 * KEEP), "length {length}");
            for (at, bytes) in &done.pieces {
                let at = *at as usize;
                assert_eq!(&whole[at..at + bytes.len()], &bytes[..]);
            }
        }
    }
}
