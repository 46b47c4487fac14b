//! A session as a terminal recording: asciicast version 2, one JSON document a line, for `asciinema play` and every
//! web player of that format.
//!
//! It looks as if the session had been typed into psql: statements appear letter by letter before the moment they
//! were sent, answers as tables, refusals as errors. Times are the recorded ones. Invariant: the only control
//! characters are our own line ends; everything recorded is escaped before it is written, and times never go back.

use std::collections::HashMap;

use serde_json::{json, Value};

use super::escape::{escape, escape_lines};
use super::replies::Replies;
use super::text::{params, text, text_raw, TEXTS};
use super::{rows, Content, Event};
use crate::record::payload::BodyStream;
use crate::record::Kind;

/// The terminal's size in characters.
const SIZE: (u16, u16) = (120, 36);
/// Microseconds between two typed pieces.
const PACE: u64 = 30_000;
/// Pieces a statement is typed in at most.
const PIECES: usize = 120;

/// Writes a recording, keeping what earlier events said.
#[derive(Debug, Default)]
pub struct Asciicast {
    began_ns: Option<u64>,
    /// Microseconds from the start of what was written last.
    last: u64,
    prompt: String,
    statements: bool,
    /// A statement that was typed and waits for a person.
    held: Option<String>,
    texts: HashMap<u64, String>,
    replies: Replies,
}

impl Asciicast {
    /// Lines for one event, each a JSON document with its line feed; none for events that only complete others.
    pub fn tell(&mut self, event: &Event) -> String {
        let mut out = String::new();
        if self.began_ns.is_none() {
            self.began_ns = Some(event.header.mono_ns);
            out.push_str(&header(event));
        }
        let value = match &event.content {
            Content::Json(value) => value,
            Content::Bytes {
                op,
                stream,
                offset,
                bytes,
            } => {
                if *stream == BodyStream::Reply {
                    self.replies.piece(*op, *offset, bytes);
                }
                return out;
            }
            Content::Unreadable(why) => {
                let line = format!("-- {}: unreadable ({})", event.header.kind.as_str(), escape(why));
                self.say(event, &line, &mut out);
                return out;
            }
        };
        match event.header.kind {
            Kind::Open => self.open(event, value, &mut out),
            Kind::Pins => {
                let database = text(value, "database");
                if !database.is_empty() {
                    self.prompt = format!("{database}=> ");
                }
            }
            Kind::Intent => self.intent(event, value, &mut out),
            Kind::Outcome => self.outcome(event, value, &mut out),
            Kind::Denied => {
                self.typed_once(event, &text_raw(value, "text"), &mut out);
                self.say(event, &format!("ERROR:  {}", text(value, "shown")), &mut out);
            }
            Kind::Held => {
                let statement = text_raw(value, "text");
                self.typed(event, &statement, &mut out);
                self.held = Some(statement);
                let (ticket, rules) = (text(value, "ticket"), text(value, "rules"));
                self.say(event, &format!("-- waits for a person: {ticket}, by {rules}"), &mut out);
            }
            Kind::Granted => {
                let (ticket, who) = (text(value, "ticket"), text(value, "decidedBy"));
                self.say(event, &format!("-- {ticket} approved by {who}"), &mut out);
            }
            Kind::Released => {
                let (ticket, how) = (text(value, "ticket"), text(value, "how"));
                self.say(event, &format!("-- {ticket}: {how}"), &mut out);
            }
            Kind::Cut => self.say(
                event,
                &format!("FATAL:  cut by Sidegate: {}", text(value, "reason")),
                &mut out,
            ),
            Kind::Close => self.say(event, &format!("-- closed: {}", text(value, "reason")), &mut out),
            _ => {}
        }
        out
    }

    fn open(&mut self, event: &Event, value: &Value, out: &mut String) {
        let protocol = text(value, "protocol");
        self.statements = protocol.to_ascii_lowercase().starts_with("postgres");
        self.prompt = "=> ".to_owned();
        let subject = value.get("subject").cloned().unwrap_or_default();
        let (namespace, account) = (text(&subject, "namespace"), text(&subject, "serviceAccount"));
        let line = format!("-- {namespace}/{account} on {} ({protocol})", text(value, "target"));
        self.say(event, &line, out);
    }

