//! The local cluster double: it issues a service-account-style token, reviews it, and shows one synthetic pod.
//!
//! Local mode attests through the same traits as a cluster does. Refuses nothing by itself: the attestor judges
//! what it shows. The invariant: one pod, whose UID lives in the state, whose instance counts up per start.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{symlink, DirBuilderExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use serde_json::json;

use crate::attest::{ClusterTrust, Issuers, PodView, Pods, Review, Shape, TokenReviewer, Unavailable, SIDECAR};
use crate::clock::Clock;
use crate::config::{Identity, StartError};
use crate::issuer::{load_cluster_key, random_id};
use crate::jwt::{accept, Alg, KeySet, SigningKey, Slot, Trust};
use crate::pins::Instance;
use crate::state::{write_private, StateDir, StateError};

/// The issuer of local service-account tokens.
pub const CLUSTER_ISSUER: &str = "https://cluster.local.sidegate.invalid";
/// The audience of local service-account tokens.
pub const AUDIENCE: &str = "sidegate-broker";
/// Life of a service-account token, seconds.
pub const TOKEN_LIFE: i64 = 3600;
const NODE: &str = "localhost";

/// The double.
pub struct LocalCluster {
    key: SigningKey,
    trust: Arc<ClusterTrust>,
    identity: Identity,
    pod: String,
    pod_uid: String,
    account_uid: String,
    instance: Mutex<Instance>,
    labels: BTreeMap<String, String>,
    folder: PathBuf,
    state: Arc<StateDir>,
    clock: Arc<dyn Clock>,
}

