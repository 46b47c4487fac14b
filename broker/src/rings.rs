//! Key rings: what signs now, what will sign, and what signed lately, in memory and in their home: files of one
//! machine, or a Secret that the replicas of a cluster share.
//!
//! A key is published before it signs and stays after its successor signs, so that nobody who caches keys meets an
//! unknown one. Refuses a ring that is torn, altered or another one: it is never replaced by new keys. The
//! invariants: only the newest key whose `usableFrom` has passed signs; memory never runs ahead of the home.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

use crate::config::StartError;
use crate::jwt::{Alg, KeySet, PublicKey, SigningFailed, SigningKey};
use crate::state::{remove, write_private, StateDir, StateError};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// A ring, by what it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RingName {
    /// Session and access tokens.
    Access,
    /// Assertions to identity providers, which cache keys for unknown times or hold an uploaded copy.
    Federation,
    /// Certificates of record keys, verified years later.
    Record,
}

/// When keys of a ring change; all in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// From one key's first use to the next one's.
    pub every: i64,
    /// Published so long before its first use.
    pub ahead: i64,
    /// Verifies so long after its successor's first use; `None`: for ever.
    pub after: Option<i64>,
}

impl RingName {
    /// Every ring.
    pub const ALL: [RingName; 3] = [RingName::Access, RingName::Federation, RingName::Record];

    /// As in file names, audit events and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            RingName::Access => "access",
            RingName::Federation => "federation",
            RingName::Record => "record",
        }
    }

    /// What its keys sign with: a ring has a key for each, and they rotate alike. Some providers take nothing but
    /// RS256; everybody else who verifies tokens of ours takes ES256.
    pub fn algorithms(self) -> &'static [Alg] {
        match self {
            RingName::Federation => &[Alg::Es256, Alg::Rs256],
            RingName::Access | RingName::Record => &[Alg::Es256],
        }
    }

    /// Its schedule. The longest token lives 15 min; clients cache our keys for an hour at most, vendors for days.
    pub fn schedule(self) -> Schedule {
        match self {
            RingName::Access => Schedule {
                every: DAY,
                ahead: 2 * HOUR,
                after: Some(16 * 60),
            },
            RingName::Federation => Schedule {
                every: 30 * DAY,
                ahead: 7 * DAY,
                after: Some(DAY),
            },
            RingName::Record => Schedule {
                every: 90 * DAY,
                ahead: 0,
                after: None,
            },
        }
    }
}

/// One key of a ring. No Debug: it may hold a secret.
struct Entry {
    public: PublicKey,
    /// Absent where it only verifies: what cannot be stolen cannot be misused.
    private: Option<Private>,
    usable_from: i64,
    retire_at: Option<i64>,
}

struct Private {
    key: SigningKey,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl Entry {
    fn generate(alg: Alg, usable_from: i64) -> Result<Arc<Self>, SigningFailed> {
        Self::of(SigningKey::generate_for(alg)?, usable_from, None)
    }

    fn signs_by(&self, alg: Alg) -> bool {
        self.public.alg == alg
    }

    fn of(pkcs8: Zeroizing<Vec<u8>>, usable_from: i64, retire_at: Option<i64>) -> Result<Arc<Self>, SigningFailed> {
        let key = SigningKey::from_pkcs8(&pkcs8)?;
        Ok(Arc::new(Entry {
            public: key.public().clone(),
            private: Some(Private { key, pkcs8 }),
            usable_from,
            retire_at,
        }))
    }

    fn kid(&self) -> String {
        self.public.thumbprint()
    }

    fn retired(&self, now: i64) -> bool {
        self.retire_at.is_some_and(|at| at <= now)
    }

    fn until(&self, retire_at: i64) -> Result<Arc<Self>, SigningFailed> {
        let retire_at = Some(self.retire_at.map_or(retire_at, |at| at.min(retire_at)));
        let Some(private) = &self.private else {
            return Ok(Arc::new(Entry {
                retire_at,
                ..self.verifier()
            }));
        };
        Self::of(private.pkcs8.clone(), self.usable_from, retire_at)
    }

    /// The same key without its private half.
    fn verifier(&self) -> Self {
        Entry {
            public: self.public.clone(),
            private: None,
            usable_from: self.usable_from,
            retire_at: self.retire_at,
        }
    }
}

/// The keys of a ring, oldest first. A planned set is made by [`Ring::due`] or [`Ring::fresh`] and put in force by
/// [`Ring::put`].
#[derive(Clone)]
pub struct Keys(Vec<Arc<Entry>>);

impl Keys {
    /// Public keys, oldest first.
    pub fn public(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.iter().map(|entry| &entry.public)
    }

