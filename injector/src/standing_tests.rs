//! Stored pods, each as the API server would hold it: what is told of them.

use std::collections::BTreeMap;

use serde_json::{json, Value};
use sidegate_policies::objects::{Namespace, Objects};
use sidegate_policies::yaml::{load, Source};

use super::*;
use crate::admit::{enabled, World};

const AUDIENCE: &str = "https://sidegate-broker.sidegate-system.svc:8444";

fn install() -> Install {
    Install {
        broker_url: "https://sidegate-broker.sidegate-system.svc:8443".to_owned(),
        broker_ca_pem: "-----BEGIN CERTIFICATE-----".to_owned(),
        audience: AUDIENCE.to_owned(),
        name_servers: vec!["10.96.0.10".to_owned()],
        cluster_domain: "cluster.local".to_owned(),
    }
}

fn objects(digest: &str, target: bool) -> Objects {
    let letter = digest.repeat(64);
    let mut text = format!(
        "{{apiVersion: sidegate.dev/v1alpha1, kind: InjectionProfile, metadata: {{name: default}}, spec: {{image: \
         {{repository: example.org/sidecar, digest: 'sha256:{letter}'}}}}}}\n"
    );
    if target {
        text.push_str(
            "---\n{apiVersion: sidegate.dev/v1alpha1, kind: Target, metadata: {name: db, namespace: agents}, spec: \
             {protocol: Postgres, address: {host: db.data, port: 5432}, credential: {secret: {name: db}}, listen: \
             {port: 15432}}}\n---\n{apiVersion: sidegate.dev/v1alpha1, kind: AccessPolicy, metadata: {name: all, \
             namespace: agents}, spec: {targetRefs: [{name: db}], subjects: [{podSelector: {}}], rules: [{name: all, \
             effect: Allow}]}}\n",
        );
    }
    let (name, text) = ("test".to_owned(), text);
    let loaded = load(&[Source { name, text }]);
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    loaded.objects
}

fn plain() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "agent", "namespace": "agents", "creationTimestamp": "2026-11-29T12:00:00Z"},
        "spec": {"containers": [{"name": "agent", "image": "agent"}]},
    })
}

fn injected(objects: &Objects, generation: i64) -> Value {
    let generations = BTreeMap::from([("default".to_owned(), generation)]);
    let world = World {
        install: &install(),
        objects,
        generations: &generations,
        unusable: &BTreeMap::new(),
    };
    match admit(&world, &enabled("agents"), &plain()) {
        Verdict::Injected { injected, .. } => injected.pod,
        other => panic!("{other:?}"),
    }
}

fn belief() -> Belief {
    Belief {
        audience: AUDIENCE.to_owned(),
        digests: vec![format!("sha256:{}", "a".repeat(64))],
        ..Belief::default()
    }
}

fn labelled(more: &[(&str, &str)]) -> Namespace {
    let mut namespace = enabled("agents");
    for (key, value) in more {
        namespace.labels.insert((*key).to_owned(), (*value).to_owned());
    }
    namespace
}

fn reason(namespace: &Namespace, since: Option<&str>, pod: &Value) -> Option<Reason> {
    unprotected(&belief(), namespace, since, pod).map(|told| told.reason)
}

#[test]
fn an_injected_pod_is_protected_and_what_the_broker_would_not_believe_is_tampered() {
    let pod = injected(&objects("a", false), 1);
    let namespace = labelled(&[]);
    assert_eq!(reason(&namespace, None, &pod), None);
    let mut other = pod.clone();
    other["spec"]["initContainers"][0]["image"] = json!("evil@sha256:0");
    let told = unprotected(&belief(), &namespace, None, &other).unwrap();
    assert_eq!(told.reason, Reason::Tampered);
    assert!(told.detail.contains("evil@sha256:0"), "{}", told.detail);
    let mut debugged = pod.clone();
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "x", "targetContainerName": "sidegate"}]);
    assert_eq!(reason(&namespace, None, &debugged), Some(Reason::Tampered));
    // Where nothing is pinned, an image is believed.
    let any = Belief {
        digests: Vec::new(),
        ..belief()
    };
    assert_eq!(unprotected(&any, &namespace, None, &other), None);
    let mut forged = plain();
    forged["metadata"]["annotations"] = pod["metadata"]["annotations"].clone();
    assert_eq!(
        reason(&namespace, None, &forged),
        Some(Reason::Outage),
        "an annotation is no sidecar"
    );
}

