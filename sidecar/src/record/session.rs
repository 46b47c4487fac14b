//! One session's recorder: events into a buffer, the buffer into the log.
//!
//! Payloads are encoded straight into their frame, compressed above 1 KiB and sealed under the session's key
//! before the log sees them; place and hash are given at commit. Outcomes may wait in the buffer for the next
//! commit or the flusher. Refused: events beyond 16 MiB, events after `close`.
//! Invariant: a session number is used once, so no nonce repeats, whatever fails between event and commit.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;
use sidegate_policies::api::target::{Durability, RecordContent, Recording};
use sidegate_policies::record::frame::{
    self, hex, Header, CRC_BYTES, FLAG_SEALED, FLAG_TRUNCATED, FLAG_ZSTD, HEADER_BYTES, LENGTH_BYTES, MAX_PAYLOAD,
    PREFIX_BYTES,
};
use sidegate_policies::record::payload::{Body, BodyStream, Close, Outcome};
use sidegate_policies::record::session_key::{MAX_PLAIN, TAG_BYTES};
use sidegate_policies::record::{Kind, SessionKey};
use uuid::Uuid;

use super::batch;
use super::body::{Digesting, ReplyBody};
use super::buffer::Shared;
use super::event::Event;
use super::log::Log;
use super::random;
use super::CannotRecord;

/// Payloads above this are compressed.
const COMPRESS_ABOVE: usize = 1 << 10;
/// Most bytes a session may have waiting for the journal.
const BUFFER_BYTES: usize = 4 << 20;
/// Content bytes of one continuation frame.
const CONTINUATION: usize = 512 << 10;
/// How long a session waits for the collector to acknowledge its `open`.
const OPEN_WAIT: Duration = Duration::from_secs(5);

/// The recorder of one session.
pub struct SessionRecorder {
    log: Arc<Log>,
    shared: Arc<Shared>,
    id: Uuid,
    key: SessionKey,
    digest: aws_lc_rs::hmac::Key,
    recording: Recording,
    number: u64,
    open_at: Option<u64>,
    began_ns: u64,
    /// When the last event was added.
    at_ns: u64,
    body: Option<ReplyBody>,
    scratch: Vec<u8>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    closed: bool,
}

impl SessionRecorder {
    pub(super) fn new(log: Arc<Log>, id: Uuid, recording: Recording, slot: usize) -> Result<Self, CannotRecord> {
        let key = random::session_key(log.random())?;
        let began_ns = log.clock().mono_ns();
        batch::enter();
        Ok(SessionRecorder {
            digest: key.digest_key(),
            shared: Arc::new(Shared::new(slot, recording.durability == Durability::BestEffort)),
            log,
            id,
            key,
            recording,
            number: 0,
            open_at: None,
            began_ns,
            at_ns: began_ns,
            body: None,
            scratch: Vec::new(),
            compressor: None,
            closed: false,
        })
    }

    /// The session.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// When the last event was added, nanoseconds of the log's monotonic clock.
    pub fn at_ns(&self) -> u64 {
        self.at_ns
    }

    /// Nanoseconds that have passed since then.
    pub fn since_ns(&self, at_ns: u64) -> u64 {
        self.log.clock().mono_ns().saturating_sub(at_ns)
    }

    /// Hands the key to the log, for the collector, and writes the `open` frame.
    pub(super) fn begin(&mut self, open: &impl Serialize) -> Result<(), CannotRecord> {
        self.event(Kind::Open, None, open)?;
        let key = self.key.expose();
        self.log.hand_over(self.id, key);
        match self.shared.flush(&self.log) {
            Ok(last) => self.open_at = last,
            Err(_) if self.shared.best_effort => {}
            Err(error) => {
                self.log.forget_key(self.id);
                return Err(error);
            }
        }
        self.log.upload_now();
        Ok(())
    }

    /// Adds an event to the session's buffer; no system call. `op` is the operation's number in the session.
    pub fn event(&mut self, kind: Kind, op: Option<u64>, payload: &impl Serialize) -> Result<(), CannotRecord> {
        self.write(kind, op, |event| event.payload(payload))
    }

