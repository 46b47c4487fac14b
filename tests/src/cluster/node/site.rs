//! Sidegate on a node: the charts installed, its programs running as pods from our images, databases beside the node, and
//! namespaces of agents.
//!
//! The suite and `make cluster` stand on the same site. Invariant: an agent's pod is created as anybody would write it,
//! and holds nothing of ours; everything of Sidegate in it comes from admission.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use serde_json::{json, Value};

use super::images::{self, Built, Image};
use super::{Node, Parts, ADDRESS, NAME, PODS};
use crate::bearer;
use crate::cluster::{helm, Programs, User};
use crate::postgres::{Major, Options, Postgres};
use crate::shop::{self, DATABASE, PASSWORD, ROLE};

/// Where Sidegate runs.
pub const SYSTEM: &str = "sidegate-system";
/// The release, and so the beginning of its objects' names.
pub const RELEASE: &str = "sidegate";
/// What the database that takes tokens calls itself.
const AUDIENCE: &str = "postgres://ledger.internal";
/// Longest wait for something that takes a moment.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Folder of the run that is the brokers' volume.
const VOLUME: &str = "records";
/// What the release was installed with.
const VALUES: &str = "values.json";
/// Where an agent finds the database that is entered by a Secret.
pub const SHOP: u16 = 15432;
/// Where it finds the one that is entered by a token.
pub const LEDGER: u16 = 15433;

/// A node with Sidegate, and two databases.
pub struct Site {
    /// The node.
    pub node: Node,
    /// PostgreSQL 15, entered with a password that lies in a Secret.
    pub shop: Postgres,
    /// PostgreSQL 18, entered with tokens alone.
    pub ledger: Postgres,
    /// Image of an agent with the stock `psql`.
    pub psql: Built,
    /// Image of an agent with the stock Python and psycopg.
    pub python: Built,
}

/// Says what is being done; the suite and `make cluster` show it.
fn step(what: &str, since: &mut Instant) {
    eprintln!("node: {what} ({} ms)", since.elapsed().as_millis());
    *since = Instant::now();
}

impl Site {
    /// Starts everything within the namespaces of [`super::house`].
    pub fn start(programs: &Programs, parts: &Parts, run: &Path, images: &Path) -> Result<Site> {
        let mut since = Instant::now();
        let mut node = Node::start(programs, parts, run)?;
        step(
            "control plane, containerd, kubelet and kube-proxy are ready",
            &mut since,
        );
        let psql = node.agent("agent-psql")?;
        let python = node.agent("agent-python")?;
        for name in [
            "sidegate-sidecar",
            "sidegate-broker",
            "sidegate-injector",
            "sidegate-cli",
        ] {
            node.import(&images::ours(images, name)?)?;
        }
        step("images are imported", &mut since);
        let (shop, ledger) = databases(&node)?;
        step("PostgreSQL 15 and 18 run beside the node", &mut since);
        install(&mut node, images)?;
        step("both charts are installed and their pods are ready", &mut since);
        let site = Site {
            node,
            shop,
            ledger,
            psql,
            python,
        };
        site.trust_the_broker()?;
        Ok(site)
    }

    /// The database of tokens believes the broker's keys, as its own administrator would write them down.
    fn trust_the_broker(&self) -> Result<()> {
        let keys: Value = serde_json::from_str(&self.broker(&["jwks"])?)?;
        let issuer = format!("https://{RELEASE}-broker.{SYSTEM}.svc:8444");
        bearer::trust_issuer(&self.ledger, &issuer, &keys, AUDIENCE)
    }

    /// A verb of the broker's program, in its own pod, about its own state.
    pub fn broker(&self, verb: &[&str]) -> Result<String> {
        let broker = format!("deployment/{RELEASE}-broker");
        let exec = ["exec", "--namespace", SYSTEM, &broker, "--", "/sidegate-broker"];
        let state = ["--state=/var/lib/sidegate/state"];
        self.node.cluster.kubectl(&[&exec[..], verb, &state].concat(), "")
    }

    /// Upgrades the release to so many brokers, and waits until all of them are ready.
    pub fn brokers(&self, count: usize) -> Result<()> {
        let (main, values) = (chart("sidegate"), self.node.run.join(VALUES));
        let (main, values, several) = (
            main.to_string_lossy(),
            values.to_string_lossy(),
            format!("replicas={count}"),
        );
        let upgrade = ["upgrade", RELEASE, &main, "--namespace", SYSTEM];
        let with = ["--values", &values, "--set", &several];
        helm(&self.node.cluster, &[&upgrade[..], &with].concat())?;
        let kind = if count > 1 { "statefulset" } else { "deployment" };
        self.node.rolled_out(SYSTEM, &format!("{kind}/{RELEASE}-broker"))
    }

