//! A recorder and a collector face to face: real log, real store, no network between them.
//!
//! Owns the sink that hands the sidecar's upload to the broker's collector, a certifying key, and small stores to
//! tamper with. It refuses nothing by itself: what it shows is what the two halves do.
//! Invariant: the only thing replaced is the HTTP connection.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair, ECDSA_P256_SHA256_FIXED_SIGNING};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{stream, FutureExt, StreamExt};
use serde_json::json;
use sidegate_broker::records::{Caller, Records, RecordsOptions};
use sidegate_policies::api::target::{Durability, Recording as Class};
use sidegate_policies::engine::Subject;
use sidegate_policies::record::payload::{Close, Denied, Intent, Open, Outcome};
use sidegate_policies::record::Kind;
use sidegate_sidecar::record::{
    CannotRecord, Clock, DirectoryVolume, Log, LogIdentity, LogOptions, RecordSink, RecordStream, SessionRecorder,
    SinkError, SystemClock, SystemRandom, Volume,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The pod UID of every recording.
pub const POD: &str = "7a1b9c52-5e0d-4a53-9d1c-000000000001";

/// Signs certificates over record keys, as a broker does.
pub struct Certifier {
    key: EcdsaKeyPair,
    kid: String,
}

impl Certifier {
    /// A fresh key under this id.
    pub fn new(kid: &str) -> anyhow::Result<Certifier> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)?;
        Ok(Certifier {
            key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref())?,
            kid: kid.to_owned(),
        })
    }

    /// Its public key.
    pub fn jwk(&self) -> serde_json::Value {
        let point = self.key.public_key().as_ref();
        let half = |range| point.get(range).map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        json!({"kty": "EC", "crv": "P-256", "kid": self.kid, "x": half(1..33), "y": half(33..65)})
    }

    /// A certificate for an hour from `now`, seconds since 1970.
    pub fn certificate(&self, public_key: [u8; 32], instance: u64, now: u64) -> Result<String, SinkError> {
        let header = json!({"typ": "sidegate-record-key+jwt", "alg": "ES256", "kid": self.kid});
        let claims = json!({
            "iss": "https://broker", "aud": "sidegate-records", "iat": now, "nbf": now, "exp": now.saturating_add(3600),
            "cnf": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(public_key)}},
            "sidegate": {"podUid": POD, "instance": instance},
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self
            .key
            .sign(&aws_lc_rs::rand::SystemRandom::new(), signed.as_bytes())
            .map_err(|_| SinkError("no signature".into()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }
}

/// The way from a log to a store, which can be broken.
pub struct Wire {
    records: Mutex<Arc<Records>>,
    instance: u64,
    certifier: Certifier,
    /// While set, the collector does not answer.
    pub silent: AtomicBool,
    /// Streams that were opened.
    open: Mutex<Vec<tokio::task::AbortHandle>>,
}

impl Wire {
    /// Certifies with a fresh key, which the store learns.
    pub fn new(records: Arc<Records>, instance: u64) -> anyhow::Result<Arc<Wire>> {
        let certifier = Certifier::new(&format!("key-{instance}"))?;
        records.set_ring(&[certifier.jwk()])?;
        Ok(Arc::new(Wire {
            records: Mutex::new(records),
            instance,
            certifier,
            silent: AtomicBool::new(false),
            open: Mutex::default(),
        }))
    }

    /// From now on to this store, which must know the certifier; whoever is connected must come again.
    pub fn to(&self, records: &Arc<Records>) -> anyhow::Result<()> {
        records.set_ring(&[self.certifier.jwk()])?;
        // Nobody opens a stream meanwhile.
        let mut open = lock(&self.open);
        *lock(&self.records) = Arc::clone(records);
        open.drain(..).for_each(|stream| stream.abort());
        Ok(())
    }

    fn certificate(&self, public_key: [u8; 32]) -> Result<String, SinkError> {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        self.certifier.certificate(public_key, self.instance, now)
    }

    fn open(&self) -> Result<RecordStream, SinkError> {
        if self.silent.load(Ordering::SeqCst) {
            return Err(SinkError("silent".into()));
        }
        let (up, chunks) = mpsc::channel::<Bytes>(8);
        let (acks, down) = mpsc::channel(64);
        let body = stream::unfold(chunks, |mut chunks| async move {
            let chunk = chunks.recv().await?;
            Some((Ok::<Bytes, ()>(chunk), chunks))
        });
        let caller = Caller {
            namespace: "agents".into(),
            service_account: "agent".into(),
            pod_uid: POD.into(),
            instance: self.instance,
        };
        let mut open = lock(&self.open);
        let records = Arc::clone(&lock(&self.records));
        let mut lines = Box::pin(records.accept(caller, body));
        #[allow(clippy::disallowed_methods)] // The test's runtime owns it; it ends with its channels.
        let stream = tokio::spawn(async move {
            while let Some(lines) = lines.next().await {
                for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let Ok(ack) = serde_json::from_slice(line) else { return };
                    if acks.send(ack).await.is_err() {
                        return;
                    }
                }
            }
        });
        open.push(stream.abort_handle());
        Ok(RecordStream { up, down })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RecordSink for Wire {
    fn certify(&self, public_key: [u8; 32]) -> BoxFuture<'_, Result<String, SinkError>> {
        async move { self.certificate(public_key) }.boxed()
    }

    fn connect(&self) -> BoxFuture<'_, Result<RecordStream, SinkError>> {
        async move { self.open() }.boxed()
    }
}

