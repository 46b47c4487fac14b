//! The admission policies of the chart on a real API server with no webhook at all: what they let through is what the
//! injector makes, and what a namespace's admin tries is refused by the rule it breaks.
//!
//! The chart is installed by the real helm, its parameters are written by a real broker with the rights the chart gives,
//! and whoever tries has the rights of an admin of the namespace and no others.

mod corpus;
mod created;
mod labels;
mod running;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_broker::Place;
use sidegate_injector::admit::{admit, Verdict, World};
use sidegate_injector::install::Install;
use sidegate_policies::objects::Objects;
use sidegate_policies::yaml::{self, load, Source};
use sidegate_tests::cluster::{Cluster, Programs, User};

use crate::charts::install_kinds;
use crate::site::{install_with, until, Site, NAMESPACE};

/// A test on the guarded cluster.
pub type Test = fn(&Guarded) -> Result<()>;

pub const TESTS: &[(&str, Test)] = &[
    (
        "admission::what_the_injector_makes_passes_and_the_pod_as_it_was_is_refused",
        corpus::what_the_injector_makes_passes_and_the_pod_as_it_was_is_refused,
    ),
    (
        "admission::a_shape_the_injector_refuses_is_refused_by_the_same_rule",
        corpus::a_shape_the_injector_refuses_is_refused_by_the_same_rule,
    ),
    (
        "admission::every_word_of_the_injectors_lists_is_known",
        corpus::every_word_of_the_injectors_lists_is_known,
    ),
    (
        "admission::each_way_around_the_sidecar_is_refused_by_its_rule",
        created::each_way_around_the_sidecar_is_refused_by_its_rule,
    ),
    (
        "admission::who_is_spared_by_the_webhook_is_spared",
        created::who_is_spared_by_the_webhook_is_spared,
    ),
    (
        "admission::a_pod_keeps_its_class_of_service_and_what_autoscalers_divide_by",
        created::a_pod_keeps_its_class_of_service_and_what_autoscalers_divide_by,
    ),
    (
        "admission::a_running_pod_keeps_its_sidecar",
        running::a_running_pod_keeps_its_sidecar,
    ),
    (
        "admission::nobody_gets_into_the_sidecar_but_the_break_glass_group",
        running::nobody_gets_into_the_sidecar_but_the_break_glass_group,
    ),
    (
        "admission::kubelets_alone_get_tokens_for_the_broker",
        running::kubelets_alone_get_tokens_for_the_broker,
    ),
    (
        "admission::labels_of_namespaces_are_changed_by_whoever_may_use_the_profile",
        labels::labels_of_namespaces_are_changed_by_whoever_may_use_the_profile,
    ),
    (
        "admission::the_policies_are_sound_and_each_rule_has_an_attempt",
        labels::the_policies_are_sound_and_each_rule_has_an_attempt,
    ),
];

/// The audience of tokens for the broker: the chart's default.
pub const AUDIENCE: &str = "https://sidegate-broker.sidegate-system.svc:8444";
/// The digest of the profiles in the injector's golden files, and of the chart here.
pub const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// What the policies do where nobody is asked first.
const NO_WEBHOOK: &str = "injector.enabled=false";

/// Something somebody tries, and what it must be answered with.
pub struct Attempt {
    /// What the refusal begins with.
    pub says: &'static str,
    /// What it is.
    pub what: &'static str,
    /// How a good object becomes it.
    pub change: fn(&mut Value),
}

/// A cluster with the policies, their parameters, and the namespaces of the injector's golden files.
pub struct Guarded {
    pub cluster: Cluster,
    site: Option<Site>,
    objects: Objects,
    install: Install,
}

static GUARDED: Mutex<Option<Arc<Guarded>>> = Mutex::new(None);

/// Runs a test on the one cluster, which whoever comes first starts.
pub fn run(programs: &Programs, test: Test) -> Result<()> {
    let guarded = {
        let mut kept = GUARDED.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(guarded) => Arc::clone(guarded),
            None => Arc::clone(kept.insert(Arc::new(Guarded::start(programs)?))),
        }
    };
    test(&guarded)
}

/// Ends it, if it was started.
pub fn stop() {
    let kept = GUARDED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Ok(mut guarded)) = kept.map(Arc::try_unwrap) {
        if let Some(site) = guarded.site.take() {
            drop(site.end());
        }
    }
}

/// The folder of the injector's golden files.
pub fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../injector/tests/golden")
}

/// What a pod of the golden files is, by the name of its file.
pub fn golden_pod(name: &str) -> Result<Value> {
    let text = std::fs::read_to_string(golden().join(format!("{name}.yaml")))?;
    yaml::read(&text).map_err(|mistakes| anyhow::anyhow!("{name}: {mistakes:?}"))
}

