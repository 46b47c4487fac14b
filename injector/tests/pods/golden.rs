//! The golden files: each `NAME.yaml` is a pod, `NAME.txt` what becomes of it.
//!
//! What is the same in every pod is told once: `plain.full.yaml` and, with a fence, `enforced.full.yaml` are whole pods, and
//! elsewhere `<sidecar>`, `<fence>` and `<volume>` stand for what is in them, with the differences beneath.
//! SIDEGATE_WRITE_GOLDEN=1 writes them anew.

use std::fmt::Write as _;

use serde_json::{json, Value};
use sidegate_injector::admit::Verdict;
use sidegate_injector::patch;
use sidegate_policies::pod::fence::Fenced;
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

/// A container of ours.
fn ours(pod: &Value, name: &str) -> Option<Value> {
    let all = pod["spec"]["initContainers"].as_array()?;
    all.iter().find(|container| container["name"] == name).cloned()
}

/// The whole pods: without a fence, and with one.
struct Usual {
    plain: Value,
    enforced: Value,
}

/// What is in every pod, by a short name.
fn shortened(value: &Value, volumes: &[Value]) -> Value {
    if value["name"] == "sidegate" && value["image"].is_string() {
        return json!("<sidecar>");
    }
    if value["name"] == "sidegate-fence" && value["args"].is_array() {
        return json!("<fence>");
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

fn told(pod: &Value, verdict: &Verdict, usual: &Usual) -> String {
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
            let volumes = usual.plain["spec"]["volumes"].as_array().unwrap();
            for change in patch::between(pod, &injected.pod) {
                text.push_str(&operation(&change, volumes));
            }
            for (name, called) in [("sidegate", "sidecar"), ("sidegate-fence", "fence")] {
                let whole = match ours(&injected.pod, "sidegate-fence") {
                    Some(_) => &usual.enforced,
                    None => &usual.plain,
                };
                let Some(made) = ours(&injected.pod, name) else {
                    continue;
                };
                let differing = patch::between(&ours(whole, name).unwrap(), &made);
                if !differing.is_empty() {
                    writeln!(text, "the {called} differs:").unwrap();
                    for change in differing {
                        text.push_str(&operation(&change, volumes));
                    }
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
    let whole = |wanted: &str| {
        let (_, pod) = pods.iter().find(|(name, _)| name == wanted).unwrap();
        let Verdict::Injected { injected, .. } = known.verdict(pod) else {
            panic!("{wanted} is not injected: {:?}", known.verdict(pod));
        };
        kept(&format!("{wanted}.full.yaml"), &yaml::print(&injected.pod).unwrap());
        injected.pod
    };
    let usual = Usual {
        plain: whole("plain"),
        enforced: whole("enforced"),
    };
    for (name, pod) in &pods {
        let verdict = known.verdict(pod);
        kept(&format!("{name}.txt"), &told(pod, &verdict, &usual));
    }
}

/// What the injector puts into a pod of a profile that demands a fence is what the broker takes for one; the pod as it
/// was is nothing of the sort, and in another namespace none is demanded.
#[test]
fn each_pod_that_must_have_a_fence_has_the_one_the_broker_demands() {
    let known = Known::read();
    let demands = known.demands();
    let mut fenced = 0;
    for (name, pod) in pods() {
        let Verdict::Injected { injected, .. } = known.verdict(&pod) else {
            continue;
        };
        let made = Fenced::of(&injected.pod["spec"]);
        assert_eq!(made.wrong(None), None, "{name}");
        if pod["metadata"]["namespace"] == "fenced" {
            fenced += 1;
            assert_eq!(made.wrong(Some(&demands)), None, "{name}");
            assert!(
                Fenced::of(&pod["spec"]).wrong(Some(&demands)).is_some(),
                "{name}, as it was"
            );
        } else {
            assert!(ours(&injected.pod, "sidegate-fence").is_none(), "{name}");
        }
    }
    assert!(fenced >= 10, "{fenced} of them have a fence");
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
