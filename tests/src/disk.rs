//! A journal volume in memory that can kill its writer or refuse it at any step, with a still clock and seeded
//! randomness: what a recorder writes on it is the same, byte for byte, every time.
//!
//! Owns the steps (every call that changes the volume), the fault, and a collector that only keeps frames. It
//! refuses nothing unless told to. Invariant: after a kill nothing changes until [`Disk::revive`].

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{future, FutureExt};
use sidegate_policies::record::frame::sha256;
use sidegate_policies::record::stream::{self, Item};
use sidegate_policies::record::Frame;
use sidegate_policies::wire::RecordAck;
use sidegate_sidecar::record::{Clock, Random, RecordSink, RecordStream, SegmentFile, SinkError, Volume};
use tokio::sync::mpsc;

/// Frames of a log by log number, as stored.
pub type Frames = BTreeMap<u64, Vec<u8>>;

/// What goes wrong, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The writer dies in this step; of an append so many bytes arrive.
    Kill {
        /// Step, from 0.
        step: u64,
        /// Bytes of the append that arrive.
        bytes: usize,
    },
    /// The volume is full from this step on, for so many steps.
    Full {
        /// First step that is refused.
        step: u64,
        /// Steps that are refused.
        steps: u64,
        /// Bytes of each refused append that arrive all the same.
        bytes: usize,
        /// Cutting a file fails too, and a file that could not be allocated stays behind empty.
        broken: bool,
    },
}

/// One call that changed the volume, or would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// An append of so many bytes.
    Append(usize),
    /// Anything else.
    Other,
}

#[derive(Default)]
struct Inner {
    logs: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    steps: Vec<Step>,
    fault: Option<Fault>,
    dead: bool,
}

/// The volume. Clones share it.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Inner>>);

enum Fate {
    Done,
    Dies(usize),
    Refused { bytes: usize, broken: bool },
}

impl Inner {
    fn alive(&self) -> io::Result<()> {
        (!self.dead)
            .then_some(())
            .ok_or_else(|| io::Error::other("the writer is dead"))
    }

    fn step(&mut self, step: Step) -> io::Result<Fate> {
        self.alive()?;
        let number = self.steps.len() as u64;
        self.steps.push(step);
        Ok(match self.fault {
            Some(Fault::Kill { step, bytes }) if step == number => {
                self.dead = true;
                Fate::Dies(bytes)
            }
            Some(Fault::Full {
                step,
                steps,
                bytes,
                broken,
            }) if (step..step.saturating_add(steps)).contains(&number) => Fate::Refused { bytes, broken },
            _ => Fate::Done,
        })
    }

    fn file(&mut self, log: &str, file: &str) -> io::Result<&mut Vec<u8>> {
        let files = self.logs.get_mut(log).ok_or(io::ErrorKind::NotFound)?;
        Ok(files.get_mut(file).ok_or(io::ErrorKind::NotFound)?)
    }
}

impl Disk {
    /// An empty volume with a fault to come.
    pub fn with(fault: Option<Fault>) -> Disk {
        let disk = Disk::default();
        disk.lock().fault = fault;
        disk
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The steps so far.
    pub fn steps(&self) -> Vec<Step> {
        self.lock().steps.clone()
    }

    /// Whether the writer was killed.
    pub fn dead(&self) -> bool {
        self.lock().dead
    }

    /// What a restart finds: the same bytes on a volume that works, apart from this one.
    pub fn revive(&self) -> Disk {
        let copy = Disk::default();
        copy.lock().logs = self.lock().logs.clone();
        copy
    }

    /// Good frames of the log whose directory begins with `instance-`: what the last file says holds.
    pub fn frames(&self, instance: u64) -> Frames {
        let prefix = format!("{instance}-");
        let mut frames = Frames::new();
        let inner = self.lock();
        for (_, files) in inner.logs.iter().filter(|(log, _)| log.starts_with(&prefix)) {
            for bytes in files.values() {
                let mut left = &bytes[..];
                while let Ok(frame) = Frame::parse(left) {
                    frames.insert(frame.header.log_number, frame.bytes.to_vec());
                    left = left.get(frame.bytes.len()..).unwrap_or_default();
                }
            }
        }
        frames
    }

    /// The volume takes writes again.
    pub fn heal(&self) {
        self.lock().fault = None;
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Inner) -> io::Result<()>,
        refused: impl FnOnce(&mut Inner, bool) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut inner = self.lock();
        match inner.step(Step::Other)? {
            Fate::Done => change(&mut inner),
            Fate::Dies(_) => inner.alive(),
            Fate::Refused { broken, .. } => refused(&mut inner, broken),
        }
    }
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

impl Volume for Disk {
    fn create_log(&self, log: &str) -> io::Result<()> {
        let make = |inner: &mut Inner| {
            inner.logs.entry(log.to_owned()).or_default();
            Ok(())
        };
        self.change(make, |_, _| Err(full()))
    }

