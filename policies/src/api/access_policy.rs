//! `AccessPolicy`: who may do what on Targets of its own namespace, what is masked, and what needs a person.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::meta::{LabelSelector, LocalRef, NamespacedRef, Object};
use super::target::Target;
use crate::engine::Subject;
use crate::quantity::{ByteSize, Span};

/// An AccessPolicy object.
pub type AccessPolicy = Object<AccessPolicySpec>;

impl AccessPolicy {
    /// Whether one of its references names this Target: they stay within their namespace.
    pub fn refers_to(&self, target: &Target) -> bool {
        let named = |reference: &LocalRef| reference.name == target.metadata.name;
        self.metadata.namespace == target.metadata.namespace && self.spec.target_refs.iter().any(named)
    }
}

/// Who may do what on these Targets, what is masked, and what needs a person's approval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(kube::CustomResource, schemars::JsonSchema))]
#[cfg_attr(
    feature = "crd",
    kube(
        group = "sidegate.dev",
        version = "v1alpha1",
        kind = "AccessPolicy",
        root = "AccessPolicyResource",
        plural = "accesspolicies",
        namespaced,
        shortname = "ap",
        category = "sidegate"
    )
)]
pub struct AccessPolicySpec {
    /// Enforce (default), or Observe: what would have been decided is recorded and never applied.
    #[serde(default)]
    pub mode: Mode,
    /// The Targets, in the policy's namespace.
    pub target_refs: Vec<LocalRef>,
    /// Whom the policy is about: any of these.
    pub subjects: Vec<SubjectMatch>,
    /// Rules. Any Deny that matches wins, then uncovered is deny, then any Ask that matches asks, then Allow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Values to hide in answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masks: Vec<Mask>,
    /// Caps. The strictest of all matching policies holds.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
}

/// Whether a policy is applied or only observed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Mode {
    /// The decision is applied.
    #[default]
    Enforce,
    /// The decision is recorded beside the live one and never applied.
    Observe,
}

/// One kind of subject: every field given must match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct SubjectMatch {
    /// The pod's service account, exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<NamespacedRef>,
    /// Labels the pod must carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

impl SubjectMatch {
    /// Whether a pod is meant: its account exactly, its labels by the selector; what is not written matches.
    pub fn matches(&self, subject: &Subject) -> bool {
        let account = self
            .service_account
            .as_ref()
            .is_none_or(|account| account.namespace == subject.namespace && account.name == subject.service_account);
        let labels = self
            .pod_selector
            .as_ref()
            .is_none_or(|selector| selector.matches(&subject.labels));
        account && labels
    }
}

/// One rule. At most one matcher; a rule without a matcher matches every operation on the Target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Rule {
    /// Name, unique in the policy; refusals and records quote it.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 63)))]
    pub name: String,
    /// What the rule does when it matches.
    pub effect: RuleEffect,
    /// SQL statements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<SqlMatch>,
    /// A CEL expression over the facts of the protocol, `subject`, `target` and `now`; must be true to match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(max = 4096)))]
    pub when: Option<String>,
    /// Shown to the agent when the rule refuses, at most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(max = 200)))]
    pub message: Option<String>,
    /// Who is asked, and for how long. Required for Ask, refused elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
}

/// What a matching rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum RuleEffect {
    /// Lets the parts it matches pass.
    Allow,
    /// Refuses the whole operation.
    Deny,
    /// A person must approve the operation first.
    Ask,
}

/// Matches SQL statements. Keys that are given must all hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct SqlMatch {
    /// Commands. Empty: every command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<SqlCommand>,
    /// `schema.relation`; each part exact, `*`, or a prefix with a trailing `*`; double quotes as in SQL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// `schema.relation.column`, written like tables. An Allow must name every column used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// `schema.function`, written like tables. An Allow must name every function beyond the harmless list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<String>,
    /// Run-time settings beyond the harmless list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<String>,
    /// LISTEN and NOTIFY channels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
}

/// SQL commands as policies name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[repr(u8)]
pub enum SqlCommand {
    /// SELECT, VALUES, TABLE, COPY … TO STDOUT, and what RETURNING reads.
    Select,
    /// INSERT and COPY … FROM STDIN.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
    /// MERGE.
    Merge,
    /// TRUNCATE.
    Truncate,
    /// COPY with a file or a program on the server.
    Copy,
    /// EXPLAIN without ANALYZE; with it the explained command counts.
    Explain,
    /// CREATE; `sql.objects` names the kind of object.
    Create,
    /// ALTER.
    Alter,
    /// DROP.
    Drop,
    /// GRANT.
    Grant,
    /// REVOKE.
    Revoke,
    /// COMMENT and SECURITY LABEL.
    Comment,
    /// VACUUM, ANALYZE, REINDEX, CLUSTER, REFRESH MATERIALIZED VIEW, CHECKPOINT.
    Maintain,
    /// LOCK TABLE.
    Lock,
    /// LISTEN and UNLISTEN.
    Listen,
    /// NOTIFY.
    Notify,
    /// DO.
    Do,
    /// CALL.
    Call,
    /// SET, RESET, SHOW, DISCARD.
    Set,
    /// BEGIN, COMMIT, ROLLBACK, savepoints, two-phase commit.
    Transaction,
    /// Everything else.
    Other,
}

