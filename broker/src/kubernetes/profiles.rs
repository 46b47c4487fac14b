//! What each InjectionProfile lets pods have, in words that the cluster's admission policies read.
//!
//! Owns the form of those entries of ConfigMap `sidegate-admission`: one per profile, a line per choice. Refused: a
//! profile that cannot be used, and names that would not stand in a line; they are left out. The invariant: a profile
//! that is left out relaxes nothing, for the policies then hold pods to the strictest choice.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::Value;
use sidegate_policies::api::injection_profile::{InjectionProfileSpec, RunAs, Taken, Tier, Weakening, Windows};
use sidegate_policies::api::{GROUP, VERSION};
use sidegate_policies::check::usable_profile;

use super::{answered, Failed};

/// What the key of a profile's entry begins with.
pub const PREFIX: &str = "profile.";
/// Keys of a ConfigMap are no longer than this.
const LONGEST: usize = 253;

/// What the policies are told of profiles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relaxed {
    /// Entries of the map, by key.
    pub entries: BTreeMap<String, String>,
    /// Users that sidecars may run as.
    pub uids: BTreeSet<i64>,
}

/// Reads every profile.
///
/// # Errors
/// Where the API server does not answer, or refuses. Where it does not know the kind there is no profile.
pub async fn read(client: &Client) -> Result<Relaxed, Failed> {
    let kind = GroupVersionKind::gvk(GROUP, VERSION, "InjectionProfile");
    let resource = ApiResource::from_gvk_with_plural(&kind, "injectionprofiles");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    match answered(api.list(&ListParams::default())).await {
        Ok(found) => {
            let all = found
                .items
                .into_iter()
                .map(|object| serde_json::to_value(object).unwrap_or_default());
            Ok(relaxed(all))
        }
        Err(error) if error.is(404) => Ok(relaxed(std::iter::empty())),
        Err(error) => Err(error),
    }
}

fn relaxed(profiles: impl Iterator<Item = Value>) -> Relaxed {
    let mut relaxed = Relaxed::default();
    for value in profiles {
        let name = value
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        // What the injector makes no pod by holds for no pod either.
        let spec = match usable_profile(&value) {
            Ok(profile) => profile.spec,
            Err(why) => {
                tracing::warn!(profile = name, why, "not usable: it relaxes nothing");
                continue;
            }
        };
        let key = format!("{PREFIX}{name}");
        if key.len() <= LONGEST {
            relaxed.uids.extend([spec.run_as.uid, spec.run_as.alternate_uid]);
            relaxed.entries.insert(key, lines(&spec));
        }
    }
    if relaxed.uids.is_empty() {
        let usual = RunAs::default();
        relaxed.uids.extend([usual.uid, usual.alternate_uid]);
    }
    relaxed
}

fn lines(spec: &InjectionProfileSpec) -> String {
    let (agents, shapes) = (&spec.agents, &spec.shapes);
    let taken = |taken: Taken| match taken {
        Taken::Strip => "Strip",
        Taken::Keep => "Keep",
    };
    let weakening = |weakening: Weakening| match weakening {
        Weakening::Deny => "Deny",
        Weakening::Warn => "Warn",
    };
    let windows = match shapes.windows {
        Windows::Skip => "Skip",
        Windows::Deny => "Deny",
    };
    let mut lines = vec![
        format!("privileged {}", weakening(shapes.privileged)),
        format!("hostPath {}", weakening(shapes.host_path)),
        format!("windows {windows}"),
        format!("clusterToken {}", taken(agents.cluster_token)),
        format!("cloudIdentity {}", taken(agents.cloud_identity)),
        format!("dropNetRaw {}", agents.drop_net_raw),
    ];
    if spec.tier == Tier::Enforced {
        lines.push(format!("tier {}", spec.tier.as_str()));
        lines.extend(spec.fence.allow_uids.iter().map(|uid| format!("allowUid {uid}")));
    }
    for exempt in &agents.exempt_containers {
        let (name, prefix) = (&exempt.name, &exempt.image_prefix);
        // With a space or a line's end in it, it could say anything; no container and no image has one.
        let plain = |word: &str| !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control());
        if plain(name) && plain(prefix) {
            lines.push(format!("exempt {name} {prefix}"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;
    use sidegate_policies::api::API_VERSION;

    use super::*;

    fn of(name: &str, more: Value) -> Value {
        let mut spec = json!({"image": {"repository": "r", "digest": format!("sha256:{}", "a".repeat(64))}});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        json!({"apiVersion": API_VERSION, "kind": "InjectionProfile", "metadata": {"name": name}, "spec": spec})
    }

    #[test]
    fn each_choice_of_a_profile_is_a_line() {
        let lenient = json!({
            "runAs": {"uid": 7, "alternateUid": 8},
            "shapes": {"privileged": "Warn", "windows": "Deny"},
            "agents": {
                "clusterToken": "Keep", "dropNetRaw": false,
                "exemptContainers": [{"name": "watcher", "imagePrefix": "r/w"}],
            },
        });
        let found = relaxed([of("default", json!({})), of("lenient", lenient)].into_iter());
        let strict =
            "privileged Deny\nhostPath Deny\nwindows Skip\nclusterToken Strip\ncloudIdentity Strip\ndropNetRaw true";
        assert_eq!(found.entries["profile.default"], strict);
        let lines: Vec<&str> = found.entries["profile.lenient"].lines().collect();
        assert_eq!(
            lines,
            [
                "privileged Warn",
                "hostPath Deny",
                "windows Deny",
                "clusterToken Keep",
                "cloudIdentity Strip",
                "dropNetRaw false",
                "exempt watcher r/w",
            ]
        );
        assert_eq!(found.uids.into_iter().collect::<Vec<_>>(), [7, 8, 61_937, 61_938]);
        let fenced = json!({"tier": "Enforced", "fence": {"allowUids": [1337, 2000]}});
        let found = relaxed([of("fenced", fenced)].into_iter());
        let lines = format!("{strict}\ntier Enforced\nallowUid 1337\nallowUid 2000");
        assert_eq!(found.entries["profile.fenced"], lines);
    }

    #[test]
    fn what_is_not_understood_or_cannot_be_used_relaxes_nothing() {
        let exempt = |name: &str, prefix: &str| {
            let exempt = json!([{"name": name, "imagePrefix": prefix}]);
            json!({"agents": {"exemptContainers": exempt}, "shapes": {"privileged": "Deny"}})
        };
        let all = [
            of("newer", json!({"shapes": {"privileged": "Ignore"}})),
            of("odd", exempt("x", "r/w\nhostPath Warn")),
            of("named", exempt("x\nprivileged Warn", "r/w")),
            // The injector makes no pod by these.
            of("anywhere", exempt("x", "w")),
            of("ours", exempt("sidegate-x", "r/w")),
            of("common", json!({"runAs": {"uid": 65_532}})),
            of(&"n".repeat(250), json!({})),
        ];
        let found = relaxed(all.into_iter());
        assert_eq!(found.entries.keys().collect::<Vec<_>>(), ["profile.odd"]);
        assert!(!found.entries["profile.odd"].contains("Warn"), "{found:?}");
        // Where no profile says so, the usual users are meant.
        assert_eq!(relaxed(std::iter::empty()).uids.len(), 2);
    }
}
