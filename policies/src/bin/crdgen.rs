//! Writes the CustomResourceDefinitions of every kind to `policies/crds/`, from the types, and the same into the chart
//! `sidegate-crds`, where they stay when it is uninstalled.
//!
//! Owns what the types cannot say: printer columns, status of the kinds whose status the broker writes, and bounds on
//! every list, map and text. `--check` writes nothing and fails where a file differs. Invariant: the files are exactly
//! what this program prints, so nobody edits them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kube::CustomResourceExt;
use serde_json::{json, Map, Value};
use sidegate_policies::api::access_policy::AccessPolicyResource;
use sidegate_policies::api::access_request::AccessRequestResource;
use sidegate_policies::api::cluster_access_policy::ClusterAccessPolicyResource;
use sidegate_policies::api::injection_profile::InjectionProfileResource;
use sidegate_policies::api::lockdown::LockdownResource;
use sidegate_policies::api::summary;
use sidegate_policies::api::target::TargetResource;
use sidegate_policies::api::token_issuer::TokenIssuerResource;
use sidegate_policies::presets;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
enum CrdError {
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Print(#[from] sidegate_policies::yaml::PrintError),
    #[error("{0}: the generated definition has no schema")]
    Shape(String),
    #[error("differ from the types (`make crds` writes them anew): {0}")]
    Differ(String),
}

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    match run(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere else to say it.
            let _ = writeln!(std::io::stderr().lock(), "crdgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(check: bool) -> Result<(), CrdError> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (folder, chart) = (home.join("crds"), home.join("../charts/sidegate-crds/templates"));
    let mut differing = Vec::new();
    for (plural, definition) in definitions()? {
        let file = format!("{plural}.yaml");
        for (path, text) in [
            (folder.join(&file), printed(&definition)?),
            (chart.join(&file), printed(&staying(definition))?),
        ] {
            if !check {
                write(&path, &text)?;
            } else if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
                differing.push(path.display().to_string());
            }
        }
    }
    if differing.is_empty() {
        Ok(())
    } else {
        Err(CrdError::Differ(differing.join(", ")))
    }
}

fn write(path: &PathBuf, text: &str) -> Result<(), CrdError> {
    let folder = path.parent().unwrap_or(path);
    let wrote = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(path, text));
    wrote.map_err(|source| CrdError::File {
        path: path.display().to_string(),
        source,
    })
}

