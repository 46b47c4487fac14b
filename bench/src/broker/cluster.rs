//! The broker on a real API server: exchanges of tokens that it signed (RS256), and what is applied there, until a
//! thousand streams have it and until real sidecars obey.
//!
//! Every pod, token and object is made through the API server, whose own work is in the figures; it runs on the same
//! two cores. Without its programs the rows are left out, and the reason is printed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{json, Value};
use sidegate_sidecar::app::{Running, Sidecar};
use sidegate_sidecar::authority::Separation;
use sidegate_sidecar::broker::Url;
use sidegate_sidecar::config::{PodFacts, SidecarConfig};
use sidegate_tests::cluster::{Cluster, Programs};
use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::shop::{self, DATABASE, PASSWORD, ROLE};
use sidegate_tests::wire::{query, state, Wire};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::client::{self, Connection};
use super::{exchanges, late, now_micros, open_all, sidecars, take, Seen, Served, Tokens, OPENING, PATIENCE};
use crate::report::{median, Report};
use crate::Plan;

/// Where the broker's chart is installed.
pub const NAMESPACE: &str = "sidegate-system";
const AGENTS: &str = "agents";
/// Pods that open a stream, and as many that only exchange: a pod keeps its key.
const PODS: usize = 1_000;
/// Sidecars with a listener and a session each.
const REAL: usize = 10;
/// Calls under way at once while pods and tokens are made.
const CALLS: usize = 32;
/// Changes of a policy that one sidecar obeys.
const CHANGES: usize = 50;

/// The API server, as its administrator.
#[derive(Clone)]
struct Api {
    server: String,
    connection: Connection,
    token: String,
}

impl Api {
    async fn connect(cluster: &Cluster) -> Result<Api> {
        let (ca, token) = cluster.admin()?;
        Ok(Api {
            server: cluster.server.clone(),
            connection: client::connect(&cluster.server, client::tls(&ca)?).await?,
            token,
        })
    }

    /// One call; the object in the answer.
    async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let kind = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", kind)
            .body(Full::new(Bytes::from(body.to_string())).boxed())?;
        let mut connection = self.connection.clone();
        connection.ready().await?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        ensure!(
            status.is_success(),
            "{path}: {status}: {}",
            String::from_utf8_lossy(&bytes)
        );
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Makes pods of one account, and a token bound to each.
    async fn pods(&self, names: Vec<String>, account: &str, audience: &str) -> Result<Vec<String>> {
        let turns = Arc::new(tokio::sync::Semaphore::new(CALLS));
        let mut tasks = JoinSet::new();
        for (at, name) in names.into_iter().enumerate() {
            let turn = Arc::clone(&turns).acquire_owned().await?;
            let (api, account, audience) = (self.clone(), account.to_owned(), audience.to_owned());
            tasks.spawn(async move {
                let pods = format!("/api/v1/namespaces/{AGENTS}/pods");
                api.call(Method::POST, &pods, &pod(&name, &account, &audience)).await?;
                let wanted = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
                    "audiences": [audience], "expirationSeconds": 3600,
                    "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name},
                }});
                let path = format!("/api/v1/namespaces/{AGENTS}/serviceaccounts/{account}/token");
                let given = api.call(Method::POST, &path, &wanted).await?;
                drop(turn);
                let token = given["status"]["token"].as_str().context("no token")?;
                anyhow::Ok((at, token.to_owned()))
            });
        }
        let mut tokens = Vec::new();
        while let Some(made) = tasks.join_next().await {
            tokens.push(made??);
        }
        tokens.sort();
        Ok(tokens.into_iter().map(|(_, token)| token).collect())
    }
}

/// A pod with what the broker looks at. No node takes it.
fn pod(name: &str, account: &str, audience: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": AGENTS},
        "spec": {
            "serviceAccountName": account, "nodeSelector": {"none": "has-it"}, "schedulerName": "nobody",
            "initContainers": [{
                "name": "sidegate", "image": "example.invalid/sidegate", "restartPolicy": "Always",
                "volumeMounts": [{"name": "sidegate-token", "mountPath": "/var/run/secrets/sidegate.dev/token"}],
            }],
            "containers": [{"name": "agent", "image": "example.invalid/agent"}],
            "volumes": [{"name": "sidegate-token", "projected": {"sources": [
                {"serviceAccountToken": {"audience": audience, "path": "token", "expirationSeconds": 3600}},
            ]}}],
        },
    })
}

