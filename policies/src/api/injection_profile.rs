//! `InjectionProfile`: how the injector puts the sidecar into pods of the namespaces that name it.
//!
//! Owns what a platform team may choose; what every injected pod must have is not a choice and has no field. Refused
//! where a value would void the gate: an image without a digest, an unknown word. Invariant: nothing here is chosen
//! by whoever writes a pod, but for the annotations that `allowAnnotations` names.

use serde::{Deserialize, Serialize};

use super::meta::Object;
use crate::quantity::{ByteSize, CpuShare};

/// An InjectionProfile object.
pub type InjectionProfile = Object<InjectionProfileSpec>;

/// How the sidecar is added to pods: its image and resources, and what agents' containers must give up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(kube::CustomResource, schemars::JsonSchema))]
#[cfg_attr(
    feature = "crd",
    kube(
        group = "sidegate.dev",
        version = "v1alpha1",
        kind = "InjectionProfile",
        root = "InjectionProfileResource",
        shortname = "inj",
        category = "sidegate"
    )
)]
pub struct InjectionProfileSpec {
    /// The sidecar's image. It is named by digest, so that what runs is what was chosen.
    pub image: SidecarImage,
    /// How agents find their Targets. Ports (default): on 127.0.0.1, at each Target's `listen.port`. Hostnames: also by
    /// each Target's `listen.hostnames` and its real port, which the pod's hosts file leads to the sidecar.
    #[serde(default)]
    pub reach: Reach,
    /// How far agents are kept from going around their gate. Cooperative (default): they hold no credential of a Target,
    /// and may dial elsewhere with others. Enforced: an init container puts an nftables fence around the pod, so that only
    /// the sidecar's user has a way out; pods in which it would not hold are refused.
    #[serde(default)]
    pub tier: Tier,
    /// What the fence of tier Enforced lets through.
    #[serde(default)]
    pub fence: Fence,
    /// NetworkPolicies for the pods of this profile. Off (default): none. Audit: none either, but the status says what they
    /// would let out and which Targets they would cut off, and new pods carry the label by which they would be selected.
    /// Such a policy holds for a whole pod, the sidecar with its agents: it makes no pod Enforced.
    // No default in the schema: of whoever did not ask nothing changes, and an older broker goes on reading the profile.
    #[serde(default, skip_serializing_if = "NetworkPolicyMode::is_off")]
    pub network_policy: NetworkPolicyMode,
    /// What the sidecar asks for. A field that is not written keeps its default.
    #[serde(default)]
    pub resources: SidecarResources,
    /// The user the sidecar runs as.
    #[serde(default)]
    pub run_as: RunAs,
    /// What becomes of the agents' own containers.
    #[serde(default)]
    pub agents: AgentContainers,
    /// The disk that records wait on until the broker has them.
    #[serde(default)]
    pub journal: Journal,
    /// Pods that would weaken the gate.
    #[serde(default)]
    pub shapes: Shapes,
    /// Annotations `sidegate.dev/...` that pods may carry. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_annotations: Vec<PodAnnotation>,
    /// How long the broker may be silent before a sidecar stops trusting what it knows.
    #[serde(default)]
    pub staleness: Staleness,
    /// What pods do that start while the broker cannot be reached. StartAndDeny (default): they start, and every statement is
    /// refused until it can. BlockPod: the sidecar counts as started once it knows what is allowed, and no sooner, so that
    /// nothing of the agent's begins before; after two minutes the kubelet restarts it. Pods that run already go on either way.
    // No default in the schema, as for `networkPolicy`.
    #[serde(default, skip_serializing_if = "OnBrokerUnavailable::is_default")]
    pub on_broker_unavailable: OnBrokerUnavailable,
}

/// How agents find their Targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Reach {
    /// On ports of 127.0.0.1.
    #[default]
    Ports,
    /// Also by the Targets' usual names.
    Hostnames,
}

/// How far an agent is kept from going around its gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Tier {
    /// It holds no credential of a Target.
    #[default]
    Cooperative,
    /// It has no direct way out of its pod either.
    Enforced,
}

impl Tier {
    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Cooperative => "Cooperative",
            Tier::Enforced => "Enforced",
        }
    }
}

/// What becomes of NetworkPolicies for a profile's pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum NetworkPolicyMode {
    /// Nothing.
    #[default]
    Off,
    /// What they would be is told, and nothing is made.
    Audit,
}

