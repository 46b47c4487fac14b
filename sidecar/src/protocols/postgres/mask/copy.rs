//! COPY to the agent, masked by position: text, CSV and binary.
//!
//! Rows need not align with CopyData messages, so rows are cut here, whatever the splits, and leave as one message
//! each. It refuses data that does not read as its format, and rows above 16 MiB.

use bytes::{BufMut, BytesMut};

use super::super::codec::{write, MAX_HELD_ROW};
use super::rows::{ColumnWork, MaskError, Worked};

/// The format of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyFormat {
    /// Tab separated with backslash escapes, or with another delimiter.
    Text {
        /// Field delimiter.
        delimiter: u8,
        /// What stands for NULL.
        null: Vec<u8>,
    },
    /// CSV.
    Csv {
        /// Field delimiter.
        delimiter: u8,
        /// Quote.
        quote: u8,
        /// Escape inside quotes.
        escape: u8,
        /// What stands for NULL, unquoted.
        null: Vec<u8>,
    },
    /// The binary format.
    Binary,
}

/// Masks one COPY.
pub struct CopyMasker {
    format: CopyFormat,
    /// The next row is a header line and passes.
    header: bool,
    columns: Vec<ColumnWork>,
    pending: BytesMut,
    row: Vec<u8>,
    scratch: Vec<u8>,
    plain: Vec<u8>,
    /// Binary: the file header has passed.
    begun: bool,
    ended: bool,
}

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

impl CopyMasker {
    /// A masker; `header`: the first line names columns.
    pub fn new(format: CopyFormat, header: bool, columns: Vec<ColumnWork>) -> Self {
        CopyMasker {
            format,
            header,
            columns,
            pending: BytesMut::new(),
            row: Vec::new(),
            scratch: Vec::new(),
            plain: Vec::new(),
            begun: false,
            ended: false,
        }
    }

    /// Takes data, appends a CopyData message for every row that is complete, and counts them.
    pub fn push(&mut self, data: &[u8], out: &mut BytesMut) -> Result<u64, MaskError> {
        self.pending.extend_from_slice(data);
        let mut rows = 0u64;
        while let Some(length) = self.row_length()? {
            let raw = self.pending.split_to(length);
            let counted = self.mask_row(&raw)?;
            write::frame(out, b'd', |out| out.put_slice(&self.row));
            rows = rows.saturating_add(u64::from(counted));
        }
        if self.pending.len() > MAX_HELD_ROW {
            return Err(MaskError::TooLarge);
        }
        Ok(rows)
    }

