//! Rotation of the key rings: planned ones in the background, and the emergency by a person's word.
//!
//! Refuses to let a record key certify anything before the archive holds its public half. The invariants: a ring
//! changes only with a trace in the audit; an emergency takes effect whether or not it can be recorded, because
//! keeping a stolen key in force would fail open.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sidegate_policies::record::Kind;

use crate::audit::{Audit, Event};
use crate::authority::{Authority, AuthorityError, Rolled};
use crate::clock::rfc3339;
use crate::issuer::Issuer;
use crate::jwt::PublicKey;
use crate::records::{Records, RecordsError};
use crate::rings::{Changing, Keys, Ring, RingError, RingName};

/// What the person who rotates must know.
pub const NOTICE: &str = "This broker refuses the old access and federation keys from now on, and every session is \
    attested anew. Third parties may trust the old keys until their cache ends: 5 minutes by what /jwks tells them, \
    an hour for clients that cache longer, and without end where a copy was uploaded by hand: replace it there. Old \
    record keys sign nothing more and stay in the list, or old records could not be verified.";

/// The same about a new authority.
pub const AUTHORITY_NOTICE: &str = "Sidecars that pinned the old authority go on: it signed the new one. If its key \
    leaked, that is no protection: whoever has it can still pass for this broker to them, until every agent's pod is \
    made anew with the new certificate (ConfigMap sidegate-broker-ca, two minutes from now).";

/// Why a ring was not rotated. Its old keys stay in force.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The ring.
    #[error("ring {ring}: {error}")]
    Ring {
        /// Which.
        ring: &'static str,
        /// Why.
        error: RingError,
    },
    /// The archive does not take the public half of a record key.
    #[error("the archive: {0}")]
    Archive(#[from] RecordsError),
}

/// One ring after a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rotated {
    /// Which ring.
    pub ring: RingName,
    /// The new keys, one for each algorithm of the ring.
    pub kids: Vec<String>,
    /// Keys that verify nothing any more.
    pub removed: Vec<String>,
}

/// What an emergency rotation did.
#[derive(Debug, Default)]
pub struct Emergency {
    /// Rings that were rotated.
    pub rotated: Vec<Rotated>,
    /// Rings that were not, each with its reason.
    pub failed: Vec<RotationError>,
    /// Why it is not in the audit log (yet). It is in force all the same.
    pub unrecorded: Option<String>,
}

/// Publishes successors in time and drops what has retired. Called again and again; `now` in seconds.
pub fn keep(issuer: &Issuer, records: &Records, audit: &Audit, now: i64) {
    archive(issuer.ring(RingName::Record), records);
    for name in RingName::ALL {
        let ring = issuer.ring(name);
        // Of the replicas of a cluster one does it for all.
        if !ring.rotates() {
            continue;
        }
        let before = ring.keys();
        match planned(ring, records, now) {
            Ok(None) => {}
            Ok(Some(after)) => audit.note(Event {
                object: name.as_str(),
                detail: &told(ring, &before, &after),
                ..Event::new(Kind::Config, "keys.rotated")
            }),
            // It is looked at again in a moment.
            Err(RotationError::Ring {
                error: RingError::Changed,
                ..
            }) => {}
            Err(error) => tracing::error!(%error, "a key ring cannot be rotated; its old keys stay in force"),
        }
    }
}

/// Keeps the public halves of record keys that another replica made.
fn archive(ring: &Ring, records: &Records) {
    let Some(keys) = ring.unarchived() else { return };
    let jwks: Vec<Value> = keys.public().map(PublicKey::jwk).collect();
    match records.set_ring(&jwks) {
        Ok(()) => ring.archived(keys),
        Err(error) => tracing::error!(%error, "record keys cannot be archived"),
    }
}

fn planned(ring: &Ring, records: &Records, now: i64) -> Result<Option<Keys>, RotationError> {
    let changing = ring.change();
    let Some(next) = ring.due(&changing, now).map_err(|error| of(ring, error))? else {
        return Ok(None);
    };
    put(ring, records, &changing, &next)?;
    Ok(Some(next))
}

