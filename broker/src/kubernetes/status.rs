//! Conditions: what `kubectl get` and `describe` say of each object.
//!
//! Refuses nothing: it reports. The invariants: a condition is written only where it says something new, its time
//! changes only with its status, and nothing in it reveals more than names, fields and reasons.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::{json, Map, Value};
use sidegate_policies::api::summary;
use sidegate_policies::api::target::{Credential, TlsMode, WeakLogin};
use sidegate_policies::api::token_issuer::Authorities;
use sidegate_policies::api::Target;
use sidegate_policies::compile::Problem;
use sidegate_policies::objects::absent;
use sidegate_policies::wire::{TargetStatus, NOT_UNDERSTOOD};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::answered;
use super::egress::{self, Tallies};
use super::kinds::{api_of, Kinds};
use super::leader::Leader;
use super::maps::{named_by, ClusterMaps, MapRead};
use super::measured::Measured;
use super::pods::ClusterPods;
use super::reading::{About, Found, Key, Kind};
use super::secrets::ClusterSecrets;
use crate::clock::rfc3339;
use crate::front::stream::SidecarReport;
use crate::front::Front;
use crate::index::Index;
use crate::lockdown::{concerned, Outcome};
use crate::secrets::SecretError;

/// Changes of sidecars are gathered for so long.
const QUIET: Duration = Duration::from_millis(200);
/// What nobody tells us of, such as a Role that was granted, is looked at again so often.
const AGAIN: Duration = Duration::from_secs(5);
/// A Secret that can be read is looked at again after so long, and one that cannot, milliseconds.
const READABLE_MS: i64 = 60_000;
const UNREADABLE_MS: i64 = 4_000;
/// Secrets that are remembered before old answers are thrown away.
const MAX_ASKED: usize = 10_000;
/// So many problems are told per object; the rest is counted.
const MAX_TOLD: usize = 5;
/// The longest message (the definition allows no more).
const MAX_MESSAGE: usize = 4_000;

/// Writes conditions.
pub struct Conditions {
    /// What people applied, with the conditions it has.
    pub kinds: Arc<Kinds>,
    /// What is in force, and who has it.
    pub front: Arc<Front>,
    /// What was found about objects.
    pub found: watch::Receiver<Arc<About>>,
    /// What was found about Lockdowns.
    pub locked: watch::Receiver<Arc<About>>,
    /// Whether Secrets can be read.
    pub secrets: ClusterSecrets,
    /// Whether ConfigMaps could be read.
    pub maps: Arc<ClusterMaps>,
    /// Live pods.
    pub pods: Arc<ClusterPods>,
    /// What sidecars told other replicas of their fences.
    pub measured: Arc<Measured>,
    /// Whether this replica writes.
    pub leader: Arc<Leader>,
    /// What is known of Secrets.
    pub asked: Mutex<Asked>,
}

