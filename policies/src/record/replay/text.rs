//! The transcript: a session told line by line for people.
//!
//! Time, statement with its decision, the masked rows as recorded, the outcome; denials with what the agent was
//! told; holds and who decided; how the session ended. Everything recorded is escaped before it is printed.
//! Invariant: one event never prints another event's line.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::Value;

use crate::record::payload::BodyStream;
use crate::record::replay::escape::{escape, escape_lines};
use crate::record::replay::replies::Replies;
use crate::record::replay::{rows, Content, Event};
use crate::record::summary::rfc3339;
use crate::record::Kind;

/// Tells events, keeping what earlier ones said.
#[derive(Debug, Default)]
pub struct Transcript {
    began_ns: Option<u64>,
    protocol: String,
    /// Texts by operation, for executions that only refer to them.
    texts: HashMap<u64, String>,
    /// Replies up to their outcome.
    replies: Replies,
}

/// Texts remembered for later references.
pub(super) const TEXTS: usize = 10_000;

impl Transcript {
    /// Lines for one event, each ending in a line feed; none for events that only complete others.
    pub fn tell(&mut self, event: &Event) -> String {
        let value = match &event.content {
            Content::Json(value) => value,
            Content::Bytes {
                op,
                stream,
                offset,
                bytes,
            } => return self.bytes(event, *op, *stream, *offset, bytes),
            Content::Unreadable(why) => {
                return self.line(
                    event,
                    &format!("{} (unreadable: {})", event.header.kind.as_str(), escape(why)),
                );
            }
        };
        match event.header.kind {
            Kind::Open => self.open(event, value),
            Kind::Pins => self.line(event, &format!("connected{}", self.pairs(value, &PINS))),
            Kind::Policy => self.line(event, &format!("policy changed: bundle {}", short(value, "bundle"))),
            Kind::Cut => self.line(
                event,
                &format!(
                    "CUT by Sidegate: {}{}",
                    text(value, "reason"),
                    self.pairs(value, &["lockdown"])
                ),
            ),
            Kind::Close => self.close(event, value),
            Kind::Intent => self.intent(event, value),
            Kind::Outcome => self.outcome(event, value),
            Kind::Denied => self.denied(event, value),
            Kind::Held => self.held(event, value),
            Kind::Granted => {
                let line = format!("GRANTED {} by {}", text(value, "ticket"), text(value, "decidedBy"));
                self.line(event, &line)
            }
            Kind::Released => {
                let line = format!("hold ended: {} ({})", text(value, "how"), text(value, "ticket"));
                self.line(event, &line)
            }
            other => self.line(event, other.as_str()),
        }
    }

    fn line(&self, event: &Event, what: &str) -> String {
        let since = event
            .header
            .mono_ns
            .saturating_sub(self.began_ns.unwrap_or(event.header.mono_ns));
        let (seconds, millis) = (since / 1_000_000_000, since / 1_000_000 % 1000);
        let time = rfc3339(event.header.wall_us);
        let time = time.get(11..19).unwrap_or("??:??:??").to_owned();
        format!("{time} +{seconds}.{millis:03}  {what}\n")
    }

    fn open(&mut self, event: &Event, value: &Value) -> String {
        self.began_ns = Some(event.header.mono_ns);
        self.protocol = text(value, "protocol");
        let subject = value.get("subject").cloned().unwrap_or_default();
        let mut out = format!(
            "session {}\n  {}/{} -> {} ({})\n  started {}, recording {}, separation: {}\n",
            uuid::Uuid::from_bytes(event.header.session),
            text(&subject, "namespace"),
            text(&subject, "serviceAccount"),
            text(value, "target"),
            self.protocol,
            rfc3339(event.header.wall_us),
            text(value, "durability"),
            text(value, "separation"),
        );
        let weakenings = text(value, "weakenings");
        if !weakenings.is_empty() {
            let _ = writeln!(out, "  weakened: {weakenings}");
        }
        out
    }

    fn pairs(&self, value: &Value, names: &[&str]) -> String {
        let mut out = String::new();
        for name in names {
            let said = text(value, name);
            if !said.is_empty() {
                let _ = write!(out, ", {name} {said}");
            }
        }
        out
    }

    fn intent(&mut self, event: &Event, value: &Value) -> String {
        let op = event.op().unwrap_or(0);
        let own = value.get("text").and_then(Value::as_str).map(str::to_owned);
        let reference = value.get("reference").and_then(Value::as_u64);
        if let Some(reference) = reference {
            self.replies.repeat(op, reference);
        }
        let referred = reference.and_then(|reference| self.texts.get(&reference).cloned());
        let statement = own.clone().or(referred).unwrap_or_else(|| text(value, "resources"));
        if let (Some(own), true) = (own, self.texts.len() < TEXTS) {
            self.texts.insert(op, own);
        }
        let rules = text(value, "rules");
        let mut line = format!("> {}", indent(&statement));
        let params = params(value);
        if !params.is_empty() {
            let _ = write!(line, "   with ({params})");
        }
        let mut out = self.line(event, &line);
        let mut notes = format!(
            "{} by {}",
            text(value, "decision"),
            if rules.is_empty() { "no rule" } else { &rules }
        );
        for (name, words) in [("approval", "approval"), ("masks", "masks"), ("observed", "observed")] {
            let said = text(value, name);
            if !said.is_empty() {
                let _ = write!(notes, "; {words} {said}");
            }
        }
        let _ = writeln!(out, "                   {notes}");
        out
    }

