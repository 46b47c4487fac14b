//! The audit: what was asked of the broker, by whom, what came of it, and precisely why, in a chained, signed log of
//! its own ([`OwnLog`]), and as log lines of target `audit`.
//!
//! Outward answers are opaque; the precise reason goes here and nowhere else. Refuses to carry secrets: fields are
//! names, ids, digests and reasons. Never a token, a password or an agent's text.
//! Invariant: when [`Audit::record`] answers well, the event is on the disk; what people decide and what is given out
//! goes through it first, so what cannot be recorded does not happen.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sidegate_policies::engine::Subject;
use sidegate_policies::record::layout::BROKER;
use sidegate_policies::record::payload::{Audit as Payload, Boot, Lossy};
use sidegate_policies::record::Kind;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{Separation, StartError};
use crate::issuer::{Issuer, Workload};
use crate::records::{lock, OwnLog, Records, RecordsError, Sources};
use crate::state::StateDir;
use crate::task::blocking;

/// Events that wait to be written, at most: an agent that is refused again and again fills no memory.
const MAX_WAITING: usize = 4096;
/// Bytes of one field, at most.
const MAX_FIELD: usize = 4096;
/// Noted events are on the disk after so long.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// One event. Empty fields are left out.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Of what sort it is.
    pub kind: Kind,
    /// What happened, such as `token.refused` or `lease.granted`.
    pub event: &'static str,
    /// Who: a person or a workload, if known.
    pub subject: &'a str,
    /// Pod UID, if known.
    pub pod_uid: &'a str,
    /// What it was about: a target, a request, a lockdown.
    pub object: &'a str,
    /// Digest of the operation, where people decided about one.
    pub digest: &'a str,
    /// The precise reason, or what was granted.
    pub detail: &'a str,
    /// More about the workload and what it asked for.
    pub more: More<'a>,
}

/// More about an event of one workload. What is empty is left out.
#[derive(Debug, Clone, Copy, Default)]
pub struct More<'a> {
    /// Name of the pod.
    pub pod: &'a str,
    /// Its node.
    pub node: &'a str,
    /// Instance of the sidecar's container.
    pub instance: Option<u64>,
    /// What the API server's audit log calls the service-account token.
    pub credential_id: &'a str,
    /// What was asked for.
    pub asked: &'a str,
    /// What was given.
    pub granted: &'a str,
    /// The policies by which the workload has the Target.
    pub policy: &'a str,
    /// Id of the token that was issued, or that asked.
    pub jti: &'a str,
    /// Id of the key that signed it.
    pub kid: &'a str,
    /// How long it took.
    pub took: Option<Duration>,
}

impl<'a> More<'a> {
    /// Nothing more.
    pub const NONE: More<'static> = More {
        pod: "",
        node: "",
        instance: None,
        credential_id: "",
        asked: "",
        granted: "",
        policy: "",
        jti: "",
        kid: "",
        took: None,
    };

    /// What is known of an attested workload.
    pub fn of(who: &'a Workload) -> More<'a> {
        More {
            pod: &who.subject.pod,
            node: &who.node,
            instance: Some(who.instance),
            ..More::NONE
        }
    }
}

impl Event<'_> {
    /// An event with nothing else said.
    pub const fn new(kind: Kind, event: &'static str) -> Event<'static> {
        Event {
            kind,
            event,
            subject: "",
            pod_uid: "",
            object: "",
            digest: "",
            detail: "",
            more: More::NONE,
        }
    }

    fn payload(&self) -> Payload<'static> {
        Payload {
            event: Cow::Borrowed(self.event),
            subject: field(self.subject),
            pod_uid: field(self.pod_uid),
            object: field(self.object),
            digest: field(self.digest),
            detail: field(self.detail),
            pod: field(self.more.pod),
            node: field(self.more.node),
            instance: self.more.instance,
            credential_id: field(self.more.credential_id),
            asked: field(self.more.asked),
            granted: field(self.more.granted),
            policy: field(self.more.policy),
            jti: field(self.more.jti),
            kid: field(self.more.kid),
            latency_us: self.more.took.and_then(|took| u64::try_from(took.as_micros()).ok()),
        }
    }
}

