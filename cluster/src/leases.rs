//! Leases that several replicas write.
//!
//! Refuses to overwrite what was not read. The invariant: a Lease is created once, and replaced only at the version it
//! was read at.

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::Api;

use crate::{answered, Failed};

/// Writes a Lease as found, or a new one where none was. Answers whether this replica was the first to.
///
/// # Errors
/// The API server does not take it, for another reason than a version that is past.
pub async fn keep(
    leases: &Api<Lease>,
    name: &str,
    found: Option<Lease>,
    written: impl FnOnce(Lease) -> Lease,
) -> Result<bool, Failed> {
    let parameters = PostParams::default();
    let kept = match found {
        Some(lease) => answered(leases.replace(name, &parameters, &written(lease))).await,
        None => {
            let fresh = Lease {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: None,
            };
            answered(leases.create(&parameters, &written(fresh))).await
        }
    };
    match kept {
        Ok(_) => Ok(true),
        Err(error) if error.is(409) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a Lease, if it is there.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn remove(leases: &Api<Lease>, name: &str) -> Result<(), Failed> {
    match answered(leases.delete(name, &DeleteParams::default())).await {
        Err(error) if !error.is(404) => Err(error),
        _ => Ok(()),
    }
}