    fn outcome(&mut self, event: &Event, value: &Value) -> String {
        let mut out = String::new();
        let reply = self.replies.take(event.op());
        if self.protocol.eq_ignore_ascii_case("postgres") || self.protocol.eq_ignore_ascii_case("postgresql") {
            for row in rows::tell(&reply.shown) {
                let _ = writeln!(out, "                   | {row}");
            }
        } else if reply.kept > 0 {
            let _ = writeln!(out, "                   | {} bytes kept", reply.kept);
        }
        let lost = value
            .get("bodyBytes")
            .and_then(Value::as_u64)
            .unwrap_or(0)
            .saturating_sub(reply.kept);
        if lost > 0 {
            let _ = writeln!(out, "                   | … {lost} bytes of the reply were not kept");
        }
        let how = ["tag", "error", "message", "reason"].map(|name| text(value, name));
        let how: Vec<&str> = how.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        let rows = value
            .get("rows")
            .and_then(Value::as_u64)
            .map(|rows| format!(", {rows} rows"))
            .unwrap_or_default();
        let copied = value
            .get("copiedBytes")
            .and_then(Value::as_u64)
            .map(|bytes| format!(", {bytes} bytes copied in"))
            .unwrap_or_default();
        let micros = value.get("latUs").and_then(Value::as_u64).unwrap_or(0);
        let line = format!(
            "< {}{rows}{copied}, {}.{:03} ms",
            how.join(" "),
            micros / 1000,
            micros % 1000
        );
        out.push_str(&self.line(event, &line));
        out
    }

    fn denied(&mut self, event: &Event, value: &Value) -> String {
        let mut out = self.line(event, &format!("x {}", indent(&text_raw(value, "text"))));
        let rule = text(value, "rule");
        let by = if rule.is_empty() {
            String::new()
        } else {
            format!(" by {rule}")
        };
        let _ = writeln!(
            out,
            "                   DENIED ({}){by}, {}",
            text(value, "reason"),
            text(value, "id")
        );
        let _ = writeln!(out, "                   told: {}", text(value, "shown"));
        out
    }

    fn held(&mut self, event: &Event, value: &Value) -> String {
        let mut out = self.line(event, &format!("? {}", indent(&text_raw(value, "text"))));
        let params = params(value);
        let with = if params.is_empty() {
            String::new()
        } else {
            format!(", with ({params})")
        };
        let _ = writeln!(
            out,
            "                   HELD for people: {} by {}{with}",
            text(value, "ticket"),
            text(value, "rules")
        );
        out
    }

    fn close(&mut self, event: &Event, value: &Value) -> String {
        let count = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
        let line = format!(
            "closed ({}): {} operations, {} denied, {} held, {} rows, {} bytes",
            text(value, "reason"),
            count("operations"),
            count("denied"),
            count("held"),
            count("rows"),
            count("bytes"),
        );
        self.line(event, &line)
    }

    fn bytes(&mut self, event: &Event, op: u64, stream: BodyStream, offset: u64, bytes: &[u8]) -> String {
        match stream {
            BodyStream::Reply => {
                self.replies.piece(op, offset, bytes);
                String::new()
            }
            BodyStream::Request => self.line(event, &format!("> {} bytes at {offset} to the target", bytes.len())),
            BodyStream::Continuation => String::new(),
        }
    }
}

const PINS: [&str; 6] = ["address", "tls", "mechanism", "user", "database", "credential"];

pub(super) fn params(value: &Value) -> String {
    let items = value.get("params").and_then(Value::as_array);
    let shown = items.into_iter().flatten().map(|item| match item {
        Value::String(text) => format!("'{}'", escape(text)),
        Value::Null => "NULL".into(),
        other => escape(&other.to_string()),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// A member as escaped text: strings as they are, lists joined.
pub(super) fn text(value: &Value, name: &str) -> String {
    escape(&text_raw(value, name))
}

pub(super) fn text_raw(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            let items = items
                .iter()
                .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned));
            items.collect::<Vec<_>>().join(", ")
        }
        Some(other) => other.to_string(),
    }
}

fn short(value: &Value, name: &str) -> String {
    text(value, name).chars().take(12).collect()
}

/// A statement of several lines, each behind the margin, so that it cannot pass for another event.
fn indent(statement: &str) -> String {
    escape_lines(statement.trim_end()).replace('\n', "\n                     ")
}
