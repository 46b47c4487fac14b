//! What an agent is told when Sidegate says no: one template, one machine form, for every protocol.
//!
//! Readers are language models and drivers that keep the first line only, so one sentence says what was refused, by
//! which rule, whether it was sent, and what to do next. Quoted input and operators' messages are cut to 200
//! characters and freed of control characters, the whole to 1,000. It never names other tenants, masked values,
//! secrets or approvers: nothing in here can hold them.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use sidegate_policies::engine::RuleRef;
use sidegate_policies::reason::{Reason, Retry};

/// Longest text of a refusal, in characters.
pub const TEXT_LIMIT: usize = 1_000;
/// Longest quotation (agent's input, operator's message) inside it, in characters.
pub const QUOTE_LIMIT: usize = 200;

/// A refusal's own id (`sg-7k2f9c`), so that a person can find it in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RefusalId([u8; 9]);

impl RefusalId {
    /// A fresh random id.
    pub fn random() -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut raw = [0u8; 6];
        // Without randomness the id is a constant: worth less for searching, and no reason to fail a refusal.
        let _ = aws_lc_rs::rand::fill(&mut raw);
        let mut id = *b"sg-aaaaaa";
        for (to, from) in id.iter_mut().skip(3).zip(raw) {
            *to = ALPHABET.get(usize::from(from & 31)).copied().unwrap_or(b'a');
        }
        RefusalId(id)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("sg-")
    }
}

impl fmt::Display for RefusalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An approval request, as the agent may quote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Its name, such as `ar-7k2f9c`.
    pub name: Arc<str>,
    /// Until when it may be decided or used, milliseconds since 1970.
    pub until_ms: i64,
}

impl Ticket {
    /// The end of the ticket's life, RFC 3339 in seconds.
    pub fn until(&self) -> String {
        jiff::Timestamp::from_millisecond(self.until_ms)
            .and_then(|at| at.round(jiff::Unit::Second))
            .map(|at| at.to_string())
            .unwrap_or_default()
    }
}

/// What the target may have seen of the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing.
    No,
    /// It was a connection, and no session came of it.
    NotOpened,
    /// It was a session, which is over. What it did before stays done.
    Ended,
    /// All of it; this many rows had come back.
    Yes {
        /// Rows already delivered.
        rows: u64,
    },
    /// A part, and the target was made to undo it.
    Undone,
    /// Nobody knows.
    Unknown,
}

/// One refusal.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The rule that decided, if one did.
    pub rule: Option<RuleRef>,
    /// The operator's or Sidegate's own explanation.
    pub message: Option<Arc<str>>,
    /// The request to wait for.
    pub ticket: Option<Box<Ticket>>,
    /// Its id.
    pub id: RefusalId,
    /// Whether the target saw it.
    pub sent: Sent,
    /// What was refused: `statement`, [`CONNECTION`], [`SESSION`].
    pub what: &'static str,
    /// What to do instead, where Sidegate knows.
    pub hint: Option<Box<str>>,
    /// With [`Reason::TooLarge`]: it is not its size but its nesting; some protocols tell these apart.
    pub nested: bool,
    /// When to try again, where the reason alone does not tell.
    pub retry: Option<Retry>,
}

/// A connection that is refused; nothing was opened.
pub const CONNECTION: &str = "connection";
/// A session that ends.
pub const SESSION: &str = "session";

/// The machine form.
#[derive(Serialize)]
struct Machine<'a> {
    decision: &'static str,
    reason: Reason,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    retry: Retry,
    #[serde(skip_serializing_if = "Option::is_none")]
    ticket: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    next: String,
    id: &'a str,
}

impl Refusal {
    /// A refusal of something that was not sent.
    pub fn new(reason: Reason, what: &'static str) -> Self {
        Refusal {
            reason,
            rule: None,
            message: None,
            ticket: None,
            id: RefusalId::random(),
            sent: match what {
                CONNECTION => Sent::NotOpened,
                SESSION => Sent::Ended,
                _ => Sent::No,
            },
            what,
            hint: None,
            nested: false,
            retry: None,
        }
    }

