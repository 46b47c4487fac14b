//! E-mail addresses: whatever stands around an `@` and reads as name and domain.
//!
//! Refuses a domain without a dot. Works outward from each `@`, so that text without one costs a byte search.

use super::run;

/// Finds every address.
pub(super) fn emails(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    let mut from = 0;
    for at in memchr::memchr_iter(b'@', text) {
        let head = text.get(from..at).unwrap_or_default();
        let local = head.iter().rev().take_while(|byte| is_local(**byte)).count();
        let domain_start = at.saturating_add(1);
        let mut end = run(text, domain_start, is_domain);
        // A sentence's full stop or a dash does not belong to the domain.
        while end > domain_start && matches!(super::before(text, end), Some(b'.' | b'-')) {
            end = end.saturating_sub(1);
        }
        let domain = text.get(domain_start..end).unwrap_or_default();
        if local > 0 && has_labels(domain) {
            found(at.saturating_sub(local), end);
            from = end;
        } else {
            from = domain_start;
        }
    }
}

fn is_local(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b".!#$%&*+/=?^_`{|}~-".contains(&byte)
}

fn is_domain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || matches!(byte, b'.' | b'-')
}

fn has_labels(domain: &[u8]) -> bool {
    let mut labels = domain.split(|byte| *byte == b'.');
    domain.contains(&b'.') && labels.all(|label| !label.is_empty())
}
