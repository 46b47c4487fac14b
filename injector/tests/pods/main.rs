//! What injection promises, on files: a pod in, what becomes of it out; and properties of every pod.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    missing_docs
)]

mod documented;
mod golden;
mod properties;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sidegate_injector::admit::{admit, Verdict, World};
use sidegate_injector::install::Install;
use sidegate_policies::check::check_apart;
use sidegate_policies::objects::Objects;
use sidegate_policies::pod::fence::Demands;
use sidegate_policies::yaml::{self, Source};

/// The audience of tokens for the broker.
pub const AUDIENCE: &str = "https://sidegate-broker.sidegate-system.svc:8444";

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// What every pod of the golden files meets.
pub struct Known {
    install: Install,
    objects: Objects,
    generations: BTreeMap<String, i64>,
}

impl Known {
    pub fn read() -> Known {
        let text = std::fs::read_to_string(folder().join("world.yaml")).unwrap();
        let loaded = yaml::load(&[Source {
            name: "world.yaml".to_owned(),
            text,
        }]);
        assert_eq!(loaded.problems, []);
        assert_eq!(check_apart(&loaded.objects).problems, []);
        let install = format!(
            "{{brokerUrl: \"https://sidegate-broker.sidegate-system.svc:8443\", audience: \"{AUDIENCE}\", nameServers: \
             [10.96.0.10], brokerCaPem: \"-----BEGIN CERTIFICATE-----\\nMIIB\\n-----END CERTIFICATE-----\\n\"}}"
        );
        Known {
            install: Install::read(&install).unwrap(),
            objects: loaded.objects,
            generations: BTreeMap::from([("default".to_owned(), 3)]),
        }
    }

    /// The same, read once for many pods.
    pub fn read_once() -> &'static Known {
        static KNOWN: std::sync::OnceLock<Known> = std::sync::OnceLock::new();
        KNOWN.get_or_init(Known::read)
    }

    /// What the golden profile of tier Enforced demands.
    pub fn demands(&self) -> Demands {
        let profiles = self.objects.injection_profiles.iter().map(|located| &located.object);
        let enforced = profiles.into_iter().find(|profile| profile.metadata.name == "enforced");
        Demands::of(&enforced.unwrap().spec).unwrap()
    }

    pub fn verdict(&self, pod: &Value) -> Verdict {
        let name = pod["metadata"]["namespace"].as_str().unwrap();
        let namespace = self.objects.namespace(name).unwrap();
        let world = World {
            install: &self.install,
            objects: &self.objects,
            generations: &self.generations,
            unusable: &BTreeMap::new(),
        };
        admit(&world, namespace, pod)
    }
}

/// A patch applied.
pub fn applied(pod: &Value, operations: &[Value]) -> Value {
    let mut value = pod.clone();
    let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations.to_vec())).unwrap();
    json_patch::patch(&mut value, &patch).unwrap();
    value
}