/// A running log with its store.
pub struct Recording {
    /// The log.
    pub log: Arc<Log>,
    /// The store.
    pub records: Arc<Records>,
    /// What lies between.
    pub wire: Arc<Wire>,
    stop: CancellationToken,
    run: tokio::task::JoinHandle<()>,
}

/// Opens the store below `state`.
pub fn store(state: &Path) -> anyhow::Result<Arc<Records>> {
    Ok(Records::open(RecordsOptions::new(state.join("records"), "local"))?)
}

impl Recording {
    /// Starts instance `instance` on `state/journal`, uploading to `records`.
    pub fn start(state: &Path, records: Arc<Records>, instance: u64) -> anyhow::Result<Recording> {
        let volume = Arc::new(DirectoryVolume::open(&state.join("journal"))?);
        Self::start_on(volume, Arc::new(SystemClock::default()), records, instance)
    }

    /// As [`Recording::start`], on any volume and clock.
    pub fn start_on(
        volume: Arc<dyn Volume>,
        clock: Arc<dyn Clock>,
        records: Arc<Records>,
        instance: u64,
    ) -> anyhow::Result<Recording> {
        let log = Log::start(LogOptions {
            volume,
            identity: identity(instance),
            clock,
            random: Arc::new(SystemRandom),
        })?;
        let wire = Wire::new(Arc::clone(&records), instance)?;
        let stop = CancellationToken::new();
        let sink: Arc<dyn RecordSink> = Arc::<Wire>::clone(&wire);
        #[allow(clippy::disallowed_methods)] // Joined in `stop`, aborted in `kill`.
        let run = tokio::spawn(Arc::clone(&log).run(sink, stop.clone()));
        Ok(Recording {
            log,
            records,
            wire,
            stop,
            run,
        })
    }

    /// Begins a session.
    pub fn session(&self) -> anyhow::Result<SessionRecorder> {
        Ok(self.session_in(Durability::Journal)?)
    }

    /// Begins a session in a class, with full content.
    pub fn session_in(&self, durability: Durability) -> Result<SessionRecorder, CannotRecord> {
        let class = Class {
            durability,
            ..Class::default()
        };
        self.log.open(Uuid::now_v7(), class, &open(class))
    }

    /// Another store's collector takes what comes from now on.
    pub fn move_to(&mut self, records: &Arc<Records>) -> anyhow::Result<()> {
        self.records = Arc::clone(records);
        self.wire.to(records)
    }

    /// Graceful stop: everything sealed, uploaded and under a checkpoint.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.run.await.context("the log's task")?;
        last_checkpoint(self.records).await;
        Ok(())
    }

    /// SIGKILL: nothing more runs.
    pub async fn kill(self) {
        self.run.abort();
        let _ = self.run.await;
    }
}