#[test]
fn a_pod_without_the_fence_that_its_profile_demands_is_unfenced() {
    let map = json!({"data": {
        "audience": AUDIENCE, "digests": "",
        "profile.strict": "dropNetRaw true\ntier Enforced\nallowUid 1337\nexempt mesh r/mesh",
        "profile.default": "dropNetRaw true",
    }});
    let belief = Belief::of(&map).unwrap();
    let demands = &belief.fences["strict"];
    assert_eq!(
        (demands.allowed.as_slice(), demands.exempts("mesh", "r/mesh:1")),
        (&[1_337][..], true)
    );
    assert_eq!(belief.fences.len(), 1);
    let pod = injected(&objects("a", false), 1);
    let told = |namespace: &Namespace| unprotected(&belief, namespace, None, &pod).map(|told| told.reason);
    assert_eq!(told(&labelled(&[])), None, "its profile demands none");
    assert_eq!(
        told(&labelled(&[("sidegate.dev/profile", "strict")])),
        Some(Reason::Unfenced)
    );
}

#[test]
fn each_reason_is_told_apart_and_none_is_left_out() {
    let pod = plain();
    let namespace = labelled(&[]);
    assert_eq!(
        reason(&namespace, Some("2026-11-29T12:00:00Z"), &pod),
        Some(Reason::OlderThanLabel)
    );
    assert_eq!(
        reason(&namespace, Some("2026-11-29T11:59:59Z"), &pod),
        Some(Reason::Outage)
    );
    assert_eq!(
        reason(&namespace, None, &pod),
        Some(Reason::Outage),
        "the worst, where nothing is known"
    );
    let audit = labelled(&[("sidegate.dev/admission", "audit")]);
    assert_eq!(reason(&audit, None, &pod), Some(Reason::Audit));
    let mut mirror = pod.clone();
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "1"});
    assert_eq!(reason(&namespace, None, &mirror), Some(Reason::Static));
    let mut windows = pod.clone();
    windows["spec"]["os"] = json!({"name": "windows"});
    assert_eq!(reason(&namespace, None, &windows), Some(Reason::Windows));
    let mut out = pod.clone();
    out["metadata"]["labels"] = json!({"sidegate.dev/inject": "false"});
    let lenient = labelled(&[("sidegate.dev/allow-pod-opt-out", "true")]);
    assert_eq!(reason(&lenient, None, &out), Some(Reason::OptedOut));
    assert_eq!(
        reason(&namespace, None, &out),
        Some(Reason::Outage),
        "nobody let it opt out"
    );
    let mut done = pod.clone();
    done["status"] = json!({"phase": "Succeeded"});
    assert_eq!(reason(&namespace, None, &done), None);
    let elsewhere = Namespace {
        name: "other".to_owned(),
        labels: BTreeMap::new(),
    };
    assert_eq!(reason(&elsewhere, None, &pod), None);
}

#[test]
fn the_label_is_as_old_as_its_owners_last_change() {
    let owner = |time: &str, label: &str| json!({"manager": "m", "time": time, "fieldsV1": {"f:metadata": {"f:labels": {format!("f:{label}"): {}}}}});
    let namespace = json!({"metadata": {"managedFields": [
        owner("2026-11-29T10:00:00Z", "team"), owner("2026-11-29T11:00:00Z", "sidegate.dev/inject"),
    ]}});
    assert_eq!(labelled_at(&namespace), Some("2026-11-29T11:00:00Z"));
    assert_eq!(labelled_at(&json!({"metadata": {}})), None);
}

#[test]
fn what_would_be_another_now_is_told_and_nothing_else() {
    let before = objects("a", false);
    let pod = injected(&before, 1);
    let told = |objects: &Objects, generation: i64| {
        let known = Snapshot {
            objects: objects.clone(),
            generations: BTreeMap::from([("default".to_owned(), generation)]),
            ..Snapshot::default()
        };
        outdated(&known, &enabled("agents"), &pod)
    };
    assert_eq!(told(&before, 1), Vec::<String>::new());
    let later = told(&objects("b", true), 2);
    assert_eq!(later.len(), 3, "{later:?}");
    assert!(
        later[0].starts_with("image example.org/sidecar@sha256:aaa"),
        "{later:?}"
    );
    assert!(
        later[1].starts_with("Target agents/db (port 15432) has no variables"),
        "{later:?}"
    );
    assert_eq!(later[2], "profile default@1, now default@2");
}

#[test]
fn every_reason_is_among_all_of_them() {
    // What comes behind the last one makes this match, and so the number, wrong.
    let place = |reason: Reason| match reason {
        Reason::OlderThanLabel => 0,
        Reason::Outage => 1,
        Reason::Static => 2,
        Reason::Windows => 3,
        Reason::OptedOut => 4,
        Reason::Audit => 5,
        Reason::Tampered => 6,
        Reason::Unfenced => 7,
    };
    assert_eq!(Reason::ALL.map(place), [0, 1, 2, 3, 4, 5, 6, 7]);
}
