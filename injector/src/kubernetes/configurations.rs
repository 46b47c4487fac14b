//! The webhook configurations that call this injector: what caBundle each entry has, and writing it.
//!
//! Refuses nothing. Invariant: what is written is the caBundle of the entries that are there, and no other field: all
//! else is the chart's, and server-side apply keeps the two apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhook, MutatingWebhookConfiguration, ValidatingWebhook, ValidatingWebhookConfiguration,
    WebhookClientConfig,
};
use k8s_openapi::ByteString;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde_json::{json, Value};
use sidegate_cluster::watch::{follow_one, Change};
use sidegate_cluster::{answered, Failed};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::task::Tasks;
use crate::trust::verifies;

/// Who owns the field, in words of server-side apply.
const MANAGER: &str = "sidegate-webhook-certificates";

/// One entry of a configuration, as the API server calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name that the certificate must have.
    pub name: String,
    /// The authorities it may be under, PEM.
    pub bundle: Option<String>,
}

/// Entries by their names.
type Entries = BTreeMap<String, Entry>;

/// The configurations as they were last heard of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Live {
    mutating: Option<Entries>,
    validating: Option<Entries>,
}

impl Live {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let all = [&self.mutating, &self.validating];
        all.into_iter().flatten().flat_map(|entries| entries.values())
    }

    /// What somebody may call us by and check with, each once.
    ///
    /// # Errors
    /// Nobody calls us, or an entry has no caBundle: its calls would fail.
    pub fn trusted(&self) -> Result<BTreeSet<(String, String)>, String> {
        if self.mutating.as_ref().is_none_or(BTreeMap::is_empty) {
            return Err("there is no MutatingWebhookConfiguration that calls this injector".to_owned());
        }
        let read = |entry: &Entry| Some((entry.name.clone(), entry.bundle.clone()?));
        let all: Option<BTreeSet<_>> = self.entries().map(read).collect();
        all.ok_or_else(|| "a webhook configuration has no caBundle yet".to_owned())
    }

    /// Whether everybody who calls us takes this chain at `now`, seconds since 1970.
    pub fn takes(&self, chain: &[CertificateDer<'_>], now: i64) -> bool {
        let taken = |(name, bundle): &(String, String)| verifies(chain, bundle, name, now).is_ok();
        self.trusted().is_ok_and(|trusted| trusted.iter().all(taken))
    }

    /// Whether every entry has this bundle, and there is one.
    pub fn has(&self, bundle: &str) -> bool {
        let mut entries = self.entries().peekable();
        entries.peek().is_some() && entries.all(|entry| entry.bundle.as_deref() == Some(bundle))
    }
}

/// Follows and writes them.
pub struct Configurations {
    mutating: Api<MutatingWebhookConfiguration>,
    validating: Api<ValidatingWebhookConfiguration>,
    /// The name of both.
    name: String,
    live: watch::Sender<Live>,
}

impl Configurations {
    /// Follows the configurations of this name.
    pub fn follow(client: &Client, name: &str, tasks: &Tasks) -> Arc<Self> {
        let followed = Arc::new(Configurations {
            mutating: Api::all(client.clone()),
            validating: Api::all(client.clone()),
            name: name.to_owned(),
            live: watch::channel(Live::default()).0,
        });
        let (one, two) = (Arc::clone(&followed), Arc::clone(&followed));
        let (stop_one, stop_two) = (tasks.stopping(), tasks.stopping());
        tasks.spawn(async move {
            let called = |hook: MutatingWebhook| entry(hook.name, hook.client_config);
            let read = |found: MutatingWebhookConfiguration| found.webhooks.into_iter().flatten().map(called).collect();
            let told = |found: Option<_>| one.live.send_modify(|live| live.mutating = found.map(read));
            one.one(&one.mutating, stop_one, told).await;
        });
        tasks.spawn(async move {
            let called = |hook: ValidatingWebhook| entry(hook.name, hook.client_config);
            let read =
                |found: ValidatingWebhookConfiguration| found.webhooks.into_iter().flatten().map(called).collect();
            let told = |found: Option<_>| two.live.send_modify(|live| live.validating = found.map(read));
            two.one(&two.validating, stop_two, told).await;
        });
        followed
    }

