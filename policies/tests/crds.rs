//! What the committed CustomResourceDefinitions promise: one per kind, structural, unions with exactly one key.
//! That they match the types is `crdgen --check`'s business (`make lint`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::path::Path;

use serde_json::Value;

const KINDS: [(&str, &str, &str, bool); 7] = [
    ("targets", "Target", "tgt", true),
    ("accesspolicies", "AccessPolicy", "ap", true),
    ("clusteraccesspolicies", "ClusterAccessPolicy", "cap", false),
    ("accessrequests", "AccessRequest", "ar", true),
    ("lockdowns", "Lockdown", "ld", false),
    ("tokenissuers", "TokenIssuer", "ti", false),
    ("injectionprofiles", "InjectionProfile", "inj", false),
];

fn definition(plural: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("crds/{plural}.yaml"));
    let text = std::fs::read_to_string(path).unwrap();
    sidegate_policies::yaml::read(&text).unwrap()
}

fn spec(definition: &Value) -> &Value {
    definition
        .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
        .unwrap()
}

#[test]
fn every_kind_has_its_names() {
    for (plural, kind, short, namespaced) in KINDS {
        let definition = definition(plural);
        let names = &definition["spec"]["names"];
        assert_eq!(definition["metadata"]["name"], format!("{plural}.sidegate.dev"));
        assert_eq!(names["kind"], kind);
        assert_eq!(names["shortNames"][0], short);
        assert_eq!(names["categories"][0], "sidegate");
        let scope = if namespaced { "Namespaced" } else { "Cluster" };
        assert_eq!(definition["spec"]["scope"], scope);
        assert_eq!(definition["spec"]["versions"][0]["name"], "v1alpha1");
        assert!(definition["spec"]["versions"][0]["subresources"]["status"].is_object());
    }
}

#[test]
fn unions_have_exactly_one_key() {
    let target = definition("targets");
    let policy = definition("accesspolicies");
    let lockdown = definition("lockdowns");
    for (spec, path, keys) in [
        (spec(&target), "/properties/credential", 6),
        (spec(&policy), "/properties/masks/items/properties/as", 7),
        (
            spec(&policy),
            "/properties/rules/items/properties/ask/properties/approvers/items",
            3,
        ),
        (spec(&lockdown), "/properties/freeze/items", 8),
    ] {
        let union = spec.pointer(path).unwrap();
        assert_eq!(union["oneOf"].as_array().map(Vec::len), Some(keys), "{path}");
        assert_eq!(
            union["properties"].as_object().map(|keys| keys.len()),
            Some(keys),
            "{path}"
        );
    }
}

/// Walks every schema below one.
fn walk(schema: &Value, path: &str, see: &mut dyn FnMut(&str, &Value)) {
    see(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, &format!("{path}.{name}"), see);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            walk(&schema[inner], path, see);
        }
    }
}

#[test]
fn every_field_is_typed_explained_and_bounded() {
    for (plural, ..) in KINDS {
        let definition = definition(plural);
        walk(spec(&definition), plural, &mut |path, schema| {
            let either = schema["x-kubernetes-int-or-string"] == true;
            let kind = schema["type"].as_str().unwrap_or_default();
            assert!(either || !kind.is_empty(), "{path} has no type");
            assert_ne!(
                schema["x-kubernetes-preserve-unknown-fields"], true,
                "{path} is free-form"
            );
            match kind {
                "string" => assert!(
                    schema["enum"].is_array() || schema["format"].is_string() || schema["maxLength"].is_u64(),
                    "{path} may be of any length"
                ),
                "array" => assert!(schema["maxItems"].is_u64(), "{path} may hold any number"),
                _ => {}
            }
        });
        for (name, field) in spec(&definition)["properties"].as_object().unwrap() {
            assert!(field["description"].is_string(), "{plural}.{name} is not explained");
        }
    }
}
