//! What sidecar and broker say to each other: JSON bodies and JSON lines over HTTP/2 and TLS.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `POST /token` | form: RFC 8693 token exchange, or `client_credentials` with `client_assertion` | [`TokenResponse`] |
//! | `POST /v1/stream` | lines of [`ToBroker`] | lines of [`ToSidecar`] |
//! | `POST /v1/leases` | [`LeaseRequest`] | [`Lease`] |
//! | `DELETE /v1/leases/{id}` | | 204 |
//! | `POST /v1/record-keys` | [`RecordKeyRequest`] | [`RecordKeyResponse`] |
//! | `GET /v1/record-keys` | | [`RecordKeyRing`] |
//! | `POST /v1/records` | record frames | lines of [`RecordAck`] |
//! | `POST /v1/approvals` | [`ApprovalAsk`] | [`ApprovalState`] |
//! | `GET /v1/approvals/{name}?wait=SECONDS&state=STATE` | | [`ApprovalState`] once it differs from STATE |
//! | `POST /v1/approvals/{name}/claim` | [`ApprovalClaim`] | [`ApprovalState`], state `Claimed` and `won` |
//! | `POST /v1/approvals/{name}/outcome` | [`ApprovalOutcome`] | [`ApprovalState`] |
//! | `POST /v1/approvals/{name}/withdraw` | | [`ApprovalState`] |
//!
//! Every call but `/token` carries `Authorization: DPoP <session token>`; every call carries a `DPoP` proof
//! (RFC 9449). Errors are RFC 6749 section 5.2 bodies: `{"error": …, "error_description": …}`.

use serde::{Deserialize, Serialize};

use crate::api::access_request::{ApproverSet, RequestState, RequestedOperation};
use crate::api::lockdown::{Freeze, LockdownAction};
use crate::engine::Subject;
use crate::seal::{Revisions, Seal};

/// RFC 8693 section 2.2.1.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenResponse {
    /// The token.
    pub access_token: String,
    /// `urn:ietf:params:oauth:token-type:access_token`.
    pub issued_token_type: String,
    /// `DPoP`.
    pub token_type: String,
    /// Seconds.
    pub expires_in: u64,
    /// Granted scopes, where they differ from those asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// A line to the sidecar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ToSidecar {
    /// First line: protocol version, heartbeat period, who the broker attested, and the deny revision.
    #[serde(rename_all = "camelCase")]
    Hello {
        /// Protocol version: 1.
        protocol: u32,
        /// Milliseconds between heartbeats.
        heartbeat_ms: u64,
        /// Who the caller is, as attested. The sidecar never names itself.
        subject: Subject,
        /// Container instance, counted per start.
        instance: u64,
        /// Highest deny revision the broker knows.
        deny_revision: u64,
    },
    /// A bundle. `body` is the exact text whose SHA-256 is `version`.
    Bundle {
        /// SHA-256 of `body`, hex.
        version: String,
        /// JSON of [`crate::bundle::Bundle`].
        body: String,
        /// What the broker vouches for: a bundle without a good one is refused.
        seal: Seal,
    },
    /// A newer seal of the bundle sent last, after a deny set.
    Seal(Seal),
    /// The whole deny set; always written before a waiting bundle.
    Deny(DenySet),
    /// Every `heartbeat_ms`.
    #[serde(rename_all = "camelCase")]
    Heartbeat {
        /// The broker's clock, milliseconds since 1970.
        now_ms: i64,
        /// Its deny revision.
        deny_revision: u64,
    },
    /// Open a new stream, then close this one.
    Drain,
    /// The broker vouches for this pod no more: it is gone, or another one has its name. Every session ends now.
    Gone,
}

