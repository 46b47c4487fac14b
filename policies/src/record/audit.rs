//! The broker's own events in a store: what people decided, and what the broker gave out or refused.
//!
//! Reads the logs of namespace [`BROKER`] in order, objects before the landing journal. Damage does not stop it and is
//! not judged here: that is the verifier's work. Refused: nothing but a store that cannot be read.
//! Invariant: an event comes once, whatever a journal repeats of an object.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use crate::record::layout::{LogPath, Store, BROKER};
use crate::record::payload::Audit;
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

/// Every event of a store, by broker start and log number.
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
            if let (true, Ok(says)) = (frame.header.kind.of_broker(), serde_json::from_slice(frame.payload)) {
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

/// The broker's log that a file belongs to.
fn log_of(name: &str) -> Option<LogPath> {
    let (cluster, inside) = name.strip_prefix("v1/")?.split_once('/')?;
    let (folder, rest) = inside.split_once('/')?;
    let log = match folder {
        "log" => rest.rsplit_once('/')?.0,
        "landing" => rest.strip_suffix(".sgr")?,
        _ => return None,
    };
    LogPath::parse(cluster, log).filter(|path| path.namespace == BROKER)
}
