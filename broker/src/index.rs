//! From objects to what one workload gets: its bundle, and why a Target is not in it.
//!
//! Refuses to bundle a Target that the workload's namespace may not refer to, that no policy naming the workload
//! refers to, or whose references do not resolve; each with its reason. The invariant: a body is serialised and
//! hashed once per class of workloads, and everything the broker grants later is looked up in that very bundle.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sidegate_policies::api::access_policy::{Rule, RuleEffect, SubjectMatch};
use sidegate_policies::api::access_request::ApproverSet;
use sidegate_policies::api::meta::LocalRef;
use sidegate_policies::api::target::{CaBundle, TlsMode};
use sidegate_policies::api::{AccessPolicy, Target};
use sidegate_policies::bundle::{version, Bundle, BundledTarget};
use sidegate_policies::engine::Subject;
use sidegate_policies::objects::Objects;
use sidegate_policies::seal::Revisions;

/// How long a grant may be used where a rule does not say.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(15 * 60);

/// The largest bundle offered; a larger one denies everything.
pub const MAX_BODY: usize = 8 << 20;

/// Targets that are offered to nobody, although they are right: something that may restrict them is not understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Withheld {
    all: Option<String>,
    namespaces: BTreeMap<String, String>,
    targets: BTreeMap<String, String>,
}

impl Withheld {
    /// Every Target.
    pub fn everything(&mut self, why: String) {
        self.all.get_or_insert(why);
    }

    /// Every Target of a namespace.
    pub fn namespace(&mut self, namespace: String, why: String) {
        self.namespaces.entry(namespace).or_insert(why);
    }

    /// One Target, by `namespace/name`.
    pub fn target(&mut self, name: String, why: String) {
        self.targets.entry(name).or_insert(why);
    }

    /// Why a Target is withheld, if it is.
    pub fn why(&self, target: &Target) -> Option<&str> {
        let namespace = target.metadata.namespace.as_deref().unwrap_or_default();
        let why = self.all.as_ref().or_else(|| self.namespaces.get(namespace));
        why.or_else(|| self.targets.get(&target.full_name()))
            .map(String::as_str)
    }
}

/// One accepted configuration.
#[derive(Default)]
pub struct Index {
    revision: u64,
    revisions: Revisions,
    cluster: String,
    digest_key: String,
    objects: Objects,
    withheld: Withheld,
    offers: Mutex<HashMap<Class, Arc<Offer>>>,
}

/// What tells bundles apart.
type Class = (String, String, BTreeMap<String, String>);

/// A bundle, ready to send.
pub struct Offer {
    /// SHA-256 of `body`.
    pub version: String,
    /// The exact text.
    pub body: Arc<str>,
    /// How far the store was read that it is made of.
    pub revisions: Revisions,
    /// The same, typed.
    pub bundle: Bundle,
}

impl Offer {
    /// A Target of the bundle by `namespace/name`.
    pub fn target(&self, name: &str) -> Option<&BundledTarget> {
        self.bundle
            .targets
            .iter()
            .find(|bundled| bundled.target.full_name() == name)
    }
}

/// What an asking rule set says, looked up by ourselves.
#[derive(Debug, Clone, PartialEq)]
pub struct AskBasis {
    /// Who must agree, per rule.
    pub sets: Vec<ApproverSet>,
    /// The shortest validity.
    pub valid_for: Duration,
    /// Digest of the Target and the rules: another one means the request is about something else.
    pub digest: String,
    /// The Target's UID.
    pub target_uid: Option<String>,
}

impl Index {
    /// Over checked objects.
    pub fn new(objects: Objects, revision: u64, cluster: String, digest_key: String) -> Self {
        Index {
            revision,
            revisions: Revisions::of("Configuration", revision),
            cluster,
            digest_key,
            objects,
            withheld: Withheld::default(),
            offers: Mutex::new(HashMap::new()),
        }
    }

    /// The same without these Targets.
    pub fn withholding(mut self, withheld: Withheld) -> Self {
        self.withheld = withheld;
        self
    }

    /// The same, read from a store that counts by itself.
    pub fn consuming(mut self, revisions: Option<Revisions>) -> Self {
        self.revisions = revisions.unwrap_or(self.revisions);
        self
    }

