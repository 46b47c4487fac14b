//! One corpus for injector and policies: the injector's golden pods, and every word of its lists.
//!
//! A pod the server itself does not take proves nothing here: those are named below, so that none slips away.

use std::collections::BTreeSet;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use sidegate_injector::admit::Verdict;
use sidegate_injector::{CLOUD_AUDIENCES, CLOUD_VARIABLES, CLOUD_VOLUMES};
use sidegate_policies::pod::rules::{FOLDERS, PROXIES, REACHING};

use super::{golden, golden_pod, named, says, Guarded};

/// Golden pods that are no pods to a real server, or of namespaces it does not have.
const NO_PODS: [&str; 6] = [
    "owned-by-a-job",
    "malformed-list",
    "no-containers",
    "unknown-fields-stay",
    "namespace-misspelt",
    "namespace-of-another-revision",
];

/// Every golden pod that the server could take, under the name of its file.
fn pods() -> Result<Vec<(String, Value)>> {
    let mut pods = Vec::new();
    for entry in std::fs::read_dir(golden())? {
        let file = entry?.file_name().into_string().unwrap_or_default();
        let Some(name) = file.strip_suffix(".yaml") else {
            continue;
        };
        if name != "world" && !name.ends_with(".full") && !NO_PODS.contains(&name) {
            let lower = name.to_lowercase();
            let pod = named(golden_pod(name)?, &lower);
            pods.push((lower, pod));
        }
    }
    pods.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(pods)
}

/// Without any webhook: what the injector makes of a golden pod is taken, and the pod as it was is refused by name; what
/// the injector leaves alone is left alone.
pub fn what_the_injector_makes_passes_and_the_pod_as_it_was_is_refused(guarded: &Guarded) -> Result<()> {
    let pods = pods()?;
    let mut made = Vec::new();
    for (name, pod) in &pods {
        if let Verdict::Injected { injected, .. } = guarded.verdict(pod)? {
            made.push(named(injected.pod, name));
        }
    }
    let answers = guarded.all_tried(&made)?;
    for (name, answer) in &answers {
        ensure!(answer.is_ok(), "{name}, injected: {answer:?}");
    }
    ensure!(answers.len() >= 45, "{} pods", answers.len());

    let before: Vec<Value> = pods.iter().map(|(_, pod)| pod.clone()).collect();
    let answers = guarded.all_tried(&before)?;
    let mut counted = [0; 3];
    for (name, pod) in &pods {
        let answer = answers.get(name).context("no answer")?;
        let audited = pod["metadata"]["namespace"] == "audited";
        let complaint = answer.as_ref().err().map(String::as_str).unwrap_or_default();
        match guarded.verdict(pod)? {
            // Where a namespace only listens, they warn.
            _ if audited => ensure!(answer.is_ok(), "{name}: {complaint}"),
            Verdict::Untouched { .. } => {
                counted[0] += 1;
                ensure!(answer.is_ok(), "{name} is not ours: {complaint}");
            }
            // One has a container that only looks like a sidecar, and is refused by another rule.
            Verdict::Injected { .. } => {
                counted[1] += 1;
                ensure!(says(complaint, ""), "{name}: {complaint}");
            }
            Verdict::Refused(_) => {
                counted[2] += 1;
                ensure!(says(complaint, "sidecar: "), "{name}: {complaint}");
            }
        }
    }
    ensure!(counted[0] >= 4 && counted[1] >= 45 && counted[2] >= 20, "{counted:?}");
    Ok(())
}

/// A pod with a sidecar that nobody asked the injector about: the golden sidecar in a shape it refuses.
fn grafted(guarded: &Guarded, pod: &Value) -> Result<Value> {
    let mut pod = pod.clone();
    let golden = match pod["metadata"]["namespace"] == "fenced" {
        true => "enforced",
        false => "plain",
    };
    let good = guarded.injected(&golden_pod(golden)?)?;
    let spec = pod["spec"].as_object_mut().context("no spec")?;
    for list in ["initContainers", "volumes"] {
        let theirs = spec.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut all = good["spec"][list].as_array().cloned().unwrap_or_default();
        let taken: Vec<Value> = all.iter().map(|item| item["name"].clone()).collect();
        all.extend(theirs.into_iter().filter(|item| !taken.contains(&item["name"])));
        spec.insert(list.to_owned(), all.into());
    }
    spec.insert("automountServiceAccountToken".to_owned(), json!(false));
    Ok(pod)
}

