//! The one list of what the design names and this release does not build.
//!
//! The loader checks it before types, so that such a field, kind or value is refused with "not built yet"
//! instead of "unknown field", and `docs/not-built.md` is printed from it. Invariant: what the types accept is
//! never on this list.

use crate::yaml::{Node, Value};

/// One thing that is not built yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotBuilt {
    /// `Kind`, `Kind.path.to.field`, or `Kind.path.to.field=Value`; lists are passed through without a mark.
    /// What stands under `AccessPolicy` holds for `ClusterAccessPolicy` too.
    pub path: &'static str,
    /// What it would do, in a few words.
    pub what: &'static str,
}

/// Everything that is refused as "not built yet".
pub const NOT_BUILT: &[NotBuilt] = &[];

fn message(what: &str) -> String {
    format!("not built yet: {what}")
}

/// What to say of a kind that is not built yet.
pub fn kind(kind: &str) -> Option<String> {
    let found = NOT_BUILT.iter().find(|entry| entry.path == kind);
    found.map(|entry| message(entry.what))
}

/// Fields and values of a document that are not built yet: field path and message.
pub(crate) fn find(kind: &str, root: &Node) -> Vec<(String, String)> {
    let kind = if kind == "ClusterAccessPolicy" {
        "AccessPolicy"
    } else {
        kind
    };
    let mut found = Vec::new();
    // Each open node with its field path and its path on the list.
    let mut open = vec![(String::new(), kind.to_owned(), root)];
    while let Some((field, listed, node)) = open.pop() {
        match &node.value {
            Value::Map(entries) => {
                for entry in entries {
                    let field = crate::yaml::join(&field, &entry.key);
                    let listed = format!("{listed}.{}", entry.key);
                    match NOT_BUILT.iter().find(|entry| entry.path == listed) {
                        Some(entry) => found.push((field, message(entry.what))),
                        None => open.push((field, listed, &entry.value)),
                    }
                }
            }
            Value::List(items) => {
                let items = items.iter().enumerate();
                open.extend(items.map(|(index, item)| (format!("{field}[{index}]"), listed.clone(), item)));
            }
            Value::Text(text) => {
                let listed = format!("{listed}={text}");
                if let Some(entry) = NOT_BUILT.iter().find(|entry| entry.path == listed) {
                    found.push((field, message(entry.what)));
                }
            }
            _ => {}
        }
    }
    found
}

/// The list as a table for the documentation.
pub fn markdown() -> String {
    let mut table = String::from("| not built yet | what it would do |\n|---|---|\n");
    for entry in NOT_BUILT {
        table.push_str(&format!("| `{}` | {} |\n", entry.path, entry.what));
    }
    table
}
