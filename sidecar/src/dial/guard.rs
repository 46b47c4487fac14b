//! Which hosts are literals, and which addresses must never be dialled (UPS-3).
//!
//! Forms that hide an IPv4 address (mapped, compatible, 6to4, NAT64, Teredo) are unwrapped, and every form must pass.
//! Refuses loopback, unspecified, link-local, multicast, broadcast, reserved, metadata and our own interfaces.

use std::net::{IpAddr, SocketAddr};

use sidegate_policies::address::{forms, is_special};

/// An address that must not be dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// Loopback, where it is not both stated and allowed.
    #[error("{0} is a loopback address")]
    Loopback(IpAddr),
    /// Unspecified, link-local, multicast, broadcast, reserved or metadata.
    #[error("{0} is a special address")]
    Special(IpAddr),
    /// On an interface of this pod.
    #[error("{0} is an address of this pod")]
    OwnInterface(IpAddr),
    /// One of our own listeners.
    #[error("{0} is one of Sidegate's own listeners")]
    OwnListener(SocketAddr),
    /// The interfaces could not be read, so nothing can be said.
    #[error("the pod's own addresses could not be read")]
    Interfaces,
}

/// A host as a Target states it.
#[derive(Debug, PartialEq, Eq)]
pub enum Host<'a> {
    /// An IP address.
    Literal(IpAddr),
    /// A DNS name.
    Name(&'a str),
}

/// Reads a host: a strict literal, or a name that no resolver could take for a number. None: neither.
pub fn host(text: &str) -> Option<Host<'_>> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(Host::Literal(ip));
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(legal) && !label.starts_with('-') && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let lower = last.to_ascii_lowercase();
    // `127.1`, `2130706433`, `0x7f.1`: numbers to a C resolver, so not names here.
    let number = last.bytes().all(|byte| byte.is_ascii_digit())
        || lower
            .strip_prefix("0x")
            .is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    (name.len() <= 253 && name.split('.').all(label) && !number).then_some(Host::Name(text))
}

/// Addresses of this pod's interfaces, read now. None: they could not be read.
pub fn own_addresses() -> Option<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    Some(addresses.collect())
}

/// Whether an address may be dialled. `may_loop`: the Target states a loopback literal and this process allows it.
pub fn check(ip: IpAddr, may_loop: bool, own: &Option<Vec<IpAddr>>) -> Result<(), Forbidden> {
    if may_loop && ip.is_loopback() {
        return Ok(());
    }
    let own = own.as_ref().ok_or(Forbidden::Interfaces)?;
    for form in forms(ip) {
        if form.is_loopback() {
            return Err(Forbidden::Loopback(ip));
        }
        if is_special(form) {
            return Err(Forbidden::Special(ip));
        }
        if own.contains(&form) {
            return Err(Forbidden::OwnInterface(ip));
        }
    }
    Ok(())
}
