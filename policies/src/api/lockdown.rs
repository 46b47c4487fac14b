//! `Lockdown`: the kill switch. What it freezes is refused at once, and open sessions are cut.

use serde::{Deserialize, Serialize};

use super::meta::{NamespacedRef, Object};

/// A Lockdown object.
pub type Lockdown = Object<LockdownSpec>;

/// Freezes subjects, targets, secrets or everything, at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(kube::CustomResource, schemars::JsonSchema))]
#[cfg_attr(
    feature = "crd",
    kube(
        group = "sidegate.dev",
        version = "v1alpha1",
        kind = "Lockdown",
        root = "LockdownResource",
        shortname = "ld",
        category = "sidegate"
    )
)]
pub struct LockdownSpec {
    /// Why; shown to people, never to the agent.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 500)))]
    pub reason: String,
    /// Until when, RFC 3339. Absent: until the object is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Close (default): open sessions are cut too. RefuseNew: only new work is refused.
    #[serde(default)]
    pub action: LockdownAction,
    /// What is frozen: any of these.
    pub freeze: Vec<Freeze>,
}

/// What happens to open sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum LockdownAction {
    /// They are cut.
    #[default]
    Close,
    /// They go on; new sessions are refused.
    RefuseNew,
}

/// One thing that is frozen: exactly one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Freeze {
    /// Every pod of a service account.
    ServiceAccount(NamespacedRef),
    /// One pod by name.
    Pod(NamespacedRef),
    /// Every pod of a namespace.
    Namespace(String),
    /// One Target.
    Target(NamespacedRef),
    /// Every Target that logs in with this Secret.
    Secret(NamespacedRef),
    /// Every Target that takes tokens of this issuer.
    Issuer(String),
    /// One issued token, by `jti`.
    TokenId(String),
    /// Everything.
    Everything(Everything),
}

/// Everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Everything {}
