//! One AdmissionReview in, its answer out.
//!
//! Refuses reviews of another version, another resource or another operation: whoever configured them expects something
//! that is not done. Invariants: an answer carries the request's own uid; dry-run gets the same answer, for nothing is
//! written anywhere; the answer says nothing that whoever made the pod could not read.

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use serde_json::{json, Value};
use sidegate_policies::objects::Namespace;

use crate::admit::{admit, is_spared, Verdict, World};
use crate::patch;
use crate::refusal::Refusal;

/// The version that is spoken.
const VERSION: &str = "admission.k8s.io/v1";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A review whose resource nobody has looked at yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Its uid, to be echoed.
    uid: String,
    /// API group, version, resource and subresource.
    pub resource: [String; 4],
    /// CREATE, UPDATE and the like.
    pub operation: String,
    /// The namespace of the object; the object itself may not say. Empty for objects that live in none.
    pub namespace: String,
    /// Who asks the API server.
    pub user: String,
    /// Their groups.
    pub groups: Vec<String>,
    /// The object, as it would be stored.
    pub object: Value,
    /// The object as it is, where there is one.
    pub before: Value,
}

/// A pod that can be judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    asked: Asked,
}

/// A body that cannot be answered as a review.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sidegate: review: {0}")]
pub struct Malformed(pub String);

/// What was decided, for log lines and numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// injected, untouched, allowed, decided or refused.
    pub word: &'static str,
    /// The rule, the profile, or why not.
    pub reason: String,
    /// The same in words of ours alone.
    pub rule: &'static str,
    /// Bytes of the patch.
    pub patch: usize,
}

impl Asked {
    /// Reads a body.
    ///
    /// # Errors
    /// It is no review at all: nothing can be echoed.
    pub fn read(body: &[u8]) -> Result<Result<Asked, Value>, Malformed> {
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
        if version != VERSION {
            let message =
                format!("the review is {version}, and only {VERSION} is spoken; write admissionReviewVersions: [v1]");
            return Ok(Err(answer(&version, &uid, Err(Refusal::invalid("review", message)))));
        }
        let text = |path: &str| {
            let found = review.pointer(path).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let resource = [
            text("/request/resource/group"),
            text("/request/resource/version"),
            text("/request/resource/resource"),
            text("/request/subResource"),
        ];
        let (operation, namespace) = (text("/request/operation"), text("/request/namespace"));
        let user = text("/request/userInfo/username");
        let groups = review.pointer("/request/userInfo/groups").and_then(Value::as_array);
        let groups = groups
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let mut taken = |path: &str| review.pointer_mut(path).map(Value::take).unwrap_or_default();
        Ok(Ok(Asked {
            uid,
            resource,
            operation,
            namespace,
            user,
            groups,
            object: taken("/request/object"),
            before: taken("/request/oldObject"),
        }))
    }

    /// Says that this is none of our business: `rules` is what the configuration should say.
    pub fn misplaced(&self, rules: &str) -> Refusal {
        let parts = self.resource.iter().filter(|part| !part.is_empty());
        let asked = parts.map(String::as_str).collect::<Vec<_>>().join("/");
        let message = format!(
            "{} of {asked} is not judged here; write rules: [{rules}]",
            self.operation
        );
        Refusal::invalid("review", message)
    }

    /// Allows it as it is.
    pub fn allowed(&self, warnings: &[String]) -> (Value, Outcome) {
        let outcome = Outcome {
            word: "allowed",
            reason: "none".to_owned(),
            rule: "none",
            patch: 0,
        };
        (self.passed(&outcome, Vec::new(), warnings).0, outcome)
    }

    /// Allows it with these changes.
    pub fn changed(&self, word: &'static str, rule: &'static str, operations: Vec<Value>) -> (Value, Outcome) {
        let mut outcome = Outcome {
            word,
            reason: rule.to_owned(),
            rule,
            patch: 0,
        };
        let (answer, patch) = self.passed(&outcome, operations, &[]);
        outcome.patch = patch;
        (answer, outcome)
    }

    /// Refuses it.
    pub fn refused(&self, refusal: Refusal) -> (Value, Outcome) {
        let outcome = Outcome {
            word: "refused",
            reason: refusal.rule.to_owned(),
            rule: refusal.rule,
            patch: 0,
        };
        (answer(VERSION, &self.uid, Err(refusal)), outcome)
    }

    /// The answer, and the bytes of its patch.
    fn passed(&self, outcome: &Outcome, operations: Vec<Value>, warnings: &[String]) -> (Value, usize) {
        let mut response = json!({"auditAnnotations": {"outcome": outcome.word, "reason": outcome.reason}});
        let mut bytes = 0;
        if let Some(response) = response.as_object_mut() {
            if !operations.is_empty() {
                let text = Value::Array(operations).to_string();
                bytes = text.len();
                response.insert("patchType".to_owned(), "JSONPatch".into());
                response.insert("patch".to_owned(), STANDARD.encode(text).into());
            }
            if !warnings.is_empty() {
                let said = warnings.iter().map(|warning| format!("sidegate: {warning}"));
                response.insert("warnings".to_owned(), said.collect());
            }
        }
        (answer(VERSION, &self.uid, Ok(response)), bytes)
    }
}

impl Request {
    /// A pod that is made; or why it is none.
    ///
    /// # Errors
    /// It is another resource or another operation, or it has no namespace.
    pub fn of(asked: Asked) -> Result<Request, (Value, Outcome)> {
        if asked.resource != ["", "v1", "pods", ""] || asked.operation != "CREATE" {
            let rules = "{apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE], resources: [pods]}";
            return Err(asked.refused(asked.misplaced(rules)));
        }
        if asked.namespace.is_empty() {
            let refusal = Refusal::invalid("review", "the request names no namespace");
            return Err(asked.refused(refusal));
        }
        Ok(Request { asked })
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.asked.namespace
    }

