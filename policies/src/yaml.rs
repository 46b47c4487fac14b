//! YAML in and out: the only module that names a YAML library.
//!
//! Reading goes in two passes. The first builds a tree with the place of every key and value and reports every
//! syntax error, duplicate key, field that is not built yet, unknown field and wrong type; the second gives typed
//! objects. Refused: tags, merge keys, YAML 1.1 booleans, and anything over a small budget. Invariant: whatever
//! is printed reads back the same in YAML 1.1 and 1.2.

mod load;
mod stand_in;
mod tree;
mod typed;

pub use load::{load, Loaded, Source, CASES};
pub(crate) use tree::join;
pub use tree::{Entry, Node, Position, Value};
pub use typed::Mistake;

use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};

/// The most one file may hold.
pub const MAX_BYTES: usize = 4 << 20;
/// How deep a document may nest.
const MAX_DEPTH: usize = 48;

/// A text that is not YAML as we take it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// Where, if it is known.
    pub at: Option<Position>,
    /// What is wrong.
    pub message: String,
}

/// A value that could not be printed.
#[derive(Debug, thiserror::Error)]
#[error("cannot be written as YAML: {0}")]
pub struct PrintError(String);

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(MAX_BYTES),
            max_events: 200_000,
            max_aliases: 64,
            max_anchors: 64,
            max_recorded_anchor_events: 10_000,
            max_depth: MAX_DEPTH,
            max_documents: 1_000,
            max_nodes: 100_000,
            max_total_scalar_bytes: MAX_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 10_000,
            max_replay_stack_depth: 8,
        },
        // Both entries reach the tree, so that every duplicate is reported with its place.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        // Only keys are read as text here (`as: {null: {}}`); values keep their types.
        null_as_string: true,
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
        underscored_numbers_as_strings: true,
        leading_zero_numbers_as_strings: true,
        with_snippet: false,
    }
}

/// The documents of a text as trees. Empty documents are left out.
pub fn documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    if text.len() > MAX_BYTES {
        return Err(SyntaxError {
            at: None,
            message: format!("the file has {} bytes; at most {MAX_BYTES} are read", text.len()),
        });
    }
    serde_saphyr::from_multiple_with_options::<Node>(text, options()).map_err(|error| SyntaxError {
        at: error.location().map(|location| Position {
            line: location.line(),
            column: location.column(),
        }),
        message: first_line(&error.to_string()),
    })
}

/// Reads one typed value from a text of one document, reporting every problem. For files beside the kinds, such as
/// the cases of `policy test`.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Vec<Mistake>> {
    let mut documents = documents(text).map_err(|error| vec![error.into()])?;
    let single = match (documents.pop(), documents.is_empty()) {
        (Some(node), true) => node,
        (found, _) => {
            let message = if found.is_none() {
                "the file is empty"
            } else {
                "the file holds more than one document"
            };
            return Err(vec![Mistake {
                at: Position::default(),
                field: String::new(),
                message: message.to_owned(),
            }]);
        }
    };
    let mut mistakes = tree::duplicates(&single);
    match typed::typed(&single, &mut mistakes, &Default::default()) {
        Some(value) if mistakes.is_empty() => Ok(value),
        _ => Err(mistakes),
    }
}

/// The documents of a text as plain values, reporting every problem. For objects of others' kinds, which are kept as
/// they are.
pub fn values(text: &str) -> Result<Vec<serde_json::Value>, Vec<Mistake>> {
    let documents = documents(text).map_err(|error| vec![error.into()])?;
    let mut mistakes = Vec::new();
    let mut values = Vec::with_capacity(documents.len());
    for document in &documents {
        mistakes.extend(tree::duplicates(document));
        values.extend(typed::typed(document, &mut mistakes, &Default::default()));
    }
    match mistakes.is_empty() && values.len() == documents.len() {
        true => Ok(values),
        false => Err(mistakes),
    }
}

/// Prints a value as one YAML document that every YAML reader understands the same way.
pub fn print<T: Serialize>(value: &T) -> Result<String, PrintError> {
    serde_saphyr::to_string(value).map_err(|error| PrintError(error.to_string()))
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or("not YAML");
    line.trim_start_matches("error: ").to_owned()
}
