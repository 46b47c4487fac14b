//! Keeps the webhook's certificates in a Secret that all replicas share, and the configurations' caBundle right.
//!
//! Refuses to make certificates where this replica does not lead, and to serve a leaf that the live caBundles do not
//! take while another one is served. Invariant: the Secret is written only as it was read, so that two leaders at once
//! still agree on one authority.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use kube::Client;
use sidegate_cluster::leader::Leader;
use sidegate_cluster::named::{Entries, Named, NotPut};
use sidegate_cluster::Failed;
use tokio_util::sync::CancellationToken;

use super::configurations::Configurations;
use crate::certificates::{Lives, Set};
use crate::probe::now;
use crate::served::Served;
use crate::task::Tasks;

/// The entry of the Secret.
const ENTRY: &str = "webhook";
/// What is due is looked for so often: nobody is called for it.
const EVERY: Duration = Duration::from_millis(250);
/// After a failure the API server is left alone for so long.
const PAUSE: Duration = Duration::from_secs(2);

/// What certificates are made for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The Secret of the own namespace that holds them. It must exist.
    pub secret: String,
    /// Every name that somebody may call us by.
    pub names: Vec<String>,
    /// How long they last.
    pub lives: Lives,
}

/// The certificates of one injector.
pub struct Keeper {
    wanted: Wanted,
    named: Arc<Named>,
    set: Arc<ArcSwapOption<Set>>,
    leader: Arc<Leader>,
    configurations: Arc<Configurations>,
    served: Arc<Served>,
}

/// Why a turn ended early.
#[derive(Debug, thiserror::Error)]
enum Stuck {
    #[error(transparent)]
    Certificate(#[from] sidegate_cluster::certificate::CertificateError),
    #[error("the Secret: {0}")]
    Secret(#[from] NotPut),
    #[error("the caBundle: {0}")]
    Bundle(#[from] Failed),
}

impl Keeper {
    /// Follows the Secret and keeps everything right until the injector stops.
    pub fn start(
        client: &Client,
        namespace: &str,
        wanted: Wanted,
        leader: Arc<Leader>,
        configurations: Arc<Configurations>,
        served: Arc<Served>,
        tasks: &Tasks,
    ) {
        let set = Arc::new(ArcSwapOption::<Set>::default());
        let cell = Arc::clone(&set);
        let reader = Box::new(move |entries: &Entries| read(entries, &cell));
        let named = Named::unread(client.clone(), namespace, wanted.secret.clone(), reader);
        tasks.spawn(Arc::clone(&named).run(tasks.stopping()));
        let keeper = Keeper {
            wanted,
            named,
            set,
            leader,
            configurations,
            served,
        };
        let stop = tasks.stopping();
        tasks.spawn(async move { keeper.run(stop).await });
    }

    async fn run(self, stop: CancellationToken) {
        let (mut secret, mut live) = (self.named.watch(), self.configurations.watch());
        // Since when every configuration names what the Secret holds.
        let mut told: Option<(String, i64)> = None;
        loop {
            self.offer();
            let mut pause = EVERY;
            if self.leader.leads() {
                if let Err(error) = self.turn(&mut told).await {
                    // What another replica wrote was taken; it is looked at again at once.
                    if !matches!(error, Stuck::Secret(NotPut::Changed)) {
                        tracing::warn!(%error, "the webhook's certificates cannot be kept now");
                        pause = PAUSE;
                    }
                }
            } else {
                told = None;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                Ok(()) = secret.changed() => {}
                Ok(()) = live.changed() => {}
            }
        }
    }

    /// Serves the present leaf once every live caBundle takes it; the first one at once, as there is nothing to lose.
    fn offer(&self) {
        let Some(set) = self.set.load_full() else { return };
        let Ok(certified) = set.certified() else { return };
        if let Some(held) = self.served.held() {
            if held.cert == certified.cert || !self.configurations.live().takes(&certified.cert, now()) {
                return;
            }
        }
        self.served.swap(certified);
        tracing::info!(set = set.told(), "the webhook's certificate is served");
    }

    async fn turn(&self, told: &mut Option<(String, i64)>) -> Result<(), Stuck> {
        let Some(set) = self.set.load_full() else {
            let first = Set::first(&self.wanted.names, &self.wanted.lives, now())?;
            // Where the Secret was not read yet, or holds something, nothing is written.
            return Ok(self.named.put(ENTRY, None, &first.print()?).await?);
        };
        let bundle = set.bundle();
        if self.configurations.live().has(&bundle) {
            let same = told.as_ref().is_some_and(|(known, _)| *known == bundle);
            if !same {
                *told = Some((bundle.clone(), now()));
            }
        } else {
            *told = None;
            self.configurations.write(&bundle).await?;
        }
        let since = told.as_ref().map(|(_, since)| *since);
        let Some(next) = set.due(&self.wanted.names, &self.wanted.lives, since, now())? else {
            return Ok(());
        };
        let planned_on = || self.set.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, &set));
        let held = self.named.entry_if(ENTRY, planned_on).ok_or(NotPut::Changed)?;
        self.named
            .put(ENTRY, held.as_deref().map(Vec::as_slice), &next.print()?)
            .await?;
        tracing::info!(set = next.told(), "the webhook's certificates were changed");
        Ok(())
    }
}

fn read(entries: &Entries, cell: &ArcSwapOption<Set>) -> Result<(), String> {
    let set = match entries.get(ENTRY) {
        Some(text) => Some(Arc::new(Set::parse(text).map_err(|error| error.to_string())?)),
        // Emptied by hand: the leader begins anew, and what is served is served until then.
        None => None,
    };
    cell.store(set);
    Ok(())
}
