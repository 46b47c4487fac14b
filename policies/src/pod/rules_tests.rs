//! What the rules of pods promise: each shape that would void the gate is refused by its rule, and its neighbours pass.

use serde_json::{json, Value};

use super::*;

const OURS: &str = "https://broker.example";

fn judged(spec: &Value, shapes: Shapes) -> Result<Vec<&'static str>, &'static str> {
    let exempt = [ExemptContainer {
        name: "watcher".to_owned(),
        image_prefix: "registry.example/watcher".to_owned(),
    }];
    let rules = Rules {
        audience: OURS,
        shapes,
        exempt: &exempt,
        fence: None,
    };
    let weak = rules.judge(spec).map_err(|wrong| wrong.rule)?;
    Ok(weak.into_iter().map(|wrong| wrong.rule).collect())
}

fn agent(more: Value) -> Value {
    let mut container = json!({"name": "agent", "image": "registry.example/agent"});
    if let (Some(all), Value::Object(more)) = (container.as_object_mut(), more) {
        all.extend(more);
    }
    json!({"containers": [container]})
}

#[test]
fn each_shape_that_would_void_the_gate_is_refused_by_its_rule() {
    let added = |capability: &str| agent(json!({"securityContext": {"capabilities": {"add": [capability]}}}));
    let path = |path: &str| json!({"volumes": [{"name": "node", "hostPath": {"path": path}}]});
    let token = json!({"serviceAccountToken": {"audience": OURS, "path": "t"}});
    for (spec, rule) in [
        (json!({"hostNetwork": true}), "hostNetwork"),
        (json!({"hostPID": true}), "hostPID"),
        (json!({"hostIPC": true}), "hostIPC"),
        (json!({"shareProcessNamespace": true}), "shareProcessNamespace"),
        (json!({"containers": [{"name": "sidegate"}]}), "reserved"),
        (json!({"containers": [{"name": "sidegate-fence"}]}), "reserved"),
        (json!({"ephemeralContainers": [{"name": "sidegate"}]}), "reserved"),
        (
            json!({"ephemeralContainers": [{"name": "d", "targetContainerName": "sidegate"}]}),
            "reserved",
        ),
        (
            agent(json!({"ports": [{"name": "sg-metrics", "containerPort": 1}]})),
            "reserved",
        ),
        (
            agent(json!({"volumeMounts": [{"name": "sidegate-token", "mountPath": "/x"}]})),
            "reserved",
        ),
        (
            agent(json!({"volumeMounts": [{"name": "sidegate-journal", "mountPath": "/x"}]})),
            "reserved",
        ),
        (
            agent(json!({"volumeDevices": [{"name": "sidegate-run", "devicePath": "/x"}]})),
            "reserved",
        ),
        (
            json!({"volumes": [{"name": "sidegate-trust", "emptyDir": {}}]}),
            "reserved",
        ),
        (
            json!({"volumes": [{"name": "mine", "projected": {"sources": [token]}}]}),
            "token",
        ),
        (agent(json!({"securityContext": {"privileged": true}})), "privileged"),
        (added("SYS_PTRACE"), "capability"),
        (added("CAP_SYS_ADMIN"), "capability"),
        (added("net_admin"), "capability"),
        (added("NET_RAW"), "capability"),
        (added("BPF"), "capability"),
        (added("ALL"), "capability"),
        (path("/"), "hostPath"),
        (path("/var/lib/kubelet/pods"), "hostPath"),
        (path("/var"), "hostPath"),
        (path("//run/./containerd/"), "hostPath"),
        (path("/data/../proc"), "hostPath"),
    ] {
        assert_eq!(judged(&spec, Shapes::default()), Err(rule), "{spec}");
    }
}

#[test]
fn ordinary_pods_pass() {
    for spec in [
        agent(json!({})),
        agent(json!({"securityContext": {"privileged": false, "capabilities": {"add": ["NET_BIND_SERVICE"]}}})),
        json!({"hostNetwork": false, "hostUsers": false, "dnsPolicy": "None"}),
        json!({"volumes": [{"name": "data", "hostPath": {"path": "/var/data"}}]}),
        // Whose name only begins like one of those.
        json!({"volumes": [{"name": "data", "hostPath": {"path": "/runners"}}]}),
        json!({"volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
        // Ours, whatever is in it: it is made anew.
        json!({"initContainers": [{"name": "sidegate", "securityContext": {"privileged": true}}]}),
        json!({"initContainers": [{"name": "sidegate-fence", "securityContext": {"privileged": true}}]}),
    ] {
        assert_eq!(judged(&spec, Shapes::default()), Ok(vec![]), "{spec}");
    }
}

#[test]
fn only_what_the_profile_names_becomes_a_warning() {
    let privileged = Shapes {
        privileged: Weakening::Warn,
        ..Shapes::default()
    };
    let spec = agent(json!({"securityContext": {"privileged": true, "capabilities": {"add": ["BPF"]}}}));
    assert_eq!(judged(&spec, privileged), Ok(vec!["privileged", "capability"]));
    let path = json!({"volumes": [{"name": "node", "hostPath": {"path": "/proc"}}]});
    assert_eq!(judged(&path, privileged), Err("hostPath"));
    let all = Shapes {
        host_path: Weakening::Warn,
        ..privileged
    };
    assert_eq!(judged(&path, all), Ok(vec!["hostPath"]));
    assert_eq!(judged(&json!({"hostNetwork": true}), all), Err("hostNetwork"));
}

#[test]
fn a_proxy_is_known_by_its_name_and_its_image() {
    let raw = |name: &str, image: &str, capability: &str| {
        json!({"initContainers": [
            {"name": name, "image": image, "securityContext": {"capabilities": {"add": [capability]}}},
        ]})
    };
    for (name, image, capability, right) in [
        ("istio-init", "docker.io/istio/proxyv2:1.29", "NET_ADMIN", true),
        ("linkerd-init", "cr.l5d.io/linkerd/proxy-init:v2", "NET_RAW", true),
        ("watcher", "registry.example/watcher:1", "NET_RAW", true),
        ("istio-init", "registry.example/agent", "NET_ADMIN", false),
        ("agent", "docker.io/istio/proxyv2:1.29", "NET_ADMIN", false),
        // Not even a proxy looks into other processes.
        ("istio-init", "docker.io/istio/proxyv2:1.29", "SYS_PTRACE", false),
    ] {
        let found = judged(&raw(name, image, capability), Shapes::default());
        assert_eq!(found.is_ok(), right, "{name} {image} {capability}");
    }
}
