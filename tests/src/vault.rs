//! A strict double of a Vault with a `jwt` login and a database secrets engine, over real TLS and on a real PostgreSQL:
//! its users are roles of that server, made and dropped.
//!
//! It believes nothing of an assertion that the broker's own discovery and keys do not prove, each once; a token opens only
//! what it may, and as long as it lives; a revoked token takes its children and its leases along, as Vault's does. Answers
//! have the members that Vault's have. Whatever it is asked for besides is refused with Vault's 403.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{bail, ensure, Context, Result};
use aws_lc_rs::signature::{UnparsedPublicKey, ECDSA_P256_SHA256_FIXED};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{json, Value};

use crate::authority::{Authority, Leaf};
use crate::postgres::Postgres;
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

/// Who signs assertions, and how its certificate is verified.
#[derive(Clone)]
struct Trust {
    issuer: String,
    ca_pem: String,
}

struct State {
    origin: String,
    server: Arc<Postgres>,
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

struct Request {
    method: String,
    path: String,
    token: Option<String>,
    body: Value,
}

impl Vault {
    /// Starts one whose users live so long at most.
    pub fn start(server: Arc<Postgres>, user_life: Duration) -> Result<Vault> {
        let authority = Authority::new()?;
        let Leaf { certificate, key } = authority.leaf(&["127.0.0.1"])?;
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let origin = format!("https://{}", listener.local_addr()?);
        let state = Arc::new(Mutex::new(State {
            origin: origin.clone(),
            server,
            trust: None,
            used: HashSet::new(),
            tokens: BTreeMap::new(),
            leases: BTreeMap::new(),
            made: 0,
            user_life,
            failing: None,
            refused: Vec::new(),
        }));
        let (tls, serving) = (Arc::new(tls), Arc::clone(&state));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, state) = (Arc::clone(&tls), Arc::clone(&serving));
                // A client that breaks off is its own affair.
                std::thread::spawn(move || drop(serve(stream, tls, &state)));
            }
        });
        Ok(Vault {
            origin,
            ca_pem: authority.pem().to_owned(),
            state,
        })
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
        let pem = serde_json::to_string(&self.ca_pem).unwrap_or_default();
        format!(
            "\n---\napiVersion: sidegate.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {{name: corp-vault}}\nspec:\n  preset: Vault\n  \
             issuer: {}\n  values: {{mount: jwt, role: sidegate}}\n  allowedNamespaces: {{selector: {{}}}}\n  \
             caBundle: {{inline: {pem}}}\n",
            self.origin
        )
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(stream: TcpStream, tls: Arc<ServerConfig>, state: &Mutex<State>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = StreamOwned::new(ServerConnection::new(tls)?, stream);
    let request = read(&mut stream)?;
    let (status, body) = answer(state, &request);
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(())
}

fn read(stream: &mut impl Read) -> Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().context("a method")?, words.next().context("a path")?);
    let (mut token, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "x-vault-token" => token = Some(value.to_owned()),
            "content-length" => length = value.parse()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Request {
        method,
        path,
        token,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    })
}

