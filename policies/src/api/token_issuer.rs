//! `TokenIssuer`: an external identity provider that Sidegate exchanges its own assertion with, for a Target's token.
//!
//! Owns what an administrator says about one provider; how it is spoken to is a preset (`crate::presets`). Refused:
//! anything that would let a provider be reached but over verified TLS. Invariant: no field here holds a secret.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::meta::Object;
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
    pub ca_bundle: Option<InlineBundle>,
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

/// Trusted authorities, in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct InlineBundle {
    /// PEM certificates.
    pub inline: String,
}
