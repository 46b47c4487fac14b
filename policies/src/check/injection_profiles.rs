//! InjectionProfiles: an image that is pinned, users nobody else is, sizes that can be.
//!
//! Refuses what would put a sidecar into pods that cannot start or that an agent could pass for.

use super::{is_digest, is_label, Checked, Report};
use crate::api::injection_profile::{Tier, Weakening};
use crate::api::InjectionProfileSpec;
use crate::objects::Objects;
use crate::pod::fence::STRANGER;
use crate::quantity::ByteSize;

/// Users that agents' images commonly run as, and those of service meshes.
const COMMON: [i64; 5] = [1_000, 1_337, 2_102, 65_532, 65_534];
/// Below this a sidecar does not start.
const LEAST_MEMORY: ByteSize = ByteSize(16 << 20);
const SLOW: &str = "with a limit below 50m a TLS handshake takes seconds";
/// Below this a journal holds no session.
const LEAST_JOURNAL: ByteSize = ByteSize(16 << 20);

pub(super) fn check(objects: &Objects, checked: &mut Checked) {
    for located in &objects.injection_profiles {
        let profile = &located.object;
        let label = format!("InjectionProfile {}", profile.full_name());
        let mut report = Report::new(&located.origin, label, checked);
        report.metadata(&profile.metadata);
        image(&profile.spec, &mut report);
        users(&profile.spec, &mut report);
        sizes(&profile.spec, &mut report);
        exempt(&profile.spec, &mut report);
        fence(&profile.spec, &mut report);
    }
}

fn image(spec: &InjectionProfileSpec, report: &mut Report<'_>) {
    let repository = spec.image.repository.as_str();
    let formed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/:".contains(c);
    let last = repository.rsplit('/').next().unwrap_or_default();
    if repository.is_empty() || repository.len() > 255 || !repository.chars().all(formed) || last.contains(':') {
        let message = format!(
            "`{repository}` is not a repository; write it without a tag, such as registry.example/sidegate-sidecar"
        );
        report.problem("spec.image.repository", message);
    }
    if !is_digest(&spec.image.digest) {
        let message = "is not a digest; write sha256: and 64 hexadecimal digits, for a tag may be moved";
        report.problem("spec.image.digest", message);
    }
}

fn users(spec: &InjectionProfileSpec, report: &mut Report<'_>) {
    let users = [
        ("spec.runAs.uid", spec.run_as.uid),
        ("spec.runAs.alternateUid", spec.run_as.alternate_uid),
    ];
    for (field, uid) in users {
        if !(1..=4_294_967_293).contains(&uid) {
            report.problem(field, format!("{uid} is not a user number that is not root's"));
        } else if COMMON.contains(&uid) {
            let message = format!("many images run as {uid}: choose a number no agent has, such as 61937");
            report.problem(field, message);
        }
    }
    if spec.run_as.uid == spec.run_as.alternate_uid {
        report.problem("spec.runAs.alternateUid", "must be another one than runAs.uid");
    }
}

fn sizes(spec: &InjectionProfileSpec, report: &mut Report<'_>) {
    let resources = &spec.resources;
    if resources.limits.memory < LEAST_MEMORY {
        report.problem("spec.resources.limits.memory", "a sidecar needs at least 16Mi");
    }
    if resources.requests.memory > resources.limits.memory {
        report.problem("spec.resources.requests.memory", "is more than limits.memory");
    }
    if let Some(limit) = resources.limits.cpu {
        if limit.0 < 50 {
            report.problem("spec.resources.limits.cpu", SLOW);
        }
        if resources.requests.cpu > limit {
            report.problem("spec.resources.requests.cpu", "is more than limits.cpu");
        }
    }
    if resources.guaranteed.memory < LEAST_MEMORY {
        report.problem("spec.resources.guaranteed.memory", "a sidecar needs at least 16Mi");
    }
    if resources.guaranteed.cpu.0 < 50 {
        report.problem("spec.resources.guaranteed.cpu", SLOW);
    }
    if spec.journal.size_limit < LEAST_JOURNAL {
        report.problem("spec.journal.sizeLimit", "a journal needs at least 16Mi");
    }
}

fn exempt(spec: &InjectionProfileSpec, report: &mut Report<'_>) {
    for (at, container) in spec.agents.exempt_containers.iter().enumerate() {
        let field = |key: &str| format!("spec.agents.exemptContainers[{at}].{key}");
        if !is_label(&container.name) {
            report.problem(field("name"), format!("`{}` is not a container's name", container.name));
        } else if container.name.starts_with("sidegate") {
            report.problem(field("name"), "names that begin with sidegate are Sidegate's own");
        }
        // Without a repository in it, whoever writes a pod would choose the registry.
        if !container.image_prefix.contains('/') {
            let message = "name the registry and the repository, such as registry.example/mesh/proxy";
            report.problem(field("imagePrefix"), message);
        }
    }
}

/// What would let an agent around its fence, and what means nothing without one (test
/// `a_profile_cannot_ask_for_a_fence_with_a_gap`).
fn fence(spec: &InjectionProfileSpec, report: &mut Report<'_>) {
    let allowed = &spec.fence.allow_uids;
    if spec.tier == Tier::Cooperative {
        if !allowed.is_empty() {
            report.problem("spec.fence.allowUids", "only tier Enforced has a fence");
        }
        return;
    }
    for (field, weakening) in [
        ("spec.shapes.privileged", spec.shapes.privileged),
        ("spec.shapes.hostPath", spec.shapes.host_path),
    ] {
        if weakening == Weakening::Warn {
            report.problem(
                field,
                "such a pod gets around its fence: tier Enforced takes Deny alone",
            );
        }
    }
    if !spec.agents.drop_net_raw {
        let message = "with NET_RAW an agent gets around its fence: tier Enforced takes true alone";
        report.problem("spec.agents.dropNetRaw", message);
    }
    let own = [spec.run_as.uid, spec.run_as.alternate_uid];
    for (field, uid) in ["spec.runAs.uid", "spec.runAs.alternateUid"].into_iter().zip(own) {
        if uid == STRANGER {
            report.problem(
                field,
                format!("as {STRANGER} the fence tries itself; choose another number"),
            );
        }
    }
    if allowed.len() > 16 {
        report.problem("spec.fence.allowUids", "names more than 16 users");
    }
    for (at, uid) in allowed.iter().enumerate() {
        let field = format!("spec.fence.allowUids[{at}]");
        if !(1..=4_294_967_293).contains(uid) {
            report.problem(field, format!("{uid} is not a user number that is not root's"));
        } else if *uid == STRANGER {
            report.problem(
                field,
                format!("as {STRANGER} the fence tries itself, and must not get out"),
            );
        } else if own.contains(uid) {
            report.problem(
                field,
                format!("{uid} is the sidecar's own user, which is let through anyway"),
            );
        } else if allowed.iter().take(at).any(|before| before == uid) {
            report.problem(field, format!("{uid} is named twice"));
        }
    }
}
