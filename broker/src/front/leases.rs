//! Leases: one credential for one target of the caller's own bundle, for a few minutes.
//!
//! Refuses targets outside the bundle, whatever a Lockdown freezes, and secrets that are missing or readable by
//! others; never falls back to an older or broader credential. The invariants: a Secret is read anew for every lease;
//! what was fetched for one configuration is not given out under another; what was made for a lease that is not given out
//! is ended where it was made.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, Request, State};
use axum::{Extension, Json};
use http::StatusCode;
use secrecy::ExposeSecret as _;
use sidegate_policies::api::target::{
    Address, AwsIamCredential, AwsService, Credential, SecretCredential, SshCertificateCredential, TokenCredential,
    VaultCredential,
};
use sidegate_policies::api::TokenIssuer;
use sidegate_policies::bundle::BundledTarget;
use sidegate_policies::check::OWN;
use sidegate_policies::presets::Class;
use sidegate_policies::record::Kind;
use sidegate_policies::wire::{Lease, LeaseMaterial, LeaseRequest};

use super::caller::Caller;
use super::lease_table::Held;
use super::token::{mint, policies};
use super::{json, Front, Refusal, MAX_BODY};
use crate::audit::{Event, More};
use crate::credentials::ssh::{Signed, Signing};
use crate::credentials::vault::{Drawing, Drawn, VaultLease, LIFE};
use crate::credentials::{aws, ssh, Exchanged, Failure, Wanted};
use crate::index::{Index, Offer};
use crate::issuer::{random_id, Workload};
use crate::lockdown::About;
use crate::secrets::SecretError;

/// Life of a leased Secret, and of a lease without one, seconds.
const SECRET_LIFE: u64 = 15 * 60;

