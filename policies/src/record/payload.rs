//! What the payload of each kind says: one JSON object per event, camelCase, absent fields left out.
//!
//! Writers fill these structs; the recorder adds `op` (the operation's number in its session) in front. Readers
//! take a payload as JSON and ignore members they do not know, so that fields can be added, never changed.
//! Nothing here may hold a credential or an unmasked value: what enters a record was masked before.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::Subject;
use crate::reason::Reason;

/// Text that is borrowed when written and owned when read.
pub type Text<'a> = Cow<'a, str>;

/// `boot`: the first frame of a log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// Format version: 1.
    pub format: u32,
    /// Sidegate's release.
    pub release: String,
    /// Cluster (local mode: `local`).
    pub cluster: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Pod name.
    pub pod: String,
    /// Pod UID.
    pub pod_uid: String,
    /// Container instance, counted per start.
    pub instance: u64,
    /// What separates agent and recorder: `pod`, `user` or `none`.
    pub separation: String,
    /// First Ed25519 public key, base64url without padding.
    pub public_key: String,
    /// Random, so that no two logs begin alike.
    pub nonce: String,
}

/// `cert`: the certificate over the record key that is current at this frame.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cert {
    /// Compact JWS, `typ: sidegate-record-key+jwt`.
    pub certificate: String,
}

/// `clock`: the wall clock moved against the monotonic clock by more than a second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Clock {
    /// Microseconds, forward positive.
    pub jump_us: i64,
}

impl Clock {
    /// A smaller move is not written down, microseconds.
    const LEAST_US: u64 = 1_000_000;

    /// How far the wall clock (microseconds) is ahead of the monotonic one (nanoseconds).
    pub fn offset_us((mono_ns, wall_us): (u64, u64)) -> i64 {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        signed(wall_us).saturating_sub(signed(mono_ns / 1000))
    }

    /// What to write where the offset was `before`; nothing for a small move.
    pub fn moved(before: i64, offset: i64) -> Option<Clock> {
        let jump_us = offset.saturating_sub(before);
        (jump_us.unsigned_abs() > Clock::LEAST_US).then_some(Clock { jump_us })
    }
}

/// `lossy`: what `BestEffort` sessions could not store since the previous such frame.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lossy {
    /// Events dropped.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why.
    pub why: String,
}

/// `recovered`: what a restart found of an earlier log of the same pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovered {
    /// Hash of the earlier log's `boot` frame, hex.
    pub log: String,
    /// Its container instance.
    pub instance: u64,
    /// Last good log number.
    pub number: u64,
    /// Hash of that frame, hex.
    pub head: String,
    /// Good frames found in the journal.
    pub count: u64,
    /// Why the scan ended there: `end`, `torn` or `chain`.
    pub why: String,
    /// Bytes that were cut off.
    pub cut_bytes: u64,
}

/// An event of the broker's own log: who did what about which object, and precisely why. The kind says of what sort.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Audit<'a> {
    /// What happened, such as `approval.approved` or `lease.refused`.
    pub event: Text<'a>,
    /// Who: a person (`unix:NAME`, `uid:N`) or a workload (`system:serviceaccount:NAMESPACE:NAME`).
    #[serde(skip_serializing_if = "str::is_empty")]
    pub subject: Text<'a>,
    /// UID of the pod it is about.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub pod_uid: Text<'a>,
    /// What it is about: a request, a Target, a Lockdown, a bundle version, a key.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub object: Text<'a>,
    /// Digest of the operation that was decided or claimed, hex; keyed, so it says nothing by itself.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub digest: Text<'a>,
    /// The precise reason, what was granted, or a person's own words.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub detail: Text<'a>,
    /// Name of the pod.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub pod: Text<'a>,
    /// Its node.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub node: Text<'a>,
    /// Instance of the sidecar's container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<u64>,
    /// What the API server's own audit log calls the service-account token (`JTI=...`).
    #[serde(skip_serializing_if = "str::is_empty")]
    pub credential_id: Text<'a>,
    /// What was asked for.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub asked: Text<'a>,
    /// What was given.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub granted: Text<'a>,
    /// The policies by which the workload has the Target.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub policy: Text<'a>,
    /// Id of the token that was issued, or that asked.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub jti: Text<'a>,
    /// Id of the key that signed it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub kid: Text<'a>,
    /// Microseconds it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
}

