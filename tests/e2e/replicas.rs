//! Three brokers of one namespace are one broker: whatever a sidecar does at one of them holds at the others.
//!
//! They share a control plane of their own, their names, and a port in front of them that stands for the Service; the
//! tests here run one after another.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_broker::authority::material::Material;
use sidegate_broker::clock::{Clock, SystemClock};
use sidegate_broker::config::Limits;
use sidegate_broker::front::caller;
use sidegate_broker::issuer::Workload;
use sidegate_broker::jwt::PublicKey;
use sidegate_broker::rings::{RingError, RingName};
use sidegate_broker::{rotation, SharedRecords};
use sidegate_tests::cluster::{Cluster, Programs};
use sidegate_tests::psql::Said;

use crate::applied::{Shop, NAME};
use crate::relay::Service;
use crate::site::{install, key, until, Agent, Change, Site, NAMESPACE};
use crate::{charts, requests};

/// A test on the three brokers.
pub type Test = fn(&mut Replicas) -> Result<()>;

pub const TESTS: &[(&str, Test)] = &[
    (
        "replicas::a_session_of_one_is_good_at_all",
        a_session_of_one_is_good_at_all,
    ),
    (
        "replicas::a_second_key_is_refused_at_every_one",
        a_second_key_is_refused_at_every_one,
    ),
    (
        "replicas::an_emergency_at_one_is_in_force_at_all",
        an_emergency_at_one_is_in_force_at_all,
    ),
    (
        "replicas::two_that_rotate_at_once_lose_no_key",
        two_that_rotate_at_once_lose_no_key,
    ),
    (
        "replicas::a_token_revoked_at_one_is_refused_at_all",
        a_token_revoked_at_one_is_refused_at_all,
    ),
    (
        "replicas::a_lockdown_holds_while_replicas_die_and_come_back",
        a_lockdown_holds_while_replicas_die_and_come_back,
    ),
    (
        "replicas::a_request_of_one_that_died_is_claimed_once_at_the_others",
        a_request_of_one_that_died_is_claimed_once_at_the_others,
    ),
    (
        "replicas::the_leader_counts_pods_of_the_other_brokers",
        crate::fenced::the_leader_counts_pods_of_the_other_brokers,
    ),
    (
        "replicas::sidecars_outlive_a_new_authority_and_a_rolling_restart",
        sidecars_outlive_a_new_authority_and_a_rolling_restart,
    ),
];

/// Wall time, shifted by hand.
#[derive(Debug, Default)]
struct Shifted(AtomicI64);

impl Clock for Shifted {
    fn now_ms(&self) -> i64 {
        SystemClock.now_ms() + self.0.load(Ordering::SeqCst)
    }
}

/// The three, and what they stand on.
pub struct Replicas {
    pub sites: Vec<Arc<Site>>,
    pub service: Service,
    /// The same for the face that shows our keys.
    issuer: Service,
    clock: Arc<Shifted>,
    pub change: Arc<Change>,
    pub cluster: Cluster,
    /// The record store of all.
    records: tempfile::TempDir,
}

static REPLICAS: Mutex<Option<Replicas>> = Mutex::new(None);

/// Runs a test on the three, which whoever comes first starts.
pub fn run(programs: &Programs, test: Test) -> Result<()> {
    let mut kept = REPLICAS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let replicas = match &mut *kept {
        Some(replicas) => replicas,
        none => none.insert(Replicas::start(programs)?),
    };
    test(replicas)
}

/// Ends them, if they were started.
pub fn stop() {
    let kept = REPLICAS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    if let Some(replicas) = kept {
        replicas.end();
    }
}

impl Replicas {
    fn start(programs: &Programs) -> Result<Replicas> {
        Replicas::start_with(programs, 0, Limits::default())
    }

