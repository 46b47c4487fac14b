//! What a sidecar's pod must show beside its shape: ConfigMap `sidegate-admission`, written by the leader, read by all
//! replicas and by the cluster's admission policies.
//!
//! Refuses every image but those of this release and of the two before it, by digest. Without a digest at install nothing
//! is pinned, and that is said, not hidden. The invariants: a map that cannot be read adds nothing, so a replica then takes
//! the one digest it was started with; nothing is taken out of a pod's annotations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use sidegate_policies::check::is_digest;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::leader::Leader;
use super::profiles::{self, Relaxed};
use super::{answered, Failed, Failing};
use crate::attest::Images;
use crate::config::{AdmissionOptions, ClusterOptions};

/// Its name in the broker's namespace.
const NAME: &str = "sidegate-admission";
/// Read again so often, and so soon after people applied something.
const EVERY: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_millis(500);
/// Releases whose sidecars are taken: this one and those before it.
const RELEASES: usize = 3;

/// Certificates of the authorities that a pod made now may pin, as PEM.
pub type Authorities = dyn Fn() -> Vec<String> + Send + Sync;

/// The allow-list of one replica.
pub struct Admission {
    client: Client,
    maps: Api<ConfigMap>,
    options: AdmissionOptions,
    audience: String,
    authorities: Box<Authorities>,
    /// Digests of the map, as last read.
    known: ArcSwap<Vec<String>>,
}

impl Admission {
    /// Knows its own digest; the map comes with the first round.
    pub fn new(
        client: Client,
        namespace: &str,
        options: AdmissionOptions,
        audience: String,
        authorities: Box<Authorities>,
    ) -> Self {
        if options.sidecar_digest.is_none() {
            tracing::warn!("images of sidecars are not pinned: no digest of the sidecar was given at install");
        }
        Admission {
            maps: Api::namespaced(client.clone(), namespace),
            client,
            options,
            audience,
            authorities,
            known: ArcSwap::default(),
        }
    }

    /// The same, with the map read once before anybody is judged by it.
    pub async fn open(
        client: &Client,
        options: &ClusterOptions,
        audience: &str,
        authorities: Box<Authorities>,
    ) -> Arc<Self> {
        let (client, pods) = (client.clone(), options.admission.clone());
        let admission = Admission::new(client, &options.namespace, pods, audience.to_owned(), authorities);
        if let Err(error) = admission.round(false).await {
            tracing::warn!(%error, map = NAME, "cannot be read yet");
        }
        Arc::new(admission)
    }

    /// Reads, and writes while this replica leads, until told to stop; `applied` tells that there may be other profiles.
    pub async fn run(self: Arc<Self>, leader: Arc<Leader>, mut applied: watch::Receiver<u64>, stop: CancellationToken) {
        let mut failing = Failing::default();
        loop {
            let round = tokio::select! {
                () = stop.cancelled() => return,
                round = self.round(leader.leads()) => round,
            };
            if let Some(error) = failing.news(&round) {
                tracing::warn!(%error, map = NAME, "cannot be read or written: images of earlier releases are refused");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
                () = soon(&mut applied) => {}
            }
        }
    }

