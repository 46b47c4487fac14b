//! Doubles for tests of the waist: people who answer by script, a collector that acknowledges, a compiled bundle.
//!
//! Everything else in these tests is the real thing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use serde_json::json;
use sidegate_policies::api::access_request::RequestState;
use sidegate_policies::engine::TargetId;
use sidegate_policies::record::{stream, Kind};
use sidegate_policies::wire::{
    ApprovalAsk, ApprovalClaim, ApprovalOutcome, ApprovalState, Lease, LeaseMaterial, LeaseRequest, RecordAck,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::accept::Listeners;
use crate::approvals::{Approver, ApproverError};
use crate::authority::{Authority, Separation};
use crate::bundle_source::{Enforcer, Seals};
use crate::credentials::{CredentialError, Credentials, LeaseSource};
use crate::dial::names::Names;
use crate::dial::DialContext;
use crate::protocols::RoomContext;
use crate::record::{
    DirectoryVolume, Log, LogIdentity, LogOptions, RecordSink, RecordStream, SinkError, SystemClock, SystemRandom,
};
use crate::session::tests::subject;
use crate::staleness::Limits;
use crate::task::Tasks;
use crate::tls::agent::AgentTls;

/// People by script.
pub struct People {
    state: watch::Sender<RequestState>,
    /// Everything asked.
    pub asked: Mutex<Vec<ApprovalAsk>>,
    /// Everything claimed.
    pub claims: Mutex<Vec<ApprovalClaim>>,
    /// How claimed operations ended.
    pub outcomes: Mutex<Vec<ApprovalOutcome>>,
    /// What was withdrawn.
    pub withdrawn: Mutex<Vec<String>>,
    /// Unreachable.
    pub down: std::sync::atomic::AtomicBool,
}

impl People {
    fn new() -> Self {
        People {
            state: watch::Sender::new(RequestState::Pending),
            asked: Mutex::default(),
            claims: Mutex::default(),
            outcomes: Mutex::default(),
            withdrawn: Mutex::default(),
            down: false.into(),
        }
    }

    /// They decide.
    pub fn say(&self, state: RequestState) {
        self.state.send_replace(state);
    }

    fn answer(&self, won: bool) -> ApprovalState {
        ApprovalState {
            name: "ar-test01".into(),
            state: *self.state.borrow(),
            decided_by: vec!["unix:ann".into()],
            until_ms: jiff::Timestamp::now().as_millisecond() + 60_000,
            won,
        }
    }
}

impl Approver for Arc<People> {
    fn ask(&self, ask: ApprovalAsk) -> BoxFuture<'static, Result<ApprovalState, ApproverError>> {
        let people = self.clone();
        async move {
            if people.down.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(ApproverError::Unavailable);
            }
            people.asked.lock().unwrap().push(ask);
            Ok(people.answer(false))
        }
        .boxed()
    }

    fn wait(
        &self,
        _name: String,
        known: ApprovalState,
        seconds: u64,
    ) -> BoxFuture<'static, Result<ApprovalState, ApproverError>> {
        let people = self.clone();
        async move {
            let mut state = people.state.subscribe();
            let moved = state.wait_for(|state| *state != known.state);
            let _ = tokio::time::timeout(Duration::from_secs(seconds), moved).await;
            Ok(people.answer(false))
        }
        .boxed()
    }

    fn claim(&self, _name: String, claim: ApprovalClaim) -> BoxFuture<'static, Result<ApprovalState, ApproverError>> {
        self.claims.lock().unwrap().push(claim);
        let won = self.state.send_if_modified(|state| {
            let granted = *state == RequestState::Granted;
            if granted {
                *state = RequestState::Claimed;
            }
            granted
        });
        let answer = self.answer(won);
        async move { Ok(answer) }.boxed()
    }

    fn outcome(&self, _name: String, outcome: ApprovalOutcome) -> BoxFuture<'static, Result<(), ApproverError>> {
        self.outcomes.lock().unwrap().push(outcome);
        async { Ok(()) }.boxed()
    }

    fn withdraw(&self, name: String) -> BoxFuture<'static, Result<(), ApproverError>> {
        self.withdrawn.lock().unwrap().push(name);
        async { Ok(()) }.boxed()
    }
}

