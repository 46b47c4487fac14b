//! `ClusterAccessPolicy`: the security team's floor. It can deny, ask, mask and limit; it never allows.

use serde::{Deserialize, Serialize};

use super::access_policy::{Limits, Mask, Mode, Rule, SubjectMatch};
use super::meta::{LabelSelector, NamespacedRef, Object};

/// A ClusterAccessPolicy object.
pub type ClusterAccessPolicy = Object<ClusterAccessPolicySpec>;

/// A floor under every AccessPolicy: denies, asks, masks and limits; never allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(kube::CustomResource, schemars::JsonSchema))]
#[cfg_attr(
    feature = "crd",
    kube(
        group = "sidegate.dev",
        version = "v1alpha1",
        kind = "ClusterAccessPolicy",
        root = "ClusterAccessPolicyResource",
        plural = "clusteraccesspolicies",
        shortname = "cap",
        category = "sidegate"
    )
)]
pub struct ClusterAccessPolicySpec {
    /// Enforce (default), or Observe: what would have been decided is recorded and never applied.
    #[serde(default)]
    pub mode: Mode,
    /// Targets by name. With neither this nor `targetSelector`, the policy holds for every Target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<NamespacedRef>,
    /// Targets by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_selector: Option<LabelSelector>,
    /// Whom the policy is about: any of these. Absent: everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subjects: Option<Vec<SubjectMatch>>,
    /// Rules with effect Deny or Ask.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Values to hide in answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masks: Vec<Mask>,
    /// Caps.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
}