impl LocalCluster {
    /// Loads or makes the double's key and UIDs, counts the instance up, and writes the first token.
    pub fn open(state: Arc<StateDir>, identity: &Identity, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let key = load_cluster_key(&state)?;
        let account = format!("{}.{}", identity.namespace, identity.service_account);
        state.dir("pods")?;
        let uid = |name: String| -> Result<String, StartError> {
            let fresh = || Ok::<_, StartError>(uuid::Uuid::now_v7().to_string().into_bytes());
            let bytes = state.read_or_create(&name, fresh)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        let cluster = LocalCluster {
            trust: Arc::new(ClusterTrust {
                issuer: CLUSTER_ISSUER.to_owned(),
                keys: KeySet::new(vec![key.public().clone()]),
                algorithms: vec![Alg::Es256],
            }),
            key,
            identity: identity.clone(),
            pod: format!("{}-local", identity.service_account),
            pod_uid: uid(format!("pods/{account}.pod"))?,
            account_uid: uid(format!("pods/{account}.account"))?,
            instance: Mutex::new(next_instance(&state)?),
            labels: identity.labels.clone(),
            folder: state.dir("serviceaccount")?,
            state,
            clock,
        };
        cluster.write_token()?;
        Ok(cluster)
    }

    /// The token's path, as a sidecar opens it for every use.
    pub fn token_file(&self) -> PathBuf {
        self.folder.join("token")
    }

    /// The pod's UID.
    pub fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// The pod's name.
    pub fn pod_name(&self) -> &str {
        &self.pod
    }

    /// The present instance.
    pub fn instance(&self) -> Instance {
        self.instance
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// The sidecar was started again by itself: a newer instance, which may bring a new key.
    pub fn restarted(&self) -> Result<u64, StartError> {
        let next = next_instance(&self.state)?;
        let count = next.count;
        *self.instance.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = next;
        Ok(count)
    }

    /// A fresh token with the claims a cluster would write.
    pub fn issue(&self) -> Result<String, StartError> {
        let now = self.clock.now();
        let identity = &self.identity;
        let claims = json!({
            "iss": CLUSTER_ISSUER,
            "sub": format!("system:serviceaccount:{}:{}", identity.namespace, identity.service_account),
            "aud": [AUDIENCE],
            "iat": now, "nbf": now, "exp": now.saturating_add(TOKEN_LIFE),
            "jti": random_id().map_err(|error| StartError::crypto("a token id", error))?,
            "kubernetes.io": {
                "namespace": identity.namespace,
                "serviceaccount": {"name": identity.service_account, "uid": self.account_uid},
                "pod": {"name": self.pod, "uid": self.pod_uid},
                "node": {"name": NODE, "uid": NODE},
            },
        });
        self.key
            .sign(None, &claims)
            .map_err(|error| StartError::crypto("a service-account token", error))
    }

    /// Writes a fresh token the way the kubelet does: a new directory, then `..data` swapped by rename.
    pub fn write_token(&self) -> Result<(), StartError> {
        let token = self.issue()?;
        let fresh = format!(
            "..{}",
            random_id().map_err(|error| StartError::crypto("a name", error))?
        );
        let old = fs::read_link(self.folder.join("..data")).ok();
        let wrap = |path: &Path, error: io::Error| {
            StartError::State(StateError::Io {
                path: path.display().to_string(),
                source: error,
            })
        };
        let folder = self.folder.join(&fresh);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(|error| wrap(&folder, error))?;
        write_private(&folder.join("token"), token.as_bytes())?;
        let swap = self.folder.join("..data_new");
        let _ = fs::remove_file(&swap);
        symlink(&fresh, &swap).map_err(|error| wrap(&swap, error))?;
        let data = self.folder.join("..data");
        fs::rename(&swap, &data).map_err(|error| wrap(&data, error))?;
        let link = self.token_file();
        if fs::symlink_metadata(&link).is_err() {
            symlink("..data/token", &link).map_err(|error| wrap(&link, error))?;
        }
        if let Some(old) = old {
            let _ = fs::remove_dir_all(self.folder.join(old));
        }
        Ok(())
    }

    /// The synthetic pod.
    pub fn view(&self) -> PodView {
        PodView {
            namespace: self.identity.namespace.clone(),
            name: self.pod.clone(),
            uid: self.pod_uid.clone(),
            service_account: self.identity.service_account.clone(),
            node: NODE.to_owned(),
            labels: self.labels.clone(),
            ips: None,
            deleting: false,
            alive: true,
            instance: self.instance(),
            shape: Shape {
                token_volumes: vec!["sidegate-token".to_owned()],
                mounted_by: vec![(SIDECAR.to_owned(), true)],
                intruders: Vec::new(),
                image: String::new(),
            },
            fenced: Default::default(),
        }
    }

    fn judge(&self, token: &str, audience: &str) -> Review {
        let trust = Trust {
            issuer: &self.trust.issuer,
            keys: &self.trust.keys,
            algorithms: &self.trust.algorithms,
            audience,
            denied: &|_| false,
        };
        match accept(Slot::ServiceAccount, token.as_bytes(), trust, self.clock.now()) {
            Ok(accepted) => Review {
                authenticated: true,
                error: None,
                audiences: vec![audience.to_owned()],
                user: accepted.text("sub").to_owned(),
                groups: vec![
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{}", self.identity.namespace),
                ],
                pod_uid: accepted
                    .claim("kubernetes.io")
                    .and_then(|bound| bound.pointer("/pod/uid"))
                    .and_then(|uid| uid.as_str())
                    .map(str::to_owned),
                credential_id: Some(format!("JTI={}", accepted.text("jti"))),
            },
            Err(error) => Review {
                error: Some(error.to_string()),
                ..Review::default()
            },
        }
    }
}

fn next_instance(state: &StateDir) -> Result<Instance, StartError> {
    Ok(Instance {
        count: state.count("instance")?,
        container: random_id().map_err(|error| StartError::crypto("a container id", error))?,
    })
}

impl Issuers for LocalCluster {
    fn trust(&self) -> Arc<ClusterTrust> {
        Arc::clone(&self.trust)
    }

    fn renew(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }
}

impl TokenReviewer for LocalCluster {
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> BoxFuture<'a, Result<Review, Unavailable>> {
        let review = self.judge(token, audience);
        Box::pin(async move { Ok(review) })
    }
}

impl Pods for LocalCluster {
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<PodView>, Unavailable>> {
        let known = namespace == self.identity.namespace && name == self.pod;
        let view = known.then(|| self.view());
        Box::pin(async move { Ok(view) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn the_token_file_is_swapped_by_symlink_and_the_pod_uid_survives_restarts() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("state");
        let open = || {
            let state = Arc::new(StateDir::open(&root).unwrap());
            LocalCluster::open(state, &Identity::default(), Arc::new(SystemClock)).unwrap()
        };
        let cluster = open();
        let path = cluster.token_file();
        let first = fs::read_to_string(&path).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        cluster.write_token().unwrap();
        let second = fs::read_to_string(&path).unwrap();
        assert_ne!(first, second);
        let (uid, instance) = (cluster.pod_uid().to_owned(), cluster.instance());
        drop(cluster);
        let again = open();
        assert_eq!(again.pod_uid(), uid);
        assert_eq!(again.instance().count, instance.count + 1);
        assert_eq!(fs::read_dir(root.join("serviceaccount")).unwrap().count(), 3);
    }
}
