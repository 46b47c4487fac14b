//! Tokens of other issuers: an assertion of ours about the caller, exchanged at an identity provider.
//!
//! One exchange per key runs at a time, as a task that no caller's deadline ends; whoever asks meanwhile waits for it.
//! Refuses, with its class in the audit and nothing of it outward, whatever the preset does not promise. Invariants: a
//! token outlives neither what its provider says nor the caller's own service-account token; one that was asked for
//! before a Lockdown changed is thrown away; no answer of a provider is ever logged.

pub mod aws;
mod cache;
mod exchange;
mod health;
pub(crate) mod outbound;
pub mod publish;
mod reply;
mod request;
mod revoke;
pub mod ssh;
pub mod vault;
mod xml;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::digest::{Context, SHA256};
use secrecy::{ExposeSecret as _, SecretString};
use sidegate_policies::api::target::TokenCredential;
use sidegate_policies::api::{TokenIssuer, TokenIssuerSpec};
use sidegate_policies::presets::{self, Class, Preset};
use sidegate_policies::record::Kind;
use tokio::sync::watch;
use tracing::Instrument as _;

use crate::audit::{Audit, Event};
use crate::clock::Clock;
use crate::issuer::{random, Issuer, Workload};
use crate::lockdown::Lockdowns;
use crate::secrets::Secrets;
use crate::spans;
use crate::task::Tasks;
use cache::{Cache, Found, Key};
use health::Health;
pub use outbound::Outbound;
use publish::Published;
use revoke::Ending;

/// A refusal is remembered so long at least, and up to twice that.
const REMEMBERED_MS: i64 = 5_000;
/// A trust that a provider does not know of may still be spreading for so long.
const SPREADING_MS: i64 = 120_000;
/// Until then it is asked again after so long.
const SPREADING_AGAIN_MS: i64 = 1_000;
/// Providers whose health is kept, at most.
const MAX_PROVIDERS: usize = 256;

/// Why there is no token. Holds nothing a provider wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", class.as_str())]
pub struct Failure {
    /// What to make of it.
    pub class: Class,
    /// Precisely, for the audit.
    pub why: String,
    /// Not before so many seconds, where the provider said so.
    pub(crate) retry_after: Option<u64>,
}

impl Failure {
    fn new(class: Class, why: impl Into<String>) -> Self {
        Failure {
            class,
            why: why.into(),
            retry_after: None,
        }
    }
}

/// A provider's token. No Debug: it is a secret.
pub struct Exchanged {
    token: SecretString,
    /// What belongs to it, as its preset says.
    more: Vec<SecretString>,
    /// Asked for at, and ends at, milliseconds since 1970.
    from_ms: i64,
    until_ms: i64,
    /// Of the deny set it was asked for under.
    generation: u64,
    /// How the provider is told that it is over, where it wants to know.
    ending: Option<Ending>,
}

impl Exchanged {
    /// The token, for the lease.
    pub fn expose(&self) -> &str {
        self.token.expose_secret()
    }

    /// Seconds it is good for, for a caller whose own token ends then; none: not at all.
    pub fn life(&self, ends: i64, now_ms: i64) -> Option<u64> {
        let until = self.until_ms.min(ends.saturating_mul(1000));
        let seconds = until.saturating_sub(now_ms).div_euclid(1000);
        u64::try_from(seconds).ok().filter(|seconds| *seconds > 0)
    }

    /// Whether its provider is told when nobody has it any more.
    pub fn is_ended_elsewhere(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether it is given to those who ask again: a caller that renews in time gets a new one.
    fn fresh(&self, generation: u64, now_ms: i64) -> bool {
        let half = self.until_ms.saturating_sub(self.from_ms).div_euclid(2);
        self.generation == generation && now_ms < self.from_ms.saturating_add(half)
    }
}

type Outcome = Result<Arc<Exchanged>, Failure>;

/// What is wanted.
pub struct Wanted<'a> {
    /// For whom.
    pub who: &'a Workload,
    /// Thumbprint of the caller's key.
    pub thumbprint: &'a str,
    /// Version of the caller's bundle.
    pub bundle: &'a str,
    /// What the Target says of the token.
    pub token: &'a TokenCredential,
    /// Who gives it.
    pub issuer: &'a TokenIssuer,
    /// The last one was refused by the Target: a new one, whatever is at hand.
    pub anew: bool,
}

/// One exchange, with all it takes.
struct Job {
    key: Key,
    provider: Key,
    who: Workload,
    name: String,
    spec: TokenIssuerSpec,
    preset: &'static Preset,
    audience: String,
    scope: String,
    generation: u64,
}

impl Job {
    fn of(&self) -> Provider<'_> {
        Provider {
            name: &self.name,
            key: &self.provider,
        }
    }
}

/// A provider as it is counted and left alone: its TokenIssuer, and which configuration of it.
#[derive(Clone, Copy)]
struct Provider<'a> {
    name: &'a str,
    key: &'a Key,
}

