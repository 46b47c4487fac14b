//! The broker's authority, as the broker publishes it: what sidecars pin.
//!
//! Refuses what is no certificate: what was known before is used on. Invariant: until it was published nothing is known,
//! and no pod gets a sidecar that would trust nobody.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use sidegate_cluster::watch::{follow_one, Change};
use tokio::sync::watch;

use crate::install::Install;
use crate::task::Tasks;

/// The ConfigMap of the broker's namespace, and its entry.
const PUBLISHED: (&str, &str) = ("sidegate-broker-ca", "ca.crt");

/// Follows the authority of the broker in this namespace; answers the installation with it, once there is one.
pub fn follow_authority(
    client: &Client,
    namespace: &str,
    install: Install,
    tasks: &Tasks,
) -> watch::Receiver<Option<Arc<Install>>> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let (known, receiver) = watch::channel(None);
    let stop = tasks.stopping();
    tasks.spawn(async move {
        let told = |change: Result<Change<ConfigMap>, _>| {
            let found = match change {
                Ok(Change::All(found)) => found.into_iter().next(),
                Ok(Change::Put(found)) => Some(found),
                // Whoever deleted it ends no sidecar by that.
                Ok(Change::Gone(_)) => None,
                Err(error) => {
                    tracing::warn!(map = PUBLISHED.0, %error, "the broker's authority cannot be followed now");
                    None
                }
            };
            let pem = found.and_then(|map| map.data?.remove(PUBLISHED.1));
            match pem.map(|pem| install.with_authority(&pem)) {
                Some(Ok(install)) => drop(known.send_replace(Some(Arc::new(install)))),
                Some(Err(problems)) => tracing::error!(map = PUBLISHED.0, ?problems, "it is not used"),
                None => {}
            }
        };
        follow_one(api, PUBLISHED.0, stop, told).await;
    });
    receiver
}
