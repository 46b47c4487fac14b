//! The walk sees every node of what the grammar yields.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::super::parse::{with_tree, Dialect};
use super::*;

fn walked(text: &str) -> Syntax {
    with_tree(text, Dialect::default(), |tree| {
        walk(tree[0].stmt.as_ref().unwrap(), 18)
    })
    .unwrap()
}

#[test]
fn every_relation_is_seen_with_its_command_and_place() {
    let text = "WITH d AS (DELETE FROM a.t USING a.u WHERE EXISTS (SELECT 1 FROM a.v)) \
                INSERT INTO a.w SELECT * FROM a.x JOIN (a.y CROSS JOIN LATERAL (SELECT 1 FROM a.z) q) ON true";
    let mut seen: Vec<(String, SqlCommand)> = Vec::new();
    for relation in walked(text).relations {
        let at = usize::try_from(relation.location).unwrap();
        assert!(text[at..].starts_with(&format!("a.{}", relation.name)));
        seen.push((relation.name.to_string(), relation.command));
    }
    seen.sort();
    let expected = ["t", "u", "v", "w", "x", "y", "z"].map(|name| {
        let command = match name {
            "t" => SqlCommand::Delete,
            "w" => SqlCommand::Insert,
            _ => SqlCommand::Select,
        };
        (name.to_owned(), command)
    });
    assert_eq!(seen, expected);
}

#[test]
fn statements_of_every_family_are_understood() {
    for text in include_str!("corpus.sql").lines() {
        let syntax = walked(text);
        assert_eq!(syntax.problem, None, "{text}");
        assert!(!syntax.too_deep, "{text}");
    }
}

#[test]
fn a_node_of_a_later_stage_is_a_problem() {
    let node = pb::Node {
        node: Some(NodeEnum::TargetEntry(Box::default())),
    };
    assert_eq!(walk(&node, 18).problem, Some(Problem::Node("TargetEntry")));
    assert_eq!(walk(&pb::Node { node: None }, 18).problem, Some(Problem::Empty));
}
