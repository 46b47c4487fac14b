//! What a broker stands on: one machine described by files, or a cluster by its API server.
//!
//! Refuses to start with any problem in the configuration of a machine, and lists all of them; in a cluster objects
//! are judged one by one while it runs. The invariant: everything above asks the same traits, whatever is below.

use std::sync::Arc;

use sidegate_policies::api::Lockdown;
use sidegate_policies::check::{is_digest, is_label};
use sidegate_policies::compile::Problem;
use sidegate_policies::objects::Objects;
use sidegate_policies::record::layout::is_replica;
use sidegate_policies::seal::Revisions;
use tokio::sync::watch;

use crate::attest::{AnyImage, Attestor, Issuers, Logged, Pods, TokenReviewer, Untimed};
use crate::clock::Clock;
use crate::config::{BrokerConfig, ClusterOptions, Machine, Place, Separation, StartError, HOME};
use crate::credentials::publish::KeyMaps;
use crate::folder::{Fingerprint, Folders};
use crate::in_force::InForce;
use crate::index::Withheld;
use crate::issuer::random_id;
use crate::keeper::{load, Watched};
use crate::kubernetes::{
    connect, findings, heard, own_name, reading, replica, Admission, At, Authorities, ClusterIssuers, ClusterMaps,
    ClusterPeople, ClusterPods, ClusterReviewer, ClusterSecrets, Conditions, Follower, KeySecret, Kinds, Leader,
    Measured, PinLeases, PinSweeper, PublishedMaps, RequestObjects, RevokedLeases, TlsSecret,
};
use crate::local_cluster::{LocalCluster, AUDIENCE};
use crate::pins::PinFiles;
use crate::records::Leads;
use crate::report::{Findings, Reporter};
use crate::secrets::{check_folder, SecretFolder, Secrets};
use crate::state::StateDir;
use crate::task::Tasks;

/// A configuration as it was read, before anything is started.
pub enum Read {
    /// A machine's, without a problem.
    Machine(Box<MachineRead>),
    /// A cluster is asked later.
    Cluster(ClusterOptions),
}

/// The files of a machine.
pub struct MachineRead {
    machine: Machine,
    folders: Folders,
    seen: Fingerprint,
    objects: Objects,
    warnings: Vec<Problem>,
}

/// What everything above stands on.
pub struct Ground {
    /// Who attests callers.
    pub attestor: Attestor,
    /// Where Secrets are.
    pub secrets: Secrets,
    /// The first objects.
    pub objects: Objects,
    /// Targets among them that are offered to nobody.
    pub withheld: Withheld,
    /// How far they were read, from a store that counts by itself.
    pub revisions: Option<Revisions>,
    /// The first Lockdowns.
    pub lockdowns: Vec<Lockdown>,
    /// What was found about them.
    pub findings: Findings,
    /// What separates the agent.
    pub separation: Separation,
    /// The double of a machine.
    pub local: Option<Arc<LocalCluster>>,
    /// Where later objects come from.
    pub follow: Follow,
    /// What the replicas of a cluster share; nothing on one machine, whose state directory holds it.
    pub shared: Option<Shared>,
}

/// What the replicas of a cluster share.
pub struct Shared {
    /// The key rings.
    pub keys: Arc<KeySecret>,
    /// Authority and leaf.
    pub tls: Arc<TlsSecret>,
    /// Revoked tokens.
    pub revoked: Arc<RevokedLeases>,
    /// Operations that wait for people.
    pub requests: Arc<RequestObjects>,
    /// As of which versions of the store the first objects are.
    pub at: At,
    /// Who people are and what they may.
    pub people: Arc<ClusterPeople>,
}

/// Where later objects come from.
pub enum Follow {
    /// Folders.
    Folders(Folders, Fingerprint),
    /// The API server.
    Kinds {
        /// What people applied.
        kinds: Arc<Kinds>,
        /// What was found about it, Lockdowns left out.
        found: reading::About,
        /// What was found about Lockdowns.
        locked: reading::About,
        /// Where Secrets are.
        secrets: ClusterSecrets,
        /// ConfigMaps that Targets name.
        maps: Arc<ClusterMaps>,
        /// Live pods.
        pods: Arc<ClusterPods>,
        /// What sidecars told other replicas of their fences.
        measured: Arc<Measured>,
        /// Whether this replica leads.
        leader: Arc<Leader>,
    },
}

