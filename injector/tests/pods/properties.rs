//! What holds for any pod: injected twice is injected once, unknown fields stay, and the broker takes its shape.
//!
//! Pods are put together from parts of the golden ones and from parts nobody wrote down.

use proptest::prelude::*;
use serde_json::{json, Map, Value};
use sidegate_injector::admit::Verdict;
use sidegate_injector::patch;
use sidegate_policies::pod::fence::Fenced;
use sidegate_policies::pod::shape::Shape;

use crate::{applied, Known, AUDIENCE};

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("SIDEGATE_ORDERS_DB_HOST".to_owned()),
        Just("PGHOST".to_owned()),
        Just("AWS_ROLE_ARN".to_owned()),
        Just("GOOGLE_APPLICATION_CREDENTIALS".to_owned()),
        "[A-Z]{1,3}",
    ]
}

fn variable() -> impl Strategy<Value = Value> {
    (
        text(),
        prop_oneof![Just("127.0.0.1".to_owned()), Just("/v/1".to_owned()), "[a-z]{0,3}"],
        0..5u8,
    )
        .prop_map(|(name, value, kind)| match kind {
            0 => json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
            1 => json!({"name": name}),
            _ => json!({"name": name, "value": value}),
        })
}

fn mount() -> impl Strategy<Value = Value> {
    ("v[0-3]", "/[a-c]").prop_map(|(name, path)| json!({"name": name, "mountPath": path}))
}

fn container(name: &'static str) -> impl Strategy<Value = Value> {
    let names = prop_oneof![
        4 => Just(name.to_owned()),
        1 => Just("istio-proxy".to_owned()),
        1 => Just("linkerd-init".to_owned()),
        1 => Just("sidegate".to_owned()),
        1 => Just("sidegate-fence".to_owned()),
        1 => "[a-d]",
    ];
    let images = prop_oneof![
        Just("docker.io/istio/proxyv2"),
        Just("cr.l5d.io/linkerd/proxy"),
        Just("registry.example/a")
    ];
    let capability = prop_oneof![Just("CHOWN"), Just("ALL"), Just("NET_RAW"), Just("NET_BIND_SERVICE")];
    let uid = prop_oneof![
        Just(json!(61937)),
        Just(json!(61938)),
        Just(json!(1000)),
        Just(Value::Null)
    ];
    (
        names,
        images,
        proptest::option::of(proptest::collection::vec(variable(), 0..5)),
        proptest::option::of(proptest::collection::vec(mount(), 0..3)),
        proptest::option::of(proptest::collection::vec(capability, 0..3)),
        uid,
        any::<bool>(),
    )
        .prop_map(|(name, image, env, mounts, drop, uid, guaranteed)| {
            let mut all = Map::new();
            all.insert("name".to_owned(), name.into());
            all.insert("image".to_owned(), image.into());
            all.insert("newField".to_owned(), json!({"kept": [true]}));
            if let Some(env) = env {
                all.insert("env".to_owned(), env.into());
            }
            if let Some(mounts) = mounts {
                all.insert("volumeMounts".to_owned(), mounts.into());
            }
            let mut context = json!({"runAsUser": uid});
            if let Some(drop) = drop {
                context["capabilities"] = json!({"drop": drop});
            }
            all.insert("securityContext".to_owned(), context);
            if guaranteed {
                all.insert("resources".to_owned(), json!({"limits": {"cpu": 1, "memory": "1Gi"}}));
            }
            Value::Object(all)
        })
}

fn volume() -> impl Strategy<Value = Value> {
    let audience = prop_oneof![
        Just(""),
        Just("sts.amazonaws.com"),
        Just("vault"),
        Just("https://kubernetes.default.svc"),
        Just(AUDIENCE)
    ];
    let name = prop_oneof![4 => "v[0-3]", 1 => Just("sidegate-token".to_owned())];
    (name, audience, 0..3u8).prop_map(|(name, audience, kind)| match kind {
        0 => json!({"name": name, "emptyDir": {}}),
        1 => json!({"name": name, "hostPath": {"path": "/srv"}}),
        _ => json!({"name": name, "projected": {"sources": [{"serviceAccountToken": {"audience": audience, "path": "t"}}]}}),
    })
}

