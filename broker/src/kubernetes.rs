//! The API server: who tokens belong to, which pods live, what people applied, and where pins are kept.
//!
//! The only module that speaks to it. Refuses to start where the API server cannot be reached or does not know our
//! kinds; later absence refuses new identities and changes nothing that is in force. The invariant: the broker reads
//! Secrets by name only, its own and those whose owner granted it, and lists none but its own by their names.

mod admission;
mod egress;
mod events;
mod follow;
mod issuers;
mod keys;
mod kinds;
mod maps;
mod measured;
mod people;
mod pins;
mod pods;
mod profiles;
mod published;
pub mod reading;
mod requests;
mod reviewer;
mod revoked;
mod secrets;
mod status;
mod sweep;
mod tls;

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::PostParams;
use kube::{Api, Client};
pub use sidegate_cluster::leader::Leader;
use sidegate_cluster::{answered, leader, leases, named, watch, Failed, Failing};

pub use admission::{Admission, Authorities};
pub use events::PodEvents;
pub use follow::{findings, Follower};
pub use issuers::ClusterIssuers;
pub use keys::KeySecret;
pub use kinds::{At, Kinds};
pub use maps::{ClusterMaps, MapRead};
pub use measured::Measured;
pub use people::ClusterPeople;
pub use pins::PinLeases;
pub use pods::ClusterPods;
pub use published::PublishedMaps;
pub use requests::RequestObjects;
pub use reviewer::ClusterReviewer;
pub use revoked::RevokedLeases;
pub use secrets::ClusterSecrets;
pub use status::Conditions;
pub use sweep::PinSweeper;
pub use tls::TlsSecret;

use crate::clock::Clock;
use crate::config::{ClusterOptions, StartError};
use crate::task::Tasks;

/// The Lease of whoever leads among the brokers of a namespace.
pub const LEADER: &str = "sidegate-broker-leader";

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

/// Whether this replica leads, with its task, and what it shares with the one that does. `name` is unlike that of any other and
/// of any other start.
pub fn replica(client: &Client, options: &ClusterOptions, name: String, tasks: &Tasks) -> (Arc<Leader>, Arc<Measured>) {
    let home = &options.namespace;
    let leader = Arc::new(Leader::new(client.clone(), home, LEADER, name.clone()));
    tasks.spawn("leader", Arc::clone(&leader).run(tasks.stopping()));
    let measured = Measured::new(client.clone(), home, Arc::clone(&leader), &name);
    (leader, Arc::new(measured))
}

/// Who tells people of what should not happen, and who knows them; with their tasks.
pub fn heard(client: &Client, clock: &Arc<dyn Clock>, tasks: &Tasks) -> (PodEvents, Arc<ClusterPeople>) {
    let (events, writer) = PodEvents::new(client.clone(), Arc::clone(clock));
    tasks.spawn("events", writer.run(tasks.stopping()));
    let people = Arc::new(ClusterPeople::new(client.clone()));
    tasks.spawn("authorities", Arc::clone(&people).run(tasks.stopping()));
    (events, people)
}

/// A client of the API server.
pub async fn connect(options: &ClusterOptions) -> Result<Client, StartError> {
    let connected = sidegate_cluster::connect(options.kubeconfig.as_deref()).await;
    connected.map_err(StartError::cluster)
}
