//! Users that a Vault or OpenBao makes for one lease: a login by our assertion, a child token of it, a user under that.
//!
//! Refuses answers that lack what a Vault's have, and keeps none of their words. Invariants: what was made is ended where
//! it was made as soon as the last holder of a [`VaultLease`] lets go of it, also in mid-request; what cannot be ended so
//! ends with the child token, which lives no longer than [`LIFE`] at a time; a password is handed on and kept nowhere.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use http::Method;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::{json, Value};
use sidegate_policies::api::target::{TokenCredential, VaultCredential};
use sidegate_policies::api::TokenIssuer;
use sidegate_policies::presets::{url, Class, Header};
use sidegate_policies::record::Kind;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::cache::Key;
use super::exchange::trusted;
use super::reply::Answer;
use super::request::Request;
use super::{provider_of, Exchanged, Exchanges, Failure, Provider, Wanted};
use crate::audit::Event;
use crate::issuer::Workload;

/// Seconds a child token, and a lease under it, are asked to live: at the beginning and whenever they are renewed.
pub const LIFE: i64 = 15 * 60;
/// All requests for one lease, or of one renewal.
const DEADLINE: Duration = Duration::from_secs(9);
/// Between attempts to end what was made: first and longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// So many are ended at a time: a Lockdown of everything must not become a flood.
static ENDING: Semaphore = Semaphore::const_new(16);
/// The longest name or password of a user.
const MAX_TEXT: usize = 1024;

/// What is wanted of a Vault, owned: it goes on when the caller is gone.
pub struct Drawing {
    /// For whom.
    pub who: Workload,
    /// Thumbprint of the caller's key.
    pub thumbprint: String,
    /// Version of the caller's bundle.
    pub bundle: String,
    /// `namespace/name` of the Target.
    pub target: String,
    /// What the Target says.
    pub vault: VaultCredential,
    /// Whose login opens the Vault.
    pub issuer: TokenIssuer,
    /// The last user was refused by the Target: log in anew.
    pub anew: bool,
}

/// A user, fresh. No Debug: it is a secret.
pub struct Drawn {
    /// What keeps it.
    pub lease: Arc<VaultLease>,
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: SecretString,
}

/// One user at a Vault, as long as anybody holds this: the last one to let go of it has it removed.
pub struct VaultLease(Arc<Made>);

/// What was made, with all it takes to end it.
struct Made {
    exchanges: Arc<Exchanges>,
    server: Server,
    login: Arc<Exchanged>,
    child: SecretString,
    /// The Vault's own id of the lease; none yet: there is the child token alone.
    lease: OnceLock<(String, bool)>,
    until: Mutex<Until>,
    client: String,
    pod_uid: String,
    target: String,
}

/// Where the Vault is.
pub(super) struct Server {
    origin: String,
    ca_pem: Option<String>,
    name: String,
    provider: Key,
}

/// When each thing that a lease hangs on ends, milliseconds since 1970.
#[derive(Clone, Copy)]
struct Until {
    login: i64,
    child: i64,
    lease: i64,
}

impl Server {
    pub(super) fn of(issuer: &TokenIssuer) -> Result<Server, Failure> {
        let origin = url::read(&issuer.spec.issuer)
            .map_err(|_| broken("its issuer is no URL"))?
            .origin;
        let (_, provider) = provider_of(issuer)?;
        Ok(Server {
            origin: origin.to_owned(),
            ca_pem: trusted(&issuer.spec)?.map(str::to_owned),
            name: issuer.metadata.name.clone(),
            provider,
        })
    }
}

impl Until {
    fn first(self) -> i64 {
        self.login.min(self.child).min(self.lease)
    }
}

/// `auth` of a login, of a new token and of a renewed one.
#[derive(Deserialize)]
struct Auth {
    client_token: String,
    lease_duration: i64,
}

#[derive(Deserialize)]
struct Authenticated {
    auth: Auth,
}

#[derive(Deserialize)]
struct Renewed {
    lease_duration: i64,
}

#[derive(Deserialize)]
struct Creds {
    lease_id: String,
    lease_duration: i64,
    renewable: bool,
    data: User,
}

#[derive(Deserialize)]
struct User {
    username: String,
    password: String,
}

