//! The webhook's certificates as they should be at a moment: an authority of its own, and the leaf that is served.
//!
//! Pure: what comes next follows from what is, what the webhook configurations say, and the time. Refuses a set in which
//! key and certificate do not match. Invariant: the leaf is never under an authority that the configurations were not told
//! of before, and an authority is not withdrawn before the leaf of its successor is served everywhere.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use sidegate_cluster::certificate::{CertificateError, Pair, DAY};
use zeroize::Zeroizing;

const FAMILY: &str = "Sidegate webhook CA";
const LEAF: &str = "Sidegate injector";
/// Renewals are spread over such a part of a life, so that many clusters do not renew at once.
const SPREAD: i64 = 30;

/// How long things last, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// An authority.
    pub authority: i64,
    /// A leaf.
    pub leaf: i64,
    /// From the moment that every configuration names a new authority until a leaf under it is served: several API
    /// servers hear of it one after another.
    pub announced: i64,
    /// From then until the old authority is withdrawn: replicas hear of the new leaf one after another.
    pub withdrawn: i64,
}

impl Default for Lives {
    fn default() -> Self {
        Lives {
            authority: 10 * 365 * DAY,
            leaf: 60 * DAY,
            announced: 60,
            withdrawn: 600,
        }
    }
}

/// All of it. No Debug: it holds private keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Set {
    version: u32,
    /// How often it was changed.
    generation: u64,
    authority: Pair,
    /// An authority that is announced, and signs nothing yet.
    next: Option<Pair>,
    /// The certificate of the authority before, which signs nothing any more, PEM.
    previous: Option<String>,
    leaf: Pair,
    /// What the leaf is for.
    names: Vec<String>,
}

impl Set {
    /// A new authority and a leaf for these names. `now` in seconds.
    ///
    /// # Errors
    /// The library does not make them.
    pub fn first(names: &[String], lives: &Lives, now: i64) -> Result<Self, CertificateError> {
        let authority = Pair::authority(FAMILY, 0, now, lives.authority)?;
        let leaf = authority.leaf(LEAF, names.to_vec(), now, lives.leaf)?;
        Ok(Set {
            version: 1,
            generation: 1,
            authority,
            next: None,
            previous: None,
            leaf,
            names: names.to_vec(),
        })
    }

    /// Reads what [`Set::print`] wrote.
    ///
    /// # Errors
    /// It is something else, or its parts do not match.
    pub fn parse(bytes: &[u8]) -> Result<Self, CertificateError> {
        let read: Self = serde_json::from_slice(bytes).map_err(|_| CertificateError::Damaged("not its JSON"))?;
        if read.version != 1 {
            return Err(CertificateError::Damaged("another version"));
        }
        read.certified()?;
        read.authority.key_pair()?;
        Ok(read)
    }

    /// The whole set as JSON.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn print(&self) -> Result<Zeroizing<Vec<u8>>, CertificateError> {
        let text = serde_json::to_vec(self).map_err(|_| CertificateError::Damaged("it cannot be written"))?;
        Ok(Zeroizing::new(text))
    }

    /// What should follow, if anything is due. `told`: since when every configuration names [`Set::bundle`], if each does;
    /// times in seconds.
    ///
    /// # Errors
    /// The library does not make it.
    pub fn due(
        &self,
        names: &[String],
        lives: &Lives,
        told: Option<i64>,
        now: i64,
    ) -> Result<Option<Self>, CertificateError> {
        let for_long = |seconds: i64| told.is_some_and(|since| now >= since.saturating_add(seconds));
        let mut after = self.clone();
        if let Some(next) = self.next.as_ref().filter(|_| for_long(lives.announced)) {
            after.previous = Some(self.authority.certificate.clone());
            after.authority = next.clone();
            after.next = None;
            after.leaf = after.authority.leaf(LEAF, names.to_vec(), now, lives.leaf)?;
        } else if self.previous.is_some() && for_long(lives.withdrawn) {
            after.previous = None;
        } else if self.next.is_none() && self.previous.is_none() && is_due(&self.authority, now) {
            after.next = Some(Pair::authority(FAMILY, 0, now, lives.authority)?);
        } else if is_due(&self.leaf, now) || self.names != names {
            after.leaf = self.authority.leaf(LEAF, names.to_vec(), now, lives.leaf)?;
        } else {
            return Ok(None);
        }
        after.names = names.to_vec();
        after.generation = self.generation.saturating_add(1);
        Ok(Some(after))
    }

    /// What a configuration's caBundle should be: every authority whose leaf may be served now, PEM.
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| next.certificate.as_str());
        let all = [
            Some(self.authority.certificate.as_str()),
            next,
            self.previous.as_deref(),
        ];
        all.into_iter().flatten().collect()
    }

    /// What a handshake needs.
    ///
    /// # Errors
    /// The leaf's key is not that of its certificate.
    pub fn certified(&self) -> Result<CertifiedKey, CertificateError> {
        self.leaf.certified(Vec::new())
    }

    /// In words, for the log: never a key.
    pub fn told(&self) -> String {
        let stage = match (&self.next, &self.previous) {
            (Some(next), _) => format!(", {} is announced", next.name),
            (None, Some(_)) => ", the one before is still named".to_owned(),
            (None, None) => String::new(),
        };
        format!("generation {}: {}{stage}", self.generation, self.authority.name)
    }
}

/// Whether two thirds of a life are over, and a part of it that each pair has for itself.
fn is_due(pair: &Pair, now: i64) -> bool {
    let life = pair.until.saturating_sub(pair.made);
    let most = life.div_euclid(SPREAD).max(1);
    let mut hasher = DefaultHasher::new();
    pair.certificate.hash(&mut hasher);
    let spread = i64::try_from(hasher.finish() >> 1).unwrap_or(0).rem_euclid(most);
    pair.is_due(now.saturating_sub(spread))
}

#[cfg(test)]
#[path = "certificates_tests.rs"]
mod tests;
