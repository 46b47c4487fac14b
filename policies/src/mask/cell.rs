//! One column's mask: built once per column, applied to every cell.
//!
//! Owns which mask means what for which type (`policy-api.md`, "Masks keep the column's type"). Refuses a column
//! whose type it does not know and that may not be NULL. Invariant: applying never fails and never answers a byte
//! of the value beyond what the mask keeps; a cell it cannot read is redacted.

use super::types::{class, element, empty_array, redacted, Class, Constant};
use super::{array, date, text, Format, Keys, MaskedCell};
use crate::api::access_policy::{DateUnit, MaskAs};
use text::TextMask;

/// A column that cannot be masked within its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a NOT NULL column of type number {type_oid} cannot be masked: no value of that type says nothing")]
pub struct Unmaskable {
    /// The type's number in pg_type.
    pub type_oid: u32,
}

/// The mask of one column.
#[derive(Clone)]
pub struct CellMask {
    action: Action,
    keys: Keys,
}

#[derive(Clone)]
enum Action {
    Null,
    Constant(Constant),
    Text(TextMask, super::types::TextLimits),
    /// A pseudonym below this bound, in so many bytes.
    Integer(u64, usize),
    Uuid,
    DateTrunc {
        unit: DateUnit,
        clock: bool,
        otherwise: Constant,
    },
    Elements {
        element: Box<Action>,
        otherwise: Constant,
    },
}

impl CellMask {
    /// The mask of a column of this type. `not_null` is what the catalog says of the column itself.
    pub fn new(how: MaskAs, type_oid: u32, typmod: i32, not_null: bool, keys: &Keys) -> Result<Self, Unmaskable> {
        let action = match element(type_oid) {
            Some(inner) => array_action(how, inner, typmod, not_null),
            None => scalar_action(how, class(type_oid, typmod), not_null).ok_or(Unmaskable { type_oid })?,
        };
        Ok(CellMask {
            action,
            keys: keys.clone(),
        })
    }

    /// Appends the masked form of a cell. The caller keeps NULL cells NULL.
    pub fn apply(&self, cell: &[u8], format: Format, out: &mut Vec<u8>) -> MaskedCell {
        self.action.apply(cell, format, &self.keys, out)
    }
}

fn scalar_action(how: MaskAs, class: Class, not_null: bool) -> Option<Action> {
    let action = match (how, class) {
        (MaskAs::Null(_), _) if !not_null => Action::Null,
        (MaskAs::Hash(_), Class::Text(limits)) => Action::Text(TextMask::Hash, limits),
        (MaskAs::Token(_), Class::Text(limits)) => Action::Text(TextMask::Token, limits),
        (MaskAs::KeepFirst(keep), Class::Text(limits)) => Action::Text(TextMask::KeepFirst(kept(keep.count)), limits),
        (MaskAs::KeepLast(keep), Class::Text(limits)) => Action::Text(TextMask::KeepLast(kept(keep.count)), limits),
        (MaskAs::Token(_), Class::Int2) => Action::Integer(1 << 15, 2),
        (MaskAs::Token(_), Class::Int4) => Action::Integer(1 << 31, 4),
        (MaskAs::Token(_), Class::Oid) => Action::Integer(1 << 32, 4),
        (MaskAs::Token(_), Class::Int8) => Action::Integer(1 << 63, 8),
        (MaskAs::Token(_), Class::Uuid) => Action::Uuid,
        (MaskAs::DateTrunc(cut), Class::Date | Class::Timestamp | Class::TimestampTz) => Action::DateTrunc {
            unit: cut.unit,
            clock: class != Class::Date,
            otherwise: redacted(class, not_null)?,
        },
        _ => match redacted(class, not_null) {
            Some(constant) => Action::Constant(constant),
            None if not_null => return None,
            None => Action::Null,
        },
    };
    Some(action)
}

fn array_action(how: MaskAs, inner: u32, typmod: i32, not_null: bool) -> Action {
    let otherwise = empty_array(inner);
    if matches!(how, MaskAs::Null(_)) && !not_null {
        return Action::Null;
    }
    match scalar_action(how, class(inner, typmod), false) {
        // What has no mask of its own is redacted, and a redacted array is empty.
        None | Some(Action::Null | Action::Constant(_)) => Action::Constant(otherwise),
        Some(element) => Action::Elements {
            element: Box::new(element),
            otherwise,
        },
    }
}

/// Characters kept; the checker refuses what is out of range, and out of range keeps nothing.
fn kept(count: i32) -> usize {
    usize::try_from(count).unwrap_or(0)
}

