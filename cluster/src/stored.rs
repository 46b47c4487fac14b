//! An object as the API server holds it, to be read like a file.
//!
//! Refuses nothing. Invariant: of an object's metadata only what decides something goes along: never annotations.

use serde_json::{json, Map, Value};

/// JSON is YAML: objects of a cluster go through the same reading as files do.
pub fn document(api_version: &str, kind: &str, object: &Value) -> String {
    let mut kept = Map::new();
    for field in ["name", "namespace", "uid", "labels"] {
        if let Some(value) = object.pointer(&format!("/metadata/{field}")) {
            kept.insert(field.to_owned(), value.clone());
        }
    }
    let mut text = json!({"apiVersion": api_version, "kind": kind, "metadata": kept});
    for field in ["spec", "data"] {
        if let (Some(value), Some(map)) = (object.get(field), text.as_object_mut()) {
            map.insert(field.to_owned(), value.clone());
        }
    }
    text.to_string()
}
