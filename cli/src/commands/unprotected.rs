//! `sidegate unprotected` and `sidegate outdated`: pods of labelled namespaces whose sidecar the broker would not believe,
//! by reason; and pods that would get another sidecar if they were made anew.
//!
//! Decided by the code of the injector ([`sidegate_injector::standing`]) on what the API server stored. Changes nothing.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{json, Value};
use sidegate_injector::standing::{has_ended, labelled_at, outdated, unprotected};
use sidegate_policies::objects::Namespace;

use super::seen::{self, text, Seen};
use super::HomeArg;
use crate::cluster::{Cluster, ClusterArgs};
use crate::out::{visible, Format, Out, Tone};

/// Arguments of `unprotected`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl sidegate unprotected
  kubectl sidegate unprotected -n agents -o wide
  kubectl sidegate unprotected -o json | jq -r '.[] | select(.reason == \"older-than-label\") | .pod'

Reasons:
  older-than-label  it was there before its namespace was labelled
  outage            it came after the label, and nothing added a sidecar: the webhook was gone, or gone around
  static            a node's own file makes it, so that no admission applies
  windows           it runs on Windows
  opted-out         its label asks for it, and its namespace lets it
  audit             its namespace only audits, and its shape would have been refused
  tampered          it has something called a sidecar, which the broker would not believe
  unfenced          its profile is Enforced, and it has no fence that would hold
A pod without a valid sidecar gets no credential of Sidegate's, whatever the reason.

Exit codes:
  0  every pod of the labelled namespaces has a valid sidecar
  1  some have not, or the cluster cannot be asked
  2  wrong usage")]
pub struct UnprotectedArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    home: HomeArg,
}

/// Arguments of `outdated`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl sidegate outdated
  kubectl sidegate outdated -n agents
  kubectl -n agents rollout restart deployment/triage

A pod keeps the image, settings and variables it was made with. Policies, credentials and listeners are not part of
that: they follow at once.

Exit codes:
  0  every protected pod would be made the same
  1  some would not, or the cluster cannot be asked
  2  wrong usage")]
pub struct OutdatedArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The namespace meant, if one is: without `-n`, every labelled one.
fn only(args: &ClusterArgs) -> Option<&str> {
    args.namespace.as_deref()
}

/// Lists pods without a valid sidecar.
pub fn run(args: &UnprotectedArgs, out: &Out) -> Result<ExitCode> {
    let cluster = args.cluster.cluster()?;
    let seen = Seen::read(&cluster)?;
    let pods = seen::pods(&cluster, &seen, only(&args.cluster))?;
    let found = found(&cluster, &seen, &args.home.sidegate_namespace, &pods)?;
    if out.json() {
        out.document(&found.iter().map(document).collect::<Vec<Value>>())?;
    } else if found.is_empty() {
        out.line(out.tone(Tone::Good, "Every pod of the labelled namespaces has a valid sidecar."))?;
    } else {
        let wide = out.format == Format::Wide;
        let row = |found: &Found| {
            let mut row = vec![
                visible(&found.namespace),
                visible(&found.pod),
                found.why.reason.as_str().to_owned(),
                visible(&found.why.advice()),
            ];
            if wide {
                row.insert(3, visible(&found.made_by));
                row.insert(4, found.created.clone());
            }
            row
        };
        let header: &[&str] = match wide {
            true => &["NAMESPACE", "POD", "REASON", "MADE BY", "CREATED", "WHAT TO DO"],
            false => &["NAMESPACE", "POD", "REASON", "WHAT TO DO"],
        };
        out.table(header, &found.iter().map(row).collect::<Vec<_>>())?;
    }
    Ok(match found.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    })
}

/// A pod without a valid sidecar.
pub struct Found {
    /// Its namespace.
    pub namespace: String,
    pod: String,
    made_by: String,
    created: String,
    /// Why.
    pub why: sidegate_injector::standing::Unprotected,
}

fn document(found: &Found) -> Value {
    json!({
        "namespace": found.namespace, "pod": found.pod, "madeBy": found.made_by, "created": found.created,
        "reason": found.why.reason.as_str(), "detail": found.why.detail,
    })
}

/// Which of these pods are without a valid sidecar.
///
/// # Errors
/// What is needed may not be read.
pub fn found(cluster: &Cluster, seen: &Seen, home: &str, pods: &[Value]) -> Result<Vec<Found>> {
    let belief = seen::belief(cluster, home)?.with_context(|| {
        format!(
            "ConfigMap {home}/sidegate-admission says nothing (yet): the broker's leader writes there what a sidecar must \
             show; --sidegate-namespace names another namespace"
        )
    })?;
    let mut all = Vec::new();
    for pod in pods {
        let namespace = text(pod, "/metadata/namespace");
        let Some((labels, stored)) = seen.namespace(namespace) else {
            continue;
        };
        let Some(why) = unprotected(&belief, &labels, labelled_at(stored), pod) else {
            continue;
        };
        let owner = seen::list(pod, "/metadata/ownerReferences").next();
        all.push(Found {
            namespace: namespace.to_owned(),
            pod: text(pod, "/metadata/name").to_owned(),
            made_by: owner
                .map(|owner| format!("{}/{}", text(owner, "/kind"), text(owner, "/name")))
                .unwrap_or_default(),
            created: text(pod, "/metadata/creationTimestamp").to_owned(),
            why,
        });
    }
    all.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    Ok(all)
}

/// Lists pods that would be made differently now.
pub fn run_outdated(args: &OutdatedArgs, out: &Out) -> Result<ExitCode> {
    let cluster = args.cluster.cluster()?;
    let seen = Seen::read(&cluster)?;
    let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let injecting = seen.injecting();
    for pod in seen::pods(&cluster, &seen, only(&args.cluster))? {
        let namespace = text(&pod, "/metadata/namespace");
        let stored = seen.namespace(namespace).map(|(_, stored)| stored);
        let Some(stored) = stored.filter(|_| !has_ended(&pod)) else {
            continue;
        };
        let told = outdated(&injecting, &Namespace::of(stored), &pod);
        if !told.is_empty() {
            let name = text(&pod, "/metadata/name").to_owned();
            found.insert((namespace.to_owned(), name), told);
        }
    }
    if out.json() {
        let entry = |((namespace, pod), told): (&(String, String), &Vec<String>)| json!({"namespace": namespace, "pod": pod, "differs": told});
        out.document(&found.iter().map(entry).collect::<Vec<Value>>())?;
    } else if found.is_empty() {
        out.line(out.tone(Tone::Good, "Every protected pod would be made the same again."))?;
    } else {
        let row = |((namespace, pod), told): (&(String, String), &Vec<String>)| {
            vec![visible(namespace), visible(pod), visible(&told.join("; "))]
        };
        out.table(
            &["NAMESPACE", "POD", "WHAT DIFFERS"],
            &found.iter().map(row).collect::<Vec<_>>(),
        )?;
    }
    Ok(match found.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    })
}
