//! Presets: how each kind of identity provider is spoken to, as data. A new provider is one file in `presets/` and
//! its line below.
//!
//! Owns the form of a preset and the closed set of placeholders. Refuses, before anything is sent, a placeholder that
//! does not exist, one that is only a part of a value, and a value nobody asks for. Invariants: code knows encodings and classes and never a provider's name; what a placeholder stands for
//! becomes a whole value of a form or a JSON text, or one segment of a path, never text pasted into either.

mod template;
pub mod url;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

pub use crate::api::token_issuer::AssertionAlg;
use crate::quantity::Span;
pub use template::{Endpoint, Field, Piece, Placeholder};

/// Every preset: the name, which is its file's in CamelCase, and its text.
const FILES: &[(&str, &str)] = &[
    ("Anthropic", include_str!("presets/anthropic.yaml")),
    ("AwsSts", include_str!("presets/aws-sts.yaml")),
    ("Dex", include_str!("presets/dex.yaml")),
    ("Entra", include_str!("presets/entra.yaml")),
    ("Generic", include_str!("presets/generic.yaml")),
    ("GenericAssertion", include_str!("presets/generic-assertion.yaml")),
    ("Google", include_str!("presets/google.yaml")),
    ("GoogleImpersonation", include_str!("presets/google-impersonation.yaml")),
    ("Keycloak", include_str!("presets/keycloak.yaml")),
    ("KeycloakExchange", include_str!("presets/keycloak-exchange.yaml")),
    ("Okta", include_str!("presets/okta.yaml")),
    ("OpenAI", include_str!("presets/openai.yaml")),
    ("Vault", include_str!("presets/vault.yaml")),
];

/// Requests of one exchange, at most.
const MAX_STEPS: usize = 3;
/// The longest life of an assertion.
const MAX_LIFE: std::time::Duration = std::time::Duration::from_secs(5 * 60);

static ALL: LazyLock<Vec<Preset>> = LazyLock::new(|| {
    // One that does not read is not known, so that nothing can refer to it; a test reads them all.
    let read = FILES.iter().filter_map(|(name, text)| Preset::read(name, text).ok());
    read.collect()
});

/// Every preset.
pub fn all() -> &'static [Preset] {
    &ALL
}

/// The preset of this name.
pub fn find(name: &str) -> Option<&'static Preset> {
    ALL.iter().find(|preset| preset.name == name)
}

/// How one kind of provider is spoken to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Preset {
    /// As in `spec.preset`.
    #[serde(skip)]
    pub name: String,
    /// What it does, for people.
    pub about: String,
    /// What the last step gives.
    #[serde(default)]
    pub gives: Gives,
    /// Whether a Target must name scopes.
    #[serde(default)]
    pub scopes: Scopes,
    /// What `spec.values` may hold.
    #[serde(default)]
    pub values: BTreeMap<String, Need>,
    /// One to three requests, in order.
    pub steps: Vec<Step>,
    /// How the token is ended before its time (RFC 7009), where the provider has an endpoint for it.
    #[serde(default)]
    pub revoke: Option<Revoke>,
}

/// The request that ends a token; `{previous}` stands for it. Of the answer nothing but the status counts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Revocation")]
pub struct Revoke(pub Step);

/// As it is written: a step without an answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Revocation {
    post: Endpoint,
    #[serde(default)]
    fields: BTreeMap<String, Field>,
    #[serde(default)]
    previous_in: Option<Header>,
    #[serde(default)]
    assertion: Option<AssertionSpec>,
    #[serde(default)]
    login: Option<Login>,
}

impl From<Revocation> for Revoke {
    fn from(read: Revocation) -> Self {
        Revoke(Step {
            post: read.post,
            encoding: Encoding::Form,
            fields: read.fields,
            lists: Vec::new(),
            previous_in: read.previous_in,
            assertion: read.assertion,
            login: read.login,
            reply: Reply {
                token: "/".to_owned(),
                more: Default::default(),
                expires_in: None,
                expires_at: None,
                expect: Vec::new(),
                audience: Audience::Unchecked,
            },
            errors: Vec::new(),
        })
    }
}

/// What an exchange gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Gives {
    /// A token that is shown as it is.
    #[default]
    Bearer,
    /// The same, and it opens the Vault that gave it.
    VaultToken,
    /// Keys that requests are signed with.
    Keys,
}

