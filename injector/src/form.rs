//! Whether a value is a pod at all, and the way into its lists.
//!
//! Refuses fields of another form than Kubernetes gives them: a list that is no list would be passed over by every rule
//! that walks it. Invariant: after [`checked`] each list that is read is a list of objects, or absent.

use serde_json::{Map, Value};
use sidegate_policies::pod::fence::FENCE;
use sidegate_policies::pod::shape::SIDECAR;
pub use sidegate_policies::pod::shape::{list as items, text};

use crate::refusal::Refusal;

/// Lists of a pod's spec that are read or changed.
const OF_SPEC: [&str; 4] = ["initContainers", "containers", "ephemeralContainers", "volumes"];
/// Lists of a container.
const OF_CONTAINER: [&str; 5] = ["env", "envFrom", "ports", "volumeMounts", "volumeDevices"];

/// Checks the form of a pod.
pub fn checked(pod: &Value) -> Result<(), Refusal> {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    if !pod.is_object() || !spec.is_object() {
        return wrong("spec", "is not an object");
    }
    objects(pod, "", &["metadata"])?;
    let metadata = pod.get("metadata").unwrap_or(&Value::Null);
    for field in ["labels", "annotations"] {
        let found = metadata.get(field).unwrap_or(&Value::Null);
        let texts = found.as_object().is_some_and(|map| map.values().all(Value::is_string));
        if !found.is_null() && !texts {
            return wrong(&format!("metadata.{field}"), "is not a map of texts");
        }
    }
    lists(spec, "spec.", &OF_SPEC)?;
    objects(spec, "spec.", &["securityContext"])?;
    let context = spec.get("securityContext").unwrap_or(&Value::Null);
    lists(context, "spec.securityContext.", &["sysctls"])?;
    lists(spec, "spec.", &["hostAliases"])?;
    for (at, alias) in items(spec, "hostAliases").enumerate() {
        let names = alias.get("hostnames").unwrap_or(&Value::Null);
        let of_texts = names.as_array().is_some_and(|all| all.iter().all(Value::is_string));
        if !names.is_null() && !of_texts {
            return wrong(&format!("spec.hostAliases[{at}].hostnames"), "is not a list of texts");
        }
    }
    for name in OF_SPEC.into_iter().filter(|name| *name != "volumes") {
        for (at, container) in items(spec, name).enumerate() {
            let path = format!("spec.{name}[{at}].");
            if !container.get("name").is_some_and(Value::is_string) {
                return wrong(&format!("{path}name"), "is missing");
            }
            lists(container, &path, &OF_CONTAINER)?;
            objects(container, &path, &["securityContext", "resources"])?;
            let context = container.get("securityContext").unwrap_or(&Value::Null);
            objects(context, &format!("{path}securityContext."), &["capabilities"])?;
        }
    }
    for (at, volume) in items(spec, "volumes").enumerate() {
        objects(volume, &format!("spec.volumes[{at}]."), &["projected", "hostPath"])?;
        let projected = volume.get("projected").unwrap_or(&Value::Null);
        lists(projected, &format!("spec.volumes[{at}].projected."), &["sources"])?;
    }
    if items(spec, "containers").next().is_none() {
        return wrong("spec.containers", "is empty");
    }
    Ok(())
}

fn wrong(field: &str, what: &str) -> Result<(), Refusal> {
    let message = format!("{field} {what}; write a Pod as Kubernetes takes it");
    Err(Refusal::invalid("form", message))
}

fn lists(value: &Value, path: &str, fields: &[&str]) -> Result<(), Refusal> {
    for field in fields {
        let found = value.get(field).unwrap_or(&Value::Null);
        let of_objects = found.as_array().is_some_and(|all| all.iter().all(Value::is_object));
        if !found.is_null() && !of_objects {
            return wrong(&format!("{path}{field}"), "is not a list of objects");
        }
    }
    Ok(())
}

fn objects(value: &Value, path: &str, fields: &[&str]) -> Result<(), Refusal> {
    for field in fields {
        let found = value.get(field).unwrap_or(&Value::Null);
        if !found.is_null() && !found.is_object() {
            return wrong(&format!("{path}{field}"), "is not an object");
        }
    }
    Ok(())
}

/// The containers of a spec, those that begin first and the others.
pub fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    items(spec, "initContainers").chain(items(spec, "containers"))
}

/// The same without ours.
pub fn others(spec: &Value) -> impl Iterator<Item = &Value> {
    containers(spec).filter(|container| !is_ours(container))
}

/// Whether a container is one we make.
pub fn is_ours(container: &Value) -> bool {
    [SIDECAR, FENCE].contains(&text(container, "name"))
}

/// A list that is there already, to be changed.
pub fn present<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    value.get_mut(field).and_then(Value::as_array_mut)
}

/// A list to be changed, made where there is none.
pub fn list<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    let slot = map(value)?.entry(field).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut()
}

/// An object to be changed, made where there is none.
pub fn object<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    let slot = map(value)?.entry(field).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    Some(slot)
}

/// Sets a field.
pub fn set(value: &mut Value, field: &str, to: Value) {
    if let Some(map) = map(value) {
        map.insert(field.to_owned(), to);
    }
}

fn map(value: &mut Value) -> Option<&mut Map<String, Value>> {
    value.as_object_mut()
}
