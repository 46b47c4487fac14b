//! `sidegate inject` as people run it, on the injector's golden configuration.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use sidegate_injector::admit::{admit, Verdict, World};
use sidegate_injector::install::Install;
use sidegate_policies::yaml::{self, Source};

const INSTALL: &str = "brokerUrl: https://broker.example:8443
audience: https://broker.example:8444
nameServers: [10.96.0.10]
brokerCaPem: |
  -----BEGIN CERTIFICATE-----
  MIIB
  -----END CERTIFICATE-----
";

fn world() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../injector/tests/golden/world.yaml")
}

/// Runs the verb with this on standard input.
fn inject(input: &str, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let install = folder.path().join("install.yaml");
    std::fs::write(&install, INSTALL).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sidegate"))
        .args(["inject", "-f", "-", "--with", world().to_str().unwrap()])
        .args(["--install", install.to_str().unwrap()])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Runs the verb on files with these texts.
fn inject_files(texts: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let install = folder.path().join("install.yaml");
    std::fs::write(&install, INSTALL).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidegate"));
    command.args(["inject", "--with", world().to_str().unwrap()]);
    command.args(["--install", install.to_str().unwrap()]);
    for (number, text) in texts.iter().enumerate() {
        let file = folder.path().join(format!("{number}.yaml"));
        std::fs::write(&file, text).unwrap();
        command.args(["-f", file.to_str().unwrap()]);
    }
    command.output().unwrap()
}

#[test]
fn files_without_pods_stay_documents_of_their_own() {
    let map = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}");
    let (one, other) = (map("one"), map("other"));
    let told = inject_files(&[&one, &other]);
    assert_eq!(text(&told), format!("{one}\n---\n{other}"));
    assert_eq!(text(&inject_files(&[&one])), one, "as it came");
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn workload(version: &str, kind: &str, spec: &str) -> String {
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: agent, namespace: agents}}\nspec: {spec}\n")
}

const TEMPLATE: &str = "{metadata: {labels: {agent: support}}, spec: {containers: [{name: agent, image: a}]}}";

#[test]
fn every_kind_that_makes_pods_gets_the_sidecar() {
    let template = format!("{{template: {TEMPLATE}}}");
    for (version, kind, spec, place) in [
        (
            "v1",
            "Pod",
            "{containers: [{name: agent, image: a}]}".to_owned(),
            "/spec",
        ),
        ("apps/v1", "Deployment", template.clone(), "/spec/template/spec"),
        ("apps/v1", "StatefulSet", template.clone(), "/spec/template/spec"),
        ("apps/v1", "DaemonSet", template.clone(), "/spec/template/spec"),
        ("apps/v1", "ReplicaSet", template.clone(), "/spec/template/spec"),
        ("batch/v1", "Job", template.clone(), "/spec/template/spec"),
        (
            "batch/v1",
            "CronJob",
            format!("{{schedule: '* * * * *', jobTemplate: {{spec: {template}}}}}"),
            "/spec/jobTemplate/spec/template/spec",
        ),
    ] {
        let output = inject(&workload(version, kind, &spec), &["-o", "json"]);
        assert_eq!(output.status.code(), Some(0), "{kind}: {}", errors(&output));
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let init = printed.pointer(&format!("{place}/initContainers/0/name"));
        assert_eq!(init, Some(&"sidegate".into()), "{kind}: {printed}");
        // Injected again, as from an export, it stays as it is.
        let again = inject(&text(&output), &["-o", "json"]);
        assert_eq!(text(&again), text(&output), "{kind}");
    }
}

#[test]
fn documents_and_lists_keep_what_holds_no_pod() {
    let pod = workload("v1", "Pod", "{containers: [{name: agent, image: a}]}");
    let service = workload("v1", "Service", "{ports: [{port: 1}]}");
    let output = inject(&format!("{service}---\n{pod}"), &[]);
    let printed = text(&output);
    assert!(printed.starts_with("apiVersion: v1\nkind: Service"), "{printed}");
    assert!(
        printed.contains("---\n") && printed.contains("/sidegate-sidecar"),
        "{printed}"
    );
    let deployment = workload("apps/v1", "Deployment", &format!("{{template: {TEMPLATE}}}"));
    for (version, kind, item, place) in [
        ("v1", "List", &pod, "/items/0/spec"),
        ("apps/v1", "DeploymentList", &deployment, "/items/0/spec/template/spec"),
    ] {
        let item = item.replace('\n', "\n  ");
        let list = format!("apiVersion: {version}\nkind: {kind}\nitems:\n- {item}");
        let output = inject(&list, &["-o", "json"]);
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let first = printed.pointer(&format!("{place}/initContainers/0/name"));
        assert_eq!(first, Some(&"sidegate".into()), "{kind}");
    }
}

