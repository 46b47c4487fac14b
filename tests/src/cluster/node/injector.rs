//! The injector beside the node, in this process, until the chart runs it as a pod: the API server reaches it at the
//! node's address.

use anyhow::{Context, Result};
use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use serde_json::{json, Value};
use sidegate_injector::app::{start, InjectorConfig, Running};
use sidegate_injector::install::Install;
use tokio::runtime::Runtime;

use super::images::Built;
use super::site::{DOMAIN, SYSTEM};
use super::{Node, ADDRESS};
use crate::authority::Authority;

/// A running injector.
pub struct Injector {
    running: Option<Running>,
    runtime: Runtime,
}

impl Injector {
    /// Starts it, with the profile of this image, and has the API server call it.
    pub fn start(node: &Node, sidecar: &Built) -> Result<Injector> {
        let cluster = &node.cluster;
        let ca = [
            "get",
            "configmap",
            "sidegate-broker-ca",
            "--namespace",
            SYSTEM,
            "-o",
            "json",
        ];
        let ca: Value = serde_json::from_str(&cluster.kubectl(&ca, "")?)?;
        let host = format!("https://sidegate-broker.{SYSTEM}.svc");
        let install = Install {
            broker_url: format!("{host}:8443"),
            broker_ca_pem: ca["data"]["ca.crt"].as_str().context("no authority yet")?.to_owned(),
            audience: format!("{host}:8444"),
            name_servers: vec![ADDRESS.to_string()],
            cluster_domain: DOMAIN.to_owned(),
        };
        let authority = Authority::new()?;
        let leaf = authority.leaf(&[&ADDRESS.to_string()])?;
        let file = |name: &str, text: &str| -> Result<std::path::PathBuf> {
            let path = node.run().join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        let (_, token) = cluster.admin()?;
        let config = InjectorConfig {
            listen: (ADDRESS, 8446).into(),
            certificate: file("injector.crt", &leaf.certificate)?,
            key: file("injector.key", &leaf.key)?,
            install,
            kubeconfig: Some(file("injector.json", &cluster.kubeconfig_of(&token))?),
            namespace: SYSTEM.to_owned(),
        };
        let profile = json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": "InjectionProfile", "metadata": {"name": "default"},
            "spec": {"image": {"repository": sidecar.repository(), "digest": sidecar.digest}},
        });
        cluster.create(&profile)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let running = runtime.block_on(start(config))?;
        let url = format!("https://{}/mutate", running.address);
        cluster.create(&configuration(&url, authority.pem()))?;
        Ok(Injector {
            running: Some(running),
            runtime,
        })
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            self.runtime.block_on(running.shutdown());
        }
    }
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