    /// Ids of these keys that are not in `other`.
    pub fn missing_in(&self, other: &Keys) -> Vec<String> {
        let ids = self.0.iter().map(|entry| entry.kid());
        ids.filter(|id| other.0.iter().all(|entry| entry.kid() != *id))
            .collect()
    }

    /// Those that verify now, not used yet included.
    fn kept(&self, now: i64) -> impl Iterator<Item = &Arc<Entry>> {
        self.0.iter().filter(move |entry| !entry.retired(now))
    }

    /// No key: it signs and verifies nothing.
    pub(crate) fn none() -> Keys {
        Keys(Vec::new())
    }

    /// The first keys of a ring, one for each of its algorithms, usable at once: nobody holds an older one. `now` in
    /// seconds.
    pub(crate) fn first(name: RingName, now: i64) -> Result<Keys, SigningFailed> {
        let made = name.algorithms().iter().map(|alg| Entry::generate(*alg, now));
        made.collect::<Result<_, _>>().map(Keys)
    }

    /// Reads what [`Keys::print`] wrote, or says what is wrong with it.
    pub(crate) fn parse(name: RingName, bytes: &[u8]) -> Result<Keys, &'static str> {
        read(name, bytes)
    }

    /// The whole ring as its home keeps it.
    pub(crate) fn print(&self, name: RingName) -> Result<Zeroizing<Vec<u8>>, RingError> {
        print(name, self)
    }

    fn newest(&self, alg: Alg) -> Option<&Arc<Entry>> {
        let own = self.0.iter().filter(|entry| entry.signs_by(alg));
        own.max_by_key(|entry| entry.usable_from)
    }

    /// The newest key whose time has come. If that one cannot sign, none does: never an older one instead, nor one of
    /// another algorithm.
    fn signer(&self, alg: Alg, now: i64) -> Option<&Arc<Entry>> {
        let usable = self
            .kept(now)
            .filter(|entry| entry.signs_by(alg) && entry.usable_from <= now);
        usable.max_by_key(|entry| entry.usable_from)
    }
}

/// One key as people may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyInfo {
    /// RFC 7638 thumbprint.
    pub kid: String,
    /// From when on it may sign, seconds since 1970.
    pub usable_from: i64,
    /// From when on it verifies nothing; absent while it has no successor, and for record keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retire_at: Option<i64>,
}

/// Where a ring lies besides memory.
pub trait Home: Send + Sync {
    /// Puts a planned set there, durably, and then into memory; where memory or home hold anything but `before`, both
    /// stay as they are. Blocks.
    fn put(&self, name: RingName, memory: &ArcSwap<Keys>, before: &Arc<Keys>, next: Keys) -> Result<(), RingError>;

    /// Whether what is in memory was seen there recently enough to sign with.
    fn is_current(&self) -> bool;

    /// Whether this process creates and retires keys by itself.
    fn rotates(&self) -> bool;
}

/// A ring of one broker.
pub struct Ring {
    name: RingName,
    home: Arc<dyn Home>,
    keys: Arc<ArcSwap<Keys>>,
    changing: Mutex<()>,
    archived: Mutex<Option<Arc<Keys>>>,
}

