//! Detectors: values that look like secrets or personal data, found in text whatever column it came from.
//!
//! Owns the order of work: one pass counts which bytes a cell has, only detectors that could fit then look, each in
//! time linear in the cell; overlapping finds go to the strongest mask. Refuses to guess about binary forms it does
//! not know: a find there turns the whole cell into NULL. Invariant: a cell without a find stays byte for byte
//! what it was, and the output buffer is not touched.

mod address;
mod email;
mod numbers;
mod secrets;

use std::borrow::Cow;

use super::text::{fit, masked, TextMask};
use super::types::{class, element, Class, TextLimits};
use super::{array, Format, Keys, MaskedCell};
use crate::api::access_policy::{Detector, MaskAs};

/// Detectors of one session, with the mask of each.
#[derive(Clone)]
pub struct Detectors {
    enabled: Vec<(Detector, TextMask)>,
    keys: Keys,
}

/// Detectors ready for the cells of one column.
#[derive(Clone)]
pub struct ColumnDetectors {
    detectors: Detectors,
    shape: Shape,
}

/// What a detector's pass over a cell did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// Nothing was found; nothing was appended; the cell may pass as it is.
    Clean,
    /// Something was found; the whole masked cell was appended.
    Masked,
    /// Something was found where only NULL is safe; nothing was appended.
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text(TextLimits),
    Json,
    Jsonb,
    Array(TextLimits),
    JsonArray,
    /// An extension's type: text in text form, unknown in binary.
    Unknown,
}

/// A find: from, to, and how to mask it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Find {
    start: usize,
    end: usize,
    how: TextMask,
}

/// What a cell is made of, from one pass over it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Census {
    digits: usize,
    at: bool,
    plus: bool,
    dashes: usize,
    dots: usize,
    colons: usize,
    upper: usize,
}

impl Detectors {
    /// Detectors with their masks, as a decision lists them: where a kind is listed twice, the first counts.
    pub fn new(wanted: &[(Detector, MaskAs)], keys: &Keys) -> Self {
        let mut enabled: Vec<(Detector, TextMask)> = Vec::new();
        for (detector, how) in wanted {
            if !enabled.iter().any(|(known, _)| known == detector) {
                enabled.push((*detector, within(*how)));
            }
        }
        Detectors {
            enabled,
            keys: keys.clone(),
        }
    }

    /// Detectors that hide all of what they find: for texts that are kept, or that people read who are not the agent.
    pub fn redacting(wanted: &[(Detector, MaskAs)]) -> Self {
        Detectors {
            enabled: wanted
                .iter()
                .map(|(detector, _)| (*detector, TextMask::Redact))
                .collect(),
            // Nothing of what is hidden depends on them.
            keys: Keys::from_bytes(&[0; 32]),
        }
    }

    /// Whether nothing is looked for.
    pub fn is_empty(&self) -> bool {
        self.enabled.is_empty()
    }

    /// The detectors for one column; none where the type cannot hold what they look for.
    pub fn for_column(&self, type_oid: u32, typmod: i32) -> Option<ColumnDetectors> {
        // Types whose values cannot hold such text: numbers, times, addresses of fixed form, bytes, object names.
        const NEVER: &[u32] = &[
            16, 17, 18, 20, 21, 22, 23, 24, 26, 27, 28, 29, 30, 600, 601, 602, 603, 604, 628, 650, 700, 701, 718, 774,
            790, 829, 869, 1082, 1083, 1114, 1184, 1186, 1266, 1560, 1562, 1700, 2205, 2206, 2950, 3220, 3614, 3615,
            3904, 3906, 3908, 3910, 3912, 3926, 4096, 5069,
        ];
        let shape = match (element(type_oid), class(type_oid, typmod)) {
            (Some(inner), _) => match class(inner, typmod) {
                Class::Text(limits) => Shape::Array(limits),
                Class::Json | Class::Jsonb => Shape::JsonArray,
                _ => return None,
            },
            (None, Class::Text(limits)) => Shape::Text(limits),
            (None, Class::Json) => Shape::Json,
            (None, Class::Jsonb) => Shape::Jsonb,
            (None, _) if NEVER.contains(&type_oid) => return None,
            (None, _) => Shape::Unknown,
        };
        (!self.is_empty()).then(|| ColumnDetectors {
            detectors: self.clone(),
            shape,
        })
    }

    /// Masks what is found in a plain text, such as a message. Appends only where something was found.
    pub fn apply(&self, text: &[u8], out: &mut Vec<u8>) -> bool {
        let finds = self.finds(text);
        if finds.is_empty() {
            return false;
        }
        self.replace(text, finds, out);
        true
    }

    /// Whether a find in any part of the text is possible; true whenever in doubt.
    pub fn may_find(&self, text: &str) -> bool {
        let census = Census::of(text.as_bytes());
        let mut enabled = self.enabled.iter();
        enabled.any(|(detector, _)| census.may_hold(*detector, text.len()))
    }

