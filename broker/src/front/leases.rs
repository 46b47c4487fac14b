//! Leases: one credential for one target of the caller's own bundle, for a few minutes.
//!
//! Refuses targets outside the bundle, whatever a Lockdown freezes, and secrets that are missing or readable by
//! others; never falls back to an older or broader credential. The invariant: the source is read anew for every
//! lease, and nothing is kept but ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, Request, State};
use axum::{Extension, Json};
use http::StatusCode;
use sidegate_policies::api::target::{Credential, SecretCredential};
use sidegate_policies::bundle::BundledTarget;
use sidegate_policies::record::Kind;
use sidegate_policies::wire::{Lease, LeaseMaterial, LeaseRequest};

use super::caller::Caller;
use super::token::mint;
use super::{json, Front, Refusal, MAX_BODY};
use crate::audit::Event;
use crate::index::Offer;
use crate::issuer::{random_id, Workload};
use crate::lockdown::About;
use crate::secrets::SecretError;

/// Life of a leased Secret, seconds.
pub const SECRET_LIFE: u64 = 15 * 60;
const MAX_LEASES: usize = 100_000;

/// Leases given out: ids only, for handing back and for status.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<String, Held>>);

#[derive(Debug, Clone)]
struct Held {
    pod_uid: String,
    until_ms: i64,
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
}

/// `POST /v1/leases`.
pub async fn create(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Lease>, Refusal> {
    let asked: LeaseRequest = json(request, MAX_BODY).await?;
    let tasks = front.tasks.clone();
    let secret = read_secret(&front, &caller, &asked.target).await;
    let lease = tasks.blocking(move || {
        let client = caller.workload.client_id();
        let outcome = grant(&front, &caller.workload, &asked.target, secret);
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

/// What was read for a lease, where its Target logs in with a Secret.
type SecretRead = Option<Result<LeaseMaterial, SecretError>>;

/// A Target the caller may have a lease for now.
struct Grantable {
    offer: Arc<Offer>,
    target: String,
}

impl Grantable {
    fn check(front: &Front, who: &Workload, target: &str) -> Result<Grantable, Refused> {
        let granted = Grantable {
            offer: front.index().offer(&who.subject),
            target: target.to_owned(),
        };
        let bundled = granted.bundled()?;
        let secret = match &bundled.target.spec.credential {
            Credential::Secret(secret) => Some(format!("{}/{}", namespace(bundled), secret.name)),
            _ => None,
        };
        let about = About {
            subject: Some(&who.subject),
            target: Some(target),
            secret: secret.as_deref(),
            issuer: None,
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

/// Reads the Secret of a Target, if it logs in with one and the caller may have it.
async fn read_secret(front: &Arc<Front>, caller: &Caller, target: &str) -> SecretRead {
    let (checked, who, name) = (Arc::clone(front), caller.workload.clone(), target.to_owned());
    let granted = front
        .tasks
        .blocking(move || Grantable::check(&checked, &who, &name))
        .await?
        .ok()?;
    let bundled = granted.bundled().ok()?;
    let Credential::Secret(secret) = &bundled.target.spec.credential else {
        return None;
    };
    let SecretCredential {
        name,
        username_key,
        password_key,
    } = secret;
    let read = front
        .secrets
        .read(namespace(bundled), name, &[username_key, password_key])
        .await;
    Some(read.map(|read| {
        let mut values = read.iter().map(|value| value.to_string());
        LeaseMaterial::Password {
            user: values.next().unwrap_or_default(),
            password: values.next().unwrap_or_default(),
        }
    }))
}

/// The grant, or the refusal. What may be granted is asked again: a Lockdown may have come while the Secret was read.
fn grant(front: &Front, who: &Workload, target: &str, secret: SecretRead) -> Result<Lease, Refused> {
    let granted = Grantable::check(front, who, target)?;
    let (material, expires_in) = material(front, who, target, granted.bundled()?, secret)?;
    let id = random_id().map_err(|error| (Refusal::unavailable(), error.to_string()))?;
    let now_ms = front.clock.now_ms();
    let life_ms = i64::try_from(expires_in).unwrap_or(0).saturating_mul(1000);
    let held = Held {
        pod_uid: who.subject.pod_uid.clone(),
        until_ms: now_ms.saturating_add(life_ms),
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
    target: &str,
    bundled: &BundledTarget,
    secret: SecretRead,
) -> Result<(LeaseMaterial, u64), Refused> {
    match &bundled.target.spec.credential {
        Credential::Secret(_) => {
            // Nothing was read for another Target, as this one was a moment ago.
            let read = secret.ok_or_else(|| (Refusal::unavailable(), "the Target changed meanwhile".to_owned()))?;
            Ok((read.map_err(secret_refused)?, SECRET_LIFE))
        }
        Credential::Token(token) => {
            let minted = mint(front, who, target, token, None);
            let (issued, _) = minted.map_err(|refusal| (refusal, refusal.error.to_owned()))?;
            let material = LeaseMaterial::Bearer {
                user: token.username.clone(),
                token: issued.token,
            };
            Ok((material, issued.expires_in))
        }
        Credential::None(none) => {
            let material = LeaseMaterial::None {
                user: none.username.clone(),
            };
            Ok((material, SECRET_LIFE))
        }
    }
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