    /// The same with a clock that is shifted by so many milliseconds, and with these budgets.
    pub fn start_with(programs: &Programs, shifted: i64, limits: Limits) -> Result<Replicas> {
        let cluster = Cluster::start(programs)?;
        charts::install_kinds(&cluster)?;
        install(&cluster)?;
        let (service, issuer, clock) = (Service::start()?, Service::start()?, Arc::new(Shifted::default()));
        clock.0.store(shifted, Ordering::SeqCst);
        let (front, back, time) = (service.port, issuer.port, Arc::clone(&clock));
        let records = tempfile::Builder::new().prefix("sidegate-records-").tempdir()?;
        let folder = records.path().to_owned();
        let change: Arc<Change> = Arc::new(move |config| {
            config.front_url = Some(format!("https://127.0.0.1:{front}"));
            config.issuer_url = Some(format!("https://127.0.0.1:{back}"));
            config.clock = Arc::clone(&time) as Arc<dyn Clock>;
            config.limits = limits;
            // A broker that starts again on its state has its ports again, and with them its name.
            config.shared_records = Some(SharedRecords {
                dir: folder.join("records"),
                replica: format!("broker-{}", config.listen.port()),
            });
        });
        let mut sites = Vec::new();
        for _ in 0..3 {
            sites.push(Arc::new(Site::join(&cluster, Arc::clone(&change))?));
        }
        let replicas = Replicas {
            sites,
            service,
            issuer,
            clock,
            change,
            cluster,
            records,
        };
        replicas.service.to(&ports(&replicas.all()));
        let faces: Vec<u16> = replicas.sites.iter().map(|site| site.issuer_port()).collect();
        replicas.issuer.to(&faces);
        Ok(replicas)
    }

    pub fn all(&self) -> Vec<&Site> {
        self.sites.iter().map(|site| &**site).collect()
    }

    /// The brokers' clock.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    /// Shifts it by so many milliseconds.
    pub fn shift(&self, ms: i64) {
        self.clock.0.store(ms, Ordering::SeqCst);
    }

    pub fn end(self) {
        for site in self.sites {
            if let Some(site) = Arc::into_inner(site) {
                site.end();
            }
        }
    }

    /// The record store that all of them keep.
    pub fn store(&self) -> PathBuf {
        self.records.path().join("records")
    }

    fn agent(&self) -> Result<Agent<'_>> {
        Agent::of(&self.cluster, Arc::clone(&self.sites[0]), |_| {})
    }

    /// Until every replica holds the same keys; gives them.
    fn agreed(&self, name: RingName) -> Result<Vec<String>> {
        let rings = until(
            "the replicas agree on their keys",
            || Ok(self.sites.iter().map(|site| kids(site, name)).collect::<Vec<_>>()),
            |rings| rings.windows(2).all(|pair| pair[0] == pair[1]),
        )?;
        Ok(rings[0].clone())
    }

    /// Which of them leads.
    pub fn leader(&self) -> Result<usize> {
        let leads = |site: &Arc<Site>| site.broker.front().issuer.ring(RingName::Access).rotates();
        let found = until(
            "one replica leads",
            || Ok(self.sites.iter().position(leads)),
            Option::is_some,
        )?;
        found.context("nobody leads")
    }
}

pub fn ports(sites: &[&Site]) -> Vec<u16> {
    sites.iter().map(|site| site.port()).collect()
}

fn kids(site: &Site, name: RingName) -> Vec<String> {
    let listed = site.broker.front().issuer.ring(name).list();
    listed.into_iter().map(|key| key.kid).collect()
}

/// A session token as `/token` gives it.
fn session(site: &Site, who: &Workload, key: &PublicKey) -> Result<String> {
    let front = site.broker.front();
    Ok(front.issuer.session(who, &key.thumbprint(), front.clock.now())?.token)
}

/// Whether a session token is good at a replica.
fn good(site: &Site, token: &str) -> bool {
    let front = site.broker.front();
    site.runtime.block_on(caller::session(front, token)).is_ok()
}

