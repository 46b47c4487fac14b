//! The API server: who tokens belong to, which pods live, what people applied, and where pins are kept.
//!
//! The only module that speaks to it. Refuses to start where the API server cannot be reached or does not know our
//! kinds; later absence refuses new identities and changes nothing that is in force. The invariant: the broker reads
//! Secrets by name only, its own and those whose owner granted it, and lists none but its own by their names.

mod admission;
mod events;
mod follow;
mod issuers;
mod keys;
mod kinds;
mod leader;
mod leases;
mod maps;
mod named;
mod people;
mod pins;
mod pods;
mod published;
pub mod reading;
mod reviewer;
mod revoked;
mod secrets;
mod status;
mod sweep;
mod tls;
mod watch;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

pub use admission::{Admission, AdmissionOptions};
pub use events::PodEvents;
pub use follow::{findings, Follower};
pub use issuers::ClusterIssuers;
pub use keys::KeySecret;
pub use kinds::{At, Kinds};
pub use leader::Leader;
pub use maps::{ClusterMaps, MapRead};
pub use people::ClusterPeople;
pub use pins::PinLeases;
pub use pods::ClusterPods;
pub use published::PublishedMaps;
pub use reviewer::ClusterReviewer;
pub use revoked::RevokedLeases;
pub use secrets::ClusterSecrets;
pub use status::Conditions;
pub use sweep::PinSweeper;
pub use tls::TlsSecret;

use crate::config::StartError;

/// Within this the API server answers, or counts as absent.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the API server is found.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// A kubeconfig; absent: the service account of the broker's own pod.
    pub kubeconfig: Option<PathBuf>,
    /// The broker's own namespace, where pins are kept.
    pub namespace: String,
    /// What the objects of the broker begin with, as the chart names them: Secrets `<name>-keys` and `<name>-tls`.
    pub name: String,
    /// What the install says of pods.
    pub admission: AdmissionOptions,
}

/// What the chart calls the broker of a release named `sidegate`.
pub const DEFAULT_NAME: &str = "sidegate-broker";

/// Who we are to the API server: the one who must be granted what we read.
pub async fn own_name(client: &Client) -> Result<String, StartError> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let asked = SelfSubjectReview::default();
    let answer = answered(api.create(&PostParams::default(), &asked)).await;
    let user = answer
        .map_err(StartError::cluster)?
        .status
        .and_then(|status| status.user_info);
    let name = user.and_then(|user| user.username);
    name.ok_or_else(|| StartError::cluster("the API server does not say who we are"))
}

/// A client of the API server.
pub async fn connect(options: &ClusterOptions) -> Result<Client, StartError> {
    let mut config = match &options.kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(StartError::cluster)?;
            let wanted = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(read, &wanted)
                .await
                .map_err(StartError::cluster)?
        }
        None => Config::incluster().map_err(StartError::cluster)?,
    };
    config.connect_timeout = Some(PATIENCE);
    // What the environment says about proxies is not ours to follow.
    config.proxy_url = None;
    Client::try_from(config).map_err(StartError::cluster)
}

/// What became of a call, in time.
async fn answered<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Failed::Refused {
            code: status.code,
            message: status.message,
        }),
        Ok(Err(error)) => Err(Failed::Absent(error.to_string())),
        Err(_) => Err(Failed::Absent(format!("no answer within {} s", PATIENCE.as_secs()))),
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
    fn is(&self, status: u16) -> bool {
        matches!(self, Failed::Refused { code, .. } if *code == status)
    }
}
