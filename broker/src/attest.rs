//! Who is calling: a verified token, the live pod, and a key only that sidecar process has.
//!
//! Steps run cheapest first: the token offline, then the review, then the live pod, its shape, and the key's pin.
//! Refuses everything provably wrong at the first step that shows it, with the precise reason for the audit.
//! The invariant: nothing the caller says about itself is believed, and its address alone proves nothing.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sidegate_policies::engine::Subject;
use sidegate_policies::pod::fence::{Demands, Fenced};
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use crate::clock::Clock;
use crate::issuer::Workload;
use crate::jwt::{accept, accept_unsigned, Accepted, Alg, KeySet, PublicKey, Refused, Slot, Trust, Unsigned};
use crate::pins::{Instance, PinRefused, Pins};
use crate::remembered::Remembered;
use crate::spans;

pub use sidegate_policies::pod::shape::{Shape, SIDECAR};

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
    /// What the API server's audit log calls the token.
    pub credential_id: Option<String>,
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
    /// Its addresses, as the status tells, none yet while it starts; nothing where pods have none of their own.
    pub ips: Option<Vec<IpAddr>>,
    /// Marked for deletion.
    pub deleting: bool,
    /// Pending or Running.
    pub alive: bool,
    /// The sidecar container's present instance, as the status tells.
    pub instance: Instance,
    /// What the spec says about our token.
    pub shape: Shape,
    /// What it says about a fence.
    pub fenced: Fenced,
}

/// Finds live pods: the API server, or the local double.
pub trait Pods: Send + Sync {
    /// The pod, if it exists now.
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>>;

    /// The same as it was last heard of: asked every second per stream, where a moment's delay does no harm.
    fn known<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>> {
        self.pod(namespace, name)
    }

    /// What the profile of a namespace demands of its pods' fence; nothing where it demands none, and on one machine.
    fn demanded(&self, _namespace: &str) -> Result<Option<Demands>, Unavailable> {
        Ok(None)
    }
}

/// Told what people should hear of. It is no part of any decision, and never waits.
pub trait Notices: Send + Sync {
    /// A second key asked to speak for the pinned instance of a pod.
    fn key_conflict(&self, pod: &PodView);
}

/// Says it in the broker's own log.
pub struct Logged;

impl Notices for Logged {
    fn key_conflict(&self, pod: &PodView) {
        tracing::warn!(
            pod = pod.name,
            namespace = pod.namespace,
            "a second key for a running sidecar"
        );
    }
}

/// Which images a sidecar may be, by the image that its pod's spec names.
pub trait Images: Send + Sync {
    /// Whether it may be this one, and if not, why.
    fn allowed(&self, image: &str) -> Result<(), String>;

    /// Whether anything is refused at all.
    fn pinned(&self) -> bool;
}

/// Takes any: one machine has no images.
pub struct AnyImage;

impl Images for AnyImage {
    fn allowed(&self, _image: &str) -> Result<(), String> {
        Ok(())
    }

    fn pinned(&self) -> bool {
        false
    }
}

/// A step of attestation that takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The token itself, and newer keys where it names one that is not held.
    Token,
    /// The review.
    Review,
    /// The live pod.
    Pod,
    /// The pin of the key.
    Key,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Step; 4] = [Step::Token, Step::Review, Step::Pod, Step::Key];

    /// Its word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Token => "token",
            Step::Review => "review",
            Step::Pod => "pod",
            Step::Key => "key",
        }
    }
}

/// Told how long each step took, whatever came of it. It is no part of any decision, and never waits.
pub trait Timed: Send + Sync {
    /// A step took so long.
    fn took(&self, step: Step, time: Duration);
}

/// Measures nothing.
pub struct Untimed;

impl Timed for Untimed {
    fn took(&self, _step: Step, _time: Duration) {}
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
    /// The sidecar's image.
    #[error("image: {0}")]
    Image(String),
    /// The fence around the pod.
    #[error("fence: {0}")]
    Fence(String),
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
#[derive(Debug, Clone)]
pub struct ClusterTrust {
    /// The cluster's issuer.
    pub issuer: String,
    /// Its keys.
    pub keys: KeySet,
    /// Its algorithms.
    pub algorithms: Vec<Alg>,
}

/// Knows the cluster's issuer and its keys, which change.
pub trait Issuers: Send + Sync {
    /// What is believed now.
    fn trust(&self) -> Arc<ClusterTrust>;

    /// When the keys were last read, seconds since 1970; nothing: they are not read from anywhere.
    fn read_at(&self) -> Option<i64> {
        None
    }

    /// Looks for newer keys, because a token names one that is not held; answers whether it looked.
    fn renew(&self) -> BoxFuture<'_, bool>;
}

/// Answers about one id.
pub type Asked<'a> = &'a (dyn Fn(&str) -> bool + Sync);

/// What a caller's token says, once it is known to be the cluster's; for the audit of a refusal too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presented {
    /// `system:serviceaccount:ns:name`.
    pub user: String,
    /// Pod name.
    pub pod: String,
    /// Pod UID.
    pub pod_uid: String,
    /// Node.
    pub node: String,
    /// What the API server's audit log calls the token.
    pub credential_id: String,
}

