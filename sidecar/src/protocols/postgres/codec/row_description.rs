//! `T`, RowDescription, and `t`, ParameterDescription: what a statement's answer and parameters look like.

use super::{CodecError, Frame};

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

/// Decodes a ParameterDescription: the types of a statement's parameters.
pub fn decode_parameters(frame: &Frame) -> Result<Vec<u32>, CodecError> {
    let mut reader = frame.reader();
    let count = reader.count()?;
    if reader.rest().len() != count.saturating_mul(4) {
        return Err(CodecError::Truncated);
    }
    (0..count).map(|_| reader.u32()).collect()
}
