//! The authority and the leaf in a Secret that all replicas share, and the authority's certificate where everybody may
//! read it.
//!
//! Refuses to serve a set whose parts do not fit together: what was served before is served on. The invariant: the
//! leader alone makes and publishes; nobody but the broker reads the Secret.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::named::{Entries, Named, NotPut};
use super::{answered, Failed, Leader};
use crate::authority::material::Material;
use crate::authority::{AuthorityError, Held, Home, Served};
use crate::clock::Clock;
use crate::config::{ClusterOptions, StartError};
use crate::task::Tasks;

/// The entry of the Secret.
const ENTRY: &str = "authority";
/// The ConfigMap that holds the authority's certificate, and its entry.
const PUBLISHED: (&str, &str) = ("sidegate-broker-ca", "ca.crt");
/// A leader that died is followed by another one, which fills the Secret, within this.
const FILLED: Duration = Duration::from_secs(45);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// What is published is looked at so often.
const PUBLISH_EVERY: Duration = Duration::from_secs(10);

/// The authority of a cluster's broker.
pub struct TlsSecret {
    named: Arc<Named>,
    leader: Arc<Leader>,
    served: Arc<Served>,
    maps: Api<ConfigMap>,
    clock: Arc<dyn Clock>,
}

impl TlsSecret {
    /// Reads the set, follows it, and makes it at the first start if this replica leads, for these names.
    pub async fn open(
        client: Client,
        options: &ClusterOptions,
        leader: Arc<Leader>,
        names: &[String],
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, StartError> {
        let served = Arc::new(Served::default());
        let cell = Arc::clone(&served);
        let reader = Box::new(move |entries: &Entries| read(entries, &cell));
        let name = format!("{}-tls", options.name);
        let named = Named::open(client.clone(), &options.namespace, name, reader)
            .await
            .map_err(StartError::cluster)?;
        tasks.spawn("tls", Arc::clone(&named).run(tasks.stopping()));
        let tls = Arc::new(TlsSecret {
            named,
            leader,
            served,
            maps: Api::namespaced(client, &options.namespace),
            clock,
        });
        match tokio::time::timeout(FILLED, tls.fill(names)).await {
            Ok(filled) => filled?,
            Err(_) => {
                return Err(StartError::cluster(format!(
                    "Secret {}-tls is not filled within {} s: no replica leads",
                    options.name,
                    FILLED.as_secs()
                )))
            }
        }
        tasks.spawn("authority", Arc::clone(&tls).publish(tasks.stopping()));
        Ok(tls)
    }

    /// What is served.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served)
    }

    async fn fill(&self, names: &[String]) -> Result<(), StartError> {
        while self.served.held().is_none() {
            if !self.leader.leads() {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            let made = Material::first(names, self.clock.now()).and_then(|made| made.print());
            let made = made.map_err(|error| StartError::crypto("the CA", error))?;
            match self.named.put(ENTRY, None, &made).await {
                Ok(()) | Err(NotPut::Changed) => {}
                Err(error) => return Err(StartError::cluster(format!("the Secret with the authority: {error}"))),
            }
        }
        Ok(())
    }

    /// Keeps the published certificate right until told to stop, while this replica leads.
    async fn publish(self: Arc<Self>, stop: CancellationToken) {
        let mut changed = self.named.watch();
        loop {
            if self.leader.leads() {
                if let Err(error) = self.published().await {
                    tracing::warn!(%error, map = PUBLISHED.0, "the authority's certificate cannot be published");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                told = changed.changed() => if told.is_err() { return },
                () = tokio::time::sleep(PUBLISH_EVERY) => {}
            }
        }
    }

    async fn published(&self) -> Result<(), Failed> {
        let Some(held) = self.served.held() else { return Ok(()) };
        let pem = held.material().published_pem(self.clock.now());
        let map = answered(self.maps.get(PUBLISHED.0)).await?;
        let there: BTreeMap<String, String> = map.data.unwrap_or_default();
        if there.get(PUBLISHED.1).is_some_and(|there| there == pem) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"data": {PUBLISHED.1: pem}}));
        answered(self.maps.patch(PUBLISHED.0, &PatchParams::default(), &patch)).await?;
        tracing::info!(map = PUBLISHED.0, "the authority's certificate is published");
        Ok(())
    }
}

impl Home for TlsSecret {
    fn put(&self, before: &Arc<Held>, next: Material) -> Result<(), AuthorityError> {
        let shared = |error: &dyn std::fmt::Display| AuthorityError::Shared(error.to_string());
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| shared(&error))?;
        let planned_on = || self.served.held().is_some_and(|held| Arc::ptr_eq(&held, before));
        let held = self.named.entry_if(ENTRY, planned_on).ok_or(AuthorityError::Changed)?;
        let text = next.print()?;
        // What is taken from the Secret is served: see `read`.
        let put = self.named.put(ENTRY, held.as_deref().map(Vec::as_slice), &text);
        runtime.block_on(put).map_err(|error| match error {
            NotPut::Changed => AuthorityError::Changed,
            NotPut::Failed(error) => shared(&error),
        })
    }

    fn renews(&self) -> bool {
        self.leader.leads()
    }
}

fn read(entries: &Entries, served: &Served) -> Result<(), String> {
    match entries.get(ENTRY) {
        Some(text) => {
            let swapped = Material::parse(text).and_then(|material| served.swap(material));
            swapped.map_err(|error| error.to_string())
        }
        None if served.held().is_some() => Err("the authority is gone; put it back from a copy".to_owned()),
        None => Ok(()),
    }
}