impl Gives {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Gives::Bearer => "a token",
            Gives::VaultToken => "a token of Vault",
            Gives::Keys => "keys to sign with",
        }
    }
}

/// Whether a Target must name scopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Scopes {
    /// It may.
    #[default]
    Optional,
    /// It must: the provider has no default.
    Required,
}

/// What one of `spec.values` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Need {
    /// A text that must be there.
    Required,
    /// A text that may be left out, and its field with it.
    Optional,
    /// A whole URL to send a request to, which must be there.
    Endpoint,
    /// The same, which may be left out, and the request with it.
    OptionalEndpoint,
    /// A text that each Target says, and the TokenIssuer does not.
    Target,
}

/// One request and what to make of its reply.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// Where it is posted to.
    pub post: Endpoint,
    /// How its fields are written.
    pub encoding: Encoding,
    /// The fields.
    pub fields: BTreeMap<String, Field>,
    /// Fields of a JSON request that are lists, of the words of their text.
    #[serde(default)]
    pub lists: Vec<String>,
    /// A header that shows the token of the step before, where the provider wants it there.
    #[serde(default)]
    pub previous_in: Option<Header>,
    /// The assertion that `{assertion}` stands for.
    #[serde(default)]
    pub assertion: Option<AssertionSpec>,
    /// How a client logs in with its secret, where a TokenIssuer has one.
    #[serde(default)]
    pub login: Option<Login>,
    /// Where the reply has what.
    pub reply: Reply,
    /// What errors mean; the first that fits. Without one, the status decides.
    #[serde(default)]
    pub errors: Vec<ErrorRule>,
}

/// A header that shows a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Header {
    /// Vault's own.
    #[serde(rename = "x-vault-token")]
    VaultToken,
    /// As a bearer's (RFC 6750 section 2.1).
    #[serde(rename = "authorization")]
    Bearer,
}

impl Header {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Header::VaultToken => "x-vault-token",
            Header::Bearer => "authorization",
        }
    }

    /// What stands in it before the token.
    pub fn scheme(self) -> &'static str {
        match self {
            Header::VaultToken => "",
            Header::Bearer => "Bearer ",
        }
    }
}

/// A client's login by a secret (RFC 6749 section 2.3.1).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Login {
    /// Where the secret stands.
    pub by: LoginBy,
    /// Who the client is: one of `spec.values`.
    pub id: Field,
    /// Fields that are left out then.
    #[serde(default)]
    pub instead: Vec<String>,
}

/// Where a client's secret stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum LoginBy {
    /// In the header `Authorization`.
    Basic,
    /// In the fields `client_id` and `client_secret`.
    Post,
}

/// How the fields of a request are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Encoding {
    /// `application/x-www-form-urlencoded`.
    Form,
    /// One JSON object of texts.
    Json,
    /// A form for AWS's query protocol, with its reply asked for as JSON.
    AwsQuery,
}

/// The assertion of a step: a JWT of ours.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AssertionSpec {
    /// Its sole audience.
    pub audience: Field,
    /// What it is signed with.
    #[serde(default)]
    pub alg: AssertionAlg,
    /// How long it lives.
    #[serde(default = "minute")]
    pub life: Span,
    /// `iss`, where it is not our own issuer URL.
    #[serde(default)]
    pub issuer: Option<Field>,
    /// `sub`, where it is not the agent.
    #[serde(default)]
    pub subject: Option<Field>,
}

impl AssertionSpec {
    /// The claims that are filled in.
    fn claims(&self) -> impl Iterator<Item = &Field> {
        let more = self.issuer.iter().chain(self.subject.iter());
        std::iter::once(&self.audience).chain(more)
    }
}

fn minute() -> Span {
    Span(std::time::Duration::from_secs(60))
}

/// Where a reply has what, as JSON pointers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reply {
    /// The token.
    pub token: String,
    /// What belongs to the token, such as the halves of a key.
    #[serde(default)]
    pub more: Vec<String>,
    /// Its life in seconds.
    #[serde(default)]
    pub expires_in: Option<String>,
    /// Its end: RFC 3339, or seconds since 1970.
    #[serde(default)]
    pub expires_at: Option<String>,
    /// What must stand there, or the reply is not the one that was asked for.
    #[serde(default)]
    pub expect: Vec<Expect>,
    /// A token that is a JWT and names audiences must name the Target's.
    #[serde(default)]
    pub audience: Audience,
}