impl Exchanges {
    /// Has a user made. Whoever stops waiting leaves nothing behind.
    pub async fn draw(self: &Arc<Self>, drawing: Drawing) -> Result<Drawn, Failure> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let (this, stop) = (Arc::clone(self), self.tasks.stopping());
        self.tasks.spawn("vault", async move {
            let drawn = tokio::select! {
                () = stop.cancelled() => return,
                drawn = tokio::time::timeout(DEADLINE, this.drawn(&drawing)) => drawn,
            };
            // What nobody waits for any more is dropped, and so ended.
            let _ = tell.send(drawn.unwrap_or_else(|_| Err(late())));
        });
        told.await.unwrap_or_else(|_| Err(late()))
    }

    async fn drawn(self: &Arc<Self>, drawing: &Drawing) -> Result<Drawn, Failure> {
        match self.made(drawing, drawing.anew).await {
            // A login that was kept may have been revoked there meanwhile: a new one, once.
            Err(failure) if failure.class == Class::Final && !drawing.anew => self.made(drawing, true).await,
            made => made,
        }
    }

    async fn made(self: &Arc<Self>, drawing: &Drawing, anew: bool) -> Result<Drawn, Failure> {
        let vault = &drawing.vault;
        let login = self.login(drawing, anew).await?;
        let server = Server::of(&drawing.issuer)?;
        let from_ms = self.clock.now_ms();
        let wanted = json!({
            "ttl": format!("{LIFE}s"), "renewable": true, "display_name": "sidegate",
            "meta": {"pod": drawing.who.subject.pod, "pod_uid": drawing.who.subject.pod_uid, "target": drawing.target},
        });
        let token = &login.token;
        let child: Authenticated = self.read(&server, token, "auth/token/create", wanted).await?;
        let child_ms = ends(from_ms, child.auth.lease_duration)?;
        let made = Made {
            until: Mutex::new(Until {
                login: login.until_ms,
                child: child_ms,
                lease: child_ms,
            }),
            exchanges: Arc::clone(self),
            server,
            login,
            child: shown(child.auth.client_token)?,
            lease: OnceLock::new(),
            client: drawing.who.client_id(),
            pod_uid: drawing.who.subject.pod_uid.clone(),
            target: drawing.target.clone(),
        };
        // From here on a failure ends the child token, and with it whatever the Vault made under it.
        let made = VaultLease(Arc::new(made));
        let path = format!("{}/creds/{}", encoded(&vault.mount), url::encoded(&vault.role));
        let from_ms = self.clock.now_ms();
        let answer = self
            .ask(&made.0.server, &made.0.child, Method::GET, &path, None)
            .await?;
        let creds: Creds = parsed(&answer)?;
        let lease_ms = ends(from_ms, creds.lease_duration)?;
        if creds.lease_id.is_empty() || !fit(&creds.data.username) || !fit(&creds.data.password) {
            return Err(broken("no user, or one that nobody can log in as"));
        }
        let _ = made.0.lease.set((creds.lease_id, creds.renewable));
        made.0.until(|until| until.lease = lease_ms);
        Ok(Drawn {
            lease: Arc::new(made),
            user: creds.data.username,
            password: SecretString::from(creds.data.password),
        })
    }

    async fn login(self: &Arc<Self>, drawing: &Drawing, anew: bool) -> Result<Arc<Exchanged>, Failure> {
        let vault = &drawing.vault;
        // A login is shared by the leases of one Target and pod; its audience is a name here, and is not sent.
        let token = TokenCredential {
            issuer: vault.issuer.clone(),
            audience: format!("{}/creds/{}", vault.mount, vault.role),
            scopes: Vec::new(),
            username: None,
        };
        self.token(Wanted {
            who: &drawing.who,
            thumbprint: &drawing.thumbprint,
            bundle: &drawing.bundle,
            token: &token,
            issuer: &drawing.issuer,
            anew,
        })
        .await
    }

    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        server: &Server,
        token: &SecretString,
        path: &str,
        body: Value,
    ) -> Result<T, Failure> {
        parsed(&self.ask(server, token, Method::POST, path, Some(body)).await?)
    }

    /// One request, unless the Vault is left alone for now.
    async fn ask(
        &self,
        server: &Server,
        token: &SecretString,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, Failure> {
        let provider = Provider {
            name: &server.name,
            key: &server.provider,
        };
        self.admitted(provider)?;
        let request = Request {
            method,
            secret: Some((Header::VaultToken.as_str(), token.clone())),
            url: format!("{}/v1/{path}", server.origin),
            content_type: "application/json",
            body: Zeroizing::new(body.map(|body| body.to_string()).unwrap_or_default()),
        };
        let answer = self.outbound.send(&request, server.ca_pem.as_deref()).await;
        let judged = answer.and_then(judged);
        self.told(provider, &judged);
        judged
    }
}

impl VaultLease {
    /// When it ends unless it is renewed, milliseconds since 1970.
    pub fn until_ms(&self) -> i64 {
        self.0.until(|until| until.first())
    }

    /// Lets it go on, as far as the Vault lets it; [`VaultLease::until_ms`] says how far.
    pub async fn renew(&self) -> Result<(), Failure> {
        let renewed = tokio::time::timeout(DEADLINE, self.0.renew()).await;
        renewed.unwrap_or_else(|_| Err(late()))
    }
}

impl Drop for VaultLease {
    fn drop(&mut self) {
        let made = Arc::clone(&self.0);
        // While the broker stops nothing is ended: agents go on, and the child token ends by itself.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.0.exchanges.tasks.spawn("vault end", made.end());
        }
    }
}

