//! What masks promise, by type and format, with generated values.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use proptest::prelude::*;

use super::*;
use crate::api::access_policy::{DateTrunc, DateUnit, Detector, Keep, MaskAs, NoOptions};

mod detectors;

fn keys() -> Keys {
    Keys::from_bytes(&[7; 32])
}

const NULL: MaskAs = MaskAs::Null(NoOptions {});
const REDACT: MaskAs = MaskAs::Redact(NoOptions {});
const HASH: MaskAs = MaskAs::Hash(NoOptions {});
const TOKEN: MaskAs = MaskAs::Token(NoOptions {});
const MONTH: MaskAs = MaskAs::DateTrunc(DateTrunc { unit: DateUnit::Month });

fn keep_last(count: i32) -> MaskAs {
    MaskAs::KeepLast(Keep { count })
}

fn every_mask() -> Vec<MaskAs> {
    let first = MaskAs::KeepFirst(Keep { count: 3 });
    vec![NULL, REDACT, HASH, TOKEN, MONTH, first, keep_last(4)]
}

fn masked(how: MaskAs, oid: u32, typmod: i32, not_null: bool, cell: &[u8], format: Format) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mask = CellMask::new(how, oid, typmod, not_null, &keys()).unwrap();
    (mask.apply(cell, format, &mut out) == MaskedCell::Value).then_some(out)
}

fn text(how: MaskAs, oid: u32, cell: &str) -> String {
    String::from_utf8(masked(how, oid, -1, true, cell.as_bytes(), Format::Text).unwrap()).unwrap()
}

#[test]
fn text_masks_do_what_they_say() {
    assert_eq!(text(keep_last(4), 25, "123-45-6789"), "*******6789");
    assert_eq!(
        text(MaskAs::KeepFirst(Keep { count: 2 }), 25, "Zoë Ångström"),
        "Zo**********"
    );
    assert_eq!(
        text(keep_last(4), 25, "6789"),
        "****",
        "a value no longer than what is kept is masked whole"
    );
    assert_eq!(text(REDACT, 25, "secret"), "***");
    assert_eq!(text(NULL, 25, "secret"), "***", "NOT NULL stays non-null");
    assert_eq!(masked(NULL, 25, -1, false, b"secret", Format::Text), None);
    assert_eq!(text(HASH, 25, "secret").len(), 64);
    assert!(text(TOKEN, 25, "secret").starts_with("tok_"));
    assert_eq!(
        text(TOKEN, 25, "secret"),
        text(TOKEN, 1043, "secret"),
        "one value, one pseudonym"
    );
    assert_ne!(text(TOKEN, 25, "secret"), text(TOKEN, 25, "secret2"));
    let other = CellMask::new(TOKEN, 25, -1, true, &Keys::random().unwrap()).unwrap();
    let mut out = Vec::new();
    other.apply(b"secret", Format::Text, &mut out);
    assert_ne!(
        out,
        text(TOKEN, 25, "secret").into_bytes(),
        "another session, another pseudonym"
    );
}

#[test]
fn declared_lengths_are_respected() {
    for how in every_mask() {
        let varchar = masked(how, 1043, 4 + 5, true, "gehe\u{e9}im".as_bytes(), Format::Text).unwrap();
        assert!(std::str::from_utf8(&varchar).unwrap().chars().count() <= 5, "{how:?}");
        let padded = masked(how, 1042, 4 + 12, true, b"123456      ", Format::Binary).unwrap();
        assert_eq!(std::str::from_utf8(&padded).unwrap().chars().count(), 12, "{how:?}");
        let name = masked(how, 19, -1, true, &[b'x'; 63], Format::Binary).unwrap();
        assert!(name.len() <= 63, "{how:?}");
    }
    let kept = masked(keep_last(4), 1042, 4 + 12, true, b"123456      ", Format::Text).unwrap();
    assert_eq!(kept, b"**3456      ", "padding is not part of the value");
}

