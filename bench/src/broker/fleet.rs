//! A cluster double of many pods, and the broker's own process that stands on it.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::BoxFuture;
use serde_json::{json, Value};
use sidegate_broker::attest::{
    AnyImage, Attestor, ClusterTrust, Issuers, Logged, PodView, Pods, Review, Shape, TokenReviewer, Unavailable,
    Untimed, SIDECAR,
};
use sidegate_broker::clock::{Clock, SystemClock};
use sidegate_broker::config::{ClusterOptions, Limits, Rate, DEFAULT_NAME};
use sidegate_broker::control::client::Client;
use sidegate_broker::folder::Folders;
use sidegate_broker::ground::{Follow, Ground};
use sidegate_broker::jwt::{Alg, KeySet, SigningKey};
use sidegate_broker::keeper::load;
use sidegate_broker::pins::{Instance, PinFiles};
use sidegate_broker::report::Findings;
use sidegate_broker::secrets::{SecretFolder, Secrets};
use sidegate_broker::{Broker, BrokerConfig, Machine, Place, Separation, StartError};
use sidegate_tests::sockets::more_sockets;

const ISSUER: &str = "https://fleet.invalid";
const AUDIENCE: &str = "bench";

/// Pods `agent-0` to `agent-N`, all of one service account, and the key that signs their tokens.
pub struct Fleet {
    key: SigningKey,
    trust: Arc<ClusterTrust>,
    pods: usize,
}

impl Fleet {
    /// With the key in this file, made by whoever comes first.
    pub fn open(path: &Path, pods: usize) -> Result<Fleet> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(_) => {
                let fresh = SigningKey::generate()?.to_vec();
                std::fs::write(path, &fresh)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                fresh
            }
        };
        let key = SigningKey::from_pkcs8(&bytes)?;
        let trust = Arc::new(ClusterTrust {
            issuer: ISSUER.to_owned(),
            keys: KeySet::new(vec![key.public().clone()]),
            algorithms: vec![Alg::Es256],
        });
        Ok(Fleet { key, trust, pods })
    }

    /// A token of a pod.
    pub fn token(&self, pod: usize) -> Result<String> {
        let now = SystemClock.now();
        Ok(self.key.sign(
            None,
            &json!({
                "iss": ISSUER, "sub": "system:serviceaccount:agents:support", "aud": [AUDIENCE],
                "iat": now, "nbf": now, "exp": now + 3600, "jti": format!("fleet-{pod}-{now}"),
                "kubernetes.io": {
                    "namespace": "agents", "serviceaccount": {"name": "support", "uid": "account"},
                    "pod": {"name": format!("agent-{pod}"), "uid": uid(pod)}, "node": {"name": "node", "uid": "node"},
                },
            }),
        )?)
    }

    fn view(&self, name: &str) -> Option<PodView> {
        let pod: usize = name.strip_prefix("agent-")?.parse().ok()?;
        (pod < self.pods).then(|| PodView {
            namespace: "agents".to_owned(),
            name: name.to_owned(),
            uid: uid(pod),
            service_account: "support".to_owned(),
            node: "node".to_owned(),
            labels: Default::default(),
            ips: None,
            deleting: false,
            alive: true,
            instance: Instance {
                count: 0,
                container: format!("containerd://{pod}"),
            },
            shape: Shape {
                token_volumes: vec!["sidegate-token".to_owned()],
                mounted_by: vec![(SIDECAR.to_owned(), true)],
                intruders: Vec::new(),
                image: String::new(),
            },
            fenced: Default::default(),
        })
    }
}

fn uid(pod: usize) -> String {
    format!("uid-{pod}")
}

impl Issuers for Fleet {
    fn trust(&self) -> Arc<ClusterTrust> {
        Arc::clone(&self.trust)
    }

    fn renew(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }
}

