//! One log as the collector holds it: its chain, what is not in an object yet, and its open sessions.
//!
//! Frames are checked, landed and synced before they are acknowledged as received; a footer turns what landed
//! into an object, which is what `stored` means. What comes again is compared, never rewritten.
//! Refused, with an alarm: gaps, forks, bad hashes, foreign identities, uncertified footers.
//! Invariant: `tail` is exactly the landing journal's content plus what this call has not synced yet.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use sidegate_policies::record::chain::{ChainError, LogChain};
use sidegate_policies::record::footer::Footer;
use sidegate_policies::record::frame::{hex, sha256, Frame, FrameError, Hash};
use sidegate_policies::record::layout::{self, LogPath, BROKER};
use sidegate_policies::record::payload::{Boot, Cert, Recovered};
use sidegate_policies::record::stream::{self, Item};
use sidegate_policies::record::summary::{rfc3339, Orphan, SessionSummary};
use sidegate_policies::record::tlog::{Entry, LogHead};
use sidegate_policies::record::Kind;
use sidegate_policies::wire::RecordAck;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::objects::failed;
use super::{lock, wall_us, Records, RecordsError};

/// Keys waiting for their `open` frame, at most.
const WAITING_KEYS: usize = 4096;

/// A log in the collector.
pub(super) struct LogState {
    pub path: LogPath,
    chain: LogChain,
    tail: Vec<u8>,
    tail_first: u64,
    /// Bytes of `tail` that are in the journal, synced.
    landed: usize,
    /// What a restart found in the journal behind the last good frame.
    tear: Tear,
    /// The broker writes it itself: its silence means nothing.
    own: bool,
    journal: Option<File>,
    sessions: HashMap<[u8; 16], SessionSummary>,
    closed: Vec<SessionSummary>,
    keys: HashMap<[u8; 16], Zeroizing<[u8; 32]>>,
    certified: bool,
    heard: Instant,
    heard_us: Option<u64>,
    heartbeat: Option<u64>,
    ended: bool,
    orphaned: bool,
    /// The present head is in a checkpoint, or about to be.
    reported: bool,
    again: Again,
}

/// Where a journal stops being good: why, and how many bytes lie behind that.
#[derive(Default)]
struct Tear {
    why: &'static str,
    bytes: u64,
}

/// Where the comparison of frames that come again stands.
#[derive(Default)]
struct Again {
    object: Vec<u8>,
    first: Option<u64>,
    next: u64,
    at: usize,
}

