//! Bytes together with the verdict that lets them pass.
//!
//! An [`Admitted`] owns exactly what was judged. Only the gate can make one (it alone has a [`crate::gate::Seal`])
//! and only [`crate::upstream::Upstream`] can open one (it alone has a [`crate::upstream::Opener`]). It is not Clone.
//! So approving one statement and sending another does not compile:
//!
//! ```compile_fail
//! // The fields are private: nobody builds one.
//! let forged = sidegate_sidecar::admitted::Admitted { frame: bytes::Bytes::new() };
//! ```
//!
//! ```compile_fail
//! // Nobody takes the bytes out and sends them elsewhere.
//! fn open(admitted: sidegate_sidecar::admitted::Admitted<bytes::Bytes>) -> bytes::Bytes {
//!     admitted.frame
//! }
//! ```
//!
//! ```compile_fail
//! // Nobody sends one twice.
//! fn twice(admitted: sidegate_sidecar::admitted::Admitted<bytes::Bytes>) {
//!     let _again = admitted.clone();
//! }
//! ```

use std::sync::Arc;

use sidegate_policies::engine::Decision;

use crate::gate::{OpId, Seal};
use crate::upstream::Opener;

/// A judged frame.
pub struct Admitted<F> {
    frame: F,
    decision: Option<Arc<Decision>>,
    op: OpId,
}

impl<F> Admitted<F> {
    pub(crate) fn new(_seal: Seal, frame: F, decision: Option<Arc<Decision>>, op: OpId) -> Self {
        Admitted { frame, decision, op }
    }

    /// The decision, with its obligations. Absent for passive bytes, which are part of an operation judged before.
    pub fn decision(&self) -> Option<&Arc<Decision>> {
        self.decision.as_ref()
    }

    /// The operation's number in its session; zero for passive bytes.
    pub fn op(&self) -> OpId {
        self.op
    }

    pub(crate) fn open(self, _opener: Opener) -> F {
        self.frame
    }
}
