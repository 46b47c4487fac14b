//! Opening a connection to a target, so that nobody can point it back at us.
//!
//! Names go to our own resolver (UPS-1), every address is checked and the checked one is dialled (UPS-2, UPS-3), the
//! peer after connecting must be it (UPS-9), TLS is verified or it is an error (UPS-6). Nothing here follows an
//! address that a peer supplied (UPS-7). Credentials come later, over what this module verified (UPS-4, UPS-8).

pub mod guard;
pub mod names;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls_pki_types::ServerName;
use sidegate_policies::api::target::TlsMode;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::target::TargetState;
use crate::tls::client::Roots;
use crate::tls::{binding, TlsError};
use guard::{Forbidden, Host};
use names::{Names, NamesError};

/// One address.
const PER_ADDRESS: Duration = Duration::from_secs(5);
/// Names and all addresses together.
const IN_ALL: Duration = Duration::from_secs(10);
/// A TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Why a target was not reached. The text is for records; an agent sees the reason only.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// The host is neither a strict literal nor a name.
    #[error("`{0}` is neither an IP address in strict form nor a DNS name")]
    Host(String),
    /// The name could not be resolved.
    #[error("{0}")]
    Names(#[from] NamesError),
    /// An address that must not be dialled.
    #[error("{0}")]
    Forbidden(#[from] Forbidden),
    /// Nobody answered.
    #[error("{address} could not be reached: {error}")]
    Connect {
        /// The last address tried.
        address: SocketAddr,
        /// What the system said.
        error: String,
    },
    /// The peer is not the address that was checked.
    #[error("connected to {found} instead of {wanted}")]
    Peer {
        /// The checked address.
        wanted: SocketAddr,
        /// The peer.
        found: SocketAddr,
    },
    /// Time ran out.
    #[error("no connection within the time allowed")]
    Deadline,
    /// TLS failed: certificate, name or handshake. There is no second try without.
    #[error("TLS to the target failed: {0}")]
    Tls(#[from] TlsError),
}

impl DialError {
    /// The reason an agent is told.
    pub fn reason(&self) -> sidegate_policies::reason::Reason {
        use sidegate_policies::reason::Reason;
        match self {
            DialError::Connect { .. } | DialError::Deadline | DialError::Names(_) => Reason::Unavailable,
            DialError::Host(_) | DialError::Forbidden(_) | DialError::Peer { .. } | DialError::Tls(_) => {
                Reason::UpstreamRefused
            }
        }
    }
}

/// What dialling needs to know about this process.
pub struct DialContext {
    names: Names,
    /// Local mode only: loopback literals may be dialled where the Target states one.
    allow_loopback_literals: bool,
    listeners: RwLock<BTreeSet<SocketAddr>>,
    roots: Roots,
}

/// An open connection whose peer is the address that was checked.
pub struct Dialled {
    /// The connection.
    pub stream: TcpStream,
    /// Its peer.
    pub peer: SocketAddr,
}

/// What TLS proved.
#[derive(Debug, Clone)]
pub struct TlsFacts {
    /// RFC 5929 `tls-server-end-point`: hash of the server's certificate; absent where none is defined.
    pub server_end_point: Option<Vec<u8>>,
    /// `TLS 1.3` or `TLS 1.2`.
    pub version: &'static str,
    /// The name the certificate was verified for.
    pub server_name: String,
}

impl DialContext {
    /// A context. `allow_loopback_literals` is decided in the composition root and nowhere else.
    pub fn new(names: Names, allow_loopback_literals: bool) -> Self {
        DialContext {
            names,
            allow_loopback_literals,
            listeners: RwLock::default(),
            roots: Roots::default(),
        }
    }

    /// An address of our own that must never be dialled.
    pub fn own_listener(&self, address: SocketAddr) {
        self.listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(address);
    }

    /// A listener that is gone.
    pub fn forget_listener(&self, address: &SocketAddr) {
        self.listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(address);
    }

    fn is_own_listener(&self, address: &SocketAddr) -> bool {
        self.listeners
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(address)
    }

    /// Every address of the target, checked; one forbidden address forbids them all.
    async fn addresses(&self, target: &TargetState) -> Result<Vec<SocketAddr>, DialError> {
        let host = &target.spec.address.host;
        let port = u16::try_from(target.spec.address.port).unwrap_or(0);
        let (ips, literal) = match guard::host(host).ok_or_else(|| DialError::Host(host.clone()))? {
            Host::Literal(ip) => (vec![ip], true),
            Host::Name(name) => (self.names.resolve(name).await?, false),
        };
        let may_loop = literal && target.loopback && self.allow_loopback_literals;
        let own = guard::own_addresses();
        for ip in &ips {
            guard::check(*ip, may_loop, &own)?;
        }
        let addresses: Vec<SocketAddr> = ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        match addresses.iter().find(|address| self.is_own_listener(address)) {
            Some(own) => Err(Forbidden::OwnListener(*own).into()),
            None => Ok(addresses),
        }
    }

    /// Whether the peer of an open connection is the address that was checked, and not ourselves (UPS-9).
    fn verify_peer(&self, stream: &TcpStream, wanted: SocketAddr) -> Result<(), DialError> {
        let lost = |error: std::io::Error| DialError::Connect {
            address: wanted,
            error: error.to_string(),
        };
        let (found, local) = (stream.peer_addr().map_err(lost)?, stream.local_addr().map_err(lost)?);
        if !same(found, wanted) || found == local {
            return Err(DialError::Peer { wanted, found });
        }
        if self.is_own_listener(&found) {
            return Err(Forbidden::OwnListener(found).into());
        }
        Ok(())
    }
}

fn same(one: SocketAddr, other: SocketAddr) -> bool {
    canonical(one.ip()) == canonical(other.ip()) && one.port() == other.port()
}

fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// Resolves, checks and connects, within 10 s. TLS is the caller's next step where the protocol asks first.
pub async fn dial(target: &TargetState, ctx: &DialContext) -> Result<Dialled, DialError> {
    timeout(IN_ALL, connect(target, ctx))
        .await
        .unwrap_or(Err(DialError::Deadline))
}

async fn connect(target: &TargetState, ctx: &DialContext) -> Result<Dialled, DialError> {
    let mut last = DialError::Deadline;
    for address in ctx.addresses(target).await? {
        match timeout(PER_ADDRESS, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                ctx.verify_peer(&stream, address)?;
                tune(&stream);
                return Ok(Dialled { stream, peer: address });
            }
            Ok(Err(error)) => {
                last = DialError::Connect {
                    address,
                    error: error.to_string(),
                }
            }
            Err(_) => last = DialError::Deadline,
        }
    }
    Err(last)
}

/// No Nagle, and a dead peer is noticed within two minutes. Neither is worth failing for.
pub(crate) fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&alive);
}

