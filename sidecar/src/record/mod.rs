//! The recorder: every session's events in one append-only log per sidecar start, and their way to the collector.
//!
//! Owns the journal volume, the record key and its ratchet, the upload stream and the rules that stop work which
//! cannot be recorded. A room sees one [`SessionRecorder`] per session and nothing else.
//! Refuses: to let an operation of class `Journal` pass unrecorded ([`CannotRecord`]); payloads that fit no frame.
//! Invariant: frames reach the journal in the order of their log numbers, and nothing is acknowledged to a room
//! before the kernel has its bytes.

mod batch;
mod body;
mod buffer;
mod clock;
mod event;
mod journal;
mod log;
mod random;
mod recover;
mod segment;
mod session;
mod upload;

pub use batch::on_this_thread as batch_on_this_thread;
pub use body::Digesting;
pub use clock::{Clock, SystemClock};
pub use event::{Event, Members};
pub use journal::{DirectoryVolume, SegmentFile, Volume};
pub use log::{Log, LogIdentity, LogOptions, RecordStatus, StartError};
pub use random::{Random, SystemRandom};
pub use session::SessionRecorder;
pub use upload::{RecordSink, RecordStream, SinkError};

pub use sidegate_policies::record::{payload, Kind};

/// Why something could not be recorded. For an agent this is always `Reason::CannotRecord`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotRecord {
    /// The collector has not acknowledged in time.
    #[error("the record collector does not answer")]
    CollectorSilent,
    /// Too much waits for the collector.
    #[error("the record spool is full")]
    SpoolFull,
    /// The journal could not be written.
    #[error("the record journal cannot be written: {0}")]
    Disk(std::io::ErrorKind),
    /// One event is larger than a record may be.
    #[error("the event is too large to be recorded")]
    TooLarge,
    /// The session's record was closed already.
    #[error("the session's record is closed")]
    Closed,
    /// A payload could not be encoded or sealed.
    #[error("the event could not be encoded")]
    Encoding,
}