impl Guarded {
    fn start(programs: &Programs) -> Result<Guarded> {
        let cluster = Cluster::start(programs)?;
        install_kinds(&cluster)?;
        let digest = format!("sidecar.digest={DIGEST}");
        install_with(&cluster, &[&digest, "sidecar.breakGlassGroup=break-glass", NO_WEBHOOK])?;
        let world = std::fs::read_to_string(golden().join("world.yaml"))?;
        let loaded = load(&[Source {
            name: "world.yaml".to_owned(),
            text: world.clone(),
        }]);
        ensure!(loaded.problems.is_empty(), "{:?}", loaded.problems);
        apply(&cluster, &world)?;
        let site = Site::join(&cluster, Arc::new(configure))?;
        let install = format!(
            "{{brokerUrl: \"https://sidegate-broker.sidegate-system.svc:8443\", audience: \"{AUDIENCE}\", nameServers: \
             [10.96.0.10], brokerCaPem: {}}}",
            Value::from(site.broker.ca_pem.as_str())
        );
        let guarded = Guarded {
            cluster,
            site: Some(site),
            objects: loaded.objects,
            install: Install::read(&install).map_err(|problems| anyhow::anyhow!(problems.join("; ")))?,
        };
        for namespace in ["agents", "lenient", "fenced"] {
            guarded.admin_of(namespace)?;
        }
        guarded.in_force()?;
        Ok(guarded)
    }

    /// The API server learns of policies and their parameters by watching.
    fn in_force(&self) -> Result<()> {
        let (plain, made) = (golden_pod("plain")?, self.injected(&golden_pod("plain")?)?);
        let last = |pod: &Value| -> Result<String> { Ok(self.tried(User::Dev, pod)?.err().unwrap_or_default()) };
        until(
            "an uninjected pod is refused",
            || last(&plain),
            |said| says(said, "sidecar:"),
        )?;
        until("an injected pod passes", || last(&made), String::is_empty)?;
        let fenced = self.injected(&golden_pod("enforced")?)?;
        until("one with a fence passes", || last(&fenced), String::is_empty)?;
        let port = ["get", "--raw", "/api/v1/namespaces/agents/pods/x/proxy/"];
        until(
            "proxies are refused",
            || self.asked(User::Dev, &port, ""),
            |said| said.as_ref().is_err_and(|said| says(said, "portForward:")),
        )
        .map(|_| ())
    }

    /// Makes user dev the admin of a namespace, with every right that a namespace can give, and none beyond.
    fn admin_of(&self, namespace: &str) -> Result<()> {
        let every = "apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: everything}
rules:
- {apiGroups: ['*'], resources: ['*'], verbs: [get, list, watch, create, update, patch, delete, connect]}
";
        let inside = ["--namespace", namespace];
        self.cluster
            .kubectl(&[&["apply", "-f", "-"][..], &inside].concat(), every)?;
        let bound = ["create", "rolebinding", "admin", "--role=everything", "--user=dev"];
        self.cluster.kubectl(&[&bound[..], &inside].concat(), "").map(|_| ())
    }

    /// What becomes of a pod by the injector's own code.
    pub fn verdict(&self, pod: &Value) -> Result<Verdict> {
        let name = pod["metadata"]["namespace"].as_str().context("no namespace")?;
        let namespace = self.objects.namespace(name).context("no such namespace")?;
        let world = World {
            install: &self.install,
            objects: &self.objects,
            generations: &BTreeMap::new(),
            unusable: &BTreeMap::new(),
        };
        Ok(admit(&world, namespace, pod))
    }

    /// The pod with its sidecar.
    pub fn injected(&self, pod: &Value) -> Result<Value> {
        match self.verdict(pod)? {
            Verdict::Injected { injected, .. } => Ok(injected.pod),
            other => bail!("not injected: {other:?}"),
        }
    }

    /// Creates a pod without storing it.
    pub fn tried(&self, user: User, pod: &Value) -> Result<Result<(), String>> {
        let create = ["create", "--dry-run=server", "--validate=ignore", "-f", "-"];
        Ok(self.asked(user, &create, &pod.to_string())?.map(|_| ()))
    }

    /// Creates many at once, without storing them; what the server says to each, by its name.
    pub fn all_tried(&self, pods: &[Value]) -> Result<BTreeMap<String, Result<(), String>>> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string();
        let create = ["create", "--dry-run=server", "--validate=ignore", "-f", "-"];
        let output = self.cluster.ask(User::Admin, &create, &list)?;
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        let mut all = BTreeMap::new();
        for pod in pods {
            let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
            let taken = stdout.contains(&format!("pod/{name} created"));
            let said = stderr.lines().find(|line| line.contains(&format!("\"{name}\" is ")));
            let answer = match (taken, said) {
                (true, None) => Ok(()),
                (false, Some(said)) => Err(said.to_owned()),
                _ => bail!("of pod {name} the server says {said:?}, taken: {taken}\n{stderr}"),
            };
            ensure!(all.insert(name.to_owned(), answer).is_none(), "two pods {name}");
        }
        Ok(all)
    }

    /// Runs kubectl as a user: what it says, or its complaint.
    pub fn asked(&self, user: User, arguments: &[&str], input: &str) -> Result<Result<String, String>> {
        let output = self.cluster.ask(user, arguments, input)?;
        let (said, complaint) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        Ok(match output.status.success() {
            true => Ok(said),
            false => Err(complaint),
        })
    }
}

