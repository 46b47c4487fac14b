//! The bundle: the targets and policies one class of workloads needs, as the broker sends it.
//!
//! A bundle body is JSON; its version is the SHA-256 of the exact body bytes. A sidecar compiles the body with
//! [`crate::compile::compile`] and swaps the result in whole; a body it cannot compile leaves the previous one.

use serde::{Deserialize, Serialize};

use crate::api::{AccessPolicy, ClusterAccessPolicy, Target};

/// The body of a bundle.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bundle {
    /// The cluster's name (local mode: `local`).
    pub cluster: String,
    /// Targets this class may refer to, with what the broker resolved for them.
    pub targets: Vec<BundledTarget>,
    /// AccessPolicies that name one of these targets.
    pub policies: Vec<AccessPolicy>,
    /// ClusterAccessPolicies.
    pub cluster_policies: Vec<ClusterAccessPolicy>,
    /// Key of approval digests (HMAC-SHA-256), base64url without padding, 32 bytes.
    pub digest_key: String,
}

/// A Target with its references resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BundledTarget {
    /// The object, without status.
    pub target: Target,
    /// PEM of `tls.caBundle`, if the Target names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// Local mode only: the Target states a loopback literal and may be dialled there.
    #[serde(default)]
    pub loopback: bool,
}

/// SHA-256 of the exact body bytes, in hex.
pub fn version(body: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
