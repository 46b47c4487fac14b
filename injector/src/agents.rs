//! What becomes of agents' own containers: they get the variables of their Targets and lose other ways to credentials.
//!
//! Owns the token of the cluster's API, identities of clouds, NET_RAW and variables, and what a fence demands of them.
//! Refuses nothing; what it takes is told in warnings. Invariant: containers that are exempt, and ours, are not touched; of
//! well-known proxies only what a fence demands.

use std::collections::BTreeSet;

use serde_json::{json, Value};
use sidegate_policies::api::injection_profile::{AgentContainers, ConflictingEnv, Taken};
use sidegate_policies::pod::fence::{plain, DROPPED};
use sidegate_policies::pod::rules::Rules;

use crate::assign::Assigned;
use crate::form::{is_ours, items, list, object, others, present, set, text};

/// Audiences that API servers have by default.
const API_AUDIENCES: [&str; 3] = ["", "https://kubernetes.default.svc", "kubernetes.default.svc"];
/// Variables by which clouds' libraries find an identity.
pub const CLOUD_VARIABLES: [&str; 6] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_CLIENT_ID",
    "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST",
];
const CLOUD_PREFIX: &str = "AWS_CONTAINER_";
/// Volumes with such an identity.
pub const CLOUD_VOLUMES: [&str; 3] = ["aws-iam-token", "eks-pod-identity-token", "azure-identity-token"];
/// Audiences of such tokens.
pub const CLOUD_AUDIENCES: [&str; 3] = [
    "sts.amazonaws.com",
    "pods.eks.amazonaws.com",
    "api://AzureADTokenExchange",
];
const GOOGLE_FILE: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// What is done to agents' containers.
pub struct Change<'a> {
    /// Which containers are no agents.
    pub rules: Rules<'a>,
    /// What the profile says.
    pub agents: &'a AgentContainers,
    /// The domain of the cluster's services.
    pub cluster_domain: &'a str,
    /// The Targets' variables.
    pub assigned: &'a Assigned,
    /// Containers that get no variables.
    pub skip: &'a [String],
}

impl Change<'_> {
    /// Changes every agent's container of a pod's spec.
    pub fn apply(&self, spec: &mut Value, warnings: &mut Vec<String>) {
        let cluster = self.agents.cluster_token == Taken::Strip;
        let cloud = self.agents.cloud_identity == Taken::Strip;
        if cluster {
            let volumes = self.volumes(spec, |volume| self.is_cluster_token(volume));
            // Without it admission would mount the token again.
            set(spec, "automountServiceAccountToken", Value::Bool(false));
            self.take(spec, &volumes, "the token for the cluster's API", warnings);
        }
        if cloud {
            let volumes = self.volumes(spec, is_cloud_identity);
            self.credentials_file(spec, &volumes);
            self.take(spec, &volumes, "a cloud identity", warnings);
        }
        for container in self.of(spec) {
            if cloud {
                unset(container, "a cloud identity", warnings, |name| {
                    CLOUD_VARIABLES.contains(&name) || name.starts_with(CLOUD_PREFIX)
                });
            }
            if self.agents.drop_net_raw {
                // Many runtimes grant it, and with it the pod's traffic can be read.
                dropped(container, &["NET_RAW"]);
            }
            self.variables(container, warnings);
        }
        self.bind(spec);
    }

    /// Containers that a fence is to hold gain no privileges and drop what they would get around it with. What they say
    /// themselves was judged before.
    fn bind(&self, spec: &mut Value) {
        let Some(demands) = self.rules.fence else { return };
        let bound = |container: &Value| {
            !is_ours(container) && !demands.exempts(text(container, "name"), text(container, "image"))
        };
        for container in those(spec, bound) {
            dropped(container, &DROPPED);
            if let Some(context) = object(container, "securityContext") {
                set(context, "allowPrivilegeEscalation", Value::Bool(false));
            }
        }
    }

    /// The agents' containers.
    fn of<'s>(&self, spec: &'s mut Value) -> Vec<&'s mut Value> {
        let rules = self.rules;
        those(spec, |container| !is_ours(container) && !rules.is_exempt(container))
    }

    fn volumes(&self, spec: &Value, is: impl Fn(&Value) -> bool) -> BTreeSet<String> {
        let found = items(spec, "volumes").filter(|volume| is(volume));
        found.map(|volume| text(volume, "name").to_owned()).collect()
    }

    fn is_cluster_token(&self, volume: &Value) -> bool {
        let long = format!("https://kubernetes.default.svc.{}", self.cluster_domain);
        token_audiences(volume).any(|audience| API_AUDIENCES.contains(&audience) || audience == long)
    }

    /// Takes volumes from agents; what no exempt container mounts goes altogether.
    fn take(&self, spec: &mut Value, volumes: &BTreeSet<String>, what: &str, warnings: &mut Vec<String>) {
        for container in self.of(spec) {
            let name = text(container, "name").to_owned();
            let Some(mounts) = present(container, "volumeMounts") else {
                continue;
            };
            let before = mounts.len();
            mounts.retain(|mount| !volumes.contains(text(mount, "name")));
            if mounts.len() < before {
                warnings.push(format!("container {name} loses {what}"));
            }
        }
        let mut kept = BTreeSet::new();
        // What an older or forged sidecar mounted goes with it.
        for container in others(spec) {
            kept.extend(items(container, "volumeMounts").map(|mount| text(mount, "name").to_owned()));
        }
        if let Some(all) = present(spec, "volumes") {
            all.retain(|volume| {
                let name = text(volume, "name");
                !volumes.contains(name) || kept.contains(name)
            });
        }
    }

    /// Google's variable names a file in such a volume.
    fn credentials_file(&self, spec: &mut Value, volumes: &BTreeSet<String>) {
        for container in self.of(spec) {
            let folders: Vec<String> = items(container, "volumeMounts")
                .filter(|mount| volumes.contains(text(mount, "name")))
                .map(|mount| format!("{}/", text(mount, "mountPath").trim_end_matches('/')))
                .collect();
            if let Some(env) = present(container, "env") {
                let within = |value: &str| folders.iter().any(|folder| value.starts_with(folder));
                env.retain(|variable| text(variable, "name") != GOOGLE_FILE || !within(text(variable, "value")));
            }
        }
    }

    fn variables(&self, container: &mut Value, warnings: &mut Vec<String>) {
        let name = text(container, "name").to_owned();
        let skipped = self.skip.contains(&name);
        let mut ours: Vec<Value> = Vec::new();
        if !skipped {
            let pairs = self.assigned.own.iter();
            ours.extend(pairs.map(|(name, value)| json!({"name": name, "value": value})));
        }
        let before = items(container, "env").filter(|variable| is_own(text(variable, "name")));
        let same = |variable: &Value| ours.contains(variable);
        if before.into_iter().any(|variable| !same(variable)) {
            warnings.push(format!(
                "container {name}: variables SIDEGATE_... are Sidegate's own, and made anew"
            ));
        }
        if let Some(env) = present(container, "env") {
            env.retain(|variable| !is_own(text(variable, "name")));
        }
        if !skipped {
            self.of_targets(container, &name, &mut ours, warnings);
        }
        if ours.is_empty() {
            return;
        }
        if let Some(env) = list(container, "env") {
            env.splice(0..0, ours);
        }
    }

    /// What the Targets set: what the container sets itself stays, unless the profile says otherwise.
    fn of_targets(&self, container: &mut Value, name: &str, ours: &mut Vec<Value>, warnings: &mut Vec<String>) {
        let all = items(container, "envFrom").count();
        for (variable, value) in &self.assigned.env {
            let env = present(container, "env");
            let found = env.and_then(|env| env.iter_mut().find(|entry| text(entry, "name") == variable));
            let Some(entry) = found else {
                ours.push(json!({"name": variable, "value": value}));
                continue;
            };
            if entry.get("valueFrom").is_some_and(|from| !from.is_null()) {
                warnings.push(format!(
                    "container {name} takes {variable} from elsewhere; the Target's value is not set"
                ));
            } else if text(entry, "value") != value {
                match self.agents.conflicting_env {
                    ConflictingEnv::KeepUser => {
                        warnings.push(format!(
                            "container {name} sets {variable} itself; the Target's value is not set"
                        ));
                    }
                    ConflictingEnv::Override => set(entry, "value", Value::from(value.as_str())),
                }
            }
        }
        if all > 0 && !self.assigned.env.is_empty() {
            warnings.push(format!(
                "container {name}: variables of Targets win over those of its envFrom"
            ));
        }
    }
}

