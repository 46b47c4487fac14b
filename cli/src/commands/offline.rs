//! What verbs that judge without anything running have in common: a checked configuration, the bundle it makes for a
//! subject, and the schema that names are resolved in.
//!
//! The bundle is built by the broker's own index, so a Target that a subject would not be given is not explained as
//! if it were. Refused: a configuration with a problem, and a schema file that cannot be read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;
use sidegate_broker::index::{Index, Withheld};
use sidegate_policies::api::lockdown::Freeze;
use sidegate_policies::api::{Lockdown, Target};
use sidegate_policies::compile::compile;
use sidegate_policies::engine::{PolicySet, Subject, TargetId};
use sidegate_policies::explanation::{self, Explanation, Setting};
use sidegate_policies::objects::Objects;
use sidegate_policies::reason::Reason;
use sidegate_policies::sql::postgres::catalog::{self, Catalog};

use super::{source, Usage};
use crate::out::{visible, Out, Tone};

/// Majors whose own catalog is built in.
const MAJORS: std::ops::RangeInclusive<u32> = 12..=18;
/// Approval digests need a key; nothing that is explained depends on it.
const DIGEST_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A checked configuration.
pub struct Offline {
    objects: Objects,
    index: Index,
}

/// What one subject gets.
pub struct World<'a> {
    /// The subject.
    pub subject: &'a Subject,
    /// Its policies.
    pub set: PolicySet,
    /// Every Target of the configuration, and why this subject is not given it.
    pub targets: Vec<(TargetId, Option<String>)>,
    lockdowns: &'a [Lockdown],
    served: Vec<Target>,
}

impl Offline {
    /// Reads a configuration that must be right.
    pub fn read(paths: &[PathBuf], out: &Out) -> Result<(Self, Vec<Lockdown>)> {
        let configuration = source::read_valid(paths, out)?;
        let index = Index::new(
            configuration.objects.clone(),
            1,
            "local".to_owned(),
            DIGEST_KEY.to_owned(),
        );
        let lockdowns = index.objects().lockdowns();
        let objects = configuration.objects;
        Ok((Offline { objects, index }, lockdowns))
    }

    /// Objects of a cluster, without those Targets that are offered to nobody.
    pub fn of(objects: Objects, withheld: Withheld) -> Self {
        let (cluster, key) = ("local".to_owned(), DIGEST_KEY.to_owned());
        let index = Index::new(objects.clone(), 1, cluster, key).withholding(withheld);
        Offline { objects, index }
    }

    /// What one subject gets of it.
    pub fn world<'a>(&self, subject: &'a Subject, lockdowns: &'a [Lockdown]) -> Result<World<'a>> {
        let offer = self.index.offer(subject);
        let set = compile(&offer.bundle).map_err(|problems| {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Usage(all.join("\n"))
        })?;
        let targets = self.index.standing(subject).into_iter().map(|(target, standing)| {
            let namespace = target.metadata.namespace.as_deref().unwrap_or_default();
            (TargetId::new(namespace, &target.metadata.name), standing.err())
        });
        Ok(World {
            served: offer
                .bundle
                .targets
                .iter()
                .map(|bundled| bundled.target.clone())
                .collect(),
            subject,
            targets: targets.collect(),
            set,
            lockdowns,
        })
    }

    /// The one database a Target names, if it names one.
    pub fn database(&self, target: &TargetId) -> Option<&str> {
        let found = self.objects.target(&target.namespace, &target.name)?;
        found.object.spec.databases.first().map(String::as_str)
    }
}

impl World<'_> {
    /// The Targets this subject is given.
    pub fn served(&self) -> &[Target] {
        &self.served
    }

    /// The Lockdown of the configuration that freezes this subject on a target.
    pub fn frozen(&self, target: &TargetId) -> Option<&str> {
        let lock = self.lockdowns.iter().find(|lock| freezes(lock, self.subject, target))?;
        Some(&lock.metadata.name)
    }

    /// Explains a statement, or without one the session that opens. Refused: a Target that is not there.
    pub fn explain(&self, target: &TargetId, sql: Option<&str>, setting: &Setting) -> Result<Explanation, String> {
        let known = self.targets.iter().find(|(id, _)| id == target);
        let (_, reason) = known.ok_or_else(|| format!("there is no Target {target}"))?;
        if let Some(name) = self.frozen(target) {
            let message = format!("it is frozen by Lockdown {name}");
            return Ok(explanation::refusal(Reason::Locked, message));
        }
        let now = jiff::Timestamp::now();
        let told = explanation::explain(&self.set, self.subject, target, sql, setting, now);
        Ok(match reason {
            Some(reason) => Explanation {
                change: vec![self.admission(target, reason)],
                ..explanation::refusal(Reason::Denied, format!("this agent is not given the Target: {reason}"))
            },
            None => told,
        })
    }

    /// What gives this subject a Target it is not given.
    fn admission(&self, target: &TargetId, reason: &str) -> String {
        let (namespace, account) = (&self.subject.namespace, &self.subject.service_account);
        if reason.starts_with("NamespaceNotAllowed") {
            return format!("allowedNamespaces of {target} has to admit the labels of namespace {namespace}");
        }
        if reason.starts_with("NoPolicy") {
            return format!(
                "An AccessPolicy in namespace {} has to name both: targetRefs: [{{name: {}}}], \
                 subjects: [{{serviceAccount: {{namespace: {namespace}, name: {account}}}}}]",
                target.namespace, target.name
            );
        }
        format!("The configuration of {target} has to be mended: {reason}")
    }
}

