//! What stands around a fuzzed session: bundle, catalog, journal and lease, made once for the process.
//!
//! The bundle masks `app.people`, lets `app.orders` be written, and refuses `app.vault` and every command that
//! destroys. The journal's disk swallows everything. The target's address is one that the dial guard refuses, so
//! nothing of a session ever opens a socket.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use serde_json::{json, Value};
use sidegate_policies::bundle::Bundle;
use sidegate_policies::compile::compile_body;
use sidegate_policies::engine::Subject;
use sidegate_policies::mask::Keys;
use sidegate_policies::sql::postgres::catalog::{Catalog, CatalogBuilder, QUERIES};
use sidegate_policies::wire::{
    ApprovalAsk, ApprovalClaim, ApprovalOutcome, ApprovalState, Lease, LeaseMaterial, LeaseRequest,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::super::catalog::Snapshot;
use super::super::codec::ServerScanner;
use super::super::conversation::Conversation;
use super::super::mask::cells::MaskKit;
use super::super::mask::echo::Echo;
use super::super::planner::Planner;
use super::super::plans::PlanCache;
use super::super::relay::{Parts, Relay};
use super::pipe::Pipe;
use super::PASSWORD;
use crate::approvals::{Approver, ApproverError};
use crate::authority::{Authority, InForce, Separation};
use crate::credentials::{CredentialError, Credentials, LeaseSource};
use crate::dial::names::Names;
use crate::dial::DialContext;
use crate::gate::Gate;
use crate::protocols::RoomContext;
use crate::record::{Log, LogIdentity, LogOptions, SegmentFile, SystemClock, SystemRandom, Volume};
use crate::session::Session;
use crate::target::TargetState;
use crate::task::Tasks;
use crate::tls::agent::AgentTls;
use crate::upstream::Upstream;

/// What the session's application_name begins with.
pub const PREFIX: &str = "sg:agents/support:000000000000";
/// The database.
pub const DATABASE: &str = "shop";
/// A log takes this many sessions, so that what it keeps of each does not pile up.
const SESSIONS_PER_LOG: u64 = 512;

/// Everything that sessions share.
pub struct World {
    /// The runtime whose clock sessions use.
    pub runtime: tokio::runtime::Runtime,
    /// What rooms get.
    pub ctx: RoomContext,
    /// Plans of sessions whose texts are always the same few.
    pub plans: Arc<PlanCache>,
    /// Names of the shop.
    pub catalog: Arc<Catalog>,
    authority: Arc<Authority>,
    /// Without and with limits and detectors.
    targets: [Arc<TargetState>; 2],
    subject: Arc<Subject>,
    sessions: AtomicU64,
}

/// The world of this process.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(World::new)
}

impl World {
    fn new() -> World {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // One after the other, so that the end of the last is the end of all.
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let tasks = Tasks::default();
        let authority = Arc::new(Authority::new(Arc::new(Nobody), tasks.clone(), Separation::None));
        let subject = Subject {
            namespace: "agents".into(),
            service_account: "support".into(),
            pod: "support-1".into(),
            pod_uid: "uid-1".into(),
            labels: Default::default(),
        };
        authority.attested(subject.clone());
        authority.armed();
        authority.confirmed();
        let bundle = authority.enforce(bundle());
        let target = |name: &str| {
            bundle
                .targets
                .values()
                .find(|target| &*target.id.name == name)
                .unwrap()
                .clone()
        };
        let leases = Credentials::new(
            Arc::new(Leases),
            authority.sessions.clone(),
            tasks.clone(),
            CancellationToken::new(),
        );
        let targets = [target("plain"), target("capped")];
        for target in &targets {
            // From here on no session waits for one.
            runtime.block_on(leases.lease(target)).unwrap();
        }
        World {
            ctx: RoomContext {
                credentials: Arc::new(leases),
                dial: Arc::new(DialContext::new(Names::new(&[]), false)),
                tls: Arc::new(AgentTls::new().unwrap()),
                tasks,
                metrics: authority.metrics.clone(),
                shared: Arc::default(),
            },
            runtime,
            plans: Arc::default(),
            catalog: Arc::new(catalog()),
            targets,
            authority,
            subject: Arc::new(subject),
            sessions: AtomicU64::new(0),
        }
    }

    /// A gate for a new session; `capped`: limits and detectors are on.
    pub fn gate(&self, capped: bool) -> Gate {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(SESSIONS_PER_LOG) {
            self.authority.records_to(log());
        }
        self.authority.heard();
        let target = self.targets[usize::from(capped)].clone();
        let session = Session::new(number, self.subject.clone(), target, None);
        Gate::new(Arc::new(session), self.authority.clone())
    }

