//! The session's record as the gate and its room write it; before there is a log, every write is refused.
//!
//! A sidecar has no log until the broker attested it. Connections that come earlier are refused in their protocol's
//! own words, and cannot be recorded; nothing else passes without a record.

use std::sync::Arc;
use std::task::{Context, Poll};

use serde::Serialize;
use sidegate_policies::record::payload;
use sidegate_policies::record::Kind;

use crate::record::{CannotRecord, Digesting, Event, Log, SessionRecorder};
use crate::session::Session;

/// A session's record, once it has begun.
#[derive(Default)]
pub struct Ledger(Option<SessionRecorder>);

impl Ledger {
    /// Begins the record with its `open`.
    pub(super) fn begin(
        &mut self,
        log: Option<Arc<Log>>,
        session: &Session,
        open: &payload::Open<'_>,
    ) -> Result<(), CannotRecord> {
        let log = log.ok_or(CannotRecord::CollectorSilent)?;
        self.0 = Some(log.open(session.id, session.target.spec.recording, open)?);
        Ok(())
    }

    fn begun(&mut self) -> Result<&mut SessionRecorder, CannotRecord> {
        self.0.as_mut().ok_or(CannotRecord::Closed)
    }

    /// Buffers one event; no system call.
    pub fn event(&mut self, kind: Kind, op: Option<u64>, payload: &impl Serialize) -> Result<(), CannotRecord> {
        self.begun()?.event(kind, op, payload)
    }

    /// The same for an event that is not one payload.
    pub(super) fn write(
        &mut self,
        kind: Kind,
        op: Option<u64>,
        fill: impl FnOnce(&mut Event<'_>),
    ) -> Result<(), CannotRecord> {
        self.begun()?.write(kind, op, fill)
    }

    /// The outcome of an operation, with what is kept of its reply.
    pub(super) fn outcome(&mut self, op: u64, outcome: payload::Outcome<'_>) -> Result<(), CannotRecord> {
        self.begun()?.outcome(op, outcome)
    }

    /// Makes everything buffered durable by the target's class.
    pub fn commit(&mut self) -> Result<(), CannotRecord> {
        self.begun()?.commit()
    }

    /// The same, in one write with the other sessions of this lane that commit in the same round.
    pub fn poll_commit(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CannotRecord>> {
        self.begun()?.poll_commit(cx)
    }

    /// Whether anything of replies is kept, besides how much they were.
    pub fn keeps_content(&self) -> bool {
        self.0.as_ref().is_some_and(SessionRecorder::keeps_content)
    }

    /// Bytes of an operation's reply, after masking.
    pub fn body(&mut self, op: u64, masked: &[u8]) {
        if let Some(recorder) = &mut self.0 {
            recorder.body(op, masked);
        }
    }

    /// Bytes from the agent that belong to an operation (COPY data, raw TCP), as they are sent.
    pub fn request_bytes(&mut self, op: u64, offset: u64, bytes: &[u8]) -> Result<(), CannotRecord> {
        self.begun()?.request_bytes(op, offset, bytes)
    }

    /// A keyed digest of content that comes in pieces.
    pub fn digesting(&self) -> Option<Digesting> {
        self.0.as_ref().map(SessionRecorder::digesting)
    }

    /// Keyed digest of content, hex.
    pub fn digest(&self, bytes: &[u8]) -> Option<String> {
        self.0.as_ref().map(|recorder| recorder.digest(bytes))
    }

    /// When the last event was added, nanoseconds of the record's clock.
    pub(super) fn at_ns(&self) -> u64 {
        self.0.as_ref().map(SessionRecorder::at_ns).unwrap_or_default()
    }

    /// Nanoseconds that have passed since then.
    pub(super) fn since_ns(&self, at_ns: u64) -> u64 {
        self.0
            .as_ref()
            .map(|recorder| recorder.since_ns(at_ns))
            .unwrap_or_default()
    }

    /// Whether a new operation may be forwarded at all.
    pub fn ready(&self) -> Result<(), CannotRecord> {
        self.0.as_ref().ok_or(CannotRecord::Closed)?.ready()
    }

    /// Completes once the collector acknowledged the session's `open`; 5 s at most.
    pub async fn opened(&self) -> Result<(), CannotRecord> {
        self.0.as_ref().ok_or(CannotRecord::Closed)?.opened().await
    }

    pub(super) fn close(&mut self, close: payload::Close<'_>) {
        if let Some(recorder) = &mut self.0 {
            recorder.close(close);
        }
    }
}
