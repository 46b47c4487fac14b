//! What detectors promise: every canary goes, everything else stays byte for byte.

use super::*;

const ALL: [Detector; 9] = [
    Detector::CreditCard,
    Detector::Email,
    Detector::Iban,
    Detector::Jwt,
    Detector::PrivateKey,
    Detector::UsSsn,
    Detector::AwsAccessKey,
    Detector::IpAddress,
    Detector::Phone,
];

fn all() -> Detectors {
    Detectors::new(&ALL.map(|detector| (detector, REDACT)), &keys())
}

fn redacted(text: &str) -> String {
    let mut out = Vec::new();
    if all().apply(text.as_bytes(), &mut out) {
        String::from_utf8(out).unwrap()
    } else {
        assert!(out.is_empty());
        text.to_owned()
    }
}

const CANARIES: &[&str] = &[
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "378282246310005",
    "ada@example.org",
    "a.b+c_d@mail.example.co.uk",
    "zo\u{eb}@example.org",
    "DE89370400440532013000",
    "DE89 3704 0044 0532 0130 00",
    "GB82WEST12345698765432",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    "123-45-6789",
    "AKIAIOSFODNN7EXAMPLE",
    "192.0.2.17",
    "2001:db8::8:800:200c:417a",
    "+49 (30) 901-820",
    "+14155552671",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIB\nabc=\n-----END RSA PRIVATE KEY-----",
];

#[test]
fn every_canary_is_found_wherever_it_stands() {
    for canary in CANARIES {
        for around in ["%", "see %.", "(%)", "\"%\"", "a, %, b", "x: %\n", "<%>", "é %"] {
            let wanted = around.replace('%', "***");
            assert_eq!(redacted(&around.replace('%', canary)), wanted, "{canary} in {around}");
        }
    }
}

#[test]
fn look_alikes_stay_byte_for_byte() {
    for text in [
        "4111111111111112",
        "41111111111111111111111111",
        "order 20240517134512 of 2024-05-17",
        "user@localhost",
        "@example.org",
        "a@b..c",
        "DE89370400440532013001",
        "eyJhbGciOiJIUzI1NiJ9.notatoken",
        "000-45-6789",
        "666-45-6789",
        "912-45-6789",
        "123-00-6789",
        "1123-45-67890",
        "AKIAIOSFODNN7EXAMPL",
        "xAKIAIOSFODNN7EXAMPLE",
        "1.2.3",
        "1.2.3.4.5",
        "300.1.2.3",
        "12:34:56",
        "std::string",
        "+12345",
        "1+14155552671",
        "-----BEGIN CERTIFICATE-----",
        "Grüße, 100 % Zürich",
        "",
    ] {
        assert_eq!(redacted(text), text);
    }
}

#[test]
fn half_a_private_key_is_masked_to_the_end() {
    assert_eq!(redacted("k: -----BEGIN PRIVATE KEY-----\nMIIB"), "k: ***");
}

#[test]
fn a_card_hidden_among_other_groups_is_found() {
    assert_eq!(redacted("2024 4111 1111 1111 1111 99"), "2024 *** 99");
    assert_eq!(redacted("192.0.2.17:8080"), "***:8080");
}

#[test]
fn overlapping_finds_take_the_stronger_mask() {
    let wanted = [(Detector::Email, keep_last(4)), (Detector::CreditCard, REDACT)];
    let mut out = Vec::new();
    assert!(Detectors::new(&wanted, &keys()).apply(b"4111111111111111@example.org", &mut out));
    assert_eq!(out, b"***");
}

fn column(oid: u32, typmod: i32, cell: &[u8], format: Format) -> (Detected, Vec<u8>) {
    let mut out = Vec::new();
    let detected = all().for_column(oid, typmod).unwrap().apply(cell, format, &mut out);
    (detected, out)
}

#[test]
fn columns_keep_their_type_under_detectors() {
    let json = br#"{"mail": "ada@example.org", "n": 1}"#;
    assert_eq!(column(3802, -1, json, Format::Text).1, br#"{"mail": "***", "n": 1}"#);
    let jsonb = [b"\x01".as_slice(), json].concat();
    assert_eq!(
        column(3802, -1, &jsonb, Format::Binary).1,
        b"\x01{\"mail\": \"***\", \"n\": 1}"
    );
    assert_eq!(
        column(114, -1, br#"{"card": 4111111111111111}"#, Format::Text).1,
        b"null"
    );
    assert_eq!(
        column(1009, -1, b"{ok,ada@example.org}", Format::Text).1,
        br#"{"ok","***"}"#
    );
    let cell = binary_array(25, &[2], &[Some(b"ok"), Some(b"ada@example.org")]);
    let wanted = binary_array(25, &[2], &[Some(b"ok"), Some(b"***")]);
    assert_eq!(column(1009, -1, &cell, Format::Binary), (Detected::Masked, wanted));
    assert_eq!(
        column(16_500, -1, b"\x01ada@example.org", Format::Binary).0,
        Detected::Null
    );
    assert_eq!(column(16_500, -1, b"ada@example.org", Format::Text).1, b"***");
    assert_eq!(
        column(1042, 4 + 16, b"ada@example.org ", Format::Text).1,
        b"***             "
    );
    assert!(all().for_column(23, -1).is_none() && all().for_column(2950, -1).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_canary_is_left_in_any_text(head in "[ -~é]{0,20}[ ,;(\"]", tail in "([ ,;)\"][ -~é]{0,20})?", pick in 0..CANARIES.len()) {
        let canary = CANARIES[pick];
        let text = [head.as_str(), canary, tail.as_str()].concat();
        prop_assert!(!redacted(&text).contains(canary));
    }

    #[test]
    fn words_without_anything_to_find_pass(text in "[a-zA-Z ,;!?éß]{0,200}") {
        prop_assert_eq!(redacted(&text), text);
    }

    #[test]
    fn any_bytes_are_taken(cell in prop::collection::vec(any::<u8>(), 0..200), oid in 0u32..5000) {
        for format in [Format::Text, Format::Binary] {
            let mut out = Vec::new();
            if let Some(column) = all().for_column(oid, 20) {
                let detected = column.apply(&cell, format, &mut out);
                prop_assert_eq!(detected == Detected::Masked, !out.is_empty());
            }
        }
    }
}
