//! Health and metrics on a port of their own: no verbs, no names of subjects, nothing that changes anything.
//!
//! Refuses every other path. The invariant: `/readyz` says yes only between the moment the faces accept connections
//! and the moment the broker is told to stop; an absent API server does not take it away, or one outage would cut every
//! stream.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::Router;
use http::header::CONTENT_TYPE;
use http::StatusCode;
use sidegate_cluster::listen;
use tokio::net::TcpListener;

use crate::front::{Front, Refusal};
use crate::server::serve;
use crate::task::Tasks;

/// Connections at once: a scraper, a kubelet, a person.
const CONNECTIONS: usize = 64;

/// Serves until the broker has stopped.
pub async fn run(listener: TcpListener, front: Arc<Front>, tasks: Tasks) {
    let router = router(front);
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    let stop = tasks.stopping();
    while let Some((stream, _)) = listen::next(&listener, &stop).await {
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let (router, inner) = (router.clone(), tasks.clone());
        tasks.spawn("health", async move {
            let _slot = slot;
            serve(stream, false, router, inner).await;
        });
    }
}

fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(|| async { Refusal::not_found() })
        .with_state(front)
}

async fn ready(State(front): State<Arc<Front>>) -> Response {
    if front.tasks.stopping().is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    "ok\n".into_response()
}

async fn metrics(State(front): State<Arc<Front>>) -> Response {
    match front.metrics.text(&front) {
        Ok((text, content_type)) => ([(CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => {
            tracing::error!(error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
