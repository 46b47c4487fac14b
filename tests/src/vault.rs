//! A strict double of a Vault with a `jwt` login and a database secrets engine, over real TLS and on a real PostgreSQL:
//! its users are roles of that server, made and dropped.
//!
//! It believes nothing of an assertion that the broker's own discovery and keys do not prove, each once; a token opens only
//! what it may, and as long as it lives; a revoked token takes its children and its leases along, as Vault's does. Answers
//! have the members that Vault's have. Whatever it is asked for besides is refused with Vault's 403.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};

use crate::postgres::Postgres;
use crate::provider::{verify, Provider, Request, Trust};
use crate::shop::{DATABASE, ROLE};

/// How long a login and its children live.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// The double. It ends with the process.
pub struct Vault {
    /// Where it is: its issuer URL, too.
    pub origin: String,
    /// Its certificate's authority.
    pub ca_pem: String,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Not kept alive: the double's thread outlives the test, and a server ends with its last owner.
    server: Weak<Postgres>,
    trust: Option<Trust>,
    used: HashSet<String>,
    tokens: BTreeMap<String, Token>,
    leases: BTreeMap<String, Lease>,
    made: u64,
    user_life: Duration,
    /// Answered instead of anything else.
    failing: Option<u16>,
    /// Why a request was refused, for the test's eyes.
    refused: Vec<String>,
}

struct Token {
    parent: Option<String>,
    ends: Instant,
}

struct Lease {
    role: String,
    token: String,
    /// Its max_ttl.
    last: Instant,
}