/// Acknowledges every frame and keeps its kind.
#[derive(Default)]
pub struct Collector {
    /// Kinds of the frames that arrived, in order.
    pub kinds: Arc<Mutex<Vec<Kind>>>,
}

impl RecordSink for Collector {
    fn certify(&self, _public_key: [u8; 32]) -> BoxFuture<'_, Result<String, SinkError>> {
        async { Err(SinkError("no certificates here".into())) }.boxed()
    }

    fn connect(&self) -> BoxFuture<'_, Result<RecordStream, SinkError>> {
        let (up, mut frames) = mpsc::channel::<Bytes>(64);
        let (acks, down) = mpsc::channel(1024);
        let kinds = self.kinds.clone();
        Tasks::default().spawn("collector", async move {
            let mut buffer = BytesMut::new();
            while let Some(bytes) = frames.recv().await {
                buffer.extend_from_slice(&bytes);
                let mut upto = None;
                while let Ok(Some((item, length))) = stream::parse(&buffer) {
                    if let stream::Item::Frame(frame) = item {
                        kinds.lock().unwrap().push(frame.header.kind);
                        upto = Some(frame.header.log_number);
                    }
                    let _ = buffer.split_to(length);
                }
                if let Some(upto) = upto {
                    if acks.send(RecordAck::Received { upto }).await.is_err() {
                        return;
                    }
                }
            }
        });
        async move { Ok(RecordStream { up, down }) }.boxed()
    }
}

struct Passwords;

impl LeaseSource for Passwords {
    fn lease(&self, _request: LeaseRequest) -> BoxFuture<'static, Result<Lease, CredentialError>> {
        let lease = Lease {
            id: "lease-1".into(),
            material: LeaseMaterial::Password {
                user: "app".into(),
                password: "canary-secret".into(),
            },
            expires_in: 3_600,
        };
        async { Ok(lease) }.boxed()
    }

    fn give_back(&self, _id: String) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

/// What a bench's sidecar may use, in bytes; nothing measures it here but the tests.
const MEMORY: u64 = 1 << 30;

/// A sidecar without a broker.
pub struct Bench {
    /// What is in force.
    pub authority: Arc<Authority>,
    /// People.
    pub people: Arc<People>,
    /// Puts things into force.
    pub enforcer: Enforcer,
    /// What rooms get.
    _context: RoomContext,
    /// Kinds of recorded frames.
    pub recorded: Arc<Mutex<Vec<Kind>>>,
    /// Ends leases and the log.
    _stop: CancellationToken,
    _journal: tempfile::TempDir,
}

impl Bench {
    /// A bench whose broker has spoken and whose collector answers.
    pub fn new() -> Bench {
        Bench::for_agent(None)
    }

    /// The same, for one user's connections.
    pub fn for_agent(agent_uid: Option<u32>) -> Bench {
        Bench::with(agent_uid, Limits::default())
    }

    /// The same, for workloads that meet a silent broker like this.
    pub fn meeting_silence(limits: Limits) -> Bench {
        Bench::with(None, limits)
    }

    /// The same, for a pod whose hosts file leads names to these addresses.
    pub fn named(named: BTreeMap<TargetId, SocketAddrV4>) -> Bench {
        Bench::made(None, Limits::default(), named)
    }

    fn with(agent_uid: Option<u32>, limits: Limits) -> Bench {
        Bench::made(agent_uid, limits, BTreeMap::new())
    }

