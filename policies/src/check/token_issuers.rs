//! TokenIssuers: a preset that exists and can be exchanged by, a provider that can be reached safely, and the values
//! the preset wants.
//!
//! Refuses whatever could only fail at an exchange: a preset nobody wrote, a missing value, one nobody asks for, an
//! issuer that is no https URL. Which Targets may refer to one is [`crate::objects::Objects::issuer_of`]'s to say.

use super::targets::is_key;
use super::{holds_certificate, Checked, Report};
use crate::api::token_issuer::{Authorities, HomeRef, Publish};
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
        match &spec.ca_bundle {
            Some(Authorities::Inline(pem)) if !holds_certificate(pem) => {
                report.problem("spec.caBundle.inline", "this holds no PEM certificate");
            }
            Some(Authorities::ConfigMap(reference)) => home_ref("spec.caBundle.configMap", reference, &mut report),
            Some(Authorities::Inline(_)) | None => {}
        }
        match &spec.publish {
            Some(Publish::ConfigMap(map)) => report.reference("spec.publish.configMap.name".to_owned(), &map.name),
            Some(Publish::Directory(path)) if !path.starts_with('/') || path.contains('\0') => {
                report.problem("spec.publish.directory", "write the whole path, from `/` on");
            }
            Some(Publish::Directory(_)) | None => {}
        }
        match presets::find(&spec.preset) {
            None => {
                let known: Vec<&str> = presets::all().iter().map(|preset| preset.name.as_str()).collect();
                let message = format!("there is no preset `{}`; known are {}", spec.preset, known.join(", "));
                report.problem("spec.preset", message);
            }
            Some(preset) => {
                values(spec, preset, &mut report);
                login(spec, preset, &mut report);
            }
        }
    }
}

fn home_ref(field: &str, reference: &HomeRef, report: &mut Report<'_>) {
    report.reference(format!("{field}.name"), &reference.name);
    if !is_key(&reference.key) {
        report.problem(format!("{field}.key"), format!("`{}` is not a key", reference.key));
    }
}

/// A secret wants a preset that has a place for it, and a client whose secret it is.
fn login(spec: &TokenIssuerSpec, preset: &Preset, report: &mut Report<'_>) {
    let Some(reference) = &spec.client_secret_ref else {
        for name in spec.values.keys().filter(|name| preset.is_for_login_alone(name)) {
            let message = "this goes with clientSecretRef; without one, the assertion says who the client is";
            report.problem(format!("spec.values.{name}"), message);
        }
        return;
    };
    home_ref("spec.clientSecretRef", reference, report);
    if preset.client_ids().next().is_none() {
        let message = format!("preset {} has no place for a client's secret", preset.name);
        report.problem("spec.clientSecretRef", message);
    }
    for id in preset.client_ids().filter(|id| !spec.values.contains_key(*id)) {
        let message = format!("whose secret? name the client in values.{id}");
        report.problem("spec.clientSecretRef", message);
    }
}

fn values(spec: &TokenIssuerSpec, preset: &Preset, report: &mut Report<'_>) {
    for (name, value) in &spec.values {
        let field = format!("spec.values.{name}");
        match preset.values.get(name).filter(|need| **need != Need::Target) {
            None => {
                let own = preset.values.iter().filter(|(_, need)| **need != Need::Target);
                let known: Vec<&str> = own.map(|(name, _)| name.as_str()).collect();
                let message = format!(
                    "preset {} asks for no `{name}`; it takes: {}",
                    preset.name,
                    known.join(", ")
                );
                report.problem(field, message);
            }
            Some(Need::Endpoint | Need::OptionalEndpoint) => {
                if let Err(why) = url::read(value) {
                    report.problem(field, why);
                }
            }
            Some(Need::Required | Need::Optional | Need::Target) => {
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
        let optional = matches!(need, Need::Optional | Need::OptionalEndpoint | Need::Target);
        if !optional && !spec.values.contains_key(name) {
            let message = format!("preset {} wants `{name}`", preset.name);
            report.problem(format!("spec.values.{name}"), message);
        }
    }
}
