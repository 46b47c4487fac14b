//! The golden files: each `NAME.yaml` is a pod, `NAME.txt` what becomes of it.
//!
//! What is the same in every pod is told once: `plain.full.yaml` is a whole pod, and elsewhere `<sidecar>` and
//! `<volume>` stand for what is in it, with the differences beneath. SIDEGATE_WRITE_GOLDEN=1 writes them anew.

use std::fmt::Write as _;

use serde_json::{json, Value};
use sidegate_injector::admit::Verdict;
use sidegate_injector::patch;
use sidegate_policies::pod::shape::Shape;
use sidegate_policies::yaml;

use crate::{applied, folder, Known, AUDIENCE};

/// Every golden pod, by name.
pub fn pods() -> Vec<(String, Value)> {
    let mut pods = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(name) = name
            .strip_suffix(".yaml")
            .filter(|name| *name != "world" && !name.ends_with(".full"))
        else {
            continue;
        };
        let text = std::fs::read_to_string(&path).unwrap();
        pods.push((name.to_owned(), yaml::read(&text).unwrap()));
    }
    pods.sort_by(|a, b| a.0.cmp(&b.0));
    pods
}

fn sidecar(pod: &Value) -> Option<Value> {
    let all = pod["spec"]["initContainers"].as_array()?;
    all.iter().find(|container| container["name"] == "sidegate").cloned()
}

/// What is in every pod, by a short name.
fn shortened(value: &Value, volumes: &[Value]) -> Value {
    if value["name"] == "sidegate" && value["image"].is_string() {
        return json!("<sidecar>");
    }
    if volumes.contains(value) {
        return json!(format!("<volume {}>", value["name"].as_str().unwrap()));
    }
    match value {
        Value::Array(items) => items.iter().map(|item| shortened(item, volumes)).collect(),
        other => other.clone(),
    }
}

fn operation(operation: &Value, volumes: &[Value]) -> String {
    let (op, path) = (operation["op"].as_str().unwrap(), operation["path"].as_str().unwrap());
    match operation.get("value") {
        Some(value) => format!("  {op} {path} {}\n", shortened(value, volumes)),
        None => format!("  {op} {path}\n"),
    }
}

fn told(pod: &Value, verdict: &Verdict, plain: &Value) -> String {
    let mut text = String::new();
    match verdict {
        Verdict::Refused(refusal) => {
            writeln!(
                text,
                "refused: {} {}\n{refusal}",
                refusal.class.code(),
                refusal.class.reason()
            )
            .unwrap();
        }
        Verdict::Untouched { why, warnings } => {
            writeln!(text, "untouched: {why}").unwrap();
            for warning in warnings {
                writeln!(text, "warning: {warning}").unwrap();
            }
        }
        Verdict::Injected { injected, profile } => {
            writeln!(text, "injected by profile {profile}").unwrap();
            for warning in &injected.warnings {
                writeln!(text, "warning: {warning}").unwrap();
            }
            let volumes = plain["spec"]["volumes"].as_array().unwrap();
            for change in patch::between(pod, &injected.pod) {
                text.push_str(&operation(&change, volumes));
            }
            let (ours, usual) = (sidecar(&injected.pod).unwrap(), sidecar(plain).unwrap());
            let differing = patch::between(&usual, &ours);
            if !differing.is_empty() {
                writeln!(text, "the sidecar differs:").unwrap();
                for change in differing {
                    text.push_str(&operation(&change, volumes));
                }
            }
        }
    }
    text
}

fn kept(name: &str, text: &str) {
    let path = folder().join(name);
    if std::env::var_os("SIDEGATE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, text,
        "{name}: read the difference, then SIDEGATE_WRITE_GOLDEN=1 writes it anew"
    );
}

#[test]
fn each_golden_pod_becomes_what_its_file_says() {
    let known = Known::read();
    let pods = pods();
    assert!(pods.len() >= 60, "{} shapes", pods.len());
    let plain = pods.iter().find(|(name, _)| name == "plain").unwrap();
    let Verdict::Injected { injected, .. } = known.verdict(&plain.1) else {
        panic!("the plain pod is not injected");
    };
    kept("plain.full.yaml", &yaml::print(&injected.pod).unwrap());
    for (name, pod) in &pods {
        let verdict = known.verdict(pod);
        kept(&format!("{name}.txt"), &told(pod, &verdict, &injected.pod));
    }
}

/// Decision 7: what the injector makes is what the broker takes, by the very code the broker asks.
#[test]
fn each_injected_pod_has_the_shape_the_broker_demands() {
    let known = Known::read();
    let mut injected = 0;
    for (name, pod) in pods() {
        assert!(
            Shape::of(&pod["spec"], AUDIENCE).wrong().is_some(),
            "{name}: without a sidecar"
        );
        if let Verdict::Injected { injected: made, .. } = known.verdict(&pod) {
            injected += 1;
            assert_eq!(Shape::of(&made.pod["spec"], AUDIENCE).wrong(), None, "{name}");
        }
    }
    assert!(injected >= 30, "{injected} of them are injected");
}

#[test]
fn injecting_a_golden_pod_again_changes_nothing_and_its_patch_gives_it() {
    let known = Known::read();
    for (name, pod) in pods() {
        if let Verdict::Injected { injected, .. } = known.verdict(&pod) {
            let operations = patch::between(&pod, &injected.pod);
            assert_eq!(applied(&pod, &operations), injected.pod, "{name}");
            let Verdict::Injected { injected: again, .. } = known.verdict(&injected.pod) else {
                panic!("{name} is not injected again: {:?}", known.verdict(&injected.pod));
            };
            assert_eq!(patch::between(&injected.pod, &again.pod), Vec::<Value>::new(), "{name}");
        }
    }
}
