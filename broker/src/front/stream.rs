//! The stream: one HTTP/2 request per sidecar, JSON lines both ways.
//!
//! Order within: hello, then the deny set, then, once the sidecar said what it holds, the bundle; a later bundle
//! replaces one that still waits. Refuses lines over 256 KiB and readers that drain nothing for 5 s, and offers nothing
//! older than what a sidecar holds. The invariant: a stream lives no longer than the session token it was opened or
//! last renewed with, nor than about an hour, and deny frames never wait behind bundles.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::Extension;
use bytes::{Bytes, BytesMut};
use http::header::{HeaderValue, CONTENT_TYPE};
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use sidegate_policies::engine::Subject;
use sidegate_policies::record::Kind;
use sidegate_policies::seal::{Revisions, Seal};
use sidegate_policies::wire::{DenySet, Enforced, NackClass, SidecarStatus, ToBroker, ToSidecar, EGRESS_COUNTS};
use tokio::sync::{mpsc, watch};

use super::caller::{session, Caller};
use super::{Front, Refusal};
use crate::attest::NotAttested;
use crate::audit::{Event, More};
use crate::index::Offer;
use crate::issuer::random;
use crate::lockdown::{concerned, Acknowledged};
use crate::rings::RingName;

/// The protocol of the stream.
pub const PROTOCOL: u32 = 1;
/// Time between heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
const DRAIN: Duration = Duration::from_secs(5);
const MAX_LINE: usize = 256 * 1024;
const MAX_NACKS: u32 = 3;
/// Asked to end, it has so long to be replaced, milliseconds.
const REPLACED_MS: i64 = 10_000;
/// A sidecar that does not say what it holds is taken for one that holds nothing after so many heartbeats.
const MUTE: u32 = 2;

/// One sidecar as its stream tells.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarReport {
    /// `namespace/serviceAccount`.
    pub subject: String,
    /// Pod name.
    pub pod: String,
    /// Container instance.
    pub instance: u64,
    /// Since when, milliseconds since 1970.
    pub since_ms: i64,
    /// Release, as it says.
    pub release: String,
    /// Bundle version it acknowledged.
    pub bundle: Option<String>,
    /// Deny revision it acknowledged.
    pub deny_revision: u64,
    /// Sessions closed by the last acknowledged deny set.
    pub closed: u64,
    /// Microseconds that took.
    pub took_us: u64,
    /// Why it did not take the last bundle, if it did not.
    pub nack: Option<String>,
    /// Its own counters and listeners.
    pub status: SidecarStatus,
    /// When it told what it measured of its pod's fence last, milliseconds since 1970 by the broker's clock.
    #[serde(default)]
    pub egress_ms: i64,
}

impl SidecarReport {
    /// Whether the fence around its pod stands, by a measurement that still counts; nothing where it measures none.
    pub fn egress(&self, now_ms: i64) -> Option<Enforced> {
        let egress = self.status.egress?;
        let counts = i64::try_from(EGRESS_COUNTS.as_millis()).unwrap_or(i64::MAX);
        Some(match now_ms.saturating_sub(self.egress_ms) <= counts {
            true => egress.state,
            false => Enforced::Unknown,
        })
    }

    /// As people may read it: what was measured of the fence too long ago says nothing.
    #[must_use]
    pub fn aged(mut self, now_ms: i64) -> Self {
        if let (Some(state), Some(egress)) = (self.egress(now_ms), &mut self.status.egress) {
            egress.state = state;
        }
        self
    }
}

/// One stream: whose it is, and what it told.
#[derive(Debug, Clone)]
pub struct OpenStream {
    /// The workload, as attested.
    pub who: Subject,
    /// What its sidecar said last.
    pub report: SidecarReport,
}

/// All streams open now.
#[derive(Debug)]
pub struct Streams {
    open: Mutex<BTreeMap<u64, OpenStream>>,
    next: AtomicU64,
    changed: watch::Sender<u64>,
}

impl Default for Streams {
    fn default() -> Self {
        Streams {
            open: Mutex::default(),
            next: AtomicU64::new(1),
            changed: watch::channel(0).0,
        }
    }
}

impl Streams {
    /// What every sidecar said last.
    pub fn list(&self) -> Vec<SidecarReport> {
        self.open().into_iter().map(|stream| stream.report).collect()
    }

