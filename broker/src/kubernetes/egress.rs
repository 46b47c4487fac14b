//! Which pods must have a fence, and whether the fences of a profile's pods stand: condition `EgressEnforced`.
//!
//! Counts what sidecars measured, never what was configured. Refuses to answer for a profile that cannot be read: whether
//! it demands a fence is not known then. The invariants: one pod without its fence makes the whole profile False, and one
//! that nobody measured lately leaves it Unknown; a Cooperative profile is False and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;
use sidegate_policies::api::injection_profile::Tier;
use sidegate_policies::check::usable_profile;
use sidegate_policies::objects::{Namespace, INJECT};
use sidegate_policies::pod::fence::Demands;
use sidegate_policies::wire::Enforced;

use super::measured::Others;
use super::pods::ClusterPods;
use super::reading::{Key, Kind, Stored};
use crate::attest::PodView;
use crate::front::stream::OpenStream;

/// What the profile of a namespace demands of its pods' fence; nothing where it demands none.
///
/// # Errors
/// The namespace is not known yet, or the profile is none that can be read and does not say Cooperative either.
pub fn demanded(namespace: &str, one_of: impl Fn(&Key) -> Option<Arc<Value>>) -> Result<Option<Demands>, String> {
    let key = |kind, name: &str| Key {
        kind,
        namespace: None,
        name: name.to_owned(),
    };
    let found = one_of(&key(Kind::Namespace, namespace)).ok_or("the namespace is not known (yet)")?;
    match one_of(&key(Kind::InjectionProfile, Namespace::of(&found).profile())) {
        Some(profile) => demands(&profile),
        None => Ok(None),
    }
}

fn demands(profile: &Value) -> Result<Option<Demands>, String> {
    match usable_profile(profile) {
        Ok(profile) => Ok(Demands::of(&profile.spec)),
        Err(_) if is_cooperative(profile) => Ok(None),
        Err(why) => Err(why),
    }
}

fn is_cooperative(profile: &Value) -> bool {
    let tier = profile.pointer("/spec/tier");
    tier.is_none_or(|tier| *tier == Tier::Cooperative.as_str())
}

/// The pods of one Enforced profile whose sidecar has begun.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pods: u64,
    /// Those whose fence stands.
    enforced: u64,
    /// One whose fence does not, and why.
    open: Option<String>,
    /// One of which it is not known.
    unmeasured: Option<String>,
}

/// By profile, of those that demand a fence.
pub type Tallies = BTreeMap<String, Tally>;

/// Counts the pods of every profile that demands a fence, by the streams that are open here and what others measured, which
/// is asked for only where one does.
pub fn tallies(
    pods: &ClusterPods,
    stored: &Stored,
    streams: &[OpenStream],
    others: impl FnOnce() -> Others,
    now_ms: i64,
) -> Tallies {
    let of_kind = |kind| stored.iter().filter(move |(key, _)| key.kind == kind);
    let mut demanding: BTreeMap<&str, (Demands, Tally)> = BTreeMap::new();
    for (key, profile) in of_kind(Kind::InjectionProfile) {
        if let Ok(Some(demands)) = demands(profile) {
            demanding.insert(&key.name, (demands, Tally::default()));
        }
    }
    if demanding.is_empty() {
        return Tallies::new();
    }
    let others = others();
    let namespaces = of_kind(Kind::Namespace).map(|(_, object)| Namespace::of(object));
    let labelled = namespaces.filter(|namespace| namespace.labels.get(INJECT).is_some_and(|said| said == "enabled"));
    let profiles: HashMap<String, String> = labelled
        .map(|namespace| (namespace.name.clone(), namespace.profile().to_owned()))
        .collect();
    let mut measured: HashMap<&str, (i64, Option<Enforced>)> = HashMap::new();
    for stream in streams {
        let told = (stream.report.egress_ms, stream.report.egress(now_ms));
        let before = measured.entry(&stream.who.pod_uid).or_insert(told);
        // Of two streams of one sidecar the newer counts.
        *before = told.max(*before);
    }
    pods.each(|pod| {
        let profile = profiles.get(pod.namespace.as_str());
        if let Some((demands, tally)) = profile.and_then(|profile| demanding.get_mut(profile.as_str())) {
            let measured = measured.get(pod.uid.as_str()).map(|(_, state)| *state);
            let measured = together(measured, others.of(&pod.uid));
            tally.count(pod, pod.fenced.wrong(Some(demands)), measured);
        }
    });
    demanding
        .into_iter()
        .map(|(name, (_, tally))| (name.to_owned(), tally))
        .collect()
}

