//! One broker on the cluster, in this process, with the rights that the chart gives it; and agents' pods with their
//! sidecars, in this process too.
//!
//! No kubelet runs: a pod's token comes from TokenRequest, as its kubelet would ask for it, and its container's state
//! is what a test writes into its status. Everything else is real.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_broker::attest::{Attestor, NotAttested};
use sidegate_broker::config::{ClusterOptions, DEFAULT_NAME};
use sidegate_broker::issuer::Workload;
use sidegate_broker::jwt::{PublicKey, SigningKey, Slot};
use sidegate_broker::{Broker, BrokerConfig, Place};
use sidegate_sidecar::app::Sidecar;
use sidegate_sidecar::authority::Separation;
use sidegate_sidecar::broker::Url;
use sidegate_sidecar::config::{PodFacts, SidecarConfig};
use sidegate_tests::cluster::{Cluster, User};
pub use sidegate_tests::patience::until;
use sidegate_tests::patience::PATIENCE;
use sidegate_tests::ports;
use tokio::runtime::Runtime;

/// Where the broker lives.
pub const NAMESPACE: &str = "sidegate-system";
/// The broker's service account, as the API server names it.
pub const BROKER: &str = "system:serviceaccount:sidegate-system:sidegate-broker";
/// A broker that serves the cluster.
pub struct Site {
    pub broker: sidegate_broker::Running,
    pub runtime: Runtime,
    ports: [u16; 2],
    folder: tempfile::TempDir,
    change: Arc<Change>,
}

static SITE: Mutex<Option<Arc<Site>>> = Mutex::new(None);

/// The one broker of this run, started by whoever asks first.
pub fn site(cluster: &Cluster) -> Result<Arc<Site>> {
    let mut kept = SITE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(site) = kept.as_ref() {
        return Ok(Arc::clone(site));
    }
    install(cluster)?;
    let people = cluster.forwarded;
    let site = Site::join(
        cluster,
        Arc::new(move |config| config.people_listen = Some((std::net::Ipv4Addr::LOCALHOST, people).into())),
    );
    let site = Arc::new(site?);
    *kept = Some(Arc::clone(&site));
    Ok(site)
}

/// Ends the broker, if one was started; the cluster must still run.
pub fn stop() {
    let kept = SITE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    if let Some(Ok(site)) = kept.map(Arc::try_unwrap) {
        drop(site.end());
    }
}

/// Installs the chart, so that the rights under test are the chart's. Its webhook and its admission policies answer for no
/// namespace here: what runs of the injector, other suites start, and the policies have a cluster of their own.
pub fn install(cluster: &Cluster) -> Result<()> {
    install_with(cluster, &["injector.revision=none"])
}

/// The same with these values.
pub fn install_with(cluster: &Cluster, values: &[&str]) -> Result<()> {
    let chart = chart("sidegate");
    let mut arguments = vec![
        "install",
        "sidegate",
        &chart,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
    ];
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    let installed = cluster.helm(&arguments)?;
    ensure!(
        installed.status.success(),
        "helm install: {}",
        String::from_utf8_lossy(&installed.stderr)
    );
    Ok(())
}

/// The folder of a chart.
pub fn chart(name: &str) -> String {
    let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts");
    charts.join(name).to_string_lossy().into_owned()
}

fn started(runtime: &Runtime, folder: &Path, ports: [u16; 2], change: &Change) -> Result<sidegate_broker::Running> {
    let mut config = configuration(folder, ports);
    change(&mut config);
    Ok(runtime.block_on(Broker::start(config))?)
}

/// Gives the broker of this folder a token of its account.
fn log_in(cluster: &Cluster, folder: &Path) -> Result<()> {
    let account = ["create", "token", "sidegate-broker", "--namespace", NAMESPACE];
    let token = cluster.kubectl(&[&account[..], &["--duration", "2h"]].concat(), "")?;
    private(&folder.join("broker.json"), &cluster.kubeconfig_of(token.trim()))
}

