//! The people's side of the gate, as an edge: ask, wait, claim, tell how it ended, withdraw.
//!
//! Implemented by the broker client and, in tests, by a script. Nothing is decided in this process: only a claim that
//! the broker says was won lets an operation pass, and silence is a refusal.

use futures_util::future::BoxFuture;
use sidegate_policies::wire::{ApprovalAsk, ApprovalClaim, ApprovalOutcome, ApprovalState};

/// Why the broker gave no answer that counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApproverError {
    /// Unreachable, overloaded or not making sense: later.
    #[error("the broker is not reachable")]
    Unavailable,
    /// Too many requests of this subject wait already.
    #[error("too many requests wait for people")]
    TooMany,
    /// A lockdown freezes subject or target.
    #[error("access is frozen")]
    Locked,
    /// The broker refuses: its rules do not ask, or the claim does not fit.
    #[error("the broker refuses the request")]
    Refused,
}

/// Answers of the broker about requests.
pub trait Approver: Send + Sync {
    /// Opens the request, or finds the one with the same digest.
    fn ask(&self, ask: ApprovalAsk) -> BoxFuture<'static, Result<ApprovalState, ApproverError>>;
    /// The request's state once it differs from `known`, or after about `seconds`.
    fn wait(
        &self,
        name: String,
        known: ApprovalState,
        seconds: u64,
    ) -> BoxFuture<'static, Result<ApprovalState, ApproverError>>;
    /// Tries to win the right to run it.
    fn claim(&self, name: String, claim: ApprovalClaim) -> BoxFuture<'static, Result<ApprovalState, ApproverError>>;
    /// Says how the claimed operation ended.
    fn outcome(&self, name: String, outcome: ApprovalOutcome) -> BoxFuture<'static, Result<(), ApproverError>>;
    /// Takes the request back before anything was sent.
    fn withdraw(&self, name: String) -> BoxFuture<'static, Result<(), ApproverError>>;
}
