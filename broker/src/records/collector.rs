//! One log as the collector holds it: its chain, what is not in an object yet, and its open sessions.
//!
//! Frames are checked, landed and synced before they are acknowledged as received; a footer turns what landed
//! into an object, which is what `stored` means. What comes again is compared, never rewritten.
//! Refused, with an alarm: gaps, forks, bad hashes, foreign identities, uncertified footers.
//! Invariant: `tail` is exactly the landing journal's content plus what this call has not synced yet.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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
use super::read_back::{self, frames};
use super::replicas::Others;
use super::{lock, wall_us, Records, RecordsError};

/// Keys waiting for their `open` frame, at most.
const WAITING_KEYS: usize = 4096;

/// A log in the collector.
pub(super) struct LogState {
    pub path: LogPath,
    pub(super) chain: LogChain,
    pub(super) tail: Vec<u8>,
    pub(super) tail_first: u64,
    /// Bytes of `tail` that are in the journal, synced.
    pub(super) landed: usize,
    /// What a restart found in the journal behind the last good frame.
    pub(super) tear: Tear,
    /// The broker writes it itself: its silence means nothing.
    own: bool,
    journal: Option<File>,
    sessions: HashMap<[u8; 16], SessionSummary>,
    pub(super) closed: Vec<SessionSummary>,
    keys: HashMap<[u8; 16], Zeroizing<[u8; 32]>>,
    pub(super) certified: bool,
    heard: Instant,
    heard_us: Option<u64>,
    heartbeat: Option<u64>,
    ended: bool,
    orphaned: bool,
    /// Another replica goes on with it.
    moved: bool,
    /// The present head is in a checkpoint, or about to be.
    reported: bool,
    again: Again,
}

/// Where a journal stops being good: why, and how many bytes lie behind that.
#[derive(Default)]
pub(super) struct Tear {
    pub why: &'static str,
    pub bytes: u64,
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
            moved: false,
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

    /// Whether another replica has it, or nothing more comes and the last head was signed.
    fn is_over(&self) -> bool {
        self.moved || self.is_done()
    }

    /// Whether its sidecar was heard within this time.
    pub fn is_heard(&self, within: Duration) -> bool {
        !self.own && !self.ended && self.heard_us.is_some() && self.heard.elapsed() < within
    }