    /// How far the store was read.
    pub fn revisions(&self) -> &Revisions {
        &self.revisions
    }

    /// The configuration's revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many different bundles were made of it.
    pub fn classes(&self) -> usize {
        let offers = self.offers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        offers.len()
    }

    /// What was accepted.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Every Target with the reason why nobody gets it, if nobody does.
    pub fn targets(&self) -> impl Iterator<Item = (&Target, Option<String>)> {
        let targets = self.objects.targets.iter().map(|located| &located.object);
        targets.map(|target| (target, self.withheld.why(target).map(str::to_owned)))
    }

    /// Every Target with the reason why this workload does not get it, if it does not.
    pub fn standing(&self, subject: &Subject) -> Vec<(&Target, Result<BundledTarget, String>)> {
        let mut ports: HashMap<i32, String> = HashMap::new();
        let targets = self.objects.targets.iter().map(|located| &located.object);
        targets
            .map(|target| {
                let port = target.spec.listen.port;
                let standing = self
                    .bundled(target, subject)
                    .and_then(|bundled| match ports.get(&port) {
                        Some(first) => Err(format!("PortTaken: Target {first} already listens on port {port}")),
                        None => {
                            ports.insert(port, target.full_name());
                            Ok(bundled)
                        }
                    });
                (target, standing)
            })
            .collect()
    }

    /// The bundle of this workload.
    pub fn offer(&self, subject: &Subject) -> Arc<Offer> {
        let class = (
            subject.namespace.clone(),
            subject.service_account.clone(),
            subject.labels.clone(),
        );
        let mut offers = self.offers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(offer) = offers.get(&class) {
            return Arc::clone(offer);
        }
        let offer = Arc::new(self.build(subject));
        offers.insert(class, Arc::clone(&offer));
        offer
    }

    /// Looks the asking rules up in the workload's own bundle; `None` if one of them does not ask (any more).
    pub fn ask_basis(&self, subject: &Subject, target: &str, rules: &[String]) -> Option<AskBasis> {
        let offer = self.offer(subject);
        let bundled = offer.target(target)?;
        let mut text = serde_json::to_string(bundled).ok()?;
        let mut sets = Vec::with_capacity(rules.len());
        let mut valid_for = None::<Duration>;
        for name in rules {
            let rule = find_rule(&offer.bundle, name).filter(|rule| rule.effect == RuleEffect::Ask)?;
            let ask = rule.ask.as_ref()?;
            let own = ask.valid_for.map_or(DEFAULT_VALIDITY, |span| span.0);
            valid_for = Some(valid_for.map_or(own, |shortest| shortest.min(own)));
            text.push_str(&serde_json::to_string(rule).ok()?);
            sets.push(ApproverSet {
                rule: name.clone(),
                approvers: ask.approvers.clone(),
                exclude: ask.exclude.clone(),
                count: ask.count,
            });
        }
        Some(AskBasis {
            valid_for: valid_for?,
            digest: crate::jwt::sha256_base64url(text.as_bytes()),
            target_uid: bundled.target.metadata.uid.clone(),
            sets,
        })
    }

    fn build(&self, subject: &Subject) -> Offer {
        let targets: Vec<BundledTarget> = self
            .standing(subject)
            .into_iter()
            .filter_map(|(_, standing)| standing.ok())
            .collect();
        let bundle = Bundle {
            cluster: self.cluster.clone(),
            policies: self.policies_for(subject, &targets),
            cluster_policies: self
                .objects
                .cluster_policies
                .iter()
                .map(|located| located.object.clone())
                .collect(),
            targets,
            digest_key: self.digest_key.clone(),
        };
        // A map with text keys and plain values always serialises; an empty body denies everything all the same.
        let body = serde_json::to_string(&bundle).unwrap_or_default();
        if body.len() > MAX_BODY {
            tracing::error!(
                bytes = body.len(),
                subject = subject.account(),
                "the bundle is over 8 MiB: deny all"
            );
            return self.nothing();
        }
        Offer {
            version: version(body.as_bytes()),
            body: body.into(),
            revisions: self.revisions.clone(),
            bundle,
        }
    }