/// Starts TLS on an open connection, with chain and name verified. `alpn` is offered where the protocol has one.
pub async fn start_tls(
    stream: TcpStream,
    target: &TargetState,
    ctx: &DialContext,
    alpn: Option<&'static [u8]>,
) -> Result<(TlsStream<TcpStream>, TlsFacts), DialError> {
    let name = target.server_name().to_owned();
    let server = ServerName::try_from(name.clone()).map_err(|_| TlsError::Name(name.clone()))?;
    let mut config = target
        .client_tls
        .get_or_init(|| ctx.roots.client(target.ca_pem.as_deref()))
        .clone()?;
    if let Some(protocol) = alpn {
        let mut offering = (*config).clone();
        offering.alpn_protocols = vec![protocol.to_vec()];
        config = Arc::new(offering);
    }
    let handshake = tokio_rustls::TlsConnector::from(config).connect(server, stream);
    let stream = match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(TlsError::Handshake(error.to_string()).into()),
        Err(_) => return Err(DialError::Deadline),
    };
    let facts = facts(&stream, name);
    Ok((stream, facts))
}

/// Whether the Target demands TLS. There is no setting in between.
pub fn wants_tls(target: &TargetState) -> bool {
    target.spec.tls.mode == TlsMode::VerifyFull
}

fn facts(stream: &TlsStream<TcpStream>, server_name: String) -> TlsFacts {
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates().and_then(|chain| chain.first());
    TlsFacts {
        server_end_point: leaf.and_then(|leaf| binding::server_end_point(leaf)),
        version: match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            _ => "TLS 1.2",
        },
        server_name,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
