//! From the journal to the collector: one stream for the running log, one for each earlier log.
//!
//! Frames are read back from the files, so nothing is queued in memory and an outage of any length drains in
//! order. After a lost stream everything not acknowledged is sent again; the collector drops what it has. A
//! refusal by the collector counts as its loss and moves a counter that must stay 0. Pauses grow until it takes more.
//! Invariant: files are removed only once the collector said they are stored.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use sidegate_policies::record::frame::{Frame, FrameError, Hash, OVERHEAD};
use sidegate_policies::record::{stream, Kind};
use sidegate_policies::wire::RecordAck;
use tokio::sync::mpsc;
use tokio::time::{timeout, Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::log::Log;
use super::recover::{self, EarlierLog};
use super::segment::Piece;

/// Most bytes read and sent in one piece; a single frame may exceed it.
const CHUNK: usize = 256 << 10;
/// Largest frame with its surroundings.
const FRAME: usize = (1 << 20) + 64;
/// Frames of running operations are sent at least this often.
const SEND_EVERY: Duration = Duration::from_millis(200);
/// A heartbeat states where the log stands.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Deadline of one attempt to connect, send or certify.
const ATTEMPT: Duration = Duration::from_secs(10);
/// After the last seal, what is left has this long.
const FAREWELL: Duration = Duration::from_secs(3);
const BACK_OFF: [u64; 6] = [100, 250, 500, 1000, 2000, 5000];

/// The collector could not be reached, or broke off.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the record collector cannot be reached: {0}")]
pub struct SinkError(pub String);

/// An open upload stream.
pub struct RecordStream {
    /// Chunks of the request body. Dropping it ends the body.
    pub up: mpsc::Sender<Bytes>,
    /// Acknowledgements; closed when the stream is lost.
    pub down: mpsc::Receiver<RecordAck>,
}

/// The way to the broker's collector; the broker client implements it.
pub trait RecordSink: Send + Sync + 'static {
    /// Has the broker certify a record key (`POST /v1/record-keys`).
    fn certify(&self, public_key: [u8; 32]) -> BoxFuture<'_, Result<String, SinkError>>;
    /// Opens a stream (`POST /v1/records`).
    fn connect(&self) -> BoxFuture<'_, Result<RecordStream, SinkError>>;
}

/// The first attempt at a certificate; answers when to ask again, or nothing if it failed.
pub(super) async fn certify_first(log: &Log, sink: &dyn RecordSink, cancel: &CancellationToken) -> Option<Duration> {
    tokio::select! {
        // Once the last segment is sealed, no certificate may follow it.
        biased;
        () = cancel.cancelled() => None,
        again = certify_once(log, sink) => again,
    }
}

/// Keeps the record key certified: soon after a failure, and again at half of each certificate's life.
pub(super) async fn certify(
    log: &Log,
    sink: &dyn RecordSink,
    cancel: &CancellationToken,
    mut answer: Option<Duration>,
) {
    let mut attempt = 0usize;
    loop {
        let wait = match answer {
            Some(again) => {
                attempt = 0;
                again
            }
            None => back_off(&mut attempt),
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        answer = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            answer = certify_once(log, sink) => answer,
        };
    }
}

async fn certify_once(log: &Log, sink: &dyn RecordSink) -> Option<Duration> {
    let key = log.public_key();
    let certificate = timeout(ATTEMPT, sink.certify(key)).await.ok()?;
    let certificate = certificate
        .inspect_err(|error| tracing::debug!(%error, "the record key is not certified yet"))
        .ok()?;
    let again = half_life(&certificate, log.clock().wall_us());
    match log.certified(&key, certificate) {
        Ok(true) => Some(again),
        Ok(false) => Some(Duration::ZERO),
        Err(error) => {
            tracing::error!(%error, "the certificate could not be recorded");
            None
        }
    }
}