/// As the chart runs it.
fn configure(config: &mut sidegate_broker::BrokerConfig) {
    config.issuer_url = Some(AUDIENCE.to_owned());
    if let Place::Cluster(options) = &mut config.place {
        options.admission.sidecar_digest = Some(DIGEST.to_owned());
        options.admission.break_glass_group = Some("break-glass".to_owned());
    }
}

/// Namespaces and profiles of the golden files; a label of one of their namespaces is refused here, and one is another
/// release's.
fn apply(cluster: &Cluster, world: &str) -> Result<()> {
    let objects = yaml::values(world).map_err(|mistakes| anyhow::anyhow!("{mistakes:?}"))?;
    for object in objects {
        let (kind, name) = (&object["kind"], object["metadata"]["name"].as_str().unwrap_or_default());
        let wrong = ["misspelt", "revised"].contains(&name);
        if !wrong && (kind == "Namespace" || kind == "InjectionProfile") {
            cluster.kubectl(&["apply", "-f", "-"], &object.to_string())?;
        }
    }
    // What golden pods refer to.
    for account in ["keeper", "support"] {
        cluster.kubectl(&["create", "serviceaccount", account, "--namespace", "agents"], "")?;
    }
    let sandbox =
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "gvisor"}, "handler": "x"});
    cluster.create(&sandbox)?;
    for namespace in [
        "agents",
        "lenient",
        "named",
        "fenced",
        "audited",
        "disabled",
        "unlabelled",
    ] {
        cluster.until("the namespace has its service account", || {
            let account = ["get", "serviceaccount", "default", "--namespace", namespace];
            Ok(cluster.ask(User::Admin, &account, "")?.status.success())
        })?;
    }
    Ok(())
}

/// Whether a complaint is a refusal that begins so.
pub fn says(complaint: &str, rule: &str) -> bool {
    complaint.contains(&format!("denied request: sidegate: {rule}"))
}

/// A pod under another name, which no node takes.
pub fn named(mut pod: Value, name: &str) -> Value {
    pod["metadata"]["name"] = json!(name);
    pod
}

/// Before any broker filled the parameters nothing is let through, and when they are gone neither; once the chart is
/// uninstalled, pods are created as before there was one.
pub fn without_its_parameters_nothing_passes_and_uninstalling_leaves_none(programs: &Programs) -> Result<()> {
    let cluster = Cluster::start(programs)?;
    install_kinds(&cluster)?;
    install_with(&cluster, &[NO_WEBHOOK])?;
    let namespace = cluster.namespace()?;
    cluster.kubectl(&["label", "namespace", &namespace, "sidegate.dev/inject=enabled"], "")?;
    let full = std::fs::read_to_string(golden().join("plain.full.yaml"))?;
    let mut pod: Value = yaml::read(&full).map_err(|mistakes| anyhow::anyhow!("{mistakes:?}"))?;
    pod["metadata"]["namespace"] = json!(namespace);
    let tried = || -> Result<String> {
        let create = ["create", "--dry-run=server", "-f", "-"];
        let output = cluster.ask(User::Admin, &create, &pod.to_string())?;
        Ok(String::from_utf8(output.stderr)?)
    };
    until("an empty map lets nothing pass", tried, |said| {
        says(said, "parameters:")
    })?;
    let map = ["delete", "configmap", "sidegate-admission", "--namespace", NAMESPACE];
    cluster.kubectl(&map, "")?;
    let absent = "failed to configure binding: no params found";
    until("without the map nothing passes", tried, |said| said.contains(absent))?;
    // What is not ours to judge goes on all the same: tokens for kubelets, other namespaces.
    let other = cluster.namespace()?;
    let plain = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain", "namespace": other},
        "spec": {"nodeSelector": {"none": "has-it"}, "containers": [{"name": "c", "image": "example.invalid/c"}]},
    });
    cluster.create(&plain)?;
    cluster.kubectl(&["create", "token", "default", "--namespace", &namespace], "")?;

    let output = cluster.helm(&["uninstall", "sidegate", "--namespace", NAMESPACE])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let kinds = "validatingadmissionpolicies,validatingadmissionpolicybindings";
    let left = cluster.kubectl(
        &["get", kinds, "-o", "name", "-l", "app.kubernetes.io/name=sidegate"],
        "",
    )?;
    ensure!(left.is_empty(), "left: {left}");
    until("pods are created as before", tried, String::is_empty).map(|_| ())
}
