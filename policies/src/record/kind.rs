//! The kinds of frame, their codes, and which of them are sealed under the session's key.
//!
//! A code is never reused and never changes its meaning; a code this build does not know is refused, because a
//! verifier that skips what it does not understand verifies nothing.
//! Invariant: `Kind::from_code(kind.code()) == Some(kind)` for every kind.

use serde::{Deserialize, Serialize};

/// What a frame is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Kind {
    /// First frame of a log: versions, identity, first public key.
    Boot = 1,
    /// Certificate over the log's record key.
    Cert = 2,
    /// The wall clock jumped by more than a second.
    Clock = 3,
    /// What `BestEffort` sessions lost.
    Lossy = 4,
    /// What a restart found of an earlier log.
    Recovered = 5,
    /// Segment footer.
    Seal = 6,
    /// A session begins.
    Open = 16,
    /// Settings pinned on the target, with its echo.
    Pins = 17,
    /// A new bundle is in force.
    Policy = 18,
    /// The session was cut: lockdown, expiry, drain.
    Cut = 19,
    /// The session ended: totals and reason.
    Close = 20,
    /// An operation is about to be sent.
    Intent = 32,
    /// How it ended.
    Outcome = 33,
    /// An operation was refused.
    Denied = 48,
    /// An operation waits for people.
    Held = 49,
    /// People granted it.
    Granted = 50,
    /// The hold ended.
    Released = 51,
    /// Bytes of a stream, after masking.
    Body = 64,
    /// Terminal events.
    Term = 65,
    /// A person approved or denied a request.
    Decided = 96,
    /// A request was made, claimed, or moved to another state.
    Request = 97,
    /// Something was frozen or unfrozen.
    Lockdown = 98,
    /// A credential, token or certificate was given out or handed back.
    Issued = 99,
    /// A caller or a call was turned away.
    Refused = 100,
    /// A configuration was accepted or refused.
    Config = 101,
    /// A sidecar took or refused its bundle, or its stream ended.
    Bundle = 102,
}

impl Kind {
    /// Every kind, by code.
    pub const ALL: [Kind; 26] = [
        Kind::Boot,
        Kind::Cert,
        Kind::Clock,
        Kind::Lossy,
        Kind::Recovered,
        Kind::Seal,
        Kind::Open,
        Kind::Pins,
        Kind::Policy,
        Kind::Cut,
        Kind::Close,
        Kind::Intent,
        Kind::Outcome,
        Kind::Denied,
        Kind::Held,
        Kind::Granted,
        Kind::Released,
        Kind::Body,
        Kind::Term,
        Kind::Decided,
        Kind::Request,
        Kind::Lockdown,
        Kind::Issued,
        Kind::Refused,
        Kind::Config,
        Kind::Bundle,
    ];

    /// The code stored in the frame.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The kind behind a code.
    pub fn from_code(code: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The name in exports and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Boot => "boot",
            Kind::Cert => "cert",
            Kind::Clock => "clock",
            Kind::Lossy => "lossy",
            Kind::Recovered => "recovered",
            Kind::Seal => "seal",
            Kind::Open => "open",
            Kind::Pins => "pins",
            Kind::Policy => "policy",
            Kind::Cut => "cut",
            Kind::Close => "close",
            Kind::Intent => "intent",
            Kind::Outcome => "outcome",
            Kind::Denied => "denied",
            Kind::Held => "held",
            Kind::Granted => "granted",
            Kind::Released => "released",
            Kind::Body => "body",
            Kind::Term => "term",
            Kind::Decided => "decided",
            Kind::Request => "request",
            Kind::Lockdown => "lockdown",
            Kind::Issued => "issued",
            Kind::Refused => "refused",
            Kind::Config => "config",
            Kind::Bundle => "bundle",
        }
    }

    /// Whether frames of this kind belong to the log itself (session zero).
    pub fn of_log(self) -> bool {
        self.code() < Kind::Open.code() || self.of_broker()
    }

    /// Whether only the broker writes it, in its own log: what people decided and what it gave out or refused.
    pub fn of_broker(self) -> bool {
        self.code() >= Kind::Decided.code()
    }

    /// Whether the payload is sealed under the session's key: everything that may carry content.
    pub fn is_sealed(self) -> bool {
        (self.code() >= Kind::Intent.code() || self == Kind::Pins) && !self.of_broker()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_read_back() {
        let codes: std::collections::BTreeSet<u8> = Kind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(kind.code()), Some(kind));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{}\"", kind.as_str()));
        }
        assert_eq!(Kind::from_code(0), None);
        assert_eq!(Kind::from_code(255), None);
    }
}