    fn intent(&mut self, event: &Event, value: &Value, out: &mut String) {
        let own = value.get("text").and_then(Value::as_str).map(str::to_owned);
        let referred = value.get("reference").and_then(Value::as_u64);
        if let Some(first) = referred {
            self.replies.repeat(event.op().unwrap_or(0), first);
        }
        let referred = referred.and_then(|reference| self.texts.get(&reference).cloned());
        let statement = own.clone().or(referred).unwrap_or_else(|| text_raw(value, "resources"));
        if let (Some(own), true) = (own, self.texts.len() < TEXTS) {
            self.texts.insert(event.op().unwrap_or(0), own);
        }
        self.typed_once(event, &statement, out);
        let params = params(value);
        if !params.is_empty() {
            self.say(event, &format!("-- with ({params})"), out);
        }
    }

    fn outcome(&mut self, event: &Event, value: &Value, out: &mut String) {
        let reply = self.replies.take(event.op());
        if self.statements {
            for line in rows::table(&reply.shown) {
                self.say(event, &line, out);
            }
        }
        let whole = value.get("bodyBytes").and_then(Value::as_u64).unwrap_or(0);
        if whole > reply.kept {
            let lost = whole.saturating_sub(reply.kept);
            self.say(event, &format!("… {lost} bytes of the answer were not kept"), out);
        }
        let (tag, error) = (text(value, "tag"), text(value, "error"));
        let message = text(value, "message");
        let rows = value.get("rows").and_then(Value::as_u64);
        let line = match (error.is_empty(), tag.strip_prefix("SELECT"), rows) {
            (false, _, _) => format!("ERROR:  {error} {message}").trim_end().to_owned(),
            (true, Some(_), Some(1)) => "(1 row)".to_owned(),
            (true, Some(_), Some(rows)) => format!("({rows} rows)"),
            _ => tag,
        };
        if !line.is_empty() {
            self.say(event, &line, out);
        }
        self.say(event, "", out);
    }

    fn time(&self, event: &Event) -> u64 {
        let began = self.began_ns.unwrap_or(event.header.mono_ns);
        let micros = event
            .header
            .mono_ns
            .saturating_sub(began)
            .checked_div(1_000)
            .unwrap_or(0);
        micros.max(self.last)
    }

    /// One line at the time of an event.
    fn say(&mut self, event: &Event, line: &str, out: &mut String) {
        let at = self.time(event);
        self.write(at, &format!("{line}\r\n"), out);
    }

    /// A statement that is typed now, unless it was when it began to wait.
    fn typed_once(&mut self, event: &Event, statement: &str, out: &mut String) {
        if self.held.take().as_deref() != Some(statement) {
            self.typed(event, statement, out);
        }
    }

    /// A statement, typed so that its last letter falls on the time of the event.
    fn typed(&mut self, event: &Event, statement: &str, out: &mut String) {
        let (at, earliest) = (self.time(event), self.last);
        let shown = escape_lines(statement.trim_end()).replace('\t', "    ");
        let shown = shown.replace(
            '\n',
            &format!("\r\n{}-> ", " ".repeat(self.prompt.len().saturating_sub(3))),
        );
        let letters: Vec<char> = shown.chars().collect();
        let size = letters.len().div_ceil(PIECES).max(1);
        let pieces = u64::try_from(letters.len().div_ceil(size)).unwrap_or(1);
        let pace = at
            .saturating_sub(earliest)
            .checked_div(pieces.max(1))
            .unwrap_or(0)
            .min(PACE);
        let mut moment = at.saturating_sub(pace.saturating_mul(pieces));
        let prompt = self.prompt.clone();
        self.write(moment, &prompt, out);
        for piece in letters.chunks(size) {
            moment = moment.saturating_add(pace);
            self.write(moment, &piece.iter().collect::<String>(), out);
        }
        let end = if self.statements && !shown.trim_end().ends_with(';') {
            ";\r\n"
        } else {
            "\r\n"
        };
        self.write(at, end, out);
    }

    fn write(&mut self, at: u64, data: &str, out: &mut String) {
        self.last = self.last.max(at);
        let (seconds, micros) = (self.last.checked_div(1_000_000), self.last.checked_rem(1_000_000));
        let time = format!("{}.{:06}", seconds.unwrap_or(0), micros.unwrap_or(0));
        let data = Value::String(data.to_owned());
        out.push_str(&format!("[{time}, \"o\", {data}]\n"));
    }
}

