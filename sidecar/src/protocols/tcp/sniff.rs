//! What the first bytes look like: only to refuse, never to understand.
//!
//! At most 4 KiB within 200 ms are looked at, without taking them from the socket's owner. Server-first protocols
//! (SSH, MySQL, SMTP) show nothing of the agent by then, and are not waited for.

use std::io;
use std::time::Duration;

use sidegate_policies::api::target::CarriedProtocol;
use tokio::net::TcpStream;
use tokio::time::timeout;

const LOOK: usize = 4 * 1024;
const PATIENCE: Duration = Duration::from_millis(200);

/// The start of a stream.
pub(super) enum First {
    /// These bytes, which are now ours to forward.
    Bytes(Vec<u8>),
    /// Nothing in time.
    Silence,
    /// The agent closed.
    Closed,
}

/// Takes what the agent sends first.
pub(super) async fn first_bytes(stream: &TcpStream) -> io::Result<First> {
    let mut first = vec![0u8; LOOK];
    let read = async {
        loop {
            stream.readable().await?;
            match stream.try_read(&mut first) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    };
    match timeout(PATIENCE, read).await {
        Ok(Ok(0)) => Ok(First::Closed),
        Ok(Ok(length)) => {
            first.truncate(length);
            Ok(First::Bytes(first))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(First::Silence),
    }
}

/// Whether bytes begin one protocol.
type Looks = fn(&[u8]) -> bool;

/// The protocol these bytes begin, if it is one Sidegate knows.
pub(super) fn recognise(first: &[u8]) -> Option<CarriedProtocol> {
    let checks: [(Looks, CarriedProtocol); 6] = [
        (is_postgres, CarriedProtocol::Postgres),
        (is_tls, CarriedProtocol::Tls),
        (is_http, CarriedProtocol::Http),
        (is_ssh, CarriedProtocol::Ssh),
        (is_mongo, CarriedProtocol::MongoDB),
        (is_redis, CarriedProtocol::Redis),
    ];
    let found = checks.into_iter().find(|(looks, _)| looks(first));
    found.map(|(_, protocol)| protocol)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    four.try_into().ok().map(u32::from_be_bytes)
}

/// A start-up packet, or one of the requests that may come before it.
fn is_postgres(first: &[u8]) -> bool {
    let code = word(first, 4);
    let requests = [80_877_102, 80_877_103, 80_877_104];
    code.is_some_and(|code| code >> 16 == 3 || requests.contains(&code))
        && word(first, 0).is_some_and(|length| (8..=10_000).contains(&length))
}

fn is_tls(first: &[u8]) -> bool {
    matches!(first, [0x16, 3, 0..=4, _, _, 1, ..])
}

fn is_http(first: &[u8]) -> bool {
    const METHODS: [&[u8]; 10] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"CONNECT ",
        b"OPTIONS ",
        b"TRACE ",
        b"PATCH ",
        b"PRI * HTTP",
    ];
    METHODS.iter().any(|method| first.starts_with(method))
}

fn is_ssh(first: &[u8]) -> bool {
    first.starts_with(b"SSH-")
}

/// RESP arrays and inline commands that every client begins with.
fn is_redis(first: &[u8]) -> bool {
    let array = matches!(first, [b'*', b'0'..=b'9', ..]) && first.windows(3).any(|three| three == b"\r\n$");
    let inline = [&b"PING\r\n"[..], b"AUTH ", b"HELLO ", b"auth ", b"ping\r\n", b"hello "];
    array || inline.iter().any(|command| first.starts_with(command))
}

/// OP_QUERY, OP_MSG or OP_COMPRESSED with a length that fits.
fn is_mongo(first: &[u8]) -> bool {
    let little = |at: usize| word(first, at).map(u32::swap_bytes);
    let fits = little(0).is_some_and(|length| (16..=48_000_000).contains(&length));
    fits && little(8) == Some(0) && little(12).is_some_and(|code| matches!(code, 2004 | 2012 | 2013))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_that_sidegate_reads_are_recognised() {
        let cases: [(&[u8], CarriedProtocol); 9] = [
            (b"\0\0\0\x08\x04\xd2\x16\x2f", CarriedProtocol::Postgres),
            (b"\0\0\0\x29\0\x03\0\0user\0", CarriedProtocol::Postgres),
            (b"\x16\x03\x01\x02\0\x01\0\x01\xfc", CarriedProtocol::Tls),
            (b"GET / HTTP/1.1\r\n", CarriedProtocol::Http),
            (b"PRI * HTTP/2.0\r\n", CarriedProtocol::Http),
            (b"SSH-2.0-OpenSSH_9\r\n", CarriedProtocol::Ssh),
            (b"*1\r\n$4\r\nPING\r\n", CarriedProtocol::Redis),
            (b"AUTH secret\r\n", CarriedProtocol::Redis),
            (
                b"\x3a\0\0\0\x01\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0",
                CarriedProtocol::MongoDB,
            ),
        ];
        for (first, protocol) in cases {
            assert_eq!(recognise(first), Some(protocol), "{first:?}");
        }
    }

    #[test]
    fn anything_else_is_left_alone() {
        for first in [&b""[..], b"hello", b"\0\0\0\0\0\0\0\0\0", b"*x\r\n", b"\x16\x03"] {
            assert_eq!(recognise(first), None, "{first:?}");
        }
    }
}
