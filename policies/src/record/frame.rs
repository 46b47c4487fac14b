//! One frame: its bytes, its hash, its checksum.
//!
//! The hash is SHA-256 over the stored bytes from `length` to the end of the payload, so nothing is ever
//! serialised again to check it. The CRC finds torn writes and is never evidence.
//! Refused: lengths above 1 MiB before anything is allocated, unknown versions, kinds and flags, reserved bits.
//! Invariant: `Frame::parse` accepts exactly what `encode` writes, byte for byte.

use crate::record::kind::Kind;

/// SHA-256, as every hash in a record.
pub type Hash = [u8; 32];

/// Bytes of `length`.
pub const LENGTH_BYTES: usize = 4;
/// Header bytes behind `length`.
pub const HEADER_BYTES: usize = 84;
/// Bytes before the payload.
pub const PREFIX_BYTES: usize = LENGTH_BYTES + HEADER_BYTES;
/// Bytes of the CRC.
pub const CRC_BYTES: usize = 4;
/// Bytes of a frame around its payload.
pub const OVERHEAD: usize = PREFIX_BYTES + CRC_BYTES;
/// Highest value of `length`: 1 MiB.
pub const MAX_LENGTH: usize = 1 << 20;
/// Longest payload.
pub const MAX_PAYLOAD: usize = MAX_LENGTH - HEADER_BYTES;
/// The version this build writes and reads.
pub const VERSION: u8 = 1;

/// Payload is zstd-compressed.
pub const FLAG_ZSTD: u8 = 1;
/// Payload is sealed with the session key (after compression).
pub const FLAG_SEALED: u8 = 2;
/// Payload is shorter than what it stands for.
pub const FLAG_TRUNCATED: u8 = 4;

/// Everything of a frame but its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Kind.
    pub kind: Kind,
    /// `FLAG_*`.
    pub flags: u8,
    /// Place in the log, from 0 without gaps.
    pub log_number: u64,
    /// UUIDv7 of the session; zero for frames of the log itself.
    pub session: [u8; 16],
    /// Place in the session, from 0 without gaps.
    pub number: u64,
    /// Monotonic nanoseconds since the log began.
    pub mono_ns: u64,
    /// Wall clock, microseconds since 1970.
    pub wall_us: u64,
    /// Hash of the session's previous frame; of the `boot` frame for its first; zero for `boot`.
    pub previous: Hash,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// More bytes are needed.
    #[error("the frame is cut short")]
    Incomplete,
    /// `length` is below the header's or above 1 MiB.
    #[error("a frame length of {0} bytes is impossible")]
    Length(u64),
    /// Another version.
    #[error("frame version {0} is not known")]
    Version(u8),
    /// No such kind.
    #[error("frame kind {0} is not known")]
    Kind(u8),
    /// Unknown flags or reserved bits.
    #[error("flags {0:#04x} or reserved byte {1:#04x} are not known")]
    Flags(u8, u8),
    /// The checksum does not fit.
    #[error("the checksum does not fit")]
    Crc,
    /// The payload is too long for a frame.
    #[error("a payload of {0} bytes does not fit a frame")]
    TooLong(usize),
}

/// A frame as it lies in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// The payload as stored.
    pub payload: &'a [u8],
    /// The whole frame as stored, from `length` to the CRC.
    pub bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the frame at the start of `input`.
    pub fn parse(input: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        Self::read(input, true)
    }

    /// As [`Frame::parse`], without the checksum: for evidence, which rests on hashes alone.
    pub fn parse_unchecked(input: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        Self::read(input, false)
    }

    fn read(input: &'a [u8], check: bool) -> Result<Frame<'a>, FrameError> {
        let total = total_length(input)?;
        let bytes = input.get(..total).ok_or(FrameError::Incomplete)?;
        let hashed_len = total.saturating_sub(CRC_BYTES);
        let (hashed, crc) = bytes.split_at_checked(hashed_len).ok_or(FrameError::Incomplete)?;
        if check && crc32c::crc32c(hashed).to_le_bytes() != *crc {
            return Err(FrameError::Crc);
        }
        let (prefix, payload) = hashed.split_at_checked(PREFIX_BYTES).ok_or(FrameError::Incomplete)?;
        let header = Header::parse(prefix)?;
        Ok(Frame { header, payload, bytes })
    }

    /// Whether the checksum fits.
    pub fn crc_fits(&self) -> bool {
        let (hashed, crc) = self.bytes.split_at(self.bytes.len().saturating_sub(CRC_BYTES));
        crc32c::crc32c(hashed).to_le_bytes() == *crc
    }

    /// The frame's hash.
    pub fn hash(&self) -> Hash {
        let hashed = self.bytes.len().saturating_sub(CRC_BYTES);
        sha256(self.bytes.get(..hashed).unwrap_or_default())
    }
}