/// The rings are the same, so are the keys of approval digests, and a session token of one is good at all.
fn a_session_of_one_is_good_at_all(replicas: &mut Replicas) -> Result<()> {
    for name in RingName::ALL {
        ensure!(!replicas.agreed(name)?.is_empty(), "{name:?}");
    }
    let agent = replicas.agent()?;
    let key = key()?;
    let who = replicas.sites[0].attest(&agent.token()?, &key)?;
    for minted in &replicas.sites {
        let token = session(minted, &who, &key)?;
        for site in &replicas.sites {
            ensure!(good(site, &token), "refused at another replica");
        }
    }
    let published = |site: &Arc<Site>| site.broker.front().issuer.jwks(site.broker.front().clock.now());
    let sets: Vec<Value> = replicas.sites.iter().map(published).collect();
    ensure!(sets.iter().all(|set| *set == sets[0]), "{sets:?}");
    let digests: Vec<String> = replicas
        .sites
        .iter()
        .map(|site| {
            site.broker
                .front()
                .index()
                .offer(&who.subject)
                .bundle
                .digest_key
                .clone()
        })
        .collect();
    ensure!(digests.iter().all(|key| *key == digests[0]), "digests differ");
    Ok(())
}

/// The key that one replica pinned is the only one at all of them.
fn a_second_key_is_refused_at_every_one(replicas: &mut Replicas) -> Result<()> {
    let agent = replicas.agent()?;
    let token = agent.token()?;
    let (first, second) = (key()?, key()?);
    replicas.sites[1].attest(&token, &first)?;
    for site in &replicas.sites {
        let refused = site.attest(&token, &second).map_err(|refused| refused.to_string());
        ensure!(
            refused.as_ref().is_err_and(|why| why.contains("RestartNotSeen")),
            "{refused:?}"
        );
        site.attest(&token, &first)?;
    }
    Ok(())
}

/// What a person does at one replica's control socket.
fn emergency(site: &Site) -> Result<rotation::Emergency> {
    let (front, records) = (Arc::clone(site.broker.front()), site.broker.records());
    let (tasks, now) = (front.tasks.clone(), front.clock.now());
    let done =
        tasks.blocking(move || rotation::emergency(&front.issuer, &records, &front.audit, &RingName::ALL, "test", now));
    site.runtime.block_on(done).context("it panicked")
}

/// Plans new record keys at a replica, and puts them into force once the other one has planned too.
fn planned(site: &Site, both: Arc<Barrier>) -> Result<Result<(), RingError>> {
    let front = Arc::clone(site.broker.front());
    let (tasks, now) = (front.tasks.clone(), front.clock.now());
    let put = tasks.blocking(move || {
        let ring = front.issuer.ring(RingName::Record);
        let changing = ring.change();
        let next = ring.fresh(&changing, now);
        both.wait();
        ring.put(&changing, next?)
    });
    site.runtime.block_on(put).context("it panicked")
}

/// Of two replicas that replace the same keys in the same moment one does, and the other one is told: no key that was in
/// force is lost, and all agree in the end.
fn two_that_rotate_at_once_lose_no_key(replicas: &mut Replicas) -> Result<()> {
    let before = replicas.agreed(RingName::Record)?;
    let both = Arc::new(Barrier::new(2));
    let done = std::thread::scope(|scope| {
        let threads = [0, 1].map(|at| {
            let (site, both) = (&replicas.sites[at], Arc::clone(&both));
            scope.spawn(move || planned(site, both))
        });
        threads.map(|thread| thread.join().expect("a rotation"))
    });
    let [one, other] = done;
    let done = [one?, other?];
    let told = |done: &&Result<(), RingError>| matches!(done, Err(RingError::Changed));
    ensure!(
        done.iter().filter(|done| done.is_ok()).count() == 1 && done.iter().filter(told).count() == 1,
        "{done:?}"
    );
    let kept = |replicas: &Replicas| replicas.agreed(RingName::Record);
    let after = until(
        "every key is there",
        || kept(replicas),
        |kids| kids.len() == before.len() + 1,
    )?;
    ensure!(before.iter().all(|kid| after.contains(kid)), "{before:?} {after:?}");
    Ok(())
}

