//! The injector over TLS: how many reviews it answers, how late, and what each costs; and pods made through it on a real
//! API server.
//!
//! The released program is measured, as a process of its own that follows a real API server with thirty Targets and
//! policies; the load comes from this process, so the CPU is the injector's alone. Without the programs of a cluster the
//! rows are left out, and the reason is printed.

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use rustls_pki_types::ServerName;
use serde_json::{json, Value};
use sidegate_tests::authority::Authority;
use sidegate_tests::cluster::{Cluster, Programs};
use sidegate_tests::http::connector;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_rustls::TlsConnector;

use crate::contender::Running;
use crate::cpu;
use crate::report::{median, p99, Report};
use crate::Plan;

/// Connections, as API servers would keep open.
const CONNECTIONS: usize = 16;
/// How many of those there are: one source alone is let ask for 3,000 reviews a second, and this machine may ask for more.
const SOURCES: usize = 4;
/// Reviews a second at which lateness is judged.
const PACE: u32 = 500;
/// Reviews of a burst, within a second.
const BURST: u32 = 1_000;
/// Targets and policies that the injector knows.
const OBJECTS: usize = 30;
const NAMESPACE: &str = "agents";
/// Pods made through the webhook, and the length of one list of them.
const PODS: [usize; 2] = [1_000, 5_000];
const LIST: usize = 250;
/// kwok takes so many pods a node.
const PER_NODE: usize = 200;

/// An injector that runs, and how it is called.
struct Served {
    process: Running,
    address: String,
    connector: TlsConnector,
    authority: String,
    _folder: tempfile::TempDir,
}

/// Measures all of it.
pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(missing) => {
            println!("injector: left out: {}", missing.0);
            return Ok(());
        }
    };
    let mut cluster = Cluster::start(&programs)?;
    cluster.kwok()?;
    prepare(&cluster)?;
    let served = serve(&cluster)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    reviews(plan, report, &runtime, &served)?;
    if plan.wants("injector-pods") {
        pods(report, &cluster, &served)?;
    }
    Ok(())
}

/// Kinds, a profile, a namespace, and what its pods are granted.
fn prepare(cluster: &Cluster) -> Result<()> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sidegate-crds");
    let installed = cluster.helm(&["install", "kinds", &chart.to_string_lossy(), "--namespace", "default"])?;
    let said = String::from_utf8_lossy(&installed.stderr);
    ensure!(installed.status.success(), "helm install: {said}");
    // The second is where the injector's leader keeps its Lease.
    cluster.kubectl(&["create", "namespace", NAMESPACE], "")?;
    cluster.kubectl(&["create", "namespace", "sidegate-system"], "")?;
    cluster.kubectl(&["label", "namespace", NAMESPACE, "sidegate.dev/inject=enabled"], "")?;
    let digest = format!("sha256:{}", "a".repeat(64));
    let mut objects = vec![json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "InjectionProfile", "metadata": {"name": "default"},
        "spec": {"image": {"repository": "example.invalid/sidecar", "digest": digest}},
    })];
    for at in 0..OBJECTS {
        let name = format!("db-{at}");
        // Three are granted to the agent, the rest to somebody else, as on a real cluster.
        let agent = if at < 3 { "triage" } else { "other" };
        objects.push(json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "Target", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "protocol": "Postgres", "address": {"host": "db.data", "port": 5432},
                "credential": {"secret": {"name": "db"}}, "listen": {"port": 15_400 + at},
            },
        }));
        objects.push(json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "targetRefs": [{"name": name}],
                "subjects": [{"podSelector": {"matchLabels": {"agent": agent}}}],
                "rules": [{"name": "all", "effect": "Allow"}],
            },
        }));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    cluster.kubectl(&["create", "-f", "-"], &list.to_string()).map(|_| ())
}

