//! Nothing valid fails while brokers restart one after another and while keys rotate: exchanges and leases by bare HTTP,
//! each on a connection of its own that goes to whichever broker has its turn, and statements through a sidecar.
//!
//! Two things are no failure, and are counted: a connection that closes between two requests, as HTTP lets a server do,
//! is dialled anew; and a broker that has not seen a client yet asks for its nonce.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_broker::clock::{Clock, SystemClock};
use sidegate_broker::config::{Limits, Rate};
use sidegate_broker::jwt::{sha256_base64url, SigningKey};
use sidegate_broker::rings::{KeyInfo, RingName};
use sidegate_broker::rotation;
use sidegate_policies::record::verify::Verdict;
use sidegate_tests::cluster::Programs;
use sidegate_tests::http::connector;
use sidegate_tests::shop::DATABASE;
use sidegate_tests::wire::{query, shape, Wire};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::TlsConnector;
use uuid::Uuid;

use crate::applied::{Shop, NAME};
use crate::moved::verified;
use crate::replicas::{ports, Replicas};
use crate::site::{pod, until, Agent, Site};

const HOUR_MS: i64 = 3_600_000;
/// Rings are made so long before anything else happens, so that a token of the API server outlives their keys.
const BEFORE_MS: i64 = HOUR_MS;

/// One answer.
struct Answer {
    status: u16,
    nonce: Option<String>,
    body: Value,
}

/// A caller with a key of its own, at whichever broker has its turn.
pub struct Caller {
    port: u16,
    base: String,
    clock: Arc<dyn Clock>,
    connector: TlsConnector,
    token: String,
    key: SigningKey,
    stream: Option<TlsStream<TcpStream>>,
    /// Connections that were closed between two requests.
    closed: u64,
}

impl Caller {
    /// One of this site's, with this token.
    pub fn of(site: &Site, port: u16, clock: Arc<dyn Clock>, token: String) -> Result<Caller> {
        Ok(Caller {
            port,
            base: site.broker.front_url.clone(),
            clock,
            connector: connector(&site.broker.ca_pem, None)?,
            token,
            key: SigningKey::from_pkcs8(&SigningKey::generate()?)?,
            stream: None,
            closed: 0,
        })
    }

    async fn dial(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        Ok(self.connector.connect("127.0.0.1".try_into()?, stream).await?)
    }

    fn proof(&self, path: &str, session: Option<&str>, nonce: Option<&str>) -> Result<String> {
        let mut claims = json!({
            "htm": "POST", "htu": format!("{}{path}", self.base), "iat": self.clock.now(), "jti": Uuid::now_v7().to_string(),
        });
        if let Some(session) = session {
            claims["ath"] = sha256_base64url(session.as_bytes()).into();
        }
        if let Some(nonce) = nonce {
            claims["nonce"] = nonce.into();
        }
        let header = json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": self.key.public().required_members()});
        Ok(self.key.sign_parts(&header, &claims)?)
    }

