//! The charts under the real helm: what they install is accepted, works under the strictest pod security, and leaves
//! what must stay and nothing else.

use anyhow::{ensure, Context, Result};
use serde_json::Value;
use sidegate_tests::cluster::Cluster;

use crate::site::{chart, until};

/// No namespace is labelled for this release: its webhook, behind which nothing runs, is in nobody's way.
fn revision(release: &str) -> String {
    format!("injector.revision={release}")
}

/// helm, or its complaint.
pub fn helm(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let output = cluster.helm(arguments)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm {}: {complaint}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
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
        "image.digest=latest",
        "issuerUrl=http://broker",
        "issuerUrl=https://broker/path",
        "serviceAccount.name=",
        "sidecar.digest=latest",
        "injector.replica=2",
        "injector.url=http://injector",
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

/// What needs somebody else's operator is off by default and rendered as its golden file says, which is read in review:
/// no schema of those kinds is at hand here. `SIDEGATE_WRITE_GOLDEN=1` writes it anew.
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

/// Uninstalling the kinds would remove every policy with them: they stay.
pub fn the_kinds_stay_when_their_chart_is_uninstalled(cluster: &Cluster) -> Result<()> {
    let rendered = helm(cluster, &["template", "crds", &chart("sidegate-crds")])?;
    let kinds = rendered.matches("kind: CustomResourceDefinition").count();
    let kept = rendered.matches("helm.sh/resource-policy: keep").count();
    ensure!(kinds == 7 && kept == 7, "{kinds} kinds, {kept} of them kept");
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