    /// A text with its finds masked, and how many there are.
    pub fn shown<'t>(&self, text: Cow<'t, str>) -> (Cow<'t, str>, u32) {
        let finds = self.finds(text.as_bytes());
        if finds.is_empty() {
            return (text, 0);
        }
        let count = u32::try_from(finds.len()).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(text.len());
        self.replace(text.as_bytes(), finds, &mut out);
        (String::from_utf8_lossy(&out).into_owned().into(), count)
    }

    fn replace(&self, text: &[u8], finds: Vec<Find>, out: &mut Vec<u8>) {
        let mut passed = 0;
        for find in finds {
            out.extend_from_slice(text.get(passed..find.start).unwrap_or_default());
            let value = text.get(find.start..find.end).unwrap_or_default();
            let value = std::str::from_utf8(value).unwrap_or("***");
            out.extend_from_slice(masked(find.how, value, &self.keys).as_bytes());
            passed = find.end;
        }
        out.extend_from_slice(text.get(passed..).unwrap_or_default());
    }

    /// Everything found, in order and without overlaps.
    fn finds(&self, text: &[u8]) -> Vec<Find> {
        if text.len() < 3 || self.enabled.is_empty() {
            return Vec::new();
        }
        let census = Census::of(text);
        let mut finds = Vec::new();
        for (detector, how) in &self.enabled {
            if census.may_hold(*detector, text.len()) {
                let mut found = |start: usize, end: usize| {
                    finds.push(Find { start, end, how: *how });
                };
                scan(*detector, text, &mut found);
            }
        }
        merge(finds)
    }
}

fn scan(detector: Detector, text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    match detector {
        Detector::CreditCard => numbers::cards(text, found),
        Detector::UsSsn => numbers::social_security(text, found),
        Detector::Iban => numbers::ibans(text, found),
        Detector::Phone => numbers::phones(text, found),
        Detector::Email => email::emails(text, found),
        Detector::Jwt => secrets::tokens(text, found),
        Detector::PrivateKey => secrets::private_keys(text, found),
        Detector::AwsAccessKey => secrets::aws_keys(text, found),
        Detector::IpAddress => address::addresses(text, found),
    }
}

/// Overlapping finds become one, under the mask that keeps least.
fn merge(mut finds: Vec<Find>) -> Vec<Find> {
    finds.sort_by_key(|find| (find.start, find.end));
    let mut merged: Vec<Find> = Vec::with_capacity(finds.len());
    for find in finds {
        match merged.last_mut() {
            Some(last) if find.start < last.end => {
                last.end = last.end.max(find.end);
                if strength(find.how) > strength(last.how) {
                    last.how = find.how;
                }
            }
            _ => merged.push(find),
        }
    }
    merged
}

/// Larger hides more.
fn strength(how: TextMask) -> (u8, usize) {
    match how {
        TextMask::Redact => (3, 0),
        TextMask::Hash => (2, 0),
        TextMask::Token => (1, 0),
        TextMask::KeepFirst(kept) | TextMask::KeepLast(kept) => (0, usize::MAX.saturating_sub(kept)),
    }
}

/// A mask as it acts within a text: NULL and dates make no sense there and become `redact`.
fn within(how: MaskAs) -> TextMask {
    let kept = |count: i32| usize::try_from(count).unwrap_or(0);
    match how {
        MaskAs::Null(_) | MaskAs::Redact(_) | MaskAs::DateTrunc(_) => TextMask::Redact,
        MaskAs::Hash(_) => TextMask::Hash,
        MaskAs::Token(_) => TextMask::Token,
        MaskAs::KeepFirst(keep) => TextMask::KeepFirst(kept(keep.count)),
        MaskAs::KeepLast(keep) => TextMask::KeepLast(kept(keep.count)),
    }
}

impl Census {
    fn of(text: &[u8]) -> Self {
        let mut census = Census::default();
        let count = |wanted: fn(u8) -> bool| text.iter().filter(|byte| wanted(**byte)).count();
        census.digits = count(|byte| byte.is_ascii_digit());
        census.upper = count(|byte| byte.is_ascii_uppercase());
        census.at = memchr::memchr(b'@', text).is_some();
        census.plus = memchr::memchr(b'+', text).is_some();
        census.dashes = memchr::memchr_iter(b'-', text).take(10).count();
        census.dots = memchr::memchr_iter(b'.', text).take(3).count();
        census.colons = memchr::memchr_iter(b':', text).take(2).count();
        census
    }