    /// One request on the connection that is open, or on another one.
    async fn ask(&mut self, path: &str, (kind, body): (&str, &str), session: Option<&str>) -> Result<Answer> {
        let mut nonce = None;
        for _ in 0..2 {
            let proof = self.proof(path, session, nonce.as_deref())?;
            let session = session.map(|session| format!("authorization: DPoP {session}\r\n"));
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: broker\r\ndpop: {proof}\r\n{}content-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
                session.unwrap_or_default(),
                body.len()
            );
            let answer = self.send(&request).await?;
            if answer.body["error"] != "use_dpop_nonce" {
                return Ok(answer);
            }
            nonce = answer.nonce;
        }
        bail!("{path}: it asks for a nonce again and again")
    }

    async fn send(&mut self, request: &str) -> Result<Answer> {
        if let Some(mut stream) = self.stream.take() {
            if let Some(answer) = answered(&mut stream, request).await? {
                self.stream = Some(stream);
                return Ok(answer);
            }
            // Not a byte came: nothing of it was done.
            self.closed += 1;
        }
        let mut stream = self.dial().await?;
        let answer = answered(&mut stream, request).await?;
        self.stream = Some(stream);
        answer.context("a fresh connection closed without an answer")
    }

    /// Status and answer of an exchange, on a new connection.
    pub async fn exchange(&mut self) -> Result<(u16, Value)> {
        self.stream = None;
        let form = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token={}\
             &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt",
            self.token
        );
        let given = self.ask("/token", ("application/x-www-form-urlencoded", &form), None);
        given.await.map(|given| (given.status, given.body))
    }

    /// A session token, and a lease with it: each on a new connection.
    async fn once(&mut self, target: &str) -> Result<()> {
        let (status, given) = self.exchange().await?;
        ensure!(status == 200, "/token: {status} {given}");
        let session = given["access_token"].as_str().context("no token")?.to_owned();
        // At another broker than the one that signed it, as often as not.
        self.stream = None;
        let asked = json!({"target": target}).to_string();
        let lease = self
            .ask("/v1/leases", ("application/json", &asked), Some(&session))
            .await?;
        ensure!(lease.status == 200, "/v1/leases: {} {}", lease.status, lease.body);
        Ok(())
    }
}

/// Sends a request and reads its answer; nothing where the connection closed before a byte of it.
async fn answered(stream: &mut TlsStream<TcpStream>, request: &str) -> Result<Option<Answer>> {
    if stream.write_all(request.as_bytes()).await.is_err() {
        return Ok(None);
    }
    let mut read = Vec::new();
    let (head, body) = loop {
        let mut piece = [0; 4096];
        let count = match stream.read(&mut piece).await {
            Ok(0) | Err(_) if read.is_empty() => return Ok(None),
            Ok(0) => bail!("an answer broke off"),
            count => count?,
        };
        read.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length: usize = header(head, "content-length").unwrap_or("0").parse()?;
            if body.len() >= length {
                break (head.to_owned(), body[..length].to_owned());
            }
        }
    };
    Ok(Some(Answer {
        status: head.split(' ').nth(1).context("no status")?.parse()?,
        nonce: header(&head, "dpop-nonce").map(str::to_owned),
        body: serde_json::from_str(&body).unwrap_or(Value::Null),
    }))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// What goes on meanwhile, and how often it did.
#[derive(Default)]
pub struct Load {
    stop: AtomicBool,
    exchanges: AtomicU64,
    closed: AtomicU64,
    statements: AtomicU64,
    /// Taken for as long as one exchange takes; whoever moves the clock has it alone.
    still: RwLock<()>,
}

impl Load {
    fn exchange(&self, caller: &mut Caller, target: &str) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        while !self.stop.load(Ordering::SeqCst) {
            let _still = self.still.read().unwrap_or_else(PoisonError::into_inner);
            runtime
                .block_on(caller.once(target))
                .context("an exchange under load")?;
            self.exchanges.fetch_add(1, Ordering::SeqCst);
        }
        self.closed.fetch_add(caller.closed, Ordering::SeqCst);
        Ok(())
    }

    fn ask(&self, port: u16) -> Result<()> {
        let mut open = Wire::login(port, DATABASE)?;
        while !self.stop.load(Ordering::SeqCst) {
            let turn = self.statements.fetch_add(1, Ordering::SeqCst);
            let said = shape(&open.ask(&[query(NAME)])?);
            let failed = said.iter().any(|part| part.starts_with('E'));
            ensure!(
                !failed && said.last().is_some_and(|last| last == "Z I"),
                "statement {turn}: {said:?}"
            );
            // Sessions come and go, too.
            if turn % 20 == 19 {
                open = Wire::login(port, DATABASE).context("a login under load")?;
            }
        }
        Ok(())
    }

    /// Until so many more exchanges went well.
    pub fn more(&self, count: u64) -> Result<()> {
        let before = self.exchanges.load(Ordering::SeqCst);
        let now = || Ok(self.exchanges.load(Ordering::SeqCst));
        until("more exchanges", now, |now| {
            self.stop.load(Ordering::SeqCst) || *now >= before + count
        })
        .map(|_| ())
    }

    /// Moves the brokers' clock and the callers' between two exchanges.
    fn at(&self, replicas: &Replicas, ms: i64) {
        let _alone = self.still.write().unwrap_or_else(PoisonError::into_inner);
        replicas.shift(ms);
    }
}