    async fn one<K>(&self, api: &Api<K>, stop: CancellationToken, told: impl Fn(Option<K>))
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        let changed = |change: Result<Change<K>, _>| match change {
            Ok(Change::All(found)) => told(found.into_iter().next()),
            Ok(Change::Put(found)) => told(Some(found)),
            Ok(Change::Gone(found)) => {
                tracing::warn!(name = found.name_any(), kind = %K::kind(&()), "a webhook configuration was deleted");
                told(None);
            }
            Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "webhook configurations cannot be followed now"),
        };
        follow_one(api.clone(), &self.name, stop, changed).await;
    }

    /// What is known now.
    pub fn live(&self) -> Live {
        self.live.borrow().clone()
    }

    /// Told of every change.
    pub fn watch(&self) -> watch::Receiver<Live> {
        self.live.subscribe()
    }

    /// Writes this bundle wherever it is another one.
    ///
    /// # Errors
    /// The API server does not take it.
    pub async fn write(&self, bundle: &str) -> Result<(), Failed> {
        let live = self.live();
        if let Some(entries) = differing(live.mutating.as_ref(), bundle) {
            self.apply(&self.mutating, "MutatingWebhookConfiguration", entries, bundle)
                .await?;
        }
        if let Some(entries) = differing(live.validating.as_ref(), bundle) {
            self.apply(&self.validating, "ValidatingWebhookConfiguration", entries, bundle)
                .await?;
        }
        Ok(())
    }

    async fn apply<K>(&self, api: &Api<K>, kind: &str, entries: &Entries, bundle: &str) -> Result<(), Failed>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        let bundle = json!(ByteString(bundle.as_bytes().to_vec()));
        let hooks: Vec<Value> = entries
            .keys()
            .map(|name| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": self.name},
            "webhooks": hooks,
        });
        // Nobody else has a reason to own the field: whatever stands there is repaired.
        let parameters = PatchParams::apply(MANAGER).force();
        answered(api.patch(&self.name, &parameters, &Patch::Apply(&object))).await?;
        tracing::info!(kind, name = self.name, "the caBundle is written");
        Ok(())
    }
}

fn differing<'a>(entries: Option<&'a Entries>, bundle: &str) -> Option<&'a Entries> {
    entries.filter(|entries| entries.values().any(|entry| entry.bundle.as_deref() != Some(bundle)))
}

fn entry(name: String, client: WebhookClientConfig) -> (String, Entry) {
    let service = client
        .service
        .map(|service| format!("{}.{}.svc", service.name, service.namespace));
    let host = client.url.as_deref().and_then(host);
    let bundle = client.ca_bundle.and_then(|bytes| String::from_utf8(bytes.0).ok());
    let entry = Entry {
        name: service.or(host).unwrap_or_default(),
        bundle: bundle.filter(|bundle| !bundle.is_empty()),
    };
    (name, entry)
}

/// The host of a URL, as a certificate names it.
fn host(url: &str) -> Option<String> {
    let url: http::Uri = url.parse().ok()?;
    let host = url.host()?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn called(url: Option<&str>, bundle: Option<&str>) -> (String, Entry) {
        let client = WebhookClientConfig {
            url: url.map(str::to_owned),
            ca_bundle: bundle.map(|bundle| ByteString(bundle.into())),
            service: url
                .is_none()
                .then(|| k8s_openapi::api::admissionregistration::v1::ServiceReference {
                    name: "injector".to_owned(),
                    namespace: "system".to_owned(),
                    ..Default::default()
                }),
        };
        entry("pods.sidegate.dev".to_owned(), client)
    }

    #[test]
    fn whoever_calls_is_answered_by_the_name_it_calls() {
        let live = |entry| Live {
            mutating: Some(BTreeMap::from([entry])),
            validating: None,
        };
        let trusted = |entry| live(entry).trusted().map(|all| all.into_iter().next().unwrap().0);
        assert_eq!(trusted(called(None, Some("pem"))).unwrap(), "injector.system.svc");
        let url = Some("https://[2001:db8::1]:8446/mutate");
        assert_eq!(trusted(called(url, Some("pem"))).unwrap(), "2001:db8::1");
        assert!(trusted(called(None, Some(""))).unwrap_err().contains("no caBundle"));
        assert!(Live::default()
            .trusted()
            .unwrap_err()
            .contains("no MutatingWebhookConfiguration"));
        assert!(!Live::default().has("pem"), "nobody was told");
        assert!(live(called(None, Some("pem"))).has("pem"));
        assert!(!live(called(None, Some("other"))).has("pem"));
    }
}
