//! What answers to reviews promise: the uid comes back, other reviews are refused in words, and nothing else changes.

use std::collections::BTreeMap;

use super::*;
use crate::admit::enabled;
use crate::install::Install;
use sidegate_policies::objects::Objects;
use sidegate_policies::yaml::{load, Source};

fn review(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": "CREATE", "namespace": "agents",
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "userInfo": {"username": "dev", "groups": ["people"]},
            "object": {"metadata": {}, "spec": {"containers": [{"name": "agent", "image": "a"}]}},
        },
    });
    change(&mut review);
    review.to_string().into_bytes()
}

fn objects() -> Objects {
    let digest = "a".repeat(64);
    let text = format!(
        "{{apiVersion: sidegate.dev/v1alpha1, kind: InjectionProfile, metadata: {{name: default}}, spec: {{image: \
         {{repository: r.example/s, digest: \"sha256:{digest}\"}}}}}}"
    );
    let loaded = load(&[Source {
        name: "p.yaml".to_owned(),
        text,
    }]);
    assert_eq!(loaded.problems, []);
    loaded.objects
}

fn decided(body: &[u8]) -> Value {
    let install = "{brokerUrl: \"https://b\", audience: \"https://i\", brokerCaPem: \"-----BEGIN CERTIFICATE-----\"}";
    let install = Install::read(install).unwrap();
    let (objects, generations, unusable) = (objects(), BTreeMap::new(), BTreeMap::new());
    let world = World {
        install: &install,
        objects: &objects,
        generations: &generations,
        unusable: &unusable,
    };
    let asked = match Asked::read(body).unwrap() {
        Err(answer) => return answer,
        Ok(asked) => asked,
    };
    match Request::of(asked) {
        Err((answer, _)) => answer,
        Ok(request) => {
            let namespace = enabled(request.namespace());
            match request.spared("sidegate-system") {
                Some(why) => request.untouched(why, &[]).0,
                None => request.decided(&world, &namespace).0,
            }
        }
    }
}

#[test]
fn a_pod_gets_a_patch_under_the_uid_of_its_request() {
    let answer = decided(&review(|_| {}));
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    let response = &answer["response"];
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(true)));
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
    assert!(patch
        .iter()
        .any(|operation| operation["path"] == "/spec/initContainers"));
    assert_eq!(response["auditAnnotations"]["outcome"], "injected");
    assert_eq!(
        decided(&review(|review| review["request"]["dryRun"] = json!(true))),
        answer
    );
}

#[test]
fn a_refusal_stands_alone_and_patches_nothing() {
    let answer = decided(&review(|review| {
        review["request"]["object"]["spec"]["hostPID"] = json!(true)
    }));
    let response = &answer["response"];
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["code"], 403);
    assert!(response["status"]["message"]
        .as_str()
        .unwrap()
        .starts_with("sidegate: hostPID: "));
    assert!(response.get("patch").is_none());
}

#[test]
fn other_reviews_are_refused_in_words() {
    type Change = fn(&mut Value);
    let others: [(Change, &str); 6] = [
        (
            |review| review["apiVersion"] = json!("admission.k8s.io/v1beta1"),
            "only admission.k8s.io/v1",
        ),
        (
            |review| review["request"]["resource"]["resource"] = json!("deployments"),
            "deployments is not judged",
        ),
        (
            |review| review["request"]["subResource"] = json!("exec"),
            "pods/exec is not judged",
        ),
        (|review| review["request"]["operation"] = json!("DELETE"), "DELETE of"),
        (
            |review| review["request"]["namespace"] = json!(""),
            "names no namespace",
        ),
        (|review| review["request"]["object"] = Value::Null, "is not an object"),
    ];
    for (change, words) in others {
        let answer = decided(&review(change));
        let response = &answer["response"];
        assert_eq!(
            (&response["uid"], &response["allowed"]),
            (&json!("u-1"), &json!(false)),
            "{words}"
        );
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert!(response.get("patch").is_none());
    }
}

#[test]
fn what_is_no_review_is_not_answered_as_one() {
    for body in [
        b"{".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        Vec::new(),
        review(|review| review["request"]["uid"] = json!("")),
        review(|review| review["kind"] = json!("Pod")),
        review(|review| review["request"] = Value::Null),
    ] {
        assert!(Asked::read(&body).is_err(), "{}", String::from_utf8_lossy(&body));
    }
}

#[test]
fn only_a_node_makes_mirror_pods() {
    let mirror = |review: &mut Value| {
        review["request"]["object"]["metadata"] = json!({"annotations": {"kubernetes.io/config.mirror": "x"}});
    };
    let answer = decided(&review(mirror));
    assert_eq!(
        answer["response"]["auditAnnotations"]["outcome"], "injected",
        "an author's word"
    );
    let answer = decided(&review(|review| {
        mirror(review);
        review["request"]["userInfo"]["groups"] = json!(["system:nodes"]);
    }));
    assert_eq!(answer["response"]["auditAnnotations"]["reason"], "mirror");
    for namespace in ["kube-system", "sidegate-system"] {
        let answer = decided(&review(|review| review["request"]["namespace"] = json!(namespace)));
        assert_eq!(answer["response"]["auditAnnotations"]["reason"], "system");
    }
}
