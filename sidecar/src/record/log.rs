//! One log per sidecar start: shared by all sessions, kept by one background task.
//!
//! Appends are synchronous under a mutex that is held for encode, hash and one write, so the hot path hops to no
//! task. The background task flushes what waits, seals segments that are due, keeps the certificate and uploads.
//! Refuses new sessions and operations when the collector, the spool or the disk says so.
//! Invariant: `next`, heads and files move together, or not at all.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::signature::Ed25519KeyPair;
use serde::Serialize;
use sidegate_policies::api::target::{Durability, Recording};
use sidegate_policies::record::footer;
use sidegate_policies::record::frame::{self, hex, Hash, Header};
use sidegate_policies::record::payload::{Boot, Cert, Lossy, Open};
use sidegate_policies::record::Kind;
use tokio::sync::{watch, Notify};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::buffer::Shared;
use super::clock::Clock;
use super::journal::Volume;
use super::random::{self, Random};
use super::recover::{self, EarlierLog};
use super::segment::{Part, Piece, State};
use super::session::SessionRecorder;
use super::upload::{self, RecordSink};
use super::CannotRecord;

/// Unacknowledged records may be this old before operations of class `Journal` are refused.
const MAX_LAG_NS: u64 = 5_000_000_000;
/// Everything that waits for the collector, at most.
const SPOOL_BYTES: u64 = 256 << 20;
/// How often the flusher looks. Outcomes wait for a commit to ride on, for twice as long at most.
const FLUSH_AFTER: Duration = Duration::from_millis(25);
/// A sealing check per second is cheap and keeps segments within 11 s.
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);
/// Spacing and number of lag marks.
const MARK_EVERY_NS: u64 = 250_000_000;
const MARKS: usize = 4096;

/// Who writes the log, as the broker attested it.
#[derive(Debug, Clone, Default)]
pub struct LogIdentity {
    /// Cluster.
    pub cluster: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Pod name.
    pub pod: String,
    /// Pod UID.
    pub pod_uid: String,
    /// Container instance.
    pub instance: u64,
    /// Sidegate's release.
    pub release: String,
    /// `pod`, `user` or `none`.
    pub separation: String,
}

/// What a log needs.
#[derive(Clone)]
pub struct LogOptions {
    /// Where it is written.
    pub volume: Arc<dyn Volume>,
    /// Who writes it.
    pub identity: LogIdentity,
    /// Clocks.
    pub clock: Arc<dyn Clock>,
    /// Source of keys and nonces.
    pub random: Arc<dyn Random>,
}

/// Why no log could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal volume failed.
    #[error("the journal volume cannot be used: {0}")]
    Volume(#[from] std::io::Error),
    /// The first frames could not be written.
    #[error("the log cannot be begun: {0}")]
    Begin(#[from] CannotRecord),
    /// No key could be made.
    #[error("no record key could be made")]
    Key,
}

/// Where recording stands, for status and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordStatus {
    /// The upload stream is up.
    pub connected: bool,
    /// Frames written.
    pub written: u64,
    /// Frames the collector holds.
    pub received: u64,
    /// Bytes that wait for the collector.
    pub spool_bytes: u64,
    /// Refusals by the collector: must stay 0.
    pub refused: u64,
    /// Events lost by `BestEffort` sessions.
    pub lost: u64,
    /// Why the journal cannot be written, if it cannot.
    pub failing: Option<String>,
}

/// The log. See the module.
pub struct Log {
    pub(super) identity: LogIdentity,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    pub(super) volume: Arc<dyn Volume>,
    state: Mutex<State>,
    dirty: Mutex<Vec<Arc<Shared>>>,
    keys: Mutex<HashMap<Uuid, Zeroizing<[u8; 32]>>>,
    marks: Mutex<VecDeque<(u64, u64)>>,
    oldest_unacked_ns: AtomicU64,
    last_mark_ns: AtomicU64,
    /// Next log number the collector waits for: everything below is received.
    received: watch::Sender<u64>,
    spool: AtomicU64,
    pub(super) connected: AtomicBool,
    pub(super) refused: AtomicU64,
    lost: AtomicU64,
    flush: Notify,
    pub(super) upload: Notify,
    pub(super) upload_soon: Notify,
    pub(super) earlier: Mutex<Vec<EarlierLog>>,
    pub(super) finished: AtomicBool,
}