/// Runs `meanwhile` under load of these callers, and of statements at a port; answers what went well.
pub fn under_load(
    callers: Vec<Caller>,
    target: &str,
    statements: Option<u16>,
    meanwhile: impl FnOnce(&Load) -> Result<()>,
) -> Result<[u64; 3]> {
    let load = Load::default();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for mut caller in callers {
            let load = &load;
            threads.push(scope.spawn(move || {
                let done = load.exchange(&mut caller, target);
                load.stop.store(true, Ordering::SeqCst);
                done
            }));
        }
        if let Some(port) = statements {
            let load = &load;
            threads.push(scope.spawn(move || {
                let done = load.ask(port);
                load.stop.store(true, Ordering::SeqCst);
                done
            }));
        }
        let done = load
            .more(20)
            .and_then(|()| meanwhile(&load))
            .and_then(|()| load.more(20));
        load.stop.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().expect("a thread of the load")?;
        }
        done
    })?;
    Ok([&load.exchanges, &load.closed, &load.statements].map(|count| count.load(Ordering::SeqCst)))
}

/// Every broker is restarted in turn, as a StatefulSet does: taken out of the Service, ended, started, put back.
fn restarts(replicas: &mut Replicas, load: &Load) -> Result<()> {
    for turn in [1, 2, 0, 2, 1] {
        let site = replicas.sites.remove(turn);
        replicas.service.only(&ports(&replicas.all()));
        // Whoever was let in before has been served since.
        load.more(5)?;
        let site = Arc::into_inner(site).context("a replica is held")?;
        replicas.sites.insert(turn, Arc::new(site.restarted()?));
        replicas.service.only(&ports(&replicas.all()));
        load.more(10)?;
    }
    Ok(())
}

/// A ring as every replica has it, once they agree on so many keys.
pub fn agreed(replicas: &Replicas, name: RingName, count: usize) -> Result<Vec<KeyInfo>> {
    let list = |site: &Arc<Site>| site.broker.front().issuer.ring(name).list();
    until(
        "the replicas agree on their keys",
        || Ok(replicas.sites.iter().map(list).collect::<Vec<_>>()),
        |lists| {
            let kids = |list: &Vec<KeyInfo>| list.iter().map(|key| key.kid.clone()).collect::<Vec<_>>();
            lists
                .iter()
                .all(|list| list.len() == count && kids(list) == kids(&lists[0]))
        },
    )
    .map(|mut lists| lists.remove(0))
}

/// A moment of the brokers passes by itself, under load.
pub fn passes(replicas: &Replicas, load: &Load, seconds: i64) -> Result<()> {
    let clock = replicas.clock();
    // Two seconds before it, and then time goes on as it does.
    load.at(replicas, (seconds - 2) * 1000 - SystemClock.now_ms());
    until(
        "the moment passes",
        || Ok(clock.now()),
        |now| load.stop.load(Ordering::SeqCst) || *now > seconds + 2,
    )?;
    load.more(20)
}

