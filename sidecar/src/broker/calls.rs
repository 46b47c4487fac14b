//! The broker's answers to the rest of the sidecar: leases, approvals, record keys and the record stream.
//!
//! Each edge trait turns what the broker said into its own typed error; names in paths are checked, because they go
//! into a URL.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use http::Method;
use serde::de::DeserializeOwned;
use serde::Serialize;
use sidegate_policies::wire::{
    ApprovalAsk, ApprovalClaim, ApprovalOutcome, ApprovalState, Lease, LeaseRequest, RecordAck, RecordKeyRequest,
    RecordKeyResponse,
};
use tokio::sync::mpsc;

use super::{Broker, CallError, Lines};
use crate::approvals::{Approver, ApproverError};
use crate::credentials::{CredentialError, LeaseSource};
use crate::record::{RecordSink, RecordStream, SinkError};
use crate::secret::base64url;

/// The body of a call without one.
const NOTHING: Option<&()> = None;

impl Broker {
    async fn ask_for<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, CallError> {
        let bytes = self.json(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|_| CallError::Nonsense)
    }
}

/// A name that may stand in a path.
fn path_of(prefix: &str, name: &str, rest: &str) -> Result<String, CallError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' || byte == b'.';
    if name.is_empty() || name.starts_with('.') || name.len() > 128 || !name.bytes().all(legal) {
        return Err(CallError::Nonsense);
    }
    Ok(format!("{prefix}/{name}{rest}"))
}

fn credential_error(error: &CallError) -> CredentialError {
    match error {
        CallError::Status { code, .. } if code == "locked" => CredentialError::Locked,
        error if error.is_temporary() => CredentialError::Unavailable,
        _ => CredentialError::Refused,
    }
}

fn approver_error(error: &CallError) -> ApproverError {
    match error {
        // The broker's cap on open requests: a refusal, not an outage. A 429 for calling too often is temporary.
        CallError::Status { status: 429, code } if code == "limit" => ApproverError::TooMany,
        CallError::Status { code, .. } if code == "locked" => ApproverError::Locked,
        error if error.is_temporary() => ApproverError::Unavailable,
        _ => ApproverError::Refused,
    }
}

impl LeaseSource for Broker {
    fn lease(&self, request: LeaseRequest) -> BoxFuture<'static, Result<Lease, CredentialError>> {
        let broker = self.clone();
        async move {
            let bytes = broker.json_apart(Method::POST, "/v1/leases", Some(&request)).await;
            let lease = bytes.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|_| CallError::Nonsense));
            lease.map_err(|error| {
                tracing::warn!(%error, target = request.target, "the broker leased no credential");
                credential_error(&error)
            })
        }
        .boxed()
    }

    fn give_back(&self, id: String) -> BoxFuture<'static, ()> {
        let broker = self.clone();
        async move {
            if let Ok(path) = path_of("/v1/leases", &id, "") {
                let _ = broker.json(Method::DELETE, &path, NOTHING).await;
            }
        }
        .boxed()
    }
}

impl Broker {
    fn approval<T: DeserializeOwned + Send + 'static>(
        &self,
        method: Method,
        path: Result<String, CallError>,
        body: Option<impl Serialize + Send + Sync + 'static>,
    ) -> BoxFuture<'static, Result<T, ApproverError>> {
        let broker = self.clone();
        async move {
            let answer = match path {
                Ok(path) => broker.ask_for(method, &path, body.as_ref()).await,
                Err(error) => Err(error),
            };
            answer.map_err(|error| approver_error(&error))
        }
        .boxed()
    }
}

impl Approver for Broker {
    fn ask(&self, ask: ApprovalAsk) -> BoxFuture<'static, Result<ApprovalState, ApproverError>> {
        self.approval(Method::POST, Ok("/v1/approvals".to_owned()), Some(ask))
    }

    fn wait(
        &self,
        name: String,
        known: ApprovalState,
        seconds: u64,
    ) -> BoxFuture<'static, Result<ApprovalState, ApproverError>> {
        let query = format!("?wait={seconds}&state={:?}", known.state);
        self.approval(Method::GET, path_of("/v1/approvals", &name, &query), None::<()>)
    }

    fn claim(&self, name: String, claim: ApprovalClaim) -> BoxFuture<'static, Result<ApprovalState, ApproverError>> {
        self.approval(Method::POST, path_of("/v1/approvals", &name, "/claim"), Some(claim))
    }

    fn outcome(&self, name: String, outcome: ApprovalOutcome) -> BoxFuture<'static, Result<(), ApproverError>> {
        let told =
            self.approval::<ApprovalState>(Method::POST, path_of("/v1/approvals", &name, "/outcome"), Some(outcome));
        async move { told.await.map(drop) }.boxed()
    }

    fn withdraw(&self, name: String) -> BoxFuture<'static, Result<(), ApproverError>> {
        let told =
            self.approval::<ApprovalState>(Method::POST, path_of("/v1/approvals", &name, "/withdraw"), None::<()>);
        async move { told.await.map(drop) }.boxed()
    }
}

fn sink_error(error: CallError) -> SinkError {
    SinkError(error.to_string())
}

impl RecordSink for Broker {
    fn certify(&self, public_key: [u8; 32]) -> BoxFuture<'_, Result<String, SinkError>> {
        async move {
            let request = RecordKeyRequest {
                public_key: base64url(&public_key),
            };
            let answer: RecordKeyResponse = self
                .ask_for(Method::POST, "/v1/record-keys", Some(&request))
                .await
                .map_err(sink_error)?;
            Ok(answer.certificate)
        }
        .boxed()
    }

    fn connect(&self) -> BoxFuture<'_, Result<RecordStream, SinkError>> {
        async move {
            let (up, answer) = self
                .stream("/v1/records", "application/octet-stream", None)
                .await
                .map_err(sink_error)?;
            let (acks, down) = mpsc::channel::<RecordAck>(256);
            let mut lines = Lines::new(answer.into_body());
            // Dropping the sender tells the recorder that the stream is lost.
            self.tasks().spawn("record acks", async move {
                while let Ok(Some(ack)) = lines.next::<RecordAck>().await {
                    if acks.send(ack).await.is_err() {
                        return;
                    }
                }
            });
            Ok(RecordStream { up, down })
        }
        .boxed()
    }
}

impl Broker {
    /// Opens the bundle stream; `hello` goes up at once.
    pub async fn bundle_stream(&self, hello: Bytes) -> Result<(mpsc::Sender<Bytes>, Lines), CallError> {
        let (up, answer) = self.stream("/v1/stream", "application/x-ndjson", Some(hello)).await?;
        Ok((up, Lines::new(answer.into_body())))
    }
}
