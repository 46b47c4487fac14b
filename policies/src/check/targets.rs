//! Targets: addresses, ports, logins that can work, and what two Targets cannot share.
//!
//! Refuses combinations that could only fail at run time or that would reveal a credential (a token without TLS).
//! A missing ConfigMap is a warning: it may still come.

use std::collections::{HashMap, HashSet};

use super::{holds_certificate, hostnames, hosts, Checked, Report, OWN};
use crate::api::target::{AwsIamCredential, AwsService, CaBundle, Credential, TargetProtocol, TlsMode, WeakLogin};
use crate::api::{Target, TargetSpec};
use crate::credential_kinds::{self, MinimumTls};
use crate::objects::{Located, Objects};

/// Variables one Target may set.
const MAX_ENV: usize = 16;
/// Longest value of a variable.
const MAX_ENV_VALUE: usize = 4096;

pub(super) fn check(objects: &Objects, checked: &mut Checked) {
    for located in &objects.targets {
        let target = &located.object;
        let mut report = report(located, checked);
        report.metadata(&target.metadata);
        let spec = &target.spec;
        place(spec, &mut report);
        hostnames::check(spec, &mut report);
        login(spec, &mut report);
        match spec.protocol {
            TargetProtocol::Postgres => postgres(spec, &mut report),
            TargetProtocol::Tcp => raw(spec, &mut report),
        }
        authorities(objects, target, &mut report);
        // It may still come, or be allowed later: until then the Target is offered to nobody.
        if let Err(unresolved) = objects.issuer_of(target) {
            let field = format!("spec.credential.{}.issuer", spec.credential.as_str());
            report.warning(field, unresolved.message);
        }
        if let Some(allowed) = &spec.allowed_namespaces {
            report.selector("spec.allowedNamespaces.selector", &allowed.selector);
        }
        environment(target, &mut HashMap::new(), &mut report);
    }
}

/// What Targets cannot share in one pod.
pub(super) fn together(objects: &Objects, checked: &mut Checked) {
    let mut ports: HashMap<i32, String> = HashMap::new();
    let mut variables: HashMap<String, (String, String)> = HashMap::new();
    for located in &objects.targets {
        let target = &located.object;
        let mut report = report(located, checked);
        let port = target.spec.listen.port;
        if let Some(first) = ports.get(&port) {
            report.problem(
                "spec.listen.port",
                format!("Target {first} already listens on port {port}"),
            );
        } else {
            ports.insert(port, target.full_name());
        }
        if !target.spec.listen.hostnames.is_empty() {
            let message = format!(
                "names lead to it in pods of a cluster, by their hosts file; on one machine it is found on \
                 127.0.0.1:{port} alone"
            );
            report.warning("spec.listen.hostnames", message);
        }
        environment(target, &mut variables, &mut report);
    }
}

fn report<'a>(located: &'a Located<Target>, checked: &'a mut Checked) -> Report<'a> {
    Report::new(
        &located.origin,
        format!("Target {}", located.object.full_name()),
        checked,
    )
}

fn place(spec: &TargetSpec, report: &mut Report<'_>) {
    if let Some(message) = hosts::wrong(&spec.address.host) {
        report.problem("spec.address.host", message);
    }
    for (field, port) in [
        ("spec.address.port", spec.address.port),
        ("spec.listen.port", spec.listen.port),
    ] {
        if !(1..=65_535).contains(&port) {
            report.problem(field, format!("{port} is not a port; 1 to 65535"));
        }
    }
    if let Some(name) = &spec.tls.server_name {
        if let Some(message) = hosts::wrong(name) {
            report.problem("spec.tls.serverName", message);
        }
    }
    if spec.tls.mode == TlsMode::Disabled {
        if spec.tls.server_name.is_some() {
            report.problem("spec.tls.serverName", "without TLS no name is checked; remove it");
        }
        if spec.tls.ca_bundle.is_some() {
            report.problem("spec.tls.caBundle", "without TLS no certificate is checked; remove it");
        }
    }
}