impl Vault {
    /// Starts one whose users live so long at most.
    pub fn start(server: &Arc<Postgres>, user_life: Duration) -> Result<Vault> {
        let state = Arc::new(Mutex::new(State {
            server: Arc::downgrade(server),
            trust: None,
            used: HashSet::new(),
            tokens: BTreeMap::new(),
            leases: BTreeMap::new(),
            made: 0,
            user_life,
            failing: None,
            refused: Vec::new(),
        }));
        let answering = Arc::clone(&state);
        let Provider { origin, ca_pem } = Provider::start(move |request| answer(&answering, request))?;
        Ok(Vault { origin, ca_pem, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Makes it believe the assertions of this issuer.
    pub fn trust(&self, issuer: &str, ca_pem: &str) {
        self.state().trust = Some(Trust {
            issuer: issuer.to_owned(),
            ca_pem: ca_pem.to_owned(),
        });
    }

    /// Answers everything with this status from now on, or as it should.
    pub fn fail(&self, status: Option<u16>) {
        self.state().failing = status;
    }

    /// Why it refused what it refused.
    pub fn refused(&self) -> Vec<String> {
        self.state().refused.clone()
    }

    /// Tokens that are good now.
    pub fn tokens(&self) -> usize {
        self.state().tokens.len()
    }

    /// The TokenIssuer `corp-vault` at it, as a document of a configuration.
    pub fn issuer(&self) -> String {
        issuer(&self.origin, &self.ca_pem)
    }
}

/// The TokenIssuer `corp-vault` of a Vault there, as a document of a configuration.
pub fn issuer(origin: &str, ca_pem: &str) -> String {
    let pem = serde_json::to_string(ca_pem).unwrap_or_default();
    format!(
        "\n---\napiVersion: sidegate.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {{name: corp-vault}}\nspec:\n  preset: Vault\n  \
         issuer: {origin}\n  values: {{mount: jwt, role: sidegate}}\n  allowedNamespaces: {{selector: {{}}}}\n  \
         caBundle: {{inline: {pem}}}\n"
    )
}

/// Users of a server that a Vault made for the role `support`, separated by spaces.
pub fn users(server: &Postgres) -> Result<String> {
    let sql = "SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolname LIKE 'v-support-%'";
    server.sql("postgres", sql)
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(state: &Mutex<State>, request: &Request) -> (u16, Option<Value>) {
    if let Some(status) = locked(state).failing {
        return (status, Some(json!({"errors": ["canary: no"]})));
    }
    // Not under the lock: verifying asks the broker, which may be asking us.
    if (request.method.as_str(), request.path.as_str()) == ("POST", "/v1/auth/jwt/login") {
        let trust = locked(state).trust.clone();
        let verified = trust.context("nobody is trusted").and_then(|trust| {
            ensure!(request.json()["role"] == "sidegate", "another role");
            let (jwt, origin) = (request.json()["jwt"].clone(), request.origin());
            let claims = verify(jwt.as_str().context("no jwt")?, &trust, &origin, 60)?;
            Ok(claims["jti"].as_str().context("no jti")?.to_owned())
        });
        let mut state = locked(state);
        let fresh = verified.and_then(|id| {
            ensure!(state.used.insert(id), "used before");
            Ok(())
        });
        return match fresh {
            Ok(()) => (200, Some(state.token(None, TOKEN_LIFE))),
            Err(why) => state.no(400, &format!("login: {why:#}")),
        };
    }
    locked(state).answer(request)
}

impl State {
    fn sql(&self, sql: &str) -> Result<()> {
        let server = self.server.upgrade().context("the server is gone")?;
        server.sql(DATABASE, sql)?;
        Ok(())
    }

    fn no(&mut self, status: u16, why: &str) -> (u16, Option<Value>) {
        self.refused.push(why.to_owned());
        (status, Some(json!({"errors": ["canary: permission denied"]})))
    }

    /// A token, as Vault tells of one.
    fn token(&mut self, parent: Option<String>, life: Duration) -> Value {
        self.made += 1;
        let token = format!("hvs.canary-{}-{}", self.made, uuid::Uuid::now_v7().simple());
        let ends = Instant::now() + life;
        self.tokens.insert(token.clone(), Token { parent, ends });
        auth(&token, life)
    }

    fn answer(&mut self, request: &Request) -> (u16, Option<Value>) {
        let token = request.header("x-vault-token").map(str::to_owned);
        let Some(token) = token.filter(|token| self.good(token)) else {
            return self.no(403, "no token, or not a good one");
        };
        let body = request.json();
        let child = self.tokens.get(&token).is_some_and(|token| token.parent.is_some());
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v1/auth/token/create") if !child => {
                let seconds = body["ttl"].as_str().and_then(|ttl| ttl.strip_suffix('s')?.parse().ok());
                let Some(seconds) = seconds else {
                    return self.no(400, "no ttl");
                };
                (200, Some(self.token(Some(token), Duration::from_secs(seconds))))
            }
            ("GET", "/v1/database/creds/support") if child => match self.make(&token) {
                Ok(creds) => (200, Some(creds)),
                Err(error) => self.no(500, &format!("{error:#}")),
            },
            ("POST", "/v1/auth/token/renew-self") => {
                let life = self.tokens.get_mut(&token).map(|token| {
                    token.ends = Instant::now() + TOKEN_LIFE;
                    TOKEN_LIFE
                });
                (200, Some(auth(&token, life.unwrap_or_default())))
            }
            ("POST", "/v1/sys/leases/renew") if child => {
                let id = body["lease_id"].as_str().unwrap_or_default().to_owned();
                let Some(lease) = self.leases.get(&id) else {
                    return self.no(400, "lease not found");
                };
                let left = lease.last.saturating_duration_since(Instant::now());
                let asked = Duration::from_secs(body["increment"].as_u64().unwrap_or_default());
                let granted = asked.min(left).as_secs();
                (
                    200,
                    Some(json!({"lease_id": id, "renewable": true, "lease_duration": granted})),
                )
            }
            ("POST", "/v1/sys/leases/revoke") if child => {
                let id = body["lease_id"].as_str().unwrap_or_default().to_owned();
                match self.drop_role(&id) {
                    Ok(()) => (204, None),
                    Err(error) => self.no(500, &format!("{error:#}")),
                }
            }
            ("POST", "/v1/auth/token/revoke-self") => match self.revoke(&token) {
                Ok(()) => (204, None),
                Err(error) => self.no(500, &format!("{error:#}")),
            },
            (method, path) => self.no(403, &format!("{method} {path} by this token")),
        }
    }

    /// Whether a token and all it descends from live.
    fn good(&self, token: &str) -> bool {
        self.tokens.get(token).is_some_and(|held| {
            held.ends > Instant::now() && held.parent.as_deref().is_none_or(|parent| self.good(parent))
        })
    }

    /// Makes a user: a role of the server, in the group that may.
    fn make(&mut self, token: &str) -> Result<Value> {
        self.made += 1;
        let (role, password) = (
            format!("v-support-{}", self.made),
            format!("canary-made-{}", uuid::Uuid::now_v7()),
        );
        let sql = format!("CREATE ROLE \"{role}\" LOGIN PASSWORD '{password}' IN ROLE {ROLE}");
        self.sql(&sql)?;
        let id = format!("database/creds/support/{}", uuid::Uuid::now_v7().simple());
        let lease = Lease {
            role: role.clone(),
            token: token.to_owned(),
            last: Instant::now() + self.user_life,
        };
        self.leases.insert(id.clone(), lease);
        Ok(json!({
            "request_id": uuid::Uuid::now_v7().to_string(), "lease_id": id, "renewable": true,
            "lease_duration": self.user_life.as_secs(), "data": {"username": role, "password": password},
            "wrap_info": null, "warnings": null, "auth": null, "mount_type": "database",
        }))
    }

    fn drop_role(&mut self, id: &str) -> Result<()> {
        let lease = self.leases.get(id).context("lease not found")?;
        // As Vault's own statements do.
        let sql = format!("DROP OWNED BY \"{0}\"; DROP ROLE IF EXISTS \"{0}\"", lease.role);
        self.sql(&sql)?;
        self.leases.remove(id);
        Ok(())
    }

    fn revoke(&mut self, token: &str) -> Result<()> {
        let of = |lease: &&String| self.leases[*lease].token == token;
        let leases: Vec<String> = self.leases.keys().filter(of).cloned().collect();
        leases.iter().try_for_each(|id| self.drop_role(id))?;
        self.tokens.remove(token);
        let orphans = self
            .tokens
            .iter()
            .filter(|(_, held)| held.parent.as_deref() == Some(token));
        let children: Vec<String> = orphans.map(|(child, _)| child.clone()).collect();
        children.iter().try_for_each(|child| self.revoke(child))
    }
}

fn auth(token: &str, life: Duration) -> Value {
    json!({
        "request_id": uuid::Uuid::now_v7().to_string(), "lease_id": "", "renewable": false, "lease_duration": 0,
        "data": null, "wrap_info": null, "warnings": null, "mount_type": "",
        "auth": {
            "client_token": token, "accessor": "accessor", "policies": ["default", "sidegate"],
            "token_policies": ["default", "sidegate"], "metadata": {}, "lease_duration": life.as_secs(),
            "renewable": true, "entity_id": "", "token_type": "service", "orphan": false, "mfa_requirement": null,
            "num_uses": 0,
        },
    })
}
