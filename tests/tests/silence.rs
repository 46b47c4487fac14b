//! A broker that is away: what refuses, what goes on and for how long, and that all of it ends by itself. Broker and
//! sidecar are the real ones, stopped and started; only the limits of the table are shorter here.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Error, Result};
use sidegate_broker::authority::material::Material;
use sidegate_broker::index::Index;
use sidegate_broker::seal::Sealer;
use sidegate_policies::api::injection_profile::Staleness;
use sidegate_policies::api::target::TargetProtocol;
use sidegate_policies::engine::{Subject, TargetId};
use sidegate_policies::wire::DenySet;
use sidegate_sidecar::bundle_source::Seals;
use sidegate_sidecar::config::Announced;
use sidegate_sidecar::staleness::Limits;
use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options, Postgres};
use sidegate_tests::psql::psql_async;
use sidegate_tests::shop::{configuration, server, setup, DATABASE};
use sidegate_tests::wire::{startup, Wire};
use sidegate_tests::world::{Place, Setup};

const NAME: &str = "SELECT name FROM app.people ORDER BY name LIMIT 1";
const PATIENCE: Duration = Duration::from_secs(60);

fn shop() -> Result<(Postgres, u16, Setup)> {
    let server = server(Major::V15, Options::default())?;
    let local = ports::free()?;
    // A collector that is as silent as the broker would stop everything else after 5 s.
    let config = configuration(server.port, local, "", "");
    let config = config.replace("  listen:", "  recording: {durability: BestEffort}\n  listen:");
    Ok((server, local, setup(config)))
}

/// What a new session meets: nothing, or the SQLSTATE and words of its refusal.
fn attempt(local: u16) -> Result<Option<(String, String)>> {
    let mut wire = Wire::dial(local)?;
    wire.send(&startup(0, &[("user", "whoever"), ("database", DATABASE)]))?;
    loop {
        match wire.receive()? {
            Some(frame) if frame.kind == b'E' => {
                let field = |code| frame.field(code).unwrap_or_default();
                return Ok(Some((field(b'C'), field(b'M'))));
            }
            Some(frame) if frame.kind == b'Z' => return Ok(None),
            Some(_) => {}
            None => bail!("closed without a word"),
        }
    }
}

/// It is refused for now, in this word.
fn refused(local: u16, word: &str) -> Result<()> {
    let (state, words) = attempt(local)?.context("it was let in")?;
    ensure!(state == "57P03" && words.contains(word), "{state} {words}");
    Ok(())
}

/// Tries new sessions until one is let in, or refused.
async fn until(local: u16, refused: bool) -> Result<Option<(String, String)>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let met = attempt(local)?;
        if met.is_some() == refused {
            return Ok(met);
        }
        ensure!(Instant::now() < deadline, "{met:?}");
        tokio::task::yield_now().await;
    }
}

/// A statement of a new session is answered.
async fn answered(local: u16) -> Result<()> {
    let said = psql_async(local, DATABASE, &[NAME]).await?;
    ensure!(said.out == "Ada", "{said:?}");
    Ok(())
}

/// A row of the failure matrix: broker down when the sidecar starts. Its metric: `denied` of the sidecar's status.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_whose_broker_is_away_serves_once_it_is_back() -> Result<()> {
    let (_server, local, setup) = shop()?;
    let setup = setup.port(Announced {
        target: TargetId::new("data", "shop"),
        protocol: TargetProtocol::Postgres,
        port: local,
        named: None,
    });
    let (place, broker) = setup.place().await?;
    broker.shutdown().await;
    let sidecar = place.sidecar().await?;
    refused(local, "BrokerUnreachable")?;
    ensure!(sidecar.authority().metrics.denied.get() > 0);
    ensure!(sidecar.status().borrow().bundle.is_none() && !sidecar.authority().fresh());

    let broker = place.broker().await?;
    until(local, false).await?;
    answered(local).await?;
    ensure!(sidecar.shutdown().await == 0, "tasks left");
    broker.shutdown().await;
    Ok(())
}

/// Stops both halves once the bundle in force is kept.
async fn kept(setup: Setup) -> Result<Place> {
    let (place, broker) = setup.place().await?;
    let sidecar = place.sidecar().await?;
    ensure!(sidecar.ready(PATIENCE).await, "{:?}", broker.status());
    let file = place.sidecar.run_dir.join("last-known-good.zst");
    let deadline = Instant::now() + PATIENCE;
    while !file.exists() {
        ensure!(Instant::now() < deadline, "nothing is kept");
        tokio::task::yield_now().await;
    }
    sidecar.shutdown().await;
    broker.shutdown().await;
    Ok(place)
}