/// A value of each type in both forms: oid, typmod, text, binary.
fn samples() -> Vec<(u32, i32, &'static str, Vec<u8>)> {
    vec![
        (16, -1, "t", vec![1]),
        (17, -1, "\\xdeadbeef", vec![0xde, 0xad, 0xbe, 0xef]),
        (18, -1, "x", b"x".to_vec()),
        (20, -1, "987654321012", 987_654_321_012i64.to_be_bytes().to_vec()),
        (21, -1, "12345", 12_345i16.to_be_bytes().to_vec()),
        (23, -1, "987654321", 987_654_321i32.to_be_bytes().to_vec()),
        (26, -1, "4000000000", 4_000_000_000u32.to_be_bytes().to_vec()),
        (700, -1, "9.5", 9.5f32.to_be_bytes().to_vec()),
        (701, -1, "9.5", 9.5f64.to_be_bytes().to_vec()),
        (
            1700,
            4 + (10 << 16) + 2,
            "98.76",
            vec![0, 2, 0, 0, 0, 0, 0, 2, 0, 98, 0x1d, 0xb0],
        ),
        (114, -1, "{\"a\":987}", b"{\"a\":987}".to_vec()),
        (3802, -1, "{\"a\": 987}", b"\x01{\"a\": 987}".to_vec()),
        (1082, -1, "2024-05-17", 8_903i32.to_be_bytes().to_vec()),
        (
            1114,
            -1,
            "2024-05-17 13:45:12",
            769_268_712_000_000i64.to_be_bytes().to_vec(),
        ),
        (
            1184,
            -1,
            "2024-05-17 13:45:12+00",
            769_268_712_000_000i64.to_be_bytes().to_vec(),
        ),
        (1083, -1, "13:45:12", 49_512_000_000i64.to_be_bytes().to_vec()),
        (
            1266,
            -1,
            "13:45:12+02",
            [49_512_000_000i64.to_be_bytes().to_vec(), vec![0xff, 0xff, 0xe3, 0xe0]].concat(),
        ),
        (
            1186,
            -1,
            "1 day",
            [0i64.to_be_bytes().to_vec(), vec![0, 0, 0, 1, 0, 0, 0, 0]].concat(),
        ),
        (2950, -1, "0191d8a2-7c3b-7000-8000-0123456789ab", vec![9; 16]),
        (869, -1, "10.1.2.3", vec![2, 32, 0, 4, 10, 1, 2, 3]),
        (650, -1, "10.1.2.0/24", vec![2, 24, 1, 4, 10, 1, 2, 0]),
        (829, -1, "08:00:2b:01:02:03", vec![8, 0, 0x2b, 1, 2, 3]),
        (774, -1, "08:00:2b:01:02:03:04:05", vec![8, 0, 0x2b, 1, 2, 3, 4, 5]),
    ]
}

/// Whether a text reads as the type, by an independent reader.
fn reads_as(oid: u32, text: &str) -> bool {
    match oid {
        16 => matches!(text, "t" | "f"),
        17 => text.starts_with("\\x"),
        18 => text.len() == 1,
        20 => text.parse::<i64>().is_ok(),
        21 => text.parse::<i16>().is_ok(),
        23 => text.parse::<i32>().is_ok(),
        26 => text.parse::<u32>().is_ok(),
        700 | 701 | 1700 => text.parse::<f64>().is_ok(),
        114 | 3802 => serde_json::from_str::<serde_json::Value>(text).is_ok(),
        1082 => text.parse::<jiff::civil::Date>().is_ok(),
        1114 => text.parse::<jiff::civil::DateTime>().is_ok(),
        1184 => text.replace(' ', "T").parse::<jiff::Timestamp>().is_ok(),
        1083 => text.parse::<jiff::civil::Time>().is_ok(),
        1266 => text.ends_with("+00"),
        1186 => text == "00:00:00",
        2950 => uuid::Uuid::parse_str(text).is_ok(),
        869 | 650 => text.split('/').next().unwrap().parse::<std::net::IpAddr>().is_ok(),
        829 | 774 => text.split(':').all(|part| u8::from_str_radix(part, 16).is_ok()),
        _ => false,
    }
}

#[test]
fn masks_keep_the_type_of_the_column() {
    for (oid, typmod, as_text, as_binary) in samples() {
        for how in every_mask() {
            for not_null in [true, false] {
                let shown = masked(how, oid, typmod, not_null, as_text.as_bytes(), Format::Text);
                let binary = masked(how, oid, typmod, not_null, &as_binary, Format::Binary);
                assert_eq!(shown.is_some(), binary.is_some(), "{oid} {how:?}");
                assert!(!not_null || shown.is_some(), "{oid} {how:?}: NOT NULL stays non-null");
                let Some((shown, binary)) = shown.zip(binary) else {
                    continue;
                };
                let shown = String::from_utf8(shown).unwrap();
                assert!(reads_as(oid, &shown), "{oid} {how:?} {shown}");
                assert_ne!(shown, as_text, "{oid} {how:?}");
                assert_ne!(binary, as_binary, "{oid} {how:?}");
                let fixed = !matches!(oid, 17 | 114 | 3802 | 1700);
                assert!(!fixed || binary.len() == as_binary.len(), "{oid} {how:?}");
            }
        }
    }
}

