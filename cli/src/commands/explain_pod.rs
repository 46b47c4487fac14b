//! The part of `sidegate explain pod/NAME` that is about the pod itself: whether its sidecar is what it should be, where
//! each Target is found in it, what it lacks, and in plain words how far its gate holds.
//!
//! Judged on what the API server stored; with `--live` the sidecar's own word is shown beside it. Invariant: nothing
//! here ever reads as enforced that was not measured so.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{json, Value};
use sidegate_broker::control::SidecarReport;
use sidegate_injector::standing::{agents, labelled_at, made_by, names, outdated, ports, unprotected, Named};
use sidegate_policies::api::injection_profile::Tier;
use sidegate_policies::api::Target;
use sidegate_policies::engine::Subject;
use sidegate_policies::objects::labels;
use sidegate_policies::wire::Enforced;

use super::offline::World;
use super::seen::{self, list, text, Seen};
use crate::cluster::{Cluster, Where};
use crate::out::{visible, Out, Tone};

/// What the gate of a Cooperative pod holds, and what not.
const COOPERATIVE: &str =
    "Cooperative: it holds no credential of a Target, and may still dial elsewhere with credentials \
                           it got elsewhere; nothing keeps it from that";

/// What is known of a pod.
pub struct Told {
    /// Who it is to policies.
    pub subject: Subject,
    pod: Value,
    sidecar: Sidecar,
    /// The profile of its namespace, where there is one.
    profile: Option<Value>,
    outdated: Vec<String>,
    live: Option<Result<Vec<SidecarReport>, String>>,
}

enum Sidecar {
    /// The broker would believe it.
    Valid,
    /// It would not, or there is none.
    Invalid(String),
    /// Its namespace asks for none.
    NotAsked,
    /// It cannot be told.
    Unknown(String),
}

/// Where a Target is found in the pod.
struct Listener {
    target: String,
    local: String,
    named: Option<Named>,
    notes: Vec<String>,
}

/// Who a pod of the cluster is to policies.
///
/// # Errors
/// It is not there, or may not be read.
pub fn subject_of(cluster: &Cluster, name: &str) -> Result<Subject> {
    Ok(subject(&stored(cluster, name)?, &cluster.namespace))
}

fn stored(cluster: &Cluster, name: &str) -> Result<Value> {
    let namespace = cluster.namespace.as_str();
    let pod: Option<Value> = cluster.get(seen::PODS, Where::Namespace(namespace), name)?;
    pod.with_context(|| format!("there is no pod {namespace}/{name}"))
}

impl Told {
    /// Reads a pod of the cluster.
    ///
    /// # Errors
    /// It is not there, or may not be read.
    pub fn read(cluster: &Cluster, seen: &Seen, home: &str, name: &str, live: bool) -> Result<Told> {
        let namespace = cluster.namespace.as_str();
        let pod = stored(cluster, name)?;
        let (labels, stored) = seen.namespace(namespace).context("its namespace is gone")?;
        let sidecar = match seen::belief(cluster, home) {
            _ if !sidegate_injector::standing::is_labelled(&labels) => Sidecar::NotAsked,
            Ok(Some(belief)) => match unprotected(&belief, &labels, labelled_at(stored), &pod) {
                None => Sidecar::Valid,
                Some(why) if why.detail.is_empty() => Sidecar::Invalid(why.reason.as_str().to_owned()),
                Some(why) => Sidecar::Invalid(format!("{}: {}", why.reason.as_str(), why.detail)),
            },
            Ok(None) => Sidecar::Unknown(format!("ConfigMap {home}/sidegate-admission says nothing")),
            Err(error) => Sidecar::Unknown(format!("{error:#}")),
        };
        let named = |profile: &&Value| text(profile, "/metadata/name") == labels.profile();
        let profile = seen.profiles.iter().find(named).cloned();
        let outdated = outdated(&seen.injecting(), &labels, &pod);
        let live = live.then(|| sidecars(cluster, home, namespace, name).map_err(|error| format!("{error:#}")));
        Ok(Told {
            subject: subject(&pod, namespace),
            pod,
            sidecar,
            profile,
            outdated,
            live,
        })
    }

