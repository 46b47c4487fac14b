//! Events about pods: what `kubectl describe pod` says of them.
//!
//! Refuses nothing. Invariant: an Event belongs to the very pod that it was made for, by UID, and is no longer than the
//! API server takes.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::{answered, Failed};

/// Most bytes of a message that the API server takes.
const MESSAGE: usize = 1_024;
/// Characters of the pod's name that an Event's own name begins with: 253 in all, with what the server adds.
const NAME: usize = 200;

/// The pod that is spoken of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its namespace, which is the Event's too.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A warning of `component` about a pod; `reason` is one word for programs. A longer message than 1,024 bytes is cut.
pub fn warning(component: &str, pod: &About, reason: &str, message: &str) -> Event {
    let now = Timestamp::now();
    let end = message.floor_char_boundary(MESSAGE.min(message.len()));
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}.", pod.name.chars().take(NAME).collect::<String>())),
            namespace: Some(pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        },
        reason: Some(reason.to_owned()),
        message: Some(message.get(..end).unwrap_or_default().to_owned()),
        type_: Some("Warning".to_owned()),
        source: Some(EventSource {
            component: Some(component.to_owned()),
            host: None,
        }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}

/// Writes an Event into its namespace.
///
/// # Errors
/// The API server said no, or nothing.
pub async fn write(client: &Client, event: &Event) -> Result<(), Failed> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    answered(api.create(&PostParams::default(), event)).await.map(|_| ())
}