/// Half of the time until `exp`, at least a minute.
fn half_life(certificate: &str, now_us: u64) -> Duration {
    let claims = certificate
        .split('.')
        .nth(1)
        .and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok())
        .and_then(|claims| serde_json::from_slice::<serde_json::Value>(&claims).ok());
    let expires = claims
        .as_ref()
        .and_then(|claims| claims.get("exp"))
        .and_then(serde_json::Value::as_u64)
        .unwrap_or(0);
    let left = expires.saturating_sub(now_us / 1_000_000);
    Duration::from_secs((left / 2).clamp(60, 12 * 3600))
}

/// What one stream uploads.
struct Source<'a> {
    log: &'a Log,
    earlier: Option<&'a EarlierLog>,
    /// Next log number to send.
    next: u64,
    /// Offset of `next` in its file, once known.
    place: Option<(String, u64)>,
    /// `open` frames whose key was sent and is not acknowledged.
    keys: VecDeque<(u64, Uuid)>,
    /// Frames of running operations wait until then, so that many share one chunk.
    soon: Option<Instant>,
    /// Where the collector said it stands, when it refused.
    resume: Option<u64>,
    /// When the present stream was opened: one that lasts makes earlier failures old.
    since: Instant,
    /// Most that the collector ever said it holds.
    reached: u64,
}

/// Uploads the running log until it is finished and acknowledged.
pub(super) async fn current(log: &Log, sink: &dyn RecordSink, cancel: &CancellationToken) {
    let mut source = Source {
        log,
        earlier: None,
        next: 0,
        place: None,
        keys: VecDeque::new(),
        soon: None,
        resume: None,
        since: Instant::now(),
        reached: 0,
    };
    let mut attempt = 0usize;
    let work = async {
        loop {
            match run_stream(&mut source, sink, &mut attempt).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "the record stream was lost"),
            }
            log.connected.store(false, Ordering::Relaxed);
            tokio::time::sleep(back_off(&mut attempt)).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = async { cancel.cancelled().await; tokio::time::sleep(FAREWELL).await } => {
            tracing::warn!("the last records are left in the journal for the next start");
        }
    }
    log.connected.store(false, Ordering::Relaxed);
}