#[test]
fn both_formats_of_a_number_get_one_token() {
    for (oid, bytes) in [(21, 2), (23, 4), (20, 8)] {
        let value = 4_711i64.to_be_bytes();
        let shown = text(TOKEN, oid, "4711");
        let binary = masked(TOKEN, oid, -1, true, &value[8 - bytes..], Format::Binary).unwrap();
        let number = binary.iter().fold(0i64, |sum, byte| (sum << 8) | i64::from(*byte));
        assert_eq!(shown, number.to_string());
        assert!(number >= 0 && shown != "4711");
    }
    let uuid = uuid::Uuid::from_bytes([9; 16]);
    let shown = text(TOKEN, 2950, &uuid.to_string());
    let binary = masked(TOKEN, 2950, -1, true, uuid.as_bytes(), Format::Binary).unwrap();
    assert_eq!(uuid::Uuid::parse_str(&shown).unwrap().as_bytes().as_slice(), binary);
    assert_eq!(uuid::Uuid::from_slice(&binary).unwrap().get_version_num(), 8);
}

#[test]
fn unknown_types_are_null_or_refused() {
    assert_eq!(masked(keep_last(4), 16_500, -1, false, b"x", Format::Binary), None);
    let refused = CellMask::new(REDACT, 16_500, -1, true, &keys()).err();
    assert_eq!(refused, Some(Unmaskable { type_oid: 16_500 }));
}

fn binary_array(element: u32, dimensions: &[i32], cells: &[Option<&[u8]>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((dimensions.len() as i32).to_be_bytes());
    bytes.extend(i32::from(cells.contains(&None)).to_be_bytes());
    bytes.extend(element.to_be_bytes());
    for length in dimensions {
        bytes.extend(length.to_be_bytes());
        bytes.extend(1i32.to_be_bytes());
    }
    for cell in cells {
        match cell {
            Some(cell) => {
                bytes.extend((cell.len() as i32).to_be_bytes());
                bytes.extend(*cell);
            }
            None => bytes.extend((-1i32).to_be_bytes()),
        }
    }
    bytes
}

#[test]
fn arrays_are_masked_element_by_element() {
    let shown = |how, oid, cell: &str| text(how, oid, cell);
    assert_eq!(
        shown(keep_last(2), 1009, "{abcd,\"e f\\\"gh\",NULL,\"NULL\"}"),
        r#"{"**cd","****gh",NULL,"**LL"}"#
    );
    assert_eq!(
        shown(keep_last(2), 1009, "[2:3]={{ab,cd},{efg,h}}"),
        r#"[2:3]={{"**","**"},{"*fg","*"}}"#
    );
    assert_eq!(
        shown(MONTH, 1182, "{2024-05-17,1999-12-31}"),
        r#"{"2024-05-01","1999-12-01"}"#
    );
    assert_eq!(
        shown(keep_last(2), 1007, "{1234,5678}"),
        "{}",
        "redact of an array is the empty array"
    );
    assert_eq!(shown(keep_last(2), 1009, "{}"), "{}");
    let cell = binary_array(25, &[2, 2], &[Some(b"abcd"), None, Some(b"efgh"), Some(b"i")]);
    let wanted = binary_array(25, &[2, 2], &[Some(b"**cd"), None, Some(b"**gh"), Some(b"*")]);
    assert_eq!(
        masked(keep_last(2), 1009, -1, true, &cell, Format::Binary).unwrap(),
        wanted
    );
    let empty = binary_array(23, &[], &[]);
    assert_eq!(
        masked(
            REDACT,
            1007,
            -1,
            true,
            &binary_array(23, &[1], &[Some(&[0, 0, 0, 9])]),
            Format::Binary
        )
        .unwrap(),
        empty
    );
}

#[test]
fn broken_arrays_become_empty() {
    for cell in ["{abcd", "abcd}", "{a}b", "", "[1:2]", "{\"a", "{{{{{{{a}}}}}}}"] {
        assert_eq!(text(keep_last(2), 1009, cell), "{}", "{cell}");
    }
    let mut cell = binary_array(25, &[1], &[Some(b"abcd")]);
    cell[12..16].copy_from_slice(&i32::MAX.to_be_bytes());
    assert_eq!(
        masked(keep_last(2), 1009, -1, true, &cell, Format::Binary).unwrap(),
        binary_array(25, &[], &[])
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_mask_lets_a_long_value_through(value in "[a-zA-Z]{12,40}", oid in prop::sample::select(vec![25u32, 1043, 1042, 19])) {
        for how in every_mask() {
            let cell = masked(how, oid, -1, true, value.as_bytes(), Format::Text).unwrap();
            let cell = String::from_utf8(cell).unwrap();
            prop_assert!(!cell.contains(&value[..6]) && !cell.contains(&value[value.len() - 6..]));
        }
    }

    #[test]
    fn garbage_never_fails(cell in prop::collection::vec(any::<u8>(), 0..64), oid in 0u32..5000, typmod in any::<i32>()) {
        for how in every_mask() {
            for format in [Format::Text, Format::Binary] {
                let mut out = Vec::new();
                if let Ok(mask) = CellMask::new(how, oid, typmod % 500, false, &keys()) {
                    mask.apply(&cell, format, &mut out);
                }
            }
        }
    }
}