/// A printer column: name, type, JSONPath.
type Column = (&'static str, &'static str, &'static str);

const ACCEPTED: Column = (
    "Accepted",
    "string",
    ".status.conditions[?(@.type==\"Accepted\")].status",
);
/// Sidecars that have it, of those concerned.
const PROGRAMMED: Column = ("Programmed", "string", ".status.summary.programmed");
const TARGETS: Column = ("Targets", "string", ".status.summary.targets");
const SUBJECTS: Column = ("Subjects", "string", ".status.summary.subjects");
const RULES: Column = ("Rules", "string", ".status.summary.rules");
const AGE: Column = ("Age", "date", ".metadata.creationTimestamp");

/// Columns that only `-o wide` shows, by kind.
const WIDE: [(&str, &str); 2] = [("injectionprofiles", "Digest"), ("targets", "Programmed")];

const LOCKDOWN: [Column; 9] = [
    ("Frozen", "string", ".status.summary.frozen"),
    ("Action", "string", ".spec.action"),
    ("Until", "string", ".spec.until"),
    ("Matched", "integer", ".status.matched"),
    ("Acked", "integer", ".status.acked"),
    ("Closed", "integer", ".status.sessionsClosed"),
    ("P99-Ms", "integer", ".status.p99Millis"),
    ("Reason", "string", ".spec.reason"),
    AGE,
];
/// A kind by its plural, as its types define it, and its columns.
type Defined = (&'static str, Value, Vec<Column>);

fn definitions() -> Result<Vec<(&'static str, Value)>, CrdError> {
    let kinds = everyday()?.into_iter().chain(administrators()?);
    let mut finished = Vec::new();
    for (plural, mut definition, columns) in kinds {
        finish(plural, &mut definition, &columns)?;
        finished.push((plural, definition));
    }
    Ok(finished)
}

/// Kinds that teams write, and those written while agents work.
fn everyday() -> Result<[Defined; 4], CrdError> {
    Ok([
        (
            "targets",
            serde_json::to_value(TargetResource::crd())?,
            vec![
                ("Protocol", "string", ".spec.protocol"),
                ("Address", "string", ".status.summary.address"),
                ("Credential", "string", ".status.summary.credential"),
                ("Local", "integer", ".spec.listen.port"),
                ACCEPTED,
                PROGRAMMED,
                AGE,
            ],
        ),
        (
            "accesspolicies",
            serde_json::to_value(AccessPolicyResource::crd())?,
            vec![
                ("Mode", "string", ".spec.mode"),
                TARGETS,
                SUBJECTS,
                RULES,
                ACCEPTED,
                PROGRAMMED,
                AGE,
            ],
        ),
        (
            "clusteraccesspolicies",
            serde_json::to_value(ClusterAccessPolicyResource::crd())?,
            vec![
                ("Mode", "string", ".spec.mode"),
                TARGETS,
                SUBJECTS,
                RULES,
                ACCEPTED,
                PROGRAMMED,
                AGE,
            ],
        ),
        (
            "accessrequests",
            serde_json::to_value(AccessRequestResource::crd())?,
            vec![
                ("From", "string", ".spec.subject.serviceAccount.namespace"),
                ("Agent", "string", ".spec.subject.serviceAccount.name"),
                ("Target", "string", ".spec.target.name"),
                ("State", "string", ".status.state"),
                ("Decided-By", "string", ".status.decisions[*].by"),
                AGE,
                ("Operation", "string", ".spec.operation.summary"),
            ],
        ),
    ])
}

/// Kinds that only administrators write.
fn administrators() -> Result<[Defined; 3], CrdError> {
    Ok([
        (
            "lockdowns",
            serde_json::to_value(LockdownResource::crd())?,
            LOCKDOWN.to_vec(),
        ),
        (
            "tokenissuers",
            serde_json::to_value(TokenIssuerResource::crd())?,
            vec![
                ("Preset", "string", ".spec.preset"),
                ("Issuer", "string", ".spec.issuer"),
                ACCEPTED,
                AGE,
            ],
        ),
        (
            "injectionprofiles",
            serde_json::to_value(InjectionProfileResource::crd())?,
            vec![
                ("Tier", "string", ".spec.tier"),
                (
                    "Egress-Enforced",
                    "string",
                    ".status.conditions[?(@.type==\"EgressEnforced\")].status",
                ),
                ("Unprotected", "integer", ".status.unprotected.pods"),
                ("Image", "string", ".spec.image.repository"),
                ("Digest", "string", ".spec.image.digest"),
                ("Staleness", "string", ".spec.staleness"),
                AGE,
            ],
        ),
    ])
}

fn printed(definition: &Value) -> Result<String, CrdError> {
    let head = "# Generated from policies/src/api by crdgen. Do not edit.\n";
    let body = sidegate_policies::yaml::print(&sorted(definition))?;
    Ok(format!("{head}{body}"))
}

/// With the word to helm that uninstalling the chart removes no kind, and with it no policy.
fn staying(mut definition: Value) -> Value {
    if let Some(metadata) = definition.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".to_owned(), json!({"helm.sh/resource-policy": "keep"}));
    }
    definition
}

/// Adds what the types cannot say.
fn finish(plural: &str, definition: &mut Value, columns: &[Column]) -> Result<(), CrdError> {
    let shape = || CrdError::Shape(plural.to_owned());
    let version = definition.pointer_mut("/spec/versions/0").ok_or_else(shape)?;
    let columns: Vec<Value> = columns
        .iter()
        .map(|(name, kind, path)| {
            // 1: `-o wide` only. 0, the default, is not written.
            match WIDE.contains(&(plural, *name)) {
                true => json!({"name": name, "type": kind, "jsonPath": path, "priority": 1}),
                false => json!({"name": name, "type": kind, "jsonPath": path}),
            }
        })
        .collect();
    let schema = version
        .pointer_mut("/schema/openAPIV3Schema/properties")
        .and_then(Value::as_object_mut)
        .ok_or_else(shape)?;
    schema.entry("status").or_insert_with(conditions);
    if plural == "accessrequests" {
        only_forward(schema);
    }
    if plural == "targets" {
        names(schema);
    }
    if plural == "injectionprofiles" {
        whole(schema);
        let status = schema.get_mut("status").and_then(|status| status.get_mut("properties"));
        if let Some(properties) = status.and_then(Value::as_object_mut) {
            properties.extend(looked());
        }
    }
    if plural == "lockdowns" {
        let status = schema.get_mut("status").and_then(|status| status.get_mut("properties"));
        if let Some(properties) = status.and_then(Value::as_object_mut) {
            properties.extend(outcome());
        }
    }
    if let Some(words) = summarised(plural) {
        let status = schema.get_mut("status").and_then(|status| status.get_mut("properties"));
        if let Some(properties) = status.and_then(Value::as_object_mut) {
            properties.insert("summary".to_owned(), words);
        }
    }
    // Presets are files: the types know nothing of their names.
    let named = schema
        .get_mut("spec")
        .and_then(|spec| spec.pointer_mut("/properties/preset"));
    if let Some(preset) = named.and_then(Value::as_object_mut) {
        let names = presets::all().iter().map(|preset| preset.name.as_str());
        preset.insert("enum".to_owned(), names.collect());
    }
    for part in ["spec", "status"] {
        if let Some(part) = schema.get_mut(part) {
            bound(part, "");
        }
    }
    // `kubectl explain` begins with what the kind is for.
    let about = version
        .pointer("/schema/openAPIV3Schema/properties/spec/description")
        .cloned();
    if let (Some(about), Some(root)) = (about, version.pointer_mut("/schema/openAPIV3Schema/description")) {
        *root = about;
    }
    let version = version.as_object_mut().ok_or_else(shape)?;
    version.insert("additionalPrinterColumns".to_owned(), Value::Array(columns));
    version.insert("subresources".to_owned(), json!({"status": {}}));
    Ok(())
}

/// The status the broker writes: conditions, and the generation it saw.
fn conditions() -> Value {
    json!({
        "type": "object",
        "nullable": true,
        "description": "What was observed. Written by the broker.",
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64", "description": "The generation this is about."},
            "conditions": {
                "type": "array",
                "description": "Accepted, ResolvedRefs, Programmed, Insecure where a login may be weak; of profiles EgressEnforced.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "reason", "message", "lastTransitionTime"],
                    "properties": {
                        "type": {"type": "string", "description": "The condition."},
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                        "reason": {"type": "string", "description": "Why, in one word."},
                        "message": {"type": "string", "description": "Why, for people."},
                        "lastTransitionTime": {"type": "string", "format": "date-time", "description": "Since when."},
                        "observedGeneration": {"type": "integer", "format": "int64", "description": "The generation this is about."}
                    }
                }
            }
        }
    })
}

