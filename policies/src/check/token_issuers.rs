//! TokenIssuers: a preset that exists and can be exchanged by, a provider that can be reached safely, and the values
//! the preset wants.
//!
//! Refuses whatever could only fail at an exchange: a preset nobody wrote, a missing value, one nobody asks for, an
//! issuer that is no https URL. Which Targets may refer to one is [`crate::objects::Objects::issuer_of`]'s to say.

use super::{Checked, Report};
use crate::api::TokenIssuerSpec;
use crate::objects::Objects;
use crate::presets::{self, url, Need, Preset};

/// The issuer that is Sidegate's own.
pub const OWN: &str = "sidegate";
/// Longest value.
const MAX_VALUE: usize = 1024;

pub(super) fn check(objects: &Objects, checked: &mut Checked) {
    for located in &objects.token_issuers {
        let issuer = &located.object;
        let label = format!("TokenIssuer {}", issuer.full_name());
        let mut report = Report::new(&located.origin, label, checked);
        report.metadata(&issuer.metadata);
        if issuer.metadata.name == OWN {
            report.problem(
                "metadata.name",
                "`sidegate` is Sidegate's own issuer; name this one otherwise",
            );
        }
        let spec = &issuer.spec;
        if let Err(why) = url::read(&spec.issuer) {
            report.problem("spec.issuer", why);
        }
        report.selector("spec.allowedNamespaces.selector", &spec.allowed_namespaces.selector);
        let pem = spec.ca_bundle.as_ref().map(|bundle| bundle.inline.as_str());
        if pem.is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
            report.problem("spec.caBundle.inline", "this holds no PEM certificate");
        }
        match presets::find(&spec.preset) {
            None => {
                let known: Vec<&str> = presets::all().iter().map(|preset| preset.name.as_str()).collect();
                let message = format!("there is no preset `{}`; known are {}", spec.preset, known.join(", "));
                report.problem("spec.preset", message);
            }
            Some(preset) => values(spec, preset, &mut report),
        }
    }
}

fn values(spec: &TokenIssuerSpec, preset: &Preset, report: &mut Report<'_>) {
    for (name, value) in &spec.values {
        let field = format!("spec.values.{name}");
        match preset.values.get(name) {
            None => {
                let known: Vec<&str> = preset.values.keys().map(String::as_str).collect();
                let message = format!(
                    "preset {} asks for no `{name}`; it takes: {}",
                    preset.name,
                    known.join(", ")
                );
                report.problem(field, message);
            }
            Some(Need::Endpoint) => {
                if let Err(why) = url::read(value) {
                    report.problem(field, why);
                }
            }
            Some(Need::Required | Need::Optional) => {
                if value.is_empty() || value.len() > MAX_VALUE || value.chars().any(char::is_control) {
                    let message = format!("a value has 1 to {MAX_VALUE} bytes and no control characters");
                    report.problem(field, message);
                } else if value == "." || value == ".." {
                    report.problem(field, "this would be a way up in a path");
                }
            }
        }
    }
    for (name, need) in &preset.values {
        if *need != Need::Optional && !spec.values.contains_key(name) {
            let message = format!("preset {} wants `{name}`", preset.name);
            report.problem(format!("spec.values.{name}"), message);
        }
    }
}
