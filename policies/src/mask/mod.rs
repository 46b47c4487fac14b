//! Masks on cells of a PostgreSQL answer: a value goes in, a harmless value of the same type comes out.
//!
//! Owns the text and binary forms of every type it masks, and the session's keys. Refuses (with an error, never
//! with the value) what it cannot mask within its type. Invariant: a masked cell parses as the column's type, and
//! no byte of the original is in it beyond what the mask keeps.

/// How a cell is written on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Text.
    Text,
    /// Binary.
    Binary,
}

/// What became of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskedCell {
    /// The bytes appended to the output.
    Value,
    /// NULL; nothing was appended.
    Null,
}