/// How many tokens of unknown keys are under review at once.
const STRANGERS: usize = 8;

/// Turns for tokens of which only the cluster knows the key.
pub struct Strangers(Semaphore);

impl Default for Strangers {
    fn default() -> Self {
        Strangers(Semaphore::new(STRANGERS))
    }
}

/// Pods as they were when a key was found to be theirs, by UID and thumbprint.
///
/// A sidecar that asks again within ten seconds costs the API server nothing, as long as the watch tells of no change: not
/// of a deletion, and not of a newer instance, which alone may bring another key (test
/// `who_asks_again_soon_is_looked_at_again_only_where_the_pod_changed`).
pub type Looked = Remembered<(String, String), PodView>;

/// A token as far as it can be judged before the cluster is asked.
enum Believed {
    Signed(Accepted),
    Unsigned(Unsigned),
}

/// Attests callers.
pub struct Attestor {
    /// The one audience of service-account tokens meant for us.
    pub audience: String,
    /// The cluster's issuer.
    pub issuers: Arc<dyn Issuers>,
    /// Who reviews tokens.
    pub reviewer: Arc<dyn TokenReviewer>,
    /// Who knows pods.
    pub pods: Arc<dyn Pods>,
    /// The keys of instances.
    pub pins: Arc<dyn Pins>,
    /// Who hears of what should not happen.
    pub notices: Arc<dyn Notices>,
    /// What a sidecar's image may be.
    pub images: Arc<dyn Images>,
    /// Turns for tokens of unknown keys.
    pub strangers: Strangers,
    /// Pods of which a key was found to be theirs.
    pub looked: Looked,
    /// Who hears how long it takes.
    pub timed: Arc<dyn Timed>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
}

