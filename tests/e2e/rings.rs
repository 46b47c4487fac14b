//! The two rings whose keys live for months change under load: assertions to identity providers, which a relying party
//! checks against our own discovery and against a copy of our keys that it made before; and certificates of record keys,
//! which both verifiers check across the change.
//!
//! Months pass for the brokers before anything else happens; the load then runs through the moments themselves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_broker::clock::{Clock, SystemClock};
use sidegate_broker::rings::{KeyInfo, RingName};
use sidegate_policies::record::verify::Verdict;
use sidegate_tests::cluster::Programs;
use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::provider::{kid, published, verify_by, Provider, Request, Trust};
use sidegate_tests::shop::{self, DATABASE};
use sidegate_tests::wire::{query, shape, Wire};

use crate::applied::{Shop, NAME};
use crate::moved::verified;
use crate::replicas::Replicas;
use crate::rolled::{agreed, callers, limits, passes, under_load, Load};
use crate::site::{until, Agent, Site};

const DAY: i64 = 24 * 3600;
/// So long after the brokers' start the next record key takes over, in seconds: everything must be ready by then.
const READY: i64 = 120;
/// So long before that the next federation key comes into use, about.
const BETWEEN: i64 = 20;
/// Sidecars run by the machine's clock, and bear brokers that are ahead of it by less than a minute.
const SKEW: i64 = 25;
/// So much younger, in seconds, than a day's end.
const YOUNGER: i64 = 80;

/// What the relying party saw.
#[derive(Default)]
struct Seen {
    trust: Option<(Trust, Arc<dyn Clock>)>,
    /// Our keys, as they were when it was told to trust us; never fetched again.
    copy: Value,
    /// Assertions that verified, by key.
    good: BTreeMap<String, u64>,
    bad: Vec<String>,
}

/// Checks an assertion as a relying party does; gives its key.
fn checked(seen: &Mutex<Seen>, request: &Request) -> Result<String> {
    let form = request.form();
    let jwt = form.get("subject_token").context("no assertion")?;
    let (trust, copy) = {
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.trust.clone().context("nobody is trusted")?, seen.copy.clone())
    };
    let (trust, clock) = trust;
    let now = u64::try_from(clock.now())?;
    verify_by(&published(&trust)?, jwt, &trust, &request.origin(), (60, now)).context("by what is published")?;
    verify_by(&copy, jwt, &trust, &request.origin(), (60, now)).context("by an older copy")?;
    kid(jwt)
}

/// A relying party whose tokens are good for six seconds, so that it is asked again and again.
fn relying(seen: &Arc<Mutex<Seen>>) -> Result<Provider> {
    let seen = Arc::clone(seen);
    Provider::start(move |request| {
        let checked = checked(&seen, request);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match checked {
            Ok(kid) => {
                *seen.good.entry(kid).or_default() += 1;
                let token = format!("of-the-relying-party-{}", seen.good.values().sum::<u64>());
                let access = "urn:ietf:params:oauth:token-type:access_token";
                (
                    200,
                    Some(
                        json!({"access_token": token, "issued_token_type": access, "token_type": "Bearer", "expires_in": 6}),
                    ),
                )
            }
            Err(why) => {
                seen.bad.push(format!("{why:#}"));
                (400, Some(json!({"error": "invalid_grant"})))
            }
        }
    })
}

fn issuer(provider: &Provider) -> Value {
    json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "TokenIssuer", "metadata": {"name": "relying"},
        "spec": {
            "preset": "Generic", "issuer": provider.origin,
            "values": {"tokenEndpoint": format!("{}/token", provider.origin)},
            "allowedNamespaces": {"selector": {}}, "caBundle": {"inline": provider.ca_pem},
        },
    })
}

/// How often which key verified, since this was asked last.
fn taken(seen: &Mutex<Seen>) -> Result<BTreeMap<String, u64>> {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(seen.bad.is_empty(), "the relying party refused: {:?}", seen.bad);
    Ok(std::mem::take(&mut seen.good))
}

