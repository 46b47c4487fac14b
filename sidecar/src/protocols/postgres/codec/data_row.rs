//! `D` of the server, DataRow: cells as ranges of the payload.

use std::ops::Range;

use super::{CodecError, Frame, HEADER};

/// One cell: where its bytes stand in the frame, or None for NULL.
pub type Cell = Option<Range<usize>>;

/// Reads the cells of a row into `cells`, as ranges of the whole frame. Refuses a row that does not hold `expected`.
pub fn cells(frame: &Frame, expected: usize, cells: &mut Vec<Cell>) -> Result<(), CodecError> {
    cells.clear();
    let mut reader = frame.reader();
    let count = reader.count()?;
    if count != expected {
        return Err(CodecError::Field("column count"));
    }
    let mut at = HEADER.saturating_add(2);
    for _ in 0..count {
        let length = reader.i32()?;
        at = at.saturating_add(4);
        if length == -1 {
            cells.push(None);
            continue;
        }
        let length = usize::try_from(length).map_err(|_| CodecError::Field("cell length"))?;
        reader.bytes(length)?;
        let end = at.saturating_add(length);
        cells.push(Some(at..end));
        at = end;
    }
    reader.end()
}
