//! Whether a Lockdown concerns a sidecar: its pod, or something of a Target in its bundle.
//!
//! Refuses nothing and decides nothing: it is for counting. The sidecar judges by itself what it ends. Invariant: what is
//! counted as matched is judged by the same comparison that refuses leases and tokens.

use sidegate_policies::api::lockdown::Freeze;
use sidegate_policies::bundle::BundledTarget;
use sidegate_policies::engine::Subject;
use sidegate_policies::wire::DenyEntry;

use super::{hits, About};
use crate::index::Offer;

/// Whether these entries freeze the pod or anything that it is offered.
pub fn concerned(entries: &[DenyEntry], subject: &Subject, offer: &Offer) -> bool {
    entries.iter().any(|entry| {
        let targets = &offer.bundle.targets;
        is_about(&entry.freeze, subject) || targets.iter().any(|target| holds(&entry.freeze, target))
    })
}

fn is_about(freeze: &Freeze, subject: &Subject) -> bool {
    let about = About {
        subject: Some(subject),
        ..About::default()
    };
    hits(freeze, about)
}

fn holds(freeze: &Freeze, bundled: &BundledTarget) -> bool {
    let target = &bundled.target;
    let (name, secret) = (target.full_name(), target.secret_name());
    let about = About {
        subject: None,
        target: Some(&name),
        secret: secret.as_deref(),
        issuer: target.spec.credential.issuer(),
    };
    hits(freeze, about)
}
