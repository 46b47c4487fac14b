//! `POST /v1/records`: one long request per log, frames up, acknowledgements down as JSON lines.
//!
//! The answer's body drives the request's body, so no task is spawned and back-pressure is HTTP/2's own. The
//! first item announces the log; it must be of the attested pod, this instance or an earlier one.
//! Refused: silence beyond 30 s, items beyond a frame's length, whatever the collector refuses (then the stream
//! ends with a `refused` line). Invariant: one chunk is in work at a time.

use crate::task::blocking;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::Router;
use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream};
use futures_util::{stream as streams, FutureExt, StreamExt, TryStreamExt};
use sidegate_policies::record::frame::Hash;
use sidegate_policies::record::layout::LogPath;
use sidegate_policies::record::stream::{self, Item, MAX_ITEM};
use sidegate_policies::wire::RecordAck;

use super::collector::{LogState, Refusal};
use super::{lock, Caller, Records, RecordsError};

/// A sidecar that sends no heartbeat for so long is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// Bytes gathered before they are worked on, at most.
const BUFFER: usize = MAX_ITEM + (1 << 20);
/// With so many bytes nothing more is waited for: the rest has its turn, and its sync, after them.
const BATCH: usize = 512 << 10;

impl Records {
    /// The collector's route. The caller must be in the request's extensions.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new().route("/v1/records", post(upload)).with_state(self)
    }

    /// Takes one upload stream of an attested caller: chunks up, acknowledgement lines down.
    pub fn accept<E: Send + 'static>(
        self: Arc<Self>,
        caller: Caller,
        body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> impl Stream<Item = Bytes> + Send {
        let upload = Upload {
            records: self,
            caller,
            body: body.map_err(drop).fuse().boxed(),
            buffer: Vec::new(),
            log: None,
            over: false,
        };
        streams::unfold(upload, |mut upload| async move {
            let line = upload.next_lines().await?;
            Some((line, upload))
        })
    }
}

struct Upload {
    records: Arc<Records>,
    caller: Caller,
    body: BoxStream<'static, Result<Bytes, ()>>,
    buffer: Vec<u8>,
    log: Option<(String, Arc<Mutex<LogState>>)>,
    over: bool,
}

async fn upload(State(records): State<Arc<Records>>, caller: Option<Extension<Caller>>, body: Body) -> Response {
    let Some(Extension(caller)) = caller else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let lines = records
        .accept(caller, body.into_data_stream())
        .map(Ok::<Bytes, Infallible>);
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
        .into_response()
}

impl Upload {
    /// The next acknowledgements; `None` ends the answer.
    async fn next_lines(&mut self) -> Option<Bytes> {
        while !self.over {
            let chunk = tokio::time::timeout(SILENCE, self.body.next()).await.ok()??.ok()?;
            self.buffer.extend_from_slice(&chunk);
            self.gather()?;
            if self.buffer.len() > BUFFER {
                return None;
            }
            let acks = self.work().await?;
            if !acks.is_empty() {
                return Some(lines(&acks));
            }
        }
        None
    }

    /// Takes what has arrived meanwhile: an HTTP/2 frame carries 16 KiB, and every piece of work costs a sync of the disk.
    fn gather(&mut self) -> Option<()> {
        while self.buffer.len() < BATCH {
            match self.body.next().now_or_never() {
                Some(Some(chunk)) => self.buffer.extend_from_slice(&chunk.ok()?),
                // The end shows itself again when it is waited for.
                Some(None) | None => break,
            }
        }
        Some(())
    }

    async fn work(&mut self) -> Option<Vec<RecordAck>> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut acks = Vec::new();
        if self.log.is_none() {
            let Ok(announced) = announced(&buffer, &self.records, &self.caller) else {
                self.records.alarm(
                    &self.caller.pod_uid,
                    "a record stream did not announce a log of its pod",
                );
                return None;
            };
            let Some((path, boot, used)) = announced else {
                self.buffer = buffer;
                return Some(acks);
            };
            buffer.drain(..used);
            self.open(path, boot, &mut acks).await?;
        }
        if self.over {
            return Some(acks);
        }
        let (name, log) = self.log.as_ref().map(|(name, log)| (name.clone(), Arc::clone(log)))?;
        let records = Arc::clone(&self.records);
        let work = blocking(move || {
            let (used, acks, refusal) = lock(&log).take(&records, &buffer);
            buffer.drain(..used);
            let upto = lock(&log).next().wrapping_sub(1);
            (buffer, acks, refusal.map(|refusal| (refusal, upto)))
        });
        let (buffer, taken, refusal) = work.await?;
        self.buffer = buffer;
        acks.extend(taken);
        if let Some((refusal, upto)) = refusal {
            self.over = true;
            if let Refusal::Store(RecordsError::Behind(log)) = &refusal {
                // The sidecar is there, or comes again and finds it read anew: nothing is wrong with it.
                tracing::info!(log, "another replica went on with this log");
                return Some(acks);
            }
            let message = refusal.to_string();
            self.records.alarm(&name, &message);
            acks.push(RecordAck::Refused { upto, message });
        }
        Some(acks)
    }

    async fn open(&mut self, path: LogPath, boot: Hash, acks: &mut Vec<RecordAck>) -> Option<()> {
        let name = path.to_string();
        let records = Arc::clone(&self.records);
        let opened = blocking(move || records.take_up(&path)).await?;
        let told = |error: &RecordsError| match error {
            RecordsError::Behind(log) => tracing::info!(log, "another replica has this log's sidecar"),
            error => self.records.alarm(&name, &error.to_string()),
        };
        let log = opened.inspect_err(told).ok()?;
        let (held, next) = {
            let log = lock(&log);
            (log.chain().boot, log.next())
        };
        // What is held of another log is no acknowledgement of this one.
        if next > 0 && held != boot {
            let message = "the pod's log of this instance is another one".to_owned();
            self.records.alarm(&name, &message);
            self.over = true;
            let upto = u64::MAX;
            acks.push(RecordAck::Refused { upto, message });
        } else if let Some(upto) = next.checked_sub(1) {
            acks.push(RecordAck::Received { upto });
        }
        self.log = Some((name, log));
        Some(())
    }
}

/// The log a stream announces, once its first item is whole.
fn announced(buffer: &[u8], records: &Records, caller: &Caller) -> Result<Option<(LogPath, Hash, usize)>, ()> {
    let (instance, boot, used) = match stream::parse(buffer) {
        Ok(None) => return Ok(None),
        Ok(Some((Item::Announce { instance, log }, used))) => (instance, log, used),
        _ => return Err(()),
    };
    if instance > caller.instance {
        return Err(());
    }
    let path = LogPath::new(&records.options.cluster, &caller.namespace, &caller.pod_uid, instance);
    path.map(|path| Some((path, boot, used))).ok_or(())
}

fn lines(acks: &[RecordAck]) -> Bytes {
    let mut out = Vec::new();
    for ack in acks {
        if serde_json::to_writer(&mut out, ack).is_ok() {
            out.push(b'\n');
        }
    }
    out.into()
}
