//! The kinds of group `sidegate.dev/v1alpha1`, one file per kind, as people write them in YAML.
//!
//! The Rust types are the source; `policies/crds/*.yaml` is generated from them by `crdgen`. Unknown fields are
//! refused everywhere. What the design names but this release does not build is in [`not_built`], and refused
//! at load with that very word.

pub mod access_policy;
pub mod access_request;
pub mod cluster_access_policy;
pub mod injection_profile;
pub mod lockdown;
pub mod meta;
pub mod not_built;
pub mod summary;
pub mod target;
pub mod token_issuer;

pub use access_policy::{AccessPolicy, AccessPolicySpec};
pub use access_request::{AccessRequest, AccessRequestSpec, AccessRequestStatus};
pub use cluster_access_policy::{ClusterAccessPolicy, ClusterAccessPolicySpec};
pub use injection_profile::{InjectionProfile, InjectionProfileSpec};
pub use lockdown::{Lockdown, LockdownSpec};
pub use meta::{LabelSelector, Metadata, Object};
pub use target::{Target, TargetSpec};
pub use token_issuer::{TokenIssuer, TokenIssuerSpec};

/// The API group of every Sidegate kind.
pub const GROUP: &str = "sidegate.dev";
/// The served version.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` as written in YAML.
pub const API_VERSION: &str = "sidegate.dev/v1alpha1";