impl Follow {
    /// Whether this replica of a cluster leads.
    pub fn leads(&self) -> Option<Leads> {
        match self {
            Follow::Folders(..) => None,
            Follow::Kinds { leader, .. } => {
                let leader = Arc::clone(leader);
                Some(Leads(Arc::new(move || leader.leads())))
            }
        }
    }

    /// Where keys are published in a cluster.
    pub fn key_maps(&self) -> Option<Arc<dyn KeyMaps>> {
        match self {
            Follow::Folders(..) => None,
            Follow::Kinds { maps, leader, .. } => Some(Arc::new(PublishedMaps::new(maps, Arc::clone(leader)))),
        }
    }
}

impl Read {
    /// Everything wrong with the configuration, before anything is started.
    pub fn config(config: &BrokerConfig) -> Result<Read, StartError> {
        let mut problems = Vec::new();
        let mut say = |field: &str, message: String| {
            problems.push(Problem {
                file: None,
                line: None,
                column: None,
                object: None,
                field: field.to_owned(),
                message,
            });
        };
        label(&mut say, "cluster", &config.cluster);
        for (field, url) in [("--front-url", &config.front_url), ("--issuer-url", &config.issuer_url)] {
            if url.as_deref().is_some_and(|url| host(url).is_none()) {
                let url = url.as_deref().unwrap_or_default();
                say(
                    field,
                    format!("`{url}` is not https://HOST or https://HOST:PORT, without a path"),
                );
            }
        }
        share(&mut say, config);
        let machine = match &config.place {
            Place::Cluster(options) => {
                label(&mut say, "--namespace", &options.namespace);
                label(&mut say, "--name", &options.name);
                if let Some(digest) = options
                    .admission
                    .sidecar_digest
                    .as_deref()
                    .filter(|digest| !is_digest(digest))
                {
                    say(
                        "--sidecar-digest",
                        format!("`{digest}` is not sha256: and 64 hex digits"),
                    );
                }
                return if problems.is_empty() {
                    Ok(Read::Cluster(options.clone()))
                } else {
                    Err(StartError::Config(problems))
                };
            }
            Place::Machine(machine) => machine,
        };
        label(&mut say, "--as namespace", &machine.identity.namespace);
        label(&mut say, "--as name", &machine.identity.service_account);
        if let Some(Err(error)) = machine.secrets_dir.as_deref().map(check_folder) {
            say("--secrets", error.to_string());
        }
        let folders = Folders::new(machine.config_dirs.clone());
        let seen = folders.fingerprint();
        match load(&folders) {
            Ok((objects, warnings)) if problems.is_empty() => Ok(Read::Machine(Box::new(MachineRead {
                machine: machine.clone(),
                folders,
                seen,
                objects,
                warnings,
            }))),
            Ok(_) => Err(StartError::Config(problems)),
            Err(more) => {
                problems.extend(more);
                Err(StartError::Config(problems))
            }
        }
    }
}

/// What is wrong with sharing a record store.
fn share(say: &mut impl FnMut(&str, String), config: &BrokerConfig) {
    let Some(shared) = &config.shared_records else { return };
    if !is_replica(&shared.replica) {
        say(
            "--replica",
            format!("`{}` is not a name (a-z, 0-9, dashes)", shared.replica),
        );
    }
    if matches!(config.place, Place::Machine(_)) {
        say(
            "--records",
            "only the brokers of a cluster share a record store".to_owned(),
        );
    }
}

fn label(say: &mut impl FnMut(&str, String), field: &str, name: &str) {
    if !is_label(name) {
        say(field, format!("`{name}` is not a Kubernetes name (a-z, 0-9, dashes)"));
    }
}

/// The host of `https://HOST[:PORT]`; nothing of anything else. An issuer's URL is compared byte for byte, so no other
/// spelling of it is taken.
pub fn host(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://")?;
    let uri: http::Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let plain = authority.as_str() == rest && !rest.contains('@') && *rest == rest.to_ascii_lowercase();
    let host = authority.host();
    plain
        .then(|| &rest[..host.len()])
        .map(|host| host.trim_matches(['[', ']']))
}

