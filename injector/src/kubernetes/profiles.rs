//! What the leader tells in the status of InjectionProfiles: pods without a valid sidecar, and what `networkPolicy: Audit`
//! would make.
//!
//! Owns two fields, `status.unprotected` and `status.networkPolicy`, each by a field manager of its own, and no other: the
//! conditions are the broker's. Refuses to repeat itself: what the server already has is not written. Invariants: what could
//! not be looked at whole is told as nothing, and taken away where it stood; a policy that is told of is never made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{json, Value};
use sidegate_cluster::{answered, Failed, Failing};
use sidegate_policies::api::injection_profile::NetworkPolicyMode;
use sidegate_policies::api::{GROUP, VERSION};
use sidegate_policies::pod::network_policy::{audit, Place};
use tokio_util::sync::CancellationToken;

use super::{Cluster, Kind, Leader, Snapshot};
use crate::admit::{is_enabled, is_spared};
use crate::install::Install;
use crate::standing::Reason;

/// Counts that are the same are told anew so often, for their time: whoever reads an older one knows that nobody looks.
const AGAIN: i64 = 600;
/// Changes of objects are gathered for so long.
const QUIET: Duration = Duration::from_secs(2);
/// What nobody tells us of, such as somebody's edit of the status, is looked at again so often.
const EVERY: Duration = Duration::from_secs(60);

/// A field of the status, and who owns it.
#[derive(Debug, Clone, Copy)]
struct Part {
    field: &'static str,
    manager: &'static str,
}

const UNPROTECTED: Part = Part {
    field: "unprotected",
    manager: "sidegate-injector-watchdog",
};
const NETWORK_POLICY: Part = Part {
    field: "networkPolicy",
    manager: "sidegate-injector-network-policy",
};

/// Pods without a valid sidecar, by profile and reason.
pub type ByProfile = BTreeMap<String, BTreeMap<Reason, i64>>;

/// Writes into the status of profiles.
#[derive(Clone)]
pub struct Profiles {
    api: Api<DynamicObject>,
}

impl Profiles {
    /// By this client.
    pub fn new(client: Client) -> Self {
        Profiles {
            api: Api::all_with(client, &Kind::Profile.resource()),
        }
    }

    /// Tells every profile what was counted at this second since 1970; nothing, where not everything could be looked at.
    ///
    /// # Errors
    /// The API server does not answer, or refuses.
    pub async fn tell_unprotected(&self, counted: Option<&ByProfile>, at: i64) -> Result<(), Failed> {
        self.tell(UNPROTECTED, |name, present| {
            let wanted = counted.map(|all| unprotected(all.get(name), at));
            is_news(present, wanted.as_ref()).then_some(wanted)
        })
        .await
    }

    /// Tells every profile that says Audit what would be made.
    async fn tell_network_policies(&self, known: &Snapshot, install: &Install, home: &str) -> Result<(), Failed> {
        self.tell(NETWORK_POLICY, |name, present| {
            let wanted = network_policy(known, install, home, name);
            (present != wanted.as_ref()).then_some(wanted)
        })
        .await
    }

