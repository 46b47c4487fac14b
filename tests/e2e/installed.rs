//! Both charts as an operator installs them, and two injectors behind the Service: certificates of their own, pods of
//! labelled namespaces, upgrades, a leader that dies, rotation, and an end that leaves nothing.
//!
//! They run in this process with the chart's service account and nothing more; a port stands for the Service's endpoints.
//! No broker runs here: its certificate is written by hand, and what the admission policies go by is written by the
//! broker's own code with its rights, as its leader would.

mod applied;
mod certificates;
mod evicted;
mod held;
mod told;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use serde_json::{json, Value};
use sidegate_broker::config::{AdmissionOptions, ClusterOptions, DEFAULT_NAME};
use sidegate_broker::kubernetes::{connect, Admission};
use sidegate_injector::app::{start, Certificates, InjectorConfig, InstallFrom, Lives, Running, Wanted};
use sidegate_injector::install::Install;
use sidegate_tests::authority::Authority;
use sidegate_tests::cluster::{Cluster, Programs, User};
use tokio::runtime::Runtime;

use crate::charts::{self, helm};
use crate::inject::{dry_run, is_asked, labelled, pod, AUDIENCE};
use crate::relay::Service;
use crate::site::{chart, effective_rights, private, until, NAMESPACE};

const ACCOUNT: &str = "system:serviceaccount:sidegate-system:sidegate-injector";
const NAME: &str = "sidegate-injector";
const SECRET: &str = "sidegate-webhook";
const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A test on the installed charts.
pub type Test = fn(&mut Installed) -> Result<()>;

pub const TESTS: &[(&str, Test)] = &[
    (
        "installed::a_labelled_namespace_gets_sidecars_and_no_other_does",
        a_labelled_namespace_gets_sidecars_and_no_other_does,
    ),
    (
        "installed::an_injector_may_what_it_needs_and_nothing_else",
        an_injector_may_what_it_needs_and_nothing_else,
    ),
    (
        "installed::two_replicas_on_an_empty_cluster_agree_on_one_authority",
        two_replicas_on_an_empty_cluster_agree_on_one_authority,
    ),
    (
        "installed::an_upgrade_and_a_resync_leave_the_ca_bundle_alone",
        an_upgrade_and_a_resync_leave_the_ca_bundle_alone,
    ),
    (
        "installed::what_is_written_over_the_ca_bundle_is_repaired",
        certificates::what_is_written_over_the_ca_bundle_is_repaired,
    ),
    (
        "installed::a_killed_leader_is_followed_and_nothing_changes",
        certificates::a_killed_leader_is_followed_and_nothing_changes,
    ),
    (
        "installed::certificates_rotate_under_load_without_a_failed_admission",
        certificates::certificates_rotate_under_load_without_a_failed_admission,
    ),
    (
        "installed::who_holds_connections_keeps_nobody_out",
        held::who_holds_connections_keeps_nobody_out,
    ),
    (
        "installed::without_an_injector_labelled_namespaces_refuse_and_others_do_not",
        without_an_injector_labelled_namespaces_refuse_and_others_do_not,
    ),
    (
        "installed::until_the_broker_published_its_certificate_pods_are_refused",
        until_the_broker_published_its_certificate_pods_are_refused,
    ),
    (
        "installed::what_would_not_compile_is_refused_as_it_is_applied",
        applied::what_would_not_compile_is_refused_as_it_is_applied,
    ),
    (
        "installed::its_numbers_count_what_it_did",
        applied::its_numbers_count_what_it_did,
    ),
    (
        "installed::its_leader_counts_pods_without_a_sidecar_and_tells_each_once",
        applied::its_leader_counts_pods_without_a_sidecar_and_tells_each_once,
    ),
    (
        "installed::its_leader_counts_them_in_the_status_of_their_profile",
        told::its_leader_counts_them_in_the_status_of_their_profile,
    ),
    (
        "installed::audited_network_policies_are_told_and_never_made",
        told::audited_network_policies_are_told_and_never_made,
    ),
    (
        "installed::its_leader_evicts_who_would_come_back_better_and_nobody_else",
        evicted::its_leader_evicts_who_would_come_back_better_and_nobody_else,
    ),
    (
        "installed::uninstalling_leaves_nothing_of_ours_and_what_is_installed_again_works",
        uninstalling_leaves_nothing_of_ours_and_what_is_installed_again_works,
    ),
];

