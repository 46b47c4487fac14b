//! `TokenIssuer`: an external identity provider that Sidegate exchanges its own assertion with, for a Target's token.
//!
//! Owns what an administrator says about one provider; how it is spoken to is a preset (`crate::presets`). Refused:
//! anything that would let a provider be reached but over verified TLS. Invariant: no field here holds a secret, at most its
//! place.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::meta::{LocalRef, Object};
use super::target::AllowedNamespaces;

/// A TokenIssuer object.
pub type TokenIssuer = Object<TokenIssuerSpec>;

/// An identity provider that turns Sidegate's assertion about an agent into a short-lived token for a Target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(kube::CustomResource, schemars::JsonSchema))]
#[cfg_attr(
    feature = "crd",
    kube(
        group = "sidegate.dev",
        version = "v1alpha1",
        kind = "TokenIssuer",
        root = "TokenIssuerResource",
        shortname = "ti",
        category = "sidegate"
    )
)]
pub struct TokenIssuerSpec {
    /// How this provider is spoken to: which requests, which reply, which errors mean what.
    pub preset: String,
    /// The provider's issuer URL, byte for byte as it names itself: `https://HOST[:PORT][/PATH]`. Requests go to its
    /// origin and nowhere else, unless `values` names an endpoint.
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 512)))]
    pub issuer: String,
    /// What the preset wants to know besides, by its names, such as `tenant` or `clientId`. Nothing secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, String>,
    /// What the assertion calls the agent. Default: `opaque: {}`.
    #[serde(default)]
    pub subject: SubjectForm,
    /// What the assertion is signed with. Absent: as the preset says, which is ES256 wherever the provider takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<AssertionAlg>,
    /// Whose Targets may take tokens of this issuer. An empty selector allows every namespace.
    pub allowed_namespaces: AllowedNamespaces,
    /// The authorities to trust for the provider's certificate. Absent: the system's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<Authorities>,
    /// The client's secret at the provider, where it insists on one and the preset has a place for it: a key of a Secret
    /// in the broker's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_ref: Option<HomeRef>,
    /// Where our discovery document and keys are kept for this provider to fetch, where it cannot fetch them from the
    /// broker. Nothing is signed for it with a key that is not there. Absent: it fetches them, or holds a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Publish>,
}

/// What an assertion is signed with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum AssertionAlg {
    /// ECDSA on P-256 with SHA-256.
    #[default]
    #[serde(rename = "ES256")]
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, by a key of 2048 bits.
    #[serde(rename = "RS256")]
    Rs256,
}

/// What an assertion calls the agent: exactly one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum SubjectForm {
    /// `sg:<cluster>:<service account UID>`: never reused, a recreated service account is somebody else.
    Opaque(NoOptions),
    /// `system:serviceaccount:<namespace>:<name>`, for providers that match nothing but `sub`. Whoever recreates the
    /// service account inherits what the provider grants it.
    Named(NoOptions),
}

impl Default for SubjectForm {
    fn default() -> Self {
        SubjectForm::Opaque(NoOptions {})
    }
}

/// Nothing to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct NoOptions {}

/// Where the authorities come from: exactly one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Authorities {
    /// PEM certificates in place.
    Inline(String),
    /// A key of a ConfigMap in the broker's own namespace that holds PEM certificates.
    ConfigMap(HomeRef),
}

/// Where our discovery document and keys are kept: exactly one key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Publish {
    /// The entries `openid-configuration` and `jwks` of a ConfigMap in the broker's own namespace. In a cluster.
    ConfigMap(LocalRef),
    /// The files `.well-known/openid-configuration` and `jwks` of this folder, which exists. On one machine.
    Directory(String),
}

/// A key of a named object in the broker's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct HomeRef {
    /// The object's name.
    pub name: String,
    /// The key within it.
    pub key: String,
}