/// The same after a first start: listeners and refusals come from what was kept, before the broker answers; nothing is
/// allowed by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_kept_from_before_refuses_until_the_broker_spoke() -> Result<()> {
    let (_server, local, setup) = shop()?;
    let place = kept(setup).await?;
    let sidecar = place.sidecar().await?;
    // No port is announced: only what was kept knows where to listen.
    refused(local, "BrokerUnreachable")?;
    ensure!(sidecar.authority().in_force().is_some(), "not kept in force");
    ensure!(
        !sidecar.authority().taken().kinds.is_empty(),
        "how far the store was read is forgotten"
    );

    let broker = place.broker().await?;
    until(local, false).await?;
    answered(local).await?;
    sidecar.shutdown().await;
    broker.shutdown().await;
    Ok(())
}

/// A file that was altered is as good as none, and is counted.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_and_altered_is_not_taken_and_counted() -> Result<()> {
    let (_server, local, setup) = shop()?;
    let place = kept(setup).await?;
    let file = place.sidecar.run_dir.join("last-known-good.zst");
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes)?;
    let sidecar = place.sidecar().await?;
    ensure!(sidecar.authority().metrics.kept_refused.get() == 1);
    ensure!(sidecar.authority().in_force().is_none());
    ensure!(
        std::net::TcpStream::connect(("127.0.0.1", local)).is_err(),
        "it listens"
    );
    sidecar.shutdown().await;
    Ok(())
}

/// A column of the table, in seconds instead of minutes.
fn column(how: Staleness) -> Limits {
    let seconds = Duration::from_secs;
    let close = match how {
        Staleness::Strict => seconds(4),
        _ => seconds(9),
    };
    Limits {
        refuse: seconds(4),
        close,
        void: seconds(40),
        ..Limits::of(how)
    }
}

/// Waits until an open session is no more.
async fn closed(open: &mut Wire) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while open.alive().unwrap_or(false) {
        ensure!(Instant::now() < deadline, "the open session lives on");
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// All replicas of the broker are down. Metrics: `denied`, `cut` and `streams_lost`.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_broker_ends_new_sessions_first_and_open_ones_later() -> Result<()> {
    let (_server, local, setup) = shop()?;
    let (place, broker) = setup.staleness(column(Staleness::Default)).place().await?;
    let sidecar = place.sidecar().await?;
    ensure!(sidecar.ready(PATIENCE).await);
    let mut open = Wire::login(local, DATABASE)?;
    broker.shutdown().await;
    until(local, true).await?;
    refused(local, "RevocationStale")?;
    ensure!(open.alive()?, "an open session ends later");
    closed(&mut open).await?;
    let metrics = &sidecar.authority().metrics;
    ensure!(metrics.cut.get() == 1 && metrics.denied.get() > 0 && metrics.streams_lost.get() > 0);
    sidecar.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_workloads_lose_new_and_open_sessions_together() -> Result<()> {
    let (_server, local, setup) = shop()?;
    let (place, broker) = setup.staleness(column(Staleness::Strict)).place().await?;
    let sidecar = place.sidecar().await?;
    ensure!(sidecar.ready(PATIENCE).await);
    let mut open = Wire::login(local, DATABASE)?;
    broker.shutdown().await;
    closed(&mut open).await?;
    let silent = sidecar.authority().silent();
    ensure!(
        silent < Some(Duration::from_secs(9)),
        "as late as by default: {silent:?}"
    );
    refused(local, "RevocationStale")?;
    ensure!(sidecar.authority().metrics.cut.get() == 1);
    sidecar.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn available_workloads_go_on_under_their_lease_until_the_bundle_is_void() -> Result<()> {
    let (_server, local, setup) = shop()?;
    let limits = Limits {
        void: Duration::from_secs(20),
        ..column(Staleness::Available)
    };
    let (place, broker) = setup.staleness(limits).place().await?;
    let sidecar = place.sidecar().await?;
    ensure!(sidecar.ready(PATIENCE).await);
    let mut open = Wire::login(local, DATABASE)?;
    broker.shutdown().await;
    let deadline = Instant::now() + PATIENCE;
    while sidecar.authority().silent() < Some(Duration::from_secs(10)) {
        ensure!(Instant::now() < deadline);
        // A new session under the lease that the first one brought, all the time.
        answered(local).await?;
    }
    ensure!(open.alive()?, "cut under a valid lease");
    closed(&mut open).await?;
    refused(local, "BundleStale")?;
    ensure!(sidecar.authority().metrics.cut.get() == 1 && sidecar.authority().in_force().is_none());
    sidecar.shutdown().await;
    Ok(())
}

/// A broker that asks its streams to end is followed by another stream, and nobody notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_replaced_before_it_ends_and_no_session_notices() -> Result<()> {
    let (_server, local, setup) = shop()?;
    let (mut place, broker) = setup.place().await?;
    broker.shutdown().await;
    place.broker.stream_age = Duration::from_secs(3);
    let broker = place.broker().await?;
    let sidecar = place.sidecar().await?;
    ensure!(sidecar.ready(PATIENCE).await);
    let mut open = Wire::login(local, DATABASE)?;
    let first = broker.status().connected[0].since_ms;
    let mut streams = broker.front().streams.watch();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let connected = broker.status().connected;
        ensure!(!connected.is_empty(), "no stream for a moment");
        if connected.iter().all(|report| report.since_ms > first) {
            break;
        }
        ensure!(Instant::now() < deadline, "never replaced");
        streams.changed().await?;
    }
    ensure!(open.alive()?);
    answered(local).await?;
    ensure!(sidecar.authority().metrics.streams_lost.get() == 0, "a stream was lost");
    sidecar.shutdown().await;
    broker.shutdown().await;
    Ok(())
}

