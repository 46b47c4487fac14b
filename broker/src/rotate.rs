//! `sidegate-broker rotate --now`: asks the running broker, over its control socket, for new keys at once.
//!
//! Refuses without `--now`: planned rotation needs nobody. The exit code is 1 where a ring keeps its old keys.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, Context as _};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use sidegate_broker::control::{RingName, Rotate, RotatedNow};
use tokio::net::UnixStream;

/// The broker answers within this, or did not do it.
const DEADLINE: Duration = Duration::from_secs(30);
const MAX_ANSWER: usize = 1 << 20;

/// What is rotated.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Really: sessions are attested anew, and third parties may hold the old keys for a while.
    #[arg(long, required = true)]
    now: bool,
    /// State folder of the running broker.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// access, federation or record; may be repeated. All of them if absent.
    #[arg(long, value_name = "RING", value_parser = ring)]
    ring: Vec<RingName>,
}

fn ring(text: &str) -> Result<RingName, String> {
    let mut all = RingName::ALL.into_iter();
    all.find(|ring| ring.as_str() == text)
        .ok_or_else(|| "write access, federation or record".to_owned())
}

/// Asks, and prints what was done.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let rotate = Rotate {
        rings: arguments.ring.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async { tokio::time::timeout(DEADLINE, ask(&arguments.state.join("control.sock"), &rotate)).await };
    let done = runtime.block_on(asked).context("the broker did not answer")??;
    let mut out = std::io::stdout().lock();
    for ring in &done.rotated {
        writeln!(out, "{}: new key {}", ring.ring.as_str(), ring.kid)?;
        for kid in &ring.removed {
            writeln!(out, "{}: removed {kid}", ring.ring.as_str())?;
        }
    }
    for failed in &done.failed {
        writeln!(out, "NOT rotated: {failed}")?;
    }
    if let Some(unrecorded) = &done.unrecorded {
        writeln!(out, "in force, but not in the audit log yet: {unrecorded}")?;
    }
    writeln!(out, "{}", done.notice)?;
    Ok(if done.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn ask(socket: &Path, rotate: &Rotate) -> anyhow::Result<RotatedNow> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("no broker runs on {}; start it, then rotate", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/rotate")
        .header("host", "control")
        .body(Full::new(Bytes::from(serde_json::to_vec(rotate)?)))?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?;
        Ok::<_, anyhow::Error>((status, body.to_bytes()))
    };
    // The connection is driven here, beside the exchange, and ends with it.
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    let mut open = true;
    let (status, body) = loop {
        tokio::select! {
            done = exchange.as_mut() => break done?,
            ended = connection.as_mut(), if open => {
                ended?;
                open = false;
            }
        }
    };
    if status != StatusCode::OK {
        bail!("the broker answered {status}: {}", String::from_utf8_lossy(&body));
    }
    serde_json::from_slice(&body).context("the answer is not understood")
}