    /// The same, explained.
    #[must_use]
    pub fn because(mut self, message: impl Into<Arc<str>>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// The same, with the rule that decided.
    #[must_use]
    pub fn by(mut self, rule: Option<RuleRef>) -> Self {
        self.rule = rule;
        self
    }

    /// The same, with what to do instead.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Box<str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same, where it may be sent again as it is: now ([`Retry::Same`]) or in a minute ([`Retry::Later`]).
    #[must_use]
    pub fn again(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// The same, with how much of it took place.
    #[must_use]
    pub fn after(mut self, sent: Sent) -> Self {
        self.sent = sent;
        self
    }

    /// The sentence for people and language models, at most 1,000 characters.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(256);
        match self.sent {
            Sent::No | Sent::NotOpened => text.push_str(&format!("Sidegate refused this {}", self.what)),
            Sent::Ended => text.push_str(&format!("Sidegate ended this {}", self.what)),
            Sent::Yes { rows } => text.push_str(&format!("Sidegate stopped this {} after {rows} rows", self.what)),
            Sent::Undone | Sent::Unknown => text.push_str(&format!("Sidegate stopped this {}", self.what)),
        }
        if let Some(rule) = &self.rule {
            text.push_str(&format!(" (rule {}", quote(&rule.rule)));
            // The default deny belongs to no policy.
            if !rule.policy.is_empty() {
                text.push_str(&format!(", policy {}", quote(&rule.policy)));
            }
            text.push(')');
        }
        let message = self.message.as_deref().unwrap_or_else(|| self.explanation());
        text.push_str(": ");
        text.push_str(&sentence(&quote(message)));
        match self.sent {
            // Some advice says by itself that nothing was sent.
            Sent::No if says_not_sent(self.reason) => {}
            Sent::No => text.push_str(" It was not sent."),
            Sent::NotOpened => text.push_str(" No session was opened."),
            Sent::Ended => {}
            Sent::Yes { .. } => text.push_str(" It took effect: yes."),
            Sent::Undone => text.push_str(" It took effect: no."),
            Sent::Unknown => text.push_str(" It took effect: unknown."),
        }
        text.push(' ');
        text.push_str(&self.advice());
        let tail = format!(" [{}]", self.id);
        let room = TEXT_LIMIT.saturating_sub(tail.chars().count());
        let mut text = cut(&text, room);
        text.push_str(&tail);
        text
    }

    /// One line of JSON for programs.
    pub fn machine(&self) -> String {
        let ask = self.reason == Reason::ApprovalRequired;
        let machine = Machine {
            decision: if ask { "ask" } else { "deny" },
            reason: self.reason,
            rule: self.rule.as_ref().map(|rule| &*rule.rule),
            policy: self
                .rule
                .as_ref()
                .map(|rule| &*rule.policy)
                .filter(|policy| !policy.is_empty()),
            retry: self.retry.unwrap_or_else(|| self.reason.retry()),
            ticket: self.ticket.as_ref().map(|ticket| &*ticket.name),
            expires: self.ticket.as_deref().map(Ticket::until),
            next: self.next(),
            id: self.id.as_str(),
        };
        serde_json::to_string(&machine).unwrap_or_default()
    }

    /// The next step, one sentence that the text does not hold: the caller's own hint, or what follows from the reason.
    pub fn next(&self) -> String {
        match (&self.hint, &self.ticket) {
            (Some(hint), _) => sentence(&quote(hint)),
            (None, Some(ticket)) if self.reason == Reason::ApprovalRequired => format!(
                "Have somebody run `sidegate approve {}`, then repeat it; a change of any kind needs a new approval.",
                ticket.name
            ),
            (None, _) if self.reason == Reason::Denied => self.next_after_denial(),
            (None, _) => next_step(self.reason).to_owned(),
        }
    }

    fn next_after_denial(&self) -> String {
        let again = if self.sent == Sent::NotOpened {
            "connect again"
        } else {
            "send it again"
        };
        match &self.rule {
            Some(rule) if rule.policy.is_empty() => {
                "Ask your operator for a rule that allows it; `sidegate explain` shows what is allowed.".to_owned()
            }
            Some(rule) if self.message.is_none() => format!(
                "Do without it, or ask your operator about rule {} of policy {}.",
                quote(&rule.rule),
                quote(&rule.policy)
            ),
            _ => format!("Change what the message names, then {again}."),
        }
    }

    /// What is said where neither a rule nor the caller explains.
    fn explanation(&self) -> &'static str {
        let ruled = self.rule.as_ref().is_some_and(|rule| !rule.policy.is_empty());
        match self.reason {
            Reason::Denied if ruled => "the rule forbids it",
            reason => explanation(reason),
        }
    }