/// Keys that are replaced at one replica, leader or not, are replaced at all, and what the old ones signed is refused.
fn an_emergency_at_one_is_in_force_at_all(replicas: &mut Replicas) -> Result<()> {
    let agent = replicas.agent()?;
    let key = key()?;
    let who = replicas.sites[0].attest(&agent.token()?, &key)?;
    let before = replicas.agreed(RingName::Access)?;
    let recorded = replicas.agreed(RingName::Record)?.len();
    let token = session(&replicas.sites[2], &who, &key)?;
    let follower = (replicas.leader()? + 1) % 3;
    let done = emergency(&replicas.sites[follower])?;
    ensure!(done.failed.is_empty(), "{:?}", done.failed);
    until(
        "the old token is refused everywhere",
        || Ok(replicas.sites.iter().filter(|site| good(site, &token)).count()),
        |accepting| *accepting == 0,
    )?;
    let after = replicas.agreed(RingName::Access)?;
    ensure!(after.len() == 1 && after != before, "{before:?} {after:?}");
    let kept = replicas.agreed(RingName::Record)?.len();
    ensure!(kept == recorded + 1, "record keys are kept: {recorded}, then {kept}");
    let token = session(&replicas.sites[0], &who, &key)?;
    ensure!(replicas.sites.iter().all(|site| good(site, &token)), "the new key");
    Ok(())
}

/// What one replica revokes is refused at all of them, and at one that starts afterwards.
fn a_token_revoked_at_one_is_refused_at_all(replicas: &mut Replicas) -> Result<()> {
    let agent = Agent::of(&replicas.cluster, Arc::clone(&replicas.sites[0]), |_| {})?;
    let key = key()?;
    let who = replicas.sites[0].attest(&agent.token()?, &key)?;
    let front = Arc::clone(replicas.sites[2].broker.front());
    let now = front.clock.now();
    let [revoked, other] = [(); 2].map(|()| front.issuer.session(&who, &key.thumbprint(), now));
    let (revoked, other) = (revoked?, other?);
    ensure!(replicas.sites.iter().all(|site| good(site, &revoked.token)), "before");
    let (tasks, id) = (front.tasks.clone(), revoked.id.clone());
    let added = tasks.blocking(move || front.revoked.add(id, now + 300, now));
    replicas.sites[2].runtime.block_on(added).context("it panicked")??;
    let accepting = |replicas: &Replicas| replicas.sites.iter().filter(|site| good(site, &revoked.token)).count();
    let none = |accepting: &usize| *accepting == 0;
    until("it is refused everywhere", || Ok(accepting(replicas)), none)?;
    let site = Arc::into_inner(replicas.sites.remove(1)).context("a replica is held")?;
    replicas.sites.insert(1, Arc::new(site.restarted()?));
    ensure!(!good(&replicas.sites[1], &revoked.token), "good again after a restart");
    ensure!(
        replicas.sites.iter().all(|site| good(site, &other.token)),
        "another token"
    );
    Ok(())
}

fn frozen(said: &Said) -> bool {
    said.code != 0 && said.err.contains("a lockdown is in force")
}

/// Freezes the agent of a namespace; answers the version of the store that did.
fn lock(cluster: &Cluster, namespace: &str) -> Result<u64> {
    let object = cluster.create(&json!({
        "apiVersion": "sidegate.dev/v1alpha1", "kind": "Lockdown", "metadata": {"name": "incident"},
        "spec": {"reason": "test", "freeze": [{"serviceAccount": {"namespace": namespace, "name": "support"}}]},
    }))?;
    let version = object["metadata"]["resourceVersion"].as_str();
    Ok(version.unwrap_or_default().parse()?)
}