    /// The record store of the brokers, which lies on the node's disk.
    pub fn records(&self) -> PathBuf {
        self.node.run.join(VOLUME).join("state/records")
    }

    /// A namespace of agents: labelled, with the two Targets, a policy that masks, and the Secret of one of them.
    pub fn agents(&self) -> Result<Agents<'_>> {
        let namespace = self.node.cluster.namespace()?;
        self.labelled(namespace)
    }

    /// Makes an InjectionProfile that is the default one with a change.
    pub fn profile(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let cluster = &self.node.cluster;
        let stored = cluster.kubectl(&["get", "injectionprofile", "default", "-o", "json"], "")?;
        let mut spec = serde_json::from_str::<Value>(&stored)?["spec"].take();
        change(&mut spec);
        cluster.create(&json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "InjectionProfile", "metadata": {"name": name}, "spec": spec,
        }))?;
        Ok(())
    }

    /// The same by an InjectionProfile of its own.
    pub fn agents_by(&self, profile: &str) -> Result<Agents<'_>> {
        let namespace = self.node.cluster.namespace()?;
        let label = format!("sidegate.dev/profile={profile}");
        self.node
            .cluster
            .kubectl(&["label", "namespace", &namespace, &label], "")?;
        self.labelled(namespace)
    }

    /// The same of this name.
    pub fn agents_named(&self, name: &str) -> Result<Agents<'_>> {
        self.node.cluster.kubectl(&["create", "namespace", name], "")?;
        self.labelled(name.to_owned())
    }

    fn labelled(&self, namespace: String) -> Result<Agents<'_>> {
        let cluster = &self.node.cluster;
        cluster.kubectl(&["label", "namespace", &namespace, "sidegate.dev/inject=enabled"], "")?;
        let agents = Agents { site: self, namespace };
        cluster.kubectl(&["apply", "-f", "-"], &self.objects(&agents.namespace)?)?;
        // The injector and the broker learn of a Target by watching.
        agents.until("the Targets are in force", || {
            let both = [
                "get",
                "targets",
                "-o",
                "jsonpath={.items[*].status.conditions[?(@.type==\"ResolvedRefs\")].status}",
            ];
            Ok(agents.kubectl(&both)? == "True True")
        })?;
        let probe = agents.pod("probe", &self.psql, &["/bin/true"]);
        agents.until_made_with("SIDEGATE_LEDGER_PORT", &probe)?;
        Ok(agents)
    }

    /// What a data team and a security team write.
    fn objects(&self, namespace: &str) -> Result<String> {
        let (shop, ledger) = (
            serde_json::to_string(self.shop.authority.pem())?,
            serde_json::to_string(self.ledger.authority.pem())?,
        );
        let (shop_port, ledger_port) = (self.shop.port, self.ledger.port);
        Ok(format!(
            r#"apiVersion: v1
kind: Secret
metadata: {{name: shop-agent, namespace: {namespace}}}
stringData: {{username: {ROLE}, password: {PASSWORD}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: sidegate-secrets-shop-agent, namespace: {namespace}}}
rules: [{{apiGroups: [""], resources: [secrets], resourceNames: [shop-agent], verbs: [get]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: sidegate-secrets-shop-agent, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: sidegate-secrets-shop-agent}}
subjects: [{{kind: ServiceAccount, name: sidegate-broker, namespace: {SYSTEM}}}]
---
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {{name: shop, namespace: {namespace}}}
spec:
  protocol: Postgres
  address: {{host: shop.internal, port: {shop_port}}}
  tls: {{caBundle: {{inline: {shop}}}}}
  databases: [{DATABASE}]
  credential: {{secret: {{name: shop-agent}}}}
  listen: {{port: {SHOP}, hostnames: [shop.internal]}}
---
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {{name: ledger, namespace: {namespace}}}
spec:
  protocol: Postgres
  address: {{host: ledger.internal, port: {ledger_port}}}
  tls: {{caBundle: {{inline: {ledger}}}}}
  databases: [{DATABASE}]
  credential: {{token: {{audience: "{AUDIENCE}", scopes: [db], username: {ROLE}}}}}
  listen: {{port: {LEDGER}, hostnames: [ledger.internal]}}
---
apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: support, namespace: {namespace}}}
spec:
  targetRefs: [{{name: shop}}, {{name: ledger}}]
  subjects: [{{serviceAccount: {{namespace: {namespace}, name: default}}}}]
  rules:
    - {{name: read, effect: Allow, sql: {{commands: [Select], tables: ["app.*"]}}}}
  masks:
    - columns: [app.people.ssn]
      as: {{keepLast: {{count: 4}}}}
"#
        ))
    }
}