/// A line to the broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ToBroker {
    /// First line: what the sidecar is and holds.
    #[serde(rename_all = "camelCase")]
    Hello {
        /// Protocol version: 1.
        protocol: u32,
        /// The sidecar's release.
        release: String,
        /// Bundle version held, if any.
        #[serde(default)]
        bundle: Option<String>,
        /// Deny revision held.
        #[serde(default)]
        deny_revision: u64,
        /// How far the store was read that the bundle held came from: nothing older is taken.
        #[serde(default)]
        revisions: Revisions,
    },
    /// A bundle was swapped in, or a deny set applied.
    #[serde(rename_all = "camelCase")]
    Ack {
        /// Bundle version.
        #[serde(default)]
        version: Option<String>,
        /// Deny revision.
        #[serde(default)]
        revision: Option<u64>,
        /// Sessions closed by it.
        #[serde(default)]
        closed: u64,
        /// Microseconds from receipt to the last session closed.
        #[serde(default)]
        took_us: u64,
    },
    /// A bundle was not taken; the previous one stays.
    Nack {
        /// The version.
        version: String,
        /// Of what sort the reason is.
        #[serde(default)]
        class: NackClass,
        /// Why.
        message: String,
    },
    /// Counters and listeners, on every change and each 30 s.
    Status(SidecarStatus),
    /// A fresh session token for the running stream.
    Reauth {
        /// The token.
        token: String,
    },
}

/// Why a bundle was not taken, in one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NackClass {
    /// Its body is too large.
    Size,
    /// Its body is not what its version says.
    Hash,
    /// The broker did not vouch for it, or vouched for something else.
    Seal,
    /// It is older than what is in force.
    Older,
    /// It does not compile.
    Compile,
    /// Anything else, or a word this release does not know.
    #[default]
    #[serde(other)]
    Other,
}

impl NackClass {
    /// Its word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            NackClass::Size => "size",
            NackClass::Hash => "hash",
            NackClass::Seal => "seal",
            NackClass::Older => "older",
            NackClass::Compile => "compile",
            NackClass::Other => "other",
        }
    }
}

/// What a sidecar tells about itself, for `sidegate status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarStatus {
    /// Bundle version in force.
    pub bundle: Option<String>,
    /// Whether new sessions are let in: the broker spoke a moment ago, and to this very process.
    #[serde(default)]
    pub fresh: bool,
    /// One entry per target.
    pub targets: Vec<TargetStatus>,
    /// Open sessions.
    pub sessions: u64,
    /// Operations allowed since start.
    pub allowed: u64,
    /// Operations refused since start.
    pub denied: u64,
    /// Operations held now.
    pub held: u64,
    /// Panics caught: must stay 0.
    pub panics: u64,
    /// Whether the fence around the pod stands, in tier Enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
}

/// What a sidecar measured of its pod's fence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Egress {
    /// What it found last.
    pub state: Enforced,
    /// How often it looked since it started: each look is told at once.
    pub looks: u64,
}

/// Whether agents are kept in their pod: what was measured, never what was configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Enforced {
    /// The fence gave its agreed refusals.
    True,
    /// It did not: it is gone, or another.
    False,
    /// Nobody looked lately, or this release does not know the word.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Enforced {
    /// Every state.
    pub const ALL: [Enforced; 3] = [Enforced::True, Enforced::False, Enforced::Unknown];

    /// As conditions have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Enforced::True => "True",
            Enforced::False => "False",
            Enforced::Unknown => "Unknown",
        }
    }

    /// Its word in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Enforced::True => "true",
            Enforced::False => "false",
            Enforced::Unknown => "unknown",
        }
    }
}

/// A measurement older than this counts for nothing.
pub const EGRESS_COUNTS: std::time::Duration = std::time::Duration::from_secs(30);

/// The word for a target that a sidecar denies because it is older than what is said about it.
pub const NOT_UNDERSTOOD: &str = "PolicyNotUnderstood";

/// One target as a sidecar serves it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// `namespace/name`.
    pub target: String,
    /// Protocol.
    pub protocol: String,
    /// Addresses it listens on.
    pub listen: Vec<String>,
    /// Where it leads.
    pub address: String,
    /// Why it does not listen, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What of it, or of a policy about it, this sidecar is too old to understand: everything on it is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_understood: Option<String>,
    /// Explicit weakenings in force (`weakLogin: InsideTLS`, `tls: Disabled`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub insecure: Vec<String>,
    /// Open sessions.
    pub sessions: u64,
}

/// Everything frozen now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DenySet {
    /// Never goes down.
    pub revision: u64,
    /// At most 10,000 entries; more deny everything.
    pub entries: Vec<DenyEntry>,
}

/// One frozen thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DenyEntry {
    /// The Lockdown it comes from.
    pub lockdown: String,
    /// What is frozen.
    pub freeze: Freeze,
    /// What happens to open sessions.
    pub action: LockdownAction,
    /// Until when, milliseconds since 1970; absent: until removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
}

