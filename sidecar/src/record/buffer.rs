//! What a session has recorded and not yet written: shared by its task, the batch of its lane and the flusher.
//!
//! Refused: more than the journal takes, for class `Journal`; `BestEffort` drops and counts. Whoever has the lock writes;
//! nobody else may come between what a session adds and where it stands.
//! Invariant: bytes leave the buffer when they are in the journal, and not before.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::log::Log;
use super::segment::Part;
use super::CannotRecord;

/// One session's buffer.
pub(super) struct Shared {
    pub slot: usize,
    pub best_effort: bool,
    buffer: Mutex<Buffer>,
}

#[derive(Default)]
pub(super) struct Buffer {
    pub bytes: Vec<u8>,
    /// When the last frame was added: monotonic ns and wall µs.
    pub at: (u64, u64),
    /// The flusher knows of what waits here.
    pub announced: bool,
    /// The session wrote since the flusher looked: it is at work, and takes along what waits.
    pub moved: bool,
    pub closed: bool,
    /// The slot was given back, and may be another session's by now.
    left: bool,
    /// The session sleeps until its lane's batch is written.
    pub joined: bool,
    /// The batch could not be written, and the session was not told yet.
    pub failed: Option<CannotRecord>,
    lost_events: u64,
    lost_bytes: u64,
}

impl Buffer {
    /// What waits here, on its way to the log.
    pub fn part(&mut self, slot: usize) -> Part<'_> {
        Part {
            slot,
            bytes: &mut self.bytes,
            at: self.at,
        }
    }

    /// The journal takes bytes again: it is told what it missed.
    pub fn written(&mut self, log: &Log) {
        if self.lost_events > 0 {
            log.lost(self.lost_events, self.lost_bytes);
            (self.lost_events, self.lost_bytes) = (0, 0);
        }
    }
}

impl Shared {
    pub fn new(slot: usize, best_effort: bool) -> Shared {
        Shared {
            slot,
            best_effort,
            buffer: Mutex::default(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits. `None`: nothing did.
    pub fn flush(&self, log: &Log) -> Result<Option<u64>, CannotRecord> {
        self.write(log, &mut self.lock())
    }

    /// The same for the flusher, which has to be told again of what comes later. Nobody else resets that: operations
    /// that follow each other would tell it of each outcome.
    /// False: the session is at work and takes along what waits; it has to be looked at again.
    pub fn flush_announced(&self, log: &Log) -> Result<bool, CannotRecord> {
        let mut buffer = self.lock();
        if std::mem::take(&mut buffer.moved) {
            return Ok(false);
        }
        self.write(log, &mut buffer)?;
        buffer.announced = false;
        Ok(true)
    }

    /// Writes what waits for the session itself, which goes on only then.
    pub fn commit(&self, log: &Log) -> Result<(), CannotRecord> {
        let mut buffer = self.lock();
        buffer.moved = true;
        let written = self.write(log, &mut buffer).map(drop);
        self.verdict(written)
    }

    /// What a session may do after such a write: `BestEffort` goes on whatever came of it.
    pub fn verdict(&self, written: Result<(), CannotRecord>) -> Result<(), CannotRecord> {
        if self.best_effort {
            Ok(())
        } else {
            written
        }
    }

    /// The journal does not take what waits. `BestEffort` drops and counts; `Journal` refuses.
    pub fn overflow(&self, buffer: &mut Buffer, length: usize) -> Result<(), CannotRecord> {
        if !self.best_effort {
            return Err(CannotRecord::Disk(std::io::ErrorKind::StorageFull));
        }
        buffer.lost_events = buffer.lost_events.saturating_add(1);
        buffer.lost_bytes = buffer.lost_bytes.saturating_add(length as u64);
        Ok(())
    }

    /// Whether the session's slot may be given back: its `close` is written. True once only.
    pub fn leave(&self) -> bool {
        let mut buffer = self.lock();
        !std::mem::replace(&mut buffer.left, true)
    }

    /// Whether the session wrote its `close`.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub fn write(&self, log: &Log, buffer: &mut Buffer) -> Result<Option<u64>, CannotRecord> {
        if buffer.bytes.is_empty() {
            return Ok(None);
        }
        let last = log.append(&mut [buffer.part(self.slot)])?;
        buffer.written(log);
        Ok(Some(last))
    }
}