/// Uploads the logs of earlier starts, oldest first, and removes each once it is stored.
pub(super) async fn earlier(log: &Log, sink: &dyn RecordSink, cancel: &CancellationToken) {
    let logs = std::mem::take(&mut *log.earlier.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    for old in &logs {
        let mut source = Source {
            log,
            earlier: Some(old),
            next: old.pieces.first().map_or(0, |piece| piece.first),
            place: None,
            keys: VecDeque::new(),
            soon: None,
            resume: None,
            since: Instant::now(),
            reached: 0,
        };
        let mut attempt = 0usize;
        loop {
            let done = tokio::select! {
                () = cancel.cancelled() => return,
                done = run_stream(&mut source, sink, &mut attempt) => done,
            };
            match done {
                Ok(()) => break,
                Err(error) => tracing::debug!(%error, "the record stream of an earlier log was lost"),
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(back_off(&mut attempt)) => {}
            }
        }
        recover::remove(log.volume.as_ref(), old);
        log.release(old.bytes());
    }
}

async fn run_stream(source: &mut Source<'_>, sink: &dyn RecordSink, attempt: &mut usize) -> Result<(), SinkError> {
    let mut stream = timeout(ATTEMPT, sink.connect()).await.map_err(|_| silent())??;
    source.rewind();
    let mut hello = Vec::new();
    let (instance, boot) = source.identity();
    stream::announce(instance, &boot, &mut hello);
    send(&stream, hello).await?;
    let mut beat = Instant::now();
    let mut ended = false;
    loop {
        while let Some(chunk) = source.read()? {
            send(&stream, chunk).await?;
            source.drain(&mut stream, attempt)?;
        }
        if source.is_whole() && !ended {
            ended = true;
            send(&stream, source.end()).await?;
        }
        if Instant::now() >= beat {
            send(&stream, source.heartbeat()).await?;
            beat = Instant::now().checked_add(HEARTBEAT).unwrap_or(beat);
        }
        if source.wait(&mut stream, beat, attempt).await? && ended {
            return Ok(());
        }
    }
}

impl Source<'_> {
    fn identity(&self) -> (u64, Hash) {
        match self.earlier {
            Some(old) => (old.instance, old.boot),
            None => (self.log.identity.instance, self.log.boot()),
        }
    }

    /// After a lost stream: back to the first frame that is not acknowledged.
    fn rewind(&mut self) {
        if self.earlier.is_none() {
            let received = self.log.status().received;
            self.next = self.resume.take().map_or(received, |resume| resume.min(received));
        } else if let Some(first) = self.earlier.and_then(|old| old.pieces.first()) {
            self.next = first.first;
        }
        self.place = None;
        self.keys.clear();
        self.since = Instant::now();
    }

    fn pieces(&self) -> (String, Vec<Piece>, u64, Hash) {
        match self.earlier {
            None => self.log.pieces_from(self.next),
            Some(old) => {
                let pieces = old.pieces.iter().filter(|piece| piece.end > Some(self.next));
                (old.name.clone(), pieces.cloned().collect(), old.next, old.head)
            }
        }
    }

    /// The next chunk, or `None` when everything written was read.
    fn read(&mut self) -> Result<Option<Vec<u8>>, SinkError> {
        let (log, pieces, next, _) = self.pieces();
        if self.next >= next {
            return Ok(None);
        }
        let piece = pieces
            .first()
            .ok_or_else(|| SinkError("a journal file is gone".into()))?;
        let from = match &self.place {
            Some((file, at)) if *file == piece.file => *at,
            _ => 0,
        };
        let length = usize::try_from(piece.len.saturating_sub(from)).unwrap_or(FRAME);
        let read = |most: usize| {
            let read = self.log.volume.read(&log, &piece.file, from, length.min(most));
            read.map_err(|error| SinkError(format!("the journal cannot be read: {error}")))
        };
        let mut bytes = read(CHUNK)?;
        if bytes.len() == CHUNK && matches!(Frame::parse(&bytes), Err(FrameError::Incomplete)) {
            bytes = read(FRAME)?;
        }
        let (out, used) = self.items(&bytes)?;
        self.place = Some((piece.file.clone(), from.saturating_add(used as u64)));
        Ok(Some(out))
    }

    /// Whole frames of `bytes` as stream items, with keys before their `open`.
    fn items(&mut self, bytes: &[u8]) -> Result<(Vec<u8>, usize), SinkError> {
        // A byte before each frame, and keys: it is copied and cleared once, and not again because it grew.
        let around = (bytes.len() / OVERHEAD).saturating_add(1024);
        let mut out = Vec::with_capacity(bytes.len().min(CHUNK).saturating_add(around));
        let mut used = 0usize;
        while out.len() < CHUNK {
            let left = bytes.get(used..).unwrap_or_default();
            if left.is_empty() {
                break;
            }
            let frame = match Frame::parse(left) {
                Ok(frame) => frame,
                Err(_) if used > 0 => break,
                Err(error) => return Err(SinkError(format!("the journal holds a bad frame: {error}"))),
            };
            used = used.saturating_add(frame.bytes.len());
            if frame.header.log_number < self.next {
                continue;
            }
            if frame.header.kind == Kind::Open {
                self.hand_over(&frame, &mut out);
            }
            stream::frame(frame.bytes, &mut out);
            self.next = frame.header.log_number.saturating_add(1);
        }
        Ok((out, used))
    }

    fn hand_over(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) {
        let session = Uuid::from_bytes(frame.header.session);
        if let Some(key) = self.log.key_of(session) {
            stream::session_key(&frame.header.session, &key, out);
            self.keys.push_back((frame.header.log_number, session));
        }
    }

    fn is_whole(&self) -> bool {
        self.earlier.is_some() || (self.log.finished.load(Ordering::Acquire) && self.next >= self.pieces().2)
    }

    fn end(&self) -> Vec<u8> {
        let (_, _, next, head) = self.pieces();
        let mut out = Vec::new();
        stream::end(next.saturating_sub(1), &head, &mut out);
        out
    }

    fn heartbeat(&self) -> Vec<u8> {
        let (_, _, next, head) = self.pieces();
        let mut out = Vec::new();
        stream::heartbeat(next.saturating_sub(1), &head, &mut out);
        out
    }

    fn drain(&mut self, stream: &mut RecordStream, attempt: &mut usize) -> Result<(), SinkError> {
        while let Ok(ack) = stream.down.try_recv() {
            self.take(ack, attempt)?;
        }
        Ok(())
    }

    /// Waits for an acknowledgement, new frames or the next heartbeat. True: everything is stored.
    async fn wait(&mut self, stream: &mut RecordStream, beat: Instant, attempt: &mut usize) -> Result<bool, SinkError> {
        loop {
            let until = self.soon.map_or(beat, |soon| soon.min(beat));
            tokio::select! {
                biased;
                ack = stream.down.recv() => {
                    if self.take(ack.ok_or_else(silent)?, attempt)? {
                        return Ok(true);
                    }
                }
                () = self.log.upload.notified(), if self.earlier.is_none() => break,
                () = self.log.upload_soon.notified(), if self.earlier.is_none() && self.soon.is_none() => {
                    self.soon = Instant::now().checked_add(SEND_EVERY);
                }
                () = tokio::time::sleep_until(until) => break,
            }
        }
        self.soon = None;
        Ok(false)
    }

    fn take(&mut self, ack: RecordAck, attempt: &mut usize) -> Result<bool, SinkError> {
        match ack {
            RecordAck::Received { upto } => {
                self.received(upto.saturating_add(1), attempt);
                Ok(false)
            }
            RecordAck::Stored { upto } => {
                let next = upto.saturating_add(1);
                self.received(next, attempt);
                if self.earlier.is_none() {
                    self.log.stored(next);
                }
                Ok(next >= self.pieces().2)
            }
            RecordAck::Refused { upto, message } => {
                self.log.refused.fetch_add(1, Ordering::Relaxed);
                tracing::error!(upto, message, "the collector refused a record");
                self.resume = Some(upto.wrapping_add(1));
                Err(SinkError(message))
            }
        }
    }

    fn received(&mut self, next: u64, attempt: &mut usize) {
        // A collector that greets and then refuses gets nowhere: it is asked less and less often.
        if next > self.reached || self.since.elapsed() >= HEARTBEAT {
            *attempt = 0;
        }
        self.reached = self.reached.max(next);
        while self.keys.front().is_some_and(|(number, _)| *number < next) {
            if let Some((_, session)) = self.keys.pop_front() {
                self.log.forget_key(session);
            }
        }
        if self.earlier.is_none() {
            self.log.connected.store(true, Ordering::Relaxed);
            self.log.acknowledged(next);
        }
    }
}

async fn send(stream: &RecordStream, bytes: Vec<u8>) -> Result<(), SinkError> {
    match timeout(ATTEMPT, stream.up.send(bytes.into())).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(silent()),
    }
}

fn silent() -> SinkError {
    SinkError("it does not answer".into())
}

/// The next pause, with jitter of a quarter either way.
fn back_off(attempt: &mut usize) -> Duration {
    let base = BACK_OFF.get(*attempt).or(BACK_OFF.last()).copied().unwrap_or(1000);
    *attempt = attempt.saturating_add(1);
    let mut random = [0u8; 1];
    let _ = aws_lc_rs::rand::fill(&mut random);
    let jitter = u64::from(random.first().copied().unwrap_or(0)).saturating_mul(base >> 9);
    Duration::from_millis((base / 4).saturating_mul(3).saturating_add(jitter))
}
