//! `P`, Parse: a statement's name, text and declared parameter types.

use super::{CodecError, Frame};

/// A decoded Parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parse<'a> {
    /// The statement's name; empty: unnamed.
    pub name: &'a [u8],
    /// The text, without its NUL.
    pub text: &'a [u8],
    /// Declared parameter types; 0: not declared.
    pub types: Vec<u32>,
}

/// Decodes a Parse.
pub fn decode(frame: &Frame) -> Result<Parse<'_>, CodecError> {
    let mut reader = frame.reader();
    let (name, text) = (reader.cstr()?, reader.cstr()?);
    let count = reader.count()?;
    if reader.rest().len() != count.saturating_mul(4) {
        return Err(CodecError::Truncated);
    }
    let types = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
    Ok(Parse { name, text, types })
}

/// Decodes a Query: its text.
pub fn decode_query(frame: &Frame) -> Result<&[u8], CodecError> {
    let mut reader = frame.reader();
    let text = reader.cstr()?;
    reader.end()?;
    Ok(text)
}
