//! `D`, `C` and `E` of the agent: Describe and Close of a statement or portal, and Execute.

use super::{CodecError, Frame};

/// Statement or portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A prepared statement.
    Statement,
    /// A portal.
    Portal,
}

/// Decodes Describe or Close.
pub fn decode(frame: &Frame) -> Result<(What, &[u8]), CodecError> {
    let mut reader = frame.reader();
    let what = match reader.u8()? {
        b'S' => What::Statement,
        b'P' => What::Portal,
        _ => return Err(CodecError::Field("kind")),
    };
    let name = reader.cstr()?;
    reader.end()?;
    Ok((what, name))
}

/// Decodes Execute: portal and row count, 0 for all.
pub fn decode_execute(frame: &Frame) -> Result<(&[u8], i32), CodecError> {
    let mut reader = frame.reader();
    let name = reader.cstr()?;
    let rows = reader.i32()?;
    reader.end()?;
    Ok((name, rows))
}