impl TokenReviewer for Fleet {
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> BoxFuture<'a, Result<Review, Unavailable>> {
        use base64::Engine as _;
        // The token was verified before; a review answers from the API server's cache here.
        let claims = token.split('.').nth(1).unwrap_or_default();
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(claims)
            .unwrap_or_default();
        let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
        let review = Review {
            authenticated: true,
            error: None,
            audiences: vec![audience.to_owned()],
            user: "system:serviceaccount:agents:support".to_owned(),
            groups: vec!["system:serviceaccounts".to_owned()],
            pod_uid: claims["kubernetes.io"]["pod"]["uid"].as_str().map(str::to_owned),
            credential_id: None,
        };
        Box::pin(async { Ok(review) })
    }
}

impl Pods for Fleet {
    fn pod<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>> {
        let view = self.view(name);
        Box::pin(async { Ok(view) })
    }
}

/// Whatever the sidecars' one address asks.
fn unlimited() -> Limits {
    let any = Rate {
        per_second: 1_000_000,
        burst: 1_000_000,
    };
    Limits {
        stranger: any,
        newcomer: any,
        known: any,
        exchange: any,
        pod: any,
    }
}

/// The broker's process, on a double of so many pods or on the cluster of a kubeconfig: says where it listens, then when
/// each index was in force; ends with its input.
pub fn serve(folder: &Path, place: &str) -> Result<()> {
    more_sockets()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let broker = match place.parse() {
            Ok(pods) => {
                let mut config = BrokerConfig::new(Machine::default().into(), folder.join("state"));
                config.limits = unlimited();
                let configuration = folder.join("config");
                Broker::start_on(config, |state, _| ground(state, configuration, pods)).await?
            }
            Err(_) => {
                let cluster = Place::Cluster(ClusterOptions {
                    kubeconfig: Some(place.into()),
                    namespace: super::cluster::NAMESPACE.to_owned(),
                    name: DEFAULT_NAME.to_owned(),
                    admission: Default::default(),
                });
                let mut config = BrokerConfig::new(cluster, folder.join("state"));
                config.limits = unlimited();
                Broker::start(config).await?
            }
        };
        let mut out = std::io::stdout();
        let said = json!({"url": broker.front_url, "ca": broker.ca_pem, "issuer": broker.issuer_url});
        writeln!(out, "{said}")?;
        let mut index = broker.front().index.clone();
        let mut telling = tokio::task::JoinSet::new();
        telling.spawn(async move {
            index.borrow_and_update();
            while index.changed().await.is_ok() {
                index.borrow_and_update();
                println!("{}", super::now_micros());
            }
        });
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        telling.abort_all();
        broker.shutdown().await;
        Ok(())
    })
}

fn ground(
    state: &Arc<sidegate_broker::state::StateDir>,
    configuration: PathBuf,
    pods: usize,
) -> Result<Ground, StartError> {
    let failed = |error: anyhow::Error| StartError::Records(format!("{error:#}"));
    let fleet = Arc::new(Fleet::open(&state.path("fleet.p8"), pods).map_err(failed)?);
    let folders = Folders::new(vec![configuration]);
    let seen = folders.fingerprint();
    let (objects, warnings) = load(&folders).map_err(StartError::Config)?;
    Ok(Ground {
        attestor: Attestor {
            audience: AUDIENCE.to_owned(),
            issuers: fleet.clone(),
            reviewer: fleet.clone(),
            pods: fleet,
            pins: Arc::new(PinFiles::open(state)?),
            notices: Arc::new(Logged),
            images: Arc::new(AnyImage),
            strangers: Default::default(),
            looked: Default::default(),
            timed: Arc::new(Untimed),
            clock: Arc::new(SystemClock),
        },
        secrets: Secrets::Folder(SecretFolder::new(None)),
        objects,
        withheld: Default::default(),
        revisions: None,
        lockdowns: Vec::new(),
        findings: Findings {
            problems: Vec::new(),
            warnings,
        },
        separation: Separation::None,
        local: None,
        follow: Follow::Folders(folders, seen),
        shared: None,
    })
}

/// One call to the broker's control socket.
pub fn control(state: &Path, path: &str, body: &Value) -> Result<()> {
    let client = Client {
        state,
        deadline: Duration::from_secs(10),
        largest: 1 << 20,
        absent: "the broker is gone",
    };
    client.call::<Value>(http::Method::POST, path, Some(body)).map(|_| ())
}
