//! What a restart finds: logs of earlier starts on the journal volume, read up to their last good frame.
//!
//! The scan stops at the first bad checksum, length or link and says where and why; what lies behind it is cut
//! from what is uploaded, never repaired. The new log states it in a `recovered` frame under its own key.
//! Invariant: an earlier log is only read and, once the collector stored it, removed; never written.

use std::io;

use sidegate_policies::record::chain::LogChain;
use sidegate_policies::record::frame::{hex, unhex, Frame, Hash};
use sidegate_policies::record::payload::Recovered;

use super::journal::Volume;
use super::segment::Piece;

/// Bytes of one journal file, at most: a segment, its footer and one append beyond.
const MAX_FILE: usize = 64 << 20;

/// A log of an earlier start.
#[derive(Debug, Clone)]
pub(super) struct EarlierLog {
    pub name: String,
    pub instance: u64,
    pub boot: Hash,
    pub pieces: Vec<Piece>,
    /// Next log number after the last good frame.
    pub next: u64,
    pub head: Hash,
    count: u64,
    why: &'static str,
    cut_bytes: u64,
}

impl EarlierLog {
    /// Bytes that wait for the collector.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len).sum()
    }

    /// The `recovered` frame's payload.
    pub fn recovered(&self) -> Recovered {
        Recovered {
            log: hex(&self.boot),
            instance: self.instance,
            number: self.next.saturating_sub(1),
            head: hex(&self.head),
            count: self.count,
            why: self.why.into(),
            cut_bytes: self.cut_bytes,
        }
    }
}

/// The directory of a log.
pub(super) fn log_name(instance: u64, boot: &Hash) -> String {
    format!("{instance}-{}", hex(boot))
}

fn parse_name(name: &str) -> Option<(u64, Hash)> {
    let (instance, boot) = name.split_once('-')?;
    Some((instance.parse().ok()?, unhex(boot)?))
}

/// Every earlier log with something left to upload. Logs with nothing left are removed.
pub(super) fn scan(volume: &dyn Volume) -> io::Result<Vec<EarlierLog>> {
    let mut found = Vec::new();
    for name in volume.logs()? {
        let Some((instance, boot)) = parse_name(&name) else {
            tracing::warn!(name, "the journal volume holds something that is no log");
            continue;
        };
        let log = scan_log(volume, name, instance, boot)?;
        if log.count > 0 {
            found.push(log);
        } else {
            remove(volume, &log);
        }
    }
    Ok(found)
}

/// Removes an earlier log from the volume.
pub(super) fn remove(volume: &dyn Volume, log: &EarlierLog) {
    let files = volume.files(&log.name).unwrap_or_default();
    let failed =
        files.iter().any(|(file, _)| volume.remove(&log.name, file).is_err()) || volume.remove_log(&log.name).is_err();
    if failed {
        tracing::warn!(log = log.name, "a journal that was stored could not be removed");
    }
}

fn scan_log(volume: &dyn Volume, name: String, instance: u64, boot: Hash) -> io::Result<EarlierLog> {
    let mut log = EarlierLog {
        name,
        instance,
        boot,
        pieces: Vec::new(),
        next: 0,
        head: [0; 32],
        count: 0,
        why: "end",
        cut_bytes: 0,
    };
    let mut chain: Option<LogChain> = None;
    let named = |(file, len): (String, u64)| {
        let first = file.strip_suffix(".seg")?.parse::<u64>().ok()?;
        Some((file, len, first))
    };
    let files: Vec<_> = volume.files(&log.name)?.into_iter().filter_map(named).collect();
    let later = files.iter().skip(1).map(|(_, _, first)| Some(*first));
    let ends: Vec<_> = later.chain([None]).collect();
    for ((file, len, first), end) in files.into_iter().zip(ends) {
        if log.why == "chain" {
            log.cut_bytes = log.cut_bytes.saturating_add(len);
            continue;
        }
        let bytes = volume.read(&log.name, &file, 0, MAX_FILE)?;
        let begun = chain.get_or_insert_with(|| match first {
            0 => LogChain::default(),
            first => LogChain::partial(boot, first),
        });
        let (good, why) = good_prefix(begun, &bytes, end, &mut log.count);
        log.why = why;
        log.cut_bytes = log.cut_bytes.saturating_add(len.saturating_sub(good));
        if good > 0 {
            log.pieces.push(Piece {
                file,
                first,
                end: Some(begun.next),
                len: good,
            });
        }
    }
    if let Some(chain) = chain {
        (log.next, log.head) = (chain.next, chain.head);
    }
    Ok(log)
}

/// Length of the good frames at the start of `bytes`, and why they end. From log number `end` on the next file has
/// the word: what this one holds of it is a write that was refused and could not be cut off again.
fn good_prefix(chain: &mut LogChain, bytes: &[u8], end: Option<u64>, count: &mut u64) -> (u64, &'static str) {
    let mut at = 0usize;
    loop {
        let left = bytes.get(at..).unwrap_or_default();
        if left.is_empty() {
            return (at as u64, "end");
        }
        let Ok(frame) = Frame::parse(left) else {
            return (at as u64, "torn");
        };
        if end.is_some_and(|end| chain.next >= end) {
            return (at as u64, "end");
        }
        if chain.accept(&frame).is_err() {
            return (at as u64, "chain");
        }
        *count = count.saturating_add(1);
        at = at.saturating_add(frame.bytes.len());
    }
}
