//! Pins: one sidecar key per container instance, remembered over restarts of the broker.
//!
//! Refuses a second key for the instance that is pinned: a stolen token becomes a visible failure instead of a
//! silent clone. The invariant: a pin only ever moves to a newer instance of the same pod.

use std::path::PathBuf;
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::state::{read_private, write_private, StateDir, StateError};

/// A container instance: how often it was started, and its id (garbage collection may make the count step back).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Starts.
    pub count: u64,
    /// Container id; empty until the kubelet reports it, which may be after the sidecar's first call.
    pub container: String,
}

/// How many former instances a pin remembers.
const MAX_PAST: usize = 16;

/// The key of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    instance: Instance,
    thumbprint: String,
    /// Container ids that were pinned before: none of them comes again.
    #[serde(default)]
    past: Vec<String>,
}

/// What a pin says to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// It is the pinned one.
    Holds,
    /// It may be pinned: this is what to keep.
    Moves(Pin),
}

/// Whether this key may speak for this instance, given what is pinned for the pod. A `settled` pin moves no more: only
/// the pinned key is good.
pub fn judge(pinned: Option<&Pin>, instance: &Instance, thumbprint: &str, settled: bool) -> Result<Judged, PinRefused> {
    match moved(pinned, instance, thumbprint)? {
        Judged::Moves(_) if settled => Err(PinRefused::Conflict),
        judged => Ok(judged),
    }
}

fn moved(pinned: Option<&Pin>, instance: &Instance, thumbprint: &str) -> Result<Judged, PinRefused> {
    let fresh = |past| Pin {
        instance: instance.clone(),
        thumbprint: thumbprint.to_owned(),
        past,
    };
    let Some(pin) = pinned else {
        return Ok(Judged::Moves(fresh(Vec::new())));
    };
    let known = &pin.instance;
    if pin.thumbprint == thumbprint {
        if known == instance || (known.count == instance.count && instance.container.is_empty()) {
            return Ok(Judged::Holds);
        }
        // The kubelet reports the id late; only the key that was pinned without one fills it in.
        if known.container.is_empty() && known.count == instance.count {
            return Ok(Judged::Moves(fresh(pin.past.clone())));
        }
    }
    let another =
        !known.container.is_empty() && !instance.container.is_empty() && known.container != instance.container;
    if pin.past.contains(&instance.container) || !(another || instance.count > known.count) {
        return Err(PinRefused::Conflict);
    }
    let mut past = pin.past.clone();
    if !known.container.is_empty() && known.container != instance.container {
        past.push(known.container.clone());
    }
    let surplus = past.len().saturating_sub(MAX_PAST);
    past.drain(..surplus);
    Ok(Judged::Moves(fresh(past)))
}

/// Why a key is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PinRefused {
    /// The instance has another key.
    #[error("another key is pinned for this instance")]
    Conflict,
    /// The pin cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The API server, which keeps the pin, does not say.
    #[error("the pin cannot be kept: {0}")]
    Cluster(String),
}

/// Where pins are kept.
pub trait Pins: Send + Sync {
    /// Pins a key to an instance of a pod, or refuses it; see [`judge`].
    fn pin<'a>(
        &'a self,
        pod_uid: &'a str,
        instance: &'a Instance,
        thumbprint: &'a str,
        settled: bool,
    ) -> BoxFuture<'a, Result<(), PinRefused>>;
}

/// Pins in the state directory, one file per pod.
#[derive(Debug)]
pub struct PinFiles {
    folder: PathBuf,
    guard: Mutex<()>,
}

impl PinFiles {
    /// Opens the folder of pins.
    pub fn open(state: &StateDir) -> Result<Self, StateError> {
        Ok(PinFiles {
            folder: state.dir("pins")?,
            guard: Mutex::new(()),
        })
    }

