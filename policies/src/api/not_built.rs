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
pub const NOT_BUILT: &[NotBuilt] = &[
    entry(
        "InjectionProfile.spec.tier=Separate",
        "the sidecar in a pod of its own, apart from the agent's",
    ),
    entry(
        "InjectionProfile.spec.networkPolicy=Apply",
        "making the NetworkPolicies that Audit tells of",
    ),
    entry(
        "InjectionProfile.spec.proxyListener",
        "HTTP(S)_PROXY on a port of the sidecar",
    ),
    entry(
        "InjectionProfile.spec.trust",
        "certificate authorities handed to agents' containers",
    ),
    entry("Target.spec.protocol=MySQL", "MySQL and MariaDB"),
    entry("Target.spec.protocol=Redis", "Redis and Valkey"),
    entry("Target.spec.protocol=MongoDB", "MongoDB"),
    entry("Target.spec.protocol=SSH", "SSH, SFTP and terminals"),
    entry("Target.spec.protocol=HTTP", "HTTP and gRPC APIs"),
    entry(
        "Target.spec.protocol=Kubernetes",
        "the Kubernetes API, with exec and port-forward",
    ),
    entry("Target.spec.protocol=MCP", "Model Context Protocol servers"),
    entry("Target.spec.protocol=LLM", "OpenAI and Anthropic APIs"),
    entry(
        "TokenIssuer.spec.users",
        "tokens of users exchanged together with the agent's (delegation)",
    ),
    entry(
        "TokenIssuer.spec.preset=GitHubApp",
        "installation tokens of a GitHub App",
    ),
    entry("TokenIssuer.spec.preset=OpenRouter", "OpenRouter's keys by exchange"),
    entry(
        "Target.spec.impersonate",
        "naming the agent in a cluster's own audit log",
    ),
    entry("Target.spec.openapi", "operation names from an OpenAPI document"),
    entry(
        "Target.spec.recording.durability=Synced",
        "waiting for the disk before forwarding",
    ),
    entry(
        "Target.spec.recording.durability=Remote",
        "waiting for the collector before forwarding",
    ),
    entry(
        "Target.spec.recording.retention",
        "how long records of a Target are kept",
    ),
    entry(
        "Target.spec.recording.maxLag",
        "how far the record may lag behind the collector",
    ),
    entry("AccessPolicy.spec.rows", "row filters"),
    entry("AccessPolicy.spec.rules.http", "matcher for HTTP requests"),
    entry("AccessPolicy.spec.rules.kubernetes", "matcher for Kubernetes requests"),
    entry("AccessPolicy.spec.rules.mcp", "matcher for MCP calls"),
    entry("AccessPolicy.spec.rules.llm", "matcher for model calls"),
    entry(
        "AccessPolicy.spec.rules.ssh",
        "matcher for SSH commands, subsystems and forwards",
    ),
    entry("AccessPolicy.spec.rules.redis", "matcher for Redis commands and keys"),
    entry(
        "AccessPolicy.spec.rules.mongo",
        "matcher for MongoDB commands and collections",
    ),
    entry("AccessPolicy.spec.rules.mysql", "matcher of its own for MySQL"),
    entry(
        "AccessPolicy.spec.rules.discovery",
        "the ready matcher for Kubernetes discovery",
    ),
    entry("AccessPolicy.spec.rules.reveal", "showing Kubernetes Secrets unmasked"),
    entry(
        "AccessPolicy.spec.rules.holdCommit",
        "running a small write, and committing it on approval",
    ),
    entry(
        "AccessPolicy.spec.rules.ask.holdCommit",
        "running a small write, and committing it on approval",
    ),
    entry(
        "AccessPolicy.spec.rules.ask.grant",
        "one approval for several statements of the same shape",
    ),
    entry(
        "AccessPolicy.spec.rules.ask.preview",
        "showing approvers what a statement would touch",
    ),
    entry(
        "AccessPolicy.spec.masks.at=Read",
        "masking inside the query, so that masked columns can be computed with",
    ),
    entry("AccessPolicy.spec.masks.json", "masks by JSON path"),
    entry("AccessPolicy.spec.masks.csv", "masks by CSV column"),
    entry("AccessPolicy.spec.masks.graphql", "masks by GraphQL type and field"),
    entry("AccessPolicy.spec.masks.grpc", "masks by protobuf message and field"),
    entry(
        "AccessPolicy.spec.masks.kubernetes",
        "masks by Kubernetes kind and field",
    ),
    entry("AccessPolicy.spec.limits.tokens", "model tokens per minute and day"),
    entry("AccessPolicy.spec.limits.cost", "model cost per minute and day"),
];

const fn entry(path: &'static str, what: &'static str) -> NotBuilt {
    NotBuilt { path, what }
}

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

const HEAD: &str = "\
# Not built yet

Sidegate's design names more than this release does. Each kind, field and value below is refused when a
configuration is loaded, with the words \"not built yet\"; none is ignored. What stands under `AccessPolicy` holds
for `ClusterAccessPolicy` too, and `=` marks a single value of a field.

| kind, field or value | what it would do |
|---|---|
";

/// The list as a page of the documentation, `docs/not-built.md`.
pub fn markdown() -> String {
    let mut table = String::from(HEAD);
    for entry in NOT_BUILT {
        table.push_str(&format!("| `{}` | {} |\n", entry.path, entry.what));
    }
    table
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_prints_this_list() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/not-built.md");
        if std::env::var_os("SIDEGATE_WRITE_DOCS").is_some() {
            std::fs::write(&page, markdown()).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(page).unwrap(),
            markdown(),
            "SIDEGATE_WRITE_DOCS=1 writes it anew"
        );
    }
}
