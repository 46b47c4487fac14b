//! The watchdog: while this replica leads, it counts the pods of labelled namespaces that have no valid sidecar, tells
//! each of them once by an Event, and their number in the status of their InjectionProfile. Where the operator asked for it,
//! it has them evicted.
//!
//! Refuses to guess: where it could not look at everything, nothing is told, and an alert says that nobody counts. The
//! invariants: no pod is kept in memory longer than its page; a count is of one look, never put together from two.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client};
use serde_json::Value;
use sidegate_cluster::events::{self, warning, About};
use sidegate_cluster::{answered, Failed, Failing};
use sidegate_policies::objects::{Namespace, INJECT};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::evictions::{Candidate, Evictions};
use super::profiles::{ByProfile, Profiles};
use super::{Kind, Leader};
use crate::probe::now;
use crate::standing::{labelled_at, unprotected, Belief, Reason, Unprotected};

/// How often the leader looks.
pub const EVERY: Duration = Duration::from_secs(60);
/// After a look that saw not everything, the next one is soon.
const AGAIN: Duration = Duration::from_secs(5);
/// Whether it leads is looked at so often: nobody is called for it.
const NOTICE: Duration = Duration::from_millis(500);
/// Pods come in pages of so many.
const PAGE: u32 = 500;
/// Events of one look. The others come with the next ones.
const EVENTS: usize = 100;

/// Pods without a valid sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many there are, by reason; none: 0.
    pub pods: BTreeMap<Reason, i64>,
    /// When, seconds since 1970.
    pub at: i64,
}

/// The pods of all profiles, by reason.
fn together(profiles: &ByProfile) -> BTreeMap<Reason, i64> {
    let mut all = BTreeMap::new();
    for (reason, pods) in profiles.values().flatten() {
        let count: &mut i64 = all.entry(*reason).or_default();
        *count = count.saturating_add(*pods);
    }
    all
}

/// Looks.
pub struct Watchdog {
    client: Client,
    /// The injector's own namespace.
    home: String,
    leader: Arc<Leader>,
    every: Duration,
    /// Where the numbers are told besides, if they are.
    profiles: Option<Profiles>,
    /// Who makes room for better ones, if somebody does.
    evictions: Option<Evictions>,
    failing: Failing,
    /// UIDs of pods that were told of and still are without.
    told: HashSet<String>,
}

/// What one look found.
#[derive(Default)]
struct Look {
    profiles: ByProfile,
    seen: HashSet<String>,
    news: Vec<(About, Unprotected)>,
    candidates: Vec<Candidate>,
}

/// Why a look ended early.
#[derive(Debug, thiserror::Error)]
enum Blind {
    #[error(transparent)]
    Failed(#[from] Failed),
    #[error(
        "ConfigMap {} does not say yet what a sidecar must show; the broker's leader writes it",
        Belief::MAP
    )]
    Unsaid,
}

impl Watchdog {
    /// One that looks `every` so often while this leader leads.
    pub fn new(client: Client, home: &str, leader: Arc<Leader>, every: Duration, profiles: Option<Profiles>) -> Self {
        Watchdog {
            client,
            home: home.to_owned(),
            leader,
            every,
            profiles,
            evictions: None,
            failing: Failing::default(),
            told: HashSet::new(),
        }
    }

    /// Has what it finds evicted.
    pub fn evicting(mut self, evictions: Option<Evictions>) -> Self {
        self.evictions = evictions;
        self
    }

    /// Until told to stop. Nothing is counted where this replica does not lead, or could not look.
    pub async fn run(mut self, counted: watch::Sender<Option<Counted>>, stop: CancellationToken) {
        let mut looked: Option<Instant> = None;
        let mut pause = self.every;
        loop {
            if !self.leader.leads() {
                looked = None;
                counted.send_replace(None);
                self.rest();
            } else if looked.is_none_or(|at| at.elapsed() >= pause) {
                looked = Some(Instant::now());
                let found = tokio::select! {
                    () = stop.cancelled() => return,
                    found = self.look() => found,
                };
                pause = match &found {
                    Some(_) => self.every,
                    None => AGAIN.min(self.every),
                };
                counted.send_replace(found);
            }
            let waited = async {
                if let Some(evictions) = &mut self.evictions {
                    evictions.step(now()).await;
                }
                tokio::time::sleep(NOTICE.min(self.every)).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = waited => {}
            }
        }
    }