/// One injector, as a pod of the Deployment would run it.
struct Replica {
    name: String,
    running: Option<Running>,
    runtime: Option<Runtime>,
    _folder: tempfile::TempDir,
}

/// The charts on a control plane of their own.
pub struct Installed {
    replicas: Vec<Replica>,
    /// How many were started.
    started: usize,
    service: Service,
    is_installed: bool,
    /// Whether replicas that are started evict, if the chart lets them.
    evicts: bool,
    cluster: Cluster,
}

static INSTALLED: Mutex<Option<Installed>> = Mutex::new(None);

/// Runs a test on the installed charts, with two replicas that are ready.
pub fn run(programs: &Programs, test: Test) -> Result<()> {
    let mut kept = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let installed = match &mut *kept {
        Some(installed) => installed,
        none => none.insert(Installed::start(programs)?),
    };
    installed.complete()?;
    test(installed)
}

/// Ends everything, if it was started.
pub fn stop() {
    let kept = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    if let Some(mut installed) = kept {
        installed.end();
    }
}

impl Replica {
    fn start(cluster: &Cluster, name: String, lives: Lives, hosts: &[&str], evicts: bool) -> Result<Replica> {
        let at = ["--namespace", NAMESPACE, "--duration", "2h"];
        let token = cluster.kubectl(&[&["create", "token", NAME][..], &at].concat(), "")?;
        let folder = tempfile::Builder::new().prefix("sidegate-replica-").tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig.json");
        private(&kubeconfig, &cluster.kubeconfig_of(token.trim()))?;
        let broker = format!("https://sidegate-broker.{NAMESPACE}.svc");
        let install = Install::unpublished(
            format!("{broker}:8443"),
            format!("{broker}:8444"),
            vec!["10.96.0.10".to_owned()],
            "cluster.local".to_owned(),
        );
        let mut names = vec![format!("{NAME}.{NAMESPACE}.svc")];
        names.extend(hosts.iter().map(|host| (*host).to_owned()));
        let config = InjectorConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            health_listen: Some(([127, 0, 0, 1], 0).into()),
            own_address: None,
            certificates: Certificates::SelfManaged(Wanted {
                secret: SECRET.to_owned(),
                names,
                lives,
            }),
            install: InstallFrom::Published(install.map_err(|problems| anyhow::anyhow!(problems.join("; ")))?),
            kubeconfig: Some(kubeconfig),
            namespace: NAMESPACE.to_owned(),
            name: NAME.to_owned(),
            replica: name.clone(),
            watch_every: Duration::from_secs(2),
            report_profiles: true,
            evict_every: evicts.then_some(Duration::from_millis(300)),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let running = runtime.block_on(start(config))?;
        Ok(Replica {
            name,
            running: Some(running),
            runtime: Some(runtime),
            _folder: folder,
        })
    }

    fn port(&self) -> u16 {
        self.running.as_ref().map_or(0, |running| running.address.port())
    }

    /// Whether the kubelet would find it ready, and else why not.
    fn ready(&self) -> Result<(), String> {
        let health = self.running.as_ref().and_then(|running| running.health);
        let said = health.map_or(Err("not running".to_owned()), |at| {
            get(at, "/readyz").map_err(|error| error.to_string())
        })?;
        match said.starts_with("HTTP/1.1 200 ") {
            true => Ok(()),
            false => Err(said.lines().last().unwrap_or_default().to_owned()),
        }
    }

    fn end(mut self) {
        if let (Some(running), Some(runtime)) = (self.running.take(), self.runtime.take()) {
            runtime.block_on(running.shutdown());
        }
    }

