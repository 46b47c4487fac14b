//! Sidegate's refusals as PostgreSQL errors: the one table of SQLSTATEs, and the three fields a client shows.
//!
//! A refused statement never carries a code that frameworks answer with a retry or a dropped connection. MESSAGE
//! stands alone, DETAIL is one line of JSON, HINT is the next step.

use sidegate_policies::reason::Reason;

use super::codec::error::Fields;
use crate::refusal::Refusal;

/// How a refusal is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// One statement fails; the session stays.
    Statement,
    /// The login fails.
    Login,
    /// The open session ends.
    Session,
}

/// The SQLSTATE of a refusal.
pub fn sqlstate(reason: Reason, severity: Severity) -> &'static str {
    match severity {
        Severity::Statement => statement_state(reason),
        Severity::Login => login_state(reason),
        Severity::Session => session_state(reason),
    }
}

fn statement_state(reason: Reason) -> &'static str {
    match reason {
        Reason::Withdrawn | Reason::ApprovalExpired => "57014",
        Reason::TooLarge | Reason::Limit => "54000",
        Reason::CannotRecord | Reason::Unavailable | Reason::Stale | Reason::Draining => "58000",
        Reason::PlanMismatch | Reason::Internal => "XX000",
        _ => "42501",
    }
}

fn login_state(reason: Reason) -> &'static str {
    match reason {
        Reason::Unavailable | Reason::Stale | Reason::CannotRecord | Reason::Draining | Reason::Limit => "57P03",
        Reason::Internal => "57P03",
        Reason::ProtocolViolation => "08P01",
        _ => "28000",
    }
}

fn session_state(reason: Reason) -> &'static str {
    match reason {
        Reason::ProtocolViolation => "08P01",
        Reason::NotUnderstood | Reason::Denied => "42501",
        _ => "57P01",
    }
}

/// The error of a refusal.
pub fn error(refusal: &Refusal, severity: Severity) -> Fields {
    let state = match (refusal.reason, severity) {
        (Reason::TooLarge, Severity::Statement) if refusal.nested => "54001",
        (reason, severity) => sqlstate(reason, severity),
    };
    with_state(refusal, severity, state)
}

/// The same with its own SQLSTATE.
pub fn with_state(refusal: &Refusal, severity: Severity, state: &str) -> Fields {
    let word = match severity {
        Severity::Statement => "ERROR",
        Severity::Login | Severity::Session => "FATAL",
    };
    let mut fields = Fields::new(word, state, &refusal.text());
    fields.set(b'D', refusal.machine().as_bytes());
    fields.set(b'H', refusal.next().as_bytes());
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_statement_never_carries_a_code_that_drivers_retry_or_drop_on() {
        for reason in Reason::ALL {
            let state = sqlstate(reason, Severity::Statement);
            let bad = ["40001", "40P01", "0A000"].contains(&state)
                || ["08", "53", "57P0"].iter().any(|class| state.starts_with(class));
            assert!(!bad, "{reason:?} {state}");
        }
    }

    #[test]
    fn the_message_stands_alone_and_the_detail_is_one_line_of_json() {
        let refusal = Refusal::new(Reason::Denied, "statement");
        let fields = error(&refusal, Severity::Statement);
        assert!(fields.text(b'M').contains("Sidegate refused this statement"));
        let detail: serde_json::Value = serde_json::from_str(&fields.text(b'D')).unwrap();
        assert_eq!(detail["reason"], "denied");
        assert!(!fields.text(b'D').contains('\n') && !fields.text(b'H').is_empty());
        assert!(!fields.text(b'M').contains(fields.text(b'H').trim_end_matches('.')));
    }

    #[test]
    fn logins_that_may_work_later_say_so() {
        assert_eq!(sqlstate(Reason::Unavailable, Severity::Login), "57P03");
        assert_eq!(sqlstate(Reason::Denied, Severity::Login), "28000");
        assert_eq!(sqlstate(Reason::Locked, Severity::Session), "57P01");
    }

    #[test]
    fn too_complex_is_not_too_large() {
        let mut refusal = Refusal::new(Reason::TooLarge, "statement");
        assert_eq!(error(&refusal, Severity::Statement).text(b'C'), "54000");
        refusal.nested = true;
        assert_eq!(error(&refusal, Severity::Statement).text(b'C'), "54001");
    }
}