    async fn look(&mut self) -> Option<Counted> {
        let looked = self.looked().await;
        let at = now();
        self.report(looked.as_ref().ok().map(|look| &look.profiles), at).await;
        if looked.is_err() {
            self.rest();
        }
        match looked {
            Ok(look) => {
                if let Some(evictions) = &mut self.evictions {
                    evictions.offer(look.candidates, at);
                }
                self.tell(look.news).await;
                // Who ended, or got a sidecar, is forgotten.
                self.told.retain(|uid| look.seen.contains(uid));
                Some(Counted {
                    pods: together(&look.profiles),
                    at,
                })
            }
            Err(error @ Blind::Unsaid) => {
                tracing::info!(%error, "pods without a valid sidecar are not counted yet");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "pods without a valid sidecar cannot be counted now");
                None
            }
        }
    }

    fn rest(&mut self) {
        if let Some(evictions) = &mut self.evictions {
            evictions.rest();
        }
    }

    /// In the status of profiles; what could not be looked at whole is told as nothing there too.
    async fn report(&mut self, counted: Option<&ByProfile>, at: i64) {
        let Some(profiles) = &self.profiles else {
            return;
        };
        let written = profiles.tell_unprotected(counted, at).await;
        if let Some(error) = self.failing.news(&written) {
            tracing::warn!(%error, "the status of InjectionProfiles cannot be written");
        }
    }

    async fn looked(&self) -> Result<Look, Blind> {
        let belief = self.belief().await?;
        let namespaces: Api<DynamicObject> = Api::all_with(self.client.clone(), &Kind::Namespace.resource());
        let labelled = ListParams::default().labels(&format!("{INJECT}=enabled"));
        let mut look = Look::default();
        for stored in answered(namespaces.list(&labelled)).await?.items {
            let stored = serde_json::to_value(stored).unwrap_or_default();
            self.pods(&belief, &stored, &mut look).await?;
        }
        Ok(look)
    }

    async fn belief(&self) -> Result<Belief, Blind> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.home);
        let map = answered(maps.get_opt(Belief::MAP)).await?;
        let map = map.and_then(|map| serde_json::to_value(map).ok());
        map.as_ref().and_then(Belief::of).ok_or(Blind::Unsaid)
    }

    /// Looks at the pods of one namespace, page by page.
    async fn pods(&self, belief: &Belief, stored: &Value, look: &mut Look) -> Result<(), Blind> {
        let (namespace, since) = (Namespace::of(stored), labelled_at(stored));
        // Whole, as the server has them: fields that our types do not know count too.
        let resource = ApiResource::erase::<Pod>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace.name, &resource);
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = answered(api.list(&page)).await?;
            for pod in list.items {
                let about = About {
                    namespace: namespace.name.clone(),
                    name: pod.metadata.name.clone().unwrap_or_default(),
                    uid: pod.metadata.uid.clone().unwrap_or_default(),
                };
                let pod = serde_json::to_value(pod).unwrap_or_default();
                if let Some(why) = unprotected(belief, &namespace, since, &pod) {
                    if self.evictions.is_some() {
                        look.candidates
                            .extend(Candidate::of(&namespace, &about, why.reason, &pod));
                    }
                    self.found(namespace.profile(), about, why, look);
                }
            }
            match list.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => page = ListParams::default().limit(PAGE).continue_token(&next),
                None => return Ok(()),
            }
        }
    }

    fn found(&self, profile: &str, about: About, why: Unprotected, look: &mut Look) {
        let of_profile = look.profiles.entry(profile.to_owned()).or_default();
        let count = of_profile.entry(why.reason).or_default();
        *count = count.saturating_add(1);
        look.seen.insert(about.uid.clone());
        if !self.told.contains(&about.uid) && look.news.len() < EVENTS {
            look.news.push((about, why));
        }
    }

    async fn tell(&mut self, news: Vec<(About, Unprotected)>) {
        for (about, why) in news {
            let message = format!("No valid sidecar ({}): {}.", why.reason.as_str(), why.advice());
            let event = warning("sidegate-injector", &about, "Unprotected", &message);
            match events::write(&self.client, &event).await {
                Ok(()) => drop(self.told.insert(about.uid)),
                Err(error) => {
                    // The same would become of the others.
                    tracing::warn!(%error, "an Event cannot be written");
                    return;
                }
            }
        }
    }
}
