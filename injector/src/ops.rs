//! Health and numbers on a port of their own, in plain HTTP: `/livez`, `/readyz`, `/metrics`.
//!
//! Refuses every other path. Invariants: it says nothing of pods or their authors; `/readyz` says yes only while the API
//! server would be answered.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{header, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use sidegate_cluster::http1::{converse, Ends, Silence};
use sidegate_cluster::listen;
use tokio::net::TcpListener;
use tokio::sync::{watch, Semaphore};

use crate::kubernetes::{Cluster, Configurations, Counted, Leader};
use crate::metrics::{Metrics, Now};
use crate::probe::{now, Readiness};
use crate::served::Served;
use crate::server::{said, HEADERS};
use crate::task::Tasks;

/// Connections at once: a kubelet, a scraper, a person.
const CONNECTIONS: usize = 64;

/// Where what is told comes from; what is not there yet is told as nothing.
pub struct Ops {
    /// Whether the API server would be answered.
    pub ready: watch::Receiver<Readiness>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The certificate.
    pub served: Arc<Served>,
    /// What checks it.
    pub configurations: OnceLock<Arc<Configurations>>,
    /// Whether this replica leads, where there is such a thing.
    pub leader: OnceLock<Arc<Leader>>,
    /// What is known of the cluster.
    pub cluster: OnceLock<Arc<Cluster>>,
    /// Pods without a valid sidecar, as last counted.
    pub unprotected: watch::Receiver<Option<Counted>>,
}

impl Ops {
    fn answered(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/livez") => said(StatusCode::OK, "ok\n"),
            (&Method::GET, "/readyz") => match &self.ready.borrow().verdict {
                Ok(()) => said(StatusCode::OK, "ok\n"),
                Err(why) => said(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            (&Method::GET, "/metrics") => match self.metrics.text(&self.now()) {
                Ok((text, kind)) => {
                    let mut response = said(StatusCode::OK, text);
                    if let Ok(kind) = HeaderValue::from_str(&kind) {
                        response.headers_mut().insert(header::CONTENT_TYPE, kind);
                    }
                    response
                }
                Err(error) => {
                    tracing::error!(error, "metrics cannot be written");
                    said(StatusCode::INTERNAL_SERVER_ERROR, "")
                }
            },
            _ => said(StatusCode::NOT_FOUND, "/livez, /readyz or /metrics\n"),
        }
    }

    fn now(&self) -> Now {
        Now {
            not_after: self.served.not_after(),
            mismatch: self.mismatch(),
            probed: self.ready.borrow().good,
            leads: self.leader.get().is_some_and(|leader| leader.leads()),
            ages: self.cluster.get().map(|cluster| cluster.ages()).unwrap_or_default(),
            unprotected: self.unprotected.borrow().clone(),
        }
    }

    fn mismatch(&self) -> bool {
        let (Some(all), Some(held)) = (self.configurations.get(), self.served.held()) else {
            return false;
        };
        !all.live().takes(&held.cert, now())
    }
}

/// Serves until the injector stops.
pub async fn serve(listener: TcpListener, ops: Arc<Ops>, tasks: Tasks) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let stop = tasks.stopping();
    while let Some((stream, _)) = listen::next(&listener, &stop).await {
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let (ops, stop) = (Arc::clone(&ops), stop.clone());
        tasks.spawn(async move {
            let _slot = slot;
            let service = service_fn(|request: Request<Incoming>| {
                let answer = ops.answered(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            // Who looks asks with GET, and again where it must; few have room here, so that nobody rests.
            let silence = Silence {
                first: HEADERS,
                next: HEADERS,
            };
            converse(stream, service, silence, Ends::by(stop)).await;
        });
    }
}