/// What is known of a pod, of what it told this replica and others. The worse counts: a sidecar that moved may have told the one
/// before it lost its fence.
fn together(here: Option<Option<Enforced>>, elsewhere: Option<Enforced>) -> Option<Option<Enforced>> {
    match (here, elsewhere) {
        (Some(Some(Enforced::False)), _) | (_, Some(Enforced::False)) => Some(Some(Enforced::False)),
        // One that measures nothing any more.
        (Some(None), _) => here,
        (_, Some(Enforced::True)) => Some(Some(Enforced::True)),
        (_, Some(Enforced::Unknown) | None) => here,
    }
}

impl Tally {
    /// One pod. `measured`: nothing where no stream of it is open anywhere; the inner one, where its sidecar measures nothing.
    fn count(&mut self, pod: &PodView, wrong: Option<String>, measured: Option<Option<Enforced>>) {
        let begun = pod.alive && !pod.instance.container.is_empty();
        // A pod that ends has lost its stream before it is gone.
        if !begun || pod.deleting && measured.is_none() {
            return;
        }
        self.pods = self.pods.saturating_add(1);
        let name = || format!("{}/{}", pod.namespace, pod.name);
        match (wrong, measured.flatten()) {
            (Some(why), _) => _ = self.open.get_or_insert_with(|| format!("{}: {why}", name())),
            (None, Some(Enforced::True)) => self.enforced = self.enforced.saturating_add(1),
            (None, Some(Enforced::False)) => {
                self.open
                    .get_or_insert_with(|| format!("{}: its fence is gone, or another", name()));
            }
            (None, Some(Enforced::Unknown) | None) => _ = self.unmeasured.get_or_insert_with(name),
        }
    }
}