impl Log {
    /// Begins a log: `boot`, then one `recovered` frame for each earlier log found on the volume.
    pub fn start(options: LogOptions) -> Result<Arc<Log>, StartError> {
        let earlier = recover::scan(options.volume.as_ref())?;
        let random = Arc::clone(&options.random);
        let key = random::record_key(random.as_ref()).map_err(|_| StartError::Key)?;
        let (mono, wall) = (options.clock.mono_ns(), options.clock.wall_us());
        let payload = boot_payload(&options.identity, &key, random.as_ref())?;
        let boot = boot_hash(&payload, mono, wall)?;
        let name = recover::log_name(options.identity.instance, &boot);
        options.volume.create_log(&name)?;
        let mut state = State::new(Arc::clone(&options.volume), random, name, boot, key);
        state.append_own(Kind::Boot, &payload, mono, wall)?;
        for log in &earlier {
            let payload = encode(&log.recovered())?;
            state.append_own(Kind::Recovered, &payload, mono, wall)?;
        }
        Ok(Arc::new(Log {
            identity: options.identity,
            clock: options.clock,
            random: options.random,
            volume: options.volume,
            spool: AtomicU64::new(earlier.iter().map(EarlierLog::bytes).sum()),
            state: Mutex::new(state),
            dirty: Mutex::default(),
            keys: Mutex::default(),
            marks: Mutex::default(),
            oldest_unacked_ns: AtomicU64::new(u64::MAX),
            last_mark_ns: AtomicU64::new(0),
            received: watch::Sender::new(0),
            connected: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            flush: Notify::new(),
            upload: Notify::new(),
            upload_soon: Notify::new(),
            earlier: Mutex::new(earlier),
            finished: AtomicBool::new(false),
        }))
    }

    /// Begins a session's record and writes its `open`.
    pub fn open(
        self: &Arc<Self>,
        session: Uuid,
        recording: Recording,
        open: &Open<'_>,
    ) -> Result<SessionRecorder, CannotRecord> {
        let spool = self.spool.load(Ordering::Relaxed);
        if recording.durability != Durability::BestEffort {
            self.ready()?;
            if spool >= SPOOL_BYTES / 10 * 8 {
                return Err(CannotRecord::SpoolFull);
            }
        }
        let slot = self.state().enter(*session.as_bytes());
        let begun = SessionRecorder::new(Arc::clone(self), session, recording, slot);
        let mut recorder = begun.inspect_err(|_| self.state().leave(slot))?;
        recorder.begin(open)?;
        Ok(recorder)
    }

    /// Runs the log until `cancel`: flushes, seals, certifies, uploads. After `cancel`, which must come when all
    /// sessions have ended, it seals what is left and gives the upload 3 s.
    pub async fn run(self: Arc<Self>, sink: Arc<dyn RecordSink>, cancel: CancellationToken) {
        let upload = async {
            // The certificate comes first, so that whoever was acknowledged can be sealed too.
            let first = upload::certify_first(&self, sink.as_ref(), &cancel).await;
            tokio::join!(
                upload::certify(&self, sink.as_ref(), &cancel, first),
                upload::current(&self, sink.as_ref(), &cancel),
            )
        };
        tokio::join!(
            self.maintain(&cancel),
            upload,
            upload::earlier(&self, sink.as_ref(), &cancel),
        );
    }

    /// Where recording stands.
    pub fn status(&self) -> RecordStatus {
        let state = self.state();
        RecordStatus {
            connected: self.connected.load(Ordering::Relaxed),
            written: state.next,
            received: *self.received.borrow(),
            spool_bytes: self.spool.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            failing: state.failing.as_ref().map(ToString::to_string),
        }
    }

