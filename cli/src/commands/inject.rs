//! `sidegate inject`: manifests with their sidecars, offline, by the very code of the webhook.
//!
//! Owns where pods are within the kinds that make them. Refuses what the webhook would refuse, and then prints nothing,
//! so that no half of a file is applied. Invariant: where nothing is injected, all is printed as it came; else what holds
//! no pod keeps its content, and not its comments.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{json, Value};
use sidegate_injector::admit::{admit, enabled, Verdict, World};
use sidegate_injector::install::Install;
use sidegate_policies::objects::{Objects, INJECT};
use sidegate_policies::yaml;

use super::{source, Usage};
use crate::out::{visible, Out, Tone};

/// Exit code for a pod that the webhook would refuse.
const REFUSED: u8 = 3;

/// Arguments of `inject`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sidegate inject -f agent.yaml --with sidegate/ --install install.yaml | kubectl apply -f -
  kubectl get deployment agent -o yaml | sidegate inject -f - --with sidegate/ --install install.yaml
  sidegate inject -f agent.yaml --with sidegate/ --install install.yaml | diff agent.yaml -

--with holds the InjectionProfile, and the Namespaces, Targets and AccessPolicies if there are some. A namespace that
is not among them is taken as labelled sidegate.dev/inject=enabled.

--install says where the broker is:
  brokerUrl: https://sidegate-broker.sidegate-system.svc:8443
  audience: https://sidegate-broker.sidegate-system.svc:8444   # its issuer URL
  nameServers: [10.96.0.10]
  clusterDomain: cluster.local
  brokerCaPem: |
    -----BEGIN CERTIFICATE-----

Exit codes:
  0  printed
  2  wrong usage, manifest or configuration
  3  a pod would be refused; nothing is printed")]
pub struct InjectArgs {
    /// Manifests: Pod, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob, ReplicationController, PodTemplate,
    /// or a List of them; `-` reads standard input.
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Folders or files with the InjectionProfile, Namespaces, Targets and policies.
    #[arg(long, value_name = "PATH", required = true)]
    with: Vec<PathBuf>,
    /// Where the broker is, as YAML or JSON.
    #[arg(long, value_name = "FILE")]
    install: PathBuf,
    /// The namespace of manifests that name none.
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    namespace: String,
}

/// What injecting told.
#[derive(Default)]
struct Told {
    injected: usize,
    refused: Vec<String>,
    warnings: Vec<String>,
    assumed: Vec<String>,
}

struct Injector<'a> {
    install: &'a Install,
    objects: &'a Objects,
    namespace: &'a str,
    told: Told,
}

