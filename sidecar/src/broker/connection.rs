//! One HTTP/2 connection to the broker: dialled when needed, shared by all calls, verified by the pinned authority.
//!
//! Proofs and nonces are put on here. A call that meets `use_dpop_nonce` is repeated once with the nonce given; no
//! redirect is followed, ever.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{header, Method, Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::Response;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Body;
use crate::dial::guard::{self, Host};
use crate::dial::names::Names;
use crate::identity::Identity;
use crate::task::Tasks;

const DIAL: Duration = Duration::from_secs(5);
const HEADERS: Duration = Duration::from_secs(15);
const ERROR_LIMIT: usize = 16 * 1024;

/// Where the broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    host: String,
    port: u16,
}

/// A URL that is not the broker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form https://HOST:PORT")]
pub struct UrlError(String);

impl Url {
    /// Reads `https://HOST:PORT`; a path, query or user is refused.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let bad = || UrlError(text.to_owned());
        let uri: http::Uri = text.parse().map_err(|_| bad())?;
        let plain = uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.filter(|_| plain).ok_or_else(bad)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        guard::host(host).ok_or_else(bad)?;
        Ok(Url {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(443),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

/// Why a call brought nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No connection, or it broke.
    #[error("the broker cannot be reached: {0}")]
    Unreachable(String),
    /// No session token could be had.
    #[error("the broker has given no session token")]
    NoToken,
    /// The broker said no.
    #[error("the broker answered {status} {code}")]
    Status {
        /// HTTP status.
        status: u16,
        /// OAuth error code, if there is one.
        code: String,
    },
    /// The answer makes no sense.
    #[error("the broker's answer makes no sense")]
    Nonsense,
    /// This process cannot sign.
    #[error("no proof could be made")]
    Proof,
}

impl CallError {
    /// Whether the same call may work later.
    pub fn is_temporary(&self) -> bool {
        match self {
            CallError::Status { status, .. } => *status >= 500 || *status == 429 || *status == 401,
            _ => true,
        }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

pub(super) struct Connection {
    url: Url,
    tls: TlsConnector,
    names: Arc<Names>,
    tasks: Tasks,
    open: ArcSwapOption<SendRequest<Body>>,
    nonce: ArcSwapOption<String>,
}

impl Connection {
    pub(super) fn new(url: Url, tls: Arc<ClientConfig>, names: Arc<Names>, tasks: Tasks) -> Self {
        let mut config = (*tls).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Connection {
            url,
            tls: TlsConnector::from(Arc::new(config)),
            names,
            tasks,
            open: ArcSwapOption::empty(),
            nonce: ArcSwapOption::empty(),
        }
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The connection ends with its last call.
    pub(super) fn close(&self) {
        self.open.store(None);
    }

    /// One call. `path` may carry a query; `body` is made anew for a repeated call.
    pub(super) async fn call(
        &self,
        identity: &Identity,
        method: Method,
        path: &str,
        token: Option<&str>,
        content_type: &'static str,
        body: impl Fn() -> Body + Send + Sync,
    ) -> Result<Response<Incoming>, CallError> {
        let plain = path.split('?').next().unwrap_or_default();
        let (proved, target) = (format!("{}{plain}", self.url), format!("{}{path}", self.url));
        let mut repeated = false;
        loop {
            let nonce = self.nonce.load_full();
            let proof = identity
                .proof(
                    method.as_str(),
                    &proved,
                    token,
                    nonce.as_ref().map(|nonce| nonce.as_str()),
                )
                .map_err(|_| CallError::Proof)?;
            let mut request = Request::builder()
                .method(method.clone())
                .uri(&target)
                .header("dpop", proof)
                .header(header::CONTENT_TYPE, content_type);
            if let Some(token) = token {
                let mut value =
                    header::HeaderValue::from_str(&format!("DPoP {token}")).map_err(|_| CallError::Proof)?;
                value.set_sensitive(true);
                request = request.header(header::AUTHORIZATION, value);
            }
            let request = request.body(body()).map_err(|_| CallError::Nonsense)?;
            let answer = self.send(request).await?;
            let fresh = self.keep_nonce(&answer, nonce.as_deref());
            let status = answer.status();
            if status.is_success() {
                return Ok(answer);
            }
            let refused_proof = matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED);
            let refused = refusal(answer).await;
            // RFC 9449 section 8. Every answer brings a nonce, so a new one alone is no invitation to come again
            // (test `a_call_is_repeated_once_for_the_nonce_and_for_nothing_else`).
            let invited = matches!(&refused, CallError::Status { code, .. } if code == "use_dpop_nonce");
            if refused_proof && invited && fresh && !repeated {
                repeated = true;
                continue;
            }
            return Err(refused);
        }
    }

    /// Keeps the nonce of an answer; true if it is another than the one just used.
    fn keep_nonce(&self, answer: &Response<Incoming>, used: Option<&String>) -> bool {
        let given = answer.headers().get("dpop-nonce").and_then(|value| value.to_str().ok());
        let Some(given) = given else {
            return false;
        };
        let fresh = used.is_none_or(|used| used != given);
        if fresh {
            self.nonce.store(Some(Arc::new(given.to_owned())));
        }
        fresh
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, CallError> {
        let mut sender = self.sender().await?;
        let sent = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        match timeout(HEADERS, sent).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.open.store(None);
                Err(CallError::Unreachable(error.to_string()))
            }
            Err(_) => {
                self.open.store(None);
                Err(CallError::Unreachable("no answer in time".to_owned()))
            }
        }
    }

    async fn sender(&self) -> Result<SendRequest<Body>, CallError> {
        if let Some(open) = self.open.load_full() {
            if !open.is_closed() {
                return Ok((*open).clone());
            }
        }
        let failed = |error: &dyn fmt::Display| CallError::Unreachable(error.to_string());
        let stream = timeout(DIAL, self.dial())
            .await
            .map_err(|_| failed(&"no connection in time"))??;
        let (sender, connection) = http2::Builder::new(self.tasks.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(false)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        self.tasks.spawn("broker connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the broker connection ended");
            }
        });
        self.open.store(Some(Arc::new(sender.clone())));
        Ok(sender)
    }

    async fn dial(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>, CallError> {
        let failed = |error: &dyn fmt::Display| CallError::Unreachable(error.to_string());
        let ips: Vec<IpAddr> = match guard::host(&self.url.host) {
            Some(Host::Literal(ip)) => vec![ip],
            Some(Host::Name(name)) => self.names.resolve(name).await.map_err(|error| failed(&error))?,
            None => return Err(failed(&"bad host")),
        };
        let mut last = failed(&"no address");
        for ip in ips {
            match TcpStream::connect(SocketAddr::new(ip, self.url.port)).await {
                Ok(stream) => {
                    crate::dial::tune(&stream);
                    let name = ServerName::try_from(self.url.host.clone()).map_err(|error| failed(&error))?;
                    return self.tls.connect(name, stream).await.map_err(|error| failed(&error));
                }
                Err(error) => last = failed(&error),
            }
        }
        Err(last)
    }
}

/// Turns an answer that is no success into an error, reading no more than it needs.
async fn refusal(answer: Response<Incoming>) -> CallError {
    let status = answer.status().as_u16();
    let limited = http_body_util::Limited::new(answer.into_body(), ERROR_LIMIT);
    let body = timeout(Duration::from_secs(2), limited.collect()).await;
    let code = match body {
        Ok(Ok(body)) => serde_json::from_slice::<ErrorBody>(&body.to_bytes()).map(|body| body.error),
        _ => Ok(String::new()),
    };
    CallError::Status {
        status,
        code: code.unwrap_or_default(),
    }
}

/// A body fed by a bounded channel; it ends when the sender is dropped.
pub(super) fn channel_body(receiver: mpsc::Receiver<Bytes>) -> Body {
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let bytes = receiver.recv().await?;
        Some((Ok(Frame::data(bytes)), receiver))
    });
    BodyExt::boxed(StreamBody::new(SyncStream(std::sync::Mutex::new(Box::pin(frames)))))
}

type Frames =
    std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send>>;

/// `BoxBody` wants Sync, which the channel's future is not; it is only ever polled by its owner.
struct SyncStream(std::sync::Mutex<Frames>);

impl futures_util::Stream for SyncStream {
    type Item = Result<Frame<Bytes>, std::convert::Infallible>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let frames = self.get_mut().0.get_mut();
        frames
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .as_mut()
            .poll_next(cx)
    }
}