    /// The data ended.
    pub fn finish(&mut self, out: &mut BytesMut) -> Result<(), MaskError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if self.format == CopyFormat::Binary {
            return Err(MaskError::Copy);
        }
        // A last line without its end.
        let raw = self.pending.split();
        self.mask_row(&raw)?;
        write::frame(out, b'd', |out| out.put_slice(&self.row));
        Ok(())
    }

    fn row_length(&mut self) -> Result<Option<usize>, MaskError> {
        if self.pending.is_empty() {
            return Ok(None);
        }
        match &self.format {
            CopyFormat::Text { .. } => Ok(text_row(&self.pending)),
            CopyFormat::Csv { quote, escape, .. } => Ok(csv_row(&self.pending, *quote, *escape)),
            CopyFormat::Binary => self.binary_row(),
        }
    }

    fn mask_row(&mut self, raw: &[u8]) -> Result<bool, MaskError> {
        self.row.clear();
        match self.format.clone() {
            CopyFormat::Binary => self.mask_binary(raw),
            _ if self.header => {
                self.header = false;
                self.row.extend_from_slice(raw);
                Ok(false)
            }
            CopyFormat::Text { delimiter, null } => self.mask_text(raw, delimiter, &null).map(|()| true),
            CopyFormat::Csv {
                delimiter,
                quote,
                escape,
                null,
            } => self.mask_csv(raw, [delimiter, quote, escape], &null).map(|()| true),
        }
    }

    /// Works on one value; a new one is in `scratch`.
    fn work(&mut self, index: usize, value: &[u8], binary: bool) -> Result<Worked, MaskError> {
        self.scratch.clear();
        match self.columns.get(index) {
            None => Err(MaskError::Copy),
            Some(None) => Ok(Worked::Same),
            Some(Some(work)) => Ok(work.work(value, binary, &mut self.scratch)),
        }
    }

    fn mask_text(&mut self, raw: &[u8], delimiter: u8, null: &[u8]) -> Result<(), MaskError> {
        let (line, end) = split_end(raw);
        let mut index = 0usize;
        for field in text_fields(line, delimiter) {
            if index > 0 {
                self.row.push(delimiter);
            }
            let mut plain = std::mem::take(&mut self.plain);
            let worked = if field == null {
                Worked::Same
            } else {
                unescape(field, &mut plain);
                self.work(index, &plain, false)?
            };
            self.plain = plain;
            match worked {
                Worked::Same => self.row.extend_from_slice(field),
                Worked::Null => self.row.extend_from_slice(null),
                Worked::Value => escape_into(&self.scratch, delimiter, &mut self.row),
            }
            index = index.saturating_add(1);
        }
        self.row.extend_from_slice(end);
        self.check_count(index, line)
    }

    fn mask_csv(&mut self, raw: &[u8], [delimiter, quote, escape]: [u8; 3], null: &[u8]) -> Result<(), MaskError> {
        let (line, end) = split_end(raw);
        let (mut index, mut rest, mut more) = (0usize, line, true);
        while more {
            if index > 0 {
                self.row.push(delimiter);
            }
            let mut plain = std::mem::take(&mut self.plain);
            plain.clear();
            let (length, quoted) = csv_field(rest, delimiter, quote, escape, &mut plain);
            let (field, after) = rest.split_at_checked(length).ok_or(MaskError::Copy)?;
            let worked = if !quoted && field == null {
                Worked::Same
            } else {
                self.work(index, &plain, false)?
            };
            self.plain = plain;
            match worked {
                Worked::Same => self.row.extend_from_slice(field),
                Worked::Null => self.row.extend_from_slice(null),
                Worked::Value => quote_into(&self.scratch, quote, escape, &mut self.row),
            }
            index = index.saturating_add(1);
            more = !after.is_empty();
            rest = after.get(1..).unwrap_or_default();
        }
        self.row.extend_from_slice(end);
        self.check_count(index, line)
    }

    /// A relation without columns copies as empty lines; everything else has one field per column.
    fn check_count(&self, found: usize, line: &[u8]) -> Result<(), MaskError> {
        if found == self.columns.len() || (self.columns.is_empty() && line.is_empty()) {
            Ok(())
        } else {
            Err(MaskError::Copy)
        }
    }

    fn binary_row(&mut self) -> Result<Option<usize>, MaskError> {
        if self.ended {
            return Err(MaskError::Copy);
        }
        let at = |from: usize| self.pending.get(from..).and_then(|rest| rest.split_first_chunk::<4>());
        if !self.begun {
            // Signature, flags, and the length of an extension.
            let fixed = SIGNATURE.len().saturating_add(8);
            if self.pending.len() < fixed {
                return Ok(None);
            }
            if !self.pending.starts_with(SIGNATURE) {
                return Err(MaskError::Copy);
            }
            let (extension, _) = at(fixed.saturating_sub(4)).ok_or(MaskError::Copy)?;
            let extension = usize::try_from(i32::from_be_bytes(*extension)).map_err(|_| MaskError::Copy)?;
            let length = fixed.saturating_add(extension);
            return Ok((self.pending.len() >= length).then_some(length));
        }
        let Some((count, _)) = self.pending.split_first_chunk::<2>() else {
            return Ok(None);
        };
        let count = i16::from_be_bytes(*count);
        if count == -1 {
            return Ok(Some(2));
        }
        if usize::try_from(count) != Ok(self.columns.len()) {
            return Err(MaskError::Copy);
        }
        let mut end = 2usize;
        for _ in 0..count {
            let Some((length, _)) = at(end) else { return Ok(None) };
            let length = i32::from_be_bytes(*length);
            let length = if length == -1 {
                0
            } else {
                usize::try_from(length).map_err(|_| MaskError::Copy)?
            };
            end = end.saturating_add(4).saturating_add(length);
        }
        Ok((self.pending.len() >= end).then_some(end))
    }

    fn mask_binary(&mut self, raw: &[u8]) -> Result<bool, MaskError> {
        if !self.begun {
            self.begun = true;
            self.row.extend_from_slice(raw);
            return Ok(false);
        }
        let (count, mut rest) = raw.split_at_checked(2).ok_or(MaskError::Copy)?;
        self.row.extend_from_slice(count);
        if count == (-1i16).to_be_bytes() {
            self.ended = true;
            return Ok(false);
        }
        for index in 0..self.columns.len() {
            let (length, after) = rest.split_first_chunk::<4>().ok_or(MaskError::Copy)?;
            let Ok(size) = usize::try_from(i32::from_be_bytes(*length)) else {
                self.row.extend_from_slice(length);
                rest = after;
                continue;
            };
            let (value, after) = after.split_at_checked(size).ok_or(MaskError::Copy)?;
            match self.work(index, value, true)? {
                Worked::Same => {
                    self.row.extend_from_slice(length);
                    self.row.extend_from_slice(value);
                }
                Worked::Null => self.row.extend_from_slice(&(-1i32).to_be_bytes()),
                Worked::Value => {
                    let size = i32::try_from(self.scratch.len()).map_err(|_| MaskError::TooLarge)?;
                    self.row.extend_from_slice(&size.to_be_bytes());
                    self.row.extend_from_slice(&self.scratch);
                }
            }
            rest = after;
        }
        Ok(true)
    }
}