    /// A relay behind both logins. `rest`: what the agent said behind its start-up packet.
    pub fn relay<A>(
        &self,
        (agent, rest, server): (A, BytesMut, Pipe),
        mut gate: Gate,
        major: u32,
        plans: &Arc<PlanCache>,
    ) -> Relay<A, Pipe>
    where
        A: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let target = gate.session().target.clone();
        let planner = Planner {
            cache: plans.clone(),
            snapshot: Arc::new(Snapshot::holding(self.catalog.clone())),
            target,
            subject: self.subject.account(),
            major,
            prefix: PREFIX.to_owned(),
            scope: None,
            last: None,
        };
        Relay::new(Parts {
            agent,
            rest,
            upstream: Upstream::after_login(server),
            server_in: ServerScanner::default(),
            masks: MaskKit::new(Keys::from_bytes(&[7; 32]), gate.masks()),
            gate,
            ctx: self.ctx.clone(),
            conversation: Conversation::new(DATABASE, "agent", "app", b'I'),
            planner,
            key: None,
            server_key: None,
            echo: Echo::new(&[PASSWORD.as_bytes()]),
        })
    }
}

fn bundle() -> InForce {
    let target = |name: &str| {
        json!({
            "target": {
                "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target",
                "metadata": {"name": name, "namespace": "data", "uid": name},
                "spec": {
                    "protocol": "Postgres", "address": {"host": "127.0.0.1", "port": 1}, "databases": [DATABASE],
                    "tls": {"mode": "Disabled"}, "weakLogin": "Anywhere", "credential": {"secret": {"name": "agent"}},
                    "listen": {"port": 15432}, "recording": {"durability": "BestEffort", "content": "Full"},
                },
            },
            "loopback": false,
        })
    };
    let masks = json!([
        {"columns": ["app.people.email"], "as": {"redact": {}}},
        {"columns": ["app.people.ssn"], "as": {"keepLast": {"count": 4}}},
        {"columns": ["app.people.born"], "as": {"dateTrunc": {"unit": "Month"}}},
    ]);
    let detectors = json!([{"detect": ["CreditCard", "Email", "IpAddress"], "as": {"redact": {}}}]);
    let policies = [
        policy("plain", &masks, &json!({})),
        policy("capped", &masks, &json!({"rows": 20, "bytes": "4Ki"})),
        policy_of("capped", "detect", &json!([]), &detectors, &json!({})),
    ];
    let body = json!({
        "cluster": "local", "targets": [target("plain"), target("capped")], "policies": policies,
        "clusterPolicies": [], "digestKey": crate::secret::base64url(&[7; 32]),
    })
    .to_string();
    let parsed: Bundle = serde_json::from_str(&body).unwrap();
    let targets = parsed.targets.iter().filter_map(TargetState::bundled);
    InForce {
        generation: 0,
        version: sidegate_policies::bundle::version(body.as_bytes()).into(),
        revisions: Default::default(),
        cluster: parsed.cluster,
        policies: compile_body(body.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}")),
        targets: targets.map(|target| (target.id.clone(), Arc::new(target))).collect(),
        unread: Default::default(),
        digest_key: vec![7; 32],
    }
}

fn policy(target: &str, masks: &Value, limits: &Value) -> Value {
    let rules = json!([
        {"name": "read", "effect": "Allow", "sql": {"commands": ["Select", "Explain"], "tables": ["app.people", "app.orders"]}},
        {"name": "write", "effect": "Allow", "sql": {"commands": ["Insert", "Update", "Delete"], "tables": ["app.orders"]}},
        {"name": "no-delete-all", "effect": "Deny", "sql": {"commands": ["Update", "Delete"]}, "when": "!sql.filtered"},
        {"name": "ask", "effect": "Ask", "sql": {"commands": ["Delete"]}, "ask": {"approvers": [{"anyone": {}}]}},
        {"name": "one", "effect": "Deny", "sql": {"commands": ["Update"]}, "when": "sql.params.exists(p, p == 7)"},
        {"name": "session", "effect": "Allow", "sql": {"commands": ["Set", "Transaction", "Lock", "Listen", "Notify"]}},
        {"name": "create", "effect": "Allow", "sql": {"commands": ["Create"]}},
        {"name": "vault", "effect": "Deny", "sql": {"tables": ["app.vault"]}},
    ]);
    policy_of(target, "support", &rules, masks, limits)
}

fn policy_of(target: &str, name: &str, rules: &Value, masks: &Value, limits: &Value) -> Value {
    json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": {"name": format!("{name}-{target}"), "namespace": "data"},
        "spec": {
            "targetRefs": [{"name": target}],
            "subjects": [{"serviceAccount": {"namespace": "agents", "name": "support"}}],
            "rules": rules, "masks": masks, "limits": limits,
        },
    })
}