    fn made(agent_uid: Option<u32>, limits: Limits, named: BTreeMap<TargetId, SocketAddrV4>) -> Bench {
        let (people, tasks, stop) = (Arc::new(People::new()), Tasks::default(), CancellationToken::new());
        let approver: Arc<dyn Approver> = Arc::new(people.clone());
        let authority = Authority::new(approver, tasks.clone(), Separation::None);
        let authority = Arc::new(authority.limited_to(Some(MEMORY)).meeting_silence(limits));
        let journal = tempfile::tempdir().unwrap();
        let log = Log::start(LogOptions {
            volume: Arc::new(DirectoryVolume::open(&journal.path().join("journal")).unwrap()),
            identity: LogIdentity::default(),
            clock: Arc::new(SystemClock::default()),
            random: Arc::new(SystemRandom),
        });
        let log = log.unwrap();
        let collector = Collector::default();
        let recorded = collector.kinds.clone();
        tasks.spawn("record", log.clone().run(Arc::new(collector), stop.clone()));
        authority.records_to(log);
        authority.attested((*subject()).clone());
        let credentials = Credentials::new(
            Arc::new(Passwords),
            authority.sessions.clone(),
            tasks.clone(),
            stop.clone(),
        );
        let context = RoomContext {
            credentials: Arc::new(credentials),
            dial: Arc::new(DialContext::new(Names::new(&[]), true)),
            tls: Arc::new(AgentTls::new().unwrap()),
            tasks,
            metrics: authority.metrics.clone(),
            shared: Arc::default(),
        };
        let listeners = Listeners::new(authority.clone(), context.clone(), agent_uid).named(named);
        let enforcer = Enforcer {
            authority: authority.clone(),
            listeners: Arc::new(listeners),
            seals: Seals::pinned(&crate::bundle_source::signing::Signer::new().ca_pem).unwrap(),
        };
        let bench = Bench {
            authority,
            people,
            enforcer,
            _context: context,
            recorded,
            _stop: stop,
            _journal: journal,
        };
        bench.alive();
        let _ = bench.enforcer.deny(Default::default());
        bench
    }

    /// The broker speaks.
    pub fn alive(&self) {
        self.authority.heard();
    }

    /// Puts a bundle of these targets and policies into force.
    pub fn enforce(&self, targets: serde_json::Value, policies: serde_json::Value) {
        let body = json!({
            "cluster": "local", "targets": targets, "policies": policies, "clusterPolicies": [],
            "digestKey": crate::secret::base64url(&[7; 32]),
        })
        .to_string();
        let version = sidegate_policies::bundle::version(body.as_bytes());
        let bundle = self
            .enforcer
            .compile(&version, &body, &crate::bundle_source::signing::statement(&version));
        drop(self.enforcer.enforce(bundle.unwrap_or_else(|error| panic!("{error}"))));
        self.authority.confirmed();
    }

    /// Waits until a kind of frame has reached the collector.
    pub async fn until_recorded(&self, kind: Kind) {
        for _ in 0..500 {
            if self.recorded.lock().unwrap().contains(&kind) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {kind:?} in {:?}", self.recorded.lock().unwrap());
    }
}

/// A Target on loopback.
pub fn target(protocol: &str, address: u16, listen: u16) -> serde_json::Value {
    json!({
        "target": {
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target",
            "metadata": {"name": "shop", "namespace": "data", "uid": "uid-shop"},
            "spec": {
                "protocol": protocol,
                "address": {"host": "127.0.0.1", "port": address},
                "tls": {"mode": "Disabled"},
                "credential": {"none": {}},
                "listen": {"port": listen},
            },
        },
        "loopback": true,
    })
}

/// A policy for `agents/support` on `data/shop`.
pub fn policy(rules: serde_json::Value, limits: serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": {"name": "support", "namespace": "data"},
        "spec": {
            "targetRefs": [{"name": "shop"}],
            "subjects": [{"serviceAccount": {"namespace": "agents", "name": "support"}}],
            "rules": rules, "limits": limits,
        },
    })
}

/// A port nobody has right now, on any family.
pub fn free_port() -> u16 {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap().port()
}

/// A server that sends back what it gets and closes when its peer does.
pub async fn echo() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Tasks::default().spawn("echo", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            Tasks::default().spawn("echo connection", async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
            });
        }
    });
    address
}
