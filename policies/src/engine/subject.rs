//! Who acts, and on what: the two names every decision is about.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The workload that acts, as the broker attested it. Nothing in here comes from the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// Namespace of the pod and its service account.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Pod name.
    pub pod: String,
    /// Pod UID.
    pub pod_uid: String,
    /// Pod labels, from the API server (local mode: `--label`).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Subject {
    /// `namespace/serviceAccount`.
    pub fn account(&self) -> String {
        format!("{}/{}", self.namespace, self.service_account)
    }
}

/// A Target by namespace and name. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetId {
    /// The Target's namespace.
    pub namespace: Arc<str>,
    /// The Target's name.
    pub name: Arc<str>,
}

impl TargetId {
    /// Builds an id from its two names.
    pub fn new(namespace: &str, name: &str) -> Self {
        TargetId {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