    /// Writes a field of every profile for which there is news: the new value, or none.
    async fn tell(
        &self,
        part: Part,
        news: impl Fn(&str, Option<&Value>) -> Option<Option<Value>>,
    ) -> Result<(), Failed> {
        for profile in answered(self.api.list(&ListParams::default())).await?.items {
            let name = profile.metadata.name.unwrap_or_default();
            let present = profile.data.get("status").and_then(|status| status.get(part.field));
            let Some(wanted) = news(&name, present.filter(|present| !present.is_null())) else {
                continue;
            };
            // What an owner no longer says is taken away.
            let status = wanted.map_or_else(|| json!({}), |wanted| json!({part.field: wanted}));
            let object = json!({
                "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "InjectionProfile", "metadata": {"name": name},
                "status": status,
            });
            let parameters = PatchParams::apply(part.manager).force();
            match answered(self.api.patch_status(&name, &parameters, &Patch::Apply(&object))).await {
                Ok(_) => {}
                Err(error) if error.is(404) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Tells of NetworkPolicies while this replica leads, until told to stop.
    pub async fn follow(
        self,
        (cluster, install): (Arc<Cluster>, Install),
        home: String,
        leader: Arc<Leader>,
        stop: CancellationToken,
    ) {
        let mut known = cluster.watch();
        let mut told: Option<Instant> = None;
        let mut failing = Failing::default();
        loop {
            let due = told.is_none_or(|at| at.elapsed() >= EVERY) || known.has_changed().unwrap_or(false);
            if !leader.leads() {
                told = None;
            } else if due {
                told = Some(Instant::now());
                let snapshot = Arc::clone(&known.borrow_and_update());
                let written = tokio::select! {
                    () = stop.cancelled() => return,
                    written = self.tell_network_policies(&snapshot, &install, &home) => written,
                };
                if let Some(error) = failing.news(&written) {
                    tracing::warn!(%error, "the status of InjectionProfiles cannot be written");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(QUIET) => {}
            }
        }
    }
}

/// What a profile's status says of pods; no counts: there are none without a valid sidecar.
fn unprotected(counts: Option<&BTreeMap<Reason, i64>>, at: i64) -> Value {
    let counts = counts.into_iter().flatten().filter(|(_, pods)| **pods > 0);
    let all = counts.clone().fold(0_i64, |sum, (_, pods)| sum.saturating_add(*pods));
    let reasons: Vec<Value> = counts
        .map(|(reason, pods)| json!({"reason": reason.as_str(), "pods": pods}))
        .collect();
    let at = Timestamp::from_second(at).unwrap_or(Timestamp::UNIX_EPOCH);
    json!({"pods": all, "reasons": reasons, "lookedAt": at.to_string()})
}

/// Whether this is to be written: other counts, or the same ones after a while.
fn is_news(present: Option<&Value>, wanted: Option<&Value>) -> bool {
    let (Some(present), Some(wanted)) = (present, wanted) else {
        return present.is_some() || wanted.is_some();
    };
    let same = |field: &str| present.get(field) == wanted.get(field);
    let at = |value: &Value| -> Option<i64> {
        let at: Timestamp = value.get("lookedAt")?.as_str()?.parse().ok()?;
        Some(at.as_second())
    };
    let age = at(wanted).zip(at(present)).map(|(now, then)| now.saturating_sub(then));
    !same("pods") || !same("reasons") || age.is_none_or(|age| !(0..AGAIN).contains(&age))
}

/// What a profile's status says of NetworkPolicies; nothing where it does not ask, or is not usable.
fn network_policy(known: &Snapshot, install: &Install, home: &str, name: &str) -> Option<Value> {
    let profile = known.objects.injection_profile(name)?;
    if profile.spec.network_policy == NetworkPolicyMode::Off {
        return None;
    }
    let place = Place {
        broker_url: &install.broker_url,
        name_servers: &install.name_servers,
        cluster_domain: &install.cluster_domain,
    };
    let namespaces = known.objects.namespaces.iter().map(|located| &located.object);
    let ours = namespaces.filter(|namespace| {
        let spared = is_spared(&namespace.name, home);
        !spared && is_enabled(namespace).unwrap_or(false) && namespace.profile() == name
    });
    let mut ours: Vec<&str> = ours.map(|namespace| namespace.name.as_str()).collect();
    ours.sort_unstable();
    let told = audit(&known.objects, &place, (name, &profile.spec), &ours);
    let mut told = serde_json::to_value(told).ok()?;
    if let (Some(told), Some(generation)) = (told.as_object_mut(), known.generations.get(name)) {
        told.insert("observedGeneration".to_owned(), json!(generation));
    }
    Some(told)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_where_they_are_others_and_for_their_time_after_a_while() {
        let counts = BTreeMap::from([(Reason::Outage, 2), (Reason::Tampered, 1), (Reason::Static, 0)]);
        let told = unprotected(Some(&counts), 1_000_000);
        let wanted = json!({
            "pods": 3, "lookedAt": "1970-01-12T13:46:40Z",
            "reasons": [{"reason": "outage", "pods": 2}, {"reason": "tampered", "pods": 1}],
        });
        assert_eq!(told, wanted);
        let later = |after: i64| unprotected(Some(&counts), 1_000_000 + after);
        assert!(is_news(None, Some(&told)), "the first");
        assert!(!is_news(Some(&told), Some(&later(AGAIN - 1))));
        assert!(is_news(Some(&told), Some(&later(AGAIN))));
        assert!(is_news(Some(&told), Some(&later(-1))), "a time to come");
        // No pod is news too, and so is not to know.
        let none = unprotected(None, 1_000_001);
        assert_eq!((&none["pods"], &none["reasons"]), (&json!(0), &json!([])));
        assert!(is_news(Some(&told), Some(&none)));
        assert!(is_news(Some(&told), None) && !is_news(None, None));
    }

    fn stored(kind: &str, name: &str, more: Value) -> Arc<Value> {
        let mut object = json!({
            "apiVersion": "sidegate.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "generation": 7},
        });
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
        }
        Arc::new(object)
    }

    #[test]
    fn only_a_profile_that_says_audit_is_told_of_its_labelled_namespaces() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let profile = |name: &str, more: Value| {
            let mut spec = json!({"image": {"repository": "r", "digest": digest}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            stored("InjectionProfile", name, json!({"spec": spec}))
        };
        let namespace = |name: &str, labels: Value| {
            let metadata = json!({"name": name, "labels": labels});
            stored("Namespace", name, json!({"metadata": metadata}))
        };
        let enabled = |profile: &str| json!({"sidegate.dev/inject": "enabled", "sidegate.dev/profile": profile});
        let namespaces = [
            namespace("two", enabled("audited")),
            namespace("one", enabled("audited")),
            namespace("bare", json!({"sidegate.dev/profile": "audited"})),
            namespace(
                "misspelt",
                json!({"sidegate.dev/inject": "yes", "sidegate.dev/profile": "audited"}),
            ),
            namespace("other", enabled("quiet")),
            namespace("kube-system", enabled("audited")),
            namespace("home", enabled("audited")),
        ];
        let profiles = [
            profile("audited", json!({"networkPolicy": "Audit"})),
            profile("quiet", json!({})),
            profile("off", json!({"networkPolicy": "Off"})),
            profile("later", json!({"networkPolicy": "Apply"})),
        ];
        let none: [Arc<Value>; 0] = [];
        let known = Snapshot::of(namespaces.iter(), profiles.iter(), none.iter(), none.iter());
        let install = Install {
            broker_url: "https://broker.home.svc:8443".to_owned(),
            broker_ca_pem: String::new(),
            audience: String::new(),
            name_servers: vec!["10.96.0.10".to_owned()],
            cluster_domain: "cluster.local".to_owned(),
        };
        let told = |name: &str| network_policy(&known, &install, "home", name);
        for name in ["quiet", "off", "later", "gone"] {
            assert_eq!(told(name), None, "{name}");
        }
        let told = told("audited").unwrap();
        assert_eq!(told["namespaces"], json!([{"name": "one"}, {"name": "two"}]));
        assert_eq!(
            (&told["mode"], &told["observedGeneration"]),
            (&json!("Audit"), &json!(7))
        );
        assert_eq!(
            told["common"]["egress"][2],
            "TCP 8443 to pods of namespace home: broker"
        );
    }
}