/// Held from planning a change until it is in force: changes come one after another.
pub struct Changing<'a> {
    _held: MutexGuard<'a, ()>,
    before: Arc<Keys>,
}

/// A ring as a private file of the one process that uses it.
struct RingFile(PathBuf);

impl Home for RingFile {
    fn put(&self, name: RingName, memory: &ArcSwap<Keys>, _before: &Arc<Keys>, next: Keys) -> Result<(), RingError> {
        write_private(&self.0, &next.print(name)?)?;
        memory.store(Arc::new(next));
        Ok(())
    }

    fn is_current(&self) -> bool {
        true
    }

    fn rotates(&self) -> bool {
        true
    }
}

/// Why a ring was not changed. The old one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A key could not be made.
    #[error(transparent)]
    Key(#[from] SigningFailed),
    /// The disk.
    #[error(transparent)]
    State(#[from] StateError),
    /// Another replica was first. What it wrote is in force; a change may be planned anew.
    #[error("another replica changed the ring meanwhile")]
    Changed,
    /// The home that replicas share.
    #[error("the keys cannot be stored: {0}")]
    Shared(String),
    /// It cannot be written as JSON.
    #[error("a ring cannot be written: {0}")]
    Print(#[from] serde_json::Error),
}

impl Ring {
    /// Reads the ring, takes over the single key an older release left, or makes the first key, usable at once:
    /// nobody holds an older one. `now` in seconds.
    pub fn open(state: &StateDir, name: RingName, now: i64) -> Result<Self, StartError> {
        state.dir("keys")?;
        let file = format!("keys/{}.ring", name.as_str());
        let single = state.path(&format!("keys/{}.p8", name.as_str()));
        let fail = |error: RingError| StartError::crypto("a key ring", error);
        let path = state.path(&file);
        let keys = match state.read(&file)? {
            Some(bytes) => read(name, &Zeroizing::new(bytes)).map_err(|why| broken(&path, why))?,
            None => {
                let first = match state.read(&format!("keys/{}.p8", name.as_str()))? {
                    Some(pkcs8) => Entry::of(Zeroizing::new(pkcs8), now, None).map(|entry| Keys(vec![entry])),
                    None => Keys::first(name, now),
                };
                let keys = first.map_err(|error| fail(error.into()))?;
                let text = keys.print(name).map_err(fail)?;
                write_private(&path, &text)?;
                keys
            }
        };
        // The ring is durable: the single key it was made from must not come back should the ring be lost.
        remove(&single)?;
        let memory = Arc::new(ArcSwap::from_pointee(keys));
        Ok(Ring::at(name, memory, Arc::new(RingFile(path))))
    }

    /// A ring that lies elsewhere, over memory which its home keeps up to date.
    pub(crate) fn at(name: RingName, memory: Arc<ArcSwap<Keys>>, home: Arc<dyn Home>) -> Self {
        Ring {
            name,
            home,
            keys: memory,
            changing: Mutex::default(),
            archived: Mutex::default(),
        }
    }

    /// Whether this process creates and retires its keys by itself.
    pub fn rotates(&self) -> bool {
        self.home.rotates()
    }

    /// Which ring.
    pub fn name(&self) -> RingName {
        self.name
    }

    /// Signs claims under `typ` by ES256 with the newest usable key. `now` in seconds.
    ///
    /// # Errors
    /// Where no key is usable yet: a clock that was set back signs nothing, rather than with an unpublished key. And
    /// where the home was not heard of for too long: the key may have been replaced in an emergency (tests
    /// `a_home_that_is_behind_signs_nothing_and_still_verifies`, `a_replica_that_is_behind_signs_nothing`).
    pub fn sign(&self, typ: &str, claims: &Value, now: i64) -> Result<String, SigningFailed> {
        self.sign_by(Alg::Es256, typ, claims, now)
    }

    /// The same by any algorithm that the ring has keys for.
    ///
    /// # Errors
    /// As [`Ring::sign`]; also where the ring has no key for it (yet).
    pub fn sign_by(&self, alg: Alg, typ: &str, claims: &Value, now: i64) -> Result<String, SigningFailed> {
        if !self.home.is_current() {
            return Err(SigningFailed);
        }
        let keys = self.keys.load();
        let signer = keys.signer(alg, now).and_then(|entry| entry.private.as_ref());
        signer.ok_or(SigningFailed)?.key.sign(Some(typ), claims)
    }

    /// Public keys that verify now, those not used yet included.
    pub fn published(&self, now: i64) -> Vec<PublicKey> {
        let keys = self.keys.load();
        keys.kept(now).map(|entry| entry.public.clone()).collect()
    }

    /// The same as a set to verify with.
    pub fn verifying(&self, now: i64) -> KeySet {
        KeySet::new(self.published(now))
    }

    /// Whether this key verifies now.
    pub fn holds(&self, kid: &str, now: i64) -> bool {
        let keys = self.keys.load();
        let mut kept = keys.kept(now);
        kept.any(|entry| entry.public.kid.as_deref() == Some(kid))
    }

    /// When its newest key may sign, or could since, seconds since 1970.
    pub fn usable_from(&self) -> i64 {
        self.list().iter().map(|key| key.usable_from).max().unwrap_or(0)
    }

    /// Every key with its times, oldest first.
    pub fn list(&self) -> Vec<KeyInfo> {
        let keys = self.keys.load();
        let info = |entry: &Arc<Entry>| KeyInfo {
            kid: entry.kid(),
            usable_from: entry.usable_from,
            retire_at: entry.retire_at,
        };
        keys.0.iter().map(info).collect()
    }

    /// The keys in force.
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.load_full()
    }

    /// The keys in force, unless these were archived.
    pub fn unarchived(&self) -> Option<Arc<Keys>> {
        let archived = self.archived.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let keys = self.keys();
        let known = archived.as_ref().is_some_and(|archived| Arc::ptr_eq(archived, &keys));
        (!known).then_some(keys)
    }

    /// These keys' public halves are kept.
    pub fn archived(&self, keys: Arc<Keys>) {
        *self.archived.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(keys);
    }

    /// Begins a change.
    pub fn change(&self) -> Changing<'_> {
        let held = self.changing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Changing {
            _held: held,
            before: self.keys(),
        }
    }

    /// What the ring should be at `now`: a successor published in time, retired keys dropped. `None`: as it is.
    pub fn due(&self, changing: &Changing<'_>, now: i64) -> Result<Option<Keys>, RingError> {
        let schedule = self.name.schedule();
        let keys = &changing.before;
        let mut next: Vec<Arc<Entry>> = keys.kept(now).cloned().collect();
        let mut changed = next.len() != keys.0.len();
        let renew = schedule.every.saturating_sub(schedule.ahead);
        for alg in self.name.algorithms() {
            let newest = keys.newest(*alg);
            if newest.is_some_and(|newest| now < newest.usable_from.saturating_add(renew)) {
                continue;
            }
            let from = now.saturating_add(schedule.ahead);
            if let Some(after) = schedule.after {
                let until = |entry: &Arc<Entry>| match entry.signs_by(*alg) {
                    true => entry.until(from.saturating_add(after)),
                    false => Ok(Arc::clone(entry)),
                };
                next = next.iter().map(until).collect::<Result<_, _>>()?;
            }
            next.push(Entry::generate(*alg, from)?);
            changed = true;
        }
        if schedule.after.is_none() {
            changed |= forget_superseded(&mut next, now);
        }
        Ok(changed.then_some(Keys(next)))
    }

    /// The emergency: new keys, usable at once, and no old one. Record keys alone stay, to verify what was
    /// recorded, and lose their private half.
    pub fn fresh(&self, changing: &Changing<'_>, now: i64) -> Result<Keys, RingError> {
        let mut next = Vec::new();
        if self.name.schedule().after.is_none() {
            next.extend(changing.before.0.iter().map(|entry| Arc::new(entry.verifier())));
        }
        next.extend(Keys::first(self.name, now)?.0);
        Ok(Keys(next))
    }

    /// Puts a planned set in force: durable first, then in memory. Blocks.
    pub fn put(&self, changing: &Changing<'_>, keys: Keys) -> Result<(), RingError> {
        self.home.put(self.name, &self.keys, &changing.before, keys)
    }
}

