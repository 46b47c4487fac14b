//! The broker, as this sidecar reaches it: over its network API, verified by its pinned authority, in local mode too.
//!
//! Owns the one HTTP/2 connection, one more for as long as a credential is on its way, the session token and the calls.
//! Every call carries a proof made with this process's key. What the broker says no to is a typed error; nothing falls
//! back to anything broader.

mod calls;
mod connection;
mod lines;
mod token;

pub use connection::{CallError, Url, UrlError};
pub use lines::Lines;
pub use token::SessionToken;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::Response;
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch, Notify};
use tokio_util::sync::CancellationToken;

use crate::dial::names::Names;
use crate::identity::Identity;
use crate::task::Tasks;
use connection::Connection;

/// A request body.
pub type Body = BoxBody<Bytes, std::convert::Infallible>;

/// Answers that are no stream are never longer.
const ANSWER_LIMIT: usize = 1 << 20;
/// How long closing waits for calls that are under way.
const CLOSE: Duration = Duration::from_secs(2);
/// How long a caller waits for a session token.
const TOKEN_WAIT: Duration = Duration::from_secs(5);

/// The broker client. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    shared: Arc<Shared>,
}

struct Shared {
    connection: Connection,
    /// For answers that hold a credential.
    apart: Connection,
    identity: Identity,
    token: watch::Sender<Option<Arc<SessionToken>>>,
    renew: Notify,
}

impl Broker {
    /// A client that has not connected yet. It is the only one to use `tasks`.
    pub fn new(url: Url, tls: Arc<ClientConfig>, names: Names, identity: Identity, tasks: Tasks) -> Self {
        let names = Arc::new(names);
        Broker {
            shared: Arc::new(Shared {
                apart: Connection::new(url.clone(), tls.clone(), Arc::clone(&names), tasks.clone()),
                connection: Connection::new(url, tls, names, tasks),
                identity,
                token: watch::Sender::new(None),
                renew: Notify::new(),
            }),
        }
    }

    /// Keeps the session token fresh until `stop`.
    pub async fn keep_token(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = token::keep(&self) => {}
        }
    }

    /// Lets the connection go once its calls are done, and waits for that a moment. Returns the tasks left behind.
    pub async fn close(&self) -> usize {
        self.shared.connection.close();
        self.shared.apart.close();
        let _ = tokio::time::timeout(CLOSE, self.tasks().wait()).await;
        self.tasks().running()
    }

    /// The next call dials anew; those under way stay where they are.
    pub fn part(&self) {
        self.shared.connection.close();
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        self.shared.connection.tasks()
    }

    /// Age of the service-account token used last; nothing before the first.
    pub fn service_account_token_age(&self) -> Option<Duration> {
        self.shared.identity.token_age()
    }

    /// Session tokens as they come.
    pub fn tokens(&self) -> watch::Receiver<Option<Arc<SessionToken>>> {
        self.shared.token.subscribe()
    }

    /// A session token that is still good; waits 5 s at most.
    pub async fn token(&self) -> Result<Arc<SessionToken>, CallError> {
        let mut tokens = self.tokens();
        let good = tokens.wait_for(|token| token.as_ref().is_some_and(|token| token.usable()));
        let token = match tokio::time::timeout(TOKEN_WAIT, good).await {
            Ok(Ok(token)) => token.clone(),
            _ => None,
        };
        token.ok_or_else(|| {
            self.shared.renew.notify_one();
            CallError::NoToken
        })
    }

    /// One JSON call; the answer is read whole.
    pub(crate) async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl serde::Serialize>,
    ) -> Result<Bytes, CallError> {
        self.json_over(&self.shared.connection, method, path, body).await
    }

    /// The same for an answer that holds a credential, on a connection of its own. Whoever reads a connection keeps what
    /// was read in its buffers until something else comes; these go with their connection, and the allocator wipes them
    /// (test `nothing_of_a_password_is_left_once_its_lease_is_gone`).
    pub(crate) async fn json_apart(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl serde::Serialize>,
    ) -> Result<Bytes, CallError> {
        let answer = self.json_over(&self.shared.apart, method, path, body).await;
        self.shared.apart.close();
        answer
    }

    async fn json_over(
        &self,
        over: &Connection,
        method: Method,
        path: &str,
        body: Option<&impl serde::Serialize>,
    ) -> Result<Bytes, CallError> {
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(|_| CallError::Nonsense)?,
            None => Vec::new(),
        };
        let bytes = Bytes::from(bytes);
        let answer = self
            .call(over, method, path, "application/json", || {
                Full::new(bytes.clone()).boxed()
            })
            .await?;
        whole(answer).await
    }

    /// Opens a stream both ways: lines or frames up, the answer's body down. `first` goes up at once.
    pub(crate) async fn stream(
        &self,
        path: &str,
        content_type: &'static str,
        first: Option<Bytes>,
    ) -> Result<(mpsc::Sender<Bytes>, Response<Incoming>), CallError> {
        let up = std::sync::Mutex::new(None);
        let answer = self
            .call(&self.shared.connection, Method::POST, path, content_type, || {
                let (sender, receiver) = mpsc::channel::<Bytes>(64);
                if let Some(first) = &first {
                    let _ = sender.try_send(first.clone());
                }
                // A retry makes a new body and so a new sender.
                *up.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(sender);
                connection::channel_body(receiver)
            })
            .await?;
        let up = up.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok((up.ok_or(CallError::Nonsense)?, answer))
    }

    /// A call with the session token. A token the broker no longer takes is renewed for the next call.
    async fn call(
        &self,
        over: &Connection,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: impl Fn() -> Body + Send + Sync,
    ) -> Result<Response<Incoming>, CallError> {
        let token = self.token().await?;
        let answer = over
            .call(
                &self.shared.identity,
                method,
                path,
                Some(token.expose()),
                content_type,
                body,
            )
            .await;
        if matches!(answer, Err(CallError::Status { status: 401, .. })) {
            self.shared.renew.notify_one();
        }
        answer
    }
}

/// Reads an answer whole, within its limit and 10 s.
async fn whole(answer: Response<Incoming>) -> Result<Bytes, CallError> {
    let limited = http_body_util::Limited::new(answer.into_body(), ANSWER_LIMIT);
    let read = tokio::time::timeout(Duration::from_secs(10), limited.collect());
    match read.await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(CallError::Unreachable(error.to_string())),
        Err(_) => Err(CallError::Unreachable("the answer did not end in time".to_owned())),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
