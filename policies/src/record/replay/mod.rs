//! Replay: one session of a store as events, and how events are told as text, JSON lines, CSV and a
//! terminal recording.
//!
//! Reads, decrypts with the session's key if the caller has it, and executes nothing. Damage does not stop it:
//! an event that cannot be read says so, and the verifier is the one to judge. Refused: a session the store does
//! not hold. Invariant: whatever a session recorded reaches a terminal escaped, once.

mod asciicast;
mod escape;
mod export;
mod replies;
mod rows;
mod text;
mod told;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde_json::Value;
use uuid::Uuid;

use crate::record::frame::{hex, Frame, Hash, Header, FLAG_TRUNCATED};
use crate::record::layout::{object_first, DirectoryStore, Store};
use crate::record::payload::{Body, BodyStream};
use crate::record::session_key::{plain, MAX_PLAIN};
use crate::record::summary::SessionSummary;
use crate::record::{Kind, SessionKey};

pub use asciicast::Asciicast;
pub use escape::escape;
pub use export::{csv_header, csv_line, json_line};
pub use text::Transcript;
pub use told::{tell, Form};

/// Gives the key of a session, if there is one.
pub type KeyLookup<'a> = dyn Fn(Uuid) -> Option<SessionKey> + 'a;

/// Why a session cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Reading failed.
    #[error("the record store cannot be read: {0}")]
    Io(#[from] io::Error),
    /// No such session.
    #[error("the store holds no session {0}")]
    NoSession(String),
    /// More than one session begins like this.
    #[error("{0} fits more than one session; give more of its id")]
    Ambiguous(String),
}

/// One event of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The frame's header.
    pub header: Header,
    /// The frame's hash.
    pub hash: Hash,
    /// Length of the stored payload.
    pub stored: usize,
    /// What it says.
    pub content: Content,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A JSON object.
    Json(Value),
    /// Stream bytes.
    Bytes {
        /// Operation number.
        op: u64,
        /// Which stream.
        stream: BodyStream,
        /// Offset in it.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The payload cannot be read: its key is gone, or it is damaged.
    Unreadable(String),
}

impl Event {
    /// Operation number, if the event has one.
    pub fn op(&self) -> Option<u64> {
        match &self.content {
            Content::Json(value) => value.get("op").and_then(Value::as_u64),
            Content::Bytes { op, .. } => Some(*op),
            Content::Unreadable(_) => None,
        }
    }
}