fn answer(state: &Mutex<State>, request: &Request) -> (u16, Option<Value>) {
    if let Some(status) = locked(state).failing {
        return (status, Some(json!({"errors": ["canary: no"]})));
    }
    // Not under the lock: verifying asks the broker, which may be asking us.
    if (request.method.as_str(), request.path.as_str()) == ("POST", "/v1/auth/jwt/login") {
        let (trust, origin) = {
            let state = locked(state);
            (state.trust.clone(), state.origin.clone())
        };
        let verified = trust
            .context("nobody is trusted")
            .and_then(|trust| verify(request, &trust, &origin));
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
        let Some(token) = request.token.clone().filter(|token| self.good(token)) else {
            return self.no(403, "no token, or not a good one");
        };
        let child = self.tokens.get(&token).is_some_and(|token| token.parent.is_some());
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v1/auth/token/create") if !child => {
                let seconds = request.body["ttl"]
                    .as_str()
                    .and_then(|ttl| ttl.strip_suffix('s')?.parse().ok());
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
                let id = request.body["lease_id"].as_str().unwrap_or_default().to_owned();
                let Some(lease) = self.leases.get(&id) else {
                    return self.no(400, "lease not found");
                };
                let left = lease.last.saturating_duration_since(Instant::now());
                let asked = Duration::from_secs(request.body["increment"].as_u64().unwrap_or_default());
                let granted = asked.min(left).as_secs();
                (
                    200,
                    Some(json!({"lease_id": id, "renewable": true, "lease_duration": granted})),
                )
            }
            ("POST", "/v1/sys/leases/revoke") if child => {
                let id = request.body["lease_id"].as_str().unwrap_or_default().to_owned();
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
        self.server.sql(DATABASE, &sql)?;
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
        self.server.sql(DATABASE, &sql)?;
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

/// The id of an assertion that proves itself for us by its issuer's own discovery and keys.
fn verify(request: &Request, trust: &Trust, audience: &str) -> Result<String> {
    ensure!(request.body["role"] == "sidegate", "another role");
    let jwt = request.body["jwt"].as_str().context("no jwt")?;
    let parts: Vec<&str> = jwt.split('.').collect();
    let [head, body, signature] = parts.as_slice() else {
        bail!("not three segments")
    };
    let part = |text: &str| -> Result<Value> { Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text)?)?) };
    let (head, claims) = (part(head)?, part(body)?);
    ensure!(head["alg"] == "ES256", "alg {}", head["alg"]);
    let discovery = get(trust, "/.well-known/openid-configuration")?;
    ensure!(
        discovery["issuer"] == trust.issuer.as_str(),
        "another issuer's discovery"
    );
    let keys = discovery["jwks_uri"]
        .as_str()
        .and_then(|uri| uri.strip_prefix(&trust.issuer));
    let jwks = get(trust, keys.context("keys elsewhere")?)?;
    let key = jwks["keys"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|key| key["kid"] == head["kid"]);
    let key = key.context("no such key")?;
    let mut point = vec![4];
    for coordinate in ["x", "y"] {
        point.extend(URL_SAFE_NO_PAD.decode(key[coordinate].as_str().context("a coordinate")?)?);
    }
    let (message, _) = jwt.rsplit_once('.').context("a signature")?;
    let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    let verified = verified.verify(message.as_bytes(), &URL_SAFE_NO_PAD.decode(signature)?);
    ensure!(verified.is_ok(), "bad signature");
    ensure!(claims["iss"] == trust.issuer.as_str(), "iss {}", claims["iss"]);
    ensure!(claims["aud"] == audience, "aud {}", claims["aud"]);
    ensure!(
        claims["sub"].as_str().is_some_and(|sub| sub.starts_with("sg:")),
        "sub {}",
        claims["sub"]
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!(
        claims["exp"].as_u64().is_some_and(|exp| exp > now && exp <= now + 65),
        "exp {}",
        claims["exp"]
    );
    Ok(claims["jti"].as_str().context("no jti")?.to_owned())
}

/// One GET at the issuer, over TLS verified by its authority.
fn get(trust: &Trust, path: &str) -> Result<Value> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trust.ca_pem.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let host = trust.issuer.strip_prefix("https://").context("https")?;
    let stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let name = host.split(':').next().context("a host")?.to_owned().try_into()?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::new(tls), name)?, stream);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    )?;
    let mut reader = BufReader::new(stream);
    let mut length = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = Some(value.parse()?),
            Some(_) => {}
            None if line.trim_end().is_empty() => break,
            None => ensure!(line.starts_with("HTTP/1.1 200"), "{line}"),
        }
    }
    let mut body = vec![0; length.context("a length")?];
    reader.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