    fn keep(&self, pod_uid: &str, instance: &Instance, thumbprint: &str, settled: bool) -> Result<(), PinRefused> {
        let _guard = self.guard.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The name is a digest, so that nothing a token says becomes a path.
        let path = self.folder.join(crate::jwt::sha256_base64url(pod_uid.as_bytes()));
        let pinned: Option<Pin> = match read_private(&path, 4096)? {
            Some(bytes) => Some(serde_json::from_slice(&bytes).map_err(|error| StateError::Broken {
                path: path.display().to_string(),
                what: error.to_string(),
            })?),
            None => None,
        };
        if let Judged::Moves(pin) = judge(pinned.as_ref(), instance, thumbprint, settled)? {
            let bytes = serde_json::to_vec(&pin).unwrap_or_default();
            write_private(&path, &bytes)?;
        }
        Ok(())
    }
}

impl Pins for PinFiles {
    fn pin<'a>(
        &'a self,
        pod_uid: &'a str,
        instance: &'a Instance,
        thumbprint: &'a str,
        settled: bool,
    ) -> BoxFuture<'a, Result<(), PinRefused>> {
        let kept = self.keep(pod_uid, instance, thumbprint, settled);
        Box::pin(async move { kept })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn instance(count: u64, container: &str) -> Instance {
        Instance {
            count,
            container: container.to_owned(),
        }
    }

    /// Pins one after the other for one pod; the last one's verdict.
    fn last(calls: &[(u64, &str, &str)]) -> Result<Judged, PinRefused> {
        let mut pinned = None;
        let mut verdict = Ok(Judged::Holds);
        for (count, container, key) in calls {
            verdict = judge(pinned.as_ref(), &instance(*count, container), key, false);
            if let Ok(Judged::Moves(pin)) = &verdict {
                pinned = Some(pin.clone());
            }
        }
        verdict
    }

    #[test]
    fn a_second_key_for_the_same_instance_is_refused_also_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        let pins = PinFiles::open(&state).unwrap();
        pins.keep("pod", &instance(1, "a"), "key-1", false).unwrap();
        pins.keep("pod", &instance(1, "a"), "key-1", false).unwrap();
        let again = PinFiles::open(&state).unwrap();
        assert!(matches!(
            again.keep("pod", &instance(1, "a"), "key-2", false),
            Err(PinRefused::Conflict)
        ));
        again.keep("other-pod", &instance(1, "a"), "key-2", false).unwrap();
    }

    #[test]
    fn a_newer_instance_brings_a_new_key_and_an_older_one_does_not() {
        assert!(last(&[(1, "a", "key-1"), (2, "b", "key-2")]).is_ok());
        assert!(last(&[(1, "a", "key-1"), (2, "b", "key-2"), (1, "a", "key-1")]).is_err());
        assert!(last(&[(1, "a", "key-1"), (2, "b", "key-2"), (2, "b", "key-1")]).is_err());
        // Garbage collection took the count back, and the id is one nobody had.
        assert!(last(&[(1, "a", "key-1"), (2, "b", "key-2"), (1, "c", "key-3")]).is_ok());
    }

    #[test]
    fn an_id_that_comes_late_is_filled_in_by_the_pinned_key_alone() {
        assert!(last(&[(0, "", "key-1"), (0, "a", "key-1"), (0, "a", "key-1")]).is_ok());
        assert!(last(&[(0, "", "key-1"), (0, "a", "key-2")]).is_err());
        assert!(last(&[(0, "", "key-1"), (0, "", "key-2")]).is_err());
        // A restart that the status shows by its count, before or after the id is known.
        assert!(last(&[(0, "", "key-1"), (1, "b", "key-2")]).is_ok());
        assert!(last(&[(0, "", "key-1"), (1, "", "key-2")]).is_ok());
        // What went missing from the status is not another instance, and the pinned key is still good.
        assert!(last(&[(1, "a", "key-1"), (1, "", "key-1")]).is_ok());
        assert!(last(&[(1, "a", "key-1"), (1, "", "key-2")]).is_err());
    }
}