fn serve(cluster: &Cluster) -> Result<Served> {
    let folder = tempfile::Builder::new().prefix("sidegate-bench-injector-").tempdir()?;
    let authority = Authority::new()?;
    let leaf = authority.leaf(&["127.0.0.1"])?;
    let (_, token) = cluster.admin()?;
    let install = json!({
        "brokerUrl": "https://sidegate-broker.sidegate-system.svc:8443",
        "audience": "https://sidegate-broker.sidegate-system.svc:8444",
        "nameServers": ["10.96.0.10"], "brokerCaPem": authority.pem(),
    });
    for (name, text) in [
        ("tls.crt", leaf.certificate),
        ("tls.key", leaf.key),
        ("install.yaml", install.to_string()),
        ("kubeconfig.json", cluster.kubeconfig_of(&token)),
    ] {
        std::fs::write(folder.path().join(name), text)?;
    }
    let program = std::env::current_exe()?.with_file_name("sidegate-injector");
    let file = |flag: &str, name: &str| format!("--{flag}={}", folder.path().join(name).display());
    let mut child = Command::new(&program)
        .args(["--listen=127.0.0.1:0", "--health-listen=127.0.0.1:0"])
        .args([file("tls-cert", "tls.crt"), file("tls-key", "tls.key")])
        .args([file("install", "install.yaml"), file("kubeconfig", "kubeconfig.json")])
        .env("SIDEGATE_LOG", "warn")
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
    let said: Value = serde_json::from_str(&line).context("the injector did not start")?;
    Ok(Served {
        process: Running::of(child),
        address: said["listen"].as_str().context("it says no address")?.to_owned(),
        connector: connector(authority.pem(), None)?,
        authority: authority.pem().to_owned(),
        _folder: folder,
    })
}

/// A pod as controllers make them: two containers with some environment, after the ServiceAccount admission.
fn review(at: usize) -> Vec<u8> {
    let env: Vec<Value> = (0..12)
        .map(|at| json!({"name": format!("SETTING_{at}"), "value": "x".repeat(24)}))
        .collect();
    let mounts = json!([{
        "name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true,
    }]);
    let container = |name: &str| {
        json!({
            "name": name, "image": "example.invalid/agent:1", "env": env, "volumeMounts": mounts,
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        })
    };
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": format!("uid-{at}"), "operation": "CREATE", "namespace": NAMESPACE,
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "groups": ["system:authenticated"]},
            "object": {
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"generateName": "agent-", "labels": {"agent": "triage", "pod-template-hash": "abc"}},
                "spec": {
                    "serviceAccountName": "default", "containers": [container("agent"), container("helper")],
                    "volumes": [{"name": "kube-api-access-x", "projected": {"sources": [
                        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    ]}}],
                },
            },
        },
    });
    let body = review.to_string();
    let head = "POST /mutate HTTP/1.1\r\nHost: injector\r\nContent-Type: application/json\r\nContent-Length: ";
    format!("{head}{}\r\n\r\n{body}", body.len()).into_bytes()
}

type Stream = TlsStream<TcpStream>;

async fn connect(served: &Served, worker: usize) -> Result<Stream> {
    let socket = TcpSocket::new_v4()?;
    let source = u8::try_from(worker % SOURCES)?.saturating_add(1);
    socket.bind((Ipv4Addr::new(127, 0, 0, source), 0).into())?;
    let tcp = socket.connect(served.address.parse()?).await?;
    tcp.set_nodelay(true)?;
    Ok(served
        .connector
        .connect(ServerName::try_from("127.0.0.1")?, tcp)
        .await?)
}