/// Names that are ours alone.
fn is_own(name: &str) -> bool {
    name.starts_with("SIDEGATE_")
}

fn token_audiences(volume: &Value) -> impl Iterator<Item = &str> {
    let projected = volume.get("projected").unwrap_or(&Value::Null);
    let tokens = items(projected, "sources").filter_map(|source| source.get("serviceAccountToken"));
    tokens.map(|token| text(token, "audience"))
}

fn is_cloud_identity(volume: &Value) -> bool {
    let google = |audience: &str| audience.ends_with(".svc.id.goog") || audience.contains("//iam.googleapis.com/");
    let cloud = |audience: &str| CLOUD_AUDIENCES.contains(&audience) || google(audience);
    CLOUD_VOLUMES.contains(&text(volume, "name")) || token_audiences(volume).any(cloud)
}

fn unset(container: &mut Value, what: &str, warnings: &mut Vec<String>, is: impl Fn(&str) -> bool) {
    let name = text(container, "name").to_owned();
    let Some(env) = present(container, "env") else {
        return;
    };
    let before = env.len();
    env.retain(|variable| !is(text(variable, "name")));
    if env.len() < before {
        warnings.push(format!("container {name} loses the variables of {what}"));
    }
}

/// Containers of a spec, to be changed.
fn those(spec: &mut Value, which: impl Fn(&Value) -> bool) -> Vec<&mut Value> {
    let Some(spec) = spec.as_object_mut() else {
        return Vec::new();
    };
    let lists = spec
        .iter_mut()
        .filter(|(name, _)| matches!(name.as_str(), "initContainers" | "containers"));
    let containers = lists.flat_map(|(_, list)| list.as_array_mut().into_iter().flatten());
    containers.filter(|container| which(container)).collect()
}

/// Has a container drop capabilities that it does not drop yet.
fn dropped(container: &mut Value, wanted: &[&str]) {
    let capabilities = container
        .pointer("/securityContext/capabilities")
        .unwrap_or(&Value::Null);
    let said = |field: &str| {
        let said = items(capabilities, field).filter_map(Value::as_str).map(plain);
        said.collect::<Vec<String>>()
    };
    // Where the profile lets one be added, dropping it as well would contradict.
    let said = [said("drop"), said("add")].concat();
    let missing = wanted
        .iter()
        .filter(|one| !said.iter().any(|said| said == "ALL" || said == *one));
    let missing: Vec<Value> = missing.map(|one| Value::from(*one)).collect();
    if missing.is_empty() {
        return;
    }
    let capabilities = object(container, "securityContext").and_then(|context| object(context, "capabilities"));
    if let Some(drop) = capabilities.and_then(|capabilities| list(capabilities, "drop")) {
        drop.extend(missing);
    }
}
