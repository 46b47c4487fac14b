//! Listeners: TLS for both faces, HTTP/2 and HTTP/1.1, and the plain Unix socket of the control face.
//!
//! Refuses more than so many handshakes and connections at once, slow handshakes and slow or huge headers. The
//! invariant: every connection is a task of the broker and ends with it.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use sidegate_cluster::http1::{converse, Ends, Silence, KEPT};
use sidegate_cluster::listen;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::task::Tasks;

const HANDSHAKES: usize = 256;
const CONNECTIONS: usize = 12_000;
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(10);
const MAX_HEADERS: u32 = 32 * 1024;
const MAX_STREAMS: u32 = 128;
const PING: Duration = Duration::from_secs(20);
/// What is under way has so long once the broker stops: a sidecar's upload would go on for ever.
const FAREWELL: Duration = Duration::from_secs(3);

/// Address of the TCP peer, in the extensions of every request over TLS. It proves nothing about the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// Runs hyper's own tasks as tasks of the broker.
impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.spawn("h2", async move {
            future.await;
        });
    }
}

/// Serves a router over TLS until the broker stops.
pub async fn serve_tls(listener: TcpListener, tls: Arc<ServerConfig>, router: Router, tasks: Tasks) {
    let acceptor = TlsAcceptor::from(tls);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let stop = tasks.stopping();
    while let Some((stream, peer)) = listen::next(&listener, &stop).await {
        let (Ok(slot), Ok(handshake)) = (
            Arc::clone(&connections).try_acquire_owned(),
            Arc::clone(&handshakes).try_acquire_owned(),
        ) else {
            continue;
        };
        let (acceptor, inner) = (acceptor.clone(), tasks.clone());
        // An IPv4 peer of a dual-stack socket has one budget, not two.
        let router = router.clone().layer(Extension(Peer(peer.ip().to_canonical())));
        tasks.spawn("connection", async move {
            let _slot = slot;
            let accepted = tokio::time::timeout(HANDSHAKE, accept_tls(&acceptor, stream)).await;
            drop(handshake);
            if let Ok(Some((stream, is_h2))) = accepted {
                serve(stream, is_h2, router, inner).await;
            }
        });
    }
}

/// The TLS side of a connection, and whether it speaks HTTP/2.
pub(crate) async fn accept_tls(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> Option<(tokio_rustls::server::TlsStream<TcpStream>, bool)> {
    let _ = stream.set_nodelay(true);
    let stream = acceptor.accept(stream).await.ok()?;
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Some((stream, is_h2))
}

/// Serves one connection until it ends or the broker stops.
pub async fn serve<S>(stream: S, is_h2: bool, router: Router, tasks: Tasks)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let stop = tasks.stopping();
    if is_h2 {
        let mut builder = http2::Builder::new(tasks);
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEADERS)
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            _ = connection.as_mut() => return,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = tokio::time::timeout(FAREWELL, connection).await;
    } else {
        let silence = Silence {
            first: HEADERS,
            next: KEPT,
        };
        converse(stream, service, silence, Ends::by(stop)).await;
    }
}