/// What the relying party says of it.
fn told(seen: &Mutex<Seen>) -> String {
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    format!("the relying party took {:?}, and refused {:?}", seen.good, seen.bad)
}

/// Until the relying party saw only keys of these, and one of them at least.
fn signed_by(seen: &Mutex<Seen>, kids: &[String], when: &str) -> Result<()> {
    taken(seen)?;
    until(
        &format!("assertions {when}"),
        || {
            let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(seen.bad.is_empty(), "{when}: {:?}", seen.bad);
            Ok(seen.good.clone())
        },
        |good| good.values().sum::<u64>() >= 3,
    )?;
    let good = taken(seen)?;
    ensure!(
        good.keys().all(|kid| kids.contains(kid)),
        "{when}: {good:?} of {kids:?}"
    );
    Ok(())
}

fn kids(keys: &[KeyInfo]) -> Vec<String> {
    keys.iter().map(|key| key.kid.clone()).collect()
}

/// Until a moment is near enough for the brokers' clock to be put to it.
fn near(load: &Load, clock: &dyn Clock, moment: i64) -> Result<()> {
    while clock.now() < moment - SKEW {
        load.more(5)?;
    }
    Ok(())
}

fn shop<'a>(replicas: &'a Replicas, at: usize, server: &Arc<Postgres>) -> Result<Shop<'a>> {
    let shop = Shop {
        agent: Agent::of(&replicas.cluster, Arc::clone(&replicas.sites[at]), |_| {})?,
        server: Arc::clone(server),
        local: ports::free()?,
    };
    shop.open()?;
    Ok(shop)
}

/// The first keys, and those that follow them: the brokers are taken back to a week before the moment at which the next
/// federation key is to sign, and publish it then.
fn published_ahead(replicas: &Replicas, signs: i64) -> Result<[Vec<KeyInfo>; 2]> {
    let first = agreed(replicas, RingName::Federation, 2)?;
    replicas.shift((signs - 7 * DAY) * 1000 - SystemClock.now_ms());
    let both = agreed(replicas, RingName::Federation, 4)?;
    ensure!(kids(&both)[..2] == kids(&first), "{first:?} {both:?}");
    let next = both[2..].to_vec();
    let now = replicas.clock().now();
    ensure!(next.iter().all(|key| key.usable_from >= now + 7 * DAY - 60), "{next:?}");
    // By now the first certificate has expired, for whoever goes by the machine's clock.
    let until_when = |site: &Arc<Site>| site.broker.front().authority.not_after();
    until(
        "the certificate is renewed",
        || Ok(replicas.sites.iter().map(until_when).collect::<Vec<_>>()),
        |all| all.iter().all(|until| *until > SystemClock.now() + DAY),
    )?;
    replicas.shift(0);
    Ok([first, next])
}

/// Applies a Target whose token is the relying party's, and has that one trust us by a copy of our keys, too.
fn trusted(replicas: &Replicas, shop: &Shop<'_>, provider: &Provider, seen: &Mutex<Seen>) -> Result<()> {
    let token = shop.target_by("token: {issuer: relying, audience: ledger, username: reader}");
    let local = format!("port: {}}}\n", shop.local);
    let ledger = token
        .replace("name: shop,", "name: ledger,")
        // Nobody connects there; a token goes over verified TLS only.
        .replace("  tls: {mode: Disabled}\n", "")
        .replace(&local, &format!("port: {}}}\n", ports::free()?));
    shop.agent.apply(&issuer(provider).to_string())?;
    let policy = shop.policy("ledger", "{name: read, effect: Allow, sql: {commands: [Select]}}");
    let policy = policy.replace("[{name: shop}]", "[{name: ledger}]");
    shop.agent.apply(&format!("{ledger}---\n{policy}"))?;
    until(
        "the Target is in force",
        || shop.agent.condition("target", "ledger", "ResolvedRefs"),
        |condition| condition["status"] == "True",
    )?;
    let trust = Trust {
        issuer: replicas.sites[0].broker.issuer_url.clone(),
        ca_pem: replicas.sites[0].broker.ca_pem.clone(),
    };
    let copy = published(&trust)?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    (seen.trust, seen.copy) = (Some((trust, replicas.clock())), copy);
    Ok(())
}

