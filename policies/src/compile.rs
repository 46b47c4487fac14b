//! From objects to a [`crate::engine::PolicySet`]: every problem is reported, with its place; nothing half-compiles.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::engine::PolicySet;

mod policies;
mod targets;
pub mod understood;

/// One problem in a configuration, located as well as its source allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// File, if the object came from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Column, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// The object, as `Kind namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field, such as `spec.rules[2].when`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
            if let Some(line) = self.line {
                write!(
                    f,
                    "{line}:{}",
                    self.column.map(|column| format!("{column}:")).unwrap_or_default()
                )?;
            }
            f.write_str(" ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Compiles a bundle. Every problem is reported; with any problem nothing compiles.
///
/// References to Targets that the bundle does not hold are no problem: the policy simply is about fewer Targets.
pub fn compile(bundle: &Bundle) -> Result<PolicySet, Vec<Problem>> {
    let mut problems = Vec::new();
    let targets = targets::compile(&bundle.targets, &mut problems);
    let policies = policies::compile(bundle, &mut problems);
    if problems.is_empty() {
        Ok(PolicySet {
            version: "".into(),
            targets,
            policies,
        })
    } else {
        problems.sort();
        problems.dedup();
        Err(problems)
    }
}

/// A problem of one object.
pub(crate) fn problem(object: &str, field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem {
        file: None,
        line: None,
        column: None,
        object: Some(object.to_owned()),
        field: field.into(),
        message: message.into(),
    }
}

/// Compiles the exact body bytes of a bundle; the set carries their version.
pub fn compile_body(body: &[u8]) -> Result<PolicySet, Vec<Problem>> {
    let bundle: Bundle = serde_json::from_slice(body).map_err(|error| {
        vec![Problem {
            file: None,
            line: u64::try_from(error.line()).ok(),
            column: u64::try_from(error.column()).ok(),
            object: None,
            field: String::new(),
            message: format!("the bundle's body is not valid: {error}"),
        }]
    })?;
    let mut set = compile(&bundle)?;
    set.version = crate::bundle::version(body).into();
    Ok(set)
}