/// Where a text row ends: a newline in data is escaped, so the first one ends it.
fn text_row(pending: &[u8]) -> Option<usize> {
    memchr::memchr(b'\n', pending).map(|at| at.saturating_add(1))
}

/// Where a CSV row ends: the first newline outside quotes.
fn csv_row(pending: &[u8], quote: u8, escape: u8) -> Option<usize> {
    let (mut inside, mut at) = (false, 0usize);
    while let Some(byte) = pending.get(at) {
        if inside && *byte == escape && escape != quote {
            // The next byte is taken as it is; if it has not come yet, the row has not either.
            at = at.saturating_add(1);
        } else if *byte == quote {
            // A doubled quote leaves and enters again.
            inside = !inside;
        } else if *byte == b'\n' && !inside {
            return Some(at.saturating_add(1));
        }
        at = at.saturating_add(1);
    }
    None
}

fn split_end(raw: &[u8]) -> (&[u8], &[u8]) {
    let line = raw.strip_suffix(b"\n").unwrap_or(raw);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    raw.split_at_checked(line.len()).unwrap_or((raw, &[]))
}

/// Fields of a text row: a delimiter in data is escaped by a backslash.
fn text_fields(line: &[u8], delimiter: u8) -> Vec<&[u8]> {
    let (mut fields, mut start, mut at) = (Vec::new(), 0usize, 0usize);
    while let Some(byte) = line.get(at) {
        if *byte == b'\\' {
            at = at.saturating_add(1);
        } else if *byte == delimiter {
            fields.push(line.get(start..at).unwrap_or_default());
            start = at.saturating_add(1);
        }
        at = at.saturating_add(1);
    }
    fields.push(line.get(start..).unwrap_or_default());
    fields
}

fn unescape(field: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut bytes = field.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'b') => out.push(8),
            Some(b'f') => out.push(12),
            Some(b'n') => out.push(b'\n'),
            Some(b'r') => out.push(b'\r'),
            Some(b't') => out.push(b'\t'),
            Some(b'v') => out.push(11),
            // The server never writes octal or hex forms; a reader that meets one keeps it as it stands.
            Some(other) => out.push(other),
            None => out.push(b'\\'),
        }
    }
}

