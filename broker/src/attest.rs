//! Who is calling: a verified token, the live pod, and a key only that sidecar process has.
//!
//! Steps run cheapest first: the token offline, then the review, then the live pod, its shape, and the key's pin.
//! Refuses everything provably wrong at the first step that shows it, with the precise reason for the audit.
//! The invariant: nothing the caller says about itself is believed, and its address alone proves nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use sidegate_policies::engine::Subject;

use crate::clock::Clock;
use crate::issuer::Workload;
use crate::jwt::{accept, Accepted, Alg, KeySet, PublicKey, Refused, Slot, Trust};
use crate::pins::{Instance, PinRefused, Pins};

/// The audience of service-account tokens meant for us.
pub const AUDIENCE: &str = "sidegate-broker";
/// The name of the sidecar's container.
pub const SIDECAR: &str = "sidegate";

/// The cluster cannot be asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cluster cannot be asked")]
pub struct Unavailable;

/// What a token review says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Review {
    /// The authenticator accepts the token.
    pub authenticated: bool,
    /// Its error, if any.
    pub error: Option<String>,
    /// The audiences it checked; empty means it ignored ours.
    pub audiences: Vec<String>,
    /// User name.
    pub user: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Pod UID in `extra`.
    pub pod_uid: Option<String>,
}

/// Reviews tokens: the API server, or the local double.
pub trait TokenReviewer: Send + Sync {
    /// Asks whether this token is good for this audience now.
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> BoxFuture<'a, Result<Review, Unavailable>>;
}

/// A live pod, as far as attestation reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Service account.
    pub service_account: String,
    /// Node.
    pub node: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Marked for deletion.
    pub deleting: bool,
    /// Pending or Running.
    pub alive: bool,
    /// The sidecar container's present instance, as the status tells.
    pub instance: Instance,
    /// What the spec says about our token.
    pub shape: Shape,
}

/// The parts of a pod's spec that decide whether only the sidecar can read our token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Volumes that project a token with our audience.
    pub token_volumes: Vec<String>,
    /// Containers that mount one of them, with whether they are init containers that always restart.
    pub mounted_by: Vec<(String, bool)>,
    /// Ephemeral containers that mount such a volume or target the sidecar.
    pub intruders: Vec<String>,
}

/// Finds live pods: the API server, or the local double.
pub trait Pods: Send + Sync {
    /// The pod, if it exists now.
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>>;
}

