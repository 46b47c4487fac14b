//! The webhook on a real API server: what it makes of pods is what the server stores, and only where it was asked to.
//!
//! The stored pod is the oracle. The injector runs in this process, with a service account that may read five kinds and
//! nothing else; the API server reaches it by the `url` form.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{json, Value};
use sidegate_injector::admit::{admit, enabled, Verdict, World};
use sidegate_injector::app::{start, Certificates, Files, InjectorConfig, InstallFrom, Running, WATCH_EVERY};
use sidegate_injector::install::Install;
use sidegate_injector::patch;
use sidegate_policies::objects::Objects;
use sidegate_policies::pod::shape::Shape;
use sidegate_policies::yaml::{load, Source};
use sidegate_tests::authority::Authority;
use sidegate_tests::cluster::{Cluster, User};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

use crate::site::Agent;

pub const AUDIENCE: &str = "https://sidegate-broker.sidegate-system.svc:8444";
const INSTALL: &str = "brokerUrl: https://sidegate-broker.sidegate-system.svc:8443
audience: https://sidegate-broker.sidegate-system.svc:8444
nameServers: [10.96.0.10]
brokerCaPem: |
  -----BEGIN CERTIFICATE-----
  MIIB
  -----END CERTIFICATE-----
";
pub const PROFILE: &str = "apiVersion: sidegate.dev/v1alpha1
kind: InjectionProfile
metadata: {name: default}
spec:
  image:
    repository: example.invalid/sidegate-sidecar
    digest: sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
";
/// Of the configuration that calls it; the chart's own is in nobody's way.
const NAME: &str = "sidegate-injector-under-test";
/// What the injector may do: nothing but read.
const RIGHTS: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: sidegate-injector-under-test}
rules:
- {apiGroups: [''], resources: [namespaces], verbs: [get, list, watch]}
- {apiGroups: [sidegate.dev], resources: [injectionprofiles, targets, accesspolicies, tokenissuers], verbs: [get, list, watch]}
- apiGroups: [admissionregistration.k8s.io]
  resources: [mutatingwebhookconfigurations, validatingwebhookconfigurations]
  resourceNames: [sidegate-injector-under-test]
  verbs: [get, list, watch]
---
apiVersion: v1
kind: Namespace
metadata: {name: sidegate-injector-test}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: injector, namespace: sidegate-injector-test}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: sidegate-injector-under-test}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sidegate-injector-under-test}
subjects: [{kind: ServiceAccount, name: injector, namespace: sidegate-injector-test}]
";

/// An injector that serves the cluster, and what it needs to.
pub struct Site {
    running: Option<Running>,
    runtime: Runtime,
    /// PEM of who signed the injector's certificate.
    authority: String,
    _folder: tempfile::TempDir,
}

static SITE: Mutex<Option<Arc<Site>>> = Mutex::new(None);

/// The one injector of this run, started by whoever asks first.
pub fn site(cluster: &Cluster) -> Result<Arc<Site>> {
    let mut kept = SITE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(site) = kept.as_ref() {
        return Ok(Arc::clone(site));
    }
    let site = Arc::new(Site::start(cluster)?);
    *kept = Some(Arc::clone(&site));
    Ok(site)
}

/// Ends the injector, if one was started.
pub fn stop() {
    let kept = SITE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Ok(mut site)) = kept.map(Arc::try_unwrap) {
        if let Some(running) = site.running.take() {
            site.runtime.block_on(running.shutdown());
        }
    }
}

