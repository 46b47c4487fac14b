//! The injector beside the node, where the chart does not bring it: a process of the node's, which the API server reaches at
//! the node's address.

use anyhow::{Context, Result};
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use serde_json::{json, Value};

use super::images::Built;
use super::site::{DOMAIN, SYSTEM};
use super::{Node, ADDRESS};
use crate::authority::Authority;

/// Starts it, with the profile of this image, and has the API server call it.
pub(super) fn start(node: &mut Node, program: &std::path::Path, sidecar: &Built) -> Result<()> {
    let ca = [
        "get",
        "configmap",
        "sidegate-broker-ca",
        "--namespace",
        SYSTEM,
        "-o",
        "json",
    ];
    let ca: Value = serde_json::from_str(&node.cluster.kubectl(&ca, "")?)?;
    let host = format!("https://sidegate-broker.{SYSTEM}.svc");
    let install = json!({
        "brokerUrl": format!("{host}:8443"), "audience": format!("{host}:8444"), "clusterDomain": DOMAIN,
        "brokerCaPem": ca["data"]["ca.crt"].as_str().context("no authority yet")?, "nameServers": [ADDRESS],
    });
    let authority = Authority::new()?;
    let leaf = authority.leaf(&[&ADDRESS.to_string()])?;
    let run = node.run.clone();
    let file = |flag: &str, name: &str, text: &str| -> Result<String> {
        let path = run.join(name);
        std::fs::write(&path, text)?;
        Ok(format!("--{flag}={}", path.display()))
    };
    let (_, token) = node.cluster.admin()?;
    let arguments = [
        format!("--listen={ADDRESS}:8446"),
        file("tls-cert", "injector.crt", &leaf.certificate)?,
        file("tls-key", "injector.key", &leaf.key)?,
        file("install", "install.json", &install.to_string())?,
        file("kubeconfig", "injector.json", &node.cluster.kubeconfig_of(&token))?,
        format!("--namespace={SYSTEM}"),
    ];
    let profile = json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "InjectionProfile", "metadata": {"name": "default"},
        "spec": {"image": {"repository": sidecar.repository(), "digest": sidecar.digest}},
    });
    node.cluster.create(&profile)?;
    node.cluster
        .serve("sidegate-injector", program, arguments.into_iter(), &[])?;
    node.cluster.until("the injector listens", || {
        Ok(std::net::TcpStream::connect((ADDRESS, 8446)).is_ok())
    })?;
    let url = format!("https://{ADDRESS}:8446/mutate");
    node.cluster.create(&configuration(&url, authority.pem())).map(|_| ())
}

fn configuration(url: &str, authority: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "sidegate-injector"},
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
