//! Rows by their plan: cells of masked columns are replaced, everything around them is copied as one slice.
//!
//! A cell that its mask cannot handle fails the row. NULL stays NULL; a mask may turn a value into NULL.

use bytes::{BufMut, BytesMut};

use super::super::codec::data_row::{self, Cell};
use super::super::codec::{CodecError, Frame, HEADER};

/// Replaces what detectors find in a text.
pub trait Detect: Send + Sync {
    /// Appends the replaced text and answers true, or leaves `out` alone and answers false.
    fn replace(&self, text: &[u8], out: &mut Vec<u8>) -> bool;
}

/// What became of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worked {
    /// It passes as it is.
    Same,
    /// Its new value was appended.
    Value,
    /// It is NULL now.
    Null,
}

/// Works on the cells of one column.
pub trait WorkCell: Send + Sync {
    /// Looks at one value that is not NULL.
    fn work(&self, cell: &[u8], binary: bool, out: &mut Vec<u8>) -> Worked;
}

/// What happens to one column; None: it passes.
pub type ColumnWork = Option<Box<dyn WorkCell>>;

/// A row could not be masked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// The row's bytes make no sense.
    #[error("a row does not fit its description: {0}")]
    Codec(#[from] CodecError),
    /// COPY data that does not read as its format.
    #[error("COPY data does not read as its format")]
    Copy,
    /// A row above the bound.
    #[error("a row is too large to be masked")]
    TooLarge,
}

/// Masks the rows of one result.
pub struct RowMasker {
    columns: Vec<(ColumnWork, bool)>,
    cells: Vec<Cell>,
    scratch: Vec<u8>,
}

impl RowMasker {
    /// A masker for columns, each with whether its format is binary. None: rows pass.
    pub fn new(columns: Vec<(ColumnWork, bool)>) -> Option<Self> {
        let busy = columns.iter().any(|(work, _)| work.is_some());
        busy.then(|| RowMasker {
            columns,
            cells: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// Appends the masked row.
    pub fn apply(&mut self, row: &Frame, out: &mut BytesMut) -> Result<(), MaskError> {
        data_row::cells(row, self.columns.len(), &mut self.cells)?;
        let bytes = row.bytes();
        let start = out.len();
        // Everything up to the first changed cell is copied at once, and so on.
        let mut copied = 0usize;
        for ((work, binary), cell) in self.columns.iter().zip(&self.cells) {
            let (Some(work), Some(range)) = (work, cell) else {
                continue;
            };
            let value = bytes.get(range.clone()).unwrap_or_default();
            self.scratch.clear();
            let worked = work.work(value, *binary, &mut self.scratch);
            if worked == Worked::Same {
                continue;
            }
            // Up to the cell's length field, which stands in the four bytes in front of it.
            let head = bytes.get(copied..range.start.saturating_sub(4)).unwrap_or_default();
            out.put_slice(head);
            if worked == Worked::Value {
                out.put_i32(i32::try_from(self.scratch.len()).map_err(|_| MaskError::TooLarge)?);
                out.put_slice(&self.scratch);
            } else {
                out.put_i32(-1);
            }
            copied = range.end;
        }
        out.put_slice(bytes.get(copied..).unwrap_or_default());
        patch_length(out, start)
    }
}

fn patch_length(out: &mut BytesMut, start: usize) -> Result<(), MaskError> {
    let length = out.len().saturating_sub(start).saturating_sub(1);
    let length = i32::try_from(length).map_err(|_| MaskError::TooLarge)?;
    let slot = out.get_mut(start.saturating_add(1)..start.saturating_add(HEADER));
    if let Some(slot) = slot {
        slot.copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

#[cfg(test)]
pub(in super::super) mod tests {
    use proptest::prelude::*;

    use super::super::super::codec::write;
    use super::*;

    pub struct Stars;

    impl WorkCell for Stars {
        fn work(&self, cell: &[u8], _binary: bool, out: &mut Vec<u8>) -> Worked {
            if cell == b"null" {
                return Worked::Null;
            }
            out.extend(cell.iter().map(|_| b'*').take(3));
            Worked::Value
        }
    }

    pub struct FindsEvil;

    impl WorkCell for FindsEvil {
        fn work(&self, cell: &[u8], _binary: bool, out: &mut Vec<u8>) -> Worked {
            if memchr::memmem::find(cell, b"evil").is_none() {
                return Worked::Same;
            }
            out.extend_from_slice(b"[redacted]");
            Worked::Value
        }
    }

    pub fn stars() -> ColumnWork {
        Some(Box::new(Stars))
    }

    pub fn finds_evil() -> ColumnWork {
        Some(Box::new(FindsEvil))
    }

    pub fn row(cells: &[Option<&[u8]>]) -> Frame {
        write::one(b'D', |out| {
            out.put_u16(cells.len() as u16);
            for cell in cells {
                match cell {
                    None => out.put_i32(-1),
                    Some(value) => {
                        out.put_i32(value.len() as i32);
                        out.put_slice(value);
                    }
                }
            }
        })
    }

    fn apply(columns: Vec<ColumnWork>, cells: &[Option<&[u8]>]) -> Result<BytesMut, MaskError> {
        let columns = columns.into_iter().map(|work| (work, false)).collect();
        let mut out = BytesMut::new();
        RowMasker::new(columns)
            .unwrap()
            .apply(&row(cells), &mut out)
            .map(|()| out)
    }

    #[test]
    fn only_masked_cells_change_and_null_stays_null() {
        let columns = || vec![None, stars(), finds_evil()];
        let out = apply(columns(), &[Some(b"1"), Some(b"secret"), Some(b"fine")]).unwrap();
        assert_eq!(&out[..], row(&[Some(b"1"), Some(b"***"), Some(b"fine")]).bytes());
        let out = apply(columns(), &[None, None, Some(b"so evil")]).unwrap();
        assert_eq!(&out[..], row(&[None, None, Some(b"[redacted]")]).bytes());
        let out = apply(columns(), &[Some(b""), Some(b"null"), None]).unwrap();
        assert_eq!(&out[..], row(&[Some(b""), None, None]).bytes());
    }

    #[test]
    fn a_row_with_another_number_of_columns_is_refused() {
        let refused = apply(vec![stars()], &[Some(b"1"), Some(b"2")]);
        assert!(matches!(refused, Err(MaskError::Codec(_))));
    }

    proptest! {
        #[test]
        fn corrupt_rows_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let frame = write::one(b'D', |out| out.put_slice(&bytes));
            let columns = vec![(stars(), false), (None, true)];
            let _ = RowMasker::new(columns).unwrap().apply(&frame, &mut BytesMut::new());
        }

        #[test]
        fn clean_cells_stay_byte_identical(cells in proptest::collection::vec(proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)), 1..6), at in 0usize..6) {
            let columns = (0..cells.len()).map(|index| if index == at { stars() } else { None });
            let columns = columns.map(|work| (work, false)).collect();
            if let Some(mut masker) = RowMasker::new(columns) {
                let given: Vec<Option<&[u8]>> = cells.iter().map(|cell| cell.as_deref()).collect();
                let mut out = BytesMut::new();
                masker.apply(&row(&given), &mut out).unwrap();
                let masked = Frame::whole(out.freeze());
                let mut ranges = Vec::new();
                data_row::cells(&masked, cells.len(), &mut ranges).unwrap();
                for (index, (range, cell)) in ranges.iter().zip(&cells).enumerate() {
                    let value = range.clone().map(|range| masked.bytes()[range].to_vec());
                    if index != at { prop_assert_eq!(value, cell.clone()); }
                }
            }
        }
    }
}