fn login(spec: &TargetSpec, report: &mut Report<'_>) {
    match &spec.credential {
        Credential::Secret(secret) => {
            report.reference("spec.credential.secret.name".to_owned(), &secret.name);
            for (field, key) in [
                ("usernameKey", &secret.username_key),
                ("passwordKey", &secret.password_key),
            ] {
                if !is_key(key) {
                    let message = format!("`{key}` is not a key: letters, digits, `-`, `_` and `.`");
                    report.problem(format!("spec.credential.secret.{field}"), message);
                }
            }
        }
        Credential::Token(token) => {
            report.reference("spec.credential.token.issuer".to_owned(), &token.issuer);
            scopes(&token.scopes, report);
            if token.audience.trim().is_empty() {
                report.problem("spec.credential.token.audience", "name the audience the target expects");
            }
        }
        Credential::Vault(vault) => {
            report.reference("spec.credential.vault.issuer".to_owned(), &vault.issuer);
            own(&spec.credential, report);
            engine(&spec.credential, (&vault.mount, &vault.role), report);
        }
        Credential::AwsIam(aws) => aws_iam(aws, spec, report),
        Credential::SshCertificate(ssh) => {
            report.reference("spec.credential.sshCertificate.issuer".to_owned(), &ssh.issuer);
            own(&spec.credential, report);
            engine(&spec.credential, (&ssh.mount, &ssh.role), report);
            principals(&ssh.principals, report);
        }
        Credential::None(_) => {}
    }
    let kind = credential_kinds::kind(&spec.credential);
    if kind.tls == MinimumTls::Verified && spec.tls.mode == TlsMode::Disabled {
        let message = "this credential goes through verified TLS only, and tls.mode is Disabled";
        report.problem(format!("spec.credential.{}", spec.credential.as_str()), message);
    }
    if spec.weak_login == WeakLogin::InsideTls && spec.tls.mode == TlsMode::Disabled {
        let message = "InsideTLS says nothing where tls.mode is Disabled; use VerifyFull, or Refuse for SCRAM";
        report.problem("spec.weakLogin", message);
    }
}

/// An engine of a Vault, and its role.
fn engine(credential: &Credential, (mount, role): (&str, &str), report: &mut Report<'_>) {
    for (field, path) in [("mount", mount), ("role", role)] {
        if !is_path(path) || (field == "role" && path.contains('/')) {
            let message = format!("`{path}` is not a {field}: letters, digits, `-`, `_` and `.`");
            report.problem(format!("spec.credential.{}.{field}", credential.as_str()), message);
        }
    }
}

/// Users a certificate is for. One without any would be for everybody.
fn principals(principals: &[String], report: &mut Report<'_>) {
    if !(1..=16).contains(&principals.len()) {
        let message = "name the users it is for, 1 to 16 of them";
        report.problem("spec.credential.sshCertificate.principals", message);
    }
    for (at, name) in principals.iter().enumerate() {
        let formed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(formed) {
            let message = format!("`{name}` is no user's name: letters, digits, `-`, `_`, `.` and `@`");
            report.problem(format!("spec.credential.sshCertificate.principals[{at}]"), message);
        }
    }
}

fn aws_iam(aws: &AwsIamCredential, spec: &TargetSpec, report: &mut Report<'_>) {
    report.reference("spec.credential.awsIam.issuer".to_owned(), &aws.issuer);
    own(&spec.credential, report);
    if !is_role(&aws.role_arn) {
        let message = format!("`{}` is no role: arn:aws:iam::ACCOUNT:role/NAME", aws.role_arn);
        report.problem("spec.credential.awsIam.roleArn", message);
    }
    let formed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !(1..=32).contains(&aws.region.len()) || !aws.region.bytes().all(formed) {
        report.problem(
            "spec.credential.awsIam.region",
            format!("`{}` is no region", aws.region),
        );
    }
}