impl Site {
    fn start(cluster: &Cluster) -> Result<Site> {
        cluster.kubectl(&["apply", "-f", "-"], RIGHTS)?;
        cluster.kubectl(&["apply", "-f", "-"], PROFILE)?;
        let account = [
            "create",
            "token",
            "injector",
            "--namespace",
            "sidegate-injector-test",
            "--duration",
            "2h",
        ];
        let token = cluster.kubectl(&account, "")?;
        let folder = tempfile::Builder::new().prefix("sidegate-injector-").tempdir()?;
        let authority = Authority::new()?;
        let leaf = authority.leaf(&["127.0.0.1"])?;
        let file = |name: &str, text: &str| -> Result<std::path::PathBuf> {
            let path = folder.path().join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        let config = InjectorConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            health_listen: None,
            own_address: None,
            certificates: Certificates::Files(Files {
                certificate: file("tls.crt", &leaf.certificate)?,
                key: file("tls.key", &leaf.key)?,
            }),
            install: InstallFrom::Given(
                Install::read(INSTALL).map_err(|problems| anyhow::anyhow!(problems.join("; ")))?,
            ),
            kubeconfig: Some(file("kubeconfig.json", &cluster.kubeconfig_of(token.trim()))?),
            namespace: "sidegate-system".to_owned(),
            name: NAME.to_owned(),
            replica: "one".to_owned(),
            watch_every: WATCH_EVERY,
            report_profiles: false,
            evict_every: None,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let running = runtime.block_on(start(config))?;
        let url = format!("https://{}/mutate", running.address);
        cluster.kubectl(&["apply", "-f", "-"], &configuration(&url, authority.pem()).to_string())?;
        let site = Site {
            running: Some(running),
            runtime,
            authority: authority.pem().to_owned(),
            _folder: folder,
        };
        site.is_called(cluster)?;
        Ok(site)
    }

    /// The API server learns of a webhook by watching.
    fn is_called(&self, cluster: &Cluster) -> Result<()> {
        is_asked(cluster, &labelled(cluster, &[])?)
    }
}

/// Waits until pods of a namespace get their sidecar: the API server learns of labels, and the injector of profiles, by
/// watching.
pub fn is_asked(cluster: &Cluster, namespace: &str) -> Result<()> {
    let last = std::cell::RefCell::new(String::new());
    let asked = cluster.until("pods get their sidecar", || {
        let made = dry_run(cluster, &pod(namespace, json!({})));
        *last.borrow_mut() = made
            .as_ref()
            .map_or_else(|error| format!("{error:#}"), Value::to_string);
        Ok(made.is_ok_and(|made| made["spec"]["initContainers"][0]["name"] == "sidegate"))
    });
    asked.with_context(|| format!("seen last: {}", last.take()))
}

fn configuration(url: &str, authority: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": [{
            "name": "pods.sidegate.dev",
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
            "matchPolicy": "Equivalent", "reinvocationPolicy": "IfNeeded", "timeoutSeconds": 5,
            "clientConfig": {"url": url, "caBundle": STANDARD.encode(authority)},
            "namespaceSelector": {"matchExpressions": [
                {"key": "sidegate.dev/inject", "operator": "In", "values": ["enabled"]},
            ]},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        }],
    })
}

/// From now on the injector under test is asked about words on the requests of this namespace.
pub fn decides(cluster: &Cluster, namespace: &str) -> Result<()> {
    let site = site(cluster)?;
    let running = site.running.as_ref().context("the injector has ended")?;
    let url = format!("https://{}/decisions", running.address);
    asked_about(cluster, namespace, &url, &site.authority)
}

/// The same of an injector that is down.
pub fn decides_nowhere(cluster: &Cluster, namespace: &str) -> Result<()> {
    let url = format!("https://127.0.0.1:{}/decisions", sidegate_tests::ports::free()?);
    asked_about(cluster, namespace, &url, Authority::new()?.pem())
}

fn asked_about(cluster: &Cluster, namespace: &str, url: &str, authority: &str) -> Result<()> {
    let name = format!("decisions-{namespace}");
    let asked = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": name},
        "webhooks": [{
            "name": "decisions.sidegate.dev",
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
            "matchPolicy": "Equivalent", "reinvocationPolicy": "Never", "timeoutSeconds": 5,
            "clientConfig": {"url": url, "caBundle": STANDARD.encode(authority)},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "rules": [{
                "apiGroups": ["sidegate.dev"], "apiVersions": ["*"], "operations": ["UPDATE"],
                "resources": ["accessrequests/status"],
            }],
            "matchConditions": [{
                "name": "not-the-broker", "expression": format!("request.userInfo.username != '{}'", crate::site::BROKER),
            }],
        }],
    });
    cluster.kubectl(&["apply", "-f", "-"], &asked.to_string()).map(drop)
}

/// A namespace with sidecars, and with these labels besides.
pub fn labelled(cluster: &Cluster, more: &[&str]) -> Result<String> {
    let namespace = cluster.namespace()?;
    let mut arguments = vec!["label", "namespace", &namespace, "sidegate.dev/inject=enabled"];
    arguments.extend(more);
    cluster.kubectl(&arguments, "")?;
    Ok(namespace)
}

