//! One HTTP/1.1 connection of a server, kept for as long as its client may want it.
//!
//! Refuses a client that says nothing: its first request has to come soon. The invariant: of a connection that rests, the
//! client lets go first. Ended by the server just as a request with a body is on its way, that request is lost, and a
//! client sends it again only where nothing of it had left: a pod would be refused because of nothing
//! (`a_connection_that_rested_takes_the_next_request`). A server that stops tells a client with the next answer, for the
//! same reason (`a_server_that_stops_answers_once_more`).

use std::error::Error;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{service_fn, Service};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Longer than clients keep a connection that rests: an API server, as all that is built of client-go, 90 s.
pub const KEPT: Duration = Duration::from_secs(120);
/// Of each connection, for reading heads.
const BUFFER: usize = 64 * 1024;
/// A client that asks again and again does so within this time, and hears in the answer that it was the last one.
const ONCE_MORE: Duration = Duration::from_millis(500);
/// What is under way has so long once that is over.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long a client may say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// Before its first request.
    pub first: Duration,
    /// Behind an answer, until the whole head of the next request.
    pub next: Duration,
}

/// What ends a connection beside its client.
#[derive(Debug, Clone)]
pub struct Ends {
    /// The server stops: the next answer is the last.
    pub stop: CancellationToken,
    /// Its place is needed: it ends now, or behind the answer that is under way.
    pub place: CancellationToken,
}

impl Ends {
    /// With a place that nobody needs.
    pub fn by(stop: CancellationToken) -> Self {
        Ends {
            stop,
            place: CancellationToken::new(),
        }
    }
}

/// Speaks HTTP on one connection until it ends.
pub async fn converse<S, H, B>(stream: S, service: H, silence: Silence, ends: Ends)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Service<Request<Incoming>, Response = Response<B>>,
    H::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let asked = AtomicBool::new(false);
    let heard = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        let (answer, stop) = (service.call(request), &ends.stop);
        async move {
            let mut answer = answer.await?;
            if stop.is_cancelled() {
                answer
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, H::Error>(answer)
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(silence.next)
        .max_buf_size(BUFFER);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), heard));
    let silent = async {
        tokio::time::sleep(silence.first).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        _ = connection.as_mut() => return,
        () = silent => return,
        () = ends.place.cancelled() => {}
        () = ends.stop.cancelled() => {
            if tokio::time::timeout(ONCE_MORE, connection.as_mut()).await.is_ok() {
                return;
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(FAREWELL, connection).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::convert::Infallible;
    use std::future::Future;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    use super::*;

    const SILENCE: Silence = Silence {
        first: Duration::from_secs(5),
        next: KEPT,
    };

    /// A connection, and what serves it until it ends.
    fn served(silence: Silence, stop: &CancellationToken) -> (DuplexStream, impl Future<Output = ()>) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let service = service_fn(|_| async { Ok::<_, Infallible>(Response::new(String::from("yes"))) });
        (theirs, converse(ours, service, silence, Ends::by(stop.clone())))
    }

    /// Asks with a body, as a review has one, and answers what it heard.
    async fn ask(client: &mut DuplexStream) -> String {
        let request = b"POST /mutate HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}";
        client.write_all(request).await.expect("the connection is open");
        let mut answer = Vec::new();
        while !answer.ends_with(b"yes") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0, "ended unanswered");
        }
        String::from_utf8(answer).unwrap()
    }

    /// How long the connection lasts if nothing more is said.
    async fn lasts(client: &mut DuplexStream) -> Duration {
        let began = Instant::now();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_rested_takes_the_next_request() {
        let (mut client, served) = served(SILENCE, &CancellationToken::new());
        let asked = async move {
            for rest in [0, 6, 60, 91] {
                tokio::time::sleep(Duration::from_secs(rest)).await;
                ask(&mut client).await;
            }
        };
        tokio::join!(served, asked);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_let_go() {
        for (said, lasted) in [("", 5), ("POST /mutate HTTP/1.1\r\nhost:", 5)] {
            let (mut client, served) = served(SILENCE, &CancellationToken::new());
            let silent = async move {
                client.write_all(said.as_bytes()).await.unwrap();
                assert_eq!(lasts(&mut client).await.as_secs(), lasted, "{said}");
            };
            tokio::join!(served, silent);
        }
        let (mut client, served) = served(SILENCE, &CancellationToken::new());
        let kept = async move {
            ask(&mut client).await;
            client.write_all(b"POST").await.unwrap();
            assert_eq!(lasts(&mut client).await.as_secs(), KEPT.as_secs());
        };
        tokio::join!(served, kept);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stops_answers_once_more() {
        let stop = CancellationToken::new();
        let ((mut busy, one), (mut resting, other)) = (served(SILENCE, &stop), served(SILENCE, &stop));
        let asked = async move {
            assert!(!ask(&mut busy).await.contains("close"));
            ask(&mut resting).await;
            stop.cancel();
            tokio::time::sleep(Duration::from_millis(250)).await;
            assert!(ask(&mut busy).await.contains("connection: close"));
            assert_eq!(lasts(&mut busy).await, Duration::ZERO);
            assert!(lasts(&mut resting).await <= Duration::from_millis(250));
        };
        tokio::join!(one, other, asked);
    }
}
