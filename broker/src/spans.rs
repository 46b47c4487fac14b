//! What a trace is made of: calls of the front face, and what took their time. Named here and nowhere else.
//!
//! Refuses everything but words of ours, routes as they are written in the router, names of configured objects and the
//! UID of an attested pod: no header, body, query, token or text of a caller is a field (test
//! `a_call_is_a_trace_of_its_steps_and_shows_no_secret`). The invariant: without a collector these cost one look at a
//! flag each, and logs never show them.

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use http::Method;
use tracing::field::Empty;
use tracing::{trace_span, Instrument as _, Span};

/// The target of these spans, and of no log line.
pub const TARGET: &str = "sidegate_spans";

/// The word of a refusal, for the trace of its call.
#[derive(Debug, Clone, Copy)]
pub struct Refused(pub &'static str);

/// Traces a call of a route that exists; whatever else is asked for is not worth a span.
pub async fn traced(request: Request, next: Next) -> Response {
    let Some(route) = request.extensions().get::<MatchedPath>() else {
        return next.run(request).await;
    };
    let method = method(request.method());
    let span = trace_span!(
        target: TARGET,
        "call",
        otel.name = format!("{method} {}", route.as_str()),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route.as_str(),
        http.response.status_code = Empty,
        k8s.pod.uid = Empty,
        sidegate.refused = Empty,
    );
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    if let Some(Refused(word)) = response.extensions().get() {
        span.record("sidegate.refused", word);
    }
    response
}

/// Whose call this is, once that is attested.
pub fn of_pod(uid: &str) {
    Span::current().record("k8s.pod.uid", uid);
}

/// A step of attestation, by its word.
pub fn step(step: &'static str) -> Span {
    trace_span!(target: TARGET, "attest", otel.name = format!("attest {step}"))
}

/// An exchange at a TokenIssuer, with all its tries.
pub fn exchange(issuer: &str) -> Span {
    trace_span!(target: TARGET, "exchange", sidegate.issuer = issuer)
}

/// One request to a provider. The host is a TokenIssuer's.
pub fn provider(host: &str) -> Span {
    trace_span!(
        target: TARGET,
        "provider",
        otel.kind = "client",
        otel.status_code = Empty,
        server.address = host,
        http.response.status_code = Empty,
        sidegate.class = Empty,
    )
}

/// Reading the Secret of a Target or of a TokenIssuer.
pub fn secret() -> Span {
    trace_span!(target: TARGET, "secret", otel.kind = "client")
}

/// A method as it may be shown: a caller can write any word.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        _ => "_OTHER",
    }
}
