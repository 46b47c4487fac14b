//! One AdmissionReview in, its answer out.
//!
//! Refuses reviews of another version, another resource or another operation: whoever configured them expects something
//! that is not done. Invariants: an answer carries the request's own uid; dry-run gets the same answer, for nothing is
//! written anywhere; the answer says nothing that whoever made the pod could not read.

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use serde_json::{json, Value};
use sidegate_policies::objects::Namespace;

use crate::admit::{admit, Verdict, World, SYSTEM};
use crate::patch;
use crate::refusal::Refusal;

/// The version that is spoken.
const VERSION: &str = "admission.k8s.io/v1";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A request that can be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its uid, to be echoed.
    uid: String,
    /// The namespace of the pod; the pod itself may not say.
    pub namespace: String,
    groups: Vec<String>,
    pod: Value,
}

/// A body that cannot be answered as a review.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sidegate: review: {0}")]
pub struct Malformed(pub String);

/// What was decided, for log lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// injected, untouched or refused.
    pub word: &'static str,
    /// The rule, the profile, or why not.
    pub reason: String,
}

impl Request {
    /// Reads a body.
    ///
    /// # Errors
    /// It is no review at all: nothing can be echoed.
    pub fn read(body: &[u8]) -> Result<Result<Request, Value>, Malformed> {
        let mut review: Value =
            serde_json::from_slice(body).map_err(|error| Malformed(format!("not JSON: {error}")))?;
        let uid = review
            .pointer("/request/uid")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if review.get("kind") != Some(&"AdmissionReview".into()) || uid.is_empty() {
            return Err(Malformed(
                "not an AdmissionReview with a request and its uid".to_owned(),
            ));
        }
        let version = review
            .get("apiVersion")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let refused = |message: String| Ok(Err(answer(&version, &uid, Err(Refusal::invalid("review", message)))));
        if version != VERSION {
            return refused(format!(
                "the review is {version}, and only {VERSION} is spoken; write admissionReviewVersions: [v1]"
            ));
        }
        let text = |path: &str| review.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let resource = [
            text("/request/resource/group"),
            text("/request/resource/version"),
            text("/request/resource/resource"),
            text("/request/subResource"),
        ];
        if resource != ["", "v1", "pods", ""] || text("/request/operation") != "CREATE" {
            let asked = resource
                .iter()
                .filter(|part| !part.is_empty())
                .copied()
                .collect::<Vec<_>>()
                .join("/");
            return refused(format!(
                "{} of {asked} is not judged here; write rules: [{{apiGroups: [\"\"], apiVersions: [v1], operations: \
                 [CREATE], resources: [pods]}}]",
                text("/request/operation")
            ));
        }
        let groups = review.pointer("/request/userInfo/groups").and_then(Value::as_array);
        let groups = groups
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let namespace = text("/request/namespace").to_owned();
        if namespace.is_empty() {
            return refused("the request names no namespace".to_owned());
        }
        Ok(Ok(Request {
            uid,
            namespace,
            groups,
            pod: review
                .pointer_mut("/request/object")
                .map(Value::take)
                .unwrap_or_default(),
        }))
    }

    /// Why this pod is left alone whatever its namespace says: the kubelet's own pods, the cluster's, and ours.
    pub fn spared(&self, own_namespace: &str) -> Option<&'static str> {
        let mirror = self
            .pod
            .pointer("/metadata/annotations")
            .and_then(|annotations| annotations.get(MIRROR))
            .is_some();
        // Anybody may write the annotation; only a node's kubelet is a node.
        if mirror && self.groups.iter().any(|group| group == "system:nodes") {
            return Some("mirror");
        }
        let spared = SYSTEM.contains(&self.namespace.as_str()) || self.namespace == own_namespace;
        spared.then_some("system")
    }

    /// Decides about a pod that is not [spared](Request::spared), and answers.
    pub fn decided(&self, world: &World<'_>, namespace: &Namespace) -> (Value, Outcome) {
        match admit(world, namespace, &self.pod) {
            Verdict::Refused(refusal) => self.refused(refusal),
            Verdict::Untouched { why, warnings } => self.untouched(why, &warnings),
            Verdict::Injected { injected, profile } => {
                let operations = patch::between(&self.pod, &injected.pod);
                let answer = self.allowed("injected", &profile, operations, &injected.warnings);
                let outcome = Outcome {
                    word: "injected",
                    reason: profile,
                };
                (answer, outcome)
            }
        }
    }

    /// Leaves the pod alone.
    pub fn untouched(&self, why: &'static str, warnings: &[String]) -> (Value, Outcome) {
        let outcome = Outcome {
            word: "untouched",
            reason: why.to_owned(),
        };
        (self.allowed("untouched", why, Vec::new(), warnings), outcome)
    }

    /// Refuses.
    pub fn refused(&self, refusal: Refusal) -> (Value, Outcome) {
        let outcome = Outcome {
            word: "refused",
            reason: refusal.rule.to_owned(),
        };
        (answer(VERSION, &self.uid, Err(refusal)), outcome)
    }

    fn allowed(&self, outcome: &str, reason: &str, operations: Vec<Value>, warnings: &[String]) -> Value {
        let mut response = json!({"auditAnnotations": {"outcome": outcome, "reason": reason}});
        if let Some(response) = response.as_object_mut() {
            if !operations.is_empty() {
                let text = Value::Array(operations).to_string();
                response.insert("patchType".to_owned(), "JSONPatch".into());
                response.insert("patch".to_owned(), STANDARD.encode(text).into());
            }
            if !warnings.is_empty() {
                let said = warnings.iter().map(|warning| format!("sidegate: {warning}"));
                response.insert("warnings".to_owned(), said.collect());
            }
        }
        answer(VERSION, &self.uid, Ok(response))
    }
}

/// A whole answer; a refusal is one too, because the message of any other status would be lost.
fn answer(version: &str, uid: &str, decided: Result<Value, Refusal>) -> Value {
    let allowed = decided.is_ok();
    let mut response = match decided {
        Ok(response) => response,
        Err(refusal) => json!({
            "auditAnnotations": {"outcome": "refused", "reason": refusal.rule},
            "status": {
                "code": refusal.class.code(), "message": refusal.to_string(), "reason": refusal.class.reason(),
                "status": "Failure",
            },
        }),
    };
    if let Some(response) = response.as_object_mut() {
        response.insert("uid".to_owned(), uid.into());
        response.insert("allowed".to_owned(), allowed.into());
    }
    json!({"apiVersion": version, "kind": "AdmissionReview", "response": response})
}

#[cfg(test)]
#[path = "review_tests.rs"]
mod tests;
