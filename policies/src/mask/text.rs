//! Masks on characters: keep the first or last, hash, token, and whatever a column's length leaves of them.
//!
//! Owns lengths: the result never has more characters (or bytes) than the column may hold, and a padded column
//! stays padded. Refuses to guess at bytes that are not UTF-8: they are redacted whole.

use super::types::TextLimits;
use super::Keys;
use crate::record::frame::hex;

/// How a text is masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextMask {
    /// `***`.
    Redact,
    /// The first so many characters stay.
    KeepFirst(usize),
    /// The last so many characters stay.
    KeepLast(usize),
    /// Hex of a keyed hash.
    Hash,
    /// A keyed pseudonym.
    Token,
}

/// Appends the masked form of a text.
pub(super) fn mask(how: TextMask, cell: &[u8], limits: TextLimits, keys: &Keys, out: &mut Vec<u8>) {
    let masked = match std::str::from_utf8(cell) {
        // Padding is not part of the value.
        Ok(text) if limits.padded => masked(how, text.trim_end_matches(' '), keys),
        Ok(text) => masked(how, text, keys),
        Err(_) => "***".to_owned(),
    };
    out.extend_from_slice(fit(&masked, limits).as_bytes());
}

/// The masked form of a text of any length.
pub(super) fn masked(how: TextMask, text: &str, keys: &Keys) -> String {
    match how {
        TextMask::Redact => "***".to_owned(),
        TextMask::KeepFirst(count) => {
            let length = text.chars().count();
            let kept = if length <= count { 0 } else { count };
            let stars = std::iter::repeat_n('*', length.saturating_sub(kept));
            text.chars().take(kept).chain(stars).collect()
        }
        TextMask::KeepLast(count) => {
            let length = text.chars().count();
            let kept = if length <= count { 0 } else { count };
            let hidden = length.saturating_sub(kept);
            std::iter::repeat_n('*', hidden)
                .chain(text.chars().skip(hidden))
                .collect()
        }
        TextMask::Hash => hex(keys.digest("hash", text.as_bytes()).as_ref()),
        TextMask::Token => format!("tok_{}", base32(keys.digest("token", text.as_bytes()).as_ref())),
    }
}

/// Cuts a text to a column's length, and pads it where the column is padded.
pub(super) fn fit(text: &str, limits: TextLimits) -> String {
    let mut fitted: String = text.chars().take(limits.chars.unwrap_or(usize::MAX)).collect();
    if let Some(bytes) = limits.bytes {
        while fitted.len() > bytes {
            fitted.pop();
        }
    }
    if let (true, Some(chars)) = (limits.padded, limits.chars) {
        let length = fitted.chars().count();
        fitted.extend(std::iter::repeat_n(' ', chars.saturating_sub(length)));
    }
    fitted
}

/// Sixteen letters and digits that are hard to confuse.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: [char; 32] = [
        'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'j', 'k', 'm', 'n', 'p', 'q', 'r', 's', 't', 'u', 'v', 'w', 'x', 'y',
        'z', '2', '3', '4', '5', '6', '7', '8', '9', '0',
    ];
    let letter = |byte: &u8| ALPHABET.get(usize::from(byte & 31)).copied();
    bytes.iter().take(16).filter_map(letter).collect()
}
