//! `AccessRequest`: one operation that waits for people, and what they decided.

use serde::{Deserialize, Serialize};

use super::access_policy::Approver;
use super::meta::{NamespacedRef, Object};
use crate::quantity::Span;

/// An AccessRequest object.
pub type AccessRequest = Object<AccessRequestSpec, AccessRequestStatus>;

/// One operation waiting for approval. Written by the broker, immutable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(kube::CustomResource, schemars::JsonSchema))]
#[cfg_attr(
    feature = "crd",
    kube(
        group = "sidegate.dev",
        version = "v1alpha1",
        kind = "AccessRequest",
        root = "AccessRequestResource",
        namespaced,
        shortname = "ar",
        category = "sidegate",
        status = "AccessRequestStatus"
    )
)]
pub struct AccessRequestSpec {
    /// Who asks.
    pub subject: RequestSubject,
    /// Of which Target.
    pub target: NamespacedRef,
    /// What: the whole text, with bind values, masked.
    pub operation: RequestedOperation,
    /// Keyed digest of exactly what would be sent, in hex.
    pub digest: String,
    /// The rules that asked, as `policy/rule`.
    pub rules: Vec<String>,
    /// Each set must be met by people of its own list.
    #[cfg_attr(feature = "crd", schemars(length(max = 32)))]
    pub approver_sets: Vec<ApproverSet>,
    /// Nobody here decides, whatever set names them; nor does any service account of the agent's namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(max = 64)))]
    pub exclude: Vec<Approver>,
    /// Until when it may be decided, RFC 3339.
    pub expires_at: String,
}

/// The workload that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct RequestSubject {
    /// Its service account.
    pub service_account: NamespacedRef,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
}

/// The operation as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct RequestedOperation {
    /// The protocol, as Targets spell it.
    pub protocol: String,
    /// The native action, such as `UPDATE`.
    pub action: String,
    /// The beginning of the text on one line, for lists.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// The whole text, escapes and look-alikes made visible; at most 64 KiB.
    #[cfg_attr(feature = "crd", schemars(length(max = 65536)))]
    pub text: String,
    /// Bind values in order, masked; absent values are `NULL`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<String>,
    /// Statements that already ran in the open transaction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<String>,
    /// How many values stay hidden, because masks hold for them or they are secrets.
    #[serde(default)]
    pub hidden_values: i32,
}

/// People of one rule, and how many of them must agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct ApproverSet {
    /// The rule this comes from, as `policy/rule`.
    pub rule: String,
    /// Any of these may approve.
    #[cfg_attr(feature = "crd", schemars(length(max = 64)))]
    pub approvers: Vec<Approver>,
    /// None of these may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(max = 64)))]
    pub exclude: Vec<Approver>,
    /// How many different people must agree.
    pub count: i32,
}

/// What happened to the request. People add one entry to `decisions`; everything else is computed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct AccessRequestStatus {
    /// Where it stands.
    pub state: RequestState,
    /// What people said, in order. Add yours at the end, as {verdict: Approve, reason: why}; who, when and with which
    /// groups is written by admission.
    #[cfg_attr(feature = "crd", schemars(length(max = 32)))]
    pub decisions: Vec<PersonDecision>,
    /// How long the grant may be used, counted from the decision; never longer than the rule says.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    pub usable_for: Option<Span>,
    /// Until when a grant may be used, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<String>,
    /// How many of the decisions are in the broker's audit log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded: Option<i32>,
    /// When the broker moved it last, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_at: Option<String>,
    /// Who used the grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<RequestClaim>,
}

/// The one use of a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct RequestClaim {
    /// Random; repeats of one claim carry the same.
    pub nonce: String,
    /// The session that sends the operation.
    pub session: String,
    /// The operation's number in it.
    pub operation: i64,
    /// When, RFC 3339.
    pub at: String,
}

/// The state machine of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum RequestState {
    /// Nobody decided yet.
    #[default]
    Pending,
    /// Enough people said yes.
    Granted,
    /// A person said no.
    Denied,
    /// The sidecar won the right to run it.
    Claimed,
    /// It ran.
    Done,
    /// It ran and the target answered with an error.
    Failed,
    /// It was claimed and nobody knows whether it ran.
    Unknown,
    /// Time ran out.
    Expired,
    /// The agent withdrew it.
    Cancelled,
    /// A policy, lockdown or pod change made it meaningless.
    Void,
}

/// One person's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct PersonDecision {
    /// Who, as authenticated.
    pub by: String,
    /// Their groups at that time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Yes or no.
    pub verdict: Verdict,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When, RFC 3339.
    pub at: String,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Verdict {
    /// Yes.
    Approve,
    /// No.
    Deny,
}