/// Whether a Lockdown of the configuration is in force for this subject on this target.
fn freezes(lock: &Lockdown, subject: &Subject, target: &TargetId) -> bool {
    let until = lock
        .spec
        .until
        .as_deref()
        .and_then(|until| until.parse::<jiff::Timestamp>().ok());
    let over = until.is_some_and(|until| until <= jiff::Timestamp::now());
    let hits = |freeze: &Freeze| match freeze {
        Freeze::ServiceAccount(account) => {
            account.namespace == subject.namespace && account.name == subject.service_account
        }
        Freeze::Namespace(namespace) => *namespace == subject.namespace,
        Freeze::Target(frozen) => frozen.namespace == *target.namespace && frozen.name == *target.name,
        Freeze::Everything(_) => true,
        Freeze::Pod(pod) => pod.namespace == subject.namespace && pod.name == subject.pod,
        // Secrets and tokens exist only while something runs.
        Freeze::Secret(_) | Freeze::Issuer(_) | Freeze::TokenId(_) => false,
    };
    !over && lock.spec.freeze.iter().any(hits)
}

/// A subject from `NAMESPACE/SERVICEACCOUNT` and `KEY=VALUE` labels.
pub fn subject(identity: &str, labels: &[String]) -> Result<Subject, Usage> {
    let (namespace, account) = two_names("--as", identity)?;
    let mut map = BTreeMap::new();
    for label in labels {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| Usage(format!("--label {label}: write KEY=VALUE")))?;
        map.insert(key.to_owned(), value.to_owned());
    }
    Ok(Subject {
        namespace,
        service_account: account,
        pod: "explained".to_owned(),
        pod_uid: "explained".to_owned(),
        labels: map,
    })
}

/// A Target from `NAMESPACE/NAME`.
pub fn target(name: &str) -> Result<TargetId, Usage> {
    let (namespace, name) = two_names("--target", name)?;
    Ok(TargetId::new(&namespace, &name))
}

fn two_names(option: &str, text: &str) -> Result<(String, String), Usage> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(Usage(format!("{option} {text}: write NAMESPACE/NAME"))),
    }
}

/// A schema file as it was read.
#[derive(Debug, Clone)]
pub struct Schema {
    catalog: Arc<Catalog>,
    major: u32,
    file: Option<PathBuf>,
    /// What of it was not understood.
    pub notes: Vec<SchemaNote>,
}

/// Something of a schema file that was not understood.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SchemaNote {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// What it is, and what it means.
    pub message: String,
}

impl Schema {
    /// Reads `*.sql` (a schema as SQL) or `*.json` (what `policy schema-query` prints); without a file only the
    /// server's own names are known.
    pub fn read(file: Option<&Path>, major: Option<u32>) -> Result<Self> {
        if let Some(major) = major.filter(|major| !MAJORS.contains(major)) {
            let (first, last) = (MAJORS.start(), MAJORS.end());
            return Err(Usage(format!(
                "PostgreSQL {major}: write a major version from {first} to {last}"
            ))
            .into());
        }
        let own = major.unwrap_or(*MAJORS.end());
        let builtin = || catalog::builtin(own).context("the built-in catalog");
        let Some(path) = file else {
            return Ok(Schema {
                catalog: Arc::new(builtin()?),
                major: own,
                file: None,
                notes: Vec::new(),
            });
        };
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| Usage(format!("{name}: {error}")))?;
        let (catalog, notes) = match path.extension().and_then(|extension| extension.to_str()) {
            Some("sql") => catalog::read_sql(&text, builtin()?),
            Some("json") => {
                let read = catalog::read_snapshot(&text).map_err(|error| Usage(format!("{name}: {error}")))?;
                (read, Vec::new())
            }
            _ => return Err(Usage(format!("{name}: a schema file is called *.sql or *.json")).into()),
        };
        let found = catalog.server_version().checked_div(10_000).unwrap_or(own);
        let note = |note: catalog::Note| SchemaNote {
            file: name.clone(),
            line: note.line,
            message: note.message,
        };
        Ok(Schema {
            catalog: Arc::new(catalog),
            // A file of SQL says nothing about its server; a snapshot does.
            major: major.unwrap_or(if path.extension().is_some_and(|e| e == "json") {
                found
            } else {
                own
            }),
            notes: notes.into_iter().map(note).collect(),
            file: Some(path.to_owned()),
        })
    }

    /// The setting of a session on it.
    pub fn setting(&self, database: &str, role: &str, search_path: Option<&[String]>) -> Setting {
        Setting {
            catalog: Arc::clone(&self.catalog),
            has_schema: self.file.is_some(),
            search_path: match search_path {
                Some(path) => path.iter().map(|schema| Arc::from(schema.as_str())).collect(),
                None => catalog::default_path(),
            },
            database: database.into(),
            role: role.into(),
            major: self.major,
        }
    }

    /// The file's name.
    pub fn file(&self) -> Option<String> {
        self.file.as_ref().map(|file| file.display().to_string())
    }

    /// Says what was not understood, on standard error.
    pub fn remark(&self, out: &Out) {
        for note in &self.notes {
            let line = format!("{}:{}: {}", note.file, note.line, visible(&note.message));
            out.remark(out.tone(Tone::Warn, line));
        }
    }
}
