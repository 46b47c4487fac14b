//! The one list of reasons for which Sidegate says no.
//!
//! A reason is snake_case in machine forms, metrics and records, CamelCase in conditions and Events. What the
//! agent may do next ([`Retry`]) follows from the reason alone, so that no protocol invents its own advice.

use serde::{Deserialize, Serialize};

/// Why an operation or a session was refused or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A rule, or the absence of one, says no.
    Denied,
    /// A person must approve first; the refusal carries a ticket.
    ApprovalRequired,
    /// A person said no.
    ApprovalDenied,
    /// The approval was not used in time.
    ApprovalExpired,
    /// Cancelled by the agent before anything was sent.
    Withdrawn,
    /// The operation could not be parsed or is of a kind Sidegate does not judge.
    NotUnderstood,
    /// A name in the operation could not be resolved where the outcome depends on it.
    Unresolved,
    /// The operation exceeds a size or complexity limit.
    TooLarge,
    /// A row, byte, rate or session limit was reached.
    Limit,
    /// The record store is unavailable, so nothing was sent.
    CannotRecord,
    /// The broker, a credential or the target is unavailable.
    Unavailable,
    /// The policy or the kill switch state is too old to act on.
    Stale,
    /// A `Lockdown` freezes this subject, target or credential.
    Locked,
    /// The target refused the credential, or the broker refused to lease one, for good.
    CredentialRefused,
    /// The lease behind the session ended.
    LeaseEnded,
    /// The session reached `maxSession`.
    MaxSession,
    /// The policy or target that allowed the session is gone.
    PolicyGone,
    /// The peer broke the protocol.
    ProtocolViolation,
    /// The upstream could not be dialled, verified or logged in to.
    UpstreamRefused,
    /// The answer did not match the plan made for it.
    PlanMismatch,
    /// The process is shutting down.
    Draining,
    /// A defect in Sidegate; the session ends and a counter moves.
    Internal,
}

/// What the agent should do after a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// Never: stop.
    No,
    /// Only in another form.
    Changed,
    /// Exactly the same, once a person approved it.
    SameAfterApproval,
    /// Exactly the same, now.
    Same,
    /// The same, in a minute.
    Later,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 22] = [
        Reason::Denied,
        Reason::ApprovalRequired,
        Reason::ApprovalDenied,
        Reason::ApprovalExpired,
        Reason::Withdrawn,
        Reason::NotUnderstood,
        Reason::Unresolved,
        Reason::TooLarge,
        Reason::Limit,
        Reason::CannotRecord,
        Reason::Unavailable,
        Reason::Stale,
        Reason::Locked,
        Reason::CredentialRefused,
        Reason::LeaseEnded,
        Reason::MaxSession,
        Reason::PolicyGone,
        Reason::ProtocolViolation,
        Reason::UpstreamRefused,
        Reason::PlanMismatch,
        Reason::Draining,
        Reason::Internal,
    ];

    /// What a client should do next.
    pub fn retry(self) -> Retry {
        match self {
            Reason::Denied | Reason::ApprovalDenied | Reason::NotUnderstood | Reason::Unresolved => Retry::Changed,
            Reason::TooLarge | Reason::Limit | Reason::PlanMismatch | Reason::ProtocolViolation => Retry::Changed,
            Reason::ApprovalRequired => Retry::SameAfterApproval,
            Reason::ApprovalExpired | Reason::Withdrawn => Retry::Same,
            Reason::CannotRecord | Reason::Unavailable | Reason::Stale | Reason::Draining => Retry::Later,
            Reason::LeaseEnded | Reason::MaxSession | Reason::UpstreamRefused | Reason::Internal => Retry::Later,
            Reason::Locked | Reason::CredentialRefused | Reason::PolicyGone => Retry::No,
        }
    }

    /// The snake_case name used in machine forms, metrics and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Denied => "denied",
            Reason::ApprovalRequired => "approval_required",
            Reason::ApprovalDenied => "approval_denied",
            Reason::ApprovalExpired => "approval_expired",
            Reason::Withdrawn => "withdrawn",
            Reason::NotUnderstood => "not_understood",
            Reason::Unresolved => "unresolved",
            Reason::TooLarge => "too_large",
            Reason::Limit => "limit",
            Reason::CannotRecord => "cannot_record",
            Reason::Unavailable => "unavailable",
            Reason::Stale => "stale",
            Reason::Locked => "locked",
            Reason::CredentialRefused => "credential_refused",
            Reason::LeaseEnded => "lease_ended",
            Reason::MaxSession => "max_session",
            Reason::PolicyGone => "policy_gone",
            Reason::ProtocolViolation => "protocol_violation",
            Reason::UpstreamRefused => "upstream_refused",
            Reason::PlanMismatch => "plan_mismatch",
            Reason::Draining => "draining",
            Reason::Internal => "internal",
        }
    }

    /// The one sentence of advice that ends every refusal text.
    pub fn advice(self) -> &'static str {
        match self {
            Reason::Denied | Reason::ApprovalDenied => "Do not retry it unchanged.",
            Reason::NotUnderstood | Reason::Unresolved | Reason::TooLarge | Reason::Limit => {
                "Send a simpler or smaller form."
            }
            Reason::ApprovalRequired => "A person must approve it. After approval send exactly the same again.",
            Reason::Withdrawn | Reason::ApprovalExpired => "It was cancelled before anything was sent.",
            Reason::CannotRecord | Reason::Unavailable | Reason::Stale => "Nothing was sent. Try again in a minute.",
            Reason::Locked => "Access is frozen. Stop and tell your operator.",
            Reason::CredentialRefused | Reason::PolicyGone => "Stop and tell your operator.",
            Reason::LeaseEnded | Reason::MaxSession | Reason::Draining => "Reconnect to go on.",
            Reason::ProtocolViolation => "Check the client.",
            Reason::UpstreamRefused | Reason::Internal => "Tell your operator.",
            Reason::PlanMismatch => "Name the columns you need instead.",
        }
    }
}