fn configuration(folder: &Path, ports: [u16; 2]) -> BrokerConfig {
    let place = Place::Cluster(ClusterOptions {
        kubeconfig: Some(folder.join("broker.json")),
        namespace: NAMESPACE.to_owned(),
        name: DEFAULT_NAME.to_owned(),
        admission: Default::default(),
    });
    let mut config = BrokerConfig::new(place, folder.join("state"));
    let [front, issuer] = ports;
    config.listen.set_port(front);
    config.issuer_listen.set_port(issuer);
    config.health_listen = Some((std::net::Ipv4Addr::LOCALHOST, 0).into());
    // The Vault beside the test.
    config.loopback_providers = true;
    config
}

/// A key nobody has.
pub fn key() -> Result<PublicKey> {
    Ok(SigningKey::from_pkcs8(&SigningKey::generate()?)?.public().clone())
}

/// Adjusts a configuration before its broker starts.
pub type Change = dyn Fn(&mut BrokerConfig) + Send + Sync;

impl Site {
    /// Installs the chart on a cluster, and starts a broker with its rights.
    pub fn start(cluster: &Cluster) -> Result<Site> {
        install(cluster)?;
        Site::join(cluster, Arc::new(|_| {}))
    }

    /// Starts one more broker with the rights of the chart, which is installed.
    pub fn join(cluster: &Cluster, change: Arc<Change>) -> Result<Site> {
        let folder = tempfile::Builder::new().prefix("sidegate-site-").tempdir()?;
        log_in(cluster, folder.path())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let ports = [ports::free()?, ports::free()?];
        let broker = started(&runtime, folder.path(), ports, &*change)?;
        Ok(Site {
            broker,
            runtime,
            ports,
            folder,
            change,
        })
    }

    /// Ends the broker and starts another one, whose own token the API server has signed just now.
    pub fn logged_in_again(self, cluster: &Cluster) -> Result<Site> {
        log_in(cluster, self.folder.path())?;
        self.restarted()
    }

    /// Ends the broker and starts another one on its state, at its addresses.
    pub fn restarted(self) -> Result<Site> {
        let Site {
            broker,
            runtime,
            ports,
            folder,
            change,
        } = self;
        runtime.block_on(broker.shutdown());
        let broker = started(&runtime, folder.path(), ports, &*change)?;
        Ok(Site {
            broker,
            runtime,
            ports,
            folder,
            change,
        })
    }

    /// Ends the broker as if its machine were gone: it says no goodbye to anybody.
    pub fn kill(self) {
        let Site { broker, runtime, .. } = self;
        drop(broker);
        runtime.shutdown_background();
    }

    /// Who shows this token, with a proof of this key.
    pub fn attest(&self, token: &str, key: &PublicKey) -> Result<Workload, NotAttested> {
        self.attest_by(&self.broker.front().attestor, token, key)
    }

    /// The same by an attestor of the test's own.
    pub fn attest_by(&self, attestor: &Attestor, token: &str, key: &PublicKey) -> Result<Workload, NotAttested> {
        let attested = attestor.attest(Slot::ServiceAccount, token, key, &|_| false, &|_| true);
        self.runtime.block_on(attested)
    }

    /// Port of the front face.
    pub fn port(&self) -> u16 {
        self.broker.front_addr.port()
    }

    /// Port of the face that shows our keys.
    pub fn issuer_port(&self) -> u16 {
        self.ports[1]
    }

    /// Ends the broker; answers the folder with its state.
    pub fn end(self) -> tempfile::TempDir {
        self.runtime.block_on(self.broker.shutdown());
        self.folder
    }

    /// The broker's record store.
    pub fn records(&self) -> std::path::PathBuf {
        self.folder.path().join("state/records")
    }

    /// How the broker reaches the API server, for a part of it that a test runs by itself.
    pub fn options(&self) -> ClusterOptions {
        ClusterOptions {
            kubeconfig: Some(self.folder.path().join("broker.json")),
            namespace: NAMESPACE.to_owned(),
            name: DEFAULT_NAME.to_owned(),
            admission: Default::default(),
        }
    }

    /// The audience of tokens for this broker.
    pub fn audience(&self) -> &str {
        &self.broker.issuer_url
    }
}

