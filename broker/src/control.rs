//! What people's tools say to a running instance over its control socket: HTTP/1 with JSON bodies on a Unix socket
//! in the state folder. Who asks is told by the kernel's peer credentials, never by the request.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /status` | | [`Status`] |
//! | `GET /requests?all=BOOL` | | list of [`AccessRequest`] |
//! | `POST /requests/{name}/decide` | [`Decide`] | [`AccessRequest`] |
//! | `GET /sessions` | | list of [`SessionRow`], oldest first |
//! | `POST /lock` | [`Lock`] | [`Locked`] |
//! | `POST /unlock` | [`Unlock`] | [`Unlocked`] |
//! | `POST /rotate` | [`Rotate`] | [`RotatedNow`] |
//! | `POST /roll-authority` | | [`RolledAuthority`] |
//! | `POST /sidecar-restarted` | | [`Restarted`] |
//! | `POST /shutdown` | | 204 |
//!
//! Errors are `{"error": "a sentence for people"}` with status 400, 403, 404 or 409. The invariant: nothing here
//! decides for a person, and whoever decides is named.

pub mod client;
pub mod server;
pub(crate) mod switch;

use serde::{Deserialize, Serialize};
use sidegate_policies::api::access_request::Verdict;
use sidegate_policies::api::lockdown::{Freeze, LockdownAction};
use sidegate_policies::compile::Problem;
use sidegate_policies::wire::TargetStatus;

pub use crate::front::stream::SidecarReport;
pub use crate::rings::RingName;
pub use crate::rotation::Rotated;

/// The state of an instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Release.
    pub release: String,
    /// `namespace/serviceAccount` of the agent.
    pub subject: String,
    /// `none`, or `user NAME`.
    pub separation: String,
    /// Version of the bundle offered now, hex.
    pub bundle: Option<String>,
    /// Version the sidecar has in force; absent while none is connected.
    pub bundle_in_force: Option<String>,
    /// Every Target of the configuration: those served, and those not with the reason in `problem`.
    pub targets: Vec<TargetStatus>,
    /// Sidecars connected now.
    pub sidecars: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Operations allowed, denied and held now, since start.
    pub allowed: u64,
    /// See `allowed`.
    pub denied: u64,
    /// See `allowed`.
    pub held: u64,
    /// Panics caught: must stay 0.
    pub panics: u64,
    /// Lockdowns in force, by name.
    pub lockdowns: Vec<String>,
    /// Deny revision.
    pub deny_revision: u64,
    /// Problems of the newest edit of the configuration, if it was not taken.
    pub problems: Vec<Problem>,
    /// Things to look at that stop nothing (dangling references).
    pub warnings: Vec<Problem>,
    /// What must not happen and did, from the record store.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// Every connected sidecar, as its stream tells.
    #[serde(default)]
    pub connected: Vec<SidecarReport>,
    /// URL of the broker's front face.
    #[serde(default)]
    pub front_url: String,
    /// The issuer's URL.
    #[serde(default)]
    pub issuer: String,
    /// UID of the agent's pod.
    #[serde(default)]
    pub pod_uid: String,
    /// Its container instance.
    #[serde(default)]
    pub instance: u64,
    /// Requests that wait for people.
    #[serde(default)]
    pub waiting: u64,
    /// Leases out now.
    #[serde(default)]
    pub leases: u64,
    /// Calls refused since start because their address, key or pod called too often.
    #[serde(default)]
    pub over_budget: u64,
}

/// A sidecar was started again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restarted {
    /// The new instance.
    pub instance: u64,
}

/// Annotation of a request: when it was asked, RFC 3339.
pub const CREATED: &str = "sidegate.dev/created";
/// Annotation of a request: the session that asked.
pub const SESSION: &str = "sidegate.dev/session";
/// Annotation of a request: `none`, or `user NAME`.
pub const SEPARATION: &str = "sidegate.dev/separation";

/// A person's word on a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Decide {
    /// Yes or no.
    pub verdict: Verdict,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One recorded session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRow {
    /// Session id.
    pub id: String,
    /// RFC 3339.
    pub started: String,
    /// RFC 3339; absent while it is open.
    #[serde(default)]
    pub ended: Option<String>,
    /// `namespace/serviceAccount`.
    pub subject: String,
    /// `namespace/name`.
    pub target: String,
    /// Operations that were sent.
    pub operations: u64,
    /// Operations refused.
    pub denied: u64,
    /// Why it ended, where that is not the agent's own wish.
    #[serde(default)]
    pub cut: Option<String>,
}

/// Freezes something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lock {
    /// What.
    pub freeze: Vec<Freeze>,
    /// Why.
    pub reason: String,
    /// Whether open sessions are cut.
    pub action: LockdownAction,
    /// Seconds until it lifts itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
}

/// What a lock did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Locked {
    /// The Lockdown's name, for `unlock`.
    pub name: String,
    /// Its revision.
    pub revision: u64,
    /// Sidecars that confirmed it before this answer (waits up to 2 s).
    pub acknowledged: u64,
    /// Sidecars connected.
    pub sidecars: u64,
    /// Sessions cut.
    pub sessions_closed: u64,
    /// Microseconds from the request to the last confirmation.
    pub took_us: u64,
    /// Why it is not in the audit log (yet). It is in force all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrecorded: Option<String>,
}

/// Lifts freezes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Unlock {
    /// Names of Lockdowns; empty: all.
    pub names: Vec<String>,
}

/// What was lifted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unlocked {
    /// Names.
    pub names: Vec<String>,
    /// The new revision.
    pub revision: u64,
}

/// Emergency: replaces keys at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rotate {
    /// Which rings; empty: all.
    pub rings: Vec<RingName>,
}

/// What a new authority is, and what the person must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolledAuthority {
    /// Its name.
    pub authority: String,
    /// Until when it counts, seconds since 1970.
    pub until: i64,
    /// Whom it does not protect.
    pub notice: String,
}

/// What an emergency rotation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotatedNow {
    /// Rings that were rotated.
    pub rotated: Vec<Rotated>,
    /// Rings that were not, with the reason; their old keys stay in force.
    pub failed: Vec<String>,
    /// What the person must know: who may trust the old keys for how long.
    pub notice: String,
    /// Why it is not in the audit log (yet). It is in force all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrecorded: Option<String>,
}
