//! Events: what `kubectl describe pod` says of a pod whose sidecar we did not believe.
//!
//! Refuses nothing; an Event that cannot be written is lost, and the audit has the same. The invariants: at most one
//! Event a minute per pod, and nothing in it that the caller chose.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::answered;
use crate::attest::{Notices, PodView};
use crate::clock::Clock;

/// Not more often than this per pod, milliseconds.
const EVERY_MS: i64 = 60_000;
/// Pods that are remembered for that.
const MAX_PODS: usize = 10_000;
/// Events that wait to be written.
const WAITING: usize = 256;

/// Tells of pods by Events.
pub struct PodEvents {
    waiting: mpsc::Sender<Event>,
    clock: Arc<dyn Clock>,
    told_ms: Mutex<HashMap<String, i64>>,
}

/// Writes what waits.
pub struct EventWriter {
    client: Client,
    waiting: mpsc::Receiver<Event>,
}

impl PodEvents {
    /// Over this client: what tells, and what writes it.
    pub fn new(client: Client, clock: Arc<dyn Clock>) -> (Self, EventWriter) {
        let (told, waiting) = mpsc::channel(WAITING);
        let events = PodEvents {
            waiting: told,
            clock,
            told_ms: Mutex::default(),
        };
        (events, EventWriter { client, waiting })
    }

    /// Whether it is this pod's turn; takes it.
    fn turn(&self, uid: &str) -> bool {
        let now = self.clock.now_ms();
        let mut told = self.told_ms.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if told.len() >= MAX_PODS {
            told.retain(|_, last| now.saturating_sub(*last) < EVERY_MS);
        }
        let due = told.get(uid).is_none_or(|last| now.saturating_sub(*last) >= EVERY_MS);
        if due && told.len() < MAX_PODS {
            told.insert(uid.to_owned(), now);
        }
        due
    }
}

impl Notices for PodEvents {
    fn key_conflict(&self, pod: &PodView) {
        if !self.turn(&pod.uid) {
            return;
        }
        let message = "A second key asked to speak for this pod's sidecar and was refused. Expected for some seconds \
                       after the sidecar restarts, until the kubelet reports it; otherwise somebody else has the \
                       pod's token.";
        let _ = self.waiting.try_send(event(pod, "KeyConflict", message));
    }
}

impl EventWriter {
    /// Until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = self.waiting.recv() => event,
            };
            let Some(event) = event else { return };
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
            if let Err(error) = answered(api.create(&PostParams::default(), &event)).await {
                tracing::warn!(%error, "an Event cannot be written");
            }
        }
    }
}

fn event(pod: &PodView, reason: &str, message: &str) -> Event {
    let now = Timestamp::now();
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}.", pod.name.chars().take(200).collect::<String>())),
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
        message: Some(message.to_owned()),
        type_: Some("Warning".to_owned()),
        source: Some(EventSource {
            component: Some("sidegate-broker".to_owned()),
            host: None,
        }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}