/// Ids of all sessions of a store, as far as summaries and logs name them.
pub fn sessions(root: &Path) -> Result<Vec<Uuid>, ReplayError> {
    let store = DirectoryStore::new(root);
    let mut found = BTreeSet::new();
    for name in store.list("v1")? {
        if name.contains("/session/") {
            let file = name.rsplit('/').next().and_then(|file| file.split('.').next());
            found.extend(file.and_then(|file| Uuid::parse_str(file).ok()));
        } else if name.contains("/landing/") {
            for frame in Frames::new(&store.read(&name).unwrap_or_default()) {
                if frame.header.kind == Kind::Open {
                    found.insert(Uuid::from_bytes(frame.header.session));
                }
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// The one session whose id begins with `prefix`.
pub fn find(root: &Path, prefix: &str) -> Result<Uuid, ReplayError> {
    if let Ok(id) = Uuid::parse_str(prefix) {
        return Ok(id);
    }
    let fits = |id: &Uuid| id.to_string().starts_with(&prefix.to_ascii_lowercase());
    let all: Vec<Uuid> = sessions(root)?.into_iter().filter(fits).collect();
    match all.as_slice() {
        [one] => Ok(*one),
        [] => Err(ReplayError::NoSession(prefix.to_owned())),
        _ => Err(ReplayError::Ambiguous(prefix.to_owned())),
    }
}

/// Replays a session in order; `each` gets every event.
pub fn replay(
    root: &Path,
    session: Uuid,
    keys: &KeyLookup<'_>,
    each: &mut dyn FnMut(Event) -> io::Result<()>,
) -> Result<(), ReplayError> {
    let store = DirectoryStore::new(root);
    let mut reader = Reader {
        session,
        key: keys(session),
        next_log_number: 0,
        pending: None,
        found: false,
    };
    for name in sources(&store, session)? {
        match store.read(&name) {
            Ok(bytes) => reader.source(&bytes, each)?,
            // A landing journal that became an object since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(event) = reader.pending.take() {
        each(event.finish())?;
    }
    reader
        .found
        .then_some(())
        .ok_or_else(|| ReplayError::NoSession(session.to_string()))
}

/// Objects that may hold the session, in log order, then landing journals.
fn sources(store: &DirectoryStore, session: Uuid) -> Result<Vec<String>, ReplayError> {
    let names = store.list("v1")?;
    let summary = names
        .iter()
        .filter(|name| name.contains("/session/") && name.contains(&session.to_string()))
        .filter(|name| !name.ends_with(".orphan.json"))
        .find_map(|name| serde_json::from_slice::<SessionSummary>(&store.read(name).ok()?).ok());
    let logs: Vec<String> = names.iter().filter(|name| name.contains("/log/")).cloned().collect();
    let landings = names.iter().filter(|name| name.contains("/landing/")).cloned();
    let Some(summary) = summary else {
        return Ok(logs.into_iter().chain(landings).collect());
    };
    let of_log: Vec<String> = logs
        .into_iter()
        .filter(|name| name.contains(&format!("/log/{}/", summary.log)))
        .collect();
    let from = of_log
        .iter()
        .rposition(|name| object_first(name).is_some_and(|first| first <= summary.first))
        .unwrap_or(0);
    let within = |name: &String| object_first(name).is_none_or(|first| first <= summary.last);
    Ok(of_log.into_iter().skip(from).filter(within).collect())
}

struct Reader {
    session: Uuid,
    key: Option<SessionKey>,
    next_log_number: u64,
    pending: Option<Pending>,
    found: bool,
}

/// An event whose JSON comes in `body` frames behind it.
struct Pending {
    event: Event,
    length: usize,
    json: Vec<u8>,
}

impl Pending {
    fn finish(mut self) -> Event {
        self.event.content = match serde_json::from_slice(&self.json) {
            Ok(value) => Content::Json(value),
            Err(_) => Content::Unreadable("the rest of the event is missing".into()),
        };
        self.event
    }
}

impl Reader {
    fn source(&mut self, bytes: &[u8], each: &mut dyn FnMut(Event) -> io::Result<()>) -> io::Result<()> {
        for frame in Frames::new(bytes) {
            if frame.header.session != *self.session.as_bytes() {
                continue;
            }
            if self.found && frame.header.log_number < self.next_log_number {
                continue;
            }
            self.found = true;
            self.next_log_number = frame.header.log_number.saturating_add(1);
            if let Some(event) = self.event(&frame) {
                each(event)?;
            }
        }
        Ok(())
    }

    fn event(&mut self, frame: &Frame<'_>) -> Option<Event> {
        let content = match plain(&frame.header, frame.payload, self.key.as_ref()) {
            Err(error) => Content::Unreadable(error.to_string()),
            Ok(bytes) if frame.header.kind == Kind::Body => body(&bytes),
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_or_else(|_| Content::Unreadable("the payload is no JSON".into()), Content::Json),
        };
        if let (
            Content::Bytes {
                stream: BodyStream::Continuation,
                bytes,
                ..
            },
            Some(mut pending),
        ) = (&content, self.pending.take())
        {
            pending.json.extend_from_slice(bytes);
            if pending.json.len() >= pending.length {
                return Some(pending.finish());
            }
            self.pending = Some(pending);
            return None;
        }
        let event = Event {
            header: frame.header,
            hash: frame.hash(),
            stored: frame.payload.len(),
            content,
        };
        let length = continued(&event);
        match length {
            None => Some(event),
            Some(length) => {
                self.pending = Some(Pending {
                    event,
                    length,
                    json: Vec::new(),
                });
                None
            }
        }
    }
}

fn continued(event: &Event) -> Option<usize> {
    let Content::Json(value) = &event.content else {
        return None;
    };
    if event.header.flags & FLAG_TRUNCATED == 0 {
        return None;
    }
    let length = value.get("continued")?.as_u64()?;
    usize::try_from(length).ok().filter(|length| *length <= MAX_PLAIN)
}

fn body(bytes: &[u8]) -> Content {
    match Body::parse(bytes) {
        Some(body) => Content::Bytes {
            op: body.op,
            stream: body.stream,
            offset: body.offset,
            bytes: body.bytes.to_vec(),
        },
        None => Content::Unreadable("the body's prefix is broken".into()),
    }
}

/// Frames of a source, up to the first that is none.
struct Frames<'a> {
    left: &'a [u8],
}

impl<'a> Frames<'a> {
    fn new(left: &'a [u8]) -> Self {
        Frames { left }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let frame = Frame::parse_unchecked(self.left).ok()?;
        self.left = self.left.get(frame.bytes.len()..).unwrap_or_default();
        Some(frame)
    }
}

/// The header members every export line begins with.
fn header_members(event: &Event) -> Vec<(&'static str, Value)> {
    let header = &event.header;
    vec![
        ("v", Value::from(crate::record::frame::VERSION)),
        ("sid", Value::from(Uuid::from_bytes(header.session).to_string())),
        ("seq", Value::from(header.number)),
        ("t_mono", Value::from(header.mono_ns)),
        ("t_wall", Value::from(header.wall_us)),
        ("kind", Value::from(header.kind.as_str())),
        ("len", Value::from(event.stored as u64)),
        ("trunc", Value::from(header.flags & FLAG_TRUNCATED != 0)),
        ("prev", Value::from(hex(&header.previous))),
        ("h", Value::from(hex(&event.hash))),
    ]
}
