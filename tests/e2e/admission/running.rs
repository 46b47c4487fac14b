//! Pods that run already: changes of them, ways into them, and tokens asked for beside them.

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_tests::cluster::User;

use super::corpus::push;
use super::{golden_pod, named, says, Attempt, Guarded, AUDIENCE};

/// How a good object becomes another one.
type Change = fn(&mut Value);

/// Writes to a part of a running pod: the policy that refuses, the part, and what is tried.
pub type Written = (&'static str, &'static str, &'static [Attempt]);

/// The containers of a golden pod whose proxy stands in front of the sidecar.
const MESHED: &str = "linkerd-with-its-rights";

/// What a debugger is that nobody minds.
fn debugger() -> Value {
    json!({
        "name": "look", "image": "example.invalid/look", "terminationMessagePolicy": "File", "imagePullPolicy": "Always",
        "securityContext": {"capabilities": {"drop": ["ALL"]}},
    })
}

/// Adds a debugger of another form.
fn debug(pod: &mut Value, change: impl FnOnce(&mut Value)) {
    let mut added = debugger();
    change(&mut added);
    push(&mut pod["spec"]["ephemeralContainers"], added);
}

fn sidecar(pod: &mut Value) -> &mut Value {
    let all = pod["spec"]["initContainers"].as_array_mut();
    let found = all.and_then(|all| all.iter_mut().find(|container| container["name"] == "sidegate"));
    found.unwrap_or_else(|| unreachable!("every pod here has its sidecar"))
}

/// What is tried on running pods.
pub const WRITTEN: &[Written] = &[
    (
        "changes",
        "",
        &[
            Attempt {
                says: "image: ",
                what: "another sidecar",
                change: |pod| sidecar(pod)["image"] = json!("registry.example/evil"),
            },
            Attempt {
                says: "exempt: ",
                what: "an agent in a proxy's place",
                change: |pod| pod["spec"]["initContainers"][0]["image"] = json!("registry.example/evil"),
            },
        ],
    ),
    (
        "changes",
        "/resize",
        &[
            Attempt {
                says: "resize: ",
                what: "less memory than it was given",
                change: |pod| sidecar(pod)["resources"]["requests"]["memory"] = json!("1Mi"),
            },
            Attempt {
                says: "resize: ",
                what: "a limit on its CPU",
                change: |pod| sidecar(pod)["resources"]["limits"]["cpu"] = json!("25m"),
            },
        ],
    ),
    (
        "debuggers",
        "/ephemeralcontainers",
        &[
            Attempt {
                says: "reserved: a debugger targets",
                what: "its processes",
                change: |pod| debug(pod, |added| added["targetContainerName"] = json!("sidegate")),
            },
            Attempt {
                says: "reserved: names of containers",
                what: "its name",
                change: |pod| debug(pod, |added| added["name"] = json!("sidegate-debug")),
            },
            Attempt {
                says: "reserved: a volume sidegate- is mounted",
                what: "its token",
                change: |pod| {
                    debug(pod, |added| {
                        added["volumeMounts"] = json!([{"name": "sidegate-token", "mountPath": "/t"}])
                    });
                },
            },
            Attempt {
                says: "runAsUser: ",
                what: "its user",
                change: |pod| debug(pod, |added| added["securityContext"]["runAsUser"] = json!(61_937)),
            },
            Attempt {
                says: "privileged: ",
                what: "everything",
                change: |pod| debug(pod, |added| added["securityContext"]["privileged"] = json!(true)),
            },
            Attempt {
                says: "capability: ",
                what: "what kubectl debug asks for by default",
                change: |pod| {
                    debug(pod, |added| {
                        added["securityContext"]["capabilities"]["add"] = json!(["SYS_PTRACE"])
                    });
                },
            },
            Attempt {
                says: "capability: ",
                what: "a proxy's rights, by its name and image",
                change: |pod| {
                    debug(pod, |added| {
                        added["name"] = json!("istio-proxy");
                        added["image"] = json!("docker.io/istio/proxyv2:1");
                        added["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN"]);
                    });
                },
            },
            Attempt {
                says: "netRaw: ",
                what: "the pod's traffic",
                change: |pod| debug(pod, |added| added["securityContext"] = json!({})),
            },
        ],
    ),
];

/// A debugger that a fence holds.
fn held(added: &mut Value) {
    added["securityContext"]["runAsUser"] = json!(1000);
    added["securityContext"]["allowPrivilegeEscalation"] = json!(false);
}

/// What is tried on running pods of tier Enforced.
pub const GUARDED: &[Written] = &[
    (
        "changes",
        "",
        &[Attempt {
            says: "image: ",
            what: "another fence, for the next sandbox",
            change: |pod| pod["spec"]["initContainers"][0]["image"] = json!("registry.example/evil"),
        }],
    ),
    (
        "debuggers",
        "/ephemeralcontainers",
        &[
            Attempt {
                says: "fenceUser: ",
                what: "a user whom nobody named",
                change: |pod| {
                    debug(pod, |added| {
                        held(added);
                        added["securityContext"]["runAsUser"] = Value::Null;
                    });
                },
            },
            Attempt {
                says: "fenceUser: ",
                what: "somebody whom the fence lets through",
                change: |pod| {
                    debug(pod, |added| {
                        held(added);
                        added["securityContext"]["runAsUser"] = json!(2102);
                    });
                },
            },
            Attempt {
                says: "fenceRights: ",
                what: "privileges to gain",
                change: |pod| {
                    debug(pod, |added| {
                        held(added);
                        added["securityContext"]["allowPrivilegeEscalation"] = json!(true);
                    });
                },
            },
        ],
    ),
];

