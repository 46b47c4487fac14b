//! ConfigMaps with our discovery document and keys, for what serves them to providers.
//!
//! Refuses a map that is not there or that the broker may not write, and says what to run: it makes none. One replica
//! writes, the others read what it wrote. The invariant: nothing else of a map is changed.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::leader::Leader;
use super::maps::ClusterMaps;
use super::secrets::granting;
use super::{answered, Failed};
use crate::credentials::publish::{Documents, KeyMaps, Unpublished};

/// Entries of a map.
const DISCOVERY: &str = "openid-configuration";
const JWKS: &str = "jwks";

/// ConfigMaps of the broker's own namespace.
pub struct PublishedMaps {
    client: Client,
    own_name: String,
    home: String,
    leader: Arc<Leader>,
}

impl PublishedMaps {
    /// Beside the maps that are read.
    pub fn new(maps: &ClusterMaps, leader: Arc<Leader>) -> Self {
        PublishedMaps {
            client: maps.client().clone(),
            own_name: maps.own_name().to_owned(),
            home: maps.home().to_owned(),
            leader,
        }
    }

    fn failed(&self, name: &str, failed: Failed) -> Unpublished {
        let path = format!("ConfigMap {}/{name}", self.home);
        let (reason, message) = match failed {
            Failed::Refused { code: 404, .. } => ("ConfigMapNotFound", format!("there is no {path}")),
            Failed::Refused { code: 403, .. } => {
                let grant = granting(&self.own_name, &self.home, "configmaps", name, "get,patch");
                (
                    "ConfigMapNotGranted",
                    format!("{path} is not granted to the broker; its owner runs: {grant}"),
                )
            }
            other => ("ConfigMapUnknown", format!("{path}: {other}")),
        };
        Unpublished { reason, message }
    }
}

impl KeyMaps for PublishedMaps {
    fn put<'a>(&'a self, name: &'a str, documents: &'a Documents) -> BoxFuture<'a, Result<String, Unpublished>> {
        Box::pin(async move {
            let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.home);
            let found = answered(api.get(name))
                .await
                .map_err(|failed| self.failed(name, failed))?;
            let data = found.data.unwrap_or_default();
            let (discovery, jwks) = (data.get(DISCOVERY), data.get(JWKS));
            if discovery == Some(&documents.discovery) && jwks == Some(&documents.jwks) {
                return Ok(documents.jwks.clone());
            }
            if !self.leader.leads() {
                return Ok(jwks.cloned().unwrap_or_default());
            }
            let patch = json!({"data": {DISCOVERY: documents.discovery, JWKS: documents.jwks}});
            let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
            let written = answered(api.patch(name, &parameters, &patch)).await;
            written.map_err(|failed| self.failed(name, failed))?;
            Ok(documents.jwks.clone())
        })
    }
}
