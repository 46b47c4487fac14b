//! Pins: one sidecar key per container instance, remembered over restarts of the broker.
//!
//! Refuses a second key for the instance that is pinned: a stolen token becomes a visible failure instead of a
//! silent clone. The invariant: a pin only ever moves to a newer instance of the same pod.

use std::path::PathBuf;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::state::{read_private, write_private, StateDir, StateError};

/// A container instance: how often it was started, and its id (garbage collection may make the count step back).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Starts.
    pub count: u64,
    /// Container id.
    pub container: String,
}

impl Instance {
    /// Whether this is another start than the pinned one, and not an earlier one.
    fn follows(&self, pinned: &Instance) -> bool {
        self.container != pinned.container && self.count >= pinned.count
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Pin {
    instance: Instance,
    thumbprint: String,
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
}

/// Pins in the state directory, one file per pod.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    guard: Mutex<()>,
}

impl Pins {
    /// Opens the folder of pins.
    pub fn open(state: &StateDir) -> Result<Self, StateError> {
        Ok(Pins {
            folder: state.dir("pins")?,
            guard: Mutex::new(()),
        })
    }

    /// Pins a key to an instance, or refuses it.
    pub fn pin(&self, pod_uid: &str, instance: &Instance, thumbprint: &str) -> Result<(), PinRefused> {
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
        match pinned {
            Some(pin) if pin.thumbprint == thumbprint && pin.instance == *instance => return Ok(()),
            Some(pin) if !instance.follows(&pin.instance) => return Err(PinRefused::Conflict),
            _ => {}
        }
        let pin = Pin {
            instance: instance.clone(),
            thumbprint: thumbprint.to_owned(),
        };
        let bytes = serde_json::to_vec(&pin).unwrap_or_default();
        write_private(&path, &bytes)?;
        Ok(())
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

    #[test]
    fn a_second_key_for_the_same_instance_is_refused_also_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        let pins = Pins::open(&state).unwrap();
        pins.pin("pod", &instance(1, "a"), "key-1").unwrap();
        pins.pin("pod", &instance(1, "a"), "key-1").unwrap();
        let again = Pins::open(&state).unwrap();
        assert!(matches!(
            again.pin("pod", &instance(1, "a"), "key-2"),
            Err(PinRefused::Conflict)
        ));
        again.pin("other-pod", &instance(1, "a"), "key-2").unwrap();
    }

    #[test]
    fn a_newer_instance_brings_a_new_key_and_an_older_one_does_not() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        let pins = Pins::open(&state).unwrap();
        pins.pin("pod", &instance(1, "a"), "key-1").unwrap();
        pins.pin("pod", &instance(2, "b"), "key-2").unwrap();
        assert!(matches!(
            pins.pin("pod", &instance(1, "a"), "key-1"),
            Err(PinRefused::Conflict)
        ));
        assert!(matches!(
            pins.pin("pod", &instance(2, "b"), "key-1"),
            Err(PinRefused::Conflict)
        ));
    }
}