/// A pod that runs, as far as an API server knows: created once, by the namespace's admin. Its path, and what is stored.
fn running(guarded: &Guarded, golden: &str) -> Result<(String, String)> {
    running_as(guarded, golden, "running", |_| {})
}

/// The same of another form, under a name of its own.
fn running_as(guarded: &Guarded, golden: &str, name: &str, change: Change) -> Result<(String, String)> {
    let golden = golden_pod(golden)?;
    let namespace = golden["metadata"]["namespace"].as_str().context("no namespace")?;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let read = || guarded.asked(User::Dev, &["get", "--raw", &path], "");
    if let Ok(stored) = read()? {
        return Ok((path, stored));
    }
    let mut pod = named(guarded.injected(&golden)?, name);
    pod["spec"]["nodeSelector"] = json!({"none": "has-it"});
    change(&mut pod);
    let answer = guarded.asked(User::Dev, &["create", "-f", "-"], &pod.to_string())?;
    ensure!(
        answer
            .as_ref()
            .map_or_else(|said| said.contains("AlreadyExists"), |_| true),
        "{answer:?}"
    );
    let stored = read()?.map_err(anyhow::Error::msg)?;
    Ok((path, stored))
}

/// Writes a part of the running pod without storing it.
fn written(
    guarded: &Guarded,
    golden: &str,
    part: &str,
    change: impl FnOnce(&mut Value),
) -> Result<Result<String, String>> {
    written_to(guarded, running(guarded, golden)?, part, change)
}

fn written_to(
    guarded: &Guarded,
    (path, stored): (String, String),
    part: &str,
    change: impl FnOnce(&mut Value),
) -> Result<Result<String, String>> {
    let mut pod: Value = serde_json::from_str(&stored)?;
    // Whatever the scheduler said of the pod since: this is about the change alone.
    pod["metadata"]["resourceVersion"].take();
    change(&mut pod);
    let path = format!("{path}{part}?dryRun=All");
    guarded.asked(User::Dev, &["replace", "--raw", &path, "-f", "-"], &pod.to_string())
}

/// Image edits, resizes and debuggers: none of them takes the sidecar away or looks into it.
pub fn a_running_pod_keeps_its_sidecar(guarded: &Guarded) -> Result<()> {
    let mut missed = Vec::new();
    let meshed = WRITTEN.iter().map(|written| (MESHED, written));
    let fenced = GUARDED.iter().map(|written| ("enforced", written));
    for (golden, (policy, part, attempts)) in meshed.chain(fenced) {
        for attempt in *attempts {
            match written(guarded, golden, part, attempt.change)? {
                Err(said) if says(&said, attempt.says) && said.contains(&format!("'sidegate-{policy}'")) => {}
                answer => missed.push(format!("{part} {}, {}: {answer:?}", attempt.says, attempt.what)),
            }
        }
    }
    ensure!(missed.is_empty(), "{}", missed.join("\n"));
    // Whoever makes a pod around the webhook may name the sidecar's user for all of it, and others for each that begins with it:
    // a debugger that names none would be the sidecar's.
    let inheriting = || {
        running_as(guarded, MESHED, "inheriting", |pod| {
            pod["spec"]["securityContext"]["runAsUser"] = json!(61_937);
            for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
                container["securityContext"]["runAsUser"] = json!(1000);
            }
            let proxies = pod["spec"]["initContainers"].as_array_mut().into_iter().flatten();
            for proxy in proxies.filter(|proxy| proxy["name"] != "sidegate") {
                proxy["securityContext"]["runAsUser"] = json!(0);
            }
        })
    };
    let answer = written_to(guarded, inheriting()?, "/ephemeralcontainers", |pod| debug(pod, |_| {}))?;
    let said = answer.err().context("a debugger inherits the user of the sidecar")?;
    ensure!(
        says(&said, "runAsUser: ") && said.contains("'sidegate-debuggers'"),
        "{said}"
    );
    let other = |added: &mut Value| added["securityContext"]["runAsUser"] = json!(1000);
    let answer = written_to(guarded, inheriting()?, "/ephemeralcontainers", |pod| debug(pod, other))?;
    ensure!(answer.is_ok(), "a debugger with a user of its own: {answer:?}");
    // What does not concern the sidecar is its owner's business.
    let harmless: [(&str, Change); 5] = [
        ("", |pod| {
            pod["spec"]["containers"][0]["image"] = json!("registry.example/agent:2")
        }),
        ("", |pod| {
            pod["metadata"]["labels"]["sidegate.dev/inject"] = json!("false")
        }),
        ("", |pod| {
            pod["spec"]["initContainers"][0]["image"] = json!("cr.l5d.io/linkerd/proxy-init:v9")
        }),
        ("/resize", |pod| {
            sidecar(pod)["resources"]["requests"]["memory"] = json!("64Mi")
        }),
        ("/ephemeralcontainers", |pod| debug(pod, |_| {})),
    ];
    for (at, (part, change)) in harmless.into_iter().enumerate() {
        let answer = written(guarded, MESHED, part, change)?;
        ensure!(answer.is_ok(), "{at} {part}: {answer:?}");
    }
    let answer = written(guarded, "enforced", "/ephemeralcontainers", |pod| debug(pod, held))?;
    ensure!(answer.is_ok(), "a debugger that the fence holds: {answer:?}");
    Ok(())
}