/// An agent's namespace and pod.
pub struct Agent<'a> {
    pub cluster: &'a Cluster,
    pub site: Arc<Site>,
    pub namespace: String,
    pub uid: String,
    folder: tempfile::TempDir,
}

/// A pod with what the broker looks at, and no more: what the injector itself makes is `inject.rs`'s business.
pub fn pod(namespace: &str, audience: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "agent", "namespace": namespace, "labels": {"agent": "triage"}},
        "spec": {
            "serviceAccountName": "support",
            // No node takes it: it stays Pending, as a pod is while its sidecar first calls.
            "nodeSelector": {"none": "has-it"},
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

impl<'a> Agent<'a> {
    /// A namespace of team support with such a pod in it.
    pub fn new(cluster: &'a Cluster) -> Result<Agent<'a>> {
        Agent::with(cluster, |_| {})
    }

    /// The same, with a pod that is changed first.
    pub fn with(cluster: &'a Cluster, change: impl FnOnce(&mut Value)) -> Result<Agent<'a>> {
        Agent::of(cluster, site(cluster)?, change)
    }

    /// The same, for this broker.
    pub fn of(cluster: &'a Cluster, site: Arc<Site>, change: impl FnOnce(&mut Value)) -> Result<Agent<'a>> {
        let namespace = cluster.namespace()?;
        cluster.kubectl(&["label", "namespace", &namespace, "team=support"], "")?;
        cluster.kubectl(&["create", "serviceaccount", "support", "--namespace", &namespace], "")?;
        let mut pod = pod(&namespace, site.audience());
        change(&mut pod);
        let created = cluster.create(&pod)?;
        let uid = created["metadata"]["uid"]
            .as_str()
            .context("the pod has no UID")?
            .to_owned();
        let folder = tempfile::Builder::new().prefix("sidegate-agent-").tempdir()?;
        Ok(Agent {
            cluster,
            site,
            namespace,
            uid,
            folder,
        })
    }

    /// Lets go of the broker, and keeps what a running sidecar has.
    pub fn into_folder(self) -> tempfile::TempDir {
        self.folder
    }

    /// A token as the kubelet would project it.
    pub fn token(&self) -> Result<String> {
        self.token_for(self.site.audience())
    }

    /// The same for another audience.
    pub fn token_for(&self, audience: &str) -> Result<String> {
        self.cluster.bound_token(&self.namespace, "support", audience, "agent")
    }

    /// kubectl in the agent's namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", self.namespace.as_str()];
        all.extend(arguments);
        self.cluster.kubectl(&all, "")
    }

    /// Applies objects as the administrator.
    pub fn apply(&self, objects: &str) -> Result<()> {
        self.cluster.kubectl(&["apply", "-f", "-"], objects).map(|_| ())
    }

    /// What the sidecar's container has: its token, its journal and its run folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Adds a debugger to the agent's pod.
    pub fn debug(&self, container: &Value) -> Result<()> {
        let patch = json!({"spec": {"ephemeralContainers": [container]}}).to_string();
        let how = ["--subresource=ephemeralcontainers", "--type=strategic", "-p", &patch];
        self.kubectl(&[&["patch", "pod", "agent"][..], &how].concat())
            .map(|_| ())
    }

    /// Removes the pod at once.
    pub fn delete_pod(&self) -> Result<()> {
        self.kubectl(&["delete", "pod", "agent", "--grace-period=0", "--force"])
            .map(|_| ())
    }

    /// Says how the sidecar's container fares, as its kubelet would.
    pub fn report(&self, restarts: u64, container: &str) -> Result<()> {
        let status = json!({"status": {"initContainerStatuses": [{
            "name": "sidegate", "restartCount": restarts, "containerID": container, "image": "", "imageID": "",
            "ready": true, "started": true, "state": {"running": {"startedAt": null}},
        }]}});
        let status = status.to_string();
        self.kubectl(&[
            "patch",
            "pod",
            "agent",
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ])
        .map(|_| ())
    }

    /// Starts the pod's sidecar with a fresh token, and waits for its first bundle.
    pub fn sidecar(&self) -> Result<sidegate_sidecar::app::Running> {
        self.sidecar_of(false)
    }

    /// The same, told whether its pod has a fence.
    pub fn sidecar_of(&self, fenced: bool) -> Result<sidegate_sidecar::app::Running> {
        let token = self.folder.path().join("token");
        private(&token, &self.token()?)?;
        let config = SidecarConfig {
            broker: Url::parse(&self.site.broker.front_url)?,
            broker_ca_pem: self.site.broker.ca_pem.clone(),
            token_file: token,
            ports: Vec::new(),
            name_servers: Vec::new(),
            run_dir: self.folder.path().join("run"),
            journal_dir: self.folder.path().join("journal"),
            allow_loopback_literals: true,
            separation: Separation::None,
            agent_uid: Some(nix::unistd::Uid::effective().as_raw()),
            lanes: sidegate_sidecar::task::LANES,
            cluster_domain: None,
            memory_limit: None,
            metrics: vec![(std::net::Ipv4Addr::LOCALHOST, 0).into()],
            staleness: Default::default(),
            waits: false,
            fenced,
            pod: PodFacts::default(),
        };
        self.site.runtime.block_on(async {
            let sidecar = Sidecar::start(config).await?;
            ensure!(
                sidecar.ready(PATIENCE).await,
                "no bundle came into force: {:?}",
                self.site.broker.status()
            );
            Ok(sidecar)
        })
    }

    /// Ends a sidecar.
    pub fn end(&self, sidecar: sidegate_sidecar::app::Running) {
        self.site.runtime.block_on(sidecar.shutdown());
    }

    /// The stored object's condition of this type.
    pub fn condition(&self, kind: &str, name: &str, condition: &str) -> Result<Value> {
        let object = self.kubectl(&["get", kind, name, "-o", "json"])?;
        let object: Value = serde_json::from_str(&object)?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions
            .into_iter()
            .find(|found| found["type"] == condition)
            .unwrap_or(Value::Null))
    }
}

/// What an account may do, as the API server answers.
pub fn may(cluster: &Cluster, account: &str, arguments: &[&str]) -> Result<bool> {
    // kubectl takes `pods/exec` for a pod called exec.
    let asked = arguments.iter().flat_map(|argument| match argument.split_once('/') {
        Some((resource, part)) => vec![resource.to_owned(), format!("--subresource={part}")],
        None => vec![(*argument).to_owned()],
    });
    let asked: Vec<String> = asked.collect();
    let mut all = vec!["auth", "can-i", "--as", account];
    all.extend(asked.iter().map(String::as_str));
    let Output { stdout, .. } = cluster.ask(User::Admin, &all, "")?;
    Ok(String::from_utf8_lossy(&stdout).trim() == "yes")
}

/// Everything an account may do in the release's namespace and everywhere, as the API server counts it, beyond what any
/// account may: that is the cluster's, and differs between versions.
pub fn effective_rights(cluster: &Cluster, account: &str) -> Result<String> {
    let mut rights = String::new();
    for namespace in [NAMESPACE, "default"] {
        let anybody = rights_in(cluster, &format!("system:serviceaccount:{NAMESPACE}:nobody"), namespace)?;
        let own = rights_in(cluster, account, namespace)?;
        ensure!(own.is_superset(&anybody), "{account} may less than anybody");
        let own: Vec<&str> = own.difference(&anybody).map(String::as_str).collect();
        rights.push_str(&format!("# {namespace}\n{}\n", own.join("\n")));
    }
    Ok(rights)
}

/// What `kubectl auth can-i --list` says of an account.
fn rights_in(cluster: &Cluster, account: &str, namespace: &str) -> Result<BTreeSet<String>> {
    let list = ["auth", "can-i", "--list", "--no-headers", "--as", account];
    let said = cluster.kubectl(&[&list[..], &["--namespace", namespace]].concat(), "")?;
    let lines = said
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    Ok(lines.filter(|line| !line.is_empty()).collect())
}

/// A file that nobody else reads.
pub fn private(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}