/// A row of the failure matrix: bundle nacked. Metrics: `nacks` of the sidecar, `sidegate_broker_nacks_total`.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_sealed_under_another_authority_is_refused_three_times_and_the_previous_one_stays() -> Result<()> {
    let (server, local, setup) = shop()?;
    let (place, broker) = setup.place().await?;
    let sidecar = place.sidecar().await?;
    ensure!(sidecar.ready(PATIENCE).await);
    let mut open = Wire::login(local, DATABASE)?;
    let before = sidecar.authority().in_force().context("no bundle")?.version.clone();

    let foreign = Material::first(&[], broker.front().clock.now())?;
    broker.front().sealer.renew(&foreign)?;
    let changed = configuration(server.port, local, "", "  limits: {rows: 7}");
    std::fs::write(place.folder.path().join("config/all.yaml"), changed)?;
    let nacks = &sidecar.authority().metrics.nacks;
    let mut streams = broker.front().streams.watch();
    let deadline = Instant::now() + PATIENCE;
    while nacks.get() < 3 {
        ensure!(Instant::now() < deadline, "{} nacks", nacks.get());
        streams.changed().await?;
    }
    ensure!(open.alive()?, "a session of the previous bundle");
    answered(local).await?;
    ensure!(sidecar.authority().in_force().context("no bundle")?.version == before);
    ensure!(nacks.get() == 3, "offered again: {}", nacks.get());
    let nack = broker.status().connected[0].nack.clone().unwrap_or_default();
    ensure!(nack.starts_with("the seal's certificate is not one"), "{nack}");
    let (metrics, _) = broker.front().metrics.text(broker.front()).map_err(Error::msg)?;
    let metrics = String::from_utf8(metrics)?;
    ensure!(
        metrics
            .lines()
            .any(|line| line == r#"sidegate_broker_nacks_total{class="seal"} 3"#),
        "{metrics}"
    );
    sidecar.shutdown().await;
    broker.shutdown().await;
    Ok(())
}

/// A sidecar goes on with the authority it pinned: seals lead there as handshakes do, past three newer ones.
#[test]
fn a_seal_leads_to_every_older_authority() -> Result<()> {
    let who = Subject {
        namespace: "agents".into(),
        service_account: "support".into(),
        pod: "support-1".into(),
        pod_uid: "uid-1".into(),
        labels: Default::default(),
    };
    let offer = Index::default().offer(&who);
    let mut now = 1_800_000_000;
    let mut present = Material::first(&[], now)?;
    let mut pinned = vec![present.authority_pem().to_owned()];
    let sealer = Sealer::default();
    for _ in 0..3 {
        now += 40 * 24 * 3600;
        present = present.rolled(&[], now)?;
        pinned.push(present.authority_pem().to_owned());
        sealer.renew(&present)?;
        let seal = sealer.seal(&offer, &who, &DenySet::default(), now * 1000)?;
        for pem in &pinned {
            Seals::pinned(pem)?.check(&seal, "uid-1", now * 1000)?;
        }
        let foreign = Material::first(&[], now)?;
        ensure!(Seals::pinned(foreign.authority_pem())?
            .check(&seal, "uid-1", now * 1000)
            .is_err());
    }
    Ok(())
}
