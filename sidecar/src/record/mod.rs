//! The recorder of a session, as the rest of the sidecar sees it.
//!
//! Events go into a session buffer without a system call; [`SessionRecorder::commit`] makes everything buffered
//! durable by the target's class. Refuses to let work pass that cannot be recorded.

use serde::Serialize;

pub use sidegate_policies::record::Kind;

/// Why an operation may not be forwarded.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the record cannot be written")]
pub struct CannotRecord;

/// One session's recorder.
pub struct SessionRecorder {
    _private: (),
}

impl SessionRecorder {
    /// Buffers one event.
    pub fn event(&mut self, _kind: Kind, _op: Option<u64>, _payload: &impl Serialize) -> Result<(), CannotRecord> {
        Err(CannotRecord)
    }

    /// Makes everything buffered durable by the target's class.
    pub fn commit(&mut self) -> Result<(), CannotRecord> {
        Err(CannotRecord)
    }

    /// Bytes of an answer, after masking.
    pub fn body(&mut self, _op: u64, _masked: &[u8]) {}

    /// Whether a new operation may be forwarded at all.
    pub fn ready(&self) -> Result<(), CannotRecord> {
        Err(CannotRecord)
    }

    /// Completes once the collector has acknowledged the session's `open` frame.
    pub async fn opened(&mut self) -> Result<(), CannotRecord> {
        Err(CannotRecord)
    }
}
