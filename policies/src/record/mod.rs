//! The record format: frames, chains, segments, checkpoints, and the verifier and replay that read them.
//!
//! Pure code shared by the sidecar that writes, the broker that collects and the command line that verifies, so
//! no two of them can disagree about form. `docs/record-format.md` is the specification; a second verifier in
//! another language is held against this one on test vectors.
//! Invariant: nothing stored is ever serialised again to check it; hashes are over stored bytes.

pub mod audit;
pub mod certificate;
pub mod chain;
pub mod footer;
pub mod frame;
pub mod kind;
pub mod layout;
pub mod merkle;
pub mod payload;
pub mod replay;
pub mod session_key;
pub mod stream;
pub mod summary;
pub mod tlog;
pub mod verify;

pub use frame::{Frame, FrameError, Hash, Header};
pub use kind::Kind;
pub use session_key::SessionKey;
