//! One HTTP/2 request for as long as it lives: JSON lines both ways, reopened with a jittered pause.
//!
//! Compiling runs beside the stream, so deny frames never wait for it; of several bundles the latest is compiled.
//! Refuses a broker of another protocol version, and one that calls this process somebody else.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sidegate_policies::engine::Subject;
use sidegate_policies::wire::{NackClass, SidecarStatus, ToBroker, ToSidecar};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout, Instant};
use tokio_util::sync::CancellationToken;

use super::apply::{BundleRefused, Closed, Enforcer};
use crate::authority::InForce;
use crate::broker::{Broker, CallError, Lines, SessionToken};
use crate::credentials::random_unit;
use crate::task::TaskLost;

/// A stream that says nothing for this long is opened anew.
const SILENT: Duration = Duration::from_secs(5);
/// Status goes up at least this often, changed or not.
const STATUS_EVERY: Duration = Duration::from_secs(30);
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
const WRITE: Duration = Duration::from_secs(5);
/// The protocol this build speaks.
const PROTOCOL: u32 = 1;

/// What happens when the broker says who we are: the first time, the log starts.
pub type Attested = Arc<dyn Fn(&Subject, u64) -> Result<(), String> + Send + Sync>;

/// What the stream needs.
pub struct Source {
    /// The broker.
    pub broker: Broker,
    /// Puts things into force.
    pub enforcer: Arc<Enforcer>,
    /// Our own state, for the broker.
    pub status: watch::Receiver<SidecarStatus>,
    /// Told who we are.
    pub attested: Attested,
}

type Compiling = Pin<Box<dyn Future<Output = (String, Result<Result<InForce, BundleRefused>, TaskLost>)> + Send>>;

/// A bundle line that waits for the compiler.
struct Waiting {
    version: String,
    body: String,
    revision: u64,
}

struct Open<'a> {
    source: &'a Source,
    up: mpsc::Sender<Bytes>,
    /// Lines of tasks that wait for sessions to end.
    acks: (mpsc::Sender<ToBroker>, mpsc::Receiver<ToBroker>),
    compiling: Option<Compiling>,
    waiting: Option<Waiting>,
}

/// Keeps the stream open until `stop`.
pub async fn run(source: Source, stop: CancellationToken) {
    let mut failures = 0u32;
    loop {
        let began = Instant::now();
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            ended = once(&source) => ended,
        };
        match ended {
            Ok(()) => tracing::info!("the broker ended the stream"),
            Err(error) => tracing::warn!(%error, "the stream to the broker was lost"),
        }
        failures = if began.elapsed() > Duration::from_secs(10) {
            0
        } else {
            failures.saturating_add(1)
        };
        let (first, longest) = PAUSES;
        let ceiling = first.saturating_mul(2u32.saturating_pow(failures.min(16))).min(longest);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(ceiling.mul_f64(random_unit())) => {}
        }
    }
}

async fn once(source: &Source) -> Result<(), CallError> {
    let authority = &source.enforcer.authority;
    let hello = ToBroker::Hello {
        protocol: PROTOCOL,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        bundle: authority.in_force().map(|bundle| bundle.version.to_string()),
        deny_revision: authority.deny.revision(),
    };
    let mut tokens = source.broker.tokens();
    let (up, lines) = source.broker.bundle_stream(line(&hello)?).await?;
    tokens.mark_unchanged();
    let open = Open {
        source,
        up,
        acks: mpsc::channel(64),
        compiling: None,
        waiting: None,
    };
    open.serve(lines, tokens).await
}

