//! What the broker and the injector share of their life in a cluster: a client of the API server, the Lease of a leader,
//! a Secret that replicas share, following objects, Events, certificates with their keys, taking connections and keeping them,
//! and numbers for Prometheus.
//!
//! Refuses nothing by itself; it knows neither kinds of ours nor what a Secret holds. Invariants: every call ends in
//! time; what replicas share is written only as it was read.

pub mod certificate;
pub mod events;
pub mod http1;
pub mod leader;
pub mod leases;
pub mod listen;
pub mod named;
pub mod numbers;
pub mod stored;
pub mod watch;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Within this the API server answers, or counts as absent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the API server cannot be used at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

impl Unusable {
    fn new(error: impl std::fmt::Display) -> Self {
        Unusable(error.to_string())
    }
}

/// Work that is done again and again, and whether it failed the last time: people are told once, until it works again.
#[derive(Debug, Default)]
pub struct Failing(bool);

impl Failing {
    /// The failure that nobody was told of yet.
    pub fn news<'a, T, E>(&mut self, done: &'a Result<T, E>) -> Option<&'a E> {
        let failed = done.as_ref().err();
        let known = std::mem::replace(&mut self.0, failed.is_some());
        failed.filter(|_| !known)
    }
}

/// A client of the API server: by a kubeconfig, or as the service account of this pod.
///
/// # Errors
/// The kubeconfig, or what the kubelet mounted, cannot be read. Nobody is called.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, Unusable> {
    Client::try_from(config(kubeconfig).await?).map_err(Unusable::new)
}

/// The same, and a "not now" is told at once: an eviction's means that somebody's disruption budget is spent.
///
/// # Errors
/// As [`connect`].
pub async fn connect_for_one_try(kubeconfig: Option<&Path>) -> Result<Client, Unusable> {
    let mut config = config(kubeconfig).await?;
    config.default_retry = false;
    Client::try_from(config).map_err(Unusable::new)
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, Unusable> {
    let mut config = match kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(Unusable::new)?;
            let wanted = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(read, &wanted)
                .await
                .map_err(Unusable::new)?
        }
        None => Config::incluster().map_err(Unusable::new)?,
    };
    config.connect_timeout = Some(PATIENCE);
    // What the environment says about proxies is not ours to follow.
    config.proxy_url = None;
    Ok(config)
}

/// What became of a call, in time.
///
/// # Errors
/// The API server said no, or nothing.
pub async fn answered<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    within(PATIENCE, call).await
}

/// The same where there is less time.
///
/// # Errors
/// The API server said no, or nothing.
pub async fn within<T>(patience: Duration, call: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    match tokio::time::timeout(patience, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Failed::Refused {
            code: status.code,
            message: status.message,
        }),
        Ok(Err(error)) => Err(Failed::Absent(error.to_string())),
        Err(_) => Err(Failed::Absent(format!("no answer within {} s", patience.as_secs()))),
    }
}

/// Why the API server did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// It said no.
    #[error("{message} ({code})")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// Its words.
        message: String,
    },
    /// It did not answer.
    #[error("the API server does not answer: {0}")]
    Absent(String),
}

impl Failed {
    /// Whether it is this HTTP status.
    pub fn is(&self, status: u16) -> bool {
        matches!(self, Failed::Refused { code, .. } if *code == status)
    }
}
