//! The broker's own events in a store: what people decided, what the broker gave out or refused, and what a start found
//! of an earlier one that was killed.
//!
//! Reads the logs of namespace [`BROKER`] in order, objects before the landing journal. Damage does not stop it and is
//! not judged here: that is the verifier's work. Refused: nothing but a store that cannot be read.
//! Invariant: an event comes once, whatever a journal repeats of an object.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use crate::record::layout::{LogPath, Store, BROKER};
use crate::record::payload::{Audit, Recovered};
use crate::record::summary::rfc3339;
use crate::record::{Frame, Kind};

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// `<namespace>/<broker id>/<start>` of its log.
    pub log: String,
    /// Log number.
    pub number: u64,
    /// RFC 3339, by the broker's clock.
    pub at: String,
    /// Of what sort it is.
    pub kind: Kind,
    /// What it says.
    #[serde(flatten)]
    pub says: Audit<'static>,
}

/// Every event of a store, by broker start and log number, with what a start found of earlier ones.
pub fn read(store: &dyn Store) -> io::Result<Vec<AuditEvent>> {
    let mut found: BTreeMap<(LogPath, u64), AuditEvent> = BTreeMap::new();
    for name in store.list("v1")? {
        let Some(path) = log_of(&name) else { continue };
        let bytes = match store.read(&name) {
            Ok(bytes) => bytes,
            // A journal that vanishes between list and read became an object.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut left = bytes.as_slice();
        while let Ok(frame) = Frame::parse_unchecked(left) {
            if let Some(says) = says(&frame, &path) {
                let event = AuditEvent {
                    log: path.to_string(),
                    number: frame.header.log_number,
                    at: rfc3339(frame.header.wall_us),
                    kind: frame.header.kind,
                    says,
                };
                found.entry((path.clone(), event.number)).or_insert(event);
            }
            left = left.get(frame.bytes.len()..).unwrap_or_default();
        }
    }
    Ok(found.into_values().collect())
}

fn says(frame: &Frame<'_>, path: &LogPath) -> Option<Audit<'static>> {
    match frame.header.kind {
        Kind::Recovered => Some(recovered(&serde_json::from_slice(frame.payload).ok()?, path)),
        kind if kind.of_broker() => serde_json::from_slice(frame.payload).ok(),
        _ => None,
    }
}

/// What a start found of an earlier one, told like the other events.
fn recovered(found: &Recovered, path: &LogPath) -> Audit<'static> {
    let Recovered {
        instance,
        number,
        head,
        count,
        cut_bytes,
        ..
    } = found;
    Audit {
        event: "log.recovered".into(),
        object: format!("{}/{}/{instance}", path.namespace, path.pod_uid).into(),
        detail: format!(
            "it was not ended: the last {count} frames up to number {number} ({head}) are unsigned, {cut_bytes} bytes cut"
        )
        .into(),
        ..Audit::default()
    }
}

/// The broker's log that a file belongs to.
fn log_of(name: &str) -> Option<LogPath> {
    let (cluster, inside) = name.strip_prefix("v1/")?.split_once('/')?;
    let (folder, rest) = inside.split_once('/')?;
    let path = match folder {
        "log" => LogPath::parse(cluster, rest.rsplit_once('/')?.0)?,
        "landing" => LogPath::parse_landing(cluster, rest)?.0,
        _ => return None,
    };
    (path.namespace == BROKER).then_some(path)
}
