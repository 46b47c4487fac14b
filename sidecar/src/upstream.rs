//! The only way bytes leave for a target after login.
//!
//! [`Upstream::queue`] takes admitted frames and nothing else; nothing is written before the intents of everything
//! queued are durable by the target's class ([`Upstream::seal`]). A batch of pipelined frames is one write.
//! Invariant: on the wire there are only bytes of [`Admitted`] values, in the order they were queued.

use std::io;
use std::pin::Pin;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::admitted::Admitted;
use crate::gate::{Ledger, OpId};
use crate::record::CannotRecord;

/// The right to open an [`Admitted`]. Made here only.
pub struct Opener(());

/// A peer that takes nothing for this long is gone.
const STALLED: Duration = Duration::from_secs(60);
/// Capacity kept between batches.
const KEEP: usize = 64 * 1024;

/// Why a batch did not leave.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It could not be recorded, so nothing was sent.
    #[error("the operation could not be recorded")]
    CannotRecord(#[source] CannotRecord),
    /// The connection broke or stalled.
    #[error("the connection to the target broke")]
    Io(#[source] io::Error),
}

/// Takes what was written out of a buffer. An emptied one is filled from its front again: those bytes are still near.
pub(crate) fn drop_written(buffer: &mut BytesMut, written: usize) {
    if written >= buffer.len() {
        buffer.clear();
    } else {
        buffer.advance(written);
    }
}

/// An authenticated connection to a target.
pub struct Upstream<S> {
    stream: S,
    queued: BytesMut,
    /// Among them are bytes whose operation must be recorded first.
    operations: bool,
    sealed: BytesMut,
    /// Written, and perhaps still in a buffer of TLS.
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Upstream<S> {
    /// Takes over a connection whose login is complete.
    pub fn after_login(stream: S) -> Self {
        Upstream {
            stream,
            queued: BytesMut::new(),
            operations: false,
            sealed: BytesMut::new(),
            unflushed: false,
        }
    }

    /// Queues admitted bytes behind everything queued before.
    pub fn queue<F: Into<Bytes>>(&mut self, admitted: Admitted<F>) {
        self.operations |= admitted.op() != OpId::default();
        let bytes: Bytes = admitted.open(Opener(())).into();
        self.queued.extend_from_slice(&bytes);
    }

    /// Whether anything waits to be sealed or written.
    pub fn has_unsent(&self) -> bool {
        !self.queued.is_empty() || !self.sealed.is_empty() || self.unflushed
    }

    /// Bytes that wait to be sealed or written.
    pub fn unsent(&self) -> usize {
        self.queued.len().saturating_add(self.sealed.len())
    }

    /// Throws away what was queued and not sealed: used when it cannot be recorded.
    pub fn discard(&mut self) {
        self.queued.clear();
        self.operations = false;
    }

    /// Makes the intents of everything queued durable by class; only then may it be written.
    pub fn seal(&mut self, recorder: &mut Ledger) -> Result<(), CannotRecord> {
        if self.queued.is_empty() {
            return Ok(());
        }
        recorder.commit()?;
        self.move_queued();
        Ok(())
    }

    /// The same, together with the other sessions of this lane. Nothing may be queued until it is ready.
    pub fn poll_seal(&mut self, recorder: &mut Ledger, cx: &mut Context<'_>) -> Poll<Result<(), CannotRecord>> {
        if self.queued.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(recorder.poll_commit(cx))?;
        self.move_queued();
        Poll::Ready(Ok(()))
    }

    /// Lets bytes go that ask for nothing and so need no record: what takes the place of messages that could not be
    /// recorded. Anything else is refused.
    pub fn seal_passive(&mut self) -> Result<(), CannotRecord> {
        if self.operations {
            return Err(CannotRecord::Closed);
        }
        self.move_queued();
        Ok(())
    }

    fn move_queued(&mut self) {
        if self.sealed.is_empty() {
            std::mem::swap(&mut self.queued, &mut self.sealed);
        } else {
            self.sealed.extend_from_slice(&self.queued);
        }
        self.queued.clear();
        self.operations = false;
    }

    /// Writes sealed bytes as far as the target takes them. Ready once all are written.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.sealed) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    drop_written(&mut self.sealed, written);
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.sealed.capacity() > KEEP {
            self.sealed = BytesMut::new();
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.unflushed = false;
        }
        flushed
    }

    /// Seals, then writes everything, within a minute.
    pub async fn flush(&mut self, recorder: &mut Ledger) -> Result<(), SendError> {
        std::future::poll_fn(|cx| self.poll_seal(recorder, cx))
            .await
            .map_err(SendError::CannotRecord)?;
        self.send().await.map_err(SendError::Io)
    }

    /// Writes everything sealed, within a minute.
    pub async fn send(&mut self) -> io::Result<()> {
        let sent = std::future::poll_fn(|cx| self.poll_send(cx));
        match tokio::time::timeout(STALLED, sent).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Reads what the target says.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }

    /// Tells the target that nothing more comes.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Tells the target that nothing more comes, and does not wait long for it.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        let closed = std::future::poll_fn(|cx| self.poll_shutdown(cx));
        tokio::time::timeout(Duration::from_secs(2), closed)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Upstream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}