/// Renews the leaf of both faces, and the authority, where that is due. Called again and again; `now` in seconds.
pub fn keep_authority(authority: &Authority, audit: &Audit, now: i64) {
    match authority.keep(now) {
        Ok(false) | Err(AuthorityError::Changed) => {}
        Ok(true) => audit.note(Event {
            object: "tls",
            detail: &format!(
                "a new certificate, until {}",
                rfc3339(authority.not_after().saturating_mul(1000))
            ),
            ..Event::new(Kind::Config, "keys.rotated")
        }),
        Err(error) => tracing::error!(%error, "the certificate cannot be renewed; the old one is served on"),
    }
}

/// A new authority at once, as a person asked. `by` is who; `now` in seconds. Blocks.
pub fn roll_authority(authority: &Authority, audit: &Audit, by: &str, now: i64) -> Result<Rolled, AuthorityError> {
    let rolled = authority.roll(now);
    let detail = match &rolled {
        Ok(rolled) => format!("new authority {}", rolled.authority),
        Err(error) => format!("it failed: {error}"),
    };
    audit.note(Event {
        subject: by,
        object: "authority",
        detail: &detail,
        ..Event::new(Kind::Config, "keys.rotated-now")
    });
    rolled
}

/// New keys at once, old ones gone, in each of these rings. `by` is who asked; `now` in seconds. Blocks on the disk.
pub fn emergency(
    issuer: &Issuer,
    records: &Records,
    audit: &Audit,
    names: &[RingName],
    by: &str,
    now: i64,
) -> Emergency {
    let mut done = Emergency::default();
    for name in names {
        let ring = issuer.ring(*name);
        match replaced(ring, records, now) {
            Ok(rotated) => {
                let (made, gone) = (rotated.kids.join(", "), rotated.removed.join(", "));
                let detail = format!("new key {made}; removed: {gone}");
                let event = Event {
                    subject: by,
                    object: name.as_str(),
                    detail: &detail,
                    ..Event::new(Kind::Config, "keys.rotated-now")
                };
                if let Some(error) = audit.record_or_note(event) {
                    done.unrecorded = Some(error.to_string());
                }
                done.rotated.push(rotated);
            }
            Err(error) => {
                audit.note(Event {
                    subject: by,
                    object: name.as_str(),
                    detail: &format!("it failed: {error}"),
                    ..Event::new(Kind::Config, "keys.rotated-now")
                });
                done.failed.push(error);
            }
        }
    }
    done
}

fn replaced(ring: &Ring, records: &Records, now: i64) -> Result<Rotated, RotationError> {
    let changing = ring.change();
    let before = ring.keys();
    let next = ring.fresh(&changing, now).map_err(|error| of(ring, error))?;
    put(ring, records, &changing, &next)?;
    Ok(Rotated {
        ring: ring.name(),
        kids: next.missing_in(&before),
        removed: before.missing_in(&next),
    })
}

/// Puts a planned set in force. Public halves of record keys go into the archive before they are used.
fn put(ring: &Ring, records: &Records, changing: &Changing<'_>, next: &Keys) -> Result<(), RotationError> {
    if ring.name() == RingName::Record {
        let jwks: Vec<Value> = next.public().map(PublicKey::jwk).collect();
        records.set_ring(&jwks)?;
    }
    ring.put(changing, next.clone()).map_err(|error| of(ring, error))
}

fn of(ring: &Ring, error: RingError) -> RotationError {
    RotationError::Ring {
        ring: ring.name().as_str(),
        error,
    }
}

/// What changed, in words for the audit.
fn told(ring: &Ring, before: &Keys, after: &Keys) -> String {
    let mut parts = Vec::new();
    let listed = ring.list();
    for kid in after.missing_in(before) {
        let from = listed
            .iter()
            .find(|info| info.kid == kid)
            .map_or(0, |info| info.usable_from);
        parts.push(format!(
            "new key {kid}, usable from {}",
            rfc3339(from.saturating_mul(1000))
        ));
    }
    let dropped = before.missing_in(after);
    parts.extend(dropped.iter().map(|kid| format!("dropped {kid}")));
    if parts.is_empty() {
        parts.push("an old key forgot its private half".to_owned());
    }
    parts.join("; ")
}
