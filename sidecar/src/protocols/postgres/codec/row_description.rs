//! `T`, RowDescription, and `t`, ParameterDescription: what a statement's answer and parameters look like.

use bytes::Bytes;

use super::bind::format_of;
use super::{CodecError, Frame, HEADER};

/// One column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name, as the server wrote it.
    pub name: Vec<u8>,
    /// The table it comes from, as far as the server tells; 0: none.
    pub table_oid: u32,
    /// The column in that table; 0: none.
    pub attnum: i16,
    /// Its type.
    pub type_oid: u32,
    /// Its type modifier.
    pub typmod: i32,
    /// 0 text, 1 binary.
    pub format: i16,
}

/// Decodes a RowDescription.
pub fn decode(frame: &Frame) -> Result<Vec<Field>, CodecError> {
    let mut reader = frame.reader();
    let count = reader.count()?;
    if reader.rest().len() < count.saturating_mul(19) {
        return Err(CodecError::Truncated);
    }
    let mut fields = Vec::with_capacity(count);
    for _ in 0..count {
        let name = reader.cstr()?.to_vec();
        let (table_oid, attnum) = (reader.u32()?, reader.i16()?);
        let (type_oid, _size) = (reader.u32()?, reader.i16()?);
        let (typmod, format) = (reader.i32()?, reader.i16()?);
        fields.push(Field {
            name,
            table_oid,
            attnum,
            type_oid,
            typmod,
            format,
        });
    }
    reader.end()?;
    Ok(fields)
}

/// A RowDescription as it is of rows in these formats: none, one for all columns, or one for each.
pub fn in_formats(description: &Bytes, formats: &[i16]) -> Option<Bytes> {
    if formats.iter().all(|format| *format == 0) {
        return Some(description.clone());
    }
    let mut bytes = description.to_vec();
    let count = bytes.get(HEADER..)?.first_chunk::<2>()?;
    let mut at = HEADER.checked_add(2)?;
    for index in 0..usize::from(u16::from_be_bytes(*count)) {
        let name = bytes.get(at..)?.iter().position(|byte| *byte == 0)?;
        // Behind the name's NUL: table, column, type, size, modifier, format.
        at = at.checked_add(name)?.checked_add(1 + 4 + 2 + 4 + 2 + 4)?;
        let format = format_of(formats, index).to_be_bytes();
        bytes.get_mut(at..at.checked_add(2)?)?.copy_from_slice(&format);
        at = at.checked_add(2)?;
    }
    Some(bytes.into())
}

/// Decodes a ParameterDescription: the types of a statement's parameters.
pub fn decode_parameters(frame: &Frame) -> Result<Vec<u32>, CodecError> {
    let mut reader = frame.reader();
    let count = reader.count()?;
    if reader.rest().len() != count.saturating_mul(4) {
        return Err(CodecError::Truncated);
    }
    (0..count).map(|_| reader.u32()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::protocols::postgres::codec::write;

    #[test]
    fn a_description_takes_the_formats_of_a_bind() {
        let described = write::one(b'T', |out| {
            out.extend_from_slice(&[0, 2]);
            for name in ["id", "label"] {
                write::cstr(out, name.as_bytes());
                out.extend_from_slice(&[0, 0, 0, 9, 0, 1, 0, 0, 0, 23, 0, 4, 255, 255, 255, 255, 0, 0]);
            }
        });
        let formats = |formats: &[i16]| {
            let bytes = in_formats(described.bytes(), formats).unwrap();
            let fields = decode(&Frame::whole(bytes)).unwrap();
            fields.iter().map(|field| field.format).collect::<Vec<_>>()
        };
        assert_eq!(formats(&[]), [0, 0]);
        assert_eq!(formats(&[1]), [1, 1]);
        assert_eq!(formats(&[0, 1]), [0, 1]);
        assert!(in_formats(&Bytes::from_static(b"T\0\0\0\x08\0\x02xy"), &[1]).is_none());
    }
}