impl NetworkPolicyMode {
    fn is_off(&self) -> bool {
        *self == NetworkPolicyMode::Off
    }
}

/// What pods do that start while the broker cannot be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum OnBrokerUnavailable {
    /// They start, and are refused everything.
    #[default]
    StartAndDeny,
    /// Nothing of the agent's begins.
    BlockPod,
}

impl OnBrokerUnavailable {
    /// Every one, the default first.
    pub const ALL: [OnBrokerUnavailable; 2] = [OnBrokerUnavailable::StartAndDeny, OnBrokerUnavailable::BlockPod];

    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            OnBrokerUnavailable::StartAndDeny => "StartAndDeny",
            OnBrokerUnavailable::BlockPod => "BlockPod",
        }
    }

    fn is_default(&self) -> bool {
        *self == OnBrokerUnavailable::default()
    }
}

/// What the fence of tier Enforced lets through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Fence {
    /// Users that may leave the pod besides the sidecar's, such as a mesh proxy's: 1 to 4294967293, at most 16. Only
    /// containers of `agents.exemptContainers` may run as one of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "crd",
        schemars(length(max = 16), inner(range(min = 1, max = 4_294_967_293_i64)))
    )]
    pub allow_uids: Vec<i64>,
}

/// An image of the sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct SidecarImage {
    /// Registry and repository, without a tag: `registry.example/sidegate-sidecar`.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 255)))]
    pub repository: String,
    /// `sha256:` and 64 hexadecimal digits.
    #[cfg_attr(feature = "crd", schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$")))]
    pub digest: String,
}

/// What the sidecar's container asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct SidecarResources {
    /// What is set aside for it. Default: 25m of CPU and 32Mi of memory.
    pub requests: Requests,
    /// What it may use. Default: 128Mi of memory; CPU has no limit unless one is written.
    pub limits: Limits,
    /// Requests and limits at once, in pods whose every container is Guaranteed. Default: 200m and 128Mi.
    pub guaranteed: Guaranteed,
}

/// What is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Requests {
    /// CPU, such as 25m.
    pub cpu: CpuShare,
    /// Memory, such as 32Mi.
    pub memory: ByteSize,
}

impl Default for Requests {
    fn default() -> Self {
        Requests {
            cpu: CpuShare(25),
            memory: ByteSize(32 << 20),
        }
    }
}

/// What may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Limits {
    /// CPU, such as 200m. Write one where a quota of the namespace counts limits; much less would make a TLS handshake
    /// take seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuShare>,
    /// Memory, such as 128Mi.
    pub memory: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            cpu: None,
            memory: ByteSize(128 << 20),
        }
    }
}

/// Requests and limits at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Guaranteed {
    /// CPU, such as 200m. Much less would make a TLS handshake take seconds.
    pub cpu: CpuShare,
    /// Memory, such as 128Mi.
    pub memory: ByteSize,
}

impl Default for Guaranteed {
    fn default() -> Self {
        Guaranteed {
            cpu: CpuShare(200),
            memory: ByteSize(128 << 20),
        }
    }
}

/// The user of the sidecar's process: nobody else in the pod may be it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct RunAs {
    /// User and group number, 1 to 4294967293. Default: 61937.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 4_294_967_293_i64)))]
    pub uid: i64,
    /// The one used where a container of the pod says it runs as `uid`. Default: 61938.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 4_294_967_293_i64)))]
    pub alternate_uid: i64,
}

impl Default for RunAs {
    fn default() -> Self {
        RunAs {
            uid: 61_937,
            alternate_uid: 61_938,
        }
    }
}

/// What becomes of agents' containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct AgentContainers {
    /// The token for the cluster's own API. Strip (default): agents do not get it. Keep: they do.
    pub cluster_token: Taken,
    /// Identities of cloud providers: variables and projected tokens. Strip (default) or Keep.
    pub cloud_identity: Taken,
    /// Whether NET_RAW is dropped, with which a container could read the pod's traffic. Default: true.
    pub drop_net_raw: bool,
    /// Where a container already sets a variable that a Target sets too. KeepUser (default): the container's own value
    /// stays, with a warning. Override: the Target's value.
    pub conflicting_env: ConflictingEnv,
    /// Containers that are no agents, besides the well-known proxies of service meshes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exempt_containers: Vec<ExemptContainer>,
}