impl Node {
    /// An agent's image, built from its file system and imported.
    fn agent(&self, name: &str) -> Result<Built> {
        let image = Image {
            name: format!("local.test/{name}:1"),
            root: Some(self.parts.agent(name)),
            user: "1000:1000".to_owned(),
            entrypoint: "/bin/sh".to_owned(),
            ..Image::default()
        };
        let built = image.build(&self.run)?;
        self.import(&built)?;
        Ok(built)
    }
}

/// The databases, reached by name from pods and by nobody without a credential.
fn databases(node: &Node) -> Result<(Postgres, Postgres)> {
    let listen = format!("listen_addresses = '127.0.0.1,{ADDRESS}'");
    let options = Options {
        hba: vec![format!("hostssl all all {PODS} scram-sha-256")],
        settings: vec![listen.clone(), "log_connections = on".to_owned()],
        tls: Some("shop.internal".to_owned()),
    };
    let shop = shop::server(Major::V15, options)?;
    let ledger = bearer::server_at("/^sg:.*$", "ledger.internal", PODS, vec![listen])?;
    node.names.set("shop.internal", &[ADDRESS]);
    node.names.set("ledger.internal", &[ADDRESS]);
    Ok((shop, ledger))
}

/// The folder of a chart.
fn chart(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts").join(name)
}

/// Installs both charts, as an operator would, and waits for their pods.
fn install(node: &mut Node, folder: &Path) -> Result<()> {
    node.cluster.kubectl(&["create", "namespace", SYSTEM], "")?;
    node.cluster
        .kubectl(&["create", "-f", "-"], &volume(node)?.to_string())?;
    let (kinds, main) = (chart("sidegate-crds"), chart("sidegate"));
    let place = ["--namespace", SYSTEM];
    let install = ["install", "sidegate-crds", &kinds.to_string_lossy()];
    helm(&node.cluster, &[&install[..], &place].concat())?;
    let [sidecar, broker, webhook, line] =
        ["sidecar", "broker", "injector", "cli"].map(|name| images::ours(folder, &format!("sidegate-{name}")));
    let (sidecar, broker, webhook, line) = (sidecar?, broker?, webhook?, line?);
    let values = node.run.join(VALUES);
    let chosen = json!({
        // One broker, which may become several: a claim's mode cannot be changed.
        "storage": {"accessMode": "ReadWriteMany"},
        "image": {"repository": broker.repository(), "digest": broker.digest},
        "sidecar": {"digest": sidecar.digest},
        "tests": {"image": {"repository": line.repository(), "digest": line.digest}},
        "injector": {
            "replicas": 1, "nameServers": [ADDRESS],
            "image": {"repository": webhook.repository(), "digest": webhook.digest},
        },
    });
    std::fs::write(&values, chosen.to_string())?;
    let with = ["--values", &values.to_string_lossy()];
    let install = ["install", RELEASE, &main.to_string_lossy()];
    helm(&node.cluster, &[&install[..], &place, &with].concat())?;
    node.name_services()?;
    node.rolled_out(SYSTEM, &format!("deployment/{RELEASE}-broker"))?;
    node.rolled_out(SYSTEM, &format!("deployment/{RELEASE}-injector"))
}

/// The disk of the broker's records: the node's own, because there is no provisioner.
fn volume(node: &Node) -> Result<Value> {
    let records = node.run.join(VOLUME);
    std::fs::create_dir_all(&records)?;
    let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]});
    Ok(json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "records"},
        "spec": {
            "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteMany"], "local": {"path": records},
            "persistentVolumeReclaimPolicy": "Retain",
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }))
}

impl Node {
    /// Waits until a controller's pods are ready, and says what is wrong with them if they never are.
    pub fn rolled_out(&self, namespace: &str, what: &str) -> Result<()> {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let status = ["rollout", "status", what, "--namespace", namespace, &timeout];
        match self.cluster.kubectl(&status, "") {
            Ok(_) => Ok(()),
            Err(error) => bail!("{error:#}\n{}", self.trouble(namespace)),
        }
    }

    /// Events, pods and logs of a namespace, for a failed test.
    pub fn trouble(&self, namespace: &str) -> String {
        let place = ["--namespace", namespace];
        let ask = |arguments: &[&str]| {
            let all = [arguments, &place].concat();
            let said = self.cluster.ask(User::Admin, &all, "");
            said.map_or_else(
                |error| error.to_string(),
                |output| {
                    format!(
                        "{}{}",
                        String::from_utf8_lossy(&output.stdout),
                        String::from_utf8_lossy(&output.stderr)
                    )
                },
            )
        };
        let mut all = ask(&["get", "events", "--sort-by=.lastTimestamp"]);
        all.push_str(&ask(&["get", "pods", "-o", "wide"]));
        all.push_str(&ask(&[
            "get",
            "pods",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name}: {.status}{'\\n'}{end}",
        ]));
        let names = ask(&["get", "pods", "-o", "name"]);
        for pod in names.lines() {
            all.push_str(&format!("== {pod}\n"));
            all.push_str(&ask(&["logs", pod, "--all-containers", "--prefix", "--tail=40"]));
        }
        all
    }
}