/// Why something could not be recorded, and therefore was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be recorded: {0}")]
pub struct Unrecorded(String);

/// The audit of one broker.
pub struct Audit {
    waiting: Mutex<Waiting>,
    log: Mutex<Written>,
    records: Arc<Records>,
}

#[derive(Default)]
struct Waiting {
    events: Vec<(Kind, Payload<'static>)>,
    /// Events that ever came.
    count: u64,
    /// Events there was no room for.
    lost: u64,
}

struct Written {
    own: OwnLog,
    /// Events below this are in the log, durable or not.
    appended: u64,
    /// Events below this are on the disk.
    durable: u64,
    failing: bool,
    /// An event did not fit the chain: nothing is vouched for any more.
    broken: bool,
}

impl Audit {
    /// Begins the log of this start. `separation` is what keeps the agent from the state directory.
    pub fn start(
        state: &StateDir,
        records: &Arc<Records>,
        issuer: &Arc<Issuer>,
        clock: &Arc<dyn Clock>,
        separation: &Separation,
    ) -> Result<Arc<Audit>, StartError> {
        let id = state.read_or_create("broker.id", || {
            Ok::<_, StartError>(uuid::Uuid::now_v7().to_string().into_bytes())
        })?;
        let subject = Subject {
            namespace: BROKER.to_owned(),
            service_account: "broker".to_owned(),
            pod: "broker".to_owned(),
            pod_uid: String::from_utf8_lossy(&id).into_owned(),
            labels: Default::default(),
        };
        let boot = Boot {
            format: 1,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: issuer.cluster().to_owned(),
            namespace: subject.namespace.clone(),
            service_account: subject.service_account.clone(),
            pod: subject.pod.clone(),
            pod_uid: subject.pod_uid.clone(),
            instance: state.count("audit")?,
            separation: match separation {
                Separation::None => "none".to_owned(),
                Separation::User { .. } => "user".to_owned(),
            },
            ..Boot::default()
        };
        let who = Workload {
            account_uid: subject.pod_uid.clone(),
            node: String::new(),
            instance: boot.instance,
            ends: i64::MAX,
            subject,
        };
        let (issuer, now) = (Arc::clone(issuer), Arc::clone(clock));
        let certify = move |key: &str| issuer.record_certificate(&who, key, now.now()).ok();
        let sources = Sources::system(Arc::clone(clock), Box::new(certify));
        Audit::begin(records, boot, sources).map_err(|error| StartError::Records(format!("the audit log: {error}")))
    }

    /// Begins the log that `boot` names, with these sources.
    pub fn begin(records: &Arc<Records>, boot: Boot, sources: Sources) -> Result<Arc<Audit>, RecordsError> {
        let own = OwnLog::start(Arc::clone(records), boot, sources)?;
        Ok(Arc::new(Audit {
            waiting: Mutex::default(),
            log: Mutex::new(Written {
                own,
                appended: 0,
                durable: 0,
                failing: false,
                broken: false,
            }),
            records: Arc::clone(records),
        }))
    }

    /// Writes an event and waits until it is on the disk: call it off the runtime's threads. What it is about may
    /// only happen after it answered well.
    pub fn record(&self, event: Event<'_>) -> Result<(), Unrecorded> {
        say(&event);
        // Noted events, which an agent can cause at will, leave room for these.
        let Some(ticket) = self.enqueue(&event, MAX_WAITING.saturating_mul(2)) else {
            return Err(Unrecorded("too many events wait for the audit log".to_owned()));
        };
        self.settle(ticket).map_err(|error| {
            // The event may reach the disk later all the same: then this follows it.
            let detail = "the event before this one about this object could not be recorded in time: it had no effect";
            self.enqueue(&Event { detail, ..event }, MAX_WAITING.saturating_mul(2));
            Unrecorded(error.to_string())
        })
    }

    /// Records what takes effect whether or not it can be recorded, because to refuse it would fail open. Where it
    /// cannot, answers why, and the event is written as soon as the log takes it.
    pub fn record_or_note(&self, event: Event<'_>) -> Option<Unrecorded> {
        let unrecorded = self.record(event).err();
        if unrecorded.is_some() {
            self.note(Event {
                detail: "it is in force, though not recorded in time",
                ..event
            });
        }
        unrecorded
    }

