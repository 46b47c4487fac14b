//! One request of a preset, filled in: URL, headers' kind and body.
//!
//! Refuses a placeholder that stands for nothing. Invariant: what is filled in becomes one whole value, percent-encoded
//! in a form and quoted in JSON; it can add no field and change no other.

use std::collections::BTreeMap;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use http::Method;
use secrecy::SecretString;
use serde::Serialize;
use sidegate_policies::api::TokenIssuerSpec;
use sidegate_policies::presets::{url, Encoding, Field, LoginBy, Placeholder, Step};
use zeroize::Zeroizing;

/// What placeholders stand for.
pub(super) struct Facts<'a> {
    pub(super) spec: &'a TokenIssuerSpec,
    pub(super) audience: &'a str,
    pub(super) scope: &'a str,
    pub(super) pod_uid: &'a str,
    /// The assertion of this step; empty while its own claims are filled in.
    pub(super) assertion: &'a str,
    /// The token of the step before; empty in the first one.
    pub(super) previous: &'a str,
    /// The client's secret, where there is one.
    pub(super) secret: Option<&'a str>,
}

/// A request to send. No Debug: it carries the assertion.
pub(super) struct Request {
    pub(super) method: Method,
    /// One more header, whose value is secret.
    pub(super) secret: Option<(&'static str, SecretString)>,
    pub(super) url: String,
    pub(super) content_type: &'static str,
    pub(super) body: Zeroizing<String>,
}

/// A member of a JSON request.
#[derive(Serialize)]
#[serde(untagged)]
enum Json<'a> {
    Text(&'a str),
    List(Vec<&'a str>),
}

/// A placeholder with nothing behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing(pub(super) String);

impl Facts<'_> {
    /// What a field holds; nothing where it is left out.
    pub(super) fn fill<'f>(&'f self, field: &'f Field) -> Result<Option<&'f str>, Missing> {
        let (from, optional) = match field {
            Field::Literal(text) => return Ok(Some(text)),
            Field::Filled { from, optional } => (from, *optional),
        };
        let text = match from {
            Placeholder::Issuer => self.spec.issuer.as_str(),
            Placeholder::IssuerOrigin => url::read(&self.spec.issuer).map_or("", |url| url.origin),
            Placeholder::Audience => self.audience,
            Placeholder::Scope => self.scope,
            Placeholder::Assertion => self.assertion,
            Placeholder::Previous => self.previous,
            Placeholder::PodUid => self.pod_uid,
            Placeholder::Value(name) => self.spec.values.get(name).map_or("", String::as_str),
        };
        match text {
            "" if optional => Ok(None),
            "" => Err(Missing(format!("{from:?} has no value"))),
            text => Ok(Some(text)),
        }
    }

    /// The request of a step.
    pub(super) fn request(&self, step: &Step) -> Result<Request, Missing> {
        let url = step.post.url(&self.spec.issuer, &self.spec.values);
        let url = url.ok_or_else(|| Missing("the URL lacks something".to_owned()))?;
        let mut fields = BTreeMap::new();
        let login = step.login.as_ref().zip(self.secret);
        let left_out = |name: &String| login.is_some_and(|(login, _)| login.instead.contains(name));
        for (name, field) in step.fields.iter().filter(|(name, _)| !left_out(name)) {
            if let Some(text) = self.fill(field)? {
                fields.insert(name.as_str(), text);
            }
        }
        let mut secret = match (step.previous_in, self.previous) {
            (None, _) => None,
            (Some(_), "") => return Err(Missing("there is no token to show".to_owned())),
            (Some(header), token) => Some((header.as_str(), format!("{}{token}", header.scheme()).into())),
        };
        if let Some((login, password)) = login {
            let id = self.fill(&login.id)?;
            let id = id.ok_or_else(|| Missing("nobody says whose secret it is".to_owned()))?;
            match login.by {
                LoginBy::Basic => secret = Some(("authorization", basic(id, password))),
                LoginBy::Post => fields.extend([("client_id", id), ("client_secret", password)]),
            }
        }
        let (content_type, body) = match step.encoding {
            Encoding::Json => {
                let listed = |name: &str| step.lists.iter().any(|list| list == name);
                let members = fields.into_iter().map(|(name, text)| match listed(name) {
                    true => (name, Json::List(text.split_whitespace().collect())),
                    false => (name, Json::Text(text)),
                });
                let members: BTreeMap<&str, Json<'_>> = members.collect();
                let body = serde_json::to_string(&members).map_err(|error| Missing(error.to_string()))?;
                ("application/json", body)
            }
            Encoding::Form | Encoding::AwsQuery => ("application/x-www-form-urlencoded", form(&fields)),
        };
        Ok(Request {
            method: Method::POST,
            secret,
            url,
            content_type,
            body: Zeroizing::new(body),
        })
    }
}

/// RFC 6749 section 2.3.1: either part is encoded as in a form before the two are put together.
fn basic(id: &str, secret: &str) -> SecretString {
    let pair = Zeroizing::new(format!("{}:{}", url::encoded(id), url::encoded(secret)));
    format!("Basic {}", STANDARD.encode(pair.as_bytes())).into()
}

fn form(fields: &BTreeMap<&str, &str>) -> String {
    let pairs = fields.iter();
    let pairs = pairs.map(|(name, value)| format!("{}={}", url::encoded(name), url::encoded(value)));
    pairs.collect::<Vec<_>>().join("&")
}
