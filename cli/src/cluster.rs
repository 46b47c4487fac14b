//! The cluster that a verb speaks to: which one by kubectl's own rules, and calls on its objects.
//!
//! The only module of the command line that knows a Kubernetes client. Refuses to guess: without a flag of
//! [`ClusterArgs`] a verb means this machine, unless the program was started as `kubectl-sidegate`. The invariant: a
//! call has a deadline, and what the API server refuses reaches the person in its own words.

mod look;
mod visit;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use clap::Args;
use futures_util::StreamExt as _;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::Value;
use sidegate_policies::api::{GROUP, VERSION};
use tokio::runtime::Runtime;

use crate::commands::Usage;

pub use look::Wish;
pub use visit::Turned;

/// The program's name as a plugin of kubectl.
const PLUGIN: &str = "kubectl-sidegate";
/// Within this the API server answers a call.
const PATIENCE: Duration = Duration::from_secs(15);
/// Objects per page of a list.
const PAGE: u32 = 500;

/// Which cluster is meant. Any of these flags means a cluster, whatever `SIDEGATE_STATE` says; none of them means this
/// machine.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster (instead of this machine)")]
pub struct ClusterArgs {
    /// The kubeconfig. Default: $KUBECONFIG, else ~/.kube/config, else this pod's service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context. Default: the current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace. Default: the context's.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
}

impl ClusterArgs {
    /// Whether a cluster is meant.
    pub fn chosen(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some() || self.namespace.is_some() || is_plugin()
    }

    /// The cluster, if one is meant.
    ///
    /// # Errors
    /// One is meant and its kubeconfig cannot be used.
    pub fn connect(&self) -> Result<Option<Cluster>> {
        self.chosen().then(|| self.cluster()).transpose()
    }

    /// The cluster, for verbs that know nothing else.
    ///
    /// # Errors
    /// The kubeconfig cannot be used. Nothing is asked yet.
    pub fn cluster(&self) -> Result<Cluster> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = runtime.block_on(self.config())?;
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let client = {
            let _inside = runtime.enter();
            Client::try_from(config.clone()).map_err(|error| anyhow!("the kubeconfig cannot be used: {error}"))?
        };
        Ok(Cluster {
            runtime,
            client,
            config,
            chosen: self.clone(),
            namespace,
        })
    }

    async fn config(&self) -> Result<Config> {
        let read = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let pod = self.kubeconfig.is_none() && self.context.is_none() && std::env::var_os(IN_POD).is_some();
        let mut config = match read {
            Err(_) if pod => {
                Config::incluster().map_err(|error| Usage(format!("this pod's service account: {error}")))?
            }
            read => {
                let wrong = |error| Usage(format!("the kubeconfig: {error}"));
                let wanted = KubeConfigOptions {
                    context: self.context.clone(),
                    ..KubeConfigOptions::default()
                };
                Config::from_custom_kubeconfig(read.map_err(wrong)?, &wanted)
                    .await
                    .map_err(wrong)?
            }
        };
        // Neither the kubeconfig's nor HTTPS_PROXY's: without this both would only be refused
        // (test `a_proxy_is_not_used_and_in_nobodys_way`).
        config.proxy_url = None;
        Ok(config)
    }
}

/// Set by the kubelet in every container.
const IN_POD: &str = "KUBERNETES_SERVICE_HOST";

/// Whether kubectl started us, or somebody who called us by the plugin's name.
pub fn is_plugin() -> bool {
    let called = std::env::args_os().next().map(PathBuf::from);
    called.is_some_and(|path| path.file_stem().is_some_and(|name| name == PLUGIN))
}

/// A kind of objects, as the API server's paths name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// As `kind:` says it.
    pub kind: &'static str,
    /// As paths say it.
    pub plural: &'static str,
}

impl Kind {
    /// A kind of ours.
    pub const fn ours(kind: &'static str, plural: &'static str) -> Kind {
        Kind {
            group: GROUP,
            version: VERSION,
            kind,
            plural,
        }
    }

    fn resource(self) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(self.group, self.version, self.kind), self.plural)
    }
}

/// `AccessRequest`.
pub const ACCESS_REQUESTS: Kind = Kind::ours("AccessRequest", "accessrequests");
/// `Lockdown`.
pub const LOCKDOWNS: Kind = Kind::ours("Lockdown", "lockdowns");

/// Objects of one kind that a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where<'a> {
    /// A namespace.
    Namespace(&'a str),
    /// Every namespace, or a kind that has none.
    Everywhere,
}

/// A cluster that is spoken to.
pub struct Cluster {
    runtime: Runtime,
    client: Client,
    /// Who we are, for brokers too.
    config: Config,
    /// How it was named, for kubectl.
    chosen: ClusterArgs,
    /// The namespace meant: the flag's, else the context's.
    pub namespace: String,
}