/// `open`: a session begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Open<'a> {
    /// Who acts, as attested.
    pub subject: Subject,
    /// `namespace/name` of the Target.
    pub target: Text<'a>,
    /// UID of the Target, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_uid: Option<Text<'a>>,
    /// Protocol.
    pub protocol: Text<'a>,
    /// Where the agent connected from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Text<'a>>,
    /// OS user id of the agent's connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_uid: Option<u32>,
    /// Address the Target states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Text<'a>>,
    /// `Journal` or `BestEffort`.
    pub durability: Text<'a>,
    /// `Full` or `Statements`.
    pub content: Text<'a>,
    /// `pod`, `user` or `none`.
    pub separation: Text<'a>,
    /// Bundle version in force.
    pub bundle: Text<'a>,
    /// Explicit weakenings in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weakenings: Vec<Text<'a>>,
    /// Header of a terminal recording (asciicast v3), for terminals only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<serde_json::Value>,
}

/// `pins`: what was settled with the target: where, how, and the settings with their echo.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pins<'a> {
    /// Address dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Text<'a>>,
    /// Login mechanism used upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<Text<'a>>,
    /// TLS version and verified name, or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Text<'a>>,
    /// Id of the credential's lease, never the credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<Text<'a>>,
    /// User or role upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Text<'a>>,
    /// Database or namespace upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<Text<'a>>,
    /// Settings as the target echoed them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<Text<'a>, Text<'a>>,
}

/// `policy`: a new bundle re-judged the session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyChange<'a> {
    /// Its version.
    pub bundle: Text<'a>,
}

/// `cut`: the session is being ended from our side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cut<'a> {
    /// Why.
    pub reason: Reason,
    /// The Lockdown, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<Text<'a>>,
}

/// `close`: totals and reason.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Close<'a> {
    /// How it ended: `client`, `target`, a [`Reason`], or `dropped`.
    pub reason: Text<'a>,
    /// Operations forwarded.
    pub operations: u64,
    /// Operations refused.
    pub denied: u64,
    /// Operations held for people.
    pub held: u64,
    /// Rows returned.
    pub rows: u64,
    /// Bytes returned to the agent.
    pub bytes: u64,
    /// Milliseconds from `open`.
    pub duration_ms: u64,
}

/// `intent`: an operation that is about to be sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Intent<'a> {
    /// Verb of the operation.
    pub verb: Text<'a>,
    /// Native action (`Query`, `Execute`, `connect`).
    pub action: Text<'a>,
    /// The text, masked literals aside; absent where `reference` names an earlier one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Text<'a>>,
    /// Operation number whose text this one repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<u64>,
    /// Bind values as shown, masked; `null` is NULL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<Option<Text<'a>>>,
    /// Resources (`Select app.customers`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<Text<'a>>,
    /// `allow` or `ask` (granted).
    pub decision: Text<'a>,
    /// `policy/rule` of the rules that decided.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Text<'a>>,
    /// Bundle version.
    pub bundle: Text<'a>,
    /// Masks in force on the answer (`app.customers.email redact`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub masks: Vec<Text<'a>>,
    /// Ticket of the approval used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<Text<'a>>,
    /// Keyed digest of the bytes sent, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Text<'a>>,
    /// What Observe-mode policies would have said: `effect policy/rule`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<Text<'a>>,
}

/// `outcome`: how an operation ended. The recorder writes its members in this order.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outcome<'a> {
    /// Command tag.
    pub tag: Option<Text<'a>>,
    /// Rows returned or changed.
    pub rows: Option<u64>,
    /// Bytes returned.
    pub bytes: u64,
    /// Native error code, if it failed.
    pub error: Option<Text<'a>>,
    /// Native error text, scrubbed.
    pub message: Option<Text<'a>>,
    /// Why Sidegate stopped it, if it did.
    pub reason: Option<Reason>,
    /// Microseconds from send to the last reply.
    pub lat_us: u64,
    /// Bytes of the reply's content; set by the recorder with `content: Full`.
    pub body_bytes: Option<u64>,
    /// Keyed digest of the whole reply's content, hex; set by the recorder.
    pub body_digest: Option<Text<'a>>,
    /// Bytes of data the agent sent behind the operation, as COPY takes them.
    pub copied_bytes: Option<u64>,
    /// Keyed digest of those bytes, hex.
    pub copied_digest: Option<Text<'a>>,
}