/// Keys that verify for ever sign no more once a newer one does; true if one lost its private half.
fn forget_superseded(entries: &mut [Arc<Entry>], now: i64) -> bool {
    let usable = entries.iter().filter(|entry| entry.usable_from <= now);
    let Some(signs_from) = usable.map(|entry| entry.usable_from).max() else {
        return false;
    };
    let mut changed = false;
    for entry in entries {
        if entry.usable_from < signs_from && entry.private.is_some() {
            *entry = Arc::new(entry.verifier());
            changed = true;
        }
    }
    changed
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    version: u32,
    ring: RingName,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StoredKey {
    kid: String,
    usable_from: i64,
    retire_at: Option<i64>,
    jwk: Value,
    /// Base64url; absent where the key only verifies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pkcs8: Option<String>,
}

impl Drop for StoredKey {
    fn drop(&mut self) {
        self.pkcs8.zeroize();
    }
}

fn broken(path: &std::path::Path, why: &'static str) -> StartError {
    StartError::State(StateError::Broken {
        path: path.display().to_string(),
        what: format!("is no whole key ring ({why}); put it back from a copy: it is not replaced by new keys"),
    })
}

fn read(name: RingName, bytes: &[u8]) -> Result<Keys, &'static str> {
    let stored: Stored = serde_json::from_slice(bytes).map_err(|_| "not its JSON")?;
    if stored.version != 1 || stored.ring != name {
        return Err("another version or ring");
    }
    let keys: Result<Vec<_>, _> = stored.keys.iter().map(read_key).collect();
    let keys = keys?;
    if keys.is_empty() {
        return Err("no key in it");
    }
    Ok(Keys(keys))
}