    /// The same, with whose they are.
    pub fn open(&self) -> Vec<OpenStream> {
        let open = self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        open.values().cloned().collect()
    }

    fn add(&self, id: u64, stream: OpenStream) {
        let mut open = self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        open.insert(id, stream);
        drop(open);
        self.tell();
    }

    /// Told whenever a sidecar said something.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut SidecarReport)) {
        let mut open = self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(stream) = open.get_mut(&id) {
            change(&mut stream.report);
        }
        drop(open);
        self.tell();
    }

    fn tell(&self) {
        self.changed
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }

    fn close(&self, id: u64) {
        self.open
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .remove(&id);
        self.tell();
    }
}

/// `POST /v1/stream`.
pub async fn open(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Refusal> {
    let (lines, receiver) = mpsc::channel::<Bytes>(4);
    let tasks = front.tasks.clone();
    let pump = Pump::new(front, caller, lines);
    tasks.spawn("stream", pump.run(request.into_body()));
    let down = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let line = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), receiver))
    });
    let mut response = Body::from_stream(down).into_response();
    let json_lines = HeaderValue::from_static("application/jsonl");
    response.headers_mut().insert(CONTENT_TYPE, json_lines);
    Ok(response)
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the sidecar closed it")]
    Closed,
    #[error("the sidecar drained nothing for 5 s")]
    Stuck,
    #[error("the session token ran out")]
    Expired,
    #[error("the session token was revoked")]
    Revoked,
    #[error("the key that signed the session token is gone")]
    KeyGone,
    #[error("the workload is not attested any more")]
    NotAttested,
    #[error("the sidecar broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the broker is stopping")]
    Stopping,
    #[error("it was open for an hour")]
    Old,
    #[error("a bundle could not be sealed")]
    Unsealed,
}

/// What a sidecar said it holds.
#[derive(Default)]
struct Held {
    version: Option<String>,
    revisions: Revisions,
}

struct Pump {
    front: Arc<Front>,
    caller: Caller,
    buffer: BytesMut,
    lines: mpsc::Sender<Bytes>,
    id: u64,
    sent: Option<Arc<Offer>>,
    /// When that was.
    offered: Instant,
    connected: Instant,
    /// The deny set that the sidecar enforces, as it says.
    deny_held: u64,
    nacks: u32,
    /// The deny set sent last.
    denied: DenySet,
    /// What the sidecar holds, once it said so.
    held: Option<Held>,
    /// Heartbeats without its saying so.
    mute: u32,
    /// What it said of its fence last.
    egress: Option<Enforced>,
    /// It holds something newer than what could be offered.
    behind: bool,
    /// The deny set changed under the seal sent last.
    unsealed: bool,
    /// When it is asked to end, and, then, when it ends; milliseconds since 1970.
    ends_ms: i64,
    draining: bool,
}

/// So long, a tenth more or less, in milliseconds: streams opened together do not end together. `drawn` is anything.
fn spread_ms(age: Duration, drawn: u16) -> i64 {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    let tenth = age.div_euclid(10);
    let share = tenth
        .saturating_mul(2)
        .saturating_mul(i64::from(drawn))
        .div_euclid(i64::from(u16::MAX));
    age.saturating_sub(tenth).saturating_add(share)
}

impl Pump {
    fn new(front: Arc<Front>, caller: Caller, lines: mpsc::Sender<Bytes>) -> Self {
        let id = front.streams.next.fetch_add(1, Ordering::Relaxed);
        let since_ms = front.clock.now_ms();
        // Without randomness the spread is lost, nothing else.
        let drawn = random::<2>().map(u16::from_be_bytes).unwrap_or(u16::MAX / 2);
        let age_ms = spread_ms(front.stream_age, drawn);
        let report = SidecarReport {
            subject: caller.subject().account(),
            pod: caller.subject().pod.clone(),
            instance: caller.workload.instance,
            since_ms,
            ..SidecarReport::default()
        };
        let who = caller.subject().clone();
        front.streams.add(id, OpenStream { who, report });
        Pump {
            front,
            caller,
            buffer: BytesMut::new(),
            lines,
            id,
            sent: None,
            offered: Instant::now(),
            connected: Instant::now(),
            deny_held: 0,
            nacks: 0,
            denied: DenySet::default(),
            held: None,
            mute: 0,
            egress: None,
            behind: false,
            unsealed: false,
            ends_ms: since_ms.saturating_add(age_ms),
            draining: false,
        }
    }

