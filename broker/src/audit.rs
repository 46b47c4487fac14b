//! Audit events: what was asked, by whom, what came of it, and precisely why, as log lines of target `audit`.
//!
//! Outward answers are opaque; the precise reason goes here and nowhere else. Refuses to carry secrets: fields
//! are names, ids and reasons. Never a token, a password or an agent's text.

/// One event.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// What happened, such as `token.refused` or `lease.granted`.
    pub event: &'static str,
    /// `namespace/serviceAccount`, if known.
    pub subject: &'a str,
    /// Pod UID, if known.
    pub pod_uid: &'a str,
    /// What it was about: a target, a request, a lockdown.
    pub object: &'a str,
    /// The precise reason, or what was granted.
    pub detail: &'a str,
}

/// Writes one event.
pub fn write(event: Event<'_>) {
    tracing::info!(
        target: "audit",
        event = event.event,
        subject = event.subject,
        podUid = event.pod_uid,
        object = event.object,
        detail = event.detail,
    );
}
