//! A cluster whose etcd was restored from an older copy: what was withdrawn and frozen since stays so until an operator
//! says that the store is another one, and then all of it is as the store has it.
//!
//! The copy is made and put back as on a machine: by files, with every server of the control plane ended in between, so
//! versions of objects go back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_policies::seal::Revisions;
use sidegate_tests::cluster::{Cluster, Programs};
use sidegate_tests::psql::{psql, Said};
use sidegate_tests::shop::DATABASE;

use crate::applied::{Shop, NAME};
use crate::site::{install, until, Agent, Site};
use crate::{canary, charts};

/// Writes between the copy and what must not be lost: more than a control plane needs to start again.
const WRITES: usize = 500;

/// The version of the store that an answer is of.
fn version(object: &Value) -> Result<u64> {
    let version = object["metadata"]["resourceVersion"].as_str();
    Ok(version.context("no resourceVersion")?.parse()?)
}

fn counts(cluster: &Cluster) -> Result<u64> {
    let listed = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces?limit=1"], "")?;
    version(&serde_json::from_str(&listed)?)
}

fn lock(cluster: &Cluster, name: &str, namespace: &str) -> Result<u64> {
    version(&cluster.create(&json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Lockdown", "metadata": {"name": name},
        "spec": {"reason": "drill", "freeze": [{"namespace": namespace}]},
    }))?)
}

fn many_writes(cluster: &Cluster) -> Result<()> {
    let items: Vec<Value> = (0..WRITES)
        .map(|number| {
            let name = format!("write-{number}");
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}})
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    cluster.kubectl(&["create", "-f", "-"], &list.to_string()).map(|_| ())
}

/// What two agents are told: of one the permission was withdrawn, the other one is frozen.
struct Two {
    withdrawn: u16,
    frozen: u16,
}

impl Two {
    fn asked(&self) -> Result<[Said; 2]> {
        Ok([
            psql(self.withdrawn, DATABASE, &[NAME])?,
            psql(self.frozen, DATABASE, &[NAME])?,
        ])
    }

    fn refused([withdrawn, frozen]: &[Said; 2]) -> bool {
        withdrawn.err.contains("Withdrawn.") && frozen.err.contains("a lockdown is in force")
    }

    fn hold(&self, when: &str) -> Result<()> {
        let said = self.asked()?;
        ensure!(Two::refused(&said), "{when}: {said:?}");
        Ok(())
    }
}

/// Both sidecars are there, and one of them has what it was offered: its deny set came before that.
fn back(site: &Site) -> Result<()> {
    let bundles = || Ok(site.broker.front().streams.list());
    until("the sidecars are back", bundles, |held| {
        held.len() == 2 && held.iter().any(|held| held.bundle.is_some())
    })
    .map(|_| ())
}

/// A broker that ran through the restore is made to list everything anew, as sidecars of other replicas do: it says that the
/// store counts lower, and what is in force is no older than what was.
fn lists_anew(site: &Site, held: &Revisions) -> Result<()> {
    let front = site.broker.front();
    for kind in ["AccessPolicy", "Lockdown"] {
        let said = || {
            front.catch_up.notify_one();
            front.lockdowns.held_elsewhere(u64::from(u32::MAX));
            canary::logged(&["counts lower than before", &format!("\"kind\":\"{kind}\"")])
        };
        until("it says that the store counts lower", || Ok(said()), |said| *said)?;
    }
    let now = front.index().revisions().clone();
    ensure!(now.behind(held).is_none(), "{now:?} after {held:?}");
    Ok(())
}

/// After the restore nothing lower is taken from a broker that ran through it nor from one that was started since, and
/// both say why; with the generation raised the restored policies are in force, and so is a Lockdown of that store.
pub fn a_restored_store_is_newer_once_its_generation_is_raised(programs: &Programs) -> Result<()> {
    let mut cluster = Cluster::start(programs)?;
    charts::install_kinds(&cluster)?;
    install(&cluster)?;
    let generation = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&generation);
    let change =
        move |config: &mut sidegate_broker::BrokerConfig| config.store_generation = told.load(Ordering::SeqCst);
    let mut site = Arc::new(Site::join(&cluster, Arc::new(change))?);
    let (one, other) = (
        Agent::of(&cluster, Arc::clone(&site), |_| {})?,
        Agent::of(&cluster, Arc::clone(&site), |_| {})?,
    );
    let (one, other) = (Shop::of(one)?, Shop::of(other)?);
    let two = Two {
        withdrawn: one.local,
        frozen: other.local,
    };
    one.open()?;
    other.open()?;
    let sidecars = [one.agent.sidecar()?, other.agent.sidecar()?];
    let both_read = |said: &[Said; 2]| said.iter().all(|said| said.out == "Ada");
    until("both read", || two.asked(), both_read)?;
    let copy = cluster.store_copied()?;

    many_writes(&cluster)?;
    let deny = "{name: never, effect: Deny, sql: {commands: [Select]}, message: Withdrawn.}";
    one.agent.apply(&one.policy("withdrawn", deny))?;
    let frozen = other.agent.namespace.clone();
    let incident = lock(&cluster, "incident", &frozen)?;
    until("both are refused", || two.asked(), Two::refused)?;
    let held = site.broker.front().index().revisions().clone();
    let folders = [one.agent.into_folder(), other.agent.into_folder()];
    let servers = [one.server, other.server];

    cluster.restore(copy.path())?;
    let restored = counts(&cluster)?;
    ensure!(
        restored < incident,
        "versions did not go back: {restored} after {incident}"
    );
    let gone = cluster.kubectl(&["get", "lockdowns", "-o", "name"], "")?;
    ensure!(gone.is_empty(), "{gone}");
    lists_anew(&site, &held)?;
    two.hold("at the broker that ran through it")?;

    site = Arc::new(Arc::into_inner(site).context("the broker is held")?.restarted()?);
    back(&site)?;
    let older = format!("is older than {}, which is in force", held.kinds["AccessPolicy"]);
    let said = || canary::logged(&["a sidecar holds a newer bundle; nothing is offered yet", &older]);
    until("it says that it is behind", || Ok(said()), |said| *said)?;
    two.hold("at a broker that was started since")?;

    generation.store(1, Ordering::SeqCst);
    site = Arc::new(Arc::into_inner(site).context("the broker is held")?.restarted()?);
    until("the restored store is in force", || two.asked(), both_read)?;
    let again = lock(&cluster, "again", &frozen)?;
    ensure!(again < incident, "it shows nothing: {again} after {incident}");
    let frozen = |said: &[Said; 2]| said[0].out == "Ada" && said[1].err.contains("a lockdown is in force");
    until("a Lockdown of the restored store cuts", || two.asked(), frozen)?;
    for sidecar in sidecars {
        site.runtime.block_on(sidecar.shutdown());
    }
    if let Some(site) = Arc::into_inner(site) {
        site.end();
    }
    drop((folders, servers));
    Ok(())
}
