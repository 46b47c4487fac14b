//! `sidegate status` of a cluster: the installation, its certificates, namespaces and pods, and what became of each object.
//!
//! Reads with the caller's own rights. Refuses whoever may not list our kinds and namespaces; of the installation, what may
//! not be read is said to be unknown. Judges nothing.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{json, Value};
use sidegate_broker::kubernetes::reading::Kind as Read;
use sidegate_injector::standing::{has_ended, is_labelled};
use sidegate_policies::objects::Namespace;

use super::certificate::{self, Life};
use super::check::PODS_WEBHOOK;
use super::seen::{self, condition, is_ready, list, text, Seen};
use super::unprotected;
use crate::cluster::{Cluster, Where, ACCESS_REQUESTS};
use crate::out::{visible, Out, Tone};

/// Lease of the broker's leader.
const LEADER: &str = "sidegate-broker-leader";
const COMPONENT: &str = "app.kubernetes.io/component";

/// Prints the state of a cluster.
pub fn run(cluster: &Cluster, home: &str, out: &Out) -> Result<ExitCode> {
    let seen = Seen::read(cluster)?;
    let told = Told::read(cluster, &seen, home);
    if out.json() {
        out.document(&told.document())?;
    } else {
        told.print(out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What there is to say; each part with why it is unknown, where it is.
struct Told {
    parts: Vec<(String, Result<String, String>)>,
    namespaces: Vec<Value>,
    profiles: Vec<Value>,
    objects: Vec<Object>,
    waiting: Result<usize, String>,
}

struct Object {
    kind: &'static str,
    name: String,
    shown: Vec<String>,
    note: String,
}

impl Told {
    fn read(cluster: &Cluster, seen: &Seen, home: &str) -> Told {
        let pods = seen::pods(cluster, seen, None).map_err(|error| error.to_string());
        let unprotected = pods
            .as_deref()
            .map_err(String::clone)
            .and_then(|pods| unprotected::found(cluster, seen, home, pods).map_err(|error| error.to_string()));
        Told {
            parts: installation(cluster, home),
            namespaces: seen
                .namespaces
                .iter()
                .filter(|stored| is_labelled(&Namespace::of(stored)))
                .map(|stored| namespace(stored, &pods, &unprotected))
                .collect(),
            profiles: seen.profiles.iter().map(profile).collect(),
            objects: objects(seen),
            waiting: waiting(cluster).map_err(|error| error.to_string()),
        }
    }

    fn document(&self) -> Value {
        let parts: BTreeMap<&str, Value> = self
            .parts
            .iter()
            .map(|(name, said)| {
                let said = match said {
                    Ok(said) => json!({"said": said}),
                    Err(why) => json!({"unknown": why}),
                };
                (name.as_str(), said)
            })
            .collect();
        let object = |object: &Object| json!({"kind": object.kind, "name": object.name, "conditions": object.shown, "note": object.note});
        json!({
            "installation": parts, "namespaces": self.namespaces, "profiles": self.profiles,
            "objects": self.objects.iter().map(object).collect::<Vec<Value>>(),
            "requestsWaiting": self.waiting.as_ref().ok(),
        })
    }

    fn print(&self, out: &Out) -> Result<()> {
        for (name, said) in &self.parts {
            match said {
                Ok(said) => out.line(format!("{name:<22} {}", visible(said)))?,
                Err(why) => out.line(format!(
                    "{name:<22} {} ({})",
                    out.tone(Tone::Warn, "unknown"),
                    visible(why)
                ))?,
            }
        }
        match &self.waiting {
            Ok(0) => out.line(format!("{:<22} none", "requests that wait"))?,
            Ok(count) => out.line(format!(
                "{:<22} {count} (kubectl sidegate requests -A)",
                "requests that wait"
            ))?,
            Err(why) => out.line(format!("{:<22} unknown ({})", "requests that wait", visible(why)))?,
        }
        out.line("")?;
        if self.namespaces.is_empty() {
            out.line("No namespace is labelled sidegate.dev/inject=enabled.")?;
        } else {
            let number = |entry: &Value, field: &str| entry.get(field).map_or("?".to_owned(), Value::to_string);
            let row = |entry: &Value| {
                vec![
                    visible(text(entry, "/namespace")),
                    visible(text(entry, "/profile")),
                    number(entry, "pods"),
                    number(entry, "unprotected"),
                ]
            };
            out.table(
                &["NAMESPACE", "PROFILE", "PODS", "UNPROTECTED"],
                &self.namespaces.iter().map(row).collect::<Vec<_>>(),
            )?;
        }
        if !self.profiles.is_empty() {
            let row = |entry: &Value| {
                let field = |name: &str| visible(text(entry, &format!("/{name}")));
                ["profile", "tier", "egressEnforced", "note"].map(field).to_vec()
            };
            out.line("")?;
            out.table(
                &["PROFILE", "TIER", "EGRESS-ENFORCED", "NOTE"],
                &self.profiles.iter().map(row).collect::<Vec<_>>(),
            )?;
        }
        out.line("")?;
        if self.objects.is_empty() {
            out.line("There are no Targets and no policies.")?;
            return Ok(());
        }
        let row = |object: &Object| {
            let mut row = vec![object.kind.to_owned(), visible(&object.name)];
            row.extend(object.shown.iter().cloned());
            row.push(visible(&object.note));
            row
        };
        out.table(
            &["KIND", "NAME", "ACCEPTED", "RESOLVED", "PROGRAMMED", "NOTE"],
            &self.objects.iter().map(row).collect::<Vec<_>>(),
        )?;
        Ok(())
    }
}

fn installation(cluster: &Cluster, home: &str) -> Vec<(String, Result<String, String>)> {
    let mut parts = Vec::new();
    let mut tell =
        |name: &str, said: Result<String>| parts.push((name.to_owned(), said.map_err(|error| format!("{error:#}"))));
    for component in ["broker", "injector"] {
        tell(component, component_of(cluster, home, component));
    }
    tell("leader of the broker", leader(cluster, home));
    tell("broker's authority", authority(cluster, home));
    tell("webhook", webhook(cluster));
    parts
}

/// Pods of one part: how many are ready, and of which images.
fn component_of(cluster: &Cluster, home: &str, component: &str) -> Result<String> {
    let wanted = format!("app.kubernetes.io/name=sidegate,{COMPONENT}={component}");
    let pods: Vec<Value> = cluster.selected(seen::PODS, Where::Namespace(home), &wanted)?;
    if pods.is_empty() {
        return Ok(format!("no pod in namespace {home}"));
    }
    let mut images: Vec<&str> = pods.iter().map(|pod| text(pod, "/spec/containers/0/image")).collect();
    images.sort_unstable();
    images.dedup();
    let count = pods.iter().filter(|pod| is_ready(pod)).count();
    Ok(format!("{count}/{} ready, {}", pods.len(), images.join(", ")))
}

fn leader(cluster: &Cluster, home: &str) -> Result<String> {
    let lease: Option<Value> = cluster.get(seen::LEASES, Where::Namespace(home), LEADER)?;
    let lease = lease.unwrap_or_default();
    Ok(match text(&lease, "/spec/holderIdentity") {
        "" => "none".to_owned(),
        holder => format!("{holder}, renewed {}", text(&lease, "/spec/renewTime")),
    })
}

fn authority(cluster: &Cluster, home: &str) -> Result<String> {
    let map: Option<Value> = cluster.get(seen::CONFIG_MAPS, Where::Namespace(home), "sidegate-broker-ca")?;
    Ok(lives(&certificate::life(text(
        &map.unwrap_or_default(),
        "/data/ca.crt",
    ))))
}

fn webhook(cluster: &Cluster) -> Result<String> {
    let all: Vec<Value> = cluster.list(seen::WEBHOOKS, Where::Everywhere)?;
    let webhooks = all.iter().flat_map(|configuration| list(configuration, "/webhooks"));
    let ours = webhooks.filter(|webhook| text(webhook, "/name") == PODS_WEBHOOK);
    // Releases of two revisions stand side by side.
    let told: Vec<String> = ours
        .map(|webhook| {
            let life = certificate::life_of_base64(text(webhook, "/clientConfig/caBundle"));
            format!("{}, caBundle {}", text(webhook, "/failurePolicy"), lives(&life))
        })
        .collect();
    Ok(match told.is_empty() {
        false => told.join("; "),
        true => "not configured".to_owned(),
    })
}

fn lives(life: &Life) -> String {
    match life {
        Life::Until(until) => format!("until {until}"),
        Life::Ended(until) => format!("ended {until}"),
        Life::None => "none".to_owned(),
    }
}

fn namespace(
    stored: &Value,
    pods: &Result<Vec<Value>, String>,
    unprotected: &Result<Vec<unprotected::Found>, String>,
) -> Value {
    let namespace = Namespace::of(stored);
    let live = |pod: &&Value| !has_ended(pod);
    let here = |pod: &&Value| text(pod, "/metadata/namespace") == namespace.name;
    let mut entry = json!({
        "namespace": namespace.name,
        "profile": namespace.profile(),
    });
    if let (Some(entry), Ok(pods), Ok(unprotected)) = (entry.as_object_mut(), pods, unprotected) {
        entry.insert("pods".to_owned(), pods.iter().filter(here).filter(live).count().into());
        let found = unprotected.iter().filter(|found| found.namespace == namespace.name);
        entry.insert("unprotected".to_owned(), found.count().into());
    }
    entry
}

/// An InjectionProfile with what was measured of the pods made by it.
fn profile(stored: &Value) -> Value {
    let (egress, note) = seen::egress(stored);
    json!({
        "profile": text(stored, "/metadata/name"), "tier": seen::tier(stored), "egressEnforced": egress, "note": note,
    })
}

fn objects(seen: &Seen) -> Vec<Object> {
    let shown = |stored: &Value| {
        ["Accepted", "ResolvedRefs", "Programmed"]
            .map(|kind| match condition(stored, kind) {
                Some(found) if kind == "Programmed" && text(found, "/status") != "True" => {
                    format!(
                        "{} ({})",
                        text(found, "/status"),
                        text(found, "/message").split(';').next().unwrap_or_default()
                    )
                }
                Some(found) => text(found, "/status").to_owned(),
                None => "-".to_owned(),
            })
            .to_vec()
    };
    let note = |stored: &Value| {
        let wrong = |found: &&Value| text(found, "/status") == "False" || text(found, "/type") == "Insecure";
        let notes = list(stored, "/status/conditions").filter(wrong).map(|found| {
            match (text(found, "/type"), text(found, "/reason")) {
                ("Insecure", _) => format!("insecure: {}", text(found, "/message")),
                (_, "Pending") => String::new(),
                (_, reason) => reason.to_owned(),
            }
        });
        let mut notes: Vec<String> = notes.filter(|note| !note.is_empty()).collect();
        notes.dedup();
        notes.join("; ")
    };
    let of_kind = |kind: Read| seen.stored.iter().filter(move |(key, _)| key.kind == kind);
    let kinds = [
        Read::Lockdown,
        Read::Target,
        Read::AccessPolicy,
        Read::ClusterAccessPolicy,
        Read::TokenIssuer,
    ];
    let all = kinds.into_iter().flat_map(of_kind).map(|(key, stored)| Object {
        kind: key.kind.as_str(),
        name: match &key.namespace {
            Some(namespace) => format!("{namespace}/{}", key.name),
            None => key.name.clone(),
        },
        shown: shown(stored),
        note: note(stored),
    });
    all.collect()
}

fn waiting(cluster: &Cluster) -> Result<usize> {
    let requests: Vec<Value> = cluster.list(ACCESS_REQUESTS, Where::Everywhere)?;
    let waits = |request: &&Value| matches!(text(request, "/status/state"), "" | "Pending");
    Ok(requests.iter().filter(waits).count())
}
