//! A sidecar that comes to another of three brokers goes on: with its record, which is one record, and with its sessions.

use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use sidegate_policies::record::replay::{replay, Content};
use sidegate_policies::record::verify::{verify_store, Options, Report, Verdict};
use sidegate_policies::record::Kind;
use sidegate_tests::shop::DATABASE;
use sidegate_tests::verifiers::{second, told};
use sidegate_tests::wire::{query, shape, Wire};
use uuid::Uuid;

use crate::applied::{Shop, NAME};
use crate::replicas::{ports, Replicas, Test};
use crate::site::{until, Agent, Site};

pub const TESTS: &[(&str, Test)] = &[(
    "replicas::a_live_session_goes_on_recording_wherever_its_sidecar_is",
    a_live_session_goes_on_recording_wherever_its_sidecar_is,
)];

/// The collector holds everything the sidecar wrote.
fn received(sidecar: &sidegate_sidecar::app::Running) -> Result<()> {
    let log = sidecar.authority().log().context("no log")?.clone();
    let status = until(
        "the collector holds everything",
        || Ok(log.status()),
        |status| status.connected && status.received == status.written,
    )?;
    ensure!(status.refused == 0, "the collector refused: {status:?}");
    Ok(())
}

/// Both verifiers on the store of all, which agree. Where brokers wrote between the two, what they saw is not one store, and
/// they look again.
pub fn verified(replicas: &Replicas) -> Result<Report> {
    let root = replicas.store();
    loop {
        let report = verify_store(&root, &Options::default())?;
        if second(&[], &[&root])? == [told(&report)] {
            return Ok(report);
        }
        ensure!(
            told(&verify_store(&root, &Options::default())?) != told(&report),
            "the verifiers differ: {report:#?}"
        );
    }
}

/// Statements of a session, as they stand in the store.
fn statements(replicas: &Replicas, session: Uuid) -> Result<Vec<String>> {
    let (root, mut found) = (replicas.store(), Vec::new());
    let keys = sidegate_broker::records::SessionKeys::open(&root)?;
    replay(&root, session, &|id| keys.get(id), &mut |event| {
        if let (Kind::Intent, Content::Json(says)) = (event.header.kind, &event.content) {
            found.push(says["text"].as_str().unwrap_or_default().to_owned());
        }
        Ok(())
    })?;
    Ok(found)
}

fn alarms(site: &Site) -> Result<()> {
    let alarms = site.broker.records().alarms();
    ensure!(alarms.is_empty(), "{alarms:?}");
    Ok(())
}

/// A session stays open while its sidecar is moved from broker to broker, back, and away from one that dies without a
/// word. Every statement is allowed at once, each is in the record once, the record verifies while it is open and once it is
/// closed, and every broker lists the session.
fn a_live_session_goes_on_recording_wherever_its_sidecar_is(replicas: &mut Replicas) -> Result<()> {
    let shop = Shop::of(Agent::of(&replicas.cluster, Arc::clone(&replicas.sites[0]), |_| {})?)?;
    shop.open()?;
    let sidecar = shop.agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    // Where the log's certificate came later than the session's end, that is sealed with its segment, ten seconds old.
    until(
        "the read's record is sealed",
        || verified(replicas),
        |report| {
            !report
                .sessions
                .iter()
                .any(|session| matches!(session.verdict, Verdict::Open { .. }))
        },
    )?;
    let mut open = Wire::login(shop.local, DATABASE)?;
    let mut run = Vec::new();
    let mut ask = |open: &mut Wire, turn: usize| -> Result<()> {
        let text = format!("SELECT name FROM app.people WHERE id = 1 AND {turn} = {turn}");
        let said = shape(&open.ask(&[query(&text)])?);
        ensure!(
            said.last().is_some_and(|last| last == "Z I") && !said.iter().any(|part| part.starts_with('E')),
            "{turn}: {said:?}"
        );
        run.push(text);
        Ok(())
    };
    for (turn, at) in [0, 1, 2, 1, 0, 1].into_iter().enumerate() {
        replicas.service.to(&ports(&[&replicas.sites[at]]));
        ask(&mut open, turn)?;
        received(&sidecar)?;
        ensure!(verified(replicas)?.exit_code() == 0, "after {turn}");
    }
    Arc::into_inner(replicas.sites.remove(1))
        .context("a replica is held")?
        .kill();
    replicas.service.to(&ports(&replicas.all()));
    ask(&mut open, 6)?;
    received(&sidecar)?;
    let report = verified(replicas)?;
    ensure!(report.exit_code() == 0, "{report:#?}");
    let mut still = report
        .sessions
        .iter()
        .filter(|session| matches!(session.verdict, Verdict::Open { .. }));
    let id = Uuid::parse_str(&still.next().context("no open session")?.session)?;
    ensure!(still.next().is_none(), "{report:#?}");
    drop(open);
    shop.agent.end(sidecar);
    let report = verified(replicas)?;
    ensure!(
        report
            .sessions
            .iter()
            .any(|session| session.session == id.to_string() && session.verdict == Verdict::Valid),
        "{report:#?}"
    );
    let stored = statements(replicas, id)?;
    let stored: Vec<&String> = stored.iter().filter(|text| run.contains(text)).collect();
    ensure!(stored == run.iter().collect::<Vec<_>>(), "{stored:?}");
    for site in &replicas.sites {
        let listed = site.broker.records().sessions();
        let found: Vec<_> = listed.iter().filter(|session| session.id == id.to_string()).collect();
        ensure!(found.len() == 1 && found[0].ended.is_some(), "{listed:?}");
        alarms(site)?;
    }
    let fresh = Site::join(&replicas.cluster, Arc::clone(&replicas.change))?;
    replicas.sites.insert(1, Arc::new(fresh));
    replicas.service.to(&ports(&replicas.all()));
    Ok(())
}
