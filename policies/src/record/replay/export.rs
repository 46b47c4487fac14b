//! Exports: a JSON line or a CSV line for each event.
//!
//! JSON lines are the interface to other programs: the frame's header beside the event. CSV is for spreadsheets
//! and is formula-safe: a cell that a spreadsheet would calculate begins with an apostrophe.
//! Invariant: one event is one line, whatever it holds.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde_json::{Map, Value};

use crate::record::payload::BodyStream;
use crate::record::replay::escape::escape;
use crate::record::replay::{header_members, Content, Event};
use crate::record::summary::rfc3339;

/// Members of an event that are lifted beside the header.
const LIFTED: [&str; 6] = ["decision", "rules", "bundle", "masks", "approval", "lat_us"];

/// One event as one JSON line, without line feed.
pub fn json_line(event: &Event) -> String {
    let mut line = Map::new();
    for (name, value) in header_members(event) {
        line.insert(name.to_owned(), value);
    }
    match &event.content {
        Content::Json(value) => {
            for name in LIFTED {
                let inside = if name == "lat_us" { "latUs" } else { name };
                if let Some(lifted) = value.get(inside) {
                    line.insert(name.to_owned(), lifted.clone());
                }
            }
            line.insert("event".into(), value.clone());
        }
        Content::Bytes {
            op,
            stream,
            offset,
            bytes,
        } => {
            line.insert("op".into(), (*op).into());
            line.insert("dir".into(), direction(*stream).into());
            line.insert("offset".into(), (*offset).into());
            line.insert("body".into(), STANDARD.encode(bytes).into());
        }
        Content::Unreadable(why) => drop(line.insert("unreadable".into(), why.clone().into())),
    }
    Value::Object(line).to_string()
}

fn direction(stream: BodyStream) -> &'static str {
    match stream {
        BodyStream::Reply => "reply",
        BodyStream::Request => "request",
        BodyStream::Continuation => "continuation",
    }
}

/// The first line of a CSV export, without line end.
pub fn csv_header() -> &'static str {
    "time,session,seq,kind,op,decision,rules,text,params,result,rows,bytes,reason,hash"
}

/// One event as one CSV line, without line end.
pub fn csv_line(event: &Event) -> String {
    let empty = Value::Null;
    let value = match &event.content {
        Content::Json(value) => value,
        _ => &empty,
    };
    let text = |name: &str| match value.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items.iter().map(plain).collect::<Vec<_>>().join("; "),
        Some(other) => other.to_string(),
    };
    let either = |one: &str, other: &str| Some(text(one)).filter(|text| !text.is_empty()).unwrap_or(text(other));
    let cells = [
        rfc3339(event.header.wall_us),
        uuid::Uuid::from_bytes(event.header.session).to_string(),
        event.header.number.to_string(),
        event.header.kind.as_str().to_owned(),
        event.op().map(|op| op.to_string()).unwrap_or_default(),
        text("decision"),
        either("rules", "rule"),
        text("text"),
        text("params"),
        either("tag", "error"),
        text("rows"),
        text("bytes"),
        either("reason", "how"),
        crate::record::frame::hex(&event.hash),
    ];
    cells.iter().map(|text| cell(text)).collect::<Vec<_>>().join(",")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "NULL".into(),
        other => other.to_string(),
    }
}

/// A cell: escaped, never a formula, quoted where needed.
fn cell(text: &str) -> String {
    let mut safe = escape(text);
    let formula = safe.trim_start().starts_with(['=', '+', '-', '@', '|', '%']) || text.starts_with(['\t', '\r', '\n']);
    if formula {
        safe.insert(0, '\'');
    }
    match safe.contains([',', '"', ';', '\'', ' ']) {
        true => format!("\"{}\"", safe.replace('"', "\"\"")),
        false => safe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula_or_breaks_its_line() {
        assert_eq!(cell("=1+1"), "\"'=1+1\"");
        assert_eq!(cell(" @SUM(A1)"), "\"' @SUM(A1)\"");
        assert_eq!(cell("-2"), "\"'-2\"");
        assert_eq!(cell("select \"a\"\n, b"), "\"select \"\"a\"\"\\n, b\"");
        assert_eq!(cell("plain"), "plain");
    }
}
