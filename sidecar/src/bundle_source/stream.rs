//! One HTTP/2 request for as long as it lives: JSON lines both ways, reopened with a jittered pause.
//!
//! Compiling runs beside the stream, so deny frames never wait for it; of several bundles the latest is compiled. A
//! stream that the broker wants to end is served until its successor, on a connection of its own, is open. Refuses a
//! broker of another protocol version, and one that calls this process somebody else.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sidegate_policies::engine::Subject;
use sidegate_policies::seal::{Seal, Statement};
use sidegate_policies::wire::{NackClass, SidecarStatus, ToBroker, ToSidecar};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout, Instant};
use tokio_util::sync::CancellationToken;

use super::apply::{BundleRefused, Closed, Enforcer};
use super::kept::Keeper;
use crate::authority::InForce;
use crate::broker::{Broker, CallError, Lines, SessionToken};
use crate::credentials::random_unit;
use crate::task::TaskLost;

/// A stream that says nothing for this long is opened anew.
const SILENT: Duration = Duration::from_secs(5);
/// Status goes up at least this often, changed or not.
const STATUS_EVERY: Duration = Duration::from_secs(30);
/// A pause between two attempts is anything up to the first, and up to twice as much after each failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
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
    /// Keeps what is in force.
    pub keeper: Arc<Keeper>,
}

/// A stream that is open: lines up, lines down, and the tokens it is proved anew with.
type Opened = (mpsc::Sender<Bytes>, Lines, watch::Receiver<Option<Arc<SessionToken>>>);
type Opening<'a> = Pin<Box<dyn Future<Output = Result<Opened, CallError>> + Send + 'a>>;

/// What became of a bundle under a good seal.
enum Checked {
    /// The one in force: nothing to compile.
    Same,
    /// Another one.
    Compiled(Box<InForce>),
}

/// The same with what the seal says, and what is kept of it.
struct Taken {
    checked: Checked,
    statement: Statement,
    seal: Seal,
    body: String,
}

type Compiling = Pin<Box<dyn Future<Output = (String, Result<Result<Taken, BundleRefused>, TaskLost>)> + Send>>;

/// A bundle line that waits for the compiler.
struct Waiting {
    version: String,
    body: String,
    seal: Seal,
}

struct Open<'a> {
    source: &'a Source,
    up: mpsc::Sender<Bytes>,
    /// Lines of tasks that wait for sessions to end.
    acks: (mpsc::Sender<ToBroker>, mpsc::Receiver<ToBroker>),
    compiling: Option<Compiling>,
    waiting: Option<Waiting>,
    /// A seal of a bundle that is not in force yet.
    newer: Option<(Statement, Seal)>,
    /// The stream that follows this one, once the broker wants it to end.
    successor: Option<Opening<'a>>,
}

/// Keeps the stream open until `stop`.
pub async fn run(source: Source, stop: CancellationToken) {
    let mut failures = 0u32;
    let mut successor = None;
    loop {
        let began = Instant::now();
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            ended = once(&source, successor.take()) => ended,
        };
        match ended {
            Ok(Some(opened)) => {
                tracing::info!("the stream to the broker was replaced");
                successor = Some(opened);
                failures = 0;
                continue;
            }
            Ok(None) => tracing::info!("the broker ended the stream"),
            Err(error) => {
                source.enforcer.authority.metrics.streams_lost.up();
                tracing::warn!(%error, "the stream to the broker was lost");
            }
        }
        let silent = source.enforcer.authority.silent();
        failures = after(failures, silent.is_some_and(|silent| silent < began.elapsed()));
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(ceiling(failures).mul_f64(random_unit())) => {}
        }
    }
}

/// Failures in a row, after one more stream. Where the broker was heard on it none failed: replicas that restart one
/// after the other must not keep a sidecar waiting as one that never answers does.
fn after(failures: u32, heard: bool) -> u32 {
    match heard {
        true => 0,
        false => failures.saturating_add(1),
    }
}

/// The longest pause after so many failures in a row; the pause is anything below, so that sidecars which lost one
/// broker together do not come back together.
fn ceiling(failures: u32) -> Duration {
    let (first, longest) = PAUSES;
    let doubled = 2u32.saturating_pow(failures.saturating_sub(1).min(16));
    first.saturating_mul(doubled).min(longest)
}

/// Opens a stream, unless it is open already, and serves it. Answers its successor, if it has one.
async fn once(source: &Source, opened: Option<Opened>) -> Result<Option<Opened>, CallError> {
    let (up, lines, tokens) = match opened {
        Some(opened) => opened,
        None => open(source).await?,
    };
    let open = Open {
        source,
        up,
        acks: mpsc::channel(64),
        compiling: None,
        waiting: None,
        newer: None,
        successor: None,
    };
    open.serve(lines, tokens).await
}

async fn open(source: &Source) -> Result<Opened, CallError> {
    let authority = &source.enforcer.authority;
    let hello = ToBroker::Hello {
        protocol: PROTOCOL,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        bundle: authority.in_force().map(|bundle| bundle.version.to_string()),
        deny_revision: authority.deny.revision(),
        revisions: (*authority.taken()).clone(),
    };
    let mut tokens = source.broker.tokens();
    let (up, lines) = source.broker.bundle_stream(line(&hello)?).await?;
    tokens.mark_unchanged();
    Ok((up, lines, tokens))
}