/// A pod that no node takes, with some more in its specification.
pub fn pod(namespace: &str, more: Value) -> Value {
    let mut spec = json!({
        "nodeSelector": {"none": "has-it"},
        "containers": [{"name": "agent", "image": "example.invalid/agent"}],
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": "agent", "namespace": namespace, "labels": {"agent": "triage"}},
    })
}

pub fn dry_run(cluster: &Cluster, object: &Value) -> Result<Value> {
    let said = cluster.kubectl(
        &["create", "--dry-run=server", "-f", "-", "-o", "json"],
        &object.to_string(),
    )?;
    Ok(serde_json::from_str(&said)?)
}

fn stored(cluster: &Cluster, namespace: &str) -> Result<Value> {
    let said = cluster.kubectl(&["get", "pod", "agent", "--namespace", namespace, "-o", "json"], "")?;
    Ok(serde_json::from_str(&said)?)
}

/// The complaint about an object that must not be taken.
fn refused(cluster: &Cluster, object: &Value) -> Result<String> {
    let output = cluster.ask(User::Admin, &["create", "-f", "-"], &object.to_string())?;
    ensure!(!output.status.success(), "taken: {object}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What the injector would make of a stored pod.
fn again(pod: &Value) -> Result<Verdict> {
    judged(AUDIENCE, pod)
}

/// The same for a broker of this audience.
fn judged(audience: &str, pod: &Value) -> Result<Verdict> {
    judged_by(PROFILE, audience, pod)
}

/// The same by a profile `default` that says this.
pub fn judged_by(profile: &str, audience: &str, pod: &Value) -> Result<Verdict> {
    let install = INSTALL.replace(AUDIENCE, audience);
    let install = Install::read(&install).map_err(|problems| anyhow::anyhow!(problems.join("; ")))?;
    let loaded = load(&[Source {
        name: "profile".to_owned(),
        text: profile.to_owned(),
    }]);
    let objects: Objects = loaded.objects;
    let namespace = enabled("any");
    let world = World {
        install: &install,
        objects: &objects,
        generations: &BTreeMap::from([("default".to_owned(), 1)]),
        unusable: &BTreeMap::new(),
    };
    Ok(admit(&world, &namespace, pod))
}

/// A pod of a labelled namespace is stored with its sidecar, in the shape the broker demands; the server's own admission
/// after it added nothing, and injecting what is stored changes nothing.
pub fn a_pod_of_a_labelled_namespace_is_stored_with_its_sidecar(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let namespace = labelled(cluster, &[])?;
    cluster.create(&pod(
        &namespace,
        json!({"initContainers": [{"name": "setup", "image": "example.invalid/s"}]}),
    ))?;
    let made = stored(cluster, &namespace)?;
    let spec = &made["spec"];
    ensure!(spec["initContainers"][0]["name"] == "sidegate", "{spec}");
    ensure!(spec["initContainers"][0]["restartPolicy"] == "Always", "{spec}");
    ensure!(spec["initContainers"][1]["name"] == "setup", "{spec}");
    ensure!(
        Shape::of(spec, AUDIENCE).wrong().is_none(),
        "{:?}",
        Shape::of(spec, AUDIENCE)
    );
    // The cluster's token was mounted before us, and is in no container now.
    let text = spec.to_string();
    ensure!(!text.contains("kube-api-access"), "{text}");
    ensure!(spec["automountServiceAccountToken"] == false, "{text}");
    let Verdict::Injected { injected, .. } = again(&made)? else {
        anyhow::bail!("the stored pod is not injected again");
    };
    let left = patch::between(&made, &injected.pod);
    ensure!(left.is_empty(), "injected again it changes: {left:?}");
    Ok(())
}

/// Controllers make pods by a template: the message of a refusal reaches people as an Event.
pub fn pods_of_a_deployment_are_injected_and_a_refusal_is_an_event(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let namespace = labelled(cluster, &[])?;
    let deployment = |name: &str, shared: bool| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "nodeSelector": {"none": "has-it"}, "shareProcessNamespace": shared,
                        "containers": [{"name": "agent", "image": "example.invalid/agent"}],
                    },
                },
            },
        })
    };
    cluster.create(&deployment("good", false))?;
    cluster.create(&deployment("bad", true))?;
    let first = "jsonpath={.items[*].spec.initContainers[0].name}";
    let pods = ["get", "pods", "--namespace", &namespace, "-l", "app=good", "-o", first];
    cluster.until("the pod of the good one has its sidecar", || {
        Ok(cluster.kubectl(&pods, "")? == "sidegate")
    })?;
    let events = [
        "get",
        "events",
        "--namespace",
        &namespace,
        "-o",
        "jsonpath={.items[*].message}",
    ];
    cluster.until("the refusal of the bad one is an Event", || {
        let said = cluster.kubectl(&events, "")?;
        Ok(said.contains("sidegate: shareProcessNamespace: ") && said.contains("set it to false"))
    })
}