    fn sidecar(&self) -> (Tone, String) {
        match &self.sidecar {
            Sidecar::Valid => (Tone::Good, "valid".to_owned()),
            Sidecar::Invalid(why) => (Tone::Bad, format!("not valid, so the pod gets no credential ({why})")),
            Sidecar::NotAsked => {
                let namespace = &self.subject.namespace;
                (
                    Tone::Warn,
                    format!("namespace {namespace} is not labelled: it gets none"),
                )
            }
            Sidecar::Unknown(why) => (Tone::Warn, format!("it cannot be told whether it is valid: {why}")),
        }
    }

    /// Its tier, whether its egress was measured as enforced, and how that is said.
    fn tier(&self) -> (&str, Enforced, String) {
        let profile = self
            .profile
            .as_ref()
            .filter(|_| !matches!(self.sidecar, Sidecar::NotAsked));
        let Some(profile) = profile.filter(|profile| seen::tier(profile) != Tier::Cooperative.as_str()) else {
            return (Tier::Cooperative.as_str(), Enforced::False, COOPERATIVE.to_owned());
        };
        let (word, message) = seen::egress(profile);
        let of_all = Enforced::ALL.into_iter().find(|state| state.as_str() == word);
        let (state, why) = match (&self.sidecar, &self.live) {
            (Sidecar::Invalid(_), _) => (Enforced::False, "its fence is not what it must be".to_owned()),
            (_, Some(Ok(reports))) => {
                let measured = reports.iter().max_by_key(|report| report.egress_ms);
                let egress = measured.and_then(|report| report.status.egress);
                let told = egress.map_or(Enforced::Unknown, |egress| egress.state);
                (told, "by its sidecar's last look".to_owned())
            }
            _ => (of_all.unwrap_or_default(), format!("of its profile: {message}")),
        };
        let tier = seen::tier(profile);
        let said = format!("{tier}, egress enforced: {} ({why})", state.as_str());
        (tier, state, said)
    }

    fn listeners(&self, world: &World<'_>) -> Vec<Listener> {
        let announced = ports(&self.pod);
        let mut named = names(&self.pod);
        let mut listeners: Vec<Listener> = world
            .served()
            .iter()
            .map(|target| Listener {
                target: target.full_name(),
                local: format!("127.0.0.1:{}", target.spec.listen.port),
                named: named.remove(&target.full_name()),
                notes: self.notes(target, announced.as_ref()),
            })
            .collect();
        for (target, port) in announced.into_iter().flatten() {
            if world.served().iter().all(|served| served.full_name() != target) {
                listeners.push(Listener {
                    target,
                    local: format!("127.0.0.1:{port}"),
                    named: None,
                    notes: vec!["granted no more: what connects there is refused".to_owned()],
                });
            }
        }
        listeners
    }

    fn notes(&self, target: &Target, announced: Option<&BTreeMap<String, u16>>) -> Vec<String> {
        let name = target.full_name();
        let mut notes = Vec::new();
        match announced {
            None => notes.push("the pod has no sidecar: nothing listens".to_owned()),
            Some(announced) if !announced.contains_key(&name) => {
                notes.push("it came later: it listens, but no variable says so until the pod is made anew".to_owned());
            }
            Some(_) => {}
        }
        for container in agents(&self.pod) {
            for variable in &target.spec.env {
                let own = list(container, "/env").find(|found| text(found, "/name") == variable.name);
                // Whatever it is: a value may be a secret.
                if own.is_some_and(|own| text(own, "/value") != variable.value) {
                    notes.push(format!(
                        "container {} sets {} itself: it does not lead here",
                        text(container, "/name"),
                        variable.name
                    ));
                }
            }
        }
        notes.extend(self.heard(&name));
        notes
    }

    /// What the sidecar says of a Target, if it was asked.
    fn heard(&self, target: &str) -> Option<String> {
        let Some(Ok(reports)) = &self.live else { return None };
        let served = reports.iter().flat_map(|report| &report.status.targets);
        let mut served = served.filter(|served| served.target == target);
        Some(match served.next() {
            Some(served) => match &served.problem {
                Some(problem) => format!("its sidecar says: {problem}"),
                None => format!("its sidecar listens, {} session(s)", served.sessions),
            },
            None => "its sidecar does not know it (yet)".to_owned(),
        })
    }