/// A machine.
pub fn machine(read: Box<MachineRead>, config: &BrokerConfig, state: &Arc<StateDir>) -> Result<Ground, StartError> {
    let (clock, identity) = (Arc::clone(&config.clock), &read.machine.identity);
    let mut objects = read.objects;
    objects.settle_authorities(HOME);
    let cluster = Arc::new(LocalCluster::open(Arc::clone(state), identity, Arc::clone(&clock))?);
    Ok(Ground {
        attestor: Attestor {
            audience: AUDIENCE.to_owned(),
            issuers: Arc::clone(&cluster) as Arc<dyn Issuers>,
            reviewer: Arc::clone(&cluster) as Arc<dyn TokenReviewer>,
            pods: Arc::clone(&cluster) as Arc<dyn Pods>,
            pins: Arc::new(PinFiles::open(state)?),
            notices: Arc::new(Logged),
            images: Arc::new(AnyImage),
            strangers: Default::default(),
            looked: Default::default(),
            timed: Arc::new(Untimed),
            clock,
        },
        secrets: Secrets::Folder(SecretFolder::new(read.machine.secrets_dir.clone())),
        lockdowns: objects.lockdowns(),
        objects,
        withheld: Withheld::default(),
        revisions: None,
        findings: Findings {
            problems: Vec::new(),
            warnings: read.warnings,
        },
        separation: identity.separation.clone(),
        local: Some(cluster),
        follow: Follow::Folders(read.folders, read.seen),
        shared: None,
    })
}

/// What is below the ground of a cluster.
pub(crate) struct Below<'a> {
    /// The broker's private folder.
    pub state: &'a Arc<StateDir>,
    /// The issuer's name.
    pub issuer_url: &'a str,
    /// What the certificate of both faces is for.
    pub names: &'a [String],
    /// All tasks.
    pub tasks: &'a Tasks,
}

/// A cluster. Its own audience is the issuer's URL: a token for another broker is nobody's here.
pub(crate) async fn cluster(
    options: &ClusterOptions,
    below: Below<'_>,
    clock: Arc<dyn Clock>,
) -> Result<Ground, StartError> {
    let (issuer_url, tasks) = (below.issuer_url, below.tasks);
    let client = connect(options).await?;
    let own_name = own_name(&client).await?;
    let secrets = ClusterSecrets::new(client.clone(), own_name.clone());
    let maps = ClusterMaps::new(client.clone(), own_name, &options.namespace, Arc::clone(&clock));
    let maps = Arc::new(maps);
    let issuers = Arc::new(ClusterIssuers::open(client.clone(), Arc::clone(&clock)).await?);
    tasks.spawn("issuers", Arc::clone(&issuers).run(tasks.stopping()));
    let pods = ClusterPods::follow(client.clone(), issuer_url.to_owned(), tasks);
    let unique = random_id().map_err(|error| StartError::crypto("a name of this replica", error))?;
    let (leader, measured) = replica(&client, options, sidegate_cluster::leader::name(&unique), tasks);
    let led = Arc::clone(&leader);
    let keys = KeySecret::open(client.clone(), options, led, below.state, clock.now(), tasks).await?;
    let (led, time) = (Arc::clone(&leader), Arc::clone(&clock));
    let tls = TlsSecret::open(client.clone(), options, led, below.names, time, tasks).await?;
    let (led, time) = (Arc::clone(&leader), Arc::clone(&clock));
    let revoked = RevokedLeases::open(client.clone(), &options.namespace, led, time, tasks).await?;
    let requests = RequestObjects::open(&client, &leader, &pods, &clock, tasks).await?;
    let sweeper = PinSweeper::new(client.clone(), &options.namespace, Arc::clone(&clock));
    tasks.spawn("pins", sweeper.run(Arc::clone(&leader), tasks.stopping()));
    let admission = Admission::open(&client, options, issuer_url, pinned(&tls, &clock)).await;
    let (events, people) = heard(&client, &clock, tasks);
    let kinds = Kinds::follow(client.clone(), tasks).await?;
    pods.judged_by(&kinds);
    let kept = Arc::clone(&admission).run(Arc::clone(&leader), kinds.rest(), tasks.stopping());
    tasks.spawn("admission", kept);
    let (stored, at) = kinds.read();
    maps.refresh(&stored).await;
    let mut read = reading::read(&stored, &maps.known());
    read.objects.settle_authorities(maps.home());
    let (lockdowns, locked) = reading::lockdowns(&stored);
    Ok(Ground {
        attestor: Attestor {
            audience: issuer_url.to_owned(),
            issuers,
            reviewer: Arc::new(ClusterReviewer::new(client.clone(), Arc::clone(&clock))),
            pods: pods.clone(),
            pins: Arc::new(PinLeases::new(client, &options.namespace)),
            notices: Arc::new(events),
            images: admission,
            strangers: Default::default(),
            looked: Default::default(),
            timed: Arc::new(Untimed),
            clock,
        },
        secrets: Secrets::Cluster(Arc::new(secrets.clone())),
        objects: read.objects,
        withheld: read.withheld,
        revisions: Some(at.rest.clone()),
        lockdowns,
        findings: findings(&read.found),
        separation: Separation::None,
        local: None,
        follow: Follow::Kinds {
            kinds,
            found: read.found,
            locked,
            secrets,
            maps,
            pods,
            measured,
            leader,
        },
        shared: Some(Shared {
            keys,
            tls,
            revoked,
            requests,
            at,
            people,
        }),
    })
}

