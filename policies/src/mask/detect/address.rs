//! IPv4 and IPv6 addresses.
//!
//! Refuses what the standard parser refuses, and anything inside a longer word or number (versions with more
//! parts, clock times).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{at, before, in_word, run};

/// Longest IPv6 text: 45 bytes with an IPv4 tail.
const LONGEST: usize = 45;

/// Finds every address.
pub(super) fn addresses(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    let mut index = 0;
    while index < text.len() {
        let begins = at(text, index).is_some_and(is_part);
        if !begins {
            index = index.saturating_add(1);
            continue;
        }
        let end = run(text, index, is_part);
        let (mut start, mut stop) = (index, end);
        index = end;
        if in_word(before(text, start)) || in_word(at(text, end)) {
            continue;
        }
        // Punctuation of the sentence around it: a full stop, or one colon.
        let stretch = |start: usize, stop: usize| text.get(start..stop).unwrap_or_default();
        while matches!(before(text, stop), Some(b'.')) && stop > start {
            stop = stop.saturating_sub(1);
        }
        if stretch(start, stop).ends_with(b":") && !stretch(start, stop).ends_with(b"::") {
            stop = stop.saturating_sub(1);
        }
        if stretch(start, stop).starts_with(b":") && !stretch(start, stop).starts_with(b"::") {
            start = start.saturating_add(1);
        }
        if let Some(length) = address(stretch(start, stop)) {
            found(start, start.saturating_add(length));
        }
    }
}

fn is_part(byte: u8) -> bool {
    byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')
}

/// How much of a stretch is an address: all of it, or all before a port.
fn address(stretch: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(stretch).ok()?;
    if stretch.len() <= LONGEST && (text.parse::<Ipv4Addr>().is_ok() || text.parse::<Ipv6Addr>().is_ok()) {
        return Some(stretch.len());
    }
    let (host, port) = text.rsplit_once(':')?;
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    (is_port && host.parse::<Ipv4Addr>().is_ok()).then_some(host.len())
}
