//! Pods that come without the webhook, made by hand to look as if they had their sidecar.

use anyhow::{ensure, Result};
use serde_json::{json, Value};
use sidegate_tests::cluster::User;

use super::corpus::push;
use super::{golden_pod, named, says, Attempt, Guarded, AUDIENCE};

/// The sidecar of an injected pod.
fn sidecar(pod: &mut Value) -> &mut Value {
    &mut pod["spec"]["initContainers"][0]
}

fn agent(pod: &mut Value) -> &mut Value {
    &mut pod["spec"]["containers"][0]
}

fn projected(name: &str, audience: &str) -> Value {
    let token = match audience {
        "" => json!({"serviceAccountToken": {"path": "t"}}),
        audience => json!({"serviceAccountToken": {"audience": audience, "path": "t"}}),
    };
    json!({"name": name, "projected": {"sources": [token]}})
}

fn remove(value: &mut Value, fields: &[&str]) {
    for field in fields {
        value.as_object_mut().and_then(|map| map.remove(*field));
    }
}

/// What a good pod is changed to, and what is said to that.
pub const ATTEMPTS: &[Attempt] = &[
    Attempt {
        says: "sidecar: ",
        what: "none at all",
        change: |pod| remove(&mut pod["spec"], &["initContainers"]),
    },
    Attempt {
        says: "sidecar: ",
        what: "an ordinary container of that name",
        change: |pod| {
            let mut taken = sidecar(pod).take();
            remove(&mut taken, &["restartPolicy"]);
            push(&mut pod["spec"]["containers"], taken);
            remove(&mut pod["spec"], &["initContainers"]);
        },
    },
    Attempt {
        says: "sidecar: ",
        what: "a label that opts out where nobody may",
        change: |pod| {
            pod["metadata"]["labels"]["sidegate.dev/inject"] = json!("false");
            remove(&mut pod["spec"], &["initContainers"]);
        },
    },
    Attempt {
        says: "sidecar: ",
        what: "an annotation as if it were injected",
        change: |pod| {
            pod["metadata"]["annotations"]["sidegate.dev/status"] = json!("{}");
            remove(&mut pod["spec"], &["initContainers"]);
        },
    },
    Attempt {
        says: "sidecar: ",
        what: "an annotation as if a kubelet had made it",
        change: |pod| {
            pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x");
            pod["spec"]["nodeName"] = json!("node");
            remove(&mut pod["spec"], &["initContainers", "volumes"]);
        },
    },
    Attempt {
        says: "native: ",
        what: "a sidecar that ends before the agent begins",
        change: |pod| {
            remove(
                sidecar(pod),
                &["restartPolicy", "startupProbe", "readinessProbe", "livenessProbe"],
            );
        },
    },
    Attempt {
        says: "first: ",
        what: "an agent's init container in front",
        change: |pod| {
            let drop = json!({"capabilities": {"drop": ["NET_RAW"]}});
            let early = json!({"name": "early", "image": "e", "securityContext": drop});
            let mut all = json!([early]);
            push(&mut all, sidecar(pod).take());
            pod["spec"]["initContainers"] = all;
        },
    },
    Attempt {
        says: "image: ",
        what: "a tag",
        change: |pod| sidecar(pod)["image"] = json!("registry.example/sidegate-sidecar:1"),
    },
    Attempt {
        says: "image: ",
        what: "another digest",
        change: |pod| sidecar(pod)["image"] = json!(format!("registry.example/evil@sha256:{}", "b".repeat(64))),
    },
    Attempt {
        says: "image: ",
        what: "the digest in the tag's place",
        change: |pod| sidecar(pod)["image"] = json!(format!("registry.example/evil:{}", "a".repeat(64))),
    },
    Attempt {
        says: "runAsUser: the sidecar runs as a user",
        what: "a user of its own choice",
        change: |pod| sidecar(pod)["securityContext"]["runAsUser"] = json!(1000),
    },
    Attempt {
        says: "runAsUser: the sidecar runs as a user",
        what: "no user",
        change: |pod| remove(&mut sidecar(pod)["securityContext"], &["runAsUser"]),
    },
    Attempt {
        says: "runAsUser: the user of the sidecar",
        what: "the agent as the sidecar's user",
        change: |pod| agent(pod)["securityContext"]["runAsUser"] = json!(61_937),
    },
    Attempt {
        says: "runAsUser: the user of the sidecar",
        what: "every container as the sidecar's user",
        change: |pod| pod["spec"]["securityContext"] = json!({"runAsUser": 61_937}),
    },
    Attempt {
        says: "token: ",
        what: "a second token for the broker",
        change: |pod| push(&mut pod["spec"]["volumes"], projected("mine", AUDIENCE)),
    },
    Attempt {
        says: "token: ",
        what: "a token that only looks like it",
        change: |pod| pod["spec"]["volumes"][0] = projected("sidegate-token", "vault"),
    },
    Attempt {
        says: "token: ",
        what: "a token that nobody mounts",
        change: |pod| remove(sidecar(pod), &["volumeMounts"]),
    },
    Attempt {
        says: "program: ",
        what: "another program",
        change: |pod| sidecar(pod)["command"] = json!(["/sidegate-sidecar", "probe"]),
    },
    Attempt {
        says: "program: ",
        what: "arguments",
        change: |pod| sidecar(pod)["args"] = json!(["probe"]),
    },
    Attempt {
        says: "mounts: something else",
        what: "a program of one's own in its place",
        change: |pod| {
            push(&mut pod["spec"]["volumes"], json!({"name": "evil", "emptyDir": {}}));
            let mount = json!({"name": "evil", "mountPath": "/sidegate-sidecar", "subPath": "evil"});
            push(&mut sidecar(pod)["volumeMounts"], mount);
        },
    },
    Attempt {
        says: "mounts: something else",
        what: "its own volume in its program's place",
        change: |pod| sidecar(pod)["volumeMounts"][1]["mountPath"] = json!("/sidegate-sidecar"),
    },
    Attempt {
        says: "mounts: something else",
        what: "a part of its own volume",
        change: |pod| sidecar(pod)["volumeMounts"][1]["subPath"] = json!("x"),
    },
    Attempt {
        says: "mounts: the volumes",
        what: "a journal that others read later",
        change: |pod| pod["spec"]["volumes"][2] = json!({"name": "sidegate-journal", "hostPath": {"path": "/srv"}}),
    },
    Attempt {
        says: "broker: ",
        what: "a broker of one's own",
        change: |pod| {
            sidecar(pod)["env"][1]["value"] = json!("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----")
        },
    },
    Attempt {
        says: "broker: ",
        what: "a second word on the broker",
        change: |pod| {
            let second = json!({"name": "SIDEGATE_BROKER_CA", "value": "x"});
            push(&mut sidecar(pod)["env"], second);
        },
    },
    Attempt {
        says: "broker: ",
        what: "its settings from elsewhere",
        change: |pod| sidecar(pod)["envFrom"] = json!([{"configMapRef": {"name": "mine"}}]),
    },
    Attempt {
        says: "hostNetwork: ",
        what: "the node's network",
        change: |pod| pod["spec"]["hostNetwork"] = json!(true),
    },
    Attempt {
        says: "hostPID: ",
        what: "the node's processes",
        change: |pod| pod["spec"]["hostPID"] = json!(true),
    },
    Attempt {
        says: "hostIPC: ",
        what: "the node's memory",
        change: |pod| pod["spec"]["hostIPC"] = json!(true),
    },
    Attempt {
        says: "shareProcessNamespace: ",
        what: "the sidecar's process",
        change: |pod| pod["spec"]["shareProcessNamespace"] = json!(true),
    },
    Attempt {
        says: "reserved: names of containers",
        what: "a container that is called like ours",
        change: |pod| agent(pod)["name"] = json!("sidegate-helper"),
    },
    Attempt {
        says: "reserved: names of containers",
        what: "a fence where nobody asked for one",
        change: |pod| {
            let drop = json!({"capabilities": {"drop": ["NET_RAW"]}});
            let fence = json!({"name": "sidegate-fence", "image": "e", "securityContext": drop});
            push(&mut pod["spec"]["initContainers"], fence);
        },
    },
    Attempt {
        says: "reserved: a port",
        what: "a port that is called like ours",
        change: |pod| agent(pod)["ports"] = json!([{"name": "sg-metrics", "containerPort": 15_390}]),
    },
    Attempt {
        says: "hostAliases: ",
        what: "a name of the sidecar's that leads elsewhere too",
        change: |pod| {
            pod["spec"]["hostAliases"] = json!([
                {"ip": "127.71.3.4", "hostnames": ["db"]}, {"ip": "10.1.2.3", "hostnames": ["x", "db"]},
            ]);
        },
    },
    Attempt {
        says: "reserved: a volume sidegate- is mounted",
        what: "the sidecar's token in the agent",
        change: |pod| agent(pod)["volumeMounts"] = json!([{"name": "sidegate-token", "mountPath": "/t"}]),
    },
    Attempt {
        says: "reserved: a volume has a name",
        what: "a volume that is called like ours",
        change: |pod| {
            push(
                &mut pod["spec"]["volumes"],
                json!({"name": "sidegate-trust", "emptyDir": {}}),
            )
        },
    },
    Attempt {
        says: "privileged: ",
        what: "a privileged agent",
        change: |pod| agent(pod)["securityContext"]["privileged"] = json!(true),
    },
    Attempt {
        says: "capability: ",
        what: "a capability of the sidecar's own",
        change: |pod| sidecar(pod)["securityContext"]["capabilities"] = json!({"add": ["SYS_PTRACE"]}),
    },
    Attempt {
        says: "hostPath: ",
        what: "a way that leads anywhere",
        change: |pod| {
            push(
                &mut pod["spec"]["volumes"],
                json!({"name": "n", "hostPath": {"path": "/"}}),
            )
        },
    },
    Attempt {
        says: "netRaw: ",
        what: "an agent that reads the pod's traffic",
        change: |pod| remove(agent(pod), &["securityContext"]),
    },
    Attempt {
        says: "clusterToken: ",
        what: "a token for the cluster",
        change: |pod| {
            push(&mut pod["spec"]["volumes"], projected("api", ""));
            agent(pod)["volumeMounts"] = json!([{"name": "api", "mountPath": "/api"}]);
        },
    },
    Attempt {
        says: "clusterToken: ",
        what: "the token that admission mounts",
        change: |pod| remove(&mut pod["spec"], &["automountServiceAccountToken"]),
    },
    Attempt {
        says: "cloudIdentity: ",
        what: "an identity of a cloud",
        change: |pod| push(&mut agent(pod)["env"], json!({"name": "AWS_ROLE_ARN", "value": "arn"})),
    },
];

