//! Why a pod is not created, in words that stand alone: for a Deployment they show up only as an Event.
//!
//! Owns the form `sidegate: <rule>: <what is wrong>; <what to do>` and the status that goes with it. Refused: a refusal
//! without a rule. Invariant: it says nothing that whoever writes the pod could not read anyway.

use sidegate_policies::pod::rules::Wrong;

/// What kind of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The pod's shape, or an opt-out that is not allowed.
    Forbidden,
    /// A label, annotation or profile that is not understood.
    Invalid,
    /// What must be known could not be looked up.
    Unavailable,
}

impl Class {
    /// The HTTP status.
    pub fn code(self) -> u16 {
        match self {
            Class::Forbidden => 403,
            Class::Invalid => 422,
            Class::Unavailable => 503,
        }
    }

    /// Kubernetes' word for it.
    pub fn reason(self) -> &'static str {
        match self {
            Class::Forbidden => "Forbidden",
            Class::Invalid => "Invalid",
            Class::Unavailable => "ServiceUnavailable",
        }
    }
}

/// Why a pod is not created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sidegate: {rule}: {message}")]
pub struct Refusal {
    /// What kind it is.
    pub class: Class,
    /// The rule, in one word.
    pub rule: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Refusal {
    /// Something that is not understood.
    pub fn invalid(rule: &'static str, message: impl Into<String>) -> Self {
        Refusal {
            class: Class::Invalid,
            rule,
            message: message.into(),
        }
    }

    /// Something that is not allowed.
    pub fn forbidden(rule: &'static str, message: impl Into<String>) -> Self {
        Refusal {
            class: Class::Forbidden,
            rule,
            message: message.into(),
        }
    }

    /// Something that could not be looked up.
    pub fn unavailable(rule: &'static str, message: impl Into<String>) -> Self {
        Refusal {
            class: Class::Unavailable,
            rule,
            message: message.into(),
        }
    }
}

impl From<Wrong> for Refusal {
    fn from(wrong: Wrong) -> Self {
        Refusal::forbidden(wrong.rule, wrong.message)
    }
}