/// What a pod made now may pin: the authority that is published, and the one that will be.
fn pinned(tls: &TlsSecret, clock: &Arc<dyn Clock>) -> Box<Authorities> {
    let (served, clock) = (tls.served(), Arc::clone(clock));
    Box::new(move || {
        let Some(held) = served.held() else {
            return Vec::new();
        };
        let mut all = vec![
            held.material().published_pem(clock.now()).to_owned(),
            held.material().authority_pem().to_owned(),
        ];
        all.dedup();
        all
    })
}

/// Follows what comes later: a machine's folders are the keeper's to watch, a cluster's kinds have tasks of their own.
pub fn follow(follow: Follow, in_force: InForce, reporter: &Arc<Reporter>) -> Option<Watched> {
    match follow {
        Follow::Folders(folders, seen) => Some(Watched {
            folders,
            seen,
            in_force,
            again: false,
        }),
        Follow::Kinds {
            kinds,
            found,
            locked,
            secrets,
            maps,
            pods,
            measured,
            leader,
        } => {
            let tasks = &reporter.front.tasks;
            let follower = Arc::new(Follower {
                kinds: Arc::clone(&kinds),
                maps: Arc::clone(&maps),
                in_force,
                reporter: Arc::clone(reporter),
                found: watch::channel(Arc::new(found)).0,
                locked: watch::channel(Arc::new(locked)).0,
            });
            let conditions = Conditions {
                kinds,
                front: Arc::clone(&reporter.front),
                found: follower.found.subscribe(),
                locked: follower.locked.subscribe(),
                secrets,
                maps,
                pods,
                measured: Arc::clone(&measured),
                leader,
                asked: Default::default(),
            };
            tasks.spawn("lockdowns", Arc::clone(&follower).lockdowns(tasks.stopping()));
            tasks.spawn("kinds", follower.rest(tasks.stopping()));
            let front = Arc::clone(&reporter.front);
            tasks.spawn("measured", measured.run(front, tasks.stopping()));
            tasks.spawn("conditions", conditions.run(tasks.stopping()));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_host_and_nothing_else() {
        assert_eq!(
            host("https://broker.sidegate-system.svc"),
            Some("broker.sidegate-system.svc")
        );
        assert_eq!(host("https://127.0.0.1:8443"), Some("127.0.0.1"));
        assert_eq!(host("https://[::1]:8443"), Some("::1"));
        for other in [
            "http://broker",
            "https://",
            "broker:8443",
            "https://broker/",
            "https://broker/path",
            "https://broker?x=y",
            "https://user@broker",
            "https://Broker",
            "https://broker#x",
        ] {
            assert_eq!(host(other), None, "{other}");
        }
    }
}