impl Open<'_> {
    async fn serve(
        mut self,
        mut lines: Lines,
        mut tokens: watch::Receiver<Option<Arc<SessionToken>>>,
    ) -> Result<(), CallError> {
        let mut status = self.source.status.clone();
        let mut told = Instant::now();
        self.tell_status(&mut status).await?;
        loop {
            tokio::select! {
                biased;
                heard = timeout(SILENT, lines.next::<ToSidecar>()) => match heard {
                    Ok(Ok(Some(ToSidecar::Drain))) | Ok(Ok(None)) => return Ok(()),
                    Ok(Ok(Some(heard))) => self.heard(heard).await?,
                    Ok(Err(error)) => return Err(error),
                    Err(_) => return Err(CallError::Unreachable("the stream is silent".to_owned())),
                },
                Some(ack) = self.acks.1.recv() => self.tell(&ack).await?,
                (version, compiled) = compiled(&mut self.compiling) => self.compiled(version, compiled).await?,
                Ok(()) = tokens.changed() => {
                    let token = tokens.borrow_and_update().as_ref().map(|token| token.expose().to_owned());
                    if let Some(token) = token {
                        self.tell(&ToBroker::Reauth { token }).await?;
                    }
                }
                Ok(()) = status.changed() => {
                    told = Instant::now();
                    self.tell_status(&mut status).await?;
                }
                () = sleep(STATUS_EVERY.saturating_sub(told.elapsed())) => {
                    told = Instant::now();
                    self.tell_status(&mut status).await?;
                }
            }
        }
    }

    async fn heard(&mut self, heard: ToSidecar) -> Result<(), CallError> {
        let authority = self.source.enforcer.authority.clone();
        match heard {
            ToSidecar::Hello {
                protocol,
                subject,
                instance,
                ..
            } => {
                if protocol != PROTOCOL {
                    return Err(CallError::Nonsense);
                }
                (self.source.attested)(&subject, instance).map_err(|error| {
                    tracing::error!(error, "the record cannot be started; nothing is served");
                    CallError::Nonsense
                })?;
                authority.attested(subject);
                authority.heard();
            }
            ToSidecar::Heartbeat { .. } => authority.heard(),
            ToSidecar::Deny(set) => {
                authority.heard();
                let revision = set.revision;
                if let Some(gone) = self.source.enforcer.deny(set) {
                    self.ack_later(gone, None, Some(revision));
                }
            }
            ToSidecar::Bundle {
                version,
                body,
                revision,
            } => {
                authority.heard();
                self.waiting = Some(Waiting {
                    version,
                    body,
                    revision,
                });
                self.compile_next();
            }
            ToSidecar::Gone => {
                let gone = self.source.enforcer.gone().await;
                tracing::error!(sessions = gone.sessions, "the broker vouches for this pod no more");
            }
            ToSidecar::Drain => {}
        }
        Ok(())
    }

    /// Starts the compiler on the latest bundle, unless it is busy.
    fn compile_next(&mut self) {
        if self.compiling.is_some() {
            return;
        }
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        let enforcer = self.source.enforcer.clone();
        let tasks = enforcer.authority.tasks.clone();
        self.compiling = Some(Box::pin(async move {
            let version = waiting.version.clone();
            let work = move || enforcer.compile(&waiting.version, &waiting.body, waiting.revision);
            (version, tasks.blocking(work).await)
        }));
    }

    async fn compiled(
        &mut self,
        version: String,
        compiled: Result<Result<InForce, BundleRefused>, TaskLost>,
    ) -> Result<(), CallError> {
        self.compiling = None;
        let (class, message) = match compiled {
            Ok(Ok(bundle)) => {
                let gone = self.source.enforcer.enforce(bundle);
                tracing::info!(version, "a bundle is in force");
                self.ack_later(gone, Some(version), None);
                self.compile_next();
                return Ok(());
            }
            Ok(Err(refused)) => (refused.class(), refused.to_string()),
            Err(TaskLost) => (NackClass::Other, "the compiler failed".to_owned()),
        };
        tracing::error!(version, message, "a bundle was refused; the previous one stays");
        self.source.enforcer.authority.metrics.nacks.up();
        self.compile_next();
        self.tell(&ToBroker::Nack {
            version,
            class,
            message,
        })
        .await
    }

    /// Acknowledges once the cut sessions are gone; the stream does not wait for them.
    fn ack_later(
        &self,
        gone: impl Future<Output = Closed> + Send + 'static,
        version: Option<String>,
        revision: Option<u64>,
    ) {
        let acks = self.acks.0.clone();
        self.source.enforcer.authority.tasks.spawn("ack", async move {
            let closed = gone.await;
            let ack = ToBroker::Ack {
                version,
                revision,
                closed: closed.sessions,
                took_us: closed.took_us,
            };
            let _ = acks.send(ack).await;
        });
    }

    async fn tell_status(&mut self, status: &mut watch::Receiver<SidecarStatus>) -> Result<(), CallError> {
        let now = status.borrow_and_update().clone();
        self.tell(&ToBroker::Status(now)).await
    }

    async fn tell(&mut self, said: &ToBroker) -> Result<(), CallError> {
        match timeout(WRITE, self.up.send(line(said)?)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(CallError::Unreachable("the stream takes nothing".to_owned())),
        }
    }
}

async fn compiled(compiling: &mut Option<Compiling>) -> (String, Result<Result<InForce, BundleRefused>, TaskLost>) {
    match compiling {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

fn line(said: &ToBroker) -> Result<Bytes, CallError> {
    let mut text = serde_json::to_vec(said).map_err(|_| CallError::Nonsense)?;
    text.push(b'\n');
    Ok(text.into())
}