/// The fence of an injected pod; its sidecar comes next.
fn fence(pod: &mut Value) -> &mut Value {
    &mut pod["spec"]["initContainers"][0]
}

fn context(pod: &mut Value) -> &mut Value {
    &mut agent(pod)["securityContext"]
}

/// Has an init container begin before every other.
fn begin(pod: &mut Value, container: Value) {
    if let Some(all) = pod["spec"]["initContainers"].as_array_mut() {
        all.insert(0, container);
    }
}

/// What a good pod of tier Enforced is changed to, and what is said to that.
pub const FENCED: &[Attempt] = &[
    Attempt {
        says: "fence: ",
        what: "no fence",
        change: |pod| {
            let mut all = pod["spec"]["initContainers"].take();
            all.as_array_mut().map(|all| all.remove(0));
            pod["spec"]["initContainers"] = all;
        },
    },
    Attempt {
        says: "first: ",
        what: "an agent's init container before the fence",
        change: |pod| {
            let early = json!({"name": "early", "image": "e", "securityContext": context(pod)});
            begin(pod, early);
        },
    },
    Attempt {
        says: "first: ",
        what: "a proxy before the fence, by a name and image that whoever writes the pod may write",
        change: |pod| {
            let image = "docker.io/istio/proxyv2:1.29";
            let early = json!({"name": "istio-validation", "image": image, "securityContext": context(pod)});
            begin(pod, early);
        },
    },
    Attempt {
        says: "fenceForm: the init container sidegate-fence is another",
        what: "another image",
        change: |pod| fence(pod)["image"] = json!(format!("registry.example/evil@sha256:{}", "b".repeat(64))),
    },
    Attempt {
        says: "fenceForm: the init container sidegate-fence is another",
        what: "another program",
        change: |pod| fence(pod)["args"] = json!(["probe"]),
    },
    Attempt {
        says: "fenceForm: the init container sidegate-fence is another",
        what: "a program of one's own in its place",
        change: |pod| {
            push(&mut pod["spec"]["volumes"], json!({"name": "evil", "emptyDir": {}}));
            let mount = json!({"name": "evil", "mountPath": "/sidegate-sidecar", "subPath": "evil"});
            push(&mut fence(pod)["volumeMounts"], mount);
        },
    },
    Attempt {
        says: "fenceForm: the init container sidegate-fence is another",
        what: "settings from elsewhere",
        change: |pod| fence(pod)["envFrom"] = json!([{"configMapRef": {"name": "mine"}}]),
    },
    Attempt {
        says: "fenceForm: the init container sidegate-fence has other rights",
        what: "a right more",
        change: |pod| {
            fence(pod)["securityContext"]["capabilities"]["add"] =
                json!(["NET_ADMIN", "SETGID", "SETUID", "SYS_ADMIN"]);
        },
    },
    Attempt {
        says: "fenceForm: the init container sidegate-fence has other rights",
        what: "files it may write",
        change: |pod| fence(pod)["securityContext"]["readOnlyRootFilesystem"] = json!(false),
    },
    Attempt {
        says: "fenceUsers: ",
        what: "the agent let through",
        change: |pod| fence(pod)["env"][0]["value"] = json!("61937,2102,1000"),
    },
    Attempt {
        says: "fenceUser: ",
        what: "an agent that says nothing of its user",
        change: |pod| remove(context(pod), &["runAsUser"]),
    },
    Attempt {
        says: "fenceUser: ",
        what: "an agent as root",
        change: |pod| context(pod)["runAsUser"] = json!(0),
    },
    Attempt {
        says: "fenceUser: ",
        what: "an agent as somebody whom the fence lets through",
        change: |pod| context(pod)["runAsUser"] = json!(2102),
    },
    Attempt {
        says: "fenceUser: ",
        what: "the same, called like a proxy",
        change: |pod| {
            agent(pod)["name"] = json!("istio-proxy");
            agent(pod)["image"] = json!("docker.io/istio/proxyv2:1");
            context(pod)["runAsUser"] = json!(2102);
        },
    },
    Attempt {
        says: "fenceRights: ",
        what: "an agent that may gain privileges",
        change: |pod| remove(context(pod), &["allowPrivilegeEscalation"]),
    },
    Attempt {
        says: "fenceRights: ",
        what: "an agent that may become another user",
        change: |pod| context(pod)["capabilities"] = json!({"add": ["CAP_SETUID"], "drop": ["ALL"]}),
    },
    Attempt {
        says: "fenceRights: ",
        what: "an agent that keeps what its runtime grants",
        change: |pod| context(pod)["capabilities"]["drop"] = json!(["NET_RAW", "NET_ADMIN", "SETGID", "SYS_PTRACE"]),
    },
    Attempt {
        says: "fencePod: ",
        what: "users of its own",
        change: |pod| pod["spec"]["hostUsers"] = json!(false),
    },
    Attempt {
        says: "fencePod: ",
        what: "a sandbox",
        change: |pod| pod["spec"]["runtimeClassName"] = json!("gvisor"),
    },
];

