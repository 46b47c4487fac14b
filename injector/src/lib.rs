//! Sidegate's injector: puts the sidecar into agents' pods, and refuses pods that would void the gate.
//!
//! [`admit`] decides about one pod from what is known; `mutate` builds the injected pod. Both are pure: the webhook
//! (`server`, on what `kubernetes` knows) and `sidegate inject` call the same functions, so what is printed offline
//! is what a cluster would store.
//! Refused: whatever is not understood, with words that stand alone. Invariant: nothing a pod says about itself is
//! believed; what is ours is made anew every time.

pub mod admit;
mod agents;
mod annotations;
pub mod app;
mod assign;
mod certificates;
mod decisions;
mod files;
mod form;
pub mod install;
mod kubernetes;
mod metrics;
mod mutate;
mod names;
mod ops;
pub mod patch;
mod policies;
mod probe;
mod refusal;
mod review;
mod served;
mod server;
mod sidecar;
mod sources;
pub mod standing;
mod task;
mod trust;
mod webhook;

pub use agents::{CLOUD_AUDIENCES, CLOUD_VARIABLES, CLOUD_VOLUMES};
pub use kubernetes::Snapshot;
