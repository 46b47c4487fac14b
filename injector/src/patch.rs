//! The smallest JSON Patch from one pod to another.
//!
//! Lists are compared by what Kubernetes knows their items by (names, mount paths), so that one container put in front
//! does not rewrite the others. Refuses nothing. Invariant: applied to the first pod, the patch gives the second; two
//! equal pods give an empty one, and `managedFields`, which the server owns, are never looked at.

use serde_json::{json, Value};

/// Larger lists are compared item by item only at their ends.
const MAX_CELLS: usize = 4_000_000;

/// What turns `old` into `new`, as operations of RFC 6902.
pub fn between(old: &Value, new: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    differ("", "", old, new, &mut operations);
    operations
}

fn differ(path: &str, field: &str, old: &Value, new: &Value, operations: &mut Vec<Value>) {
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            for (key, old) in before {
                if path == "/metadata" && key == "managedFields" {
                    continue;
                }
                let path = format!("{path}/{}", escaped(key));
                match after.get(key) {
                    Some(new) => differ(&path, key, old, new, operations),
                    None => operations.push(json!({"op": "remove", "path": path})),
                }
            }
            for (key, new) in after.iter().filter(|(key, _)| !before.contains_key(*key)) {
                let path = format!("{path}/{}", escaped(key));
                operations.push(json!({"op": "add", "path": path, "value": new}));
            }
        }
        (Value::Array(before), Value::Array(after)) => lists(path, field, before, after, operations),
        (old, new) if old == new => {}
        (_, new) => operations.push(json!({"op": "replace", "path": path, "value": new})),
    }
}

fn lists(path: &str, field: &str, before: &[Value], after: &[Value], operations: &mut Vec<Value>) {
    let old: Vec<String> = before.iter().map(|item| key(field, item)).collect();
    let new: Vec<String> = after.iter().map(|item| key(field, item)).collect();
    let kept = common(&old, &new);
    // From the end, so that the places of those before stay what they are.
    for at in (0..before.len()).rev() {
        if !kept.iter().any(|(old, _)| *old == at) {
            operations.push(json!({"op": "remove", "path": format!("{path}/{at}")}));
        }
    }
    // From the front: everything before is in its place already.
    for (at, item) in after.iter().enumerate() {
        let path = format!("{path}/{at}");
        let old = kept.iter().find(|(_, new)| *new == at);
        match old.and_then(|(old, _)| before.get(*old)) {
            Some(old) => differ(&path, "", old, item, operations),
            None => operations.push(json!({"op": "add", "path": path, "value": item})),
        }
    }
}

/// What an item is known by in its list.
fn key(field: &str, item: &Value) -> String {
    let name = match field {
        "volumeMounts" => "mountPath",
        "hostAliases" => "ip",
        _ => "name",
    };
    match item.get(name).and_then(Value::as_str) {
        Some(name) => name.to_owned(),
        None => item.to_string(),
    }
}

/// The longest sequence that both have in this order, as pairs of places.
fn common(old: &[String], new: &[String]) -> Vec<(usize, usize)> {
    let front = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (old.len().saturating_sub(front), new.len().saturating_sub(front));
    let ends = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(|(old, new)| old == new);
    let back = ends.count().min(old_rest).min(new_rest);
    let (old_end, new_end) = (old.len().saturating_sub(back), new.len().saturating_sub(back));
    let mut pairs: Vec<(usize, usize)> = (0..front).map(|at| (at, at)).collect();
    let old_middle = old.get(front..old_end).unwrap_or_default();
    let new_middle = new.get(front..new_end).unwrap_or_default();
    if old_middle.len().saturating_mul(new_middle.len()) <= MAX_CELLS {
        let shifted = |(old, new): (usize, usize)| (front.saturating_add(old), front.saturating_add(new));
        pairs.extend(longest(old_middle, new_middle).into_iter().map(shifted));
    }
    pairs.extend((0..back).map(|at| (old_end.saturating_add(at), new_end.saturating_add(at))));
    pairs
}

/// The same by the textbook's table of lengths, filled from the end.
fn longest(old: &[String], new: &[String]) -> Vec<(usize, usize)> {
    if old.is_empty() || new.is_empty() {
        return Vec::new();
    }
    let mut rows: Vec<Vec<u32>> = vec![vec![0; new.len().saturating_add(1)]];
    for old in old.iter().rev() {
        let below = rows.last().cloned().unwrap_or_default();
        let mut row = vec![0; below.len()];
        for (at, new) in new.iter().enumerate().rev() {
            let right = at.saturating_add(1);
            let cell = match old == new {
                true => read(&below, right).saturating_add(1),
                false => read(&below, at).max(read(&row, right)),
            };
            if let Some(slot) = row.get_mut(at) {
                *slot = cell;
            }
        }
        rows.push(row);
    }
    rows.reverse();
    let mut pairs = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(left), Some(right)) = (old.get(i), new.get(j)) {
        let (down, next) = (i.saturating_add(1), j.saturating_add(1));
        let length = |row: usize, column: usize| rows.get(row).map_or(0, |row| read(row, column));
        if left == right {
            pairs.push((i, j));
            (i, j) = (down, next);
        } else if length(down, j) >= length(i, next) {
            i = down;
        } else {
            j = next;
        }
    }
    pairs
}

fn read(row: &[u32], at: usize) -> u32 {
    row.get(at).copied().unwrap_or(0)
}

/// A key within a JSON pointer.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn applied(old: &Value, operations: Vec<Value>) -> Value {
        let mut value = old.clone();
        let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations)).unwrap();
        json_patch::patch(&mut value, &patch).unwrap();
        value
    }

    #[test]
    fn one_item_put_in_front_is_one_operation() {
        let old = json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]});
        let new = json!({"env": [{"name": "X"}, {"name": "A", "value": "1"}, {"name": "B", "value": "2"}]});
        let patch = between(&old, &new);
        assert_eq!(patch, [json!({"op": "add", "path": "/env/0", "value": {"name": "X"}})]);
    }

    #[test]
    fn keys_of_annotations_are_escaped() {
        let old = json!({"annotations": {}});
        let new = json!({"annotations": {"sidegate.dev/status": "x", "a~b": "y"}});
        assert_eq!(applied(&old, between(&old, &new)), new);
    }

    #[test]
    fn what_the_server_owns_is_not_looked_at() {
        let old = json!({"metadata": {"managedFields": [1, 2, 3], "name": "a"}});
        let new = json!({"metadata": {"name": "a"}});
        assert_eq!(between(&old, &new), Vec::<Value>::new());
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            (0..4i64).prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
            "[a-d]".prop_map(|name| json!({"name": name})),
            ("[a-d]", "[a-b]").prop_map(|(name, value)| json!({"name": name, "value": value})),
            ("[a-d]", "[a-b]").prop_map(|(path, name)| json!({"mountPath": path, "name": name})),
        ];
        leaf.prop_recursive(4, 40, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
                proptest::collection::btree_map("[a-c~/]|env|volumeMounts", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patch_turns_any_value_into_any_other(old in value(), new in value()) {
            prop_assert_eq!(&applied(&old, between(&old, &new)), &new);
            prop_assert_eq!(between(&new, &new), Vec::<Value>::new());
        }
    }
}
