//! Talks to a running instance over its control socket: HTTP/1 with JSON on a Unix socket that only its owner can
//! open. Every call has a deadline; an instance that is not there is an error that says how to start one.

use std::path::Path;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(15);
const LARGEST_ANSWER: usize = 64 << 20;

/// What the instance said when it refused.
#[derive(Deserialize)]
struct Complaint {
    error: String,
}

/// Calls the instance whose state is in this folder.
pub fn call<A: DeserializeOwned>(state: &Path, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<A> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    runtime.block_on(async {
        timeout(DEADLINE, exchange(state, method, path, body))
            .await
            .context("the instance did not answer in 15 s")?
    })
}

/// A GET without a body.
pub fn get<A: DeserializeOwned>(state: &Path, path: &str) -> Result<A> {
    call(state, Method::GET, path, None::<&()>)
}

async fn exchange<A: DeserializeOwned>(state: &Path, method: Method, path: &str, body: Vec<u8>) -> Result<A> {
    let socket = state.join("control.sock");
    let stream = UnixStream::connect(&socket).await.with_context(|| {
        format!(
            "no Sidegate is running with state {} (start one with `sidegate up`, or name it with --state)",
            state.display()
        )
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "control.sidegate")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let read = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        let bytes = read
            .map_err(|error| anyhow::anyhow!("reading the instance's answer: {error}"))?
            .to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&bytes).context("the instance answered something unexpected");
        }
        match serde_json::from_slice::<Complaint>(&bytes) {
            Ok(complaint) => bail!("{}", complaint.error),
            Err(_) => bail!("the instance answered {status}"),
        }
    };
    // The connection future drives the exchange; it ends first only if the instance goes away.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => {
            ended?;
            answer.await
        }
    }
}