impl Header {
    /// A frame of the log itself: of no session, and not sealed. `now` is monotonic nanoseconds and wall microseconds.
    pub fn of_log(kind: Kind, log_number: u64, number: u64, now: (u64, u64), previous: Hash) -> Header {
        Header {
            kind,
            flags: 0,
            log_number,
            session: [0; 16],
            number,
            mono_ns: now.0,
            wall_us: now.1,
            previous,
        }
    }

    fn parse(prefix: &[u8]) -> Result<Header, FrameError> {
        let mut cursor = Cursor { left: prefix };
        let _length: [u8; 4] = cursor.take()?;
        let [version, kind, flags, reserved] = cursor.take()?;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if flags & !(FLAG_ZSTD | FLAG_SEALED | FLAG_TRUNCATED) != 0 || reserved != 0 {
            return Err(FrameError::Flags(flags, reserved));
        }
        Ok(Header {
            kind: Kind::from_code(kind).ok_or(FrameError::Kind(kind))?,
            flags,
            log_number: u64::from_le_bytes(cursor.take()?),
            session: cursor.take()?,
            number: u64::from_le_bytes(cursor.take()?),
            mono_ns: u64::from_le_bytes(cursor.take()?),
            wall_us: u64::from_le_bytes(cursor.take()?),
            previous: cursor.take()?,
        })
    }

    /// The header's bytes behind `length`.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        let mut left = &mut out[..];
        put(&mut left, &[VERSION, self.kind.code(), self.flags, 0]);
        put(&mut left, &self.log_number.to_le_bytes());
        put(&mut left, &self.session);
        put(&mut left, &self.number.to_le_bytes());
        put(&mut left, &self.mono_ns.to_le_bytes());
        put(&mut left, &self.wall_us.to_le_bytes());
        put(&mut left, &self.previous);
        out
    }

    /// What sealing authenticates besides the payload: kind, flags, session and place in it.
    pub fn associated_data(&self) -> [u8; 28] {
        let mut out = [0u8; 28];
        let mut left = &mut out[..];
        put(&mut left, &[VERSION, self.kind.code(), self.flags, 0]);
        put(&mut left, &self.session);
        put(&mut left, &self.number.to_le_bytes());
        out
    }
}

/// Appends one whole frame and answers its hash.
pub fn encode(header: &Header, payload: &[u8], out: &mut Vec<u8>) -> Result<Hash, FrameError> {
    let start = out.len();
    out.reserve(payload.len().saturating_add(OVERHEAD));
    begin(header, payload.len(), out)?;
    out.extend_from_slice(payload);
    Ok(finish(out, start))
}

/// Appends `length` and header for a payload of `len` bytes.
pub fn begin(header: &Header, len: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    if len > MAX_PAYLOAD {
        return Err(FrameError::TooLong(len));
    }
    let length = u32::try_from(len.saturating_add(HEADER_BYTES)).map_err(|_| FrameError::TooLong(len))?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&header.to_bytes());
    Ok(())
}

/// Hashes the frame that began at `start` and ends with its payload, and appends the checksum.
pub fn finish(out: &mut Vec<u8>, start: usize) -> Hash {
    let hashed = out.get(start..).unwrap_or_default();
    let hash = sha256(hashed);
    let crc = crc32c::crc32c(hashed).to_le_bytes();
    out.extend_from_slice(&crc);
    hash
}

/// Gives a frame built with placeholders its place: writes log number, previous hash and checksum into the whole
/// frame `bytes` and answers its hash. For writers that learn their place last.
pub fn place(bytes: &mut [u8], log_number: u64, previous: &Hash) -> Result<Hash, FrameError> {
    let hashed = bytes.len().checked_sub(CRC_BYTES).ok_or(FrameError::Incomplete)?;
    let (body, crc) = bytes.split_at_mut(hashed);
    body.get_mut(8..16)
        .ok_or(FrameError::Incomplete)?
        .copy_from_slice(&log_number.to_le_bytes());
    body.get_mut(56..PREFIX_BYTES)
        .ok_or(FrameError::Incomplete)?
        .copy_from_slice(previous);
    crc.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    Ok(sha256(body))
}