/// `arn:PARTITION:iam::ACCOUNT:role/PATH`, as IAM forms it.
fn is_role(arn: &str) -> bool {
    let mut parts = arn.splitn(6, ':');
    let mut part = || parts.next().unwrap_or_default();
    let (arn_, partition, service, region, account, role) = (part(), part(), part(), part(), part(), part());
    let formed = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-/".contains(&byte);
    arn.len() <= 2048
        && (arn_, service, region) == ("arn", "iam", "")
        && partition.starts_with("aws")
        && account.len() == 12
        && account.bytes().all(|byte| byte.is_ascii_digit())
        && role
            .strip_prefix("role/")
            .is_some_and(|name| !name.is_empty() && name.bytes().all(formed))
}

/// Only tokens come from Sidegate's own issuer.
fn own(credential: &Credential, report: &mut Report<'_>) {
    if credential.issuer() == Some(OWN) {
        let field = format!("spec.credential.{}.issuer", credential.as_str());
        report.problem(field, "Sidegate's own issuer gives tokens alone; name a TokenIssuer");
    }
}

/// A path at a Vault: segments that need no encoding, and none that leads up.
fn is_path(path: &str) -> bool {
    (1..=253).contains(&path.len()) && path.split('/').all(is_key)
}

/// RFC 6749 section 3.3: a scope has no space in it.
fn scopes(scopes: &[String], report: &mut Report<'_>) {
    let formed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    for (at, scope) in scopes.iter().enumerate() {
        if scope.is_empty() || !scope.bytes().all(formed) {
            let message = format!("`{scope}` is not a scope: no spaces, quotes or backslashes; one in each entry");
            report.problem(format!("spec.credential.token.scopes[{at}]"), message);
        }
    }
}

fn postgres(spec: &TargetSpec, report: &mut Report<'_>) {
    let mut seen = HashSet::new();
    for (at, database) in spec.databases.iter().enumerate() {
        let field = format!("spec.databases[{at}]");
        if database.is_empty() || database.len() > 63 || database.contains('\0') {
            report.problem(&field, "a database name has 1 to 63 bytes");
        } else if !seen.insert(database) {
            report.problem(&field, format!("`{database}` is listed twice"));
        }
    }
    let (field, username) = match &spec.credential {
        Credential::Token(token) => ("spec.credential.token.username", &token.username),
        Credential::None(none) => ("spec.credential.none.username", &none.username),
        Credential::AwsIam(aws) => {
            if aws.service == AwsService::SigV4 {
                let message = "PostgreSQL takes no signed requests; use Rds";
                report.problem("spec.credential.awsIam.service", message);
            }
            ("spec.credential.awsIam.username", &aws.username)
        }
        Credential::SshCertificate(_) => {
            let message = "PostgreSQL has no login by SSH certificates, and no protocol that is built has one";
            report.problem("spec.credential.sshCertificate", message);
            return carries_nothing(spec, report);
        }
        Credential::Secret(_) | Credential::Vault(_) => return carries_nothing(spec, report),
    };
    match username.as_deref() {
        None => report.problem(field, "PostgreSQL wants a role at login; name it here"),
        Some(name) if name.is_empty() || name.len() > 63 || name.contains('\0') => {
            report.problem(field, "a role's name has 1 to 63 bytes");
        }
        Some(_) => {}
    }
    carries_nothing(spec, report);
}

fn carries_nothing(spec: &TargetSpec, report: &mut Report<'_>) {
    if !spec.carries.is_empty() {
        report.problem("spec.carries", "only a TCP Target carries other protocols unread");
    }
}