/// Exec and attach into the sidecar, and forwarded ports, which the sidecar could not tell from the agent.
pub fn nobody_gets_into_the_sidecar_but_the_break_glass_group(guarded: &Guarded) -> Result<()> {
    let (path, _) = running(guarded, MESHED)?;
    let asked =
        |user: User, path: &str, more: &[&str]| guarded.asked(user, &[&["get", "--raw", path][..], more].concat(), "");
    for (part, says_so) in [
        ("/exec?command=id&container=sidegate", "exec: "),
        ("/exec?command=id&container=sidegate-fence", "exec: "),
        ("/attach?stdout=true&container=sidegate", "exec: "),
        ("/portforward?ports=15432", "portForward: "),
        ("/proxy/", "portForward: "),
    ] {
        let said = asked(User::Dev, &format!("{path}{part}"), &[])?.err().context(part)?;
        ensure!(says(&said, says_so), "{part}: {said}");
    }
    // Past admission: there is no kubelet that could go on.
    let passes = |said: &Result<String, String>| {
        said.as_ref()
            .is_err_and(|said| !said.contains("denied request") && !said.to_lowercase().contains("forbidden"))
    };
    let agents = asked(User::Dev, &format!("{path}/exec?command=id&container=agent"), &[])?;
    ensure!(passes(&agents), "exec into the agent: {agents:?}");
    let nobody_named = asked(User::Dev, &format!("{path}/exec?command=id"), &[])?;
    ensure!(passes(&nobody_named), "exec without a name: {nobody_named:?}");
    let glass = ["--as=dev", "--as-group=break-glass"];
    let broken = asked(
        User::Admin,
        &format!("{path}/exec?command=id&container=sidegate"),
        &glass,
    )?;
    ensure!(passes(&broken), "exec by the break-glass group: {broken:?}");
    let other = ["--as=dev", "--as-group=other"];
    let said = asked(
        User::Admin,
        &format!("{path}/exec?command=id&container=sidegate"),
        &other,
    )?
    .err();
    ensure!(said.is_some_and(|said| says(&said, "exec: ")), "exec by another group");

    let open = guarded.namespace(&["sidegate.dev/allow-port-forward=true"])?;
    let forwarded = asked(
        User::Admin,
        &format!("/api/v1/namespaces/{open}/pods/x/portforward?ports=1"),
        &[],
    )?;
    ensure!(passes(&forwarded), "where the namespace allows it: {forwarded:?}");
    Ok(())
}

/// TokenRequests with the broker's audience: for whoever is a node, and nobody else, in every namespace.
pub fn kubelets_alone_get_tokens_for_the_broker(guarded: &Guarded) -> Result<()> {
    let cluster = &guarded.cluster;
    cluster.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))?;
    let mut pod = named(guarded.injected(&golden_pod("plain")?)?, "bound");
    pod["spec"]["nodeName"] = json!("n1");
    pod["spec"]["serviceAccountName"] = json!("default");
    let made = cluster.create(&pod)?;
    let uid = made["metadata"]["uid"].as_str().context("no uid")?;
    let request = |namespace: &str, audience: &str, more: &[&str]| {
        let mut arguments = vec![
            "create",
            "token",
            "default",
            "--namespace",
            namespace,
            "--audience",
            audience,
        ];
        arguments.extend(more);
        guarded.asked(User::Admin, &arguments, "")
    };
    let uid = format!("--bound-object-uid={uid}");
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=bound", &uid];
    let node = [&bound[..], &["--as=system:node:n1", "--as-group=system:nodes"]].concat();
    let answer = request("agents", AUDIENCE, &node)?;
    ensure!(answer.is_ok(), "the pod's own kubelet: {answer:?}");

    let dev = ["--as=dev", "--as-group=people"];
    for (who, namespace, more) in [
        ("the namespace's admin", "agents", &dev[..]),
        ("the same, for the pod", "agents", &[&bound[..], &dev].concat()),
        ("the cluster's admin", "agents", &bound[..]),
        ("somebody of a namespace that asked for nothing", "unlabelled", &[]),
    ] {
        let said = request(namespace, AUDIENCE, more)?.err().context(who)?;
        ensure!(says(&said, "token: "), "{who}: {said}");
    }
    let answer = request("agents", "vault", &dev)?;
    ensure!(answer.is_ok(), "another audience: {answer:?}");
    Ok(())
}
