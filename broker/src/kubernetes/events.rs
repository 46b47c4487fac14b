//! Events: what `kubectl describe pod` says of a pod whose sidecar we did not believe.
//!
//! Refuses nothing; an Event that cannot be written is lost, and the audit has the same. The invariants: at most one
//! Event a minute per pod, and nothing in it that the caller chose.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::Event;
use kube::Client;
use sidegate_cluster::events::{warning, write, About};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

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
        let about = About {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        };
        let _ = self
            .waiting
            .try_send(warning("sidegate-broker", &about, "KeyConflict", message));
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
            if let Err(error) = write(&self.client, &event).await {
                tracing::warn!(%error, "an Event cannot be written");
            }
        }
    }
}
