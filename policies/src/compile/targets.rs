//! Targets as the engine needs them: unique names, and a digest of what decides.
//!
//! Status and annotations are left out of the digest: no decision reads them.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use super::{problem, Problem};
use crate::api::meta::Metadata;
use crate::api::Target;
use crate::bundle::BundledTarget;
use crate::engine::{digest, CompiledTarget, TargetId};

/// Compiles every target.
pub fn compile(targets: &[BundledTarget], problems: &mut Vec<Problem>) -> HashMap<TargetId, Arc<CompiledTarget>> {
    let mut compiled = HashMap::with_capacity(targets.len());
    for bundled in targets {
        let metadata = &bundled.target.metadata;
        let object = format!("Target {}", bundled.target.full_name());
        let Some(namespace) = metadata.namespace.as_deref() else {
            problems.push(problem(
                &object,
                "metadata.namespace",
                "a Target lives in a namespace; name it",
            ));
            continue;
        };
        let id = TargetId::new(namespace, &metadata.name);
        let target = CompiledTarget {
            id: id.clone(),
            protocol: bundled.target.spec.protocol,
            digest: digest_of(&bundled.target),
            bundled: bundled.clone(),
        };
        if compiled.insert(id, Arc::new(target)).is_some() {
            problems.push(problem(&object, "metadata.name", "this Target is there twice"));
        }
    }
    compiled
}

fn digest_of(target: &Target) -> [u8; 32] {
    let Metadata {
        name,
        namespace,
        uid,
        labels,
        annotations: _,
    } = &target.metadata;
    digest::of(&json!({
        "name": name,
        "namespace": namespace,
        "uid": uid,
        "labels": labels,
        "spec": target.spec,
    }))
}
