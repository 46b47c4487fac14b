//! Secrets of Targets, read by name at the moment a lease is given.
//!
//! Refuses a Secret whose owner did not grant it, and says which Role to apply. The invariant: one named Secret is
//! read for one lease, and nothing of it is kept here.

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use zeroize::{Zeroize as _, Zeroizing};

use super::{answered, Failed};
use crate::secrets::{NamedSecrets, SecretError};

const MAX_SECRET: usize = 64 * 1024;

/// Secrets of the cluster.
#[derive(Clone)]
pub struct ClusterSecrets {
    client: Client,
    /// Who we are to the API server.
    own_name: String,
}

impl ClusterSecrets {
    /// Over this client, as this user of the API server.
    pub fn new(client: Client, own_name: String) -> Self {
        ClusterSecrets { client, own_name }
    }

    async fn found(&self, namespace: &str, name: &str, keys: &[&str]) -> Result<Vec<Zeroizing<String>>, SecretError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let path = format!("Secret {namespace}/{name}");
        let secret = answered(api.get(name))
            .await
            .map_err(|failed| self.error(namespace, name, failed))?;
        let mut data = secret.data.unwrap_or_default();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let value = data
                .get(*key)
                .ok_or_else(|| SecretError::Missing(format!("{path}, key {key}")));
            found.push(value.and_then(|value| plain(&format!("{path}, key {key}"), &value.0)));
        }
        data.values_mut().for_each(|value| value.0.zeroize());
        found.into_iter().collect()
    }

    /// Whether the Secret could be read now, without reading it.
    pub async fn readable(&self, namespace: &str, name: &str) -> Result<(), SecretError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let asked = answered(api.get_metadata(name)).await;
        asked.map(|_| ()).map_err(|failed| self.error(namespace, name, failed))
    }

    fn error(&self, namespace: &str, name: &str, failed: Failed) -> SecretError {
        let path = format!("Secret {namespace}/{name}");
        match failed {
            Failed::Refused { code: 404, .. } => SecretError::Missing(path),
            Failed::Refused { code: 403, .. } => SecretError::NotGranted {
                path,
                grant: grant(&self.own_name, namespace, "secrets", name),
            },
            other => SecretError::Cluster {
                path,
                why: other.to_string(),
            },
        }
    }
}

impl NamedSecrets for ClusterSecrets {
    fn read<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Vec<Zeroizing<String>>, SecretError>> {
        Box::pin(self.found(namespace, name, keys))
    }
}

fn plain(path: &str, bytes: &[u8]) -> Result<Zeroizing<String>, SecretError> {
    let text = std::str::from_utf8(bytes).ok().filter(|_| bytes.len() <= MAX_SECRET);
    let text = text.ok_or_else(|| SecretError::Content(path.to_owned()))?;
    Ok(Zeroizing::new(text.strip_suffix('\n').unwrap_or(text).to_owned()))
}

/// What an owner runs to grant one named object to this user of the API server.
pub(super) fn grant(user: &str, namespace: &str, resource: &str, name: &str) -> String {
    granting(user, namespace, resource, name, "get")
}

/// The same with other verbs.
pub(super) fn granting(user: &str, namespace: &str, resource: &str, name: &str, verbs: &str) -> String {
    let whom = match user.strip_prefix("system:serviceaccount:") {
        Some(account) => format!("--serviceaccount={account}"),
        None => format!("--user={user}"),
    };
    let role = format!("sidegate-{resource}-{name}");
    format!(
        "kubectl -n {namespace} create role {role} --verb={verbs} --resource={resource} --resource-name={name} && \
         kubectl -n {namespace} create rolebinding {role} --role={role} {whom}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grant_names_one_secret_and_the_broker() {
        let grant = grant(
            "system:serviceaccount:sidegate-system:sidegate-broker",
            "data",
            "secrets",
            "orders",
        );
        assert!(
            grant.contains("--resource-name=orders") && grant.contains("-n data"),
            "{grant}"
        );
        assert!(
            grant.contains("--serviceaccount=sidegate-system:sidegate-broker"),
            "{grant}"
        );
    }
}