    /// The same for an event that is not one payload.
    pub fn write(
        &mut self,
        kind: Kind,
        op: Option<u64>,
        fill: impl FnOnce(&mut Event<'_>),
    ) -> Result<(), CannotRecord> {
        if self.closed {
            return Err(CannotRecord::Closed);
        }
        if kind == Kind::Outcome {
            if let Some(body) = self.body.take_if(|body| Some(body.op) == op) {
                self.write_body(body)?;
            }
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut event = Event::begin(op, &mut scratch);
        fill(&mut event);
        let written = event.end().and_then(|()| self.frame_event(kind, op, &scratch));
        self.scratch = scratch;
        written
    }

    /// The outcome of an operation, with what is kept of its reply.
    pub fn outcome(&mut self, op: u64, mut outcome: Outcome<'_>) -> Result<(), CannotRecord> {
        if let Some(body) = self.body.take_if(|body| body.op == op) {
            let (total, digest) = self.write_body(body)?;
            outcome.body_bytes = Some(total);
            outcome.body_digest = Some(digest.into());
        }
        // Member by member: every operation has one, and a serializer of any structure takes three times as long. Taken apart
        // whole, so that a member that is new cannot be forgotten here.
        let Outcome {
            tag,
            rows,
            bytes,
            error,
            message,
            reason,
            lat_us,
            body_bytes,
            body_digest,
            copied_bytes,
            copied_digest,
        } = outcome;
        self.write(Kind::Outcome, Some(op), |event| {
            event.optional("tag", &tag);
            event.optional("rows", &rows);
            event.member("bytes", &bytes);
            event.optional("error", &error);
            event.optional("message", &message);
            event.optional("reason", &reason);
            event.member("latUs", &lat_us);
            event.optional("bodyBytes", &body_bytes);
            event.optional("bodyDigest", &body_digest);
            event.optional("copiedBytes", &copied_bytes);
            event.optional("copiedDigest", &copied_digest);
        })
    }

    /// Makes everything buffered durable by the target's class: for `Journal` one write(2).
    pub fn commit(&mut self) -> Result<(), CannotRecord> {
        self.shared.commit(&self.log)
    }

    /// The same, together with the other sessions of this lane: one write for all that want one in the same round.
    pub fn poll_commit(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CannotRecord>> {
        batch::poll(&self.log, &self.shared, cx)
    }

    /// Whether the target's `content` keeps anything of replies.
    pub fn keeps_content(&self) -> bool {
        self.recording.content == RecordContent::Full
    }

    /// Bytes of an operation's reply, after masking. Kept as the target's `content` says.
    pub fn body(&mut self, op: u64, masked: &[u8]) {
        if !self.keeps_content() {
            return;
        }
        if let Some(other) = self.body.take_if(|body| body.op != op) {
            // The reply of another operation never got an outcome: keep what there is.
            let _ = self.write_body(other);
        }
        self.body
            .get_or_insert_with(|| ReplyBody::new(op, &self.digest))
            .push(masked);
    }

    /// Bytes from the agent to the target that belong to `op` (COPY data, raw TCP), as they are sent.
    pub fn request_bytes(&mut self, op: u64, offset: u64, bytes: &[u8]) -> Result<(), CannotRecord> {
        for (index, piece) in bytes.chunks(CONTINUATION).enumerate() {
            let at = offset.saturating_add((index as u64).saturating_mul(CONTINUATION as u64));
            self.body_frame(op, BodyStream::Request, at, piece)?;
        }
        Ok(())
    }

    /// A keyed digest of content that comes in pieces.
    pub fn digesting(&self) -> Digesting {
        Digesting::new(&self.digest)
    }

    /// Keyed digest of content, hex.
    pub fn digest(&self, bytes: &[u8]) -> String {
        hex(aws_lc_rs::hmac::sign(&self.digest, bytes).as_ref())
    }

    /// Whether a new operation may be forwarded: collector lag and spool. `BestEffort` always may.
    pub fn ready(&self) -> Result<(), CannotRecord> {
        if self.shared.best_effort {
            return Ok(());
        }
        self.log.ready()
    }

    /// Waits until the collector acknowledged the session's `open`, 5 s at most. `BestEffort` does not wait.
    pub async fn opened(&self) -> Result<(), CannotRecord> {
        if self.shared.best_effort {
            return Ok(());
        }
        let number = self.open_at.ok_or(CannotRecord::Closed)?;
        self.log.received(number, OPEN_WAIT).await
    }

    /// Writes `close` and ends the session's record. The duration is filled in.
    pub fn close(&mut self, mut close: Close<'_>) {
        if self.closed {
            return;
        }
        if let Some(body) = self.body.take() {
            let _ = self.write_body(body);
        }
        close.duration_ms = self.since_ns(self.began_ns) / 1_000_000;
        let _ = self.event(Kind::Close, None, &close);
        self.closed = true;
        self.shared.lock().closed = true;
        batch::leave(&self.shared);
        self.log.session_ended(&self.shared);
    }

    fn write_body(&mut self, body: ReplyBody) -> Result<(u64, String), CannotRecord> {
        let op = body.op;
        let done = body.finish();
        for (offset, bytes) in &done.pieces {
            self.body_frame(op, BodyStream::Reply, *offset, bytes)?;
        }
        Ok((done.total, done.digest))
    }

    fn body_frame(&mut self, op: u64, stream: BodyStream, offset: u64, bytes: &[u8]) -> Result<(), CannotRecord> {
        let mut payload = Vec::with_capacity(bytes.len().saturating_add(64));
        payload.extend_from_slice(&Body::prefix(op, stream, offset));
        payload.extend_from_slice(bytes);
        self.frame(Kind::Body, 0, &payload)
    }

    /// One frame, or a short one and `body` frames with the event's whole JSON.
    fn frame_event(&mut self, kind: Kind, op: Option<u64>, json: &[u8]) -> Result<(), CannotRecord> {
        match self.frame(kind, 0, json) {
            Err(CannotRecord::TooLarge) if json.len() <= MAX_PLAIN => {}
            other => return other,
        }
        let mut short = Vec::new();
        let mut event = Event::begin(op, &mut short);
        event.payload(&serde_json::json!({ "continued": json.len() }));
        event.end()?;
        self.frame(kind, FLAG_TRUNCATED, &short)?;
        for (index, piece) in json.chunks(CONTINUATION).enumerate() {
            let offset = (index as u64).saturating_mul(CONTINUATION as u64);
            self.body_frame(op.unwrap_or(u64::MAX), BodyStream::Continuation, offset, piece)?;
        }
        Ok(())
    }

    fn frame(&mut self, kind: Kind, flags: u8, plain: &[u8]) -> Result<(), CannotRecord> {
        let compressed = self.compressed(plain);
        let content = compressed.as_deref().unwrap_or(plain);
        let sealed = kind.is_sealed();
        let tag = if sealed { TAG_BYTES } else { 0 };
        let length = content.len().saturating_add(tag);
        if length > MAX_PAYLOAD {
            return Err(CannotRecord::TooLarge);
        }
        let at = (self.log.clock().mono_ns(), self.log.clock().wall_us());
        let header = Header {
            kind,
            flags: flags | if compressed.is_some() { FLAG_ZSTD } else { 0 } | if sealed { FLAG_SEALED } else { 0 },
            log_number: 0,
            session: *self.id.as_bytes(),
            number: self.number,
            mono_ns: at.0,
            wall_us: at.1,
            previous: [0; 32],
        };
        let shared = Arc::clone(&self.shared);
        let mut buffer = shared.lock();
        let full = buffer.bytes.len().saturating_add(length) > BUFFER_BYTES;
        if full && shared.write(&self.log, &mut buffer).is_err() {
            return shared.overflow(&mut buffer, length);
        }
        let start = buffer.bytes.len();
        let framed = frame_into(&header, content, sealed.then_some(&self.key), &mut buffer.bytes);
        if framed.is_err() {
            buffer.bytes.truncate(start);
        } else {
            self.number = self.number.saturating_add(1);
            (self.at_ns, buffer.at) = (at.0, at);
            if self.log.needs_flusher(kind) && !std::mem::replace(&mut buffer.announced, true) {
                drop(buffer);
                self.log.announce(&self.shared);
            }
        }
        framed
    }

    fn compressed(&mut self, plain: &[u8]) -> Option<Vec<u8>> {
        if plain.len() <= COMPRESS_ABOVE {
            return None;
        }
        if self.compressor.is_none() {
            self.compressor = zstd::bulk::Compressor::new(1).ok();
        }
        let packed = self.compressor.as_mut()?.compress(plain).ok()?;
        (packed.len() < plain.len()).then_some(packed)
    }
}

impl Drop for SessionRecorder {
    fn drop(&mut self) {
        self.close(Close {
            reason: "dropped".into(),
            ..Close::default()
        });
    }
}

/// Appends a frame whose place (log number, previous, checksum) is still open.
fn frame_into(
    header: &Header,
    content: &[u8],
    key: Option<&SessionKey>,
    out: &mut Vec<u8>,
) -> Result<(), CannotRecord> {
    let tag_bytes = if key.is_some() { TAG_BYTES } else { 0 };
    let length = content.len().saturating_add(tag_bytes);
    out.reserve(length.saturating_add(LENGTH_BYTES + HEADER_BYTES + CRC_BYTES));
    let start = out.len();
    frame::begin(header, length, out).map_err(|_| CannotRecord::TooLarge)?;
    out.extend_from_slice(content);
    if let Some(key) = key {
        let payload = out
            .get_mut(start.saturating_add(PREFIX_BYTES)..)
            .ok_or(CannotRecord::Encoding)?;
        let tag = key.seal(header, payload).map_err(|_| CannotRecord::Encoding)?;
        out.extend_from_slice(&tag);
    }
    out.extend_from_slice(&[0; CRC_BYTES]);
    Ok(())
}
