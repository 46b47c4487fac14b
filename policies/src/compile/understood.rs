//! Reading a bundle's body where the broker may be newer than the reader: what is not understood denies, and no more
//! than it must.
//!
//! A Target with an unknown field, or one that something with an unknown field, matcher or fact is about, is left out
//! of the set, which denies everything on it; the rest is in force. Refuses a body that is no bundle at all. The
//! invariant: leaving something out never allows more than reading it could have.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{compile, problem, Problem};
use crate::api::Object;
use crate::bundle::{version, Bundle, BundledTarget};
use crate::engine::{PolicySet, TargetId};

/// Rounds of leaving objects out that do not compile.
const ROUNDS: usize = 8;

/// A bundle as far as it was understood.
#[derive(Debug)]
pub struct Understood {
    /// What was understood; Targets that deny everything are not in it.
    pub bundle: Bundle,
    /// The same, compiled.
    pub policies: PolicySet,
    /// Targets that deny everything.
    pub withheld: BTreeMap<TargetId, Withheld>,
}

/// A Target that denies everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Withheld {
    /// What was not understood.
    pub why: String,
    /// The Target itself, if that was.
    pub target: Option<BundledTarget>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Loose {
    cluster: String,
    targets: Vec<Value>,
    policies: Vec<Value>,
    cluster_policies: Vec<Value>,
    digest_key: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What a policy is about.
enum About {
    /// These.
    Targets(Vec<TargetId>),
    /// Whatever is in this namespace.
    Namespace(String),
    /// Whatever there is.
    Everything,
}

/// Reads and compiles a body; the set carries its version.
pub fn read(body: &[u8]) -> Result<Understood, Vec<Problem>> {
    let loose: Loose = serde_json::from_slice(body)
        .map_err(|error| vec![problem("the bundle", "", format!("its body is not valid: {error}"))])?;
    let mut reading = Reading::default();
    let bundle = reading.bundle(loose);
    let (bundle, mut policies) = reading.compiled(bundle)?;
    policies.version = version(body).into();
    Ok(Understood {
        bundle,
        policies,
        withheld: reading.withheld,
    })
}

#[derive(Default)]
struct Reading {
    withheld: BTreeMap<TargetId, Withheld>,
    /// Withheld before it is known which Targets there are.
    namespaces: BTreeMap<String, String>,
    all: Option<String>,
}

impl Reading {
    fn bundle(&mut self, loose: Loose) -> Bundle {
        if let Some(field) = loose.rest.keys().next() {
            self.all = Some(format!(
                "the bundle has a field `{field}` that this release does not know"
            ));
        }
        Bundle {
            cluster: loose.cluster,
            targets: self.targets(loose.targets),
            policies: self.read(loose.policies, about),
            cluster_policies: self.read(loose.cluster_policies, about_cluster),
            digest_key: loose.digest_key,
        }
    }

    fn targets(&mut self, targets: Vec<Value>) -> Vec<BundledTarget> {
        let mut read = Vec::with_capacity(targets.len());
        for value in targets {
            let id = value.get("target").and_then(id_of);
            match (serde_json::from_value::<BundledTarget>(value), id) {
                (Ok(target), _) => read.push(target),
                (Err(error), Some(id)) => self.withhold(id, format!("Target: {error}")),
                // Nobody can name it: nothing refers to it.
                (Err(_), None) => {}
            }
        }
        read
    }

    fn read<T: DeserializeOwned>(&mut self, objects: Vec<Value>, about: impl Fn(&Value) -> About) -> Vec<T> {
        let mut read = Vec::with_capacity(objects.len());
        for value in objects {
            let observes = observes(&value);
            let concerned = about(&value);
            let name = value.pointer("/metadata/name").and_then(Value::as_str);
            let name = name.unwrap_or_default().to_owned();
            match serde_json::from_value(value) {
                Ok(object) => read.push(object),
                Err(_) if observes => {}
                Err(error) => self.put_away(concerned, &format!("policy {name}: {error}")),
            }
        }
        read
    }

    fn put_away(&mut self, concerned: About, why: &str) {
        match concerned {
            About::Targets(targets) => targets.into_iter().for_each(|id| self.withhold(id, why.to_owned())),
            About::Namespace(namespace) => {
                self.namespaces.entry(namespace).or_insert_with(|| why.to_owned());
            }
            About::Everything => {
                self.all.get_or_insert_with(|| why.to_owned());
            }
        }
    }

    fn withhold(&mut self, id: TargetId, why: String) {
        self.withheld.entry(id).or_insert(Withheld { why, target: None });
    }

    /// Takes what does not compile out of the bundle, with the Targets it is about, until the rest does.
    fn compiled(&mut self, mut bundle: Bundle) -> Result<(Bundle, PolicySet), Vec<Problem>> {
        let mut problems = Vec::new();
        for _ in 0..ROUNDS {
            self.part(&mut bundle);
            problems = match compile(&bundle) {
                Ok(set) => return Ok((bundle, set)),
                Err(problems) => problems,
            };
            let objects: BTreeMap<&str, &Problem> = problems
                .iter()
                .filter_map(|problem| Some((problem.object.as_deref()?, problem)))
                .collect();
            if !self.take_out(&mut bundle, &objects) {
                break;
            }
        }
        Err(problems)
    }

    /// Whether anything was taken out.
    fn take_out(&mut self, bundle: &mut Bundle, objects: &BTreeMap<&str, &Problem>) -> bool {
        let mut failing = failing(&mut bundle.policies, "AccessPolicy", objects, about);
        let cluster = &mut bundle.cluster_policies;
        failing.extend(self::failing(cluster, "ClusterAccessPolicy", objects, about_cluster));
        let any = !failing.is_empty();
        for (concerned, why) in failing {
            if let Some(concerned) = concerned {
                self.put_away(concerned, &why);
            }
        }
        any
    }

    /// Takes the Targets out that are withheld by now.
    fn part(&mut self, bundle: &mut Bundle) {
        let mut kept = Vec::with_capacity(bundle.targets.len());
        let mut seen = BTreeSet::new();
        for bundled in std::mem::take(&mut bundle.targets) {
            let namespace = bundled.target.metadata.namespace.clone().unwrap_or_default();
            let id = TargetId::new(&namespace, &bundled.target.metadata.name);
            let already = self.withheld.get(&id).map(|withheld| withheld.why.clone());
            let why = self
                .all
                .clone()
                .or(already)
                .or_else(|| self.namespaces.get(&namespace).cloned());
            match why {
                Some(why) if seen.insert(id.clone()) => {
                    let target = Some(bundled);
                    self.withheld.insert(id, Withheld { why, target });
                }
                Some(_) => {}
                None => kept.push(bundled),
            }
        }
        bundle.targets = kept;
    }
}

/// Whether a policy only observes: it restricts nothing, so that leaving it out allows nothing more.
pub fn observes(policy: &Value) -> bool {
    policy.pointer("/spec/mode").and_then(Value::as_str) == Some("Observe")
}

/// Takes the policies out that have a problem: what each is about, if it restricts anything, and what is wrong.
fn failing<S: Serialize>(
    policies: &mut Vec<Object<S>>,
    kind: &str,
    objects: &BTreeMap<&str, &Problem>,
    about: impl Fn(&Value) -> About,
) -> Vec<(Option<About>, String)> {
    let mut failing = Vec::new();
    policies.retain(|policy| {
        let found = objects.get(format!("{kind} {}", policy.full_name()).as_str());
        found.is_none_or(|problem| {
            let value = serde_json::to_value(policy).unwrap_or_default();
            let concerned = (!observes(&value)).then(|| about(&value));
            failing.push((concerned, problem.to_string()));
            false
        })
    });
    failing
}

fn id_of(object: &Value) -> Option<TargetId> {
    let text = |field: &str| object.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
    Some(TargetId::new(text("namespace")?, text("name")?))
}

/// The references of a policy, if all of them can be read and there is one.
fn references(object: &Value, namespace: Option<&str>) -> Option<Vec<TargetId>> {
    let references = object.pointer("/spec/targetRefs")?.as_array()?;
    let read = references.iter().map(|reference| {
        let text = |field: &str| reference.get(field).and_then(Value::as_str);
        Some(TargetId::new(namespace.or_else(|| text("namespace"))?, text("name")?))
    });
    let read: Option<Vec<TargetId>> = read.collect();
    read.filter(|references| !references.is_empty())
}

fn about(policy: &Value) -> About {
    let Some(namespace) = policy.pointer("/metadata/namespace").and_then(Value::as_str) else {
        return About::Everything;
    };
    match references(policy, Some(namespace)) {
        Some(targets) => About::Targets(targets),
        None => About::Namespace(namespace.to_owned()),
    }
}

fn about_cluster(policy: &Value) -> About {
    let selects = policy
        .pointer("/spec/targetSelector")
        .is_some_and(|selector| !selector.is_null());
    match references(policy, None) {
        Some(targets) if !selects => About::Targets(targets),
        _ => About::Everything,
    }
}

#[cfg(test)]
#[path = "understood_tests.rs"]
mod tests;
