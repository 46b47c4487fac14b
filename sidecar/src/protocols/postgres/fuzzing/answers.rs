//! A polite server: it answers every message by the protocol, so that a fuzzed agent gets far.
//!
//! It knows transactions, errors and COPY in both directions, and nothing of the data. It never says more than it was asked.

use bytes::{BufMut, BytesMut};

use super::super::codec::{write, AgentScanner, Frame, Scan};

/// What the relay sends in the place of a statement that it refuses between others: the server must fail at it.
pub const POISON: &str = "sidegate refused ";

/// The server.
#[derive(Default)]
pub struct Polite {
    scanner: AgentScanner,
    /// Bytes of what was heard that were looked at.
    seen: usize,
    /// Text of the last Parse.
    text: String,
    in_transaction: bool,
    /// The transaction failed.
    failed: bool,
    /// Void until Sync.
    skip: bool,
    /// COPY data is expected; true: of a simple query, which ends with ReadyForQuery.
    copying: Option<bool>,
}

impl Polite {
    /// The answer to what was heard since the last call.
    pub fn answer(&mut self, heard: &[u8]) -> Vec<u8> {
        self.scanner.buffer().extend_from_slice(&heard[self.seen..]);
        self.seen = heard.len();
        let mut out = BytesMut::new();
        while let Ok(Scan::Frame(frame)) = self.scanner.next() {
            self.one(&frame, &mut out);
        }
        out.to_vec()
    }

    fn one(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame.tag() {
            tag if self.skip && tag != b'S' => {}
            b'Q' => {
                self.text = cstr(frame.payload(), 0);
                self.run(true, out);
            }
            b'P' => {
                self.text = cstr(frame.payload(), 1);
                if self.text.starts_with(POISON) {
                    return self.fail(false, out);
                }
                write::frame(out, b'1', |_| {});
            }
            b'B' => write::frame(out, b'2', |_| {}),
            b'C' => write::frame(out, b'3', |_| {}),
            b'D' => {
                if frame.payload().first() == Some(&b'S') {
                    write::frame(out, b't', |out| out.put_u16(0));
                }
                match self.text.contains("from people") {
                    true => columns(out, "email", 20_000, 2),
                    false => write::frame(out, b'n', |_| {}),
                }
            }
            b'E' => self.run(false, out),
            b'S' => {
                self.skip = false;
                self.ready(out);
            }
            b'c' | b'f' => {
                let Some(simple) = self.copying.take() else { return };
                if frame.tag() == b'f' {
                    return self.fail(simple, out);
                }
                complete(out, "COPY 1");
                if simple {
                    self.ready(out);
                }
            }
            _ => {}
        }
    }

    fn fail(&mut self, simple: bool, out: &mut BytesMut) {
        error(out);
        (self.failed, self.skip) = (true, !simple);
        if simple {
            self.ready(out);
        }
    }

    fn run(&mut self, simple: bool, out: &mut BytesMut) {
        if self.text.starts_with(POISON) {
            return self.fail(simple, out);
        }
        let text = self.text.trim_start().to_ascii_lowercase();
        let first = text
            .split(|c: char| !c.is_ascii_alphabetic())
            .next()
            .unwrap_or_default();
        match first {
            "begin" | "start" => (self.in_transaction, self.failed) = (true, false),
            "commit" | "rollback" | "end" | "abort" => self.in_transaction = false,
            _ => {}
        }
        match first {
            "copy" if text.contains("from") => {
                self.copying = Some(simple);
                return write::frame(out, b'G', |out| out.put_slice(&[0, 0, 1, 0, 0]));
            }
            "copy" => {
                write::frame(out, b'H', |out| out.put_slice(&[0, 0, 1, 0, 0]));
                write::frame(out, b'd', |out| out.put_slice(b"some\n"));
                write::frame(out, b'c', |_| {});
            }
            "select" | "show" | "fetch" | "explain" => {
                if simple {
                    columns(out, "x", 0, 0);
                }
                let shown = if first == "show" { "app" } else { "1" };
                row(out, shown.as_bytes());
            }
            "" => {
                write::frame(out, b'I', |_| {});
                return if simple {
                    self.ready(out)
                };
            }
            _ => {}
        }
        complete(out, &first.to_ascii_uppercase());
        if simple {
            self.ready(out);
        }
    }

    fn ready(&self, out: &mut BytesMut) {
        let status = match (self.in_transaction, self.failed) {
            (false, _) => b'I',
            (true, false) => b'T',
            (true, true) => b'E',
        };
        out.put_slice(write::ready(status).bytes());
    }
}

/// The text at a place among those of a payload.
fn cstr(payload: &[u8], at: usize) -> String {
    let text = payload.split(|byte| *byte == 0).nth(at).unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// RowDescription of one text column.
fn columns(out: &mut BytesMut, name: &str, table: u32, attnum: i16) {
    write::frame(out, b'T', |out| {
        out.put_u16(1);
        field(out, name, (table, attnum, 25), 0);
    });
}

/// One field of a RowDescription: table, column, type; format.
pub fn field(out: &mut BytesMut, name: &str, (table, attnum, kind): (u32, i16, u32), format: i16) {
    write::cstr(out, name.as_bytes());
    out.put_u32(table);
    out.put_i16(attnum);
    out.put_u32(kind);
    out.put_i16(-1);
    out.put_i32(-1);
    out.put_i16(format);
}

/// DataRow of one cell.
fn row(out: &mut BytesMut, cell: &[u8]) {
    write::frame(out, b'D', |out| {
        out.put_u16(1);
        out.put_u32(cell.len() as u32);
        out.put_slice(cell);
    });
}

/// CommandComplete.
pub fn complete(out: &mut BytesMut, tag: &str) {
    write::frame(out, b'C', |out| write::cstr(out, tag.as_bytes()));
}

fn error(out: &mut BytesMut) {
    write::frame(out, b'E', |out| {
        out.put_slice(b"SERROR\0VERROR\0C42601\0Msyntax error\0\0");
    });
}
