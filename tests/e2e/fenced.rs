//! Tier Enforced on a real API server: who is attested, and what the profile says of its pods.
//!
//! No fence stands here, for no node runs: a sidecar that looks for one finds none. That one is found is the node's to show
//! (`tests/node/fenced.rs`).

use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use serde_json::json;
use sidegate_injector::admit::Verdict;
use sidegate_tests::cluster::Cluster;
use sidegate_tests::http::get;

use crate::identity::said;
use crate::inject::{judged_by, PROFILE};
use crate::replicas::{ports, Replicas};
use crate::site::{site, until, Agent, Site};

/// An agent's pod as the injector makes it by a profile of this tier, in a namespace that names a profile of another.
struct Fenced<'a> {
    agent: Agent<'a>,
    profile: String,
}

impl<'a> Fenced<'a> {
    fn new(cluster: &'a Cluster, made_by: &str, named: &str) -> Result<Self> {
        Fenced::at(cluster, site(cluster)?, made_by, named)
    }

    /// The same for this broker.
    fn at(cluster: &'a Cluster, broker: Arc<Site>, made_by: &str, named: &str) -> Result<Self> {
        let text = PROFILE.replace("spec:\n", &format!("spec:\n  tier: {made_by}\n"));
        let mut made = Ok(());
        let agent = Agent::of(cluster, Arc::clone(&broker), |pod| {
            for list in ["initContainers", "volumes"] {
                pod["spec"][list] = json!([]);
            }
            pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1000});
            made = match judged_by(&text, broker.audience(), pod) {
                Ok(Verdict::Injected { injected, .. }) => {
                    *pod = injected.pod;
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            };
        })?;
        if let Err(why) = made {
            bail!("not injected: {why}");
        }
        let profile = format!("p-{}", agent.namespace);
        let text = PROFILE
            .replace("spec:\n", &format!("spec:\n  tier: {named}\n"))
            .replace("{name: default}", &format!("{{name: {profile}}}"));
        cluster.kubectl(&["apply", "-f", "-"], &text)?;
        let label = format!("sidegate.dev/profile={profile}");
        let both = [
            "label",
            "namespace",
            &agent.namespace,
            "sidegate.dev/inject=enabled",
            &label,
        ];
        cluster.kubectl(&both, "")?;
        Ok(Fenced { agent, profile })
    }

    /// What is said to its token.
    fn said(&self) -> Result<String> {
        said(&self.agent, &self.agent.token()?)
    }

    /// Waits until its profile's condition is this; answers its message.
    fn until(&self, status: &str, reason: &str) -> Result<String> {
        let found = until(
            &format!("EgressEnforced is {status}, {reason}"),
            || {
                self.agent
                    .condition("injectionprofile", &self.profile, "EgressEnforced")
            },
            |found| found["status"] == status && found["reason"] == reason,
        )?;
        Ok(found["message"].as_str().unwrap_or_default().to_owned())
    }

    /// Its sidecar, which finds no fence: until then nobody measured it, and from then on it is told as gone.
    fn measured(&self) -> Result<sidegate_sidecar::app::Running> {
        self.agent.report(0, "containerd://first")?;
        let message = self.until("Unknown", "NotMeasured")?;
        ensure!(message.starts_with("0/1 pods; "), "{message}");
        let sidecar = self.agent.sidecar_of(true)?;
        let message = self.until("False", "FenceMissing")?;
        ensure!(message.contains("its fence is gone"), "{message}");
        Ok(sidecar)
    }
}

/// A pod that was made before its profile was Enforced, or around the webhook, is nobody; with its fence it is somebody, and
/// with a debugger that could take the fence down it is nobody again.
pub fn a_pod_without_its_fence_is_nobody_and_its_profile_says_so(cluster: &Cluster) -> Result<()> {
    let bare = Fenced::new(cluster, "Cooperative", "Enforced")?;
    let wanted = "fence: the profile demands a fence, and there is none";
    until("it is known to the broker", || bare.said(), |said| said == wanted)?;
    bare.until("Unknown", "NoPods")?;
    bare.agent.report(0, "containerd://first")?;
    let message = bare.until("False", "FenceMissing")?;
    ensure!(
        message.contains("0/1 pods") && message.contains(&bare.agent.namespace),
        "{message}"
    );

    let fenced = Fenced::new(cluster, "Enforced", "Enforced")?;
    let said = fenced.said()?;
    ensure!(said == "attested agent", "{said}");
    let root = json!({"runAsUser": 0});
    fenced
        .agent
        .debug(&json!({"name": "look", "image": "example.invalid/look", "securityContext": root}))?;
    let said = fenced.said()?;
    ensure!(said.starts_with("fence: container look runs as root"), "{said}");
    Ok(())
}

/// Until somebody measured it, nobody says that a fence stands; a sidecar that finds none makes its profile False. A
/// Cooperative profile is False whatever its pods look like, and nothing it says reads as enforced.
pub fn a_fence_is_believed_when_it_was_measured_and_cooperative_never(cluster: &Cluster) -> Result<()> {
    let fenced = Fenced::new(cluster, "Enforced", "Enforced")?;
    let sidecar = fenced.measured()?;
    let address = *sidecar.scrape_addrs.first().context("nothing is served")?;
    let (_, scraped) = fenced.agent.site.runtime.block_on(get(address, "GET /metrics"))?;
    for line in [
        "sidegate_egress_enforced{state=\"true\"} 0",
        "sidegate_egress_enforced{state=\"false\"} 1",
    ] {
        ensure!(scraped.lines().any(|found| found == line), "{line}\n{scraped}");
    }
    fenced.agent.end(sidecar);
    fenced.until("Unknown", "NotMeasured")?;

    let cooperative = Fenced::new(cluster, "Enforced", "Cooperative")?;
    let said = cooperative.said()?;
    ensure!(
        said == "attested agent",
        "a fence that nobody asked for harms nobody: {said}"
    );
    cooperative.agent.report(0, "containerd://first")?;
    let message = cooperative.until("False", "NotEnforced")?;
    ensure!(!message.to_lowercase().contains("enforced"), "{message}");
    Ok(())
}

/// Of several brokers the leader tells of all pods: one that is connected to another is measured as it says there, and not
/// known once it says nothing more.
pub fn the_leader_counts_pods_of_the_other_brokers(replicas: &mut Replicas) -> Result<()> {
    let other = (replicas.leader()? + 1) % replicas.sites.len();
    let other = Arc::clone(replicas.sites.get(other).context("no other")?);
    replicas.service.to(&ports(&[&other]));
    let fenced = Fenced::at(&replicas.cluster, Arc::clone(&other), "Enforced", "Enforced")?;
    let sidecar = fenced.measured()?;
    ensure!(
        other.broker.status().sidecars == 1,
        "it is not connected to the other one"
    );
    fenced.agent.end(sidecar);
    fenced.until("Unknown", "NotMeasured")?;
    replicas.service.to(&ports(&replicas.all()));
    Ok(())
}