    /// A bundle without targets and policies: deny all.
    fn nothing(&self) -> Offer {
        let bundle = Bundle {
            cluster: self.cluster.clone(),
            digest_key: self.digest_key.clone(),
            ..Bundle::default()
        };
        let body = serde_json::to_string(&bundle).unwrap_or_default();
        Offer {
            version: version(body.as_bytes()),
            body: body.into(),
            revisions: self.revisions.clone(),
            bundle,
        }
    }

    /// Policies that name the workload, with references to other workloads' Targets left out.
    fn policies_for(&self, subject: &Subject, targets: &[BundledTarget]) -> Vec<AccessPolicy> {
        let policies = self.objects.policies.iter().map(|located| &located.object);
        policies
            .filter(|policy| names(&policy.spec.subjects, subject))
            .filter_map(|policy| {
                let mut policy = policy.clone();
                policy.status = None;
                policy.metadata.annotations.clear();
                let namespace = policy.metadata.namespace.clone();
                policy.spec.target_refs.retain(|reference| {
                    targets
                        .iter()
                        .any(|bundled| refers(&namespace, reference, &bundled.target))
                });
                (!policy.spec.target_refs.is_empty()).then_some(policy)
            })
            .collect()
    }

    fn bundled(&self, target: &Target, subject: &Subject) -> Result<BundledTarget, String> {
        if !self.objects.admits(target, &subject.namespace) {
            return Err(format!(
                "NamespaceNotAllowed: allowedNamespaces does not admit namespace `{}`",
                subject.namespace
            ));
        }
        let mut policies = self.objects.policies.iter().map(|located| &located.object);
        let named = policies.any(|policy| names(&policy.spec.subjects, subject) && policy.refers_to(target));
        if !named {
            return Err(format!(
                "NoPolicy: no AccessPolicy that names `{}` refers to it",
                subject.account()
            ));
        }
        if let Some(why) = self.withheld.why(target) {
            return Err(why.to_owned());
        }
        self.objects
            .trusted_issuer_of(target)
            .map_err(|unresolved| unresolved.to_string())?;
        let ca_pem = self.ca_pem(target)?;
        let mut target = target.clone();
        target.status = None;
        target.metadata.annotations.clear();
        Ok(BundledTarget {
            loopback: is_loopback_literal(&target.spec.address.host),
            ca_pem,
            target,
        })
    }

    fn ca_pem(&self, target: &Target) -> Result<Option<String>, String> {
        let tls = &target.spec.tls;
        let reference = match (&tls.mode, &tls.ca_bundle) {
            (TlsMode::Disabled, _) | (_, None) => return Ok(None),
            (_, Some(CaBundle::Inline(pem))) => return Ok(Some(pem.clone())),
            (_, Some(CaBundle::ConfigMap(reference))) => reference,
        };
        let home = target.metadata.namespace.as_deref().unwrap_or_default();
        let map = self
            .objects
            .config_map(home, &reference.name)
            .ok_or_else(|| format!("CaBundleNotFound: there is no ConfigMap `{home}/{}`", reference.name))?;
        let pem = map.data.get(&reference.key).ok_or_else(|| {
            format!(
                "CaBundleNotFound: ConfigMap `{home}/{}` has no key `{}`",
                reference.name, reference.key
            )
        })?;
        Ok(Some(pem.clone()))
    }
}

fn names(subjects: &[SubjectMatch], subject: &Subject) -> bool {
    subjects.iter().any(|wanted| wanted.matches(subject))
}

fn refers(namespace: &Option<String>, reference: &LocalRef, target: &Target) -> bool {
    reference.name == target.metadata.name && *namespace == target.metadata.namespace
}

fn find_rule<'a>(bundle: &'a Bundle, name: &str) -> Option<&'a Rule> {
    let (policy, rule) = name.rsplit_once('/')?;
    let own = bundle.policies.iter().filter(|object| object.full_name() == policy);
    let cluster = bundle
        .cluster_policies
        .iter()
        .filter(|object| object.full_name() == policy);
    own.flat_map(|object| object.spec.rules.iter())
        .chain(cluster.flat_map(|object| object.spec.rules.iter()))
        .find(|candidate| candidate.name == rule)
}

fn is_loopback_literal(host: &str) -> bool {
    host.parse::<std::net::IpAddr>()
        .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