    fn advice(&self) -> String {
        match (&self.ticket, self.reason, self.sent) {
            (Some(ticket), Reason::ApprovalRequired, _) => format!(
                "A person must approve it: ticket {}. After approval send exactly the same again, before {}.",
                ticket.name,
                ticket.until()
            ),
            // "Nothing was sent" is told of operations that were not sent, and of nothing else.
            (_, reason, sent) if sent != Sent::No && says_not_sent(reason) => "Try again in a minute.".into(),
            (_, reason, _) => match self.retry {
                Some(Retry::Same) => "Send it again.".to_owned(),
                Some(Retry::Later) => "Try again in a minute.".to_owned(),
                _ => reason.advice().to_owned(),
            },
        }
    }
}

/// What to do next where neither the caller nor a rule knows better.
fn next_step(reason: Reason) -> &'static str {
    match reason {
        Reason::Denied => "Ask your operator for a rule that allows it.",
        Reason::ApprovalRequired => "Ask somebody who may approve it, and wait.",
        Reason::ApprovalDenied => "Do without it, or ask your operator why; asking again is refused for a while.",
        Reason::ApprovalExpired => "Send it again to open a new request.",
        Reason::Withdrawn => "Send it again if it is still needed.",
        Reason::NotUnderstood => "Correct it, or break it into plain parts and send them one by one.",
        Reason::Unresolved => "Check the names in it, and write each with its schema.",
        Reason::TooLarge => "Break it into several parts and send them one by one.",
        Reason::Limit => "Ask for less at once.",
        Reason::CannotRecord => "If it lasts, tell your operator that records cannot be written.",
        Reason::Unavailable => "If it lasts, tell your operator, with the id.",
        Reason::Stale => "If it lasts, tell your operator that the broker is silent.",
        Reason::Locked => "Only your operator can lift the lockdown; trying again changes nothing.",
        Reason::CredentialRefused => "Your operator has to check the credential that the Target names.",
        Reason::LeaseEnded | Reason::MaxSession | Reason::Draining => {
            "Open a new connection and repeat what was not committed."
        }
        Reason::PolicyGone => "Reconnecting helps once a policy allows this agent again.",
        Reason::ProtocolViolation => "Use a current driver, and reconnect.",
        Reason::UpstreamRefused => {
            "Your operator has to check the Target's address and TLS; the sidecar's log says what failed."
        }
        Reason::PlanMismatch => "Prepare it again; if it fails again, tell your operator, with the id.",
        Reason::Internal => "The sidecar's log says what failed: give your operator the id.",
    }
}

/// Whether the advice of this reason already says that nothing was sent.
fn says_not_sent(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::CannotRecord | Reason::Unavailable | Reason::Stale | Reason::Withdrawn | Reason::ApprovalExpired
    )
}

/// What is said of a reason by itself.
fn explanation(reason: Reason) -> &'static str {
    match reason {
        Reason::Denied => "no rule allows it",
        Reason::ApprovalRequired => "it waits for a person",
        Reason::ApprovalDenied => "a person said no",
        Reason::ApprovalExpired => "the approval was not used in time",
        Reason::Withdrawn => "it was withdrawn",
        Reason::NotUnderstood => "Sidegate does not understand it",
        Reason::Unresolved => "a name in it could not be resolved",
        Reason::TooLarge => "it is too large to judge",
        Reason::Limit => "a limit was reached",
        Reason::CannotRecord => "it cannot be recorded",
        Reason::Unavailable => "a part Sidegate needs is not reachable",
        Reason::Stale => "Sidegate has not heard from its broker",
        Reason::Locked => "a lockdown is in force",
        Reason::CredentialRefused => "Sidegate's own login was refused",
        Reason::LeaseEnded => "Sidegate's credential ended",
        Reason::MaxSession => "the session reached its longest life",
        Reason::PolicyGone => "what allowed this session is gone",
        Reason::ProtocolViolation => "the client broke the protocol",
        Reason::UpstreamRefused => "the target could not be reached or verified",
        Reason::PlanMismatch => "the answer is not the one that was judged",
        Reason::Draining => "Sidegate is shutting down",
        Reason::Internal => "Sidegate failed",
    }
}

/// Text freed of control and bidirectional characters and cut to what may be quoted.
pub fn quote(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() || is_bidi(c) { ' ' } else { c })
        .collect();
    cut(clean.trim(), QUOTE_LIMIT)
}

fn is_bidi(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{061c}')
}

fn cut(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(limit.saturating_sub(1)).collect();
    short.push('…');
    short
}

fn sentence(text: &str) -> String {
    if text.ends_with(['.', '!', '?', '…']) {
        text.to_owned()
    } else {
        format!("{text}.")
    }
}

#[cfg(test)]
#[path = "refusal_tests.rs"]
mod tests;