fn alias() -> impl Strategy<Value = Value> {
    let ip = prop_oneof![
        Just("10.1.2.3"),
        Just("127.71.226.197"),
        Just("127.071.9.9"),
        Just("::1")
    ];
    let name = prop_oneof![4 => "[a-c]", 1 => Just("db.data.svc".to_owned())];
    (ip, proptest::collection::vec(name, 0..3)).prop_map(|(ip, names)| json!({"ip": ip, "hostnames": names}))
}

fn pod() -> impl Strategy<Value = Value> {
    let namespace = prop_oneof![
        Just("agents"),
        Just("lenient"),
        Just("audited"),
        Just("named"),
        Just("fenced")
    ];
    let sysctl = (
        "net.ipv4.(ip_unprivileged_port_start|ip_local_reserved_ports|tcp_syncookies)",
        "[0-9]{1,2}",
    );
    (
        namespace,
        proptest::collection::btree_map("agent|queue|mesh|copies|pool|web", "support|yes", 0..4),
        proptest::collection::vec(container("agent"), 1..4),
        proptest::option::of(proptest::collection::vec(container("setup"), 0..4)),
        proptest::option::of(proptest::collection::vec(volume(), 0..4)),
        proptest::collection::vec(sysctl, 0..3),
        prop_oneof![Just("keeper"), Just("other")],
        proptest::option::of(proptest::collection::vec(alias(), 0..4)),
    )
        .prop_map(
            |(namespace, labels, containers, init, volumes, sysctls, account, aliases)| {
                let sysctls: Vec<Value> = sysctls
                    .into_iter()
                    .map(|(name, value)| json!({"name": name, "value": value}))
                    .collect();
                let mut pod = json!({
                    "metadata": {"namespace": namespace, "labels": labels, "managedFields": [{"manager": "x"}]},
                    "spec": {
                        "serviceAccountName": account, "containers": containers, "newField": {"kept": null},
                        "securityContext": {"sysctls": sysctls},
                    },
                    "newField": 1,
                });
                if let Some(init) = init {
                    pod["spec"]["initContainers"] = init.into();
                }
                if let Some(volumes) = volumes {
                    pod["spec"]["volumes"] = volumes.into();
                }
                if let Some(aliases) = aliases {
                    pod["spec"]["hostAliases"] = aliases.into();
                }
                pod
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn injected_twice_is_injected_once(pod in pod()) {
        let known = Known::read_once();
        let Verdict::Injected { injected, .. } = known.verdict(&pod) else {
            return Ok(());
        };
        prop_assert_eq!(Shape::of(&injected.pod["spec"], AUDIENCE).wrong(), None);
        let aliases = injected.pod["spec"]["hostAliases"].as_array().cloned().unwrap_or_default();
        let ours = aliases.iter().filter(|alias| alias["ip"].as_str().unwrap().contains("71."));
        prop_assert!(pod["metadata"]["namespace"] == "named" || ours.count() == 0);
        let fenced = pod["metadata"]["namespace"] == "fenced";
        let demands = fenced.then(|| known.demands());
        prop_assert_eq!(Fenced::of(&injected.pod["spec"]).wrong(demands.as_ref()), None);
        prop_assert_eq!(&injected.pod["newField"], &json!(1));
        prop_assert_eq!(&injected.pod["spec"]["newField"], &json!({"kept": null}));
        for container in injected.pod["spec"]["containers"].as_array().unwrap() {
            prop_assert_eq!(&container["newField"], &json!({"kept": [true]}));
        }
        let operations = patch::between(&pod, &injected.pod);
        prop_assert_eq!(&applied(&pod, &operations), &injected.pod);
        match known.verdict(&injected.pod) {
            Verdict::Injected { injected: again, .. } => {
                prop_assert_eq!(patch::between(&injected.pod, &again.pod), Vec::<Value>::new());
            }
            other => prop_assert!(false, "not injected again: {other:?}"),
        }
    }
}
