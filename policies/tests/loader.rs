//! What the loader promises: every problem at once, each with file, line, column and field; nothing ignored.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use sidegate_policies::yaml::{load, print, Source};

const TARGET: &str = "apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {name: shop, namespace: data}
spec:
  protocol: Postgres
  address: {host: db.data.svc, port: 5432}
  credential: {secret: {name: shop-agent}}
  listen: {port: 15432}
";

fn problems(text: &str) -> Vec<String> {
    let source = Source {
        name: "a.yaml".to_owned(),
        text: text.to_owned(),
    };
    load(&[source]).problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_of_several_documents_loads() {
    let text = format!(
        "{TARGET}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: agents, labels: {{team: support}}}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: data}}\ndata: {{ca.crt: PEM}}\n---\n"
    );
    let loaded = load(&[Source {
        name: "a.yaml".into(),
        text,
    }]);
    assert_eq!(loaded.problems, []);
    let target = &loaded.objects.target("data", "shop").unwrap();
    assert!(target.object.metadata.uid.is_some());
    assert_eq!(target.origin.locate("spec.address.port"), Some((6, 32)));
    assert_eq!(loaded.objects.namespace_labels("agents")["team"], "support");
    assert_eq!(loaded.objects.config_map("data", "ca").unwrap().data["ca.crt"], "PEM");
}

#[test]
fn every_problem_is_reported_with_line_and_field() {
    let text = "apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p, namespace: data, lables: {a: b}}
spec:
  targetRefs: shop
  subjects: [{serviceAccount: {namespace: agents}}]
  rules:
    - name: one
      effect: Alow
      sql: {commands: [Select, Selekt], table: [app.x]}
    - effect: Deny
      message: 7
      ask: {approvers: [{user: a, group: b}], holdFor: soon, count: many}
  masks:
    - columns: [a.b.c]
      as: {keepLast: {count: 4}, redact: {}}
  limits: {rows: yes, maxSession: 5}
";
    let found = problems(text);
    let wanted = [
        (3, "metadata.lables: no such field; did you mean `labels`?"),
        (5, "spec.targetRefs: expected a list"),
        (6, "spec.subjects[0].serviceAccount.name: is required"),
        (9, "spec.rules[0].effect: `Alow` is not known"),
        (10, "spec.rules[0].sql.commands[1]: `Selekt` is not known"),
        (10, "spec.rules[0].sql.table: no such field; did you mean `tables`?"),
        (11, "spec.rules[1].name: is required"),
        (
            12,
            "spec.rules[1].message: expected text, found the number 7; put it in quotes",
        ),
        (
            13,
            "spec.rules[1].ask.approvers[0]: expected exactly one of user, group, anyone, found user, group",
        ),
        (13, "spec.rules[1].ask.holdFor: `soon` is not a duration"),
        (13, "spec.rules[1].ask.count: expected a whole number"),
        (16, "spec.masks[0].as: expected exactly one of"),
        (17, "spec.limits.rows: expected a whole number, found the text `yes`"),
        (17, "spec.limits.maxSession: expected text"),
    ];
    for (line, text) in wanted {
        let hit = found.iter().find(|problem| problem.contains(text));
        let hit = hit.unwrap_or_else(|| panic!("missing {text:?} in {found:#?}"));
        assert!(hit.starts_with(&format!("a.yaml:{line}:")), "{hit}");
    }
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
}

#[test]
fn duplicates_are_refused() {
    let twice = TARGET.replace("  protocol: Postgres\n", "  protocol: Postgres\n  protocol: TCP\n");
    let found = problems(&twice);
    assert!(
        found.len() == 1 && found[0].starts_with("a.yaml:6:3: Target data/shop: spec.protocol: written twice"),
        "{found:?}"
    );
    let found = problems(&format!("{TARGET}---\n{TARGET}"));
    assert!(found[0].contains("already written at a.yaml:3"), "{found:?}");
}

#[test]
fn what_does_not_belong_in_a_file_is_refused() {
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: n}\nstringData: {password: x}\n";
    assert!(problems(secret)[0].contains("secrets do not belong in configuration"));
    let unplaced = TARGET.replace(", namespace: data", "");
    assert!(problems(&unplaced)[0].contains("metadata.namespace: is required"));
    assert!(problems("kind: Target\n")[0].contains("apiVersion: is required"));
    assert!(problems(&TARGET.replace("kind: Target", "kind: Tarmac"))[0].contains("no such kind"));
    assert!(problems(&TARGET.replace("v1alpha1", "v2"))[0].contains("reads sidegate.dev/v1alpha1 only"));
}

#[test]
fn tags_merge_keys_and_old_booleans_are_refused() {
    for bad in [
        TARGET.replace("Postgres", "!word Postgres"),
        TARGET.replace("{name: shop-agent}", "{name: yes, <<: {a: b}}"),
        TARGET.replace("listen: {port: 15432}", "listen: {port: 0o17, <<: *x}"),
        TARGET.replace("spec:", "spec: ["),
        "a: &a [x, *a]\n".to_owned(),
    ] {
        assert!(!problems(&bad).is_empty(), "{bad}");
    }
}

#[test]
fn alias_bombs_end_at_the_budget() {
    let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let row = format!("*a{},", i - 1).repeat(10);
        text.push_str(&format!("a{i}: &a{i} [{row}]\n"));
    }
    assert_eq!(problems(&text).len(), 1);
}

#[test]
fn what_is_printed_reads_back_the_same() {
    let values = serde_json::json!({"a": "no", "b": "1_000", "c": "<<", "d": "2024-01-01", "e": "on", "f": "0x1", "g": " x: y", "h": "~", "i": "true", "j": "12"});
    let text = print(&values).unwrap();
    for line in text.lines() {
        let value = line.split_once(": ").unwrap().1;
        assert!(value.starts_with(['"', '\'']), "not quoted: {line}");
    }
    assert_eq!(
        sidegate_policies::yaml::read::<serde_json::Value>(&text).unwrap(),
        values
    );
}

#[test]
fn plain_keys_are_taken_as_their_text() {
    let mask = "apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p, namespace: data}
spec:
  targetRefs: [{name: shop}]
  subjects: [{serviceAccount: {namespace: agents, name: support}}]
  masks: [{columns: [a.b.c], as: {null: {}}}]
";
    assert_eq!(problems(mask), Vec::<String>::new());
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, namespace: n}\ndata: {true: a, 1: b, ~: c, 2024-01-01: d}\n";
    let loaded = load(&[Source {
        name: "a.yaml".into(),
        text: map.into(),
    }]);
    assert_eq!(loaded.problems, []);
    let keys: Vec<&str> = loaded.objects.config_maps[0]
        .object
        .data
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(keys, ["1", "2024-01-01", "true", "~"]);
    // Values keep their types: nothing is not a text.
    assert!(problems(&TARGET.replace("{name: shop-agent}", "{name: }"))[0].contains("expected text, found nothing"));
}