/// `denied`: an operation that was refused, and what the agent was told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denied<'a> {
    /// Why.
    pub reason: Reason,
    /// `policy/rule`, if a rule said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Text<'a>>,
    /// The refused text, at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Text<'a>>,
    /// The text shown to the agent.
    pub shown: Text<'a>,
    /// Id of the refusal.
    pub id: Text<'a>,
    /// Bundle version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Text<'a>>,
    /// Precise cause, for operators only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Text<'a>>,
}

/// `held`: an operation waits for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Held<'a> {
    /// The request's name.
    pub ticket: Text<'a>,
    /// `policy/rule` of the rules that ask.
    pub rules: Vec<Text<'a>>,
    /// The text people see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Text<'a>>,
    /// Bind values people see.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<Option<Text<'a>>>,
    /// Keyed digest, hex.
    pub digest: Text<'a>,
    /// Milliseconds it is held at most.
    pub hold_ms: u64,
}

/// `granted`: people said yes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Granted<'a> {
    /// The request's name.
    pub ticket: Text<'a>,
    /// Who decided.
    pub decided_by: Vec<Text<'a>>,
}

/// `released`: how a hold ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Released<'a> {
    /// The request's name.
    pub ticket: Text<'a>,
    /// `claimed`, `ticket`, `denied`, `expired`, `withdrawn`, `void`.
    pub how: Text<'a>,
    /// Milliseconds held.
    pub held_ms: u64,
}

/// Bytes before the content of a `body` payload: operation, stream, three zero bytes, offset.
pub const BODY_PREFIX: usize = 20;

/// Which bytes a `body` frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BodyStream {
    /// From the target to the agent, after masking.
    Reply = 0,
    /// From the agent to the target.
    Request = 1,
    /// The rest of an event's JSON that did not fit its own frame.
    Continuation = 2,
}

/// A parsed `body` payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body<'a> {
    /// Operation number.
    pub op: u64,
    /// Which stream.
    pub stream: BodyStream,
    /// Offset of the first byte in that stream of the operation.
    pub offset: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl<'a> Body<'a> {
    /// Reads a plain `body` payload.
    pub fn parse(payload: &'a [u8]) -> Option<Body<'a>> {
        let (op, rest) = payload.split_first_chunk::<8>()?;
        let ([stream, 0, 0, 0], rest) = rest.split_first_chunk::<4>()? else {
            return None;
        };
        let (offset, bytes) = rest.split_first_chunk::<8>()?;
        let stream = match stream {
            0 => BodyStream::Reply,
            1 => BodyStream::Request,
            2 => BodyStream::Continuation,
            _ => return None,
        };
        Some(Body {
            op: u64::from_le_bytes(*op),
            stream,
            offset: u64::from_le_bytes(*offset),
            bytes,
        })
    }

    /// The bytes before the content.
    pub fn prefix(op: u64, stream: BodyStream, offset: u64) -> [u8; BODY_PREFIX] {
        let mut out = [0u8; BODY_PREFIX];
        let (head, tail) = out.split_at_mut(8);
        head.copy_from_slice(&op.to_le_bytes());
        let (kind, place) = tail.split_at_mut(4);
        if let Some(first) = kind.first_mut() {
            *first = stream as u8;
        }
        place.copy_from_slice(&offset.to_le_bytes());
        out
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_body_prefix_reads_back() {
        let mut payload = Body::prefix(9, BodyStream::Request, 70_000).to_vec();
        payload.extend_from_slice(b"abc");
        let body = Body::parse(&payload).unwrap();
        assert_eq!(
            (body.op, body.stream, body.offset, body.bytes),
            (9, BodyStream::Request, 70_000, &b"abc"[..])
        );
        assert_eq!(Body::parse(&payload[..19]), None);
    }

    #[test]
    fn absent_fields_are_left_out() {
        let intent = Intent {
            verb: "read".into(),
            text: Some("select 1".into()),
            ..Intent::default()
        };
        let json = serde_json::to_string(&intent).unwrap();
        assert_eq!(
            json,
            r#"{"verb":"read","action":"","text":"select 1","decision":"","bundle":""}"#
        );
    }
}