    /// Whether the detector could find anything; true whenever in doubt.
    fn may_hold(&self, detector: Detector, length: usize) -> bool {
        match detector {
            Detector::CreditCard => self.digits >= 13,
            Detector::UsSsn => self.digits >= 9 && self.dashes >= 2,
            Detector::Iban => self.digits >= 2 && length >= 15,
            Detector::Phone => self.plus && self.digits >= 8,
            Detector::Email => self.at && self.dots >= 1,
            Detector::Jwt => self.dots >= 2 && length >= 16,
            Detector::PrivateKey => self.dashes >= 10,
            Detector::AwsAccessKey => self.upper >= 4 && length >= 20,
            Detector::IpAddress => (self.dots >= 3 && self.digits >= 4) || self.colons >= 2,
        }
    }
}

impl ColumnDetectors {
    /// Looks at one cell.
    pub fn apply(&self, cell: &[u8], format: Format, out: &mut Vec<u8>) -> Detected {
        match (self.shape, format) {
            (Shape::Text(limits), _) => self.text(cell, limits, out),
            (Shape::Json, _) | (Shape::Jsonb, Format::Text) => self.json(cell, b"", out),
            (Shape::Jsonb, Format::Binary) => match cell.split_first() {
                Some((version, body)) => self.json(body, &[*version], out),
                None => Detected::Clean,
            },
            (Shape::Array(limits), _) => self.array(cell, format, out, &|cell, out| self.text(cell, limits, out)),
            (Shape::JsonArray, _) => self.array(cell, format, out, &|_, _| Detected::Null),
            (Shape::Unknown, Format::Text) => self.text(cell, TextLimits::default(), out),
            (Shape::Unknown, Format::Binary) => self.found_or_clean(cell, Detected::Null),
        }
    }

    fn found_or_clean(&self, cell: &[u8], found: Detected) -> Detected {
        if self.detectors.finds(cell).is_empty() {
            Detected::Clean
        } else {
            found
        }
    }

    fn text(&self, cell: &[u8], limits: TextLimits, out: &mut Vec<u8>) -> Detected {
        let start = out.len();
        if !self.detectors.apply(cell, out) {
            return Detected::Clean;
        }
        if limits != TextLimits::default() {
            let written = out.split_off(start);
            let written = std::str::from_utf8(&written).unwrap_or("***");
            let trimmed = if limits.padded {
                written.trim_end_matches(' ')
            } else {
                written
            };
            out.extend_from_slice(fit(trimmed, limits).as_bytes());
        }
        Detected::Masked
    }

    /// Masks inside strings keep a document valid; a find outside of one (a bare number) would not, and JSON null
    /// stands for the document then.
    fn json(&self, body: &[u8], prefix: &[u8], out: &mut Vec<u8>) -> Detected {
        let start = out.len();
        out.extend_from_slice(prefix);
        let written = out.len();
        if !self.detectors.apply(body, out) {
            out.truncate(start);
            return Detected::Clean;
        }
        let valid = out
            .get(written..)
            .is_some_and(|body| serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok());
        if !valid {
            out.truncate(written);
            out.extend_from_slice(b"null");
        }
        Detected::Masked
    }

    fn array(
        &self,
        cell: &[u8],
        format: Format,
        out: &mut Vec<u8>,
        inspect: &dyn Fn(&[u8], &mut Vec<u8>) -> Detected,
    ) -> Detected {
        // Escapes and lengths split no find that matters: what is clean as a whole is clean by element.
        if self.detectors.finds(cell).is_empty() {
            return Detected::Clean;
        }
        let start = out.len();
        let mask = |value: &[u8], out: &mut Vec<u8>| match self.found_or_clean(value, Detected::Null) {
            Detected::Clean => {
                out.extend_from_slice(value);
                MaskedCell::Value
            }
            _ => match inspect(value, out) {
                Detected::Masked => MaskedCell::Value,
                Detected::Clean | Detected::Null => MaskedCell::Null,
            },
        };
        let done = match format {
            Format::Text => array::text(cell, &mask, out),
            Format::Binary => array::binary(cell, &mask, out),
        };
        if done.is_none() {
            out.truncate(start);
            return Detected::Null;
        }
        Detected::Masked
    }
}

/// The byte at a place, if there is one.
fn at(text: &[u8], index: usize) -> Option<u8> {
    text.get(index).copied()
}

/// The byte before a place, if there is one.
fn before(text: &[u8], index: usize) -> Option<u8> {
    text.get(index.checked_sub(1)?).copied()
}

/// Whether a byte would continue a word: a find must not begin or end in the middle of one.
fn in_word(byte: Option<u8>) -> bool {
    byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80)
}

/// Where the run of bytes that begins here ends.
fn run(text: &[u8], start: usize, wanted: impl Fn(u8) -> bool) -> usize {
    let rest = text.get(start..).unwrap_or_default();
    let length = rest.iter().position(|byte| !wanted(*byte)).unwrap_or(rest.len());
    start.saturating_add(length)
}