    /// Ends it as if its node were gone: it gives nothing up.
    fn kill(mut self) {
        drop(self.running.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One plain request.
fn get(at: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

impl Installed {
    fn start(programs: &Programs) -> Result<Installed> {
        let cluster = Cluster::start(programs)?;
        charts::install_kinds(&cluster)?;
        Ok(Installed {
            replicas: Vec::new(),
            started: 0,
            service: Service::start()?,
            is_installed: false,
            evicts: false,
            cluster,
        })
    }

    /// Installs what is not there, and starts replicas until two are ready.
    fn complete(&mut self) -> Result<()> {
        if !self.is_installed {
            self.helm("install", &[])?;
            self.is_installed = true;
            self.publish(true)?;
        }
        self.with(2, Lives::default(), &[])
    }

    /// helm, with the values that every test has, and more.
    fn helm(&self, verb: &str, more: &[&str]) -> Result<String> {
        let (path, port) = (
            chart("sidegate"),
            format!("injector.service.port={}", self.service.port),
        );
        let (digest, own) = (format!("sidecar.digest={DIGEST}"), ["--namespace", NAMESPACE]);
        let set = ["--set", &port, "--set", &digest];
        let mut arguments = [&[verb, "sidegate", &path][..], &own, &set, more].concat();
        if verb == "install" {
            arguments.push("--create-namespace");
        }
        let said = helm(&self.cluster, &arguments)?;
        // Without a kubelet and a pod network a Service reaches this process by a name alone.
        let named = r#"{"spec": {"type": "ExternalName", "externalName": "localhost"}}"#;
        self.kubectl(&["patch", "service", NAME, "--type=merge", "-p", named])?;
        Ok(said)
    }

    /// What the broker's leader does first, or that it did not yet: whom sidecars believe, and what a pod must show.
    fn publish(&self, published: bool) -> Result<()> {
        let authority = Authority::new()?;
        let pem = published.then(|| json!({"ca.crt": authority.pem()}));
        let patch = json!({ "data": pem }).to_string();
        self.kubectl(&["patch", "configmap", "sidegate-broker-ca", "--type=merge", "-p", &patch])?;
        match published {
            true => self.parameters(authority.pem()),
            false => {
                let empty = ["--type=merge", "-p", r#"{"data": null}"#];
                let patch = [&["patch", "configmap", "sidegate-admission"][..], &empty].concat();
                self.kubectl(&patch).map(|_| ())
            }
        }
    }

    /// One round of the leader, with the broker's rights.
    fn parameters(&self, pem: &str) -> Result<()> {
        let token = self.kubectl(&["create", "token", "sidegate-broker"])?;
        let folder = tempfile::Builder::new().prefix("sidegate-leader-").tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig.json");
        private(&kubeconfig, &self.cluster.kubeconfig_of(token.trim()))?;
        let options = ClusterOptions {
            kubeconfig: Some(kubeconfig),
            namespace: NAMESPACE.to_owned(),
            name: DEFAULT_NAME.to_owned(),
            admission: AdmissionOptions {
                sidecar_digest: Some(DIGEST.to_owned()),
                ..AdmissionOptions::default()
            },
        };
        let pems = vec![pem.to_owned()];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = connect(&options).await?;
            let all = Box::new(move || pems.clone());
            let admission = Admission::new(client, NAMESPACE, options.admission, AUDIENCE.to_owned(), all);
            Ok(admission.round(true).await?)
        })
    }

    /// As many replicas as are wanted, ready and behind the Service.
    fn with(&mut self, wanted: usize, lives: Lives, hosts: &[&str]) -> Result<()> {
        while self.replicas.len() < wanted {
            self.started += 1;
            let name = format!("replica-{}", self.started);
            let replica = Replica::start(&self.cluster, name, lives, hosts, self.evicts)?;
            self.replicas.push(replica);
        }
        self.are_ready()?;
        self.behind();
        Ok(())
    }

    fn behind(&self) {
        let ports: Vec<u16> = self.replicas.iter().map(Replica::port).collect();
        self.service.to(&ports);
    }

    fn are_ready(&self) -> Result<()> {
        let look = || Ok(self.replicas.iter().map(Replica::ready).collect::<Vec<_>>());
        until("every replica is ready", look, |ready| ready.iter().all(Result::is_ok)).map(|_| ())
    }

    fn end(&mut self) {
        self.service.to(&[]);
        self.replicas.drain(..).for_each(Replica::end);
    }

    /// Empties the Secret: the next leader begins anew.
    fn forget(&self) -> Result<()> {
        self.kubectl(&["patch", "secret", SECRET, "--type=merge", "-p", r#"{"data": null}"#])
            .map(|_| ())
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let own = ["--namespace", NAMESPACE];
        self.cluster.kubectl(&[arguments, &own].concat(), "")
    }

    /// The certificates in the Secret.
    fn set(&self) -> Result<Value> {
        let said = self.kubectl(&["get", "secret", SECRET, "-o", "jsonpath={.data.webhook}"])?;
        Ok(serde_json::from_slice(&STANDARD.decode(said)?)?)
    }

    fn configuration(&self) -> Result<Value> {
        let said = self.kubectl(&["get", "mutatingwebhookconfiguration", NAME, "-o", "json"])?;
        Ok(serde_json::from_str(&said)?)
    }

    /// The caBundle of every entry of the configuration.
    fn bundles(&self) -> Result<Vec<String>> {
        let configuration = self.configuration()?;
        let hooks = configuration["webhooks"].as_array().context("no webhooks")?;
        let bundle = |hook: &Value| {
            let bundle = STANDARD.decode(hook["clientConfig"]["caBundle"].as_str().unwrap_or_default())?;
            Ok(String::from_utf8(bundle)?)
        };
        hooks.iter().map(bundle).collect()
    }

    /// Whether a pod would get its sidecar.
    fn injects(&self, namespace: &str) -> Result<bool> {
        let made = dry_run(&self.cluster, &pod(namespace, json!({})))?;
        Ok(made["spec"]["initContainers"][0]["name"] == "sidegate")
    }

    /// A namespace of which the API server knows that its pods are asked about.
    fn labelled(&self) -> Result<String> {
        let namespace = labelled(&self.cluster, &[])?;
        is_asked(&self.cluster, &namespace)?;
        Ok(namespace)
    }
}

/// `helm install` twice, a label: a pod is stored with the sidecar of the chart's digest and the broker's authority; pods
/// of other namespaces are stored as they came, and so are those that may opt out and do. The API server calls by the
/// Service, and by a URL where the chart is told one.
fn a_labelled_namespace_gets_sidecars_and_no_other_does(installed: &mut Installed) -> Result<()> {
    let namespace = installed.labelled()?;
    let made = installed.cluster.create(&pod(&namespace, json!({})))?;
    let sidecar = &made["spec"]["initContainers"][0];
    ensure!(
        sidecar["image"] == format!("ghcr.io/sidegate/sidegate-sidecar@{DIGEST}"),
        "{sidecar}"
    );
    let text = sidecar.to_string();
    ensure!(
        text.contains("BEGIN CERTIFICATE") && text.contains("sidegate-broker.sidegate-system.svc:8443"),
        "{text}"
    );
    let plain = installed.cluster.namespace()?;
    let made = installed.cluster.create(&pod(&plain, json!({})))?;
    ensure!(made["spec"].get("initContainers").is_none(), "{made}");
    // An opt-out counts where the namespace allows it; other pods there are protected.
    let may = labelled(&installed.cluster, &["sidegate.dev/allow-pod-opt-out=true"])?;
    let mut out = pod(&may, json!({}));
    out["metadata"]["labels"]["sidegate.dev/inject"] = json!("false");
    let look = || Ok(installed.injects(&may).unwrap_or_default());
    until("pods there get their sidecar", look, |injected| *injected)?;
    ensure!(dry_run(&installed.cluster, &out)?["spec"]
        .get("initContainers")
        .is_none());
    out["metadata"]["namespace"] = json!(namespace);
    out["metadata"]["name"] = json!("another");
    let refused = installed
        .cluster
        .ask(User::Admin, &["create", "-f", "-"], &out.to_string())?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("sidegate: opt-out: "));
    // Another revision's namespaces are another injector's.
    let other = labelled(&installed.cluster, &["sidegate.dev/rev=next"])?;
    ensure!(!installed.injects(&other)?);

    let url = format!("injector.url=https://127.0.0.1:{}", installed.service.port);
    installed.end();
    installed.helm("upgrade", &["--set", &url])?;
    installed.with(2, Lives::default(), &["127.0.0.1"])?;
    let configuration = installed.configuration()?;
    let called = &configuration["webhooks"][0]["clientConfig"];
    ensure!(called.get("service").is_none() && called["url"].is_string(), "{called}");
    installed.labelled()?;
    installed.end();
    installed.helm("upgrade", &[])?;
    installed.complete()
}

/// Everything the injector may do in its own namespace and everywhere: a change of the chart shows here.
fn an_injector_may_what_it_needs_and_nothing_else(installed: &mut Installed) -> Result<()> {
    let rights = effective_rights(&installed.cluster, ACCOUNT)?;
    let golden = include_str!("injector_rights.txt");
    ensure!(
        rights == golden,
        "tests/e2e/injector_rights.txt differs from:\n{rights}"
    );
    Ok(())
}

/// The Secret is empty and both start at once: one authority comes of it, which both serve under and every entry names.
fn two_replicas_on_an_empty_cluster_agree_on_one_authority(installed: &mut Installed) -> Result<()> {
    installed.end();
    installed.forget()?;
    let cluster = &installed.cluster;
    let both: Result<Vec<Replica>> = std::thread::scope(|scope| {
        let one = |name: &str| {
            let name = name.to_owned();
            scope.spawn(move || Replica::start(cluster, name, Lives::default(), &[], false))
        };
        let both = [one("first"), one("second")];
        both.into_iter()
            .map(|started| started.join().unwrap_or_else(|_| anyhow::bail!("it panicked")))
            .collect()
    });
    installed.replicas = both?;
    installed.are_ready()?;
    installed.behind();
    let set = installed.set()?;
    ensure!(set["generation"] == 1, "{}", set["generation"]);
    let authority = set["authority"]["certificate"].as_str().context("no authority")?;
    let bundles = installed.bundles()?;
    ensure!(
        bundles.len() == 3 && bundles.iter().all(|bundle| bundle == authority),
        "{bundles:?}"
    );
    installed.labelled().map(|_| ())
}

/// `helm upgrade`, and whoever applies the rendered chart again server-side, conflict with nothing and change no
/// caBundle: the field is the injector's alone.
fn an_upgrade_and_a_resync_leave_the_ca_bundle_alone(installed: &mut Installed) -> Result<()> {
    let before = installed.bundles()?;
    installed.helm("upgrade", &["--set", "injector.replicas=2"])?;
    ensure!(installed.bundles()? == before, "the upgrade changed it");
    let path = chart("sidegate");
    let port = format!("injector.service.port={}", installed.service.port);
    let only = ["--show-only", "templates/webhooks.yaml", "--set", &port];
    let rendered = [&["template", "sidegate", &path, "--namespace", NAMESPACE][..], &only].concat();
    let rendered = helm(&installed.cluster, &rendered)?;
    ensure!(!rendered.contains("caBundle"), "{rendered}");
    // A tool that takes everything over from helm, as people move to one.
    for force in ["--force-conflicts", "--validate=true"] {
        let apply = ["apply", "--server-side", "--field-manager=gitops", force, "-f", "-"];
        installed.cluster.kubectl(&apply, &rendered)?;
    }
    ensure!(installed.bundles()? == before, "the tool changed it");
    let owners = [
        "get",
        "mutatingwebhookconfiguration",
        NAME,
        "--show-managed-fields",
        "-o",
        "json",
    ];
    let object: Value = serde_json::from_str(&installed.kubectl(&owners)?)?;
    let owners = object["metadata"]["managedFields"].as_array().context("no managers")?;
    let owns = |owner: &&Value| owner["fieldsV1"].to_string().contains("f:caBundle");
    let names: Vec<&str> = owners
        .iter()
        .filter(owns)
        .filter_map(|owner| owner["manager"].as_str())
        .collect();
    ensure!(names == ["sidegate-webhook-certificates"], "{names:?}");
    // And no other field than that is the injector's.
    let ours = owners.iter().find(owns).context("nobody owns it")?["fieldsV1"].to_string();
    ensure!(!ours.contains("f:failurePolicy") && !ours.contains("f:rules"), "{ours}");
    installed.helm("upgrade", &["--server-side=true", "--force-conflicts"])?;
    installed.labelled().map(|_| ())
}

/// Nobody answers: pods of labelled namespaces are refused by the name of the webhook, all others are made.
fn without_an_injector_labelled_namespaces_refuse_and_others_do_not(installed: &mut Installed) -> Result<()> {
    let namespace = installed.labelled()?;
    let plain = installed.cluster.namespace()?;
    installed.end();
    let made = pod(&namespace, json!({}));
    let refused = installed
        .cluster
        .ask(User::Admin, &["create", "-f", "-"], &made.to_string())?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && said.contains("pods.sidegate.dev"),
        "{said}"
    );
    installed.cluster.create(&pod(&plain, json!({})))?;
    for spared in ["kube-system", NAMESPACE] {
        // A label there changes nothing: the cluster and the injector come back by themselves.
        installed
            .cluster
            .kubectl(&["label", "namespace", spared, "sidegate.dev/inject=enabled"], "")?;
        dry_run(&installed.cluster, &pod(spared, json!({})))?;
        installed
            .cluster
            .kubectl(&["label", "namespace", spared, "sidegate.dev/inject-"], "")?;
    }
    // The kill switch does not ask the injector.
    let lockdown = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Lockdown", "metadata": {"name": "now"},
        "spec": {"reason": "a test", "freeze": [{"namespace": namespace}]},
    });
    dry_run(&installed.cluster, &lockdown)?;
    // Break-glass for one namespace.
    installed
        .cluster
        .kubectl(&["label", "namespace", &namespace, "sidegate.dev/inject-"], "")?;
    let look = || Ok(dry_run(&installed.cluster, &made).is_ok());
    until("its pods are made again", look, |made| *made).map(|_| ())
}

/// Before the broker has said whom sidecars must believe, a pod is refused with words that say where to look.
fn until_the_broker_published_its_certificate_pods_are_refused(installed: &mut Installed) -> Result<()> {
    let namespace = installed.labelled()?;
    installed.end();
    installed.publish(false)?;
    installed.with(2, Lives::default(), &[])?;
    let made = pod(&namespace, json!({})).to_string();
    let refused = installed.cluster.ask(User::Admin, &["create", "-f", "-"], &made)?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        said.contains("sidegate: install: the broker has not published its certificate yet"),
        "{said}"
    );
    installed.publish(true)?;
    let look = || Ok(installed.injects(&namespace).unwrap_or_default());
    until("pods get their sidecar", look, |injected| *injected).map(|_| ())
}