    fn create(&self, log: &str, file: &str, _reserve: u64) -> io::Result<Box<dyn SegmentFile>> {
        let make = |inner: &mut Inner| {
            let files = inner.logs.get_mut(log).ok_or(io::ErrorKind::NotFound)?;
            match files.insert(file.to_owned(), Vec::new()) {
                None => Ok(()),
                Some(before) => {
                    files.insert(file.to_owned(), before);
                    Err(io::ErrorKind::AlreadyExists.into())
                }
            }
        };
        let refused = |inner: &mut Inner, broken: bool| match broken {
            true => make(inner).and(Err(full())),
            false => Err(full()),
        };
        self.change(make, refused)?;
        Ok(Box::new(DiskFile {
            disk: self.clone(),
            log: log.to_owned(),
            file: file.to_owned(),
        }))
    }

    fn read(&self, log: &str, file: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut inner = self.lock();
        inner.alive()?;
        let bytes = inner.file(log, file)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        Ok(bytes.iter().skip(from).take(len).copied().collect())
    }

    fn logs(&self) -> io::Result<Vec<String>> {
        let inner = self.lock();
        inner.alive()?;
        Ok(inner.logs.keys().cloned().collect())
    }

    fn files(&self, log: &str) -> io::Result<Vec<(String, u64)>> {
        let inner = self.lock();
        inner.alive()?;
        let files = inner.logs.get(log).ok_or(io::ErrorKind::NotFound)?;
        Ok(files
            .iter()
            .map(|(name, bytes)| (name.clone(), bytes.len() as u64))
            .collect())
    }

    fn remove(&self, log: &str, file: &str) -> io::Result<()> {
        let take = |inner: &mut Inner| {
            inner.file(log, file)?;
            inner.logs.get_mut(log).and_then(|files| files.remove(file));
            Ok(())
        };
        // A full disk lets go.
        self.change(take, |inner, _| take(inner))
    }

    fn remove_log(&self, log: &str) -> io::Result<()> {
        let take = |inner: &mut Inner| {
            inner.logs.remove(log);
            Ok(())
        };
        self.change(take, |inner, _| take(inner))
    }
}

struct DiskFile {
    disk: Disk,
    log: String,
    file: String,
}

impl SegmentFile for DiskFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.lock();
        let fate = inner.step(Step::Append(bytes.len()))?;
        let file = inner.file(&self.log, &self.file)?;
        let arrived = match fate {
            Fate::Done => bytes.len(),
            Fate::Dies(arrived) | Fate::Refused { bytes: arrived, .. } => arrived.min(bytes.len()),
        };
        file.extend(bytes.iter().take(arrived));
        match fate {
            Fate::Done => Ok(()),
            Fate::Dies(_) => inner.alive(),
            Fate::Refused { .. } => Err(full()),
        }
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let cut = |inner: &mut Inner| {
            inner.file(&self.log, &self.file)?.truncate(len);
            Ok(())
        };
        let refused = |inner: &mut Inner, broken: bool| match broken {
            true => Err(full()),
            false => cut(inner),
        };
        self.disk.change(cut, refused)
    }
}

