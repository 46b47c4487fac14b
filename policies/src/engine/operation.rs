//! One thing a subject asks of a target, as the engine sees it: protocol, verb, action and facts.
//!
//! An operation borrows from the frame it describes; it is built per decision and never stored.

use crate::sql::SqlFacts;

/// What a protocol could establish about a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact<T> {
    /// Established.
    Known(T),
    /// Will be known at a later phase (bind values before Bind): rules that read it stay open until then.
    Later,
    /// Cannot be established: Deny and Ask rules that read it match, Allow rules do not.
    Unknown,
}

impl<T> Fact<T> {
    /// The value, if it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Fact::Known(value) => Some(value),
            Fact::Later | Fact::Unknown => None,
        }
    }
}

/// How well the protocol understood the operation as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Completeness {
    /// Every fact stands.
    Exact,
    /// Some facts are unknown and marked so.
    Partial,
    /// Nothing is known; every fact counts as unknown.
    Opaque,
}

/// The closed set of things an operation can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Opening a session: judged before a byte goes upstream or a credential is fetched.
    Connect,
    /// One statement or one string of statements.
    Statement,
}

impl Verb {
    /// The lower-case name used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Connect => "connect",
            Verb::Statement => "statement",
        }
    }
}

/// When in the life of an operation the engine is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Structure is known, values are `Later`: nothing is granted, but what must fall falls now.
    Structure,
    /// Everything the protocol will ever know is known. Only this phase grants.
    Final,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'a> {
    /// What kind of thing it is.
    pub verb: Verb,
    /// The protocol's own word for it: `SELECT`, `UPDATE`, `connect`.
    pub action: &'a str,
    /// How well it was understood.
    pub completeness: Completeness,
    /// The protocol's facts.
    pub facts: Facts<'a>,
}

/// Facts by protocol.
#[derive(Debug, Clone, Copy)]
pub enum Facts<'a> {
    /// A session that opens.
    Connect(&'a ConnectFacts),
    /// SQL.
    Sql(&'a SqlFacts),
    /// A raw TCP stream.
    Tcp(&'a TcpFacts),
}

/// Facts of a session that opens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectFacts {
    /// The database named at login, if the protocol has one.
    pub database: Option<String>,
}

/// Facts of a raw TCP stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpFacts {
    /// Bytes from the agent so far.
    pub bytes_in: u64,
    /// Bytes to the agent so far.
    pub bytes_out: u64,
}
