//! The summary of a session: what lists show without reading the log.
//!
//! Written by the broker at `close`, or when a session is sealed as an orphan; its hash goes into the tile log.
//! It repeats what the log says and holds no content: sealed payloads are counted, never opened.
//! Invariant: built from frames alone, in order.

use serde::{Deserialize, Serialize};

use crate::record::frame::{Frame, Hash};
use crate::record::kind::Kind;
use crate::record::payload::{Close, Open};

/// What is known of one session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionSummary {
    /// Session id.
    pub id: String,
    /// `<namespace>/<pod-uid>/<instance>` of its log.
    pub log: String,
    /// RFC 3339, by the sidecar's clock.
    pub started: String,
    /// Microseconds since 1970.
    pub started_us: u64,
    /// RFC 3339; absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// `namespace/serviceAccount`.
    pub subject: String,
    /// `namespace/name`.
    pub target: String,
    /// Protocol.
    pub protocol: String,
    /// `Journal` or `BestEffort`.
    pub durability: String,
    /// What separates agent and recorder.
    pub separation: String,
    /// Operations sent.
    pub operations: u64,
    /// Operations refused.
    pub denied: u64,
    /// Operations held.
    pub held: u64,
    /// Rows, from `close`.
    pub rows: u64,
    /// Bytes, from `close`.
    pub bytes: u64,
    /// Why it ended, from `close`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Log number of its `open`.
    pub first: u64,
    /// Log number of its last frame.
    pub last: u64,
    /// Frames.
    pub frames: u64,
    /// Hash of its last frame; in hex where it is written.
    #[serde(with = "hexed")]
    pub head: Hash,
    /// Set when it ended without `close`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphan: Option<Orphan>,
}

/// How an orphan was sealed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Orphan {
    /// When it was sealed, RFC 3339.
    pub sealed: String,
    /// When the sidecar was last heard, RFC 3339: what came after it is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heard: Option<String>,
    /// Log number of the last heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<u64>,
}

impl SessionSummary {
    /// Begins with the session's `open` frame.
    pub fn begin(log: &str, frame: &Frame<'_>) -> Option<SessionSummary> {
        let open: Open<'_> = serde_json::from_slice(frame.payload).ok()?;
        Some(SessionSummary {
            id: uuid::Uuid::from_bytes(frame.header.session).to_string(),
            log: log.to_owned(),
            started: rfc3339(frame.header.wall_us),
            started_us: frame.header.wall_us,
            subject: open.subject.account(),
            target: open.target.into_owned(),
            protocol: open.protocol.into_owned(),
            durability: open.durability.into_owned(),
            separation: open.separation.into_owned(),
            first: frame.header.log_number,
            ..SessionSummary::default()
        })
    }

    /// Takes any frame of the session, `open` included.
    pub fn take(&mut self, frame: &Frame<'_>, hash: &Hash) {
        self.last = frame.header.log_number;
        self.frames = self.frames.saturating_add(1);
        self.head = *hash;
        let counter = match frame.header.kind {
            Kind::Intent => &mut self.operations,
            Kind::Denied => &mut self.denied,
            Kind::Held => &mut self.held,
            Kind::Close => return self.close(frame),
            _ => return,
        };
        *counter = counter.saturating_add(1);
    }

    fn close(&mut self, frame: &Frame<'_>) {
        let close: Close<'_> = serde_json::from_slice(frame.payload).unwrap_or_default();
        self.ended = Some(rfc3339(frame.header.wall_us));
        self.rows = close.rows;
        self.bytes = close.bytes;
        self.reason = Some(close.reason.into_owned());
    }

    /// `yyyy-mm-dd` of its start.
    pub fn date(&self) -> &str {
        self.started.get(..10).unwrap_or("1970-01-01")
    }
}

/// A hash that every frame changes is spelled out once, when the summary is written.
mod hexed {
    use serde::{de, Deserialize, Deserializer, Serializer};

    use crate::record::frame::{hex, unhex, Hash};

    pub fn serialize<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(hash))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        unhex(&text).ok_or_else(|| de::Error::custom("a hash of 64 hex digits is expected"))
    }
}

/// A wall time as text, UTC.
pub fn rfc3339(wall_us: u64) -> String {
    let micros = i64::try_from(wall_us).unwrap_or(0);
    jiff::Timestamp::from_microsecond(micros).map_or_else(|_| "1970-01-01T00:00:00Z".into(), |time| time.to_string())
}