fn header(event: &Event) -> String {
    let session = uuid::Uuid::from_bytes(event.header.session);
    let seconds = event.header.wall_us.checked_div(1_000_000).unwrap_or(0);
    let header = json!({
        "version": 2,
        "width": SIZE.0,
        "height": SIZE.1,
        "timestamp": seconds,
        "title": format!("Sidegate session {session}"),
    });
    format!("{header}\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::record::frame::Header;

    fn event(kind: Kind, at_ms: u64, content: Value) -> Event {
        Event {
            header: Header {
                kind,
                flags: 0,
                session: [7; 16],
                number: 0,
                log_number: 0,
                mono_ns: 5_000_000_000 + at_ms * 1_000_000,
                wall_us: 1_700_000_000_000_000,
                previous: [0; 32],
            },
            hash: [0; 32],
            stored: 0,
            content: Content::Json(content),
        }
    }

    fn recording(events: &[Event]) -> (Value, Vec<(f64, String)>) {
        let mut cast = Asciicast::default();
        let text: String = events.iter().map(|event| cast.tell(event)).collect();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let header = lines.next().unwrap();
        let output = lines.map(|line| {
            assert_eq!(line[1], "o");
            (line[0].as_f64().unwrap(), line[2].as_str().unwrap().to_owned())
        });
        (header, output.collect())
    }

    fn session(statement: &str) -> Vec<Event> {
        let subject = json!({"namespace": "agents", "serviceAccount": "support"});
        vec![
            event(
                Kind::Open,
                0,
                json!({"protocol": "postgres", "target": "data/shop", "subject": subject}),
            ),
            event(Kind::Pins, 5, json!({"database": "shop"})),
            event(
                Kind::Intent,
                2_000,
                json!({"op": 1, "text": statement, "params": ["x\u{1b}[2J"]}),
            ),
            event(Kind::Outcome, 2_100, json!({"op": 1, "tag": "SELECT 2", "rows": 2})),
            event(
                Kind::Denied,
                2_101,
                json!({"text": "DROP TABLE t", "shown": "refused\u{1b}]0;x\u{7}"}),
            ),
            event(Kind::Close, 2_102, json!({"reason": "client"})),
        ]
    }

    #[test]
    fn a_session_plays_as_if_typed_into_psql() {
        let (header, output) = recording(&session("SELECT 1,\n  2"));
        assert_eq!(
            (header["version"].as_u64(), header["timestamp"].as_u64()),
            (Some(2), Some(1_700_000_000))
        );
        assert!(header["width"].as_u64().unwrap() > 0 && header["height"].as_u64().unwrap() > 0);
        let screen: String = output.iter().map(|(_, data)| data.as_str()).collect();
        assert_eq!(
            screen,
            "-- agents/support on data/shop (postgres)\r\n\
             shop=> SELECT 1,\r\n    -> 2;\r\n"
                .replace("-> 2", "->   2")
                + "-- with ('x\\x1b[2J')\r\n(2 rows)\r\n\r\n\
             shop=> DROP TABLE t;\r\nERROR:  refused\\x1b]0;x\\x07\r\n-- closed: client\r\n"
        );
        assert!(output.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{output:?}");
        let first_letter = output.iter().find(|(_, data)| data == "S").unwrap().0;
        assert!(
            first_letter > 1.0 && first_letter < 2.0,
            "typed before it was sent: {first_letter}"
        );
    }

    #[test]
    fn a_statement_that_waits_is_typed_once_and_before_the_wait() {
        let refund = "UPDATE t SET a = 1";
        let mut events = session(refund);
        let ticket = json!({"text": refund, "ticket": "ar-1", "rules": ["p/refund"]});
        events.insert(2, event(Kind::Held, 1_000, ticket));
        events.insert(
            3,
            event(Kind::Granted, 1_500, json!({"ticket": "ar-1", "decidedBy": "ann"})),
        );
        let (_, output) = recording(&events);
        let screen: String = output.iter().map(|(_, data)| data.as_str()).collect();
        let waits = format!("=> {refund};\r\n-- waits for a person: ar-1, by p/refund\r\n-- ar-1 approved by ann\r\n");
        assert!(screen.contains(&waits), "{screen}");
        assert_eq!(screen.matches(refund).count(), 1, "{screen}");
    }

    #[test]
    fn nothing_recorded_drives_the_terminal_and_long_texts_stay_few_events() {
        let hostile = format!("SELECT '\u{1b}]8;;x\u{7}\u{9b}31m\u{202e}\r{}'", "x".repeat(100_000));
        let (_, output) = recording(&session(&hostile));
        let screen: String = output.iter().map(|(_, data)| data.as_str()).collect();
        let drives = |c: char| c.is_control() && c != '\r' && c != '\n';
        assert!(!screen.chars().any(drives) && !screen.contains('\u{202e}'));
        assert!(!screen.replace("\r\n", "").contains(['\r', '\n']));
        assert!(output.len() < 2 * PIECES, "{}", output.len());
    }
}
