//! Before the first tagged message of an agent: TLS and GSS requests, cancel requests, protocol versions.
//!
//! It answers `S` and ends TLS itself, `N` to GSS, takes a TLS hello at once only with ALPN `postgresql`, and refuses
//! a second request of either kind, bytes in front of a TLS hello, and every major version but 3.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::codec::error::Fields;
use super::codec::startup::{self, Packet, Startup};
use super::codec::{write, CodecError};
use super::stream::{AgentStream, Rewound};

/// The newest protocol minor we speak.
pub const NEWEST_MINOR: u16 = 2;
/// First byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// The ALPN name of the protocol.
const ALPN: &[u8] = b"postgresql";

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The connection broke, or TLS failed.
    #[error("the connection broke before the login: {0}")]
    Io(#[from] std::io::Error),
    /// Bytes that are no packet.
    #[error("the client broke the protocol before the login: {0}")]
    Codec(#[from] CodecError),
    /// Bytes in front of the TLS hello.
    #[error("bytes arrived before TLS was established")]
    EarlyBytes,
    /// A request twice, or in the wrong place.
    #[error("the client asked for encryption out of turn")]
    OutOfTurn,
    /// TLS at once without the protocol's name.
    #[error("direct TLS without ALPN postgresql")]
    Alpn,
    /// Another major version; it has been told.
    #[error("protocol version {0}.{1} is not supported")]
    Version(u16, u16),
    /// The client went away without a word, as port probes do.
    #[error("the client went away before the login")]
    Gone,
}

/// What an agent wants.
pub enum Opened<S> {
    /// A session.
    Session {
        /// The stream.
        stream: AgentStream<S>,
        /// What it said.
        startup: Startup,
        /// Bytes that came behind it.
        rest: BytesMut,
    },
    /// To cancel a statement of another session.
    Cancel {
        /// The process id.
        pid: i32,
        /// The key.
        key: Bytes,
    },
}

/// Reads until the agent has said what it wants. The caller sets the deadline.
pub async fn open<S>(mut stream: S, acceptor: &TlsAcceptor) -> Result<Opened<S>, StartupError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = BytesMut::with_capacity(1024);
    let mut gss_seen = false;
    read_some(&mut stream, &mut buffer).await?;
    if buffer.first() == Some(&TLS_HANDSHAKE) {
        let tls = acceptor.accept(Rewound::new(buffer.freeze(), stream)).await?;
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(StartupError::Alpn);
        }
        return inside(AgentStream::Tls(Box::new(tls)), BytesMut::new()).await;
    }
    loop {
        match packet(&mut stream, &mut buffer).await? {
            Packet::Gss if gss_seen => return Err(StartupError::OutOfTurn),
            Packet::Gss => {
                gss_seen = true;
                early(&buffer)?;
                stream.write_all(b"N").await?;
            }
            Packet::Ssl => {
                early(&buffer)?;
                stream.write_all(b"S").await?;
                stream.flush().await?;
                let tls = acceptor.accept(Rewound::new(Bytes::new(), stream)).await?;
                return inside(AgentStream::Tls(Box::new(tls)), BytesMut::new()).await;
            }
            Packet::Cancel { pid, key } => return Ok(Opened::Cancel { pid, key }),
            Packet::Startup(startup) => return session(AgentStream::Plain(stream), startup, buffer).await,
        }
    }
}

fn early(buffer: &BytesMut) -> Result<(), StartupError> {
    if buffer.is_empty() {
        Ok(())
    } else {
        Err(StartupError::EarlyBytes)
    }
}

/// Inside TLS only a cancel request or a session may come.
async fn inside<S>(mut stream: AgentStream<S>, mut buffer: BytesMut) -> Result<Opened<S>, StartupError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match packet(&mut stream, &mut buffer).await? {
        Packet::Cancel { pid, key } => Ok(Opened::Cancel { pid, key }),
        Packet::Startup(startup) => session(stream, startup, buffer).await,
        Packet::Gss | Packet::Ssl => Err(StartupError::OutOfTurn),
    }
}

async fn session<S>(mut stream: AgentStream<S>, startup: Startup, rest: BytesMut) -> Result<Opened<S>, StartupError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if startup.major != 3 {
        let text = format!(
            "unsupported frontend protocol {}.{}: server supports 3.0 to 3.2",
            startup.major, startup.minor
        );
        let error = Fields::new("FATAL", "0A000", &text).frame(b'E');
        stream.write_all(error.bytes()).await?;
        let _ = stream.shutdown().await;
        return Err(StartupError::Version(startup.major, startup.minor));
    }
    Ok(Opened::Session { stream, startup, rest })
}

async fn read_some<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> Result<(), StartupError> {
    match stream.read_buf(buffer).await? {
        0 if buffer.is_empty() => Err(StartupError::Gone),
        0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        _ => Ok(()),
    }
}