/// Why a caller is not attested. Never shown outward.
#[derive(Debug, thiserror::Error)]
pub enum NotAttested {
    /// The token itself.
    #[error("token: {0}")]
    Token(#[from] Refused),
    /// The review.
    #[error("review: {0}")]
    Review(&'static str),
    /// The live pod.
    #[error("pod: {0}")]
    Pod(&'static str),
    /// The pod's spec.
    #[error("shape: {0}")]
    Shape(&'static str),
    /// Another key is pinned and no newer instance is seen: a clone, or a restart the cluster does not show yet.
    #[error("another key is pinned for this instance (RestartNotSeen)")]
    RestartNotSeen,
    /// The pod's exchanges are over their budget: nothing is refused for good.
    #[error("too many exchanges by this pod")]
    TooMany,
    /// The cluster or the pin store cannot be asked: nothing is refused for good.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

impl From<Unavailable> for NotAttested {
    fn from(error: Unavailable) -> Self {
        NotAttested::Unavailable(error.to_string())
    }
}

/// Whose tokens are believed before anybody is asked.
pub struct ClusterTrust {
    /// The cluster's issuer.
    pub issuer: String,
    /// Its keys.
    pub keys: KeySet,
    /// Its algorithms.
    pub algorithms: Vec<Alg>,
}

/// Attests callers.
pub struct Attestor {
    trust: ClusterTrust,
    reviewer: Arc<dyn TokenReviewer>,
    pods: Arc<dyn Pods>,
    pins: Pins,
    clock: Arc<dyn Clock>,
}

impl Attestor {
    /// Over a cluster (or its double) and the pins of this broker.
    pub fn new(
        trust: ClusterTrust,
        reviewer: Arc<dyn TokenReviewer>,
        pods: Arc<dyn Pods>,
        pins: Pins,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Attestor {
            trust,
            reviewer,
            pods,
            pins,
            clock,
        }
    }

    /// All steps. `key` is the key of the DPoP proof that came with the token; `admit` takes an exchange out of the
    /// budget of a pod UID, once the token's signature vouches for it and before the cluster is asked.
    pub async fn attest(
        &self,
        slot: Slot,
        token: &str,
        key: &PublicKey,
        denied: &(dyn Fn(&str) -> bool + Sync),
        admit: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<Workload, NotAttested> {
        let trust = Trust {
            issuer: &self.trust.issuer,
            keys: &self.trust.keys,
            algorithms: &self.trust.algorithms,
            audience: AUDIENCE,
            denied,
        };
        let accepted = accept(slot, token.as_bytes(), trust, self.clock.now())?;
        let claims = Claims::read(&accepted);
        if !admit(claims.pod_uid) {
            return Err(NotAttested::TooMany);
        }
        check_review(&self.reviewer.review(token, AUDIENCE).await?, &claims)?;
        let pod = self.pods.pod(claims.namespace, claims.pod).await?;
        let pod = pod.ok_or(NotAttested::Pod("no such pod"))?;
        check_pod(&pod, &claims)?;
        check_shape(&pod.shape)?;
        match self.pins.pin(&pod.uid, &pod.instance, &key.thumbprint()) {
            Ok(()) => {}
            Err(PinRefused::Conflict) => return Err(NotAttested::RestartNotSeen),
            Err(PinRefused::State(error)) => return Err(NotAttested::Unavailable(error.to_string())),
        }
        Ok(Workload {
            account_uid: claims.account_uid.to_owned(),
            ends: accepted.integer("exp").unwrap_or(0),
            instance: pod.instance.count,
            node: pod.node,
            subject: Subject {
                namespace: pod.namespace,
                service_account: pod.service_account,
                pod: pod.name,
                pod_uid: pod.uid,
                labels: pod.labels,
            },
        })
    }

    /// Whether an attested workload still stands: same pod, alive, same instance. Asked on every call.
    pub async fn still(&self, who: &Workload) -> Result<PodView, NotAttested> {
        let pod = self.pods.pod(&who.subject.namespace, &who.subject.pod).await?;
        let pod = pod.ok_or(NotAttested::Pod("no such pod"))?;
        if pod.uid != who.subject.pod_uid || pod.deleting || !pod.alive {
            return Err(NotAttested::Pod("gone, or another pod of that name"));
        }
        if pod.instance.count != who.instance {
            return Err(NotAttested::Pod("a newer instance of the sidecar runs"));
        }
        Ok(pod)
    }
}

/// Pod claims of an accepted service-account token.
struct Claims<'a> {
    user: &'a str,
    namespace: &'a str,
    account: &'a str,
    account_uid: &'a str,
    pod: &'a str,
    pod_uid: &'a str,
    node: &'a str,
}

impl<'a> Claims<'a> {
    fn read(accepted: &'a Accepted) -> Self {
        let bound = accepted.claim("kubernetes.io");
        let text = |pointer: &str| {
            bound
                .and_then(|bound| bound.pointer(pointer))
                .and_then(|value| value.as_str())
                .unwrap_or_default()
        };
        Claims {
            user: accepted.text("sub"),
            namespace: text("/namespace"),
            account: text("/serviceaccount/name"),
            account_uid: text("/serviceaccount/uid"),
            pod: text("/pod/name"),
            pod_uid: text("/pod/uid"),
            node: text("/node/name"),
        }
    }
}

fn check_review(review: &Review, claims: &Claims<'_>) -> Result<(), NotAttested> {
    if !review.authenticated || review.error.is_some() {
        return Err(NotAttested::Review("not authenticated"));
    }
    if !review.audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(NotAttested::Review("the authenticator ignored our audience"));
    }
    if review.user != claims.user {
        return Err(NotAttested::Review("another user"));
    }
    if !review.groups.iter().any(|group| group == "system:serviceaccounts") {
        return Err(NotAttested::Review("not in the group of service accounts"));
    }
    if review.pod_uid.as_deref() != Some(claims.pod_uid) {
        return Err(NotAttested::Review("another pod UID"));
    }
    Ok(())
}

fn check_pod(pod: &PodView, claims: &Claims<'_>) -> Result<(), NotAttested> {
    if pod.uid != claims.pod_uid {
        return Err(NotAttested::Pod("another pod of that name"));
    }
    if pod.namespace != claims.namespace || pod.service_account != claims.account {
        return Err(NotAttested::Pod("another service account"));
    }
    if !claims.node.is_empty() && pod.node != claims.node {
        return Err(NotAttested::Pod("another node"));
    }
    if pod.deleting {
        return Err(NotAttested::Pod("marked for deletion"));
    }
    if !pod.alive {
        return Err(NotAttested::Pod("neither pending nor running"));
    }
    Ok(())
}

fn check_shape(shape: &Shape) -> Result<(), NotAttested> {
    if shape.token_volumes.len() != 1 {
        return Err(NotAttested::Shape(
            "our audience is not projected by exactly one volume",
        ));
    }
    match shape.mounted_by.as_slice() {
        [(name, true)] if name == SIDECAR => {}
        _ => {
            return Err(NotAttested::Shape(
                "the token is mounted by something besides the sidecar",
            ))
        }
    }
    if !shape.intruders.is_empty() {
        return Err(NotAttested::Shape("an ephemeral container reaches for the sidecar"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "attest/tests.rs"]
mod tests;