/// A clock that stands still until it is moved; wall and monotonic time move together.
#[derive(Default)]
pub struct StillClock(AtomicU64);

impl StillClock {
    /// Moves on by so many milliseconds.
    pub fn pass_ms(&self, ms: u64) {
        self.0.fetch_add(ms.saturating_mul(1_000_000), Ordering::SeqCst);
    }
}

impl Clock for StillClock {
    fn mono_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn wall_us(&self) -> u64 {
        // 2026-01-01T00:00:00Z.
        (self.mono_ns() / 1000).saturating_add(1_767_225_600_000_000)
    }
}

/// Bytes that follow from a seed: SHA-256 over seed and a counter. Remembers what it gave.
pub struct SeededRandom {
    seed: u64,
    /// Everything that was drawn, in order.
    pub drawn: Mutex<Vec<Vec<u8>>>,
}

impl SeededRandom {
    /// A source.
    pub fn new(seed: u64) -> SeededRandom {
        SeededRandom {
            seed,
            drawn: Mutex::default(),
        }
    }

    /// A number below `end`, which is not 0.
    pub fn below(&self, end: u64) -> u64 {
        let mut bytes = [0u8; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes).checked_rem(end).unwrap_or(0)
    }
}

impl Random for SeededRandom {
    fn fill(&self, out: &mut [u8]) -> bool {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counter = 0u64;
        for chunk in out.chunks_mut(32) {
            let place = (drawn.len() as u64).to_le_bytes();
            let block = sha256(&[&self.seed.to_le_bytes()[..], &place, &counter.to_le_bytes()].concat());
            chunk.copy_from_slice(block.get(..chunk.len()).unwrap_or_default());
            counter = counter.saturating_add(1);
        }
        drawn.push(out.to_vec());
        true
    }
}

/// Certifies, and keeps the frames of every log by instance; says `stored` to all of it. Without `certify` it
/// certifies nothing, without `open` it never answers.
pub struct Keeper {
    /// Gives the certificate for a key.
    pub certify: Box<dyn Fn([u8; 32]) -> String + Send + Sync>,
    /// Whether streams are taken.
    pub open: bool,
    /// Frames by instance.
    pub kept: Arc<Mutex<BTreeMap<u64, Frames>>>,
}

impl RecordSink for Keeper {
    fn certify(&self, public_key: [u8; 32]) -> BoxFuture<'_, Result<String, SinkError>> {
        future::ready(Ok((self.certify)(public_key))).boxed()
    }

    fn connect(&self) -> BoxFuture<'_, Result<RecordStream, SinkError>> {
        if !self.open {
            return future::pending().boxed();
        }
        let (up, chunks) = mpsc::channel(8);
        let (acks, down) = mpsc::channel(64);
        #[allow(clippy::disallowed_methods)] // The test's runtime owns it; it ends with its channels.
        tokio::spawn(keep(Arc::clone(&self.kept), chunks, acks));
        future::ready(Ok(RecordStream { up, down })).boxed()
    }
}

async fn keep(
    kept: Arc<Mutex<BTreeMap<u64, Frames>>>,
    mut chunks: mpsc::Receiver<Bytes>,
    acks: mpsc::Sender<RecordAck>,
) {
    let (mut waiting, mut of) = (Vec::new(), 0);
    while let Some(chunk) = chunks.recv().await {
        waiting.extend_from_slice(&chunk);
        let mut upto = None;
        while let Ok(Some((item, used))) = stream::parse(&waiting) {
            match item {
                Item::Announce { instance, .. } => of = instance,
                Item::Frame(frame) => {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    let number = frame.header.log_number;
                    kept.entry(of).or_default().insert(number, frame.bytes.to_vec());
                    upto = Some(number);
                }
                Item::End { number, .. } => upto = Some(number),
                Item::Key { .. } | Item::Heartbeat { .. } => {}
            }
            waiting.drain(..used);
        }
        if let Some(upto) = upto {
            if acks.send(RecordAck::Stored { upto }).await.is_err() {
                return;
            }
        }
    }
}
