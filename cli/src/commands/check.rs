//! `sidegate check`: whether a cluster is fit for Sidegate, and an installation works; each finding with its fix.
//!
//! Looks with the caller's own rights and changes nothing: the one pod it creates is a dry run. What cannot be known is
//! said as unknown, never as fine. Invariant: one look that fails ends no other.

mod egress;
mod install;
mod namespaces;
mod people;

pub use install::PODS_WEBHOOK;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::seen;
use super::HomeArg;
use crate::cluster::{Cluster, ClusterArgs, Refused, Where};
use crate::out::{visible, Out, Tone};

/// The oldest server that has native sidecars and admission policies for good.
const FLOOR: (u32, u32) = (1, 33);

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl sidegate check
  kubectl sidegate check --namespace agents
  kubectl sidegate check -o json | jq '.[] | select(.verdict == \"bad\")'
  kubectl sidegate check --injection --namespace agents

With --namespace the webhook is asked about a pod of that namespace, else about one of the first labelled one. Nothing is
changed: the pod is a dry run.

Exit codes:
  0  nothing is wrong; warnings and what is unknown are printed
  1  something is wrong, or the cluster cannot be asked; with --injection also where the one thing it asks stays unknown
  2  wrong usage")]
pub struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    home: HomeArg,
    /// Only ask whether a pod of --namespace would get its sidecar. Nothing more may be needed than to create pods there.
    #[arg(long, requires = "namespace")]
    injection: bool,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and should be another way.
    Warn,
    /// It does not work.
    Bad,
    /// It cannot be told.
    Unknown,
}

/// One finding.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub said: String,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

impl Finding {
    fn new(what: &str, verdict: Verdict, said: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding {
            what: what.to_owned(),
            verdict,
            said: said.into(),
            fix: fix.into(),
        }
    }

    /// As it should be.
    pub fn good(what: &str, said: impl Into<String>) -> Self {
        Finding::new(what, Verdict::Good, said, "")
    }

    /// It works, and should be another way.
    pub fn warn(what: &str, said: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding::new(what, Verdict::Warn, said, fix)
    }

    /// It does not work.
    pub fn bad(what: &str, said: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding::new(what, Verdict::Bad, said, fix)
    }

    /// It cannot be told.
    pub fn unknown(what: &str, said: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding::new(what, Verdict::Unknown, said, fix)
    }

    /// What becomes of a look that failed: who may not look does not know.
    pub fn failed(what: &str, error: &anyhow::Error) -> Self {
        match Refused::code_of(error) {
            Some(403) => Finding::unknown(what, error.to_string(), "ask somebody who may look at it"),
            _ => Finding::unknown(what, format!("{error:#}"), ""),
        }
    }
}

/// What is looked at, and where.
pub struct Look<'a> {
    cluster: &'a Cluster,
    home: &'a str,
    /// The namespace of the pod that is asked about, if one was named.
    namespace: Option<&'a str>,
}

/// Checks.
pub fn run(args: &CheckArgs, out: &Out) -> Result<ExitCode> {
    let cluster = args.cluster.cluster()?;
    let look = Look {
        cluster: &cluster,
        home: &args.home.sidegate_namespace,
        namespace: args.cluster.namespace.as_deref(),
    };
    if args.injection {
        return injection(&look, out);
    }
    let mut findings = vec![version(&cluster)?];
    findings.extend(kinds(&cluster, look.home));
    findings.extend(install::findings(&look));
    findings.extend(namespaces::findings(&look));
    findings.extend(people::findings(&look));
    findings.push(Finding::unknown(
        "network policies",
        "whether the network plugin enforces NetworkPolicies cannot be told from the API; no tier that is built rests on it",
        "try one: a pod that a NetworkPolicy cuts off must not reach the outside",
    ));
    show(&findings, out)?;
    let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    Ok(ExitCode::from(u8::from(bad)))
}

/// The one question of `helm test`, which may not pass because nobody could ask it.
fn injection(look: &Look<'_>, out: &Out) -> Result<ExitCode> {
    let finding = install::answers(look);
    let good = finding.verdict == Verdict::Good;
    show(&[finding], out)?;
    Ok(ExitCode::from(u8::from(!good)))
}

fn show(findings: &[Finding], out: &Out) -> Result<()> {
    match out.json() {
        true => out.document(&findings),
        false => print(findings, out),
    }
}

fn print(findings: &[Finding], out: &Out) -> Result<()> {
    for finding in findings {
        let (tone, word) = match finding.verdict {
            Verdict::Good => (Tone::Good, "ok     "),
            Verdict::Warn => (Tone::Warn, "warning"),
            Verdict::Bad => (Tone::Bad, "wrong  "),
            Verdict::Unknown => (Tone::Warn, "unknown"),
        };
        out.line(format!(
            "{}  {}: {}",
            out.tone(tone, word),
            finding.what,
            visible(&finding.said)
        ))?;
        if !finding.fix.is_empty() {
            out.line(format!("         -> {}", visible(&finding.fix)))?;
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    out.line(format!(
        "\n{} ok, {} warning(s), {} wrong, {} unknown",
        count(Verdict::Good),
        count(Verdict::Warn),
        count(Verdict::Bad),
        count(Verdict::Unknown)
    ))?;
    Ok(())
}

/// A server that does not say its version is none that can be checked.
fn version(cluster: &Cluster) -> Result<Finding> {
    let said = cluster.version()?;
    let (major, minor) = FLOOR;
    Ok(match parsed(&said) {
        Some(found) if found >= FLOOR => Finding::good("server", format!("Kubernetes {said}")),
        Some(_) => Finding::bad(
            "server",
            format!("Kubernetes {said}"),
            format!("upgrade to {major}.{minor} or newer: native sidecars and admission policies are needed"),
        ),
        None => Finding::unknown("server", format!("its version is {said}"), ""),
    })
}

fn parsed(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    let number = |part: Option<&str>| part?.parse().ok();
    Some((number(parts.next())?, number(parts.next())?))
}

/// Whether the server knows our kinds.
fn kinds(cluster: &Cluster, home: &str) -> Vec<Finding> {
    let kinds = [
        seen::TARGETS,
        seen::POLICIES,
        seen::FLOORS,
        seen::ISSUERS,
        seen::PROFILES,
        crate::cluster::LOCKDOWNS,
        crate::cluster::ACCESS_REQUESTS,
    ];
    let mut missing = Vec::new();
    let mut counted = Vec::new();
    for kind in kinds {
        match cluster.list::<Value>(kind, Where::Everywhere) {
            Ok(objects) => counted.push(format!("{} {}", objects.len(), kind.plural)),
            Err(error) if Refused::code_of(&error) == Some(404) => missing.push(kind.plural),
            Err(error) => return vec![Finding::failed("kinds", &error)],
        }
    }
    if missing.is_empty() {
        return vec![Finding::good("kinds", counted.join(", "))];
    }
    vec![Finding::bad(
        "kinds",
        format!("the server does not know {}", missing.join(", ")),
        format!("helm install sidegate-crds charts/sidegate-crds --namespace {home}"),
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_as_servers_write_it() {
        assert_eq!(parsed("v1.36.3"), Some((1, 36)));
        assert_eq!(parsed("v1.33.5-gke.1200"), Some((1, 33)));
        assert_eq!(
            parsed("v1.30+"),
            None,
            "what is not understood is unknown, not new enough"
        );
        assert!(Some((1, 32)) < Some(FLOOR) && Some((2, 0)) > Some(FLOOR));
    }
}