/// Whether the audience of a JWT is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Audience {
    /// It is the Target's business.
    #[default]
    Unchecked,
    /// It must hold the one that was asked for.
    Checked,
}

/// One thing a good reply says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expect {
    /// Where.
    pub at: String,
    /// One of these texts.
    #[serde(rename = "in")]
    pub any: Vec<String>,
}

/// What one error means.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ErrorRule {
    /// Where.
    pub at: String,
    /// Exactly this text or number; never a part of prose.
    pub is: serde_json::Value,
    /// What it means.
    pub class: Class,
}

/// What to make of a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub enum Class {
    /// The provider says no.
    Final,
    /// It may say otherwise in a moment.
    Retry,
    /// It does not know of this trust yet.
    Propagation,
    /// It takes the assertion for too old or used: a new one, once.
    Reassert,
    /// It is not the reply of such a provider.
    Broken,
}

impl Class {
    /// As in the audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Final => "Final",
            Class::Retry => "Retry",
            Class::Propagation => "Propagation",
            Class::Reassert => "Reassert",
            Class::Broken => "Broken",
        }
    }
}

impl Preset {
    /// Reads a preset, or says what is wrong with it.
    pub fn read(name: &str, text: &str) -> Result<Preset, String> {
        let read = crate::yaml::read::<Preset>(text);
        let mut preset = read.map_err(|mistakes| {
            let told = mistakes
                .iter()
                .map(|mistake| format!("{}: {}", mistake.field, mistake.message));
            told.collect::<Vec<_>>().join("; ")
        })?;
        preset.name = name.to_owned();
        preset.sound()?;
        Ok(preset)
    }

