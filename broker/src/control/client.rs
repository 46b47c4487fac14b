//! Talks to a running instance over its control socket: HTTP/1 with JSON on a Unix socket that only its owner can
//! open. Every call has a deadline; an instance that is not there is an error in the words of who calls.

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

/// What the instance said when it refused.
#[derive(Deserialize)]
struct Complaint {
    error: String,
}

/// How an instance is called.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Its state folder, which holds the socket.
    pub state: &'a Path,
    /// It answers within this, or did not.
    pub deadline: Duration,
    /// Bytes of an answer, at most.
    pub largest: usize,
    /// What is said where nothing listens.
    pub absent: &'a str,
}

impl Client<'_> {
    /// Calls it, with a body of JSON if there is one.
    ///
    /// # Errors
    /// Where nothing listens, nothing answers in time, or it refuses: then in its own words.
    pub fn call<A: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<A> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        runtime.block_on(async {
            timeout(self.deadline, self.exchange(method, path, body))
                .await
                .with_context(|| format!("the instance did not answer in {} s", self.deadline.as_secs()))?
        })
    }

    async fn exchange<A: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<A> {
        let socket = self.state.join("control.sock");
        let stream = UnixStream::connect(&socket)
            .await
            .with_context(|| self.absent.to_owned())?;
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
            let read = Limited::new(response.into_body(), self.largest).collect().await;
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
}