    /// Whether objects hold this log number.
    pub fn is_stored(&self, number: u64) -> bool {
        number < self.tail_first
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
        self.moved = false;
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
        records.objects.remove(&records.landing(&self.path))
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

    pub(super) fn count(&mut self, frame: &Frame<'_>, hash: &Hash) {
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

    /// Refuses where another replica claimed the log: this one's journal has lost its name.
    fn still_here(&mut self, records: &Records) -> Result<(), RecordsError> {
        if records.is_shared() && self.journal.as_ref().is_some_and(is_gone) {
            self.journal = None;
            return Err(RecordsError::Behind(self.path.to_string()));
        }
        Ok(())
    }

    /// Appends what is new to the landing journal and syncs it.
    fn land(&mut self, records: &Records) -> Result<(), RecordsError> {
        if self.landed >= self.tail.len() {
            return Ok(());
        }
        let name = records.landing(&self.path);
        self.still_here(records)?;
        let new = self.tail.get(self.landed..).unwrap_or_default();
        let journal = match &mut self.journal {
            Some(journal) => journal,
            none => match records.objects.journal(&name, self.landed as u64) {
                Err(RecordsError::Io { error, .. }) if records.is_shared() && error.kind() == ErrorKind::NotFound => {
                    return Err(RecordsError::Behind(self.path.to_string()));
                }
                opened => none.insert(opened?),
            },
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
        // Nothing is said to be held in a journal that was claimed meanwhile.
        self.still_here(records)?;
        self.landed = self.tail.len();
        Ok(())
    }

    /// Makes an object of everything in the tail. Its footers and its sessions' summaries are noted before: whoever fails or
    /// dies in between finds the journal still there, and makes the same of it
    /// (`a_summary_that_cannot_be_written_is_written_later`).
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
        for summary in &self.closed {
            match write_summary(records, summary) {
                // What was written first stands; the frames are told apart from it, and are kept in any case.
                Err(RecordsError::Differs(name)) => {
                    records.alarm(&log, &format!("{name} says something else of its session"));
                }
                written => written?,
            }
        }
        self.create(records)?;
        self.tail.clear();
        self.tail_first = self.chain.next;
        if self.journal.take().is_some() || self.landed > 0 {
            records.objects.remove(&records.landing(&self.path))?;
        }
        self.landed = 0;
        for summary in std::mem::take(&mut self.closed) {
            records.finish(summary);
        }
        Ok(())
    }

    /// Makes the object. What another replica made of the tail's beginning meanwhile stands, and is not made again; a
    /// tail that is no more than that, or other than that, is not this replica's to store.
    fn create(&mut self, records: &Records) -> Result<(), RecordsError> {
        loop {
            let name = self.path.object(self.tail_first);
            let differs = match records.objects.create(&name, &self.tail) {
                Err(RecordsError::Differs(name)) if records.is_shared() => RecordsError::Differs(name),
                made => return made.map(drop),
            };
            let there = records.objects.read(&name)?.unwrap_or_default();
            if there.starts_with(&self.tail) {
                return Err(RecordsError::Behind(self.path.to_string()));
            }
            let rest = self.tail.strip_prefix(there.as_slice()).ok_or(differs)?.to_vec();
            let last = frames(&there).last().map(|frame| frame.header.log_number);
            self.journal = None;
            records.objects.replace_private(&records.landing(&self.path), &rest)?;
            self.tail_first = last.map_or(self.tail_first, |last| last.saturating_add(1));
            (self.landed, self.tail) = (rest.len(), rest);
        }
    }

    /// Makes this replica the one that goes on with the log: what the journals hold stands in its own before the
    /// others go. Whoever had them finds theirs gone before it says once more that it holds anything.
    pub(super) fn claim(&mut self, records: &Records, loaded: (bool, &[(String, u64)])) -> Result<(), RecordsError> {
        let (exact, others) = loaded;
        // A journal that grew since it was read has its sidecar: it is this claim that comes too late.
        for (other, length) in others {
            if records.objects.length(other)?.is_some_and(|now| now != *length) {
                return Err(RecordsError::Behind(self.path.to_string()));
            }
        }
        let name = records.landing(&self.path);
        self.journal = None;
        if self.tail.is_empty() {
            records.objects.remove(&name)?;
        } else if !exact {
            records.objects.replace_private(&name, &self.tail)?;
        }
        self.landed = self.tail.len();
        others.iter().try_for_each(|(other, _)| records.objects.remove(other))
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

    /// Seals the log's sessions as orphans after a long silence, unless another replica hears it. It may still go on later.
    fn seal_orphans(&mut self, records: &Records, others: &Others) -> Result<(), RecordsError> {
        let silent = self.heard.elapsed() >= records.options.orphan_after;
        if !silent || self.ended || self.own {
            return Ok(());
        }
        if others.hear(&self.path.to_string()) {
            return self.leave(records);
        }
        if self.orphaned {
            return Ok(());
        }
        // What is remembered here is old: whoever went on with it is gone, and the leader takes up what it left.
        if records.is_shared() && read_back::held_elsewhere(records, &self.path)? > self.chain.next {
            return self.let_go(records);
        }
        match self.store(records) {
            // Another replica has it after all.
            Err(RecordsError::Behind(_)) => return self.leave(records),
            stored => stored?,
        }
        self.orphaned = true;
        self.write_orphans(records)
    }

    /// Leaves the log to the replica that hears it, once that one holds all of it.
    fn leave(&mut self, records: &Records) -> Result<(), RecordsError> {
        if read_back::held_elsewhere(records, &self.path)? >= self.chain.next {
            self.let_go(records)?;
        }
        Ok(())
    }

    fn let_go(&mut self, records: &Records) -> Result<(), RecordsError> {
        self.journal = None;
        records.objects.remove(&records.landing(&self.path))?;
        self.moved = true;
        Ok(())
    }
}

impl Records {
    pub(super) fn log(&self, path: &LogPath) -> Result<Arc<Mutex<LogState>>, RecordsError> {
        let mut logs = lock(&self.logs);
        if let Some(log) = logs.get(path) {
            return Ok(Arc::clone(log));
        }
        let loaded = read_back::load(self, path)?;
        let mut state = loaded.state;
        if !self.is_shared() {
            state.claim(self, (loaded.exact, &loaded.others))?;
        }
        let log = Arc::new(Mutex::new(state));
        logs.insert(path.clone(), Arc::clone(&log));
        Ok(log)
    }

    /// The log for a sidecar that comes now: whatever this replica remembers of it, another one may have gone on with
    /// it meanwhile, so it is read anew and claimed.
    pub(super) fn take_up(&self, path: &LogPath) -> Result<Arc<Mutex<LogState>>, RecordsError> {
        if !self.is_shared() {
            return self.log(path);
        }
        // Whoever holds it keeps it from being forgotten; the others need not wait while the disk is read.
        let log = Arc::clone(
            lock(&self.logs)
                .entry(path.clone())
                .or_insert_with(|| Arc::new(Mutex::new(LogState::new(path.clone())))),
        );
        let read = self.read_anew(&mut lock(&log));
        if read.is_err() {
            // What was never read is nothing to go on with.
            let unread = |log: &Arc<Mutex<LogState>>| Arc::strong_count(log) == 2 && lock(log).next() == 0;
            lock(&self.logs).retain(|other, log| other != path || !unread(log));
        }
        read.map(|()| log)
    }

    fn read_anew(&self, state: &mut LogState) -> Result<(), RecordsError> {
        let loaded = read_back::load(self, &state.path)?;
        *state = loaded.state;
        state.claim(self, (loaded.exact, &loaded.others))
    }

    /// After a restart: logs with a landing journal of this broker's are taken up again.
    pub(super) fn load_landings(&self) -> Result<(), RecordsError> {
        for (_, path, replica) in self.landings()? {
            if replica == self.options.replica || !self.is_shared() {
                self.log(&path)?;
            }
        }
        Ok(())
    }

    /// Landing journals: name, log, and whose they are.
    pub(super) fn landings(&self) -> Result<Vec<(String, LogPath, String)>, RecordsError> {
        let prefix = format!("v1/{}/landing/", self.objects.cluster());
        let mut found = Vec::new();
        for name in self.objects.list(&prefix)? {
            let inside = name.strip_prefix(&prefix).unwrap_or_default();
            match LogPath::parse_landing(self.objects.cluster(), inside) {
                Some((path, replica)) => found.push((name.clone(), path, replica.to_owned())),
                None => tracing::warn!(name, "the landing folder holds something that is no journal"),
            }
        }
        Ok(found)
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

    pub(super) fn seal_orphans(&self, others: &Others) {
        for log in self.all_logs() {
            let mut log = lock(&log);
            if let Err(error) = log.seal_orphans(self, others) {
                let path = log.path.to_string();
                drop(log);
                self.alarm(&path, &error.to_string());
            }
        }
    }

    /// Forgets logs that are complete and whose last head is signed, and those that other replicas go on with.
    pub(super) fn forget_done(&self) {
        lock(&self.logs).retain(|_, log| Arc::strong_count(log) > 1 || !lock(log).is_over());
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

/// Whether a journal lost its name: another replica claimed the log.
fn is_gone(journal: &File) -> bool {
    journal.metadata().map_or(true, |there| there.nlink() == 0)
}