/// Where nobody asked for sidecars, nothing changes.
pub fn a_pod_of_another_namespace_is_untouched(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let plain = cluster.namespace()?;
    cluster.create(&pod(&plain, json!({"shareProcessNamespace": true})))?;
    let made = stored(cluster, &plain)?;
    ensure!(made["spec"].get("initContainers").is_none(), "{made}");
    ensure!(made["metadata"].get("annotations").is_none(), "{made}");
    // With the label gone, new pods are left alone, too.
    let namespace = labelled(cluster, &[])?;
    cluster.kubectl(&["label", "namespace", &namespace, "sidegate.dev/inject-"], "")?;
    cluster.until("the server sees the label gone", || {
        Ok(dry_run(cluster, &pod(&namespace, json!({})))?["spec"]
            .get("initContainers")
            .is_none())
    })
}

/// The restricted Pod Security Standard takes an injected pod, without a warning.
pub fn an_injected_pod_passes_the_restricted_standard(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let levels = ["enforce", "warn"].map(|mode| format!("pod-security.kubernetes.io/{mode}=restricted"));
    let namespace = labelled(cluster, &[&levels[0], &levels[1]])?;
    let restricted = json!({
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "agent", "image": "example.invalid/agent",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }],
    });
    let text = pod(&namespace, restricted).to_string();
    let output = cluster.ask(User::Admin, &["create", "-f", "-"], &text)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    ensure!(!said.contains("would violate"), "{said}");
    ensure!(stored(cluster, &namespace)?["spec"]["initContainers"][0]["name"] == "sidegate");
    Ok(())
}

/// Dry-run answers the same pod and stores none; server-side apply stays the owner of what it wrote, and applying again
/// changes nothing.
pub fn dry_run_and_server_side_apply_see_the_same_pod(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let namespace = labelled(cluster, &[])?;
    let wanted = pod(&namespace, json!({}));
    let dry = dry_run(cluster, &wanted)?;
    let absent = cluster.ask(User::Admin, &["get", "pod", "agent", "--namespace", &namespace], "")?;
    ensure!(!absent.status.success(), "a dry run stored a pod");
    let apply = ["apply", "--server-side", "--field-manager=team", "-f", "-"];
    cluster.kubectl(&apply, &wanted.to_string())?;
    let made = stored(cluster, &namespace)?;
    ensure!(made["spec"] == dry["spec"], "dry run: {dry}\nstored: {made}");
    cluster.kubectl(&apply, &wanted.to_string())?;
    let after = stored(cluster, &namespace)?;
    ensure!(
        after["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"],
        "{after}"
    );
    Ok(())
}

/// What the injector makes of a pod is what the broker believes: its sidecar gets a bundle.
pub fn the_broker_attests_an_injected_pod(cluster: &Cluster) -> Result<()> {
    let broker = crate::site::site(cluster)?;
    let mut plain = None;
    let agent = Agent::of(cluster, Arc::clone(&broker), |pod| {
        // Of the pod that the harness writes by hand, only the agent is left.
        for list in ["initContainers", "volumes"] {
            pod["spec"][list] = json!([]);
        }
        if let Ok(Verdict::Injected { injected, .. }) = judged(broker.audience(), pod) {
            plain = Some(std::mem::replace(pod, injected.pod));
        }
    })?;
    ensure!(plain.is_some(), "it is not injected");
    let said = agent.kubectl(&["get", "pod", "agent", "-o", "json"])?;
    let made: Value = serde_json::from_str(&said)?;
    ensure!(
        made["spec"]["initContainers"][0]["env"].as_array().map_or(0, Vec::len) > 8,
        "{made}"
    );
    agent.report(0, "containerd://first")?;
    let sidecar = agent.sidecar()?;
    agent.end(sidecar);
    Ok(())
}