/// Prints manifests with their sidecars.
pub fn run(args: &InjectArgs, out: &Out) -> Result<ExitCode> {
    let install = Install::from_file(&args.install).map_err(Usage)?;
    let configuration = source::read_apart(&args.with)?;
    if !configuration.problems.is_empty() {
        source::print_problems(&configuration.problems, Tone::Bad, out);
        let count = configuration.problems.len();
        return Err(Usage(format!("{count} problem(s) in --with")).into());
    }
    let (texts, mut documents) = manifests(&args.files)?;
    let mut injector = Injector {
        install: &install,
        objects: &configuration.objects,
        namespace: &args.namespace,
        told: Told::default(),
    };
    for document in &mut documents {
        injector.document(document)?;
    }
    let told = injector.told;
    for line in told.assumed.iter().chain(&told.warnings) {
        out.remark(out.tone(Tone::Warn, visible(line)));
    }
    if !told.refused.is_empty() {
        for line in &told.refused {
            out.remark(out.tone(Tone::Bad, visible(line)));
        }
        return Ok(ExitCode::from(REFUSED));
    }
    if out.json() {
        out.document(&one(documents))?;
    } else if told.injected == 0 {
        out.raw(joined(&texts).as_bytes())?;
    } else {
        let printed: Result<Vec<String>, _> = documents.iter().map(yaml::print).collect();
        out.raw(printed.context("printing")?.join("---\n").as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The texts as they came, and every document in them.
fn manifests(files: &[PathBuf]) -> Result<(Vec<String>, Vec<Value>)> {
    let mut texts = Vec::new();
    let mut documents = Vec::new();
    for file in files {
        let name = file.display();
        let mut text = String::new();
        if file.as_os_str() == "-" {
            let limit = u64::try_from(yaml::MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
            let mut input = std::io::stdin().lock().take(limit);
            input.read_to_string(&mut text).context("reading standard input")?;
        } else {
            text = std::fs::read_to_string(file).map_err(|error| Usage(format!("{name}: {error}")))?;
        }
        let found = yaml::values(&text).map_err(|mistakes| {
            let lines = mistakes.iter().map(|mistake| mistake.in_file(&name));
            Usage(lines.collect::<Vec<String>>().join("\n"))
        })?;
        documents.extend(found);
        texts.push(text);
    }
    if documents.is_empty() {
        return Err(Usage("the manifests are empty".to_owned()).into());
    }
    Ok((texts, documents))
}

/// Texts as they came, each in documents of its own (test `files_without_pods_stay_documents_of_their_own`).
fn joined(texts: &[String]) -> String {
    let mut all = String::new();
    for text in texts {
        if !all.is_empty() {
            if !all.ends_with('\n') {
                all.push('\n');
            }
            all.push_str("---\n");
        }
        all.push_str(text);
    }
    all
}

/// Several documents as one, as kubectl prints them.
fn one(mut documents: Vec<Value>) -> Value {
    match documents.len() {
        1 => documents.pop().unwrap_or_default(),
        _ => json!({"apiVersion": "v1", "kind": "List", "items": documents}),
    }
}

impl Injector<'_> {
    fn document(&mut self, document: &mut Value) -> Result<()> {
        let text = |field: &str| {
            document
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (version, kind) = (text("apiVersion"), text("kind"));
        if version.is_empty() || kind.is_empty() {
            return Err(Usage("a manifest has no apiVersion or no kind".to_owned()).into());
        }
        // Of whatever group: `kubectl get -o yaml` makes a List, a client library a DeploymentList.
        let items = document.get_mut("items").and_then(Value::as_array_mut);
        if let Some(items) = items.filter(|_| kind.ends_with("List")) {
            return items.iter_mut().try_for_each(|item| self.document(item));
        }
        let Some(place) = place(&version, &kind) else {
            return Ok(());
        };
        let of = |field: &str| {
            let found = document.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
            found.map(str::to_owned)
        };
        let namespace = of("namespace").unwrap_or_else(|| self.namespace.to_owned());
        let name = of("name").or_else(|| of("generateName")).unwrap_or_default();
        let label = format!("{kind} {namespace}/{name}");
        let Some(pod) = document.pointer_mut(place) else {
            let field = place.trim_start_matches('/').replace('/', ".");
            return Err(Usage(format!("{label}: {field} is missing")).into());
        };
        self.pod(&label, &namespace, pod);
        Ok(())
    }

    fn pod(&mut self, label: &str, name: &str, pod: &mut Value) {
        let namespace = self.objects.namespace(name).cloned().unwrap_or_else(|| {
            let line = format!("namespace {name} is not among --with: taken as labelled {INJECT}=enabled");
            if !self.told.assumed.contains(&line) {
                self.told.assumed.push(line);
            }
            enabled(name)
        });
        let world = World {
            install: self.install,
            objects: self.objects,
            generations: &BTreeMap::new(),
            unusable: &BTreeMap::new(),
        };
        let warnings = match admit(&world, &namespace, pod) {
            Verdict::Refused(refusal) => {
                self.told.refused.push(format!("{label}: {refusal}"));
                return;
            }
            Verdict::Untouched { why, mut warnings } => {
                warnings.push(format!("left as it is ({why})"));
                warnings
            }
            Verdict::Injected { injected, .. } => {
                self.told.injected = self.told.injected.saturating_add(1);
                *pod = injected.pod;
                injected.warnings
            }
        };
        let lines = warnings.into_iter().map(|warning| format!("{label}: {warning}"));
        self.told.warnings.extend(lines);
    }
}

/// Where a kind holds its pod, as a JSON pointer.
fn place(version: &str, kind: &str) -> Option<&'static str> {
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    match (group, kind) {
        ("", "Pod") => Some(""),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") => Some("/spec/template"),
        ("batch", "Job") | ("", "ReplicationController") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        ("", "PodTemplate") => Some("/template"),
        _ => None,
    }
}