/// Charts, namespace, the login's Secret with its grant, and a Target with a policy for each of the accounts.
fn install(cluster: &Cluster, server: &Postgres, listen: &[u16]) -> Result<()> {
    let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts");
    for (chart, namespace) in [("sidegate-crds", "default"), ("sidegate", NAMESPACE)] {
        let path = charts.join(chart);
        let path = path.to_string_lossy();
        let mut arguments = vec!["install", chart, &path, "--namespace", namespace, "--create-namespace"];
        if chart == "sidegate" {
            // None runs here, and what it is asked would be refused.
            arguments.extend(["--set", "injector.enabled=false"]);
        }
        let installed = cluster.helm(&arguments)?;
        let said = String::from_utf8_lossy(&installed.stderr);
        ensure!(installed.status.success(), "helm install {chart}: {said}");
    }
    cluster.kubectl(&["create", "namespace", AGENTS], "")?;
    let named = "--resource-name=shop-agent";
    let (user, password) = (
        format!("--from-literal=username={ROLE}"),
        format!("--from-literal=password={PASSWORD}"),
    );
    for arguments in [
        &["secret", "generic", "shop-agent", &user, &password][..],
        &["role", "shop-agent", "--verb=get", "--resource=secrets", named],
        &[
            "rolebinding",
            "shop-agent",
            "--role=shop-agent",
            "--serviceaccount=sidegate-system:sidegate-broker",
        ],
        &["serviceaccount", "support"],
    ] {
        let all: Vec<&str> = ["create", "--namespace", AGENTS]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        cluster.kubectl(&all, "")?;
    }
    let mut objects = vec![
        target("shop", server.port, 15_432),
        policy("shop", "support", 100, "first"),
    ];
    for (number, port) in listen.iter().enumerate() {
        let name = format!("real-{number}");
        objects.push(
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": AGENTS}}),
        );
        objects.push(target(&name, server.port, *port));
        objects.push(policy(&name, &name, 1, "first"));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    cluster.kubectl(&["apply", "-f", "-"], &list.to_string()).map(|_| ())
}

fn target(name: &str, port: u16, listen: u16) -> Value {
    json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target", "metadata": {"name": name, "namespace": AGENTS},
        "spec": {
            "protocol": "Postgres", "address": {"host": "127.0.0.1", "port": port}, "tls": {"mode": "Disabled"},
            "credential": {"secret": {"name": "shop-agent"}}, "listen": {"port": listen},
        },
    })
}

/// So many rules; `mark` makes it another bundle.
fn policy(name: &str, account: &str, rules: usize, mark: &str) -> Value {
    json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": name, "namespace": AGENTS},
        "spec": {
            "targetRefs": [{"name": name}],
            "subjects": [{"serviceAccount": {"namespace": AGENTS, "name": account}}],
            "rules": allowing(rules, mark),
        },
    })
}

fn allowing(rules: usize, mark: &str) -> Vec<Value> {
    let rule = |number: usize| {
        json!({"name": format!("r{number}-{mark}"), "effect": "Allow",
               "sql": {"commands": ["Select"], "tables": ["app.*"]}})
    };
    (0..rules).map(rule).collect()
}

/// The rows `broker-cluster-*`.
pub fn measure(plan: &Plan, runtime: &Runtime, report: &mut Report) -> Result<()> {
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(missing) => {
            println!("broker-cluster: SKIPPED: {}", missing.0);
            return Ok(());
        }
    };
    let cluster = Cluster::start(&programs)?;
    let server = shop::server(Major::V15, Options::default())?;
    let listen: Vec<u16> = (0..REAL).map(|_| ports::free()).collect::<std::io::Result<_>>()?;
    install(&cluster, &server, &listen)?;
    let folder = tempfile::Builder::new().prefix("sidegate-broker-bench-").tempdir()?;
    let kubeconfig = folder.path().join("broker.json");
    let account = [
        "create",
        "token",
        "sidegate-broker",
        "--namespace",
        NAMESPACE,
        "--duration",
        "2h",
    ];
    let token = cluster.kubectl(&account, "")?;
    private(&kubeconfig, &cluster.kubeconfig_of(token.trim()))?;
    let served = Served::on(folder, &kubeconfig.to_string_lossy())?;
    let api = runtime.block_on(Api::connect(&cluster))?;
    runtime.block_on(rows(plan, &api, &served, &listen, report))
}

fn private(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}

