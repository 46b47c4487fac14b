//! The cluster's tile log and its signed checkpoints.
//!
//! Entries wait in a synced file until a checkpoint covers them, so a crash between an object and its checkpoint
//! loses none. A checkpoint is signed when the tree grew or a log's head moved, never otherwise.
//! Refused: a tile that exists with other bytes. Invariant: entries are appended in the order they were noted,
//! each once.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;

use sidegate_policies::record::frame::Hash;
use sidegate_policies::record::merkle::{leaf, node, Tree};
use sidegate_policies::record::tlog::{bundle_entries, push_entry, tile_path, Checkpoint, Entry, LogHead, TILE};

use super::objects::{failed, Objects};
use super::{lock, wall_us, Records, RecordsError};

const PENDING: &str = "private/pending";
/// Levels of tiles: enough for 2^64 entries.
const LEVELS: usize = 8;

/// The log.
pub(super) struct TileLog {
    tree: Tree,
    /// Entries of the last, partial bundle.
    bundle: Vec<u8>,
    /// Hashes of the last, partial tile of each level.
    levels: Vec<Vec<Hash>>,
    pending: Vec<Vec<u8>>,
    journal: File,
    known: HashSet<Hash>,
    signed_heads: Vec<LogHead>,
    signed_size: Option<u64>,
    /// Checkpoints of the present size so far.
    repeats: u64,
}

impl TileLog {
    /// Reads the log back, and the entries no checkpoint covers yet.
    pub fn open(objects: &Objects) -> Result<TileLog, RecordsError> {
        let pending = objects.read(PENDING)?.unwrap_or_default();
        let mut whole = pending.len();
        while bundle_entries(pending.get(..whole).unwrap_or_default()).is_none() {
            // A torn last entry: its object was never made, or is noted again when the sidecar sends it again.
            whole = whole.saturating_sub(1);
        }
        let mut log = TileLog {
            tree: Tree::default(),
            bundle: Vec::new(),
            levels: vec![Vec::new(); LEVELS],
            pending: Vec::new(),
            journal: objects.journal(PENDING, whole as u64)?,
            known: HashSet::new(),
            signed_heads: Vec::new(),
            signed_size: None,
            repeats: 0,
        };
        let (size, repeats) = newest_checkpoint(objects)?;
        log.load(objects, size)?;
        log.signed_size = size;
        log.repeats = repeats;
        let waiting = pending.get(..whole).unwrap_or_default();
        for entry in bundle_entries(waiting).unwrap_or_default() {
            if log.known.insert(leaf(entry)) {
                log.pending.push(entry.to_vec());
            }
        }
        Ok(log)
    }

    fn load(&mut self, objects: &Objects, size: Option<u64>) -> Result<(), RecordsError> {
        let size = size.unwrap_or(0);
        let mut index = 0u64;
        while self.tree.size() < size {
            let width = size.saturating_sub(self.tree.size()).min(TILE);
            let name = tlog(objects, &tile_path("entries", index, width));
            let bytes = objects.read(&name)?;
            let entries = bytes.as_deref().and_then(bundle_entries);
            let entries = entries.filter(|entries| entries.len() as u64 == width);
            for entry in entries.ok_or_else(|| RecordsError::Damaged {
                log: "tlog".into(),
                why: format!("{name} is missing or broken"),
            })? {
                self.known.insert(leaf(entry));
                self.append(objects, entry, false)?;
            }
            index = index.saturating_add(1);
        }
        Ok(())
    }

    /// Notes an entry, synced; the next checkpoint covers it. Known ones are not noted twice.
    pub fn note(&mut self, objects: &Objects, entry: &Entry) -> Result<(), RecordsError> {
        let bytes = entry.to_bytes();
        if !self.known.insert(leaf(&bytes)) {
            return Ok(());
        }
        let mut framed = Vec::new();
        push_entry(&bytes, &mut framed);
        self.journal
            .write_all(&framed)
            .and_then(|()| self.journal.sync_data())
            .map_err(|error| failed(&objects.path(PENDING), error))?;
        self.pending.push(bytes);
        Ok(())
    }