/// The deny revision that the sidecar of this replica says it holds.
fn holds(site: &Site) -> Option<u64> {
    let held = site.broker.front().streams.list();
    held.iter().map(|held| held.deny_revision).max()
}

fn denied(site: &Site) -> u64 {
    site.broker.front().lockdowns.now().set.revision
}

/// A lockdown cuts while the replica that a sidecar streams from dies; a replica that comes back knows it at once, one
/// that is behind what the sidecar has seen catches up, and lifting it works at whichever replica the sidecar is.
fn a_lockdown_holds_while_replicas_die_and_come_back(replicas: &mut Replicas) -> Result<()> {
    let agent = Agent::of(&replicas.cluster, Arc::clone(&replicas.sites[0]), |_| {})?;
    let shop = Shop::of(agent)?;
    shop.open()?;
    let sidecar = shop.agent.sidecar()?;
    until("the read", || shop.ask(NAME), |said| said.code == 0)?;
    replicas.service.to(&ports(&[&replicas.sites[1]]));
    let at_one = |replicas: &Replicas| replicas.sites[1].broker.status().sidecars;
    until(
        "its stream is there",
        || Ok(at_one(replicas)),
        |sidecars| *sidecars == 1,
    )?;
    let applied = lock(&replicas.cluster, &shop.agent.namespace)?;
    Arc::into_inner(replicas.sites.remove(1))
        .context("a replica is held")?
        .kill();
    replicas.service.to(&ports(&replicas.all()));
    until("it is frozen", || shop.ask(NAME), frozen)?;
    let all = |replicas: &Replicas| replicas.sites.iter().map(|site| denied(site)).collect::<Vec<_>>();
    until(
        "all consumed it",
        || Ok(all(replicas)),
        |all| all.iter().all(|at| *at >= applied),
    )?;
    // Whatever is written moves the store on, and with it what a replica has seen that starts now.
    replicas.cluster.namespace()?;
    let fresh = Arc::new(Site::join(&replicas.cluster, Arc::clone(&replicas.change))?);
    let ahead = denied(&fresh);
    ensure!(
        ahead > applied && all(replicas).iter().all(|at| *at < ahead),
        "{ahead} {:?}",
        all(replicas)
    );
    replicas.sites.insert(1, fresh);
    replicas.service.to(&ports(&[&replicas.sites[1]]));
    until(
        "it has it",
        || Ok(holds(&replicas.sites[1])),
        |held| *held >= Some(ahead),
    )?;
    for behind in [0, 2] {
        replicas.service.to(&ports(&[&replicas.sites[behind]]));
        until(
            "who was behind caught up",
            || Ok(denied(&replicas.sites[behind])),
            |at| *at >= ahead,
        )?;
    }
    let said = shop.ask(NAME)?;
    ensure!(said.code != 0, "it thawed at another replica: {said:?}");
    replicas.cluster.kubectl(&["delete", "lockdown", "incident"], "")?;
    let site = &replicas.sites[2];
    let empty = |site: &Site| site.broker.front().lockdowns.now().set.entries.is_empty();
    until("it is lifted", || Ok(empty(site)), |empty| *empty)?;
    let lifted = denied(site);
    ensure!(lifted > ahead, "{lifted} after {ahead}");
    until("and thawed", || Ok(holds(site)), |held| *held >= Some(lifted))?;
    let said = shop.ask(NAME)?;
    ensure!(
        said.code == 0,
        "its record, which began at a replica that is gone, goes on: {said:?}"
    );
    shop.agent.end(sidecar);
    Ok(())
}

