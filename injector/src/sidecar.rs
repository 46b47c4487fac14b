//! The sidecar's container and its volumes, and the fence before it, as the API server would store them.
//!
//! Every field that the server would fill in is written, so that injecting a stored pod again changes nothing. Refuses
//! nothing. Invariants: the container meets the restricted Pod Security Standard by itself; the token for the broker is
//! mounted here and nowhere else, where admission would otherwise mount the one for the cluster's API.

use serde_json::{json, Value};
use sidegate_policies::api::injection_profile::{InjectionProfileSpec, OnBrokerUnavailable, Tier};
use sidegate_policies::pod::fence::{rights, FENCE, PROGRAM, TOKEN_FOLDER, UIDS};
use sidegate_policies::pod::rules::VOLUMES;
use sidegate_policies::pod::shape::SIDECAR;

use crate::annotations::Asked;
use crate::assign::Assigned;
use crate::form::set;
use crate::install::Install;

/// Volumes are open to everybody in their container: the sidecar keeps to folders it makes itself within them.
const RUN_VOLUME: &str = "/run/sidegate";
const RUN_FOLDER: &str = "/run/sidegate/own";
const JOURNAL_VOLUME: &str = "/var/lib/sidegate";
const JOURNAL_FOLDER: &str = "/var/lib/sidegate/journal";
/// How long a token for the broker lives, seconds; the kubelet renews it at four fifths.
const TOKEN_SECONDS: i64 = 3_600;

/// Everything a sidecar is made from.
pub struct Sidecar<'a> {
    /// Whom it belongs to.
    pub install: &'a Install,
    /// What its profile says.
    pub profile: &'a InjectionProfileSpec,
    /// What its pod asks for.
    pub asked: &'a Asked,
    /// What it listens for.
    pub assigned: &'a Assigned,
    /// Who it runs as.
    pub uid: i64,
    /// Whether all other containers of the pod are Guaranteed.
    pub guaranteed: bool,
}