impl Made {
    fn until<T>(&self, change: impl FnOnce(&mut Until) -> T) -> T {
        change(&mut self.until.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    async fn renew(&self) -> Result<(), Failure> {
        let (exchanges, server) = (&self.exchanges, &self.server);
        let mut from_ms = exchanges.clock.now_ms();
        // The child token dies with the login it is a child of.
        if self.until(|until| until.login) < from_ms.saturating_add(LIFE.saturating_mul(2000)) {
            let login: Result<Authenticated, Failure> = exchanges
                .read(server, &self.login.token, "auth/token/renew-self", json!({}))
                .await;
            match login {
                Ok(login) => {
                    let ends = ends(from_ms, login.auth.lease_duration)?;
                    self.until(|until| until.login = ends);
                }
                // One that cannot be renewed ends when it ends.
                Err(failure) if failure.class == Class::Final => {}
                Err(failure) => return Err(failure),
            }
        }
        from_ms = exchanges.clock.now_ms();
        let wanted = json!({"increment": format!("{LIFE}s")});
        let child: Authenticated = exchanges
            .read(server, &self.child, "auth/token/renew-self", wanted)
            .await?;
        let child_ms = ends(from_ms, child.auth.lease_duration)?;
        self.until(|until| until.child = child_ms);
        if let Some((id, true)) = self.lease.get() {
            from_ms = exchanges.clock.now_ms();
            let wanted = json!({"lease_id": id, "increment": LIFE});
            let lease: Renewed = exchanges.read(server, &self.child, "sys/leases/renew", wanted).await?;
            // At its max_ttl a lease has nothing left: no mistake, but its end.
            let left = lease.lease_duration.max(0).saturating_mul(1000);
            self.until(|until| until.lease = from_ms.saturating_add(left));
        }
        Ok(())
    }

    /// Ends what was made, as often as it takes, until it has ended by itself.
    async fn end(self: Arc<Self>) {
        let stop = self.exchanges.tasks.stopping();
        let mut pause = PAUSES.0;
        loop {
            let ended = match ENDING.acquire().await {
                Ok(_permit) => self.ended().await,
                Err(_) => return,
            };
            let over = self.exchanges.clock.now_ms() >= self.until(|until| until.child);
            match ended {
                Ok(detail) => return self.note("credential.ended", detail),
                Err(failure) if over || failure.class == Class::Final => {
                    return self.note("credential.left", &format!("it ends with its token; {failure}"));
                }
                Err(_) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = pause.saturating_mul(2).min(PAUSES.1);
        }
    }

    async fn ended(&self) -> Result<&'static str, Failure> {
        let ask = |path, body| {
            self.exchanges
                .ask(&self.server, &self.child, Method::POST, path, Some(body))
        };
        let removed = match self.lease.get() {
            None => false,
            Some((id, _)) => match ask("sys/leases/revoke", json!({"lease_id": id, "sync": true})).await {
                Ok(_) => true,
                // Not for us to revoke: the token takes it along, in the Vault's own time.
                Err(failure) if failure.class == Class::Final => false,
                Err(failure) => return Err(failure),
            },
        };
        match (ask("auth/token/revoke-self", json!({})).await, removed) {
            (Err(failure), false) => Err(failure),
            (Err(failure), true) if failure.class != Class::Final => Err(failure),
            (_, true) => Ok("the user is removed"),
            (Ok(_), false) => Ok("the token is revoked, and the Vault removes what was made under it"),
        }
    }

    fn note(&self, event: &'static str, detail: &str) {
        self.exchanges.audit.note(Event {
            subject: &self.client,
            pod_uid: &self.pod_uid,
            object: &self.target,
            detail,
            ..Event::new(Kind::Issued, event)
        });
    }
}

pub(super) fn broken(why: &str) -> Failure {
    Failure::new(Class::Broken, why)
}

fn late() -> Failure {
    Failure::new(Class::Retry, "the Vault took too long")
}

/// The end of something that lives for so many seconds from when it was asked for.
fn ends(from_ms: i64, seconds: i64) -> Result<i64, Failure> {
    if seconds <= 0 {
        return Err(broken("a life that is none"));
    }
    Ok(from_ms.saturating_add(seconds.saturating_mul(1000)))
}

/// A token that can stand in a header.
fn shown(token: String) -> Result<SecretString, Failure> {
    if fit(&token) && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(SecretString::from(token));
    }
    Err(broken("no token, or one that cannot be shown"))
}

/// A name or password that a login can carry.
fn fit(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control)
}

/// A path, segment by segment.
pub(super) fn encoded(path: &str) -> String {
    path.split('/').map(url::encoded).collect::<Vec<_>>().join("/")
}

/// What a status of a Vault means. Its words are not looked at.
fn judged(answer: Answer) -> Result<Answer, Failure> {
    let status = answer.status;
    let class = match status {
        200 | 204 => return Ok(answer),
        // Sealed, standing by, too busy, or not there yet.
        408 | 412 | 425 | 429 | 472 | 473 | 500.. => Class::Retry,
        400..=499 => Class::Final,
        _ => Class::Broken,
    };
    Err(Failure {
        class,
        why: format!("status {status}"),
        retry_after: answer.retry_after,
    })
}

fn parsed<T: DeserializeOwned>(answer: &Answer) -> Result<T, Failure> {
    serde_json::from_slice(&answer.body).map_err(|_| broken("a good status, but not the answer of a Vault"))
}