/// The same operation is the same request at every replica; the one that was asked first dies before anybody decides, and
/// nothing is lost: the grant is claimed at another one, by one claim of all, and settled at a third.
fn a_request_of_one_that_died_is_claimed_once_at_the_others(replicas: &mut Replicas) -> Result<()> {
    let shop = Shop::of(Agent::of(&replicas.cluster, Arc::clone(&replicas.sites[0]), |_| {})?)?;
    let (agent, namespace) = (&shop.agent, &shop.agent.namespace);
    shop.open()?;
    let rule = "{name: refund, effect: Ask, sql: {commands: [Update]}, ask: {approvers: [{group: leads}]}}";
    agent.apply(&shop.policy("asking", rule))?;
    let role = [
        "create",
        "rolebinding",
        "approvers",
        "--clusterrole=sidegate-approver",
        "--group=leads",
    ];
    agent.kubectl(&role)?;
    let who = replicas.sites[0].attest(&agent.token()?, &key()?)?;
    let question = requests::question(namespace);
    let ask = |site: &Site| {
        let front = site.broker.front();
        let asked = front
            .approvals
            .ask(&who.subject, question.clone(), &front.index(), &front.lockdowns.now());
        asked.map_err(|error| error.to_string())
    };
    let asked = |site: &Site| until("it asks", || Ok(ask(site)), Result::is_ok)?.map_err(anyhow::Error::msg);
    let (first, second) = (asked(&replicas.sites[1])?, asked(&replicas.sites[2])?);
    ensure!(
        first.name == second.name,
        "two requests for one operation: {first:?} {second:?}"
    );
    let name = first.name;
    Arc::into_inner(replicas.sites.remove(1))
        .context("a replica is held")?
        .kill();
    requests::approved(&replicas.cluster, namespace, &name)?;
    let claim = |site: &Site, nonce: &str| {
        let front = site.broker.front();
        let claim = requests::claim(&question.digest, nonce);
        let (index, denied) = (front.index(), front.lockdowns.now());
        front.approvals.claim(&who.subject, &name, &claim, &index, &denied)
    };
    ensure!(claim(&replicas.sites[1], "one")?.won, "the grant is lost");
    ensure!(!claim(&replicas.sites[0], "two")?.won, "one approval, two uses");
    ensure!(
        claim(&replicas.sites[0], "one")?.won,
        "the same claim, whose answer was lost"
    );
    let outcome = requests::ended("one");
    let settled = replicas.sites[0]
        .broker
        .front()
        .approvals
        .outcome(&who.subject, &name, &outcome)?;
    ensure!(settled.state == outcome.state, "{settled:?}");
    ensure!(!claim(&replicas.sites[1], "one")?.won, "used again after its end");
    let fresh = Site::join(&replicas.cluster, Arc::clone(&replicas.change))?;
    replicas.sites.insert(1, Arc::new(fresh));
    Ok(())
}

fn authority(site: &Site) -> String {
    let held = site.broker.front().authority.held();
    held.map(|held| held.material().authority().0).unwrap_or_default()
}

fn published(cluster: &Cluster) -> Result<String> {
    let map = ["get", "configmap", "sidegate-broker-ca", "--namespace", NAMESPACE];
    cluster.kubectl(&[&map[..], &["-o", r"jsonpath={.data.ca\.crt}"]].concat(), "")
}