impl Default for AgentContainers {
    fn default() -> Self {
        AgentContainers {
            cluster_token: Taken::Strip,
            cloud_identity: Taken::Strip,
            drop_net_raw: true,
            conflicting_env: ConflictingEnv::KeepUser,
            exempt_containers: Vec::new(),
        }
    }
}

/// Whether agents lose something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Taken {
    /// They do.
    #[default]
    Strip,
    /// They keep it.
    Keep,
}

/// Whose value of a variable stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum ConflictingEnv {
    /// The container's.
    #[default]
    KeepUser,
    /// The Target's.
    Override,
}

/// A container that is no agent: known by its name and its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct ExemptContainer {
    /// Its name.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 63)))]
    pub name: String,
    /// What its image begins with: registry and repository, such as `registry.example/mesh/proxy`.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 255)))]
    pub image_prefix: String,
}

/// The sidecar's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Journal {
    /// How large it may become; also requested as ephemeral storage. Default: 512Mi.
    pub size_limit: ByteSize,
}

impl Default for Journal {
    fn default() -> Self {
        Journal {
            size_limit: ByteSize(512 << 20),
        }
    }
}

/// What becomes of pods that would weaken the gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Shapes {
    /// Privileged containers, and capabilities that reach into others. Deny (default), or Warn: it is injected, and the
    /// agent may get around the gate.
    pub privileged: Weakening,
    /// Folders of the node in which other pods' files lie. Deny (default) or Warn.
    pub host_path: Weakening,
    /// Windows pods, which cannot have the sidecar. Skip (default): left alone, with a warning. Deny: refused.
    pub windows: Windows,
}

/// What becomes of a pod that weakens the gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Weakening {
    /// It is refused.
    #[default]
    Deny,
    /// It is injected with a warning.
    Warn,
}

/// What becomes of a Windows pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Windows {
    /// It is left alone, with a warning.
    #[default]
    Skip,
    /// It is refused.
    Deny,
}

/// An annotation that pods may carry, named without `sidegate.dev/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum PodAnnotation {
    /// Which of the granted Targets the pod wants: `name` or `namespace/name`, comma-separated.
    Targets,
    /// The sidecar's log level: error, warn, info, debug or trace.
    LogLevel,
    /// The sidecar's CPU request.
    CpuRequest,
    /// The sidecar's memory request.
    MemoryRequest,
    /// Containers that get no variables, comma-separated.
    SkipContainers,
}

impl PodAnnotation {
    /// Every one of them.
    pub const ALL: [PodAnnotation; 5] = [
        PodAnnotation::Targets,
        PodAnnotation::LogLevel,
        PodAnnotation::CpuRequest,
        PodAnnotation::MemoryRequest,
        PodAnnotation::SkipContainers,
    ];

    /// As written, without `sidegate.dev/`.
    pub fn as_str(self) -> &'static str {
        match self {
            PodAnnotation::Targets => "targets",
            PodAnnotation::LogLevel => "log-level",
            PodAnnotation::CpuRequest => "cpu-request",
            PodAnnotation::MemoryRequest => "memory-request",
            PodAnnotation::SkipContainers => "skip-containers",
        }
    }
}

/// What a sidecar does once its broker has been silent for long: safety before work, or work before safety.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Staleness {
    /// New sessions are refused after 30 s, open ones end after 5 min.
    #[default]
    Default,
    /// New sessions are refused, and open ones end, after 30 s.
    Strict,
    /// Who holds a valid lease goes on until it ends: agents work through longer outages, and hear later of what changed.
    Available,
}

impl Staleness {
    const ALL: [Staleness; 3] = [Staleness::Default, Staleness::Strict, Staleness::Available];

    /// As written, in YAML and in the sidecar's environment.
    pub fn as_str(self) -> &'static str {
        match self {
            Staleness::Default => "Default",
            Staleness::Strict => "Strict",
            Staleness::Available => "Available",
        }
    }
}

impl std::str::FromStr for Staleness {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Staleness::ALL.into_iter();
        all.find(|staleness| staleness.as_str() == text)
            .ok_or_else(|| format!("`{text}` is none of Default, Strict, Available"))
    }
}
