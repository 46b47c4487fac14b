//! The texts of a preset that are filled in: a URL of literal pieces and placeholders, and fields that are one or the
//! other.
//!
//! Refuses a placeholder that is not of the closed set or the preset's own values, one inside a longer value, and a URL
//! that does not begin with an origin somebody configured. Invariant: filling in can neither add a parameter nor leave
//! the origin.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// What a placeholder stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Placeholder {
    /// `spec.issuer`, byte for byte.
    Issuer,
    /// Its scheme, host and port.
    IssuerOrigin,
    /// The Target's `token.audience`.
    Audience,
    /// The Target's `token.scopes`, parted by spaces.
    Scope,
    /// The assertion made for this step.
    Assertion,
    /// The token of the step before.
    Previous,
    /// The UID of the agent's pod.
    PodUid,
    /// One of `spec.values`.
    Value(String),
}

impl Placeholder {
    fn read(name: &str) -> Result<Self, String> {
        let formed = |byte: u8| byte.is_ascii_alphanumeric();
        if name.is_empty() || !name.bytes().all(formed) {
            return Err(format!("`{{{name}}}` is no placeholder"));
        }
        Ok(match name {
            "issuer" => Placeholder::Issuer,
            "issuerOrigin" => Placeholder::IssuerOrigin,
            "audience" => Placeholder::Audience,
            "scope" => Placeholder::Scope,
            "assertion" => Placeholder::Assertion,
            "previous" => Placeholder::Previous,
            "podUid" => Placeholder::PodUid,
            other => Placeholder::Value(other.to_owned()),
        })
    }
}

/// A value of a request: a literal, or exactly one placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// As it stands.
    Literal(String),
    /// `{name}`; with `{name?}` the field is left out where there is nothing.
    Filled {
        /// What it stands for.
        from: Placeholder,
        /// Whether it may be left out.
        optional: bool,
    },
}

impl Field {
    /// What it asks for, if it is no literal.
    pub fn placeholder(&self) -> Option<&Placeholder> {
        match self {
            Field::Literal(_) => None,
            Field::Filled { from, .. } => Some(from),
        }
    }

    fn read(text: &str) -> Result<Self, String> {
        let Some(inner) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
            return if text.contains(['{', '}']) {
                Err(format!("`{text}`: a placeholder is a whole value"))
            } else {
                Ok(Field::Literal(text.to_owned()))
            };
        };
        let (name, optional) = match inner.strip_suffix('?') {
            Some(name) => (name, true),
            None => (inner, false),
        };
        Ok(Field::Filled {
            from: Placeholder::read(name)?,
            optional,
        })
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Field::read(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// One part of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// As it stands.
    Literal(String),
    /// One segment, percent-encoded.
    Segment(Placeholder),
}

/// Where a request goes: an origin or URL that somebody configured, and a path behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `{issuer}`, `{issuerOrigin}`, or a value that is an endpoint.
    pub base: Placeholder,
    /// What follows.
    pub path: Vec<Piece>,
}

impl Endpoint {
    /// Everything it asks for.
    pub fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        let path = self.path.iter().filter_map(|piece| match piece {
            Piece::Literal(_) => None,
            Piece::Segment(placeholder) => Some(placeholder),
        });
        std::iter::once(&self.base).chain(path)
    }

    /// The URL, with what placeholders stand for. `None` where one has nothing.
    pub fn url(&self, issuer: &str, values: &BTreeMap<String, String>) -> Option<String> {
        let origin = super::url::read(issuer).ok()?.origin;
        let mut url = match &self.base {
            Placeholder::Issuer => issuer.trim_end_matches('/').to_owned(),
            Placeholder::IssuerOrigin => origin.to_owned(),
            Placeholder::Value(name) => values.get(name)?.clone(),
            _ => return None,
        };
        for piece in &self.path {
            match piece {
                Piece::Literal(text) => url.push_str(text),
                Piece::Segment(Placeholder::Value(name)) => url.push_str(&segment(values.get(name)?)?),
                Piece::Segment(_) => return None,
            }
        }
        Some(url)
    }

    fn read(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (base, mut rest) = rest.ok_or("a URL begins with {issuer}, {issuerOrigin} or an endpoint's name")?;
        let base = Placeholder::read(base)?;
        let mut path = Vec::new();
        while !rest.is_empty() {
            let (literal, after) = rest.split_once('{').unwrap_or((rest, ""));
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~:".contains(&byte);
            if !literal.bytes().all(plain) {
                return Err(format!("`{literal}` is no part of a path"));
            }
            path.push(Piece::Literal(literal.to_owned()));
            if literal.len() == rest.len() {
                break;
            }
            // A whole segment: what stands in it cannot reach into the next one.
            let (name, after) = after.split_once('}').ok_or("an open brace")?;
            let ends = after.is_empty() || after.starts_with('/');
            if !literal.ends_with('/') || !ends {
                return Err(format!("`{{{name}}}`: a placeholder is a whole segment"));
            }
            path.push(Piece::Segment(Placeholder::read(name)?));
            rest = after;
        }
        let inner = |piece: &Piece| matches!(piece, Piece::Literal(_) | Piece::Segment(Placeholder::Value(_)));
        match (&base, path.iter().all(inner), path.first()) {
            (Placeholder::Issuer | Placeholder::IssuerOrigin, true, Some(Piece::Literal(path)))
                if path.starts_with('/') => {}
            (Placeholder::Value(_), true, None) => {}
            _ => return Err(format!("`{text}`: no URL somebody configured, with a path behind it")),
        }
        Ok(Endpoint { base, path })
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Endpoint::read(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// One segment, percent-encoded. What a server could take for a way up is nothing.
fn segment(text: &str) -> Option<String> {
    if text.is_empty() || text == "." || text == ".." {
        return None;
    }
    Some(super::url::encoded(text))
}
