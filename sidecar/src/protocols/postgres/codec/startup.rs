//! Packets without a tag: StartupMessage, SSLRequest, GSSENCRequest and CancelRequest.
//!
//! It refuses packets above 10,000 bytes, cancel keys of impossible length and parameters without an end.

use bytes::{BufMut, Bytes, BytesMut};

use super::{write, CodecError, Reader};

/// The longest packet.
pub const MAX_PACKET: usize = 10_000;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
const CANCEL: u32 = 80_877_102;

/// A packet before the first tagged message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// SSLRequest.
    Ssl,
    /// GSSENCRequest.
    Gss,
    /// CancelRequest.
    Cancel {
        /// The process id.
        pid: i32,
        /// The secret key.
        key: Bytes,
    },
    /// StartupMessage.
    Startup(Startup),
}

/// A StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// Major protocol version.
    pub major: u16,
    /// Minor protocol version.
    pub minor: u16,
    /// Parameters in order, duplicates included.
    pub parameters: Vec<(String, String)>,
}

/// Length of the packet at the head of the buffer, if its length has arrived.
pub fn length(buffer: &[u8]) -> Result<Option<usize>, CodecError> {
    let Some((head, _)) = buffer.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = i32::from_be_bytes(*head);
    match usize::try_from(length) {
        Ok(length) if (8..=MAX_PACKET).contains(&length) => Ok(Some(length)),
        _ => Err(CodecError::Length {
            tag: '-',
            length: i64::from(length),
        }),
    }
}

/// Decodes a whole packet, its length included.
pub fn decode(packet: &Bytes) -> Result<Packet, CodecError> {
    let mut reader = Reader::new(packet);
    reader.i32()?;
    match reader.u32()? {
        SSL => reader.end().map(|()| Packet::Ssl),
        GSS => reader.end().map(|()| Packet::Gss),
        CANCEL => {
            let pid = reader.i32()?;
            let key = packet.slice_ref(reader.rest());
            if !(4..=256).contains(&key.len()) {
                return Err(CodecError::Field("cancel key"));
            }
            Ok(Packet::Cancel { pid, key })
        }
        version => startup(reader, version).map(Packet::Startup),
    }
}

fn startup(mut reader: Reader<'_>, version: u32) -> Result<Startup, CodecError> {
    let [a, b, c, d] = version.to_be_bytes();
    let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let mut parameters = Vec::new();
    // What other majors say after their version is not ours to read.
    if major == 3 {
        loop {
            let name = reader.text()?;
            if name.is_empty() {
                reader.end()?;
                break;
            }
            parameters.push((name.to_owned(), reader.text()?.to_owned()));
        }
    }
    Ok(Startup {
        major,
        minor,
        parameters,
    })
}

/// SSLRequest.
pub fn ssl_request() -> Bytes {
    let mut out = BytesMut::with_capacity(8);
    write::body(&mut out, |out| out.put_u32(SSL));
    out.freeze()
}

/// CancelRequest.
pub fn cancel_request(pid: i32, key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(48);
    write::body(&mut out, |out| {
        out.put_u32(CANCEL);
        out.put_i32(pid);
        out.put_slice(key);
    });
    out.freeze()
}

/// StartupMessage of protocol 3.
pub fn startup_message<'a>(minor: u16, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    write::body(&mut out, |out| {
        out.put_u16(3);
        out.put_u16(minor);
        for (name, value) in parameters {
            write::cstr(out, name.as_bytes());
            write::cstr(out, value.as_bytes());
        }
        out.put_u8(0);
    });
    out.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packets_survive_a_round_trip() {
        assert_eq!(decode(&ssl_request()), Ok(Packet::Ssl));
        let cancel = cancel_request(7, b"abcd");
        assert_eq!(
            decode(&cancel),
            Ok(Packet::Cancel {
                pid: 7,
                key: Bytes::from_static(b"abcd")
            })
        );
        let packet = startup_message(2, [("user", "a"), ("user", "b")]);
        let Ok(Packet::Startup(startup)) = decode(&packet) else {
            panic!("a startup")
        };
        assert_eq!((startup.major, startup.minor, startup.parameters.len()), (3, 2, 2));
    }

    #[test]
    fn a_packet_above_ten_thousand_bytes_is_refused_by_its_length() {
        assert!(length(&10_001i32.to_be_bytes()).is_err());
        assert!(length(&7i32.to_be_bytes()).is_err());
        assert_eq!(length(&10_000i32.to_be_bytes()), Ok(Some(10_000)));
    }

    proptest! {
        #[test]
        fn corrupt_packets_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&Bytes::from(bytes));
        }
    }
}
