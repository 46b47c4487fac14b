//! Qualified names and the patterns policies write for them.
//!
//! A pattern has exactly two parts (`schema.relation`) or three (`schema.relation.column`); each part is exact,
//! `*`, or a prefix with a trailing `*`. Unquoted parts fold to lower case as in PostgreSQL; double quotes take
//! anything else literally.

use std::fmt;
use std::sync::Arc;

/// A resolved relation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationName {
    /// Its schema.
    pub schema: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A resolved column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ColumnName {
    /// Its relation.
    pub relation: RelationName,
    /// Its name.
    pub column: Arc<str>,
}

impl RelationName {
    /// Builds a name from its parts.
    pub fn new(schema: &str, name: &str) -> Self {
        RelationName {
            schema: schema.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for RelationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", Quoted(&self.schema), Quoted(&self.name))
    }
}

impl fmt::Display for ColumnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.relation, Quoted(&self.column))
    }
}

/// Prints a name as a policy would write it: bare where that is unambiguous, else in double quotes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'$';
        if !self.0.is_empty() && self.0.bytes().all(plain) {
            f.write_str(self.0)
        } else {
            write!(f, "\"{}\"", self.0.replace('"', "\"\""))
        }
    }
}

/// One part of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NamePart {
    /// `*`.
    Any,
    /// A prefix followed by `*`.
    Prefix(Arc<str>),
    /// Exactly this.
    Exact(Arc<str>),
}

impl NamePart {
    /// Whether the part fits a name.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            NamePart::Any => true,
            NamePart::Prefix(prefix) => name.starts_with(&**prefix),
            NamePart::Exact(exact) => &**exact == name,
        }
    }
}

/// `schema.relation`, also used for `schema.function`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RelationPattern {
    /// The schema's part.
    pub schema: NamePart,
    /// The relation's part.
    pub name: NamePart,
}

/// `schema.relation.column`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ColumnPattern {
    /// The relation's two parts.
    pub relation: RelationPattern,
    /// The column's part.
    pub column: NamePart,
}

/// A pattern that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Wrong number of parts.
    #[error("`{text}` has {found} part(s); write {wanted}")]
    Parts {
        /// As written.
        text: String,
        /// How many parts it has.
        found: usize,
        /// The form wanted.
        wanted: &'static str,
    },
    /// A part that is neither exact, `*`, a prefix with `*`, nor quoted.
    #[error("`{part}` is not a name: write it exactly, as `*`, as a prefix with a trailing `*`, or in double quotes")]
    Part {
        /// The part as written.
        part: String,
    },
}

impl RelationPattern {
    /// Reads `schema.relation`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let wanted = "schema.name, such as app.orders or app.*";
        match <[NamePart; 2]>::try_from(parts(text)?) {
            Ok([schema, name]) => Ok(RelationPattern { schema, name }),
            Err(parts) => Err(PatternError::Parts {
                text: text.to_owned(),
                found: parts.len(),
                wanted,
            }),
        }
    }

    /// Whether the pattern fits a relation.
    pub fn matches(&self, schema: &str, name: &str) -> bool {
        self.schema.matches(schema) && self.name.matches(name)
    }
}

impl ColumnPattern {
    /// Reads `schema.relation.column`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let wanted = "schema.relation.column, such as app.users.ssn";
        match <[NamePart; 3]>::try_from(parts(text)?) {
            Ok([schema, name, column]) => Ok(ColumnPattern {
                relation: RelationPattern { schema, name },
                column,
            }),
            Err(parts) => Err(PatternError::Parts {
                text: text.to_owned(),
                found: parts.len(),
                wanted,
            }),
        }
    }

    /// Whether the pattern fits a column.
    pub fn matches(&self, schema: &str, relation: &str, column: &str) -> bool {
        self.relation.matches(schema, relation) && self.column.matches(column)
    }
}

fn parts(text: &str) -> Result<Vec<NamePart>, PatternError> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_part(quoted, text)?,
            None => {
                let (part, after) = match rest.split_once('.') {
                    Some((part, after)) => (part, Some(after)),
                    None => (rest, None),
                };
                (bare_part(part)?, after)
            }
        };
        parts.push(part);
        match after {
            Some(after) => rest = after,
            None => return Ok(parts),
        }
    }
}

fn bare_part(part: &str) -> Result<NamePart, PatternError> {
    let (stem, star) = match part.strip_suffix('*') {
        Some(stem) => (stem, true),
        None => (part, false),
    };
    let valid = stem.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$');
    match (valid, stem.is_empty(), star) {
        (true, true, true) => Ok(NamePart::Any),
        (true, false, true) => Ok(NamePart::Prefix(stem.to_lowercase().into())),
        (true, false, false) => Ok(NamePart::Exact(stem.to_lowercase().into())),
        _ => Err(PatternError::Part { part: part.to_owned() }),
    }
}

fn quoted_part<'a>(quoted: &'a str, whole: &str) -> Result<(NamePart, Option<&'a str>), PatternError> {
    let mut name = String::new();
    let mut chars = quoted.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if chars.peek().is_some_and(|(_, next)| *next == '"') => {
                chars.next();
                name.push('"');
            }
            '"' => {
                let after = quoted.get(at.saturating_add(1)..).unwrap_or("");
                let bad = || PatternError::Part { part: whole.to_owned() };
                let rest = match after.strip_prefix('.') {
                    Some(rest) => Some(rest),
                    None if after.is_empty() => None,
                    None => return Err(bad()),
                };
                return if name.is_empty() {
                    Err(bad())
                } else {
                    Ok((NamePart::Exact(name.into()), rest))
                };
            }
            other => name.push(other),
        }
    }
    Err(PatternError::Part { part: whole.to_owned() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_documented() {
        let any = RelationPattern::parse("app.*").unwrap();
        assert!(any.matches("app", "orders") && !any.matches("pub", "orders"));
        let prefix = RelationPattern::parse("app.t_*").unwrap();
        assert!(prefix.matches("app", "t_2024") && !prefix.matches("app", "x_2024"));
        let quoted = RelationPattern::parse("app.\"Weird.Na\"\"me*\"").unwrap();
        assert!(quoted.matches("app", "Weird.Na\"me*") && !quoted.matches("app", "weird.na\"mes"));
        let folded = ColumnPattern::parse("App.Users.SSN").unwrap();
        assert!(folded.matches("app", "users", "ssn") && !folded.matches("App", "Users", "SSN"));
    }

    #[test]
    fn wrong_patterns_are_refused() {
        for text in [
            "",
            "app",
            "app.",
            ".app",
            "app.a*b",
            "app.or ders",
            "a.b.c",
            "app.\"x",
            "app.\"\"",
            "app.\"x\"y",
        ] {
            assert!(RelationPattern::parse(text).is_err(), "{text}");
        }
        assert!(ColumnPattern::parse("app.users").is_err());
    }
}