    /// Notes an event that nothing waits for: it is written together with the next recorded one, or within a second.
    /// Waits for no disk.
    pub fn note(&self, event: Event<'_>) {
        say(&event);
        self.enqueue(&event, MAX_WAITING);
    }

    /// Waits until what was noted so far is on the disk: call it off the runtime's threads.
    pub fn flush(&self) -> Result<(), Unrecorded> {
        self.settle(u64::MAX).map_err(|error| Unrecorded(error.to_string()))
    }

    /// Flushes, seals and certifies until `cancel`.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(FLUSH_EVERY);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            let audit = Arc::clone(&self);
            if blocking(move || audit.keep()).await.is_none() {
                tracing::error!("the audit log's keeper panicked");
            }
        }
    }

    /// Writes and seals everything, and says that the log is complete. Nothing is recorded afterwards.
    pub fn finish(&self) {
        let finished = self.settle(u64::MAX).and_then(|()| lock(&self.log).own.finish());
        self.judge(finished);
    }

    /// Writes what waits, seals the segment if it is due, and renews the certificate: what [`Audit::run`] does each second.
    pub fn keep(&self) {
        let kept = self.settle(u64::MAX).and_then(|()| lock(&self.log).own.keep());
        self.judge(kept);
    }

    /// Raises an alarm when the log begins to fail, not for every event it cannot take.
    fn judge(&self, outcome: Result<(), RecordsError>) {
        let was = std::mem::replace(&mut lock(&self.log).failing, outcome.is_err());
        if let (false, Err(error)) = (was, outcome) {
            self.records
                .alarm(BROKER, &format!("the audit log cannot be written: {error}"));
        }
    }

    /// Puts an event in line and answers its number; `None` where the line is full.
    fn enqueue(&self, event: &Event<'_>, room: usize) -> Option<u64> {
        let mut waiting = lock(&self.waiting);
        if waiting.events.len() >= room {
            waiting.lost = waiting.lost.saturating_add(1);
            return None;
        }
        waiting.events.push((event.kind, event.payload()));
        waiting.count = waiting.count.saturating_add(1);
        Some(waiting.count)
    }

    /// Makes every event up to number `ticket` durable, and with them whatever waits: one sync serves all.
    fn settle(&self, ticket: u64) -> Result<(), RecordsError> {
        let mut log = lock(&self.log);
        if log.broken {
            return Err(RecordsError::Key("the audit log is broken; restart the broker"));
        }
        if log.durable >= ticket {
            return Ok(());
        }
        // While the disk refuses, what waits stays in its bounded line.
        if log.appended > log.durable {
            log.commit()?;
        }
        let (events, upto, lost) = {
            let mut waiting = lock(&self.waiting);
            let events = std::mem::take(&mut waiting.events);
            (events, waiting.count, std::mem::take(&mut waiting.lost))
        };
        let appended = log.append(&events, lost);
        log.broken = appended.is_err();
        appended?;
        log.appended = upto;
        log.commit()
    }
}

impl Written {
    fn append(&mut self, events: &[(Kind, Payload<'static>)], lost: u64) -> Result<(), RecordsError> {
        for (kind, payload) in events {
            self.own.append(*kind, payload)?;
        }
        if lost > 0 {
            let (bytes, why) = (0, "more events came than the audit log takes".to_owned());
            self.own.append(
                Kind::Lossy,
                &Lossy {
                    events: lost,
                    bytes,
                    why,
                },
            )?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), RecordsError> {
        self.own.commit()?;
        self.durable = self.appended;
        Ok(())
    }
}

fn say(event: &Event<'_>) {
    tracing::info!(
        target: "audit",
        event = event.event,
        subject = event.subject,
        podUid = event.pod_uid,
        object = event.object,
        digest = event.digest,
        detail = event.detail,
    );
}

/// At most 4 KiB of a text.
fn field(text: &str) -> Cow<'static, str> {
    if text.len() <= MAX_FIELD {
        return Cow::Owned(text.to_owned());
    }
    let end = text.floor_char_boundary(MAX_FIELD);
    Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default()))
}

#[cfg(test)]
pub(crate) mod tests;