impl<'a> Open<'a> {
    async fn serve(
        mut self,
        mut lines: Lines,
        mut tokens: watch::Receiver<Option<Arc<SessionToken>>>,
    ) -> Result<Option<Opened>, CallError> {
        let mut status = self.source.status.clone();
        let mut told = Instant::now();
        self.tell_status(&mut status).await?;
        loop {
            tokio::select! {
                biased;
                heard = timeout(SILENT, lines.next::<ToSidecar>()) => match heard {
                    Ok(Ok(Some(ToSidecar::Drain))) => self.replace(),
                    // The successor that is being opened is waited for.
                    Ok(Ok(None)) => return match self.successor.take() {
                        Some(opening) => opening.await.map(Some),
                        None => Ok(None),
                    },
                    Ok(Ok(Some(heard))) => self.heard(heard).await?,
                    Ok(Err(error)) => return Err(error),
                    Err(_) => return Err(CallError::Unreachable("the stream is silent".to_owned())),
                },
                opened = successor(&mut self.successor) => {
                    self.successor = None;
                    match opened {
                        Ok(opened) => return Ok(Some(opened)),
                        Err(error) => tracing::warn!(%error, "no other stream could be opened yet"),
                    }
                }
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

    /// Opens the stream that follows this one: on a new connection, for another replica may be meant.
    fn replace(&mut self) {
        if self.successor.is_none() {
            let source = self.source;
            source.broker.part();
            self.successor = Some(Box::pin(open(source)));
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
            ToSidecar::Heartbeat { now_ms, .. } => {
                authority.heard();
                authority.broker_clock(now_ms);
            }
            ToSidecar::Deny(set) => {
                authority.heard();
                let revision = set.revision;
                if let Some(gone) = self.source.enforcer.deny(set) {
                    self.ack_later(gone, None, Some(revision));
                }
            }
            ToSidecar::Bundle { version, body, seal } => {
                authority.heard();
                self.waiting = Some(Waiting { version, body, seal });
                self.compile_next();
            }
            ToSidecar::Seal(seal) => {
                authority.heard();
                self.resealed(seal);
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
            (version, tasks.blocking(move || check(&enforcer, waiting)).await)
        }));
    }

    /// A newer seal of the bundle in force: kept with the deny set it was made beside.
    fn resealed(&mut self, seal: Seal) {
        let enforcer = &self.source.enforcer;
        let held = enforcer.authority.in_force();
        match enforcer.check(&seal) {
            Ok(statement) if held.is_some_and(|held| *held.version == *statement.version) => {
                let denied = enforcer.authority.deny.set();
                self.source.keeper.resealed(statement, seal, &denied);
            }
            // Of the bundle that is being compiled, most likely: it is looked at once that is in force.
            Ok(statement) => self.newer = Some((statement, seal)),
            Err(error) => tracing::error!(%error, "a seal was refused"),
        }
    }

    async fn compiled(
        &mut self,
        version: String,
        compiled: Result<Result<Taken, BundleRefused>, TaskLost>,
    ) -> Result<(), CallError> {
        self.compiling = None;
        let (class, message) = match compiled {
            Ok(Ok(taken)) => {
                self.enforce(version, taken);
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

    fn enforce(&mut self, version: String, taken: Taken) {
        let Taken {
            checked,
            statement,
            seal,
            body,
        } = taken;
        let authority = &self.source.enforcer.authority;
        match checked {
            Checked::Compiled(bundle) => {
                let gone = self.source.enforcer.enforce(*bundle);
                tracing::info!(version, "a bundle is in force");
                self.ack_later(gone, Some(version), None);
            }
            Checked::Same => {
                authority.took(&statement.revisions);
                self.ack_later(std::future::ready(Closed::default()), Some(version), None);
            }
        }
        authority.confirmed();
        let denied = authority.deny.set();
        self.source.keeper.bundle(body, (&statement, seal), &denied);
        let newer = self.newer.take();
        if let Some((newer, seal)) = newer.filter(|(newer, _)| newer.version == statement.version) {
            self.source.keeper.resealed(newer, seal, &denied);
        }
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

/// Checks a bundle, and compiles it unless it is the one in force.
fn check(enforcer: &Enforcer, waiting: Waiting) -> Result<Taken, BundleRefused> {
    let Waiting { version, body, seal } = waiting;
    let statement = enforcer.check(&seal)?;
    let held = enforcer.authority.in_force();
    let same = held.is_some_and(|held| *held.version == *version) && statement.version == version;
    let checked = match same {
        true => Checked::Same,
        false => Checked::Compiled(Box::new(enforcer.compile(&version, &body, &statement)?)),
    };
    Ok(Taken {
        checked,
        statement,
        seal,
        body,
    })
}

async fn successor(opening: &mut Option<Opening<'_>>) -> Result<Opened, CallError> {
    match opening {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

async fn compiled(compiling: &mut Option<Compiling>) -> (String, Result<Result<Taken, BundleRefused>, TaskLost>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_begin_below_half_a_second_double_and_end_at_half_a_minute() {
        let seconds: Vec<f64> = [0, 1, 2, 5, 7, 40]
            .map(|failures| ceiling(failures).as_secs_f64())
            .into();
        assert_eq!(seconds, [0.5, 0.5, 1.0, 8.0, 30.0, 30.0]);
    }

    #[test]
    fn a_stream_on_which_the_broker_spoke_is_no_failure() {
        assert_eq!(
            [after(6, true), after(6, false), after(u32::MAX, false)],
            [0, 7, u32::MAX]
        );
    }
}