impl Attestor {
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
        let mut unread = Presented::default();
        self.attest_told(slot, token, key, (denied, admit), &mut unread).await
    }

    /// The same, and tells what the token says as soon as that is known to be the cluster's word.
    pub async fn attest_told(
        &self,
        slot: Slot,
        token: &str,
        key: &PublicKey,
        (denied, admit): (Asked<'_>, Asked<'_>),
        presented: &mut Presented,
    ) -> Result<Workload, NotAttested> {
        let believed = self.measured(Step::Token, self.believed(slot, token, denied)).await?;
        let (review, accepted) = match believed {
            Believed::Signed(accepted) => {
                presented.read(&Claims::read(&accepted));
                if !admit(&presented.pod_uid) {
                    return Err(NotAttested::TooMany);
                }
                let review = self.reviewed(token, &Claims::read(&accepted)).await?;
                (review, accepted)
            }
            // Anybody can write such a token: it takes one of a few turns, and the pod's budget is spent only once the
            // API server, which verified its signature, vouches for it.
            Believed::Unsigned(unsigned) => {
                let turn = self.strangers.0.try_acquire();
                let _turn = turn.map_err(|_| NotAttested::Unavailable("too many tokens of unknown keys".to_owned()))?;
                let review = self.reviewed(token, &Claims::read(unsigned.says())).await?;
                let accepted = unsigned.vouched_for();
                presented.read(&Claims::read(&accepted));
                if !admit(&presented.pod_uid) {
                    return Err(NotAttested::TooMany);
                }
                (review, accepted)
            }
        };
        let claims = Claims::read(&accepted);
        presented.credential_id = review.credential_id.unwrap_or_default();
        let (whose, now) = ((claims.pod_uid.to_owned(), key.thumbprint()), self.clock.now_ms());
        let unchanged = self.unchanged(&whose, &claims, now).await?;
        let again = unchanged.is_some();
        let pod = match unchanged {
            Some(pod) => pod,
            None => {
                let asked = self.pods.pod(claims.namespace, claims.pod);
                let found = self.measured(Step::Pod, asked).await?;
                found.ok_or(NotAttested::Pod("no such pod"))?
            }
        };
        check_pod(&pod, &claims)?;
        if let Some(wrong) = pod.shape.wrong() {
            return Err(NotAttested::Shape(wrong));
        }
        self.images.allowed(&pod.shape.image).map_err(NotAttested::Image)?;
        // Admission is prevention, not proof: what was made around it, or before its profile was Enforced, gets nothing
        // (test `step_4_a_pod_whose_profile_demands_a_fence_gets_nothing_without_it`).
        if let Some(wrong) = pod.fenced.wrong(self.pods.demanded(&pod.namespace)?.as_ref()) {
            return Err(NotAttested::Fence(wrong));
        }
        if !again {
            self.pinned(&pod, &whose.1).await?;
            self.looked.keep(whose, pod.clone(), now);
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

    /// The pod, where this key was found to be its a moment ago and nothing was heard of since.
    async fn unchanged(
        &self,
        whose: &(String, String),
        claims: &Claims<'_>,
        now: i64,
    ) -> Result<Option<PodView>, NotAttested> {
        let Some(pod) = self.looked.get(whose, now) else {
            return Ok(None);
        };
        let known = self.pods.known(claims.namespace, claims.pod).await?;
        Ok(known.filter(|known| *known == pod))
    }

    /// A pod that is ending gets no new key, but the one it has goes on: agents need their database until they end.
    async fn pinned(&self, pod: &PodView, thumbprint: &str) -> Result<(), NotAttested> {
        let pinned = self.pins.pin(&pod.uid, &pod.instance, thumbprint, pod.deleting);
        self.measured(Step::Key, pinned).await.map_err(|refused| match refused {
            PinRefused::Conflict => {
                self.notices.key_conflict(pod);
                NotAttested::RestartNotSeen
            }
            other => NotAttested::Unavailable(other.to_string()),
        })
    }

    async fn measured<T>(&self, step: Step, work: impl Future<Output = T>) -> T {
        let since = Instant::now();
        let done = work.instrument(spans::step(step.as_str())).await;
        self.timed.took(step, since.elapsed());
        done
    }

    /// What the cluster says of this token, and that it says the same as the token.
    async fn reviewed(&self, token: &str, claims: &Claims<'_>) -> Result<Review, NotAttested> {
        let review = self.measured(Step::Review, self.reviewer.review(token, &self.audience));
        let review = review.await?;
        check_review(&review, &self.audience, claims)?;
        Ok(review)
    }

    /// The token by itself, with newer keys where it names one that is not held. Where it still names none, the cluster is
    /// asked all the same, as an external signer may keep keys out of discovery (test
    /// `a_token_of_an_unknown_key_is_the_review_s_to_judge_and_what_is_wrong_without_the_key_stops`).
    async fn believed(
        &self,
        slot: Slot,
        token: &str,
        denied: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<Believed, Refused> {
        let judged = match self.offline(slot, token, denied) {
            // Steps before the key have passed, so this asks for keys at most as often as the issuer's own tokens come.
            Err(Refused::UnknownKey) if self.issuers.renew().await => self.offline(slot, token, denied),
            judged => judged,
        };
        match judged {
            Err(Refused::UnknownKey) => {
                let trusted = self.issuers.trust();
                let trust = self.trust_in(&trusted, denied);
                accept_unsigned(slot, token.as_bytes(), trust, self.clock.now()).map(Believed::Unsigned)
            }
            judged => judged.map(Believed::Signed),
        }
    }

    fn trust_in<'a>(&'a self, trusted: &'a ClusterTrust, denied: &'a (dyn Fn(&str) -> bool + Sync)) -> Trust<'a> {
        Trust {
            issuer: &trusted.issuer,
            keys: &trusted.keys,
            algorithms: &trusted.algorithms,
            audience: &self.audience,
            denied,
        }
    }

    fn offline(&self, slot: Slot, token: &str, denied: &(dyn Fn(&str) -> bool + Sync)) -> Result<Accepted, Refused> {
        let trusted = self.issuers.trust();
        let trust = self.trust_in(&trusted, denied);
        accept(slot, token.as_bytes(), trust, self.clock.now())
    }

    /// Whether an attested workload still stands: same pod, alive, same instance. Asked on every call.
    pub async fn still(&self, who: &Workload) -> Result<PodView, NotAttested> {
        let Subject { namespace, pod, .. } = &who.subject;
        if let Ok(pod) = stands(self.pods.known(namespace, pod).await?, who) {
            return Ok(pod);
        }
        // What was heard of last may lag behind; nobody is turned away for that.
        stands(self.pods.pod(namespace, pod).await?, who)
    }
}

fn stands(pod: Option<PodView>, who: &Workload) -> Result<PodView, NotAttested> {
    let pod = pod.ok_or(NotAttested::Pod("no such pod"))?;
    if pod.uid != who.subject.pod_uid || !pod.alive {
        return Err(NotAttested::Pod("gone, or another pod of that name"));
    }
    if pod.instance.count != who.instance {
        return Err(NotAttested::Pod("a newer instance of the sidecar runs"));
    }
    Ok(pod)
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

impl Presented {
    fn read(&mut self, claims: &Claims<'_>) {
        *self = Presented {
            user: claims.user.to_owned(),
            pod: claims.pod.to_owned(),
            pod_uid: claims.pod_uid.to_owned(),
            node: claims.node.to_owned(),
            credential_id: String::new(),
        };
    }
}

fn check_review(review: &Review, ours: &str, claims: &Claims<'_>) -> Result<(), NotAttested> {
    if !review.authenticated || review.error.is_some() {
        return Err(NotAttested::Review("not authenticated"));
    }
    if !review.audiences.iter().any(|audience| audience == ours) {
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
    if !pod.alive {
        return Err(NotAttested::Pod("neither pending nor running"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "attest/tests.rs"]
mod tests;
