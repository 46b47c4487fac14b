//! Which pods may be given a sidecar: the shapes that would void the gate, judged on the pod as it was submitted.
//!
//! Refuses what shows the sidecar's processes, its network or its token to anybody else, what carries a name of ours,
//! and, unless the profile only warns, what lets a container out of its box. The invariants: a pod that passes can be
//! given a sidecar that [`super::shape`] accepts, and every refusal says what to change.

use serde_json::Value;

use super::fence::{plain, Demands, FENCE};
use super::shape::{list, text, SIDECAR};
use crate::api::injection_profile::{ExemptContainer, Shapes, Weakening};

/// Our volumes: of the token, of what is in memory, of the journal.
pub const VOLUMES: [&str; 3] = ["sidegate-token", "sidegate-run", "sidegate-journal"];
/// Names of containers and volumes that begin so are ours.
const RESERVED: &str = "sidegate";
/// Names of ports that begin so are ours.
const RESERVED_PORT: &str = "sg-";
/// Capabilities with which a container reaches into others, or into the pod's network.
pub const REACHING: [&str; 6] = ["ALL", "SYS_PTRACE", "SYS_ADMIN", "BPF", "NET_ADMIN", "NET_RAW"];
/// What a mesh's own proxy may have of them.
const OF_PROXIES: [&str; 2] = ["NET_ADMIN", "NET_RAW"];
/// Folders of the node where other pods' files or the node's own processes are found.
pub const FOLDERS: [&str; 10] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/run",
    "/etc/kubernetes",
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/containers",
];
/// Well-known proxies that are no agents, and may stand before the sidecar: name, and what the image begins with.
pub const PROXIES: [(&str, &[&str]); 9] = [
    ("istio-init", ISTIO),
    ("istio-validation", ISTIO),
    ("istio-proxy", ISTIO),
    ("linkerd-init", LINKERD),
    ("linkerd-network-validator", LINKERD),
    ("linkerd-proxy", LINKERD),
    ("daprd", &["docker.io/daprio/", "ghcr.io/dapr/"]),
    ("vault-agent", VAULT),
    ("vault-agent-init", VAULT),
];
const ISTIO: &[&str] = &["docker.io/istio/", "gcr.io/istio-release/", "registry.istio.io/"];
const LINKERD: &[&str] = &["cr.l5d.io/linkerd/", "ghcr.io/linkerd/"];
const VAULT: &[&str] = &["docker.io/hashicorp/vault", "hashicorp/vault"];

/// What the rules depend on.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// The audience of tokens for the broker.
    pub audience: &'a str,
    /// What the profile only warns of.
    pub shapes: Shapes,
    /// Containers that are no agents, besides the well-known ones.
    pub exempt: &'a [ExemptContainer],
    /// What a fence demands; nothing where the profile asks for none.
    pub fence: Option<&'a Demands>,
}

/// Why a pod is not given a sidecar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {message}")]
pub struct Wrong {
    /// The rule, in one word.
    pub rule: &'static str,
    /// What is wrong and what to change.
    pub message: String,
}

fn wrong<T>(rule: &'static str, message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        rule,
        message: message.into(),
    })
}

impl Rules<'_> {
    /// Whether a pod's spec, as submitted, may be given a sidecar; answers what only weakens it.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn judge(&self, spec: &Value) -> Result<Vec<Wrong>, Wrong> {
        namespaces(spec)?;
        names(spec)?;
        volumes(spec)?;
        super::aliases::judge(spec)?;
        self.token(spec)?;
        let mut weak = Vec::new();
        let mut found = |weakening: Weakening, found: Vec<Wrong>| {
            let mut found = found.into_iter();
            match weakening {
                Weakening::Warn => weak.extend(found),
                Weakening::Deny => return found.next().map_or(Ok(()), Err),
            }
            Ok(())
        };
        found(self.shapes.privileged, self.privileged(spec))?;
        found(self.shapes.host_path, host_paths(spec))?;
        self.fence.map_or(Ok(()), |demands| demands.judge(spec))?;
        Ok(weak)
    }

    /// Whether a container is no agent: a proxy of a mesh, or one the profile exempts.
    pub fn is_exempt(&self, container: &Value) -> bool {
        let (name, image) = (text(container, "name"), text(container, "image"));
        let listed = |exempt: &ExemptContainer| exempt.name == name && image.starts_with(&exempt.image_prefix);
        is_proxy(container) || self.exempt.iter().any(listed)
    }

    fn token(&self, spec: &Value) -> Result<(), Wrong> {
        for volume in list(spec, "volumes") {
            let name = text(volume, "name");
            let sources = volume.get("projected").map(|projected| list(projected, "sources"));
            let ours = |source: &Value| source.pointer("/serviceAccountToken/audience") == Some(&self.audience.into());
            if name != VOLUMES[0] && sources.into_iter().flatten().any(ours) {
                let message = format!(
                    "volume {name} projects a token for the broker ({}), which only the sidecar may have; remove that \
                     source",
                    self.audience
                );
                return wrong("token", message);
            }
        }
        Ok(())
    }

    fn privileged(&self, spec: &Value) -> Vec<Wrong> {
        let mut found = Vec::new();
        for (_, container) in containers(spec).filter(|(list, container)| !is_ours(list, container)) {
            let name = text(container, "name");
            let context = container.get("securityContext").unwrap_or(&Value::Null);
            if context.get("privileged") == Some(&Value::Bool(true)) {
                found.push(Wrong {
                    rule: "privileged",
                    message: format!(
                        "container {name} is privileged and could read the sidecar's memory; set \
                         securityContext.privileged to false"
                    ),
                });
            }
            let added = context.get("capabilities").map(|all| list(all, "add"));
            for capability in added.into_iter().flatten().filter_map(Value::as_str) {
                let plain = plain(capability);
                let proxys = OF_PROXIES.contains(&plain.as_str()) && self.is_exempt(container);
                if REACHING.contains(&plain.as_str()) && !proxys {
                    found.push(Wrong {
                        rule: "capability",
                        message: format!(
                            "container {name} adds {capability}, which reaches the sidecar; remove it from \
                             capabilities.add"
                        ),
                    });
                }
            }
        }
        found
    }
}