fn read_key(stored: &StoredKey) -> Result<Arc<Entry>, &'static str> {
    let public = PublicKey::from_jwk(&stored.jwk).map_err(|_| "a public key is damaged")?;
    let entry = match &stored.pkcs8 {
        None => Arc::new(Entry {
            public,
            private: None,
            usable_from: stored.usable_from,
            retire_at: stored.retire_at,
        }),
        Some(text) => {
            let pkcs8 = URL_SAFE_NO_PAD.decode(text).map_err(|_| "a private key is damaged")?;
            let entry = Entry::of(Zeroizing::new(pkcs8), stored.usable_from, stored.retire_at);
            let entry = entry.map_err(|_| "a private key is damaged")?;
            if entry.public != public {
                return Err("a public key is not that of its private key");
            }
            entry
        }
    };
    if entry.kid() != stored.kid || entry.public.kid.as_deref() != Some(stored.kid.as_str()) {
        return Err("a kid is not its key's thumbprint");
    }
    Ok(entry)
}

fn print(name: RingName, keys: &Keys) -> Result<Zeroizing<Vec<u8>>, RingError> {
    let stored = Stored {
        version: 1,
        ring: name,
        keys: keys.0.iter().map(|entry| stored_key(entry)).collect(),
    };
    Ok(Zeroizing::new(serde_json::to_vec(&stored)?))
}

fn stored_key(entry: &Entry) -> StoredKey {
    StoredKey {
        kid: entry.kid(),
        usable_from: entry.usable_from,
        retire_at: entry.retire_at,
        jwk: entry.public.jwk(),
        pkcs8: entry
            .private
            .as_ref()
            .map(|private| URL_SAFE_NO_PAD.encode(&private.pkcs8)),
    }
}

#[cfg(test)]
mod tests;