/// A namespace whose pods get sidecars.
pub struct Agents<'a> {
    /// Where it is.
    pub site: &'a Site,
    /// Its name.
    pub namespace: String,
}

impl Agents<'_> {
    /// kubectl in this namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let place = ["--namespace", self.namespace.as_str()];
        self.site.node.cluster.kubectl(&[&place[..], arguments].concat(), "")
    }

    /// A pod as its owner writes it: a name, an image, a command, and nothing of ours.
    pub fn pod(&self, name: &str, image: &Built, command: &[&str]) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "terminationGracePeriodSeconds": 10,
                "containers": [{
                    "name": "agent", "image": image.pinned(), "imagePullPolicy": "Never", "command": command,
                }],
            },
        })
    }

    /// Creates an object.
    pub fn create(&self, object: &Value) -> Result<Value> {
        self.site.node.cluster.create(object)
    }

    /// Waits until a pod is ready.
    pub fn ready(&self, pod: &str) -> Result<()> {
        self.wait(pod, "condition=Ready")
    }

    /// Waits for something kubectl can wait for.
    pub fn wait(&self, what: &str, until: &str) -> Result<()> {
        let what = if what.contains('/') {
            what.to_owned()
        } else {
            format!("pod/{what}")
        };
        let (until, timeout) = (format!("--for={until}"), format!("--timeout={}s", PATIENCE.as_secs()));
        let wait = ["wait", &what, &until, &timeout];
        self.kubectl(&wait).map(|_| ()).map_err(|error| self.trouble(error))
    }

    /// An error with what the namespace says about itself.
    pub fn trouble(&self, error: anyhow::Error) -> anyhow::Error {
        anyhow::anyhow!("{error:#}\n{}", self.site.node.trouble(&self.namespace))
    }

    /// Waits for a condition that nothing announces.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds()? {
            if Instant::now() > deadline {
                return Err(self.trouble(anyhow::anyhow!("not within {} s: {what}", PATIENCE.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits until what the API server would store for a pod has this in it.
    pub fn until_made_with(&self, part: &str, pod: &Value) -> Result<()> {
        let (dry, pod) = (["create", "--dry-run=server", "-f", "-", "-o", "json"], pod.to_string());
        self.until(&format!("pods are made with {part}"), || {
            let said = self.site.node.cluster.ask(User::Admin, &dry, &pod)?;
            Ok(said.status.success() && String::from_utf8_lossy(&said.stdout).contains(part))
        })
    }

    /// A pod that waits, with `psql`, and is ready.
    pub fn psql_pod(&self, name: &str) -> Result<()> {
        self.create(&self.pod(name, &self.site.psql, &["/bin/sleep", "3600"]))?;
        self.ready(name)
    }

    /// Runs a program in a pod's agent.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.exec_in(pod, "agent", command)
    }

    fn exec_in(&self, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        let exec = ["exec", pod, "-c", container, "--"];
        let said = self.kubectl(&[&exec[..], command].concat());
        said.map(|said| said.trim_end().to_owned())
    }

    /// One statement by the stock `psql` of a pod's agent, without a password.
    pub fn ask(&self, pod: &str, port: u16, sql: &str) -> Result<String> {
        self.ask_as(pod, "agent", port, sql)
    }

    /// The same in another container of the pod.
    pub fn ask_as(&self, pod: &str, container: &str, port: u16, sql: &str) -> Result<String> {
        let port = port.to_string();
        let words = PSQL.map(|word| if word == "PORT" { port.as_str() } else { word });
        self.exec_in(pod, container, &[&words[..], &[sql]].concat())
    }

    /// The object as the server stored it.
    pub fn stored(&self, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.kubectl(&["get", kind, name, "-o", "json"])?,
        )?)
    }
}

/// psql as an agent types it.
pub const PSQL: [&str; 13] = [
    "psql",
    "-X",
    "-A",
    "-t",
    "-h",
    "127.0.0.1",
    "-p",
    "PORT",
    "-U",
    "agent",
    "-d",
    DATABASE,
    "-c",
];
/// What the mask leaves of the first row.
pub const MASKED: &str = "shop_agent|Ada|*******8841";
/// The statement that gives it.
pub const READ: &str = "SELECT current_user, name, ssn FROM app.people WHERE id = 1";