    /// Appends an entry to tree, bundle and tiles; full tiles are written when `write` says so.
    fn append(&mut self, objects: &Objects, entry: &[u8], write: bool) -> Result<(), RecordsError> {
        let size = self.tree.size();
        self.tree.push(entry);
        push_entry(entry, &mut self.bundle);
        if self.tree.size().is_multiple_of(TILE) {
            if write {
                let name = tlog(objects, &tile_path("entries", size / TILE, TILE));
                objects.create(&name, &self.bundle)?;
            }
            self.bundle.clear();
        }
        let mut carry = Some(leaf(entry));
        let mut index = size / TILE;
        for (level, hashes) in self.levels.iter_mut().enumerate() {
            let Some(hash) = carry.take() else { break };
            hashes.push(hash);
            if hashes.len() as u64 == TILE {
                if write {
                    let name = tlog(objects, &tile_path(&level.to_string(), index, TILE));
                    objects.create(&name, &hashes.concat())?;
                }
                carry = Some(root_of(hashes));
                hashes.clear();
                index /= TILE;
            }
        }
        Ok(())
    }

    fn checkpoint(
        &mut self,
        objects: &Objects,
        heads: Vec<LogHead>,
        sign: impl Fn(Checkpoint) -> Result<String, RecordsError>,
    ) -> Result<bool, RecordsError> {
        let moved = heads.iter().any(|head| !self.signed_heads.contains(head));
        if self.pending.is_empty() && !moved && self.tree.size() == self.signed_size.unwrap_or(0) {
            return Ok(false);
        }
        for entry in std::mem::take(&mut self.pending) {
            self.append(objects, &entry, true)?;
        }
        self.write_partial(objects)?;
        let size = self.tree.size();
        let note = sign(Checkpoint {
            origin: String::new(),
            size,
            root: self.tree.root(),
            time_us: wall_us(),
            heads: heads.clone(),
        })?;
        self.repeats = match self.signed_size {
            Some(signed) if signed == size => self.repeats.saturating_add(1),
            _ => 0,
        };
        objects.create(&tlog(objects, &checkpoint_name(size, self.repeats)), note.as_bytes())?;
        self.signed_size = Some(size);
        self.signed_heads = heads;
        self.journal = objects.journal(PENDING, 0)?;
        Ok(true)
    }

    fn write_partial(&self, objects: &Objects) -> Result<(), RecordsError> {
        let mut size = self.tree.size();
        let width = size % TILE;
        if width > 0 {
            let name = tlog(objects, &tile_path("entries", size / TILE, width));
            objects.create(&name, &self.bundle)?;
        }
        for (level, hashes) in self.levels.iter().enumerate() {
            if !hashes.is_empty() {
                let name = tile_path(&level.to_string(), size / TILE, hashes.len() as u64);
                objects.create(&tlog(objects, &name), &hashes.concat())?;
            }
            size /= TILE;
        }
        Ok(())
    }
}

impl Records {
    /// Signs a checkpoint if the tree grew or a head moved.
    pub(super) fn checkpoint(&self) -> Result<bool, RecordsError> {
        let mut heads: Vec<LogHead> = self.all_logs().iter().filter_map(|log| lock(log).head()).collect();
        heads.sort_by(|a, b| a.log.cmp(&b.log));
        let mut tiles = lock(&self.tiles);
        let signed = tiles.checkpoint(&self.objects, heads, |checkpoint| self.keys.sign(checkpoint));
        if signed.is_err() {
            // What is in memory may be ahead of the disk now: go on from what is stored.
            *tiles = TileLog::open(&self.objects)?;
        }
        signed
    }

    pub(super) fn note(&self, entry: &Entry) -> Result<(), RecordsError> {
        lock(&self.tiles).note(&self.objects, entry)
    }
}

fn tlog(objects: &Objects, name: &str) -> String {
    format!("v1/{}/tlog/{name}", objects.cluster())
}

fn checkpoint_name(size: u64, repeat: u64) -> String {
    match repeat {
        0 => format!("checkpoint.{size}"),
        repeat => format!("checkpoint.{size}.{repeat}"),
    }
}

/// Size of the newest checkpoint, and how many more there are of that size.
fn newest_checkpoint(objects: &Objects) -> Result<(Option<u64>, u64), RecordsError> {
    let mut newest = None;
    for name in objects.list(&format!("v1/{}/tlog", objects.cluster()))? {
        let Some((_, number)) = name.rsplit_once("/checkpoint.") else {
            continue;
        };
        let (size, repeat) = number.split_once('.').unwrap_or((number, "0"));
        if let (Ok(size), Ok(repeat)) = (size.parse::<u64>(), repeat.parse::<u64>()) {
            newest = newest.max(Some((size, repeat)));
        }
    }
    Ok((newest.map(|(size, _)| size), newest.map_or(0, |(_, repeat)| repeat)))
}

fn root_of(hashes: &[Hash]) -> Hash {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .filter_map(|pair| match pair {
                [left, right] => Some(node(left, right)),
                _ => None,
            })
            .collect();
    }
    level.first().copied().unwrap_or_default()
}