/// Rules that hold for whoever writes an AccessRequest, the broker too: nothing of the request changes, and its state
/// moves one way, so that what was used or is over is never used again.
fn only_forward(schema: &mut Map<String, Value>) {
    let rule = |rule: &str, message: &str| json!({"rule": rule, "message": message});
    if let Some(fields) = schema
        .get_mut("spec")
        .and_then(|spec| spec.get_mut("properties"))
        .and_then(Value::as_object_mut)
    {
        for (name, field) in fields
            .iter_mut()
            .filter_map(|(name, field)| Some((name, field.as_object_mut()?)))
        {
            let message = format!("{name} of an AccessRequest never changes; deny it, and let the agent ask anew");
            field.insert(
                "x-kubernetes-validations".to_owned(),
                json!([rule("self == oldSelf", &message)]),
            );
        }
    }
    if let Some(spec) = schema.get_mut("spec").and_then(Value::as_object_mut) {
        let kept = rule(
            "has(self.exclude) == has(oldSelf.exclude)",
            "exclude of an AccessRequest never changes",
        );
        spec.insert("x-kubernetes-validations".to_owned(), json!([kept]));
    }
    let Some(status) = schema.get_mut("status").and_then(Value::as_object_mut) else {
        return;
    };
    // Whoever patches a request adds to a list that is there.
    status.insert("default".to_owned(), json!({"state": "Pending", "decisions": []}));
    let rules = [
        rule(
            "self.state == oldSelf.state || !(oldSelf.state in ['Denied', 'Done', 'Failed', 'Unknown', 'Expired', 'Cancelled', 'Void'])",
            "it is over, and stays so",
        ),
        rule(
            "oldSelf.state != 'Claimed' || self.state in ['Claimed', 'Done', 'Failed', 'Unknown']",
            "its grant is used, and stays so",
        ),
        rule(
            "(has(self.claim) && self.claim == oldSelf.claim) || !has(oldSelf.claim)",
            "its grant is used, and stays so",
        ),
        rule(
            "self.decisions.all(one, self.decisions.exists_one(other, other.by == one.by))",
            "one word a person",
        ),
    ];
    status.insert("x-kubernetes-validations".to_owned(), rules.into_iter().collect());
}