/// The next key of sessions is published, comes into use, and the last one goes; and the authority of both faces is
/// replaced. Each moment passes by itself, under load.
fn rotations(replicas: &Replicas, load: &Load) -> Result<()> {
    let clock = replicas.clock();
    let passes = |seconds: i64| passes(replicas, load, seconds);
    let first = agreed(replicas, RingName::Access, 1)?.remove(0);
    passes(first.usable_from + 22 * 3600)?;
    let next = agreed(replicas, RingName::Access, 2)?.remove(1);
    ensure!(
        next.kid != first.kid && next.usable_from > clock.now(),
        "used before it was published"
    );
    passes(next.usable_from)?;
    let front = Arc::clone(replicas.sites[0].broker.front());
    let (tasks, now) = (front.tasks.clone(), clock.now());
    let rolled = tasks.blocking(move || rotation::roll_authority(&front.authority, &front.audit, "test", now));
    let rolled = replicas.sites[0].runtime.block_on(rolled).context("it panicked")??;
    let served = |site: &Arc<Site>| {
        site.broker
            .front()
            .authority
            .held()
            .map(|held| held.material().authority().0)
    };
    until(
        "every replica serves under the new authority",
        || Ok(replicas.sites.iter().map(served).collect::<Vec<_>>()),
        |all| all.iter().all(|name| *name == Some(rolled.authority.clone())),
    )?;
    load.more(20)?;
    let ends = agreed(replicas, RingName::Access, 2)?
        .remove(0)
        .retire_at
        .context("the first key never goes")?;
    passes(ends)?;
    ensure!(
        agreed(replicas, RingName::Access, 1)?[0].kid == next.kid,
        "the wrong one is left"
    );
    Ok(())
}

/// Callers with pods of their own beside the shop's agent.
pub fn callers(replicas: &Replicas, namespace: &str, names: [&str; 2]) -> Result<Vec<Caller>> {
    let audience = replicas.sites[0].audience();
    let mut callers = Vec::new();
    for name in names {
        let mut beside = pod(namespace, audience);
        beside["metadata"]["name"] = name.into();
        replicas.cluster.create(&beside)?;
        let token = replicas
            .cluster
            .bound_token_for(namespace, "support", audience, (name, "24h"))?;
        let (port, clock) = (replicas.service.port, replicas.clock());
        callers.push(Caller::of(&replicas.sites[0], port, clock, token)?);
    }
    Ok(callers)
}

/// More than any load asks for.
pub fn limits() -> Limits {
    let many = Rate {
        per_second: 10_000,
        burst: 10_000,
    };
    Limits {
        stranger: many,
        newcomer: many,
        known: many,
        exchange: many,
        pod: many,
    }
}

/// No exchange, no lease and no statement fails while every broker is restarted in turn; none of the first two while the
/// keys and the authority are replaced. What was recorded meanwhile is one record.
pub fn nothing_fails_while_brokers_restart_and_keys_rotate(programs: &Programs) -> Result<()> {
    let mut replicas = Replicas::start_with(programs, -BEFORE_MS, limits())?;
    replicas.shift(0);
    let shop = Shop::of(Agent::of(&replicas.cluster, Arc::clone(&replicas.sites[0]), |_| {})?)?;
    shop.open()?;
    let sidecar = shop.agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    let Shop { agent, server, local } = shop;
    let (namespace, folder) = (agent.namespace.clone(), agent.into_folder());
    let target = format!("{namespace}/shop");
    let both = callers(&replicas, &namespace, ["one", "two"])?;
    let done = under_load(both, &target, Some(local), |load| restarts(&mut replicas, load))?;
    println!(
        "restarts: {} exchanges, {} of them on a second connection, {} statements",
        done[0], done[1], done[2]
    );
    ensure!(done[2] > 0, "no statement");
    replicas.sites[0].runtime.block_on(sidecar.shutdown());
    let report = verified(&replicas)?;
    ensure!(report.exit_code() == 0, "{report:#?}");
    let valid = report.sessions.iter().all(|session| session.verdict == Verdict::Valid);
    ensure!(valid && !report.sessions.is_empty(), "{report:#?}");

    let both = callers(&replicas, &namespace, ["three", "four"])?;
    let done = under_load(both, &target, None, |load| rotations(&replicas, load))?;
    println!(
        "rotations: {} exchanges, {} of them on a second connection",
        done[0], done[1]
    );
    drop((server, folder));
    replicas.end();
    Ok(())
}
