//! What is answered to reviews: one handler for each path, on what is known of the cluster.
//!
//! Refuses what it cannot know at this moment, with words that say so. Invariants: nothing is written anywhere, so a dry
//! run gets the same answer; nothing is fetched but what was made a moment ago.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use sidegate_policies::api::GROUP;
use sidegate_policies::objects::{Located, Namespace, Objects};
use tokio::sync::watch;

use crate::admit::is_enabled;
use crate::decisions;
use crate::install::Install;
use crate::kubernetes::{Cluster, Snapshot};
use crate::policies::{judge, kind, resources, Judged};
use crate::refusal::Refusal;
use crate::review::{Asked, Malformed, Outcome, Request};

/// An answer, and what was decided; nothing decided: the review was not understood.
pub type Answer = (Value, Option<Outcome>);

/// Answers reviews.
pub struct Webhook {
    install: watch::Receiver<Option<Arc<Install>>>,
    /// The injector's own namespace, whose pods are left alone.
    namespace: String,
    cluster: Arc<Cluster>,
}

impl Webhook {
    /// For one installation, which may not be known yet.
    pub fn new(install: watch::Receiver<Option<Arc<Install>>>, namespace: String, cluster: Arc<Cluster>) -> Self {
        Webhook {
            install,
            namespace,
            cluster,
        }
    }

    /// `/mutate`: new pods.
    ///
    /// # Errors
    /// It is no review.
    pub async fn mutate(&self, body: &[u8]) -> Result<Answer, Malformed> {
        let asked = match Asked::read(body)? {
            Ok(asked) => asked,
            Err(answer) => return Ok((answer, None)),
        };
        let request = match Request::of(asked) {
            Ok(request) => request,
            Err((answer, outcome)) => return Ok((answer, Some(outcome))),
        };
        let (answer, outcome) = match request.spared(&self.namespace) {
            // Before anything is looked up: these pods must come up while the API server is busy.
            Some(why) => request.untouched(why, &[]),
            None => self.decided(&request).await,
        };
        let (word, reason) = (outcome.word, &outcome.reason);
        tracing::info!(namespace = request.namespace(), outcome = word, reason, "reviewed");
        Ok((answer, Some(outcome)))
    }

    /// `/policies`: objects of ours as they are applied.
    ///
    /// # Errors
    /// It is no review.
    pub async fn policies(&self, body: &[u8]) -> Result<Answer, Malformed> {
        let asked = match Asked::read(body)? {
            Ok(asked) => asked,
            Err(answer) => return Ok((answer, None)),
        };
        let [group, _, plural, part] = &asked.resource;
        let changes = matches!(asked.operation.as_str(), "CREATE" | "UPDATE");
        let found = kind(plural).filter(|_| group == GROUP && part.is_empty() && changes);
        let Some(kind) = found else {
            let rules = format!(
                "{{apiGroups: [sidegate.dev], apiVersions: [v1alpha1], operations: [CREATE, UPDATE], resources: [{}]}}",
                resources()
            );
            let (answer, outcome) = asked.refused(asked.misplaced(&rules));
            return Ok((answer, Some(outcome)));
        };
        let verdict = self.judged(kind, &asked).await.verdict();
        let (answer, outcome) = match verdict {
            Ok(warnings) => asked.allowed(&warnings),
            Err(refusal) => asked.refused(refusal),
        };
        let (word, reason) = (outcome.word, &outcome.reason);
        tracing::info!(namespace = asked.namespace, kind, outcome = word, reason, "judged");
        Ok((answer, Some(outcome)))
    }

    /// `/decisions`: somebody's word on a request. Everything it takes to judge it is in the review.
    ///
    /// # Errors
    /// It is no review.
    pub fn decisions(body: &[u8]) -> Result<Answer, Malformed> {
        let asked = match Asked::read(body)? {
            Ok(asked) => asked,
            Err(answer) => return Ok((answer, None)),
        };
        let (answer, outcome) = decisions::reviewed(&asked, Timestamp::now());
        let (word, reason) = (outcome.word, &outcome.reason);
        tracing::info!(
            namespace = asked.namespace,
            outcome = word,
            reason,
            "a decision was reviewed"
        );
        Ok((answer, Some(outcome)))
    }

    /// What is known may lag behind what was applied a moment ago, together with this object: before a reference is
    /// refused, its other side is looked at as the server has it.
    async fn judged(&self, kind: &'static str, asked: &Asked) -> Judged {
        let mut object = asked.object.clone();
        // An object may leave its namespace to the request.
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            if !asked.namespace.is_empty() {
                metadata.insert("namespace".to_owned(), asked.namespace.clone().into());
            }
        }
        let snapshot = self.cluster.now();
        let judged = judge(kind, &object, &snapshot.objects);
        if judged.grants.is_empty() || !judged.problems.is_empty() {
            return judged;
        }
        match self.fresh(&object, &snapshot.objects).await {
            Some(objects) => judge(kind, &object, &objects),
            None => judged,
        }
    }

    /// What an object refers to, as the server has it at this moment; nothing: it does not say.
    async fn fresh(&self, object: &Value, known: &Objects) -> Option<Objects> {
        let home = object.pointer("/metadata/namespace").and_then(Value::as_str)?;
        let mut objects = known.clone();
        let subjects = object.pointer("/spec/subjects").and_then(Value::as_array);
        let subjects = subjects.into_iter().flatten();
        let named = subjects.filter_map(|subject| subject.pointer("/serviceAccount/namespace")?.as_str());
        for name in named.chain([home]) {
            if let Some(namespace) = self.cluster.namespace(name).await.ok()? {
                objects
                    .namespaces
                    .retain(|located| located.object.name != namespace.name);
                objects.namespaces.push(Located::unplaced(namespace));
            }
        }
        let references = object.pointer("/spec/targetRefs").and_then(Value::as_array);
        for reference in references.into_iter().flatten() {
            let name = reference.get("name").and_then(Value::as_str)?;
            if let Some(target) = self.cluster.target(home, name).await.ok()? {
                let name = target.full_name();
                objects.targets.retain(|located| located.object.full_name() != name);
                objects.targets.push(Located::unplaced(target));
            }
        }
        Some(objects)
    }

    async fn decided(&self, request: &Request) -> (Value, Outcome) {
        let Some(install) = self.install.borrow().clone() else {
            let message =
                "the broker has not published its certificate yet (ConfigMap sidegate-broker-ca); see whether \
                           the broker runs, and try again";
            return request.refused(Refusal::unavailable("install", message));
        };
        let snapshot = self.cluster.now();
        match self.namespace(&snapshot, request.namespace()).await {
            Ok(namespace) => request.decided(&snapshot.world(&install), &namespace),
            Err(refusal) => request.refused(refusal),
        }
    }

    /// We are asked because the server found the namespace enabled; where we know otherwise, we may lag behind.
    async fn namespace(&self, snapshot: &Snapshot, name: &str) -> Result<Namespace, Refusal> {
        let known = snapshot.objects.namespace(name);
        if let Some(known) = known.filter(|known| is_enabled(known) == Ok(true)) {
            return Ok(known.clone());
        }
        match self.cluster.namespace(name).await {
            Ok(Some(namespace)) => Ok(namespace),
            Ok(None) => Err(Refusal::invalid(
                "namespace",
                format!("there is no namespace {name}; create it first"),
            )),
            Err(error) => {
                tracing::warn!(%error, "a namespace cannot be looked up");
                let message = format!("the labels of namespace {name} cannot be read now; try again");
                Err(Refusal::unavailable("namespace", message))
            }
        }
    }
}
