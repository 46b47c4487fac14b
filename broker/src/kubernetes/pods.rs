//! Live pods: asked for one by one where somebody is attested, and watched for those already known.
//!
//! Refuses nothing itself. The invariants: what decides an attestation is read from the API server at that moment, or was
//! at most ten seconds ago and the watch tells the same; of a watched pod only what attestation reads is kept.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, RwLock};

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, Client};
use sidegate_policies::pod::fence::{Demands, Fenced};
use sidegate_policies::pod::shape::{list, text, Shape, SIDECAR};
use tokio_util::sync::CancellationToken;

use super::answered;
use super::egress;
use super::kinds::Kinds;
use super::watch::{follow, Change};
use crate::attest::{PodView, Pods, Unavailable};
use crate::pins::Instance;
use crate::task::Tasks;

/// Namespace and name.
type Name = (String, String);

/// Pods of the cluster.
pub struct ClusterPods {
    client: Client,
    audience: String,
    /// As last heard of; nothing until the first list was whole.
    known: RwLock<Option<HashMap<Name, PodView>>>,
    /// Namespaces and profiles, once they are followed.
    kinds: OnceLock<Arc<Kinds>>,
}

impl ClusterPods {
    /// Pods as this client sees them, followed from now on by a task.
    pub fn follow(client: Client, audience: String, tasks: &Tasks) -> Arc<Self> {
        let pods = Arc::new(ClusterPods {
            client,
            audience,
            known: RwLock::new(None),
            kinds: OnceLock::new(),
        });
        tasks.spawn("pods", Arc::clone(&pods).run(tasks.stopping()));
        pods
    }

    /// From now on these say what a pod's fence must be; before, nobody is attested.
    pub fn judged_by(&self, kinds: &Arc<Kinds>) {
        let _ = self.kinds.set(Arc::clone(kinds));
    }

    /// Looks at every pod that was last heard of.
    pub fn each(&self, look: impl FnMut(&PodView)) {
        let known = self.known.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.iter().flat_map(HashMap::values).for_each(look);
    }

    /// Follows every pod until told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let all: Api<Pod> = Api::all(self.client.clone());
        let told = |change: Result<_, watcher::Error>| match change {
            Ok(change) => self.take(change),
            Err(error) => tracing::warn!(%error, "pods cannot be followed now"),
        };
        follow(all, stop, |pod| view(pod, &self.audience), told).await;
    }

    /// Whether a pod that was there is gone or has ended, as last heard of; before the first list nothing is.
    pub fn is_gone(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let known = self.known.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(known) = known.as_ref() else { return false };
        let found = known.get(&(namespace.to_owned(), name.to_owned()));
        found.is_none_or(|pod| pod.uid != uid || !pod.alive)
    }

    fn take(&self, change: Change<PodView>) {
        let name = |view: &PodView| (view.namespace.clone(), view.name.clone());
        let mut known = self.known.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        match (change, known.as_mut()) {
            (Change::All(listed), _) => *known = Some(listed.into_iter().map(|view| (name(&view), view)).collect()),
            (Change::Put(view), Some(known)) => {
                known.insert(name(&view), view);
            }
            (Change::Gone(view), Some(known)) => {
                known.remove(&name(&view));
            }
            // Nothing is known before the first list.
            (Change::Put(_) | Change::Gone(_), None) => {}
        }
    }
}

impl Pods for ClusterPods {
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>> {
        Box::pin(async move {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let found = answered(pods.get_opt(name)).await.map_err(|error| {
                tracing::error!(%error, "a pod cannot be asked for");
                Unavailable
            })?;
            Ok(found.map(|pod| view(pod, &self.audience)))
        })
    }

    fn known<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>> {
        let key = (namespace.to_owned(), name.to_owned());
        let known = self.known.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        match known.as_ref() {
            Some(known) => {
                let found = known.get(&key).cloned();
                Box::pin(async move { Ok(found) })
            }
            None => self.pod(namespace, name),
        }
    }

    fn demanded(&self, namespace: &str) -> Result<Option<Demands>, Unavailable> {
        let kinds = self.kinds.get().ok_or(Unavailable)?;
        egress::demanded(namespace, |key| kinds.one_of(key)).map_err(|why| {
            tracing::warn!(namespace, why, "whether a fence is demanded is not known");
            Unavailable
        })
    }
}

/// What attestation reads of a pod.
fn view(pod: Pod, audience: &str) -> PodView {
    let (metadata, spec, status) = (
        pod.metadata,
        pod.spec.unwrap_or_default(),
        pod.status.unwrap_or_default(),
    );
    let ips = status.pod_ips.unwrap_or_default();
    let ips = ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect();
    // A native sidecar is reported among the init containers.
    let reported = status.init_container_statuses.unwrap_or_default();
    let sidecar = reported.into_iter().find(|container| container.name == SIDECAR);
    let instance = sidecar.map_or_else(Instance::default, |container| Instance {
        count: u64::try_from(container.restart_count).unwrap_or(0),
        container: container.container_id.unwrap_or_default(),
    });
    // A spec that cannot be written as JSON has no shape, and no shape is wrong.
    let plain = serde_json::to_value(&spec).unwrap_or_default();
    PodView {
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        uid: metadata.uid.unwrap_or_default(),
        service_account: spec.service_account_name.unwrap_or_default(),
        node: spec.node_name.unwrap_or_default(),
        labels: metadata.labels.unwrap_or_default(),
        ips: Some(ips),
        deleting: metadata.deletion_timestamp.is_some(),
        alive: matches!(status.phase.as_deref(), Some("Pending" | "Running")),
        instance,
        fenced: fenced(&plain),
        shape: Shape::of(&plain, audience),
    }
}

/// Of a pod without a sidecar nothing is kept: nobody is attested in it.
fn fenced(spec: &serde_json::Value) -> Fenced {
    let sidecar = list(spec, "initContainers").any(|container| text(container, "name") == SIDECAR);
    match sidecar {
        true => Fenced::of(spec),
        false => Fenced::default(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_native_sidecar_is_found_among_the_init_containers_of_a_pending_pod() {
        let pod = json!({
            "metadata": {"name": "agent", "namespace": "agents", "uid": "u", "labels": {"tier": "one"}},
            "spec": {"serviceAccountName": "support", "nodeName": "n", "containers": [{"name": "agent"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [
                {"name": "setup", "restartCount": 7, "containerID": "x", "image": "", "imageID": "", "ready": true},
                {"name": "sidegate", "restartCount": 2, "containerID": "containerd://a", "image": "", "imageID": "",
                 "ready": false},
            ]},
        });
        let seen = view(serde_json::from_value(pod.clone()).unwrap(), "ours");
        assert_eq!(
            (seen.instance.count, seen.instance.container.as_str()),
            (2, "containerd://a")
        );
        assert!(seen.alive && !seen.deleting);
        assert_eq!((seen.service_account.as_str(), seen.node.as_str()), ("support", "n"));
        let mut later = pod;
        later["metadata"]["deletionTimestamp"] = json!("2026-11-29T00:00:00Z");
        later["status"] = json!({"phase": "Succeeded"});
        let seen = view(serde_json::from_value(later).unwrap(), "ours");
        assert!(!seen.alive && seen.deleting);
        assert_eq!(seen.instance, Instance::default());
    }
}
