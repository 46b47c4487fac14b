//! What this sidecar counts, for Prometheus: `GET /metrics` on the pod's address, in plain HTTP.
//!
//! The agent shares that address, so nothing here may help it: no verbs, no configuration, no operations, no names but
//! those of the Targets it is given anyway. Refuses every other path and method, more than a few connections at once and
//! slow ones. Invariant: labels are words of ours or names of configured objects, never text of an agent.

use std::convert::Infallible;
use std::fmt::{Display, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sidegate_policies::wire::Enforced;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::broker::Broker;
use crate::credentials::Credentials;
use crate::metrics::Seconds;
use crate::task::Tasks;

/// Scrapers at once.
const CONNECTIONS: usize = 4;
/// A scrape takes no longer.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_HEADERS: usize = 8 * 1024;
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is told.
pub struct Scraped {
    /// What is in force.
    pub authority: Arc<Authority>,
    /// Leases.
    pub credentials: Arc<Credentials>,
    /// The broker's client.
    pub broker: Broker,
}

/// Binds the addresses. What is taken stays so: an agent that has the port when its sidecar starts again takes the
/// numbers away, which a scraper sees, and not the gate (test `a_taken_port_costs_the_numbers_alone`).
pub async fn bind(addresses: &[SocketAddr]) -> Vec<TcpListener> {
    let mut listeners = Vec::new();
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            Err(error) => tracing::error!(%address, %error, "no metrics are served there"),
        }
    }
    listeners
}

/// Serves until told to stop.
pub async fn serve(listener: TcpListener, scraped: Arc<Scraped>, tasks: Tasks, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let scraped = scraped.clone();
        tasks.spawn("scrape", async move {
            let _slot = slot;
            let _ = tokio::time::timeout(PATIENCE, answer(stream, scraped)).await;
        });
    }
}

async fn answer(stream: TcpStream, scraped: Arc<Scraped>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = respond(&request, &scraped);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a scrape ended early");
    }
}