/// No pod that a namespace's admin can write gets in without a sidecar that nothing else in it can reach.
pub fn each_way_around_the_sidecar_is_refused_by_its_rule(guarded: &Guarded) -> Result<()> {
    let mut missed = Vec::new();
    for (golden, attempts) in [("plain", ATTEMPTS), ("enforced", FENCED)] {
        let good = guarded.injected(&golden_pod(golden)?)?;
        ensure!(
            guarded.tried(User::Dev, &good)?.is_ok(),
            "{golden}: the good one is refused"
        );
        for attempt in attempts {
            let mut pod = good.clone();
            (attempt.change)(&mut pod);
            match guarded.tried(User::Dev, &pod)? {
                Err(said) if says(&said, attempt.says) && said.contains("'sidegate-pods'") => {}
                answer => missed.push(format!("{}, {}: {answer:?}", attempt.says, attempt.what)),
            }
        }
    }
    ensure!(missed.is_empty(), "{}", missed.join("\n"));
    Ok(())
}

/// What the API server makes of requests and limits: a pod is Guaranteed with its sidecar as it was without, and every
/// container of ours says how much CPU it wants, without which an autoscaler that goes by CPU would stop counting.
pub fn a_pod_keeps_its_class_of_service_and_what_autoscalers_divide_by(guarded: &Guarded) -> Result<()> {
    for (golden, class) in [
        ("guaranteed", "Guaranteed"),
        ("enforced-guaranteed", "Guaranteed"),
        ("half-guaranteed", "Burstable"),
        ("plain", "Burstable"),
    ] {
        let create = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        let made = guarded.injected(&golden_pod(golden)?)?;
        let stored = guarded.asked(User::Dev, &create, &made.to_string())?;
        let stored: Value = serde_json::from_str(&stored.map_err(anyhow::Error::msg)?)?;
        ensure!(stored["status"]["qosClass"] == class, "{golden}: {}", stored["status"]);
        let first = stored["spec"]["initContainers"].as_array().into_iter().flatten();
        let ours = first.filter(|one| one["name"].as_str().is_some_and(|name| name.starts_with("sidegate")));
        let asked: Vec<&Value> = ours.map(|one| &one["resources"]["requests"]["cpu"]).collect();
        ensure!(
            !asked.is_empty() && asked.iter().all(|cpu| cpu.is_string()),
            "{golden}: {asked:?}"
        );
    }
    Ok(())
}

