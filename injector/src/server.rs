//! The webhook's face: TLS, and a path for each webhook, `POST /mutate`, `POST /policies` and
//! `POST /decisions`.
//!
//! Refuses bodies over 10 MiB, bodies that take longer than 5 s, answers that take longer than 1 s, more than 256 reviews
//! at once, more than its share of one source, other methods, paths and content types. Whatever it cannot answer as a review gets a status that is none, so that `failurePolicy: Fail` turns
//! it into a refusal. Invariant: every connection is a task of the injector and ends with it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{header, Method, Request as HttpRequest, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use rustls::ServerConfig;
use sidegate_cluster::http1::{converse, Ends, Silence, KEPT};
use sidegate_cluster::listen;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Limit, Metrics};
use crate::sources::{Connection, Sources};
use crate::task::Tasks;
use crate::webhook::Webhook;

/// The largest object of an API server is 3 MiB of JSON, and an update holds it twice.
const MAX_BODY: usize = 10 << 20;
const BODY: Duration = Duration::from_secs(5);
/// The API server waits 5 s for all of it.
const HANDLER: Duration = Duration::from_secs(1);
const HANDSHAKE: Duration = Duration::from_secs(5);
pub(crate) const HEADERS: Duration = Duration::from_secs(5);
const CONNECTIONS: usize = 2_048;
/// With fewer places left than these, each connection that comes costs the greediest source one.
const SPARE: usize = 64;
const REVIEWS: usize = 256;

/// The face of one injector.
pub struct Server {
    webhook: Webhook,
    metrics: Arc<Metrics>,
    reviews: Semaphore,
    sources: Arc<Sources>,
}

impl Server {
    /// In front of a webhook.
    pub fn new(webhook: Webhook, metrics: Arc<Metrics>) -> Self {
        Server {
            webhook,
            metrics,
            reviews: Semaphore::new(REVIEWS),
            sources: Arc::default(),
        }
    }

    async fn answered(&self, request: HttpRequest<Incoming>, source: &Connection) -> Response<Full<Bytes>> {
        let begun = Instant::now();
        let Some(webhook) = named(request.uri().path()) else {
            return said(
                StatusCode::NOT_FOUND,
                "sidegate: review: it goes to /mutate, /policies or /decisions",
            );
        };
        let away = |(limit, status, message): (Limit, StatusCode, &'static str)| {
            self.metrics.turned_away(limit);
            said(status, message)
        };
        if !source.take(begun) {
            let message = "sidegate: review: too many of one source; try again";
            return away((Limit::Source, StatusCode::TOO_MANY_REQUESTS, message));
        }
        let Ok(_turn) = self.reviews.try_acquire() else {
            let message = "sidegate: review: too many at once; try again";
            return away((Limit::InFlight, StatusCode::SERVICE_UNAVAILABLE, message));
        };
        let _under_way = self.metrics.begun();
        let body = match body(request).await {
            Ok(body) => body,
            Err(refused) => return away(refused),
        };
        let answer = async {
            match webhook {
                "policies" => self.webhook.policies(&body).await,
                "decisions" => Webhook::decisions(&body),
                _ => self.webhook.mutate(&body).await,
            }
        };
        match tokio::time::timeout(HANDLER, answer).await {
            Ok(Ok((answer, outcome))) => {
                if let Some(outcome) = outcome {
                    self.metrics.answered(webhook, &outcome, begun.elapsed());
                }
                let mut response = said(StatusCode::OK, answer.to_string());
                let json = header::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                response
            }
            Ok(Err(malformed)) => {
                self.metrics.turned_away(Limit::Malformed);
                said(StatusCode::BAD_REQUEST, malformed.to_string())
            }
            Err(_) => {
                let message = "sidegate: review: not answered within 1 s; try again";
                away((Limit::Time, StatusCode::SERVICE_UNAVAILABLE, message))
            }
        }
    }
}

/// The webhook of a path, as numbers name it.
fn named(path: &str) -> Option<&'static str> {
    match path {
        "/mutate" => Some("pods"),
        "/policies" => Some("policies"),
        "/decisions" => Some("decisions"),
        _ => None,
    }
}

/// The whole body of a review, or what is wrong with it.
async fn body(request: HttpRequest<Incoming>) -> Result<Bytes, (Limit, StatusCode, &'static str)> {
    if request.method() != Method::POST {
        let message = "sidegate: review: POST it";
        return Err((Limit::Malformed, StatusCode::METHOD_NOT_ALLOWED, message));
    }
    let kind = request.headers().get(header::CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
        let message = "sidegate: review: write application/json";
        return Err((Limit::Malformed, StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let large = (
        Limit::Body,
        StatusCode::PAYLOAD_TOO_LARGE,
        "sidegate: review: over 10 MiB",
    );
    // Said in its head already: nothing of it is read.
    if request.body().size_hint().lower() > u64::try_from(MAX_BODY).unwrap_or(u64::MAX) {
        return Err(large);
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    match tokio::time::timeout(BODY, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(large),
        Ok(Err(_)) => Err((
            Limit::Malformed,
            StatusCode::BAD_REQUEST,
            "sidegate: review: it ended early",
        )),
        Err(_) => Err((
            Limit::Slow,
            StatusCode::REQUEST_TIMEOUT,
            "sidegate: review: not whole within 5 s",
        )),
    }
}

pub(crate) fn said(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

/// Serves reviews until the injector stops.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, server: Arc<Server>, tasks: Tasks) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let stop = tasks.stopping();
    while let Some((stream, peer)) = listen::next(&listener, &stop).await {
        let Ok(slot) = Arc::clone(&connections).try_acquire_owned() else {
            continue;
        };
        let place = CancellationToken::new();
        let Some(source) = server.sources.connect(peer.ip(), Instant::now(), place.clone()) else {
            server.metrics.turned_away(Limit::Source);
            continue;
        };
        if connections.available_permits() < SPARE {
            server.sources.make_room();
        }
        let (acceptor, server, stop) = (acceptor.clone(), Arc::clone(&server), tasks.stopping());
        tasks.spawn(async move {
            let _slot = slot;
            let _ = stream.set_nodelay(true);
            let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
            if let Some(Ok(Ok(stream))) = place.run_until_cancelled(handshake).await {
                connection(stream, server, source, Ends { stop, place }).await;
            }
        });
    }
}

async fn connection(stream: TlsStream<TcpStream>, server: Arc<Server>, source: Connection, ends: Ends) {
    let (server, source) = (&*server, &source);
    let service = service_fn(|request| async move { Ok::<_, Infallible>(server.answered(request, source).await) });
    let silence = Silence {
        first: HEADERS,
        next: KEPT,
    };
    converse(stream, service, silence, ends).await;
}