fn respond(request: &Request<Incoming>, scraped: &Scraped) -> Response<Full<Bytes>> {
    let asked = request.method() == Method::GET && request.uri().path() == "/metrics";
    let (status, text) = if asked {
        (StatusCode::OK, scraped.text())
    } else {
        (StatusCode::NOT_FOUND, String::new())
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(FORMAT);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

impl Scraped {
    /// Everything in Prometheus' text format, as it is now.
    pub fn text(&self) -> String {
        let mut page = Page::default();
        self.counters(&mut page);
        self.leases(&mut page);
        self.ages(&mut page);
        self.egress(&mut page);
        page.0
    }

    fn counters(&self, page: &mut Page) {
        let metrics = &self.authority.metrics;
        for (name, kind, help, counter) in [
            ("sessions", "gauge", "Open sessions.", &metrics.sessions),
            (
                "operations_held",
                "gauge",
                "Operations that wait for people.",
                &metrics.held,
            ),
            (
                "operations_allowed_total",
                "counter",
                "Operations allowed.",
                &metrics.allowed,
            ),
            (
                "operations_denied_total",
                "counter",
                "Operations refused.",
                &metrics.denied,
            ),
            (
                "connections_foreign_total",
                "counter",
                "Connections that were not the agent's.",
                &metrics.foreign,
            ),
            (
                "connections_shed_total",
                "counter",
                "Connections closed because a budget was used up.",
                &metrics.shed,
            ),
            (
                "sessions_cut_total",
                "counter",
                "Sessions ended from outside.",
                &metrics.cut,
            ),
            ("bundle_nacks_total", "counter", "Bundles not taken.", &metrics.nacks),
            (
                "kept_refused_total",
                "counter",
                "Files with a bundle of an earlier start that were not taken.",
                &metrics.kept_refused,
            ),
            (
                "streams_lost_total",
                "counter",
                "Streams of the broker that fell silent or broke.",
                &metrics.streams_lost,
            ),
            (
                "heartbeats_skewed_total",
                "counter",
                "Heartbeats whose clock was more than a minute from ours.",
                &metrics.skewed,
            ),
        ] {
            page.one(name, kind, help, counter.get());
        }
        page.one(
            "panics_total",
            "counter",
            "Panics caught: must stay 0.",
            self.authority.tasks.panics(),
        );
        page.head(
            "sessions_closed_total",
            "counter",
            "Sessions that ended, by what ended them.",
        );
        for (reason, count) in self.authority.sessions.closed() {
            page.line("sessions_closed_total", &[("reason", reason)], count);
        }
    }

    fn leases(&self, page: &mut Page) {
        let name = "lease_seconds_to_expiry";
        page.head(
            name,
            "gauge",
            "Until the lease of a Target expires; none held: no line.",
        );
        for (target, left) in self.credentials.left() {
            page.line(name, &[("target", &target.to_string())], left.as_secs_f64());
        }
        let name = "lease_fetch_seconds";
        page.head(name, "histogram", "How long fetching a lease took.");
        for (result, seconds) in self.credentials.meter().fetches() {
            page.histogram(name, ("result", result), seconds);
        }
        let waiters = self.credentials.meter().waiters.get();
        page.one("lease_waiters", "gauge", "Sessions that wait for a lease.", waiters);
    }

    fn egress(&self, page: &mut Page) {
        let name = "egress_enforced";
        page.head(
            name,
            "gauge",
            "1: what was measured last of the fence around the pod; without one, no line.",
        );
        let found = self.authority.canary.told();
        for state in found.iter().flat_map(|_| Enforced::ALL) {
            let is = found.is_some_and(|egress| egress.state == state);
            page.line(name, &[("state", state.label())], u8::from(is));
        }
    }

    fn ages(&self, page: &mut Page) {
        let authority = &self.authority;
        let silent = authority.silent();
        page.maybe("stream_silence_seconds", "How long the broker has been silent.", silent);
        let bundle = authority
            .metrics
            .bundle_since
            .age()
            .filter(|_| authority.in_force().is_some());
        page.maybe(
            "bundle_age_seconds",
            "How long the present bundle has been in force.",
            bundle,
        );
        let revision = authority.deny.revision();
        page.one("deny_revision", "gauge", "Revision of the deny set in force.", revision);
        let token = self.broker.service_account_token_age();
        page.maybe("sat_age_seconds", "Age of the service-account token used last.", token);
    }
}

/// A page in Prometheus' text format.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP sidegate_{name} {help}\n# TYPE sidegate_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.0, "sidegate_{name}");
        for (at, (label, text)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, &[], value);
    }

    /// A gauge of seconds; what there is nothing of has no line.
    fn maybe(&mut self, name: &str, help: &str, value: Option<Duration>) {
        self.head(name, "gauge", help);
        if let Some(value) = value {
            self.line(name, &[], value.as_secs_f64());
        }
    }

    fn histogram(&mut self, name: &str, label: (&str, &str), seconds: &Seconds) {
        let (buckets, count, sum) = seconds.read();
        for (le, below) in buckets {
            self.line(&format!("{name}_bucket"), &[label, ("le", &le.to_string())], below);
        }
        self.line(&format!("{name}_bucket"), &[label, ("le", "+Inf")], count);
        self.line(&format!("{name}_sum"), &[label], sum.as_secs_f64());
        self.line(&format!("{name}_count"), &[label], count);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_in_the_text_format_and_a_label_cannot_leave_its_quotes() {
        let (mut page, seconds) = (Page::default(), Seconds::default());
        seconds.observe(Duration::from_millis(30));
        seconds.observe(Duration::from_secs(60));
        page.one("sessions", "gauge", "Open sessions.", 3);
        page.line("x", &[("target", "a\"} 1\nb\\")], 1);
        page.head("fetch", "histogram", "How long.");
        page.histogram("fetch", ("result", "granted"), &seconds);
        let text = page.0;
        for line in [
            "# TYPE sidegate_sessions gauge",
            "sidegate_sessions 3",
            "sidegate_x{target=\"a\\\"} 1\\nb\\\\\"} 1",
            "sidegate_fetch_bucket{result=\"granted\",le=\"0.025\"} 0",
            "sidegate_fetch_bucket{result=\"granted\",le=\"0.1\"} 1",
            "sidegate_fetch_bucket{result=\"granted\",le=\"+Inf\"} 2",
            "sidegate_fetch_sum{result=\"granted\"} 60.03",
            "sidegate_fetch_count{result=\"granted\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[tokio::test]
    async fn a_taken_port_costs_the_numbers_alone() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addresses = [taken.local_addr().unwrap(), ([127, 0, 0, 1], 0).into()];
        let held = bind(&addresses).await;
        assert_eq!(held.len(), 1);
        assert_ne!(held[0].local_addr().unwrap(), addresses[0]);
    }
}
