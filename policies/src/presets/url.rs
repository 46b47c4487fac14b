//! URLs of providers: `https://HOST[:PORT][/PATH]` and nothing else.
//!
//! Refused: other schemes, user names, queries, fragments, hosts another program could read as a different address, and
//! paths with ways up in them. Invariant: a URL that passes has exactly one reading.

use crate::check::hosts;

/// The longest one.
const MAX: usize = 512;

/// A URL that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Url<'a> {
    /// `https://HOST[:PORT]`, as written.
    pub origin: &'a str,
    /// The host, without brackets.
    pub host: &'a str,
    /// The port; 443 where none is written.
    pub port: u16,
    /// What follows the origin.
    pub path: &'a str,
}

/// Reads a URL, or says what is wrong with it.
pub fn read(text: &str) -> Result<Url<'_>, String> {
    let whole = "write https://HOST[:PORT][/PATH], without user, query or fragment";
    let rest = text
        .strip_prefix("https://")
        .filter(|_| text.len() <= MAX)
        .ok_or(whole)?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(at).ok_or(whole)?;
    let origin = text.get(..text.len().saturating_sub(path.len())).ok_or(whole)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~:@".contains(&byte);
    if !path.bytes().all(plain) || path.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(format!(
            "`{path}`: a path has letters, digits, `-`, `.`, `_`, `~`, `:`, `@` and no way up"
        ));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed.split_once(']').ok_or(whole)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| whole)?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(whole.to_owned()),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if let Some(why) = hosts::wrong(host) {
        return Err(why);
    }
    let port = match port {
        None => 443,
        Some(port) => match port.parse::<u16>() {
            Ok(number) if number > 0 && number.to_string() == port => number,
            _ => return Err(format!("`{port}` is not a port; 1 to 65535")),
        },
    };
    Ok(Url {
        origin,
        host,
        port,
        path,
    })
}

/// A text percent-encoded: all but the unreserved characters (RFC 3986 section 2.3).
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::read;

    #[test]
    fn a_url_has_one_reading() {
        let url = read("https://login.example.com:8443/TENANT/v2.0").unwrap();
        assert_eq!(
            (url.origin, url.host, url.port),
            ("https://login.example.com:8443", "login.example.com", 8443)
        );
        assert_eq!(url.path, "/TENANT/v2.0");
        let url = read("https://[2001:db8::1]:444").unwrap();
        assert_eq!((url.host, url.port, url.path), ("2001:db8::1", 444, ""));
        assert_eq!(read("https://a.example").unwrap().port, 443);
        // Neither makes another host of a path.
        let url = read("https://a.example/v1/x@b.example:generate").unwrap();
        assert_eq!((url.origin, url.host), ("https://a.example", "a.example"));
        for wrong in [
            "http://a.example",
            "https://",
            "https://user@a.example",
            "https://a.example?x=y",
            "https://a.example/x?y",
            "https://a.example#x",
            "https://a.example/../x",
            "https://a.example/%2e%2e",
            "https://a.example:0",
            "https://a.example:0443",
            "https://a.example:",
            "https://169.254.169.254/latest",
            "https://0x7f.1",
            "https://localhost",
            "https://[::1",
            "https://[::1]x",
            "https://a b",
            "https://a\\b",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
