//! Addresses that are never dialled, and addresses that hide in others: one list for whoever dials.
//!
//! Refuses nothing by itself: sidecar (targets) and broker (providers) ask. The invariant: of an address that is dialled
//! every form is asked about.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address itself and every IPv4 address that may hide in it.
pub fn forms(ip: IpAddr) -> Vec<IpAddr> {
    let mut forms = vec![ip];
    if let IpAddr::V6(v6) = ip {
        let [a, b, c, d, e, f, g, h] = v6.segments();
        let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
        match (a, b, c, d, e, f) {
            // Mapped, compatible, and translated (RFC 2765).
            (0, 0, 0, 0, 0, 0xffff) | (0, 0, 0, 0, 0xffff, 0) => forms.push(v4(g, h)),
            (0, 0, 0, 0, 0, 0) if !v6.is_loopback() && !v6.is_unspecified() => forms.push(v4(g, h)),
            // 6to4.
            (0x2002, ..) => forms.push(v4(b, c)),
            // NAT64, well-known prefix and local-use prefix (as /96 and as /48).
            (0x64, 0xff9b, 0, 0, 0, 0) => forms.push(v4(g, h)),
            (0x64, 0xff9b, 1, ..) => {
                forms.push(v4(g, h));
                forms.push(v4(d, (e << 8) | (f >> 8)));
            }
            // Teredo: server, and the client with its bits turned.
            (0x2001, 0, ..) => {
                forms.push(v4(c, d));
                forms.push(v4(!g, !h));
            }
            // ISATAP.
            (_, _, _, _, 0 | 0x200, 0x5efe) => forms.push(v4(g, h)),
            _ => {}
        }
    }
    forms
}

/// Whether an address is unspecified, link-local, multicast, broadcast, reserved or a cloud's metadata. Loopback is not:
/// whether that may be dialled is decided where it is dialled.
pub fn is_special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    }
}

fn special_v4(ip: Ipv4Addr) -> bool {
    let [a, ..] = ip.octets();
    a == 0
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
        || a >= 240
        // Metadata and host channels outside link-local: Alibaba, Azure, Oracle.
        || matches!(ip.octets(), [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192])
}

fn special_v6(ip: Ipv6Addr) -> bool {
    let [a, b, ..] = ip.segments();
    ip.is_unspecified()
        || ip.is_multicast()
        || a & 0xffc0 == 0xfe80
        // Site-local: never routed any more, so only ever a trick.
        || a & 0xffc0 == 0xfec0
        // Metadata: AWS, Google.
        || (a == 0xfd00 && b == 0xec2)
        || (a == 0xfd20 && b == 0xce)
}