/// A sidecar that pinned the old authority goes on under the new one, and so does one that starts with the old one; no
/// replica that restarts costs it its stream for long. The new authority is published once all serve under it.
fn sidecars_outlive_a_new_authority_and_a_rolling_restart(replicas: &mut Replicas) -> Result<()> {
    let old = replicas.sites[0].broker.ca_pem.clone();
    until(
        "the authority is published",
        || published(&replicas.cluster),
        |pem| *pem == old,
    )?;
    let agent = Agent::of(&replicas.cluster, Arc::clone(&replicas.sites[0]), |_| {})?;
    let sidecar = agent.sidecar()?;
    let follower = (replicas.leader()? + 1) % 3;
    let front = Arc::clone(replicas.sites[follower].broker.front());
    let rolled = replicas.sites[follower].runtime.block_on(async move {
        let (tasks, now) = (front.tasks.clone(), front.clock.now());
        tasks
            .blocking(move || rotation::roll_authority(&front.authority, &front.audit, "test", now))
            .await
    });
    let rolled = rolled.context("it panicked")??;
    until(
        "every replica serves under it",
        || Ok(replicas.sites.iter().map(|site| authority(site)).collect::<Vec<_>>()),
        |names| names.iter().all(|name| *name == rolled.authority),
    )?;
    ensure!(
        published(&replicas.cluster)? == old,
        "published before every replica must serve under it"
    );
    let late = Agent::of(&replicas.cluster, Arc::clone(&replicas.sites[0]), |_| {})?;
    let second = late.sidecar()?;
    late.end(second);
    streams(replicas, "under the new authority")?;
    for turn in 1..replicas.sites.len() {
        let site = Arc::into_inner(replicas.sites.remove(turn)).context("a replica is held")?;
        replicas.sites.insert(turn, Arc::new(site.restarted()?));
    }
    streams(replicas, "after a rolling restart")?;
    replicas.clock.0.fetch_add(121_000, Ordering::SeqCst);
    let new = until(
        "the new one is published",
        || published(&replicas.cluster),
        |pem| *pem != old,
    );
    replicas.clock.0.store(0, Ordering::SeqCst);
    ensure!(new?.contains("BEGIN CERTIFICATE"), "a certificate");
    agent.end(sidecar);
    Ok(())
}

/// Moves every connection to each replica in turn, and sees the sidecar's stream arrive there.
fn streams(replicas: &Replicas, when: &str) -> Result<()> {
    for site in &replicas.sites {
        replicas.service.to(&ports(&[site]));
        until(
            &format!("the sidecar's stream is at the replica in its turn {when}"),
            || Ok(site.broker.status().sidecars),
            |sidecars| *sidecars >= 1,
        )?;
    }
    replicas.service.to(&ports(&replicas.all()));
    Ok(())
}

/// A leader that dies without a word is followed by another one, which publishes the next keys and renews the
/// certificate in time; a broker that joins later has all of it.
pub fn a_dead_leader_is_followed_by_one_that_rotates(programs: &Programs) -> Result<()> {
    let mut replicas = Replicas::start(programs)?;
    let before = replicas.agreed(RingName::Access)?;
    let dead = replicas.sites.remove(replicas.leader()?);
    Arc::into_inner(dead).context("the leader is held")?.kill();
    replicas.clock.0.store(21 * 24 * 3600 * 1000, Ordering::SeqCst);
    let leader = replicas.leader()?;
    let two = |replicas: &Replicas| replicas.agreed(RingName::Access);
    let after = until("the next key is published", || two(&replicas), |kids| kids.len() == 2)?;
    ensure!(after[0] == before[0], "the old one is kept: {before:?} {after:?}");
    let now = replicas.clock.now();
    for site in &replicas.sites {
        let published = site.broker.front().issuer.ring(RingName::Access).published(now);
        ensure!(published.len() == 2, "published");
        until(
            "the certificate is renewed",
            || Ok(site.broker.front().authority.not_after()),
            |until| *until > now + 29 * 24 * 3600,
        )?;
    }
    // A follower takes part without having been there.
    let site = Arc::clone(&replicas.sites[leader]);
    let served = site.broker.front().authority.held().context("nothing is served")?;
    let text = replicas.cluster.kubectl(
        &[
            "get",
            "secret",
            "sidegate-broker-tls",
            "--namespace",
            NAMESPACE,
            "-o",
            "go-template={{index .data \"authority\" | base64decode}}",
        ],
        "",
    )?;
    let stored = Material::parse(text.as_bytes())?;
    ensure!(
        stored.authority_pem() == served.material().authority_pem(),
        "the Secret"
    );
    drop((site, served));
    replicas.end();
    Ok(())
}
