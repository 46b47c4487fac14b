//! `B`, Bind: portal, statement, parameter formats and values, and the formats asked for in the answer.
//!
//! Values are ranges of the payload: nothing is copied, and what was judged is what is sent.

use bytes::Bytes;

use super::{CodecError, Frame};

/// A decoded Bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The portal's name; empty: unnamed.
    pub portal: Bytes,
    /// The statement's name.
    pub statement: Bytes,
    /// Parameter formats: none (all text), one for all, or one each.
    pub formats: Vec<i16>,
    /// Values; None: NULL.
    pub values: Vec<Option<Bytes>>,
    /// Result formats: none (all text), one for all, or one each.
    pub results: Vec<i16>,
}

impl Bind {
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
    let mut reader = frame.reader();
    let portal = payload.slice_ref(reader.cstr()?);
    let statement = payload.slice_ref(reader.cstr()?);
    let formats = codes(&mut reader)?;
    let count = reader.count()?;
    if reader.rest().len() < count.saturating_mul(4) {
        return Err(CodecError::Truncated);
    }
    if formats.len() > 1 && formats.len() != count {
        return Err(CodecError::Field("parameter formats"));
    }
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(match reader.i32()? {
            -1 => None,
            length => {
                let length = usize::try_from(length).map_err(|_| CodecError::Field("parameter length"))?;
                Some(payload.slice_ref(reader.bytes(length)?))
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
    })
}

fn codes(reader: &mut super::Reader<'_>) -> Result<Vec<i16>, CodecError> {
    let count = reader.count()?;
    if reader.rest().len() < count.saturating_mul(2) {
        return Err(CodecError::Truncated);
    }
    let codes: Vec<i16> = (0..count).map(|_| reader.i16()).collect::<Result<_, _>>()?;
    if codes.iter().any(|code| !matches!(code, 0 | 1)) {
        return Err(CodecError::Field("format"));
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
        assert_eq!((&bind.portal[..], &bind.statement[..]), (&b"p"[..], &b"s"[..]));
        assert_eq!(bind.values, vec![None, Some(Bytes::from_static(b"hi"))]);
        assert!(bind.binary(0) && bind.binary(1));
    }

    proptest! {
        #[test]
        fn a_corrupt_bind_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = decode(&write::one(b'B', |out| out.put_slice(&bytes)));
        }
    }
}
