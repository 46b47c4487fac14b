//! `G` and `H`, CopyInResponse and CopyOutResponse: overall format and the number of columns.

use super::{CodecError, Frame};

/// A decoded CopyIn- or CopyOutResponse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyResponse {
    /// Binary format.
    pub binary: bool,
    /// How many columns.
    pub columns: usize,
}

/// Decodes either.
pub fn decode(frame: &Frame) -> Result<CopyResponse, CodecError> {
    let mut reader = frame.reader();
    let binary = match reader.u8()? {
        0 => false,
        1 => true,
        _ => return Err(CodecError::Field("copy format")),
    };
    let columns = reader.count()?;
    if reader.rest().len() != columns.saturating_mul(2) {
        return Err(CodecError::Truncated);
    }
    Ok(CopyResponse { binary, columns })
}
