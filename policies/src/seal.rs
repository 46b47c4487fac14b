//! The seal of a bundle: what the broker vouches for, for one pod, at one time; as text that is signed byte for byte.
//!
//! A seal is ES256 (ECDSA P-256 with SHA-256, DER) over [`CONTEXT`] and the statement, by a key whose certificate chains
//! to the broker's authority and is for [`USAGE`] and nothing else. It holds no secret. Who signs and who checks is
//! elsewhere; the order of revisions is here. The invariant: a store that is behind in one kind is behind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::wire::DenySet;

/// Signed before the statement, so that no other signature of the key is a seal.
pub const CONTEXT: &[u8] = b"sidegate bundle seal 1\n";

/// The extended key usage of a seal's certificate, as numbers: 2.25 is for everybody, and only our authority is asked.
pub const USAGE: [u64; 3] = [2, 25, 1_587_658_974];

/// The same as the value of a DER object identifier.
pub const USAGE_DER: [u8; 6] = [0x69, 0x85, 0xf5, 0x87, 0x81, 0x5e];

/// How far the store was read: the highest revision of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revisions {
    /// Raised by an operator after the store was restored from a backup, whose revisions begin lower; compared first.
    #[serde(default)]
    pub generation: u64,
    /// By kind. They are numbers in every store behind an API server, and compared within one kind only.
    #[serde(default)]
    pub kinds: BTreeMap<String, u64>,
}

/// In what a store is behind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {offered} is older than {held}, which is in force")]
pub struct Behind {
    /// The kind, or `generation`.
    pub what: String,
    /// What is offered.
    pub offered: u64,
    /// What is held.
    pub held: u64,
}

impl Revisions {
    /// One kind only.
    pub fn of(kind: &str, revision: u64) -> Self {
        Revisions {
            generation: 0,
            kinds: BTreeMap::from([(kind.to_owned(), revision)]),
        }
    }

    /// In what these are behind those held, if in anything. A kind that is missing here was not read at all.
    pub fn behind(&self, held: &Revisions) -> Option<Behind> {
        let behind = |what: &str, offered, held| Behind {
            what: what.to_owned(),
            offered,
            held,
        };
        if self.generation != held.generation {
            return (self.generation < held.generation).then(|| behind("generation", self.generation, held.generation));
        }
        held.kinds.iter().find_map(|(kind, held)| {
            let offered = self.kinds.get(kind).copied().unwrap_or(0);
            (offered < *held).then(|| behind(kind, offered, *held))
        })
    }

    /// The higher of both, kind by kind; of another generation nothing is kept.
    #[must_use]
    pub fn raised(&self, by: &Revisions) -> Revisions {
        let (mut higher, lower) = match self.generation >= by.generation {
            true => (self.clone(), by),
            false => (by.clone(), self),
        };
        if higher.generation == lower.generation {
            for (kind, revision) in &lower.kinds {
                let kept = higher.kinds.entry(kind.clone()).or_default();
                *kept = (*kept).max(*revision);
            }
        }
        higher
    }
}

/// What a seal says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Statement {
    /// SHA-256 of the bundle's body, hex.
    pub version: String,
    /// UID of the pod it is for.
    pub pod_uid: String,
    /// When it was sealed, by the broker's clock, milliseconds since 1970.
    pub sealed_ms: i64,
    /// The cluster's name.
    pub cluster: String,
    /// How far the broker had read the store.
    pub revisions: Revisions,
    /// Revision of the deny set in force then.
    pub deny_revision: u64,
    /// Digest of that set, see [`deny_digest`]: kept beside the bundle, it can be told from any other.
    pub deny_digest: String,
}

/// A statement with its signature.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seal {
    /// JSON of a [`Statement`]; exactly this text is signed.
    pub statement: String,
    /// The signature, base64url without padding.
    pub signature: String,
    /// Certificates in DER, base64url without padding: the seal key's first, then those between it and the authority.
    pub chain: Vec<String>,
}

/// What is signed for a statement's text.
pub fn signed(statement: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CONTEXT.len().saturating_add(statement.len()));
    bytes.extend_from_slice(CONTEXT);
    bytes.extend_from_slice(statement.as_bytes());
    bytes
}

/// SHA-256 of a deny set as JSON, hex.
pub fn deny_digest(set: &DenySet) -> String {
    // Names and numbers always serialise; the digest of nothing fits no set.
    crate::bundle::version(&serde_json::to_vec(set).unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn revisions(generation: u64, kinds: &[(&str, u64)]) -> Revisions {
        Revisions {
            generation,
            kinds: kinds.iter().map(|(kind, at)| ((*kind).to_owned(), *at)).collect(),
        }
    }

    #[test]
    fn a_store_that_is_lower_in_one_kind_is_behind_and_numbers_are_compared_as_numbers() {
        let held = revisions(0, &[("AccessPolicy", 9), ("Target", 100)]);
        assert_eq!(held.behind(&held), None);
        // As text, 99 is after 100.
        let older = revisions(0, &[("AccessPolicy", 1_000), ("Target", 99)]);
        let behind = older.behind(&held).unwrap();
        assert_eq!((behind.what.as_str(), behind.offered, behind.held), ("Target", 99, 100));
        let missing = revisions(0, &[("Target", 100)]);
        assert_eq!(missing.behind(&held).unwrap().what, "AccessPolicy");
        let more = revisions(0, &[("AccessPolicy", 9), ("Target", 100), ("TokenIssuer", 1)]);
        assert_eq!(more.behind(&held), None);
    }

    #[test]
    fn a_restored_store_begins_anew_in_a_higher_generation_only() {
        let held = revisions(1, &[("Target", 100)]);
        assert_eq!(revisions(2, &[("Target", 3)]).behind(&held), None);
        assert_eq!(
            revisions(0, &[("Target", 500)]).behind(&held).unwrap().what,
            "generation"
        );
        assert_eq!(
            held.raised(&revisions(2, &[("Target", 3)])),
            revisions(2, &[("Target", 3)])
        );
        assert_eq!(held.raised(&revisions(0, &[("Target", 500)])), held);
        let both = revisions(1, &[("Target", 100), ("Lockdown", 7)]);
        assert_eq!(held.raised(&revisions(1, &[("Lockdown", 7), ("Target", 50)])), both);
    }
}
