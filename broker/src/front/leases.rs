//! Leases: one credential for one target of the caller's own bundle, for a few minutes.
//!
//! Refuses targets outside the bundle, whatever a Lockdown freezes, and secrets that are missing or readable by
//! others; never falls back to an older or broader credential. The invariants: a Secret is read anew for every lease,
//! and nothing is kept here but ids; what was fetched for one configuration is not given out under another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, Request, State};
use axum::{Extension, Json};
use http::StatusCode;
use sidegate_policies::api::target::{Credential, SecretCredential};
use sidegate_policies::bundle::BundledTarget;
use sidegate_policies::check::OWN;
use sidegate_policies::presets::Class;
use sidegate_policies::record::Kind;
use sidegate_policies::wire::{Lease, LeaseMaterial, LeaseRequest};

use super::caller::Caller;
use super::token::mint;
use super::{json, Front, Refusal, MAX_BODY};
use crate::audit::Event;
use crate::credentials::{Exchanged, Failure, Wanted};
use crate::index::{Index, Offer};
use crate::issuer::{random_id, Workload};
use crate::lockdown::About;
use crate::secrets::SecretError;

/// Life of a leased Secret, seconds.
pub const SECRET_LIFE: u64 = 15 * 60;
const MAX_LEASES: usize = 100_000;

/// Leases given out: ids only, for handing back and for status.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<String, Held>>);

/// What a lease was made from, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKind {
    /// A Secret.
    Secret,
    /// A token, of ours or of another issuer.
    Token,
    /// Nothing but a name.
    None,
}

impl LeaseKind {
    /// Every kind.
    pub const ALL: [LeaseKind; 3] = [LeaseKind::Secret, LeaseKind::Token, LeaseKind::None];

    /// Its word in metrics: the field of the Target.
    pub fn as_str(self) -> &'static str {
        match self {
            LeaseKind::Secret => "secret",
            LeaseKind::Token => "token",
            LeaseKind::None => "none",
        }
    }

    fn of(credential: &Credential) -> LeaseKind {
        match credential {
            Credential::Secret(_) => LeaseKind::Secret,
            Credential::Token(_) => LeaseKind::Token,
            Credential::None(_) => LeaseKind::None,
        }
    }
}

#[derive(Debug, Clone)]
struct Held {
    pod_uid: String,
    until_ms: i64,
    kind: LeaseKind,
}

impl Leases {
    fn add(&self, id: &str, held: Held, now_ms: i64) -> Result<(), Refusal> {
        let mut leases = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        leases.retain(|_, held| held.until_ms > now_ms);
        if leases.len() >= MAX_LEASES {
            return Err(Refusal::unavailable());
        }
        leases.insert(id.to_owned(), held);
        Ok(())
    }

    fn end(&self, id: &str, pod_uid: &str) -> bool {
        let mut leases = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let own = leases.get(id).is_some_and(|held| held.pod_uid == pod_uid);
        own && leases.remove(id).is_some()
    }

    /// How many are out now.
    pub fn active(&self, now_ms: i64) -> usize {
        let leases = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        leases.values().filter(|held| held.until_ms > now_ms).count()
    }

    /// The same of one kind.
    pub fn active_of(&self, kind: LeaseKind, now_ms: i64) -> usize {
        let leases = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let out = |held: &&Held| held.kind == kind && held.until_ms > now_ms;
        leases.values().filter(out).count()
    }
}

