//! Looks at a cluster that change nothing: its version, what it would store, what somebody may.

use anyhow::{ensure, Result};
use kube::api::{DynamicObject, PostParams};
use serde_json::{json, Value};

use super::{Cluster, Kind, Where};
use crate::commands::seen::{is_ready, text, PODS};

/// Pods of brokers.
const BROKERS: &str = "app.kubernetes.io/name=sidegate,app.kubernetes.io/component=broker";

/// Whether we may do something.
const REVIEWS: Kind = Kind {
    group: "authorization.k8s.io",
    version: "v1",
    kind: "SelfSubjectAccessReview",
    plural: "selfsubjectaccessreviews",
};

/// What somebody wants to do, in RBAC's words.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Verb.
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// Resource.
    pub resource: &'a str,
    /// Part of it, or nothing.
    pub subresource: &'a str,
    /// Namespace; empty: all of them.
    pub namespace: &'a str,
}

impl Wish<'static> {
    /// To list a kind, wherever its objects are.
    pub const fn list(kind: Kind) -> Self {
        Wish {
            verb: "list",
            group: kind.group,
            resource: kind.plural,
            subresource: "",
            namespace: "",
        }
    }
}

impl Cluster {
    /// Pods of the brokers that run, by name.
    ///
    /// # Errors
    /// They may not be listed, or there is none.
    pub fn brokers(&self, home: &str) -> Result<Vec<String>> {
        let pods: Vec<Value> = self.selected(PODS, Where::Namespace(home), BROKERS)?;
        let names: Vec<String> = pods
            .iter()
            .filter(|pod| is_ready(pod))
            .map(|pod| text(pod, "/metadata/name").to_owned())
            .collect();
        ensure!(
            !names.is_empty(),
            "no broker runs in namespace {home} ({} pod(s), none ready); --sidegate-namespace names another",
            pods.len()
        );
        Ok(names)
    }

    /// The API server's version, as it names it: `v1.36.3`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn version(&self) -> Result<String> {
        Ok(self.call(self.client.apiserver_version())?.git_version)
    }

    /// What the server would store for an object.
    ///
    /// # Errors
    /// It would refuse it, in its own words or a webhook's.
    pub fn would_store(&self, kind: Kind, place: Where<'_>, object: &Value) -> Result<Value> {
        let object: DynamicObject = serde_json::from_value(object.clone())?;
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        Ok(serde_json::to_value(
            self.call(self.api(kind, place).create(&dry, &object))?,
        )?)
    }

    /// Every object of a kind with all its metadata, as it says who set which label when.
    ///
    /// # Errors
    /// As [`Cluster::list`].
    pub fn whole(&self, kind: Kind, place: Where<'_>) -> Result<Vec<Value>> {
        let all = self.pages(kind, place, "")?.into_iter();
        all.map(|object| Ok(serde_json::to_value(object)?)).collect()
    }

    /// Whether we may do something.
    ///
    /// # Errors
    /// The API server does not say.
    pub fn may(&self, wish: &Wish<'_>) -> Result<bool> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": REVIEWS.kind, "metadata": {},
            "spec": {"resourceAttributes": {
                "verb": wish.verb, "group": wish.group, "resource": wish.resource, "subresource": wish.subresource,
                "namespace": wish.namespace,
            }},
        });
        let answer: Value = self.create(REVIEWS, Where::Everywhere, &review)?;
        Ok(answer.pointer("/status/allowed") == Some(&Value::Bool(true)))
    }
}