#[test]
fn what_stays_as_it_is_is_printed_as_it_came() {
    let text_of = "# a comment\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: unlabelled}\nspec: {containers: [{name: a}]}\n";
    let output = inject(text_of, &[]);
    assert_eq!(text(&output), text_of);
    assert!(
        errors(&output).contains("Pod unlabelled/a: left as it is (not-enabled)"),
        "{}",
        errors(&output)
    );
    // As the webhook, which is not even asked there.
    let output = inject(&text_of.replace("unlabelled", "kube-system"), &[]);
    assert!(
        errors(&output).contains("Pod kube-system/a: left as it is (system)"),
        "{}",
        errors(&output)
    );
}

#[test]
fn a_refused_pod_prints_nothing_and_says_what_to_change() {
    let good = workload("v1", "Pod", "{containers: [{name: agent, image: a}]}");
    let bad = workload(
        "v1",
        "Pod",
        "{hostNetwork: true, containers: [{name: agent, image: a}]}",
    );
    let output = inject(&format!("{good}---\n{bad}"), &[]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text(&output), "");
    let said = errors(&output);
    assert!(said.contains("Pod agents/agent: sidegate: hostNetwork: "), "{said}");
    assert!(said.contains("remove hostNetwork"), "{said}");
}

#[test]
fn wrong_input_is_named_by_its_place() {
    for (input, words) in [
        ("", "the manifests are empty"),
        ("a: [", "-:1:"),
        ("kind: Pod\n", "no apiVersion"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {}\n",
            "spec.template is missing",
        ),
        ("apiVersion: v1\nkind: Pod\nspec: {}\nspec: {}\n", "spec"),
    ] {
        let output = inject(input, &[]);
        assert_eq!(output.status.code(), Some(2), "{input}: {}", errors(&output));
        assert!(errors(&output).contains(words), "{input}: {}", errors(&output));
    }
    let output = inject(&workload("v1", "Pod", "{}"), &["--with", "/nowhere"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_namespace_that_is_not_given_is_taken_as_labelled_and_said() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: a}]}\n";
    let output = inject(pod, &["-n", "elsewhere"]);
    assert!(text(&output).contains("name: sidegate"), "{}", errors(&output));
    assert!(
        errors(&output).contains("namespace elsewhere is not among --with"),
        "{}",
        errors(&output)
    );
}

/// What the webhook decides is one function; on every golden pod the verb says the same, in what it prints and in how it ends.
#[test]
fn every_golden_pod_is_answered_as_by_the_webhook() {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let loaded = yaml::load(&[Source {
        name: "world.yaml".to_owned(),
        text: read(&world()),
    }]);
    assert_eq!(loaded.problems, []);
    let install = Install::read(INSTALL).unwrap();
    let known = World {
        install: &install,
        objects: &loaded.objects,
        generations: &BTreeMap::new(),
        unusable: &BTreeMap::new(),
    };
    let mut seen = BTreeMap::new();
    for entry in std::fs::read_dir(world().parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".yaml") || name == "world.yaml" || name.ends_with(".full.yaml") {
            continue;
        }
        let mut pod: Value = yaml::read(&read(&path)).unwrap();
        let namespace = pod["metadata"]["namespace"].as_str().unwrap().to_owned();
        // What is reviewed has neither; a manifest has both.
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        let verdict = admit(&known, loaded.objects.namespace(&namespace).unwrap(), &pod);
        let output = inject(&pod.to_string(), &[]);
        let (code, said) = (output.status.code(), errors(&output));
        let word = match verdict {
            Verdict::Refused(refusal) => {
                assert!(code == Some(3) && text(&output).is_empty(), "{name}: {said}");
                assert!(said.contains(&refusal.to_string()), "{name}: {refusal} is not: {said}");
                "refused"
            }
            Verdict::Injected { injected, .. } => {
                assert_eq!(code, Some(0), "{name}: {said}");
                let made: Value = yaml::read(&text(&output)).unwrap();
                assert_eq!(made, injected.pod, "{name}");
                for warning in &injected.warnings {
                    assert!(said.contains(warning), "{name}: {warning} is not: {said}");
                }
                "injected"
            }
            Verdict::Untouched { .. } => {
                assert_eq!(code, Some(0), "{name}: {said}");
                assert_eq!(yaml::read(&text(&output)), Ok(pod), "{name}");
                "untouched"
            }
        };
        *seen.entry(word).or_insert(0) += 1;
    }
    assert!(seen.len() == 3 && seen.values().sum::<i32>() >= 60, "{seen:?}");
}
