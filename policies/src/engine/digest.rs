//! SHA-256 of canonical JSON, and of what took part in a decision.
//!
//! Canonical: keys sorted, no white space. A rule digest is taken over the leaves that took part only, so that an
//! edit to anything else voids no approval.

use aws_lc_rs::digest::{digest, SHA256};
use serde::Serialize;
use serde_json::Value;
use smallvec::SmallVec;

/// Digest of a value's canonical JSON. A value that cannot be written has the digest of null.
pub fn of(value: &impl Serialize) -> [u8; 32] {
    let mut text = String::new();
    write(&serde_json::to_value(value).unwrap_or(Value::Null), &mut text);
    bytes(digest(&SHA256, text.as_bytes()).as_ref())
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (at, (key, value)) in fields.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn bytes(digest: &[u8]) -> [u8; 32] {
    digest.try_into().unwrap_or([0; 32])
}

/// What takes part in one decision, gathered in place and hashed in one go: no allocation for a handful of leaves.
#[derive(Debug, Clone)]
pub struct Parts(SmallVec<[u8; 512]>);

impl Parts {
    /// Begins with the target and the limits in force.
    pub fn new(target: &[u8; 32], limits: &[u8; 32]) -> Self {
        let mut parts = SmallVec::new();
        parts.extend_from_slice(b"sidegate/rule-digest/v1\0");
        parts.extend_from_slice(target);
        parts.extend_from_slice(limits);
        Parts(parts)
    }

    /// Adds a mask or a rule.
    pub fn add(&mut self, tag: u8, leaf: &[u8; 32]) {
        self.0.push(tag);
        self.0.extend_from_slice(leaf);
    }

    /// The digest.
    pub fn finish(&self) -> [u8; 32] {
        bytes(digest(&SHA256, &self.0).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_json_does_not_depend_on_order() {
        let one: Value = serde_json::json!({"b": [1, {"y": 2, "x": "\"\u{e9}"}], "a": null});
        let mut text = String::new();
        write(&one, &mut text);
        assert_eq!(text, "{\"a\":null,\"b\":[1,{\"x\":\"\\\"\u{e9}\",\"y\":2}]}");
    }
}