/// Exactly what the webhook leaves alone: namespaces that did not ask, the cluster's and ours; pods that opt out where
/// they may; Windows; and what a node's kubelet runs by itself.
pub fn who_is_spared_by_the_webhook_is_spared(guarded: &Guarded) -> Result<()> {
    let plain = golden_pod("plain")?;
    let elsewhere = |namespace: &str| {
        let mut pod = plain.clone();
        pod["metadata"]["namespace"] = json!(namespace);
        pod
    };
    for namespace in ["kube-system", "sidegate-system", "unlabelled", "disabled"] {
        if ["kube-system", "sidegate-system"].contains(&namespace) {
            let label = ["label", "namespace", namespace, "sidegate.dev/inject=enabled"];
            guarded.cluster.kubectl(&label, "")?;
        }
        let answer = guarded.tried(User::Admin, &elsewhere(namespace))?;
        ensure!(answer.is_ok(), "{namespace}: {answer:?}");
    }
    let mut out = elsewhere("lenient");
    out["metadata"]["labels"]["sidegate.dev/inject"] = json!("false");
    let answer = guarded.tried(User::Dev, &out)?;
    ensure!(answer.is_ok(), "opted out: {answer:?}");

    guarded
        .cluster
        .create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "kubelets"}}))?;
    let uid = ["get", "node", "kubelets", "-o", "jsonpath={.metadata.uid}"];
    let uid = guarded.cluster.kubectl(&uid, "")?;
    let mut mirror = named(plain.clone(), "mirror");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    mirror["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Node", "name": "kubelets", "uid": uid, "controller": true}]);
    mirror["spec"]["nodeName"] = json!("kubelets");
    let create = ["create", "--dry-run=server", "-f", "-"];
    let node = ["--as=system:node:kubelets", "--as-group=system:nodes"];
    let answer = guarded.asked(User::Admin, &[&create[..], &node].concat(), &mirror.to_string())?;
    ensure!(answer.is_ok(), "a kubelet's own pod: {answer:?}");
    let answer = guarded.tried(User::Dev, &mirror)?;
    ensure!(
        answer.is_err_and(|said| says(&said, "sidecar: ")),
        "its likeness by dev"
    );
    Ok(())
}