/// What may be a Target's host name, as `policies/src/check/hostnames.rs` says it too.
fn names(schema: &mut Map<String, Value>) {
    let rule = |rule: &str, message: &str| json!({"rule": rule, "message": message});
    let spec = schema.get_mut("spec");
    let found = spec.and_then(|spec| spec.pointer_mut("/properties/listen/properties/hostnames"));
    if let Some(field) = found.and_then(Value::as_object_mut) {
        let rules = [
            rule(
                "self.all(name, name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$'))",
                "a host name has lower-case letters, digits, dashes and dots, and no dot at its end",
            ),
            rule(
                "!self.exists(name, name.matches('(^|[.])([0-9]+|0x[0-9a-f]*)$'))",
                "an address is no host name, and no hosts file leads it elsewhere; write a name",
            ),
            rule(
                "!self.exists(name, name.matches('(^|[.])localhost$') || name in ['localhost.localdomain', 'ip6-localhost', 'ip6-loopback'])",
                "that name is the pod itself; write the name of the target",
            ),
            rule(
                "!self.exists(name, name.matches('^kubernetes([.]default([.]svc([.].*)?)?)?$'))",
                "that name is the cluster's own API, and never a Target",
            ),
        ];
        field.insert("x-kubernetes-validations".to_owned(), rules.into_iter().collect());
        // Each at most once.
        field.insert("x-kubernetes-list-type".to_owned(), "set".into());
    }
}

/// A fence has no gap: what would let an agent around it is refused with the field.
fn whole(schema: &mut Map<String, Value>) {
    let rule = |path: &str, rule: &str, message: &str| json!({"rule": rule, "message": message, "fieldPath": path, "reason": "FieldValueInvalid"});
    let rules = [
        rule(
            ".shapes",
            "self.tier != 'Enforced' || self.shapes.privileged == 'Deny' && self.shapes.hostPath == 'Deny'",
            "such a pod gets around its fence: tier Enforced takes Deny alone for privileged and hostPath",
        ),
        rule(
            ".agents.dropNetRaw",
            "self.tier != 'Enforced' || self.agents.dropNetRaw",
            "with NET_RAW an agent gets around its fence: tier Enforced takes true alone",
        ),
        rule(
            ".fence.allowUids",
            "self.tier == 'Enforced' || !has(self.fence.allowUids) || size(self.fence.allowUids) == 0",
            "only tier Enforced has a fence",
        ),
        rule(
            ".fence.allowUids",
            "!has(self.fence.allowUids) || self.fence.allowUids.all(uid, uid != 65533 && uid != self.runAs.uid && uid != \
             self.runAs.alternateUid && self.fence.allowUids.exists_one(other, other == uid))",
            "users besides the sidecar's own, each once; as 65533 the fence tries itself",
        ),
    ];
    if let Some(spec) = schema.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("x-kubernetes-validations".to_owned(), rules.into_iter().collect());
    }
}