async fn rows(plan: &Plan, api: &Api, served: &Served, listen: &[u16], report: &mut Report) -> Result<()> {
    let names = (0..2 * PODS).map(|pod| format!("agent-{pod}")).collect();
    let began = Instant::now();
    let tokens = Arc::new(api.pods(names, "support", &served.issuer).await?);
    println!(
        "{} pods and tokens made in {:.1} s",
        tokens.len(),
        began.elapsed().as_secs_f64()
    );
    let from = |first: usize| -> Tokens {
        let tokens = Arc::clone(&tokens);
        Arc::new(move |pod| tokens.get(first + pod).cloned().context("no such pod"))
    };
    exchanges("broker-cluster-exchange", plan, served, &from(PODS), report).await?;

    let (tell, mut told) = tokio::sync::mpsc::channel::<Seen>(1 << 16);
    let began = Instant::now();
    let sidecars = sidecars(served, PODS);
    let mut streams = open_all(served, &from(0), &sidecars, OPENING, &tell).await?;
    let opened = began.elapsed().as_secs_f64();
    report.figure("broker-cluster-1k: all open after", "s", opened, None);
    take(&mut told, 2 * PODS, &mut streams).await?;

    let real = Sidecars::start(api, served, listen).await?;
    for round in 0..plan.rounds {
        let path = format!("/apis/sidegate.dev/v1alpha1/namespaces/{AGENTS}/accesspolicies/shop");
        let change = json!({"spec": {"rules": allowing(100, &format!("round{round}"))}});
        let applied = now_micros();
        api.call(Method::PATCH, &path, &change).await?;
        let seen = take(&mut told, PODS, &mut streams).await?;
        ensure!(
            seen.iter().all(|(_, bundle)| *bundle),
            "deny sets came instead of bundles"
        );
        let name = format!("broker-cluster-1k: policy applied to the last 1 % of streams, round {round}");
        report.figure(&name, "ms", late(&seen, applied), 300.0);
    }
    obeyed(api, &real, report).await?;
    let (mut closed, mut refused) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let name = format!("bench-{round}");
        let lockdowns = "/apis/sidegate.dev/v1alpha1/lockdowns";
        let lockdown = json!({"apiVersion": "sidegate.dev/v1alpha1", "kind": "Lockdown", "metadata": {"name": name},
            "spec": {"reason": "bench", "action": "Close", "freeze": [{"namespace": AGENTS}]}});
        let waiting = real.sessions().await?;
        let applied = now_micros();
        api.call(Method::POST, lockdowns, &lockdown).await?;
        let seen = take(&mut told, PODS, &mut streams).await?;
        ensure!(
            seen.iter().all(|(_, bundle)| !*bundle),
            "bundles came instead of deny sets"
        );
        let figure = format!("broker-cluster-1k: Lockdown applied to the last 1 % of streams, round {round}");
        report.figure(&figure, "ms", late(&seen, applied), 1_000.0);
        for (end, refusal) in ended(waiting).await? {
            closed.push(after(end, applied));
            refused.push(after(refusal, applied));
        }
        api.call(Method::DELETE, &format!("{lockdowns}/{name}"), &json!({}))
            .await?;
        take(&mut told, PODS, &mut streams).await?;
        real.serve().await?;
    }
    for (what, values) in [("session closed", closed), ("new session refused", refused)] {
        let worst = values.iter().copied().fold(0.0, f64::max);
        let name = format!("broker-cluster: Lockdown applied to {what}, worst of {}", values.len());
        report.figure(&name, "ms", worst, 1_000.0);
    }
    drop(streams);
    real.end().await;
    Ok(())
}

fn after(at: u64, began: u64) -> f64 {
    at.saturating_sub(began) as f64 / 1e3
}

