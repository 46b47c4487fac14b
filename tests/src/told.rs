//! What the records of a world say, once it has stopped.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use sidegate_broker::records::SessionKeys;
use sidegate_policies::record::replay::{json_line, replay};
use sidegate_policies::record::verify::{verify_store, Options};

/// Every event of every session below `state`, in order of sessions.
pub fn events(state: &Path) -> Result<Vec<Value>> {
    let root = state.join("records");
    let keys = SessionKeys::open(&root)?;
    let mut events = Vec::new();
    for session in verify_store(&root, &Options::default())?.sessions {
        replay(&root, session.session.parse()?, &|id| keys.get(id), &mut |event| {
            events.push(serde_json::from_str(&json_line(&event)).map_err(std::io::Error::other)?);
            Ok(())
        })?;
    }
    Ok(events)
}

/// Every value of this name, at any depth of these events.
pub fn values(events: &[Value], name: &str) -> Vec<Value> {
    fn look(value: &Value, name: &str, found: &mut Vec<Value>) {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    if key == name {
                        found.push(value.clone());
                    }
                    look(value, name, found);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| look(item, name, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    events.iter().for_each(|event| look(event, name, &mut found));
    found
}
