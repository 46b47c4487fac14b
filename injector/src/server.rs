//! The webhook's face: TLS, `POST /mutate` for pods, `POST /decisions` for words on AccessRequests, and `GET /livez` and `/readyz` for the kubelet.
//!
//! Refuses bodies over 10 MiB, bodies that take longer than 5 s, more than 256 reviews at once, other methods, paths and
//! content types. Whatever it cannot answer as a review gets a status that is none, so that `failurePolicy: Fail` turns
//! it into a refusal. Invariant: every connection is a task of the injector and ends with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{header, Method, Request as HttpRequest, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use serde_json::Value;
use sidegate_policies::objects::Namespace;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::admit::{is_enabled, World};
use crate::decisions;
use crate::install::Install;
use crate::kubernetes::{Cluster, Snapshot};
use crate::refusal::Refusal;
use crate::review::{Malformed, Outcome, Request};
use crate::task::Tasks;

/// The largest object of an API server is 3 MiB of JSON, and an update holds it twice.
const MAX_BODY: usize = 10 << 20;
const BODY: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_secs(5);
const HEADERS: Duration = Duration::from_secs(5);
const CONNECTIONS: usize = 2_048;
const REVIEWS: usize = 256;
/// What is under way has so long once the injector stops.
const FAREWELL: Duration = Duration::from_secs(3);

/// Answers reviews.
pub struct Webhook {
    install: Install,
    /// The injector's own namespace, whose pods are left alone.
    namespace: String,
    cluster: Arc<Cluster>,
    reviews: Semaphore,
}

impl Webhook {
    /// For one installation.
    pub fn new(install: Install, namespace: String, cluster: Arc<Cluster>) -> Self {
        Webhook {
            install,
            namespace,
            cluster,
            reviews: Semaphore::new(REVIEWS),
        }
    }

    async fn mutate(&self, body: &[u8]) -> Result<Value, Malformed> {
        let request = match Request::read(body)? {
            Ok(request) => request,
            Err(answer) => return Ok(answer),
        };
        let (answer, outcome) = match request.spared(&self.namespace) {
            // Before anything is looked up: these pods must come up while the API server is busy.
            Some(why) => request.untouched(why, &[]),
            None => self.decided(&request).await,
        };
        let Outcome { word, reason } = outcome;
        tracing::info!(namespace = request.namespace, outcome = word, reason, "reviewed");
        Ok(answer)
    }

    async fn decided(&self, request: &Request) -> (Value, Outcome) {
        let snapshot = self.cluster.now();
        match self.namespace(&snapshot, &request.namespace).await {
            Ok(namespace) => {
                let world = World {
                    install: &self.install,
                    objects: &snapshot.objects,
                    generations: &snapshot.generations,
                    unusable: &snapshot.unusable,
                };
                request.decided(&world, &namespace)
            }
            Err(refusal) => request.refused(refusal),
        }
    }

    /// We are asked because the server found the namespace enabled; where we know otherwise, we may lag behind.
    async fn namespace(&self, snapshot: &Snapshot, name: &str) -> Result<Namespace, Refusal> {
        let known = snapshot.objects.namespace(name);
        if let Some(known) = known.filter(|known| is_enabled(known) == Ok(true)) {
            return Ok(known.clone());
        }
        match self.cluster.namespace(name).await {
            Ok(Some(namespace)) => Ok(namespace),
            Ok(None) => Err(Refusal::invalid(
                "namespace",
                format!("there is no namespace {name}; create it first"),
            )),
            Err(error) => {
                tracing::warn!(%error, "a namespace cannot be looked up");
                let message = format!("the labels of namespace {name} cannot be read now; try again");
                Err(Refusal::unavailable("namespace", message))
            }
        }
    }

    async fn answered(&self, request: HttpRequest<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/mutate" | "/decisions") => {}
            (&Method::GET, "/livez" | "/readyz") => return said(StatusCode::OK, "ok"),
            (_, "/mutate" | "/decisions") => return said(StatusCode::METHOD_NOT_ALLOWED, "sidegate: review: POST it"),
            _ => {
                return said(
                    StatusCode::NOT_FOUND,
                    "sidegate: review: it goes to /mutate or /decisions",
                )
            }
        }
        let decides = request.uri().path() == "/decisions";
        let kind = request
            .headers()
            .get(header::CONTENT_TYPE)
            .map(|kind| kind.as_bytes().to_vec());
        if !kind.unwrap_or_default().starts_with(b"application/json") {
            return said(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "sidegate: review: write application/json",
            );
        }
        let Ok(_turn) = self.reviews.try_acquire() else {
            return said(
                StatusCode::SERVICE_UNAVAILABLE,
                "sidegate: review: too many at once; try again",
            );
        };
        // Said in its head already: nothing of it is read.
        if request.body().size_hint().lower() > u64::try_from(MAX_BODY).unwrap_or(u64::MAX) {
            return said(StatusCode::PAYLOAD_TOO_LARGE, "sidegate: review: over 10 MiB");
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let body = match tokio::time::timeout(BODY, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                return said(StatusCode::PAYLOAD_TOO_LARGE, "sidegate: review: over 10 MiB");
            }
            Ok(Err(_)) => return said(StatusCode::BAD_REQUEST, "sidegate: review: it ended early"),
            Err(_) => return said(StatusCode::REQUEST_TIMEOUT, "sidegate: review: not whole within 5 s"),
        };
        let answer = match decides {
            true => decided(&body),
            false => self.mutate(&body).await,
        };
        match answer {
            Ok(answer) => {
                let mut response = said(StatusCode::OK, answer.to_string());
                let json = header::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                response
            }
            Err(malformed) => said(StatusCode::BAD_REQUEST, malformed.to_string()),
        }
    }
}

/// Somebody's word on a request: everything it takes to judge it is in the review.
fn decided(body: &[u8]) -> Result<Value, Malformed> {
    let (answer, outcome) = decisions::reviewed(body, jiff::Timestamp::now())?;
    let Outcome { word, reason } = outcome;
    tracing::info!(outcome = word, reason, "a decision was reviewed");
    Ok(answer)
}

fn said(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

/// Serves reviews until the injector stops.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, webhook: Arc<Webhook>, tasks: Tasks) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let stop = tasks.stopping();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: give the others a moment to end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(slot) = Arc::clone(&connections).try_acquire_owned() else {
            continue;
        };
        let (acceptor, webhook, stop) = (acceptor.clone(), Arc::clone(&webhook), tasks.stopping());
        tasks.spawn(async move {
            let _slot = slot;
            connection(stream, acceptor, webhook, stop).await;
        });
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    webhook: Arc<Webhook>,
    stop: tokio_util::sync::CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let service = service_fn(|request| {
        let webhook = Arc::clone(&webhook);
        async move { Ok::<_, std::convert::Infallible>(webhook.answered(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(64 * 1024);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(FAREWELL, connection).await;
}
