//! What a fence's form and conditions promise: ours passes, each difference is wrong, and nobody who could pass or take
//! down the fence is in its pod.

use serde_json::{json, Value};

use super::*;

fn demands() -> Demands {
    Demands {
        allowed: vec![1_337],
        exempt: vec![ExemptContainer {
            name: "mesh".to_owned(),
            image_prefix: "registry.example/mesh".to_owned(),
        }],
    }
}

/// A pod as the injector makes it.
fn good() -> Value {
    let drop = DROPPED;
    json!({
        "initContainers": [
            {
                "name": FENCE, "image": "ours@sha256:aa", "command": [PROGRAM], "args": ["fence"],
                "env": [{"name": UIDS, "value": "61937,1337"}], "securityContext": rights(),
                "imagePullPolicy": "IfNotPresent", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            },
            {"name": SIDECAR, "image": "ours@sha256:aa", "restartPolicy": "Always", "securityContext": {"runAsUser": 61_937}},
        ],
        "containers": [
            {"name": "agent", "image": "theirs", "securityContext": {
                "runAsUser": 1_000, "allowPrivilegeEscalation": false, "capabilities": {"drop": drop},
            }},
            {"name": "mesh", "image": "registry.example/mesh:1", "securityContext": {"runAsUser": 1_337}},
        ],
    })
}

fn wrong(change: impl FnOnce(&mut Value)) -> Option<String> {
    let mut spec = good();
    change(&mut spec);
    Fenced::of(&spec).wrong(Some(&demands()))
}

#[test]
fn the_fence_as_we_make_it_is_right_where_it_is_demanded_and_harms_nobody_elsewhere() {
    assert_eq!(wrong(|_| {}), None);
    assert_eq!(Fenced::of(&good()).wrong(None), None);
    assert_eq!(Fenced::of(&json!({"containers": []})).wrong(None), None);
    // What admission does by itself.
    assert_eq!(
        wrong(|spec| spec["initContainers"][0]["volumeMounts"] = json!([{"name": "api", "mountPath": TOKEN_FOLDER}])),
        None
    );
}

#[test]
fn what_begins_before_the_fence_is_answered_for_by_the_profile() {
    let mut spec = good();
    let proxy = json!({"name": "istio-validation", "image": "docker.io/istio/proxyv2:1", "securityContext": {
        "runAsUser": 1_338, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
    }});
    spec["initContainers"].as_array_mut().unwrap().insert(0, proxy);
    let found = Fenced::of(&spec);
    let why = found.wrong(Some(&demands())).unwrap();
    assert!(why.contains("istio-validation begins before the fence"), "{why}");
    assert_eq!(found.wrong(None), None, "nothing rests on a fence that nobody demands");
    let mut listed = demands();
    listed.exempt.push(ExemptContainer {
        name: "istio-validation".to_owned(),
        image_prefix: "docker.io/istio/".to_owned(),
    });
    assert_eq!(found.wrong(Some(&listed)), None);
}

#[test]
fn a_container_that_is_called_like_the_fence_is_wrong_in_every_tier() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 14] = [
        ("another image", |fence| fence["image"] = json!("ours@sha256:bb")),
        ("another program", |fence| fence["command"] = json!(["/bin/sh"])),
        ("no argument", |fence| fence["args"] = json!([])),
        ("a right more", |fence| {
            fence["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN", "SETGID", "SETUID", "SYS_ADMIN"]);
        }),
        ("a right less", |fence| {
            fence["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN"])
        }),
        ("privileged", |fence| {
            fence["securityContext"]["privileged"] = json!(true)
        }),
        ("another user", |fence| {
            fence["securityContext"]["runAsUser"] = json!(61_937)
        }),
        ("a field of the context", |fence| {
            fence["securityContext"]["procMount"] = json!("Unmasked")
        }),
        ("it stays", |fence| fence["restartPolicy"] = json!("Always")),
        ("a hook", |fence| fence["lifecycle"] = json!({})),
        ("settings from elsewhere", |fence| {
            fence["envFrom"] = json!([{"configMapRef": {"name": "x"}}])
        }),
        ("a user who is no number", |fence| {
            fence["env"][0]["value"] = json!("61937,root")
        }),
        ("a second variable", |fence| {
            fence["env"] = json!([{"name": UIDS, "value": "61937,1337"}, {"name": "LD_PRELOAD", "value": "x"}]);
        }),
        ("a volume", |fence| {
            fence["volumeMounts"] = json!([{"name": "v", "mountPath": "/"}])
        }),
    ];
    for (name, change) in changes {
        let mut spec = good();
        change(&mut spec["initContainers"][0]);
        let fenced = Fenced::of(&spec);
        assert!(fenced.wrong(Some(&demands())).is_some(), "{name}");
        assert!(fenced.wrong(None).is_some(), "{name}, tier Cooperative");
    }
    let late = |spec: &mut Value| {
        let early =
            json!({"name": "early", "image": "theirs", "securityContext": spec["containers"][0]["securityContext"]});
        let all = spec["initContainers"].as_array_mut();
        all.into_iter().for_each(|all| all.insert(0, early.clone()));
    };
    assert!(wrong(late).unwrap_or_default().contains("begins before"));
}

