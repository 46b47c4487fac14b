//! One request with spans to the collector, over plain HTTP or verified TLS.
//!
//! Refuses redirects (they are answers like others), answers over 64 KiB and slow ones. The collector is whoever started
//! the broker named, so it may live on this machine, other than a provider. Invariant: what becomes of it is said in the
//! log when it changes, without a word the collector wrote, and otherwise costs nothing.

use std::fmt;
use std::future::Future;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, HOST};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

use crate::credentials::outbound::{authorities, client_tls, system};
use crate::task::{blocking, Tasks};

/// Bytes of an answer, at most.
const MAX_ANSWER: usize = 64 * 1024;

/// Why spans were not delivered. Holds nothing a collector wrote.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Undelivered(&'static str);

type Delivered = Result<Response<Bytes>, Undelivered>;

/// The way to the collector.
pub(super) struct Collector {
    tls: Option<Arc<ClientConfig>>,
    patience: Duration,
    runtime: Handle,
    tasks: Tasks,
    /// Whether the last ones were delivered.
    reached: AtomicBool,
}

impl Collector {
    /// A collector that the authorities of this file vouch for, or the system's.
    pub(super) fn new(file: Option<&str>, patience: Duration, runtime: Handle) -> Result<Collector, String> {
        let roots = match file {
            Some(file) => {
                let pem = std::fs::read_to_string(file);
                let pem = pem.map_err(|error| format!("OTEL_EXPORTER_OTLP_CERTIFICATE: {error}"))?;
                let roots = authorities(&pem).ok_or("OTEL_EXPORTER_OTLP_CERTIFICATE: no certificates in it")?;
                Some(Arc::new(roots))
            }
            None => system(),
        };
        let tls = roots.map(client_tls).transpose();
        Ok(Collector {
            tls: tls.map_err(|error| format!("traces: {error}"))?.map(Arc::new),
            patience,
            runtime,
            tasks: Tasks::new(),
            reached: AtomicBool::new(true),
        })
    }

    /// Says in the log that the collector is lost, or found again.
    fn told(&self, delivered: &Delivered) {
        let fine = delivered.as_ref().is_ok_and(|answer| answer.status().is_success());
        if self.reached.swap(fine, Ordering::Relaxed) == fine {
            return;
        }
        match delivered {
            _ if fine => tracing::info!("traces are delivered again"),
            Ok(answer) => tracing::warn!(status = answer.status().as_u16(), "the collector does not take traces"),
            Err(why) => tracing::warn!(%why, "traces cannot be delivered"),
        }
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'out>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'out>>
    where
        'a: 'out,
        Self: 'out,
    {
        // Called on a thread of the library's own, which is no thread of the runtime.
        let (tell, told) = oneshot::channel();
        let (tls, patience) = (self.tls.clone(), self.patience);
        let _entered = self.runtime.enter();
        self.tasks.spawn("traces", async move {
            let delivered = tokio::time::timeout(patience, deliver(request, tls)).await;
            let _ = tell.send(delivered.unwrap_or(Err(Undelivered("no whole answer in time"))));
        });
        Box::pin(async move {
            let delivered = told.await.unwrap_or(Err(Undelivered("the broker ends")));
            self.told(&delivered);
            delivered.map_err(HttpError::from)
        })
    }
}

async fn deliver(request: Request<Bytes>, tls: Option<Arc<ClientConfig>>) -> Delivered {
    let uri = request.uri().clone();
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host().ok_or(Undelivered("its address names no host"))?.to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = connect(host.trim_matches(['[', ']']).to_owned(), port).await?;
    let request = message(request, &uri)?;
    if !secure {
        return exchange(stream, request).await;
    }
    let tls = tls.ok_or(Undelivered("the system trusts no authority"))?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
    let name = name.map_err(|_| Undelivered("no name a certificate could carry"))?;
    let stream = TlsConnector::from(tls).connect(name, stream).await;
    exchange(
        stream.map_err(|_| Undelivered("TLS is not what it should be"))?,
        request,
    )
    .await
}

async fn connect(host: String, port: u16) -> Result<TcpStream, Undelivered> {
    let found = blocking(move || {
        Some(
            (host.as_str(), port)
                .to_socket_addrs()
                .ok()?
                .collect::<Vec<SocketAddr>>(),
        )
    })
    .await;
    let found = found.flatten().ok_or(Undelivered("its name did not resolve"))?;
    for address in found {
        if let Ok(stream) = TcpStream::connect(address).await {
            return Ok(stream);
        }
    }
    Err(Undelivered("it cannot be connected to"))
}

/// The request as it stands on the line: the path alone, and the host beside it.
fn message(request: Request<Bytes>, uri: &Uri) -> Result<Request<Full<Bytes>>, Undelivered> {
    let unwritable = Undelivered("the request cannot be written");
    let (mut parts, body) = request.into_parts();
    let host = match (uri.host(), uri.port()) {
        (Some(host), Some(port)) => HeaderValue::from_str(&format!("{host}:{port}")),
        (host, _) => HeaderValue::from_str(host.unwrap_or_default()),
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let (Ok(host), Ok(path)) = (host, path.parse()) else {
        return Err(unwritable);
    };
    parts.headers.insert(HOST, host);
    parts.uri = path;
    Ok(Request::from_parts(parts, Full::new(body)))
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Delivered
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broke = |_| Undelivered("the connection ended");
    let opened = http1::Builder::new()
        .max_buf_size(MAX_ANSWER)
        .handshake(TokioIo::new(stream));
    let (mut sender, connection) = opened.await.map_err(broke)?;
    // The connection ends once nobody sends on it any more.
    let answered = async move {
        let response = sender.send_request(request).await.map_err(broke)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|_| Undelivered("no whole answer"))?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    tokio::join!(answered, connection).0
}