    /// For programs.
    pub fn document(&self, world: &World<'_>) -> Value {
        let listener = |listener: &Listener| {
            let named = listener.named.as_ref();
            let named = named.map(|named| json!({"at": named.at.to_string(), "names": named.names}));
            json!({"target": listener.target, "local": listener.local, "named": named, "notes": listener.notes})
        };
        let (tier, egress, _) = self.tier();
        let mut document = json!({
            "namespace": self.subject.namespace, "name": self.subject.pod, "uid": self.subject.pod_uid,
            "serviceAccount": self.subject.service_account, "labels": self.subject.labels,
            "sidecar": self.sidecar().1, "valid": matches!(self.sidecar, Sidecar::Valid),
            "tier": tier, "egressEnforced": egress.as_str(), "madeBy": made_by(&self.pod), "outdated": self.outdated,
            "listeners": self.listeners(world).iter().map(listener).collect::<Vec<Value>>(),
        });
        if let (Some(live), Some(document)) = (&self.live, document.as_object_mut()) {
            document.insert(
                "live".to_owned(),
                match live {
                    Ok(reports) => json!(reports),
                    Err(why) => json!({"unknown": why}),
                },
            );
        }
        document
    }

    /// For people.
    pub fn print(&self, world: &World<'_>, out: &Out) -> Result<()> {
        let subject = &self.subject;
        out.line(out.tone(
            Tone::Bold,
            format!("pod {}/{}", visible(&subject.namespace), visible(&subject.pod)),
        ))?;
        let labels: Vec<String> = subject
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let (tone, sidecar) = self.sidecar();
        out.line(format!("  account    {}", visible(&subject.account())))?;
        if !labels.is_empty() {
            out.line(format!("  labels     {}", visible(&labels.join(", "))))?;
        }
        out.line(format!("  sidecar    {}", out.tone(tone, visible(&sidecar))))?;
        if let Some(made_by) = made_by(&self.pod) {
            out.line(format!("  made by    profile {}", visible(&made_by)))?;
        }
        out.line(format!("  tier       {}", visible(&self.tier().2)))?;
        for differs in &self.outdated {
            out.line(format!("  outdated   {}", visible(differs)))?;
        }
        match &self.live {
            Some(Ok(reports)) if reports.is_empty() => out.line("  connected  no: the broker has no stream of it")?,
            Some(Ok(reports)) => {
                for report in reports {
                    let sessions = report.status.sessions;
                    out.line(format!(
                        "  connected  release {}, {sessions} session(s)",
                        visible(&report.release)
                    ))?;
                }
            }
            Some(Err(why)) => out.line(format!("  connected  unknown: {}", visible(why)))?,
            None => {}
        }
        let listeners = self.listeners(world);
        if listeners.is_empty() {
            return Ok(());
        }
        out.line(format!("\n{}", out.tone(Tone::Bold, "Where it finds its Targets")))?;
        let row = |listener: &Listener| {
            let mut notes = listener.notes.clone();
            notes.extend(listener.named.as_ref().map(said));
            vec![
                format!("  {}", visible(&listener.target)),
                listener.local.clone(),
                visible(&notes.join("; ")),
            ]
        };
        out.table(
            &["  TARGET", "LOCAL", "NOTE"],
            &listeners.iter().map(row).collect::<Vec<_>>(),
        )?;
        let past = match listeners.iter().any(|listener| listener.named.is_some()) {
            true => {
                "On these ports, and by these names on theirs: an address, and every other name, leads past the gate."
            }
            false => "On these ports alone: a Target's own host name leads past the gate.",
        };
        out.line(format!(
            "  {past} The line to them never leaves the pod, so clients need neither TLS nor an authority there."
        ))?;
        Ok(())
    }
}

/// By which names a Target is found, in a sentence.
fn said(named: &Named) -> String {
    let (port, ip) = (named.at.port(), named.at.ip());
    format!("also as {} on port {port} ({ip})", named.names.join(", "))
}

fn subject(pod: &Value, namespace: &str) -> Subject {
    let account = match text(pod, "/spec/serviceAccountName") {
        "" => "default",
        account => account,
    };
    Subject {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        pod: text(pod, "/metadata/name").to_owned(),
        pod_uid: text(pod, "/metadata/uid").to_owned(),
        labels: labels(pod),
    }
}

/// What brokers know of the pod's sidecar.
fn sidecars(cluster: &Cluster, home: &str, namespace: &str, name: &str) -> Result<Vec<SidecarReport>> {
    let mut all = Vec::new();
    for broker in cluster.brokers(home)? {
        all.extend(cluster.ask_broker::<Vec<SidecarReport>>(home, &broker, &format!("/v1/pods/{namespace}/{name}"))?);
    }
    Ok(all)
}
