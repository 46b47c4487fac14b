//! Putting into force what the stream brought: deny sets and bundles, and what they mean for open sessions.
//!
//! A bundle is taken only if its body is what its seal says, no older in any kind than what was taken before, and
//! compiles; what this sidecar is too old to understand denies the Targets it is about.
//! Invariant: when a deny set or bundle is acknowledged, the sessions it ends are gone or two seconds have passed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sidegate_policies::bundle;
use sidegate_policies::compile::understood::{self, Understood};
use sidegate_policies::engine::{Completeness, ConnectFacts};
use sidegate_policies::engine::{Effect, Facts, Operation, Phase, Verb};
use sidegate_policies::reason::Reason;
use sidegate_policies::seal::{Behind, Seal, Statement};
use sidegate_policies::wire::{DenySet, NackClass};

use super::seal::{SealRefused, Seals};
use crate::accept::Listeners;
use crate::authority::{Authority, InForce};
use crate::secret::from_base64url;
use crate::session::Session;
use crate::target::TargetState;

/// Largest body of a bundle.
const BODY_LIMIT: usize = 8 << 20;
/// How long an ack waits for cut sessions to be gone.
const GONE: Duration = Duration::from_secs(2);

/// Why a bundle was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BundleRefused {
    /// Too large.
    #[error("the body is larger than 8 MiB")]
    TooLarge,
    /// The body is not what its version says.
    #[error("the body's SHA-256 is not its version")]
    Version,
    /// The broker did not vouch for it.
    #[error(transparent)]
    Seal(#[from] SealRefused),
    /// The seal is about something else.
    #[error("the seal is about another {0}")]
    Sealed(&'static str),
    /// Older than what was taken before.
    #[error("{0}")]
    Older(Behind),
    /// It does not compile.
    #[error("{0}")]
    Compile(String),
}

impl BundleRefused {
    /// The word the broker counts it by.
    pub fn class(&self) -> NackClass {
        match self {
            BundleRefused::TooLarge => NackClass::Size,
            BundleRefused::Version => NackClass::Hash,
            BundleRefused::Seal(_) | BundleRefused::Sealed(_) => NackClass::Seal,
            BundleRefused::Older(_) => NackClass::Older,
            BundleRefused::Compile(_) => NackClass::Compile,
        }
    }
}

/// What was done to open sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closed {
    /// Sessions ended.
    pub sessions: u64,
    /// Microseconds from receipt to the last one gone.
    pub took_us: u64,
}

/// Applies bundles and deny sets.
pub struct Enforcer {
    /// What is in force.
    pub authority: Arc<Authority>,
    /// The listeners that follow the bundle.
    pub listeners: Arc<Listeners>,
    /// Who may seal bundles.
    pub seals: Seals,
}

