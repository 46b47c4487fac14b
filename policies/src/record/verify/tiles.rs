//! Checkpoints and the tile log: what is proved to have existed.
//!
//! Every checkpoint must verify and its root must be that of the entries; every tile file must be what the
//! entries make of it. What the entries and the checkpoints say about logs and summaries becomes claims that
//! the rest of the store is held against. Invariant: a claim is taken only from a log whose roots verify.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::certificate::Ring;
use crate::record::frame::Hash;
use crate::record::layout::Store;
use crate::record::merkle::{leaf, node, Tree};
use crate::record::tlog::{bundle_entries, push_entry, tile_path, Checkpoint, Entry, TILE};
use crate::record::verify::{list, Report, Verdict, VerifyError};

/// What is proved to have existed.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// By log: log numbers and the hashes of those frames.
    frames: BTreeMap<String, BTreeMap<u64, Hash>>,
    /// By log: hashes of footers.
    pub seals: BTreeMap<String, BTreeSet<Hash>>,
    /// By path: hashes of summaries.
    pub summaries: BTreeMap<String, Hash>,
    /// By hash of a `boot` frame, hex: where a later start found that log to end.
    pub recovered: BTreeMap<String, (u64, Hash)>,
    /// Two checkpoints or entries said different things about one frame.
    pub torn: BTreeSet<String>,
}

impl Claims {
    /// Logs that something is claimed of.
    pub fn logs(&self) -> impl Iterator<Item = &str> {
        self.frames.keys().map(String::as_str)
    }

    /// Claimed frames of a log.
    pub fn of(&self, log: &str) -> BTreeMap<u64, Hash> {
        self.frames.get(log).cloned().unwrap_or_default()
    }

    fn frame(&mut self, log: &str, number: u64, hash: Hash) {
        let before = self.frames.entry(log.to_owned()).or_default().insert(number, hash);
        if before.is_some_and(|before| before != hash) {
            self.torn.insert(log.to_owned());
        }
    }
}

/// Reads everything below `tlog/`.
pub(super) fn read(
    store: &dyn Store,
    cluster: &str,
    ring: &Ring,
    extra: Option<&[u8]>,
    claims: &mut Claims,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let base = format!("v1/{cluster}/tlog/");
    let names = list(store, base.trim_end_matches('/'))?;
    let mut checkpoints = Vec::new();
    for name in names
        .iter()
        .filter(|name| name.starts_with(&format!("{base}checkpoint.")))
    {
        let bytes = super::read(store, name)?.unwrap_or_default();
        take_checkpoint(name, &bytes, ring, &mut checkpoints, report);
    }
    if let Some(bytes) = extra {
        take_checkpoint("the given checkpoint", bytes, ring, &mut checkpoints, report);
    }
    report.checkpoints = report.checkpoints.saturating_add(checkpoints.len() as u64);
    let size = checkpoints
        .iter()
        .map(|(_, checkpoint)| checkpoint.size)
        .max()
        .unwrap_or(0);
    let entries = read_entries(store, &base, &names, size, report)?;
    check_roots(&checkpoints, &entries, report);
    check_tiles(store, &base, &names, &entries, report)?;
    for entry in &entries {
        take_entry(entry, claims, report);
    }
    for (_, checkpoint) in &checkpoints {
        for head in &checkpoint.heads {
            claims.frame(&head.log, head.number, head.hash);
        }
    }
    Ok(())
}

fn take_checkpoint(
    name: &str,
    bytes: &[u8],
    ring: &Ring,
    checkpoints: &mut Vec<(String, Checkpoint)>,
    report: &mut Report,
) {
    let opened = std::str::from_utf8(bytes)
        .map_err(|_| "it is no text".to_owned())
        .and_then(|note| Checkpoint::open(note, &ring.checkpoints).map_err(|error| error.to_string()));
    match opened {
        Ok(checkpoint) => checkpoints.push((name.to_owned(), checkpoint)),
        Err(why) => report.store(Verdict::Forged, format!("{name}: {why}")),
    }
}

/// Entries up to `size`, from the widest bundle file of each index.
fn read_entries(
    store: &dyn Store,
    base: &str,
    names: &[String],
    size: u64,
    report: &mut Report,
) -> Result<Vec<Vec<u8>>, VerifyError> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    let mut index = 0u64;
    while (entries.len() as u64) < size {
        let missing = size.saturating_sub(entries.len() as u64).min(TILE);
        let widest = (missing..=TILE)
            .rev()
            .map(|width| format!("{base}{}", tile_path("entries", index, width)))
            .find(|name| names.binary_search(name).is_ok());
        let bytes = match &widest {
            Some(name) => super::read(store, name)?,
            None => None,
        };
        let Some(bundle) = bytes.as_deref().map(bundle_entries) else {
            report.store(
                Verdict::Truncated {
                    after: Some(entries.len() as u64),
                },
                format!("entries of the tile log are gone: bundle {index}"),
            );
            return Ok(entries);
        };
        let before = entries.len();
        entries.extend(bundle.unwrap_or_default().into_iter().map(<[u8]>::to_vec));
        if (entries.len().saturating_sub(before) as u64) < missing {
            report.store(
                Verdict::Forged,
                format!("bundle {index} of the tile log cannot be read"),
            );
            return Ok(entries);
        }
        index = index.saturating_add(1);
    }
    entries.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    Ok(entries)
}