async fn packet<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> Result<Packet, StartupError> {
    loop {
        if let Some(length) = startup::length(buffer)? {
            if buffer.len() >= length {
                return Ok(startup::decode(&buffer.split_to(length).freeze())?);
            }
        }
        if buffer.len() > startup::MAX_PACKET {
            return Err(CodecError::Truncated.into());
        }
        buffer.reserve(1024);
        read_some(stream, buffer).await?;
    }
}

/// The minor we speak with this agent, and the NegotiateProtocolVersion it must be told, if any.
pub fn negotiate(startup: &Startup, unknown_options: &[String]) -> (u16, Option<Bytes>) {
    // 3.1 was never used; who asks for it speaks 3.0.
    let minor = if startup.minor >= NEWEST_MINOR { NEWEST_MINOR } else { 0 };
    if minor == startup.minor && unknown_options.is_empty() {
        return (minor, None);
    }
    let message = write::one(b'v', |out| {
        out.put_u16(3);
        out.put_u16(minor);
        out.put_i32(i32::try_from(unknown_options.len()).unwrap_or(0));
        unknown_options
            .iter()
            .for_each(|name| write::cstr(out, name.as_bytes()));
    });
    (minor, Some(message.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acceptor() -> TlsAcceptor {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(std::sync::Arc::new(config))
    }

    async fn said(bytes: &[&[u8]]) -> (Result<Opened<tokio::io::DuplexStream>, StartupError>, Vec<u8>) {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let acceptor = acceptor();
        let client = async {
            for part in bytes {
                let _ = theirs.write_all(part).await;
                tokio::task::yield_now().await;
            }
            let _ = theirs.shutdown().await;
            let mut heard = Vec::new();
            let _ = theirs.read_to_end(&mut heard).await;
            heard
        };
        let server = async {
            let opened = open(ours, &acceptor).await;
            match opened {
                Ok(Opened::Session {
                    stream: AgentStream::Plain(mut stream),
                    startup,
                    rest,
                }) => {
                    let _ = stream.shutdown().await;
                    Ok(Opened::Session {
                        stream: AgentStream::Plain(stream),
                        startup,
                        rest,
                    })
                }
                other => other,
            }
        };
        // The stream must be dropped before the client can hear its end.
        let server = async {
            match server.await {
                Ok(Opened::Session { startup, rest, stream }) => {
                    drop(stream);
                    let (dead, _) = tokio::io::duplex(1);
                    Ok(Opened::Session {
                        stream: AgentStream::Plain(dead),
                        startup,
                        rest,
                    })
                }
                other => other,
            }
        };
        tokio::join!(server, client)
    }

    fn start() -> Bytes {
        startup::startup_message(0, [("user", "a")])
    }

    fn gss() -> Vec<u8> {
        [8i32.to_be_bytes(), 80_877_104i32.to_be_bytes()].concat()
    }

    #[tokio::test]
    async fn gss_is_declined_once_and_the_client_goes_on() {
        let (opened, heard) = said(&[&gss(), &start()]).await;
        // The two writes may arrive as one: then bytes stand behind the request, and that is refused.
        match opened {
            Ok(Opened::Session { startup, .. }) => {
                assert_eq!(startup.minor, 0);
                assert_eq!(heard, b"N");
            }
            Err(StartupError::EarlyBytes) => {}
            _ => panic!("neither a session nor early bytes"),
        }
    }

    #[tokio::test]
    async fn bytes_in_front_of_the_tls_hello_drop_the_connection() {
        let together = [startup::ssl_request().as_ref(), b"evil"].concat();
        let (opened, heard) = said(&[&together]).await;
        assert!(matches!(opened, Err(StartupError::EarlyBytes)));
        assert!(heard.is_empty());
    }

    #[tokio::test]
    async fn other_majors_are_told_and_closed() {
        let mut packet = start().to_vec();
        packet[5] = 2;
        let (opened, heard) = said(&[&packet]).await;
        assert!(matches!(opened, Err(StartupError::Version(2, 0))));
        assert!(memchr::memmem::find(&heard, b"0A000").is_some());
    }

    #[tokio::test]
    async fn every_split_of_a_startup_gives_the_same_result() {
        let packet = start();
        for cut in 1..packet.len() {
            let (opened, _) = said(&[&packet[..cut], &packet[cut..]]).await;
            assert!(
                matches!(opened, Ok(Opened::Session { ref startup, .. }) if startup.parameters.len() == 1),
                "{cut}"
            );
        }
    }

    #[test]
    fn versions_are_negotiated_by_our_side_alone() {
        let ask = |minor, unknown: &[String]| {
            let startup = Startup {
                major: 3,
                minor,
                parameters: vec![],
            };
            let (minor, told) = negotiate(&startup, unknown);
            (minor, told.is_some())
        };
        assert_eq!(ask(0, &[]), (0, false));
        assert_eq!(ask(2, &[]), (2, false));
        assert_eq!(ask(1, &[]), (0, true));
        assert_eq!(ask(9999, &[]), (2, true));
        assert_eq!(ask(2, &["_pq_.junk".to_owned()]), (2, true));
    }
}