/// `POST /v1/leases`.
pub async fn create(
    State(front): State<Arc<Front>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Lease>, Refusal> {
    let asked: LeaseRequest = json(request, MAX_BODY).await?;
    let tasks = front.tasks.clone();
    // What its Target refused is of no use to anybody.
    if let Some(refused) = &asked.refused {
        front.leases.end(refused, &caller.workload);
    }
    let since = Instant::now();
    let fetched = fetch(&front, &caller, &asked).await;
    let lease = tasks.blocking(move || {
        let client = caller.workload.client_id();
        let outcome = grant(&front, &caller.workload, &asked, fetched);
        let policy = policies(&front.index().offer(caller.subject()), &asked.target);
        let more = More {
            asked: asked.refused.as_deref().unwrap_or_default(),
            policy: &policy,
            jti: &caller.token_id,
            kid: &caller.kid,
            took: Some(since.elapsed()),
            ..More::of(&caller.workload)
        };
        let told = Event {
            subject: &client,
            pod_uid: &caller.workload.subject.pod_uid,
            object: &asked.target,
            more,
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
        let goes_on = matches!(lease.material, LeaseMaterial::Kept);
        // On record before it leaves.
        let given = format!("{} s", lease.expires_in);
        let granted = front.audit.record(Event {
            more: More {
                granted: &given,
                ..more
            },
            kind: Kind::Issued,
            event: if goes_on { "lease.renewed" } else { "lease.granted" },
            detail: &lease.id,
            ..told
        });
        if granted.is_err() {
            if !goes_on {
                front.leases.end(&lease.id, &caller.workload);
            }
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
    if !front.leases.end(&id, &caller.workload) {
        return Err(Refusal::not_found());
    }
    front.audit.note(Event {
        subject: &caller.workload.client_id(),
        pod_uid: &caller.subject().pod_uid,
        object: &id,
        detail: "handed back",
        more: More {
            jti: &caller.token_id,
            kid: &caller.kid,
            ..More::of(&caller.workload)
        },
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
    /// A token of another issuer, or keys, under this revision of the configuration.
    Token {
        outcome: Result<Arc<Exchanged>, Failure>,
        revision: u64,
    },
    /// A user made for this lease, under this revision of the configuration.
    Made {
        outcome: Result<Drawn, Failure>,
        revision: u64,
    },
    /// A certificate over a key of the caller's, under this revision of the configuration.
    Signed {
        outcome: Result<Signed, Failure>,
        revision: u64,
    },
    /// The lease of this id goes on, if it is still there and its source lets it.
    Renewed {
        id: String,
        upstream: Option<Arc<VaultLease>>,
        outcome: Result<(), Failure>,
    },
}

/// What is given out.
struct Given {
    material: LeaseMaterial,
    expires_in: u64,
    upstream: Option<Arc<VaultLease>>,
    /// The provider's token behind it.
    token: Option<Arc<Exchanged>>,
    /// Of the lease that goes on; absent: it is a new one.
    id: Option<String>,
}

impl Given {
    fn new(material: LeaseMaterial, expires_in: u64) -> Self {
        Given {
            material,
            expires_in,
            upstream: None,
            token: None,
            id: None,
        }
    }
}

/// A Target the caller may have a lease for now.
struct Grantable {
    index: Arc<Index>,
    offer: Arc<Offer>,
    target: String,
}

impl Grantable {
    fn check(front: &Front, who: &Workload, asked: &LeaseRequest) -> Result<Grantable, Refused> {
        let (index, target) = (front.index(), asked.target.as_str());
        let granted = Grantable {
            offer: index.offer(&who.subject),
            index,
            target: target.to_owned(),
        };
        let bundled = granted.bundled()?;
        // The Target has moved, and the caller, or this broker, has not heard of it: a credential for the one place would be
        // shown at the other (`a_lease_is_for_the_place_that_the_caller_knows`).
        let uid = bundled.target.metadata.uid.as_deref().unwrap_or_default();
        if asked.place.is_some() && asked.place != bundled.target.spec.place(uid).digest() {
            return Err((
                Refusal::unavailable(),
                "the caller knows the Target as another place".to_owned(),
            ));
        }
        let secret = bundled.target.secret_name();
        let about = About {
            subject: Some(&who.subject),
            target: Some(target),
            secret: secret.as_deref(),
            issuer: bundled.target.spec.credential.issuer(),
        };
        if let Some(lockdown) = front.lockdowns.now().frozen(about, front.clock.now_ms()) {
            return Err((Refusal::locked(), format!("frozen by lockdown `{lockdown}`")));
        }
        Ok(granted)
    }

    /// The TokenIssuer that has a part in the login.
    fn issuer(&self, bundled: &BundledTarget) -> Option<&TokenIssuer> {
        self.index.objects().issuer_of(&bundled.target).ok().flatten()
    }

    fn bundled(&self) -> Result<&BundledTarget, Refused> {
        let found = self.offer.target(&self.target);
        found.ok_or_else(|| (Refusal::invalid_target(), "not in the caller's bundle".to_owned()))
    }
}

/// Fetches what a Target logs in with, if that takes time and the caller may have it.
async fn fetch(front: &Arc<Front>, caller: &Caller, asked: &LeaseRequest) -> Fetched {
    let (checked, who, about) = (Arc::clone(front), caller.workload.clone(), asked.clone());
    let checked = front
        .tasks
        .blocking(move || Grantable::check(&checked, &who, &about))
        .await;
    let Some(Ok(granted)) = checked else {
        return Fetched::Nothing;
    };
    let Ok(bundled) = granted.bundled() else {
        return Fetched::Nothing;
    };
    match &bundled.target.spec.credential {
        Credential::Secret(secret) => Fetched::Secret(read_secret(front, bundled, secret).await),
        Credential::Token(token) => match granted.issuer(bundled) {
            Some(issuer) => exchange(front, caller, asked, &granted, (token, issuer)).await,
            None => Fetched::Nothing,
        },
        Credential::AwsIam(aws) => match granted.issuer(bundled) {
            Some(issuer) => {
                let (token, issuer) = aws::wanted(aws, issuer);
                exchange(front, caller, asked, &granted, (&token, &issuer)).await
            }
            None => Fetched::Nothing,
        },
        Credential::Vault(vault) => make(front, caller, asked, &granted, bundled, vault).await,
        Credential::SshCertificate(ssh) => match granted.issuer(bundled) {
            Some(issuer) => sign(front, caller, asked, &granted, (ssh, issuer)).await,
            None => Fetched::Nothing,
        },
        Credential::None(_) => Fetched::Nothing,
    }
}

/// Exchanges a token for a lease.
async fn exchange(
    front: &Front,
    caller: &Caller,
    asked: &LeaseRequest,
    granted: &Grantable,
    (token, issuer): (&TokenCredential, &TokenIssuer),
) -> Fetched {
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

/// Has the caller's key certified, for connections from its pod.
async fn sign(
    front: &Front,
    caller: &Caller,
    asked: &LeaseRequest,
    granted: &Grantable,
    (ssh, issuer): (&SshCertificateCredential, &TokenIssuer),
) -> Fetched {
    // Of this very pod, not of another that has its name by now.
    let addresses = match front.attestor.still(&caller.workload).await.map(|pod| pod.ips) {
        Ok(Some(ips)) if !ips.is_empty() => ips,
        // One machine: its pod has no addresses of its own.
        Ok(None) => Vec::new(),
        _ => {
            return Fetched::Signed {
                outcome: Err(ssh::nowhere()),
                revision: granted.index.revision(),
            }
        }
    };
    let signing = Signing {
        who: caller.workload.clone(),
        thumbprint: caller.thumbprint.clone(),
        bundle: granted.offer.version.clone(),
        ssh: ssh.clone(),
        public_key: asked.public_key.clone().unwrap_or_default(),
        addresses,
        issuer: issuer.clone(),
        anew: asked.refused.is_some(),
    };
    Fetched::Signed {
        outcome: front.exchanges.sign(&signing).await,
        revision: granted.index.revision(),
    }
}

/// Has a user made for a lease, or the one that was made go on.
async fn make(
    front: &Front,
    caller: &Caller,
    asked: &LeaseRequest,
    granted: &Grantable,
    bundled: &BundledTarget,
    vault: &VaultCredential,
) -> Fetched {
    if let Some(id) = &asked.renew {
        let upstream = front.leases.upstream(id, &caller.workload, bundled);
        let outcome = match &upstream {
            Some(upstream) => upstream.renew().await,
            None => Ok(()),
        };
        return Fetched::Renewed {
            id: id.clone(),
            upstream,
            outcome,
        };
    }
    let Some(issuer) = granted.issuer(bundled) else {
        return Fetched::Nothing;
    };
    let drawing = Drawing {
        who: caller.workload.clone(),
        thumbprint: caller.thumbprint.clone(),
        bundle: granted.offer.version.clone(),
        target: granted.target.clone(),
        vault: vault.clone(),
        issuer: issuer.clone(),
        anew: asked.refused.is_some(),
    };
    Fetched::Made {
        outcome: front.exchanges.draw(drawing).await,
        revision: granted.index.revision(),
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
fn grant(front: &Front, who: &Workload, asked: &LeaseRequest, fetched: Fetched) -> Result<Lease, Refused> {
    let granted = Grantable::check(front, who, asked)?;
    let given = material(front, who, &granted, fetched)?;
    let now_ms = front.clock.now_ms();
    let life_ms = i64::try_from(given.expires_in).unwrap_or(0).saturating_mul(1000);
    let until_ms = now_ms.saturating_add(life_ms);
    let lease = |id| Lease {
        id,
        material: given.material,
        expires_in: given.expires_in,
    };
    if let Some(id) = given.id {
        if !front.leases.prolong(&id, until_ms) {
            return Err(over());
        }
        return Ok(lease(id));
    }
    let id = random_id().map_err(|error| (Refusal::unavailable(), error.to_string()))?;
    let held = Held {
        who: Arc::new(who.clone()),
        target: asked.target.clone(),
        credential: granted.bundled()?.target.spec.credential.clone(),
        until_ms,
        upstream: given.upstream,
        token: given.token,
    };
    if !front.leases.add(&id, held, now_ms) {
        return Err((Refusal::unavailable(), "too many leases".to_owned()));
    }
    Ok(lease(id))
}

/// A lease that was to go on is not there, or has come to its end: it serves until then, and another one follows.
fn over() -> Refused {
    (Refusal::unavailable(), "the lease cannot go on".to_owned())
}

/// Seconds that something made elsewhere is leased for now: no longer than it lives, or the caller's own token.
fn life(front: &Front, who: &Workload, upstream: &VaultLease) -> Option<u64> {
    let now_ms = front.clock.now_ms();
    let most = now_ms.saturating_add(LIFE.saturating_mul(1000));
    let until = upstream.until_ms().min(most).min(who.ends.saturating_mul(1000));
    let seconds = until.saturating_sub(now_ms).div_euclid(1000);
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

fn material(front: &Front, who: &Workload, granted: &Grantable, fetched: Fetched) -> Result<Given, Refused> {
    match (&granted.bundled()?.target.spec.credential, fetched) {
        (Credential::Secret(_), Fetched::Secret(read)) => Ok(Given::new(read.map_err(secret_refused)?, SECRET_LIFE)),
        (Credential::Token(token), Fetched::Token { outcome, revision }) if revision == granted.index.revision() => {
            let held = outcome.map_err(exchange_refused)?;
            let life = held.life(who.ends, front.clock.now_ms());
            let life = life.ok_or_else(|| (Refusal::unavailable(), "the token is over already".to_owned()))?;
            let material = LeaseMaterial::Bearer {
                user: token.username.clone(),
                token: held.expose().to_owned(),
            };
            Ok(Given {
                token: Some(held),
                ..Given::new(material, life)
            })
        }
        (Credential::Token(token), Fetched::Nothing) if token.issuer == OWN => {
            let policy = policies(&granted.offer, &granted.target);
            let more = More {
                policy: &policy,
                ..More::of(who)
            };
            let minted = mint(front, who, &granted.target, token, None, more);
            let (issued, _) = minted.map_err(|refusal| (refusal, refusal.error.to_owned()))?;
            let material = LeaseMaterial::Bearer {
                user: token.username.clone(),
                token: issued.token,
            };
            Ok(Given::new(material, issued.expires_in))
        }
        (Credential::None(none), Fetched::Nothing) => {
            let material = LeaseMaterial::None {
                user: none.username.clone(),
            };
            Ok(Given::new(material, SECRET_LIFE))
        }
        (Credential::AwsIam(aws), Fetched::Token { outcome, revision }) if revision == granted.index.revision() => {
            let address = &granted.bundled()?.target.spec.address;
            by_keys(front, who, aws, address, outcome.map_err(exchange_refused)?)
        }
        (Credential::SshCertificate(_), Fetched::Signed { outcome, revision })
            if revision == granted.index.revision() =>
        {
            by_certificate(front, who, outcome.map_err(exchange_refused)?)
        }
        (Credential::Vault(_), Fetched::Made { outcome, revision }) if revision == granted.index.revision() => {
            let drawn = outcome.map_err(exchange_refused)?;
            let life = life(front, who, &drawn.lease).ok_or_else(over)?;
            let material = LeaseMaterial::Password {
                user: drawn.user,
                password: drawn.password.expose_secret().to_owned(),
            };
            Ok(Given {
                upstream: Some(drawn.lease),
                ..Given::new(material, life)
            })
        }
        (Credential::Vault(_), Fetched::Renewed { id, upstream, outcome }) => {
            let upstream = upstream.ok_or_else(over)?;
            outcome.map_err(exchange_refused)?;
            let life = life(front, who, &upstream).ok_or_else(over)?;
            Ok(Given {
                id: Some(id),
                ..Given::new(LeaseMaterial::Kept, life)
            })
        }
        // What was fetched is of another Target or configuration, as this one was a moment ago.
        _ => Err((Refusal::unavailable(), "the configuration changed meanwhile".to_owned())),
    }
}

/// What keys of a role open: one user of one database, or whatever its requests are signed for.
fn by_keys(
    front: &Front,
    who: &Workload,
    aws: &AwsIamCredential,
    address: &Address,
    keys: Arc<Exchanged>,
) -> Result<Given, Refused> {
    let life = keys.life(who.ends, front.clock.now_ms());
    let life = life.ok_or_else(|| (Refusal::unavailable(), "the keys are over already".to_owned()))?;
    let (material, life) = match aws.service {
        AwsService::SigV4 => (aws::keys(aws, &keys).map_err(exchange_refused)?, life),
        AwsService::Rds => {
            let user = aws.username.clone().unwrap_or_default();
            let password = aws::password(aws, &user, address, &keys, front.clock.now()).map_err(exchange_refused)?;
            // Shown as a token is: within verified TLS, whatever the Target says of passwords.
            let material = LeaseMaterial::Bearer {
                user: Some(user),
                token: password.to_string(),
            };
            (material, life.min(u64::try_from(aws::LIFE).unwrap_or(0)))
        }
    };
    Ok(Given {
        token: Some(keys),
        ..Given::new(material, life)
    })
}

fn by_certificate(front: &Front, who: &Workload, signed: Signed) -> Result<Given, Refused> {
    let ends = u64::try_from(who.ends).unwrap_or(0);
    let now = u64::try_from(front.clock.now()).unwrap_or(u64::MAX);
    let life = signed.until.min(ends).checked_sub(now).filter(|life| *life > 0);
    let life = life.ok_or_else(|| (Refusal::unavailable(), "the certificate is over already".to_owned()))?;
    let certificate = signed.certificate;
    Ok(Given::new(LeaseMaterial::SshCertificate { certificate }, life))
}

fn exchange_refused(failure: Failure) -> Refused {
    let refusal = match failure.class {
        Class::Final | Class::Broken | Class::Reassert => Refusal::credential_refused(),
        Class::Retry | Class::Propagation => Refusal::unavailable(),
    };
    (refusal, failure.to_string())
}

fn secret_refused(error: SecretError) -> Refused {
    let refusal = match error.is_passing() {
        true => Refusal::unavailable(),
        false => Refusal::credential_refused(),
    };
    (refusal, error.to_string())
}

fn namespace(bundled: &BundledTarget) -> &str {
    bundled.target.metadata.namespace.as_deref().unwrap_or_default()
}