/// Asks for a credential for one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeaseRequest {
    /// `namespace/name` of the Target.
    pub target: String,
    /// The place that the caller would log in to with it ([`crate::api::target::Place`]): nothing is leased for another one,
    /// whose bundle has not come yet or came in between. Absent: the caller takes it for whatever the Target is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The target refused this lease: read the source again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The lease held: where its source makes a credential for each lease, this one is to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew: Option<String>,
    /// A public key of the caller's in OpenSSH's form, where its Target is logged in to by a certificate over one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// A credential with an end. No Debug: it holds secrets.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// Its id, for handing back.
    pub id: String,
    /// What it carries.
    pub material: LeaseMaterial,
    /// Seconds from now.
    pub expires_in: u64,
}

/// What a lease carries. No Debug: it holds secrets.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum LeaseMaterial {
    /// User and password.
    Password {
        /// The user or role.
        user: String,
        /// The password.
        password: String,
    },
    /// A bearer token.
    Bearer {
        /// The user or role named beside it.
        user: Option<String>,
        /// The token.
        token: String,
    },
    /// A certificate over the key that came with the request, in OpenSSH's form.
    SshCertificate {
        /// `ssh-ed25519-cert-v01@openssh.com …`.
        certificate: String,
    },
    /// Keys to sign requests to AWS with.
    #[serde(rename_all = "camelCase")]
    AwsKeys {
        /// Their id.
        access_key_id: String,
        /// The secret half.
        secret_access_key: String,
        /// The token that goes with them.
        session_token: String,
        /// The region they are for.
        region: String,
    },
    /// What the lease that was to go on carries already; its id stays, too.
    Kept,
    /// Nothing but a name.
    None {
        /// The user or role.
        user: Option<String>,
    },
}

/// Asks for a certificate over a record key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordKeyRequest {
    /// The Ed25519 public key, base64url without padding, 32 bytes.
    pub public_key: String,
}

/// The certificate (`typ: sidegate-record-key+jwt`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordKeyResponse {
    /// A compact JWS whose `cnf.jwk` is the key.
    pub certificate: String,
}

/// Public keys that certify record keys, for verifiers; kept for ever.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordKeyRing {
    /// JWKs (RFC 7517).
    pub keys: Vec<serde_json::Value>,
}

/// A line of acknowledgement from the collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum RecordAck {
    /// The collector's landing journal holds every frame up to and including this log number.
    Received {
        /// Log number.
        upto: u64,
    },
    /// The store holds every frame up to and including this log number.
    Stored {
        /// Log number.
        upto: u64,
    },
    /// The frame after `upto` is refused: gap, fork, or a hash that does not chain.
    Refused {
        /// Last good log number.
        upto: u64,
        /// Why.
        message: String,
    },
}

/// Asks people about one operation. The same digest of the same subject is the same request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalAsk {
    /// `namespace/name` of the Target.
    pub target: String,
    /// Session id.
    pub session: String,
    /// What people see.
    pub operation: RequestedOperation,
    /// Keyed digest of exactly what would be sent, hex.
    pub digest: String,
    /// The rules that ask, as `policy/rule`, with their people.
    pub approver_sets: Vec<ApproverSet>,
    /// Seconds a grant may be used, counted from the decision; a pending request lives as long.
    pub valid_for_seconds: u64,
    /// Version of the bundle that asked.
    pub bundle: String,
}

/// Where a request stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalState {
    /// Its name, such as `ar-7k2f9c`: the ticket.
    pub name: String,
    /// Where it stands.
    pub state: RequestState,
    /// Names of the people who decided.
    #[serde(default)]
    pub decided_by: Vec<String>,
    /// Until when it may be decided or used, milliseconds since 1970.
    pub until_ms: i64,
    /// Answer to a claim: this caller won it.
    #[serde(default)]
    pub won: bool,
}

/// Claims a granted request: only a won claim may be sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalClaim {
    /// Session id.
    pub session: String,
    /// Operation number in the session.
    pub operation: u64,
    /// Digest of what will be sent, hex; must equal the request's.
    pub digest: String,
    /// Random, base64url; makes a repeated claim of a lost reply the same claim.
    pub nonce: String,
}

/// How a claimed operation ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalOutcome {
    /// `Done`, `Failed` or `Unknown`.
    pub state: RequestState,
    /// The claim's nonce.
    pub nonce: String,
}