/// What the injector's leader writes into the status of a profile.
fn looked() -> Map<String, Value> {
    let text = |about: &str| json!({"type": "string", "description": about});
    let number = |about: &str| json!({"type": "integer", "format": "int64", "description": about});
    let lines =
        |about: &str| json!({"type": "array", "description": about, "items": {"type": "string", "maxLength": 512}});
    let egress = json!({
        "egress": lines("What would be let out: ports, to whom, what for."),
        "unsure": lines("Where a rule may let out something else than is meant, and why."),
        "cutOff": lines("What pods rightly reach, and no rule can be written for: it would be cut off."),
    });
    let mut of_namespace = egress.clone();
    if let Some(fields) = of_namespace.as_object_mut() {
        fields.insert("name".to_owned(), text("The namespace."));
    }
    let unprotected = json!({
        "type": "object",
        "description": "Pods of the profile's namespaces without a valid sidecar. Written by the injector; absent: nobody could look at all of them.",
        "properties": {
            "pods": number("All of them."),
            "reasons": {
                "type": "array",
                "description": "By reason.",
                "items": {"type": "object", "properties": {
                    "reason": text("As `kubectl sidegate unprotected` tells it."),
                    "pods": number("Pods."),
                }},
            },
            "lookedAt": {
                "type": "string", "format": "date-time",
                "description": "When they were counted. Without news it is written again every ten minutes; when it is much older, nobody looks.",
            },
        },
    });
    let network_policy = json!({
        "type": "object",
        "description": "What spec.networkPolicy would make. Written by the injector; nothing of it exists.",
        "properties": {
            "mode": text("Audit."),
            "observedGeneration": number("The generation this is about."),
            "selects": text("The label by which pods would be selected; older ones do not have it."),
            "common": {"type": "object", "description": "In every namespace of the profile.", "properties": egress},
            "namespaces": {
                "type": "array", "description": "Besides, by namespace.",
                "items": {"type": "object", "properties": of_namespace},
            },
            "omitted": number("Namespaces that are not told here, because it would be too long."),
        },
    });
    [("unprotected", unprotected), ("networkPolicy", network_policy)]
        .into_iter()
        .map(|(name, schema)| (name.to_owned(), schema))
        .collect()
}

/// What a Lockdown's status says besides.
fn outcome() -> Map<String, Value> {
    let number = |about: &str| json!({"type": "integer", "format": "int64", "description": about});
    [
        ("revision", number("The deny set that brought it.")),
        (
            "matched",
            number("Connected sidecars whose pod, or a Target of whose bundle, it freezes."),
        ),
        (
            "acked",
            number("Those of them that enforce it, with the sessions it closes gone."),
        ),
        ("sessionsClosed", number("Sessions that ended as it came into force.")),
        (
            "p99Millis",
            number("Milliseconds within which 99 of 100 sidecars enforced it, from when the broker did."),
        ),
    ]
    .into_iter()
    .map(|(name, schema)| (name.to_owned(), schema))
    .collect()
}

/// The words that lists show beyond single fields, where a kind has some.
fn summarised(plural: &str) -> Option<Value> {
    let mut words = summary::of(plural, &Value::Null)?;
    if plural != "lockdowns" {
        words.insert("programmed".to_owned(), Value::Null);
    }
    let about = |word: &str| match word {
        "address" => "Host and port.",
        "credential" => "How Sidegate logs in, and the name that matters with it.",
        "targets" => "Targets it is about.",
        "subjects" => "Whom it is about.",
        "rules" => "Names of its rules.",
        "frozen" => "What it freezes.",
        _ => "Connected sidecars that have it, of those concerned.",
    };
    let properties = words.keys().map(|word| {
        let schema = json!({"type": "string", "maxLength": 100, "description": about(word)});
        (word.clone(), schema)
    });
    let properties: Map<String, Value> = properties.collect();
    Some(json!({
        "type": "object", "description": "Words for lists; what is long is cut.", "properties": properties,
    }))
}

/// Bounds what has none: API servers price validation rules by the largest value there could be.
fn bound(schema: &mut Value, name: &str) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    let kind = fields
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let limit = match kind.as_str() {
        "string" if fields.contains_key("enum") || fields.contains_key("format") => None,
        // A bundle of certificates in place.
        "string" if name == "inline" => Some(("maxLength", 262_144)),
        "string" => Some(("maxLength", 4_096)),
        "array" => Some(("maxItems", 256)),
        "object" if fields.contains_key("additionalProperties") => Some(("maxProperties", 64)),
        _ => None,
    };
    if let Some((key, value)) = limit {
        fields.entry(key).or_insert_with(|| value.into());
    }
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, property) in properties.iter_mut() {
            bound(property, name);
        }
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(inner) {
            bound(inner, "");
        }
    }
}

/// The same value with every map in order of its keys.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            let entries = entries.into_iter().map(|(key, value)| (key.clone(), sorted(value)));
            Value::Object(entries.collect::<Map<String, Value>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}
