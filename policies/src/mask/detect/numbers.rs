//! Numbers with a form or a check: payment cards, IBANs, social security and telephone numbers.
//!
//! Owns the checks (Luhn, modulo 97, ranges). Refuses numbers in the middle of longer ones: a card number within
//! 25 digits is none. Invariant: every scan is linear; candidates are bounded by the longest legal length.

use super::{at, before, in_word, run};

/// Payment cards: 13 to 19 digits with a right Luhn check, in groups parted by one blank or dash.
pub(super) fn cards(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    // Groups of digits seen in the current run: start and end of each.
    let mut groups: Vec<(usize, usize)> = Vec::new();
    let mut index = 0;
    while index < text.len() {
        if !at(text, index).is_some_and(|byte| byte.is_ascii_digit()) {
            index = index.saturating_add(1);
            continue;
        }
        let end = run(text, index, |byte| byte.is_ascii_digit());
        groups.push((index, end));
        let next = end.saturating_add(1);
        let joined = matches!(at(text, end), Some(b' ' | b'-')) && at(text, next).is_some_and(|b| b.is_ascii_digit());
        if !joined {
            cards_in(text, &groups, found);
            groups.clear();
        }
        index = next;
    }
}

/// Every stretch of whole groups that reads as a card.
fn cards_in(text: &[u8], groups: &[(usize, usize)], found: &mut dyn FnMut(usize, usize)) {
    let mut passed = 0;
    for (first, (start, _)) in groups.iter().enumerate() {
        let (mut digits, mut longest) = (0usize, None);
        for (from, to) in groups.iter().skip(first) {
            digits = digits.saturating_add(to.saturating_sub(*from));
            if digits > 19 {
                break;
            }
            if digits >= 13 && luhn(text.get(*start..*to).unwrap_or_default()) {
                longest = Some(*to);
            }
        }
        if let (Some(end), true) = (longest, *start >= passed) {
            found(*start, end);
            passed = end;
        }
    }
}

fn luhn(text: &[u8]) -> bool {
    let digits = text.iter().rev().filter(|byte| byte.is_ascii_digit());
    let sum = digits.enumerate().fold(0u32, |sum, (place, byte)| {
        let digit = u32::from(byte.wrapping_sub(b'0'));
        let doubled = if place % 2 == 0 { digit } else { digit.saturating_mul(2) };
        sum.saturating_add(if doubled > 9 {
            doubled.saturating_sub(9)
        } else {
            doubled
        })
    });
    sum % 10 == 0
}

/// US social security numbers, nnn-nn-nnnn, in the ranges ever issued.
pub(super) fn social_security(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    for dash in memchr::memchr_iter(b'-', text) {
        let Some(start) = dash.checked_sub(3) else {
            continue;
        };
        let end = start.saturating_add(11);
        let Some(number) = text.get(start..end) else {
            continue;
        };
        let formed = number.iter().enumerate().all(|(place, byte)| match place {
            3 | 6 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        });
        let alone = !in_word(before(text, start)) && !in_word(at(text, end));
        if formed && alone && issued(number) {
            found(start, end);
        }
    }
}

fn issued(number: &[u8]) -> bool {
    let part = |from: usize, to: usize| number.get(from..to).unwrap_or_default();
    let area = part(0, 3);
    area != b"000" && area != b"666" && !area.starts_with(b"9") && part(4, 6) != b"00" && part(7, 11) != b"0000"
}

/// International bank account numbers: two letters, two digits, 11 to 30 more, right modulo 97, written together or
/// in groups parted by one blank.
pub(super) fn ibans(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    let mut passed = 0;
    for start in 0..text.len().saturating_sub(14) {
        let head = text.get(start..start.saturating_add(4)).unwrap_or_default();
        let formed = matches!(head, [a, b, c, d]
            if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() && c.is_ascii_digit() && d.is_ascii_digit());
        if start >= passed && formed && !in_word(before(text, start)) {
            if let Some(end) = iban_from(text, start) {
                found(start, end);
                passed = end;
            }
        }
    }
}

/// Where the longest right number that begins here ends.
fn iban_from(text: &[u8], start: usize) -> Option<usize> {
    let (mut letters, mut index, mut longest): (Vec<u8>, usize, Option<usize>) = (Vec::with_capacity(34), start, None);
    while letters.len() <= 34 {
        match at(text, index) {
            Some(byte) if byte.is_ascii_alphanumeric() => letters.push(byte.to_ascii_uppercase()),
            Some(b' ') if before(text, index).is_some_and(|byte| byte != b' ') => {}
            _ => break,
        }
        index = index.saturating_add(1);
        let ends = !in_word(at(text, index)) && before(text, index) != Some(b' ');
        if ends && (15..=34).contains(&letters.len()) && modulo_97(&letters) {
            longest = Some(index);
        }
    }
    longest
}

fn modulo_97(letters: &[u8]) -> bool {
    let (head, body) = letters.split_at_checked(4).unwrap_or((letters, &[]));
    let rest = body.iter().chain(head).fold(0u32, |rest, byte| {
        let (value, shift) = match byte {
            b'0'..=b'9' => (u32::from(byte.wrapping_sub(b'0')), 10),
            letter => (u32::from(letter.wrapping_sub(b'A')).saturating_add(10), 100),
        };
        rest.saturating_mul(shift).saturating_add(value) % 97
    });
    rest == 1
}

/// International telephone numbers: a plus and 8 to 15 digits, with blanks, dashes, dots and brackets between.
pub(super) fn phones(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    let mut passed = 0;
    for plus in memchr::memchr_iter(b'+', text) {
        let (mut digits, mut end, mut index) = (0usize, plus, plus.saturating_add(1));
        // The longest number that ends where a word does: what follows it may be something else.
        let mut longest = None;
        let first = at(text, index);
        if plus < passed || in_word(before(text, plus)) || !first.is_some_and(|byte| byte.is_ascii_digit()) {
            continue;
        }
        while let Some(byte) = at(text, index) {
            let parted = matches!(byte, b' ' | b'-' | b'.' | b'(' | b')');
            if byte.is_ascii_digit() {
                digits = digits.saturating_add(1);
                end = index.saturating_add(1);
                if (8..=15).contains(&digits) && !in_word(at(text, end)) {
                    longest = Some(end);
                }
            } else if !parted || index.saturating_sub(end) > 1 {
                break;
            }
            index = index.saturating_add(1);
        }
        if let Some(end) = longest {
            found(plus, end);
            passed = end;
        }
    }
}