impl Sidecar<'_> {
    /// The container.
    pub fn container(&self) -> Value {
        json!({
            "name": SIDECAR,
            "image": self.image(),
            "imagePullPolicy": "IfNotPresent",
            "restartPolicy": "Always",
            "command": [PROGRAM],
            "env": self.environment(),
            "ports": [{"containerPort": self.assigned.metrics, "name": "sg-metrics", "protocol": "TCP"}],
            "resources": self.resources(),
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsGroup": self.uid,
                "runAsNonRoot": true,
                "runAsUser": self.uid,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            // Its own program asks it, over a socket only it can reach: an agent could answer on a port.
            "startupProbe": probe(1, 120),
            "readinessProbe": probe(10, 3),
            "livenessProbe": probe(20, 6),
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [
                {"name": VOLUMES[0], "mountPath": TOKEN_FOLDER, "readOnly": true},
                {"name": VOLUMES[1], "mountPath": RUN_VOLUME},
                {"name": VOLUMES[2], "mountPath": JOURNAL_VOLUME},
            ],
        })
    }

    /// The init container that puts a fence around the pod before anything of the agent's begins, where the profile says
    /// so. It ends at once, so that it takes nothing beside the sidecar's own share.
    pub fn fence(&self) -> Option<Value> {
        if self.profile.tier != Tier::Enforced {
            return None;
        }
        let through: Vec<String> = std::iter::once(&self.uid)
            .chain(&self.profile.fence.allow_uids)
            .map(i64::to_string)
            .collect();
        let mut resources = self.resources();
        if let Some(requests) = resources.pointer_mut("/requests").and_then(Value::as_object_mut) {
            requests.remove("ephemeral-storage");
        }
        Some(json!({
            "name": FENCE,
            "image": self.image(),
            "imagePullPolicy": "IfNotPresent",
            "command": [PROGRAM],
            "args": ["fence"],
            "env": [{"name": UIDS, "value": through.join(",")}],
            "resources": resources,
            "securityContext": rights(),
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "FallbackToLogsOnError",
        }))
    }

    fn image(&self) -> String {
        let image = &self.profile.image;
        format!("{}@{}", image.repository, image.digest)
    }

    /// Its volumes.
    pub fn volumes(&self) -> [Value; 3] {
        let token = json!({
            "audience": self.install.audience, "expirationSeconds": TOKEN_SECONDS, "path": "token",
        });
        [
            json!({"name": VOLUMES[0], "projected": {
                "defaultMode": 420, "sources": [{"serviceAccountToken": token}],
            }}),
            json!({"name": VOLUMES[1], "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
            json!({"name": VOLUMES[2], "emptyDir": {"sizeLimit": self.profile.journal.size_limit}}),
        ]
    }

    fn environment(&self) -> Vec<Value> {
        let install = self.install;
        let plain = |name: &str, value: &str| json!({"name": name, "value": value});
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
        let mut all = vec![
            plain("SIDEGATE_BROKER_URL", &install.broker_url),
            plain("SIDEGATE_BROKER_CA", &install.broker_ca_pem),
            plain("SIDEGATE_TOKEN_FILE", &format!("{TOKEN_FOLDER}/token")),
            plain("SIDEGATE_RUN_DIR", RUN_FOLDER),
            plain("SIDEGATE_JOURNAL_DIR", JOURNAL_FOLDER),
            plain("SIDEGATE_PORTS", &self.assigned.announced.to_string()),
            plain("SIDEGATE_CLUSTER_DOMAIN", &install.cluster_domain),
            plain("SIDEGATE_STALENESS", self.profile.staleness.as_str()),
            plain("SIDEGATE_METRICS_PORT", &self.assigned.metrics.to_string()),
        ];
        if self.profile.tier == Tier::Enforced {
            // It looks whether the fence stands.
            all.push(plain("SIDEGATE_TIER", self.profile.tier.as_str()));
        }
        let unavailable = self.profile.on_broker_unavailable;
        if unavailable != OnBrokerUnavailable::default() {
            all.push(plain("SIDEGATE_ON_BROKER_UNAVAILABLE", unavailable.as_str()));
        }
        if !install.name_servers.is_empty() {
            all.push(plain("SIDEGATE_NAME_SERVERS", &install.name_servers.join(",")));
        }
        if let Some(level) = &self.asked.log_level {
            all.push(plain("SIDEGATE_LOG", level));
        }
        all.push(
            json!({"name": "SIDEGATE_MEMORY_LIMIT", "valueFrom": {"resourceFieldRef": {
                "containerName": SIDECAR, "divisor": "0", "resource": "limits.memory",
            }}}),
        );
        // For its log alone: who it is is the broker's word.
        all.push(field("SIDEGATE_POD_NAME", "metadata.name"));
        all.push(field("SIDEGATE_POD_UID", "metadata.uid"));
        all.push(field("SIDEGATE_POD_IPS", "status.podIPs"));
        all
    }

    fn resources(&self) -> Value {
        let resources = &self.profile.resources;
        let disk = self.profile.journal.size_limit;
        if self.guaranteed {
            let (cpu, memory) = (resources.guaranteed.cpu, resources.guaranteed.memory);
            return json!({
                "limits": {"cpu": cpu, "memory": memory},
                "requests": {"cpu": cpu, "ephemeral-storage": disk, "memory": memory},
            });
        }
        let mut limits = json!({"memory": resources.limits.memory});
        if let Some(cpu) = resources.limits.cpu {
            set(&mut limits, "cpu", json!(cpu));
        }
        json!({
            "limits": limits,
            "requests": {
                "cpu": self.asked.cpu.unwrap_or(resources.requests.cpu),
                "ephemeral-storage": disk,
                "memory": self.asked.memory.unwrap_or(resources.requests.memory),
            },
        })
    }
}

fn probe(period: u32, failures: u32) -> Value {
    json!({
        "exec": {"command": [PROGRAM, "probe"]},
        "failureThreshold": failures, "periodSeconds": period, "successThreshold": 1, "timeoutSeconds": 2,
    })
}
