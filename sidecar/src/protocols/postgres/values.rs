//! Bind values: typed for rules, printed for people.
//!
//! It decodes the plain types in both formats; a binary value of any other type is opaque to rules and shown as its
//! length. It never fails: what does not read as its type is opaque.

use std::borrow::Cow;

use sidegate_policies::mask::Detectors;
use sidegate_policies::sql::ParamValue;

use super::codec::bind::Bind;
use super::conversation::Prepared;

const BOOL: u32 = 16;
const NAME: u32 = 19;
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const OID: u32 = 26;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const UNKNOWN: u32 = 705;
const BPCHAR: u32 = 1042;
const VARCHAR: u32 = 1043;
const UUID: u32 = 2950;

/// Characters shown of one value.
const SHOWN: usize = 4_096;

/// One value for rules.
pub fn typed(value: &[u8], oid: u32, binary: bool) -> ParamValue {
    if binary {
        return binary_value(value, oid);
    }
    let Ok(text) = std::str::from_utf8(value) else {
        return ParamValue::Opaque;
    };
    match oid {
        BOOL => match text.trim().to_ascii_lowercase().as_str() {
            "t" | "true" | "y" | "yes" | "on" | "1" => ParamValue::Bool(true),
            "f" | "false" | "n" | "no" | "off" | "0" => ParamValue::Bool(false),
            _ => ParamValue::Opaque,
        },
        INT2 | INT4 | INT8 | OID => text.trim().parse().map_or(ParamValue::Opaque, ParamValue::Int),
        FLOAT4 | FLOAT8 => text.trim().parse().map_or(ParamValue::Opaque, ParamValue::Float),
        _ => ParamValue::Text(text.into()),
    }
}

fn binary_value(value: &[u8], oid: u32) -> ParamValue {
    let int = |value: Option<i64>| value.map_or(ParamValue::Opaque, ParamValue::Int);
    match oid {
        BOOL => match value {
            [byte] => ParamValue::Bool(*byte != 0),
            _ => ParamValue::Opaque,
        },
        INT2 => int(value.try_into().ok().map(|raw| i16::from_be_bytes(raw).into())),
        INT4 => int(value.try_into().ok().map(|raw| i32::from_be_bytes(raw).into())),
        OID => int(value.try_into().ok().map(|raw| u32::from_be_bytes(raw).into())),
        INT8 => int(value.try_into().ok().map(i64::from_be_bytes)),
        FLOAT4 => value.try_into().map_or(ParamValue::Opaque, |raw| {
            ParamValue::Float(f32::from_be_bytes(raw).into())
        }),
        FLOAT8 => value
            .try_into()
            .map_or(ParamValue::Opaque, |raw| ParamValue::Float(f64::from_be_bytes(raw))),
        TEXT | VARCHAR | BPCHAR | NAME | UNKNOWN => {
            std::str::from_utf8(value).map_or(ParamValue::Opaque, |text| ParamValue::Text(text.into()))
        }
        UUID => uuid::Uuid::from_slice(value).map_or(ParamValue::Opaque, |id| ParamValue::Text(id.to_string().into())),
        _ => ParamValue::Opaque,
    }
}

/// Every value of a Bind, for rules.
pub fn all_typed(prepared: &Prepared, bind: &Bind) -> Vec<ParamValue> {
    let one = |(index, value): (usize, Option<&[u8]>)| match value {
        None => ParamValue::Null,
        Some(value) => typed(value, prepared.parameter_type(index), bind.binary(index)),
    };
    bind.values().enumerate().map(one).collect()
}

/// One value for people, and how much of it the detectors hid.
pub fn shown<'v>(value: &'v [u8], oid: u32, binary: bool, detectors: Option<&Detectors>) -> (Cow<'v, str>, u32) {
    let text = whole(value, oid, binary);
    // Before it is cut: half a card number is found by nobody.
    let (text, found) = match detectors {
        Some(detectors) => detectors.shown(text),
        None => (text, 0),
    };
    (cut(text), found)
}

fn whole(value: &[u8], oid: u32, binary: bool) -> Cow<'_, str> {
    if !binary {
        return String::from_utf8_lossy(value);
    }
    match binary_value(value, oid) {
        ParamValue::Bool(value) => value.to_string().into(),
        ParamValue::Int(value) => value.to_string().into(),
        ParamValue::Float(value) => value.to_string().into(),
        ParamValue::Text(_) if oid != UUID => String::from_utf8_lossy(value),
        ParamValue::Text(text) => text.to_string().into(),
        _ => format!("({} bytes)", value.len()).into(),
    }
}

fn cut(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.len() <= SHOWN {
        return text;
    }
    text.chars()
        .take(SHOWN)
        .chain(std::iter::once('…'))
        .collect::<String>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_binary_values_mean_the_same_to_rules() {
        assert_eq!(typed(b"42", INT4, false), typed(&42i32.to_be_bytes(), INT4, true));
        assert_eq!(typed(b"t", BOOL, false), typed(&[1], BOOL, true));
        assert_eq!(typed(b"1.5", FLOAT8, false), typed(&1.5f64.to_be_bytes(), FLOAT8, true));
        assert_eq!(typed(b"x", TEXT, false), typed(b"x", TEXT, true));
    }

    #[test]
    fn what_does_not_read_as_its_type_is_opaque() {
        assert_eq!(typed(b"x", INT4, false), ParamValue::Opaque);
        assert_eq!(typed(&[1, 2, 3], INT4, true), ParamValue::Opaque);
        assert_eq!(typed(&[1, 2, 3], 1700, true), ParamValue::Opaque);
        assert_eq!(shown(&[1, 2, 3], 1700, true, None).0, "(3 bytes)");
    }

    #[test]
    fn what_detectors_find_in_a_value_is_shown_to_nobody_however_long_it_is() {
        use sidegate_policies::api::access_policy::{Detector, MaskAs};
        let wanted =
            [Detector::Email, Detector::CreditCard].map(|detector| (detector, MaskAs::Null(Default::default())));
        let detectors = Detectors::redacting(&wanted);
        let shown = |value: &[u8], oid, binary| {
            let (text, found) = shown(value, oid, binary, Some(&detectors));
            (text.into_owned(), found)
        };
        let plain = |text: &str, found| (text.to_owned(), found);
        assert_eq!(shown(b"to ann@example.org now", TEXT, false), plain("to *** now", 1));
        assert_eq!(shown(b"to ann@example.org now", TEXT, true), plain("to *** now", 1));
        assert_eq!(
            shown(&4_111_111_111_111_111_i64.to_be_bytes(), INT8, true),
            plain("***", 1)
        );
        assert_eq!(shown(b"ann and ben", TEXT, false), plain("ann and ben", 0));
        // Cut within what it hides.
        let long = format!("{}ann.somebody@example.org", " ".repeat(SHOWN - 8));
        assert!(!shown(long.as_bytes(), TEXT, false).0.contains("ann"));
    }
}