impl Cluster {
    /// Runs something to its end.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Runs a call of the Kubernetes client within the deadline.
    ///
    /// # Errors
    /// It is refused, in the API server's words, or not answered.
    pub fn call<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T> {
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, call).await });
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) => Err(Refused {
                code: status.code,
                message: status.message,
            }
            .into()),
            Ok(Err(error)) => Err(anyhow!(error).context("the API server cannot be reached")),
            Err(_) => bail!("the API server does not answer within {} s", PATIENCE.as_secs()),
        }
    }

    /// Every object of a kind, in pages of its own.
    ///
    /// # Errors
    /// As [`Cluster::call`]; an object that is not of the form this release knows.
    pub fn list<T: DeserializeOwned>(&self, kind: Kind, place: Where<'_>) -> Result<Vec<T>> {
        self.selected(kind, place, "")
    }

    /// The same of those that a label selector finds.
    ///
    /// # Errors
    /// As [`Cluster::list`].
    pub fn selected<T: DeserializeOwned>(&self, kind: Kind, place: Where<'_>, labels: &str) -> Result<Vec<T>> {
        let all = self.pages(kind, place, labels)?.into_iter();
        all.map(|object| read(kind, object)).collect()
    }

    fn pages(&self, kind: Kind, place: Where<'_>, labels: &str) -> Result<Vec<DynamicObject>> {
        let api = self.api(kind, place);
        let mut page = ListParams::default().labels(labels).limit(PAGE);
        let mut all = Vec::new();
        loop {
            let part = self.call(api.list(&page))?;
            all.extend(part.items);
            match part.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    /// One object; nothing where there is none of that name.
    ///
    /// # Errors
    /// As [`Cluster::list`].
    pub fn get<T: DeserializeOwned>(&self, kind: Kind, place: Where<'_>, name: &str) -> Result<Option<T>> {
        let found = self.call(self.api(kind, place).get_opt(name))?;
        found.map(|object| read(kind, object)).transpose()
    }

    /// Creates an object, and answers it as it was stored.
    ///
    /// # Errors
    /// As [`Cluster::list`].
    pub fn create<T: DeserializeOwned>(&self, kind: Kind, place: Where<'_>, object: &impl Serialize) -> Result<T> {
        let object: DynamicObject = serde_json::from_value(serde_json::to_value(object)?)?;
        read(
            kind,
            self.call(self.api(kind, place).create(&PostParams::default(), &object))?,
        )
    }

    /// Replaces the status of an object in the version it was read in.
    ///
    /// # Errors
    /// As [`Cluster::list`]; [`Refused`] with code 409 where the object changed meanwhile.
    pub fn replace_status<T: DeserializeOwned>(&self, kind: Kind, place: Where<'_>, object: &Value) -> Result<T> {
        let object: DynamicObject = serde_json::from_value(object.clone())?;
        let name = object.metadata.name.clone().unwrap_or_default();
        let api = self.api(kind, place);
        read(
            kind,
            self.call(api.replace_status(&name, &PostParams::default(), &object))?,
        )
    }

    /// Looks at an object as it is, and at every later form of it, until `enough` says so or the time is over; answers
    /// the last form seen.
    ///
    /// # Errors
    /// As [`Cluster::list`].
    pub fn follow(
        &self,
        kind: Kind,
        place: Where<'_>,
        name: &str,
        time: Duration,
        enough: impl Fn(&Value) -> bool,
    ) -> Result<Option<Value>> {
        let api = self.api(kind, place);
        let first = self.call(api.get(name))?;
        let version = first.metadata.resource_version.clone().unwrap_or_default();
        let mut last: Value = read(kind, first)?;
        if enough(&last) {
            return Ok(Some(last));
        }
        let only = WatchParams::default().fields(&format!("metadata.name={name}"));
        let events = self.call(api.watch(&only, &version))?;
        let mut events = std::pin::pin!(events);
        let seen = async {
            while let Some(event) = events.next().await {
                match event {
                    Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                        last = read(kind, object)?;
                        if enough(&last) {
                            break;
                        }
                    }
                    Ok(WatchEvent::Deleted(_)) => return Ok(false),
                    Ok(_) => {}
                    // What was seen so far is true all the same.
                    Err(_) => break,
                }
            }
            anyhow::Ok(true)
        };
        let there = self.runtime.block_on(async { tokio::time::timeout(time, seen).await });
        match there {
            Ok(Ok(false)) => Ok(None),
            Ok(Err(error)) => Err(error),
            Ok(Ok(true)) | Err(_) => Ok(Some(last)),
        }
    }

    /// Deletes an object; whether there was one.
    ///
    /// # Errors
    /// As [`Cluster::call`].
    pub fn delete(&self, kind: Kind, place: Where<'_>, name: &str) -> Result<bool> {
        match self.call(self.api(kind, place).delete(name, &DeleteParams::default())) {
            Ok(_) => Ok(true),
            Err(error) if Refused::code_of(&error) == Some(404) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn api(&self, kind: Kind, place: Where<'_>) -> Api<DynamicObject> {
        match place {
            Where::Namespace(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind.resource()),
            Where::Everywhere => Api::all_with(self.client.clone(), &kind.resource()),
        }
    }
}

fn read<T: DeserializeOwned>(kind: Kind, mut object: DynamicObject) -> Result<T> {
    // The largest part of an object, and nothing that is shown.
    object.metadata.managed_fields = None;
    let name = object.metadata.name.clone().unwrap_or_default();
    let value = serde_json::to_value(object)?;
    serde_json::from_value(value).with_context(|| format!("{} {name} is of another release", kind.kind))
}

/// What the API server said no to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The HTTP status.
    pub code: u16,
    /// Its words.
    pub message: String,
}

impl Refused {
    /// The HTTP status, where an error is a refusal.
    pub fn code_of(error: &anyhow::Error) -> Option<u16> {
        error.downcast_ref::<Refused>().map(|refused| refused.code)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_not_used_and_in_nobodys_way() {
        let kubeconfig = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", "proxy-url": "http://127.0.0.1:2"}}]}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), kubeconfig).unwrap();
        let chosen = ClusterArgs {
            kubeconfig: Some(file.path().to_owned()),
            ..ClusterArgs::default()
        };
        assert_eq!(chosen.cluster().unwrap().config.proxy_url, None);
    }
}