    async fn run(mut self, body: Body) {
        let ended = match self.serve(body).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        self.front.streams.close(self.id);
        self.note("stream.ended", "", &ended.to_string());
    }

    fn note(&self, event: &'static str, object: &str, detail: &str) {
        self.front.audit.note(Event {
            subject: &self.caller.workload.client_id(),
            pod_uid: &self.caller.subject().pod_uid,
            object,
            detail,
            more: More::of(&self.caller.workload),
            ..Event::new(Kind::Bundle, event)
        });
    }

    async fn serve(&mut self, mut body: Body) -> Result<std::convert::Infallible, Ended> {
        let mut denied = self.front.lockdowns.watch();
        let mut index = self.front.index.clone();
        let stop = self.front.tasks.stopping();
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        beat.tick().await;
        let deny_revision = denied.borrow().set.revision;
        self.send(&ToSidecar::Hello {
            protocol: PROTOCOL,
            heartbeat_ms: u64::try_from(HEARTBEAT.as_millis()).unwrap_or(1000),
            subject: self.caller.subject().clone(),
            instance: self.caller.workload.instance,
            deny_revision,
        })
        .await?;
        denied.mark_changed();
        index.mark_changed();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.send(&ToSidecar::Drain).await?;
                    return Err(Ended::Stopping);
                }
                changed = denied.changed() => {
                    changed.map_err(|_| Ended::Stopping)?;
                    self.denied = denied.borrow_and_update().set.clone();
                    self.send(&ToSidecar::Deny(self.denied.clone())).await?;
                    // With the next heartbeat: sealing for many must not stand between a Lockdown and anybody.
                    self.unsealed = self.sent.is_some();
                }
                changed = index.changed() => {
                    changed.map_err(|_| Ended::Stopping)?;
                    index.borrow_and_update();
                    self.offer().await?;
                }
                _ = beat.tick() => self.beat().await?,
                frame = body.frame() => {
                    let frame = frame.ok_or(Ended::Closed)?.map_err(|_| Ended::Closed)?;
                    if let Ok(data) = frame.into_data() {
                        self.receive(&data).await?;
                    }
                }
            }
        }
    }

    async fn beat(&mut self) -> Result<(), Ended> {
        if self.front.clock.now() >= self.caller.expires {
            return Err(Ended::Expired);
        }
        if self.front.revoked.holds(&self.caller.token_id) {
            return Err(Ended::Revoked);
        }
        // After an emergency rotation every session is attested anew, running streams included (test
        // `an_emergency_rotation_ends_sessions_and_streams_and_is_on_record`).
        let access = self.front.issuer.ring(RingName::Access);
        if !access.holds(&self.caller.kid, self.front.clock.now()) {
            return Err(Ended::KeyGone);
        }
        match self.front.attestor.still(&self.caller.workload).await {
            Ok(_) => {}
            // Whoever still holds the stream of a pod that is gone is told, so that its sessions end with it (test
            // `a_bound_token_is_a_login_until_its_pod_is_gone`).
            Err(NotAttested::Pod(_)) => {
                self.send(&ToSidecar::Gone).await?;
                return Err(Ended::NotAttested);
            }
            Err(_) => return Err(Ended::NotAttested),
        }
        let now_ms = self.front.clock.now_ms();
        self.send(&ToSidecar::Heartbeat {
            now_ms,
            deny_revision: self.front.lockdowns.now().set.revision,
        })
        .await?;
        self.age(now_ms).await?;
        if self.held.is_none() {
            self.mute = self.mute.saturating_add(1);
            if self.mute >= MUTE {
                self.held = Some(Held::default());
                self.offer().await?;
            }
        } else if self.behind {
            self.offer().await?;
        }
        match (self.unsealed, self.sent.clone()) {
            (true, Some(offer)) => {
                let seal = self.seal(&offer)?;
                self.unsealed = false;
                self.send(&ToSidecar::Seal(seal)).await
            }
            _ => Ok(()),
        }
    }

    /// After its hour a stream is asked to end, so that sidecars spread over replicas again; its successor is open
    /// before it closes (test `a_stream_is_asked_to_end_after_its_time_and_ends_if_it_is_not_replaced`).
    async fn age(&mut self, now_ms: i64) -> Result<(), Ended> {
        if now_ms < self.ends_ms {
            return Ok(());
        }
        if self.draining {
            return Err(Ended::Old);
        }
        self.draining = true;
        self.ends_ms = now_ms.saturating_add(REPLACED_MS);
        self.send(&ToSidecar::Drain).await
    }

    fn seal(&self, offer: &Offer) -> Result<Seal, Ended> {
        let (sealer, now_ms) = (&self.front.sealer, self.front.clock.now_ms());
        let sealed = sealer.seal(offer, self.caller.subject(), &self.denied, now_ms);
        sealed.map_err(|_| Ended::Unsealed)
    }

    /// Sends the bundle, unless it is the one sent last or was refused three times; nothing before the sidecar said
    /// what it holds, and nothing that is older.
    async fn offer(&mut self) -> Result<(), Ended> {
        let Some(held) = &self.held else {
            return Ok(());
        };
        let offer = self.front.index().offer(self.caller.subject());
        if self.sent.as_ref().is_some_and(|sent| sent.version == offer.version) {
            return Ok(());
        }
        let same = held.version.as_deref() == Some(offer.version.as_str());
        // It waits for this replica to catch up, which is told to look (test
        // `a_replica_that_is_behind_a_sidecar_waits_before_it_offers`).
        let behind = offer.revisions.behind(&held.revisions).filter(|_| !same);
        if let Some(behind) = &behind {
            if !self.behind {
                let pod = &self.caller.subject().pod;
                tracing::warn!(%behind, pod, "a sidecar holds a newer bundle; nothing is offered yet");
            }
            self.front.catch_up.notify_one();
        }
        self.behind = behind.is_some();
        if self.behind {
            return Ok(());
        }
        self.nacks = 0;
        self.offered = Instant::now();
        self.unsealed = false;
        let line = ToSidecar::Bundle {
            version: offer.version.clone(),
            body: offer.body.to_string(),
            seal: self.seal(&offer)?,
        };
        self.sent = Some(offer);
        self.send(&line).await
    }

    async fn send(&self, line: &ToSidecar) -> Result<(), Ended> {
        let mut text = serde_json::to_vec(line).map_err(|_| Ended::Protocol("a line cannot be written"))?;
        text.push(b'\n');
        match tokio::time::timeout(DRAIN, self.lines.send(text.into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Closed),
            Err(_) => Err(Ended::Stuck),
        }
    }

    async fn receive(&mut self, data: &[u8]) -> Result<(), Ended> {
        self.buffer.extend_from_slice(data);
        while let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(at.saturating_add(1));
            if line.len() > MAX_LINE {
                return Err(Ended::Protocol("a line is too long"));
            }
            let line: ToBroker =
                serde_json::from_slice(&line).map_err(|_| Ended::Protocol("a line is not understood"))?;
            self.take(line).await?;
        }
        if self.buffer.len() > MAX_LINE {
            return Err(Ended::Protocol("a line is too long"));
        }
        Ok(())
    }

    async fn take(&mut self, line: ToBroker) -> Result<(), Ended> {
        match line {
            ToBroker::Hello {
                protocol,
                release,
                bundle,
                revisions,
                deny_revision,
                ..
            } => {
                if protocol != PROTOCOL {
                    return Err(Ended::Protocol("another protocol version"));
                }
                self.front.lockdowns.held_elsewhere(deny_revision);
                self.deny_held = deny_revision;
                self.front.streams.update(self.id, |report| report.release = release);
                self.held = Some(Held {
                    version: bundle,
                    revisions,
                });
                self.offer().await?;
            }
            ToBroker::Ack {
                version,
                revision,
                closed,
                took_us,
            } => {
                if let Some(version) = &version {
                    self.note("bundle.loaded", version, "");
                    if self.sent.as_ref().is_some_and(|sent| sent.version == *version) {
                        self.front.metrics.pushed(self.offered.elapsed());
                    }
                }
                if let Some(revision) = revision {
                    let what = format!("deny set {revision}: {closed} session(s) cut");
                    self.note("lockdown.applied", "", &what);
                    self.denied(revision, closed);
                }
                self.front.streams.update(self.id, |report| {
                    if version.is_some() {
                        report.bundle = version;
                        report.nack = None;
                    }
                    if let Some(revision) = revision {
                        report.deny_revision = revision;
                        report.closed = closed;
                        report.took_us = took_us;
                    }
                });
            }
            ToBroker::Nack {
                version,
                class,
                message,
            } => self.refused_bundle(&version, class, message).await?,
            ToBroker::Status(status) => self.told(status),
            ToBroker::Reauth { token } => self.reauth(&token).await?,
        }
        Ok(())
    }

    /// The sidecar's own state; what it says of its fence counts from now on, and is on record where it changed.
    fn told(&mut self, status: SidecarStatus) {
        let now_ms = self.front.clock.now_ms();
        let state = status.egress.map(|egress| egress.state);
        if state != self.egress {
            self.egress = state;
            self.note("egress.measured", "", state.map_or("none", Enforced::as_str));
        }
        self.front.streams.update(self.id, |report| {
            if report.status.egress != status.egress {
                report.egress_ms = now_ms;
            }
            report.status = status;
        });
    }

    /// The sidecar enforces this deny set now, and the sessions it ends are gone.
    fn denied(&mut self, revision: u64, closed: u64) {
        let told = Acknowledged {
            before: self.deny_held,
            revision,
            closed,
            connected: self.connected,
            now: Instant::now(),
        };
        self.deny_held = self.deny_held.max(revision);
        let (who, front) = (self.caller.subject(), &self.front);
        let offer = front.index().offer(who);
        let took = front
            .lockdowns
            .acknowledged(told, |entries| concerned(entries, who, &offer));
        if let Some(took) = took {
            front.metrics.locked(took);
        }
    }

    /// A bundle was not taken: it is offered again at most twice, and the previous one stays in force there.
    async fn refused_bundle(&mut self, version: &str, class: NackClass, message: String) -> Result<(), Ended> {
        tracing::warn!(version, message, "a sidecar did not take its bundle");
        self.note("bundle.refused", version, &message);
        self.front.metrics.nack(class);
        self.front.streams.update(self.id, |report| report.nack = Some(message));
        self.nacks = self.nacks.saturating_add(1);
        let of_last = self.sent.as_ref().is_some_and(|sent| sent.version == version);
        if self.nacks >= MAX_NACKS || !of_last {
            return Ok(());
        }
        let nacks = self.nacks;
        self.sent = None;
        self.offer().await?;
        self.nacks = nacks;
        Ok(())
    }

    /// A fresh session token for the running stream: same pod, instance and key, or the stream ends.
    async fn reauth(&mut self, token: &str) -> Result<(), Ended> {
        let fresh = session(&self.front, token).await.map_err(|_| Ended::NotAttested)?;
        let same = fresh.subject().pod_uid == self.caller.subject().pod_uid
            && fresh.workload.instance == self.caller.workload.instance
            && fresh.thumbprint == self.caller.thumbprint;
        if !same {
            return Err(Ended::NotAttested);
        }
        self.caller = fresh;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sidegate_policies::wire::Egress;

    use super::*;

    #[test]
    fn a_fence_that_nobody_looked_at_for_long_is_not_told_as_standing() {
        let egress = Some(Egress {
            state: Enforced::True,
            ..Egress::default()
        });
        let report = SidecarReport {
            status: SidecarStatus {
                egress,
                ..SidecarStatus::default()
            },
            egress_ms: 1_000,
            ..SidecarReport::default()
        };
        let told = |now_ms| report.clone().aged(now_ms).status.egress.unwrap().state;
        let last = 1_000 + i64::try_from(EGRESS_COUNTS.as_millis()).unwrap();
        assert_eq!((told(last), told(last + 1)), (Enforced::True, Enforced::Unknown));
    }

    #[test]
    fn streams_live_an_hour_a_tenth_more_or_less() {
        let hour = Duration::from_secs(3600);
        assert_eq!(spread_ms(hour, 0), 54 * 60_000);
        assert_eq!(spread_ms(hour, u16::MAX), 66 * 60_000);
        let middle = spread_ms(hour, u16::MAX / 2);
        assert!((59 * 60_000..=61 * 60_000).contains(&middle), "{middle}");
    }
}