/// A policy turned to Deny and back, as a session of one sidecar meets it.
async fn obeyed(api: &Api, real: &Sidecars, report: &mut Report) -> Result<()> {
    let path = format!("/apis/sidegate.dev/v1alpha1/namespaces/{AGENTS}/accesspolicies/real-0");
    let port = real.listen.first().copied().context("no sidecar")?;
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let mut rules = allowing(1, &format!("change{change}"));
        let wanted = (change % 2 == 0).then_some("42501");
        if wanted.is_some() {
            rules.push(json!({"name": "none", "effect": "Deny", "sql": {"tables": ["app.numbers"]}}));
        }
        let (ready, waiting) = tokio::sync::oneshot::channel();
        let asking = tokio::task::spawn_blocking(move || -> Result<u64> {
            let mut wire = Wire::login(port, DATABASE)?;
            let _ = ready.send(());
            let deadline = Instant::now() + PATIENCE;
            loop {
                let answer = wire.ask(&[query("SELECT n FROM app.numbers WHERE n = 1")])?;
                if state(&answer).as_deref() == wanted {
                    return Ok(now_micros());
                }
                ensure!(
                    Instant::now() < deadline && answer.last().is_some_and(|last| last.kind == b'Z'),
                    "the policy is not obeyed, change {change}: {:?}",
                    answer.last().and_then(|last| last.field(b'M'))
                );
                // What asks without a pause takes the cores from what it waits for.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        waiting.await?;
        let applied = now_micros();
        api.call(Method::PATCH, &path, &json!({"spec": {"rules": rules}}))
            .await?;
        took.push(after(asking.await??, applied));
    }
    let worst = took.iter().copied().fold(0.0, f64::max);
    let name = "broker-cluster-1k: policy applied to obeyed by a session";
    report.figure(&format!("{name}, median of {CHANGES}"), "ms", median(took), None);
    report.figure(&format!("{name}, worst of {CHANGES}"), "ms", worst, 1_000.0);
    Ok(())
}

/// Sidecars with listeners, in this process.
struct Sidecars {
    running: Vec<Running>,
    listen: Vec<u16>,
    _folder: tempfile::TempDir,
}

/// A session that waits for its end: when it ended, and when a new one was refused.
type Waiting = tokio::task::JoinHandle<Result<(u64, u64)>>;

impl Sidecars {
    async fn start(api: &Api, served: &Served, listen: &[u16]) -> Result<Sidecars> {
        let folder = tempfile::Builder::new().prefix("sidegate-sidecars-").tempdir()?;
        let mut running = Vec::new();
        for number in 0..listen.len() {
            let name = format!("real-{number}");
            let tokens = api.pods(vec![name.clone()], &name, &served.issuer).await?;
            let own = folder.path().join(&name);
            std::fs::create_dir(&own)?;
            private(&own.join("token"), tokens.first().context("no token")?)?;
            let sidecar = Sidecar::start(SidecarConfig {
                broker: Url::parse(&served.url)?,
                broker_ca_pem: served.ca.clone(),
                token_file: own.join("token"),
                ports: Vec::new(),
                name_servers: Vec::new(),
                run_dir: own.join("run"),
                journal_dir: own.join("journal"),
                allow_loopback_literals: true,
                separation: Separation::None,
                agent_uid: Some(nix::unistd::Uid::effective().as_raw()),
                lanes: sidegate_sidecar::task::LANES,
                cluster_domain: None,
                memory_limit: None,
                pod: PodFacts::default(),
                metrics: Vec::new(),
                staleness: Default::default(),
                fenced: false,
                waits: false,
            })
            .await?;
            ensure!(sidecar.ready(PATIENCE).await, "no bundle came into force");
            running.push(sidecar);
        }
        let sidecars = Sidecars {
            running,
            listen: listen.to_vec(),
            _folder: folder,
        };
        sidecars.serve().await?;
        Ok(sidecars)
    }

    /// Waits until every one lets a session in.
    async fn serve(&self) -> Result<()> {
        for port in self.listen.clone() {
            let login = tokio::task::spawn_blocking(move || {
                let deadline = Instant::now() + PATIENCE;
                while Wire::login(port, DATABASE).is_err() {
                    ensure!(Instant::now() < deadline, "no session opens");
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(())
            });
            login.await??;
        }
        Ok(())
    }

    /// Opens a session at every one.
    async fn sessions(&self) -> Result<Vec<Waiting>> {
        let mut waiting = Vec::new();
        for port in self.listen.clone() {
            let wire = tokio::task::spawn_blocking(move || Wire::login(port, DATABASE)).await??;
            waiting.push(tokio::task::spawn_blocking(move || until_refused(wire, port)));
        }
        Ok(waiting)
    }

    async fn end(self) {
        for sidecar in self.running {
            sidecar.shutdown().await;
        }
    }
}

fn until_refused(mut wire: Wire, port: u16) -> Result<(u64, u64)> {
    let last = wire.until_ready()?;
    ensure!(state(&last).as_deref() == Some("57P01"), "it did not end by a cut");
    let ended = now_micros();
    let deadline = Instant::now() + PATIENCE;
    while Wire::login(port, DATABASE).is_ok() {
        ensure!(Instant::now() < deadline, "sessions still open");
    }
    Ok((ended, now_micros()))
}

async fn ended(waiting: Vec<Waiting>) -> Result<Vec<(u64, u64)>> {
    let mut all = Vec::new();
    for session in waiting {
        all.push(session.await??);
    }
    Ok(all)
}
