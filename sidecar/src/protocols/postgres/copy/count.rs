//! Rows in COPY data on its way to the server, counted in every format.
//!
//! It reads what the server would read: escapes in text, quotes in CSV, lengths in binary, whatever the cuts between
//! messages. It judges nothing else: broken data is the server's to refuse.
//! Invariant: never fewer rows than the server stores, so that a cap on them holds.

/// How COPY data is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Text: a backslash keeps the next byte from ending a row.
    Text,
    /// CSV: ends of lines within quotes are data.
    Csv {
        /// The quote.
        quote: u8,
        /// What keeps a quote from ending a value; absent where it is the quote itself.
        escape: Option<u8>,
    },
    /// Binary.
    Binary,
    /// Not known: every end of a line counts.
    Lines,
}

/// Rows of one COPY so far.
#[derive(Debug)]
pub struct RowCount {
    form: Form,
    rows: u64,
    /// The first line is a header, which is no row.
    header: bool,
    line: Line,
    binary: Binary,
}

/// Where a text or CSV stream stands.
#[derive(Debug, Default)]
struct Line {
    /// Bytes since the last end of a line.
    started: bool,
    quoted: bool,
    escaped: bool,
    /// The last byte was a carriage return that ended a line; a line feed behind it belongs to it.
    returned: bool,
    /// So much of text's end marker, `\.`, stands alone in this line.
    marker: u8,
}

/// Where a binary stream stands.
#[derive(Debug)]
struct Binary {
    /// Bytes to pass over before `next` is read.
    skip: u64,
    next: Next,
    /// The number being read.
    number: u32,
    read: u8,
    /// Fields that are left in the row.
    fields: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Extension,
    Row,
    Field,
    End,
}

/// Signature and flags of binary data.
const SIGNATURE: u64 = 11 + 4;

impl RowCount {
    /// Nothing yet.
    pub fn new(form: Form, header: bool) -> RowCount {
        RowCount {
            form,
            rows: 0,
            header: header && form != Form::Binary,
            line: Line::default(),
            binary: Binary {
                skip: SIGNATURE,
                next: Next::Extension,
                number: 0,
                read: 0,
                fields: 0,
            },
        }
    }

    /// Rows so far. A line that has begun counts.
    pub fn rows(&self) -> u64 {
        let begun = self.form != Form::Binary && self.line.started && self.line.marker < 2;
        let lines = self.rows.saturating_add(u64::from(begun));
        lines.saturating_sub(u64::from(self.header))
    }

    /// Counts on.
    pub fn push(&mut self, data: &[u8]) {
        match self.form {
            Form::Binary => self.rows = self.rows.saturating_add(self.binary.push(data)),
            Form::Text => data.iter().for_each(|byte| self.text(*byte)),
            Form::Csv { quote, escape } => data.iter().for_each(|byte| self.csv(*byte, quote, escape)),
            Form::Lines => data.iter().for_each(|byte| self.plain(*byte)),
        }
    }

    fn text(&mut self, byte: u8) {
        let line = &mut self.line;
        line.marker = match (byte, line.marker, line.started) {
            (b'\\', 0, false) => 1,
            (b'.', 1, _) => 2,
            (b'\r' | b'\n', 2, _) => 2,
            _ => 0,
        };
        if std::mem::take(&mut line.escaped) {
            line.started = true;
            return;
        }
        line.escaped = byte == b'\\';
        self.plain(byte);
    }

    fn csv(&mut self, byte: u8, quote: u8, escape: Option<u8>) {
        let line = &mut self.line;
        if line.quoted && escape == Some(byte) {
            line.escaped = !line.escaped;
        } else {
            let kept = std::mem::take(&mut line.escaped);
            if byte == quote && !kept {
                line.quoted = !line.quoted;
            }
        }
        if line.quoted {
            (line.started, line.returned) = (true, false);
        } else {
            self.plain(byte);
        }
    }

    fn plain(&mut self, byte: u8) {
        let line = &mut self.line;
        match byte {
            b'\n' if line.returned => line.returned = false,
            b'\n' | b'\r' => {
                let marked = std::mem::take(&mut line.marker) == 2;
                self.rows = self.rows.saturating_add(u64::from(!marked));
                (line.started, line.returned) = (false, byte == b'\r');
            }
            _ => (line.started, line.returned) = (true, false),
        }
    }
}