/// One review; it must have been answered with a patch.
async fn ask(stream: &mut Stream, request: &[u8], buffer: &mut Vec<u8>) -> Result<()> {
    stream.write_all(request).await?;
    buffer.clear();
    let (head, length) = loop {
        ensure!(stream.read_buf(buffer).await? > 0, "the injector hung up");
        let end = buffer.windows(4).position(|part| part == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
            ensure!(head.starts_with("http/1.1 200"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            break (end + 4, length.context("no length")?.parse::<usize>()?);
        }
    };
    while buffer.len() < head + length {
        ensure!(stream.read_buf(buffer).await? > 0, "the injector hung up");
    }
    let patched = buffer.windows(11).any(|part| part == b"\"patchType\"");
    ensure!(patched, "not injected: {}", String::from_utf8_lossy(&buffer[head..]));
    Ok(())
}

/// Asks on every connection for a while; at a pace, where there is one. Milliseconds of each answer, counted from the
/// moment it was due, so that what waits for a slow one counts as well.
async fn load(served: &Served, length: Duration, pace: Option<u32>) -> Result<Vec<f64>> {
    let mut tasks = JoinSet::new();
    let start = Instant::now() + Duration::from_millis(50);
    for worker in 0..CONNECTIONS {
        let mut stream = connect(served, worker).await?;
        let gap = pace.map(|pace| Duration::from_secs(1) / pace);
        tasks.spawn(async move {
            let (mut took, mut buffer, mut turn) = (Vec::new(), Vec::new(), worker);
            let request = review(worker);
            loop {
                let due = match gap {
                    Some(gap) => start + gap * u32::try_from(turn)?,
                    None => Instant::now(),
                };
                if due.saturating_duration_since(start) >= length {
                    return anyhow::Ok(took);
                }
                tokio::time::sleep_until(due.into()).await;
                ask(&mut stream, &request, &mut buffer).await?;
                took.push(due.elapsed().as_secs_f64() * 1_000.0);
                turn += CONNECTIONS;
            }
        });
    }
    let mut all = Vec::new();
    while let Some(took) = tasks.join_next().await {
        all.extend(took??);
    }
    Ok(all)
}

fn reviews(plan: &Plan, report: &mut Report, runtime: &Runtime, served: &Served) -> Result<()> {
    let pid = [served.process.pid()];
    // What is compiled or connected once is not what a review costs.
    runtime.block_on(load(served, Duration::from_secs(1), Some(PACE)))?;
    let (mut rates, mut costs, mut late, mut paced_costs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let (before, begun) = (cpu::nanoseconds(&pid)?, Instant::now());
        let took = runtime.block_on(load(served, plan.slice, None))?;
        let (count, spent) = (took.len() as f64, (cpu::nanoseconds(&pid)? - before) as f64);
        rates.push(count / begun.elapsed().as_secs_f64());
        costs.push(spent / count / 1e6);
        let before = cpu::nanoseconds(&pid)?;
        let took = runtime.block_on(load(served, plan.slice, Some(PACE)))?;
        paced_costs.push((cpu::nanoseconds(&pid)? - before) as f64 / took.len() as f64 / 1e6);
        late.push(p99(took));
    }
    report.figure("injector: reviews, 16 connections", "reviews/s", median(rates), None);
    report.figure("injector: CPU of a review at full load", "ms", median(costs), 1.0);
    report.figure("injector: p99 at 500 reviews/s", "ms", median(late), 5.0);
    report.figure("injector: CPU of a review at 500/s", "ms", median(paced_costs), 1.0);
    // A rollout of many pods at once: nobody waits until the API server would give up.
    let took = runtime.block_on(load(served, Duration::from_secs(1), Some(BURST)))?;
    let slowest = took.iter().copied().fold(0.0, f64::max);
    report.figure(
        "injector: slowest of 1,000 reviews within a second",
        "ms",
        slowest,
        1_000.0,
    );
    memory(report, served, "injector: resident memory")
}

fn memory(report: &mut Report, served: &Served, name: &str) -> Result<()> {
    let memory = cpu::resident(served.process.pid())? as f64 / 1e6;
    report.figure(name, "MB", memory, 128.0);
    Ok(())
}

/// Pods made on the API server, each through the webhook, and run by kwok.
fn pods(report: &mut Report, cluster: &Cluster, served: &Served) -> Result<()> {
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "sidegate-injector"},
        "webhooks": [{
            "name": "pods.sidegate.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded", "timeoutSeconds": 5,
            "clientConfig": {
                "url": format!("https://{}/mutate", served.address), "caBundle": STANDARD.encode(&served.authority),
            },
            "namespaceSelector": {"matchLabels": {"sidegate.dev/inject": "enabled"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        }],
    });
    cluster.create(&configuration)?;
    cluster.until("the webhook is called", || {
        let made = cluster.kubectl(
            &["create", "--dry-run=server", "-f", "-", "-o", "json"],
            &pod("first", "none").to_string(),
        )?;
        Ok(made.contains("\"sidegate\""))
    })?;
    for count in PODS {
        let nodes: Vec<String> = (0..count.div_ceil(PER_NODE))
            .map(|at| format!("kwok-{count}-{at}"))
            .collect();
        for node in &nodes {
            cluster.create(&json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": node, "annotations": {"kwok.x-k8s.io/node": "fake"}},
                "status": {
                    "allocatable": {"cpu": "1k", "memory": "4Ti", "pods": "250"},
                    "capacity": {"cpu": "1k", "memory": "4Ti", "pods": "250"},
                },
            }))?;
        }
        let (before, begun) = (answers(cluster)?, Instant::now());
        let names: Vec<usize> = (0..count).collect();
        for part in names.chunks(LIST) {
            let items = part
                .iter()
                .map(|at| pod(&format!("many-{count}-{at}"), &nodes[at % nodes.len()]));
            let list = json!({"apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>()});
            cluster.kubectl(&["create", "-f", "-"], &list.to_string())?;
        }
        let took = begun.elapsed().as_secs_f64();
        let (bound, admitted) = quantile(&before, &answers(cluster)?);
        ensure!(admitted >= count as f64, "{admitted} admissions of {count} pods");
        let name = format!("injector-pods: p99 of {count} admissions, at most");
        report.figure(&name, "ms", bound * 1_000.0, None);
        report.figure(
            &format!("injector-pods: {count} pods made"),
            "pods/s",
            count as f64 / took,
            None,
        );
        let path = "jsonpath={range .items[*]}{.spec.initContainers[0].name} {end}";
        let stored = cluster.kubectl(&["get", "pods", "--namespace", NAMESPACE, "-o", path], "")?;
        let with = stored.split_whitespace().filter(|name| *name == "sidegate").count();
        ensure!(with >= count, "{with} of {count} pods have their sidecar");
    }
    memory(report, served, "injector-pods: resident memory with all of them")
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"agent": "triage"}},
        "spec": {"nodeName": node, "containers": [{"name": "agent", "image": "example.invalid/agent"}]},
    })
}

