//! Replies of operations: put together from their pieces, with the names of their columns.
//!
//! A repeated statement refers to its first run, whose record alone holds the column names; they are put in front of
//! its rows here. Bounded like the texts that are remembered. Invariant: only what was kept in one piece is told.

use std::collections::HashMap;

use super::rows;
use super::text::TEXTS;

/// The longest description of columns that is remembered.
const HEADER: usize = 64 << 10;

/// Replies that are not complete yet, and descriptions of columns.
#[derive(Debug, Default)]
pub(super) struct Replies {
    pieces: HashMap<u64, Vec<u8>>,
    headers: HashMap<u64, Vec<u8>>,
    /// Operations whose first run another one was.
    repeats: HashMap<u64, u64>,
}

/// A whole reply.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// Bytes that were kept of it.
    pub kept: u64,
    /// The messages to tell.
    pub shown: Vec<u8>,
}

impl Replies {
    /// `op` repeats the statement of `first`.
    pub fn repeat(&mut self, op: u64, first: u64) {
        if self.repeats.len() < TEXTS {
            self.repeats.insert(op, first);
        }
    }

    /// Puts a piece behind what came before. What lies between the first and the last piece was not kept; a cut message
    /// ends the telling.
    pub fn piece(&mut self, op: u64, offset: u64, bytes: &[u8]) {
        let reply = self.pieces.entry(op).or_default();
        if reply.len() as u64 == offset {
            reply.extend_from_slice(bytes);
        }
    }

    /// The reply of an operation that is over.
    pub fn take(&mut self, op: Option<u64>) -> Reply {
        let Some(op) = op else { return Reply::default() };
        let bytes = self.pieces.remove(&op).unwrap_or_default();
        let first = self.repeats.remove(&op);
        let kept = bytes.len() as u64;
        let shown = match (
            rows::description(&bytes),
            first.and_then(|first| self.headers.get(&first)),
        ) {
            (Some(header), _) => {
                if header.len() <= HEADER && self.headers.len() < TEXTS {
                    self.headers.insert(op, header.to_vec());
                }
                bytes
            }
            (None, Some(header)) if !bytes.is_empty() => [header, &bytes[..]].concat(),
            _ => bytes,
        };
        Reply { kept, shown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_statement_has_the_columns_of_its_first_run() {
        let (header, row) = (b"T\0\0\0\x06\0\0".to_vec(), b"D\0\0\0\x06\0\0".to_vec());
        let mut replies = Replies::default();
        replies.piece(1, 0, &header);
        replies.piece(1, header.len() as u64, &row);
        let first = replies.take(Some(1));
        assert_eq!((first.kept, first.shown), (14, [&header[..], &row].concat()));
        replies.repeat(2, 1);
        replies.piece(2, 0, &row);
        let second = replies.take(Some(2));
        assert_eq!((second.kept, second.shown), (7, [&header[..], &row].concat()));
        replies.piece(3, 0, &row);
        assert_eq!(replies.take(Some(3)).shown, row, "nobody said what its columns are");
        replies.repeat(4, 1);
        assert!(replies.take(Some(4)).shown.is_empty(), "no row, no header");
    }
}