/// `POST /v1/leases`.
pub async fn create(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Lease>, Refusal> {
    let asked: LeaseRequest = json(request, MAX_BODY).await?;
    let tasks = front.tasks.clone();
    let fetched = fetch(&front, &caller, &asked).await;
    let lease = tasks.blocking(move || {
        let client = caller.workload.client_id();
        let outcome = grant(&front, &caller.workload, &asked.target, fetched);
        let told = Event {
            subject: &client,
            pod_uid: &caller.workload.subject.pod_uid,
            object: &asked.target,
            ..Event::new(Kind::Refused, "lease.refused")
        };
        front.metrics.lease(outcome.is_ok());
        let lease = outcome.map_err(|(refusal, detail)| {
            front.audit.note(Event {
                detail: &detail,
                ..told
            });
            refusal
        })?;
        // On record before it leaves.
        let granted = front.audit.record(Event {
            kind: Kind::Issued,
            event: "lease.granted",
            detail: &lease.id,
            ..told
        });
        if granted.is_err() {
            front.leases.end(&lease.id, &caller.subject().pod_uid);
            return Err(Refusal::unavailable());
        }
        Ok(lease)
    });
    lease.await.unwrap_or_else(|| Err(Refusal::unavailable())).map(Json)
}

/// `DELETE /v1/leases/{id}`.
pub async fn end(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    if !front.leases.end(&id, &caller.subject().pod_uid) {
        return Err(Refusal::not_found());
    }
    front.audit.note(Event {
        subject: &caller.workload.client_id(),
        pod_uid: &caller.subject().pod_uid,
        object: &id,
        detail: "handed back",
        ..Event::new(Kind::Issued, "lease.ended")
    });
    Ok(StatusCode::NO_CONTENT)
}

/// Why nothing is given out: outward, and precisely.
type Refused = (Refusal, String);

/// What was fetched for a lease, where its Target logs in with something that takes time.
enum Fetched {
    /// Nothing had to be, or could be: it is judged again anyway.
    Nothing,
    /// Read from a Secret.
    Secret(Result<LeaseMaterial, SecretError>),
    /// A token of another issuer, under this revision of the configuration.
    Token {
        outcome: Result<Arc<Exchanged>, Failure>,
        revision: u64,
    },
}

/// A Target the caller may have a lease for now.
struct Grantable {
    index: Arc<Index>,
    offer: Arc<Offer>,
    target: String,
}

impl Grantable {
    fn check(front: &Front, who: &Workload, target: &str) -> Result<Grantable, Refused> {
        let index = front.index();
        let granted = Grantable {
            offer: index.offer(&who.subject),
            index,
            target: target.to_owned(),
        };
        let bundled = granted.bundled()?;
        let (secret, issuer) = match &bundled.target.spec.credential {
            Credential::Secret(secret) => (Some(format!("{}/{}", namespace(bundled), secret.name)), None),
            Credential::Token(token) => (None, Some(token.issuer.as_str())),
            Credential::None(_) => (None, None),
        };
        let about = About {
            subject: Some(&who.subject),
            target: Some(target),
            secret: secret.as_deref(),
            issuer,
        };
        if let Some(lockdown) = front.lockdowns.now().frozen(about, front.clock.now_ms()) {
            return Err((Refusal::locked(), format!("frozen by lockdown `{lockdown}`")));
        }
        Ok(granted)
    }

    fn bundled(&self) -> Result<&BundledTarget, Refused> {
        let found = self.offer.target(&self.target);
        found.ok_or_else(|| (Refusal::invalid_target(), "not in the caller's bundle".to_owned()))
    }
}

/// Fetches what a Target logs in with, if that takes time and the caller may have it.
async fn fetch(front: &Arc<Front>, caller: &Caller, asked: &LeaseRequest) -> Fetched {
    let (checked, who, name) = (Arc::clone(front), caller.workload.clone(), asked.target.clone());
    let checked = front
        .tasks
        .blocking(move || Grantable::check(&checked, &who, &name))
        .await;
    let Some(Ok(granted)) = checked else {
        return Fetched::Nothing;
    };
    let Ok(bundled) = granted.bundled() else {
        return Fetched::Nothing;
    };
    match &bundled.target.spec.credential {
        Credential::Secret(secret) => Fetched::Secret(read_secret(front, bundled, secret).await),
        Credential::Token(token) => {
            let Ok(Some(issuer)) = granted.index.objects().issuer_of(&bundled.target) else {
                return Fetched::Nothing;
            };
            let wanted = Wanted {
                who: &caller.workload,
                thumbprint: &caller.thumbprint,
                bundle: &granted.offer.version,
                token,
                issuer,
                anew: asked.refused.is_some(),
            };
            Fetched::Token {
                outcome: front.exchanges.token(wanted).await,
                revision: granted.index.revision(),
            }
        }
        Credential::None(_) => Fetched::Nothing,
    }
}

/// Reads the Secret of a Target.
async fn read_secret(
    front: &Front,
    bundled: &BundledTarget,
    secret: &SecretCredential,
) -> Result<LeaseMaterial, SecretError> {
    let SecretCredential {
        name,
        username_key,
        password_key,
    } = secret;
    let read = front
        .secrets
        .read(namespace(bundled), name, &[username_key, password_key])
        .await?;
    let mut values = read.iter().map(|value| value.to_string());
    Ok(LeaseMaterial::Password {
        user: values.next().unwrap_or_default(),
        password: values.next().unwrap_or_default(),
    })
}

/// The grant, or the refusal. What may be granted is asked again: a Lockdown may have come while something was fetched.
fn grant(front: &Front, who: &Workload, target: &str, fetched: Fetched) -> Result<Lease, Refused> {
    let granted = Grantable::check(front, who, target)?;
    let (material, expires_in) = material(front, who, &granted, fetched)?;
    let id = random_id().map_err(|error| (Refusal::unavailable(), error.to_string()))?;
    let now_ms = front.clock.now_ms();
    let life_ms = i64::try_from(expires_in).unwrap_or(0).saturating_mul(1000);
    let held = Held {
        pod_uid: who.subject.pod_uid.clone(),
        until_ms: now_ms.saturating_add(life_ms),
        kind: LeaseKind::of(&granted.bundled()?.target.spec.credential),
    };
    front
        .leases
        .add(&id, held, now_ms)
        .map_err(|refusal| (refusal, "too many leases".to_owned()))?;
    Ok(Lease {
        id,
        material,
        expires_in,
    })
}

fn material(
    front: &Front,
    who: &Workload,
    granted: &Grantable,
    fetched: Fetched,
) -> Result<(LeaseMaterial, u64), Refused> {
    match (&granted.bundled()?.target.spec.credential, fetched) {
        (Credential::Secret(_), Fetched::Secret(read)) => Ok((read.map_err(secret_refused)?, SECRET_LIFE)),
        (Credential::Token(token), Fetched::Token { outcome, revision }) if revision == granted.index.revision() => {
            let held = outcome.map_err(exchange_refused)?;
            let life = held.life(who.ends, front.clock.now_ms());
            let life = life.ok_or_else(|| (Refusal::unavailable(), "the token is over already".to_owned()))?;
            let material = LeaseMaterial::Bearer {
                user: token.username.clone(),
                token: held.expose().to_owned(),
            };
            Ok((material, life))
        }
        (Credential::Token(token), Fetched::Nothing) if token.issuer == OWN => {
            let minted = mint(front, who, &granted.target, token, None);
            let (issued, _) = minted.map_err(|refusal| (refusal, refusal.error.to_owned()))?;
            let material = LeaseMaterial::Bearer {
                user: token.username.clone(),
                token: issued.token,
            };
            Ok((material, issued.expires_in))
        }
        (Credential::None(none), Fetched::Nothing) => {
            let material = LeaseMaterial::None {
                user: none.username.clone(),
            };
            Ok((material, SECRET_LIFE))
        }
        // What was fetched is of another Target or configuration, as this one was a moment ago.
        _ => Err((Refusal::unavailable(), "the configuration changed meanwhile".to_owned())),
    }
}

fn exchange_refused(failure: Failure) -> Refused {
    let refusal = match failure.class {
        Class::Final | Class::Broken | Class::Reassert => Refusal::credential_refused(),
        Class::Retry | Class::Propagation => Refusal::unavailable(),
    };
    (refusal, failure.to_string())
}

fn secret_refused(error: SecretError) -> Refused {
    let refusal = match &error {
        SecretError::Io { .. } | SecretError::Cluster { .. } => Refusal::unavailable(),
        _ => Refusal::credential_refused(),
    };
    (refusal, error.to_string())
}

fn namespace(bundled: &BundledTarget) -> &str {
    bundled.target.metadata.namespace.as_deref().unwrap_or_default()
}