/// Whether the condition holds, why in a word, and with counts.
pub fn condition(profile: &Value, tallies: &Tallies, name: &str) -> (Option<bool>, &'static str, String) {
    match demands(profile) {
        Err(_) => return (None, "NotAccepted", "it is not known what it demands".to_owned()),
        Ok(None) => {
            let message = "tier Cooperative: agents may dial elsewhere with credentials they got elsewhere".to_owned();
            return (Some(false), "NotEnforced", message);
        }
        Ok(Some(_)) => {}
    }
    let none = Tally::default();
    let tally = tallies.get(name).unwrap_or(&none);
    let counts = format!("{}/{} pods", tally.enforced, tally.pods);
    match (&tally.open, &tally.unmeasured, tally.pods) {
        (Some(open), _, _) => (Some(false), "FenceMissing", format!("{counts}; {open}")),
        (None, Some(pod), _) => (
            None,
            "NotMeasured",
            format!("{counts}; {pod} told no broker anything within 30 s"),
        ),
        (None, None, 0) => (None, "NoPods", counts),
        (None, None, _) => (Some(true), "Enforced", counts),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;
    use sidegate_policies::api::API_VERSION;

    use super::*;
    use crate::pins::Instance;

    fn profile(more: &Value) -> Value {
        let digest = format!("sha256:{}", "a".repeat(64));
        let mut spec = json!({"image": {"repository": "r", "digest": digest}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"apiVersion": API_VERSION, "kind": "InjectionProfile", "metadata": {"name": "p"}, "spec": spec})
    }

    fn asked(labels: &Value, found: Option<Value>) -> Result<Option<Demands>, String> {
        let namespace = json!({"metadata": {"name": "agents", "labels": labels}});
        demanded("agents", |key| match (key.kind, key.name.as_str()) {
            (Kind::Namespace, "agents") => Some(Arc::new(namespace.clone())),
            (Kind::InjectionProfile, "p") => found.clone().map(Arc::new),
            _ => None,
        })
    }

    #[test]
    fn a_fence_is_demanded_by_the_profile_that_the_namespace_names() {
        let named = json!({"sidegate.dev/profile": "p"});
        let enforced = profile(&json!({"tier": "Enforced", "fence": {"allowUids": [1337]}}));
        assert_eq!(asked(&named, Some(enforced.clone())).unwrap().unwrap().allowed, [1_337]);
        assert_eq!(
            asked(&json!({}), Some(enforced)),
            Ok(None),
            "profile default is not there"
        );
        assert_eq!(asked(&named, Some(profile(&json!({})))), Ok(None));
        assert_eq!(asked(&named, None), Ok(None));
        // What is not understood is not taken for Cooperative, unless it says so.
        let newer = |tier: &str| profile(&json!({"tier": tier, "fence": {"newer": true}}));
        assert!(asked(&named, Some(newer("Enforced"))).is_err());
        assert!(asked(&named, Some(newer("Separate"))).is_err());
        assert_eq!(asked(&named, Some(newer("Cooperative"))), Ok(None));
        assert!(demanded("nowhere", |_| None).is_err());
    }

    fn pod(name: &str) -> PodView {
        let instance = Instance {
            count: 0,
            container: "containerd://a".to_owned(),
        };
        PodView {
            namespace: "agents".to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
            service_account: String::new(),
            node: String::new(),
            labels: BTreeMap::new(),
            ips: None,
            deleting: false,
            alive: true,
            instance,
            shape: Default::default(),
            fenced: Default::default(),
        }
    }

    fn said(count: impl FnOnce(&mut Tally)) -> (Option<bool>, &'static str, String) {
        let mut tally = Tally::default();
        count(&mut tally);
        let tallies = BTreeMap::from([("p".to_owned(), tally)]);
        condition(&profile(&json!({"tier": "Enforced"})), &tallies, "p")
    }

    #[test]
    fn a_profile_is_enforced_only_while_every_one_of_its_pods_was_measured_so() {
        let holds = Some(Some(Enforced::True));
        assert_eq!(said(|_| {}), (None, "NoPods", "0/0 pods".to_owned()));
        let all = said(|tally| {
            ["a", "b"]
                .into_iter()
                .for_each(|name| tally.count(&pod(name), None, holds))
        });
        assert_eq!(all, (Some(true), "Enforced", "2/2 pods".to_owned()));
        for (measured, status, reason) in [
            (None, None, "NotMeasured"),
            (Some(None), None, "NotMeasured"),
            (Some(Some(Enforced::Unknown)), None, "NotMeasured"),
            (Some(Some(Enforced::False)), Some(false), "FenceMissing"),
        ] {
            let (holds, why, message) = said(|tally| {
                tally.count(&pod("a"), None, holds);
                tally.count(&pod("b"), None, measured);
            });
            assert_eq!((holds, why), (status, reason), "{measured:?}");
            assert!(message.starts_with("1/2 pods; agents/b"), "{message}");
        }
        // A fence that is not in the spec is none, whatever somebody measured.
        let (holds, reason, message) = said(|tally| tally.count(&pod("a"), Some("there is none".to_owned()), holds));
        assert_eq!((holds, reason), (Some(false), "FenceMissing"));
        assert!(message.ends_with("there is none"), "{message}");
    }

    #[test]
    fn of_what_two_replicas_were_told_the_worse_counts() {
        use Enforced::{False, True, Unknown};
        for (here, elsewhere, counts) in [
            (None, None, None),
            (None, Some(True), Some(Some(True))),
            (Some(Some(Unknown)), Some(True), Some(Some(True))),
            (Some(Some(True)), None, Some(Some(True))),
            (Some(Some(True)), Some(False), Some(Some(False))),
            (Some(Some(False)), Some(True), Some(Some(False))),
            (Some(None), Some(True), Some(None)),
            (Some(None), Some(False), Some(Some(False))),
        ] {
            assert_eq!(together(here, elsewhere), counts, "{here:?} {elsewhere:?}");
        }
    }

    #[test]
    fn what_has_not_begun_or_is_over_does_not_count() {
        let (mut waiting, mut over, mut ending) = (pod("a"), pod("b"), pod("c"));
        waiting.instance.container.clear();
        over.alive = false;
        ending.deleting = true;
        for pod in [&waiting, &over, &ending] {
            assert_eq!(said(|tally| tally.count(pod, None, None)).1, "NoPods", "{}", pod.name);
        }
        let still = said(|tally| tally.count(&ending, None, Some(Some(Enforced::False))));
        assert_eq!(still.0, Some(false), "it runs until it ends");
    }

    #[test]
    fn cooperative_is_false_and_never_reads_as_enforced() {
        let (holds, reason, message) = condition(&profile(&json!({})), &Tallies::new(), "p");
        assert_eq!((holds, reason), (Some(false), "NotEnforced"));
        assert!(!message.to_lowercase().contains("enforced"), "{message}");
        assert_eq!(
            condition(&profile(&json!({"tier": "Later"})), &Tallies::new(), "p").0,
            None
        );
    }
}
