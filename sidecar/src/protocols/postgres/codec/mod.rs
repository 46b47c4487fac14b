//! Frames of the PostgreSQL protocol, sans IO: cutting a byte stream into frames, reading and writing the few
//! messages we interpret.
//!
//! It refuses lengths out of range before a byte is allocated for them, strings without an end and messages with
//! bytes left over. The invariant: whatever the splits of the stream, the frames are the same.

pub mod bind;
pub mod copy_response;
pub mod data_row;
pub mod error;
pub mod named;
pub mod parse;
pub mod reader;
pub mod row_description;
pub mod scan;
pub mod startup;
pub mod write;

pub use reader::Reader;
pub use scan::{AgentScanner, Piece, Scan, ServerScanner};

use bytes::Bytes;

/// Bytes of tag and length before a payload.
pub const HEADER: usize = 5;
/// The longest statement text.
pub const MAX_TEXT: usize = 1 << 20;
/// The longest message of an agent that is no statement text.
pub const MAX_AGENT_MESSAGE: usize = 16 << 20;
/// The longest message of a server that we hold whole: a masked row.
pub const MAX_HELD_ROW: usize = 16 << 20;
/// The longest message of a server besides rows and COPY data.
pub const MAX_SERVER_MESSAGE: usize = 4 << 20;

/// What is wrong with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A length below four, or above the message's limit.
    #[error("message {tag:?} has an impossible length of {length}")]
    Length {
        /// The message's tag.
        tag: char,
        /// The length it claims.
        length: i64,
    },
    /// A message that ends before its fields do.
    #[error("message ends too early")]
    Truncated,
    /// A message with bytes after its last field.
    #[error("message has bytes left over")]
    Trailing,
    /// Text that is not UTF-8 where it must be.
    #[error("text is not valid UTF-8")]
    Utf8,
    /// A field with a value that has no meaning.
    #[error("field {0} has no meaning")]
    Field(&'static str),
}

/// One whole message: tag, length and payload as they arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    tag: u8,
    bytes: Bytes,
}

impl Frame {
    /// Wraps bytes that already hold tag, right length and payload.
    pub(super) fn whole(bytes: Bytes) -> Self {
        Frame {
            tag: bytes.first().copied().unwrap_or(0),
            bytes,
        }
    }

    /// The same in bytes of its own: what is kept must not hold on to the buffer it was read into.
    pub fn detached(&self) -> Self {
        Frame::whole(Bytes::copy_from_slice(&self.bytes))
    }

    /// The message's tag.
    pub fn tag(&self) -> u8 {
        self.tag
    }

    /// All bytes, header included.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// The payload as a shared slice.
    pub fn payload_bytes(&self) -> Bytes {
        self.bytes.slice(HEADER.min(self.bytes.len())..)
    }

    /// A reader over the payload.
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(self.payload())
    }
}

impl From<Frame> for Bytes {
    fn from(frame: Frame) -> Bytes {
        frame.bytes
    }
}