/// What the API server measured of our webhook: seconds and how many answers took no longer.
fn answers(cluster: &Cluster) -> Result<Vec<(f64, f64)>> {
    let all = cluster.kubectl(&["get", "--raw", "/metrics"], "")?;
    let ours = all.lines().filter(|line| {
        line.starts_with("apiserver_admission_webhook_admission_duration_seconds_bucket{")
            && line.contains("name=\"pods.sidegate.dev\"")
            && line.contains("rejected=\"false\"")
    });
    let read = |line: &str| {
        let bound = line.split("le=\"").nth(1)?.split('"').next()?;
        let bound = if bound == "+Inf" {
            f64::INFINITY
        } else {
            bound.parse().ok()?
        };
        Some((bound, line.rsplit(' ').next()?.parse().ok()?))
    };
    Ok(ours.filter_map(read).collect())
}

/// The smallest bound that 99 of 100 stayed below, and how many there were.
fn quantile(before: &[(f64, f64)], after: &[(f64, f64)]) -> (f64, f64) {
    let known = |bound: f64| {
        before
            .iter()
            .find(|(at, _)| *at == bound)
            .map_or(0.0, |(_, count)| *count)
    };
    let counts: Vec<(f64, f64)> = after
        .iter()
        .map(|(bound, count)| (*bound, count - known(*bound)))
        .collect();
    let all = counts.iter().map(|(_, count)| *count).fold(0.0, f64::max);
    let bound = counts
        .iter()
        .find(|(_, count)| *count >= all * 0.99)
        .map_or(f64::NAN, |(bound, _)| *bound);
    (bound, all)
}