/// Length of the whole frame that starts `input`, judged by its first four bytes alone.
pub fn total_length(input: &[u8]) -> Result<usize, FrameError> {
    let length: [u8; 4] = input
        .first_chunk::<LENGTH_BYTES>()
        .copied()
        .ok_or(FrameError::Incomplete)?;
    let length = u32::from_le_bytes(length);
    let usable = usize::try_from(length).map_err(|_| FrameError::Length(length.into()))?;
    if !(HEADER_BYTES..=MAX_LENGTH).contains(&usable) {
        return Err(FrameError::Length(length.into()));
    }
    Ok(usable.saturating_add(LENGTH_BYTES + CRC_BYTES))
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Hash {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0u8; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
    // Every operation's digest passes here: the length is known beforehand, and a character would be encoded each time.
    let digits: Vec<u8> = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect();
    String::from_utf8(digits).unwrap_or_default()
}

/// A hash from lower-case hex.
pub fn unhex(text: &str) -> Option<Hash> {
    let mut out = [0u8; 32];
    unhex_into(text, &mut out)?;
    Some(out)
}

/// Fills `out` from lower-case hex of exactly its length.
pub fn unhex_into(text: &str, out: &mut [u8]) -> Option<()> {
    let text = text.as_bytes();
    if text.len() != out.len().checked_mul(2)? {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => digit.checked_sub(b'0'),
        b'a'..=b'f' => digit.checked_sub(b'a' - 10),
        _ => None,
    };
    for (pair, slot) in text.chunks_exact(2).zip(out) {
        let [high, low] = *<&[u8; 2]>::try_from(pair).ok()?;
        *slot = (value(high)? << 4) | value(low)?;
    }
    Some(())
}

struct Cursor<'a> {
    left: &'a [u8],
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.left.split_first_chunk::<N>().ok_or(FrameError::Incomplete)?;
        self.left = rest;
        Ok(*head)
    }
}

/// By an array, and not by a slice: where the length is known each of these is one move.
fn put<const N: usize>(left: &mut &mut [u8], bytes: &[u8; N]) {
    if let Some((head, rest)) = std::mem::take(left).split_first_chunk_mut::<N>() {
        *head = *bytes;
        *left = rest;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            kind: Kind::Intent,
            flags: FLAG_SEALED,
            log_number: 7,
            session: [3; 16],
            number: 2,
            mono_ns: 11,
            wall_us: 12,
            previous: [9; 32],
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let mut out = Vec::new();
        let hash = encode(&header(), b"{}", &mut out).unwrap();
        assert_eq!(out.len(), OVERHEAD + 2);
        assert_eq!(out[..4], 86u32.to_le_bytes());
        assert_eq!(out[4..8], [1, 32, 2, 0]);
        assert_eq!(out[8..16], 7u64.to_le_bytes());
        assert_eq!(out[16..32], [3; 16]);
        assert_eq!(out[32..40], 2u64.to_le_bytes());
        assert_eq!(out[40..48], 11u64.to_le_bytes());
        assert_eq!(out[48..56], 12u64.to_le_bytes());
        assert_eq!(out[56..88], [9; 32]);
        assert_eq!(&out[88..90], b"{}");
        assert_eq!(hash, sha256(&out[..90]));
        assert_eq!(out[90..], crc32c::crc32c(&out[..90]).to_le_bytes());
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
        let mut bytes = (MAX_LENGTH as u32 + 1).to_le_bytes().to_vec();
        assert_eq!(Frame::parse(&bytes), Err(FrameError::Length(MAX_LENGTH as u64 + 1)));
        bytes = 83u32.to_le_bytes().to_vec();
        assert_eq!(Frame::parse(&bytes), Err(FrameError::Length(83)));
        assert_eq!(
            encode(&header(), &vec![0; MAX_PAYLOAD + 1], &mut Vec::new()),
            Err(FrameError::TooLong(MAX_PAYLOAD + 1))
        );
    }

    #[test]
    fn every_flipped_bit_changes_the_verdict_or_the_hash() {
        let mut out = Vec::new();
        let hash = encode(&header(), b"payload", &mut out).unwrap();
        for bit in 0..out.len() * 8 {
            let mut torn = out.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            if let Ok(frame) = Frame::parse_unchecked(&torn) {
                assert!(frame.hash() != hash || !frame.crc_fits(), "bit {bit}");
            }
            assert!(Frame::parse(&torn).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(payload in proptest::collection::vec(any::<u8>(), 0..600), log in any::<u64>(), wall in any::<u64>()) {
            let header = Header { log_number: log, wall_us: wall, ..header() };
            let mut out = vec![1, 2, 3];
            let hash = encode(&header, &payload, &mut out).unwrap();
            let frame = Frame::parse(&out[3..]).unwrap();
            prop_assert_eq!(frame.header, header);
            prop_assert_eq!(frame.payload, &payload[..]);
            prop_assert_eq!(frame.hash(), hash);
            for cut in 3..out.len() {
                prop_assert_eq!(Frame::parse(&out[3..cut]), Err(FrameError::Incomplete));
            }
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Frame::parse(&bytes);
            let _ = Frame::parse_unchecked(&bytes);
        }
    }
}
