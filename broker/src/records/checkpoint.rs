//! The cluster's tile log and its signed checkpoints.
//!
//! Entries wait in a synced file until a checkpoint covers them, so a crash between an object and its checkpoint
//! loses none. A checkpoint is signed when the tree grew or a log's head moved, never otherwise. Of several brokers each
//! has such a file of its own, and the leader takes from all of them. What comes behind a size is first put down in a
//! batch that is created once, so that two leaders at once, or one after another in the midst, make the same tree of it.
//! Refused: a tile that exists with other bytes. Invariants: entries are appended each once, a broker's in the order it
//! noted them; no two checkpoints of one size have other roots.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;

use sidegate_policies::record::frame::Hash;
use sidegate_policies::record::merkle::{leaf, node, Tree};
use sidegate_policies::record::tlog::{bundle_entries, push_entry, tile_path, Checkpoint, Entry, LogHead, TILE};

use super::objects::{failed, Objects};
use super::replicas::Others;
use super::{lock, wall_us, Records, RecordsError};

/// Entries of a broker that is the only one, and of each of several.
const PENDING: &str = "private/pending";
const NOTED: &str = "private/noted";
/// Size and repeat of the newest checkpoint; written behind it and before its batch goes.
const NEWEST: &str = "private/newest";
/// Levels of tiles: enough for 2^64 entries.
const LEVELS: usize = 8;

/// The log.
pub(super) struct TileLog {
    tree: Tree,
    /// Entries of the last, partial bundle.
    bundle: Vec<u8>,
    /// Hashes of the last, partial tile of each level.
    levels: Vec<Vec<Hash>>,
    /// Entries of this broker that no checkpoint covers, and where they lie.
    pending: Vec<Vec<u8>>,
    file: String,
    journal: File,
    /// Leaves of this broker's entries and of the tree's, each with whether the tree holds it.
    known: HashMap<Hash, bool>,
    signed_heads: Vec<LogHead>,
    signed_size: Option<u64>,
    /// Checkpoints of the present size so far.
    repeats: u64,
}

impl TileLog {
    /// Reads the log back, and the entries no checkpoint covers yet.
    pub fn open(objects: &Objects, replica: &str) -> Result<TileLog, RecordsError> {
        let file = match replica {
            "" => PENDING.to_owned(),
            replica => format!("{NOTED}/{replica}"),
        };
        let pending = objects.read(&file)?.unwrap_or_default();
        let (whole, waiting) = whole(&pending);
        let mut log = TileLog {
            tree: Tree::default(),
            bundle: Vec::new(),
            levels: vec![Vec::new(); LEVELS],
            pending: Vec::new(),
            journal: objects.journal(&file, whole as u64)?,
            file,
            known: HashMap::new(),
            signed_heads: Vec::new(),
            signed_size: None,
            repeats: 0,
        };
        let (size, repeats) = newest_checkpoint(objects)?;
        log.load(objects, size)?;
        log.signed_size = size;
        log.repeats = repeats;
        for entry in waiting {
            log.hold(entry.to_vec());
        }
        Ok(log)
    }

    /// Takes what another leader signed meanwhile; what is covered by now waits no more.
    pub fn follow(&mut self, objects: &Objects) -> Result<(), RecordsError> {
        let Some((size, repeats)) = newest(objects)? else {
            return Ok(());
        };
        if self
            .signed_size
            .is_some_and(|signed| (signed, self.repeats) >= (size, repeats))
        {
            return Ok(());
        }
        let before = self.tree.size();
        self.load(objects, Some(size))?;
        (self.signed_size, self.repeats) = (Some(size), repeats);
        if self.tree.size() > before {
            // Whoever signed may have died before its batch went.
            objects.remove(&batch(before))?;
            self.settle(objects)?;
        }
        Ok(())
    }

    /// Lets go of what a checkpoint covers.
    fn settle(&mut self, objects: &Objects) -> Result<(), RecordsError> {
        let (known, before) = (&self.known, self.pending.len());
        self.pending.retain(|entry| known.get(&leaf(entry)) != Some(&true));
        if self.pending.is_empty() {
            self.journal = objects.journal(&self.file, 0)?;
        } else if self.pending.len() < before {
            // A broker at work always has something that came behind the checkpoint: its file is not to grow for that.
            let mut left = Vec::new();
            for entry in &self.pending {
                push_entry(entry, &mut left);
            }
            objects.replace_private(&self.file, &left)?;
            self.journal = objects.journal(&self.file, left.len() as u64)?;
        }
        Ok(())
    }

    fn load(&mut self, objects: &Objects, size: Option<u64>) -> Result<(), RecordsError> {
        let size = size.unwrap_or(0);
        while self.tree.size() < size {
            let (index, there) = (self.tree.size() / TILE, self.tree.size() % TILE);
            let width = size.saturating_sub(index.saturating_mul(TILE)).min(TILE);
            let name = tlog(objects, &tile_path("entries", index, width));
            let bytes = objects.read(&name)?;
            let entries = bytes.as_deref().and_then(bundle_entries);
            let entries = entries.filter(|entries| entries.len() as u64 == width);
            let entries = entries.ok_or_else(|| RecordsError::Damaged {
                log: "tlog".into(),
                why: format!("{name} is missing or broken"),
            })?;
            for entry in entries.into_iter().skip(usize::try_from(there).unwrap_or(0)) {
                self.append(objects, entry, false)?;
            }
        }
        Ok(())
    }

    /// Has an entry of this broker's wait for a checkpoint, once.
    fn hold(&mut self, entry: Vec<u8>) {
        if let Slot::Vacant(slot) = self.known.entry(leaf(&entry)) {
            slot.insert(false);
            self.pending.push(entry);
        }
    }