impl Binary {
    /// How many rows begin in these bytes.
    fn push(&mut self, mut data: &[u8]) -> u64 {
        let mut rows = 0u64;
        while self.next != Next::End && !data.is_empty() {
            if self.skip > 0 {
                let passed = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
                self.skip = self.skip.saturating_sub(passed as u64);
                data = data.get(passed..).unwrap_or_default();
                continue;
            }
            let Some((byte, rest)) = data.split_first() else { break };
            data = rest;
            self.number = self.number << 8 | u32::from(*byte);
            self.read = self.read.saturating_add(1);
            if self.read == self.width() {
                let number = std::mem::take(&mut self.number);
                self.read = 0;
                rows = rows.saturating_add(u64::from(self.step(number)));
            }
        }
        rows
    }

    fn width(&self) -> u8 {
        if self.next == Next::Row {
            2
        } else {
            4
        }
    }

    /// Takes a number; whether a row begins with it.
    fn step(&mut self, number: u32) -> bool {
        match self.next {
            Next::Extension => (self.skip, self.next) = (u64::from(number), Next::Row),
            Next::Row => {
                // A count of -1 ends the data.
                let fields = u16::try_from(number).unwrap_or(u16::MAX);
                self.fields = fields;
                self.next = match fields {
                    u16::MAX => Next::End,
                    0 => Next::Row,
                    _ => Next::Field,
                };
                return fields != u16::MAX;
            }
            Next::Field => {
                // A length of -1 is NULL.
                self.skip = if number == u32::MAX { 0 } else { u64::from(number) };
                self.fields = self.fields.saturating_sub(1);
                if self.fields == 0 {
                    self.next = Next::Row;
                }
            }
            Next::End => {}
        }
        false
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    const CSV: Form = Form::Csv {
        quote: b'"',
        escape: None,
    };

    /// Counts at every cut of the data.
    fn count(form: Form, header: bool, data: &[u8]) -> u64 {
        let whole = |cut: usize| {
            let mut count = RowCount::new(form, header);
            count.push(&data[..cut]);
            count.push(&data[cut..]);
            count.rows()
        };
        let rows = whole(0);
        for cut in 0..=data.len() {
            assert_eq!(whole(cut), rows, "cut at {cut} of {}", String::from_utf8_lossy(data));
        }
        rows
    }

    #[test]
    fn text_rows_end_where_the_server_ends_them() {
        for (data, rows) in [
            (&b""[..], 0),
            (b"1\tone\n2\ttwo\n", 2),
            (b"1\tone\n2\ttwo", 2),
            (b"1\r\n2\r\n", 2),
            (b"1\r2\r", 2),
            (b"a\\\nb\n", 1),
            (b"a\\\\\nb\n", 2),
            (b"\n\n", 2),
            (b"1\n\\.\n", 1),
            (b"1\n\\.", 1),
            (b"1\n\\.x\n", 2),
            (b"a\\.\n", 1),
        ] {
            assert_eq!(
                count(Form::Text, false, data),
                rows,
                "{}",
                String::from_utf8_lossy(data)
            );
        }
        assert_eq!(count(Form::Text, true, b"name\n1\n"), 1);
        assert_eq!(count(Form::Text, true, b""), 0);
    }

    #[test]
    fn csv_rows_end_outside_quotes() {
        for (data, rows) in [
            (&b"1,one\n2,two\n"[..], 2),
            (b"\"a\nb\",1\n", 1),
            (b"\"a\"\"\nb\",1\n2\n", 2),
            (b"\"a\\\"\n", 1),
            (b"x\\\ny\n", 2),
        ] {
            assert_eq!(count(CSV, false, data), rows, "{}", String::from_utf8_lossy(data));
        }
        let escaped = Form::Csv {
            quote: b'"',
            escape: Some(b'\\'),
        };
        assert_eq!(count(escaped, false, b"\"a\\\"\nb\"\n\"c\\\\\"\n"), 2);
    }

    #[test]
    fn binary_rows_are_told_by_their_lengths() {
        let mut data = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\x03abc".to_vec();
        for _ in 0..3 {
            data.extend_from_slice(&[0, 2, 0, 0, 0, 1, b'\n', 0xff, 0xff, 0xff, 0xff]);
        }
        data.extend_from_slice(&[0, 0]);
        assert_eq!(count(Form::Binary, true, &data), 4);
        data.extend_from_slice(&[0xff, 0xff]);
        data.extend_from_slice(&[0, 2, 0, 2]);
        assert_eq!(count(Form::Binary, false, &data), 4);
    }

    #[test]
    fn of_an_unknown_form_every_line_counts() {
        assert_eq!(count(Form::Lines, false, b"\"a\nb\\\nc\"\n"), 3);
    }
}
