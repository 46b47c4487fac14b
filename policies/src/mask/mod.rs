//! Masks on cells of a PostgreSQL answer: a value goes in, a harmless value of the same type comes out.
//!
//! Owns the text and binary forms of every type it masks, the detectors, and the session's keys. Refuses (with an
//! error that never holds the value) a column it cannot mask within its type. Invariant: a masked cell reads as
//! the column's type, no byte of the original is in it beyond what the mask keeps, and NULL stays NULL (the
//! caller passes values only).

mod array;
mod cell;
mod date;
pub mod detect;
mod explained;
mod text;
mod types;

pub use cell::{CellMask, Unmaskable};
pub use detect::{ColumnDetectors, Detected, Detectors};
pub use explained::{explained, PlanForm};

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

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
    /// The masked bytes were appended to the output.
    Value,
    /// NULL; nothing was appended.
    Null,
}

/// The keys of `hash` and `token`: random, one set per session, wiped when dropped. One value therefore gets the
/// same pseudonym within a session and another one in the next.
#[derive(Clone)]
pub struct Keys {
    key: hmac::Key,
}

/// The system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system's random generator failed")]
pub struct NoRandomness;

impl Keys {
    /// New random keys.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        aws_lc_rs::rand::fill(bytes.as_mut()).map_err(|_| NoRandomness)?;
        Ok(Keys::from_bytes(&bytes))
    }

    /// Keys from 32 bytes, for tests and for masks that must agree between processes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Keys {
            key: hmac::Key::new(hmac::HMAC_SHA256, bytes),
        }
    }

    /// The keyed hash of a value for one purpose.
    fn digest(&self, purpose: &str, value: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(purpose.as_bytes());
        context.update(&[0]);
        context.update(value);
        context.sign()
    }
}

#[cfg(test)]
mod tests;