    /// One look at the map, and the writing of it where this replica leads and it says something else.
    ///
    /// # Errors
    /// Where the API server does not answer, or refuses; what was known before is forgotten then.
    pub async fn round(&self, leads: bool) -> Result<(), Failed> {
        let found = answered(self.maps.get(NAME))
            .await
            .inspect_err(|_| self.known.store(Arc::default()))?;
        let present = found.data.clone().unwrap_or_default();
        self.known.store(Arc::new(digests(&present)));
        if !leads {
            return Ok(());
        }
        let wanted = self.wanted(&present, &profiles::read(&self.client).await?);
        if present != wanted {
            let map = ConfigMap {
                data: Some(wanted.clone()),
                ..found
            };
            match answered(self.maps.replace(NAME, &PostParams::default(), &map)).await {
                Ok(_) => self.known.store(Arc::new(digests(&wanted))),
                // Another was first: the next round sees what it wrote.
                Err(error) if error.is(409) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The map as this install has it, given what it says now and what profiles relax.
    fn wanted(&self, present: &BTreeMap<String, String>, relaxed: &Relaxed) -> BTreeMap<String, String> {
        let mut pinned: Vec<String> = self.options.sidecar_digest.iter().cloned().collect();
        if !pinned.is_empty() {
            let before = digests(present);
            // Two replicas of different releases must not write in turns: an order that holds both is left as it is.
            let holds = self.options.sidecar_digest.iter().all(|own| before.contains(own));
            if holds {
                pinned.clear();
            }
            pinned.extend(before);
            pinned.truncate(RELEASES);
        }
        let mut uids = relaxed.uids.clone();
        uids.extend(self.options.uids.iter().copied().map(i64::from));
        let uids: Vec<String> = uids.iter().map(ToString::to_string).collect();
        let authorities = (self.authorities)();
        let authorities: Vec<&str> = authorities.iter().map(|pem| pem.trim()).collect();
        let mut map = relaxed.entries.clone();
        map.extend([
            ("digests".to_owned(), pinned.join("\n")),
            ("uids".to_owned(), uids.join("\n")),
            ("audience".to_owned(), self.audience.clone()),
            // Cut at empty lines by whoever reads it.
            ("brokerCa".to_owned(), authorities.join("\n\n")),
            (
                "breakGlassGroup".to_owned(),
                self.options.break_glass_group.clone().unwrap_or_default(),
            ),
        ]);
        map
    }
}

/// A moment after something was applied, and what comes within it is one with it.
async fn soon(applied: &mut watch::Receiver<u64>) {
    if applied.changed().await.is_err() {
        return std::future::pending().await;
    }
    tokio::time::sleep(SOON).await;
    applied.mark_unchanged();
}

impl Images for Admission {
    fn allowed(&self, image: &str) -> Result<(), String> {
        let Some(own) = &self.options.sidecar_digest else {
            return Ok(());
        };
        let digest = image
            .rsplit_once('@')
            .map(|(_, digest)| digest)
            .filter(|digest| is_digest(digest));
        let Some(digest) = digest else {
            return Err(format!("`{image}` is not named by digest"));
        };
        if digest == own || self.known.load().iter().any(|known| known == digest) {
            return Ok(());
        }
        Err(format!("{digest} is none of the digests in ConfigMap {NAME}"))
    }

    fn pinned(&self) -> bool {
        self.options.sidecar_digest.is_some()
    }
}

/// Digests of a map; what is none is left out.
fn digests(data: &BTreeMap<String, String>) -> Vec<String> {
    let lines = data.get("digests").map(String::as_str).unwrap_or_default().lines();
    let named = lines.map(str::trim).filter(|line| is_digest(line));
    named.take(RELEASES).map(str::to_owned).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn digest(letter: &str) -> String {
        format!("sha256:{}", letter.repeat(64))
    }

    fn admission(own: Option<&str>) -> Admission {
        // Nothing is listening there, and nothing here asks.
        let config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"));
        let options = AdmissionOptions {
            sidecar_digest: own.map(digest),
            ..AdmissionOptions::default()
        };
        Admission::new(
            Client::try_from(config).unwrap(),
            "ns",
            options,
            "https://broker".to_owned(),
            Box::new(|| vec!["one\n".to_owned(), "two\n".to_owned()]),
        )
    }

    #[tokio::test]
    async fn the_map_holds_this_release_and_the_two_before_it() {
        let mut map = BTreeMap::new();
        for (release, holds) in [("a", "a"), ("b", "ba"), ("c", "cba"), ("d", "dcb"), ("c", "dcb")] {
            map = admission(Some(release)).wanted(&map, &Relaxed::default());
            let wanted: Vec<String> = holds.chars().map(|letter| digest(&letter.to_string())).collect();
            assert_eq!(map["digests"], wanted.join("\n"), "after {release}");
            assert_eq!(digests(&map), wanted);
        }
        assert_eq!(map["audience"], "https://broker");
        assert_eq!(map["brokerCa"], "one\n\ntwo");
        // An install that pins nothing says so.
        assert_eq!(admission(None).wanted(&map, &Relaxed::default())["digests"], "");
        map.insert("digests".to_owned(), format!("latest\n{}\nsha256:short", digest("e")));
        assert_eq!(digests(&map), [digest("e")], "what is no digest is nobody's");
    }

    #[tokio::test]
    async fn an_image_is_taken_by_its_digest_alone() {
        let admission = admission(Some("a"));
        let named = |letter: &str| format!("registry.example/sidegate:1.2@{}", digest(letter));
        assert!(admission.allowed(&named("a")).is_ok(), "its own, without any map");
        assert!(admission.allowed(&named("b")).is_err());
        admission.known.store(Arc::new(vec![digest("b")]));
        assert!(admission.allowed(&named("b")).is_ok());
        for other in [
            "registry.example/sidegate:1.2",
            "x@sha256:aaaa",
            "",
            &digest("a"),
            &format!("x@{}", "a".repeat(64)),
        ] {
            assert!(admission.allowed(other).unwrap_err().contains("digest"), "{other}");
        }
        assert!(
            super::Admission::allowed(&self::admission(None), "anything").is_ok(),
            "not pinned"
        );
        assert!(admission.pinned() && !self::admission(None).pinned());
    }
}