/// Number, name, kind and columns with their types.
type Table = (u32, &'static str, &'static str, &'static [(&'static str, u32)]);

const TABLES: [Table; 4] = [
    (
        20_000,
        "people",
        "r",
        &[("id", 23), ("email", 25), ("ssn", 25), ("note", 25), ("born", 1082)],
    ),
    (
        20_001,
        "orders",
        "r",
        &[("id", 23), ("person_id", 23), ("amount", 1700), ("note", 25)],
    ),
    (20_002, "vault", "r", &[("id", 23), ("secret", 25)]),
    (20_003, "contacts", "v", &[("id", 23), ("address", 25)]),
];

/// The shop's names.
fn catalog() -> Catalog {
    let row = |cells: &[&str]| -> Vec<Option<String>> { cells.iter().map(|cell| Some((*cell).to_owned())).collect() };
    let mut builder = CatalogBuilder::new(1);
    for (section, _) in QUERIES {
        let mut rows = Vec::new();
        match *section {
            "server" => rows.push(row(&["150014"])),
            "schemas" => rows.extend([row(&["pg_catalog", "t"]), row(&["app", "t"])]),
            "views" => rows.push(row(&["20003", "SELECT p.id, p.email AS address FROM app.people p;"])),
            "relations" => {
                rows.extend(TABLES.map(|(oid, name, kind, _)| row(&[&oid.to_string(), "app", name, kind, "0"])))
            }
            "columns" => {
                for (oid, _, _, columns) in TABLES {
                    for (at, (name, kind)) in columns.iter().enumerate() {
                        let (oid, at, kind) = (oid.to_string(), (at + 1).to_string(), kind.to_string());
                        rows.push(row(&[oid.as_str(), &at, name, &kind, "-1", "f", "f"]));
                    }
                }
            }
            _ => {}
        }
        builder.section(section, rows).unwrap();
    }
    builder.finish().unwrap()
}

fn log() -> Arc<Log> {
    let options = LogOptions {
        volume: Arc::new(Nowhere(Mutex::default())),
        identity: LogIdentity::default(),
        clock: Arc::new(SystemClock::default()),
        random: Arc::new(SystemRandom),
    };
    Log::start(options).unwrap()
}

/// Nobody answers: what asks is refused.
struct Nobody;

impl Approver for Nobody {
    fn ask(&self, _: ApprovalAsk) -> BoxFuture<'static, Result<ApprovalState, ApproverError>> {
        async { Err(ApproverError::TooMany) }.boxed()
    }
    fn wait(&self, _: String, _: ApprovalState, _: u64) -> BoxFuture<'static, Result<ApprovalState, ApproverError>> {
        async { Err(ApproverError::Refused) }.boxed()
    }
    fn claim(&self, _: String, _: ApprovalClaim) -> BoxFuture<'static, Result<ApprovalState, ApproverError>> {
        async { Err(ApproverError::Refused) }.boxed()
    }
    fn outcome(&self, _: String, _: ApprovalOutcome) -> BoxFuture<'static, Result<(), ApproverError>> {
        async { Ok(()) }.boxed()
    }
    fn withdraw(&self, _: String) -> BoxFuture<'static, Result<(), ApproverError>> {
        async { Ok(()) }.boxed()
    }
}

/// The same lease for everybody.
struct Leases;

impl LeaseSource for Leases {
    fn lease(&self, _: LeaseRequest) -> BoxFuture<'static, Result<Lease, CredentialError>> {
        let material = LeaseMaterial::Password {
            user: "agent".into(),
            password: PASSWORD.into(),
        };
        let lease = Lease {
            id: "lease-1".into(),
            material,
            expires_in: 1 << 30,
        };
        async { Ok(lease) }.boxed()
    }
    fn give_back(&self, _: String) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

/// A disk that swallows everything and remembers names.
struct Nowhere(Mutex<Vec<String>>);

impl Volume for Nowhere {
    fn create_log(&self, log: &str) -> io::Result<()> {
        self.0.lock().unwrap().push(log.to_owned());
        Ok(())
    }
    fn create(&self, _: &str, _: &str, _: u64) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(Hole))
    }
    fn read(&self, _: &str, _: &str, _: u64, _: usize) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn logs(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().clone())
    }
    fn files(&self, _: &str) -> io::Result<Vec<(String, u64)>> {
        Ok(Vec::new())
    }
    fn remove(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn remove_log(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
}

struct Hole;

impl SegmentFile for Hole {
    fn append(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn cut(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}