impl Enforcer {
    /// Puts a deny set into force. Sessions are told to end before this returns; the future completes once they
    /// have ended. None: the set is older than the one held.
    pub fn deny(&self, set: DenySet) -> Option<impl std::future::Future<Output = Closed> + Send + 'static> {
        let received = Instant::now();
        let applied = self.authority.deny.apply(set, &self.authority.sessions);
        // Under an older one too: what is held then is what the broker said later.
        self.authority.armed();
        let applied = applied?;
        self.authority.metrics.cut.add(applied.closing.len() as u64);
        Some(gone(applied.closing, received))
    }

    /// The broker vouches for this pod no more: ends every session, and lets none in before it says who we are again.
    pub fn gone(&self) -> impl std::future::Future<Output = Closed> + Send + 'static {
        let received = Instant::now();
        self.authority.unheard();
        gone(self.authority.cut(Reason::LeaseEnded, |_| true), received)
    }

    /// What a seal says, if the broker made it for the pod it says we are.
    pub fn check(&self, seal: &Seal) -> Result<Statement, SealRefused> {
        let subject = self.authority.subject().ok_or(SealRefused::Pod)?;
        let now = jiff::Timestamp::now().as_millisecond();
        self.seals.check(seal, &subject.pod_uid, now)
    }

    /// Checks and compiles a bundle under a seal that was checked; heavy, so call it off the runtime.
    pub fn compile(&self, version: &str, body: &str, sealed: &Statement) -> Result<InForce, BundleRefused> {
        if body.len() > BODY_LIMIT {
            return Err(BundleRefused::TooLarge);
        }
        if bundle::version(body.as_bytes()) != version {
            return Err(BundleRefused::Version);
        }
        if sealed.version != version {
            return Err(BundleRefused::Sealed("body"));
        }
        // The very one in force is no step back, whoever offers it.
        let same = self.authority.in_force().is_some_and(|held| *held.version == *version);
        if let Some(behind) = sealed.revisions.behind(&self.authority.taken()).filter(|_| !same) {
            return Err(BundleRefused::Older(behind));
        }
        let Understood {
            bundle: parsed,
            policies,
            withheld,
        } = understood::read(body.as_bytes()).map_err(|problems| {
            let first: Vec<String> = problems.iter().take(10).map(ToString::to_string).collect();
            BundleRefused::Compile(first.join("; "))
        })?;
        if parsed.cluster != sealed.cluster {
            return Err(BundleRefused::Sealed("cluster"));
        }
        for (target, withheld) in &withheld {
            tracing::error!(%target, why = withheld.why, "not understood: everything on this target is denied");
        }
        let served = parsed.targets.iter().filter_map(TargetState::bundled);
        // They listen, to say what is the matter; the engine does not know them.
        let refusing = withheld.values().filter_map(TargetState::withheld);
        let targets: BTreeMap<_, _> = served
            .chain(refusing)
            .map(|target| (target.id.clone(), Arc::new(target)))
            .collect();
        let unread = withheld.into_iter().filter(|(_, withheld)| withheld.target.is_none());
        let unread = unread.map(|(id, withheld)| (id, withheld.why)).collect();
        let digest_key = from_base64url(&parsed.digest_key).filter(|key| key.len() == 32);
        Ok(InForce {
            generation: 0,
            version: version.into(),
            revisions: sealed.revisions.clone(),
            cluster: parsed.cluster,
            policies,
            targets,
            unread,
            digest_key: digest_key.ok_or_else(|| BundleRefused::Compile("digestKey is not 32 bytes".to_owned()))?,
        })
    }

    /// Swaps a compiled bundle in, lets the listeners follow, and ends sessions it no longer allows.
    pub fn enforce(&self, bundle: InForce) -> impl std::future::Future<Output = Closed> + Send + 'static {
        let received = Instant::now();
        let bundle = self.authority.enforce(bundle);
        self.listeners.reconcile(&bundle.targets);
        let cut = |session: &Session| !still_allowed(session, &bundle);
        gone(self.authority.cut(Reason::PolicyGone, cut), received)
    }
}

/// Whether a bundle still allows a session that is open.
fn still_allowed(session: &Session, bundle: &InForce) -> bool {
    let Some(target) = bundle.targets.get(&session.target.id) else {
        return false;
    };
    if target.not_understood.is_some() {
        return false;
    }
    // A session that has not connected yet meets the new bundle at its connect; one on an announced listener too.
    let Some(facts) = session.facts() else {
        return true;
    };
    let old = &session.target;
    target.same_place(old) && target.spec.weak_login >= old.spec.weak_login && connects(session, facts, bundle)
}

fn connects(session: &Session, facts: &ConnectFacts, bundle: &InForce) -> bool {
    let operation = Operation {
        verb: Verb::Connect,
        action: "connect",
        completeness: Completeness::Exact,
        facts: Facts::Connect(facts),
    };
    let decision = bundle.policies.decide(
        &session.subject,
        &session.target.id,
        &operation,
        Phase::Final,
        jiff::Timestamp::now(),
    );
    decision.effect != Effect::Deny
}

async fn gone(closing: Vec<Arc<Session>>, received: Instant) -> Closed {
    let ended = futures_util::future::join_all(closing.iter().map(|session| session.ended()));
    let _ = tokio::time::timeout(GONE, ended).await;
    Closed {
        sessions: closing.len() as u64,
        took_us: u64::try_from(received.elapsed().as_micros()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