fn constant(constant: &Constant, format: Format, out: &mut Vec<u8>) -> MaskedCell {
    out.extend_from_slice(match format {
        Format::Text => &constant.text,
        Format::Binary => &constant.binary,
    });
    MaskedCell::Value
}

impl Action {
    fn apply(&self, cell: &[u8], format: Format, keys: &Keys, out: &mut Vec<u8>) -> MaskedCell {
        match self {
            Action::Null => return MaskedCell::Null,
            Action::Constant(value) => return constant(value, format, out),
            Action::Text(how, limits) => text::mask(*how, cell, *limits, keys, out),
            Action::Integer(bound, width) => integer(cell, format, (*bound, *width), keys, out),
            Action::Uuid => uuid(cell, format, keys, out),
            Action::DateTrunc { unit, clock, otherwise } => match cut(cell, format, *unit, *clock) {
                Some(bytes) => out.extend_from_slice(&bytes),
                None => return constant(otherwise, format, out),
            },
            Action::Elements { element, otherwise } => {
                let start = out.len();
                let mask = |cell: &[u8], out: &mut Vec<u8>| element.apply(cell, format, keys, out);
                let done = match format {
                    Format::Text => array::text(cell, &mask, out),
                    Format::Binary => array::binary(cell, &mask, out),
                };
                if done.is_none() {
                    out.truncate(start);
                    return constant(otherwise, format, out);
                }
            }
        }
        MaskedCell::Value
    }
}

fn cut(cell: &[u8], format: Format, unit: DateUnit, clock: bool) -> Option<Vec<u8>> {
    match (format, clock) {
        (Format::Text, false) => date::date_text(std::str::from_utf8(cell).ok()?, unit).map(String::into_bytes),
        (Format::Text, true) => date::timestamp_text(std::str::from_utf8(cell).ok()?, unit).map(String::into_bytes),
        (Format::Binary, false) => date::date_binary(cell, unit).map(|bytes| bytes.to_vec()),
        (Format::Binary, true) => date::timestamp_binary(cell, unit).map(|bytes| bytes.to_vec()),
    }
}

/// A pseudonym of the number itself, so that both formats and all widths agree on what is hashed.
fn integer(cell: &[u8], format: Format, (bound, width): (u64, usize), keys: &Keys, out: &mut Vec<u8>) {
    let value: Option<i64> = match (format, cell.len()) {
        (Format::Text, _) => std::str::from_utf8(cell).ok().and_then(|text| text.parse().ok()),
        (Format::Binary, 2) => cell.try_into().ok().map(|bytes| i16::from_be_bytes(bytes).into()),
        // Object numbers are unsigned; the others of this width are not.
        (Format::Binary, 4) if bound == 1 << 32 => cell.try_into().ok().map(|bytes| u32::from_be_bytes(bytes).into()),
        (Format::Binary, 4) => cell.try_into().ok().map(|bytes| i32::from_be_bytes(bytes).into()),
        (Format::Binary, 8) => cell.try_into().ok().map(i64::from_be_bytes),
        _ => None,
    };
    let token = match value {
        Some(value) => {
            let tag = keys.digest("integer", &value.to_be_bytes());
            let first = tag.as_ref().first_chunk::<8>().copied().unwrap_or_default();
            u64::from_be_bytes(first).checked_rem(bound).unwrap_or(0)
        }
        None => 0,
    };
    match format {
        Format::Text => out.extend_from_slice(token.to_string().as_bytes()),
        Format::Binary => {
            let bytes = token.to_be_bytes();
            let skipped = bytes.len().saturating_sub(width);
            out.extend(bytes.iter().skip(skipped));
        }
    }
}

/// A pseudonym that is a valid uuid of version 8 (free use).
fn uuid(cell: &[u8], format: Format, keys: &Keys, out: &mut Vec<u8>) {
    let value = match format {
        Format::Text => std::str::from_utf8(cell)
            .ok()
            .and_then(|text| uuid::Uuid::parse_str(text).ok()),
        Format::Binary => uuid::Uuid::from_slice(cell).ok(),
    };
    let token = match value {
        Some(value) => {
            let tag = keys.digest("uuid", value.as_bytes());
            let first = tag.as_ref().first_chunk::<16>().copied().unwrap_or_default();
            uuid::Builder::from_custom_bytes(first).into_uuid()
        }
        None => uuid::Uuid::nil(),
    };
    match format {
        Format::Text => out.extend_from_slice(token.hyphenated().to_string().as_bytes()),
        Format::Binary => out.extend_from_slice(token.as_bytes()),
    }
}