/// What an author is told: the rule, and what to change; wrong words are answered with the right ones.
pub fn what_is_refused_says_what_to_change(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let namespace = labelled(cluster, &[])?;
    let said = refused(cluster, &pod(&namespace, json!({"hostNetwork": true})))?;
    ensure!(
        said.contains("sidegate: hostNetwork: ") && said.contains("remove hostNetwork"),
        "{said}"
    );
    let mut annotated = pod(&namespace, json!({}));
    annotated["metadata"]["annotations"] = json!({"sidegate.dev/image": "evil"});
    let said = refused(cluster, &annotated)?;
    ensure!(said.contains("there is no annotation sidegate.dev/image"), "{said}");
    let mut out = pod(&namespace, json!({}));
    out["metadata"]["labels"]["sidegate.dev/inject"] = json!("false");
    let said = refused(cluster, &out)?;
    ensure!(
        said.contains("sidegate: opt-out: ") && said.contains("allow-pod-opt-out=true"),
        "{said}"
    );
    let other = labelled(cluster, &["sidegate.dev/profile=missing"])?;
    let said = refused(cluster, &pod(&other, json!({})))?;
    ensure!(said.contains("there is no InjectionProfile missing"), "{said}");
    Ok(())
}

/// The variables follow the Targets that policies grant, as the server holds them.
pub fn a_granted_target_is_in_the_environment(cluster: &Cluster) -> Result<()> {
    let _site = site(cluster)?;
    let namespace = labelled(cluster, &[])?;
    let objects = format!(
        "{{apiVersion: sidegate.dev/v1alpha1, kind: Target, metadata: {{name: orders-db, namespace: {namespace}}}, spec: \
         {{protocol: Postgres, address: {{host: db.data, port: 5432}}, credential: {{secret: {{name: db}}}}, listen: \
         {{port: 15432}}}}}}\n---\n{{apiVersion: sidegate.dev/v1alpha1, kind: AccessPolicy, metadata: {{name: all, \
         namespace: {namespace}}}, spec: {{targetRefs: [{{name: orders-db}}], subjects: [{{podSelector: {{matchLabels: \
         {{agent: triage}}}}}}], rules: [{{name: all, effect: Allow}}]}}}}\n"
    );
    cluster.kubectl(&["apply", "-f", "-"], &objects)?;
    cluster.until("the injector has heard of the Target", || {
        let made = dry_run(cluster, &pod(&namespace, json!({})))?;
        let variable = &made["spec"]["containers"][0]["env"][1];
        Ok(*variable == json!({"name": "SIDEGATE_ORDERS_DB_PORT", "value": "15432"}))
    })?;
    let made = dry_run(cluster, &pod(&namespace, json!({})))?;
    let sidecar = made["spec"]["initContainers"][0]["env"].as_array().context("no env")?;
    let ports = sidecar.iter().find(|variable| variable["name"] == "SIDEGATE_PORTS");
    let ports = ports.and_then(|ports| ports["value"].as_str()).unwrap_or_default();
    let wanted = json!({format!("{namespace}/orders-db"): {"port": 15432, "protocol": "Postgres"}});
    ensure!(serde_json::from_str::<Value>(ports)? == wanted, "{ports}");
    Ok(())
}