/// Secrets by namespace and name: until when it counts, and why each cannot be read, if it cannot.
pub type Asked = HashMap<(String, String), (i64, Option<(&'static str, String)>)>;

/// One condition, without its time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    kind: &'static str,
    holds: Option<bool>,
    reason: &'static str,
    message: String,
}

impl Condition {
    fn new(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Condition {
            kind,
            holds: Some(holds),
            reason,
            message: message.into(),
        }
    }

    fn status(&self) -> &'static str {
        match self.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

/// How many sidecars were offered something and how many have it; and why one does not take it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Reach {
    matched: u64,
    current: u64,
    refused: Option<(&'static str, String)>,
}

impl Reach {
    fn condition(self) -> Condition {
        let message = format!("{}/{} pods", self.current, self.matched);
        if let Some((reason, why)) = self.refused {
            return Condition::new("Programmed", false, reason, format!("{message}; {why}"));
        }
        match (self.matched, self.current) {
            (0, _) => Condition {
                kind: "Programmed",
                holds: None,
                reason: "NoPods",
                message,
            },
            (matched, current) if matched == current => Condition::new("Programmed", true, "Programmed", message),
            _ => Condition::new("Programmed", false, "Pending", message),
        }
    }
}

impl Conditions {
    /// Until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut streams = self.front.streams.watch();
        let mut index = self.front.index.clone();
        loop {
            if self.leader.leads() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.write() => {}
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = self.found.changed() => {}
                _ = self.locked.changed() => {}
                _ = streams.changed() => {}
                _ = index.changed() => {}
                () = tokio::time::sleep(AGAIN) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(QUIET) => {}
            }
            self.found.borrow_and_update();
            self.locked.borrow_and_update();
            streams.borrow_and_update();
            index.borrow_and_update();
        }
    }

    async fn write(&self) {
        let (found, locked) = (Arc::clone(&self.found.borrow()), Arc::clone(&self.locked.borrow()));
        let index = self.front.index();
        let reach = self.reach(&index);
        let stored = self.kinds.stored();
        let (streams, now_ms) = (self.front.streams.open(), self.front.clock.now_ms());
        let others = || self.measured.others();
        let tallies = egress::tallies(&self.pods, &stored, &streams, others, now_ms);
        for (key, found) in found.iter().chain(locked.iter()) {
            // What was deleted meanwhile, or applied anew, has its turn with the next reading.
            let Some(object) = stored.get(key).filter(|_| key.kind != Kind::Namespace) else {
                continue;
            };
            let wanted = match key.kind {
                Kind::InjectionProfile => of_profile((key, object), found, &tallies),
                _ => self.wanted((key, object), found, &index, &reach).await,
            };
            let now = rfc3339(self.front.clock.now_ms());
            let mut more = self.counts(key, object, &reach).unwrap_or_default();
            more.extend(summary(key, object, reach.get(key)));
            let Some(status) = patch(object, &wanted, more, &now) else {
                continue;
            };
            let (api, parameters) = (api_of(self.kinds.client(), key), PatchParams::default());
            match answered(api.patch_status(&key.name, &parameters, &Patch::Merge(&status))).await {
                Ok(_) => {}
                Err(error) if error.is(404) => {}
                Err(error) => tracing::warn!(object = %key, %error, "its conditions cannot be written"),
            }
        }
    }

    /// Per object, how many connected sidecars are concerned and how many have the newest.
    fn reach(&self, index: &Index) -> HashMap<Key, Reach> {
        let mut reach: HashMap<Key, Reach> = HashMap::new();
        let denied = self.front.lockdowns.now();
        let names: BTreeSet<&str> = denied.set.entries.iter().map(|entry| entry.lockdown.as_str()).collect();
        let known = |name| {
            let (outcome, entries) = self.front.lockdowns.outcome(name)?;
            Some((name, outcome, entries))
        };
        let locked: Vec<_> = names.into_iter().filter_map(known).collect();
        for stream in self.front.streams.open() {
            let offer = index.offer(&stream.who);
            let current = stream.report.bundle.as_deref() == Some(offer.version.as_str());
            let refused = refused(&stream.report).filter(|_| !current);
            let bundle = &offer.bundle;
            let object = |kind, metadata: &sidegate_policies::api::Metadata| Key {
                kind,
                namespace: metadata.namespace.clone(),
                name: metadata.name.clone(),
            };
            let targets = bundle
                .targets
                .iter()
                .map(|bundled| object(Kind::Target, &bundled.target.metadata));
            let policies = bundle
                .policies
                .iter()
                .map(|policy| object(Kind::AccessPolicy, &policy.metadata));
            let cluster = bundle.cluster_policies.iter();
            let cluster = cluster.map(|policy| object(Kind::ClusterAccessPolicy, &policy.metadata));
            for key in targets.chain(policies).chain(cluster) {
                let not_understood = not_understood(&stream.report, &key);
                let has = current && not_understood.is_none();
                let reach = reach.entry(key).or_default();
                reach.matched = reach.matched.saturating_add(1);
                reach.current = reach.current.saturating_add(u64::from(has));
                reach.refused = reach.refused.take().or(not_understood).or_else(|| refused.clone());
            }
            for (name, outcome, entries) in &locked {
                if !concerned(entries, &stream.who, &offer) {
                    continue;
                }
                let key = Key {
                    kind: Kind::Lockdown,
                    namespace: None,
                    name: (*name).to_owned(),
                };
                let reach = reach.entry(key).or_default();
                reach.matched = reach.matched.saturating_add(1);
                let applied = u64::from(stream.report.deny_revision >= outcome.revision);
                reach.current = reach.current.saturating_add(applied);
            }
        }
        reach
    }

    /// What a Lockdown's status says in numbers: of sidecars connected here, the one thing that outlives them being
    /// the sessions it ended. Nothing for other kinds, and for one that is not in force.
    fn counts(&self, key: &Key, object: &Value, reach: &HashMap<Key, Reach>) -> Option<Map<String, Value>> {
        if key.kind != Kind::Lockdown {
            return None;
        }
        let (outcome, _) = self.front.lockdowns.outcome(&key.name)?;
        Some(counts(object, &outcome, reach.get(key).cloned().unwrap_or_default()))
    }

    async fn wanted(
        &self,
        (key, object): (&Key, &Value),
        found: &Found,
        index: &Index,
        reach: &HashMap<Key, Reach>,
    ) -> Vec<Condition> {
        let mut wanted = vec![accepted(key, found)];
        if !found.problems.is_empty() && key.kind != Kind::Lockdown {
            if key.kind != Kind::TokenIssuer {
                wanted.push(Condition::new("Programmed", false, "NotAccepted", "it is not in force"));
            }
            return wanted;
        }
        let reach = reach.get(key).cloned().unwrap_or_default();
        match key.kind {
            Kind::Lockdown => wanted.push(reach.condition()),
            Kind::TokenIssuer => {
                wanted.push(match self.authority(key, object) {
                    Some(unread) => unread,
                    None => self.of_issuer(&key.name, index).await,
                });
                wanted.extend(self.published(&key.name, index));
            }
            Kind::Target => {
                let target = index.targets().find(|(target, _)| is(target, key));
                let Some((target, withheld)) = target else {
                    return wanted;
                };
                wanted.push(match self.authority(key, object) {
                    Some(unread) => unread,
                    None => self.references(target, found, index).await,
                });
                wanted.push(match withheld {
                    Some(why) => Condition::new("Programmed", false, "Withheld", why),
                    None => reach.condition(),
                });
                wanted.extend(insecure(target));
            }
            Kind::Namespace
            | Kind::ConfigMap
            | Kind::AccessPolicy
            | Kind::ClusterAccessPolicy
            | Kind::InjectionProfile => {
                wanted.push(resolved(found));
                wanted.push(reach.condition());
            }
        }
        wanted
    }

    /// Whether what a TokenIssuer refers to is there and granted.
    async fn of_issuer(&self, name: &str, index: &Index) -> Condition {
        let spec = index.objects().token_issuer(name).map(|issuer| &issuer.spec);
        if let Some(Authorities::ConfigMap(reference)) = spec.and_then(|spec| spec.ca_bundle.as_ref()) {
            return Condition::new("ResolvedRefs", false, "CaBundleNotFound", absent(reference));
        }
        let secret = spec.and_then(|spec| spec.client_secret_ref.as_ref());
        let unreadable = match secret {
            Some(secret) => self.unreadable(self.maps.home(), &secret.name).await,
            None => None,
        };
        match unreadable {
            Some((reason, message)) => Condition::new("ResolvedRefs", false, reason, message),
            None => Condition::new("ResolvedRefs", true, "ResolvedRefs", ""),
        }
    }

    /// Whether our keys are where a TokenIssuer wants them, if it does.
    fn published(&self, name: &str, index: &Index) -> Option<Condition> {
        let issuer = index.objects().token_issuer(name)?;
        let place = issuer.spec.publish.as_ref()?;
        Some(match self.front.exchanges.published().outcome(place) {
            Some(Ok(())) => Condition::new("Published", true, "Published", ""),
            Some(Err(why)) => Condition::new("Published", false, why.reason, why.message),
            None => Condition {
                kind: "Published",
                holds: None,
                reason: "Pending",
                message: String::new(),
            },
        })
    }

    /// Why the ConfigMap that an object names could not be read, if it could not.
    fn authority(&self, key: &Key, object: &Value) -> Option<Condition> {
        let map = named_by(key, object, self.maps.home())?;
        let path = format!(
            "ConfigMap {}/{}",
            map.namespace.as_deref().unwrap_or_default(),
            map.name
        );
        let (reason, message) = match self.maps.known().remove(&map)? {
            MapRead::Found(_) => return None,
            MapRead::Missing => ("ConfigMapNotFound", format!("there is no {path}")),
            MapRead::NotGranted(grant) => (
                "ConfigMapNotGranted",
                format!("{path} is not granted to the broker; its owner runs: {grant}"),
            ),
            MapRead::Unknown(why) => ("ConfigMapUnknown", format!("{path}: {why}")),
        };
        Some(Condition::new("ResolvedRefs", false, reason, message))
    }

    /// Whether what a Target refers to is there and granted.
    async fn references(&self, target: &Target, found: &Found, index: &Index) -> Condition {
        if let Err(unresolved) = index.objects().trusted_issuer_of(target) {
            return Condition::new("ResolvedRefs", false, unresolved.reason, unresolved.message);
        }
        let home = target.metadata.namespace.as_deref().unwrap_or_default();
        let Credential::Secret(secret) = &target.spec.credential else {
            return resolved(found);
        };
        match self.unreadable(home, &secret.name).await {
            None => resolved(found),
            Some((reason, message)) => Condition::new("ResolvedRefs", false, reason, message),
        }
    }

    /// Why a Secret cannot be read, if it cannot; asked for again after a moment, not whenever a sidecar says something.
    async fn unreadable(&self, namespace: &str, name: &str) -> Option<(&'static str, String)> {
        let key = (namespace.to_owned(), name.to_owned());
        let now = self.front.clock.now_ms();
        let known = self.asked().get(&key).filter(|(due, _)| *due > now).cloned();
        if let Some((_, why)) = known {
            return why;
        }
        let why = self.secrets.readable(namespace, name).await.err().map(|error| {
            let reason = match &error {
                SecretError::NotGranted { .. } => "SecretNotGranted",
                SecretError::Missing(_) => "SecretNotFound",
                _ => "SecretUnknown",
            };
            (reason, error.to_string())
        });
        let good_for = if why.is_none() { READABLE_MS } else { UNREADABLE_MS };
        let mut asked = self.asked();
        if asked.len() >= MAX_ASKED {
            asked.retain(|_, (due, _)| *due > now);
        }
        asked.insert(key, (now.saturating_add(good_for), why.clone()));
        why
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Of a profile: whether it can be used, and whether its pods are fenced.
fn of_profile((key, object): (&Key, &Value), found: &Found, tallies: &Tallies) -> Vec<Condition> {
    let (holds, reason, message) = egress::condition(object, tallies, &key.name);
    let egress = Condition {
        kind: "EgressEnforced",
        holds,
        reason,
        message,
    };
    vec![accepted(key, found), egress]
}

/// Why a sidecar did not take its bundle: after three times it is not offered again.
fn refused(report: &SidecarReport) -> Option<(&'static str, String)> {
    let why = report.nack.as_ref()?;
    Some(("BundleRefused", format!("pod {}: {why}", report.pod)))
}

/// Why a sidecar denies everything on a Target, if it is older than what is said about it.
fn not_understood(report: &SidecarReport, key: &Key) -> Option<(&'static str, String)> {
    let named = |target: &&TargetStatus| {
        key.kind == Kind::Target
            && target.target == format!("{}/{}", key.namespace.as_deref().unwrap_or_default(), key.name)
    };
    let why = report.status.targets.iter().find(named)?.not_understood.as_deref()?;
    Some((NOT_UNDERSTOOD, format!("pod {}: {why}", report.pod)))
}

fn is(target: &Target, key: &Key) -> bool {
    target.metadata.name == key.name && target.metadata.namespace == key.namespace
}

fn accepted(key: &Key, found: &Found) -> Condition {
    if found.problems.is_empty() {
        return Condition::new("Accepted", true, "Accepted", told(&remarks(found)));
    }
    let mut message = told(&found.problems);
    if key.kind == Kind::Lockdown {
        message.push_str("; until it can be read, everything is frozen");
    }
    Condition::new("Accepted", false, "Invalid", message)
}

/// Warnings about references.
fn dangling(found: &Found) -> Vec<Problem> {
    let about = |problem: &&Problem| {
        let of_references = [
            "spec.targetRefs",
            "spec.tls.caBundle",
            "spec.subjects",
            "spec.credential.token.issuer",
        ];
        of_references.iter().any(|field| problem.field.starts_with(field))
    };
    found.warnings.iter().filter(about).cloned().collect()
}

/// Other warnings.
fn remarks(found: &Found) -> Vec<Problem> {
    let dangling = dangling(found);
    let other = found.warnings.iter().filter(|warning| !dangling.contains(warning));
    other.cloned().collect()
}

fn resolved(found: &Found) -> Condition {
    let dangling = dangling(found);
    if dangling.is_empty() {
        return Condition::new("ResolvedRefs", true, "ResolvedRefs", "");
    }
    Condition::new("ResolvedRefs", false, "NotFound", told(&dangling))
}

/// What weakens a Target, if anything does.
fn insecure(target: &Target) -> Option<Condition> {
    let spec = &target.spec;
    let reason = match (spec.tls.mode, spec.weak_login) {
        (_, WeakLogin::Anywhere) => ("WeakLogin", "weakLogin: Anywhere"),
        (_, WeakLogin::InsideTls) => ("WeakLogin", "weakLogin: InsideTLS"),
        (TlsMode::Disabled, WeakLogin::Refuse) => ("NoTLS", "tls.mode: Disabled"),
        _ => return None,
    };
    Some(Condition::new("Insecure", true, reason.0, reason.1))
}

/// Fields and messages, without the places in files they do not have.
fn told(problems: &[Problem]) -> String {
    let shown = problems
        .iter()
        .take(MAX_TOLD)
        .map(|problem| match problem.field.as_str() {
            "" => problem.message.clone(),
            field => format!("{field}: {}", problem.message),
        });
    let mut text = shown.collect::<Vec<_>>().join("; ");
    let more = problems.len().saturating_sub(MAX_TOLD);
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => text.split_at(end).0.to_owned(),
        None => text,
    }
}

/// The numbers of a Lockdown. What another start of the broker counted for the same words is not forgotten.
fn counts(object: &Value, outcome: &Outcome, reach: Reach) -> Map<String, Value> {
    let told = |field: &str| object.pointer(&format!("/status/{field}"));
    let same = told("observedGeneration") == object.pointer("/metadata/generation");
    let before = |field| told(field).and_then(Value::as_u64).filter(|_| same);
    let numbers = [
        ("revision", json!(outcome.revision)),
        ("matched", json!(reach.matched)),
        ("acked", json!(reach.current)),
        (
            "sessionsClosed",
            json!(outcome.closed.max(before("sessionsClosed").unwrap_or(0))),
        ),
        // A merge patch takes away what is null.
        ("p99Millis", json!(outcome.p99_ms.or(before("p99Millis")))),
    ];
    numbers
        .into_iter()
        .map(|(name, number)| (name.to_owned(), number))
        .collect()
}

/// What lists show of an object beyond single fields.
fn summary(key: &Key, object: &Value, reach: Option<&Reach>) -> Option<(String, Value)> {
    let plural = key.kind.plural();
    let mut words = summary::of(plural, object.get("spec").unwrap_or(&Value::Null))?;
    if plural != "lockdowns" {
        let (matched, current) = reach.map_or((0, 0), |reach| (reach.matched, reach.current));
        words.insert("programmed".to_owned(), format!("{current}/{matched}").into());
    }
    Some(("summary".to_owned(), Value::Object(words)))
}

/// The patch that gives an object these conditions, numbers and words, if it does not have them.
fn patch(object: &Value, wanted: &[Condition], more: Map<String, Value>, now: &str) -> Option<Value> {
    let generation = object
        .pointer("/metadata/generation")
        .cloned()
        .unwrap_or_else(|| json!(0));
    let present = object.pointer("/status/conditions").and_then(Value::as_array);
    let present = |kind: &str| {
        present
            .into_iter()
            .flatten()
            .find(move |condition| condition["type"] == kind)
    };
    let mut changed = object
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .map_or(0, Vec::len)
        != wanted.len();
    let conditions: Vec<Value> = wanted
        .iter()
        .map(|condition| {
            let before = present(condition.kind);
            let told = |field: &str| before.and_then(|before| before[field].as_str());
            let since = match told("lastTransitionTime") {
                Some(since) if told("status") == Some(condition.status()) => since,
                _ => now,
            };
            let next = json!({
                "type": condition.kind, "status": condition.status(), "reason": condition.reason,
                "message": condition.message, "lastTransitionTime": since, "observedGeneration": generation,
            });
            changed |= before != Some(&next);
            next
        })
        .collect();
    let mut status = Map::new();
    status.insert("observedGeneration".to_owned(), generation);
    status.insert("conditions".to_owned(), conditions.into());
    for (field, told) in more {
        changed |= *object.pointer(&format!("/status/{field}")).unwrap_or(&Value::Null) != told;
        status.insert(field, told);
    }
    changed.then(|| json!({ "status": status }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn warning(field: &str) -> Problem {
        Problem {
            file: Some("x".to_owned()),
            line: Some(1),
            column: Some(1),
            object: None,
            field: field.to_owned(),
            message: "is not there (yet)".to_owned(),
        }
    }

    #[test]
    fn a_condition_is_written_once_and_its_time_changes_with_its_status_only() {
        let object = json!({"metadata": {"generation": 3}});
        let good = [Condition::new("Accepted", true, "Accepted", "")];
        let first = patch(&object, &good, Map::new(), "t1").unwrap();
        assert_eq!(first["status"]["conditions"][0]["lastTransitionTime"], "t1");
        let mut object = json!({"metadata": {"generation": 3}, "status": first["status"]});
        assert_eq!(patch(&object, &good, Map::new(), "t2"), None);
        let other = [Condition::new("Accepted", true, "Accepted", "a remark")];
        let again = patch(&object, &other, Map::new(), "t3").unwrap();
        assert_eq!(again["status"]["conditions"][0]["lastTransitionTime"], "t1");
        let bad = [Condition::new("Accepted", false, "Invalid", "spec: no")];
        assert_eq!(
            patch(&object, &bad, Map::new(), "t4").unwrap()["status"]["conditions"][0]["lastTransitionTime"],
            "t4"
        );
        object["metadata"]["generation"] = json!(4);
        assert!(
            patch(&object, &good, Map::new(), "t5").is_some(),
            "another generation was seen"
        );
        assert!(
            patch(&object, &[], Map::new(), "t6").is_some(),
            "a condition that is gone goes"
        );
    }

    #[test]
    fn a_lockdown_s_numbers_are_written_when_they_change_and_outlive_a_restart_of_the_broker() {
        let outcome = |closed, p99_ms| Outcome {
            revision: 8,
            closed,
            p99_ms,
        };
        let reach = Reach {
            matched: 3,
            current: 2,
            refused: None,
        };
        let mut object = json!({"metadata": {"generation": 3}});
        let first = counts(&object, &outcome(12, Some(140)), reach.clone());
        let wanted = json!({"revision": 8, "matched": 3, "acked": 2, "sessionsClosed": 12, "p99Millis": 140});
        assert_eq!(Value::Object(first.clone()), wanted);
        let written = patch(&object, &[], first.clone(), "t1").unwrap();
        assert_eq!(written["status"]["sessionsClosed"], 12);
        object["status"] = written["status"].clone();
        assert_eq!(patch(&object, &[], first, "t2"), None, "said already");
        // Another start counts from nothing.
        let again = counts(&object, &outcome(0, None), reach.clone());
        assert_eq!(
            (&again["sessionsClosed"], &again["p99Millis"]),
            (&json!(12), &json!(140))
        );
        // Other words are another Lockdown.
        object["metadata"]["generation"] = json!(4);
        let other = counts(&object, &outcome(0, None), reach.clone());
        assert_eq!(
            (&other["sessionsClosed"], &other["p99Millis"]),
            (&json!(0), &Value::Null)
        );
    }

    #[test]
    fn dangling_references_are_no_remarks_and_remarks_no_dangling_references() {
        let found = Found {
            problems: Vec::new(),
            warnings: vec![warning("spec.targetRefs[0].name"), warning("spec")],
        };
        let resolved = resolved(&found);
        assert_eq!((resolved.holds, resolved.reason), (Some(false), "NotFound"));
        assert!(resolved.message.starts_with("spec.targetRefs[0].name: "));
        let key = Key {
            kind: Kind::AccessPolicy,
            namespace: Some("data".to_owned()),
            name: "p".to_owned(),
        };
        let accepted = accepted(&key, &found);
        assert_eq!(
            (accepted.holds, accepted.message.as_str()),
            (Some(true), "spec: is not there (yet)")
        );
    }

    #[test]
    fn reach_says_pods_on_the_current_version_of_pods_matched() {
        let reach = |matched, current| {
            let refused = None;
            Reach {
                matched,
                current,
                refused,
            }
            .condition()
        };
        assert_eq!(
            (reach(0, 0).status(), reach(0, 0).message.as_str()),
            ("Unknown", "0/0 pods")
        );
        assert_eq!(
            (reach(3, 2).status(), reach(3, 2).message.as_str()),
            ("False", "2/3 pods")
        );
        assert_eq!(reach(3, 3).status(), "True");
    }

    #[test]
    fn a_sidecar_that_refuses_its_bundle_or_does_not_understand_a_target_unprograms_it_and_says_why() {
        let key = Key {
            kind: Kind::Target,
            namespace: Some("data".to_owned()),
            name: "shop".to_owned(),
        };
        let mut report = SidecarReport {
            pod: "agent".to_owned(),
            ..SidecarReport::default()
        };
        assert_eq!((refused(&report), not_understood(&report, &key)), (None, None));
        report.nack = Some("the seal's signature is wrong".to_owned());
        let why = refused(&report);
        report.status.targets.push(TargetStatus {
            target: "data/shop".to_owned(),
            problem: Some("port 15432 is taken".to_owned()),
            ..TargetStatus::default()
        });
        assert_eq!(not_understood(&report, &key), None, "another problem");
        report.status.targets[0].not_understood = Some("policy p: unknown field `http`".to_owned());
        assert_eq!(not_understood(&report, &key).unwrap().0, "PolicyNotUnderstood");
        let other = Key {
            kind: Kind::AccessPolicy,
            ..key
        };
        assert_eq!(not_understood(&report, &other), None);
        let reach = Reach {
            matched: 2,
            current: 1,
            refused: why,
        };
        let condition = reach.condition();
        assert_eq!((condition.status(), condition.reason), ("False", "BundleRefused"));
        assert_eq!(condition.message, "1/2 pods; pod agent: the seal's signature is wrong");
    }
}