    /// Notes an entry, synced; the next checkpoint covers it. Known ones are not noted twice.
    pub fn note(&mut self, objects: &Objects, entry: &Entry) -> Result<(), RecordsError> {
        let bytes = entry.to_bytes();
        if self.known.contains_key(&leaf(&bytes)) {
            return Ok(());
        }
        let mut framed = Vec::new();
        push_entry(&bytes, &mut framed);
        self.journal
            .write_all(&framed)
            .and_then(|()| self.journal.sync_data())
            .map_err(|error| failed(&objects.path(&self.file), error))?;
        self.hold(bytes);
        Ok(())
    }

    /// Appends an entry to tree, bundle and tiles; full tiles are written when `write` says so.
    fn append(&mut self, objects: &Objects, entry: &[u8], write: bool) -> Result<(), RecordsError> {
        let size = self.tree.size();
        let hash = leaf(entry);
        self.tree.push(entry);
        self.known.insert(hash, true);
        push_entry(entry, &mut self.bundle);
        if self.tree.size().is_multiple_of(TILE) {
            if write {
                let name = tlog(objects, &tile_path("entries", size / TILE, TILE));
                objects.create(&name, &self.bundle)?;
            }
            self.bundle.clear();
        }
        let mut carry = Some(hash);
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
        let waiting = self.waiting(objects)?;
        if waiting.is_empty() && !moved && self.tree.size() == self.signed_size.unwrap_or(0) {
            return Ok(false);
        }
        let before = self.tree.size();
        for entry in self.batch(objects, waiting)? {
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
        objects.replace_private(NEWEST, format!("{size} {}", self.repeats).as_bytes())?;
        objects.remove(&batch(before))?;
        self.settle(objects)?;
        Ok(true)
    }

    /// Every broker's entries that the tree does not hold.
    fn waiting(&self, objects: &Objects) -> Result<Vec<Vec<u8>>, RecordsError> {
        let mut waiting = self.pending.clone();
        // Two brokers may note the same one.
        let mut taken: HashSet<Hash> = HashSet::new();
        let mut files = objects.list(NOTED)?;
        files.push(PENDING.to_owned());
        for file in files.iter().filter(|file| **file != self.file) {
            for entry in entries(&objects.read(file)?.unwrap_or_default()) {
                let hash = leaf(&entry);
                if !self.known.contains_key(&hash) && taken.insert(hash) {
                    waiting.push(entry);
                }
            }
        }
        Ok(waiting)
    }

    /// What comes behind the present size: these, or what another leader has put down before.
    fn batch(&self, objects: &Objects, waiting: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, RecordsError> {
        if waiting.is_empty() {
            return Ok(waiting);
        }
        let (name, mut framed) = (batch(self.tree.size()), Vec::new());
        for entry in &waiting {
            push_entry(entry, &mut framed);
        }
        let batch = match objects.create(&name, &framed) {
            Err(RecordsError::Differs(_)) => entries(&objects.read(&name)?.unwrap_or_default()),
            made => made.map(|_| waiting)?,
        };
        // A batch goes once a checkpoint covers it: where there is a newer one, this one was no leader's.
        match newest(objects)? {
            Some((size, _)) if size > self.tree.size() => {
                objects.remove(&name)?;
                Err(RecordsError::Behind("tlog".to_owned()))
            }
            _ => Ok(batch),
        }
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
    pub(super) fn checkpoint(&self, others: &Others) -> Result<bool, RecordsError> {
        let heads = self.heads(others);
        let mut tiles = lock(&self.tiles);
        let signed = tiles
            .follow(&self.objects)
            .and_then(|()| tiles.checkpoint(&self.objects, heads, |checkpoint| self.keys.sign(checkpoint)));
        if signed.is_err() {
            // What is in memory may be ahead of the disk now: go on from what is stored.
            *tiles = TileLog::open(&self.objects, &self.options.replica)?;
        }
        match signed {
            // Another leader was there first; the next turn finds what it made.
            Err(RecordsError::Behind(_)) => Ok(false),
            Err(RecordsError::Differs(name)) if self.is_shared() && name.contains("/checkpoint.") => Ok(false),
            signed => signed,
        }
    }

    /// Takes what the leader signed.
    pub(super) fn follow(&self) -> Result<(), RecordsError> {
        lock(&self.tiles).follow(&self.objects)
    }

    pub(super) fn note(&self, entry: &Entry) -> Result<(), RecordsError> {
        lock(&self.tiles).note(&self.objects, entry)
    }
}

fn tlog(objects: &Objects, name: &str) -> String {
    format!("v1/{}/tlog/{name}", objects.cluster())
}

/// Where the entries stand that come behind a size.
fn batch(size: u64) -> String {
    format!("private/batch.{size}")
}

/// The whole entries of a file, and how long they are.
fn whole(bytes: &[u8]) -> (usize, Vec<&[u8]>) {
    let mut whole = bytes.len();
    loop {
        match bundle_entries(bytes.get(..whole).unwrap_or_default()) {
            Some(entries) => return (whole, entries),
            // A torn last entry: its object was never made, or is noted again when the sidecar sends it again.
            None => whole = whole.saturating_sub(1),
        }
    }
}

/// The whole entries of a file.
fn entries(bytes: &[u8]) -> Vec<Vec<u8>> {
    whole(bytes).1.into_iter().map(<[u8]>::to_vec).collect()
}

/// What the newest checkpoint says of itself, if there is one.
fn newest(objects: &Objects) -> Result<Option<(u64, u64)>, RecordsError> {
    let text = objects.read(NEWEST)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let numbers = text.split_once(' ');
    Ok(numbers.and_then(|(size, repeat)| Some((size.parse().ok()?, repeat.parse().ok()?))))
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