    /// The values that say who the client is where it logs in by a secret; none: it cannot.
    pub fn client_ids(&self) -> impl Iterator<Item = &str> {
        let logins = self.steps.iter().filter_map(|step| step.login.as_ref());
        logins.filter_map(|login| match login.id.placeholder() {
            Some(Placeholder::Value(name)) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether a value is asked for where a client logs in by a secret, and nowhere else.
    pub fn is_for_login_alone(&self, value: &str) -> bool {
        let named = |placeholder: &&Placeholder| matches!(placeholder, Placeholder::Value(name) if name == value);
        let revoke = self.revoke.iter().map(|Revoke(step)| step);
        let mut other = self.steps.iter().chain(revoke).flat_map(Step::requested);
        let other = other.any(|placeholder| named(&placeholder));
        !other && self.client_ids().any(|id| id == value)
    }

    fn sound(&self) -> Result<(), String> {
        if self.steps.is_empty() || self.steps.len() > MAX_STEPS {
            return Err(format!("steps: one to {MAX_STEPS}"));
        }
        let mut unused: Vec<&String> = self.values.keys().collect();
        let steps = self
            .steps
            .iter()
            .enumerate()
            .map(|(at, step)| (at, format!("steps[{at}]"), step));
        let revoke = self
            .revoke
            .iter()
            .map(|Revoke(step)| (MAX_STEPS, "revoke".to_owned(), step));
        for (at, place, step) in steps.chain(revoke) {
            for placeholder in step.placeholders() {
                self.known(placeholder, at, step)
                    .map_err(|why| format!("{place}: {why}"))?;
                unused.retain(|name| placeholder != &Placeholder::Value((*name).clone()));
            }
            if step.previous_in.is_some() && (at == 0 || step.login.is_some()) {
                return Err(format!("{place}: previousIn: in a later step, and without a login"));
            }
            self.fits(step).map_err(|why| format!("{place}: {why}"))?;
            step.sound().map_err(|why| format!("{place}: {why}"))?;
        }
        match unused.first() {
            Some(name) => Err(format!("values.{name}: no step asks for it")),
            None => Ok(()),
        }
    }

    /// Whether what is filled in has the form its place wants, and cannot be missing there.
    fn fits(&self, step: &Step) -> Result<(), String> {
        if let Placeholder::Value(name) = &step.post.base {
            // What must be sent has an address; what ends a token may have none.
            let fits = match self.values.get(name) {
                Some(Need::Endpoint) => true,
                Some(Need::OptionalEndpoint) => self.revoke.as_ref().is_some_and(|Revoke(revoke)| revoke == step),
                _ => false,
            };
            if !fits {
                return Err(format!("post: `{name}` is no endpoint"));
            }
        }
        let claims = step.assertion.iter().flat_map(AssertionSpec::claims);
        let id = step.login.iter().map(|login| &login.id);
        for field in step.fields.values().chain(claims).chain(id) {
            let Field::Filled { from, optional } = field else {
                continue;
            };
            let may_lack = match from {
                Placeholder::Scope => self.scopes == Scopes::Optional,
                Placeholder::Value(name) => self.values.get(name) == Some(&Need::Optional),
                _ => false,
            };
            if may_lack != *optional {
                return Err(format!(
                    "{from:?}: `?` stands where there may be nothing, and only there"
                ));
            }
        }
        Ok(())
    }

    /// Whether a placeholder means something in this step.
    fn known(&self, placeholder: &Placeholder, at: usize, step: &Step) -> Result<(), String> {
        match placeholder {
            Placeholder::Assertion if step.assertion.is_none() => Err("{assertion} without an assertion".to_owned()),
            Placeholder::Previous if at == 0 => Err("{previous} in the first step".to_owned()),
            Placeholder::Value(name) if !self.values.contains_key(name) => {
                Err(format!("no such placeholder: {{{name}}}"))
            }
            _ => Ok(()),
        }
    }
}

impl Step {
    /// Whether its request carries an assertion; `login` where a client logs in by a secret.
    pub fn asserts(&self, login: bool) -> bool {
        let instead = self.login.iter().filter(|_| login).flat_map(|login| &login.instead);
        let instead: Vec<&String> = instead.collect();
        let sent = self.fields.iter().filter(|(name, _)| !instead.contains(name));
        self.assertion.is_some()
            && sent
                .into_iter()
                .any(|(_, field)| field.placeholder() == Some(&Placeholder::Assertion))
    }

    fn placeholders(&self) -> Vec<&Placeholder> {
        let id = self.login.iter().filter_map(|login| login.id.placeholder());
        let mut all = self.requested();
        all.extend(id);
        all
    }

    /// What is asked for whether or not a client logs in by a secret.
    fn requested(&self) -> Vec<&Placeholder> {
        let claims = self.assertion.iter().flat_map(AssertionSpec::claims);
        let fields = self.fields.values().chain(claims);
        let fields = fields.filter_map(Field::placeholder);
        self.post.placeholders().chain(fields).collect()
    }

    fn sound(&self) -> Result<(), String> {
        let reply = &self.reply;
        let pointers = [Some(&reply.token), reply.expires_in.as_ref(), reply.expires_at.as_ref()];
        let pointers = pointers.into_iter().flatten().chain(&reply.more);
        let pointers = pointers.chain(reply.expect.iter().map(|expect| &expect.at));
        let mut pointers = pointers.chain(self.errors.iter().map(|rule| &rule.at));
        if let Some(wrong) = pointers.find(|pointer| !pointer.starts_with('/')) {
            return Err(format!("`{wrong}` is no JSON pointer"));
        }
        if let Some(assertion) = &self.assertion {
            if assertion.life.0 > MAX_LIFE || assertion.life.0.is_zero() {
                return Err("assertion.life: at most 5m".to_owned());
            }
            // Whoever writes Targets does not choose whom we sign what for.
            let mut inside = assertion.claims().filter_map(Field::placeholder);
            let administrators = |from: &Placeholder| {
                matches!(
                    from,
                    Placeholder::Issuer | Placeholder::IssuerOrigin | Placeholder::Value(_)
                )
            };
            if !inside.all(administrators) {
                return Err("assertion: a claim holds what the TokenIssuer says, and nothing else".to_owned());
            }
        }
        let known = |name: &String| self.fields.contains_key(name);
        if !self.lists.iter().all(known) || (self.encoding != Encoding::Json && !self.lists.is_empty()) {
            return Err("lists: fields of a JSON request that are there".to_owned());
        }
        if let Some(login) = &self.login {
            if self.encoding != Encoding::Form
                || !login.instead.iter().all(known)
                || !matches!(login.id.placeholder(), Some(Placeholder::Value(_)))
            {
                return Err("login: a form, an id of the values, and instead of fields that are there".to_owned());
            }
        }
        let scalar = |rule: &ErrorRule| rule.is.is_string() || rule.is.is_i64();
        if !self.errors.iter().all(scalar) {
            return Err("errors: `is` is a text or an integer".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "presets/tests.rs"]
mod tests;
