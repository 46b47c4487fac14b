//! What may stand as the host of a Target: a strict IP literal or a name that a resolver can take absolutely.
//!
//! Refuses every spelling that another program could read as a different address (octal, hex, short and bare
//! number forms) and addresses no Target can live at. Loopback literals pass here; whether one may be dialled is
//! decided where it is dialled.

use std::net::{IpAddr, Ipv6Addr};

/// What is wrong with a host, if anything.
pub(crate) fn wrong(host: &str) -> Option<String> {
    if host.is_empty() || host.len() > 253 {
        return Some("a host has 1 to 253 characters".to_owned());
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return unusable(address).map(|why| format!("`{host}` {why}"));
    }
    if host.starts_with('[') {
        return Some("write an IPv6 address without brackets".to_owned());
    }
    if host.contains(':') {
        return Some("this is no host; a port goes into `address.port`".to_owned());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    if last.bytes().all(|byte| byte.is_ascii_digit())
        || hex.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Some(format!(
            "`{host}` could be read as an address in more than one way; write all four decimal parts"
        ));
    }
    if let Some(label) = name.split('.').find(|label| !is_label(label)) {
        return Some(format!("`{label}` in `{host}` is no part of a DNS name"));
    }
    let lower = name.to_ascii_lowercase();
    if lower == "localhost" || lower.ends_with(".localhost") {
        return Some("a name never leads to loopback; write 127.0.0.1 or ::1".to_owned());
    }
    None
}

fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

/// Why an address cannot be a Target's.
fn unusable(address: IpAddr) -> Option<&'static str> {
    let v4 = |address: std::net::Ipv4Addr| {
        if address.is_unspecified() || address.octets().starts_with(&[0]) {
            Some("is no address of anything")
        } else if address.is_link_local() {
            Some("is link-local: instance metadata lives there, Targets do not")
        } else if address.is_multicast() || address.is_broadcast() {
            Some("is not one machine's address")
        } else {
            None
        }
    };
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            Some("is an IPv4 address in disguise; write it as IPv4")
        }
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some("is no address of anything"),
        IpAddr::V6(address) if address.is_multicast() => Some("is not one machine's address"),
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            Some("is link-local; Targets are reached by routed addresses")
        }
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::wrong;

    #[test]
    fn ambiguous_and_impossible_hosts_are_refused() {
        for host in [
            "",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "10.0.0.08",
            "1.2.3",
            "db.0x7f",
            "[::1]",
            "db:5432",
            "a..b",
            "-a.b",
            "a_b-.c",
            "db .svc",
            "löcal",
            "localhost",
            "x.localhost.",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "255.255.255.255",
            "ff02::1",
            "::ffff:10.0.0.1",
            ".",
        ] {
            assert!(wrong(host).is_some(), "{host}");
        }
        for host in [
            "127.0.0.1",
            "::1",
            "10.1.2.3",
            "2001:db8::1",
            "orders-db.data.svc",
            "db.example.com.",
            "db",
            "a_b.c",
            "db-1.2x",
        ] {
            assert_eq!(wrong(host), None, "{host}");
        }
    }
}
