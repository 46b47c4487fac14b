//! A connection to the target, from name to ReadyForQuery: guards, TLS, lease, login, and the echo of our pins.
//!
//! It refuses a server that declines TLS where the Target wants it, and one whose echo does not match a pin. A refused
//! credential is exchanged for a fresh one once.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use sidegate_policies::reason::Reason;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::auth::{self, Binding, LoggedIn, LoginError, LoginPlan};
use super::codec::error::Fields;
use super::codec::{data_row, startup, write, CodecError, Piece, ServerScanner};
use super::params;
use crate::credentials::{CredentialError, LeaseHandle, LeaseMaterial};
use crate::dial::{self, DialError, Dialled, TlsFacts};
use crate::protocols::RoomContext;
use crate::target::TargetState;

/// The ALPN name of the protocol.
const ALPN: &[u8] = b"postgresql";
/// One login at the server.
const LOGIN: Duration = Duration::from_secs(10);
/// Our own short questions.
const QUESTION: Duration = Duration::from_secs(10);
/// Bytes one answer to our own question may take.
const MAX_ANSWER: usize = 64 << 20;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It was not reached.
    #[error("{0}")]
    Dial(#[from] DialError),
    /// There is no credential.
    #[error("{0}")]
    Credential(#[from] CredentialError),
    /// The login failed.
    #[error("{0}")]
    Login(#[from] LoginError),
    /// It declined TLS.
    #[error("the server declined TLS and the Target demands it")]
    NoTls,
    /// A pin was not echoed.
    #[error("the server did not confirm {0} as it was set")]
    Echo(&'static str),
    /// A server whose grammar, catalogs and functions are not known, so that nothing can be said of its statements.
    #[error("the target runs PostgreSQL {0}; versions 12 to 18 are understood")]
    Major(u32),
    /// Time ran out.
    #[error("the login took too long")]
    Deadline,
}

impl ConnectError {
    /// The reason an agent is told.
    pub fn reason(&self) -> Reason {
        match self {
            ConnectError::Dial(error) => error.reason(),
            ConnectError::Credential(error) => error.reason(),
            ConnectError::Login(LoginError::Refused { code, .. }) if code.starts_with("28") => {
                Reason::CredentialRefused
            }
            ConnectError::Login(LoginError::Refused { code, .. })
                if code.starts_with("53") || code.starts_with("57") =>
            {
                Reason::Unavailable
            }
            ConnectError::Login(LoginError::Io(_) | LoginError::Lost) | ConnectError::Deadline => Reason::Unavailable,
            ConnectError::Login(_) | ConnectError::NoTls | ConnectError::Echo(_) | ConnectError::Major(_) => {
                Reason::UpstreamRefused
            }
        }
    }

    /// What an agent may read of it: never the server's own text.
    pub fn told(&self) -> String {
        match self {
            ConnectError::Login(LoginError::Refused { code, .. }) => format!("the target refused the login ({code})"),
            ConnectError::Login(LoginError::Mechanism(text)) => (*text).to_owned(),
            ConnectError::NoTls | ConnectError::Echo(_) | ConnectError::Major(_) | ConnectError::Deadline => {
                self.to_string()
            }
            ConnectError::Dial(_) => "the target could not be reached safely".to_owned(),
            ConnectError::Credential(error) => error.to_string(),
            ConnectError::Login(_) => "the login at the target failed".to_owned(),
        }
    }

    fn credential_refused(&self) -> bool {
        matches!(self, ConnectError::Login(LoginError::Refused { code, .. }) if code == "28P01" || code == "28000")
    }
}

/// The server's stream.
pub enum ServerStream {
    /// Plain.
    Plain(TcpStream),
    /// Verified TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for ServerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ServerStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            ServerStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            ServerStream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            ServerStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ServerStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            ServerStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ServerStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            ServerStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A finished connection.
pub struct Connected {
    /// The stream.
    pub stream: ServerStream,
    /// Bytes that came behind the login.
    pub scanner: ServerScanner,
    /// What the server said.
    pub login: LoggedIn,
    /// The lease it was made with.
    pub lease: Arc<LeaseHandle>,
    /// The role.
    pub role: String,
    /// What TLS proved.
    pub tls: Option<TlsFacts>,
    /// The search_path as the server shows it.
    pub search_path: String,
    /// The address dialled.
    pub peer: SocketAddr,
}

/// The target, reached: no login yet.
pub struct Reached {
    /// The stream.
    pub stream: ServerStream,
    /// What TLS proved.
    pub tls: Option<TlsFacts>,
    /// The address dialled.
    pub peer: SocketAddr,
}

/// Reaches the target and sets up TLS where the Target wants it; no login yet.
pub async fn reach(target: &TargetState, ctx: &RoomContext) -> Result<Reached, ConnectError> {
    let Dialled { mut stream, peer } = dial::dial(target, &ctx.dial).await?;
    if !dial::wants_tls(target) {
        return Ok(Reached {
            stream: ServerStream::Plain(stream),
            tls: None,
            peer,
        });
    }
    let mut answer = [0u8; 1];
    stream
        .write_all(&startup::ssl_request())
        .await
        .map_err(LoginError::Io)?;
    stream.read_exact(&mut answer).await.map_err(LoginError::Io)?;
    if answer != *b"S" {
        return Err(ConnectError::NoTls);
    }
    let (stream, facts) = dial::start_tls(stream, target, &ctx.dial, Some(ALPN)).await?;
    Ok(Reached {
        stream: ServerStream::Tls(Box::new(stream)),
        tls: Some(facts),
        peer,
    })
}

/// Connects and logs in; a refused credential is exchanged once. `parameters` makes the start-up parameters for a role.
pub async fn connect(
    target: &Arc<TargetState>,
    ctx: &RoomContext,
    fallback_user: &str,
    minor: u16,
    parameters: impl Fn(&str) -> Vec<(String, String)>,
) -> Result<Connected, ConnectError> {
    let lease = ctx.credentials.lease(target).await?;
    match attempt(target, ctx, lease.clone(), fallback_user, minor, &parameters).await {
        Err(error) if error.credential_refused() => {
            let fresh = ctx.credentials.refused(target, &lease).await?;
            attempt(target, ctx, fresh, fallback_user, minor, &parameters).await
        }
        other => other,
    }
}

async fn attempt(
    target: &TargetState,
    ctx: &RoomContext,
    lease: Arc<LeaseHandle>,
    fallback_user: &str,
    minor: u16,
    parameters: &impl Fn(&str) -> Vec<(String, String)>,
) -> Result<Connected, ConnectError> {
    let whole = async {
        let Reached { mut stream, tls, peer } = reach(target, ctx).await?;
        let role = role(&lease).unwrap_or(fallback_user).to_owned();
        let parameters = parameters(&role);
        let end_point = tls.as_ref().and_then(|facts| facts.server_end_point.clone());
        let plan = LoginPlan {
            parameters: &parameters,
            minor,
            lease: &lease,
            weak: target.spec.weak_login,
            binding: Binding {
                tls: tls.is_some(),
                end_point,
            },
        };
        let mut scanner = ServerScanner::default();
        let login = auth::login(&mut stream, &mut scanner, &plan, &ctx.tasks).await?;
        known(login.major())?;
        params::echo_holds(&login.reported).map_err(ConnectError::Echo)?;
        let search_path = shown_search_path(&mut stream, &mut scanner, &login, &parameters).await?;
        Ok(Connected {
            stream,
            scanner,
            login,
            lease: lease.clone(),
            role,
            tls,
            search_path,
            peer,
        })
    };
    tokio::time::timeout(LOGIN, whole)
        .await
        .unwrap_or(Err(ConnectError::Deadline))
}

/// Refuses a major outside those whose tables and grammar are built in.
fn known(major: u32) -> Result<(), ConnectError> {
    match major {
        12..=18 => Ok(()),
        other => Err(ConnectError::Major(other)),
    }
}

fn role(lease: &LeaseHandle) -> Option<&str> {
    match lease.expose() {
        LeaseMaterial::Password { user, .. } => Some(user),
        LeaseMaterial::Bearer { user, .. } | LeaseMaterial::None { user } => user.as_deref(),
    }
}

/// The search_path, reported by 18 and later, asked for before; it must be the one we set.
async fn shown_search_path(
    stream: &mut ServerStream,
    scanner: &mut ServerScanner,
    login: &LoggedIn,
    parameters: &[(String, String)],
) -> Result<String, ConnectError> {
    let shown = match login.reported("search_path") {
        Some(reported) => reported.to_owned(),
        None => {
            let rows = ask(stream, scanner, "SHOW search_path").await?;
            rows.into_iter()
                .flatten()
                .flatten()
                .next()
                .ok_or(ConnectError::Echo("search_path"))?
        }
    };
    let set = parameters
        .iter()
        .find(|(name, _)| name == "search_path")
        .map(|(_, value)| value.as_str());
    if set.is_some_and(|set| without_space(set) != without_space(&shown)) {
        return Err(ConnectError::Echo("search_path"));
    }
    Ok(shown)
}

fn without_space(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Our own question on our own connection: the rows of one simple query, as text.
pub async fn ask<S>(
    stream: &mut S,
    scanner: &mut ServerScanner,
    sql: &str,
) -> Result<Vec<Vec<Option<String>>>, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let whole = async {
        stream.write_all(write::query(sql).bytes()).await?;
        stream.flush().await?;
        answer(stream, scanner).await
    };
    tokio::time::timeout(QUESTION, whole)
        .await
        .unwrap_or(Err(LoginError::Io(io::ErrorKind::TimedOut.into())))
}

async fn answer<S>(stream: &mut S, scanner: &mut ServerScanner) -> Result<Vec<Vec<Option<String>>>, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut rows, mut cells, mut columns, mut bytes) = (Vec::new(), Vec::new(), 0usize, 0usize);
    let mut failed = None;
    loop {
        let frame = match scanner.next(false)? {
            Piece::Frame(frame) => frame,
            Piece::Run { .. } => return Err(LoginError::Unexpected),
            Piece::More => {
                scanner.buffer().reserve(64 * 1024);
                let read = stream.read_buf(scanner.buffer()).await?;
                bytes = bytes.saturating_add(read);
                if read == 0 || bytes > MAX_ANSWER {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                continue;
            }
        };
        match frame.tag() {
            b'T' => columns = frame.reader().count()?,
            b'D' => {
                data_row::cells(&frame, columns, &mut cells)?;
                let text = |range: &std::ops::Range<usize>| {
                    let value = frame.bytes().get(range.clone()).unwrap_or_default();
                    std::str::from_utf8(value)
                        .map(str::to_owned)
                        .map_err(|_| CodecError::Utf8)
                };
                let row: Result<Vec<_>, _> = cells.iter().map(|cell| cell.as_ref().map(text).transpose()).collect();
                rows.push(row?);
            }
            b'E' => {
                let fields = Fields::decode(&frame)?;
                failed = Some(LoginError::Refused {
                    code: fields.text(b'C'),
                    message: fields.text(b'M'),
                });
            }
            b'Z' => return failed.map_or(Ok(rows), Err),
            b'C' | b'N' | b'S' | b'I' | b'A' => {}
            _ => return Err(LoginError::Unexpected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_not_understood_is_refused_by_name() {
        assert!((12..=18).all(|major| known(major).is_ok()));
        for major in [0, 9, 11, 19, 42] {
            let told = known(major).err().map(|error| (error.reason(), error.told()));
            let text = format!("the target runs PostgreSQL {major}; versions 12 to 18 are understood");
            assert_eq!(told, Some((Reason::UpstreamRefused, text)));
        }
    }
}