    /// Why this pod is left alone whatever its namespace says: the kubelet's own pods, the cluster's, and ours.
    pub fn spared(&self, own_namespace: &str) -> Option<&'static str> {
        let mirror = self
            .asked
            .object
            .pointer("/metadata/annotations")
            .and_then(|annotations| annotations.get(MIRROR))
            .is_some();
        // Anybody may write the annotation; only a node's kubelet is a node.
        if mirror && self.asked.groups.iter().any(|group| group == "system:nodes") {
            return Some("mirror");
        }
        is_spared(self.namespace(), own_namespace).then_some("system")
    }

    /// Decides about a pod that is not [spared](Request::spared), and answers.
    pub fn decided(&self, world: &World<'_>, namespace: &Namespace) -> (Value, Outcome) {
        let pod = &self.asked.object;
        match admit(world, namespace, pod) {
            Verdict::Refused(refusal) => self.refused(refusal),
            Verdict::Untouched { why, warnings } => self.untouched(why, &warnings),
            Verdict::Injected { injected, profile } => {
                let operations = patch::between(pod, &injected.pod);
                let mut outcome = Outcome {
                    word: "injected",
                    reason: profile,
                    rule: "profile",
                    patch: 0,
                };
                let (answer, bytes) = self.asked.passed(&outcome, operations, &injected.warnings);
                outcome.patch = bytes;
                (answer, outcome)
            }
        }
    }

    /// Leaves the pod alone.
    pub fn untouched(&self, why: &'static str, warnings: &[String]) -> (Value, Outcome) {
        let outcome = Outcome {
            word: "untouched",
            reason: why.to_owned(),
            rule: why,
            patch: 0,
        };
        (self.asked.passed(&outcome, Vec::new(), warnings).0, outcome)
    }

    /// Refuses.
    pub fn refused(&self, refusal: Refusal) -> (Value, Outcome) {
        self.asked.refused(refusal)
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