/// Decision 7: policies and injector have one corpus. Shapes the injector refuses are refused where no injector was
/// asked, by a rule of the same name.
pub fn a_shape_the_injector_refuses_is_refused_by_the_same_rule(guarded: &Guarded) -> Result<()> {
    // The injector's alone: what it says of labels, annotations, ports and sysctls has nothing to do with the sidecar's
    // guarantee, and Windows pods are spared or have no sidecar. Which names are a Target's is nothing that policies know.
    let others = ["opt-out", "windows", "port", "sysctl", "hostname"];
    let mut tried = Vec::new();
    let mut rules = std::collections::BTreeMap::new();
    for (name, pod) in pods()? {
        if let Verdict::Refused(refusal) = guarded.verdict(&pod)? {
            // To the server two containers of one name are no pod; `created` has a name that only begins like ours.
            let twin = name == "refused-reserved-container";
            if refusal.class.code() == 403 && !others.contains(&refusal.rule) && !twin {
                rules.insert(name, refusal.rule);
                tried.push(grafted(guarded, &pod)?);
            }
        }
    }
    let answers = guarded.all_tried(&tried)?;
    for (name, rule) in &rules {
        let said = answers[name].as_ref().err().cloned().unwrap_or_default();
        ensure!(says(&said, &format!("{rule}: ")), "{name}, which breaks {rule}: {said}");
    }
    let kinds: BTreeSet<&&str> = rules.values().collect();
    ensure!(kinds.len() >= 12, "only {kinds:?}");
    Ok(())
}

/// Pods that differ from a good one by one word of a list, and the rule that must refuse each.
struct Words {
    good: Value,
    pods: Vec<(Value, Option<&'static str>)>,
}

impl Words {
    fn add(&mut self, rule: Option<&'static str>, change: impl FnOnce(&mut Value)) {
        let mut pod = named(self.good.clone(), &format!("word-{}", self.pods.len()));
        change(&mut pod["spec"]);
        self.pods.push((pod, rule));
    }

    fn of_shapes(&mut self) {
        for capability in REACHING {
            let spelt = [
                capability.to_owned(),
                format!("CAP_{capability}"),
                capability.to_lowercase(),
            ];
            for word in spelt {
                let added = json!({"capabilities": {"add": [word], "drop": ["NET_RAW"]}});
                self.add(Some("capability: "), |spec| {
                    spec["containers"][0]["securityContext"] = added
                });
            }
        }
        for folder in FOLDERS {
            let volume = |path: String| json!({"name": "node", "hostPath": {"path": path}});
            for path in [folder.to_owned(), format!("{folder}/x"), format!("/./{folder}/./")] {
                self.add(Some("hostPath: "), |spec| push(&mut spec["volumes"], volume(path)));
            }
            self.add(None, |spec| push(&mut spec["volumes"], volume(format!("{folder}x"))));
        }
        for (name, images) in PROXIES {
            for image in images {
                let right = json!({
                    "name": name, "image": format!("{image}x:1"),
                    "securityContext": {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
                });
                let mut wrong = right.clone();
                wrong["image"] = json!(format!("registry.example/{image}x:1"));
                self.add(None, |spec| {
                    spec["initContainers"] = json!([right, spec["initContainers"][0]])
                });
                self.add(Some("capability: "), |spec| push(&mut spec["initContainers"], wrong));
            }
        }
    }

    fn of_clouds(&mut self) {
        let rule = Some("cloudIdentity: ");
        let variables = CLOUD_VARIABLES.into_iter();
        for variable in variables.chain(["AWS_CONTAINER_CREDENTIALS_FULL_URI"]) {
            let entry = json!({"name": variable, "value": "x"});
            self.add(rule, |spec| push(&mut spec["containers"][0]["env"], entry));
        }
        let google = ["pool.svc.id.goog", "//iam.googleapis.com/projects/1/locations/x"];
        let by_audience = CLOUD_AUDIENCES
            .into_iter()
            .chain(google)
            .map(|audience| ("id", audience));
        for (name, audience) in CLOUD_VOLUMES.into_iter().map(|name| (name, "other")).chain(by_audience) {
            let token = json!({"serviceAccountToken": {"audience": audience, "path": "t"}});
            let volume = json!({"name": name, "projected": {"sources": [token]}});
            self.add(rule, |spec| {
                push(&mut spec["volumes"], volume);
                spec["containers"][0]["volumeMounts"] = json!([{"name": name, "mountPath": "/id"}]);
            });
        }
    }
}

/// Capabilities, folders of the node, proxies and cloud identities stand in the policies' text and in the injector's code:
/// each of the code's is known to the policies.
pub fn every_word_of_the_injectors_lists_is_known(guarded: &Guarded) -> Result<()> {
    let mut words = Words {
        good: guarded.injected(&golden_pod("plain")?)?,
        pods: Vec::new(),
    };
    words.of_shapes();
    words.of_clouds();
    let tried: Vec<Value> = words.pods.iter().map(|(pod, _)| pod.clone()).collect();
    let answers = guarded.all_tried(&tried)?;
    for (pod, rule) in &words.pods {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let said = answers[name].as_ref().err().cloned().unwrap_or_default();
        let right = rule.map_or(said.is_empty(), |rule| says(&said, rule));
        ensure!(right, "{pod} by {rule:?}: {said}");
    }
    Ok(())
}

/// Appends to a list, which need not be there.
pub fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(all) => all.push(item),
        None => *list = json!([item]),
    }
}