fn escape_into(value: &[u8], delimiter: u8, out: &mut Vec<u8>) {
    for byte in value.iter().copied() {
        let letter = match byte {
            8 => b'b',
            12 => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            11 => b'v',
            b'\\' => b'\\',
            byte if byte == delimiter => byte,
            byte => {
                out.push(byte);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', letter]);
    }
}

/// Reads one CSV field into `plain`: its length in the line, and whether it was quoted.
fn csv_field(rest: &[u8], delimiter: u8, quote: u8, escape: u8, plain: &mut Vec<u8>) -> (usize, bool) {
    let (mut inside, mut quoted, mut at) = (false, false, 0usize);
    while let Some(byte) = rest.get(at).copied() {
        let next = rest.get(at.saturating_add(1)).copied();
        if inside {
            if byte == escape && next.is_some_and(|next| next == quote || next == escape) {
                plain.extend(next);
                at = at.saturating_add(1);
            } else if byte == quote {
                inside = false;
            } else {
                plain.push(byte);
            }
        } else if byte == delimiter {
            break;
        } else if byte == quote {
            (inside, quoted) = (true, true);
        } else {
            plain.push(byte);
        }
        at = at.saturating_add(1);
    }
    (at, quoted)
}

/// A replaced value is always quoted: that is right whatever it holds, and never reads as NULL.
fn quote_into(value: &[u8], quote: u8, escape: u8, out: &mut Vec<u8>) {
    out.push(quote);
    for byte in value.iter().copied() {
        if byte == quote || byte == escape {
            out.push(escape);
        }
        out.push(byte);
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::codec::{Piece, ServerScanner};
    use super::super::rows::tests::{finds_evil, stars};
    use super::*;

    fn columns() -> Vec<ColumnWork> {
        vec![None, stars(), finds_evil()]
    }

    fn masked(format: CopyFormat, header: bool, data: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, u64), MaskError> {
        let mut masker = CopyMasker::new(format, header, columns());
        let (mut out, mut rows, mut from) = (BytesMut::new(), 0u64, 0);
        for cut in cuts.iter().copied().chain([data.len()]) {
            let cut = cut.clamp(from, data.len());
            rows = rows.saturating_add(masker.push(&data[from..cut], &mut out)?);
            from = cut;
        }
        masker.finish(&mut out)?;
        let mut scanner = ServerScanner::default();
        scanner.buffer().extend_from_slice(&out);
        let mut text = Vec::new();
        while let Ok(Piece::Frame(frame)) = scanner.next(false) {
            text.extend_from_slice(frame.payload());
        }
        Ok((text, rows))
    }

    fn text() -> CopyFormat {
        CopyFormat::Text {
            delimiter: b'\t',
            null: b"\\N".to_vec(),
        }
    }

    fn csv() -> CopyFormat {
        CopyFormat::Csv {
            delimiter: b',',
            quote: b'"',
            escape: b'"',
            null: Vec::new(),
        }
    }

    #[test]
    fn text_rows_are_masked_by_position() {
        let data = b"1\tse\\tcret\tfine\n2\t\\N\tan evil one\\n\n\\N\tx\t\\N\n";
        let (got, rows) = masked(text(), false, data, &[]).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&got),
            "1\t***\tfine\n2\t\\N\t[redacted]\n\\N\t*\t\\N\n"
        );
        assert_eq!(rows, 3);
    }

    #[test]
    fn csv_rows_are_masked_whatever_their_quotes_hold() {
        let data = b"id,secret,notes\n1,\"a,\"\"b\nc\",fine\n2,,\"so evil, \"\"indeed\"\"\"\n3,\"\",x\n";
        let (got, rows) = masked(csv(), true, data, &[]).unwrap();
        let expected = "id,secret,notes\n1,\"***\",fine\n2,,\"[redacted]\"\n3,\"\",x\n";
        assert_eq!(String::from_utf8_lossy(&got), expected);
        assert_eq!(rows, 3);
    }

    fn binary() -> Vec<u8> {
        let mut data = [SIGNATURE, &[0; 8]].concat();
        for secret in [Some(&b"secret"[..]), None] {
            data.extend_from_slice(&3i16.to_be_bytes());
            data.extend_from_slice(&[0, 0, 0, 1, 7]);
            match secret {
                Some(value) => {
                    data.extend_from_slice(&(value.len() as i32).to_be_bytes());
                    data.extend_from_slice(value);
                }
                None => data.extend_from_slice(&(-1i32).to_be_bytes()),
            }
            data.extend_from_slice(&[0, 0, 0, 4, b'f', b'i', b'n', b'e']);
        }
        data.extend_from_slice(&(-1i16).to_be_bytes());
        data
    }

    #[test]
    fn binary_rows_are_masked_and_nothing_else_changes() {
        let (got, rows) = masked(CopyFormat::Binary, false, &binary(), &[]).unwrap();
        assert_eq!(rows, 2);
        assert!(memchr::memmem::find(&got, b"secret").is_none());
        assert!(memchr::memmem::find(&got, b"\0\0\0\x03***").is_some());
        assert!(got.starts_with(SIGNATURE) && got.ends_with(&[0xff, 0xff]));
    }

    proptest! {
        #[test]
        fn every_split_gives_the_same_rows(mut cuts in proptest::collection::vec(0usize..120, 0..10), which in 0usize..3) {
            cuts.sort_unstable();
            let (format, data): (CopyFormat, Vec<u8>) = match which {
                0 => (text(), b"1\tse\\tcret\tfine\n2\t\\N\tevil\\\\\n".to_vec()),
                1 => (csv(), b"1,\"a,\"\"b\nc\",fine\n2,,\"so evil, \"\"indeed\"\"\"\n".to_vec()),
                _ => (CopyFormat::Binary, binary()),
            };
            let whole = masked(format.clone(), false, &data, &[]).unwrap();
            prop_assert_eq!(&whole, &masked(format.clone(), false, &data, &cuts).unwrap());
            let every: Vec<usize> = (0..data.len()).collect();
            prop_assert_eq!(&whole, &masked(format, false, &data, &every).unwrap());
        }

        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(any::<u8>(), 0..150), which in 0usize..3) {
            let format = match which { 0 => text(), 1 => csv(), _ => CopyFormat::Binary };
            let _ = masked(format, false, &data, &[10, 20]);
        }
    }

    #[test]
    fn a_row_with_another_number_of_fields_is_refused() {
        assert_eq!(masked(text(), false, b"1\t2\n", &[]), Err(MaskError::Copy));
        assert_eq!(masked(csv(), false, b"1,2,3,4\n", &[]), Err(MaskError::Copy));
    }
}
