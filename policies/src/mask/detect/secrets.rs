//! Secrets with a tell-tale beginning: JSON Web Tokens, PEM private keys, AWS access key ids.
//!
//! Refuses look-alikes without the full form. A private key without its end is masked to the end of the text:
//! half a key is still a key.

use memchr::memmem;

use super::{at, before, in_word, run};

/// JSON Web Tokens: three base64url parts, the first two of which begin as `{"` does.
pub(super) fn tokens(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    let url_safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let mut passed = 0;
    for start in memmem::find_iter(text, b"eyJ") {
        if start < passed || before(text, start).is_some_and(url_safe) {
            continue;
        }
        let header = run(text, start, url_safe);
        let payload_start = header.saturating_add(1);
        let payload = run(text, payload_start, url_safe);
        let signed = at(text, header) == Some(b'.') && at(text, payload) == Some(b'.');
        let formed = text.get(payload_start..).is_some_and(|rest| rest.starts_with(b"eyJ"));
        if signed && formed {
            let end = run(text, payload.saturating_add(1), url_safe);
            found(start, end);
            passed = end;
        }
    }
}

/// PEM private keys of every kind, with their armour.
pub(super) fn private_keys(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    let mut passed = 0;
    for start in memmem::find_iter(text, b"-----BEGIN ") {
        let title_start = start.saturating_add(11);
        let title_end = run(text, title_start, |b| {
            b.is_ascii_uppercase() || b.is_ascii_digit() || b == b' '
        });
        let title = text.get(title_start..title_end).unwrap_or_default();
        let armoured = text.get(title_end..).is_some_and(|rest| rest.starts_with(b"-----"));
        if start < passed || !armoured || !title.ends_with(b"PRIVATE KEY") {
            continue;
        }
        let rest = text.get(title_end..).unwrap_or_default();
        let end = memmem::find(rest, b"-----END ").map(|offset| {
            let footer = title_end.saturating_add(offset).saturating_add(9);
            let closing = text.get(footer..).and_then(|rest| memmem::find(rest, b"-----"));
            closing.map_or(text.len(), |closing| footer.saturating_add(closing).saturating_add(5))
        });
        let end = end.unwrap_or(text.len());
        found(start, end);
        passed = end;
    }
}

/// What AWS puts before the sixteen characters of an id.
const AWS_KINDS: [&[u8]; 10] = [
    b"AKIA", b"ASIA", b"AROA", b"AIDA", b"AGPA", b"ANPA", b"ANVA", b"AIPA", b"ABIA", b"ACCA",
];

/// AWS access key ids.
pub(super) fn aws_keys(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    for start in memchr::memchr_iter(b'A', text) {
        let kind = text.get(start..start.saturating_add(4)).unwrap_or_default();
        if !AWS_KINDS.contains(&kind) || in_word(before(text, start)) {
            continue;
        }
        let end = run(text, start, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        if end.saturating_sub(start) == 20 && !in_word(at(text, end)) {
            found(start, end);
        }
    }
}