/// What runs stops; what the replicas wrote goes with what the chart made. The kinds and the records stay, by policy.
fn uninstalling_leaves_nothing_of_ours_and_what_is_installed_again_works(installed: &mut Installed) -> Result<()> {
    let namespace = installed.labelled()?;
    installed.end();
    helm(&installed.cluster, &["uninstall", "sidegate", "--namespace", NAMESPACE])?;
    installed.is_installed = false;
    let wide = "mutatingwebhookconfigurations,validatingwebhookconfigurations,validatingadmissionpolicies,\
                validatingadmissionpolicybindings,clusterroles,clusterrolebindings,injectionprofiles.sidegate.dev";
    let left = installed.kubectl(&["get", wide, "-o", "name"])?;
    let left: Vec<&str> = left
        .lines()
        .filter(|name| name.contains("sidegate") || name.contains("injectionprofile"))
        .collect();
    // What chart sidegate-crds keeps.
    let kept =
        ["", "binding"].map(|of| format!("validatingadmissionpolicy{of}.admissionregistration.k8s.io/sidegate-params"));
    ensure!(left == kept, "{left:?}");
    let here =
        "deployments,services,secrets,configmaps,leases,roles,rolebindings,serviceaccounts,poddisruptionbudgets,\
                networkpolicies,persistentvolumeclaims";
    let left = installed.kubectl(&["get", here, "-o", "name"])?;
    let mut left: Vec<&str> = left.lines().collect();
    left.sort_unstable();
    ensure!(
        left == [
            "configmap/kube-root-ca.crt",
            "persistentvolumeclaim/sidegate-broker",
            "serviceaccount/default"
        ],
        "{left:?}"
    );
    // The cluster makes pods, labelled or not.
    let look = || Ok(dry_run(&installed.cluster, &pod(&namespace, json!({}))).is_ok());
    until("pods are made", look, |made| *made)?;
    installed.kubectl(&["delete", "persistentvolumeclaim", "sidegate-broker", "--wait=false"])?;
    // Installed again it works, on the API server that saw it go.
    installed.complete()?;
    installed.labelled().map(|_| ())
}