/// Why the collector refuses.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("the stream is broken: {0}")]
    Stream(#[from] stream::StreamError),
    #[error(transparent)]
    Store(#[from] RecordsError),
    #[error("log number {0} came again with other bytes")]
    Fork(u64),
    #[error("the log is not the caller's")]
    Foreign,
    #[error("the key certificate at log number {0} is not good")]
    Certificate(u64),
    #[error("the log states a head that the collector does not know")]
    Head,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl LogState {
    pub fn new(path: LogPath) -> LogState {
        LogState {
            chain: LogChain::default(),
            tail: Vec::new(),
            tail_first: 0,
            landed: 0,
            tear: Tear::default(),
            own: path.namespace == BROKER,
            path,
            journal: None,
            sessions: HashMap::new(),
            closed: Vec::new(),
            keys: HashMap::new(),
            certified: false,
            heard: Instant::now(),
            heard_us: None,
            heartbeat: None,
            ended: false,
            orphaned: false,
            reported: false,
            again: Again::default(),
        }
    }

    /// Sessions without `close`, as far as they are known.
    pub fn open_sessions(&self) -> Vec<SessionSummary> {
        self.sessions.values().chain(&self.closed).cloned().collect()
    }

    /// The head for a checkpoint; `None` before the first frame.
    pub fn head(&mut self) -> Option<LogHead> {
        self.reported = true;
        Some(LogHead {
            log: self.path.to_string(),
            number: self.chain.next.checked_sub(1)?,
            hash: self.chain.head,
        })
    }

    /// Whether nothing more comes and the last head was signed.
    pub fn is_done(&self) -> bool {
        self.ended && self.reported
    }

    /// Log numbers below this are held.
    pub fn next(&self) -> u64 {
        self.chain.next
    }

    /// Takes the whole items at the start of `bytes`: how many bytes they were, what to acknowledge, and why
    /// the next one is refused, if it is. What was taken is landed in any case.
    pub fn take(&mut self, records: &Records, bytes: &[u8]) -> (usize, Vec<RecordAck>, Option<Refusal>) {
        self.heard = Instant::now();
        self.heard_us = Some(wall_us());
        self.orphaned = false;
        let mut used = 0usize;
        let mut acks = Vec::new();
        let mut refusal = loop {
            match stream::parse(bytes.get(used..).unwrap_or_default()) {
                Ok(None) => break None,
                Err(error) => break Some(error.into()),
                Ok(Some((item, length))) => match self.item(records, item, &mut acks) {
                    Ok(()) => used = used.saturating_add(length),
                    Err(error) => break Some(error),
                },
            }
        };
        if let Err(error) = self.land(records) {
            refusal = refusal.or(Some(error.into()));
        }
        if used > 0 && self.chain.next > 0 && refusal.is_none() {
            acks.push(RecordAck::Received {
                upto: self.chain.next.saturating_sub(1),
            });
        }
        (used, acks, refusal)
    }

    fn item(&mut self, records: &Records, item: Item<'_>, acks: &mut Vec<RecordAck>) -> Result<(), Refusal> {
        match item {
            Item::Announce { .. } => Err(stream::StreamError::Tag(1).into()),
            Item::Key { session, key } => {
                if self.keys.len() < WAITING_KEYS {
                    self.keys.insert(session, key);
                }
                Ok(())
            }
            Item::Frame(frame) => {
                self.frame(records, &frame)?;
                if frame.header.kind == Kind::Seal && self.tail.is_empty() {
                    acks.push(RecordAck::Stored {
                        upto: frame.header.log_number,
                    });
                }
                Ok(())
            }
            Item::Heartbeat { number, head } => {
                self.check_head(number, &head)?;
                self.heartbeat = Some(number);
                Ok(())
            }
            Item::End { number, head } => {
                self.check_head(number, &head)?;
                if number >= self.chain.next {
                    return Err(Refusal::Head);
                }
                self.end(records)?;
                acks.push(RecordAck::Stored { upto: number });
                Ok(())
            }
        }
    }

    /// A stated head that the collector has must be the same; one it has not yet is only remembered.
    fn check_head(&self, number: u64, head: &Hash) -> Result<(), Refusal> {
        let known = number.checked_add(1) == Some(self.chain.next);
        (!known || *head == self.chain.head).then_some(()).ok_or(Refusal::Head)
    }

    fn frame(&mut self, records: &Records, frame: &Frame<'_>) -> Result<(), Refusal> {
        if frame.header.log_number < self.chain.next {
            return self.again(records, frame);
        }
        self.judge(records, frame)?;
        let hash = self.chain.accept(frame)?;
        self.reported = false;
        self.ended = false;
        self.tail.extend_from_slice(frame.bytes);
        self.count(frame, &hash);
        if frame.header.kind == Kind::Seal && !self.own {
            self.store(records)?;
        }
        Ok(())
    }

    /// The chain, for a writer in this process.
    pub fn chain(&self) -> &LogChain {
        &self.chain
    }

    /// Takes a frame that this process writes. Nothing is durable before [`LogState::commit`].
    pub fn append(&mut self, records: &Records, kind: Kind, payload: &[u8], now: (u64, u64)) -> Result<(), Refusal> {
        let mut bytes = Vec::new();
        self.chain.own(kind, payload, now, &mut bytes)?;
        self.frame(records, &Frame::parse(&bytes)?)
    }

    /// Makes durable what was appended. Nobody sends a footer again, so it is landed before an object is made of it:
    /// what the tile log speaks of is never lost.
    pub fn commit(&mut self, records: &Records) -> Result<(), RecordsError> {
        self.land(records)?;
        let sealed = self.chain.unsealed() == 0 && self.chain.next > 0;
        if sealed {
            self.store(records)?;
        }
        Ok(())
    }

    /// What a restart found of this log; `None` where there is no good frame.
    pub fn recovered(&self) -> Option<Recovered> {
        Some(Recovered {
            log: hex(&self.chain.boot),
            instance: self.path.instance,
            number: self.chain.next.checked_sub(1)?,
            head: hex(&self.chain.head),
            count: frames(&self.tail).count() as u64,
            why: if self.tear.bytes > 0 { self.tear.why } else { "end" }.into(),
            cut_bytes: self.tear.bytes,
        })
    }

    /// Ends a log that this process writes, or wrote before a restart.
    pub fn finish(&mut self, records: &Records) -> Result<(), RecordsError> {
        self.end(records)?;
        // What is left of a journal is a torn first frame, or what an object holds already.
        self.journal = None;
        records.objects.remove(&self.path.landing())
    }

    /// What the chain does not know: whose log it is, who vouches for its key, where the session's key goes.
    fn judge(&mut self, records: &Records, frame: &Frame<'_>) -> Result<(), Refusal> {
        let number = frame.header.log_number;
        if frame.header.kind.of_broker() && !self.own {
            return Err(Refusal::Foreign);
        }
        match frame.header.kind {
            Kind::Boot => {
                let boot: Boot = serde_json::from_slice(frame.payload).map_err(|_| ChainError::Payload(number))?;
                let theirs = LogPath::new(&boot.cluster, &boot.namespace, &boot.pod_uid, boot.instance);
                (theirs.as_ref() == Some(&self.path))
                    .then_some(())
                    .ok_or(Refusal::Foreign)
            }
            Kind::Cert => {
                let cert: Cert = serde_json::from_slice(frame.payload).map_err(|_| ChainError::Payload(number))?;
                let certificate = lock(&records.ring).certificate(&cert.certificate);
                let good = certificate.is_ok_and(|certificate| {
                    certificate.key == self.chain.key
                        && certificate.pod_uid == self.path.pod_uid
                        && certificate.instance == self.path.instance
                });
                self.certified |= good;
                good.then_some(()).ok_or(Refusal::Certificate(number))
            }
            Kind::Seal => self.certified.then_some(()).ok_or(Refusal::Certificate(number)),
            Kind::Open => {
                if let Some(key) = self.keys.remove(&frame.header.session) {
                    records
                        .keys
                        .keep(&records.objects, Uuid::from_bytes(frame.header.session), &key)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, frame: &Frame<'_>, hash: &Hash) {
        let session = frame.header.session;
        if frame.header.kind == Kind::Open {
            if let Some(summary) = SessionSummary::begin(&self.path.to_string(), frame) {
                self.sessions.insert(session, summary);
            }
        }
        if let Some(summary) = self.sessions.get_mut(&session) {
            summary.take(frame, hash);
        }
        if frame.header.kind == Kind::Close {
            self.closed.extend(self.sessions.remove(&session));
        }
    }

    /// A frame that is held already: the same bytes are fine, others are a fork.
    fn again(&mut self, records: &Records, frame: &Frame<'_>) -> Result<(), Refusal> {
        let number = frame.header.log_number;
        let in_tail = number >= self.tail_first;
        if !in_tail {
            self.load_object(records, number)?;
        } else if self.again.first != Some(self.tail_first) {
            self.again = Again {
                first: Some(self.tail_first),
                ..Again::default()
            };
        }
        let buffer = if in_tail { &self.tail } else { &self.again.object };
        let mut at = if self.again.next == number { self.again.at } else { 0 };
        while let Ok(there) = Frame::parse(buffer.get(at..).unwrap_or_default()) {
            at = at.saturating_add(there.bytes.len());
            if there.header.log_number == number {
                let same = there.bytes == frame.bytes;
                self.again.next = number.saturating_add(1);
                self.again.at = at;
                return same.then_some(()).ok_or(Refusal::Fork(number));
            }
        }
        Err(Refusal::Fork(number))
    }

    fn load_object(&mut self, records: &Records, number: u64) -> Result<(), RecordsError> {
        let names = records.objects.of_log(&self.path)?;
        let name = names
            .iter()
            .rev()
            .find(|name| layout::object_first(name).is_some_and(|first| first <= number));
        let first = name.and_then(|name| layout::object_first(name));
        if let (Some(name), true) = (name, first != self.again.first || self.again.object.is_empty()) {
            self.again = Again {
                object: records.objects.read(name)?.unwrap_or_default(),
                first,
                ..Again::default()
            };
        }
        Ok(())
    }

    /// Appends what is new to the landing journal and syncs it.
    fn land(&mut self, records: &Records) -> Result<(), RecordsError> {
        let new = self.tail.get(self.landed..).unwrap_or_default();
        if new.is_empty() {
            return Ok(());
        }
        let name = self.path.landing();
        let journal = match &mut self.journal {
            Some(journal) => journal,
            none => none.insert(records.objects.journal(&name, self.landed as u64)?),
        };
        let written = journal.write_all(new).and_then(|()| journal.sync_data());
        if let Err(error) = written {
            // After a failed sync the kernel may claim pages clean that never reached the disk: this file is
            // never synced again. The next call writes all of the tail to a new one.
            self.journal = None;
            self.landed = 0;
            records.objects.set_aside(&name)?;
            return Err(failed(&records.objects.path(&name), error));
        }
        self.landed = self.tail.len();
        Ok(())
    }

    /// Makes an object of everything in the tail, notes its footers and its sessions' summaries.
    fn store(&mut self, records: &Records) -> Result<(), RecordsError> {
        if self.tail.is_empty() {
            return Ok(());
        }
        let log = self.path.to_string();
        for frame in frames(&self.tail).filter(|frame| frame.header.kind == Kind::Seal) {
            if let Ok(signed) = Footer::read(frame.payload) {
                records.note(&Entry::Seal {
                    log: log.clone(),
                    segment: signed.footer.segment,
                    first: signed.footer.first,
                    number: frame.header.log_number,
                    hash: frame.hash(),
                })?;
            }
        }
        records.objects.create(&self.path.object(self.tail_first), &self.tail)?;
        self.tail.clear();
        self.tail_first = self.chain.next;
        self.landed = 0;
        if self.journal.take().is_some() {
            records.objects.remove(&self.path.landing())?;
        }
        for summary in std::mem::take(&mut self.closed) {
            write_summary(records, &summary)?;
            records.finish(summary);
        }
        Ok(())
    }

    /// The log is complete: what is left becomes an object, sessions without `close` are orphans.
    fn end(&mut self, records: &Records) -> Result<(), RecordsError> {
        self.store(records)?;
        self.write_orphans(records)?;
        self.sessions.clear();
        self.ended = true;
        Ok(())
    }

    fn write_orphans(&mut self, records: &Records) -> Result<(), RecordsError> {
        for summary in self.sessions.values_mut() {
            summary.orphan = Some(Orphan {
                sealed: rfc3339(wall_us()),
                last_heard: self.heard_us.map(rfc3339),
                heartbeat: self.heartbeat,
            });
            match write_summary(records, summary) {
                // An earlier silence was longer than thought; its summary stands.
                Ok(()) | Err(RecordsError::Differs(_)) => records.finish(summary.clone()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Seals the log's sessions as orphans after a long silence. The log may still go on later.
    fn seal_orphans(&mut self, records: &Records) -> Result<(), RecordsError> {
        let silent = self.heard.elapsed() >= records.options.orphan_after;
        if !silent || self.orphaned || self.ended || self.own {
            return Ok(());
        }
        self.orphaned = true;
        self.store(records)?;
        self.write_orphans(records)
    }
}

impl Records {
    pub(super) fn log(&self, path: &LogPath) -> Result<Arc<Mutex<LogState>>, RecordsError> {
        let mut logs = lock(&self.logs);
        if let Some(log) = logs.get(path) {
            return Ok(Arc::clone(log));
        }
        let log = Arc::new(Mutex::new(load(self, path)?));
        logs.insert(path.clone(), Arc::clone(&log));
        Ok(log)
    }

    /// After a restart: logs with a landing journal are taken up again.
    pub(super) fn load_landings(&self) -> Result<(), RecordsError> {
        let prefix = format!("v1/{}/landing", self.objects.cluster());
        for name in self.objects.list(&prefix)? {
            let log = name
                .strip_prefix(&prefix)
                .and_then(|name| name.strip_prefix('/')?.strip_suffix(".sgr"));
            match log.and_then(|log| LogPath::parse(self.objects.cluster(), log)) {
                Some(path) => drop(self.log(&path)?),
                None => tracing::warn!(name, "the landing folder holds something that is no journal"),
            }
        }
        Ok(())
    }

    /// Logs that an earlier start of this broker wrote and did not end.
    pub(super) fn unfinished(&self, path: &LogPath) -> Vec<Arc<Mutex<LogState>>> {
        let logs = lock(&self.logs);
        let earlier = logs
            .iter()
            .filter(|(other, _)| (&other.namespace, &other.pod_uid) == (&path.namespace, &path.pod_uid));
        let earlier = earlier.filter(|(other, _)| other.instance < path.instance);
        earlier.map(|(_, log)| Arc::clone(log)).collect()
    }

    pub(super) fn seal_orphans(&self) {
        for log in self.all_logs() {
            let mut log = lock(&log);
            if let Err(error) = log.seal_orphans(self) {
                let path = log.path.to_string();
                drop(log);
                self.alarm(&path, &error.to_string());
            }
        }
    }

    /// Forgets logs that are complete and whose last head is signed.
    pub(super) fn forget_done(&self) {
        lock(&self.logs).retain(|_, log| !lock(log).is_done());
    }
}

fn write_summary(records: &Records, summary: &SessionSummary) -> Result<(), RecordsError> {
    let bytes = serde_json::to_vec(summary).map_err(|_| RecordsError::Key("a summary cannot be written"))?;
    let orphan = summary.orphan.is_some();
    let path = layout::summary(records.objects.cluster(), summary.date(), &summary.id, orphan);
    records.objects.create(&path, &bytes)?;
    records.note(&Entry::Summary {
        path,
        hash: sha256(&bytes),
    })
}

fn frames(bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        let frame = Frame::parse(bytes.get(at..)?).ok()?;
        at = at.saturating_add(frame.bytes.len());
        Some(frame)
    })
}

/// Reads a log back: objects from the last footer that covers all open sessions, then the landing journal.
fn load(records: &Records, path: &LogPath) -> Result<LogState, RecordsError> {
    let mut state = LogState::new(path.clone());
    let damaged = |why: String| RecordsError::Damaged {
        log: path.to_string(),
        why,
    };
    let (resumed, objects) = replay_from(records, path)?;
    if let Some(chain) = resumed {
        state.chain = chain;
        state.certified = true;
    }
    for bytes in &objects {
        for frame in frames(bytes) {
            let hash = state.chain.accept(&frame).map_err(|error| damaged(error.to_string()))?;
            state.certified |= frame.header.kind == Kind::Cert;
            state.count(&frame, &hash);
        }
    }
    state.closed.clear();
    state.tail_first = state.chain.next;
    let landing = records.objects.read(&path.landing())?.unwrap_or_default();
    let (mut good, mut why) = (0usize, "torn");
    for frame in frames(&landing) {
        // What an object holds already is good, too.
        if frame.header.log_number >= state.chain.next {
            let Ok(hash) = state.chain.accept(&frame) else {
                why = "chain";
                break;
            };
            state.certified |= frame.header.kind == Kind::Cert;
            state.tail.extend_from_slice(frame.bytes);
            state.count(&frame, &hash);
        }
        good = good.saturating_add(frame.bytes.len());
    }
    let bytes = landing.len().saturating_sub(good) as u64;
    state.tear = Tear { why, bytes };
    if !landing.starts_with(&state.tail) {
        // A crash came between an object and the removal of what it holds.
        records.objects.replace_private(&path.landing(), &state.tail)?;
    }
    state.landed = state.tail.len();
    Ok(state)
}

type Replay = (Option<LogChain>, Vec<Vec<u8>>);

/// The newest footer before which no session is open that is still open now, and the objects behind it.
fn replay_from(records: &Records, path: &LogPath) -> Result<Replay, RecordsError> {
    let mut wanted: Option<Vec<[u8; 16]>> = None;
    let mut objects: Vec<Vec<u8>> = Vec::new();
    for name in records.objects.of_log(path)?.iter().rev() {
        let bytes = records.objects.read(name)?.unwrap_or_default();
        let last = frames(&bytes).last().map(|frame| frame.header.kind == Kind::Seal);
        if last == Some(true) {
            let chain = frames(&bytes).last().and_then(|seal| LogChain::resume(&seal));
            let open = |chain: &LogChain| chain.open_sessions().map(|(id, _)| *id).collect::<Vec<_>>();
            let needed = wanted.get_or_insert_with(|| chain.as_ref().map(open).unwrap_or_default());
            let opened: Vec<[u8; 16]> = objects.iter().flat_map(|bytes| opens(bytes)).collect();
            if needed.iter().all(|session| opened.contains(session)) {
                objects.reverse();
                return Ok((chain, objects));
            }
        }
        objects.push(bytes);
    }
    objects.reverse();
    Ok((None, objects))
}

fn opens(bytes: &[u8]) -> Vec<[u8; 16]> {
    frames(bytes)
        .filter(|frame| frame.header.kind == Kind::Open)
        .map(|frame| frame.header.session)
        .collect()
}
