//! A log as it is read back: from its objects and from the landing journals of whoever kept it.
//!
//! Changes nothing on the disk. Refused: objects that do not chain. What a journal repeats is passed over, and where it
//! stops being good it is cut, which the caller is told.
//! Invariant: what is read is the longest chain that the store holds of the log.

use sidegate_policies::record::chain::LogChain;
use sidegate_policies::record::frame::Frame;
use sidegate_policies::record::layout::LogPath;
use sidegate_policies::record::Kind;

use super::collector::{LogState, Tear};
use super::{Records, RecordsError};

/// A log that was read back.
pub(super) struct Loaded {
    pub state: LogState,
    /// This broker's own journal holds exactly what is in no object, but for a torn end.
    pub exact: bool,
    /// Journals of other brokers, with how long they were.
    pub others: Vec<(String, u64)>,
}

/// A landing journal.
struct Journal {
    name: String,
    bytes: Vec<u8>,
}

impl Journal {
    fn first(&self) -> u64 {
        frames(&self.bytes)
            .next()
            .map_or(u64::MAX, |frame| frame.header.log_number)
    }
}

/// Whole frames at the start of `bytes`.
pub(super) fn frames(bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        let frame = Frame::parse(bytes.get(at..)?).ok()?;
        at = at.saturating_add(frame.bytes.len());
        Some(frame)
    })
}

/// Reads a log back: objects from the last footer that covers all open sessions, then the landing journals.
pub(super) fn load(records: &Records, path: &LogPath) -> Result<Loaded, RecordsError> {
    // Journals before objects: what leaves the one is in the other already.
    let own = records.landing(path);
    let journals = journals(records, path)?;
    let mut state = stored(records, path)?;
    for journal in &journals {
        let tear = take(&mut state, &journal.bytes);
        if journal.name == own {
            state.tear = tear;
        }
    }
    let held = journals.iter().find(|journal| journal.name == own);
    let exact = held.map_or(state.tail.is_empty(), |held| held.bytes.starts_with(&state.tail));
    state.landed = if exact { state.tail.len() } else { 0 };
    let others = journals.into_iter().filter(|journal| journal.name != own);
    let others = others.map(|journal| (journal.name, journal.bytes.len() as u64));
    Ok(Loaded {
        state,
        exact,
        others: others.collect(),
    })
}

/// Log numbers below this are held without this broker's own journal.
pub(super) fn held_elsewhere(records: &Records, path: &LogPath) -> Result<u64, RecordsError> {
    let own = records.landing(path);
    let journals = journals(records, path)?;
    let mut state = stored(records, path)?;
    for journal in journals.iter().filter(|journal| journal.name != own) {
        take(&mut state, &journal.bytes);
    }
    Ok(state.next())
}

/// What objects hold.
fn stored(records: &Records, path: &LogPath) -> Result<LogState, RecordsError> {
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
    Ok(state)
}

/// Takes what a journal holds beyond what is held already.
fn take(state: &mut LogState, journal: &[u8]) -> Tear {
    let (mut good, mut why) = (0usize, "torn");
    for frame in frames(journal) {
        // What an object or another journal holds already is good, too.
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
    let bytes = journal.len().saturating_sub(good) as u64;
    Tear { why, bytes }
}

/// The landing journals of a log, the one that begins first before the others.
fn journals(records: &Records, path: &LogPath) -> Result<Vec<Journal>, RecordsError> {
    let folder = path.landing();
    let folder = folder.rsplit_once('/').map_or("", |(folder, _)| folder);
    let prefix = format!("v1/{}/landing/", path.cluster);
    let mut found = Vec::new();
    for name in records.objects.list(folder)? {
        let parsed = LogPath::parse_landing(&path.cluster, name.strip_prefix(&prefix).unwrap_or_default());
        if parsed.is_some_and(|(of, _)| of == *path) {
            // One that vanishes became an object, or its broker gave the log up.
            if let Some(bytes) = records.objects.read(&name)? {
                found.push(Journal { name, bytes });
            }
        }
    }
    found.sort_by_key(Journal::first);
    Ok(found)
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
