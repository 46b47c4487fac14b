//! What goes up `POST /v1/records`: items, each a tag byte and a fixed layout, little-endian.
//!
//! | tag | item | bytes behind the tag |
//! |---|---|---|
//! | 1 | announce, first on every stream | version 1; instance 8; hash of the log's `boot` frame 32 |
//! | 2 | frame | the frame as stored |
//! | 3 | session key, before its `open` frame | session 16; key 32 |
//! | 4 | heartbeat | last log number 8; its hash 32 |
//! | 5 | end: the log is complete | last log number 8; its hash 32 |
//!
//! Refused: unknown tags and versions, frames that are none. Invariant: nothing is read beyond an item's length.

use zeroize::Zeroizing;

use crate::record::frame::{total_length, Frame, FrameError, Hash};

/// Most bytes of one item.
pub const MAX_ITEM: usize = crate::record::frame::MAX_LENGTH + 16;

/// One item. No Debug: it may hold a key.
pub enum Item<'a> {
    /// Which log this stream carries.
    Announce {
        /// Container instance.
        instance: u64,
        /// Hash of its `boot` frame.
        log: Hash,
    },
    /// A frame.
    Frame(Frame<'a>),
    /// A session's key.
    Key {
        /// The session.
        session: [u8; 16],
        /// The key.
        key: Zeroizing<[u8; 32]>,
    },
    /// The sidecar lives, and its log stands here.
    Heartbeat {
        /// Last log number.
        number: u64,
        /// Its hash.
        head: Hash,
    },
    /// Nothing follows in this log.
    End {
        /// Last log number.
        number: u64,
        /// Its hash.
        head: Hash,
    },
}

/// Why bytes are not an item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Unknown tag.
    #[error("stream item {0} is not known")]
    Tag(u8),
    /// Unknown version.
    #[error("stream version {0} is not known")]
    Version(u8),
    /// Not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads one item from the start of `input`: the item and its length, or `None` while bytes are missing.
pub fn parse(input: &[u8]) -> Result<Option<(Item<'_>, usize)>, StreamError> {
    let Some((tag, rest)) = input.split_first() else {
        return Ok(None);
    };
    match tag {
        1 => match rest.first_chunk::<41>() {
            Some([version, ..]) if *version != 1 => Err(StreamError::Version(*version)),
            Some([_, fields @ ..]) => {
                let (instance, log) = number_and_hash(fields);
                Ok(Some((Item::Announce { instance, log }, 42)))
            }
            None => Ok(None),
        },
        2 => match total_length(rest) {
            Err(FrameError::Incomplete) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(total) if rest.len() < total => Ok(None),
            Ok(total) => Ok(Some((Item::Frame(Frame::parse(rest)?), total.saturating_add(1)))),
        },
        3 => Ok(rest.first_chunk::<48>().map(|fields| (key(fields), 49))),
        4 | 5 => Ok(rest.first_chunk::<40>().map(|fields| {
            let (number, head) = number_and_hash(fields);
            let item = match tag {
                4 => Item::Heartbeat { number, head },
                _ => Item::End { number, head },
            };
            (item, 41)
        })),
        other => Err(StreamError::Tag(*other)),
    }
}

/// Appends an announcement.
pub fn announce(instance: u64, log: &Hash, out: &mut Vec<u8>) {
    out.extend_from_slice(&[1, 1]);
    out.extend_from_slice(&instance.to_le_bytes());
    out.extend_from_slice(log);
}

/// Appends a frame.
pub fn frame(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(2);
    out.extend_from_slice(bytes);
}

/// Appends a session key.
pub fn session_key(session: &[u8; 16], key: &[u8; 32], out: &mut Vec<u8>) {
    out.push(3);
    out.extend_from_slice(session);
    out.extend_from_slice(key);
}

/// Appends a heartbeat.
pub fn heartbeat(number: u64, head: &Hash, out: &mut Vec<u8>) {
    out.push(4);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(head);
}

/// Appends the end of the log.
pub fn end(number: u64, head: &Hash, out: &mut Vec<u8>) {
    out.push(5);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(head);
}

fn number_and_hash(fields: &[u8; 40]) -> (u64, Hash) {
    let mut number = [0u8; 8];
    let mut hash = [0u8; 32];
    let (first, rest) = fields.split_at(8);
    number.copy_from_slice(first);
    hash.copy_from_slice(rest);
    (u64::from_le_bytes(number), hash)
}

fn key(fields: &[u8; 48]) -> Item<'static> {
    let mut session = [0u8; 16];
    let mut key = Zeroizing::new([0u8; 32]);
    let (first, rest) = fields.split_at(16);
    session.copy_from_slice(first);
    key.copy_from_slice(rest);
    Item::Key { session, key }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::record::frame::{encode, Header};
    use crate::record::Kind;

    #[test]
    fn items_read_back_and_wait_for_missing_bytes() {
        let mut bytes = Vec::new();
        announce(3, &[7; 32], &mut bytes);
        session_key(&[1; 16], &[2; 32], &mut bytes);
        let mut frame_bytes = Vec::new();
        let header = Header {
            kind: Kind::Boot,
            flags: 0,
            log_number: 0,
            session: [0; 16],
            number: 0,
            mono_ns: 0,
            wall_us: 0,
            previous: [0; 32],
        };
        encode(&header, b"{}", &mut frame_bytes).unwrap();
        frame(&frame_bytes, &mut bytes);
        heartbeat(9, &[8; 32], &mut bytes);
        end(10, &[9; 32], &mut bytes);
        let mut left = &bytes[..];
        let mut seen = Vec::new();
        while !left.is_empty() {
            let (item, used) = parse(left).unwrap().unwrap();
            for cut in 0..used {
                assert!(parse(&left[..cut]).unwrap().is_none());
            }
            seen.push(match item {
                Item::Announce { instance: 3, log } if log == [7; 32] => 1,
                Item::Key { session, key } if session == [1; 16] && *key == [2; 32] => 3,
                Item::Frame(frame) if frame.header == header => 2,
                Item::Heartbeat { number: 9, head } if head == [8; 32] => 4,
                Item::End { number: 10, head } if head == [9; 32] => 5,
                _ => 0,
            });
            left = &left[used..];
        }
        assert_eq!(seen, [1, 3, 2, 4, 5]);
        assert!(parse(&[6]).is_err());
        assert!(parse(&[&[1u8, 2][..], &[0; 40]].concat()).is_err());
    }
}
