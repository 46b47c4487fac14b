//! Whether the sidecar alone can read the token that vouches for the pod.
//!
//! Refuses every spec in which another container mounts that token, sees the sidecar's processes, or was added later
//! to look at them. The invariant: what the spec does not clearly give to the sidecar alone is wrong.

use serde_json::Value;

/// The name of the sidecar's container.
pub const SIDECAR: &str = "sidegate";

/// The parts of a pod's spec that decide whether only the sidecar can read our token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// Volumes that project a token with our audience.
    pub token_volumes: Vec<String>,
    /// Containers that mount one of them, with whether they are init containers that always restart.
    pub mounted_by: Vec<(String, bool)>,
    /// What reaches for the sidecar: ephemeral containers that mount such a volume or target the sidecar, and namespaces
    /// that show its processes, or its listeners, to others.
    pub intruders: Vec<String>,
    /// The sidecar's image, as the spec names it; empty where it has none.
    pub image: String,
}

impl Shape {
    /// The shape of a Pod's `spec` for tokens of this audience.
    pub fn of(spec: &Value, audience: &str) -> Shape {
        let mut shape = Shape::default();
        for volume in list(spec, "volumes") {
            let sources = volume.get("projected").map(|projected| list(projected, "sources"));
            let ours = |source: &Value| source.pointer("/serviceAccountToken/audience") == Some(&audience.into());
            if sources.into_iter().flatten().any(ours) {
                shape.token_volumes.push(text(volume, "name").to_owned());
            }
        }
        for container in list(spec, "initContainers") {
            let stays = text(container, "restartPolicy") == "Always";
            if text(container, "name") == SIDECAR {
                shape.image = text(container, "image").to_owned();
            }
            shape.mount(container, stays);
        }
        for container in list(spec, "containers") {
            shape.mount(container, false);
        }
        for container in list(spec, "ephemeralContainers") {
            if shape.mounts(container) || text(container, "targetContainerName") == SIDECAR {
                shape.intruders.push(text(container, "name").to_owned());
            }
        }
        for namespace in ["shareProcessNamespace", "hostPID", "hostIPC", "hostNetwork"] {
            if spec.get(namespace) == Some(&Value::Bool(true)) {
                shape.intruders.push(namespace.to_owned());
            }
        }
        shape
    }

    /// Why somebody besides the sidecar may read the token; nothing if only the sidecar can.
    pub fn wrong(&self) -> Option<&'static str> {
        if self.token_volumes.len() != 1 {
            return Some("our audience is not projected by exactly one volume");
        }
        match self.mounted_by.as_slice() {
            [(name, true)] if name == SIDECAR => {}
            _ => return Some("the token is mounted by something besides the sidecar"),
        }
        if !self.intruders.is_empty() {
            return Some("something else in the pod reaches for the sidecar");
        }
        None
    }

    fn mount(&mut self, container: &Value, stays: bool) {
        if self.mounts(container) {
            self.mounted_by.push((text(container, "name").to_owned(), stays));
        }
    }

    fn mounts(&self, container: &Value) -> bool {
        let ours = |mount: &Value| self.token_volumes.iter().any(|volume| volume == text(mount, "name"));
        list(container, "volumeMounts").any(ours)
    }
}

/// The items of a list, if it is there.
pub fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// A text, or nothing.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const AUDIENCE: &str = "https://broker.example";

    /// A pod as it should be.
    fn good() -> Value {
        json!({
            "volumes": [
                {"name": "kube-api", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
                {"name": "sidegate-token", "projected": {"sources": [
                    {"serviceAccountToken": {"audience": AUDIENCE, "path": "token"}},
                ]}},
            ],
            "initContainers": [
                {"name": "setup", "volumeMounts": [{"name": "kube-api", "mountPath": "/api"}]},
                {"name": SIDECAR, "image": "ours@sha256:aa", "restartPolicy": "Always", "volumeMounts": [{"name": "sidegate-token"}]},
            ],
            "containers": [{"name": "agent", "image": "theirs", "volumeMounts": [{"name": "kube-api"}]}],
        })
    }

    type Change = Box<dyn FnOnce(&mut Value)>;

    fn wrong(change: impl FnOnce(&mut Value)) -> Option<&'static str> {
        let mut spec = good();
        change(&mut spec);
        Shape::of(&spec, AUDIENCE).wrong()
    }

    #[test]
    fn the_sidecar_alone_with_the_token_is_right() {
        assert_eq!(wrong(|_| {}), None);
        assert_eq!(
            wrong(|spec| spec["ephemeralContainers"] = json!([{"name": "debug", "targetContainerName": "agent"}])),
            None
        );
    }

    #[test]
    fn the_image_is_the_sidecars_own_as_the_spec_names_it() {
        assert_eq!(Shape::of(&good(), AUDIENCE).image, "ours@sha256:aa");
        assert_eq!(
            Shape::of(&json!({"containers": [{"name": SIDECAR, "image": "x"}]}), AUDIENCE).image,
            ""
        );
    }

    #[test]
    fn each_other_way_to_the_token_is_wrong() {
        let mount = json!({"name": "sidegate-token"});
        let ways: Vec<(&str, Change)> = vec![
            ("no volume", Box::new(|spec| spec["volumes"] = json!([]))),
            ("another audience", {
                let audience = "/volumes/1/projected/sources/0/serviceAccountToken/audience";
                Box::new(move |spec| *spec.pointer_mut(audience).unwrap_or(&mut Value::Null) = json!("other"))
            }),
            ("two volumes", {
                Box::new(|spec| {
                    let mut second = spec["volumes"][1].clone();
                    second["name"] = json!("again");
                    spec["volumes"]
                        .as_array_mut()
                        .into_iter()
                        .for_each(|all| all.push(second.clone()));
                })
            }),
            ("the agent too", {
                let mount = mount.clone();
                Box::new(move |spec| spec["containers"][0]["volumeMounts"] = json!([mount]))
            }),
            ("another init container", {
                let mount = mount.clone();
                Box::new(move |spec| spec["initContainers"][0]["volumeMounts"] = json!([mount]))
            }),
            (
                "a sidecar that ends",
                Box::new(|spec| spec["initContainers"][1]["restartPolicy"] = Value::Null),
            ),
            ("an ordinary container of that name", {
                Box::new(|spec| {
                    spec["containers"] = spec["initContainers"].take();
                })
            }),
            (
                "nobody mounts it",
                Box::new(|spec| spec["initContainers"][1]["volumeMounts"] = json!([])),
            ),
            ("a debugger mounts it", {
                Box::new(move |spec| spec["ephemeralContainers"] = json!([{"name": "debug", "volumeMounts": [mount]}]))
            }),
            ("a debugger targets the sidecar", {
                let debugger = json!([{"name": "debug", "targetContainerName": SIDECAR}]);
                Box::new(move |spec| spec["ephemeralContainers"] = debugger)
            }),
            (
                "shared processes",
                Box::new(|spec| spec["shareProcessNamespace"] = json!(true)),
            ),
            ("the host's processes", Box::new(|spec| spec["hostPID"] = json!(true))),
            ("the host's network", Box::new(|spec| spec["hostNetwork"] = json!(true))),
            ("the host's memory", Box::new(|spec| spec["hostIPC"] = json!(true))),
        ];
        for (name, change) in ways {
            assert!(wrong(change).is_some(), "{name}");
        }
    }
}