/// Whether a container is a well-known proxy, by its name and its image.
pub fn is_proxy(container: &Value) -> bool {
    let (name, image) = (text(container, "name"), text(container, "image"));
    PROXIES
        .iter()
        .any(|(known, images)| *known == name && images.iter().any(|prefix| image.starts_with(prefix)))
}

/// Whether it can only run on Windows.
pub fn is_windows(spec: &Value) -> bool {
    let named = spec.pointer("/os/name");
    let selected = spec.pointer("/nodeSelector/kubernetes.io~1os");
    [named, selected].contains(&Some(&"windows".into()))
}

/// Every container of every list, with the list it is in.
pub(super) fn containers(spec: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    lists
        .into_iter()
        .flat_map(move |name| list(spec, name).map(move |container| (name, container)))
}

/// Whether a container of this list is one we add ourselves, in this or an older version: it is made anew.
fn is_ours(list: &str, container: &Value) -> bool {
    list == "initContainers" && [SIDECAR, FENCE].contains(&text(container, "name"))
}

fn namespaces(spec: &Value) -> Result<(), Wrong> {
    for (field, why) in [
        (
            "hostNetwork",
            "the sidecar would listen on the node's own loopback, for every pod there",
        ),
        (
            "hostPID",
            "the node's processes, and the sidecar among them, would be shown to the agent",
        ),
        ("hostIPC", "the agent would share memory with the node's processes"),
        (
            "shareProcessNamespace",
            "the sidecar's process would be shown to the agent",
        ),
    ] {
        if spec.get(field) == Some(&Value::Bool(true)) {
            return wrong(field, format!("{why}; remove {field} or set it to false"));
        }
    }
    Ok(())
}

fn names(spec: &Value) -> Result<(), Wrong> {
    for (list_name, container) in containers(spec) {
        if is_ours(list_name, container) {
            continue;
        }
        let name = text(container, "name");
        if name.starts_with(RESERVED) {
            let message = format!(
                "{list_name} has a container {name}, and names that begin with {RESERVED} are Sidegate's own; rename it"
            );
            return wrong("reserved", message);
        }
        if text(container, "targetContainerName") == SIDECAR {
            let message = format!("container {name} targets the sidecar; name another targetContainerName");
            return wrong("reserved", message);
        }
        for port in list(container, "ports") {
            let port = text(port, "name");
            if port.starts_with(RESERVED_PORT) {
                let message = format!(
                    "container {name} names a port {port}, and names that begin with {RESERVED_PORT} are Sidegate's \
                     own; rename it"
                );
                return wrong("reserved", message);
            }
        }
        for field in ["volumeMounts", "volumeDevices"] {
            for mount in list(container, field) {
                let volume = text(mount, "name");
                if volume.starts_with("sidegate-") {
                    let message = format!(
                        "container {name} mounts {volume}, which only the sidecar may; remove that mount, and the \
                         volume if it is yours"
                    );
                    return wrong("reserved", message);
                }
            }
        }
    }
    Ok(())
}

fn volumes(spec: &Value) -> Result<(), Wrong> {
    for volume in list(spec, "volumes") {
        let name = text(volume, "name");
        if name.starts_with("sidegate-") && !VOLUMES.contains(&name) {
            let message = format!("volume {name}: names that begin with sidegate- are Sidegate's own; rename it");
            return wrong("reserved", message);
        }
    }
    Ok(())
}

fn host_paths(spec: &Value) -> Vec<Wrong> {
    let mut found = Vec::new();
    for volume in list(spec, "volumes") {
        let name = text(volume, "name");
        // Ours are made anew, whatever they were.
        if VOLUMES.contains(&name) {
            continue;
        }
        let path = volume.pointer("/hostPath/path").and_then(Value::as_str);
        if let Some(path) = path.filter(|path| is_reaching(path)) {
            found.push(Wrong {
                rule: "hostPath",
                message: format!(
                    "volume {name} is {path} of the node, where other pods' tokens or processes can be found; use \
                     another folder or another kind of volume"
                ),
            });
        }
    }
    found
}

/// Whether a folder of the node is one of those, above one, or below one.
fn is_reaching(path: &str) -> bool {
    let parts = |path: &str| -> Vec<String> {
        let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
        parts.map(str::to_owned).collect()
    };
    let path = parts(path);
    // Where `..` leads depends on links of the node.
    let up = path.iter().any(|part| part == "..");
    let near = |folder: &&str| {
        let folder = parts(folder);
        path.starts_with(&folder) || folder.starts_with(&path)
    };
    up || FOLDERS.iter().any(near)
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
