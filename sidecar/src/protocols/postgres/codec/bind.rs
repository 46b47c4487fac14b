//! `B`, Bind: portal, statement, parameter formats and values, and the formats asked for in the answer.
//!
//! Everything is a range of the message: nothing is copied, and what was judged is what is sent. A few values, which is
//! what most statements have, take no room of their own.

use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use super::{CodecError, Frame, Reader};

/// Format codes: none (all text), one for all, or one each.
type Formats = SmallVec<[i16; 4]>;

/// A decoded Bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    payload: Bytes,
    /// Length of the portal's name; the statement's begins behind it.
    portal: usize,
    statement: Range<usize>,
    /// Parameter formats.
    formats: Formats,
    values: SmallVec<[Option<Range<usize>>; 4]>,
    /// Result formats.
    pub results: Formats,
}

impl Bind {
    /// The portal's name; empty: unnamed.
    pub fn portal(&self) -> &[u8] {
        self.payload.get(..self.portal).unwrap_or_default()
    }

    /// The statement's name.
    pub fn statement(&self) -> &[u8] {
        self.payload.get(self.statement.clone()).unwrap_or_default()
    }

    /// Values; None: NULL.
    pub fn values(&self) -> impl ExactSizeIterator<Item = Option<&[u8]>> {
        self.values.iter().map(|range| {
            let range = range.clone()?;
            Some(self.payload.get(range).unwrap_or_default())
        })
    }

    /// Whether parameter `index` is binary.
    pub fn binary(&self, index: usize) -> bool {
        format_of(&self.formats, index) == 1
    }
}

/// The format code that holds for a position.
pub fn format_of(codes: &[i16], index: usize) -> i16 {
    match codes {
        [] => 0,
        [all] => *all,
        each => each.get(index).copied().unwrap_or(0),
    }
}

/// Decodes a Bind.
pub fn decode(frame: &Frame) -> Result<Bind, CodecError> {
    let payload = frame.payload_bytes();
    let mut reader = Reader::new(&payload);
    // A piece that was just read ends where the reader stands.
    let ended = |piece: &[u8], reader: &Reader<'_>, behind: usize| {
        let end = payload.len().saturating_sub(reader.rest().len()).saturating_sub(behind);
        end.saturating_sub(piece.len())..end
    };
    let portal = reader.cstr()?.len();
    let statement = reader.cstr()?;
    let statement = ended(statement, &reader, 1);
    let formats = codes(&mut reader)?;
    let count = reader.count()?;
    if reader.rest().len() < count.saturating_mul(4) {
        return Err(CodecError::Truncated);
    }
    if formats.len() > 1 && formats.len() != count {
        return Err(CodecError::Field("parameter formats"));
    }
    let mut values = SmallVec::with_capacity(count);
    for _ in 0..count {
        values.push(match reader.i32()? {
            -1 => None,
            length => {
                let length = usize::try_from(length).map_err(|_| CodecError::Field("parameter length"))?;
                let value = reader.bytes(length)?;
                Some(ended(value, &reader, 0))
            }
        });
    }
    let results = codes(&mut reader)?;
    reader.end()?;
    Ok(Bind {
        portal,
        statement,
        formats,
        values,
        results,
        payload,
    })
}

fn codes(reader: &mut Reader<'_>) -> Result<Formats, CodecError> {
    let count = reader.count()?;
    if reader.rest().len() < count.saturating_mul(2) {
        return Err(CodecError::Truncated);
    }
    let mut codes = Formats::with_capacity(count);
    for _ in 0..count {
        match reader.i16()? {
            code @ (0 | 1) => codes.push(code),
            _ => return Err(CodecError::Field("format")),
        }
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::super::write;
    use super::*;

    #[test]
    fn values_formats_and_nulls_are_read() {
        let frame = write::one(b'B', |out| {
            out.put_slice(b"p\0s\0");
            out.put_i16(1);
            out.put_i16(1);
            out.put_i16(2);
            out.put_i32(-1);
            out.put_i32(2);
            out.put_slice(b"hi");
            out.put_i16(0);
        });
        let bind = decode(&frame).unwrap();
        assert_eq!((bind.portal(), bind.statement()), (&b"p"[..], &b"s"[..]));
        assert_eq!(bind.values().collect::<Vec<_>>(), [None, Some(&b"hi"[..])]);
        assert!(bind.binary(0) && bind.binary(1));
    }

    proptest! {
        #[test]
        fn a_corrupt_bind_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = decode(&write::one(b'B', |out| out.put_slice(&bytes)));
        }
    }
}