    /// Hash of the `boot` frame: the log's name.
    pub fn boot(&self) -> Hash {
        self.state().boot
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    pub(super) fn random(&self) -> &dyn Random {
        self.random.as_ref()
    }

    /// Appends what these sessions have, in one write: all of it, or nothing.
    pub(super) fn append(&self, parts: &mut [Part<'_>]) -> Result<u64, CannotRecord> {
        let bytes: usize = parts.iter().map(|part| part.bytes.len()).sum();
        let at = parts.last().map(|part| part.at.0).unwrap_or_default();
        let last = self.state().append(parts)?;
        self.spool.fetch_add(bytes as u64, Ordering::Relaxed);
        self.mark(last, at);
        Ok(last)
    }

    pub(super) fn ready(&self) -> Result<(), CannotRecord> {
        let oldest = self.oldest_unacked_ns.load(Ordering::Relaxed);
        if oldest != u64::MAX && self.clock.mono_ns().saturating_sub(oldest) > MAX_LAG_NS {
            return Err(CannotRecord::CollectorSilent);
        }
        if self.spool.load(Ordering::Relaxed) >= SPOOL_BYTES / 100 * 95 {
            return Err(CannotRecord::SpoolFull);
        }
        Ok(())
    }

    pub(super) async fn received(&self, number: u64, wait: Duration) -> Result<(), CannotRecord> {
        let mut received = self.received.subscribe();
        let acknowledged = received.wait_for(|next| *next > number);
        let answered = matches!(tokio::time::timeout(wait, acknowledged).await, Ok(Ok(_)));
        answered.then_some(()).ok_or(CannotRecord::CollectorSilent)
    }

    pub(super) fn hand_over(&self, session: Uuid, key: &[u8; 32]) {
        lock(&self.keys).insert(session, Zeroizing::new(*key));
    }

    pub(super) fn forget_key(&self, session: Uuid) {
        lock(&self.keys).remove(&session);
    }

    pub(super) fn key_of(&self, session: Uuid) -> Option<Zeroizing<[u8; 32]>> {
        lock(&self.keys).get(&session).cloned()
    }

    pub(super) fn upload_now(&self) {
        self.upload.notify_one();
    }

    /// Whether an event of this kind must not wait for the session's next commit for ever.
    pub(super) fn needs_flusher(&self, kind: Kind) -> bool {
        !matches!(kind, Kind::Intent | Kind::Open | Kind::Close)
    }

    pub(super) fn announce(&self, shared: &Arc<Shared>) {
        lock(&self.dirty).push(Arc::clone(shared));
        self.flush.notify_one();
    }

    pub(super) fn lost(&self, events: u64, bytes: u64) {
        self.lost.fetch_add(events, Ordering::Relaxed);
        let lossy = Lossy {
            events,
            bytes,
            why: "the journal could not be written".into(),
        };
        let (mono, wall) = (self.clock.mono_ns(), self.clock.wall_us());
        if let Ok(payload) = encode(&lossy) {
            let _ = self.state().append_own(Kind::Lossy, &payload, mono, wall);
        }
    }

    /// A session wrote its `close`. When it was the last one, the segment is sealed at once.
    pub(super) fn session_ended(&self, shared: &Arc<Shared>) {
        if shared.flush(self).is_err() {
            self.announce(shared);
            return;
        }
        if !shared.leave() {
            // The flusher knew of it too; its slot may be another session's by now.
            return;
        }
        let now = (self.clock.mono_ns(), self.clock.wall_us());
        let mut state = self.state();
        state.leave(shared.slot);
        if state.open_sessions() == 0 {
            let _ = state.seal(now.0, now.1);
        }
        drop(state);
        self.upload_now();
    }

    /// Takes a certificate for `key`; answers false when another key is current by now.
    pub(super) fn certified(&self, key: &[u8; 32], certificate: String) -> Result<bool, CannotRecord> {
        let payload = encode(&Cert { certificate })?;
        let (mono, wall) = (self.clock.mono_ns(), self.clock.wall_us());
        let mut state = self.state();
        if state.public_key() != *key {
            return Ok(false);
        }
        state.append_own(Kind::Cert, &payload, mono, wall)?;
        state.certified = true;
        drop(state);
        self.upload_now();
        Ok(true)
    }

    pub(super) fn public_key(&self) -> [u8; 32] {
        self.state().public_key()
    }

    /// The files that hold `number` and what follows, and where the log stands.
    pub(super) fn pieces_from(&self, number: u64) -> (String, Vec<Piece>, u64, Hash) {
        let state = self.state();
        let pieces = state
            .pieces
            .iter()
            .filter(|piece| piece.end.is_none_or(|end| end > number))
            .cloned()
            .collect();
        (state.log.clone(), pieces, state.next, state.head)
    }

    /// The collector holds everything below `next`.
    pub(super) fn acknowledged(&self, next: u64) {
        self.received.send_if_modified(|now| {
            let moved = next > *now;
            *now = next.max(*now);
            moved
        });
        let written = self.state().next;
        let mut marks = lock(&self.marks);
        let mut popped = None;
        while let Some((number, at)) = marks.front().copied() {
            if number >= next {
                break;
            }
            marks.pop_front();
            popped = Some(at);
        }
        if let (true, true, Some(at)) = (marks.is_empty(), next < written, popped) {
            marks.push_back((next, at));
        }
        let oldest = marks.front().map_or(u64::MAX, |(_, at)| *at);
        self.oldest_unacked_ns.store(oldest, Ordering::Relaxed);
        if marks.is_empty() {
            self.last_mark_ns.store(0, Ordering::Relaxed);
        }
    }

    /// The store holds everything below `next`: files wholly below it are removed.
    pub(super) fn stored(&self, next: u64) {
        let mut freed = Vec::new();
        let mut state = self.state();
        let log = state.log.clone();
        while state
            .pieces
            .front()
            .is_some_and(|piece| piece.end.is_some_and(|end| end <= next))
        {
            freed.extend(state.pieces.pop_front());
        }
        drop(state);
        for piece in freed {
            if self.volume.remove(&log, &piece.file).is_err() {
                tracing::warn!(file = piece.file, "a stored journal file could not be removed");
            }
            self.release(piece.len);
        }
    }

    pub(super) fn release(&self, bytes: u64) {
        let _ = self.spool.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spool| {
            Some(spool.saturating_sub(bytes))
        });
    }

    fn mark(&self, last: u64, now: u64) {
        if self.oldest_unacked_ns.load(Ordering::Relaxed) != u64::MAX
            && now.saturating_sub(self.last_mark_ns.load(Ordering::Relaxed)) < MARK_EVERY_NS
        {
            return;
        }
        self.last_mark_ns.store(now, Ordering::Relaxed);
        let mut marks = lock(&self.marks);
        if marks.len() < MARKS {
            marks.push_back((last, now));
        }
        let oldest = marks.front().map_or(u64::MAX, |(_, at)| *at);
        self.oldest_unacked_ns.store(oldest, Ordering::Relaxed);
        drop(marks);
        self.upload_soon.notify_one();
    }

    async fn maintain(&self, cancel: &CancellationToken) {
        let mut tick = tokio::time::interval(MAINTAIN_EVERY);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = self.flush.notified() => tokio::time::sleep(FLUSH_AFTER).await,
                _ = tick.tick() => {}
            }
            self.flush_waiting();
            let now = (self.clock.mono_ns(), self.clock.wall_us());
            let mut state = self.state();
            if state.seal_due(now.0) {
                let _ = state.seal(now.0, now.1);
                drop(state);
                self.upload_now();
            }
        }
        self.flush_waiting();
        let now = (self.clock.mono_ns(), self.clock.wall_us());
        if let Err(error) = self.state().seal(now.0, now.1) {
            tracing::error!(%error, "the last segment could not be sealed");
        }
        self.finished.store(true, Ordering::Release);
        self.upload_now();
    }

    fn flush_waiting(&self) {
        let waiting = std::mem::take(&mut *lock(&self.dirty));
        for shared in waiting {
            if shared.is_closed() {
                self.session_ended(&shared);
            } else {
                match shared.flush_announced(self) {
                    Ok(true) => {}
                    Ok(false) => self.announce(&shared),
                    // The next look is a second away: the disk was just asked.
                    Err(_) => lock(&self.dirty).push(shared),
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn encode(payload: &impl Serialize) -> Result<Vec<u8>, CannotRecord> {
    serde_json::to_vec(payload).map_err(|_| CannotRecord::Encoding)
}

fn boot_payload(identity: &LogIdentity, key: &Ed25519KeyPair, random: &dyn Random) -> Result<Vec<u8>, StartError> {
    let mut nonce = [0u8; 16];
    if !random.fill(&mut nonce) {
        return Err(StartError::Key);
    }
    Ok(encode(&Boot {
        format: 1,
        release: identity.release.clone(),
        cluster: identity.cluster.clone(),
        namespace: identity.namespace.clone(),
        service_account: identity.service_account.clone(),
        pod: identity.pod.clone(),
        pod_uid: identity.pod_uid.clone(),
        instance: identity.instance,
        separation: identity.separation.clone(),
        public_key: footer::encode_key(&footer::public_key(key)),
        nonce: hex(&nonce),
    })?)
}

/// The hash the `boot` frame will have: it names the log before anything is on disk.
fn boot_hash(payload: &[u8], mono_ns: u64, wall_us: u64) -> Result<Hash, StartError> {
    let header = Header::of_log(Kind::Boot, 0, 0, (mono_ns, wall_us), [0; 32]);
    frame::encode(&header, payload, &mut Vec::new()).map_err(|_| StartError::Begin(CannotRecord::TooLarge))
}
