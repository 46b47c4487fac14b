//! The charts under the real helm: what they install is accepted, works under the strictest pod security, and leaves
//! what must stay and nothing else.

use anyhow::{ensure, Context, Result};
use serde_json::Value;
pub use sidegate_tests::cluster::helm;
use sidegate_tests::cluster::{Cluster, User};

use crate::site::{chart, site, until, NAMESPACE};

/// No namespace is labelled for this release: its webhook, behind which nothing runs, is in nobody's way. Nor are its
/// admission policies, which would know its broker alone.
fn revision(release: &str) -> String {
    format!("injector.revision={release},approvals.policies=false")
}

/// The broker's pod is made under the restricted profile, with the rights and addresses it needs; uninstalling leaves
/// the claim with the records, and nothing else.
pub fn the_broker_installs_under_the_restricted_profile_and_leaves_its_records(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace()?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    cluster.kubectl(&["label", "namespace", &namespace, restricted], "")?;
    let release = format!("r{}", &namespace[namespace.len() - 8..]);
    helm(
        cluster,
        &[
            "install",
            &release,
            &chart("sidegate"),
            "--namespace",
            &namespace,
            "--set",
            &revision(&release),
        ],
    )?;
    let broker = "app.kubernetes.io/component=broker";
    let pods = ["get", "pods", "--namespace", &namespace, "-l", broker, "-o", "json"];
    let list = || -> Result<Value> { Ok(serde_json::from_str(&cluster.kubectl(&pods, "")?)?) };
    let made = until("the pod is made", list, |pods| {
        pods["items"].as_array().is_some_and(|pods| pods.len() == 1)
    })?;
    let container = &made["items"][0]["spec"]["containers"][0];
    let arguments: Vec<&str> = container["args"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for argument in [
        "--kubernetes".to_owned(),
        "--store-generation=0".to_owned(),
        format!("--front-url=https://{release}-broker.{namespace}.svc:8443"),
        format!("--issuer-url=https://{release}-broker.{namespace}.svc:8444"),
    ] {
        ensure!(arguments.contains(&argument.as_str()), "{arguments:?} lack {argument}");
    }
    ensure!(
        container["image"] == "ghcr.io/sidegate/sidegate-broker:0.1.0",
        "{container}"
    );
    let account = &made["items"][0]["spec"]["serviceAccountName"];
    ensure!(account == "sidegate-broker", "{account}");

    let injectors = [
        "get",
        "pods",
        "--namespace",
        &namespace,
        "-l",
        "app.kubernetes.io/component=injector",
        "-o",
        "name",
    ];
    let made = || cluster.kubectl(&injectors, "");
    until("the injector's pods are made", made, |made| made.lines().count() == 3)?;

    helm(cluster, &["uninstall", &release, "--namespace", &namespace])?;
    let kinds = "deployments,services,poddisruptionbudgets,roles,rolebindings,persistentvolumeclaims";
    let left = cluster.kubectl(&["get", kinds, "--namespace", &namespace, "-o", "name"], "")?;
    ensure!(
        left.trim() == format!("persistentvolumeclaim/{release}-broker"),
        "left: {left}"
    );
    let wide = cluster.kubectl(&["get", "clusterroles,clusterrolebindings", "-o", "name"], "")?;
    ensure!(!wide.contains(&format!("/{release}-")), "left: {wide}");
    Ok(())
}

/// Several brokers are pods that keep their names, spread, on one claim that all of them write; each has a state of its own,
/// and the record store is the one that a broker alone would use.
pub fn several_brokers_keep_their_names_and_one_store(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace()?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    cluster.kubectl(&["label", "namespace", &namespace, restricted], "")?;
    let release = format!("s{}", &namespace[namespace.len() - 8..]);
    let at = ["--namespace", namespace.as_str()];
    let values = format!(
        "{},replicas=3,storage.accessMode=ReadWriteMany,injector.enabled=false",
        revision(&release)
    );
    let path = chart("sidegate");
    let install = ["install", &release, &path, "--set", &values];
    helm(cluster, &[&install[..], &at].concat())?;
    let get = |what: &[&str]| -> Result<Value> {
        Ok(serde_json::from_str(
            &cluster.kubectl(&[&["get"], what, &at, &["-o", "json"]].concat(), "")?,
        )?)
    };
    let pods = until(
        "the pods are made",
        || get(&["pods"]),
        |pods| pods["items"].as_array().is_some_and(|pods| pods.len() == 3),
    )?;
    let mut names = Vec::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let (spec, name) = (&pod["spec"], pod["metadata"]["name"].as_str().unwrap_or_default());
        let arguments = &spec["containers"][0]["args"];
        for argument in [
            "--state=/var/lib/sidegate/replicas/$(POD_NAME)",
            "--records=/var/lib/sidegate/state/records",
            "--replica=$(POD_NAME)",
        ] {
            let has = |found: &Vec<Value>| found.iter().any(|found| found == argument);
            ensure!(arguments.as_array().is_some_and(has), "{arguments} lack {argument}");
        }
        let own = &spec["containers"][0]["env"][0]["valueFrom"]["fieldRef"]["fieldPath"];
        ensure!(own == "metadata.name", "{own}");
        let spread = spec["topologySpreadConstraints"].as_array().map_or(0, Vec::len);
        ensure!(spread == 2, "spread over {spread}");
        names.push(name.to_owned());
    }
    names.sort();
    let expected = [0, 1, 2].map(|at| format!("{release}-broker-{at}"));
    ensure!(names == expected, "{names:?}");
    let claim = get(&["persistentvolumeclaim", &format!("{release}-broker")])?;
    ensure!(
        claim["spec"]["accessModes"] == serde_json::json!(["ReadWriteMany"]),
        "{claim}"
    );
    let set = get(&["statefulset", &format!("{release}-broker")])?;
    ensure!(set["spec"]["updateStrategy"]["type"] == "RollingUpdate", "{set}");
    let budget = get(&["poddisruptionbudget", &format!("{release}-broker")])?;
    ensure!(budget["spec"]["maxUnavailable"] == 1, "{budget}");
    // Back to one, as a value is changed: the same store, another owner.
    let one = format!(
        "{},storage.accessMode=ReadWriteMany,injector.enabled=false",
        revision(&release)
    );
    let upgrade = ["upgrade", &release, &path, "--set", &one];
    helm(cluster, &[&upgrade[..], &at].concat())?;
    let kinds = ["get", "statefulsets,deployments", "-o", "name"];
    let left = cluster.kubectl(&[&kinds[..], &at].concat(), "")?;
    ensure!(left.trim() == format!("deployment.apps/{release}-broker"), "{left}");
    helm(cluster, &[&["uninstall", &release][..], &at].concat()).map(|_| ())
}

