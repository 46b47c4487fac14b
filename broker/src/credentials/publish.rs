//! Our discovery document and keys, kept where a provider fetches them that cannot fetch them from us.
//!
//! Refuses to take a key for published that is not in the place itself, read back or just written there: until then
//! nothing is signed with it for that provider (`a_key_signs_for_a_provider_once_it_is_published`). What somebody else
//! wrote there is put right within a minute. The invariant: nothing but public documents leaves by this way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::BoxFuture;
use rustix::fs::OFlags;
use serde_json::Value;
use sidegate_policies::api::token_issuer::Publish;

use crate::clock::Clock;
use crate::task::blocking;

/// A place that has them is looked at again after so long, and one that has not, milliseconds.
const GOOD_MS: i64 = 60_000;
const BAD_MS: i64 = 5_000;

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// `.well-known/openid-configuration`.
    pub discovery: String,
    /// `jwks`.
    pub jwks: String,
}

/// Why something is not published. Names places, never contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unpublished {
    /// In one word, as in conditions.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// ConfigMaps of the broker's own namespace that documents are written to.
pub trait KeyMaps: Send + Sync {
    /// Sees to it that the map has the documents; gives the keys it has.
    fn put<'a>(&'a self, name: &'a str, documents: &'a Documents) -> BoxFuture<'a, Result<String, Unpublished>>;
}

/// What is known of one place.
struct Known {
    documents: Documents,
    again_ms: i64,
    outcome: Result<BTreeSet<String>, Unpublished>,
}

/// Every place that a TokenIssuer names.
pub struct Published {
    maps: Option<Arc<dyn KeyMaps>>,
    places: Mutex<BTreeMap<Publish, Known>>,
}

impl Published {
    /// Nothing is yet. Without `maps` this is one machine, which has folders.
    pub fn new(maps: Option<Arc<dyn KeyMaps>>) -> Self {
        Published {
            maps,
            places: Mutex::default(),
        }
    }

    /// Whether a key is published in a place.
    ///
    /// # Errors
    /// Why nothing is, or that this key is not yet.
    pub fn holds(&self, place: &Publish, kid: &str) -> Result<(), Unpublished> {
        let places = self.places();
        let later = || Unpublished {
            reason: "Pending",
            message: "the newest key is not published yet".to_owned(),
        };
        let known = places.get(place).ok_or_else(later)?;
        let kids = known.outcome.as_ref().map_err(Clone::clone)?;
        kids.contains(kid).then_some(()).ok_or_else(later)
    }

    /// Whether everything stands in a place; nothing: it was not looked at yet.
    pub fn outcome(&self, place: &Publish) -> Option<Result<(), Unpublished>> {
        let places = self.places();
        let known = places.get(place)?;
        Some(known.outcome.as_ref().map(|_| ()).map_err(Clone::clone))
    }

    /// Forgets every place but those that are wanted, and sees to it that these have the documents, where that was not
    /// seen just now.
    pub async fn look(&self, wanted: BTreeSet<Publish>, documents: impl FnOnce() -> Documents, clock: &dyn Clock) {
        self.places().retain(|place, _| wanted.contains(place));
        if wanted.is_empty() {
            return;
        }
        let documents = documents();
        for place in wanted {
            let now = clock.now_ms();
            let due = self.places().get(&place).is_none_or(|known| {
                known.documents != documents || known.again_ms <= now || known.again_ms.saturating_sub(now) > GOOD_MS
            });
            if !due {
                continue;
            }
            let outcome = self.put(&place, &documents).await;
            if let Err(error) = &outcome {
                tracing::warn!(%error, "our keys cannot be published");
            }
            let whole = outcome.as_ref().is_ok_and(|found| *found == kids(&documents.jwks));
            let good_for = if whole { GOOD_MS } else { BAD_MS };
            let known = Known {
                documents: documents.clone(),
                again_ms: now.saturating_add(good_for),
                outcome,
            };
            self.places().insert(place, known);
        }
    }

    async fn put(&self, place: &Publish, documents: &Documents) -> Result<BTreeSet<String>, Unpublished> {
        let elsewhere = |message: &str| Unpublished {
            reason: "NotHere",
            message: message.to_owned(),
        };
        let jwks = match (place, &self.maps) {
            (Publish::ConfigMap(map), Some(maps)) => maps.put(&map.name, documents).await?,
            (Publish::Directory(path), None) => {
                let (folder, documents) = (path.clone(), documents.clone());
                let failed = |error: io::Error| Unpublished {
                    reason: "NotWritten",
                    message: format!("{path}: {error}"),
                };
                let written = blocking(move || write(Path::new(&folder), &documents).map(|()| documents.jwks)).await;
                let written = written.unwrap_or_else(|| Err(io::Error::other("the writer was lost")));
                written.map_err(failed)?
            }
            (Publish::ConfigMap(_), None) => {
                return Err(elsewhere("publish.configMap is for a cluster; name a directory"))
            }
            (Publish::Directory(_), Some(_)) => {
                return Err(elsewhere("publish.directory is for one machine; name a configMap"))
            }
        };
        Ok(kids(&jwks))
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<Publish, Known>> {
        self.places.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The ids in a JWK set.
fn kids(jwks: &str) -> BTreeSet<String> {
    let set: Value = serde_json::from_str(jwks).unwrap_or_default();
    let keys = set.get("keys").and_then(Value::as_array).into_iter().flatten();
    let ids = keys.filter_map(|key| key.get("kid").and_then(Value::as_str).map(str::to_owned));
    ids.collect()
}

/// Keys first: whoever follows the discovery document finds them.
fn write(folder: &Path, documents: &Documents) -> io::Result<()> {
    let known = folder.join(".well-known");
    replace(folder, "jwks", &documents.jwks)?;
    match fs::create_dir(&known) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    replace(&known, "openid-configuration", &documents.discovery)
}

/// A file for everybody, replaced in one step; left alone where it is so already.
fn replace(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = folder.join(name);
    if fs::read(&path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(());
    }
    let new = folder.join(format!(".{name}.new"));
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(flags)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)
}