#[test]
fn nobody_in_a_fenced_pod_is_let_through_or_takes_the_fence_down() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 16] = [
        ("no fence", |spec| {
            spec["initContainers"] = json!([spec["initContainers"][1]])
        }),
        ("others let through", |spec| {
            spec["initContainers"][0]["env"][0]["value"] = json!("61937,1337,1000")
        }),
        ("the sidecar not let through", |spec| {
            spec["initContainers"][0]["env"][0]["value"] = json!("1337")
        }),
        ("users of its own", |spec| spec["hostUsers"] = json!(false)),
        ("a sandbox", |spec| spec["runtimeClassName"] = json!("gVisor-big")),
        ("no user", |spec| {
            spec["containers"][0]["securityContext"]["runAsUser"] = Value::Null
        }),
        ("root", |spec| {
            spec["containers"][0]["securityContext"]["runAsUser"] = json!(0)
        }),
        ("the sidecar", |spec| {
            spec["containers"][0]["securityContext"]["runAsUser"] = json!(61_937)
        }),
        ("whom the profile lets through", |spec| {
            spec["containers"][0]["securityContext"]["runAsUser"] = json!(1_337);
        }),
        ("whom the fence tries itself as", |spec| {
            spec["containers"][0]["securityContext"]["runAsUser"] = json!(STRANGER);
        }),
        ("privileged", |spec| {
            spec["containers"][0]["securityContext"]["privileged"] = json!(true)
        }),
        ("may gain privileges", |spec| {
            spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
        }),
        ("does not say", |spec| {
            spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = Value::Null;
        }),
        ("keeps one", |spec| {
            spec["containers"][0]["securityContext"]["capabilities"]["drop"] =
                json!(["net_admin", "NET_RAW", "SETGID"]);
        }),
        ("adds one", |spec| {
            spec["containers"][0]["securityContext"]["capabilities"] = json!({"add": ["CAP_SETUID"], "drop": ["ALL"]});
        }),
        ("a debugger", |spec| {
            spec["ephemeralContainers"] = json!([{"name": "look", "image": "x"}])
        }),
    ];
    for (name, change) in changes {
        assert!(wrong(change).is_some(), "{name}");
    }
    // Without a user of its own it is its pod's.
    let of_pod = wrong(|spec| {
        spec["securityContext"] = json!({"runAsUser": 1_000});
        spec["containers"][0]["securityContext"]["runAsUser"] = Value::Null;
    });
    assert_eq!(of_pod, None);
    // A proxy's name and image are whoever's words writes the pod.
    let proxy = wrong(|spec| {
        spec["containers"][0]["name"] = json!("istio-proxy");
        spec["containers"][0]["image"] = json!("docker.io/istio/proxyv2:1");
        spec["containers"][0]["securityContext"]["runAsUser"] = json!(1_337);
    });
    assert!(proxy.is_some());
}

#[test]
fn what_is_not_said_yet_is_no_fault_of_a_pod_as_submitted() {
    let agent = |context: Value| json!({"containers": [{"name": "agent", "image": "x", "securityContext": context}]});
    let judged = |spec: &Value| demands().judge(spec).map_err(|wrong| wrong.rule);
    assert_eq!(judged(&agent(json!({"runAsUser": 1_000}))), Ok(()));
    for (spec, rule) in [
        (agent(json!({})), "fenceUser"),
        (agent(json!({"runAsUser": 0})), "fenceUser"),
        (agent(json!({"runAsUser": 1_337})), "fenceUser"),
        (agent(json!({"runAsUser": 1_000, "privileged": true})), "fenceRights"),
        (
            agent(json!({"runAsUser": 1_000, "allowPrivilegeEscalation": true})),
            "fenceRights",
        ),
        (
            agent(json!({"runAsUser": 1_000, "capabilities": {"add": ["setgid"]}})),
            "fenceRights",
        ),
        (json!({"hostUsers": false, "containers": []}), "fencePod"),
        (json!({"runtimeClassName": "kata-qemu", "containers": []}), "fencePod"),
    ] {
        assert_eq!(judged(&spec), Err(rule), "{spec}");
    }
}