/// Who must approve, and how long things last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Ask {
    /// Who may approve: any of these.
    pub approvers: Vec<Approver>,
    /// Who may not, even if listed as approver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Approver>,
    /// How many different people must approve. Default 1.
    #[serde(default = "one")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 5)))]
    pub count: i32,
    /// How long the operation is held for a decision before it is refused with a ticket. At most 10m; default 60s for SQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_for: Option<Span>,
    /// How long an approval may be used, counted from the decision. At most 24h; default 15m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_for: Option<Span>,
}

fn one() -> i32 {
    1
}

/// A person or group: exactly one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Approver {
    /// A user's name; in local mode `unix:<user>`.
    User(String),
    /// A group's name; in local mode an OS group.
    Group(String),
    /// Anyone who can reach the control socket. Local mode only.
    Anyone(Anyone),
}

/// Anyone at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Anyone {}

/// Hides values in answers: by column or by what a value looks like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Mask {
    /// `schema.relation.column`, written like tables of a rule. Either this or `detect`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Kinds of values found in any text. Either this or `columns`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detect: Vec<Detector>,
    /// What the value becomes. The column's type is kept.
    #[serde(rename = "as")]
    pub how: MaskAs,
    /// Where the mask acts. Result (default): the answer is masked.
    #[serde(default)]
    pub at: MaskAt,
}

/// Where a mask acts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum MaskAt {
    /// The answer is masked on its way back; a masked column may only be read as it is, never computed with.
    #[default]
    Result,
}

/// What a masked value becomes: exactly one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum MaskAs {
    /// NULL, or `redact` where the column is NOT NULL.
    Null(NoOptions),
    /// Text `***`, numbers 0, false, 1970-01-01, the nil uuid, JSON null, empty bytea and arrays, else NULL.
    Redact(NoOptions),
    /// Hex of a keyed hash; text only, other types as redact.
    Hash(NoOptions),
    /// A keyed pseudonym of the same type, for text, uuid and integers; other types as redact.
    Token(NoOptions),
    /// Dates and timestamps cut to their month or year; other types as redact.
    DateTrunc(DateTrunc),
    /// The first characters stay, the others become `*`; text only, other types as redact.
    KeepFirst(Keep),
    /// The last characters stay, the others become `*`; text only, other types as redact.
    KeepLast(Keep),
}

/// No options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct NoOptions {}

/// How many characters stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Keep {
    /// Characters kept, 0 to 64. A value no longer than this is masked whole.
    #[cfg_attr(feature = "crd", schemars(range(min = 0, max = 64)))]
    pub count: i32,
}

/// To what a date is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct DateTrunc {
    /// Month or Year.
    pub unit: DateUnit,
}

/// Units a date is cut to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum DateUnit {
    /// The first of the month.
    Month,
    /// The first of January.
    Year,
}

/// What detectors find in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Detector {
    /// Payment card numbers, 13 to 19 digits with a right Luhn check, with or without separators.
    CreditCard,
    /// E-mail addresses.
    Email,
    /// International bank account numbers with a right check.
    Iban,
    /// JSON Web Tokens.
    Jwt,
    /// PEM private keys.
    PrivateKey,
    /// US social security numbers, nnn-nn-nnnn in the ranges ever issued.
    UsSsn,
    /// AWS access key ids.
    AwsAccessKey,
    /// IPv4 and IPv6 addresses.
    IpAddress,
    /// International telephone numbers with a leading +.
    Phone,
}

/// Caps on operations and sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Limits {
    /// Rows one operation may return, and rows it may copy in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1)))]
    pub rows: Option<i64>,
    /// Bytes one operation may return, and bytes of data it may copy in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<ByteSize>,
    /// Operations per minute of one pod on one Target.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1)))]
    pub per_minute: Option<i64>,
    /// How long a session may stay open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_session: Option<Span>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// The stricter of the two, field by field.
    pub fn strictest(&self, other: &Limits) -> Limits {
        fn min<T: Ord + Copy>(a: Option<T>, b: Option<T>) -> Option<T> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (one, other) => one.or(other),
            }
        }
        Limits {
            rows: min(self.rows, other.rows),
            bytes: min(self.bytes, other.bytes),
            per_minute: min(self.per_minute, other.per_minute),
            max_session: min(self.max_session, other.max_session),
        }
    }
}

/// Labels of a pod or namespace.
pub type Labels = BTreeMap<String, String>;