/// Every exchange of one broker.
pub struct Exchanges {
    issuer: Arc<Issuer>,
    lockdowns: Arc<Lockdowns>,
    audit: Arc<Audit>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    outbound: Outbound,
    /// Where clients' secrets are, and in which namespace.
    secrets: Secrets,
    home: String,
    published: Arc<Published>,
    cache: Mutex<Cache>,
    health: Mutex<HashMap<Key, (String, Health)>>,
    /// Exchanges tried, by TokenIssuer and what came of them.
    requests: Mutex<Requests>,
}

/// A TokenIssuer's name and a class, or `Ok`, and how often.
type Requests = BTreeMap<(String, &'static str), u64>;

impl Exchanges {
    /// None yet. Clients' secrets are in the namespace `home`, the broker's own.
    pub fn new(
        issuer: Arc<Issuer>,
        lockdowns: Arc<Lockdowns>,
        audit: Arc<Audit>,
        clock: Arc<dyn Clock>,
        outbound: Outbound,
        (secrets, home): (Secrets, String),
        published: Arc<Published>,
    ) -> Self {
        Exchanges {
            issuer,
            lockdowns,
            audit,
            clock,
            tasks: outbound.tasks().clone(),
            outbound,
            secrets,
            home,
            published,
            cache: Mutex::default(),
            health: Mutex::default(),
            requests: Mutex::default(),
        }
    }

    /// Where our keys are published.
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// A token, from the cache or by an exchange.
    pub async fn token(self: &Arc<Self>, wanted: Wanted<'_>) -> Outcome {
        let mut told = match self.find(wanted)? {
            Found::Held(held) => return Ok(held),
            Found::Running(told) => told,
        };
        loop {
            if let Some(outcome) = told.borrow_and_update().clone() {
                return outcome;
            }
            if told.changed().await.is_err() {
                return Err(Failure::new(Class::Retry, "the exchange ended without an outcome"));
            }
        }
    }

    fn find(self: &Arc<Self>, wanted: Wanted<'_>) -> Result<Found, Failure> {
        let (now_ms, generation) = (self.clock.now_ms(), self.lockdowns.now().set.revision);
        let job = job(&wanted, generation)?;
        let mut cache = self.cache();
        if let Some(found) = cache.find(&job.key, generation, now_ms, wanted.anew) {
            return found;
        }
        let (tell, told) = watch::channel(None);
        if !cache.begin(job.key, told.clone(), now_ms) {
            return Err(Failure::new(Class::Retry, "too many exchanges at once"));
        }
        drop(cache);
        let this = Arc::clone(self);
        let span = spans::exchange(&job.name);
        let running = async move {
            let outcome = this.exchange(Arc::new(job)).await;
            tell.send_replace(Some(outcome));
        };
        self.tasks.spawn("exchange", running.instrument(span));
        Ok(Found::Running(told))
    }

    /// Runs one exchange to its end and keeps what came of it.
    async fn exchange(self: &Arc<Self>, job: Arc<Job>) -> Outcome {
        let done = self.run(&job).await;
        let mut outcome = done.and_then(|mut held| {
            held.ending = self.ending(&job);
            if self.lockdowns.now().set.revision == job.generation {
                Ok(Arc::new(held))
            } else {
                Err(Failure::new(Class::Retry, "thrown away: a Lockdown changed meanwhile"))
            }
        });
        if !self.recorded(&job, &outcome).await {
            outcome = Err(Failure::new(Class::Retry, "it cannot be recorded"));
        }
        let now_ms = self.clock.now_ms();
        let jitter = random::<2>().map(u16::from_be_bytes).unwrap_or_default();
        let remembered = REMEMBERED_MS.saturating_add(i64::from(jitter) % REMEMBERED_MS);
        let mut cache = self.cache();
        match &mut outcome {
            Ok(held) => cache.keep(job.key, held),
            Err(failure) => {
                if failure.class == Class::Propagation && cache.spreading(&job.key, now_ms) >= SPREADING_MS {
                    failure.class = Class::Final;
                }
                match failure.class {
                    Class::Final | Class::Broken | Class::Reassert => {
                        cache.refuse(job.key, failure.clone(), now_ms.saturating_add(remembered));
                    }
                    Class::Propagation => {
                        cache.spread(job.key, failure.clone(), now_ms.saturating_add(SPREADING_AGAIN_MS));
                    }
                    Class::Retry => cache.forget(&job.key),
                }
            }
        }
        outcome
    }

    /// On record before it leaves. Answers whether it is; a refusal needs not be.
    async fn recorded(&self, job: &Job, outcome: &Outcome) -> bool {
        let (subject, pod_uid) = (job.who.client_id(), job.who.subject.pod_uid.clone());
        let (name, audit) = (job.name.clone(), Arc::clone(&self.audit));
        let (kind, event) = match outcome {
            Ok(_) => (Kind::Issued, "exchange.granted"),
            Err(_) => (Kind::Refused, "exchange.refused"),
        };
        let detail = match outcome {
            Ok(held) => {
                let life = held.until_ms.saturating_sub(held.from_ms).div_euclid(1000);
                format!("{} for `{}`, {life} s", job.preset.name, job.audience)
            }
            Err(failure) => {
                if failure.class == Class::Broken {
                    tracing::error!(
                        issuer = name,
                        why = failure.why,
                        "the provider's answer is not one of its kind"
                    );
                }
                failure.to_string()
            }
        };
        let granted = outcome.is_ok();
        let written = self.tasks.blocking(move || {
            let told = Event {
                subject: &subject,
                pod_uid: &pod_uid,
                object: &name,
                detail: &detail,
                ..Event::new(kind, event)
            };
            if granted {
                return audit.record(told).is_ok();
            }
            audit.note(told);
            true
        });
        written.await.unwrap_or(false)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Something about the health of one provider.
    fn health<T>(&self, provider: Provider<'_>, ask: impl FnOnce(&mut Health, i64) -> T) -> T {
        let now_ms = self.clock.now_ms();
        let mut all = self.health.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if all.len() >= MAX_PROVIDERS && !all.contains_key(provider.key) {
            all.retain(|_, (_, health)| health.is_troubled(now_ms));
        }
        let new = || (provider.name.to_owned(), Health::default());
        ask(&mut all.entry(*provider.key).or_insert_with(new).1, now_ms)
    }

    /// Refuses where a provider is left alone for now.
    fn admitted(&self, provider: Provider<'_>) -> Result<(), Failure> {
        match self.health(provider, |health, now_ms| health.admit(now_ms)) {
            true => Ok(()),
            false => Err(Failure::new(Class::Retry, "the provider is left alone for now")),
        }
    }

    /// Counts one try, and what it says of the provider's health.
    fn told<T>(&self, provider: Provider<'_>, outcome: &Result<T, Failure>) {
        let class = outcome.as_ref().map_or_else(|failure| failure.class.as_str(), |_| "Ok");
        self.count(provider.name, class);
        self.health(provider, |health, now_ms| match outcome {
            Err(failure) if matches!(failure.class, Class::Retry | Class::Broken) => {
                health.failed(now_ms, failure.retry_after);
            }
            _ => health.answered(),
        });
    }

    /// Counts one try.
    fn count(&self, name: &str, outcome: &'static str) {
        let mut requests = self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let known = requests.keys().any(|(counted, _)| counted == name);
        if known || requests.len() < MAX_PROVIDERS.saturating_mul(2) {
            let count = requests.entry((name.to_owned(), outcome)).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Exchanges tried so far, by TokenIssuer and what came of them.
    pub fn requests(&self) -> BTreeMap<(String, &'static str), u64> {
        let requests = self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        requests.clone()
    }

    /// TokenIssuers that were asked lately, and whether each is left alone for now.
    pub fn circuits(&self) -> BTreeMap<String, bool> {
        let now_ms = self.clock.now_ms();
        let all = self.health.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut circuits = BTreeMap::new();
        for (name, health) in all.values() {
            *circuits.entry(name.clone()).or_default() |= health.is_open(now_ms);
        }
        circuits
    }
}

/// A TokenIssuer's `spec` as text, and the key of this configuration of it.
fn provider_of(issuer: &TokenIssuer) -> Result<(String, Key), Failure> {
    let broken = |_| Failure::new(Class::Broken, "the TokenIssuer cannot be written");
    let text = serde_json::to_string(&issuer.spec).map_err(broken)?;
    let key = digest(&[&issuer.metadata.name, &text]);
    Ok((text, key))
}

fn job(wanted: &Wanted<'_>, generation: u64) -> Result<Job, Failure> {
    let broken = |why: &str| Failure::new(Class::Broken, why);
    let spec = &wanted.issuer.spec;
    let preset = presets::find(&spec.preset);
    let preset = preset.ok_or_else(|| broken("the preset cannot be exchanged by"))?;
    let (text, provider) = provider_of(wanted.issuer)?;
    let name = &wanted.issuer.metadata.name;
    let mut scopes = wanted.token.scopes.clone();
    scopes.sort();
    scopes.dedup();
    let scope = scopes.join(" ");
    let who = wanted.who;
    let parts = [
        name.as_str(),
        &text,
        &who.subject.pod_uid,
        &who.account_uid,
        &wanted.token.audience,
        &scope,
        wanted.thumbprint,
        wanted.bundle,
    ];
    Ok(Job {
        key: digest(&parts),
        provider,
        who: who.clone(),
        name: name.clone(),
        spec: spec.clone(),
        preset,
        audience: wanted.token.audience.clone(),
        scope,
        generation,
    })
}

/// SHA-256 over texts, each with its length.
fn digest(parts: &[&str]) -> Key {
    let mut hash = Context::new(&SHA256);
    for part in parts {
        hash.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut key = [0; 32];
    for (to, from) in key.iter_mut().zip(hash.finish().as_ref()) {
        *to = *from;
    }
    key
}

#[cfg(test)]
mod tests;