fn raw(spec: &TargetSpec, report: &mut Report<'_>) {
    match &spec.credential {
        Credential::None(none) if none.username.is_none() => {}
        Credential::None(_) => {
            report.problem(
                "spec.credential.none.username",
                "a raw TCP stream has no login; remove it",
            );
        }
        Credential::Secret(_)
        | Credential::Token(_)
        | Credential::Vault(_)
        | Credential::AwsIam(_)
        | Credential::SshCertificate(_) => {
            report.problem("spec.credential", "a raw TCP stream has no login; write `none: {}`");
        }
    }
    if !spec.databases.is_empty() {
        report.problem("spec.databases", "a raw TCP stream has no databases; remove them");
    }
    if spec.weak_login != WeakLogin::Refuse {
        report.problem("spec.weakLogin", "a raw TCP stream has no login; remove it");
    }
    let mut seen = Vec::new();
    for (at, carried) in spec.carries.iter().enumerate() {
        if seen.contains(carried) {
            report.problem(format!("spec.carries[{at}]"), "listed twice");
        }
        seen.push(*carried);
    }
}

fn authorities(objects: &Objects, target: &Target, report: &mut Report<'_>) {
    match &target.spec.tls.ca_bundle {
        Some(CaBundle::Inline(pem)) if !holds_certificate(pem) => {
            report.problem("spec.tls.caBundle.inline", "this holds no PEM certificate");
        }
        Some(CaBundle::ConfigMap(reference)) => {
            let field = "spec.tls.caBundle.configMap";
            report.reference(format!("{field}.name"), &reference.name);
            if !is_key(&reference.key) {
                report.problem(format!("{field}.key"), format!("`{}` is not a key", reference.key));
            }
            let namespace = target.metadata.namespace.as_deref().unwrap_or_default();
            let found = objects.config_map(namespace, &reference.name);
            match found.map(|map| map.data.get(&reference.key)) {
                None => {
                    let message = format!("there is no ConfigMap {namespace}/{} (yet)", reference.name);
                    report.warning(format!("{field}.name"), message);
                }
                Some(None) => {
                    let message = format!(
                        "ConfigMap {namespace}/{} has no `{}` (yet)",
                        reference.name, reference.key
                    );
                    report.warning(format!("{field}.key"), message);
                }
                Some(Some(pem)) if !holds_certificate(pem) => {
                    report.problem(format!("{field}.key"), "that key holds no PEM certificate");
                }
                Some(Some(_)) => {}
            }
        }
        Some(CaBundle::Inline(_)) | None => {}
    }
}

fn environment(target: &Target, all: &mut HashMap<String, (String, String)>, report: &mut Report<'_>) {
    let env = &target.spec.env;
    if env.len() > MAX_ENV {
        report.problem("spec.env", format!("at most {MAX_ENV} variables"));
    }
    let mut own = HashSet::new();
    for (at, variable) in env.iter().enumerate() {
        let field = |key: &str| format!("spec.env[{at}].{key}");
        let name = variable.name.as_str();
        let formed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty()
            || name.len() > 128
            || !name.bytes().all(formed)
            || name.starts_with(|c: char| c.is_ascii_digit())
        {
            report.problem(field("name"), format!("`{name}` is not a variable's name"));
            continue;
        }
        if name.starts_with("SIDEGATE_") {
            report.problem(field("name"), "names that begin with SIDEGATE_ are Sidegate's own");
        }
        if variable.value.contains("$(") {
            report.problem(
                field("value"),
                "not built yet: placeholders in values; write the value itself",
            );
        }
        if variable.value.len() > MAX_ENV_VALUE || variable.value.contains('\0') {
            report.problem(
                field("value"),
                format!("a value has at most {MAX_ENV_VALUE} bytes and no NUL"),
            );
        }
        if !own.insert(name) {
            report.problem(field("name"), format!("`{name}` is set twice"));
            continue;
        }
        match all.get(name) {
            Some((value, first)) if *value != variable.value => {
                let message = format!("Target {first} sets `{name}` to another value, and an agent may use both");
                report.problem(field("value"), message);
            }
            Some(_) => {}
            None => {
                all.insert(name.to_owned(), (variable.value.clone(), target.full_name()));
            }
        }
    }
}

/// A key of a Secret or ConfigMap: one file name, never a path.
pub(super) fn is_key(key: &str) -> bool {
    let formed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=253).contains(&key.len()) && key.bytes().all(formed) && key != "." && !key.starts_with("..")
}