/// What a webhook adds after ours was called gets what agents get, because ours is called again; and what the server
/// itself adds to our container (a LimitRange's default) does not stay.
pub fn a_container_that_is_added_later_is_an_agents_too(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let namespace = labelled(cluster, &[])?;
    let range = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "defaults", "namespace": namespace},
        "spec": {"limits": [{"type": "Container", "default": {"cpu": "300m"}, "defaultRequest": {"cpu": "100m"}}]},
    });
    cluster.create(&range)?;
    let authority = Authority::new()?;
    let leaf = authority.leaf(&["127.0.0.1"])?;
    let listener = site.runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let mut late = configuration(&format!("https://{}/", listener.local_addr()?), authority.pem());
    late["metadata"]["name"] = json!(format!("zz-{namespace}"));
    late["webhooks"][0]["name"] = json!("late.example.org");
    late["webhooks"][0]["reinvocationPolicy"] = json!("Never");
    let key = "kubernetes.io/metadata.name";
    late["webhooks"][0]["namespaceSelector"] =
        json!({"matchExpressions": [{"key": key, "operator": "In", "values": [namespace]}]});
    let serving = site.runtime.spawn(late_webhook(listener, leaf.certificate, leaf.key));
    cluster.create(&late)?;
    cluster.until("the other webhook is called, too", || {
        Ok(dry_run(cluster, &pod(&namespace, json!({})))?["spec"]["containers"][1]["name"] == "late")
    })?;
    let made = dry_run(cluster, &pod(&namespace, json!({})))?;
    serving.abort();
    cluster.kubectl(
        &["delete", "mutatingwebhookconfiguration", &format!("zz-{namespace}")],
        "",
    )?;
    let spec = &made["spec"];
    ensure!(spec["initContainers"].as_array().map(Vec::len) == Some(1), "{spec}");
    let late = &spec["containers"][1];
    ensure!(
        late["securityContext"]["capabilities"]["drop"] == json!(["NET_RAW"]),
        "{late}"
    );
    ensure!(late.get("volumeMounts").is_none(), "it has a token: {late}");
    ensure!(
        spec["containers"][0]["resources"]["limits"]["cpu"] == "300m",
        "no LimitRange: {spec}"
    );
    let limits = &spec["initContainers"][0]["resources"]["limits"];
    ensure!(*limits == json!({"memory": "128Mi"}), "{limits}");
    Ok(())
}

/// A webhook that adds a container to each pod, and nothing else.
async fn late_webhook(listener: tokio::net::TcpListener, certificate: String, key: String) -> Result<()> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    loop {
        let (stream, _) = listener.accept().await?;
        // The API server tries again where a connection fails.
        let _ = late_answer(acceptor.accept(stream).await?).await;
    }
}

async fn late_answer(mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>) -> Result<()> {
    let mut all = Vec::new();
    let body = loop {
        let mut part = vec![0; 64 << 10];
        let read = stream.read(&mut part).await?;
        ensure!(read > 0, "it ended early");
        all.extend(&part[..read]);
        let text = String::from_utf8_lossy(&all).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        if body.len() >= length.context("no length")?.parse()? {
            break body.to_owned();
        }
    };
    let review: Value = serde_json::from_str(&body)?;
    let container = json!({"name": "late", "image": "example.invalid/late"});
    let patch = json!([{"op": "add", "path": "/spec/containers/-", "value": container}]).to_string();
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {
            "uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch),
        },
    });
    let answer = answer.to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
    let text = format!("{head}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

/// Bodies that are no reviews, from whoever reaches the Service.
pub fn what_is_no_review_is_answered_with_no_review(cluster: &Cluster) -> Result<()> {
    let site = site(cluster)?;
    let address = site.running.as_ref().context("it runs")?.address;
    let post = |head: &str, body: Vec<u8>| -> Result<String> {
        let head = format!("POST /mutate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n\r\n");
        site.runtime.block_on(exchange(address, &site.authority, head, body))
    };
    let json = "Content-Type: application/json";
    let long = |length: usize| format!("{json}\r\nContent-Length: {length}");
    for (head, body, status) in [
        (long(1), b"{".to_vec(), "400"),
        (long(4), b"null".to_vec(), "400"),
        (long((10 << 20) + 1), vec![b' '; 64 << 10], "413"),
        (
            "Content-Type: text/plain\r\nContent-Length: 2".to_owned(),
            b"{}".to_vec(),
            "415",
        ),
    ] {
        let said = post(&head, body)?;
        ensure!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {said}");
    }
    // One that never ends is given up.
    let said = post(&long(100), b"{".to_vec())?;
    ensure!(said.starts_with("HTTP/1.1 408 "), "{said}");
    Ok(())
}

/// Sends bytes over TLS and reads until the other side closes.
async fn exchange(address: SocketAddr, authority: &str, head: String, body: Vec<u8>) -> Result<String> {
    let tcp = tokio::net::TcpStream::connect(address).await?;
    let connector = sidegate_tests::http::connector(authority, None)?;
    let mut stream = connector.connect("127.0.0.1".try_into()?, tcp).await?;
    stream.write_all(head.as_bytes()).await?;
    // It may have been refused by its head alone.
    let _ = stream.write_all(&body).await;
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said);
    let ended = tokio::time::timeout(Duration::from_secs(30), read).await;
    ended.context("the other side neither answers nor closes")?.ok();
    Ok(String::from_utf8_lossy(&said).into_owned())
}