/// The broker of a second release asks people, too, once the release that has the policies knows it; nobody else does.
pub fn a_second_releases_broker_asks_once_the_first_one_knows_it(cluster: &Cluster) -> Result<()> {
    drop(site(cluster)?);
    let namespace = cluster.namespace()?;
    let release = format!("o{}", &namespace[namespace.len() - 8..]);
    let at = ["--namespace", namespace.as_str()];
    let path = chart("sidegate");
    let values = format!("{},injector.enabled=false", revision(&release));
    helm(
        cluster,
        &[&["install", &release, &path, "--set", &values][..], &at].concat(),
    )?;
    let asked = crate::requests::object(&namespace).to_string();
    let ask = |account: &str| {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let create = ["create", "--dry-run=server", "-f", "-", "--as", &user];
        let output = cluster.ask(User::Admin, &create, &asked)?;
        anyhow::Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let refused = ask("sidegate-broker")?;
    ensure!(refused.contains("only the broker asks"), "{refused}");
    let known =
        format!("approvals.otherBrokers[0].namespace={namespace},approvals.otherBrokers[0].name=sidegate-broker");
    let upgrade = [
        "upgrade",
        "sidegate",
        &path,
        "--namespace",
        NAMESPACE,
        "--reuse-values",
        "--set",
        &known,
    ];
    helm(cluster, &upgrade)?;
    until("it may ask", || ask("sidegate-broker"), String::is_empty)?;
    let stranger = ask("default")?;
    ensure!(!stranger.is_empty(), "anybody asks");
    let back = [
        "upgrade",
        "sidegate",
        &path,
        "--namespace",
        NAMESPACE,
        "--reuse-values",
        "--set",
        "approvals.otherBrokers=null",
    ];
    helm(cluster, &back)?;
    helm(cluster, &[&["uninstall", &release][..], &at].concat()).map(|_| ())
}

/// Keys and authority are made without content, for the leader to fill: an upgrade leaves them alone, and uninstalling
/// removes them.
pub fn an_upgrade_leaves_the_keys_alone_and_uninstalling_removes_them(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace()?;
    let release = format!("k{}", &namespace[namespace.len() - 8..]);
    let at = ["--namespace", namespace.as_str()];
    let set = ["--set", &revision(&release)];
    helm(
        cluster,
        &[&["install", &release, &chart("sidegate")][..], &at, &set].concat(),
    )?;
    let filled = [
        (
            "secret",
            format!("{release}-broker-keys"),
            r#"{"stringData":{"access.ring":"kept"}}"#,
        ),
        (
            "secret",
            format!("{release}-broker-tls"),
            r#"{"stringData":{"authority":"kept"}}"#,
        ),
        (
            "configmap",
            "sidegate-broker-ca".to_owned(),
            r#"{"data":{"ca.crt":"kept"}}"#,
        ),
    ];
    for (kind, name, content) in &filled {
        let empty = cluster.kubectl(&[&["get", kind, name, "-o", "jsonpath={.data}"][..], &at].concat(), "")?;
        ensure!(empty.is_empty(), "{kind} {name} comes with {empty}");
        cluster.kubectl(
            &[&["patch", kind, name, "--type=merge", "-p", content][..], &at].concat(),
            "",
        )?;
    }
    let change = [
        "upgrade",
        &release,
        &chart("sidegate"),
        "--set",
        "issuerUrl=https://issuer.example",
        "--set",
        &revision(&release),
    ];
    helm(cluster, &[&change[..], &at].concat())?;
    for (kind, name, _) in &filled {
        let kept = cluster.kubectl(&[&["get", kind, name, "-o", "jsonpath={.data}"][..], &at].concat(), "")?;
        ensure!(!kept.is_empty(), "the upgrade emptied {kind} {name}");
    }
    helm(cluster, &[&["uninstall", &release][..], &at].concat())?;
    let left = cluster.kubectl(&[&["get", "secrets,configmaps", "-o", "name"][..], &at].concat(), "")?;
    ensure!(left.trim() == "configmap/kube-root-ca.crt", "left: {left}");
    Ok(())
}

/// Values that are misspelt or out of bounds are refused before anything is installed.
pub fn wrong_values_are_refused(cluster: &Cluster) -> Result<()> {
    for wrong in [
        "replicas=3",
        "replicas=3,storage.accessMode=ReadWriteOncePod",
        "storage.accessMode=ReadOnlyMany",
        "image.digest=latest",
        "issuerUrl=http://broker",
        "issuerUrl=https://broker/path",
        "serviceAccount.name=",
        "sidecar.digest=latest",
        "otlp.endpoint=collector:4318",
        "otlp.headersSecret.name=collector",
        "otlp.variables.PATH=/tmp",
        "otlp.sampled=2",
        "approvals.otherBrokers[0].namespace=second",
        "approvals.otherBrokers[0].namespace=x'||true||'x,approvals.otherBrokers[0].name=broker",
        "injector.replica=2",
        "injector.url=http://injector",
        "injector.evictUnprotected=yes",
        "injector.evictUnprotected=true,injector.revision=next",
        "injector.certificates.mode=Magic",
        "injector.certificates.mode=CertManager",
        "monitoring.podMonitor.enable=true",
    ] {
        let output = cluster.helm(&["template", "x", &chart("sidegate"), "--set", wrong])?;
        ensure!(!output.status.success(), "{wrong} is taken");
    }
    let pinned = format!("image.digest=sha256:{}", "a".repeat(64));
    let rendered = helm(cluster, &["template", "x", &chart("sidegate"), "--set", &pinned])?;
    ensure!(rendered.contains("sidegate-broker@sha256:aaaa"), "{rendered}");
    Ok(())
}

/// What needs somebody else's operator is off by default and rendered as its golden file says; `monitored` shows that file to
/// their kinds. `SIDEGATE_WRITE_GOLDEN=1` writes it anew.
pub fn what_is_off_by_default_is_rendered_as_its_golden_file(cluster: &Cluster) -> Result<()> {
    let off = helm(cluster, &["template", "x", &chart("sidegate"), "--namespace", "system"])?;
    ensure!(
        !off.contains("monitoring.coreos.com") && !off.contains("cert-manager.io"),
        "{off}"
    );
    let on = [
        "monitoring.serviceMonitor.enabled=true",
        "monitoring.podMonitor.enabled=true",
        "monitoring.prometheusRule.enabled=true",
        "monitoring.dashboard.enabled=true",
        "monitoring.labels.release=prometheus",
        "injector.certificates.mode=CertManager",
        "injector.certificates.issuerRef.name=internal",
        "injector.certificates.issuerRef.kind=ClusterIssuer",
    ]
    .join(",");
    let path = chart("sidegate");
    traced(cluster, &path)?;
    let shown = ["monitoring", "webhooks", "injector"].map(|name| format!("--show-only=templates/{name}.yaml"));
    let mut arguments = vec!["template", "x", &path, "--namespace", "system", "--set", &on];
    arguments.extend(shown.iter().map(String::as_str));
    let rendered = helm(cluster, &arguments)?;
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/charts_optional.yaml");
    if std::env::var_os("SIDEGATE_WRITE_GOLDEN").is_some() {
        std::fs::write(&golden, &rendered)?;
    }
    let kept = std::fs::read_to_string(&golden).unwrap_or_default();
    ensure!(rendered == kept, "{} differs from:\n{rendered}", golden.display());
    let monitors: Vec<&str> = rendered.lines().filter(|line| line.starts_with("kind: ")).collect();
    for kind in [
        "ServiceMonitor",
        "PodMonitor",
        "PrometheusRule",
        "Certificate",
        "ConfigMap",
    ] {
        ensure!(
            monitors.contains(&format!("kind: {kind}").as_str()),
            "no {kind}: {monitors:?}"
        );
    }
    Ok(())
}

/// The broker's container of several, with and without a collector for its traces.
fn traced(cluster: &Cluster, path: &str) -> Result<()> {
    let traces = [
        "replicas=3",
        "storage.accessMode=ReadWriteMany",
        "otlp.endpoint=https://collector.observability.svc:4318",
        "otlp.sampled=0.25",
        "otlp.headersSecret.name=collector",
        "otlp.headersSecret.key=headers",
        "otlp.caConfigMap.name=collector-ca",
        "otlp.caConfigMap.key=ca.pem",
        "otlp.variables.OTEL_SERVICE_NAME=broker",
    ]
    .join(",");
    let only = "--show-only=templates/broker.yaml";
    let rendered = helm(cluster, &["template", "x", path, only, "--set", &traces])?;
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/charts_broker.yaml");
    if std::env::var_os("SIDEGATE_WRITE_GOLDEN").is_some() {
        std::fs::write(&golden, &rendered)?;
    }
    let kept = std::fs::read_to_string(&golden).unwrap_or_default();
    ensure!(rendered == kept, "{} differs from:\n{rendered}", golden.display());
    let off = helm(cluster, &["template", "x", path, only])?;
    ensure!(!off.contains("OTEL_") && !off.contains("otlp"), "{off}");
    Ok(())
}

/// Uninstalling the kinds would remove every policy with them: they stay.
pub fn the_kinds_stay_when_their_chart_is_uninstalled(cluster: &Cluster) -> Result<()> {
    let rendered = helm(cluster, &["template", "crds", &chart("sidegate-crds")])?;
    let kinds = rendered.matches("kind: CustomResourceDefinition").count();
    let kept = rendered.matches("helm.sh/resource-policy: keep").count();
    // And the two objects that keep parameters of admission policies readable.
    ensure!(kinds == 7 && kept == 9, "{kinds} kinds, {kept} objects kept");
    Ok(())
}

/// Installs the kinds as an operator would.
pub fn install_kinds(cluster: &Cluster) -> Result<()> {
    helm(
        cluster,
        &[
            "install",
            "sidegate-crds",
            &chart("sidegate-crds"),
            "--namespace",
            "default",
        ],
    )
    .map(|_| ())
    .context("the kinds")
}