/// No exchange fails, and no assertion is refused, while the next federation key comes into use and while the last one
/// goes; no statement fails, and every record verifies, while the next record key takes over.
pub fn nothing_fails_while_keys_of_months_rotate(programs: &Programs) -> Result<()> {
    let servers = [(); 2].map(|()| shop::server(Major::V15, Options::default()).map(Arc::new));
    let [one, other] = servers;
    let (one, other) = (one?, other?);
    let replicas = Replicas::start_with(programs, (READY - 90 * DAY) * 1000, limits())?;
    let recorded = agreed(&replicas, RingName::Record, 1)?;
    let takes_over = recorded[0].usable_from + 90 * DAY;
    let [first, next] = published_ahead(&replicas, takes_over - BETWEEN)?;
    let signs = next.iter().map(|key| key.usable_from).max().unwrap_or(0);
    let clock = replicas.clock();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let provider = relying(&seen)?;
    let shop_of = |at, server| shop(&replicas, at, server);
    let (shop, late) = (shop_of(0, &one)?, shop_of(1, &other)?);
    trusted(&replicas, &shop, &provider, &seen)?;
    let sidecar = shop.agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    let mut open = Wire::login(shop.local, DATABASE)?;
    let target = format!("{}/ledger", shop.agent.namespace);
    let callers_of = |names| callers(&replicas, &shop.agent.namespace, names);

    let mut second = None;
    let done = under_load(callers_of(["one", "two"])?, &target, Some(shop.local), |load| {
        ensure!(clock.now() < signs, "too slow: the next key signs already");
        signed_by(&seen, &kids(&first), "before")?;
        near(load, &*clock, signs)?;
        passes(&replicas, load, signs)?;
        signed_by(&seen, &kids(&next), "after the next key came into use")?;
        near(load, &*clock, takes_over)?;
        passes(&replicas, load, takes_over)?;
        let two = agreed(&replicas, RingName::Record, 2)?;
        ensure!(two[0].kid == recorded[0].kid, "the last record key is gone: {two:?}");
        // A log begins under the next key, beside one that was begun under the last one and goes on.
        second = Some(late.agent.sidecar()?);
        until("the other read", || late.ask(NAME), |said| said.code == 0)?;
        let said = shape(&open.ask(&[query(NAME)])?);
        ensure!(
            said.last().is_some_and(|last| last == "Z I"),
            "the session that was open: {said:?}"
        );
        // Tokens of the API server are taken for a day, and the last key goes a day after this one's first use: the tokens
        // of those who come then must be younger than that, by the machine's clock.
        while SystemClock.now() < signs + YOUNGER {
            load.more(5)?;
        }
        Ok(())
    })
    .with_context(|| told(&seen))?;
    println!("into use: {} exchanges, {} statements", done[0], done[2]);
    drop(open);
    late.agent.end(second.context("no second sidecar")?);
    shop.agent.end(sidecar);
    let report = verified(&replicas)?;
    let valid = report.sessions.iter().all(|session| session.verdict == Verdict::Valid);
    ensure!(
        report.exit_code() == 0 && valid && report.sessions.len() >= 2,
        "{report:#?}"
    );

    // A day later the last federation key goes. Tokens of the API server live no longer than that: others then.
    let keys = agreed(&replicas, RingName::Federation, 4)?;
    let ends = keys.iter().filter_map(|key| key.retire_at).max();
    let ends = ends.context("the last keys never go")?;
    let done = under_load(callers_of(["three", "four"])?, &target, None, |load| {
        passes(&replicas, load, ends)?;
        let left = agreed(&replicas, RingName::Federation, 2)?;
        ensure!(kids(&left) == kids(&next), "{left:?}");
        signed_by(&seen, &kids(&next), "after the last key went")
    })
    .with_context(|| told(&seen))?;
    println!("out of use: {} exchanges", done[0]);
    taken(&seen)?;
    drop((shop, late, one, other));
    replicas.end();
    Ok(())
}
