//! SHA-256 of canonical JSON, and of what took part in a decision.
//!
//! Canonical: keys sorted, no white space. A rule digest is taken over the leaves that took part only, so that an
//! edit to anything else voids no approval.

use aws_lc_rs::digest::{digest, Context, SHA256};
use serde::Serialize;
use serde_json::Value;

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

/// The digest of what takes part in one decision.
#[derive(Clone)]
pub struct Parts(Context);

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

impl Parts {
    /// Begins with the target and the limits in force.
    pub fn new(target: &[u8; 32], limits: &[u8; 32]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(b"sidegate/rule-digest/v1\0");
        context.update(target);
        context.update(limits);
        Parts(context)
    }

    /// Adds a mask or a rule.
    pub fn add(&mut self, tag: u8, leaf: &[u8; 32]) {
        self.0.update(&[tag]);
        self.0.update(leaf);
    }

    /// The digest.
    pub fn finish(self) -> [u8; 32] {
        bytes(self.0.finish().as_ref())
    }
}