fn check_roots(checkpoints: &[(String, Checkpoint)], entries: &[Vec<u8>], report: &mut Report) {
    let mut roots = BTreeMap::new();
    let wanted: BTreeSet<u64> = checkpoints.iter().map(|(_, checkpoint)| checkpoint.size).collect();
    let mut tree = Tree::default();
    if wanted.contains(&0) {
        roots.insert(0, tree.root());
    }
    for entry in entries {
        tree.push(entry);
        if wanted.contains(&tree.size()) {
            roots.insert(tree.size(), tree.root());
        }
    }
    for (name, checkpoint) in checkpoints {
        match roots.get(&checkpoint.size) {
            Some(root) if *root == checkpoint.root => {}
            Some(_) => report.store(
                Verdict::Forged,
                format!("{name}: the tile log does not lead to its root"),
            ),
            // That entries are missing was said already.
            None => {}
        }
    }
}

/// Every file below `tile/` must be what the entries make of it.
fn check_tiles(
    store: &dyn Store,
    base: &str,
    names: &[String],
    entries: &[Vec<u8>],
    report: &mut Report,
) -> Result<(), VerifyError> {
    let mut levels: Vec<Vec<Hash>> = vec![entries.iter().map(|entry| leaf(entry)).collect()];
    while let Some(next) = levels.last().map(|level| upper(level)).filter(|next| !next.is_empty()) {
        levels.push(next);
    }
    for name in names.iter().filter(|name| name.starts_with(&format!("{base}tile/"))) {
        let bytes = super::read(store, name)?.unwrap_or_default();
        let Some(right) = expected(name.strip_prefix(base).unwrap_or_default(), entries, &levels) else {
            // Beyond the newest checkpoint: written for one that was never signed.
            continue;
        };
        if right != bytes {
            report.store(Verdict::Forged, format!("{name} is not what the entries make of it"));
        }
    }
    Ok(())
}

/// What a tile file must hold; `None` if it reaches beyond the entries.
fn expected(path: &str, entries: &[Vec<u8>], levels: &[Vec<Hash>]) -> Option<Vec<u8>> {
    let (level, place) = path.strip_prefix("tile/")?.split_once('/')?;
    let (index, width) = match place.split_once(".p/") {
        Some((index, width)) => (index, width.parse::<u64>().ok()?),
        None => (place, TILE),
    };
    let index = index.split('/').try_fold(0u64, |sum, group| {
        sum.checked_mul(1000)?
            .checked_add(group.trim_start_matches('x').parse().ok()?)
    })?;
    let from = usize::try_from(index.checked_mul(TILE)?).ok()?;
    let to = from.checked_add(usize::try_from(width).ok()?)?;
    if level == "entries" {
        let mut bundle = Vec::new();
        for entry in entries.get(from..to)? {
            push_entry(entry, &mut bundle);
        }
        return Some(bundle);
    }
    let hashes = levels.get(level.parse::<usize>().ok()?)?.get(from..to)?;
    Some(hashes.concat())
}

/// Hashes of the next level of tiles: one for each full tile.
fn upper(level: &[Hash]) -> Vec<Hash> {
    level
        .chunks_exact(256)
        .map(|tile| {
            let mut hashes = tile.to_vec();
            while hashes.len() > 1 {
                hashes = hashes
                    .chunks(2)
                    .filter_map(|pair| match pair {
                        [left, right] => Some(node(left, right)),
                        _ => None,
                    })
                    .collect();
            }
            hashes.first().copied().unwrap_or_default()
        })
        .collect()
}

fn take_entry(bytes: &[u8], claims: &mut Claims, report: &mut Report) {
    match Entry::parse(bytes) {
        Some(Entry::Seal { log, number, hash, .. }) => {
            claims.frame(&log, number, hash);
            claims.seals.entry(log).or_default().insert(hash);
        }
        Some(Entry::Summary { path, hash }) => {
            if claims
                .summaries
                .insert(path.clone(), hash)
                .is_some_and(|before| before != hash)
            {
                report.store(
                    Verdict::Forged,
                    format!("{path} was stored twice with different content"),
                );
            }
        }
        None => report.store(Verdict::Forged, "an entry of the tile log cannot be read"),
    }
}