/// Who writes every recording.
pub fn identity(instance: u64) -> LogIdentity {
    LogIdentity {
        cluster: "local".into(),
        namespace: "agents".into(),
        service_account: "agent".into(),
        pod: "agent-0".into(),
        pod_uid: POD.into(),
        instance,
        release: "test".into(),
        separation: "none".into(),
    }
}

/// The store's keeper runs once, as at a graceful stop.
pub async fn last_checkpoint(records: Arc<Records>) {
    let stopped = CancellationToken::new();
    stopped.cancel();
    records.run(stopped).await;
}

/// What a session's `open` says here.
pub fn open(recording: Class) -> Open<'static> {
    Open {
        subject: Subject {
            namespace: "agents".into(),
            service_account: "agent".into(),
            pod: "agent-0".into(),
            pod_uid: POD.into(),
            labels: Default::default(),
        },
        target: "shop/orders".into(),
        target_uid: None,
        protocol: "postgres".into(),
        peer: None,
        peer_uid: Some(1000),
        address: Some("db.example:5432".into()),
        durability: format!("{:?}", recording.durability).into(),
        content: format!("{:?}", recording.content).into(),
        separation: "none".into(),
        bundle: "b1".into(),
        weakenings: Vec::new(),
        terminal: None,
    }
}

/// One operation: intent, durable; reply; outcome.
pub fn operate(session: &mut SessionRecorder, op: u64, text: &str, reply: &[u8]) -> anyhow::Result<()> {
    session.event(
        Kind::Intent,
        Some(op),
        &Intent {
            verb: "Read".into(),
            action: "Query".into(),
            text: Some(text.into()),
            decision: "allow".into(),
            rules: vec!["shop/reads".into()],
            bundle: "b1".into(),
            ..Intent::default()
        },
    )?;
    session.commit()?;
    session.body(op, reply);
    session.outcome(
        op,
        Outcome {
            tag: Some("SELECT 1".into()),
            rows: Some(1),
            bytes: reply.len() as u64,
            lat_us: 1200,
            ..Outcome::default()
        },
    )?;
    Ok(())
}

/// A refusal.
pub fn refuse(session: &mut SessionRecorder, op: u64, text: &str) -> anyhow::Result<()> {
    session.event(
        Kind::Denied,
        Some(op),
        &Denied {
            reason: sidegate_policies::reason::Reason::Denied,
            rule: Some("shop/no-ddl".into()),
            text: Some(text.into()),
            shown: "Sidegate refused this statement. It was not sent.".into(),
            id: "sg-7k2f9c".into(),
            bundle: None,
            cause: None,
        },
    )?;
    Ok(session.commit()?)
}

/// The close of a client that left.
pub fn left(operations: u64) -> Close<'static> {
    Close {
        reason: "client".into(),
        operations,
        ..Close::default()
    }
}

/// A small store: three segments, five sessions (one alone, two interleaved, one long, one refused).
pub async fn small_store(state: &Path) -> anyhow::Result<Vec<Uuid>> {
    let recording = Recording::start(state, store(state)?, 1)?;
    let mut ids = Vec::new();
    let mut alone = recording.session()?;
    alone.opened().await?;
    operate(&mut alone, 1, "select 1", b"one")?;
    alone.close(left(1));
    ids.push(alone.id());
    let (mut a, mut b) = (recording.session()?, recording.session()?);
    for op in 1..4 {
        operate(&mut a, op, "select a from t", b"aaaa")?;
        operate(&mut b, op, "select b from t", b"bbbb")?;
    }
    refuse(&mut b, 4, "drop table t")?;
    a.close(left(3));
    b.close(left(3));
    ids.extend([a.id(), b.id()]);
    let mut last = recording.session()?;
    operate(&mut last, 1, "select last", &vec![7; 300_000])?;
    last.close(left(1));
    ids.push(last.id());
    recording.stop().await?;
    Ok(ids)
}
